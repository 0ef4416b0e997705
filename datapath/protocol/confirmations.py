"""Reads that wait until the replicas have confirmed that this node is still the primary.

Many reads share a round (`datapath.protocol.primary.Primary.confirm`). The engine and the simulator
use the same code: they give it the effects, and carry out those that it returns.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

import msgspec

from datapath.errors import OperationError
from datapath.protocol import effects
from datapath.protocol.replica import Replica


class ReadPoint(msgspec.Struct, frozen=True, gc=False):
    """All that was acknowledged before the read began is at or below `index`, of `epoch`."""

    epoch: int
    index: int


class Confirmation(Protocol):
    """Who waits for a round: a future, or what looks like one. Called once."""

    def done(self) -> bool:
        """Whether it has been answered, or nobody waits any more."""

    def set_result(self, point: ReadPoint, /) -> None:
        """The round has ended: what is applied here may be answered with."""

    def set_exception(self, exception: OperationError, /) -> None:
        """This node is not the primary any more, or does not serve."""


class Confirmations:
    """All who wait on one replica. `not_primary` makes the error for those who wait in vain."""

    def __init__(self, replica: Replica, not_primary: Callable[[], OperationError]) -> None:
        self._replica = replica
        self._not_primary = not_primary
        self.waiting: deque[tuple[int, Confirmation]] = deque()  # by rising round

    def ask(self, waiting: Confirmation) -> list[effects.Effect]:
        """Let `waiting` wait for a round that begins now or later; return what is to be done.

        The answer comes while the returned effects are carried out, or later; at once where this
        node is not the primary.
        """
        number, emitted = self._replica.confirm()
        if number:
            self.waiting.append((number, waiting))
        else:
            waiting.set_exception(self._not_primary())
        return emitted

    def confirmed(self, number: int) -> None:
        """The round `number` has ended, and with it all before it."""
        point = ReadPoint(self._replica.state.epoch, self._replica.state.commit_index)
        while self.waiting and self.waiting[0][0] <= number:
            waiting = self.waiting.popleft()[1]
            if not waiting.done():
                waiting.set_result(point)

    def step_down(self) -> None:
        """The epoch is over: no round of it will end."""
        waiting, self.waiting = self.waiting, deque()
        for _, item in waiting:
            if not item.done():
                item.set_exception(self._not_primary())

    def expire(self) -> None:
        """Forget those who wait no more; call it now and then, for a round may never end."""
        if any(item.done() for _, item in self.waiting):
            self.waiting = deque(item for item in self.waiting if not item[1].done())
