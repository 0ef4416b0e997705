"""The kinds of faults, one method each. A fault ends by itself after a while."""

from __future__ import annotations

from collections.abc import Callable

from election.view import AddMember, RemoveMember
from tests.sim.disk import FAST_MS as FAST_DISK_MS
from tests.sim.disk import SLOW_MS as SLOW_DISK_MS
from tests.sim.network import FAST_MS as FAST_NETWORK_MS
from tests.sim.network import SLOW_MS as SLOW_NETWORK_MS
from tests.sim.node import CLOCK_RATES, Node
from tests.sim.world import World


class Troubles:
    """Brings faults on a world; where, how and for how long is drawn from its random numbers."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._agreement_ms = world.agreement.delay_ms

    def kinds(self) -> list[Callable[[], None]]:
        """Return all of them, the more important ones more than once."""
        return [
            self.crash, self.crash, self.crash_all, self.pause, self.pause, self.stutter,
            self.cut_one_way, self.cut_pair, self.isolate, self.swizzle, self.split,
            self.drop, self.drop, self.slow_network, self.go_far,
            self.cut_consensus, self.cut_consensus, self.slow_agreement, self.stop_witness,
            self.slow_disk, self.stall_disk, self.fail_disk, self.fill_disk,
            self.lose_entries, self.lose_entries, self.put_back, self.put_back,
            self.hand_over, self.hand_over, self.hand_over, self.trim, self.trim,
            self.outgrow, self.outgrow,
            self.change_members, self.change_clock_rate,
            self.cut_off, self.cut_off,
        ]  # fmt: skip

    # -- what, where, how long

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

    def may_stop(self) -> bool:
        """After a loss of durable entries the others must live on: it is one fault too many.

        Not so if nodes without that data remember it, or it has noted itself what it was told.
        """
        lost = [node for node in self.world.nodes.values() if node.has_lost]
        return all(node.loss_is_remembered or node.loss_is_noted for node in lost)

    def _has_lost(self) -> bool:
        return any(node.has_lost for node in self.world.nodes.values())

    # -- processes

    def crash(self) -> None:
        node = self._node()
        if node.is_up and self.may_stop():
            self.world.clockwork.seen["crash"] += 1
            node.crash()
            self._after(5, self.world.clockwork.random.choice((50, 400, 2000)), self._start, node)

    def _start(self, node: Node) -> None:
        if not node.is_up:
            self.world.clockwork.seen["restart"] += 1
            node.start()

    def kill(self, node: Node, duration_ms: float) -> None:
        """A node is dead for a while."""
        if node.is_up and self.may_stop():
            self.world.clockwork.seen["crash"] += 1
            node.crash()
            self.world.clockwork.after(duration_ms, self._start, node)

    def crash_all(self) -> None:
        if not self.may_stop():
            return
        self.world.clockwork.seen["power cut"] += 1
        for node in self.world.nodes.values():
            if node.is_up:
                node.crash()
                self._after(5, 600, self._start, node)

    def lose_entries(self) -> None:
        """The medium loses entries that were durable: one at a time, and others hold them."""
        world, clockwork = self.world, self.world.clockwork
        node = self._node()
        if clockwork.chance(0.3):
            node = world.nodes[world.view.primary]
        if not self._others_hold_all(node):
            return
        world.heal()
        log = node.disk.durable
        # A node that wakes may propose at once, and so take out the one that holds what gets lost.
        if not log.records or not self._others_hold_all(node):
            return
        damage = clockwork.chance(0.4)
        lost = clockwork.random.randint(1, min(3, len(log.records)))
        clockwork.seen["damage" if damage else "lost tail"] += 1
        is_backup = node.id != world.view.primary
        all_committed = log.last_index <= world.oracle.acknowledged
        node.crash(log.records[-lost].first_index, damage=damage)
        if not damage and is_backup and all_committed and clockwork.chance(0.5):
            # An old copy of its directory was put back. The primary lives, and tells it so; before
            # that nothing could be promised, so it does not reach consensus until then.
            clockwork.seen["old copy"] += 1
            node.hide_loss()
            world.agreement.keep_away(node.id)
        self._after(5, 900, self._start, node)
        node.when_noted = self._leave_alone if clockwork.chance(0.5) else None
        if clockwork.chance(0.6):
            # The others cannot take over at once, so the one with less proposes itself, too.
            for name in world.nodes:
                if name != node.id:
                    world.agreement.cut_off.add(name)
                    self._after(1500, 2500, world.agreement.reconnect, name)

    def _leave_alone(self, node: Node) -> None:
        """A node has just noted what it was told of its loss: it ends, and starts all alone."""
        world, clockwork = self.world, self.world.clockwork
        if not (world.is_troubled and node.is_up and node.loss_is_noted):
            return
        clockwork.seen["alone with a loss that is noted"] += 1
        node.crash()
        self._after(1, 100, self._start, node)
        duration_ms = clockwork.between(600, 2000)
        for other in world.nodes.values():
            if other is not node:
                self._cut(node.id, other.id, duration_ms)
                self._cut(other.id, node.id, duration_ms)
                if other.id not in world.agreement.cut_off:
                    world.agreement.cut_off.add(other.id)
                    clockwork.after(duration_ms, world.agreement.reconnect, other.id)

    def put_back(self) -> None:
        """A whole directory is put back; the others' memory has what it lacks (decision 18).

        Consensus has not moved since: else the old copy would be refused by that alone. Unlike
        after `lose_entries`, those who hold what is missing may stop at once.
        """
        clockwork = self.world.clockwork
        node, agreement = self._node(), self.world.agreement
        if not agreement.remembers or not self._others_hold_all(node):
            return
        epoch, index = agreement.marks.get(node.id, (0, 0))
        log = node.disk.durable
        places = [record for record in log.records[-5:] if record.first_index <= index]
        places = [record for record in places if record.epoch == epoch == node.disk.accepted[0]]
        if not places or log.epoch_at(places[0].first_index - 1) != epoch:
            return
        clockwork.seen["put back"] += 1
        node.crash(clockwork.random.choice(places).first_index)
        node.hide_loss(remembered=True)
        self._after(5, 400, self._start, node)

    def _others_hold_all(self, node: Node) -> bool:
        """Whether others in sync hold what a node may lose, and no proposal can take them out."""
        world = self.world
        others = [name for name in world.view.in_sync if name != node.id]
        return (
            node.is_up
            and not self._has_lost()
            and bool(others)
            and world.agreement.is_settled()
            and all(world.nodes[name].is_up for name in others)
            and not any(world.nodes[name].replica.state.tail_cut for name in others)
            and not any(other.replica.state.incomplete for other in world.nodes.values())
        )

    def pause(self) -> None:
        node = self._node()
        if node.is_up and not node.paused and self.may_stop():
            self.world.clockwork.seen["pause"] += 1
            node.pause()
            self._after(20, self.world.clockwork.random.choice((200, 700, 1600)), node.resume)

    def stutter(self) -> None:
        """All nodes stand still for a moment, as on a machine that is overloaded."""
        for node in self.world.nodes.values():
            if node.is_up and not node.paused:
                node.pause()
                self._after(5, 250, node.resume)

    def change_clock_rate(self) -> None:
        """A clock is slewed: it goes on from where it is, at another rate within the margin."""
        node = self._node()
        self.world.clockwork.seen["clock rate change"] += 1
        node.set_clock_rate(self.world.clockwork.between(*CLOCK_RATES))

    # -- where clocks may stand still (`World.clocks_stop`)

    def stop_clock(self) -> None:
        """A clock stands still, as a guest's does while its hypervisor stops it; it may run on."""
        clockwork = self.world.clockwork
        self._stop_clock(
            self._node(), clockwork.between(20, clockwork.random.choice((400, 900, 2000)))
        )

    def leave_behind(self) -> None:
        """The primary, perhaps with some others, is cut off, and its clock stops.

        The rest replaces it meanwhile. It goes on before it hears of that, and clients ask it.
        """
        world, clockwork = self.world, self.world.clockwork
        primary = world.nodes[world.view.primary]
        side = {name for name in world.nodes if clockwork.chance(0.3)} | {primary.id}
        if len(side) == len(world.nodes) or not self.may_stop():
            return
        clockwork.seen["left behind"] += 1
        asleep_ms = clockwork.between(350, 900)
        duration_ms = asleep_ms + clockwork.between(20, 400)
        one_way = clockwork.chance(0.5)
        for source, target in self._links():
            is_inward, is_outward = source not in side, target not in side
            if is_inward != is_outward and (is_inward or not one_way):
                self._cut(source, target, duration_ms)
        for name in sorted(side):
            if name not in world.agreement.cut_off:
                world.agreement.cut_off.add(name)
                clockwork.after(duration_ms, world.agreement.reconnect, name)
        self._after(0, 60, self._stop_clock, primary, asleep_ms)
        clockwork.after(asleep_ms - 100, self._know_alone, primary)
        clockwork.after(duration_ms, self._know_alone, None)

    def _know_alone(self, node: Node | None) -> None:
        """Some clients are on the side of a primary that was left behind, and ask it."""
        self.world.left_behind = node

    def _stop_clock(self, node: Node, duration_ms: float) -> None:
        clockwork = self.world.clockwork
        if node.clock_rate == 0.0 or not node.is_up or not self.world.is_troubled:
            return
        clockwork.seen["clock stopped"] += 1
        rate = node.clock_rate
        node.set_clock_rate(0.0)
        is_guest = not node.paused and self.may_stop() and clockwork.chance(0.7)
        if is_guest:
            node.pause()
        clockwork.after(duration_ms, self._go_on, node, rate, is_guest)

    def _go_on(self, node: Node, rate: float, is_guest: bool) -> None:
        if node.clock_rate == 0.0:
            node.set_clock_rate(rate)
        if is_guest:
            node.resume()
        for _ in range(3):  # somebody reads
            self._after(0, 30, node.post, node.life, node.confirm)

    # -- links

    def _cut(self, source: str, target: str, duration_ms: float) -> None:
        if self.may_stop():
            self.world.network.cut(source, target)
            self.world.clockwork.after(duration_ms, self.world.network.heal, source, target)

    def _duration(self) -> float:
        clockwork = self.world.clockwork
        return clockwork.between(20, clockwork.random.choice((150, 500, 2500)))

    def _two(self) -> tuple[str, str]:
        source = self._node().id
        others = [name for name in self.world.nodes if name != source]
        return source, (self.world.clockwork.random.choice(others) if others else source)

    def _links(self) -> list[tuple[str, str]]:
        names = list(self.world.nodes)
        return [(source, target) for source in names for target in names if source != target]

    def cut_one_way(self) -> None:
        source, target = self._two()
        self.world.clockwork.seen["one-way cut"] += 1
        self._cut(source, target, self._duration())

    def cut_pair(self) -> None:
        source, target = self._two()
        duration = self._duration()
        if len(self.world.nodes) > 2:
            self.world.clockwork.seen["partial partition"] += 1
        self._cut(source, target, duration)
        self._cut(target, source, duration)

    def swizzle(self) -> None:
        """Some links stop one by one, and are healed one by one in another order."""
        network, clockwork = self.world.network, self.world.clockwork
        links = self._links()
        if not links or not self.may_stop():
            return
        clockwork.seen["swizzle"] += 1
        chosen = clockwork.random.sample(links, clockwork.random.randint(1, len(links)))
        step_ms = clockwork.random.choice((2.0, 20.0, 80.0))
        time_ms = 0.0
        for link in chosen:
            time_ms += clockwork.between(0, step_ms)
            clockwork.after(time_ms, self._cut_if_allowed, *link)
        time_ms += self._duration() / 2
        for link in clockwork.random.sample(chosen, len(chosen)):
            time_ms += clockwork.between(0, step_ms)
            clockwork.after(time_ms, network.heal, *link)

    def _cut_if_allowed(self, source: str, target: str) -> None:
        if self.world.is_troubled and self.may_stop():
            self.world.network.cut(source, target)

    def split(self) -> None:
        """Two halves do not reach each other; consensus may reach both, one or none of them."""
        world, random = self.world, self.world.clockwork.random
        duration = self._duration()
        side = {name for name in world.nodes if random.random() < 0.5}
        if not 0 < len(side) < len(world.nodes) or not self.may_stop():
            return
        world.clockwork.seen["split"] += 1
        without_consensus = random.choice((set(), side, set(world.nodes)))
        for source, target in self._links():
            if (source in side) != (target in side):
                self._cut(source, target, duration)
        for name in sorted(without_consensus):
            world.agreement.cut_off.add(name)
            world.clockwork.after(duration, world.agreement.reconnect, name)

    def isolate(self) -> None:
        node, duration = self._node(), self._duration()
        way = self.world.clockwork.random.choice(("in", "out", "both"))
        self.world.clockwork.seen["isolation"] += 1
        for other in self.world.nodes:
            if way != "in":
                self._cut(node.id, other, duration)
            if way != "out":
                self._cut(other, node.id, duration)

    def cut_off(self) -> None:
        """The primary reaches nobody any more, and does not hear that it has been replaced."""
        world, duration = self.world, self.world.clockwork.between(400, 2500)
        name = world.view.primary
        if name in world.agreement.cut_off:
            return
        world.clockwork.seen["cut off"] += 1
        world.agreement.cut_off.add(name)
        world.clockwork.after(duration, world.agreement.reconnect, name)
        for other in world.nodes:
            if other != name:
                self._cut(name, other, duration)
                self._cut(other, name, duration)

    def drop(self) -> None:
        self.world.clockwork.seen["broken connection"] += 1
        self.world.network.drop(*self._two())

    def slow_network(self) -> None:
        network = self.world.network
        self.world.clockwork.seen["slow network"] += 1
        network.delay_ms = SLOW_NETWORK_MS
        self._after(50, 1000, setattr, network, "delay_ms", FAST_NETWORK_MS)

    def go_far(self) -> None:
        """One direction's messages take longer, up to about a lease: each promise comes late."""
        network, link, clockwork = self.world.network, self._two(), self.world.clockwork
        clockwork.seen["far link"] += 1
        network.extra_ms[link] = clockwork.between(0, clockwork.random.choice((60, 300)))
        self._after(50, 1500, network.extra_ms.__setitem__, link, 0.0)

    # -- consensus

    def cut_consensus(self) -> None:
        agreement = self.world.agreement
        node = self._node()
        if node.id not in agreement.cut_off:
            self.world.clockwork.seen["consensus cut"] += 1
            agreement.cut_off.add(node.id)
            self._after(50, 2500, agreement.reconnect, node.id)

    def slow_agreement(self) -> None:
        """Proposals take long to be decided."""
        agreement = self.world.agreement
        self.world.clockwork.seen["slow agreement"] += 1
        agreement.delay_ms = (80.0, 700.0)
        self._after(100, 1500, setattr, agreement, "delay_ms", self._agreement_ms)

    def stop_witness(self) -> None:
        """A witness is down; it votes no more."""
        agreement = self.world.agreement
        if agreement.stop_witness():
            self.world.clockwork.seen["witness down"] += 1
            self._after(50, 1500, agreement.start_witness)

    # -- disks

    def slow_disk(self) -> None:
        disk = self._node().disk
        self.world.clockwork.seen["slow disk"] += 1
        disk.latency_ms = SLOW_DISK_MS
        self._after(50, 1500, setattr, disk, "latency_ms", FAST_DISK_MS)

    def stall_disk(self) -> None:
        disk = self._node().disk
        if disk.stalled_since is None and self.may_stop():
            self.world.clockwork.seen["disk stall"] += 1
            disk.stall()
            self._after(50, 2500, disk.resume)

    def fail_disk(self) -> None:
        """The next fsync fails: the node stops at once, and comes back with what was durable (D9).

        What of the write reached the disk all the same is drawn, as in a crash.
        """
        node = self._node()
        if node.is_up and self.may_stop():
            node.disk.fails_next = True
            self._after(200, 600, self._fail_no_more, node)

    def _fail_no_more(self, node: Node) -> None:
        """Restart it if it has failed."""
        node.disk.fails_next = False
        self._start(node)

    def fill_disk(self) -> None:
        """No room for a while; with clients the primary's, for they notice."""
        world = self.world
        node = world.nodes[world.view.primary] if world.has_service else self._node()
        if node.is_up:
            self.world.clockwork.seen["full disk"] += 1
            state = node.replica.state
            state.writable = False
            if world.has_service and not node.paused and self.may_stop():
                # What comes meanwhile is executed together, repeats and new writes.
                node.pause()
                self._after(20, 200, node.resume)
            self._after(50, 1500, setattr, state, "writable", True)

    # -- what operators do

    def hand_over(self) -> None:
        world, view = self.world, self.world.view
        backups = [name for name in view.in_sync if name != view.primary]
        if backups:
            world.nodes[view.primary].hand_over(world.clockwork.random.choice(backups))

    def trim(self) -> None:
        node = self._node()
        if node.is_up:
            log = node.disk.cache
            node.trim(self.world.clockwork.random.randint(log.base_index, log.last_index + 1))

    def outgrow(self) -> None:
        """A node is away until the others' logs do not reach back to it: it needs a snapshot."""
        world, clockwork = self.world, self.world.clockwork
        node = self._node()
        if len(world.nodes) < 2 or not node.is_up or not self.may_stop():
            return
        clockwork.seen["outgrown"] += 1
        node.crash()
        delay_ms = clockwork.between(150, 700)
        clockwork.after(delay_ms, self._trim_all)
        clockwork.after(delay_ms + clockwork.between(0, 20), self._start, node)

    def _trim_all(self) -> None:
        for node in self.world.nodes.values():
            if node.is_up:
                node.trim(node.replica.state.commit_index)

    def change_members(self) -> None:
        world = self.world
        name = world.clockwork.random.choice(list(world.nodes))
        view = world.view
        if view.member(name) is None:
            world.agreement.commit(AddMember(world.nodes[name].identity.member()), view.version)
        elif name not in (view.primary, *self._needed()):
            world.agreement.commit(RemoveMember(name), view.version)

    def _needed(self) -> tuple[str, ...]:
        """Who holds what a replica with lost entries needs."""
        return self.world.view.in_sync if self._has_lost() else ()
