"""Who asks the group for something: nodes that change the view, and operators who make mistakes."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from election.pysyncobj_adapter.view_machine import (
    ProposeRequest,
    ReadRequest,
    ViewReply,
    encode_command,
)
from election.view import (
    AddMember,
    AddToInSync,
    Bootstrap,
    Confirm,
    Handover,
    RemoveFromInSync,
    RemoveMember,
    TakeOver,
    ViewChange,
)
from tests.sim.clockwork import ViolationError

if TYPE_CHECKING:
    from tests.sim.consensus.node import Node
    from tests.sim.consensus.world import World

TIMEOUT_MS = (100.0, 1500.0)
MOST_FLOODED = 40


class _Request(NamedTuple):
    change: ViewChange | None  # None: a read
    version: int  # of the true view when it was asked


class Operators:
    """Requests by way of any node, until they are answered or time is over."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._number = 0
        self._waiting: dict[bytes, _Request] = {}
        self._asked: dict[bytes, tuple[Node, int]] = {}

    def propose(self, node: Node, change: ViewChange, *, ahead: int = 0) -> None:
        """Propose on top of what that node knows, or of so many changes more."""
        version = 0 if node.published is None else node.published.version + ahead
        request_id = self.new_id()
        self.ask(
            node, request_id, encode_command(ProposeRequest(request_id, version, change)), change
        )

    def read(self, node: Node) -> None:
        """Ask for the view."""
        request_id = self.new_id()
        self.ask(node, request_id, encode_command(ReadRequest(request_id)), None)

    def on_answer(self, node: Node, answer: ViewReply) -> None:
        """Judge an answer: what was committed, and for a read, nothing old."""
        request = self._waiting.pop(answer.request_id, None)
        oracle, seen = self.world.oracle, self.world.clockwork.seen
        if request is None:
            return
        if request.change is None:
            seen["read answered"] += 1
            version = 0 if answer.view is None else answer.view.version
            if version < request.version:
                raise ViolationError(
                    f"{node.id} answers a read with version {version}, asked after version "
                    f"{request.version} was committed"
                )
            return
        seen["proposal refused" if answer.refusal else "proposal committed"] += 1
        if oracle.answers.get(answer.request_id) != answer:
            raise ViolationError(
                f"{node.id} answers {answer}, not {oracle.answers.get(answer.request_id)}"
            )

    def change_view(self, node: Node) -> None:
        """Propose something that does not touch the members."""
        view, random = node.published, self.world.clockwork.random
        if view is None:
            self.bootstrap(node)
            return
        names = [member.id for member in view.members]
        self.propose(
            node,
            random.choice(
                (
                    Confirm(),
                    AddToInSync(random.choice(names)),
                    TakeOver(random.choice(names)),
                    Handover(random.choice(view.in_sync)),
                    RemoveFromInSync((random.choice(names),)),
                )
            ),
        )

    def bootstrap(self, node: Node) -> None:
        """Propose the first view, with all founders as members."""
        if self.world.view is None and node.id in self.world.founders:
            founders = [self.world.nodes[name] for name in self.world.founders]
            self.propose(node, Bootstrap("sim", node.id, tuple(f.member() for f in founders)))

    def add(self, asked: Node, newcomer: Node) -> None:
        """Ask for a new member."""
        self.propose(asked, AddMember(newcomer.member()))

    def remove(self, asked: Node, leaver: Node) -> None:
        """Ask for the removal of a member; of the primary, after another one is."""
        view, random = asked.published, self.world.clockwork.random
        if view is None:
            return
        if view.primary == leaver.id:
            others = [name for name in view.in_sync if name != leaver.id]
            rest = [member.id for member in view.members if member.id not in view.in_sync]
            if others:
                self.propose(asked, Handover(random.choice(others)))
            elif rest:
                self.propose(asked, AddToInSync(random.choice(rest)))
            return
        self.propose(asked, RemoveMember(leaver.id))

    def flood(self, node: Node, count: int) -> None:
        """Fill the queue of a node: requests wait there behind each sync."""
        for _ in range(min(count, MOST_FLOODED)):
            if self.world.clockwork.chance(0.5):
                self.read(node)
            else:
                self.propose(node, Confirm())

    def forget_all(self) -> None:
        """Give up what is asked: it may take effect all the same, soon."""
        for request_id, (node, life) in list(self._asked.items()):
            self._forget(node, life, request_id)

    def new_id(self) -> bytes:
        """Return an id for a request."""
        self._number += 1
        return self._number.to_bytes(16, "big")

    def ask(
        self,
        node: Node,
        request_id: bytes,
        command: bytes,
        change: ViewChange | None,
        *,
        timeout_ms: float | None = None,
    ) -> None:
        """Ask by way of a node; the answer is judged. `change`: of the command; None: it reads."""
        runner, view = node.runner, self.world.view
        if runner is None:
            return
        clockwork = self.world.clockwork
        if timeout_ms is None:
            timeout_ms = clockwork.between(*TIMEOUT_MS)
        version = 0 if view is None else view.version
        self._waiting[request_id] = _Request(change, version)
        self._asked[request_id] = (node, node.life)
        runner.request(request_id, command)
        clockwork.after(timeout_ms, self._forget, node, node.life, request_id)

    def _forget(self, node: Node, life: int, request_id: bytes) -> None:
        self._asked.pop(request_id, None)
        if self._waiting.pop(request_id, None) is None:
            return
        self.world.clockwork.seen["request without an answer"] += 1
        if node.life == life and node.runner is not None:
            node.runner.forget(request_id)
