"""What the client commands share: options, exit codes, how errors and JSON are shown."""

from __future__ import annotations

import base64
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, NoReturn, TypedDict, TypeVar

import click

from cluster.client.arguments import AFTER_MAX, check_token
from cluster.client.endpoints import DEFAULT_ENDPOINTS, Scheme, normalize_endpoint
from cluster.client.errors import (
    ClientError,
    NotAppliedError,
    PreconditionFailedError,
    StorageFullError,
    UnavailableError,
    UnknownOutcomeError,
    WrongClusterError,
)
from cluster.client.results import GetResult, Item
from cluster.exit_codes import (
    EXIT_INTERRUPTED,
    EXIT_NOT_APPLIED,
    EXIT_PRECONDITION_FAILED,
    EXIT_STORAGE_FULL,
    EXIT_UNAVAILABLE,
    EXIT_UNKNOWN_OUTCOME,
    EXIT_USAGE,
)
from cluster.terminal import printable, say, say_json
from datapath.errors import DiskFullError, StorageError, is_out_of_space

if TYPE_CHECKING:
    from cluster.client.sync import Client

Function = TypeVar("Function", bound=Callable[..., Any])
STDIN = Path("-")
UNCHANGED = "Nothing was changed."
WRITE_INTERRUPTED = "a write may or may not have been applied"
CHANGE_INTERRUPTED = "the change may or may not have been made; see: onecopy status"
READ_INTERRUPTED = ""
_TOKEN_FILE = "onecopy.token_file"  # noqa: S105 -- a name


def _keep_token_file(ctx: click.Context, _: click.Parameter, value: Path | None) -> None:
    ctx.meta[_TOKEN_FILE] = value


def given_token() -> str:
    """Return the token of --token-file, or of ONECOPY_TOKEN, or "". Raises UsageError.

    There is no option that takes the token: everybody on the machine would see it in `ps`.
    """
    context = click.get_current_context(silent=True)
    file: Path | None = None if context is None else context.meta.get(_TOKEN_FILE)
    source, token = "ONECOPY_TOKEN", os.environ.get("ONECOPY_TOKEN", "")
    if file is not None:
        source = f"--token-file {file}"
        try:
            token = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise click.UsageError(f"{source} holds no token") from None
        except OSError as error:
            if file.name.startswith("oct_"):  # A2: not repeated
                advice = "--token-file names a file that holds the token, not the token itself"
                raise click.UsageError(advice) from None
            raise click.UsageError(f"{source} cannot be read: {error.strerror}") from None
        if not token.strip():
            raise click.UsageError(f"{source} is empty")
    try:
        return check_token(token.strip())
    except ClientError:
        raise click.UsageError(f"{source} holds no token") from None


class TlsFiles(NamedTuple):
    """The files of --cacert, --cert and --key; "": not given."""

    cacert: str = ""
    cert: str = ""
    key: str = ""


_TLS_HELP = {
    "cacert": "File of the authority by which the nodes are recognised; then https is the default",
    "cert": "File of a certificate by which the nodes recognise this client",
    "key": "File of the private key that belongs to --cert",
}


def _keep(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    context.meta[f"{__name__}.{parameter.name}"] = value or ""


def tls_files() -> TlsFiles:
    """Return the files that the running command was given."""
    context = click.get_current_context(silent=True)
    meta = context.meta if context is not None else {}
    return TlsFiles(*(meta.get(f"{__name__}.tls_{name}", "") for name in TlsFiles._fields))


class Whom(TypedDict):
    """What a client shows to nodes, and recognises them by."""

    token: str
    cacert: str
    cert: str
    key: str


def whom() -> Whom:
    """Return that of the running command. Raises UsageError."""
    files = tls_files()
    return Whom(token=given_token(), cacert=files.cacert, cert=files.cert, key=files.key)


def caller_options(function: Function) -> Function:
    """Add --json, --token-file, --cacert, --cert and --key."""
    for name, text in reversed(_TLS_HELP.items()):
        variable = f"ONECOPY_{name.upper()}"
        function = click.option(
            f"--{name}",
            f"tls_{name}",  # several commands have an argument KEY
            envvar=variable,
            type=click.Path(exists=True, dir_okay=False),
            expose_value=False,
            callback=_keep,
            help=f"{text} [env: {variable}].",
        )(function)
    function = click.option(
        "--token-file",
        type=click.Path(dir_okay=False, path_type=Path),
        expose_value=False,
        callback=_keep_token_file,
        help="File that holds the token of who asks [env: ONECOPY_TOKEN is the token itself].",
    )(function)
    return click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")(
        function
    )


def endpoint_options(function: Function) -> Function:
    """Add --endpoints, --no-discover, and what `caller_options` adds."""
    function = click.option(
        "--no-discover",
        is_flag=True,
        help="Use only the named nodes; do not discover others.",
    )(caller_options(function))
    return click.option(
        "--endpoints",
        envvar="ONECOPY_ENDPOINTS",
        default=",".join(DEFAULT_ENDPOINTS),
        metavar="URL,…",
        help="URLs of nodes, separated by commas [env: ONECOPY_ENDPOINTS; default: "
        "http://127.0.0.1:8101, …:8102, …:8103].",
    )(function)


group_option = click.option(
    "--group", default="", metavar="ID", help="Only what this group holds (see onecopy groups)."
)


def client_options(function: Function) -> Function:
    """Add --endpoints, --no-discover, --timeout-ms and --json to a command."""
    return timeout_option("Total time limit, retries included.")(endpoint_options(function))


def timeout_option(text: str) -> Callable[[Function], Function]:
    """Return what adds --timeout-ms to a command; `text`: what it limits."""
    return click.option(
        "--timeout-ms",
        type=click.IntRange(1, 3_600_000),
        default=10_000,
        show_default=True,
        help=text,
    )


def open_endpoints(text: str) -> list[str]:
    """Split the value of --endpoints. Raises UsageError."""
    try:
        files = tls_files()
        if any(files) and text == ",".join(DEFAULT_ENDPOINTS):
            text = text.replace("http:", "https:")
        if any(files):
            from cluster.client.sessions import make_tls  # noqa: PLC0415 -- with aiohttp, 0.2 s

            make_tls(*files)
        scheme: Scheme = "https" if any(files) else "http"
        urls = [normalize_endpoint(part, scheme) for part in text.replace(",", " ").split()]
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if not urls:
        raise click.UsageError("--endpoints names no node; write it like http://127.0.0.1:8101")
    return urls


@contextmanager
def open_client(
    endpoints: str,
    timeout_ms: int,
    no_discover: bool,
    *,
    as_json: bool,
    interrupted: str = WRITE_INTERRUPTED,
) -> Iterator[Client]:
    """Yield a client; end the process with the right exit code when a call fails."""
    from cluster.client.sync import Client  # noqa: PLC0415 -- not for commands that are offline

    urls = open_endpoints(endpoints)
    with (
        report_errors(as_json=as_json, interrupted=interrupted),
        Client(urls, timeout_ms=timeout_ms, discover=not no_discover, **whom()) as client,
    ):
        yield client


@contextmanager
def report_errors(*, as_json: bool, interrupted: str = WRITE_INTERRUPTED) -> Iterator[None]:
    """Turn the client's errors into a message that says what to do next, and an exit code.

    `interrupted`: what to add after Ctrl-C, of what may or may not have been done.
    """
    try:
        yield
    except ClientError as error:
        code, _, advice = _meaning(error)
        if as_json:
            say_json({"error": error_fields(error)})
            sys.exit(code)
        fail(error.detail, advice, code)
    except KeyboardInterrupt:
        say(f"interrupted{'; ' if interrupted else ''}{interrupted}")
        sys.exit(EXIT_INTERRUPTED)


def error_fields(error: ClientError) -> dict[str, object]:
    """Return an error as --json shows it."""
    code, outcome, _ = _meaning(error)
    fields: dict[str, object] = {"code": error.code, "detail": error.detail}
    fields |= {"outcome": outcome, "exit_code": code}
    if isinstance(error, UnknownOutcomeError) and error.idempotency_key:
        fields["idempotency_key"] = error.idempotency_key
        if error.idempotency_after is not None:
            fields["idempotency_after"] = error.idempotency_after
    return fields


@contextmanager
def report_disk_errors(
    *,
    if_full: str,
    else_: str,
    refusals: tuple[type[Exception], ...] = (),
    refused_code: int = EXIT_NOT_APPLIED,
) -> Iterator[None]:
    """End a command that has made nothing yet, for what can go wrong with a disk, or by Ctrl-C.

    `if_full` and `else_` say what to do next. `refusals` say so themselves; they end with
    `refused_code`.
    """
    try:
        yield
    except KeyboardInterrupt:
        say("interrupted; nothing was changed")
        sys.exit(EXIT_INTERRUPTED)
    except refusals as error:
        fail(str(error), UNCHANGED, refused_code)
    except (StorageError, OSError) as error:
        full = isinstance(error, DiskFullError)
        text = str(error)
        if isinstance(error, OSError):
            full = is_out_of_space(error.errno)
            text = error.strerror or text
            if error.filename is not None:
                text = f"{error.filename}: {text}"
        code = EXIT_STORAGE_FULL if full else EXIT_NOT_APPLIED
        fail(text, if_full if full else else_, code)


def fail(problem: str, advice: str, code: int) -> NoReturn:
    """Say on standard error what is wrong and what to do next; exit."""
    say(f"{click.style('error:', fg='red')} {printable(problem)}")
    if advice:
        say(f"  {printable(advice)}")
    sys.exit(code)


def exit_code_of(error: ClientError | None) -> int:
    """Return the exit code for an error; one that came of no request is "nothing applied"."""
    return EXIT_NOT_APPLIED if error is None else _meaning(error)[0]


def _meaning(error: ClientError) -> tuple[int, str, str]:
    """Return the exit code, the outcome and what to do next."""
    match error:
        case UnknownOutcomeError(is_final=True):
            again = (
                "The cluster no longer remembers this idempotency key: do not repeat the "
                "write under "
                "it. Read the key with: onecopy get KEY --json; if the write is missing, "
                "write again"
            )
            return EXIT_UNKNOWN_OUTCOME, "unknown", again
        case UnknownOutcomeError():
            after = error.idempotency_after
            again = (
                "To learn which, repeat the same command with the same arguments and "
                f"--idempotency-key {error.idempotency_key}"
                + ("" if after is None else f" --idempotency-after {after}")
                if error.idempotency_key
                else "Check the result with: onecopy status"
            )
            return EXIT_UNKNOWN_OUTCOME, "unknown", again
        case PreconditionFailedError():
            advice = "Nothing was applied. Read the key's revision with: onecopy get KEY --json"
            return EXIT_PRECONDITION_FAILED, "not_applied", advice
        case StorageFullError():
            advice = "Nothing was applied. Free space on the primary's disk, then try again."
            return EXIT_STORAGE_FULL, "not_applied", advice
        case WrongClusterError():
            advice = "Nothing was applied. Correct --endpoints (or ONECOPY_ENDPOINTS)."
            return EXIT_NOT_APPLIED, "not_applied", advice
        case UnavailableError():
            context = click.get_current_context(silent=True)
            is_status = context is not None and context.info_name == "status"
            look = "Read the nodes' logs" if is_status else "Check the cluster with: onecopy status"
            advice = (
                f"Nothing was applied. {look}. Name other nodes with --endpoints, wait longer with "
                "--timeout-ms, or start a cluster with: onecopy up"
            )
            return EXIT_UNAVAILABLE, "not_applied", advice
        case NotAppliedError(status=401):
            advice = "Nothing was applied. Give a token by --token-file or ONECOPY_TOKEN."
            return EXIT_NOT_APPLIED, "not_applied", advice
        case NotAppliedError(code="forbidden"):
            advice = (
                "Nothing was applied. Use a token whose role has that right; an administrator "
                "gives it to a role with: onecopy role set"
            )
            return EXIT_NOT_APPLIED, "not_applied", advice
        case NotAppliedError():
            code = EXIT_USAGE if error.status == 0 else EXIT_NOT_APPLIED
            return code, "not_applied", "Nothing was applied."
        case _:
            return EXIT_NOT_APPLIED, "not_applied", ""


def value_fields(value: bytes) -> dict[str, str]:
    """Return {"value": text}, or {"value_base64": …} for what is not UTF-8."""
    try:
        return {"value": value.decode()}
    except UnicodeDecodeError:
        return {"value_base64": base64.b64encode(value).decode()}


min_copies_option = click.option(
    "--min-copies",
    type=click.IntRange(0),
    default=0,
    help="Fail unless at least this many copies acknowledge.",
)


def idempotency_options(function: Function) -> Function:
    """Add --idempotency-key and --idempotency-after to a command that writes; see `check_after`."""
    function = click.option(
        "--idempotency-after",
        type=click.IntRange(0, AFTER_MAX),
        help="With --idempotency-key: the revision that the error named for the first attempt.",
    )(function)
    return click.option(
        "--idempotency-key",
        default="",
        help="Repeat a write under its idempotency key: it is applied once.",
    )(function)


def check_after(key: str, after: int | None) -> None:
    """Refuse --idempotency-after without a key."""
    if after is not None and not key:
        raise click.UsageError(
            "--idempotency-after needs --idempotency-key, both from the same write"
        )


def read_source(source: BinaryIO | None) -> bytes:
    """Return all that a file has; end the program where it cannot be read."""
    try:
        return source.read() if source is not None else b""
    except OSError as error:
        name = getattr(source, "name", "standard input")
        fail(f"{name}: {error.strerror}", "Nothing was sent.", EXIT_USAGE)


def head_fields(found: GetResult | Item) -> dict[str, object]:
    """Return what a key has beside its value, as --json shows it."""
    lease = {"lease": found.lease} if found.lease else {}
    return {
        "revision": found.revision,
        "create_revision": found.create_revision,
        "version": found.version,
        **lease,
    }
