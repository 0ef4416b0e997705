"""The replicated state machine: total, deterministic, each request once."""

from __future__ import annotations

import msgspec
from hypothesis import example, given
from hypothesis import strategies as st

from election.pysyncobj_adapter.view_machine import (
    MAX_REMEMBERED_ANSWERS,
    Machine,
    MachineState,
    ProposeRequest,
    ReadRequest,
    SetMembership,
    encode_command,
)
from election.view import (
    MAX_REMEMBERED_STEPS,
    AddMember,
    AddToInSync,
    Bootstrap,
    Confirm,
    Handover,
    Member,
    RemoveFromInSync,
    RemoveMember,
    TakeOver,
    ViewChange,
)

MEMBERS = {"n1": "h:1", "n2": "h:2", "n3": "h:3"}


def member(node_id: str, raft: str) -> Member:
    return Member(id=node_id, role="replica", client=node_id, peer="p" + node_id, raft=raft)


def bootstrapped() -> Machine:
    machine = Machine(MEMBERS)
    members = tuple(member(node_id, raft) for node_id, raft in MEMBERS.items())
    answer = machine.apply(
        encode_command(ProposeRequest(b"first", 0, Bootstrap("c", "n1", members)))
    )
    assert answer is not None
    assert answer.refusal is None
    return machine


@given(st.binary(max_size=200))
@example(b"\x92\xa2\xff\xfe\xc4\x00")  # A string that is not UTF-8.
@example(b"\x92" * 5000)  # Nested more deeply than Python recurses.
def test_whatever_bytes_are_applied_nothing_is_raised_and_nothing_changes(data: bytes) -> None:
    machine = bootstrapped()
    before = machine.state()
    machine.apply(data)
    assert machine.state() == before


def test_a_read_answers_with_the_view_and_is_not_remembered() -> None:
    machine = bootstrapped()
    before = machine.state()
    answer = machine.apply(encode_command(ReadRequest(b"r")))
    assert answer is not None
    assert answer.view == machine.view
    assert machine.state() == before


def test_a_duplicate_gets_the_first_answer_even_if_refused_meanwhile() -> None:
    machine = bootstrapped()
    confirm = encode_command(ProposeRequest(b"x", 1, Confirm()))
    first = machine.apply(confirm)
    machine.apply(encode_command(ProposeRequest(b"y", 2, Confirm())))
    assert machine.apply(confirm) == first
    assert machine.view is not None
    assert machine.view.version == 3


def test_a_duplicate_older_than_the_memory_still_changes_nothing() -> None:
    machine = bootstrapped()
    confirm = encode_command(ProposeRequest(b"x", 1, Confirm()))
    machine.apply(confirm)
    for version in range(2, MAX_REMEMBERED_ANSWERS + 3):
        machine.apply(encode_command(ProposeRequest(b"%d" % version, version, Confirm())))
    assert machine.answer_to(b"x") is None
    before = machine.view
    answer = machine.apply(confirm)
    assert answer is not None
    assert answer.refusal is not None
    assert machine.view == before
    assert len(machine.state().answers) == MAX_REMEMBERED_ANSWERS


def test_the_wanted_members_follow_the_view_and_a_bootstrap_only_adds() -> None:
    machine = Machine(MEMBERS)
    alone = Bootstrap("c", "n1", (member("n1", "h:1"),))
    machine.apply(encode_command(ProposeRequest(b"1", 0, alone)))
    assert machine.wanted_members == MEMBERS
    machine.apply(encode_command(ProposeRequest(b"2", 1, AddMember(member("n4", "h:4")))))
    machine.apply(encode_command(ProposeRequest(b"3", 2, RemoveMember("n4"))))
    machine.apply(encode_command(ProposeRequest(b"4", 3, AddMember(member("n2", "elsewhere:2")))))
    assert machine.wanted_members == {**MEMBERS, "n2": "elsewhere:2"}
    assert machine.raft_members == MEMBERS
    machine.apply_membership(SetMembership(adding=True, node_id="n5", address="h:5"))
    assert machine.raft_members == {**MEMBERS, "n5": "h:5"}


def test_the_state_survives_the_way_through_a_dump() -> None:
    machine = bootstrapped()
    encoded = msgspec.msgpack.encode(machine.state())
    other = Machine({})
    other.restore(msgspec.msgpack.decode(encoded, type=MachineState))
    assert other.state() == machine.state()
    confirm = encode_command(ProposeRequest(b"x", 1, Confirm()))
    assert other.apply(confirm) == machine.apply(confirm)


def test_the_changes_of_the_view_are_remembered_with_their_reason_and_time() -> None:
    machine = bootstrapped()
    changes: list[tuple[ViewChange, str | None, str, tuple[str, ...]]] = [
        (AddToInSync("n2"), "added_to_in_sync", "n1", ("n1", "n2")),
        (TakeOver("n2"), "take_over", "n2", ("n2",)),
        (Confirm(), None, "n2", ("n2",)),
        (TakeOver("n2"), "restart", "n2", ("n2",)),
        (AddToInSync("n1"), "added_to_in_sync", "n2", ("n1", "n2")),
        (Handover("n1"), "handover", "n1", ("n1", "n2")),
        (RemoveFromInSync(("n2",)), "removed_from_in_sync", "n1", ("n1",)),
        (AddMember(member("n2", "moved")), "member_changed", "n1", ("n1",)),
        (AddMember(member("n4", "h:4")), "member_added", "n1", ("n1",)),
        (RemoveMember("n3"), "member_removed", "n1", ("n1",)),
    ]
    expected: list[object] = ["bootstrap"]
    for version, (change, kind, primary, in_sync) in enumerate(changes, 1):
        command = encode_command(ProposeRequest(b"%d" % version, version, change, 1000 + version))
        before = machine.view
        assert before is not None
        for _ in range(2):  # a repeat is not another change
            answer = machine.apply(command)
            assert answer is not None
            assert answer.refusal is None
        if kind is None:
            continue
        step = machine.steps[-1]
        assert (step.version, step.kind, step.at_ms) == (version + 1, kind, 1000 + version)
        assert (step.primary, step.previous, step.in_sync) == (primary, before.primary, in_sync)
        expected.append(kind)
    assert [step.kind for step in machine.steps] == expected
    assert [step.nodes for step in machine.steps[-3:]] == [("n2",), ("n4",), ("n3",)]


def test_a_change_that_is_refused_is_not_remembered() -> None:
    machine = bootstrapped()
    machine.apply(encode_command(ProposeRequest(b"x", 1, AddToInSync("nobody"))))
    machine.apply(encode_command(ProposeRequest(b"y", 7, AddToInSync("n2"))))
    assert [step.kind for step in machine.steps] == ["bootstrap"]


def test_remembered_changes_are_bounded_and_outlive_a_dump() -> None:
    machine = bootstrapped()
    for version in range(1, 2 * MAX_REMEMBERED_STEPS):
        command = ProposeRequest(b"%d" % version, version, TakeOver("n1"), version)
        machine.apply(encode_command(command))
    assert len(machine.steps) == MAX_REMEMBERED_STEPS
    assert machine.steps[-1].version == 2 * MAX_REMEMBERED_STEPS
    other = Machine(MEMBERS)
    dumped = msgspec.msgpack.encode(machine.state())
    other.restore(msgspec.msgpack.decode(dumped, type=MachineState))
    assert other.steps == machine.steps
