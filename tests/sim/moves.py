"""Operators who give nodes other addresses, and processes that are not the node they say they are.

A node moves by its own file and a restart, or is moved by a command first. What a node does about
it is production's (`cluster.node.addresses`): it has the view follow, or is refused at its start.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from cluster.node.addresses import AddressStep
from datapath.errors import OperationError
from datapath.node.member_change import MemberChange, addition, change_of_addresses
from election.identity import Addresses, Verdict
from election.registry import addresses_of
from election.view import View
from tests.sim.identities import Impostor, ImpostorKind
from tests.sim.members import addresses_at
from tests.sim.operators import Asked, Operators, Request

if TYPE_CHECKING:
    from tests.sim.node import Node
    from tests.sim.troubles import Troubles
    from tests.sim.world import World

REGISTER_PATIENCE_MS = 800.0
REGISTER_AGAIN_MS = (50.0, 200.0)
FOLLOW_MS = (20.0, 600.0)
DIAL_MS = (5.0, 60.0)


class Movers:
    """All that happens to addresses in a schedule."""

    def __init__(self, world: World, troubles: Troubles) -> None:
        self.world = world
        self.clockwork = world.clockwork
        self._troubles = troubles
        self._commands = Operators(world, troubles)
        self._registrations = Operators(world, troubles)
        self._hosts = 0
        self._restarts = 0  # that are still to come
        self._registering: dict[str, int] = {}  # node: the life that has its addresses agreed
        world.on_entry = self._on_entry

    def kinds(self) -> list[Callable[[], None]]:
        """Return what happens, as kinds of faults."""
        return [
            self.move, self.move, self.move_some, self.move_some, self.move_all, self.command,
            self.command, self.clone, self.clone, self.twin, self.stranger,
        ]  # fmt: skip

    def stop(self) -> None:
        """Nobody moves a node any more by a command; what was moved is followed up."""
        self._commands.stopped = True

    def problem(self) -> str:
        """Why not all is quiet yet."""
        return f"{self._restarts} restarts are to come" if self._restarts else ""

    # -- moves

    def move(self) -> None:
        """One node gets another address in its own file, and is restarted."""
        self._move([self._node()], everywhere=self.clockwork.chance(0.3))

    def move_some(self) -> None:
        """Some nodes swap addresses, or take each other's, and are restarted in any order."""
        nodes = list(self.world.nodes.values())
        chosen = self.clockwork.random.sample(nodes, self.clockwork.random.randint(1, len(nodes)))
        self._move(chosen, everywhere=self.clockwork.chance(0.5))

    def move_all(self) -> None:
        """All nodes move to other machines at once, with the whole file."""
        self._seen("all moved at once")
        nodes = list(self.world.nodes.values())
        self.clockwork.random.shuffle(nodes)
        self._move(nodes, everywhere=True, swap=False)

    def _move(self, nodes: list[Node], *, everywhere: bool, swap: bool = True) -> None:
        if not self.world.is_troubled:
            return
        free = [node.identity.file[node.id] for node in nodes]
        before = list(free)
        self.clockwork.random.shuffle(free)
        for position in range(len(free)):
            if not swap or len(free) == 1 or self.clockwork.chance(0.3):
                free[position] = self._elsewhere()
        moved = {node.id: own for node, own in zip(nodes, free, strict=True)}
        if len(set(free) & set(before)) > 1:
            self._seen("addresses swapped")
        # Where several move at once, the files of all of them know all of it (decision 14).
        for node in self.world.nodes.values() if everywhere else nodes:
            node.identity.file.update(moved)
        for node in nodes:
            self._seen("address moved")
            self._note(f"{node.id} is to move to {moved[node.id].peer}")
            self._soon((0.0, 200.0), self._restart, node)

    def command(self) -> None:
        """An operator moves a member by way of any node, and restarts it, often with its file."""
        node, own = self._node(), self._elsewhere()
        before = node.identity.file[node.id]
        if not self.world.is_troubled:
            return

        def make(deadline_ms: float) -> MemberChange:
            return change_of_addresses(node.id, own, deadline_ms)

        def then(answer: View | OperationError) -> None:
            if isinstance(answer, View):
                if node.identity.file[node.id] == before and self.clockwork.chance(0.5):
                    node.identity.file[node.id] = own
                self._soon(FOLLOW_MS, self._restart, node)

        self._commands.ask(Request("move", node.id, make, wanted=own, then=then))

    def _restart(self, node: Node) -> None:
        if node.is_up and not self._troubles.may_stop():
            self._soon(FOLLOW_MS, self._restart, node)
        elif node.is_up:
            node.crash()
            self._soon((1.0, 400.0), self._start, node)

    def _start(self, node: Node) -> None:
        if not node.is_up:
            node.start()

    # -- what a node does about its entry

    def _on_entry(self, node: Node, step: AddressStep) -> None:
        if step == "register" and self._registering.get(node.id) != node.life:
            self._registering[node.id] = node.life
            self._register(node, node.life, [])
        elif step == "refuse":
            self._seen("an old file is refused")
            self.clockwork.after(0.0, node.post, node.life, self._refuse, node)
        elif step == "warn":
            self._soon(FOLLOW_MS, self._follow, node)

    def _refuse(self, node: Node) -> None:
        """It does not start; an operator writes the lines that it asks for."""
        node.crash()
        self._soon(FOLLOW_MS, self._follow, node)

    def _follow(self, node: Node) -> None:
        """An operator has read that a node's file is to follow the view, and restarts it."""
        member, file = self.world.view.member(node.id), node.identity.file
        if member is not None and file[node.id] == node.identity.own:
            agreed = addresses_of(member)
            others = [one for one in self.world.nodes.values() if one is not node]
            is_taken = any(one.identity.file[one.id] == agreed for one in others)
            file[node.id] = self._elsewhere() if is_taken else agreed
        if node.is_up:
            self._restart(node)
        else:
            node.start()

    def _register(self, node: Node, life: int, asked: list[str]) -> None:
        """Have the view follow the file (`Joining`): by way of a peer, or of the own consensus."""
        view = node.identity.newest
        member = None if view is None else view.member(node.id)
        if member is None or member == node.identity.member():
            self._registering.pop(node.id, None)
            return
        mine = node.identity.member()
        peers = [name for name in self.world.nodes if name not in (*asked, node.id)]
        peers = [name for name in peers if self._may_ask(node, self.world.nodes[name])]
        by = self.world.nodes[peers[0]] if peers else node
        is_over = False

        def then(answer: View | OperationError) -> None:
            network, is_done = self.world.network, isinstance(answer, View)
            if by is node or not network.is_cut(by.id, node.id):
                node.post(life, over, answer)
            if is_done:
                self._seen("moved: by its own member" if by is node else "moved: by a peer")

        def over(answer: View | OperationError | None) -> None:
            nonlocal is_over
            if is_over:
                return
            is_over = True
            if isinstance(answer, View):
                node.on_view(answer)
            following = [] if by is node else [*asked, by.id]
            delay_ms = self.clockwork.between(*REGISTER_AGAIN_MS)
            self.clockwork.after(delay_ms, node.post, life, self._register, node, life, following)

        def make(deadline_ms: float) -> MemberChange:
            return addition(mine, deadline_ms, anew=by is not node)

        wanted, anew = addresses_of(mine), by is not node
        request = Request("move", node.id, make, wanted=wanted, anew=anew, then=then)
        work = Asked(self._registrations, request, REGISTER_PATIENCE_MS)
        by.post(by.life, work.at, by)
        self.clockwork.after(2 * REGISTER_PATIENCE_MS, node.post, life, over, None)

    def _may_ask(self, node: Node, peer: Node) -> bool:
        """Whether a node that has moved has a link to ask by."""
        network = self.world.network
        if not peer.is_up or network.is_cut(node.id, peer.id) or network.is_cut(peer.id, node.id):
            return False
        found = node.identity.registry.dial_addresses(peer.id, "peer")
        if peer.identity.own.peer not in found:
            return False
        for judge, other, dialled in ((peer, node, False), (node, peer, True)):
            verdict: Verdict = judge.identity.registry.judge(
                other.id, other.identity.claim, "peer", asking=True, dialled=dialled
            )
            if verdict.code:
                self._seen(f"not asked: {verdict.code}")
                return False
        return True

    # -- impostors

    def clone(self) -> None:
        """A copy of a node's directory runs with other addresses, or those that the node left."""
        node = self._node()
        former = [peer for peer in node.identity.former if not self._is_in_use(peer)]
        host = former[-1].partition(":")[0] if former and self.clockwork.chance(0.8) else ""
        if host:
            self._seen("clone where its original was")
        self._let_in("clone", node, addresses_at(host) if host else self._elsewhere())

    def stranger(self) -> None:
        """A node of another cluster, or with another disk, runs under a member's name.

        It may have the address of one that is down.
        """
        node = self._node()
        kinds: list[ImpostorKind] = ["stranger", "namesake", "other data", "emptied"]
        own = node.identity.file[node.id]
        if node.is_up or own.peer in self.world.network.listening:
            own = self._elsewhere()
        else:
            self._seen("impostor at a member's address")
        self._let_in(self.clockwork.random.choice(kinds), node, own)

    def twin(self) -> None:
        """A copy says that it has the same addresses, where a link with the original is open.

        (Where none is, nothing tells the two apart.)
        """
        network = self.world.network
        for connection in network.connections:
            for side in (0, 1):
                node, original = connection.ends[side], connection.ends[1 - side]
                if (
                    not connection.is_broken
                    and not isinstance(original, Impostor)
                    and not isinstance(node, Impostor)
                    and original.life == connection.lives[1 - side]
                    and node.life == connection.lives[side]
                ):
                    twin = Impostor("twin", original.id, self._instance(), original.identity.own)
                    self._dial(twin, node)
                    return

    def _let_in(self, kind: ImpostorKind, node: Node, own: Addresses) -> None:
        if not self.world.is_troubled:
            return
        impostor = Impostor(kind, node.id, self._instance(), own)
        self._seen(f"impostor: {kind}")
        self._note(f"a {kind} of {node.id} runs at {own.peer}")
        self.world.network.listening[own.peer] = impostor
        self._later((50.0, 1500.0), self._end, impostor)
        self._go_on(impostor)

    def _go_on(self, impostor: Impostor) -> None:
        """It dials somebody."""
        if impostor.has_ended or not self.world.is_troubled:
            self._end(impostor)
            return
        self._dial(impostor, self._node())
        self._later(DIAL_MS, self._go_on, impostor)

    def _dial(self, impostor: Impostor, node: Node) -> None:
        network = self.world.network
        if node.id != impostor.id and node.is_up and not node.paused:
            network.let_in(impostor, node)

    def _end(self, impostor: Impostor) -> None:
        impostor.has_ended = True
        self.world.network.forget(impostor)

    # -- small things

    def _soon(
        self, delay_ms: tuple[float, float], action: Callable[[Node], None], node: Node
    ) -> None:
        """Do something to a process; until then not all is quiet."""
        self._restarts += 1
        self._later(delay_ms, self._now, action, node)

    def _now(self, action: Callable[[Node], None], node: Node) -> None:
        self._restarts -= 1
        action(node)

    def _node(self) -> Node:
        return self.clockwork.random.choice(list(self.world.nodes.values()))

    def _elsewhere(self) -> Addresses:
        self._hosts += 1
        return addresses_at(f"m{self._hosts}")

    def _instance(self) -> str:
        self._hosts += 1
        return f"copy {self._hosts}"

    def _is_in_use(self, peer: str) -> bool:
        nodes = self.world.nodes.values()
        files = {node.identity.file[node.id].peer for node in nodes}
        return peer in files or peer in self.world.network.listening

    def _later(
        self, delay_ms: tuple[float, float], action: Callable[..., None], *args: object
    ) -> None:
        self.clockwork.after(self.clockwork.between(*delay_ms), action, *args)

    def _seen(self, what: str) -> None:
        self.clockwork.seen[what] += 1

    def _note(self, text: str) -> None:
        if self.clockwork.tracing:
            self.clockwork.note(text)
