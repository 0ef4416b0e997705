"""One random schedule of consensus: a seed's group, its troubles, and whether it heals."""

from __future__ import annotations

from collections import Counter

from election.view import Confirm
from tests.sim.clockwork import Clockwork, ViolationError
from tests.sim.consensus.processes import simulated_library
from tests.sim.consensus.troubles import Troubles
from tests.sim.consensus.world import NAMES, World

TRANSCRIPT_LINES = 1000
HEALING_LIMIT_MS = 10_000.0
STEP_MS = 20.0
BOOTSTRAP_LIMIT_MS = 3_000.0
QUIET_RATE = 0.08
QUIET_RATE_BESIDE_OUTSIDERS = 0.3
QUIET_MS = 700.0
LONG_EVERY = 23
LAVISH_EVERY = 16
"""The others do not encrypt, and send fewer pings."""


class Schedule:
    """Draws a group and its troubles from a seed, and runs them."""

    def __init__(self, seed: int, *, trace: bool = False) -> None:
        self.seed = seed
        sizes = (1, 2, 3, 3, 3, 3, 3, 4, 5, 5, 5)
        self.is_long = seed % LONG_EVERY == 0
        clockwork = Clockwork(seed, trace=trace, kept_lines=TRANSCRIPT_LINES)
        random = clockwork.random
        self.world = world = World(
            clockwork,
            # Who dials whom depends on the order of the ids: founders and newcomers are mixed.
            random.sample(NAMES, sizes[seed % len(sizes)]),
            compaction_entries=(6, 24, 512)[seed % 3],
            compaction_interval_ms=(60_000, 60_000, 300)[seed % 3],
        )
        clockwork.seen[f"founders: {len(world.founders)}"] += 1
        if self.is_long:
            self.duration_ms = clockwork.between(1500, 4000)
            self.fault_gap_ms = random.choice((60.0, 150.0, 300.0))
        else:
            self.duration_ms = clockwork.between(150, 700)
            self.fault_gap_ms = random.choice((15.0, 30.0, 60.0, 120.0))
        self.load_gap_ms = random.choice((25.0, 60.0, 150.0))
        self.is_troubled_from_the_start = clockwork.chance(0.2)
        all_faults = Troubles(world).kinds()
        # Some kinds only: troubles of one kind in a row reach states that a mixture does not.
        kinds = random.choice((3, 6, 12, len(all_faults)))
        self._faults = random.sample(all_faults, kinds)

    def run(self) -> Counter[str]:
        """Run it; return how often what happened. Raises ViolationError."""
        world, clockwork = self.world, self.world.clockwork
        with simulated_library(thrifty=self.seed % LAVISH_EVERY != 0):
            try:
                self._run()
            except ViolationError:
                raise
            except Exception as error:
                raise ViolationError(f"broken: {type(error).__name__}: {error}") from error
            finally:
                for node in world.nodes.values():
                    node.crash(power=True)
        clockwork.seen["simulated ms"] = int(clockwork.now)
        clockwork.seen["events"] = clockwork.events
        clockwork.seen["entries committed"] = len(world.oracle.committed)
        clockwork.seen["terms"] = world.oracle.highest_term
        return clockwork.seen

    def _run(self) -> None:
        world, clockwork = self.world, self.world.clockwork
        clockwork.after(0, self._load)
        if not self.is_troubled_from_the_start:
            while world.whole_problem():
                world.run_for(STEP_MS)
                if clockwork.now > BOOTSTRAP_LIMIT_MS:
                    raise ViolationError(f"no start without faults: {world.whole_problem()}")
        clockwork.after(0, self._next_fault)
        clockwork.run_until(clockwork.now + self.duration_ms)
        self._heal()

    def _heal(self) -> None:
        """All faults end: soon all members vote, a change of the view commits, and all know it."""
        world, clockwork = self.world, self.world.clockwork
        self._faults = []
        world.heal()
        deadline = clockwork.now + HEALING_LIMIT_MS
        version: int | None = None
        while True:
            world.run_for(STEP_MS)
            world.start_the_needed()
            problem = world.whole_problem()
            if clockwork.now >= deadline:
                raise ViolationError(
                    f"not whole {HEALING_LIMIT_MS:.0f} ms after healing: {problem}"
                )
            if problem or world.view is None:
                continue
            if version is not None and world.view.version > version:
                break
            version = world.view.version if version is None else version
            names = sorted(world.oracle.voters)
            world.operators.propose(world.nodes[clockwork.random.choice(names)], Confirm())
        outsiders = [
            node for node in world.nodes.values() if node.is_up and not world.is_voter(node)
        ]
        if clockwork.chance(QUIET_RATE_BESIDE_OUTSIDERS if outsiders else QUIET_RATE):
            self._stay_quiet()

    def _stay_quiet(self) -> None:
        """Who is no member, or is alone, and comes back, deposes nobody."""
        world, clockwork = self.world, self.world.clockwork
        world.run_for(STEP_MS)
        voters = [world.nodes[name] for name in sorted(world.oracle.voters)]
        leader = world.leader()
        if leader is None or leader not in voters:
            raise ViolationError("nobody leads in a group that is whole")
        before = (leader.id, leader.core.raftCurrentTerm if leader.core else 0)
        outsiders = [node for node in world.nodes.values() if node.is_up and node not in voters]
        what = f"{[node.id for node in outsiders]} are no members"
        if outsiders:
            clockwork.seen["quiet beside outsiders"] += 1
        if world.view is not None and any(node.id in world.view.removed for node in outsiders):
            clockwork.seen["quiet beside a removed member"] += 1
        alone = None
        if len(voters) > 2 and clockwork.chance(0.7):
            alone = clockwork.random.choice([node for node in voters if node is not leader])
            clockwork.seen["quiet with one alone"] += 1
            what += f", {alone.id} was alone"
            for node in world.nodes.values():
                world.wires.cut(alone.id, node.id)
                world.wires.cut(node.id, alone.id)
        if clockwork.tracing:
            clockwork.note(f"QUIET: {what}")
        world.run_for(QUIET_MS)
        if alone is not None:
            world.wires.heal_all()
            world.run_for(QUIET_MS)
        if [world.nodes[name] for name in sorted(world.oracle.voters)] != voters:
            clockwork.seen["members changed in the quiet"] += 1  # asked for before, and sent late
            return
        for node in voters:
            core = node.core
            after = None if core is None else (core.leader_in_term or (None, core.raftCurrentTerm))
            if after != before:
                raise ViolationError(f"{node.id} follows {after}, not {before}: {what}")

    def _load(self) -> None:
        world, clockwork = self.world, self.world.clockwork
        running = [node for node in world.nodes.values() if node.is_up]
        if running:
            node = clockwork.random.choice(running)
            if clockwork.chance(0.3):
                world.operators.read(node)
            else:
                world.operators.change_view(node)
        if world.is_troubled or world.view is None:
            clockwork.after(clockwork.random.expovariate(1 / self.load_gap_ms), self._load)

    def _next_fault(self) -> None:
        if self._faults:
            clockwork = self.world.clockwork
            clockwork.random.choice(self._faults)()
            gap = clockwork.random.expovariate(1 / self.fault_gap_ms)
            clockwork.after(gap, self._next_fault)
