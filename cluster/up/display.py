"""What `onecopy up` shows: a table on a terminal, a line per change elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Sequence
from typing import Protocol, TextIO

import msgspec
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cluster.terminal import printable

STATE_STYLES = {
    "primary": "bold green",
    "backup": "cyan",
    "witness": "blue",
    "learner": "yellow",
    "snapshot": "yellow",
    "starting": "yellow",
    "unreachable": "red",
    "down": "bold red",
}


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One node as shown; `note` says why it is down."""

    node: str
    state: str
    url: str
    pid: int | None = None
    in_sync: bool | None = None
    applied_index: int | None = None
    lag: int | None = None
    note: str = ""


class Display(Protocol):
    """A way to show the cluster."""

    def show(self, title: str, rows: Sequence[Row]) -> None:
        """Show the nodes as they are now."""

    def say(self, text: str) -> None:
        """Show a sentence, for good."""

    def close(self) -> None:
        """Leave the last state on the screen."""


class LiveDisplay:
    """A coloured table that is refreshed in place."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=False)
        self._live.start()

    def show(self, title: str, rows: Sequence[Row]) -> None:
        """Redraw the table."""
        self._live.update(render_table(title, rows), refresh=True)

    def say(self, text: str) -> None:
        """Print above the table."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Give the cursor back."""
        self._live.stop()


class LineDisplay:
    """One line for each node whose state, process or note has changed."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._shown: dict[str, tuple[object, ...]] = {}

    def show(self, title: str, rows: Sequence[Row]) -> None:  # noqa: ARG002 -- View's face
        """Print what has changed since the last call."""
        for row in rows:
            key = (row.state, row.pid, row.note, row.in_sync)
            if self._shown.get(row.node) == key:
                continue
            self._shown[row.node] = key
            process = f" pid {row.pid}" if row.pid is not None else ""
            sync = "" if row.in_sync is None else " in sync" if row.in_sync else " not in sync"
            note = f" ({printable(row.note)})" if row.note else ""
            self.say(f"{row.node} {row.state}{sync}{process} {row.url}{note}")

    def say(self, text: str) -> None:
        """Print a line with the time."""
        moment = time.strftime("%H:%M:%S", time.gmtime())
        with contextlib.suppress(OSError, ValueError):  # nobody reads it: the cluster goes on
            print(f"{moment} {text}", file=self._stream, flush=True)

    def close(self) -> None:
        """Nothing is left to do."""


def open_view() -> Display:
    """Return the table on a terminal, lines elsewhere."""
    console = Console()
    return LiveDisplay(console) if console.is_terminal else LineDisplay()


def render_table(title: str, rows: Sequence[Row]) -> Group:
    """Return the table of nodes, which fits in 80 columns, and the notes below it."""
    table = Table(title=Text(title), title_justify="left", title_style="bold")
    for column in ("node", "state", "in sync", "URL"):
        table.add_column(column, no_wrap=True)
    for column in ("pid", "applied", "lag"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.node,
            Text(row.state, style=STATE_STYLES.get(row.state, "")),
            "" if row.in_sync is None else "yes" if row.in_sync else Text("no", style="yellow"),
            Text(row.url, style="underline"),
            *("" if n is None else str(n) for n in (row.pid, row.applied_index, row.lag)),
        )
    # A column of its own would leave a few letters to it, and to every other.
    notes = (Text(f"{row.node}: {printable(row.note)}", style="red") for row in rows if row.note)
    return Group(table, *notes)
