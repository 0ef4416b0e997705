"""A machine with both on it: the member of consensus and, unless it is a witness, the replica."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from election.pysyncobj_adapter.inbox import Inbox
from election.pysyncobj_adapter.view_machine import ViewReply
from election.view import View
from tests.sim import node as replicas
from tests.sim.consensus import node as consensus
from tests.sim.consensus import world as consensus_world

if TYPE_CHECKING:
    from tests.sim.joint.world import JointWorld


class MemberNode(consensus.Node):
    """The member of consensus. What it hears goes to the replica's event loop."""

    replica: ReplicaNode | None = None

    def on_news(self, view: View | None, answers: list[ViewReply]) -> None:
        """Take a newer view and answers: on the Raft thread, as it were."""
        super().on_news(view, answers)
        if self.replica is not None:
            self.replica.turn(self.replica.inbox.take_news, view, answers)

    def on_remembered(self, epoch: int, index: int) -> None:
        """Another member remembers how far the replica's data was."""
        if self.replica is not None:
            self.replica.turn(self.replica.inbox.take_reminder, epoch, index)

    def save_memory(self) -> bool:
        """Write down what it remembers of the others, as it does every 5 s; whether it could."""
        runner, process = self.runner, self.process
        if runner is None or process is None or runner._storage is None:
            return False
        marks = runner._storage.marks
        if (
            process.is_starting
            or process.crash_in is not None
            or self.disk.fails_next
            or marks._saving.locked()
        ):
            return False
        process.is_starting = True  # the thread that does it holds nobody up
        runner.save_memory()
        process.is_starting = False
        return marks._saved == marks._marks

    def remembered(self, data_id: str) -> tuple[int, int]:
        """Return (epoch, index) that it remembers of the owner of that data."""
        runner = self.runner
        if runner is None or runner._storage is None:
            return (0, 0)
        return runner._storage.marks.of(data_id).position

    def _on_ended(self, life: int) -> None:
        """Without consensus the whole process ends."""
        is_this = life == self.life and self.is_up
        super()._on_ended(life)
        if is_this and self.replica is not None and self.replica.is_up:
            self.replica.crash()


class ReplicaNode(replicas.Node):
    """The replica. It lives, sleeps and dies with its member, and has its clock."""

    def __init__(self, world: JointWorld, node_id: str) -> None:
        member = world.consensus.nodes[node_id]
        assert isinstance(member, MemberNode)
        self.member = member
        self.inbox: Inbox
        self._turn_at = 0.0
        super().__init__(world, node_id)
        member.replica = self
        member.set_clock_rate(self.clock_rate)

    def clock(self) -> float:
        """This machine's clock, in ms."""
        return self.member.clock_s() * 1000

    def set_clock_rate(self, rate: float) -> None:
        """Let the clock go on from where it is, faster or slower."""
        self.clock_rate = rate
        self.member.set_clock_rate(rate)

    def start(self) -> None:
        """Start the process: the replica, and its member unless that runs since the bootstrap."""
        super().start()
        self.inbox = Inbox(self.turn)
        self.inbox.subscribe(lambda _: self.replica.on_consensus_heard())
        self.inbox.subscribe(self.on_view)
        self.inbox.on_reminder(self.on_reminder)
        if not self.member.is_up:
            self.member.start()
        elif self.member.published is not None:
            self.turn(self.inbox.take_news, self.member.published, [])

    def crash(self, lost_from: int | None = None, *, damage: bool = False) -> None:
        """End the process at any point; with the power, or not."""
        super().crash(lost_from, damage=damage)
        self.member.crash(power=self.clockwork.chance(0.5))

    def pause(self) -> None:
        """Stop the process."""
        super().pause()
        self.member.pause()

    def resume(self) -> None:
        """Wake up: one thread may be scheduled before the other."""
        first = self.clockwork.chance(0.5)
        if first:
            self.member.resume()
        super().resume()
        if not first:
            self.member.resume()

    def turn(self, callback: Callable[..., object], *args: object) -> None:
        """Call back in a turn of this life's event loop: in order, as `call_soon` has it."""
        clockwork = self.clockwork
        at = clockwork.now + clockwork.between(*replicas.TURN_MS)
        self._turn_at = max(self._turn_at, at)
        clockwork.at(self._turn_at, self.post, self.life, callback, *args)


class Consensus(consensus_world.World):
    """The members, whose replicas say when they start."""

    node_type = MemberNode

    def restart(self, node: consensus.Node, life: int) -> None:
        """Start a process again that has ended by a fault of its member."""
        assert isinstance(node, MemberNode)
        if node.replica is None:
            super().restart(node, life)
        elif node.life == life and not node.replica.is_up:
            node.replica.start()

    def start_the_needed(self) -> None:
        """Start the witnesses; whoever starts the replicas starts the other members."""
        for node in self.nodes.values():
            assert isinstance(node, MemberNode)
            if node.replica is None:
                node.start()
