"""The feed of changes: what has committed on this replica, in the order of the log, for watchers.

Every replica has one. It does no I/O: what is no longer in memory is read from the log by whoever
reads for a watcher (`datapath.node.history`), and handed in.

A watcher is *parked* when it has been given everything: it is then found by the keys of what
commits. Otherwise it is behind, and costs nothing but its position: it reads on when it can. So a
watcher that is slow or stopped holds up nobody and makes nobody remember anything for it (W4).
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, TypeVar

import msgspec

from datapath.keyspaces import KV, after_prefix
from datapath.records import Entry, Record

SCAN_SIZE_BYTES = 256 * 1024
"""About how much of the log is gone through for a watcher in one step."""

Name = TypeVar("Name")
NextStep = Literal["parked", "more", "log"]
"""What a watcher does next: it waits to be woken, takes again, or needs the log from disk."""


class Span(NamedTuple):
    """The keys of a keyspace that are watched: start <= key < end; `end` None: no upper bound."""

    start: bytes
    end: bytes | None
    keyspace: int = KV

    @property
    def is_key(self) -> bool:
        """Whether it is one key."""
        return self.end == self.start + b"\0"

    @property
    def is_prefix(self) -> bool:
        """Whether it is all keys that begin with `start`."""
        return self.end == after_prefix(self.start)

    def covers(self, key: bytes) -> bool:
        """Whether a key of the keyspace is watched."""
        return self.start <= key and (self.end is None or key < self.end)

    def concerns(self, entry: Entry) -> bool:
        """Whether an entry writes a key that is watched."""
        return any(keyspace == self.keyspace and self.covers(key) for keyspace, key, _ in entry)


class Event(NamedTuple):
    """A committed entry that concerns a watcher; its log index is its revision."""

    revision: int
    entry: Entry


class Watcher:
    """One watcher's place in the log.

    `position`: everything up to there has been given to it, or does not concern it; while it is
    parked, that is so up to the feed's index. `wake` is called amid a commit: it takes note only.
    `stays`: it takes nothing, and is woken by every change.
    """

    __slots__ = ("is_parked", "position", "span", "stays", "wake")

    def __init__(
        self, span: Span, position: int, wake: Callable[[], None], *, stays: bool = False
    ) -> None:
        self.span = span
        self.position = position
        self.wake = wake
        self.stays = stays
        self.is_parked = False


class _Recent(msgspec.Struct, gc=False):
    """A record that committed lately; `entries`: decoded, once a watcher has needed them."""

    record: Record
    entries: list[Entry] | None = None


class Feed:
    """The committed entries from some index on, and the watchers that wait for more.

    `index`: the last committed entry that it was given. `recent_bytes` bounds what is kept in
    memory.
    """

    def __init__(self, index: int, recent_bytes: int) -> None:
        self.index = index
        self._recent_bytes = recent_bytes
        self._recent: deque[_Recent] = deque()
        self._held_bytes = 0
        self._parked = _Parked()

    # -- what the replica says

    def on_committed(self, record: Record, entries: list[Entry]) -> None:
        """A record has committed, and is applied (W1). Wakes the watchers that it concerns."""
        self._recent.append(_Recent(record))
        self._held_bytes += len(record.data)
        self.index = record.last_index
        while self._held_bytes > self._recent_bytes:
            self._drop_oldest()
        watched = self._parked.keyspaces
        for index, entry in enumerate(entries, record.first_index):
            for keyspace, _, _ in entry:
                if keyspace in watched:
                    self._wake_concerned(entry, index)
                    break

    def _wake_concerned(self, entry: Entry, index: int) -> None:
        for watcher in self._parked.concerned(entry):
            if may_wake(watcher.position, index):
                self._wake(watcher, index - 1)

    def on_snapshot(self, index: int) -> None:
        """A snapshot has replaced the state: what lies between is not known here (W3)."""
        for watcher in self._parked.all():
            self._wake(watcher, self.index)
        self._recent.clear()
        self._held_bytes = 0
        self.index = index

    def _drop_oldest(self) -> None:
        oldest = self._recent.popleft()
        times = 1 if oldest.entries is None else 2
        self._held_bytes -= times * len(oldest.record.data)

    # -- what watchers ask

    @property
    def parked(self) -> int:
        """How many watchers wait for changes."""
        return self._parked.count

    def progress(self, watcher: Watcher) -> int:
        """Return up to where a watcher has been given everything: where it may resume after."""
        return max(watcher.position, self.index) if watcher.is_parked else watcher.position

    def take(self, watcher: Watcher) -> tuple[NextStep, list[Event]]:
        """Return what comes next for a watcher, and what it does then.

        "parked": it has everything, and will be woken. "log": give `take_from_log` the records
        from `position` + 1 on.
        """
        if is_current(watcher.position, self.index):
            self._park(watcher)
            return "parked", []
        at = bisect_right(self._recent, watcher.position + 1, key=_first_index) - 1
        if at < 0:
            return "log", []
        events: list[Event] = []
        scanned_bytes = 0
        while at < len(self._recent) and scanned_bytes < SCAN_SIZE_BYTES:
            item = self._recent[at]
            if item.entries is None:
                item.entries = item.record.entries()
                self._held_bytes += len(item.record.data)
            _advance(watcher, item.record, item.entries, events)
            scanned_bytes += len(item.record.data)
            at += 1
        return "more", events

    def take_from_log(self, watcher: Watcher, records: Sequence[Record]) -> list[Event]:
        """Return what comes next for a watcher out of records that were read from the log."""
        events: list[Event] = []
        for record in records:
            if not may_give(record, watcher.position, self.index):
                break
            _advance(watcher, record, record.entries(), events)
        return events

    def observe(self, keyspace: int, key: bytes, observer: Callable[[], None]) -> Watcher:
        """Call `observer` after each committed write of a key, until the watcher leaves.

        One that misses nothing must begin before it looks at the state.
        """
        watcher = Watcher(Span(key, key + b"\0", keyspace), self.index, observer, stays=True)
        self._park(watcher)
        return watcher

    def leave(self, watcher: Watcher) -> None:
        """The watcher has gone."""
        if watcher.is_parked:
            self._parked.remove(watcher)

    def _park(self, watcher: Watcher) -> None:
        if not watcher.is_parked:
            self._parked.add(watcher)

    def _wake(self, watcher: Watcher, position: int) -> None:
        if not watcher.stays:
            self._parked.remove(watcher)
            watcher.position = max(watcher.position, position)
        watcher.wake()


def may_give(record: Record, position: int, committed_index: int) -> bool:
    """W1, W3: only what has committed, and only what holds the very next entry."""
    return record.last_index <= committed_index and record.first_index <= position + 1


def may_wake(position: int, index: int) -> bool:
    """W2: nothing is given twice; a watcher may have begun above what is committed here."""
    return index > position


def is_current(position: int, committed_index: int) -> bool:
    """W3: only a watcher that has been given everything waits to be woken."""
    return position >= committed_index


def _advance(
    watcher: Watcher, record: Record, entries: Sequence[Entry], events: list[Event]
) -> None:
    """Add the record's events after the watcher's position, and move that to its end (W2)."""
    skipped = watcher.position + 1 - record.first_index
    for index, entry in enumerate(entries[skipped:], watcher.position + 1):
        if watcher.span.concerns(entry):
            events.append(Event(index, entry))
    watcher.position = max(watcher.position, record.last_index)


def _first_index(item: _Recent) -> int:
    return item.record.first_index


class _Parked:
    """The parked watchers, found by the keys that are written. `keyspaces`: those with some."""

    def __init__(self) -> None:
        self.count = 0
        self.keyspaces: dict[int, _ParkedThere] = {}

    def add(self, watcher: Watcher) -> None:
        keyspace = watcher.span.keyspace
        there = self.keyspaces.get(keyspace)
        if there is None:
            there = self.keyspaces[keyspace] = _ParkedThere()
        there.add(watcher)
        watcher.is_parked = True
        self.count += 1

    def remove(self, watcher: Watcher) -> None:
        there = self.keyspaces[watcher.span.keyspace]
        there.remove(watcher)
        if there.is_empty:
            del self.keyspaces[watcher.span.keyspace]
        watcher.is_parked = False
        self.count -= 1

    def all(self) -> list[Watcher]:
        """Return all of them."""
        return [watcher for there in self.keyspaces.values() for watcher in there.all()]

    def concerned(self, entry: Entry) -> list[Watcher]:
        """Return each of those that an entry concerns, once."""
        found: dict[Watcher, None] = {}
        for keyspace, key, _ in entry:
            there = self.keyspaces.get(keyspace)
            if there is not None:
                there.find(key, found)
        return list(found)


class _ParkedThere:
    """Those of one keyspace."""

    def __init__(self) -> None:
        self._keys: dict[bytes, dict[Watcher, None]] = {}
        self._prefixes: dict[int, dict[bytes, dict[Watcher, None]]] = {}  # by their length
        self._ranges: dict[Span, dict[Watcher, None]] = {}

    def add(self, watcher: Watcher) -> None:
        span = watcher.span
        if span.is_key:
            self._keys.setdefault(span.start, {})[watcher] = None
        elif span.is_prefix:
            by_prefix = self._prefixes.setdefault(len(span.start), {})
            by_prefix.setdefault(span.start, {})[watcher] = None
        else:
            self._ranges.setdefault(span, {})[watcher] = None

    def remove(self, watcher: Watcher) -> None:
        span = watcher.span
        if span.is_key:
            _discard(self._keys, span.start, watcher)
        elif span.is_prefix:
            by_prefix = self._prefixes[len(span.start)]
            _discard(by_prefix, span.start, watcher)
            if not by_prefix:
                del self._prefixes[len(span.start)]
        else:
            _discard(self._ranges, span, watcher)

    @property
    def is_empty(self) -> bool:
        return not (self._keys or self._prefixes or self._ranges)

    def all(self) -> list[Watcher]:
        groups = [
            *self._keys.values(),
            *(group for by_prefix in self._prefixes.values() for group in by_prefix.values()),
            *self._ranges.values(),
        ]
        return [watcher for group in groups for watcher in group]

    def find(self, key: bytes, found: dict[Watcher, None]) -> None:
        """Add to `found` who watches a key."""
        found.update(self._keys.get(key, {}))
        for length, by_prefix in self._prefixes.items():
            found.update(by_prefix.get(key[:length], {}))
        for span, group in self._ranges.items():
            if span.covers(key):
                found.update(group)


def _discard(groups: dict[Name, dict[Watcher, None]], name: Name, watcher: Watcher) -> None:
    group = groups[name]
    del group[watcher]
    if not group:
        del groups[name]
