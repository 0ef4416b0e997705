"""A simulated consensus group: production members on simulated machines, and who operates them."""

from __future__ import annotations

from collections.abc import Collection

from election.view import AddMember, View
from tests.sim.clockwork import Clockwork
from tests.sim.consensus.disk import FAST_MS as FAST_DISK_MS
from tests.sim.consensus.network import FAST_MS as FAST_NETWORK_MS
from tests.sim.consensus.network import Wires
from tests.sim.consensus.node import Node
from tests.sim.consensus.operators import Operators
from tests.sim.consensus.oracle import Oracle

NAMES = "abcdefgh"
REGISTER_MS = 80.0


class World:
    """All machines. The founders run from the first event on."""

    node_type: type[Node] = Node

    def __init__(
        self,
        clockwork: Clockwork,
        founders: Collection[str],
        *,
        compaction_entries: int = 512,
        compaction_interval_ms: int = 60_000,
    ) -> None:
        self.clockwork = clockwork
        self.compaction_entries = compaction_entries
        self.compaction_interval_ms = compaction_interval_ms
        self.is_troubled = True  # no fault begins any more once it is not
        self.wires = Wires(clockwork)
        self._unused = [name for name in NAMES if name not in founders]
        clockwork.random.shuffle(self._unused)
        self.founders = {name: address_of(name, 0) for name in sorted(founders)}
        self.oracle = Oracle(clockwork, self.founders)
        self.nodes: dict[str, Node] = self.oracle.nodes
        self._moves = 0
        self.moved: dict[str, str] = {}
        for name in self.founders:
            self.nodes[name] = self.node_type(self, name, members=self.founders, founders=None)
        self.operators = Operators(self)
        for node in self.nodes.values():
            clockwork.after(clockwork.between(0, 30), node.start)
        clockwork.after(REGISTER_MS, self._register)

    @property
    def view(self) -> View | None:
        """The true view."""
        return self.oracle.view

    @property
    def member_ids(self) -> list[str]:
        """Who is a member by the true view; before there is one, the founders."""
        view = self.view
        return [member.id for member in view.members] if view is not None else list(self.founders)

    def run_for(self, duration_ms: float) -> None:
        """Let time pass."""
        self.clockwork.run_until(self.clockwork.now + duration_ms)

    def leader(self) -> Node | None:
        """The running voter that leads in the highest term, if one does; else who is none.

        One whose disk hangs may stand between two steps: in a new term, and a leader still.
        """
        leading = [
            node for node in self.nodes.values() if node.core is not None and node.core._isLeader()
        ]

        def rank(node: Node) -> tuple[bool, int]:
            return self.is_voter(node), node.core.raftCurrentTerm if node.core else 0

        return max(leading, key=rank, default=None)

    def restart(self, node: Node, life: int) -> None:
        """Start a node again, unless that has been done, or it is not wanted any more."""
        if node.life == life and not node.is_retired and not node.is_up:
            node.start()

    def newcomer(self) -> Node | None:
        """Make a machine for one more node, as far as there are names."""
        view = self.view
        if not self._unused or view is None:
            return None
        name = self._unused.pop()
        told = {member.id: member.raft for member in view.members}
        node = self.nodes[name] = self.node_type(
            self, name, members={**told, name: address_of(name, 0)}, founders=self.founders
        )
        return node

    def new_address(self, node: Node) -> str:
        """Return an address that nobody has had."""
        self._moves += 1
        return address_of(node.id, self._moves)

    def with_new_addresses(self, members: dict[str, str]) -> dict[str, str]:
        """Return a node's configuration after operators have written the moves into it.

        They do before each of its starts: where many have moved, they can meet in no other way.
        """
        return members | self.moved

    def is_voter(self, node: Node) -> bool:
        """Whether it votes, by the committed changes."""
        return node.id in self.oracle.voters

    def must_run(self, node: Node) -> bool:
        """Whether the group needs it: a member, or one whose vote still counts."""
        return node.id in self.oracle.machine.wanted_members or node.id in self.oracle.voters

    def heal(self) -> None:
        """End all faults: everyone runs and reaches everyone, and disks are fast."""
        clockwork = self.clockwork
        if clockwork.tracing:
            clockwork.note("ALL FAULTS HEAL")
        self.is_troubled = False
        self.operators.forget_all()
        self.wires.heal_all()
        self.wires.delay_ms = FAST_NETWORK_MS
        self.wires.extra_ms.clear()
        for node in self.nodes.values():
            disk = node.disk
            disk.latency_ms, disk.fails_next, disk.is_full, disk.stalled_until = (
                FAST_DISK_MS,
                False,
                False,
                0.0,
            )
            if node.process is not None:
                node.process.crash_in = None
            node.resume()
            if node.has_old_addresses:
                node.crash(power=False)
        self.start_the_needed()
        for node in self.nodes.values():
            if not node.is_retired:
                node.start()

    def start_the_needed(self) -> None:
        """Start whom the group needs. An addition that was on its way may have needed one more."""
        for node in self.nodes.values():
            if self.must_run(node):
                node.is_retired = False
                node.start()

    def whole_problem(self) -> str:
        """Why the group is not whole: "" once all members vote and know the newest view."""
        view, machine = self.view, self.oracle.machine
        if view is None:
            return "there is no view"
        if machine.raft_members.keys() != machine.wanted_members.keys():
            return (
                f"{sorted(machine.raft_members)} vote, and {sorted(machine.wanted_members)} should"
            )
        for name in machine.wanted_members:
            node = self.nodes[name]
            if node.published != view:
                return f"{name} does not know version {view.version}"
        return ""

    def _register(self) -> None:
        """Let newcomers in; members whose address is not the agreed one have it agreed."""
        view = self.view
        running = [node for node in self.nodes.values() if node.is_up]
        for node in self.nodes.values():
            if view is not None and not node.cluster_id and view.member(node.id) is not None:
                node.learn(view)  # it asks to be let in, and is answered with the view
        for node in running if view is not None else ():
            member = view.member(node.id) if view is not None else None
            if member is not None and member.raft != node.address:
                asked = self.clockwork.random.choice(running)
                self.operators.propose(asked, AddMember(node.member()))
        self.clockwork.after(REGISTER_MS, self._register)


def address_of(name: str, number: int) -> str:
    """Return a machine's n-th address."""
    return f"{name}{number}.test:1"
