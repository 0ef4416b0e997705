"""The replicated state machine: the view, the answers to recent requests, the Raft members.

Every member runs it on the same commands in the same order, so it is total and deterministic: it
never raises, reads no clock and draws no random number. A request that arrives twice changes
nothing the second time.
"""

from __future__ import annotations

from collections import OrderedDict

import msgspec

from election.pysyncobj_adapter.codec import UNDECODABLE
from election.view import (
    MAX_REMEMBERED_STEPS,
    AddMember,
    Bootstrap,
    RemoveMember,
    View,
    ViewChange,
    ViewRefusal,
    ViewStep,
    apply_change,
    step_of,
)

REGULAR = b"\x00"  # PySyncObj's type of command, before each in the log
MAX_COMMAND_BYTES = 32 * 1024
MAX_REMEMBERED_ANSWERS = 64


class ProposeRequest(msgspec.Struct, frozen=True, tag="propose", array_like=True):
    """Compare-and-set on the view's version. `at_ms`: the proposer's clock, to be shown only."""

    request_id: bytes
    expected_version: int
    change: ViewChange
    at_ms: int = 0


class ReadRequest(msgspec.Struct, frozen=True, tag="read", array_like=True):
    """Change nothing: what is committed before it is applied before it."""

    request_id: bytes


Command = ProposeRequest | ReadRequest


class SetMembership(msgspec.Struct, frozen=True, array_like=True):
    """Add or remove one Raft member. `address` is empty for a removal."""

    adding: bool
    node_id: str
    address: str


class ViewReply(msgspec.Struct, frozen=True, array_like=True):
    """What became of a request. A `ReadRequest` and a committed change have no `refusal`."""

    request_id: bytes
    view: View | None
    refusal: str | None = None


class MachineState(msgspec.Struct, frozen=True, array_like=True):
    """All of the machine, as kept in a dump.

    `raft_members` are those whose change has been applied; `wanted_members` are those that the
    view asks for: the Raft leader makes the one follow the other, a step at a time. `steps` are the
    last changes of the view, oldest first.
    """

    view: View | None
    answers: tuple[ViewReply, ...]
    raft_members: dict[str, str]
    wanted_members: dict[str, str]
    steps: tuple[ViewStep, ...] = ()


def encode_command(command: Command) -> bytes:
    """Return the bytes that go through the log."""
    return msgspec.msgpack.encode(command)


class Machine:
    """The state machine; `members` maps node ids to raft addresses."""

    def __init__(self, members: dict[str, str]) -> None:
        self.view: View | None = None
        self.steps: tuple[ViewStep, ...] = ()
        self.raft_members = dict(members)
        self.wanted_members = dict(members)
        self._answers: OrderedDict[bytes, ViewReply] = OrderedDict()
        self._decoder = msgspec.msgpack.Decoder(Command)

    def apply(self, data: bytes) -> ViewReply | None:
        """Run one command; None if it is not one (then nothing changes, on any member)."""
        try:
            command = self._decoder.decode(data)
        except UNDECODABLE:
            return None
        if isinstance(command, ReadRequest):
            return ViewReply(command.request_id, self.view)
        known = self._answers.get(command.request_id)
        if known is not None:
            return known
        result = apply_change(self.view, command.change, command.expected_version)
        if isinstance(result, ViewRefusal):
            answer = ViewReply(command.request_id, self.view, result.reason)
        else:
            self._remember(step_of(self.view, command.change, result, command.at_ms))
            self.view = result
            self._want(command.change)
            answer = ViewReply(command.request_id, result)
        self._answers[command.request_id] = answer
        if len(self._answers) > MAX_REMEMBERED_ANSWERS:
            # An older duplicate still changes nothing: its expected version has passed.
            self._answers.popitem(last=False)
        return answer

    def answer_to(self, request_id: bytes) -> ViewReply | None:
        """Return what became of a recent request, if it was applied."""
        return self._answers.get(request_id)

    def apply_membership(self, change: SetMembership) -> None:
        """Note that a change of the Raft members has been applied."""
        self.raft_members = changed_members(self.raft_members, change)

    def state(self) -> MachineState:
        """Return everything, for a dump."""
        return MachineState(
            self.view,
            tuple(self._answers.values()),
            dict(self.raft_members),
            dict(self.wanted_members),
            self.steps,
        )

    def restore(self, state: MachineState) -> None:
        """Take over everything from a dump."""
        self.view = state.view
        self._answers = OrderedDict((answer.request_id, answer) for answer in state.answers)
        self.raft_members = dict(state.raft_members)
        self.wanted_members = dict(state.wanted_members)
        self.steps = state.steps

    def _remember(self, step: ViewStep | None) -> None:
        if step is not None:
            self.steps = (*self.steps, step)[-MAX_REMEMBERED_STEPS:]

    def _want(self, change: ViewChange) -> None:
        """Let the wanted Raft members follow a committed change of the view's."""
        match change:
            case Bootstrap(members=members):
                # Only ever additions: the first view may name fewer than the founders.
                self.wanted_members |= {member.id: member.raft for member in members}
            case AddMember(member=member):
                self.wanted_members[member.id] = member.raft
            case RemoveMember(node=node):
                self.wanted_members.pop(node, None)
            case _:
                pass


def changed_members(members: dict[str, str], change: SetMembership) -> dict[str, str]:
    """Return `members` after the change."""
    if change.adding:
        return {**members, change.node_id: change.address}
    return {node: address for node, address in members.items() if node != change.node_id}
