"""How long the log after a snapshot is held for who needs it, and when sending hurries."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, ClassVar

import pytest

from datapath.errors import DiskFullError
from datapath.node import catch_up as module
from datapath.node.catch_up import Snapshots
from datapath.node.retention import FLOOR_KEPT_MS, SNAPSHOT_LOG_HARD_FACTOR, LogRetention
from datapath.protocol.replica import Replica
from datapath.transport.snapshot_transfer import Throttle
from tests.unit.datapath.protocol.test_primary_guards import Lead
from tests.unit.datapath.protocol.test_replica_guards import _recovered, _replica, _view

RATE_BYTES_PER_S = 1000
NOT_HELD = -1


class Floors:
    """The snapshots of one replica, and of its storage what they decide by."""

    def __init__(self, replica: Replica) -> None:
        self.retention = LogRetention(0, 0, 1000)
        self.log = self
        self.segments: list[tuple[int, int, float]] = []
        self.room = False  # whether a snapshot can be written
        self.read = 0
        self.sent: list[tuple[str, int, bool]] = []
        mesh: Any = self
        self.snapshots = Snapshots(
            "b",
            replica,
            self,  # type: ignore[arg-type]  # of its storage only what stands here is used
            mesh,
            RATE_BYTES_PER_S,
            requests=lambda: 0,
            on_sent=lambda peer, session, done: self.sent.append((peer, session, done)),
            on_installed=lambda _index, _epoch: None,
            on_install_failed=lambda: None,
            on_fatal=lambda _error: None,
        )

    index = 7

    def segment_bounds(self) -> list[tuple[int, int, float]]:
        return self.segments

    async def snapshot_reader(self) -> Floors:
        self.read += 1
        await asyncio.sleep(0)
        if not self.room:
            raise DiskFullError("no room")
        return self

    def dialer(self, *_: object) -> Floors:
        return self

    def start(self) -> None:
        """Links are not the question here."""

    async def stop(self) -> None:
        """Links are not the question here."""

    def settled(self, peer: str, floor: int = 0) -> int:
        """Return after which entry the log is held for a peer that had its snapshot at `floor`."""
        self.retention.begin_snapshot(peer, floor)
        self.retention.end_snapshot(peer, 0.0, installed=True)
        self.snapshots.settle()
        return self.held_after(peer)

    def held_after(self, peer: str) -> int:
        """Return after which entry the log is held for a peer."""
        found = self.retention.held_after(peer)
        return NOT_HELD if found is None else found


@pytest.fixture
def lead(monkeypatch: pytest.MonkeyPatch) -> Lead:
    """The primary, with "a" in sync and "c" a learner that holds everything, heard just now."""
    made = Lead(answered="ac")
    monkeypatch.setattr(module, "clock_ms", lambda: made.now_ms)
    return made


def test_the_log_is_held_for_a_learner_from_what_it_holds_on(lead: Lead) -> None:
    floors = Floors(lead.replica)
    assert lead.last_index == 1
    assert floors.settled("c") == 1
    assert floors.settled("c", floor=5) == 5


def test_no_log_is_held_for_who_is_in_sync_removed_or_silent(lead: Lead) -> None:
    floors = Floors(lead.replica)
    assert floors.settled("a") == NOT_HELD
    assert floors.settled("d") == NOT_HELD
    lead.now_ms += FLOOR_KEPT_MS
    assert floors.settled("c") == 1
    lead.now_ms += 1
    assert floors.settled("c") == NOT_HELD


def test_a_backup_holds_no_log_for_anyone() -> None:
    replica = _replica(_recovered())
    replica.on_view(_view(1, "a"))
    assert Floors(replica).settled("c") == NOT_HELD


def test_while_a_snapshot_is_under_way_its_log_is_held_whoever_is_silent(lead: Lead) -> None:
    floors = Floors(lead.replica)
    floors.retention.begin_snapshot("d", 3)
    floors.snapshots.settle()
    assert floors.held_after("d") == 3


def test_writes_are_slowed_when_more_than_the_bound_is_held_and_sending_hurries_before(
    lead: Lead, caplog: pytest.LogCaptureFixture
) -> None:
    floors = Floors(lead.replica)
    throttle = floors.snapshots._throttles["c"] = Throttle(RATE_BYTES_PER_S)
    floors.retention.begin_snapshot("c", 1)
    with caplog.at_level(logging.WARNING):
        for held, rate, slows, said in (
            (500, RATE_BYTES_PER_S, False, 0),
            (501, 0, False, 1),
            (1000, 0, False, 1),
            (1001, 0, True, 1),
            (500, RATE_BYTES_PER_S, False, 1),
        ):
            floors.segments = [(1, 5000, 0.0), (2, held, 0.0)]
            floors.snapshots.settle()
            assert throttle.bytes_per_s == rate
            assert floors.snapshots.slows_writes == slows
            assert len(caplog.records) == said


class _Sender:
    """Sends at once, and notes how it is throttled."""

    throttles: ClassVar[list[int]] = []

    def __init__(self, throttle: Throttle) -> None:
        self.throttles.append(throttle.bytes_per_s)

    async def send_snapshot(self, source: Floors, _epoch: int) -> tuple[int, int]:
        return source.index, 1


async def test_one_snapshot_is_sent_to_a_peer_at_a_time_and_its_newest_session_is_told(
    lead: Lead, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SNAPSHOT_RETRY_INTERVAL_S", 0.0)
    floors = Floors(lead.replica)
    first = asyncio.ensure_future(floors.snapshots.send("c", 1))
    await asyncio.sleep(0)
    await floors.snapshots.send("c", 2)
    await first
    assert floors.read == 1
    assert floors.sent == [("c", 2, False)]
    assert floors.held_after("c") == NOT_HELD


async def test_the_log_is_held_after_a_snapshot_that_arrived_and_not_after_one_that_failed(
    lead: Lead, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SNAPSHOT_RETRY_INTERVAL_S", 0.0)
    monkeypatch.setattr(module, "SnapshotSender", _Sender)
    monkeypatch.setattr(_Sender, "throttles", [])
    floors = Floors(lead.replica)
    floors.room = True
    await floors.snapshots.send("c", 1)
    assert floors.held_after("c") == 7
    floors.room = False
    await floors.snapshots.send("c", 2)
    assert floors.held_after("c") == NOT_HELD
    assert floors.sent == [("c", 1, True), ("c", 2, False)]
    floors.room = True
    await floors.snapshots.send("c", 2)
    floors.segments = [(8, 1000, 0.0)]
    floors.snapshots.settle()
    await floors.snapshots.send("c", 3)
    assert _Sender.throttles == [RATE_BYTES_PER_S] * 3 + [0]


def test_what_is_kept_of_the_log() -> None:
    """Ten segments of ten entries and ten bytes each."""
    segments = [(last, 10, last / 10) for last in range(10, 101, 10)]
    all_of_it = (100, 101)  # what is durable, and what is needed
    assert LogRetention(0, 0, 1000).keep_from(segments, *all_of_it) == 91, "the last one stays"
    assert LogRetention(0, 0, 1000).keep_from(segments, 100, 1) == 91, "no room for who lags"
    assert LogRetention(30, 0, 1000).keep_from(segments, *all_of_it) == 71
    assert LogRetention(0, 1000, 1000).keep_from(segments, 100, oldest_needed=45) == 41
    assert LogRetention(0, 40, 1000).keep_from(segments, 100, oldest_needed=5) == 61
    recent = LogRetention(0, 1000, 1000)
    assert recent.keep_from(segments, 100, oldest_needed=101, recent_s=6.0) == 61
    assert LogRetention(0, 30, 1000).keep_from(segments, 100, 101, recent_s=6.0) == 71
    assert LogRetention(0, 0, 1000).keep_from(segments, 35, oldest_needed=101) == 31
    assert LogRetention(0, 0, 1000).keep_from(segments, 9, oldest_needed=101) == 0
    assert LogRetention(0, 0, 1000).keep_from([], 0, oldest_needed=1) == 0


def test_what_follows_the_oldest_snapshot_under_way_is_kept_up_to_twice_the_bound() -> None:
    segments = [(last, 10, last / 10) for last in range(10, 101, 10)]
    retention = LogRetention(0, 0, 1000)
    retention.begin_snapshot("c", 50)
    retention.begin_snapshot("d", 30)
    assert retention.held_bytes(segments) == 70
    assert retention.keep_from(segments, 100, oldest_needed=101) == 31
    retention.end_snapshot("d", 0.0, installed=False)
    assert retention.held_bytes(segments) == 50
    assert retention.keep_from(segments, 100, oldest_needed=101) == 51
    retention.snapshot_log_bytes = 20 // SNAPSHOT_LOG_HARD_FACTOR
    assert retention.keep_from(segments, 100, oldest_needed=101) == 81
