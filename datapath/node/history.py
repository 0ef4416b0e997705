"""The history that a replica keeps for watchers: its feed of changes, and the log on its disk."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from datapath.errors import CompactedError
from datapath.execution.changes import SCAN_SIZE_BYTES, Event, Feed, Watcher
from datapath.records import Record

READS_AT_ONCE = 1
"""Watchers that are behind read the log one after the other: the disk and its threads are also
those of replication."""

LogReader = Callable[[int, int], Awaitable[list[Record] | None]]
"""`read(from_index, max_bytes)`: records of the log, None where they are no longer kept."""


class History:
    """What has changed here, and since when that is known.

    `first_index()`: the first entry that the log holds.
    """

    def __init__(self, feed: Feed, read_log: LogReader, first_index: Callable[[], int]) -> None:
        self.feed = feed
        self._read_log = read_log
        self._first_index = first_index
        self._reading = asyncio.Semaphore(READS_AT_ONCE)
        self.log_reads_total = 0

    @property
    def oldest(self) -> int:
        """The smallest revision after which all changes are kept."""
        return self._first_index() - 1

    def check(self, after: int) -> None:
        """Raise CompactedError unless all changes after that revision are kept (W3)."""
        if not is_kept(after, self._first_index()):
            raise self._compacted(after)

    async def read(self, watcher: Watcher, give: Callable[[list[Event]], None]) -> None:
        """Read on from the log for a watcher, and give it what concerns it.

        Nothing of what was read is held when this ends. Raises CompactedError.
        """
        async with self._reading:
            self.log_reads_total += 1
            after = watcher.position
            records = await self._read_log(after + 1, SCAN_SIZE_BYTES)
            if not records:
                raise self._compacted(after)
            give(self.feed.take_from_log(watcher, records))
            if watcher.position == after:  # it could go on here for ever
                raise self._compacted(after)

    def _compacted(self, after: int) -> CompactedError:
        oldest = self.oldest
        return CompactedError(
            f"the changes after revision {after} are no longer kept on this node: those after "
            f"{oldest} are. Ask another node, or read the keys again and watch from that revision",
            oldest,
        )


def is_kept(after: int, first_index: int) -> bool:
    """W3: whether all changes after a revision are in a log that begins with `first_index`."""
    return after + 1 >= first_index
