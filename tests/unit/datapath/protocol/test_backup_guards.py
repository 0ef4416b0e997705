"""What a backup refuses, ignores and puts off: its conditions, one by one (`sim/guards.py`)."""

from __future__ import annotations

import msgspec
import pytest

from datapath.errors import SafetyError
from datapath.protocol import effects
from datapath.protocol.messages import (
    Append,
    AppendReply,
    Heartbeat,
    HeartbeatReply,
    Probe,
    ProbeReply,
    StaleEpoch,
)
from datapath.protocol.replica import Replica
from datapath.settings import Timing
from election.view import Confirm, TakeOver
from tests.unit.datapath.protocol.test_replica_guards import (
    _finish_writes,
    _follow,
    _record,
    _recovered,
    _replica,
    _replies,
    _view,
)


def _append(
    prev: tuple[int, int] = (0, 0),
    *records: bytes,
    session: int = 1,
    epoch: int = 1,
    commit: int = 0,
) -> Append:
    return Append(session, epoch, *prev, commit, list(records))


# E5, D3: of whom a message is


def test_messages_of_another_than_the_accepted_primary_are_ignored() -> None:
    """E5: also if its epoch and session are the accepted one's."""
    replica = _replica(_recovered())
    _follow(replica, 3)
    for message in (Heartbeat(1, 3, 1, 0), _append((0, 0), _record(1, 3).data, epoch=3)):
        assert replica.on_message("c", message, 2.0) == []
    assert replica.state.log.last_index == 0


def test_messages_of_an_older_stream_are_ignored() -> None:
    replica = _replica(_recovered())
    _follow(replica, 3, session=2)
    for message in (Heartbeat(1, 3, 1, 0), _append((0, 0), _record(1, 3).data, epoch=3)):
        assert replica.on_message("a", message, 2.0) == []
    assert replica.state.log.last_index == 0


def test_messages_of_an_epoch_that_was_not_begun_with_a_probe_are_ignored() -> None:
    """E5: nothing is recorded of it yet, and the session's number says nothing."""
    replica = _replica(_recovered())
    _follow(replica, 3)
    for message in (Heartbeat(1, 4, 1, 0), _append((0, 0), _record(1, 4).data, epoch=4)):
        assert replica.on_message("a", message, 2.0) == []
    assert replica.state.log.last_index == 0


def test_a_refusal_names_the_highest_epoch_that_is_known() -> None:
    """D3: else the refused one would not step down."""
    replica = _replica(_recovered())
    replica.on_view(_view(2, "a"))
    _follow(replica, 3, peer="c")
    assert _replies(replica.on_message("a", Heartbeat(1, 2, 1, 0), 2.0)) == [StaleEpoch(1, 3, "c")]
    # The view names this replica, which cannot become primary: it has accepted nobody for it.
    damaged = _replica(msgspec.structs.replace(_recovered(5, 3), incomplete=True))
    damaged.on_view(_view(4, "b"))
    assert damaged.state.epoch == 4
    assert _replies(damaged.on_message("a", Heartbeat(1, 3, 1, 0), 2.0)) == [StaleEpoch(1, 4, "b")]


def test_records_that_come_before_the_accepted_epoch_is_durable_are_not_acknowledged() -> None:
    """E5."""
    replica = _replica(_recovered())
    accepting = replica.on_message("a", Probe(1, 1, "a", 0), 1.0)
    writing = replica.on_message("a", _append((0, 0), _record(1, 1).data), 2.0)
    assert _replies(writing) == []
    replies = _replies(_finish_writes(replica, [*accepting, *writing]))
    assert [type(reply) for reply in replies] == [ProbeReply, AppendReply]


# D6: what is written and cut


def test_records_that_do_not_follow_each_other_stop_the_node() -> None:
    for records in (
        [_record(3, 2)],  # a gap, although the log holds that entry
        [_record(1, 2), _record(3, 2)],
        [_record(1, 3)],  # of a later epoch than the primary's own
        [_record(1, 2), _record(2, 1)],  # epochs never fall
    ):
        replica = _replica(_recovered(5, 1))
        _follow(replica, 2)
        message = _append((0, 0), *(record.data for record in records), epoch=2)
        with pytest.raises(SafetyError, match="sent record"):
            replica.on_message("a", message, 2.0)


def test_records_that_are_held_already_are_not_written_again() -> None:
    replica = _replica(_recovered(2, 1))
    _follow(replica, 2)
    records = [_record(1, 1).data, _record(2, 1).data, _record(3, 2).data]
    emitted = replica.on_message("a", _append((0, 0), *records, epoch=2), 2.0)
    [written] = [effect for effect in emitted if isinstance(effect, effects.WriteRecords)]
    assert [record.first_index for record in written.records] == [3]
    again = replica.on_message("a", _append((0, 0), *records, epoch=2), 3.0)
    assert not any(
        isinstance(effect, effects.WriteRecords | effects.TruncateLog) for effect in again
    )


def test_a_record_that_is_held_in_part_stops_the_node() -> None:
    replica = _replica(_recovered(3, 1))
    _follow(replica, 1, session=2)
    with pytest.raises(SafetyError, match="in part"):
        replica.on_message("a", _append((2, 1), _record(3, 1, 3).data, session=2), 2.0)


def test_what_this_epoch_has_written_is_never_cut() -> None:
    replica = _replica(_recovered(5, 2))
    _follow(replica, 2, session=2)
    with pytest.raises(SafetyError, match="may not be cut"):
        replica.on_message("a", _append((0, 0), _record(1, 1).data, session=2, epoch=2), 2.0)


def test_what_is_acknowledged_once_is_not_acknowledged_at_each_heartbeat() -> None:
    replica = _replica(_recovered())
    _follow(replica, 1)
    _finish_writes(replica, replica.on_message("a", _append((0, 0), _record(1, 1).data), 2.0))
    replies = _replies(replica.on_message("a", Heartbeat(1, 1, 1, 0), 3.0))
    assert not any(isinstance(reply, AppendReply) for reply in replies)


# D2: what is known to be committed


def test_a_read_index_of_another_epoch_commits_nothing() -> None:
    """The next primary's log may hold something else there."""
    replica = _replica(_recovered())
    _follow(replica, 1)
    _finish_writes(replica, replica.on_message("a", _append((0, 0), _record(1, 1, 3).data), 2.0))
    assert replica.advance_commit(2, 3) == []
    assert replica.state.commit_index == 0
    assert replica.advance_commit(1, 3) == [effects.Commit(3)]


def test_a_primary_learns_of_no_commit_by_a_stream_that_it_followed_before() -> None:
    """D6: what it holds of earlier epochs commits with its own opening entry, and not before."""
    replica = _replica(_recovered())
    _follow(replica, 1)
    _finish_writes(replica, replica.on_message("a", _append((0, 0), _record(1, 1, 3).data), 2.0))
    _finish_writes(replica, replica.on_view(_view(2, "b")))
    assert replica.role == "primary"
    assert replica.advance_commit(2, 3) == []
    assert replica.state.commit_index == 0


# rule e: marks


def test_a_replica_that_is_behind_and_has_lost_nothing_is_not_damaged() -> None:
    replica = _replica(_recovered(3, 1))
    replica.on_message("a", Probe(1, 2, "a", 5), 1.0)
    assert not replica.state.incomplete


def test_a_cut_tail_that_lacks_nothing_committed_is_not_damaged() -> None:
    suspect = msgspec.structs.replace(_recovered(3, 1), tail_cut=True)
    for commit_index, lacks in ((3, False), (4, True)):
        replica = _replica(suspect)
        replica.on_message("a", Probe(1, 2, "a", commit_index, commit_epoch=1), 1.0)
        assert replica.state.incomplete == lacks


def test_marks_stay_until_the_entry_that_opens_the_epoch_is_held() -> None:
    """Before it stands what older epochs acknowledged, above the primary's commit index, too."""
    replica = _replica(msgspec.structs.replace(_recovered(3, 1), tail_cut=True))
    _follow(replica, 2)
    emitted = replica.on_message("a", _append((3, 1), epoch=2, commit=3), 2.0)
    assert not any(isinstance(effect, effects.ClearMarks) for effect in emitted)
    assert replica.state.tail_cut
    records = [_record(4, 1).data, _record(5, 2).data]  # the first is what was lost
    emitted = replica.on_message("a", _append((3, 1), *records, epoch=2, commit=3), 3.0)
    assert any(isinstance(item, effects.ClearMarks) for item in _finish_writes(replica, emitted))
    assert not replica.state.tail_cut


# snapshots


def test_while_a_snapshot_takes_the_logs_place_nothing_is_written_or_told() -> None:
    replica = _replica(_recovered(3, 1))
    _follow(replica, 2)
    assert replica.start_install(10, 2) == ""
    assert replica.on_message("a", _append((3, 1), _record(4, 2).data, epoch=2), 2.0) == []
    assert replica.state.log.last_index == 3
    assert _replies(replica.on_message("a", Probe(2, 2, "a", 0), 3.0)) == []
    replies = _replies(replica.on_snapshot_installed(10, 2))
    assert [reply.last_index for reply in replies if isinstance(reply, ProbeReply)] == [10]


def test_after_a_snapshot_a_replica_without_a_stream_tells_nobody() -> None:
    replica = _replica(_recovered(3, 1))
    assert replica.start_install(10, 2) == ""
    assert replica.on_snapshot_installed(10, 2) == []


# D4, E3: taking over


def _silent() -> tuple[Replica, float]:
    """A replica that has just proposed itself for an in-sync primary that is silent."""
    replica = _replica(_recovered())
    _finish_writes(replica, replica.on_view(_view(1, "a")))
    _follow(replica, 1)
    now_ms = 0.0
    while replica.state.proposal is None:
        now_ms += 10.0
        replica.on_tick(now_ms)
    assert replica.state.proposal == effects.Propose(TakeOver("b"), 1)
    assert replica.may_propose(replica.state.proposal, now_ms)  # it leaves
    return replica, now_ms


def _ticks(replica: Replica, begin_ms: float, end_ms: float) -> list[tuple[float, effects.Effect]]:
    found: list[tuple[float, effects.Effect]] = []
    while begin_ms < end_ms:
        begin_ms += 10.0
        found += [(begin_ms, effect) for effect in replica.on_tick(begin_ms)]
    return found


def test_a_replica_that_may_lack_something_asks_to_take_over_from_nobody() -> None:
    """E1, rule e."""
    for damaged in (False, True):
        replica = _replica(msgspec.structs.replace(_recovered(3, 1), incomplete=damaged))
        _finish_writes(replica, replica.on_view(_view(2, "a")))
        asked = _ticks(replica, 0.0, 2 * Timing().grace_period_ms)
        assert bool(asked) == (not damaged)


def test_a_view_of_the_same_epoch_gives_a_silent_primary_no_more_time() -> None:
    timing = Timing()
    replica = _replica(_recovered())
    replica.on_view(_view(1, "a"))
    _ticks(replica, 0.0, 250.0)
    replica.on_view(_view(1, "a", version=2))
    assert _ticks(replica, 250.0, timing.grace_period_ms + 20.0)


def test_the_primary_of_a_new_epoch_gets_a_whole_period_to_be_heard() -> None:
    timing = Timing()
    replica = _replica(_recovered())
    replica.on_view(_view(1, "a", in_sync="abc"))
    _ticks(replica, 0.0, 200.0)
    replica.on_view(_view(2, "c", version=2, in_sync="bc"))
    assert _ticks(replica, 200.0, 190.0 + timing.grace_period_ms) == []
    assert _ticks(replica, 190.0 + timing.grace_period_ms, 220.0 + timing.grace_period_ms)


def test_a_take_over_without_outcome_is_proposed_again_a_heartbeat_later() -> None:
    """E3."""
    interval_ms = Timing().heartbeat_interval_ms
    replica, now_ms = _silent()
    replica.on_proposal_done(answered=False)
    [(again_ms, effect)] = _ticks(replica, now_ms, now_ms + 2 * interval_ms)
    assert effect == effects.Propose(TakeOver("b"), 1)
    assert again_ms >= now_ms + interval_ms


def test_a_take_over_without_outcome_is_settled_when_the_primary_has_come_back() -> None:
    """E3: it may commit yet, and until it is settled nothing may be promised."""
    interval_ms = Timing().heartbeat_interval_ms
    replica, now_ms = _silent()
    assert replica.state.proposal is not None
    assert replica.may_propose(replica.state.proposal, now_ms)
    replica.on_proposal_done(answered=False)
    replica.on_message("a", Heartbeat(1, 1, 1, 0), now_ms + 5)
    [(_, effect)] = _ticks(replica, now_ms + 5, now_ms + 2 * interval_ms)
    assert effect == effects.Propose(Confirm(), 1)


# decision 15: a take-over waits for consensus, and leaves only if it is still wanted


def _about_to_propose() -> tuple[Replica, float]:
    """As `_silent`, but the take-over has not left: consensus has not been heard yet."""
    replica = _replica(_recovered())
    _finish_writes(replica, replica.on_view(_view(1, "a")))
    _follow(replica, 1)
    now_ms = 0.0
    while replica.state.proposal is None:
        now_ms += 10.0
        replica.on_tick(now_ms)
    return replica, now_ms


def _proposal(replica: Replica) -> effects.Propose:
    assert replica.state.proposal is not None
    return replica.state.proposal


def test_a_take_over_does_not_leave_once_the_primary_is_heard_again() -> None:
    """D4: the promise that was given meanwhile would be broken; and it goes on being given."""
    replica, now_ms = _about_to_propose()
    replica.on_message("a", Heartbeat(1, 1, 1, 0), now_ms + 5)
    assert not replica.may_propose(_proposal(replica), now_ms + 10)
    replies = _replies(replica.on_message("a", Heartbeat(1, 1, 2, 0), now_ms + 15))
    assert [type(reply) for reply in replies] == [HeartbeatReply]


def test_a_take_over_does_not_leave_after_the_view_has_changed() -> None:
    replica, now_ms = _about_to_propose()
    replica.on_view(_view(1, "a", version=2))
    assert not replica.may_propose(_proposal(replica), now_ms + 10)


def test_a_take_over_does_not_leave_once_a_loss_is_known() -> None:
    """Rule e: this log may lack what was acknowledged."""
    replica, now_ms = _about_to_propose()
    replica.on_message("a", Probe(2, 1, "a", 5, commit_epoch=1, required=True), now_ms)
    _ticks(replica, now_ms, now_ms + 2 * Timing().grace_period_ms)
    assert not replica.may_propose(_proposal(replica), now_ms + 2 * Timing().grace_period_ms)


def test_a_proposal_that_has_ended_does_not_leave() -> None:
    replica, now_ms = _about_to_propose()
    ended = _proposal(replica)
    replica.on_proposal_done(answered=False)
    assert not replica.may_propose(ended, now_ms + 10)
