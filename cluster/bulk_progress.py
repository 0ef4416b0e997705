"""Progress of bulk work on standard error: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from cluster.cli_output import say

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

LINE_INTERVAL_S = 5.0
RATE_WINDOW_S = 5.0


class ProgressView:
    """Shows records, rate and retries; `total_bytes` None where the end is not known."""

    def __init__(self, verb: str, total_bytes: int | None) -> None:
        self._verb = verb
        self._total_bytes = total_bytes
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._next_line_at = time.monotonic() + LINE_INTERVAL_S
        self._samples: list[tuple[float, int]] = []

    def __enter__(self) -> Self:
        self._bar = _terminal_bar(sized=self._total_bytes is not None)
        if self._bar is not None:
            self._task = self._bar.add_task(self._verb, total=self._total_bytes)
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, records: int, done_bytes: int, note: str = "") -> None:
        """Show how far it is. Cheap enough to be called ten times a second."""
        now = time.monotonic()
        text = f"{self._verb} {records:,} records, {self._rate(now, records):,.0f}/s{note}"
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done_bytes, description=text)
        elif now >= self._next_line_at:
            self._next_line_at = now + LINE_INTERVAL_S
            share = f", {done_bytes * 100 // self._total_bytes} %" if self._total_bytes else ""
            say(f"{text}{share}")

    def _rate(self, now: float, records: int) -> float:
        self._samples.append((now, records))
        while self._samples[0][0] < now - RATE_WINDOW_S:
            self._samples.pop(0)
        then, before = self._samples[0]
        return (records - before) / (now - then) if now > then else 0.0


def _terminal_bar(*, sized: bool) -> Progress | None:
    """Return a bar for standard error; None if that is no terminal, or `rich` is not installed."""
    try:
        from rich import progress  # noqa: PLC0415 -- the client is installed without it
        from rich.console import Console  # noqa: PLC0415
    except ModuleNotFoundError:
        return None
    console = Console(stderr=True)
    if not console.is_terminal:
        return None
    known = (progress.BarColumn(), progress.TaskProgressColumn(), progress.TimeRemainingColumn())
    return progress.Progress(
        progress.SpinnerColumn(),
        progress.TextColumn("{task.description}"),
        *(known if sized else ()),
        console=console,
        transient=True,
    )
