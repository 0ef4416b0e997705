"""A member: the production `RaftThread` on a simulated machine, through crashes and restarts."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from election.agreement import AgreementFailedError
from election.identity import Addresses
from election.pysyncobj_adapter import wire
from election.pysyncobj_adapter.errors import RaftStorageFullError, RolledBackError
from election.pysyncobj_adapter.peer_marks import PeerMark
from election.pysyncobj_adapter.raft_core import RaftCore
from election.pysyncobj_adapter.raft_thread import RaftThread
from election.pysyncobj_adapter.settings import AgreementSettings
from election.pysyncobj_adapter.view_machine import SetMembership, ViewReply
from election.registry import KnownMember, PeerRegistry, known_members
from election.shared_secret import SharedSecret
from election.view import Member, View
from tests.sim.clockwork import ViolationError
from tests.sim.consensus.disk import SimulatedDisk
from tests.sim.consensus.network import MemberNetwork
from tests.sim.consensus.processes import Process

if TYPE_CHECKING:
    from tests.sim.consensus.world import World

CLOCK_RATES = (0.92, 1.08)
SECRET = SharedSecret(bytes(range(32)))
JOURNAL_RESERVE_BYTES = 4096


def addresses_at(raft: str) -> Addresses:
    """Return the addresses of a node that listens there for consensus."""
    return Addresses(client=f"{raft}1", peer=f"{raft}2", raft=raft)


class SimulatedRunner(RaftThread):
    """The production runner, whose thread is a `Process`: what wakes it is no descriptor."""

    process: Process

    def _wake(self) -> None:
        self.process.wake()

    @property
    def core(self) -> RaftCore | None:
        """The core, once it has been made."""
        return self._core


class Node:
    """One machine and the member that runs on it, or not."""

    def __init__(
        self,
        world: World,
        node_id: str,
        *,
        members: dict[str, str],
        founders: dict[str, str] | None,
    ) -> None:
        """`members`: whom its configuration names; `founders`: what a member told a newcomer."""
        self.id = node_id
        self.world = world
        self.clockwork = world.clockwork
        self.members = members
        self.founders = founders
        self.directory = Path("/disk") / node_id / "raft"
        self.journal = str(self.directory / "journal")
        self.disk = SimulatedDisk(world.clockwork)
        self.runner: SimulatedRunner | None = None
        self.process: Process | None = None
        self.network: MemberNetwork | None = None
        self.core: RaftCore | None = None
        self.life = 0
        self.has_no_power = False
        self.is_retired = False  # removed, and stopped for good
        self.expects_refusal = ""  # why this start must be refused
        self.published: View | None = None
        self.cluster_id = ""
        self.registry: PeerRegistry | None = None
        self._known_members: dict[str, KnownMember] = {}
        self._comes_back = False  # somebody starts it again once it has ended by a fault
        self._clock_rate = 1.0
        self._clock_offset_s = world.clockwork.between(1000, 100_000)
        world.wires.machines[self.address] = self

    @property
    def address(self) -> str:
        """Where it listens now."""
        return self.members[self.id]

    @property
    def has_old_addresses(self) -> bool:
        """Whether others have moved since it was started."""
        return self.world.with_new_addresses(self.members) != self.members

    @property
    def is_up(self) -> bool:
        """Whether its process runs (it may be paused)."""
        return self.process is not None

    @property
    def is_paused(self) -> bool:
        """Whether its process stands still."""
        return self.process is not None and self.process.paused

    def member(self) -> Member:
        """Return how the view describes it."""
        addresses = addresses_at(self.address)
        return Member(
            id=self.id,
            role="replica",
            client=addresses.client,
            peer=addresses.peer,
            raft=addresses.raft,
            data_id=self.id,
        )

    def learn(self, view: View) -> None:
        """Take a view, from consensus or from who has let this node in; it outlives the process."""
        self.cluster_id, self._known_members = view.cluster_id, known_members(view)
        if self.registry is not None:
            self.registry.learn(view)

    # -- its clock

    def clock_s(self) -> float:
        """Return what its monotonic clock shows."""
        return self._clock_offset_s + self.clockwork.now / 1000 * self._clock_rate

    def set_clock_rate(self, rate: float) -> None:
        """Let the clock go on from where it is, at another rate."""
        now_s = self.clock_s()
        self._clock_rate = rate
        self._clock_offset_s = now_s - self.clockwork.now / 1000 * rate

    # -- its life

    def start(self) -> None:
        """Start the process."""
        if self.is_up:
            return
        self.life += 1
        self.has_no_power = False
        world = self.world
        self.members = world.with_new_addresses(self.members)
        self.registry = PeerRegistry(
            self.id,
            self.id,
            f"{self.id} {self.life}",
            {name: addresses_at(address) for name, address in self.members.items()},
            cluster_id=self.cluster_id,
            members=self._known_members,
            pins=lambda: {name: name for name in world.founders},
            clock=self.clock_s,
        )
        settings = AgreementSettings(
            registry=self.registry,
            node_id=self.id,
            bind_address=self.address,
            members=self.members,
            founders=self.founders or {name: self.members[name] for name in world.founders},
            directory=self.directory,
            secret=SECRET,
            compaction_entries=world.compaction_entries,
            compaction_interval_ms=world.compaction_interval_ms,
            journal_reserve_bytes=JOURNAL_RESERVE_BYTES,
        )
        life = self.life
        process = Process(
            self.clockwork,
            self.clock_s,
            lambda: self._live(life),
            lambda at_rest: self._look(life, at_rest),
        )
        self.process = self.disk.process = process
        self.network = MemberNetwork(world.wires, self, process)
        self.runner = SimulatedRunner(settings, self, disk=self.disk, network=self.network)
        self.runner.process = process
        self.published = None
        self.core = None
        self._comes_back = False
        self.note("starts")
        process.begin()

    def _live(self, life: int) -> None:
        runner = self.runner
        assert runner is not None
        try:
            runner._run()
        finally:
            self.clockwork.after(0, self._on_ended, life)

    def _look(self, life: int, at_rest: bool) -> None:
        if life == self.life and self.core is not None:
            self.world.oracle.check(self, at_rest=at_rest)

    def _on_ended(self, life: int) -> None:
        """Clean up after a process that has ended by itself, or crashed at a step."""
        if life == self.life and self.is_up:
            network = self.network
            self._forget_process(power=network is not None and network.is_silent)
            if self._comes_back:
                pause_ms = self.clockwork.between(5, 400)
                self.clockwork.after(pause_ms, self.world.restart, self, life)

    def stop(self) -> None:
        """End it in good order, or let it crash if it cannot."""
        runner, process = self.runner, self.process
        if runner is None or process is None:
            return
        runner._stopping = True
        process.wake()

    def crash(self, *, power: bool) -> None:
        """End the process at once; with the power, the machine."""
        process, network = self.process, self.network
        if process is None or network is None:
            return
        self.note("loses power" if power else "is killed")
        network.is_silent = power
        process.crash()
        self._forget_process(power=power)

    def crash_at_step(self, steps: int, *, power: bool) -> None:
        """Let it crash before one of its next writes or messages."""
        process, network = self.process, self.network
        if process is None or network is None:
            return

        def on_crash() -> None:
            network.is_silent = power
            self.note("crashes in the middle of what it does")

        process.on_crash = on_crash
        process.crash_in = steps

    def _forget_process(self, *, power: bool) -> None:
        if self.runner is not None:
            self.runner.stop()
        self.disk.crash(power=power)
        self.has_no_power = power
        self.process = self.runner = self.network = self.core = self.registry = None
        self.world.oracle.on_ended(self)

    def pause(self) -> None:
        """Let it stand still."""
        if self.process is not None:
            self.process.paused = True

    def resume(self) -> None:
        """Let it go on."""
        if self.process is not None:
            self.process.resume()

    def move(self, address: str) -> None:
        """Give the stopped node another address, in its own configuration."""
        machines = self.world.wires.machines
        if machines.get(self.address) is self:
            del machines[self.address]
        self.members = {**self.members, self.id: address}
        machines[address] = self
        self.world.moved[self.id] = address

    # -- what its runner tells (in its process)

    def on_started(self) -> None:
        """The stored state is read."""
        runner, process = self.runner, self.process
        assert runner is not None
        assert process is not None
        process.is_starting = False
        self.core = core = runner.core
        assert core is not None
        if self.expects_refusal:
            raise ViolationError(f"{self.id} started, although {self.expects_refusal}")
        links = core._links
        send: Callable[..., bool] = links.send_wire
        oracle = self.world.oracle

        def send_and_tell(node_id: str, message: object) -> bool:
            sent = send(node_id, message)
            oracle.on_sent(self, node_id, message)
            if self.clockwork.tracing and not isinstance(message, wire.Ping):
                self.note(f"to {node_id}: {message}")
            return sent

        own_mark: Callable[[], PeerMark] = links._own_mark

        def mark_to_tell() -> PeerMark:
            mark = own_mark()
            oracle.on_told(self, mark)
            return mark

        links.send_wire = send_and_tell  # type: ignore[method-assign]
        links._own_mark = mark_to_tell
        self._count_steps(core)
        oracle.on_started(self)

    def _count_steps(self, core: RaftCore) -> None:
        """Count what the changes of the voters had to wait for, or fell to."""
        seen = self.clockwork.seen
        has_change_under_way, outlives = core._has_change_under_way, core._outlives
        change_cluster: Callable[[list[str]], bool] = core._SyncObj__changeCluster

        def has_change() -> bool:
            found = has_change_under_way()
            wanted, voters = core.machine.wanted_members.keys(), core.machine.raft_members.keys()
            if found and len(wanted ^ voters) > 1:
                seen["step waited for the one before"] += 1
            return found

        def is_outlived(step: SetMembership, now: float) -> bool:
            found = outlives(step, now)
            if not found:
                seen["step waited for voters that answer"] += 1
            return found

        def change(request: list[str]) -> bool:
            if core._SyncObj__commandsQueue._FastQueue__queue:
                seen["change judged in front of a queue"] += 1
            done = change_cluster(request)
            seen["change made" if done else "change dropped in the queue"] += 1
            return done

        core._has_change_under_way = has_change  # type: ignore[method-assign]
        core._outlives = is_outlived  # type: ignore[method-assign]
        core._SyncObj__changeCluster = change  # type: ignore[method-assign]

    def on_news(self, view: View | None, answers: list[ViewReply]) -> None:
        """Take a newer view and answers."""
        self.world.oracle.check(self, at_rest=True)
        if view is not None:
            self.world.oracle.on_published(self, view)
            self.published = view
            self.learn(view)
        for answer in answers:
            self.world.operators.on_answer(self, answer)

    def on_remembered(self, epoch: int, index: int) -> None:
        """Do nothing: there is no data here."""

    def on_failed(self, error: AgreementFailedError) -> None:
        """The member is broken: by a fault of its disk, or else this is a violation."""
        cause = error.__cause__
        if isinstance(cause, ViolationError):
            raise cause
        if isinstance(error, RolledBackError) and self.expects_refusal:
            self.clockwork.seen["old copy refused"] += 1
            return
        if isinstance(error, RaftStorageFullError):
            self.clockwork.seen["ended: disk full"] += 1
        elif isinstance(cause, OSError) and cause.errno == errno.EIO:
            self.clockwork.seen["ended: failed fsync"] += 1
        else:
            raise ViolationError(
                f"{self.id} has stopped: {type(error).__name__}: {error}"
            ) from cause
        self.note(f"ends: {error}")
        self._comes_back = True

    def note(self, text: str) -> None:
        """Write a line of the transcript."""
        if self.clockwork.tracing:
            self.clockwork.note(f"{self.id} {text}")
