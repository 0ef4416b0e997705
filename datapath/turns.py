"""Costly pieces of work take turns: one in each turn of the event loop, in the order of asking.

So a hundred who ask at once never hold up heartbeats and leases for longer than one piece takes.
"""

from __future__ import annotations

import asyncio
from collections import deque


class Turns:
    """Gives turns. Use it on the event loop."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._taken = False

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
                asyncio.get_running_loop().call_soon(self._pass_on)
                return
        self._taken = False
