"""Costly pieces of work take turns: one in each turn of the event loop, in the order of asking.

So a hundred who ask at once never hold up heartbeats and leases for longer than one piece takes.
"""

from __future__ import annotations

import asyncio
from collections import deque

TURN_COST_BYTES = 1024 * 1024
"""What may be read and answered in one turn beside that, of what is cheap in itself: about 1 ms."""


class Turns:
    """Gives turns. Use it on the event loop."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._taken = False
        self._given = False  # in the last turn of the loop, to one who works in this one
        self._cost_bytes = 0
        self.is_spent = False
        """Whether so much has been spent in this turn of the loop that the rest has to wait."""

    def spend(self, cost_bytes: int) -> None:
        """Something was done in this turn that cost as much as copying so many bytes."""
        if not self._cost_bytes:
            asyncio.get_running_loop().call_soon(self._begin_turn)
        self._cost_bytes += cost_bytes
        self.is_spent = self._cost_bytes >= TURN_COST_BYTES

    def _begin_turn(self) -> None:
        self._cost_bytes = 0
        self.is_spent = False

    async def wait_while_spent(self) -> None:
        """Wait for a turn of the loop in which there is something left to spend."""
        while self.is_spent:
            await self.take()

    async def take(self) -> None:
        """Wait until it is the caller's turn to do one piece of work, without awaiting in it."""
        loop = asyncio.get_running_loop()
        if not self._taken:
            self._taken = True
            loop.call_soon(self._pass_on)
            return
        turn: asyncio.Future[None] = loop.create_future()
        self._waiting.append(turn)
        await turn

    def _pass_on(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():  # else whoever waited has gone
                turn.set_result(None)
                self._given = True
                asyncio.get_running_loop().call_soon(self._pass_on)
                return
        if self._given:  # this turn of the loop is theirs
            self._given = False
            asyncio.get_running_loop().call_soon(self._pass_on)
            return
        self._taken = False
