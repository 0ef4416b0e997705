"""`onecopy load` and `dump`: the command line around `cluster.bulk.load` and
`cluster.bulk.dump`.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import click

from cluster.bulk.checkpoint import (
    DEFAULT_BATCH_RECORDS,
    MAX_BATCH_RECORDS,
    Checkpoint,
    CheckpointError,
    check_unchanged,
    file_digest,
    new_load_id,
    read_checkpoint,
    remove_checkpoint,
    write_checkpoint,
)
from cluster.bulk.dump import DumpTotals, dump_records, open_output
from cluster.bulk.formats import FORMATS, Format, detect_format
from cluster.bulk.load import Loader, LoadError, Totals, check_records
from cluster.bulk.progress import ProgressView
from cluster.bulk.wire import WireTransport
from cluster.cli.common import (
    STDIN,
    client_options,
    endpoint_options,
    error_fields,
    exit_code_of,
    fail,
    given_token,
    group_option,
    open_endpoints,
    report_errors,
    tls_files,
    whom,
)
from cluster.client.aio import AsyncClient
from cluster.client.errors import UnavailableError, UnknownOutcomeError
from cluster.client.sessions import make_tls
from cluster.exit_codes import EXIT_INTERRUPTED, EXIT_NOT_APPLIED, EXIT_OK, EXIT_OUTPUT_FAILED
from cluster.terminal import (
    OutputFailedError,
    printable,
    say,
    say_json,
    show,
    show_bytes,
    show_json,
)

_T = TypeVar("_T")


@click.command()
@click.argument(
    "file", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path)
)
@click.option(
    "--format",
    "kind",
    type=click.Choice(FORMATS),
    help="Format of FILE [default: by its name and content].",
)
@click.option(
    "--concurrency",
    type=click.IntRange(1, 1024),
    default=64,
    show_default=True,
    help="Number of concurrent requests.",
)
@click.option(
    "--batch",
    "batch_records",
    type=click.IntRange(1, MAX_BATCH_RECORDS),
    default=DEFAULT_BATCH_RECORDS,
    show_default=True,
    help="Maximum number of records in one request. A resumed load keeps its own.",
)
@click.option("--check", is_flag=True, help="Check the whole file for bad lines before loading.")
@click.option(
    "--restart", is_flag=True, help="Discard an interrupted load of this file and start over."
)
@click.option(
    "--give-up-after-s",
    type=click.IntRange(1, 86400),
    default=300,
    show_default=True,
    help="Stop if a record cannot be written within this time.",
)
@endpoint_options
def load(
    file: Path,
    kind: Format | None,
    concurrency: int,
    batch_records: int,
    check: bool,
    restart: bool,
    give_up_after_s: int,
    endpoints: str,
    no_discover: bool,
    as_json: bool,
) -> None:
    """Write every record of FILE (- for standard input), in NDJSON or TSV.

    NDJSON lines are {"key": …, "value": …} or {"key": …, "value_base64": …}. Of several records
    with the same key, the last one wins. If a load is interrupted, run the same command again: it
    continues, and no record is lost or written twice. A load from standard input cannot be resumed.
    """
    urls = open_endpoints(endpoints)
    nodes = Nodes(urls, timeout_ms=give_up_after_s * 1000, discover=not no_discover)
    if file == STDIN and check:
        raise click.UsageError("--check needs a file: standard input can be read only once")
    if file == STDIN and kind is None:
        raise click.UsageError("standard input needs --format ndjson or --format tsv")
    again = "run the same command again to continue"
    with report_errors(as_json=as_json, interrupted="" if file == STDIN else again):
        if file == STDIN and kind is not None:
            say("standard input: no checkpoint is kept, so an interrupted load cannot be resumed")
            state = _state_of_stdin(kind, batch_records, run_fast(_meet(urls)))
            code = _load(nodes, state, None, 0, concurrency, as_json=as_json)
            sys.exit(code)
        with _sole_loader(file) as descriptor:
            try:
                state = _state_of_file(
                    urls, file, kind, batch_records, check=check, restart=restart
                )
            except (CheckpointError, LoadError) as error:
                fail(f"{file}: {error}", "Nothing was applied.", EXIT_NOT_APPLIED)
            except OSError as error:
                where = error.filename or file
                fail(f"{where}: {error.strerror}", "Nothing was applied.", EXIT_NOT_APPLIED)
            os.lseek(descriptor, state.position, os.SEEK_SET)
            code = _load(nodes, state, file, descriptor, concurrency, as_json=as_json)
    sys.exit(code)


class Nodes(NamedTuple):
    """Which nodes a load goes to, and how long it tries."""

    urls: list[str]
    timeout_ms: int
    discover: bool


class Met(NamedTuple):
    """A cluster, and a revision that it had reached before the load."""

    cluster_id: str
    revision: int


def _load(
    nodes: Nodes,
    state: Checkpoint,
    file: Path | None,
    descriptor: int,
    concurrency: int,
    *,
    as_json: bool,
) -> int:
    """Run the load; say how it ended; return the exit code."""
    started = time.monotonic()
    with ProgressView("loaded", state.size_bytes or None) as view:

        def on_progress(totals: Totals) -> None:
            retried = f", {totals.retried:,} retries" if totals.retried else ""
            view.update(totals.acknowledged, totals.position, retried)

        async def main() -> tuple[Totals, LoadError | None, bool]:
            transport = WireTransport(
                nodes.urls,
                timeout_ms=nodes.timeout_ms,
                discover=nodes.discover,
                cluster_id=state.cluster,
                token=given_token(),
                tls=make_tls(*tls_files()),
            )
            loader = Loader(
                transport, state, file, concurrency=concurrency, on_progress=on_progress
            )
            try:
                interrupted = await _until_signal(loader.run(descriptor))
            except LoadError as error:
                return loader.totals, error, False
            finally:
                await transport.close()
            return loader.totals, None, interrupted

        totals, error, interrupted = run_fast(main())
    if error is None and not interrupted and file is not None:
        remove_checkpoint(file)
    try:
        _show_summary(totals, state, time.monotonic() - started, as_json=as_json)
    except OutputFailedError:
        if error is None and not interrupted:
            raise  # else what went wrong with the load matters more
    if error is None and not interrupted:
        return EXIT_OK
    again = "Run the same command again to continue." if file is not None else ""
    if interrupted or error is None:
        say(f"interrupted. {again}")
        return EXIT_INTERRUPTED
    if error.is_bad_record:
        again = "All records before it are loaded."
        again += " Fix the line, then load with --restart." if file is not None else ""
    elif isinstance(error.cause_error, UnknownOutcomeError) and error.cause_error.is_final:
        again = (
            f"Records after line {totals.line} may have been written, and the cluster no longer "
            "knows: read some of their keys. To write the whole file again, load with --restart."
            if file is not None
            else "This record may have been written: read its key."
        )
    _show_error(file, error, again, as_json=as_json)
    return exit_code_of(error.cause_error)


def _show_error(file: Path | None, error: LoadError, again: str, *, as_json: bool) -> None:
    if not as_json:
        say(f"{click.style('error:', fg='red')} {file or STDIN}: {printable(str(error))}")
        say(f"  {again}")
        return
    fields: dict[str, object] = {
        "code": "bad_record" if error.is_bad_record else "io",
        "detail": str(error),
    }
    fields["exit_code"] = exit_code_of(error.cause_error)
    if error.cause_error is not None:
        fields |= error_fields(error.cause_error)
    say_json({"error": {**fields, "line": error.line}})


def _show_summary(totals: Totals, state: Checkpoint, seconds: float, *, as_json: bool) -> None:
    rate = totals.acknowledged / seconds if seconds else 0.0
    before = state.records
    if as_json:
        show_json(
            {
                "read": totals.read,
                "acknowledged": totals.acknowledged,
                "acknowledged_before": before,
                "retried": totals.retried,
                "seconds": round(seconds, 3),
                "records_per_s": round(rate, 1),
            }
        )
        return
    resumed = f" (resumed after line {state.line})" if state.line else ""
    show(
        f"{totals.read:,} records read, {totals.acknowledged:,} acknowledged{resumed}, "
        f"{totals.retried:,} retries, {seconds:.1f} s, {rate:,.0f} records/s"
    )


def _state_of_stdin(kind: Format, batch_records: int, cluster: Met) -> Checkpoint:
    return Checkpoint(
        load_id=new_load_id(),
        cluster=cluster.cluster_id,
        size_bytes=0,
        fingerprint="",
        format=kind,
        batch_records=batch_records,
        revision=cluster.revision,
    )


def _state_of_file(
    urls: list[str],
    file: Path,
    kind: Format | None,
    batch_records: int,
    *,
    check: bool,
    restart: bool,
) -> Checkpoint:
    """Return where to go on, or a new state that has been made durable.

    The load id must be on disk before the first record leaves: else a load that is cut off at once
    would come back under another, and write its first records twice.
    """
    with file.open("rb") as source:
        kind = kind or detect_format(file.name, source.readline(4096))
    if check:
        say(f"checked: {check_records(file, kind):,} records")
    size, checksum = file.stat().st_size, file_digest(file)
    cluster, revision = run_fast(_meet(urls))
    found = None if restart else read_checkpoint(file)
    if found is None:
        state = Checkpoint(
            load_id=new_load_id(),
            cluster=cluster,
            size_bytes=size,
            fingerprint=checksum,
            format=kind,
            batch_records=batch_records,
            revision=revision,
        )
        write_checkpoint(file, state)
        return state
    check_unchanged(file, found, size, checksum)
    if found.cluster != cluster or found.format != kind:
        raise CheckpointError(
            f"its load was started on cluster {found.cluster!r} as {found.format}, not on "
            f"{cluster!r} as {kind}; to load the whole file here, use --restart"
        )
    say(f"resuming after line {found.line} ({found.records:,} records are already loaded)")
    return found


async def _meet(urls: list[str]) -> Met:
    """Return the cluster that the load is for; all of it goes there or nowhere."""
    async with AsyncClient(urls, discover=False, **whom()) as client:
        found = (await client.status()).cluster_id
        if client.revision is None:  # a node without data has answered
            await client.page(limit=1, keys_only=True)
        revision = client.revision or 0
    if not found:
        raise UnavailableError("the cluster has not formed yet", code="cluster_unknown")
    return Met(found, revision)


@contextmanager
def _sole_loader(file: Path) -> Iterator[int]:
    """Open the file, locked against a second load of it."""
    try:
        source = file.open("rb", buffering=0)
    except OSError as error:
        fail(f"{file}: {error.strerror}", "Nothing was applied.", EXIT_NOT_APPLIED)
    with source:
        try:
            fcntl.flock(source, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fail(f"{file} is being loaded by another onecopy load", "", EXIT_NOT_APPLIED)
        yield source.fileno()


@click.command()
@click.option("--prefix", default="", help="Only keys with this prefix.")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
    default="-",
    help="File to write, replaced only once the dump is complete [default: standard output].",
)
@group_option
@client_options
def dump(
    prefix: str,
    output: Path,
    group: str,
    endpoints: str,
    timeout_ms: int,
    no_discover: bool,
    as_json: bool,
) -> None:
    """Write all records as NDJSON that `onecopy load` reads.

    Each page of 1,000 records is one consistent state. There may be writes between two pages: the
    summary says whether there were.
    """
    urls = open_endpoints(endpoints)
    started = time.monotonic()
    to_stdout = output == STDIN

    interrupted = "the dump is not complete. An existing file is unchanged"
    with (
        report_errors(as_json=as_json, interrupted=interrupted),
        ProgressView("dumped", None) as view,
    ):

        def on_progress(totals: DumpTotals) -> None:
            view.update(totals.records, totals.size_bytes)

        async def main(write: Callable[[bytes], object]) -> DumpTotals:
            async with AsyncClient(
                urls, timeout_ms=timeout_ms, discover=not no_discover, **whom()
            ) as client:
                return await dump_records(client, prefix, write, on_progress, group)

        if to_stdout:
            totals = run_fast(main(show_bytes))
        else:
            try:
                # Opened here: a FIFO that nobody reads waits, and Ctrl-C must end that.
                with open_output(output) as target:
                    totals = run_fast(main(target.write))
            except OSError as error:
                fail(
                    f"{output}: {error.strerror or error}",
                    "The dump is not complete. An existing file is unchanged.",
                    EXIT_OUTPUT_FAILED,
                )
    seconds = time.monotonic() - started
    if as_json:
        fields: dict[str, float] = {
            "records": totals.records,
            "bytes": totals.size_bytes,
            "seconds": seconds,
        }
        fields |= {"first_revision": totals.first, "last_revision": totals.last}
        (say_json if to_stdout else show_json)(fields)
        return
    state = (
        f"the state at revision {totals.first}"
        if totals.first == totals.last
        else f"written to meanwhile: pages from revision {totals.first} to {totals.last}"
    )
    say(f"{totals.records:,} records in {seconds:.1f} s; {state}")


async def _until_signal(work: Coroutine[Any, Any, None]) -> bool:
    """Run `work`, or stop it at Ctrl-C or SIGTERM; return whether it was stopped."""
    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        return True
    return False


def run_fast(main: Coroutine[Any, Any, _T]) -> _T:
    """Run on uvloop where there is one."""
    try:
        import uvloop  # noqa: PLC0415 -- not there on every platform
    except ImportError:
        return asyncio.run(main)
    return uvloop.run(main)
