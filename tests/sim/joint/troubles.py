"""Faults of machines that hold a replica and a member of consensus."""

from __future__ import annotations

from collections.abc import Callable

from tests.sim.consensus.troubles import Troubles as ConsensusTroubles
from tests.sim.joint.agreement import RealAgreement
from tests.sim.joint.world import JointWorld
from tests.sim.troubles import Troubles
from tests.sim.world import World

LEFT_OUT = ("slow_agreement", "lose_entries")
"""The first is drawn by the abstract consensus; of the second the members would have to know."""


class JointTroubles(Troubles):
    """Those of the replicas, and those of consensus that leave the machines to the former."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        assert isinstance(world, JointWorld)
        assert isinstance(world.agreement, RealAgreement)
        self._agreement = world.agreement
        self._raft = ConsensusTroubles(world.consensus)

    def kinds(self) -> list[Callable[[], None]]:
        """Return all of them."""
        raft = self._raft
        self._agreement.remembers = True
        return [
            *(kind for kind in super().kinds() if kind.__name__ not in LEFT_OUT),
            raft.crash_at_a_step, raft.crash_at_a_step, raft.crash_at_a_step,
            raft.isolate_leader, raft.isolate_leader, raft.split, raft.swizzle,
            raft.break_connections, raft.stall_connections, raft.slow_network, raft.go_far,
            raft.slow_disk, raft.stall_disk, raft.fail_sync, raft.fill_disk, raft.flood,
        ]  # fmt: skip

    def put_back(self) -> None:
        """A replica's directory is put back; what its members remember of it is in their files."""
        agreement = self._agreement
        agreement.marks = {name: agreement.remembered_by_all(name) for name in self.world.nodes}
        super().put_back()

    def hide_primary(self) -> None:
        """The backups do not hear the primary until they propose themselves, and then they do."""
        world, clockwork = self.world, self.world.clockwork
        assert isinstance(world, JointWorld)
        primary, network = world.view.primary, world.network
        others = [name for name in world.nodes if name != primary]
        if not others or not world.is_troubled:
            return
        clockwork.seen["primary hidden"] += 1
        duration_ms = clockwork.between(320, 700)
        for name in others:
            if clockwork.chance(0.8):
                network.cut_data(primary, name)
                clockwork.after(duration_ms, network.heal_data, primary, name)
