"""What the commands print: standard output and standard error, checked and safe for a terminal.

That a write was applied does not depend on whether anybody reads the result: output that cannot be
written ends a command with an exit code of its own, and a message that cannot be written changes
no exit code. What came from a server, or out of the store, moves no cursor and colours nothing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from typing import NoReturn

import click
import msgspec

from cluster.exit_codes import EXIT_OUTPUT_FAILED

LOST_ERRNOS = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)
"""What a write to standard output fails with that is closed, full or gone."""


class OutputFailedError(click.ClickException):
    """Standard output is closed or full. What the command was to do is done."""

    exit_code = EXIT_OUTPUT_FAILED

    def __init__(self, reason: str, *, quiet: bool = False) -> None:
        super().__init__(reason)
        self.quiet = quiet  # whoever read it has gone, and wants no more

    def show(self, file: object = None) -> None:  # noqa: ARG002 -- click's signature
        """Say so on standard error."""
        if not self.quiet:
            say(f"{click.style('error:', fg='red')} standard output: {self.message}")
            say("  Only this output is missing: a put, delete or load has been applied.")


def show(text: str) -> None:
    """Print a line on standard output. Raises OutputFailedError."""
    if sys.stdout is None:
        raise OutputFailedError("it is closed")
    try:
        click.echo(text)
    except UnicodeEncodeError:  # not UTF-8: the rest of the line is worth more than one letter
        encoding = sys.stdout.encoding
        show(text.encode(encoding, "backslashreplace").decode(encoding))
    except (OSError, ValueError) as error:
        output_failed(error)


def show_bytes(data: bytes) -> None:
    """Write bytes to standard output as they are. Raises OutputFailedError."""
    if sys.stdout is None:
        raise OutputFailedError("it is closed")
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except (OSError, ValueError) as error:
        output_failed(error)


def output_failed(error: OSError | ValueError) -> NoReturn:
    """Raise OutputFailedError for an error of standard output, which takes no more."""
    with contextlib.suppress(OSError, ValueError):
        # What is left in the buffer would fail again when the interpreter ends.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
    quiet = isinstance(error, OSError) and error.errno == errno.EPIPE
    reason = (error.strerror if isinstance(error, OSError) else "") or str(error)
    raise OutputFailedError(reason, quiet=quiet) from error


def say(text: str) -> None:
    """Print a line on standard error, if it can be: it is a message, and no result."""
    with contextlib.suppress(OSError, ValueError):
        click.echo(text, err=True)


def show_json(value: object) -> None:
    """Print one line of JSON. Raises OutputFailedError."""
    show(_json(value, sys.stdout is not None and sys.stdout.isatty()))


def say_json(value: object) -> None:
    """Print one line of JSON on standard error."""
    say(_json(value, sys.stderr is not None and sys.stderr.isatty()))


def _json(value: object, terminal: bool) -> str:
    text = msgspec.json.encode(value).decode()
    if not terminal or text.isprintable():
        return text
    return "".join(char if char.isprintable() else _json_escape(char) for char in text)


def _json_escape(char: str) -> str:
    units = char.encode("utf-16-be")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))


def printable(text: str, keep: str = "") -> str:
    """Return text with escapes in place of control characters and the like, but for `keep`."""
    if text.isprintable():
        return text
    return "".join(
        char
        if char.isprintable() or char in keep
        else char.encode("unicode_escape", "backslashreplace").decode()
        for char in text
    )


def for_terminal(text: str) -> str:
    """Make control characters visible if a person reads standard output; a pipe gets them raw."""
    return printable(text) if sys.stdout is not None and sys.stdout.isatty() else text


def show_value(value: bytes) -> None:
    """Write a value byte for byte; on a terminal, what would act on it is shown as escapes."""
    if sys.stdout is None or not sys.stdout.isatty():
        show_bytes(value)
        return
    text = value.decode("utf-8", "backslashreplace")
    shown = printable(text.replace("\r\n", "\n"), keep="\n\t")
    show_bytes(shown.encode(sys.stdout.encoding, "backslashreplace"))
    if shown != text:
        say("(shown with escapes, for the terminal; the bytes themselves: onecopy get … > FILE)")
