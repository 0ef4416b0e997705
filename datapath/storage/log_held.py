"""What a log holds: its segments in order, and reading them from any thread."""

from __future__ import annotations

import threading
from typing import NamedTuple

from datapath.records import Record
from datapath.storage.segment import Segment, segment_of


class SegmentBounds(NamedTuple):
    """A segment's last entry, the bytes it uses, and when it was last written (s since 1970)."""

    last_index: int
    size_bytes: int
    written_s: float


class HeldLog:
    """The reading side of `datapath.storage.log.Log`, which changes it.

    The list of segments is replaced, never changed, so a look at it needs no lock.
    """

    def __init__(self, base_index: int, base_epoch: int) -> None:
        self._base_index, self._base_epoch = base_index, base_epoch
        self._segments: list[Segment] = []
        self._shape = threading.Lock()  # held to read, and to take segments away

    @property
    def first_index(self) -> int:
        """The first entry still held (or the next to come, if there is none)."""
        segments = self._segments
        return segments[0].first_index if segments else self._base_index + 1

    @property
    def base_epoch(self) -> int:
        """The epoch of the entry before `first_index`."""
        segments = self._segments
        return segments[0].prev_epoch if segments else self._base_epoch

    @property
    def last_index(self) -> int:
        """The last entry held; not necessarily durable, see `sync`."""
        segments = self._segments
        return segments[-1].last_index if segments else self._base_index

    @property
    def last_epoch(self) -> int:
        """The epoch of the entry `last_index`."""
        segments = self._segments
        return segments[-1].last_epoch if segments else self._base_epoch

    @property
    def commit_hint(self) -> int:
        """The highest commit index that a record held carries."""
        return max((segment.commit_hint for segment in self._segments), default=0)

    @property
    def size_bytes(self) -> int:
        """How many bytes the segments use, preallocated tails left out."""
        return sum(segment.end for segment in self._segments)

    def segment_bounds(self) -> list[SegmentBounds]:
        """Return where each segment ends, oldest first."""
        return [
            SegmentBounds(segment.last_index, segment.end, segment.written_s)
            for segment in self._segments
        ]

    def epochs(self) -> list[tuple[int, int]]:
        """Return (epoch, its first index held) for all entries held, in order."""
        with self._shape:
            found: list[tuple[int, int]] = []
            for segment in self._segments:
                for item in segment.epochs:
                    if not found or found[-1][0] != item[0]:
                        found.append(item)
            return found

    def epoch_at(self, index: int) -> int | None:
        """Return an entry's epoch; None if it is not held. Knows `first_index` - 1 as well."""
        with self._shape:
            if not self._segments:
                return self._base_epoch if index == self._base_index else None
            if not self.first_index - 1 <= index <= self.last_index:
                return None
            return segment_of(self._segments, index).epoch_at(index)

    def read(self, from_index: int, max_bytes: int) -> list[Record]:
        """Return whole records from the one that holds `from_index`: at least one, if there is.

        Raises:
            IndexError: `from_index` is no longer held.
            LogCorruptError: a record is damaged.

        """
        with self._shape:
            if from_index < self.first_index:
                raise IndexError(
                    f"entry {from_index} is gone: the log starts at {self.first_index}"
                )
            records: list[Record] = []
            taken, index = 0, from_index
            while index <= self.last_index:
                segment = segment_of(self._segments, index)
                # `end` first: appending moves `last_index` before it, never after.
                for offset, first, data in segment.walk(index, segment.end):
                    if records and taken + len(data) > max_bytes:
                        return records
                    record = segment.verified(offset, first, data)
                    records.append(record)
                    taken += len(data)
                    index = record.last_index + 1
                if taken >= max_bytes or segment is self._segments[-1]:
                    break
            return records
