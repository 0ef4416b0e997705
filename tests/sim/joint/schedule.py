"""One random schedule of replicas over real consensus."""

from __future__ import annotations

import contextlib
from collections import Counter
from unittest.mock import patch

from election.pysyncobj_adapter import transport
from tests.sim.consensus.processes import simulated_library
from tests.sim.faults import Schedule
from tests.sim.joint.troubles import JointTroubles
from tests.sim.joint.world import JointWorld

LAVISH_EVERY = 16
TELL_INTERVAL_S = 0.05


class JointSchedule(Schedule):
    """As the replica's schedules, with the faults of both. To be run once, after it was made."""

    world_type = JointWorld
    troubles_type = JointTroubles
    world: JointWorld

    def __init__(self, seed: int, *, trace: bool = False, clients: bool | None = None) -> None:
        self._library = contextlib.ExitStack()
        self._library.enter_context(simulated_library(thrifty=seed % LAVISH_EVERY != 0))
        # How far a replica is, is told more often: a schedule is short.
        self._library.enter_context(patch.object(transport, "TELL_INTERVAL_S", TELL_INTERVAL_S))
        try:
            # Operators' mistakes, and moves, are those of the other two simulators.
            super().__init__(seed, trace=trace, clients=clients, operators=False, moves=False)
        except BaseException:
            self._library.close()
            raise
        # Elections and take-overs need time, and an occasion.
        clockwork, troubles = self.world.clockwork, JointTroubles(self.world)
        self.duration_ms = max(self.duration_ms, clockwork.between(500, 2000))
        self.fault_gap_ms = max(self.fault_gap_ms, clockwork.random.choice((30.0, 80.0, 160.0)))
        often = (
            troubles.hide_primary,
            troubles.cut_off,
            troubles.crash,
            troubles.pause,
            troubles.put_back,
        )
        self._faults = [*self._faults, *[clockwork.random.choice(often)] * (len(self._faults) // 2)]

    def run(self) -> Counter[str]:
        """Run it; return how often what happened. Raises ViolationError."""
        consensus = self.world.consensus
        with self._library:
            try:
                seen = super().run()
            finally:
                for member in consensus.nodes.values():
                    member.crash(power=True)
        seen["entries of consensus"] = len(consensus.oracle.committed)
        seen["terms"] = consensus.oracle.highest_term
        return seen

    def _somebody_could_serve(self, lasting: set[str]) -> bool:
        """Whether enough replicas are well, and enough members of consensus."""
        consensus = self.world.consensus
        ill = {fault.split()[-1] for fault in lasting}
        voters = consensus.oracle.voters
        well = [name for name in voters if consensus.nodes[name].is_up and name not in ill]
        return super()._somebody_could_serve(lasting) and 2 * len(well) > len(voters)
