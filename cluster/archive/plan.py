"""What an archiver does next, and up to where the archive is without a gap. Sans-I/O.

Rules B3 and B4 (decision 33): what is archived has committed, and no gap in the archive is passed
over in silence.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from enum import Enum, auto
from typing import NamedTuple

from cluster.archive.catalog import ArchivePosition, Base, Catalog
from datapath.records import HEADER_SIZE_BYTES, Record


class ArchiveStep(Enum):
    """What is to be done next; how it ended is told to the plan."""

    LOOK_UP = auto()
    """List the store's names: `looked_up`."""
    BASE = auto()
    """Take the whole state, and begin to put it: `base_begun`, and later `base_ended`."""
    PIECE = auto()
    """Read the log after `position`, and put a piece: `piece_put`, or `log_lacks`."""
    REST = auto()
    """Nothing, until the next round."""


class Gap(NamedTuple):
    """Revisions that the archive lacks, both included: nothing can be restored at them."""

    first: int
    last: int


class ArchivePlan:
    """How far one node's archiver is.

    It acts in rounds: `begin_round`, then `next` until that says REST. `position` is the entry
    after which the next piece begins (None: there is no base that it could follow). `told` is the
    revision up to which the archive can be restored, as may be told; None: nothing may.
    """

    def __init__(self, base_interval_s: float) -> None:
        self.position: ArchivePosition | None = None
        self.told: int | None = None
        self._base_interval_s = base_interval_s
        self._epoch = 0  # in which the place in the archive was looked up; 0: it is to be
        self._target = 0  # up to where the round archives
        self._base: Base | None = None  # is under way
        self._begins = False  # whether what is archived follows a base that is not complete yet
        self._fills_to = 0  # pieces are put before the base of this revision; 0: after all bases
        self._not_filled_to = 0  # what is before that base the log has turned out not to hold
        self._newest = 0  # the revision of the newest base
        self._base_due_s = 0.0  # by the machine's date

    # -- a round

    def begin_round(self, commit_index: int) -> None:
        """Archive what has committed by now."""
        self._target = commit_index

    def next(self, epoch: int, now_s: float) -> ArchiveStep:
        """Return what the primary of an epoch does next; `now_s` is the machine's date."""
        if self._epoch != epoch:
            return ArchiveStep.LOOK_UP
        if self._base is None and self._is_base_due(now_s):
            return ArchiveStep.BASE
        if self.position is None or self.position.entry >= self._target:
            return ArchiveStep.REST
        return ArchiveStep.PIECE

    def _is_base_due(self, now_s: float) -> bool:
        if self.position is None:
            return True
        # Not before the pieces have reached the one before: at most one base is ahead of them.
        is_news = self._target > self._newest <= self.position.entry
        return is_news and now_s >= self._base_due_s

    def retire(self) -> None:
        """Look the place up again: others may have archived meanwhile."""
        self._epoch = 0

    def failed(self) -> None:
        """A step has failed: what of the archive is there now is not known."""
        if not self._begins:
            self._epoch = 0

    # -- how steps ended

    def looked_up(self, epoch: int, catalog: Catalog, is_held: Callable[[int], bool]) -> list[Gap]:
        """Take up what the archive holds; `is_held`: whether the log here holds an entry.

        Return the gaps that cannot be filled. The others are, the oldest one first: a base may be
        there before the pieces that lead to it.
        """
        spans = catalog.spans()
        self._epoch, self._begins, self._fills_to = epoch, False, 0
        self.position = spans[-1].end if spans else None
        if catalog.bases:
            self._note_base(catalog.bases[-1])
        gaps: list[Gap] = []
        for earlier, later in itertools.pairwise(spans):
            if later.first == earlier.last + 1:
                continue
            if may_fill(earlier.last + 1, later.first, self._not_filled_to, is_held):
                self.position, self._fills_to = earlier.end, later.first
                break
            gaps.append(Gap(earlier.last + 1, later.first - 1))
        self._tell()
        return gaps

    def base_begun(self, base: Base) -> None:
        """The whole state is being put. Without a position, pieces follow it from now on."""
        self._base = base
        if self.position is None:
            self._begins = True
            self.position = ArchivePosition(base.revision, base.epoch)

    def base_ended(self, *, done: bool) -> None:
        """The base that was begun has been put, or could not be."""
        base, begins = self._base, self._begins
        self._base, self._begins = None, False
        if done and base is not None:
            self._note_base(base)
        if begins:
            # Another node may have begun, too: what lies between its objects and these is seen
            # there. If the base is not there, nothing can be made of what follows it.
            self.position = self.position if done else None
        if begins or self.position is None:
            self._epoch = 0

    def piece_put(self, end: ArchivePosition) -> None:
        """A piece that follows `position` is in the archive."""
        self.position = end
        if self._fills_to and end.entry >= self._fills_to:
            self._epoch = 0  # go on where the archive ends
        self._tell()

    def log_lacks(self) -> bool:
        """The log holds no entry after `position`. Return whether the archive has to begin anew."""
        if not self._fills_to:
            return True
        self._not_filled_to = self._fills_to  # bases are there already: the gap is told
        self._epoch = 0
        return False

    def begun_anew(self, base: Base) -> Gap:
        """The whole state is being put, because the log lacks what follows `position`."""
        assert self.position is not None
        gap = Gap(self.position.entry + 1, base.revision - 1)
        self.position = None
        self.base_begun(base)
        return gap

    def _note_base(self, base: Base) -> None:
        if base.revision >= self._newest:
            self._newest = base.revision
            self._base_due_s = base.time_ms / 1000 + self._base_interval_s

    def _tell(self) -> None:
        """Nothing is told of pieces whose base is not there yet."""
        if self.position is not None and not self._begins:
            self.told = self.position.entry


def may_fill(
    first: int, base_revision: int, not_filled_to: int, is_held: Callable[[int], bool]
) -> bool:
    """B4: whether the log can close the gap from entry `first` to a base."""
    return base_revision > not_filled_to and is_held(first)


def is_same_history(
    position: ArchivePosition, commit_index: int, epoch_at: Callable[[int], int | None]
) -> bool:
    """B3: whether the archive up to `position` can be of the log here.

    Entries committed here have the epochs that they have anywhere, and epochs rise with them. What
    the log does not hold any more proves nothing.
    """
    here = epoch_at(min(position.entry, commit_index))
    if here is None:
        return True
    return here == position.epoch if position.entry <= commit_index else here <= position.epoch


def have_same_entries(archived: Sequence[Record], held: Sequence[Record]) -> bool:
    """B3: whether the log here holds what the archive does; both begin with the same entry.

    Epochs alone do not tell: all disks that are put back at once give the same epochs out again.
    """
    return all(
        _content(ours) == _content(theirs) for ours, theirs in zip(held, archived, strict=False)
    )


def _content(record: Record) -> tuple[int, int, int, memoryview]:
    entries = memoryview(record.data)[HEADER_SIZE_BYTES:]
    return record.first_index, record.last_index, record.epoch, entries
