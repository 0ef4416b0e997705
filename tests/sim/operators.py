"""Operators who err: members that are added and removed by way of any node, as production decides.

What is asked is repeated, asked twice at once, given up, or names the wrong node. Each request is a
production `MemberChange`, judged by `datapath.node.membership`; what is between nodes is simulated
here: pings that nobody answers, calls to the primary that get lost, nodes that end under a request.
The oracle knows who really runs and holds what, and whether what an operator was told has happened.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from datapath.errors import NotPrimaryError, OperationError
from datapath.node.member_change import MemberChange, addition, removal
from datapath.node.membership import Facts, MembershipRefusal, refusals, unjudged
from election.agreement import Outcome, Unknown
from election.identity import Addresses
from election.view import View

if TYPE_CHECKING:
    from tests.sim.node import Node
    from tests.sim.troubles import Troubles
    from tests.sim.world import World

PATIENCE_MS = (150.0, 2500.0)
PING_TIMEOUT_MS = 500.0
RETRY_MS = (1.0, 50.0)
MARGIN_MS = 200.0
MOST_NODES = 6
NOBODY = NotPrimaryError("no_primary", "no primary could take it in time")


class Request:
    """What one operator wants, and how it went. `where` is the node that carries it out."""

    def __init__(
        self,
        wish: str,
        target: str,
        make: Callable[[float], MemberChange],
        *,
        force: bool = False,
        wanted: Addresses | None = None,
        anew: bool = True,
        then: Callable[[View | OperationError], None] | None = None,
    ) -> None:
        self.wish = wish
        self.target = target
        self.force = force
        self.make = make
        self.wanted = wanted  # where a member is to be reached
        self.anew = anew  # else who is no member does not become one: it is told the view
        self.then = then  # takes the answer
        self.looked_ms = 0.0  # true time when the look began on which a proposal rests
        self.is_open = False  # a proposal may yet take effect: it rests on an earlier look
        self.live: frozenset[str] = frozenset()  # who was seen alive
        self.voters: frozenset[str] = frozenset()  # who votes, as the node knew that judged
        self.forced = False  # whether what was proposed last was judged to cost something
        self.committed: list[View] = []
        self.answer: View | OperationError | None = None

    def __str__(self) -> str:
        force = " by force" if self.force else ""
        return f"the {self.wish} of {self.target}{force}"


class Operators:
    """All operators of a schedule."""

    def __init__(self, world: World, troubles: Troubles) -> None:
        self.world = world
        self.clockwork = world.clockwork
        self.troubles = troubles
        self.stopped = False  # what is asked ends, as at a node that is stopping

    def kinds(self) -> list[Callable[[], None]]:
        """Return what they do, as kinds of faults."""
        return [self.remove, self.remove, self.remove_dead, self.remove_two, self.add, self.add_old]

    # -- what they do

    def remove(self) -> None:
        """Remove any member: the wrong one, perhaps."""
        names = [member.id for member in self.world.view.members]
        self._remove(self.clockwork.random.choice(names))

    def remove_dead(self) -> None:
        """Remove who is dead, or a live one beside it, which was meant to be the dead one."""
        world, random = self.world, self.clockwork.random
        names = [member.id for member in world.view.members]
        dead = [name for name in names if not world.agreement.is_voting(name)]
        if not dead:
            name = random.choice(names)
            if name not in world.nodes:
                world.agreement.stop_witness()
            else:
                self.troubles.kill(world.nodes[name], self.clockwork.between(400, 2000))
            dead = [name]
        target = random.choice(dead) if self.clockwork.chance(0.5) else random.choice(names)
        delay_ms = self.clockwork.between(0, 300)
        self.clockwork.after(delay_ms, self._remove, target)

    def remove_two(self) -> None:
        """Two operators at once, each for a node of its own, or both for the same."""
        self.remove()
        self.remove()

    def _remove(self, target: str) -> None:
        force = self.clockwork.chance(0.2)

        def make(deadline_ms: float) -> MemberChange:
            return removal(target, deadline_ms, force=force)

        self.ask(Request("removal", target, make, force=force))

    def needed(self) -> tuple[str, ...]:
        """Who holds what a replica with lost entries needs: force would be one fault too many."""
        world = self.world
        lost = any(node.has_lost for node in world.nodes.values())
        return world.view.in_sync if lost else ()

    def add(self) -> None:
        """A new node comes in, or one that waits to, asks again."""
        world = self.world
        waiting = [
            node.id
            for node in world.nodes.values()
            if world.view.member(node.id) is None and node.id not in world.view.removed
        ]
        if not waiting and len(world.nodes) < MOST_NODES:
            waiting = [world.add_node().id]
        if waiting:
            self._add(waiting[0])

    def add_old(self) -> None:
        """A node that was removed asks to come in under its old id, of a node that may not know."""
        removed = [name for name in self.world.view.removed if name in self.world.nodes]
        if removed:
            self._add(self.clockwork.random.choice(removed))

    def _add(self, name: str) -> None:
        member = self.world.nodes[name].identity.member()

        def make(deadline_ms: float) -> MemberChange:
            return addition(member, deadline_ms)

        self.ask(Request("addition", member.id, make))

    def ask(self, request: Request) -> None:
        """Ask some node; perhaps a second one, too, or the same again."""
        clockwork = self.clockwork
        clockwork.seen[f"operator: {request.wish} asked for"] += 1
        times = 2 if clockwork.chance(0.15) else 1
        for _ in range(times):
            node = self._node()
            one = Request(
                request.wish, request.target, request.make,
                force=request.force, wanted=request.wanted, then=request.then,
            )  # fmt: skip
            if clockwork.tracing:
                clockwork.note(f"an operator asks {node.id} for {one}")
            node.post(node.life, Asked(self, one, clockwork.between(*PATIENCE_MS)).at, node)

    def _node(self) -> Node:
        """Draw who is asked: often the primary."""
        world, random = self.world, self.clockwork.random
        if random.random() < 0.5:
            return world.nodes[world.view.primary]
        return random.choice(list(world.nodes.values()))

    def told(self, request: Request, answer: View | OperationError) -> None:
        """An operator has an answer: it has to be what happened."""
        clockwork = self.clockwork
        request.answer = answer
        if isinstance(answer, View):
            said = "done"
        else:
            said = answer.outcome if answer.outcome == "unknown" else answer.code
        clockwork.seen[f"operator: {request.wish} {said}"] += 1
        if clockwork.tracing:
            clockwork.note(f"{request}: {answer if said != 'done' else said}")
        self.world.oracle.on_told(request)
        if request.then is not None:
            request.then(answer)


class Asked:
    """One request at the nodes: production's `Members`, with simulated calls between them."""

    def __init__(self, operators: Operators, request: Request, patience_ms: float) -> None:
        self._operators = operators
        self._world = operators.world
        self._clockwork = operators.clockwork
        self._request = request
        self._patience_ms = patience_ms

    def at(self, node: Node) -> None:
        """As `Members.remove` has it, and additions are carried out where they are asked for."""
        view = node.replica.view
        if view is None or view.member(node.id) is None:
            self._operators.told(self._request, NOBODY)
        elif self._request.wish != "removal" or view.primary == node.id:
            self._carry_out(node, lambda answer: self._operators.told(self._request, answer))
        else:
            self._forward(node, self._world.nodes[view.primary])

    def _forward(self, node: Node, primary: Node) -> None:
        network, clockwork, life = self._world.network, self._clockwork, node.life
        if not primary.is_up or network.is_cut(node.id, primary.id):
            self._nobody(node)  # there is no link
            return

        def arrive() -> None:
            primary.post(primary.life, self._carry_out, primary, back)

        def back(answer: View | OperationError) -> None:
            if not network.is_cut(primary.id, node.id):
                clockwork.after(
                    clockwork.between(*network.delay_ms), node.post, life, self._answered, node,
                    answer,
                )  # fmt: skip

        clockwork.after(clockwork.between(*network.delay_ms), arrive)

    def _answered(self, node: Node, answer: View | OperationError) -> None:
        if isinstance(answer, NotPrimaryError):
            self._nobody(node)
        else:
            self._operators.told(self._request, answer)

    def _nobody(self, node: Node) -> None:
        """Without a primary only force removes."""
        if self._request.force:
            self._carry_out(node, lambda answer: self._operators.told(self._request, answer))
        else:
            self._operators.told(self._request, NOBODY)

    def _carry_out(self, node: Node, told: Callable[[View | OperationError], None]) -> None:
        _Work(self._operators, node, self._request, self._patience_ms, told).go_on()


class _Work:
    """A `MemberChange` on one node, in one life of it."""

    def __init__(
        self,
        operators: Operators,
        node: Node,
        request: Request,
        patience_ms: float,
        told: Callable[[View | OperationError], None],
    ) -> None:
        self._operators = operators
        self._world = operators.world
        self._clockwork = operators.clockwork
        self._node = node
        self._life = node.life
        self._request = request
        self._told = told
        self._change = request.make(node.clock() + patience_ms)

    def _later(self, delay_ms: float, action: Callable[..., None], *args: object) -> None:
        self._clockwork.after(delay_ms, self._node.post, self._life, action, *args)

    def go_on(self) -> None:
        """Do what the change says."""
        node, change, request = self._node, self._change, self._request
        view = node.replica.view
        match change.next(node.clock(), view, stopping=self._operators.stopped):
            case "wait":
                self._later(self._clockwork.between(*RETRY_MS), self.go_on)
            case "look" if view is not None:
                if not request.is_open:
                    request.looked_ms = self._clockwork.now
                self._look(view)
            case "propose" if request.force and request.target in self._operators.needed():
                pass  # that operator gives up
            case "propose" if view is not None and change.change is not None:
                request.forced = change.forced
                request.is_open = True
                self._world.agreement.decide(
                    node, change.change, view.version, self._proposed, request
                )
            case _:
                self._told(change.answer(NOBODY))

    def _proposed(self, outcome: Outcome) -> None:
        view = getattr(outcome, "view", None)
        if view is not None:
            self._node.on_view(view)
        if not isinstance(outcome, Unknown):
            self._request.is_open = False
        self._change.proposed(outcome)
        self.go_on()

    # -- who lives

    def _look(self, view: View) -> None:
        """Ping all members; those that consensus does not hear count as dead."""
        node, clockwork, network = self._node, self._clockwork, self._world.network
        if not node.replica.may_serve(node.clock()):
            self._seen(view, unjudged(view, self._request.target, "it does not serve"))
            return
        waiting = {member.id for member in view.members} - {node.id}
        live = {node.id}

        def answered(name: str) -> None:
            live.add(name)
            if live >= waiting:
                done()

        def done() -> None:
            if waiting:
                waiting.clear()
                self._seen(view, self._judge(view, frozenset(live)))

        def ping(name: str) -> None:
            other = self._world.nodes.get(name)
            if other is None:
                if self._world.agreement.is_voting(name):
                    self._later(clockwork.between(*network.delay_ms), answered, name)
            elif not network.is_cut(node.id, name):
                other.post(other.life, pong, name)

        def pong(name: str) -> None:
            agreement = self._world.agreement
            if not network.is_cut(name, node.id) and not {name, node.id} & agreement.cut_off:
                self._later(clockwork.between(*network.delay_ms), answered, name)

        for name in sorted(waiting):
            clockwork.after(clockwork.between(*network.delay_ms), ping, name)
        if waiting:
            self._later(PING_TIMEOUT_MS, done)
        else:
            self._seen(view, self._judge(view, frozenset(live)))

    def _judge(self, view: View, live: frozenset[str]) -> list[MembershipRefusal]:
        node, world = self._node, self._world
        state = node.replica.state
        voters = world.agreement.known_voters(view)
        self._request.live, self._request.voters = live, voters
        facts = Facts(
            live=live,
            voters=voters,
            min_in_sync=world.bounds.min_in_sync,
            may_lack_entries=state.tail_cut or state.incomplete,
        )
        return refusals(view, facts, self._request.target)

    def _seen(self, view: View, found: list[MembershipRefusal]) -> None:
        if self._node.replica.view is view:
            self._change.looked(view, found)
            for refusal in found:
                self._clockwork.seen[f"operator: against it: {refusal.code}"] += 1
        self.go_on()
