"""Replicas over consensus by the production adapter: one clock, one event queue, one network."""

from __future__ import annotations

from typing import Any

import msgspec

from election.identity import Addresses
from election.registry import addresses_of
from election.view import AddMember, AddToInSync, Bootstrap, Member, View
from tests.sim.clockwork import Clockwork, ViolationError
from tests.sim.consensus.network import Wires
from tests.sim.joint.agreement import RealAgreement
from tests.sim.joint.members import Consensus, ReplicaNode
from tests.sim.members import make_member
from tests.sim.network import Network
from tests.sim.world import World

STEP_MS = 20.0
BOOTSTRAP_LIMIT_MS = 5_000.0
ADD_AGAIN_MS = 150.0


class JointNetwork(Network):
    """The replicas' connections; a cut stops those of consensus, too, if they have one way."""

    def __init__(self, clockwork: Clockwork) -> None:
        super().__init__(clockwork)
        self.wires: Wires | None = None

    def cut_data(self, source: str, target: str) -> None:
        """Let nothing of the replicas' through in one direction; consensus goes on."""
        super().cut(source, target)

    def heal_data(self, source: str, target: str) -> None:
        """Undo one cut of the replicas'."""
        super().heal(source, target)

    def cut(self, source: str, target: str) -> None:
        """Let nothing through in one direction."""
        super().cut(source, target)
        if self.wires is not None:
            self.wires.cut(source, target)

    def heal(self, source: str, target: str) -> None:
        """Undo one cut."""
        if self.wires is not None and self.is_cut(source, target):
            self.wires.heal(source, target)
        super().heal(source, target)


class JointWorld(World):
    """A cluster that has been bootstrapped by consensus itself."""

    node_type = ReplicaNode
    network_type = JointNetwork
    consensus: Consensus
    network: JointNetwork

    def __init__(self, seed: int, n_nodes: int, **options: Any) -> None:
        # All replicas are founders, and clocks go on: consensus rests on them to get anywhere.
        self._compaction_entries = (8, 512)[seed // 2 % 2]
        super().__init__(seed, n_nodes, **{**options, "n_members": None, "clocks_stop": False})

    def make_agreement(self, first: View) -> RealAgreement:
        """Start the members, and have the first view agreed on."""
        clockwork = self.clockwork
        self.consensus = consensus = Consensus(
            clockwork,
            [member.id for member in first.members],
            compaction_entries=self._compaction_entries,
        )
        if clockwork.chance(0.7):
            self.network.wires = consensus.wires
        members = tuple(self.raft_member(member) for member in first.members)
        while (
            (problem := consensus.whole_problem())
            or consensus.view is None
            or set(first.in_sync) - set(consensus.view.in_sync)
        ):
            consensus.run_for(STEP_MS)
            if clockwork.now > BOOTSTRAP_LIMIT_MS:
                raise ViolationError(f"no start without faults: {problem}")
            view, asked = consensus.view, consensus.nodes[first.primary]
            if view is None:
                consensus.operators.propose(asked, Bootstrap("sim", first.primary, members))
            elif missing := [name for name in first.in_sync if name not in view.in_sync]:
                consensus.operators.propose(asked, AddToInSync(missing[0]))
        assert consensus.view is not None
        return RealAgreement(self, consensus.view)

    def raft_member(self, member: Member) -> Member:
        """Return it with the addresses at which its member of consensus is reached."""
        ours = self.consensus.nodes[member.id].member()
        return msgspec.structs.replace(ours, role=member.role, data_id=member.data_id)

    def first_addresses(self, node_id: str) -> Addresses:
        """Return where a new node listens: on the machine of its member."""
        return addresses_of(self.raft_member(make_member(node_id)))

    def heal(self) -> None:
        """End all faults; who is no member is added again."""
        self.consensus.heal()
        super().heal()
        self._add_again()

    def replace_the_removed(self) -> None:
        """Do nothing: they are added again."""

    def whole_problem(self) -> str:
        """Why the cluster, or its consensus, is not whole."""
        return super().whole_problem() or self.consensus.whole_problem()

    def _add_again(self) -> None:
        missing = [name for name in self.nodes if self.view.member(name) is None]
        for name in missing:
            self.agreement.commit(AddMember(self.nodes[name].identity.member()), self.view.version)
        # A removal without an outcome may take effect yet: so look for as long as it lasts.
        self.clockwork.after(ADD_AGAIN_MS, self._add_again)
