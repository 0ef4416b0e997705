"""One random schedule: a seed's cluster, its load and faults, and whether it recovers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from datapath.errors import SafetyError
from election.view import AddMember, RemoveMember
from tests.sim.clients import Clients
from tests.sim.clockwork import ViolationError
from tests.sim.disk import FAST_MS as FAST_DISK_MS
from tests.sim.disk import SLOW_MS as SLOW_DISK_MS
from tests.sim.network import FAST_MS as FAST_NETWORK_MS
from tests.sim.network import SLOW_MS as SLOW_NETWORK_MS
from tests.sim.node import Node
from tests.sim.world import World, make_member

HEALING_LIMIT_MS = 10_000.0
LASTING_FAULTS_RATE = 0.4
LASTING_WRITES = 20
"""So many writes, 20 ms apart, must commit although a fault lasts."""


class Schedule:
    """Draws a cluster and its troubles from a seed, and runs them."""

    def __init__(self, seed: int, *, trace: bool = False, clients: bool | None = None) -> None:
        self.seed = seed
        # Half of the schedules have clients, the others a load that costs less.
        has_clients = seed % 4 in (1, 2) if clients is None else clients
        sizes = (1, 2, 2, 2, 3, 3, 3, 3, 3, 4, 5)
        n_nodes = sizes[seed % len(sizes)]
        min_in_sync = 2 if n_nodes > 1 and seed % 3 == 0 else 1
        n_members = max(1, n_nodes - 1) if seed % 7 == 0 else n_nodes
        self.world = World(
            seed,
            n_nodes,
            min_in_sync=min_in_sync,
            n_members=n_members,
            trace=trace,
            has_service=has_clients,
        )
        world, clockwork = self.world, self.world.clockwork
        random = clockwork.random
        if clockwork.chance(0.3):
            world.takeover_order.update({name: random.randint(0, 3) for name in world.nodes})
        self.duration_ms = clockwork.between(1500, 6000)
        self.fault_gap_ms = random.choice((60.0, 150.0, 300.0, 700.0))
        self.append_gap_ms = random.choice((5.0, 15.0, 60.0))
        self._may_append = True
        world.agreement.unknown_rate = random.choice((0.0, 0.1, 0.4, 0.8))
        world.agreement.laggards = random.choice((0.0, 0.1, 0.4))
        world.snapshot_failure_rate = random.choice((0.0, 0.3))
        world.snapshot_ms = random.choice((20.0, 150.0, 800.0))
        if clockwork.chance(0.2):
            world.agreement.delay_ms = (20.0, 120.0)
        all_faults: list[Callable[[], None]] = [
            self._crash, self._crash, self._crash_all, self._pause, self._pause, self._stutter,
            self._cut_one_way, self._cut_pair, self._isolate, self._drop, self._drop,
            self._slow_network, self._cut_consensus, self._cut_consensus, self._slow_disk,
            self._stall_disk, self._fill_disk, self._hand_over, self._hand_over, self._trim,
            self._trim, self._trim, self._change_members, self._lose_entries,
        ]  # fmt: skip
        if has_clients:
            # The ones that make a primary serve clients that should have left it.
            all_faults += [self._cut_off, self._cut_off]
        # Some kinds only: troubles of one kind in a row reach states that a mixture does not.
        kinds = random.choice((3, 6, 12, len(all_faults)))
        self._faults = random.sample(all_faults, kinds)
        self.clients = Clients(world, f"seed {seed}") if has_clients else None

    # -- the run

    def run(self) -> Counter[str]:
        """Run it; return how often what happened. Raises ViolationError."""
        world, clockwork = self.world, self.world.clockwork
        try:
            if self.clients is None:
                clockwork.after(0, self._append)
            else:
                self.clients.start()
                clockwork.after(self.duration_ms + 300, self.clients.stop)
            clockwork.after(0, self._next_fault)
            clockwork.run_until(self.duration_ms)
            self._heal()
        except SafetyError as error:
            raise ViolationError(f"a node has stopped: {error}") from error
        clockwork.seen["simulated ms"] = int(clockwork.now)
        clockwork.seen["events"] = clockwork.events
        clockwork.seen["entries acknowledged"] = world.oracle.acknowledged
        return clockwork.seen

    def _heal(self) -> None:
        """All faults end: everyone is in sync again soon, and equal. Then a few come, to stay."""
        world, clockwork = self.world, self.world.clockwork
        self._faults = []
        world.heal()
        deadline = clockwork.now + HEALING_LIMIT_MS
        appended = False
        while True:
            world.run_for(20)
            problem = world.whole_problem()
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
        if self.clients is not None and primary is not None:
            self.clients.read_all(primary)
        if clockwork.chance(LASTING_FAULTS_RATE):
            self._go_on_with(self._leave_some())

    def _go_on_with(self, lasting: set[str]) -> None:
        """With a fault that lasts the cluster must take writes again, soon and for good."""
        world, clockwork = self.world, self.world.clockwork
        if not self._somebody_could_serve(lasting):
            return
        deadline = clockwork.now + HEALING_LIMIT_MS
        appended = 0
        while True:
            world.run_for(20)
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
        core = primary.replica.core
        if core.commit_index < core.log.last_index:
            return f"{primary.id} does not commit {core.log.last_index}"
        return "" if appended else "nothing could be written"

    def _leave_some(self) -> set[str]:
        """Keep a fault or two for good; return what, as "kind node"."""
        world, random = self.world, self.world.clockwork.random
        names = list(world.nodes)
        faults: set[str] = set()
        for _ in range(random.randint(1, 2) if len(names) > 2 else 1):
            node = world.nodes[random.choice(names)]
            kind = random.choice(("dead", "alone", "no consensus", "no disk", "deaf to"))
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
            elif kind == "no consensus":
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
        return len(well) >= world.bounds.min_in_sync

    def _append(self) -> None:
        clockwork = self.world.clockwork
        if not self._may_append:
            return
        for node in self.world.nodes.values():
            if node.is_up and node.replica.primary is not None:
                node.append(clockwork.random.randint(1, 5))
        if clockwork.now > self.duration_ms + 300:
            return
        clockwork.after(clockwork.random.expovariate(1 / self.append_gap_ms), self._append)

    # -- faults

    def _next_fault(self) -> None:
        if self._faults:
            clockwork = self.world.clockwork
            clockwork.random.choice(self._faults)()
            gap = clockwork.random.expovariate(1 / self.fault_gap_ms)
            clockwork.after(gap, self._next_fault)

    def _node(self) -> Node:
        """Draw a node; the primary more often than others, for there it hurts."""
        world, random = self.world, self.world.clockwork.random
        if random.random() < 0.3:
            return world.nodes[world.view.primary]
        return random.choice(list(world.nodes.values()))

    def _after(
        self, low_ms: float, high_ms: float, action: Callable[..., None], *args: object
    ) -> None:
        clockwork = self.world.clockwork
        clockwork.after(clockwork.between(low_ms, high_ms), action, *args)

    def _may_stop(self) -> bool:
        """After a loss of durable entries the others must live on: it is one fault too many."""
        return not any(node.has_lost for node in self.world.nodes.values())

    def _crash(self) -> None:
        node = self._node()
        if node.is_up and self._may_stop():
            self.world.clockwork.seen["crash"] += 1
            node.crash()
            self._after(5, self.world.clockwork.random.choice((50, 400, 2000)), self._start, node)

    def _start(self, node: Node) -> None:
        if not node.is_up:
            node.start()

    def _crash_all(self) -> None:
        if not self._may_stop():
            return
        self.world.clockwork.seen["power cut"] += 1
        for node in self.world.nodes.values():
            if node.is_up:
                node.crash()
                self._after(5, 600, self._start, node)

    def _lose_entries(self) -> None:
        """The medium loses entries that were durable: one at a time, and others hold them."""
        world, clockwork = self.world, self.world.clockwork
        node = self._node()
        others = [name for name in world.view.in_sync if name != node.id]
        if (
            not node.is_up
            or not self._may_stop()
            or not others
            or any(world.agreement.in_flight.values())
            or any(not world.nodes[name].is_up or world.nodes[name].has_lost for name in others)
            or any(world.nodes[name].replica.core.suspect for name in others)
            or any(world.nodes[name].replica.core.damaged for name in world.nodes)
        ):
            return
        world.heal()
        log = node.disk.durable
        if not log.records:
            return
        damage = clockwork.chance(0.5)
        lost = clockwork.random.randint(1, min(3, len(log.records)))
        clockwork.seen["damage" if damage else "lost tail"] += 1
        node.crash(log.records[-lost].first_index, damage=damage)
        self._after(5, 900, self._start, node)
        if clockwork.chance(0.4):
            # The others cannot take over at once, so the one with less proposes itself, too.
            for name in world.nodes:
                if name != node.id:
                    world.agreement.cut_off.add(name)
                    self._after(1500, 2500, world.agreement.reconnect, name)

    def _pause(self) -> None:
        node = self._node()
        if node.is_up and not node.paused and self._may_stop():
            self.world.clockwork.seen["pause"] += 1
            node.pause()
            self._after(20, self.world.clockwork.random.choice((200, 700, 1600)), node.resume)

    def _stutter(self) -> None:
        """All nodes stand still for a moment, as on a machine that is overloaded."""
        for node in self.world.nodes.values():
            if node.is_up and not node.paused:
                node.pause()
                self._after(5, 250, node.resume)

    def _cut(self, source: str, target: str, duration_ms: float) -> None:
        if self._may_stop():
            self.world.network.cut(source, target)
            self.world.clockwork.after(duration_ms, self.world.network.heal, source, target)

    def _duration(self) -> float:
        clockwork = self.world.clockwork
        return clockwork.between(20, clockwork.random.choice((150, 500, 2500)))

    def _two(self) -> tuple[str, str]:
        source = self._node().id
        others = [name for name in self.world.nodes if name != source]
        return source, (self.world.clockwork.random.choice(others) if others else source)

    def _cut_one_way(self) -> None:
        source, target = self._two()
        self.world.clockwork.seen["one-way cut"] += 1
        self._cut(source, target, self._duration())

    def _cut_pair(self) -> None:
        source, target = self._two()
        duration = self._duration()
        self._cut(source, target, duration)
        self._cut(target, source, duration)

    def _isolate(self) -> None:
        node, duration = self._node(), self._duration()
        way = self.world.clockwork.random.choice(("in", "out", "both"))
        self.world.clockwork.seen["isolation"] += 1
        for other in self.world.nodes:
            if way != "in":
                self._cut(node.id, other, duration)
            if way != "out":
                self._cut(other, node.id, duration)

    def _drop(self) -> None:
        self.world.network.drop(*self._two())

    def _slow_network(self) -> None:
        network = self.world.network
        network.delay_ms = SLOW_NETWORK_MS
        self._after(50, 1000, setattr, network, "delay_ms", FAST_NETWORK_MS)

    def _cut_consensus(self) -> None:
        agreement = self.world.agreement
        node = self._node()
        if node.id not in agreement.cut_off:
            self.world.clockwork.seen["consensus cut"] += 1
            agreement.cut_off.add(node.id)
            self._after(50, 2500, agreement.reconnect, node.id)

    def _cut_off(self) -> None:
        """The primary reaches nobody any more, and does not hear that it has been replaced."""
        world, duration = self.world, self.world.clockwork.between(400, 2500)
        name = world.view.primary
        if name in world.agreement.cut_off:
            return
        world.clockwork.seen["cut off"] += 1
        world.agreement.cut_off.add(name)
        world.clockwork.after(duration, world.agreement.reconnect, name)
        for other in world.nodes:
            self._cut(name, other, duration)
            self._cut(other, name, duration)

    def _slow_disk(self) -> None:
        disk = self._node().disk
        disk.latency_ms = SLOW_DISK_MS
        self._after(50, 1500, setattr, disk, "latency_ms", FAST_DISK_MS)

    def _stall_disk(self) -> None:
        disk = self._node().disk
        if disk.stalled_since is None and self._may_stop():
            self.world.clockwork.seen["disk stall"] += 1
            disk.stall()
            self._after(50, 2500, disk.resume)

    def _fill_disk(self) -> None:
        node = self._node()
        if node.is_up:
            self.world.clockwork.seen["full disk"] += 1
            core = node.replica.core
            core.writable = False
            self._after(50, 1500, setattr, core, "writable", True)

    def _hand_over(self) -> None:
        world = self.world
        to = world.clockwork.random.choice(world.view.in_sync)
        world.nodes[world.view.primary].hand_over(to)

    def _trim(self) -> None:
        node = self._node()
        if node.is_up:
            log = node.disk.cache
            node.trim(self.world.clockwork.random.randint(log.base_index, log.last_index + 1))

    def _change_members(self) -> None:
        world = self.world
        name = world.clockwork.random.choice(list(world.nodes))
        view = world.view
        if view.member(name) is None:
            world.agreement.commit(AddMember(make_member(name)), view.version)
        elif len(view.members) > 3 and name not in (view.primary, *self._needed()):
            world.agreement.commit(RemoveMember(name), view.version)

    def _needed(self) -> tuple[str, ...]:
        """Who holds what a replica with lost entries needs."""
        return self.world.view.in_sync if not self._may_stop() else ()
