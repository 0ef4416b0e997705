"""Requests without a pause on connections that are kept, to see whether one ever fails."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from tests.support.raw_http import Connection, Reply, connect


class Traffic:
    """Clients that keep connections open, each bound to the nodes that have not refused it.

    A connection is used until an answer says `Connection: close` or the client finds it closed
    before it asks; a connect that is refused, or reset as the listener closes, is no failure, as no
    request was made. Everything else is.
    """

    def __init__(self, urls: Sequence[str], lane: dict[str, str]) -> None:
        self._urls = urls
        self._lane = lane
        self._stop = False
        self.answered = 0
        self.failures: list[str] = []
        self._numbers = itertools.count()

    async def run(self, url: str, pause_s: float) -> None:
        order = itertools.cycle([url, *(other for other in self._urls if other != url)])
        while not self._stop:
            target = next(order)
            try:
                async with connect(target) as connection:
                    await self._use(connection, target, pause_s)
            except (ConnectionRefusedError, ConnectionResetError):  # only connecting raises here
                await asyncio.sleep(0.01)

    async def _use(self, connection: Connection, node: str, pause_s: float) -> None:
        while not self._stop:
            if connection.reader.at_eof():
                return
            number = next(self._numbers)
            method = ("PUT", "GET", "DELETE")[number % 3]
            try:
                reply = await self._ask(connection, method, number)
            except (OSError, EOFError) as error:
                self.failures.append(f"{method} {number} at {node}: {error!r}")
                return
            if reply.status not in {200, 201, 404}:
                self.failures.append(f"{method} {number} at {node}: {reply}")
            self.answered += 1
            if reply.headers.get("connection") == "close":
                return
            await asyncio.sleep(pause_s)

    async def _ask(self, connection: Connection, method: str, number: int) -> Reply:
        body = b"x" if method == "PUT" else None
        connection.send_request(method, f"/v1/kv/{number % 50}", body, self._lane)
        return await connection.receive()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        pauses = (0.0, 0.005, 0.05)
        async with asyncio.TaskGroup() as group:
            for url in self._urls:
                for pause_s in pauses:
                    group.create_task(self.run(url, pause_s))
            try:
                yield
            finally:
                self._stop = True
