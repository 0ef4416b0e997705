"""The feed of changes: what watchers are given, and when (rules W1 to W4)."""

from __future__ import annotations

import random

import pytest

from datapath.execution.changes import Feed, Span, Watcher
from datapath.keyspaces import CLIENTS, KV, LOCKS, after_prefix
from datapath.records import Entry, Record, make_record

EVERYTHING = Span(b"", None)


def put(*keys: str) -> Entry:
    return [(KV, key.encode(), b"value") for key in keys]


def record(first_index: int, *entries: Entry) -> Record:
    return make_record(first_index, 1, first_index - 1, entries)


class Watched:
    """A feed, the log behind it, and watchers who take all they can get."""

    def __init__(self, recent_bytes: int = 1 << 20) -> None:
        self.feed = Feed(0, recent_bytes)
        self.log: list[Record] = []
        self.woken: list[Watcher] = []
        self.given: dict[Watcher, list[int]] = {}

    def watch(self, span: Span = EVERYTHING, after: int = 0) -> Watcher:
        watcher = Watcher(span, after, lambda: self.woken.append(watcher))
        self.given[watcher] = []
        return watcher

    def commit(self, *entries: Entry) -> None:
        made = record(self.feed.index + 1, *entries)
        self.log.append(made)
        self.feed.on_committed(made, list(entries))

    def read_log(self, watcher: Watcher) -> list[Record]:
        return [item for item in self.log if item.last_index > watcher.position]

    def drain(self, watcher: Watcher) -> list[int]:
        """Take until it is parked; return all that it has ever been given."""
        given = self.given[watcher]
        while True:
            progress, events = self.feed.take(watcher)
            if progress == "log":
                events = self.feed.take_from_log(watcher, self.read_log(watcher))
                assert events or watcher.position == self.feed.index
            given += [event.revision for event in events]
            if progress == "parked":
                return given


def test_a_watcher_is_given_what_it_watches_in_order_and_once() -> None:
    watched = Watched()
    everything, one, some = (
        watched.watch(),
        watched.watch(Span(b"b", b"b\0")),
        watched.watch(Span(b"b", b"c")),
    )
    watched.commit(put("a"), put("b"), put("bb", "c"))
    watched.commit(put("b"))
    assert watched.drain(everything) == [1, 2, 3, 4]
    assert watched.drain(one) == [2, 4]
    assert watched.drain(some) == [2, 3, 4]
    assert watched.drain(some) == [2, 3, 4]


def test_a_watcher_is_given_its_own_keyspace_alone() -> None:
    """Parked or behind, in memory or from the log: a lock and a key of one name are two things."""
    for recent_bytes in (1 << 20, 1):
        watched = Watched(recent_bytes)
        key = watched.watch(Span(b"a", b"a\0"))
        lock = watched.watch(Span(b"a", b"a\0", LOCKS))
        watched.commit(put("a"), [(LOCKS, b"a", b"held")])
        assert (watched.drain(key), watched.drain(lock)) == ([1], [2])
        watched.woken.clear()
        watched.commit([(LOCKS, b"a", None)])
        assert watched.woken == [lock]
        watched.commit([*put("a"), (LOCKS, b"\0a\0ticket", b"waits")])
        assert watched.woken == [lock, key]
        assert (watched.drain(key), watched.drain(lock)) == ([1, 4], [2, 3])
    assert watched.feed.parked == 2
    watched.feed.on_snapshot(9)
    assert watched.feed.parked == 0


def test_an_observer_is_called_at_each_write_of_its_key_until_it_leaves() -> None:
    watched, calls = Watched(), list[int]()
    observer = watched.feed.observe(LOCKS, b"a", lambda: calls.append(watched.feed.index))
    watched.commit(put("a"), [(LOCKS, b"b", b"held")])
    assert calls == []
    watched.commit([(LOCKS, b"a", b"held")])
    watched.commit([(LOCKS, b"a", None)])
    assert len(calls) == 2
    watched.feed.on_snapshot(9)  # every key may have been written
    assert len(calls) == 3
    watched.feed.leave(observer)
    watched.commit([(LOCKS, b"a", b"held")])
    assert len(calls) == 3
    assert watched.feed.parked == 0


def test_all_changes_of_a_revision_are_one_event() -> None:
    watched = Watched()
    watcher = watched.watch()
    watched.commit(put("a", "b", "c"))
    _, events = watched.feed.take(watcher)
    assert [(event.revision, event.entry) for event in events] == [(1, put("a", "b", "c"))]


def test_only_those_who_watch_a_key_are_woken_by_it() -> None:
    watched = Watched()
    spans = {
        "key": Span(b"a/1", b"a/1\0"),
        "prefix": Span(b"a/", b"a0"),
        "range": Span(b"a/0", b"a/2"),
        "everything": EVERYTHING,
        "other key": Span(b"b", b"b\0"),
        "other prefix": Span(b"a/1/", b"a/10"),
        "other range": Span(b"a/2", None),
    }
    watchers = {name: watched.watch(span) for name, span in spans.items()}
    for watcher in watchers.values():
        watched.drain(watcher)
    assert watched.feed.parked == len(spans)
    watched.commit([(CLIENTS, b"a/1", b"")], put("a/1"))
    assert {name for name, watcher in watchers.items() if watcher in watched.woken} == {
        "key", "prefix", "range", "everything"
    }  # fmt: skip
    assert len(watched.woken) == 4
    assert watched.feed.parked == 3
    for name, watcher in watchers.items():
        assert watched.drain(watcher) == ([] if name.startswith("other") else [2])


def test_who_has_been_given_everything_may_resume_there() -> None:
    watched = Watched()
    watcher = watched.watch(Span(b"z", None))
    watched.commit(put("a"))
    watched.drain(watcher)
    watched.commit(put("b"))
    assert watched.feed.progress(watcher) == 2  # nothing of it concerns the watcher
    watched.commit(put("z"))
    assert watched.feed.progress(watcher) == 2  # not yet given
    assert watched.drain(watcher) == [3]
    assert watched.feed.progress(watcher) == 3


def test_a_watch_from_above_what_is_committed_here_waits_for_it() -> None:
    # Another replica has told of revision 3, and this one lags behind.
    watched = Watched()
    watcher = watched.watch(after=3)
    assert watched.drain(watcher) == []
    assert watched.feed.progress(watcher) == 3
    watched.commit(put("a"), put("a"))
    watched.commit(put("a"))
    assert watched.woken == []
    watched.commit(put("a"))
    assert watched.drain(watcher) == [4]


def test_who_is_behind_what_is_in_memory_reads_the_log() -> None:
    watched = Watched(recent_bytes=1)
    watcher = watched.watch(Span(b"k", b"k\0"))
    for key in ("k", "x", "k", "x"):
        watched.commit(put(key))
    assert watched.feed.take(watcher) == ("log", [])
    assert watched.drain(watcher) == [1, 3]


def test_nothing_is_given_out_of_the_log_before_it_has_committed() -> None:
    watched = Watched(recent_bytes=1)
    watcher = watched.watch()
    watched.commit(put("a"))
    watched.log.append(record(2, put("not committed")))
    events = watched.feed.take_from_log(watcher, watched.read_log(watcher))
    assert [event.revision for event in events] == [1]
    assert watcher.position == 1


def test_a_gap_in_what_was_read_is_not_stepped_over() -> None:
    watched = Watched(recent_bytes=1)
    watcher = watched.watch()
    watched.commit(put("a"))
    watched.commit(put("b"))
    watched.commit(put("c"))
    assert watched.feed.take_from_log(watcher, watched.log[1:]) == []
    assert watcher.position == 0


def test_after_a_snapshot_the_log_has_to_say_what_came_before() -> None:
    watched = Watched()
    behind, parked, ahead = watched.watch(), watched.watch(), watched.watch(after=9)
    watched.commit(put("a"))
    watched.drain(parked)
    watched.drain(ahead)
    watched.feed.on_snapshot(7)
    assert watched.feed.take(behind) == ("log", [])
    assert watched.woken == [parked, ahead]
    assert parked.position == 1
    assert watched.feed.take(parked) == ("log", [])
    assert watched.drain(ahead) == []
    watched.commit(put("b"), put("c"), put("d"))
    assert watched.drain(ahead) == [10]


def test_what_is_kept_in_memory_is_bounded_decoded_or_not() -> None:
    size_bytes = len(record(1, put("a")).data)
    watched = Watched(recent_bytes=10 * size_bytes)
    for _ in range(100):
        watched.commit(put("a"))
    assert len(watched.feed._recent) == 10
    watched.drain(watched.watch(after=90))  # decodes them
    watched.commit(put("a"))
    assert len(watched.feed._recent) <= 6
    assert watched.feed._held_bytes <= 10 * size_bytes
    for _ in range(100):
        watched.commit(put("a"))
    assert watched.feed._held_bytes == 10 * size_bytes


def test_who_has_gone_is_woken_no_more() -> None:
    watched = Watched()
    for span in (EVERYTHING, Span(b"a", b"a\0"), Span(b"a", b"c")):
        watcher = watched.watch(span)
        watched.drain(watcher)
        watched.feed.leave(watcher)
        watched.feed.leave(watcher)
    assert not watched.feed._parked.keyspaces  # commits look at nothing more
    watched.commit(put("a"))
    assert watched.woken == []
    assert watched.feed.parked == 0


@pytest.mark.parametrize(
    ("prefix", "end"), [(b"a", b"b"), (b"a\xff", b"b"), (b"\xff\xff", None), (b"", None)]
)
def test_the_end_of_a_prefix(prefix: bytes, end: bytes | None) -> None:
    assert after_prefix(prefix) == end


@pytest.mark.parametrize("seed", range(50))
def test_whatever_the_order_of_events_nobody_misses_or_repeats_anything(seed: int) -> None:
    chance = random.Random(seed)
    watched = Watched(recent_bytes=chance.choice([1, 300, 1 << 20]))
    spans = [EVERYTHING, Span(b"a", b"a\0"), Span(b"a", b"b"), Span(b"aa", b"c"), Span(b"b", None)]
    watchers = [(span, watched.watch(span)) for span in spans for _ in range(3)]
    keys = ["a", "aa", "ab", "b", "c"]
    for _ in range(60):
        if chance.random() < 0.5:
            entries = [put(*chance.sample(keys, chance.randint(1, 3))) for _ in range(3)]
            watched.commit(*entries[: chance.randint(1, 3)])
        else:
            watched.drain(chance.choice(watchers)[1])
    for span, watcher in watchers:
        expected = [
            item.first_index + at
            for item in watched.log
            for at, entry in enumerate(item.entries())
            if any(span.covers(key) for _, key, _ in entry)
        ]
        assert watched.drain(watcher) == expected
