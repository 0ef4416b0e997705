"""When the members change, and who stands for election: conditions one by one (`sim/guards.py`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from pysyncobj.node import Node

from election.pysyncobj_adapter import wire
from election.pysyncobj_adapter.clock import monotonic
from election.pysyncobj_adapter.journal import Entry
from election.pysyncobj_adapter.machine import Propose, SetMembership, encode_command
from election.pysyncobj_adapter.members import membership_change
from election.view import AddMember, Bootstrap, Change, RemoveMember
from tests.unit.election.test_core import MEMBERS, Bench, entry, grown


class Leader:
    """Member n1 leads; the view wants other members than those that vote. Time is as in life."""

    def __init__(self, bench: Bench, *changes: Change) -> None:
        self.bench = bench
        self.core = bench.core
        self.voters = [node for node in self.core.member_ids if node != "n1"]
        bench.lead(*self.voters[:2])
        founders = tuple(grown(node) for node in self.core.member_ids)
        first = "n2" if "n2" in self.voters else "n1"  # whoever is the primary
        for number, change in enumerate((Bootstrap("c", first, founders), *changes)):
            self.core.submit(encode_command(Propose(bytes([number]), number, change)))
        self.core._onTick(0)
        self.acknowledge()
        self.core._onTick(0)
        assert self.core.machine.view is not None
        assert self.core.machine.view.version == 1 + len(changes)

    def acknowledge(self) -> None:
        """All voters hold everything."""
        end = self.bench.log[-1][1] + 1
        for voter in self.voters:
            ack = wire.Ack(int(self.core.raftCurrentTerm), end, reset=False, success=True)
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


def change(index: int, *, adding: bool, node_id: str, term: int = 1) -> Entry:
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
