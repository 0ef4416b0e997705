"""Log lines that strangers, or a lasting fault, can cause: a few of each kind, then how many more.

A kind is a name in the code, or one with a known node's. What a stranger sends, or the text of a
line that quotes it, never decides whether a line is written: it would be a new text each time.
"""

from __future__ import annotations

import logging

INTERVAL_S = 30.0
MAX_LINES_PER_INTERVAL = 5
"""Of one kind: so many nodes with the same mistake in their configuration show at once."""
MAX_LINE_LENGTH = 500
MAX_KINDS = 32
OTHER = "other"


class _Kind:
    __slots__ = ("last", "left_out", "level", "lines", "since")

    def __init__(self, since: float) -> None:
        self.since = since
        self.last = ""
        self.lines = 0
        self.left_out = 0
        self.level = logging.NOTSET  # the highest of what was left out


class Complaints:
    """Writes to `logger`. Times are seconds of any clock that does not go back."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._kinds: dict[str, _Kind] = {}

    def log(
        self,
        kind: str,
        text: str,
        now: float,
        *,
        level: int = logging.ERROR,
        error: BaseException | None = None,
    ) -> bool:
        """Write a line, with the traceback of `error`; return whether it was written.

        One that repeats the last of its kind is left out, too.
        """
        self.tick(now)
        if kind not in self._kinds and len(self._kinds) >= MAX_KINDS:
            kind = OTHER
        state = self._kinds.setdefault(kind, _Kind(now))
        if len(text) > MAX_LINE_LENGTH:
            text = f"{text[:MAX_LINE_LENGTH]}…"
        if state.lines >= MAX_LINES_PER_INTERVAL or text == state.last:
            state.left_out += 1
            state.level = max(state.level, level)
            return False
        state.lines += 1
        state.last = text
        self._logger.log(level, "%s", text, exc_info=error)
        return True

    def tick(self, now: float) -> None:
        """Tell what was left out, of the kinds whose interval is over. Call it now and then."""
        for kind, state in list(self._kinds.items()):
            if now - state.since < INTERVAL_S:
                continue
            del self._kinds[kind]
            if state.left_out:
                self._logger.log(
                    state.level,
                    "%d more lines like %r were suppressed in %.0f s",
                    state.left_out,
                    kind,
                    now - state.since,
                )
