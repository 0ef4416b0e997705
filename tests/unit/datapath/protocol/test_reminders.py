"""What another node remembers of this one, and whether it has gone back (decision 18)."""

from __future__ import annotations

import pytest

from datapath.errors import SafetyError
from datapath.protocol import effects
from datapath.protocol.log_index import LogIndex
from datapath.protocol.messages import Append, Probe, ProbeReply
from datapath.protocol.replica import Replica
from datapath.settings import Bounds, Timing
from election.view import TakeOver
from tests.unit.datapath.protocol.test_primary_guards import Lead
from tests.unit.datapath.protocol.test_replica_guards import (
    _finish_writes,
    _follow,
    _record,
    _recovered,
    _replica,
    _replies,
    _view,
)


@pytest.mark.parametrize(
    ("epoch", "index"), [(1, 8), (2, 7), (2, 5), (3, 100)], ids=["shorter", "other", "cut", "far"]
)
def test_a_replica_that_lacks_what_it_had_committed_is_damaged(epoch: int, index: int) -> None:
    replica = _replica(_recovered(7, 1, 3))
    emitted = replica.on_reminder(epoch, index)
    assert [type(effect) for effect in emitted] == [effects.MarkIncomplete]
    assert replica.state.incomplete
    assert replica.on_reminder(epoch, index) == []


@pytest.mark.parametrize(("epoch", "index"), [(0, 0), (1, 2), (1, 3), (1, 5), (1, 7)])
def test_a_replica_that_holds_what_it_had_committed_is_not(epoch: int, index: int) -> None:
    """After a restart it may know less to be committed than it did: the entries are there."""
    replica = _replica(_recovered(7, 1, 3))
    assert replica.on_reminder(epoch, index) == []
    assert not replica.state.incomplete


def test_a_replica_that_has_trimmed_its_log_is_not_damaged() -> None:
    recovered = _recovered(7, 1, 6)
    recovered.log.trim(6)
    replica = _replica(recovered)
    replica.on_reminder(1, 3)
    assert not replica.state.incomplete


def test_a_replica_that_was_brought_up_by_a_snapshot_is_not_damaged() -> None:
    replica = _replica(_recovered(7, 1, 7))
    assert replica.start_install(20, 3) == ""
    assert not replica.on_reminder(1, 7)
    replica.on_snapshot_installed(20, 3)
    assert replica.state.committed_position == (3, 20)
    for position in ((1, 7), (1, 9), (3, 20)):
        assert not replica.on_reminder(*position)


def test_a_tail_that_was_cut_by_a_primary_of_a_higher_epoch_was_never_told() -> None:
    replica = _replica(_recovered(7, 1, 3))
    told = replica.state.committed_position
    emitted = replica.on_message("a", Probe(1, 2, "a", 3, commit_epoch=1), 1.0)
    _finish_writes(replica, emitted)
    append = Append(1, 2, 5, 1, 3, [_record(6, 2).data])
    _finish_writes(replica, replica.on_message("a", append, 2.0))
    assert replica.state.log.epoch_at(7) is None
    replica.on_reminder(*told)
    assert not replica.state.incomplete


def test_entries_that_the_cluster_has_given_up_are_not_missed() -> None:
    """Who held them was removed by force; what is committed of a later epoch stands without."""
    recovered = _recovered(5, 1, 5)
    recovered.log.append(6, 6, 4)
    replica = _replica(recovered)
    replica.state.commit_index = 6
    assert not replica.on_reminder(1, 100)
    assert replica.on_reminder(4, 100)


def test_what_is_told_is_durable() -> None:
    recovered = _recovered(7, 1, 3)
    replica = _replica(recovered)
    assert replica.state.committed_position == (1, 3)
    replica.state.commit_index, replica.state.durable_index = 7, 5
    assert replica.state.committed_position == (1, 5)


def test_a_damaged_replica_does_not_propose_itself_though_it_was_about_to() -> None:
    """The reminder has come between its wish and the answer of consensus."""
    replica = _replica(_recovered(7, 1, 3))
    replica.on_view(_view(1, "a"))
    wish = None
    now_ms = 0.0
    while wish is None:
        now_ms += 20.0
        emitted = replica.on_tick(now_ms)
        wish = next((item for item in emitted if isinstance(item, effects.Propose)), None)
    assert isinstance(wish.change, TakeOver)
    replica.on_reminder(1, 9)
    assert not replica.may_propose(wish, now_ms)


def test_a_probe_is_not_answered_before_the_mark_is_durable() -> None:
    replica = _replica(_recovered(7, 1, 3))
    (mark,) = replica.on_reminder(1, 9)
    accepting = replica.on_message("a", Probe(1, 2, "a", 3, commit_epoch=1), 1.0)
    assert not _replies(accepting)
    assert isinstance(mark, effects.MarkIncomplete)
    (answer,) = _replies(_finish_writes(replica, accepting))
    assert isinstance(answer, ProbeReply)
    assert answer.incomplete


def test_a_replica_that_was_caught_up_is_sound_again() -> None:
    replica = _replica(_recovered(7, 1, 7))
    _finish_writes(replica, replica.on_reminder(1, 8))
    _follow(replica, 2)
    append = Append(1, 2, 7, 1, 9, [_record(8, 1).data, _record(9, 2).data])
    _finish_writes(replica, replica.on_message("a", append, 2.0))
    assert not replica.state.incomplete
    replica.on_reminder(1, 8)
    assert not replica.state.incomplete


@pytest.mark.parametrize("answered", ["", "a"], ids=["matching", "open"])
def test_a_primary_notes_it_and_stops(answered: str) -> None:
    lead = Lead(answered=answered)
    assert lead.primary.is_open == bool(answered)
    emitted = lead.replica.on_reminder(1, 100)
    assert not lead.replica.may_serve(lead.now_ms)
    assert not lead.replica.may_execute()
    with pytest.raises(SafetyError, match="another node remembers that b had committed entry 100"):
        lead.write(emitted)


def test_a_view_does_not_make_a_primary_of_a_replica_that_has_gone_back() -> None:
    replica = _replica(_recovered(7, 1, 3))
    replica.on_reminder(1, 9)
    replica.on_view(_view(2, "b"))
    assert replica.primary is None


def test_a_view_that_others_tell_makes_no_primary_before_consensus_was_heard() -> None:
    """Its directory may be older than the epoch, which it would open a second time."""
    replica = Replica("b", "b.1", _recovered(7, 1, 7), Timing(), Bounds(), 0.0)
    view = _view(2, "b", in_sync="b")
    replica.on_view(view)
    assert replica.primary is None
    emitted = replica.on_tick(20.0)
    assert [type(effect) for effect in emitted] == [effects.Propose], "it proposes itself anew"
    replica.on_consensus_heard()
    replica.on_view(_view(3, "b", version=2, in_sync="b"))
    assert replica.primary is not None


def test_the_log_index_is_compared_where_it_begins() -> None:
    replica = _replica(_recovered())
    replica.state.log = LogIndex(9, 2, 9)
    replica.state.commit_index = replica.state.durable_index = 9
    assert not replica.on_reminder(2, 9)
    assert not replica.on_reminder(1, 8)
