"""One random schedule: a seed's cluster, its load and faults, and whether it recovers."""

from __future__ import annotations

from collections import Counter

from tests.sim.archives import LOG_BYTES, Archives
from tests.sim.callers import Callers, make_guard
from tests.sim.clients import Clients
from tests.sim.clockwork import ViolationError
from tests.sim.holders import Holders
from tests.sim.moves import Movers
from tests.sim.operators import Operators
from tests.sim.troubles import Troubles
from tests.sim.watchers import Watchers
from tests.sim.world import World

HEALING_LIMIT_MS = 10_000.0
LONG_EVERY = 17
"""One schedule in so many is long; short and dense ones reach more in the same time."""
OPERATORS_OF, OPERATORS = 13, (3, 7, 11)
"""In these of so many schedules operators err."""
CALLERS = (2, 6, 12)
"""In these of as many rights come and go."""
MOVES = (1, 5, 9)
"""In these of as many nodes get other addresses."""
ARCHIVES = (0, 4, 8)
"""In these of as many the committed log is archived."""
LASTING_FAULTS_RATE = 0.4
LASTING_WRITES = 20
"""So many writes, 10 ms apart, must commit although a fault lasts."""


def _is_one(seed: int, ones: tuple[int, ...], asked: bool | None) -> bool:
    return seed % OPERATORS_OF in ones if asked is None else asked


class Schedule:
    """Draws a cluster and its troubles from a seed, and runs them."""

    world_type: type[World] = World
    troubles_type: type[Troubles] = Troubles
    operators: Operators | None = None
    movers: Movers | None = None
    clients: Clients | None = None

    def __init__(
        self,
        seed: int,
        *,
        trace: bool = False,
        clients: bool | None = None,
        operators: bool | None = None,
        callers: bool | None = None,
        moves: bool | None = None,
        holders: bool | None = None,
        archives: bool | None = None,
    ) -> None:
        self.seed = seed
        # Half of the schedules have clients, the others a load that costs less.
        has_clients = seed % 4 in (1, 2) if clients is None else clients
        has_holders = has_clients and (seed % 8 == 1 if holders is None else holders)
        sizes = (1, 2, 2, 2, 3, 3, 3, 3, 3, 4, 5)
        n_nodes = sizes[seed % len(sizes)]
        min_in_sync = 2 if n_nodes > 1 and seed % 3 == 0 else 1
        has_operators = _is_one(seed, OPERATORS, operators)
        has_moves = _is_one(seed, MOVES, moves)
        n_witnesses = (1, 1, 0, 1, 2)[seed % 5]
        self.is_long = seed % LONG_EVERY == 0
        self.world = self.world_type(
            seed,
            n_nodes,
            min_in_sync=min_in_sync,
            n_members=max(1, n_nodes - 1) if seed % 7 == 0 else n_nodes,
            trace=trace,
            # Most begin with all replicas in sync and empty, the others by letting them join.
            all_in_sync=not self.is_long and seed % 4 != 0,
            n_witnesses=n_witnesses,
            has_service=has_clients,
            clocks_stop=seed // 4 % 8 == 0,
            is_registered=not has_moves or seed % 2 == 0,
            # What comes waits for the record before it, so that much waits when leases are due.
            max_inflight_records=1 if has_holders and seed // 8 % 2 else 4,
            archive_log_bytes=LOG_BYTES[seed % len(LOG_BYTES)]
            if _is_one(seed, ARCHIVES, archives)
            else 0,
            guard=make_guard() if _is_one(seed, CALLERS, callers) else None,
        )
        world, clockwork, random = self.world, self.world.clockwork, self.world.clockwork.random
        world.agreement.counts_votes = True
        clockwork.seen.update((f"replicas: {n_nodes}", f"witnesses: {n_witnesses}"))
        if clockwork.chance(0.3):
            world.takeover_order.update({name: random.randint(0, 3) for name in world.nodes})
        if self.is_long:
            self.duration_ms = clockwork.between(1500, 6000)
            self.fault_gap_ms = random.choice((60.0, 150.0, 300.0, 700.0))
        else:
            self.duration_ms = clockwork.between(200, 900)
            self.fault_gap_ms = random.choice((10.0, 20.0, 40.0, 80.0, 160.0))
        self.append_gap_ms = random.choice((5.0, 20.0, 50.0, 100.0))
        self._may_append = True
        world.agreement.unknown_rate = random.choice((0.0, 0.2, 0.5, 0.9))
        world.agreement.laggards = random.choice((0.0, 0.1, 0.4))
        # In half of them the others' memory of how far a node was is too old to be of any use.
        world.agreement.remembers = seed // 3 % 2 == 0
        world.snapshot_failure_rate = random.choice((0.0, 0.3))
        world.snapshot_ms = random.choice((20.0, 150.0, 800.0))
        world.agreement.delay_ms = (20.0, 120.0) if clockwork.chance(0.2) else (2.0, 15.0)
        troubles = self.troubles_type(world)
        all_faults = troubles.kinds()
        # Some kinds only: troubles of one kind in a row reach states that a mixture does not.
        kinds = random.choice((3, 6, 12, len(all_faults)))
        self._faults = random.sample(all_faults, kinds)
        self._confirms = random.choice((0.0, 0.1, 0.5))
        if world.clocks_stop:
            # It matters where others take over meanwhile, which needs time.
            self._faults = [*self._faults[:6], troubles.stop_clock, *[troubles.leave_behind] * 3]
            self.duration_ms = max(self.duration_ms, clockwork.between(900, 2500))
            self.fault_gap_ms = random.choice((80.0, 200.0, 400.0))
            self._confirms = 0.5
        if has_operators and n_nodes > 1:
            self._let_operators_err(Operators(world, troubles), troubles)
        elif has_moves:
            self._let_nodes_move(Movers(world, troubles), troubles)
        if has_clients:
            self.clients = Clients(world, f"seed {seed}", trusting=seed % 6 == 3)
        self.holders = Holders(self.clients) if self.clients and has_holders else None
        self.watchers = Watchers(world, seed)
        self.callers = Callers(world, seed) if world.guard else None
        self.archives = Archives(world, seed) if world.archive_log_bytes else None

    def _let_operators_err(self, operators: Operators, troubles: Troubles) -> None:
        """Who is a member changes only as production decides, for operators who make mistakes."""
        world, clockwork = self.world, self.world.clockwork
        self.operators = operators
        world.ids_are_used_once = True
        world.agreement.follow_ms = clockwork.random.choice(((1.0, 10.0), (20.0, 400.0)))
        rest = [fault for fault in self._faults if fault != troubles.change_members]
        self._faults = [*rest[:6], *operators.kinds()]
        self.duration_ms = max(self.duration_ms, clockwork.between(700, 2500))
        self.fault_gap_ms = clockwork.random.choice((40.0, 120.0, 300.0))

    def _let_nodes_move(self, movers: Movers, troubles: Troubles) -> None:
        """Nodes get other addresses, and others run under their names.

        An old copy that only its primary can tell of its loss must be found by that: none moves.
        """
        clockwork = self.world.clockwork
        self.movers = movers
        rest = [fault for fault in self._faults if fault != troubles.lose_entries]
        self._faults = [*rest[:6], *movers.kinds()]
        self.duration_ms = max(self.duration_ms, clockwork.between(700, 2500))
        self.fault_gap_ms = clockwork.random.choice((40.0, 120.0, 300.0))

    # -- the run

    def run(self) -> Counter[str]:
        """Run it; return how often what happened. Raises ViolationError."""
        world, clockwork = self.world, self.world.clockwork
        self._ends_ms = clockwork.now + self.duration_ms
        try:
            if self.clients is None:
                clockwork.after(0, self._append)
            else:
                self.clients.start()
                if self.holders is not None:
                    self.holders.start()
                clockwork.after(self.duration_ms + 300, self.clients.stop)
            clockwork.after(0, self._next_fault)
            clockwork.run_until(self._ends_ms)
            self._heal()
        except ViolationError:
            raise
        except Exception as error:
            raise ViolationError(f"a node has stopped: {type(error).__name__}: {error}") from error
        clockwork.seen["simulated ms"] = int(clockwork.now)
        clockwork.seen["events"] = clockwork.events
        clockwork.seen["entries acknowledged"] = world.oracle.acknowledged
        return clockwork.seen

    def _heal(self) -> None:
        """All faults end: everyone is in sync again soon, and equal. Then a few come, to stay."""
        world, clockwork = self.world, self.world.clockwork
        self._faults = []
        if self.operators is not None:
            self.operators.stopped = True
        if self.movers is not None:
            self.movers.stop()
        world.is_troubled = False
        if self.callers is not None:
            self.callers.running = False
        self.watchers.breaks = False
        if self.archives is not None:
            self.archives.end_troubles()
        world.heal()
        healed_ms = clockwork.now
        deadline = clockwork.now + HEALING_LIMIT_MS
        appended = False
        while True:
            world.run_for(10)
            world.replace_the_removed()  # a removal asked for before may take effect only now
            problem = world.whole_problem() or self.watchers.problem()
            if self.movers is not None:
                problem = problem or self.movers.problem()
            if self.archives is not None:
                problem = problem or self.archives.problem()
            if clockwork.now >= deadline:
                raise ViolationError(
                    f"not whole {HEALING_LIMIT_MS:.0f} ms after healing: {problem}"
                )
            if problem:
                continue
            if appended:
                break
            # It is quiet: what is written now must get everywhere, too.
            self._may_append = False
            if self.clients is not None:
                self.clients.stop()
            primary = world.primary()
            appended = primary is not None and primary.append(1)
        primary = world.primary()  # perhaps another one: an old take-over may have come through
        if self.clients is not None and primary is not None:
            self.clients.read_all(primary)
            if self.holders is not None:
                self.holders.settle(primary, healed_ms)
        if not world.agreement.is_settled():
            return  # what was proposed before may still take a replica that is well out
        if clockwork.chance(LASTING_FAULTS_RATE if self.is_long else LASTING_FAULTS_RATE / 2):
            if clockwork.chance(0.3):
                self._go_on_without_a_majority()
            else:
                self._go_on_with(self._leave_some())

    def _go_on_without_a_majority(self) -> None:
        """Nothing can be decided; all replicas run, and one pauses: that ends nothing for good."""
        world, clockwork = self.world, self.world.clockwork
        clockwork.seen["lasting: no majority"] += 1
        world.agreement.is_lost = True
        for _ in range(clockwork.random.randint(1, 3)):
            node = world.nodes[clockwork.random.choice(world.view.in_sync)]
            world.run_for(clockwork.between(0, 300))
            node.pause()
            world.run_for(clockwork.between(200, 1200))
            node.resume()
        self._go_on_with({"no majority"})

    def _go_on_with(self, lasting: set[str]) -> None:
        """With a fault that lasts the cluster must take writes again, soon and for good."""
        world, clockwork = self.world, self.world.clockwork
        if lasting != {"no majority"} and not self._somebody_could_serve(lasting):
            return
        deadline = clockwork.now + HEALING_LIMIT_MS
        appended = 0
        while True:
            world.run_for(10)
            problem = self._write_problem(appended)
            if appended >= LASTING_WRITES and not problem:
                return
            if clockwork.now >= deadline:
                raise ViolationError(
                    f"no writes {HEALING_LIMIT_MS:.0f} ms after {sorted(lasting)} began: {problem}"
                )
            primary = world.primary()
            appended += primary is not None and primary.append(1)

    def _write_problem(self, appended: int) -> str:
        """Why the cluster, with a lasting fault, does not take writes."""
        world = self.world
        primary = world.primary()
        if primary is None:
            return "nobody serves"
        state = primary.replica.state
        if state.commit_index < state.log.last_index:
            return f"{primary.id} does not commit {state.log.last_index}"
        return "" if appended else "nothing could be written"

    def _leave_some(self) -> set[str]:
        """Keep a fault or two for good; return what, as "kind node"."""
        world, random = self.world, self.world.clockwork.random
        names = list(world.nodes)
        faults: set[str] = set()
        for _ in range(random.randint(1, 2) if len(names) > 2 else 1):
            node = world.nodes[random.choice(names)]
            kind = random.choice(
                ("dead", "alone", "no consensus", "deaf to consensus", "no disk", "deaf to")
            )
            if any(item.endswith(node.id) for item in faults):
                continue
            faults.add(f"{kind} {node.id}")
            if kind == "dead" and node.is_up:
                node.crash()
            elif kind == "alone":
                for other in names:
                    world.network.cut(node.id, other)
                world.agreement.cut_off.add(node.id)
                world.agreement.cut_off_for_good.add(node.id)
            elif kind in ("no consensus", "deaf to consensus"):
                if kind == "deaf to consensus":
                    world.agreement.deaf.add(node.id)
                world.agreement.cut_off.add(node.id)
                world.agreement.cut_off_for_good.add(node.id)
            elif kind == "no disk":
                node.disk.stall()
            elif kind == "deaf to":
                world.network.cut(random.choice(names), node.id)
        for fault in faults:
            world.clockwork.seen[f"lasting: {fault[:-2]}"] += 1
            if world.clockwork.tracing:
                world.clockwork.note(f"BUT {fault} LASTS")
        return faults

    def _somebody_could_serve(self, lasting: set[str]) -> bool:
        """Whether enough replicas are well; all were in sync when the faults began."""
        world = self.world
        ill = {fault[-1] for fault in lasting}
        well = {node.id for node in world.live_members()} - ill
        return len(well) >= world.bounds.min_in_sync and world.agreement.has_majority()

    def _append(self) -> None:
        clockwork = self.world.clockwork
        if not self._may_append:
            return
        for node in self.world.nodes.values():
            if node.is_up and node.replica.primary is not None:
                if clockwork.chance(self._confirms):
                    node.confirm()
                node.append(clockwork.random.randint(1, 5))
                if clockwork.chance(self._confirms):
                    node.confirm()
        if clockwork.now > self._ends_ms + 300:
            return
        clockwork.after(clockwork.random.expovariate(1 / self.append_gap_ms), self._append)

    def _next_fault(self) -> None:
        if self._faults:
            clockwork = self.world.clockwork
            clockwork.random.choice(self._faults)()
            gap = clockwork.random.expovariate(1 / self.fault_gap_ms)
            clockwork.after(gap, self._next_fault)
