"""The answers of one turn of the event loop leave together, at its end.

The kernel sends one after the other then, not each amid the making of two others: that pushed it
and Python out of the caches, again and again.
"""

from __future__ import annotations

import asyncio


class Outbox:
    """Answers that are about to leave. Use it on the event loop."""

    __slots__ = ("_waiting", "will_flush")

    def __init__(self) -> None:
        self._waiting: list[tuple[asyncio.Transport, bytes]] = []
        self.will_flush = False
        """Whether somebody calls `flush` in this turn of the loop, or at the next one's begin."""

    def send(self, transport: asyncio.Transport, data: bytes) -> None:
        """Send an answer with the others, in the order in which they came."""
        self._waiting.append((transport, data))
        if not self.will_flush:
            self.will_flush = True
            asyncio.get_running_loop().call_soon(self.flush)

    def flush(self) -> None:
        """Send all that waits now: before a connection is closed, say."""
        self.will_flush = False
        waiting, self._waiting = self._waiting, []
        for transport, data in waiting:
            if not transport.is_closing():
                transport.write(data)
