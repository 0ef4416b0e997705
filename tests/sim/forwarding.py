"""One operation at the node that was asked: forwarded, retried and answered as the gateway does.

The decisions are the production router's; what is between nodes is simulated here: calls that are
late or lost, links that end under a call whose request still arrives, primaries that die.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from datapath.errors import DataPathError, NotPrimaryError, OperationError
from datapath.node.router import Attempts
from datapath.operations import Completion, Operation, Result
from datapath.transport.calls import NoAnswerError

if TYPE_CHECKING:
    from tests.sim.node import Node
    from tests.sim.world import World

RETRY_MS = (1.0, 50.0)
MARGIN_MS = 20.0
LINK_ENDS_MS = (1.0, 60.0)
LATE_MS = (20.0, 400.0)


class Troubles:
    """How often a link ends under a call, and how often the call then arrives late."""

    def __init__(self, broken: float, late: float) -> None:
        self.broken = broken
        self.late = late


class Forwarding:
    """An operation under way at a node; `completion` is answered once, unless the node dies."""

    def __init__(
        self,
        world: World,
        node: Node,
        operation: Operation,
        timeout_ms: float,
        completion: Completion,
        troubles: Troubles,
    ) -> None:
        self._world = world
        self._clockwork = world.clockwork
        self._node = node
        self._life = node.life
        self._operation = operation
        self._completion = completion
        self._troubles = troubles
        self._attempts = Attempts(operation, node.clock() + timeout_ms)
        self._number = 0
        self._step()

    def _later(self, delay_ms: float, action: Callable[..., None], *args: Any) -> None:
        """Do something on this node, in this life of it."""
        self._clockwork.after(delay_ms, self._node.post, self._life, action, *args)

    def _step(self) -> None:
        node, attempts = self._node, self._attempts
        service = node.service
        view, now_ms = node.replica.view, node.clock()
        primary = view.primary if view else ""
        left_ms = attempts.deadline_ms - now_ms
        match attempts.next(now_ms, primary=primary, is_here=primary == node.id):
            case "answer":
                outcome = attempts.answer(
                    NotPrimaryError("no_primary", "nobody", primary),
                    lambda: service.tail.recall(self._operation),
                )
                if isinstance(outcome, Result):
                    self._clockwork.seen["client: recalled by a forwarder"] += 1
                    self._completion.set_result(outcome)
                else:
                    self._completion.set_exception(outcome)
            case "wait":
                self._later(self._clockwork.between(*RETRY_MS), self._step)
            case "here":
                self._number += 1
                service.ask(self._operation, left_ms, Ended(self._ended, self._number))
            case "forward":
                self._number += 1
                self._forward(self._world.nodes[primary], left_ms, self._number)

    def _forward(self, primary: Node, left_ms: float, number: int) -> None:
        clockwork, network, node = self._clockwork, self._world.network, self._node
        life = primary.life
        clockwork.seen["client: forwarded"] += 1

        def arrive() -> None:
            if not network.is_cut(node.id, primary.id):
                primary.post(life, execute)

        def execute() -> None:
            primary.service.ask(self._operation, left_ms, Ended(answer, number))

        def answer(number: int, outcome: Result | DataPathError) -> None:
            if not network.is_cut(primary.id, node.id):
                self._later(clockwork.between(*network.delay_ms), self._ended, number, outcome)

        broken = clockwork.chance(self._troubles.broken)
        late = broken and clockwork.chance(self._troubles.late)
        clockwork.after(clockwork.between(*(LATE_MS if late else network.delay_ms)), arrive)
        if broken:
            clockwork.seen["client: a link ended under a call"] += 1
            lost = NoAnswerError("the link was lost")
            self._later(clockwork.between(*LINK_ENDS_MS), self._ended, number, lost)
        self._later(left_ms + MARGIN_MS, self._ended, number, NoAnswerError("no answer"))
        self._later(clockwork.between(*LINK_ENDS_MS), self._look_after, primary, life, number)

    def _look_after(self, primary: Node, life: int, number: int) -> None:
        """A link to a node that has died ends."""
        if number != self._number:
            return
        if not primary.is_up or primary.life != life:
            self._ended(number, NoAnswerError("the link was lost"))
        else:
            self._later(LINK_ENDS_MS[1], self._look_after, primary, life, number)

    def _ended(self, number: int, outcome: Result | DataPathError) -> None:
        if number != self._number or self._completion.done():
            return  # an answer to an earlier attempt: nobody waits for it any more
        self._number += 1
        if isinstance(outcome, Result):
            self._completion.set_result(outcome)
            return
        self._attempts.failed(outcome)
        if self._attempts.is_uncertain:
            keyed = "" if self._operation.idempotency_key else " without a key"
            self._clockwork.seen[f"client: an attempt of a forwarder{keyed} is uncertain"] += 1
        self._step()


class Ended:
    """The `Completion` of one attempt."""

    __slots__ = ("_action", "_done", "_number")

    def __init__(self, action: Callable[[int, Result | DataPathError], None], number: int) -> None:
        self._action = action
        self._number = number
        self._done = False

    def done(self) -> bool:
        """Whether it has been answered."""
        return self._done

    def set_result(self, result: Result, /) -> None:
        """Take the answer."""
        self._done = True
        self._action(self._number, result)

    def set_exception(self, exception: OperationError, /) -> None:
        """Take the reason why there is none."""
        self._done = True
        self._action(self._number, exception)
