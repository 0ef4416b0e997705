"""The kinds of faults, and of mistakes, one method each. A fault ends by itself after a while."""

from __future__ import annotations

from collections.abc import Callable

from election.view import AddMember, RemoveMember, ViewChange
from tests.sim.consensus.disk import FAST_MS as FAST_DISK_MS
from tests.sim.consensus.disk import SLOW_MS as SLOW_DISK_MS
from tests.sim.consensus.network import FAST_MS as FAST_NETWORK_MS
from tests.sim.consensus.network import SLOW_MS as SLOW_NETWORK_MS
from tests.sim.consensus.node import CLOCK_RATES, Node
from tests.sim.consensus.world import World


class Troubles:
    """Brings faults on a world; where, how and for how long is drawn from its random numbers."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._copies: dict[str, tuple[int, dict[str, bytes]]] = {}

    def kinds(self) -> list[Callable[[], None]]:
        """Return all of them, the more important ones more than once."""
        return [
            self.crash, self.crash, self.cut_power, self.cut_power_of_all, self.crash_at_a_step,
            self.crash_at_a_step, self.restart, self.pause, self.stutter,
            self.cut_one_way, self.cut_pair, self.isolate, self.isolate_leader, self.split,
            self.swizzle, self.break_connections, self.stall_connections, self.slow_network,
            self.go_far,
            self.slow_disk, self.slow_disk, self.stall_disk, self.fail_sync, self.fill_disk,
            self.change_clock_rate,
            self.add, self.add, self.add, self.remove, self.remove, self.remove,
            self.add_and_remove_at_once, self.add_again, self.start_a_stranger,
            self.move, self.swap_addresses, self.flood, self.flood, self.depose,
            self.change_behind_a_queue, self.change_behind_a_queue, self.change_behind_a_queue,
            self.put_back_an_old_copy,
        ]  # fmt: skip

    # -- what, where, how long

    def _seen(self, what: str) -> None:
        clockwork = self.world.clockwork
        clockwork.seen[what] += 1
        if clockwork.tracing:
            clockwork.note(f"TROUBLE {what}")

    def _node(self) -> Node:
        """Draw a node; the leader more often than others, for there it hurts."""
        world, random = self.world, self.world.clockwork.random
        leader = world.leader()
        if leader is not None and random.random() < 0.3:
            return leader
        return random.choice(list(world.nodes.values()))

    def _running(self) -> Node:
        """Draw a node to ask: one that runs, if there is one."""
        node = self._node()
        running = [other for other in self.world.nodes.values() if other.is_up]
        return node if node.is_up or not running else self.world.clockwork.random.choice(running)

    def _after(
        self, low_ms: float, high_ms: float, action: Callable[..., None], *args: object
    ) -> None:
        clockwork = self.world.clockwork
        clockwork.after(clockwork.between(low_ms, high_ms), action, *args)

    def _duration(self) -> float:
        clockwork = self.world.clockwork
        return clockwork.between(20, clockwork.random.choice((150, 400, 900)))

    def _start_later(self, node: Node) -> None:
        longest = self.world.clockwork.random.choice((30, 200, 800))
        self._after(2, longest, self.world.restart, node, node.life)

    # -- processes and machines

    def crash(self) -> None:
        node = self._node()
        if node.is_up:
            self._seen("crash")
            node.crash(power=False)
            self._start_later(node)

    def cut_power(self) -> None:
        node = self._node()
        if node.is_up:
            self._seen("power cut")
            node.crash(power=True)
            self._start_later(node)

    def cut_power_of_all(self) -> None:
        self._seen("power cut of all")
        for node in self.world.nodes.values():
            if node.is_up:
                node.crash(power=True)
                self._start_later(node)

    def crash_at_a_step(self) -> None:
        """A crash between two writes, or between two messages."""
        clockwork, node = self.world.clockwork, self._node()
        if node.is_up:
            self._seen("crash at a step")
            node.crash_at_step(clockwork.random.randint(0, 12), power=clockwork.chance(0.6))
            self._watch_for_its_end(node, node.life)

    def _watch_for_its_end(self, node: Node, life: int) -> None:
        if node.life != life:
            return
        if node.is_up:
            self.world.clockwork.after(20, self._watch_for_its_end, node, life)
        else:
            self._start_later(node)

    def restart(self) -> None:
        """Stop a node in good order."""
        node = self._node()
        if node.is_up and not node.is_paused:
            self._seen("restart")
            node.stop()
            self._watch_for_its_end(node, node.life)

    def pause(self) -> None:
        node = self._node()
        if node.is_up and not node.is_paused:
            self._seen("pause")
            node.pause()
            self._after(20, self.world.clockwork.random.choice((100, 400, 1200)), node.resume)

    def stutter(self) -> None:
        """All stand still for a moment, as on a machine that is overloaded."""
        self._seen("stutter")
        for node in self.world.nodes.values():
            if node.is_up and not node.is_paused:
                node.pause()
                self._after(5, 250, node.resume)

    def change_clock_rate(self) -> None:
        self._seen("clock rate change")
        self._node().set_clock_rate(self.world.clockwork.between(*CLOCK_RATES))

    # -- links

    def _cut(self, source: str, target: str, duration_ms: float) -> None:
        self.world.wires.cut(source, target)
        self.world.clockwork.after(duration_ms, self._heal_if_troubled, source, target)

    def _cut_sides(
        self, left: list[str], right: list[str], duration_ms: float | None = None
    ) -> None:
        duration = self._duration() if duration_ms is None else duration_ms
        for one in left:
            for other in right:
                self._cut(one, other, duration)
                self._cut(other, one, duration)

    def _two(self) -> tuple[str, str] | None:
        source = self._node().id
        others = [name for name in self.world.nodes if name != source]
        return (source, self.world.clockwork.random.choice(others)) if others else None

    def cut_one_way(self) -> None:
        two = self._two()
        if two:
            self._seen("one-way cut")
            self._cut(*two, self._duration())

    def cut_pair(self) -> None:
        two = self._two()
        if two:
            self._seen("pair cut")
            self._cut_sides([two[0]], [two[1]])

    def isolate(self) -> None:
        node = self._node()
        self._seen("isolation")
        self._cut_sides([node.id], [name for name in self.world.nodes if name != node.id])

    def isolate_leader(self) -> None:
        """The leader is alone, or hears nothing, or is not heard."""
        leader = self.world.leader()
        if leader is None or not self.world.is_troubled:
            return
        self._seen("leader isolated")
        way, duration = self.world.clockwork.random.choice(("both", "in", "out")), self._duration()
        for name in self.world.nodes:
            if name != leader.id:
                if way != "in":
                    self._cut(leader.id, name, duration)
                if way != "out":
                    self._cut(name, leader.id, duration)

    def split(self) -> None:
        """Two halves, where five vote: 2|3."""
        names, voters = list(self.world.nodes), sorted(self.world.oracle.voters)
        if len(names) < 2:
            return
        random = self.world.clockwork.random
        self._seen("split")
        duration = None
        if len(voters) == 5 and random.random() < 0.7:
            left = self._two_of_five(voters)
            duration = self.world.clockwork.between(100, 900)  # often enough for an election
        else:
            left = random.sample(
                names, random.choice((len(names) // 2, 1, max(1, len(names) // 3)))
            )
        self._cut_sides(left, [name for name in names if name not in left], duration)

    def _two_of_five(self, voters: list[str]) -> list[str]:
        """Draw two voters for one side, the leader half of the time; who else is there joins."""
        world, random = self.world, self.world.clockwork.random
        leader = world.leader()
        two = random.sample(voters, 2)
        if leader is not None and leader.id in voters and random.random() < 0.6:
            two = [leader.id, random.choice([name for name in voters if name != leader.id])]
        self._seen("split of five voters, 2|3")
        if leader is not None and leader.id in two and leader.core is not None:
            self._seen("split 2|3, the leader among the two")
            world.oracle.watch_split(leader.core.raftCurrentTerm, frozenset(two))
        others = [name for name in world.nodes if name not in voters]
        return two + [name for name in others if random.random() < 0.5]

    def swizzle(self) -> None:
        """Some links stop one by one, and are healed one by one in another order."""
        clockwork = self.world.clockwork
        names = list(self.world.nodes)
        links = [(source, target) for source in names for target in names if source != target]
        if not links:
            return
        self._seen("swizzle")
        chosen = clockwork.random.sample(links, clockwork.random.randint(1, len(links)))
        step_ms, time_ms = clockwork.random.choice((2.0, 20.0, 60.0)), 0.0
        for link in chosen:
            time_ms += clockwork.between(0, step_ms)
            clockwork.after(time_ms, self._cut_if_troubled, *link)
        time_ms += self._duration() / 2
        for link in clockwork.random.sample(chosen, len(chosen)):
            time_ms += clockwork.between(0, step_ms)
            clockwork.after(time_ms, self._heal_if_troubled, *link)

    def _cut_if_troubled(self, source: str, target: str) -> None:
        if self.world.is_troubled:
            self.world.wires.cut(source, target)

    def _heal_if_troubled(self, source: str, target: str) -> None:
        """Undo a cut of these troubles: all are undone at their end, and later cuts are others'."""
        if self.world.is_troubled:
            self.world.wires.heal(source, target)

    def break_connections(self) -> None:
        clockwork = self.world.clockwork
        for connection in list(self.world.wires.connections):
            if clockwork.chance(0.4):
                self._seen("broken connection")
                connection.break_()

    def stall_connections(self) -> None:
        """What these carry arrives after messages of the connections that follow them."""
        clockwork, wires = self.world.clockwork, self.world.wires
        for connection in list(wires.connections):
            if clockwork.chance(0.4):
                self._seen("stalled connection")
                connection.is_stalled = True
                clockwork.after(clockwork.between(50, 1500), wires.let_go_on, connection)

    def slow_network(self) -> None:
        self._seen("slow network")
        self.world.wires.delay_ms = SLOW_NETWORK_MS
        self.world.clockwork.after(self._duration(), self._fast_network)

    def _fast_network(self) -> None:
        self.world.wires.delay_ms = FAST_NETWORK_MS

    def go_far(self) -> None:
        """One direction takes much longer for a while."""
        two = self._two()
        if two:
            self._seen("far link")
            self.world.wires.extra_ms[two] = self.world.clockwork.between(5, 150)
            self.world.clockwork.after(self._duration(), self._come_near, two)

    def _come_near(self, two: tuple[str, str]) -> None:
        self.world.wires.extra_ms.pop(two, None)

    # -- disks

    def slow_disk(self) -> None:
        """Each sync takes tens of milliseconds, on one machine or on all."""
        world = self.world
        self._seen("slow disk")
        nodes = list(world.nodes.values()) if world.clockwork.chance(0.3) else [self._node()]
        duration = world.clockwork.between(200, 1200)
        for node in nodes:
            node.disk.latency_ms = SLOW_DISK_MS
            world.clockwork.after(duration, self._fast_disk, node)

    @staticmethod
    def _fast_disk(node: Node) -> None:
        node.disk.latency_ms = FAST_DISK_MS

    def stall_disk(self) -> None:
        self._seen("disk stall")
        self._node().disk.stalled_until = self.world.clockwork.now + self._duration()

    def fail_sync(self) -> None:
        node = self._node()
        if node.is_up:
            node.disk.fails_next = True

    def fill_disk(self) -> None:
        node = self._node()
        self._seen("full disk")
        node.disk.is_full = True
        self.world.clockwork.after(self._duration(), self._empty_disk, node)

    @staticmethod
    def _empty_disk(node: Node) -> None:
        node.disk.is_full = False

    def put_back_an_old_copy(self) -> None:
        """An operator replaces a node's raft directory by a copy that lacks what it has told."""
        world, node = self.world, self._node()
        facts = world.oracle.facts_of(node)
        copy = self._copies.get(node.id)
        if copy is None or copy[0] >= facts.published_index or node.disk.is_full:
            if node.is_up:
                self._copies[node.id] = (
                    world.oracle.durable(node.id).last_index,
                    node.disk.copy_of(node.directory),
                )
            return
        self._seen("old copy put back")
        if node.is_up:
            node.crash(power=True)
        newest = node.disk.copy_of(node.directory)
        node.disk.put_back(node.directory, copy[1])
        node.expects_refusal = (
            f"its directory ends at entry {copy[0]}, and it has told of {facts.published_index}"
        )
        node.start()
        node.expects_refusal = ""
        if node.is_up:
            node.crash(power=True)
        node.disk.put_back(node.directory, newest)
        self._start_later(node)

    # -- operators

    def add(self) -> None:
        """A newcomer, whose process starts before it is a member or after."""
        newcomer = self.world.newcomer()
        if newcomer is None:
            return
        self._seen("addition asked for")
        self._after(0, 500, newcomer.start)
        self._add(newcomer, 8)

    def _add(self, newcomer: Node, times: int) -> None:
        view = self.world.view
        if view is None or view.member(newcomer.id) is not None or times == 0:
            return
        if not self.world.is_troubled:
            return
        self.world.operators.add(self._running(), newcomer)
        self._after(20, 200, self._add, newcomer, times - 1)

    def remove(self) -> None:
        """A member is removed; its process is stopped soon, late, or never."""
        world, random = self.world, self.world.clockwork.random
        members = world.member_ids
        if world.view is None or len(members) < 2:
            return
        self._seen("removal asked for")
        self._remove(world.nodes[random.choice(members)], 8)

    def _remove(self, leaver: Node, times: int) -> None:
        world = self.world
        view = world.view
        if view is None or view.member(leaver.id) is None:
            self._retire_later(leaver)
            return
        if times and world.is_troubled:
            world.operators.remove(self._running(), leaver)
            self._after(20, 200, self._remove, leaver, times - 1)

    def _retire_later(self, leaver: Node) -> None:
        if self.world.clockwork.chance(0.5):
            self._after(0, 1500, self._retire, leaver)

    def _retire(self, leaver: Node) -> None:
        world = self.world
        if world.is_troubled and not world.must_run(leaver):
            leaver.is_retired = True
            leaver.crash(power=False)

    def add_and_remove_at_once(self) -> None:
        """Two operators who do not know of each other."""
        self._seen("two operators at once")
        self.remove()
        self.add()

    def add_again(self) -> None:
        """An operator adds a node again that was removed, and whose process may still run."""
        view, random = self.world.view, self.world.clockwork.random
        if view is None:
            return
        gone = [self.world.nodes[name] for name in view.removed if view.member(name) is None]
        if gone:
            self._seen("added again")
            node = random.choice(gone)
            node.is_retired = False
            node.start()
            self._add(node, 4)

    def start_a_stranger(self) -> None:
        """A node is started that nobody adds."""
        node = self.world.newcomer()
        if node is not None:
            self._seen("stranger started")
            node.start()

    def move(self) -> None:
        """A node comes back at another address."""
        node = self._node()
        if node.is_up:
            self._seen("address moved")
            node.crash(power=False)
            node.move(self.world.new_address(node))
            self._start_later(node)

    def swap_addresses(self) -> None:
        """Two nodes come back at each other's addresses."""
        two = self._two()
        if two is None:
            return
        one, other = (self.world.nodes[name] for name in two)
        if one.is_up and other.is_up:
            self._seen("addresses swapped")
            for node in (one, other):
                node.crash(power=False)
                self._start_later(node)
            first, second = one.address, other.address
            one.move(second)
            other.move(first)
            self.world.wires.machines[second] = one

    def flood(self) -> None:
        """A queue that backs up behind the disk."""
        world = self.world
        leader = world.leader()
        node = leader if leader is not None and world.clockwork.chance(0.7) else self._running()
        if node.is_up:
            self._seen("flood")
            if world.clockwork.chance(0.5):
                node.disk.latency_ms = SLOW_DISK_MS
                self._after(300, 1500, self._fast_disk, node)
            world.operators.flood(node, world.clockwork.random.randint(3, 40))

    def change_behind_a_queue(self) -> None:
        """Members change while the leader's queue is long and its disk slow: steps wait there."""
        world, random = self.world, self.world.clockwork.random
        leader, view = world.leader(), world.view
        newcomer = world.newcomer() or self._outsider()
        if leader is None or view is None or newcomer is None:
            return
        others = [member.id for member in view.members if member.id != view.primary]
        self._seen("change behind a queue")
        leader.disk.latency_ms = SLOW_DISK_MS
        self._after(600, 1500, self._fast_disk, leader)
        changes: list[ViewChange] = [AddMember(newcomer.member())]
        if others:
            changes.append(RemoveMember(random.choice(others)))
        random.shuffle(changes)
        for ahead, change in enumerate(changes):
            world.operators.propose(leader, change, ahead=ahead)
            for _ in range(random.randint(2, 8)):
                world.operators.read(leader)
        self._after(0, 500, newcomer.start)

    def _outsider(self) -> Node | None:
        """Draw a node that is no member."""
        members = self.world.member_ids
        others = [node for name, node in self.world.nodes.items() if name not in members]
        return self.world.clockwork.random.choice(others) if others else None

    def depose(self) -> None:
        """The leader loses its place while the members are being changed."""
        leader = self.world.leader()
        if leader is not None and leader.core is not None:
            self._seen("deposed during a change")
            self.add_and_remove_at_once()
            self._after(0, 120, self.isolate_leader)
