"""Guards that stand behind other guards: what a replica does if a peer breaks the rules."""

from __future__ import annotations

import pytest

from datapath.errors import LogCorruptError, SafetyError
from datapath.protocol import effects
from datapath.protocol.log_index import LogIndex
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
from datapath.protocol.state import RecoveredState, ReplicaState
from datapath.records import Record, make_record
from datapath.settings import Bounds, Timing
from election.view import Confirm, TakeOver, View
from tests.sim.members import make_member


def _recovered(last_index: int = 0, epoch: int = 0, commit_index: int = 0) -> RecoveredState:
    runs = [(epoch, 1)] if last_index else []
    return RecoveredState(
        log=LogIndex.from_runs(0, 0, last_index, runs),
        commit_index=commit_index,
        accepted_epoch=epoch,
        accepted_primary="a" if epoch else "",
    )


def _replica(recovered: RecoveredState) -> Replica:
    replica = Replica("b", "b.1", recovered, Timing(), Bounds(), 0.0)
    replica.on_consensus_heard()
    return replica


def _view(epoch: int, primary: str, version: int = 1, in_sync: str = "ab") -> View:
    return View(
        cluster_id="test",
        epoch=epoch,
        version=version,
        primary=primary,
        in_sync=tuple(in_sync),
        members=tuple(make_member(name) for name in "abc"),
    )


def _record(first_index: int, epoch: int, n_entries: int = 1, commit_index: int = 0) -> Record:
    return make_record(first_index, epoch, commit_index, [[(0, b"k", b"v")]] * n_entries)


def _replies(emitted: list[effects.Effect]) -> list[object]:
    return [effect.message for effect in emitted if isinstance(effect, effects.Reply)]


def _finish_writes(replica: Replica, emitted: list[effects.Effect]) -> list[effects.Effect]:
    """Make durable what the effects ask for."""
    tickets = [
        effect.ticket
        for effect in emitted
        if isinstance(
            effect,
            effects.WriteRecords
            | effects.TruncateLog
            | effects.RecordAccepted
            | effects.MarkIncomplete,
        )
    ]
    return replica.on_durable(max(tickets)) if tickets else []


def _follow(replica: Replica, epoch: int, session: int = 1, peer: str = "a") -> None:
    emitted = replica.on_message(peer, Probe(session, epoch, peer, 0), 1.0)
    _finish_writes(replica, emitted)


# E5, D3


def test_a_second_primary_for_one_epoch_is_refused() -> None:
    """E5."""
    replica = _replica(_recovered())
    _follow(replica, 3)
    emitted = replica.on_message("c", Probe(9, 3, "c", 0), 2.0)
    assert _replies(emitted) == [StaleEpoch(9, 3, "a")]
    assert (replica.state.accepted_epoch, replica.state.accepted_primary) == (3, "a")


def test_a_probe_in_the_name_of_another_is_ignored() -> None:
    replica = _replica(_recovered())
    assert replica.on_message("c", Probe(1, 3, "a", 0), 1.0) == []


def test_nothing_is_answered_before_the_accepted_epoch_is_durable() -> None:
    """E5."""
    replica = _replica(_recovered())
    emitted = replica.on_message("a", Probe(1, 3, "a", 0), 1.0)
    assert [type(effect) for effect in emitted] == [effects.RecordAccepted]
    assert _replies(replica.on_message("a", Heartbeat(1, 3, 1, 0), 2.0)) == []
    assert [type(item) for item in _replies(_finish_writes(replica, emitted))] == [ProbeReply]


def test_the_view_alone_makes_a_replica_accept_its_primary() -> None:
    """E5: so that its probe finds the record on the disk."""
    replica = _replica(_recovered())
    emitted = replica.on_view(_view(3, "a"))
    assert emitted == [effects.RecordAccepted(1, 3, "a")]
    assert _finish_writes(replica, emitted) == []
    emitted = replica.on_message("a", Probe(1, 3, "a", 0), 1.0)
    assert [type(item) for item in _replies(emitted)] == [ProbeReply]
    assert len(emitted) == 1


def test_a_probe_that_overtakes_the_record_of_the_view_waits_for_it() -> None:
    """E5."""
    replica = _replica(_recovered())
    accepting = replica.on_view(_view(3, "a"))
    assert replica.on_message("a", Probe(1, 3, "a", 0), 1.0) == []
    assert [type(item) for item in _replies(_finish_writes(replica, accepting))] == [ProbeReply]


def test_what_matched_one_primary_is_not_acknowledged_to_the_next() -> None:
    """D6: the next one, accepted by the view, may use the same session number by chance."""
    replica = _replica(_recovered())
    _follow(replica, 1)
    writing = replica.on_message("a", Append(1, 1, 0, 0, 0, [_record(1, 1).data]), 2.0)
    accepting = replica.on_view(_view(2, "c", in_sync="bc"))
    assert _finish_writes(replica, [*writing, *accepting]) == []
    assert replica.state.accepted_is_durable


def test_lower_epochs_are_refused_whatever_they_say() -> None:
    """D3."""
    replica = _replica(_recovered())
    _follow(replica, 3)
    for message in (Probe(5, 2, "c", 0), Append(5, 2, 0, 0, 0, []), Heartbeat(5, 2, 1, 0)):
        assert _replies(replica.on_message("c", message, 2.0)) == [StaleEpoch(5, 3, "a")]


def test_an_epoch_below_the_agreed_one_is_refused_before_its_primary_was_heard() -> None:
    """D3: the view is known, and its primary has not spoken yet."""
    replica = _replica(_recovered())
    _follow(replica, 3)
    replica.on_view(_view(4, "c", in_sync="bc"))
    assert _replies(replica.on_message("a", Heartbeat(1, 3, 1, 0), 2.0)) == [StaleEpoch(1, 4, "c")]


def test_a_primary_steps_down_when_it_is_told_of_a_higher_epoch() -> None:
    """D3."""
    replica = _replica(_recovered())
    replica.on_view(_view(1, "b"))
    assert replica.primary is not None
    emitted = replica.on_message("c", StaleEpoch(1, 2, "c"), 1.0)
    assert emitted == [effects.StepDown(1)]
    assert replica.role == "backup"


def test_an_epoch_that_was_accepted_for_another_cannot_become_its_own() -> None:
    replica = _replica(_recovered())
    _follow(replica, 3)
    replica.on_view(_view(3, "b"))
    assert replica.role == "backup"


def test_what_is_accepted_once_is_kept_and_recorded_once() -> None:
    """E5."""
    state = ReplicaState("b", "b.1", _recovered(), Timing(), Bounds(), 0.0)
    state.accept(3, "a")
    assert [type(effect) for effect in state.effects] == [effects.RecordAccepted]
    state.accept(3, "a")
    assert len(state.effects) == 1
    for epoch, primary in ((3, "c"), (2, "a"), (2, "c")):
        with pytest.raises(SafetyError, match="cannot be accepted"):
            state.accept(epoch, primary)
    assert (state.accepted_epoch, state.accepted_primary) == (3, "a")


def test_one_change_of_the_view_is_proposed_at_a_time() -> None:
    """E3: the outcome of the first is awaited."""
    state = ReplicaState("b", "b.1", _recovered(), Timing(), Bounds(), 0.0)
    state.propose(TakeOver("b"), 4)
    state.propose(Confirm(), 4)
    assert state.effects == [effects.Propose(TakeOver("b"), 4)]


# D6, D9


def test_committed_entries_are_never_cut() -> None:
    """D6: the impossible case stops the node, and keeps the data."""
    replica = _replica(_recovered(5, 1, commit_index=3))
    _follow(replica, 2)
    conflicting = Append(1, 2, 2, 1, 0, [_record(3, 2).data])
    with pytest.raises(SafetyError, match="committed"):
        replica.on_message("a", conflicting, 2.0)
    assert replica.state.log.last_index == 5


def test_entries_of_an_old_epoch_are_cut_where_a_higher_one_differs() -> None:
    """D6."""
    replica = _replica(_recovered(5, 1, commit_index=3))
    _follow(replica, 2)
    emitted = replica.on_message("a", Append(1, 2, 3, 1, 0, [_record(4, 2).data]), 2.0)
    assert [effect for effect in emitted if isinstance(effect, effects.TruncateLog)] == [
        effects.TruncateLog(2, 4)
    ]
    assert replica.state.log.last_position == (2, 4)
    assert replica.state.durable_index == 3


def test_entries_of_the_present_epoch_are_never_cut() -> None:
    replica = _replica(_recovered(5, 2, commit_index=1))
    _follow(replica, 2, session=2)
    with pytest.raises(SafetyError):
        replica.on_message("a", Append(2, 2, 3, 2, 0, [_record(4, 1).data]), 2.0)


def test_an_append_that_does_not_follow_tells_the_primary_what_is_held() -> None:
    replica = _replica(_recovered(5, 1, commit_index=3))
    _follow(replica, 2)
    emitted = replica.on_message("a", Append(1, 2, 9, 1, 0, [_record(10, 2).data]), 2.0)
    assert [type(item) for item in _replies(emitted)] == [ProbeReply]
    assert replica.state.log.last_index == 5


def test_records_are_acknowledged_when_they_are_durable_and_not_before() -> None:
    """D9."""
    replica = _replica(_recovered())
    _follow(replica, 1)
    emitted = replica.on_message("a", Append(1, 1, 0, 0, 0, [_record(1, 1, 3).data]), 2.0)
    assert _replies(emitted) == [AppendReply(1, 1, 0)]
    assert _replies(_finish_writes(replica, emitted)) == [AppendReply(1, 1, 3)]


def test_a_record_that_was_damaged_on_its_way_is_not_written() -> None:
    replica = _replica(_recovered())
    _follow(replica, 1)
    data = bytearray(_record(1, 1, 3).data)
    data[-1] ^= 1
    with pytest.raises(LogCorruptError):
        replica.on_message("a", Append(1, 1, 0, 0, 0, [bytes(data)]), 2.0)
    assert replica.state.log.last_index == 0


def test_a_backup_commits_only_what_matches_and_is_durable() -> None:
    """D2."""
    replica = _replica(_recovered(5, 1))
    _follow(replica, 1, session=2)
    assert replica.state.commit_index == 0
    replica.on_message("a", Heartbeat(2, 1, 1, 5), 2.0)
    assert replica.state.commit_index == 0  # it is not known yet to hold the same entries
    replica.on_message("a", Append(2, 1, 4, 1, 5, []), 3.0)
    assert replica.state.commit_index == 4


def test_the_commit_index_cannot_go_beyond_the_log() -> None:
    state = ReplicaState("a", "a.1", _recovered(5, 1), Timing(), Bounds(), 0.0)
    with pytest.raises(SafetyError):
        state.commit_to(6)
    state.commit_to(4)
    state.commit_to(2)
    assert state.commit_index == 4


def test_a_primary_stops_if_a_backup_has_committed_more_than_it_holds() -> None:
    replica = _replica(_recovered())
    _finish_writes(replica, replica.on_view(_view(1, "b")))
    replica.on_link("a")
    reply = ProbeReply(1, 1, "a.1", 1, 7, 1, 7, [], tail_cut=False, incomplete=False)
    emitted = replica.on_message("a", reply, 400.0)
    assert not replica.may_serve(400.0)
    with pytest.raises(SafetyError, match="committed"):
        _finish_writes(replica, emitted)


# Rule e: what a replica was told of its loss


def _told(replica: Replica, commit_index: int, commit_epoch: int) -> list[effects.Effect]:
    probe = Probe(1, 3, "a", commit_index, commit_epoch=commit_epoch, required=True)
    return replica.on_message("a", probe, 1.0)


@pytest.mark.parametrize(("index", "epoch"), [(8, 1), (7, 2)], ids=["shorter", "another"])
def test_a_probe_is_not_answered_before_the_loss_that_it_told_of_is_durable(
    index: int, epoch: int
) -> None:
    """No tail was cut, so the log looks sound: an old copy of the directory, perhaps."""
    replica = _replica(_recovered(7, 1, 3))
    emitted = _told(replica, index, epoch)
    accept = next(item for item in emitted if isinstance(item, effects.RecordAccepted))
    mark = next(item for item in emitted if isinstance(item, effects.MarkIncomplete))
    assert accept.ticket < mark.ticket
    assert not _replies(replica.on_durable(accept.ticket))
    (answer,) = _replies(replica.on_durable(mark.ticket))
    assert isinstance(answer, ProbeReply)
    assert answer.incomplete


@pytest.mark.parametrize(("index", "epoch"), [(7, 1), (5, 1), (3, 1), (0, 0)])
def test_a_replica_that_holds_what_is_committed_is_not_damaged(index: int, epoch: int) -> None:
    replica = _replica(_recovered(7, 1, 3))
    _told(replica, index, epoch)
    assert not replica.state.incomplete


def test_a_replica_that_has_trimmed_what_the_primary_knows_to_be_committed_is_not_damaged() -> None:
    """The primary has just restarted, and knows less than all that had committed."""
    recovered = _recovered(7, 1, 6)
    recovered.log.trim(6)
    replica = _replica(recovered)
    _told(replica, 3, 1)
    assert not replica.state.incomplete


def test_a_learner_lacks_what_is_committed_and_is_not_damaged() -> None:
    replica = _replica(_recovered(7, 1, 3))
    replica.on_message("a", Probe(1, 3, "a", 100, commit_epoch=1), 1.0)
    assert not replica.state.incomplete


def test_a_snapshot_older_than_what_is_committed_is_never_put_in_place() -> None:
    state = ReplicaState("b", "b.1", _recovered(5, 1, commit_index=4), Timing(), Bounds(), 0.0)
    with pytest.raises(SafetyError, match="older"):
        state.reset_to_snapshot(3, 1)
    state.reset_to_snapshot(4, 1)
    assert state.log.last_index == 4


# D4


def test_backups_take_over_one_after_the_other_in_the_configured_order() -> None:
    timing = Timing()
    for order, turn in (({}, 0), ({"b": 2, "c": 1}, 1)):
        replica = Replica("b", "b.1", _recovered(), timing, Bounds(), 0.0, dict(order))
        replica.on_view(_view(1, "a", in_sync="abc"))
        due_ms = timing.grace_period_ms + turn * timing.takeover_stagger_ms
        for now_ms in range(0, due_ms, 10):
            assert replica.on_tick(float(now_ms)) == []
        assert replica.on_tick(float(due_ms)) == [effects.Propose(TakeOver("b"), 1)]


def test_a_promise_is_kept_for_a_whole_grace_period() -> None:
    """D4."""
    timing = Timing()
    replica = _replica(_recovered())
    _finish_writes(replica, replica.on_view(_view(1, "a")))
    _follow(replica, 1)
    emitted = replica.on_message("a", Heartbeat(1, 1, 1, 0), 50.0)
    assert [type(item) for item in _replies(emitted)] == [HeartbeatReply]
    for now_ms in range(60, 50 + timing.grace_period_ms, 10):
        emitted = replica.on_tick(float(now_ms))
        assert not any(isinstance(effect, effects.Propose) for effect in emitted)
    emitted = replica.on_tick(50.0 + timing.grace_period_ms + 1)
    assert any(isinstance(effect, effects.Propose) for effect in emitted)


def test_a_learner_proposes_itself_for_nothing() -> None:
    """E1."""
    replica = _replica(_recovered())
    replica.on_view(_view(1, "a", in_sync="ac"))
    for now_ms in range(0, 5000, 20):
        assert replica.on_tick(float(now_ms)) == []


def test_a_replica_that_stood_still_waits_a_whole_period_more() -> None:
    replica = _replica(_recovered())
    replica.on_view(_view(1, "a"))
    _follow(replica, 1)
    assert replica.on_tick(5000.0) == []
    assert replica.on_tick(5050.0) == []


def test_a_primary_takes_no_snapshot() -> None:
    replica = _replica(_recovered())
    replica.on_view(_view(1, "b"))
    assert replica.start_install(10, 1)
    with pytest.raises(SafetyError):
        replica.on_snapshot_installed(10, 1)


def test_while_a_snapshot_is_installed_no_view_makes_the_replica_primary() -> None:
    replica = _replica(_recovered())
    assert replica.start_install(10, 1) == ""
    replica.on_view(_view(2, "b"))
    assert replica.role == "backup"
    assert replica.start_install(12, 1)  # one at a time
    replica.on_install_failed()
    assert replica.start_install(12, 1) == ""
