"""Mutants of watches: what a watcher is given, when it waits, and what is refused (decision 25)."""

from __future__ import annotations

from collections.abc import Sequence
from unittest.mock import patch

from cluster.api import streams
from cluster.client import mirrors, watching
from datapath.execution import changes
from datapath.execution.changes import Feed
from datapath.execution.tail import Tail
from datapath.node import history
from datapath.records import Entry, Record
from tests.sim.mutant import Mutant, Patch

API = "tests/integration/cluster/api/test_watch.py::"
CLIENT = "tests/integration/cluster/client/test_watch.py::"
FEED = "tests/unit/datapath/execution/test_changes.py::"


def _uncommitted_out_of_the_log() -> list[Patch]:
    def may_give(record: Record, position: int, committed_index: int) -> bool:
        del committed_index
        return record.first_index <= position + 1

    return [patch.object(changes, "may_give", may_give)]


def _given_when_written() -> list[Patch]:
    on_written = Tail.on_written

    def early(tail: Tail, records: list[Record]) -> None:
        on_written(tail, records)
        for record in records:
            if record.first_index == tail._feed.index + 1:
                tail._feed.on_committed(record, record.entries())

    def ignored(*_: object) -> None:
        return None

    committed = Tail.commit

    def commit(tail: Tail, index: int) -> None:
        with patch.object(tail._feed, "on_committed", ignored):
            committed(tail, index)

    return [patch.object(Tail, "on_written", early), patch.object(Tail, "commit", commit)]


def _a_record_from_its_beginning() -> list[Patch]:
    advance = changes._advance

    def again(
        watcher: changes.Watcher,
        record: Record,
        entries: Sequence[Entry],
        events: list[changes.Event],
    ) -> None:
        position = watcher.position
        watcher.position = record.first_index - 1
        advance(watcher, record, entries, events)
        watcher.position = max(position, record.last_index)

    return [patch.object(changes, "_advance", again)]


def _a_step_is_not_noted() -> list[Patch]:
    take = Feed.take_from_log

    def without(feed: Feed, watcher: changes.Watcher, records: list[Record]) -> list[changes.Event]:
        position = watcher.position
        events = take(feed, watcher, records)
        watcher.position = max(position, watcher.position - 1)
        return events

    return [patch.object(Feed, "take_from_log", without)]


def _parked_before_it_has_everything() -> list[Patch]:
    def is_current(position: int, committed_index: int) -> bool:
        return position + 3 >= committed_index

    return [patch.object(changes, "is_current", is_current)]


def _a_snapshot_wakes_nobody() -> list[Patch]:
    def on_snapshot(feed: Feed, index: int) -> None:
        feed._recent.clear()
        feed._held_bytes = 0
        feed.index = index

    return [patch.object(Feed, "on_snapshot", on_snapshot)]


def _a_snapshot_is_stepped_over() -> list[Patch]:
    on_snapshot = Feed.on_snapshot

    def forward(feed: Feed, index: int) -> None:
        waiting = feed._parked.all()
        on_snapshot(feed, index)
        for watcher in waiting:
            watcher.position = max(watcher.position, index)

    return [patch.object(Feed, "on_snapshot", forward)]


def _what_is_gone_is_begun_all_the_same() -> list[Patch]:
    return [patch.object(history, "is_kept", lambda *_: True)]


def _a_gap_in_the_log_is_stepped_over() -> list[Patch]:
    def may_give(record: Record, position: int, committed_index: int) -> bool:
        del position
        return record.last_index <= committed_index

    return [patch.object(changes, "may_give", may_give)]


def _who_takes_nothing_is_sent_more() -> list[Patch]:
    return [patch.object(streams.WatchConnection, "pause_writing", lambda _: None)]


def _the_client_resumes_one_later() -> list[Patch]:
    ask = watching.AsyncKeyWatch._ask

    async def later(watch: watching.AsyncKeyWatch, url: str) -> None:
        if watch.revision:
            watch.revision += 1
        await ask(watch, url)

    return [patch.object(watching.AsyncKeyWatch, "_ask", later)]


def _a_mirror_watches_from_its_last_page() -> list[Patch]:
    return [patch.object(mirrors, "where_to_follow", lambda _first, last: last)]


WATCH_MUTANTS = (
    Mutant("W1", "what has not committed is given out of the log", _uncommitted_out_of_the_log),
    Mutant("W1", "records are given when they are written", _given_when_written),
    Mutant("W2", "a record is given from its beginning", _a_record_from_its_beginning),
    Mutant("W2", "the last entry of a reading is given again", _a_step_is_not_noted),
    Mutant("W3", "who is almost current waits to be woken", _parked_before_it_has_everything),
    Mutant("W3", "a snapshot wakes nobody", _a_snapshot_wakes_nobody),
    Mutant("W3", "a snapshot is stepped over", _a_snapshot_is_stepped_over),
    Mutant(
        "W3", "a gap in what was read is stepped over", _a_gap_in_the_log_is_stepped_over,
        unit=FEED + "test_a_gap_in_what_was_read_is_not_stepped_over",
    ),
    Mutant(
        "W3", "a watch begins although the history is gone", _what_is_gone_is_begun_all_the_same,
        unit=API + "test_history_that_is_gone_is_refused_with_the_oldest_that_is_kept",
    ),
    Mutant(
        "W3", "the client resumes after what it has not seen", _the_client_resumes_one_later,
        unit=CLIENT + "test_a_watch_resumes_at_other_nodes_without_gap_or_double",
    ),
    Mutant(
        "W4", "who takes nothing is sent more", _who_takes_nothing_is_sent_more,
        unit=API + "test_who_reads_nothing_is_held_little_for_and_misses_nothing",
    ),
    Mutant(
        "W5", "a mirror watches from its last page on", _a_mirror_watches_from_its_last_page,
        unit=CLIENT + "test_what_changes_while_a_mirror_lists_is_in_it",
    ),
)  # fmt: skip
