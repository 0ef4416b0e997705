"""When the members change, and who stands for election: conditions one by one (`sim/guards.py`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pysyncobj.syncobj as library
import pytest
from pysyncobj.node import Node

from election.pysyncobj_adapter import wire
from election.pysyncobj_adapter.clock import monotonic
from election.pysyncobj_adapter.journal import RaftEntry
from election.pysyncobj_adapter.members import membership_change
from election.pysyncobj_adapter.pre_vote import ORPHAN_PATIENCE_S
from election.pysyncobj_adapter.view_machine import ProposeRequest, SetMembership, encode_command
from election.view import AddMember, Bootstrap, RemoveMember, ViewChange
from tests.unit.election.pysyncobj_adapter.test_raft_core import MEMBERS, Bench, entry, grown


class Leader:
    """Member n1 leads; the view wants other members than those that vote. Time is as in life."""

    def __init__(self, bench: Bench, *changes: ViewChange) -> None:
        self.bench = bench
        self.core = bench.core
        self.voters = [node for node in self.core.member_ids if node != "n1"]
        bench.lead(*self.voters[:2])
        founders = tuple(grown(node) for node in self.core.member_ids)
        first = "n2" if "n2" in self.voters else "n1"  # whoever is the primary
        for number, change in enumerate((Bootstrap("c", first, founders), *changes)):
            self.core.submit(encode_command(ProposeRequest(bytes([number]), number, change)))
        self.core._onTick(0)
        self.acknowledge()
        self.core._onTick(0)
        assert self.core.machine.view is not None
        assert self.core.machine.view.version == 1 + len(changes)

    def acknowledge(self) -> None:
        """All voters hold everything."""
        end = self.bench.log[-1][1] + 1
        for voter in self.voters:
            ack = wire.FollowerReply(int(self.core.raftCurrentTerm), end, reset=False, success=True)
            self.bench.receive(voter, ack)

    def drive(self, *answering: str) -> list[tuple[bool, str]]:
        """Take the next step while these answer; return the changes that were appended."""
        now = monotonic()
        for node_id in self.voters:
            at = now if node_id in answering else float("-inf")
            self.core._SyncObj__lastResponseTime[Node(node_id)] = at
        self.core._membership_checked_at = float("-inf")
        self.core._drive_membership(now)
        self.core._onTick(0)
        return [
            (change.adding, change.node_id)
            for command, index, _ in self.bench.log
            if index > self.core.raftLastApplied and (change := membership_change(command))
        ]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


def alone(path: Path) -> Bench:
    return Bench(path, founders={"n1": MEMBERS["n1"]})


def test_only_a_command_of_its_own_kind_is_a_change_of_the_members() -> None:
    step = msgspec.msgpack.encode(SetMembership(adding=False, node_id="n3", address=""))
    assert membership_change(b"\x02" + step) is not None
    assert membership_change(b"\x00" + step) is None
    assert membership_change(step) is None


def test_a_change_counts_from_its_appending_on(bench: Bench) -> None:
    leader = Leader(bench, RemoveMember("n3"))
    assert leader.drive("n2", "n4", "n5") == [(False, "n3")]
    assert bench.core.member_ids == ["n1", "n2", "n4", "n5"]


def test_a_step_that_must_wait_for_the_dead_keeps_no_other_from_being_taken(bench: Bench) -> None:
    leader = Leader(bench, RemoveMember("n3"), RemoveMember("n4"))
    assert leader.drive("n2", "n3") == [(False, "n4")]  # without n3 it would be two of four


def test_a_leader_that_is_to_go_hands_its_leadership_over_and_removes_nobody(bench: Bench) -> None:
    leader = Leader(bench, RemoveMember("n1"))
    bench.sent.clear()
    assert leader.drive("n2", "n3", "n4", "n5") == []
    assert any(isinstance(message, wire.TimeoutNow) for _, message in bench.sent)
    assert bench.core.member_ids == ["n1", "n2", "n3", "n4", "n5"]


def test_who_has_just_lost_its_link_does_not_count_as_answering(bench: Bench) -> None:
    leader = Leader(bench, RemoveMember("n3"))
    del bench.core._links._open["n4"], bench.core._links._open["n5"]
    assert leader.drive("n2", "n4", "n5") == []


@pytest.mark.parametrize("heard", [False, True])
def test_one_member_adds_a_second_one_only_while_that_is_heard(
    tmp_path: Path, *, heard: bool
) -> None:
    bench = alone(tmp_path)
    try:
        leader = Leader(bench, AddMember(grown("n2")))
        tap = bench.core._links._open["n2"]
        tap.last_read_at = monotonic() - (0 if heard else 0.4)
        assert leader.drive() == ([(True, "n2")] if heard else [])
    finally:
        bench.close()


def asks(bench: Bench) -> bool:
    """Whether it asks the others before it would stand, now that it hears no leader."""
    bench.sent.clear()
    bench.core._SyncObj__raftElectionDeadline = 0.0
    bench.core._ask_before_standing(monotonic())
    return any(isinstance(message, wire.PreVote) for _, message in bench.sent)


def change(index: int, *, adding: bool, node_id: str, term: int = 1) -> RaftEntry:
    step = SetMembership(adding=adding, node_id=node_id, address="127.0.0.1:9")
    return b"\x02" + msgspec.msgpack.encode(step), index, term


def test_who_is_removed_stands_no_more_unless_that_is_undone(bench: Bench) -> None:
    assert asks(bench)
    bench.append(change(2, adding=False, node_id="n3"))
    assert asks(bench)
    bench.append(change(3, adding=False, node_id="n1"), after=(2, 1))
    assert not asks(bench)
    bench.append(entry(3, term=2), after=(2, 1), term=2)
    assert asks(bench)


def test_who_is_no_member_does_not_stand_when_entries_of_its_log_are_replaced(
    tmp_path: Path,
) -> None:
    bench = Bench(tmp_path, founders={name: MEMBERS[name] for name in ("n2", "n3", "n4")})
    try:
        bench.append(change(2, adding=True, node_id="n5"))
        bench.append(entry(2, term=2), term=2)
        assert not asks(bench)
    finally:
        bench.close()


# who asks, and who agrees


def test_who_leads_has_agreement_waits_or_is_alone_does_not_ask(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "five")
    core = bench.core
    try:
        assert asks(bench)
        core._ballot.won = True
        assert not asks(bench)
        core._ballot.won = False
        core._SyncObj__transferInProgress = True
        assert not asks(bench)
        core._SyncObj__transferInProgress = False
        bench.sent.clear()
        core._SyncObj__raftElectionDeadline = monotonic() + 10
        core._ask_before_standing(monotonic())
        assert bench.sent == [], "it is not time yet"
        bench.lead()
        core._ballot.won = False
        assert not asks(bench)
    finally:
        bench.close()
    single = alone(tmp_path / "one")
    try:
        assert not asks(single)
        assert single.core._ballot.round == 0
    finally:
        single.close()


def test_what_was_agreed_before_the_links_were_lost_is_history(bench: Bench) -> None:
    core = bench.core
    core._ballot.won = True
    core._SyncObj__raftElectionDeadline = monotonic() + 10
    core._ask_before_standing(monotonic())
    assert core._ballot.won
    bench.core._links._open.clear()
    core._ask_before_standing(monotonic())
    assert not core._ballot.won


def test_a_vote_that_was_lost_is_not_stood_for_again_at_once(bench: Bench) -> None:
    core = bench.core
    far = monotonic() + 1000
    core._ballot.won = True
    core._SyncObj__raftElectionDeadline = far
    core._on_new_term()
    assert not core._ballot.won
    assert core._SyncObj__raftElectionDeadline == far, "it does not stand"
    core._SyncObj__raftState = library._RAFT_STATE.CANDIDATE
    core._on_new_term()
    assert core._SyncObj__raftElectionDeadline < far


def pre_vote(bench: Bench, node: str = "n3", term: int = 9, last: tuple[int, int] = (5, 1)) -> bool:
    (answer,) = bench.receive(node, wire.PreVote(1, term, *last))
    assert isinstance(answer, wire.PreVoteAnswer)
    return answer.granted


def test_a_leader_that_was_not_heard_for_most_of_a_timeout_is_heard_no_more(bench: Bench) -> None:
    bench.append()
    assert not pre_vote(bench)
    bench.core._heard_leader_at -= bench.core._settings.election_min_ms / 1000
    assert pre_vote(bench)


def test_who_agrees_lets_the_other_stand_first_and_who_refuses_does_not_wait(bench: Bench) -> None:
    core = bench.core
    core._SyncObj__raftElectionDeadline = 0.0
    assert not pre_vote(bench, last=(0, 0))
    assert core._SyncObj__raftElectionDeadline == 0.0
    assert pre_vote(bench)
    assert core._SyncObj__raftElectionDeadline > monotonic()


@pytest.mark.parametrize("linked", [False, True])
def test_who_reaches_everybody_stands_for_one_that_has_lost_the_leader(
    bench: Bench, *, linked: bool
) -> None:
    core = bench.core
    bench.append()
    if not linked:
        del core._links._open["n5"]
    assert not pre_vote(bench)
    assert not core._ballot.won, "it may have come back"
    first, _ = core._ballot._orphans["n3"]
    now = monotonic()
    core._ballot._orphans["n3"] = (first - ORPHAN_PATIENCE_S, now)
    assert not pre_vote(bench)
    assert core._ballot.won == linked
    assert (core._SyncObj__raftElectionDeadline == 0.0) == linked


def test_a_leader_stands_for_nobody(bench: Bench) -> None:
    bench.lead()
    bench.core._ballot.won = False
    for _ in range(2):
        assert not pre_vote(bench)
        bench.core._ballot._orphans["n3"] = (monotonic() - ORPHAN_PATIENCE_S, monotonic())
    assert not bench.core._ballot.won


def test_a_refusal_that_names_no_leader_helps_nobody(bench: Bench) -> None:
    for _ in range(2):
        assert not pre_vote(bench, term=0)
        bench.core._ballot._orphans["n3"] = (monotonic() - ORPHAN_PATIENCE_S, monotonic())
    assert not bench.core._ballot.won


def answer(bench: Bench, node: str, *, term: int = 0, granted: bool = True) -> None:
    bench.receive(node, wire.PreVoteAnswer(bench.core._ballot.round, granted, term))


def agreed(bench: Bench) -> bool:
    return bench.core._ballot.won


def test_only_the_answers_of_members_count_and_a_majority_is_needed(bench: Bench) -> None:
    assert asks(bench)
    core = bench.core
    deadline = core._SyncObj__raftElectionDeadline
    answer(bench, "n2")
    for stranger in ("n7", "n8", "n9"):
        answer(bench, stranger)
    assert not agreed(bench)
    assert core._SyncObj__raftElectionDeadline == deadline
    answer(bench, "n3")
    assert agreed(bench)
    assert core._SyncObj__raftElectionDeadline == 0.0


def test_an_answer_of_a_later_term_ends_the_present_one(bench: Bench) -> None:
    term = bench.lead()
    answer(bench, "n2", term=term)
    assert bench.core._isLeader()
    answer(bench, "n2", term=term + 3, granted=False)
    assert not bench.core._isLeader()
    assert bench.core.raftCurrentTerm == term + 3


def test_a_leader_counts_no_answers_that_come_late(bench: Bench) -> None:
    assert asks(bench)
    answer(bench, "n2")
    bench.lead()
    bench.core._ballot.won = False
    answer(bench, "n3")
    assert not bench.core._ballot.won


def test_who_loses_the_link_to_its_leader_asks_soon_and_no_other_loss_counts(bench: Bench) -> None:
    core = bench.core
    bench.append()
    far = monotonic() + 1000
    core._SyncObj__raftElectionDeadline = far
    core._SyncObj__onNodeDisconnected(Node("n3"))
    assert core._SyncObj__raftElectionDeadline == far
    assert not pre_vote(bench), "the leader is n2"
    core._SyncObj__onNodeDisconnected(Node("n2"))
    assert core._SyncObj__raftElectionDeadline < far
    assert pre_vote(bench)
