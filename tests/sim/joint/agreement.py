"""Consensus by the production adapter, for the simulated replicas; in place of the abstract one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import msgspec

from datapath.node.proposal import Proposal
from datapath.node.survivors import NodeMemory
from election.agreement import AgreementUnavailableError, Outcome, Unknown
from election.pysyncobj_adapter.inbox import outcome_of
from election.pysyncobj_adapter.view_machine import (
    Command,
    ProposeRequest,
    ReadRequest,
    ViewReply,
    encode_command,
)
from election.view import AddMember, TakeOver, View, ViewChange
from tests.sim import node as replicas
from tests.sim.agreement import Agreement
from tests.sim.joint.members import Consensus, MemberNode, ReplicaNode

if TYPE_CHECKING:
    from tests.sim.joint.world import JointWorld

TIMEOUTS_MS = (100.0, 300.0, 1000.0)
"""How long a replica waits for an answer: the shorter, the more outcomes are unknown to it."""
Then = Callable[[ViewReply | str], None]
"""Is given the answer, or why there is none."""

_decoder = msgspec.msgpack.Decoder(Command)


class CutOff(set[str]):
    """Who is cut off from consensus: the other members, while it reaches the other replicas."""

    def __init__(self, consensus: Consensus, deaf: set[str]) -> None:
        super().__init__()
        self._consensus = consensus
        self._deaf = deaf  # of those: what they say gets there
        self._cuts: dict[str, list[tuple[str, str]]] = {}

    def add(self, name: str) -> None:
        """Cut the member off."""
        if name in self:
            return
        super().add(name)
        others = [other for other in self._consensus.nodes if other != name]
        cuts = self._cuts[name] = [(other, name) for other in others]
        if name not in self._deaf:
            cuts += [(name, other) for other in others]
        for cut in cuts:
            self._consensus.wires.cut(*cut)

    def discard(self, name: object) -> None:
        """Let it reach the others again."""
        if not isinstance(name, str) or name not in self:
            return
        super().discard(name)
        for cut in self._cuts.pop(name):
            self._consensus.wires.heal(*cut)


class _Waiting:
    """A request that a node waits for, as a future would."""

    def __init__(self, node: ReplicaNode, then: Then) -> None:
        self._node = node
        self._then = then
        self._is_done = False

    def done(self) -> bool:
        return self._is_done

    def set_result(self, result: ViewReply, /) -> None:
        self._end(result)

    def set_exception(self, exception: AgreementUnavailableError, /) -> None:
        self._end(str(exception))

    def time_out(self, request_id: bytes) -> None:
        self._node.inbox.forget(request_id)
        if not self._is_done:
            self._end("no agreement in time")

    def _end(self, answer: ViewReply | str) -> None:
        self._is_done = True
        self._node.turn(self._then, answer)


class RealAgreement(Agreement):
    """What replicas and faults ask of consensus, done by its members."""

    def __init__(self, world: JointWorld, first: View) -> None:
        self._consensus = world.consensus
        super().__init__(world.clockwork, world.oracle, first)
        self._world = world
        self.cut_off = CutOff(world.consensus, self.deaf)
        self._timeout_ms = world.clockwork.random.choice(TIMEOUTS_MS)
        self._asked: dict[bytes, object] = {}
        self._open: dict[bytes, int] = {}  # proposals without an answer, and at which version
        world.consensus.oracle.on_view = self._on_committed

    def _on_committed(self, before: View | None, view: View, command: bytes) -> None:
        proposed = _decoder.decode(command)
        assert isinstance(proposed, ProposeRequest)
        assert before is not None
        self.views.append(view)
        self.voters_at[view.version] = self.voters
        if self._open.pop(proposed.request_id, None) is None:
            self._clockwork.seen["took effect after its time"] += 1
        asked = self._asked.get(proposed.request_id)
        self._note_view(proposed.change, before, view, asked)

    # -- who hears what

    def inform(self, node: replicas.Node) -> None:
        """Do nothing: its own member tells it."""

    def tell(self, node: replicas.Node) -> None:
        """A node tells how far it is: its member has the others remember that (decision 18)."""
        assert isinstance(node, ReplicaNode)
        if node.member.runner is not None:
            node.member.runner.position = node.replica.state.committed_position

    def _remind(self, node: replicas.Node) -> None:
        """Do nothing: members do it on their links."""

    def remembered_by_all(self, name: str) -> tuple[int, int]:
        """Return (epoch, index) of a node's data that all other voters remember, durably."""
        known = []
        for voter in self._consensus.oracle.voters:
            member = self._consensus.nodes[voter]
            assert isinstance(member, MemberNode)
            if voter != name:
                known.append(member.remembered(name) if member.save_memory() else (0, 0))
        return min(known, default=(0, 0))

    # -- votes

    @property
    def voters(self) -> frozenset[str]:
        """The voters by the committed changes."""
        return frozenset(self._consensus.oracle.voters)

    @voters.setter
    def voters(self, voters: frozenset[str]) -> None:
        """Do nothing: the leader makes the voters follow."""

    def _follow(self) -> None:
        """Do nothing."""

    def stop_witness(self) -> bool:
        """One witness is down."""
        for name in self.witnesses():
            member = self._consensus.nodes[name]
            if member.is_up:
                member.crash(power=self._clockwork.chance(0.5))
                self.witnesses_down[name] = self._clockwork.now
                return True
        return False

    def start_witness(self) -> None:
        """One of those that are down comes back."""
        if self.witnesses_down:
            name = min(self.witnesses_down)
            del self.witnesses_down[name]
            self._consensus.nodes[name].start()

    def memories(self, replicas: Iterable[str]) -> list[NodeMemory]:
        """Return nothing: R2 is judged over the abstract consensus."""
        return []

    # -- requests

    def commit(self, change: ViewChange, version: int, asked: object = None) -> Outcome:
        """Ask for a change by way of some node; what becomes of it is seen in the view."""
        running = [node for node in self.nodes.values() if node.is_up and not node.paused]
        if running:
            node = self._clockwork.random.choice(running)
            self.decide(node, change, version, lambda _: None, asked)
        return Unknown("it has been asked for")

    def decide(
        self,
        node: replicas.Node,
        change: ViewChange,
        version: int,
        done: Callable[[Outcome], None],
        asked: object = None,
    ) -> None:
        """Propose a change by way of a node's member."""
        if isinstance(change, AddMember):
            change = AddMember(self._world.raft_member(change.member))
        request_id = self._consensus.operators.new_id()
        self._asked[request_id], self._open[request_id] = asked, version
        command = encode_command(ProposeRequest(request_id, version, change))
        rate = self.unknown_rate if isinstance(change, TakeOver) else self.unknown_rate / 2
        if self._world.is_troubled and self._clockwork.chance(rate):
            self._clockwork.after(self._clockwork.between(0, 8), self._lose, node.id)
        self._ask(node, request_id, command, change, lambda answer: done(outcome_of(answer)))

    def _lose(self, name: str) -> None:
        """A proposal is on its way, or its answer: nothing of it, or no answer, arrives in time."""
        clockwork = self._clockwork
        if name in self.cut_off or not self._world.is_troubled:
            return
        clockwork.seen["cut off after a proposal"] += 1
        if clockwork.chance(0.5):
            self.deaf.add(name)
        self.cut_off.add(name)
        clockwork.after(clockwork.between(50, 1500), self._find, name)

    def _find(self, name: str) -> None:
        self.deaf.discard(name)
        self.reconnect(name)

    def is_settled(self) -> bool:
        """Whether each proposal has an answer, or expects a version that is over."""
        version = self.view.version
        self._open = {name: at for name, at in self._open.items() if at >= version}
        return not self._open

    def _go_on(self, node: replicas.Node, life: int, proposal: Proposal) -> None:
        if proposal.step not in ("hear", "read_back"):
            super()._go_on(node, life, proposal)
            return
        request_id = self._consensus.operators.new_id()

        def then(answer: ViewReply | str) -> None:
            if isinstance(answer, str) or answer.view is None:
                self._clockwork.seen["consensus not heard"] += 1
                self._unheard(node, life, proposal)
            else:
                self._heard(node, life, proposal, answer.view)

        self._ask(node, request_id, encode_command(ReadRequest(request_id)), None, then)

    def _ask(
        self,
        node: replicas.Node,
        request_id: bytes,
        command: bytes,
        change: ViewChange | None,
        then: Then,
    ) -> None:
        assert isinstance(node, ReplicaNode)
        waiting = _Waiting(node, then)
        node.inbox.expect(request_id, waiting)
        timeout_ms = self._timeout_ms
        self._consensus.operators.ask(
            node.member, request_id, command, change, timeout_ms=timeout_ms
        )
        self._clockwork.after(timeout_ms, node.post, node.life, waiting.time_out, request_id)
