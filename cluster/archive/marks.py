"""When entries committed, as one node has seen it: what a restore to a time goes by. Pure."""

from __future__ import annotations

from cluster.archive.piece import Mark

MAX_MARKS = 20_000
"""Above it, every second one is forgotten: times get coarser while nothing can be archived."""


class CommitTimes:
    """The marks of what is not archived yet, rising in revision and time."""

    def __init__(self) -> None:
        self._marks: list[Mark] = []
        self._last = Mark(0, 0)

    def note(self, revision: int, time_ms: int) -> None:
        """Entries up to `revision` have committed by `time_ms`; a clock set back is waited for."""
        if revision > self._last.revision:
            self._last = Mark(revision, max(time_ms, self._last.time_ms))
            self._marks.append(self._last)
            if len(self._marks) > MAX_MARKS:
                del self._marks[-2::-2]

    def lag_ms(self, now_ms: int) -> int:
        """Return how long ago the first of what is not archived committed; 0: all is archived."""
        return max(0, now_ms - self._marks[0].time_ms) if self._marks else 0

    def within(self, first: int, last: int, now_ms: int) -> tuple[Mark, ...]:
        """Return the marks of entries `first` to `last`, with one of `last`.

        That one's time is the next mark's, if it has none itself: by then it had committed.
        """
        found = [mark for mark in self._marks if first <= mark.revision <= last]
        if not found or found[-1].revision != last:
            later = next((mark.time_ms for mark in self._marks if mark.revision > last), now_ms)
            found.append(Mark(last, max(later, found[-1].time_ms if found else 0)))
        return tuple(found)

    def archived(self, revision: int) -> None:
        """Forget what is archived, also what has not been noted yet."""
        self._marks = [mark for mark in self._marks if mark.revision > revision]
        self._last = Mark(max(revision, self._last.revision), self._last.time_ms)
