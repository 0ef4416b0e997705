"""What a primary ignores, puts off and refuses: its conditions, one by one (`sim/guards.py`)."""

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
from datapath.protocol.primary import Primary
from datapath.protocol.replica import Replica
from datapath.protocol.state import RecoveredState
from datapath.settings import Timing
from election.view import AddToInSync, Confirm, Handover, RemoveFromInSync
from tests.sim.members import make_witness
from tests.unit.datapath.protocol.test_replica_guards import (
    _finish_writes,
    _record,
    _recovered,
    _replica,
    _view,
)

TIMING = Timing()


class Lead:
    """Replica "b", the primary of epoch 1, with streams to "a" and "c"; time is set by hand.

    It was handed over to "b", which therefore waits for no promise of its own.
    """

    def __init__(
        self, in_sync: str = "ab", *, answered: str = "", recovered: RecoveredState | None = None
    ) -> None:
        self.replica: Replica = _replica(recovered or _recovered())
        self.now_ms = 0.0
        self.sessions = {"a": 1, "c": 2}
        for peer in self.sessions:
            self.replica.on_link(peer)
        view = msgspec.structs.replace(_view(1, "b", in_sync=in_sync), handed_over=True)
        self.write(self.replica.on_view(view))
        for peer in answered:
            self.match(peer)

    @property
    def primary(self) -> Primary:
        assert self.replica.primary is not None
        return self.replica.primary

    @property
    def last_index(self) -> int:
        return self.replica.state.log.last_index

    @property
    def commit_index(self) -> int:
        return self.replica.state.commit_index

    def write(self, emitted: list[effects.Effect]) -> list[effects.Effect]:
        """Make durable what the effects ask for, and what follows; return all."""
        found, more = list(emitted), emitted
        while more := _finish_writes(self.replica, more):
            found += more
        return found

    def tick(self, now_ms: float) -> list[effects.Effect]:
        """Let time pass, in steps too short for a stall."""
        found: list[effects.Effect] = []
        while self.now_ms < now_ms:
            self.now_ms = min(now_ms, self.now_ms + 20.0)
            found += self.write(self.replica.on_tick(self.now_ms))
        return found

    def append(self) -> list[effects.Effect]:
        """Execute something."""
        record = _record(self.replica.next_index, 1)
        return self.write(self.replica.append(record))

    def hear(self, peer: str, message: object) -> list[effects.Effect]:
        """A message comes from a peer."""
        return self.replica.on_message(peer, message, self.now_ms)  # type: ignore[arg-type]

    def probed(
        self,
        peer: str,
        last_index: int = 0,
        commit_index: int = 0,
        epoch: int = 0,
        *,
        incomplete: bool = False,
    ) -> list[effects.Effect]:
        """A peer answers its probe: it holds so much, of that epoch."""
        runs = [(epoch, commit_index + 1)] if last_index > commit_index else []
        return self.hear(
            peer,
            ProbeReply(
                self.sessions[peer], 1, f"{peer}.1", 1, last_index, epoch, commit_index, runs,
                tail_cut=False, incomplete=incomplete,
            ),
        )  # fmt: skip

    def match(self, peer: str) -> None:
        """A peer answers its probe, acknowledges everything, and promises."""
        self.probed(peer)
        self.hear(peer, AppendReply(self.sessions[peer], 1, self.last_index))
        self.promise(peer)

    def promise(self, peer: str, *, writable: bool = True) -> None:
        """A peer answers the newest heartbeat that it was sent."""
        heartbeats = self.primary.peers[peer]._heartbeats
        number = heartbeats[-1][0] if heartbeats else self.primary.heartbeats.sequence
        session = self.sessions[peer]
        self.hear(peer, HeartbeatReply(session, 1, number, 0, self.last_index, writable))


def _sent(emitted: list[effects.Effect], kind: type) -> list[str]:
    """To whom messages of a kind leave."""
    return [e.peer for e in emitted if isinstance(e, effects.Send) and isinstance(e.message, kind)]


def _proposed(emitted: list[effects.Effect]) -> list[object]:
    return [effect.change for effect in emitted if isinstance(effect, effects.Propose)]


# of whom and when an answer counts


def test_only_an_answer_of_this_epoch_and_stream_counts() -> None:
    """D1, D3."""
    lead = Lead()
    lead.probed("a")
    lead.hear("a", AppendReply(9, 1, lead.last_index))
    lead.hear("a", AppendReply(1, 2, lead.last_index))
    lead.hear("c", AppendReply(1, 1, lead.last_index))
    lead.hear("d", AppendReply(1, 1, lead.last_index))
    assert lead.commit_index == 0
    lead.hear("a", AppendReply(1, 1, lead.last_index))
    assert lead.commit_index == lead.last_index == 1


def test_an_answer_after_the_stream_is_gone_counts_for_nothing() -> None:
    lead = Lead()
    lead.probed("a")
    lead.replica.on_link_lost("a")
    lead.hear("a", AppendReply(1, 1, lead.last_index))
    lead.hear("a", AppendReply(0, 1, lead.last_index))
    lead.hear("a", HeartbeatReply(0, 1, lead.primary.heartbeats.sequence, 0, 1, writable=True))
    assert lead.commit_index == 0
    assert lead.primary.peers["a"].lease_start_ms is None


def test_to_a_lost_stream_nothing_is_sent_until_the_next_is_probed() -> None:
    lead = Lead(answered="a")
    lead.replica.on_link_lost("a")
    assert _sent(lead.append(), Append) == []
    assert _sent(lead.tick(lead.now_ms + 60), Heartbeat) == []
    assert _sent(lead.replica.on_link("a"), Probe) == ["a"]


def test_a_primary_is_not_deposed_by_a_refusal_of_its_own_or_an_older_epoch() -> None:
    lead = Lead(answered="a")
    for epoch in (0, 1):
        assert lead.hear("a", StaleEpoch(1, epoch, "c")) == []
    assert lead.replica.primary is not None


def test_a_primary_is_not_deposed_by_messages_of_its_own_or_an_older_epoch() -> None:
    """D3: they are refused."""
    lead = Lead(answered="a")
    for epoch in (0, 1):
        emitted = lead.hear("a", Probe(7, epoch, "a", 0))
        assert emitted == [effects.Reply("a", StaleEpoch(7, 1, "b"))]
    assert lead.replica.primary is not None


def test_a_damaged_replica_does_not_become_the_primary_that_a_view_names() -> None:
    """Rule e."""
    replica = _replica(msgspec.structs.replace(_recovered(3, 1), incomplete=True))
    assert replica.on_view(_view(2, "b")) == []
    assert replica.role == "backup"


def test_what_was_executed_in_another_epoch_is_not_recorded() -> None:
    """D2, D6: it rests on entries that may be gone."""
    lead = Lead(answered="a")
    with pytest.raises(SafetyError, match="outside its epoch"):
        lead.replica.append(_record(lead.replica.next_index, 2))


def test_a_backup_executes_nothing() -> None:
    replica = _replica(_recovered())
    replica.on_view(_view(1, "a"))
    assert not replica.may_execute()
    assert not replica.may_serve(10.0)


def test_a_primary_says_on_how_many_copies_it_commits() -> None:
    """D1: its own, those in sync, and one that is being added."""
    assert not Lead(in_sync="b").primary.in_sync.required
    lead = Lead(in_sync="ab", answered="ac")
    assert len(lead.primary.in_sync.required) == 1
    assert _proposed(lead.tick(lead.now_ms + 20)) == [AddToInSync("c")]
    assert len(lead.primary.in_sync.required) == 2


def test_a_backup_hands_nothing_over() -> None:
    replica = _replica(_recovered())
    replica.on_view(_view(1, "a"))
    assert replica.start_handover("b", 500) == ("this node is not the primary", [])


def test_what_comes_for_the_role_that_has_ended_is_dropped() -> None:
    backup = _replica(_recovered())
    backup.on_view(_view(1, "a"))
    assert backup.on_snapshot_sent("a", 1, done=True) == []
    assert backup.on_log_read("a", 1, []) == []
    assert Lead(answered="a").replica.advance_commit(1, 1) == []


def test_a_primary_and_a_replica_that_installs_one_say_why_they_take_no_snapshot() -> None:
    assert "is a primary" in Lead().replica.start_install(10, 1)
    backup = _replica(_recovered())
    assert backup.start_install(10, 1) == ""
    assert "another one" in backup.start_install(10, 1)


def test_nothing_is_recorded_before_the_epoch_is_open_nor_while_it_is_handed_over() -> None:
    """D6, D2."""
    lead = Lead()
    assert lead.primary.stage == "open"
    with pytest.raises(SafetyError, match="outside its epoch"):
        lead.append()
    lead.match("a")
    lead.append()
    lead.replica.start_handover("a", 500)
    with pytest.raises(SafetyError, match="outside its epoch"):
        lead.append()


def _suspect() -> Lead:
    """A primary whose log's tail was cut: it has entries 1 to 3, and waits for "a"."""
    recovered = msgspec.structs.replace(_recovered(3, 0, commit_index=2), tail_cut=True)
    lead = Lead(in_sync="ab", recovered=recovered)
    assert lead.primary.stage == "matching"
    return lead


def test_whose_log_goes_further_is_not_made_to_follow_a_cut_one() -> None:
    """Rule e: what stands there may have been acknowledged."""
    lead = _suspect()
    assert _sent(lead.probed("c", 7, 2), Append) == []
    emitted = lead.probed("a", 7, 2)
    assert _sent(emitted, Append) == []
    assert lead.replica.state.proposal is None  # what is missing here is noted first
    assert _sent(lead.write(emitted), Append) == []
    assert lead.replica.state.proposal == effects.Propose(Handover("a"), 1)


def test_whose_log_went_further_is_asked_anew_when_the_cut_one_has_opened() -> None:
    """Rule e: all in sync have less, so what it holds was never acknowledged."""
    lead = _suspect()
    lead.probed("c", 7, 2)
    emitted = lead.probed("a", 3, 2)
    assert lead.primary.stage == "open"
    assert [effect.peer for effect in emitted if isinstance(effect, effects.CloseLink)] == ["c"]
    assert lead.replica.state.proposal is None


def test_a_cut_log_yields_to_nobody_who_is_damaged() -> None:
    """Rule e: it would not take the epoch, and nobody would serve."""
    lead = _suspect()
    lead.probed("a", 7, 2, incomplete=True)
    lead.replica.on_durable(1_000_000)
    lead.tick(lead.now_ms + 20)
    assert lead.replica.state.proposal is None
    assert lead.primary.stage == "matching"


def test_nothing_leaves_before_the_epoch_is_durable_whatever_else_is() -> None:
    """Rule c: an older write's sync ends before that of the record."""
    replica = _replica(_recovered())
    writing = replica.on_view(_view(1, "a"))
    replica.on_link("c")
    becoming = replica.on_view(_view(2, "b", version=2, in_sync="bc"))
    assert _finish_writes(replica, writing) == []
    assert _sent(_finish_writes(replica, becoming), Probe) == ["c"]


def test_nobody_is_accused_before_the_epoch_is_durable() -> None:
    """Rule c: nobody has been asked yet."""
    replica = _replica(_recovered())
    replica.on_view(_view(1, "b"))
    for now_ms in range(20, 1000, 20):
        assert replica.on_tick(float(now_ms)) == []


def test_what_older_epochs_left_commits_together_with_the_opening_entry() -> None:
    """D6."""
    replica = _replica(_recovered(3, 1, commit_index=1))
    _finish_writes(replica, replica.on_view(_view(2, "b", version=2)))
    replica.on_link("a")
    reply = ProbeReply(1, 2, "a.1", 1, 3, 1, 1, [(1, 2)], tail_cut=False, incomplete=False)
    replica.on_message("a", reply, 10.0)
    replica.on_message("a", AppendReply(1, 2, 3), 20.0)
    assert replica.state.commit_index == 1  # it has not opened: its own promises stand
    emitted: list[effects.Effect] = []
    for now_ms in range(40, TIMING.grace_period_ms + 40, 20):
        emitted += replica.on_tick(float(now_ms))
    _finish_writes(replica, emitted)
    assert replica.state.log.last_index == replica.state.durable_index == 4
    assert replica.state.commit_index == 1
    replica.on_message("a", AppendReply(1, 2, 4), float(TIMING.grace_period_ms + 40))
    assert replica.state.commit_index == 4


def test_a_primary_that_lacks_what_is_committed_neither_opens_nor_removes_who_has_it() -> None:
    """Rule e, E1: while the note of its loss is on its way to the disk. Then it stops."""
    replica = _replica(_recovered(3, 1, commit_index=1))
    _finish_writes(replica, replica.on_view(_view(2, "b", version=2)))
    replica.on_link("a")
    reply = ProbeReply(1, 2, "a.1", 1, 7, 1, 7, [], tail_cut=False, incomplete=False)
    emitted = replica.on_message("a", reply, 10.0)
    assert any(isinstance(effect, effects.MarkIncomplete) for effect in emitted)
    later: list[effects.Effect] = []
    for now_ms in range(20, 2 * TIMING.grace_period_ms, 20):
        later += replica.on_tick(float(now_ms))
    assert not any(isinstance(effect, effects.StartEpoch | effects.ClearMarks) for effect in later)
    assert _proposed(later) == []
    with pytest.raises(SafetyError, match="holds entries only up to 3"):
        _finish_writes(replica, emitted)


@pytest.mark.parametrize(
    ("epoch", "version", "is_first"),
    [(1, 1, True), (1, 3, True), (1_000_007, 1, False), (2, 2, False), (1_000_007, 2, False)],
)
def test_only_the_first_epoch_of_a_cluster_has_no_promise_to_wait_for(
    epoch: int, version: int, is_first: bool
) -> None:
    """Rule a: made of kept data (B2), it is not the first that its replicas may have promised."""
    replica = _replica(_recovered(0, 0))
    _finish_writes(replica, replica.on_view(_view(epoch, "b", version=version, in_sync="b")))
    assert replica.primary is not None
    assert (replica.primary.stage == "open") == is_first
    opened = replica.on_tick(float(TIMING.grace_period_ms))
    assert any(isinstance(effect, effects.StartEpoch) for effect in opened) != is_first


def test_a_witness_is_no_peer_of_the_replicas() -> None:
    view = _view(1, "b")
    replica = _replica(_recovered())
    replica.on_view(msgspec.structs.replace(view, members=(*view.members, make_witness("w"))))
    assert replica.primary is not None
    assert set(replica.primary.peers) == {"a", "c"}


# sending


def _learner_read_from_disk() -> Lead:
    """A primary that reads for "c", a learner, from the log's first entry on."""
    lead = Lead(answered="a")
    lead.primary.replication.recent.clear()
    assert [type(e) for e in lead.probed("c") if isinstance(e, effects.ReadLog)] == [
        effects.ReadLog
    ]
    return lead


def test_records_are_sent_in_messages_of_a_bounded_size() -> None:
    lead = Lead(answered="a")
    bounds = lead.replica.state.bounds
    size_bytes = len(lead.primary.replication.recent[0].data)
    lead.replica.state.bounds = msgspec.structs.replace(bounds, max_append_bytes=2 * size_bytes)
    for _ in range(6):
        lead.append()
    for effect in lead.probed("c"):
        if isinstance(effect, effects.Send) and isinstance(effect.message, Append):
            assert len(effect.message.records) <= 2


def test_the_records_that_are_kept_to_be_sent_are_bounded() -> None:
    lead = Lead(answered="a")
    bounds = lead.replica.state.bounds
    size_bytes = len(lead.primary.replication.recent[0].data)
    for bound, kept in ((3 * size_bytes, 2), (1, 1)):
        lead.replica.state.bounds = msgspec.structs.replace(bounds, recent_records_bytes=bound)
        for _ in range(6):
            lead.append()
            lead.hear("a", AppendReply(1, 1, lead.last_index))
        assert len(lead.primary.replication.recent) == kept


def test_a_record_larger_than_a_message_is_sent_alone() -> None:
    lead = Lead(answered="a")
    bounds = lead.replica.state.bounds
    lead.replica.state.bounds = msgspec.structs.replace(bounds, max_append_bytes=1)
    assert _sent(lead.probed("c"), Append).count("c") == 1 + lead.last_index


def test_what_comes_for_a_member_that_has_been_removed_is_dropped() -> None:
    lead = Lead(answered="a")
    assert lead.replica.on_snapshot_sent("d", 1, done=True) == []
    assert lead.replica.on_log_read("d", 1, []) == []


def test_a_primary_whose_disk_hangs_asks_nobody_for_a_promise() -> None:
    """D4: so that another may take over."""
    lead = Lead(answered="a")
    lead.replica.on_tick(lead.now_ms + 10, disk_stalled=True)
    assert _sent(lead.probed("c"), Heartbeat) == []


def test_a_log_that_is_not_retained_or_has_changed_under_a_read_is_not_sent() -> None:
    lead = _learner_read_from_disk()
    emitted = lead.replica.on_log_read("c", 2, None)
    assert [e.peer for e in emitted if isinstance(e, effects.SendSnapshot)] == ["c"]
    for records in ([], [_record(7, 1)]):
        lead = _learner_read_from_disk()
        emitted = lead.replica.on_log_read("c", 2, records)
        assert [type(effect) for effect in emitted] == [effects.CloseLink]


def test_records_whose_predecessor_was_trimmed_are_not_sent() -> None:
    """What they follow could not be compared (D6)."""
    lead = _learner_read_from_disk()
    lead.replica.on_log_trimmed(2)
    emitted = lead.replica.on_log_read("c", 2, [_record(1, 1)])
    assert [type(effect) for effect in emitted] == [effects.SendSnapshot]


# the view


def test_a_proposal_without_outcome_is_made_again_a_heartbeat_later() -> None:
    """E3."""
    lead = Lead(in_sync="abc", answered="ac")
    proposals: list[object] = []
    while not proposals:
        lead.promise("c")
        proposals = _proposed(lead.tick(lead.now_ms + 20))
    assert proposals == [RemoveFromInSync(("a",))]
    ended_ms = lead.now_ms
    lead.replica.on_proposal_done(answered=False)
    proposals = []
    while not proposals:
        lead.promise("c")
        proposals = _proposed(lead.tick(lead.now_ms + 10))
    assert proposals == [RemoveFromInSync(("a",))]
    assert ended_ms + TIMING.heartbeat_interval_ms <= lead.now_ms <= ended_ms + 100


def test_only_one_change_is_under_way_at_a_time() -> None:
    lead = Lead(in_sync="abc", answered="ac")
    changes = _proposed(lead.tick(lead.now_ms + 2 * TIMING.suspect_after_ms))
    assert len(changes) == 1


def test_an_in_sync_replica_is_sent_no_snapshot_before_it_is_removed() -> None:
    """E1: what it holds counts, and it may take over at any moment."""
    lead = Lead(in_sync="ab")
    lead.replica.state.log.trim(lead.last_index + 1)  # as if all was trimmed
    assert not any(isinstance(effect, effects.SendSnapshot) for effect in lead.probed("a"))
    assert _proposed(lead.tick(lead.now_ms + 20)) == [RemoveFromInSync(("a",))]
    emitted = lead.replica.on_view(_view(1, "b", version=2, in_sync="b"))
    assert [e.peer for e in emitted if isinstance(e, effects.SendSnapshot)] == ["a"]


def test_one_snapshot_is_sent_to_a_replica_at_a_time() -> None:
    lead = Lead(in_sync="ab", answered="a")
    lead.replica.state.log.trim(lead.last_index + 1)
    assert any(isinstance(effect, effects.SendSnapshot) for effect in lead.probed("c"))
    assert lead.primary.peers["c"].state == "snapshot"
    assert not any(isinstance(effect, effects.SendSnapshot) for effect in lead.probed("c"))
    lead.replica.on_snapshot_sent("c", 2, done=False)
    lead.replica.on_link("c")
    lead.sessions["c"] = 3
    assert any(isinstance(effect, effects.SendSnapshot) for effect in lead.probed("c"))


def test_a_primary_that_let_go_takes_its_role_up_again_when_consensus_answers() -> None:
    lead = Lead(in_sync="ab", answered="a")
    lead.tick(lead.now_ms + TIMING.suspect_after_ms + TIMING.view_change_timeout_ms + 100)
    assert _sent(lead.tick(lead.now_ms + 100), Heartbeat) == []
    lead.replica.on_proposal_done(answered=True)
    assert "a" in _sent(lead.tick(lead.now_ms + 100), Heartbeat)


def test_a_replica_whose_disk_is_full_leaves_and_does_not_join() -> None:
    """D5."""
    lead = Lead(in_sync="ab", answered="ac")
    lead.promise("c", writable=False)
    lead.replica.on_proposal_done(answered=True)
    assert _proposed(lead.tick(lead.now_ms + 40)) == []
    lead.promise("a", writable=False)
    assert _proposed(lead.tick(lead.now_ms + 40)) == [RemoveFromInSync(("a",))]


def test_another_is_not_added_before_it_is_known_whether_the_first_one_was() -> None:
    """D1, E3: the first may be in sync by now, and commits would no longer wait for it."""
    lead = Lead(in_sync="b", answered="ac")
    assert _proposed(lead.tick(lead.now_ms + 20)) == [AddToInSync("a")]
    lead.replica.on_proposal_done(answered=False)
    proposals: list[object] = []
    for _ in range(10):  # only the other one is heard from here on
        lead.promise("c")
        if found := _proposed(lead.tick(lead.now_ms + 20)):
            proposals += found
            lead.replica.on_proposal_done(answered=False)
    assert set(proposals) == {AddToInSync("a")}
    assert lead.primary.in_sync.required == {"a"}


def test_who_was_not_heard_for_half_the_time_of_suspicion_does_not_join() -> None:
    """Commits would need it, while it may be about to be removed."""
    lead = Lead(in_sync="ab", answered="ac")
    lead.replica.state.propose(Confirm(), 1)  # nothing else is proposed meanwhile
    assert TIMING.suspect_after_ms < TIMING.lease_duration_ms
    lead.tick(lead.now_ms + TIMING.suspect_after_ms / 2)
    lead.replica.on_proposal_done(answered=True)
    assert _proposed(lead.tick(lead.now_ms + 20)) == []
    lead.promise("c")
    assert _proposed(lead.tick(lead.now_ms + 20)) == [AddToInSync("c")]


def test_a_primary_goes_on_while_a_healthy_replica_cannot_be_added() -> None:
    """It needs nothing of consensus to serve."""
    lead = Lead(in_sync="ab", answered="ac")
    lead.append()
    lead.hear("a", AppendReply(1, 1, lead.last_index))
    lead.hear("c", AppendReply(2, 1, lead.last_index))
    changes: list[object] = []
    while lead.now_ms < 3 * TIMING.view_change_timeout_ms:
        for peer in "ac":
            lead.promise(peer)
        changes += _proposed(lead.tick(lead.now_ms + 40))
        if changes:
            lead.replica.on_proposal_done(answered=False)
        assert lead.replica.may_serve(lead.now_ms)
    assert set(map(type, changes)) == {AddToInSync}


# handover


def test_a_handover_that_may_commit_yet_is_not_ended_by_its_deadline() -> None:
    """D4: the other would serve as well."""
    lead = Lead(in_sync="ab", answered="a")
    lead.replica.start_handover("a", 20)
    assert lead.replica.state.proposal == effects.Propose(Handover("a"), 1)
    lead.replica.on_proposal_done(answered=False)
    lead.replica.on_tick(lead.now_ms + 30)
    assert lead.replica.on_durable(1_000_000) == []
    lead.promise("a")
    assert not lead.replica.may_serve(lead.now_ms + 30)


def test_who_is_no_in_sync_backup_gets_no_handover() -> None:
    lead = Lead(in_sync="ab", answered="a")
    lead.probed("c")
    for name in ("b", "c", "d"):
        problem, emitted = lead.replica.start_handover(name, 500)
        assert "is not an in-sync backup" in problem
        assert emitted == []
    lead.replica.on_link_lost("a")
    problem, _ = lead.replica.start_handover("a", 500)
    assert "is not an in-sync backup" in problem


def test_an_epoch_that_is_not_open_is_not_handed_over() -> None:
    lead = Lead(in_sync="ab")
    lead.probed("a")
    problem, emitted = lead.replica.start_handover("a", 500)
    assert "not open yet" in problem
    assert emitted == []


def test_one_handover_is_under_way_at_a_time() -> None:
    lead = Lead(in_sync="abc", answered="ac")
    assert lead.replica.start_handover("a", 500)[0] == ""
    assert "in progress" in lead.replica.start_handover("c", 500)[0]
    waiting = Lead(in_sync="abc", answered="ac")
    waiting.append()
    assert waiting.replica.start_handover("a", 500)[0] == ""
    assert waiting.replica.state.proposal is None, "it waits until everything is committed"
    assert "in progress" in waiting.replica.start_handover("c", 500)[0]


def test_a_handover_waits_until_the_other_holds_everything_and_ends_at_its_deadline() -> None:
    lead = Lead(in_sync="ab", answered="a")
    lead.append()
    assert lead.replica.start_handover("a", 100) == ("", [])
    lead.promise("a")
    emitted = lead.tick(lead.now_ms + 120)
    assert _proposed(emitted) == []
    assert [type(e) for e in emitted if isinstance(e, effects.HandoverEnded)] == [
        effects.HandoverEnded
    ]
    assert lead.replica.start_handover("a", 100) == ("", [])
    lead.hear("a", AppendReply(1, 1, lead.last_index))
    assert lead.replica.state.proposal == effects.Propose(Handover("a"), 1)
    assert not lead.replica.may_serve(lead.now_ms)


def test_a_handover_is_given_up_when_the_other_is_not_in_sync_any_more() -> None:
    lead = Lead(in_sync="abc", answered="ac")
    lead.append()
    assert lead.replica.start_handover("a", 10_000) == ("", [])
    emitted = lead.replica.on_view(_view(1, "b", in_sync="bc", version=9))
    assert [type(e) for e in emitted if isinstance(e, effects.HandoverEnded)] == [
        effects.HandoverEnded
    ]
    assert lead.replica.may_execute()


def test_a_handover_whose_outcome_is_unknown_is_settled_first() -> None:
    """E3, D4: until then nothing is served."""
    lead = Lead(in_sync="ab", answered="a")
    lead.replica.start_handover("a", 500)
    assert lead.replica.state.proposal == effects.Propose(Handover("a"), 1)
    lead.replica.on_proposal_done(answered=False)
    proposals: list[object] = []
    while not proposals:
        lead.promise("a")
        proposals = _proposed(lead.tick(lead.now_ms + 10))
        assert not lead.replica.may_serve(lead.now_ms)
    assert proposals == [Confirm()]
    emitted = lead.replica.on_view(_view(1, "b", version=2))
    assert any(isinstance(effect, effects.HandoverEnded) for effect in emitted)
    assert lead.replica.may_serve(lead.now_ms)


# what a probe says of what is committed


def test_a_probe_names_the_last_committed_entry_and_its_epoch() -> None:
    """Rule e: an old copy that ends in another epoch there is told of its loss by it, and a
    replica that holds it is not taken for one."""
    lead = Lead(in_sync="ab", answered="a")
    lead.append()
    lead.hear("a", AppendReply(1, 1, lead.last_index))
    assert lead.commit_index == 2
    [probe] = [e.message for e in lead.replica.on_link("c") if isinstance(e, effects.Send)]
    assert isinstance(probe, Probe)
    assert (probe.commit_index, probe.commit_epoch, probe.required) == (2, 1, False)
    [probe] = [e.message for e in lead.replica.on_link("a") if isinstance(e, effects.Send)]
    assert isinstance(probe, Probe)
    assert probe.required


# decision 15: a removal waits for consensus, and leaves only if it is still wanted


def _about_to_remove() -> tuple[Lead, effects.Propose]:
    """A primary that wants the silent "a" removed, and has not heard consensus yet."""
    lead = Lead(in_sync="abc", answered="ac")
    while lead.replica.state.proposal is None:
        lead.promise("c")
        lead.tick(lead.now_ms + 20)
    proposal = lead.replica.state.proposal
    assert proposal.change == RemoveFromInSync(("a",))
    return lead, proposal


def test_a_removal_leaves_while_the_replica_is_silent_and_not_once_it_is_heard() -> None:
    """D5."""
    lead, proposal = _about_to_remove()
    assert lead.replica.may_propose(proposal, lead.now_ms)
    lead.promise("a")
    assert not lead.replica.may_propose(proposal, lead.now_ms)


def test_a_removal_does_not_leave_after_the_view_has_changed() -> None:
    lead, proposal = _about_to_remove()
    lead.replica.on_view(_view(1, "b", version=2, in_sync="abc"))
    assert not lead.replica.may_propose(proposal, lead.now_ms)


def test_a_removal_does_not_leave_a_primary_that_was_deposed() -> None:
    """D3: as a backup it removes nobody."""
    lead, proposal = _about_to_remove()
    lead.hear("a", StaleEpoch(1, 2, "c"))
    assert lead.replica.primary is None
    assert lead.replica.state.proposal is proposal
    assert not lead.replica.may_propose(proposal, lead.now_ms)


def test_of_a_primary_only_removals_are_asked_about() -> None:
    lead = Lead(in_sync="ab", answered="a")
    lead.replica.start_handover("a", 500)
    assert lead.replica.state.proposal is not None
    assert not lead.replica.may_propose(lead.replica.state.proposal, lead.now_ms)


# what another has committed and this one lacks; whom a primary that gives way asks


def test_a_primary_that_lacks_what_is_committed_commits_and_executes_nothing_more() -> None:
    """E1, D6: while the note of its loss is on its way to the disk. Then it stops."""
    lead = Lead(answered="a")
    lead.append()
    committed, now_ms = lead.commit_index, lead.now_ms
    assert lead.replica.may_serve(now_ms)
    emitted = lead.probed("c", 7, 7, 1)
    assert any(isinstance(effect, effects.MarkIncomplete) for effect in emitted)
    lead.hear("a", AppendReply(1, 1, lead.last_index))
    assert lead.commit_index == committed < lead.last_index
    assert not lead.replica.may_serve(now_ms)
    assert not lead.replica.may_execute()
    with pytest.raises(SafetyError, match="c has committed entry 7"):
        lead.write(emitted)


def test_a_primary_that_has_let_go_opens_the_streams_anew_of_those_for_whom_it_did() -> None:
    """They may be back, and nobody else tells it; the others were not asked, and are not silent."""
    lead = Lead(in_sync="ab", answered="a")
    lead.probed("c")
    lead.tick(lead.now_ms + TIMING.suspect_after_ms + TIMING.view_change_timeout_ms + 100)
    assert _sent(lead.tick(lead.now_ms + 100), Heartbeat) == []
    emitted = lead.tick(lead.now_ms + TIMING.ack_timeout_ms + 100)
    assert {effect.peer for effect in emitted if isinstance(effect, effects.CloseLink)} == {"a"}
