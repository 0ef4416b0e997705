"""A range of several pages as one state.

Each page is of one state, and later pages are of later ones. What was changed in a page after it
was read is taken from this node's feed of changes, up to the last page's state: then the whole is
of that state, exactly. A node that has no such feed reads the range again instead.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import NamedTuple, Protocol

from cluster.api.streams import WatchedNode
from cluster.etcd.errors import TIMED_OUT, UNAVAILABLE, EtcdError
from cluster.etcd.ranges import (
    CONSISTENT_ATTEMPTS,
    MAX_RANGE_KEYS,
    MAX_WHOLE_RANGE_BYTES,
    PAGE_KEYS,
    EtcdKey,
    changed_meanwhile,
    too_large,
)
from cluster.services.kv import EntryChange, changes
from datapath.clock import clock_ms
from datapath.errors import CompactedError
from datapath.execution.changes import Event, Span, Watcher
from datapath.node.history import History
from datapath.operations import Consistency, Node, Query


class ScannedNode(Node, WatchedNode, Protocol):
    """A node whose ranges can be scanned."""


class Scanned(NamedTuple):
    """The first keys of a range, in order, how many there are in all, and of which state."""

    items: list[EtcdKey]
    total: int
    revision: int
    epoch: int


class Scan(NamedTuple):
    """What is read. `limit` 0: all keys; else the first ones, and the others are counted."""

    span: Span
    limit: int
    keys_only: bool
    consistency: Consistency


class _Page(NamedTuple):
    start: bytes
    revision: int


async def scan(node: ScannedNode, asked: Scan, timeout_ms: int) -> Scanned:
    """Read a range. Raises EtcdError, OperationError."""
    deadline_ms = clock_ms() + timeout_ms
    for _ in range(CONSISTENT_ATTEMPTS):
        reading = _Reading(node, asked, deadline_ms)
        await reading.read()
        if await reading.is_one_state():
            return reading.scanned()
    raise changed_meanwhile()


class _Reading:
    """One reading of a range, page by page."""

    def __init__(self, node: ScannedNode, asked: Scan, deadline_ms: float) -> None:
        self._node = node
        self._asked = asked
        self._deadline_ms = deadline_ms
        self._pages: list[_Page] = []
        self._items: dict[bytes, EtcdKey] = {}
        self._items_end: bytes | None = None  # keys from here on are only counted
        self._count = 0
        self._size_bytes = 0
        self._epoch = 0

    def scanned(self) -> Scanned:
        """Return what was read."""
        items = [self._items[key] for key in sorted(self._items)]
        if self._asked.limit:
            items = items[: self._asked.limit]
        return Scanned(items, self._count, self._pages[-1].revision, self._epoch)

    async def read(self) -> None:
        """Read all pages. Raises EtcdError, OperationError."""
        limit = self._asked.limit
        following: bytes | None = self._asked.span.start
        while following is not None and (not limit or len(self._items) < limit):
            wanted = min(PAGE_KEYS, limit - len(self._items)) if limit else PAGE_KEYS
            following = await self._read_page(following, wanted, counts_only=False)
            if not limit and (
                self._count > MAX_RANGE_KEYS or self._size_bytes > MAX_WHOLE_RANGE_BYTES
            ):
                raise too_large()
        self._items_end = following
        while following is not None:
            following = await self._read_page(following, PAGE_KEYS, counts_only=True)

    async def _read_page(self, start: bytes, wanted: int, *, counts_only: bool) -> bytes | None:
        left_ms = int(self._deadline_ms - clock_ms())
        if left_ms <= 0:
            raise EtcdError(UNAVAILABLE, TIMED_OUT)
        asked = self._asked
        args = (start, asked.span.end, wanted, counts_only or asked.keys_only)
        result = await self._node.query(Query("range", args, asked.consistency), left_ms)
        found, following = result.value
        self._pages.append(_Page(start, result.index))
        self._epoch = result.epoch
        self._count += len(found)
        if not counts_only:
            for item in found:
                kv = EtcdKey(*item)
                self._items[kv.key] = kv
                self._size_bytes += len(kv.key) + len(kv.value or b"")
        return following if following is None else bytes(following)

    async def is_one_state(self) -> bool:
        """Bring all pages to the last one's state; False: that cannot be done here."""
        first, last = self._pages[0].revision, self._pages[-1].revision
        if first == last:
            return True
        history = self._node.history
        if history is None or last < first:
            return False
        try:
            if not await _pass_on(history, self._asked.span, first, last, self._apply):
                return False
        except CompactedError:
            return False
        limit = self._asked.limit
        return not limit or len(self._items) >= min(limit, self._count)

    def _apply(self, event: Event) -> None:
        """Take what an event has changed in pages that were read before it."""
        for change in changes(event.entry):
            if not self._asked.span.covers(change.key):
                continue
            at = bisect_right(self._pages, change.key, key=lambda page: page.start) - 1
            if event.revision > self._pages[at].revision:
                self._change(change)

    def _change(self, change: EntryChange) -> None:
        key, head = change.key, change.head
        is_item = self._items_end is None or key < self._items_end
        if head is None:
            self._count -= 1
            self._items.pop(key, None)
            return
        self._count += head.version == 1
        if is_item:
            value = None if self._asked.keys_only else change.value
            self._items[key] = EtcdKey(key, value, *head)


async def _pass_on(
    history: History, span: Span, after: int, until: int, apply: Callable[[Event], None]
) -> bool:
    """Apply the changes after one revision up to another; False: not all are here yet."""
    watcher = Watcher(span, after, lambda: None)
    try:
        while True:
            step, events = history.feed.take(watcher)
            if step == "log":
                await history.read(watcher, events.extend)
            for event in events:
                if event.revision > until:
                    return True
                apply(event)
            if step == "parked":
                return history.feed.index >= until
            if watcher.position >= until:
                return True
    finally:
        history.feed.leave(watcher)
