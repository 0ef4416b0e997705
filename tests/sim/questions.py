"""Reads at a backup: the production read index puts one question for many of them to the primary.

What is between the nodes is simulated: questions and answers that are late or lost.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from datapath.errors import NotPrimaryError, OperationError
from datapath.node.read_index import ReadIndex
from datapath.protocol.confirmations import ReadPoint

if TYPE_CHECKING:
    from tests.sim.node import Node

TIMEOUT_MS = 500.0
LATE_RATE = 0.2
LATE_MS = (5.0, 80.0)
"""So long an answer takes, sometimes: writes are acknowledged and reads begin meanwhile."""

Read = Callable[[], None]


class Told:
    """The asking end of a question whose answer the primary's replicas have to confirm."""

    __slots__ = ("_reply",)

    def __init__(self, reply: Callable[[int, int], None]) -> None:
        self._reply = reply

    def done(self) -> bool:
        """Nobody tells the primary that a backup waits no more."""
        return False

    def set_result(self, point: ReadPoint, /) -> None:
        """The backup may read once it has applied that."""
        self._reply(point.epoch, point.index)

    def set_exception(self, exception: OperationError, /) -> None:
        """No answer: the question's time will be up."""


class Questions:
    """What one life of a node asks the primary, in one kind: confirmed, or on its leases."""

    def __init__(self, node: Node, *, confirmed: bool) -> None:
        self._node = node
        self._life = node.life
        self._confirmed = confirmed
        self._reads: ReadIndex[Read] = ReadIndex()
        self._number = 0

    def join(self, read: Read) -> None:
        """Let a read wait; it is called once it may read, or never."""
        self._reads.join(read)
        self._ask()

    def age_ms(self) -> float:
        """How old what is applied here is at the most."""
        return self._reads.age_ms(self._node.clock())

    def _ask(self) -> None:
        node, view = self._node, self._node.replica.view
        if view is None or not self._reads.ask(node.clock()):
            return
        self._number += 1
        clockwork, network = node.clockwork, node.world.network
        primary, number = node.world.nodes[view.primary], self._number

        def question() -> None:
            if not network.is_cut(node.id, primary.id):
                primary.post(primary.life, asked)

        def asked() -> None:
            if self._confirmed or primary.service.confirms_reads:
                primary.confirm(Told(reply))
                return
            try:
                epoch, index = primary.service.read_index()
            except NotPrimaryError:
                return
            reply(epoch, index)

        def reply(epoch: int, index: int) -> None:
            delay_ms = LATE_MS if clockwork.chance(LATE_RATE) else network.delay_ms
            clockwork.after(clockwork.between(*delay_ms), answered, epoch, index)

        def answered(epoch: int, index: int) -> None:
            if not network.is_cut(primary.id, node.id):
                node.post(self._life, self._settle, number, epoch, index)

        clockwork.after(clockwork.between(*network.delay_ms), question)
        clockwork.after(TIMEOUT_MS, node.post, self._life, self._settle, number, 0, None)

    def _settle(self, number: int, epoch: int, index: int | None) -> None:
        """The question has an answer, or its time is up; then the next one is asked."""
        if number != self._number:
            return
        self._number += 1
        reads, asked_ms = self._reads.settle()
        service = self._node.service
        if index is not None:
            if len(reads) > 1:
                self._node.clockwork.seen["client: reads share a question"] += 1
            service.advance_commit(epoch, index)
            service.when_applied(index, partial(self._reads.applied, asked_ms))
            for read in reads:
                service.when_applied(index, read)
        self._ask()
