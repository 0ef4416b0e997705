"""Asks at a steady pace, whether answers come or not: what a client who comes just now would see.

The recorded load's clients wait for their answers, so while a fault lasts they all stand still for
as long as they were told to wait, and that is all that their gaps show. Here a new request goes out
every INTERVAL_S, in turn a write and a linearizable read, at each node in turn, on a connection of
its own. Keys are the prober's own, so that it stays out of the histories.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from tests.support.availability import Availability, Success
from tests.support.raw_http import fetch

INTERVAL_S = 0.02
PATIENCE_S = 2.0
"""Bounds the requests under way, to a hundred."""


class Prober:
    """Use it as a context manager; `asked` counts requests, `availability` has what succeeded."""

    def __init__(self, urls: Mapping[str, str]) -> None:
        self.availability = Availability(urls)
        self.asked: Counter[Success] = Counter()
        self._urls = dict(urls)
        self._tasks: set[asyncio.Task[None]] = set()
        self._runner: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._runner = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._runner is not None
        for task in (self._runner, *self._tasks):
            task.cancel()
        await asyncio.gather(self._runner, *self._tasks, return_exceptions=True)

    async def finish(self) -> None:
        """Ask no more, and wait for the answers under way."""
        assert self._runner is not None
        self._runner.cancel()
        await asyncio.gather(self._runner, *self._tasks, return_exceptions=True)

    async def _run(self) -> None:
        kinds: tuple[Success, ...] = ("write", "read")
        for number, (node, kind) in enumerate(
            itertools.cycle(itertools.product(self._urls, kinds))
        ):
            task = asyncio.create_task(self._probe(kind, node, f"probe/{number % 50}"))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            await asyncio.sleep(INTERVAL_S)

    async def _probe(self, kind: Success, node: str, key: str) -> None:
        asked_ns = time.monotonic_ns()
        self.asked[kind] += 1
        target = f"/v1/kv/{key}?timeout_ms={PATIENCE_S * 1000:.0f}"
        try:
            async with asyncio.timeout(PATIENCE_S):
                if kind == "write":
                    reply = await fetch(self._urls[node], "PUT", target, b"x")
                else:
                    reply = await fetch(self._urls[node], "GET", target)
        except (OSError, EOFError, TimeoutError):
            return
        if reply.status in {200, 201} or (kind == "read" and reply.status == 404):
            self.availability.add(kind, node, asked_ns, time.monotonic_ns())
