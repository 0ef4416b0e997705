"""Observers of an election on real nodes: every leader once, in order, over kills (W1 to W3)."""

from __future__ import annotations

import asyncio

import pytest

from cluster.client.aio import AsyncClient
from cluster.client.observing import AsyncElectionWatch
from tests.nodes.conftest import MakeCluster
from tests.support.cluster import Cluster, wait_until

pytestmark = pytest.mark.slow

DEADLINE_S = 60.0
LEADERS = 12


class Observer:
    """One that observes at some nodes, and what it was given."""

    def __init__(self, urls: list[str]) -> None:
        self.client = AsyncClient(urls, discover=False)
        self.watch: AsyncElectionWatch = self.client.observe("main")
        self.story: list[tuple[int, str]] = []
        self.task: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        await self.watch.begin()
        self.task = asyncio.create_task(self._collect())

    async def _collect(self) -> None:
        async for event in self.watch:
            leader = event.leader
            if leader is not None:
                assert leader.token <= event.revision
            self.story.append((event.revision, "" if leader is None else leader.value))

    async def end(self) -> None:
        if self.task is not None:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)
        await self.client.close()


@pytest.mark.long
async def test_every_leader_is_seen_while_primaries_are_killed(make_cluster: MakeCluster) -> None:
    cluster: Cluster = make_cluster()
    await cluster.start()
    urls = [cluster.url(node) for node in cluster.replicas]
    observers = [Observer(urls), Observer(urls[1:]), Observer(urls[2:]), Observer(urls[:1])]
    led: list[tuple[int, str]] = []

    async def candidate(name: str) -> None:
        async with AsyncClient(urls) as client:
            while len(led) < LEADERS:
                async with client.elect("main", ttl=30, value=f"{name}.{len(led)}") as leading:
                    led.append((leading.token, leading.lease.id))

    try:
        for observer in observers:
            await observer.begin()
        candidates = [asyncio.create_task(candidate(name)) for name in "abc"]
        for count in (LEADERS // 3, 2 * LEADERS // 3):

            async def has_led(count: int = count) -> bool:
                return len(led) >= count

            await wait_until(has_led, f"{count} have led", deadline_s=DEADLINE_S)
            primary = await cluster.primary()
            await cluster.kill(primary)
            await cluster.primary(besides=primary)
            await cluster.start(primary)
        async with asyncio.timeout(DEADLINE_S):
            await asyncio.gather(*candidates)
        async with AsyncClient(urls) as client:
            last = (await client.put("last", b"")).revision

            async def all_seen() -> bool:
                return all((observer.watch.revision or 0) >= last for observer in observers)

            await wait_until(all_seen, f"observers reach {last}", deadline_s=DEADLINE_S)
        story = observers[0].story
        revisions = [revision for revision, _ in story]
        assert revisions == sorted(set(revisions))
        assert story[0][1] == ""
        assert story[-1][1] == ""
        for observer in observers[1:]:
            assert observer.story[1:] == story[1:]  # each has begun at a revision of its own
        assert {token for token, _ in led} <= {revision for revision, value in story if value}
    finally:
        for observer in observers:
            await observer.end()
