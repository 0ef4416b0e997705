"""Reads at a backup: the production read index puts one question for many of them to the primary.

What is between the nodes is simulated: questions and answers that are late or lost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from datapath.errors import NotPrimaryError, OperationError
from datapath.node.read_index import QUESTION_TIMEOUT_MS, ReadIndex
from datapath.protocol.confirmations import ReadPoint

if TYPE_CHECKING:
    from tests.sim.node import Node

TIMEOUT_MS = (20.0, 500.0)
"""How long a read waits: some are given up, and with them the question that was theirs alone."""
LATER = 1.05
"""A node's clock may be slow: by then it is late there, too."""
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

    def join(self, read: Read) -> None:
        """Let a read wait; it is called once it may read, or never."""
        node = self._node
        timeout_ms = node.clockwork.between(*TIMEOUT_MS)
        self._reads.join(read, node.clock() + timeout_ms)
        node.clockwork.after(LATER * timeout_ms, node.post, self._life, self._expire)
        self._ask()

    def age_ms(self) -> float:
        """How old what is applied here is at the most."""
        return self._reads.age_ms(self._node.clock())

    def _ask(self) -> None:
        node, view = self._node, self._node.replica.view
        if view is None:
            return
        number = self._reads.ask(node.clock())
        if not number:
            return
        clockwork, network = node.clockwork, node.world.network
        primary = node.world.nodes[view.primary]

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
                node.post(self._life, self._answered, number, epoch, index)

        clockwork.after(clockwork.between(*network.delay_ms), question)
        clockwork.after(LATER * QUESTION_TIMEOUT_MS, node.post, self._life, self._expire)

    def _answered(self, number: int, epoch: int, index: int) -> None:
        """Do what `datapath.node.reads` does."""
        seen, service = self._node.clockwork.seen, self._node.service
        if not self._reads.answered(number, index):
            seen["client: an answer to a question that was given up"] += 1
            return
        service.advance_commit(epoch, index)
        self._ask()
        service.when_applied(index, self._applied)

    def _applied(self) -> None:
        reads = self._reads.applied(self._node.service.applied_index)
        if len(reads) > 1:
            self._node.clockwork.seen["client: reads share a question"] += 1
        for read in reads:
            read()

    def _expire(self) -> None:
        self._reads.expire(self._node.clock())
        self._ask()
