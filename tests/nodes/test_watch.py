"""Watchers of real nodes: killed, cut off, restarted, brought up by snapshots (W1 to W5)."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest

from cluster.client.aio import AsyncClient
from cluster.client.errors import ClientError, RevisionCompactedError
from cluster.client.results import WatchEvent
from cluster.client.watching import AsyncKeyWatch
from tests.nodes.conftest import MakeCluster
from tests.support.cluster import Cluster, Writer, wait_until
from tests.support.partitions import Network
from tests.support.toxiproxy import ToxiproxyServer

pytestmark = pytest.mark.slow

DEADLINE_S = 60.0
SMALL_LOG = {
    "max_value_size_bytes": 8192,
    "log_segment_size_bytes": 131_072,
    "log_retention_bytes": 131_072,
}


class Seen:
    """One watcher of all keys, and what it was given."""

    def __init__(self, urls: Iterable[str], *, after: int | None = None) -> None:
        self.client = AsyncClient(list(urls), discover=False)
        self.watch = self.client.watch("", after=after)
        self.events: list[WatchEvent] = []
        self.task: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        await self.watch.begin()
        self.task = asyncio.create_task(self._collect())

    async def _collect(self) -> None:
        async for event in self.watch:
            self.events.append(event)

    async def reach(self, revision: int) -> None:
        async def there() -> bool:
            assert self.task is not None
            assert not self.task.done(), self.task
            return (self.watch.revision or 0) >= revision

        await wait_until(there, f"a watcher reaches {revision}", deadline_s=DEADLINE_S)
        await asyncio.sleep(0)

    async def end(self) -> None:
        if self.task is not None:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)
        await self.client.close()

    def story(self) -> list[tuple[int, tuple[tuple[str, bytes | None], ...]]]:
        return [
            (event.revision, tuple((change.key, change.value) for change in event.changes))
            for event in self.events
        ]


@contextlib.asynccontextmanager
async def watching(*all_urls: Iterable[str], after: int | None = None) -> AsyncIterator[list[Seen]]:
    watchers = [Seen(urls, after=after) for urls in all_urls]
    try:
        for watcher in watchers:
            await watcher.begin()
        yield watchers
    finally:
        for watcher in watchers:
            await watcher.end()


async def compare(cluster: Cluster, watchers: list[Seen], after: int) -> None:
    """All were given the same, in one order, each once; and together it is what is stored."""
    async with cluster.client() as client:
        last = (await client.put("last", b"")).revision
        for watcher in watchers:
            await watcher.reach(last)
        first = watchers[0].story()
        revisions = [revision for revision, _ in first]
        assert revisions == sorted(set(revisions))
        assert revisions[-1] == last
        for watcher in watchers[1:]:
            assert watcher.story() == first
        held: dict[str, bytes] = {}
        for revision, changes in first:
            assert revision > after
            for key, value in changes:
                if value is None:
                    held.pop(key, None)
                else:
                    held[key] = value
        assert held == {item.key: item.value async for item in client.list()}


async def test_nothing_is_missing_while_nodes_are_killed(make_cluster: MakeCluster) -> None:
    cluster: Cluster = make_cluster()
    await cluster.start()
    chance = random.Random(3)
    urls = {node: cluster.url(node) for node in cluster.replicas}
    orders = [list(urls.values()), [urls["n2"], urls["n3"]], [urls["n3"]], [urls["n1"]]]
    async with watching(*orders, after=0) as watchers:
        async with Writer(cluster) as writer:
            await writer.progress(100)
            for _ in range(2):
                victim = chance.choice([await cluster.primary(), *cluster.replicas])
                await cluster.kill(victim)
                await writer.progress(100)
                await cluster.start(victim)
                await cluster.wait_in_sync()
                await writer.progress(50)
        await cluster.wait_converged()
        await compare(cluster, watchers, 0)
        # Histories survive restarts of all, and begin where they are asked to.
        middle = watchers[0].events[len(watchers[0].events) // 2].revision
        await cluster.stop()
        await cluster.start()
        async with watching([urls["n1"]], [urls["n2"]], after=middle) as late:
            await compare(cluster, [watchers[0]], 0)
            last = watchers[0].events[-1].revision
            for watcher in late:
                await watcher.reach(last)
                expected = [item for item in watchers[0].story() if item[0] > middle]
                assert watcher.story() == expected


@pytest.mark.long
async def test_nothing_is_missing_through_cuts_and_slow_lines(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    cluster: Cluster = make_cluster()
    with ToxiproxyServer(tmp_path / "toxiproxy.log") as server:
        network = Network(cluster, server)
        await cluster.start()
        proxied = list(network.clients().values())
        async with watching(proxied, proxied[:1], proxied[1:], after=0) as watchers:
            async with Writer(cluster, size_bytes=2000) as writer:
                await writer.progress(50)
                await network.client_toxic("bandwidth", "downstream", {"rate": 50})
                await writer.progress(100)
                await network.heal()
                await network.client_toxic("limit_data", "downstream", {"bytes": 30_000})
                await writer.progress(200)
                await network.heal()
                primary = await cluster.primary()
                await network.isolate(primary)
                await cluster.primary(besides=primary)
                await writer.progress(50)
                await network.heal()
                await cluster.wait_in_sync()
            await cluster.wait_converged()
            await compare(cluster, watchers, 0)


async def test_a_replica_that_a_snapshot_has_brought_up_refuses_what_it_does_not_know(
    make_cluster: MakeCluster,
) -> None:
    cluster: Cluster = make_cluster(limits=SMALL_LOG)
    await cluster.start()
    primary = await cluster.primary()
    victim, other = cluster.others(primary)
    async with watching([cluster.url(victim)], [cluster.url(victim), cluster.url(other)]) as seen:
        alone, both = seen
        async with Writer(cluster, size_bytes=8000, pause_s=0) as writer:
            await writer.progress(20)
            await cluster.kill(victim)
            last_held = await cluster.metric(primary, "last_index")  # at most, at the victim

            async def trimmed() -> bool:
                return await cluster.metric(primary, "log_first_index") > last_held + 1

            await wait_until(trimmed, f"{primary} keeps no log that far back")
            await cluster.start(victim)
        await cluster.wait_converged()
        assert await cluster.metric(victim, "snapshots_received_total") == 1
        assert alone.task is not None
        with pytest.raises(RevisionCompactedError) as refusal:
            await asyncio.wait_for(alone.task, DEADLINE_S)
        assert refusal.value.oldest >= last_held
        # Who had another node to go to has missed nothing.
        await compare_tail(cluster, both)
        # W5: list, and watch after that: a mirror.
        async with (
            AsyncClient(cluster.url(victim), discover=False) as client,
            client.mirror("") as mirror,
        ):
            async with Writer(cluster, name="later") as writer:
                await writer.progress(50)
            last = await client.put("last", b"x")
            await asyncio.wait_for(mirror.reach(last.revision), DEADLINE_S)
            assert dict(mirror) == {item.key: item.value async for item in client.list()}


async def compare_tail(cluster: Cluster, watcher: Seen) -> None:
    async with cluster.client() as client:
        last = (await client.put("last", b"")).revision
        await watcher.reach(last)
        held = {item.key: item.revision async for item in client.list()}
    newest = {change.key: change.revision for event in watcher.events for change in event.changes}
    revisions = [event.revision for event in watcher.events]
    assert revisions == sorted(set(revisions))
    assert {key: held[key] for key in newest if key in held} == {
        key: revision for key, revision in newest.items() if key in held
    }


@pytest.mark.long
async def test_a_stopped_watcher_stops_nobody_and_misses_nothing(make_cluster: MakeCluster) -> None:
    cluster: Cluster = make_cluster()
    await cluster.start()
    primary = await cluster.primary()
    async with watching([cluster.url(primary)], [cluster.url(primary)], after=0) as watchers:
        stopped, going = watchers
        assert stopped.task is not None
        stopped.task.cancel()  # its connection stays, and nobody reads it
        async with Writer(cluster, size_bytes=100_000, pause_s=0) as writer:

            async def is_paused() -> bool:
                return await cluster.metric(primary, "watchers_paused") >= 1

            while not await is_paused():
                await writer.progress(20)
            before = await cluster.metric(primary, "http_buffered_bytes")
            await writer.progress(100)
            assert await cluster.metric(primary, "http_buffered_bytes") <= before + 1_000_000
        stopped.task = asyncio.create_task(stopped._collect())
        await compare(cluster, [going, stopped], 0)


async def test_a_removed_or_stopped_node_sends_its_watchers_on(make_cluster: MakeCluster) -> None:
    cluster: Cluster = make_cluster()
    await cluster.start()
    primary = await cluster.primary()
    victim, other = cluster.others(primary)
    async with watching([cluster.url(victim), cluster.url(other)], after=0) as [watcher]:
        async with Writer(cluster) as writer:
            await writer.progress(30)
            await cluster.stop(victim)
            await writer.progress(30)
            with contextlib.suppress(ClientError):
                async with cluster.client() as client:
                    await client.remove(victim)
            await writer.progress(30)
        await compare(cluster, [watcher], 0)


@pytest.mark.long
async def test_a_thousand_watchers_miss_nothing_when_the_primary_is_killed(
    make_cluster: MakeCluster,
) -> None:
    cluster: Cluster = make_cluster()
    await cluster.start()
    urls = [cluster.url(node) for node in cluster.replicas]
    async with AsyncClient(urls, timeout_ms=30_000) as client, contextlib.AsyncExitStack() as stack:
        watches = [client.watch("w/", after=0) for _ in range(1000)]
        for watch in watches:
            await stack.enter_async_context(watch)
        written: list[int] = []
        victim = await cluster.primary()
        for number in range(30):
            if number == 10:
                await cluster.kill(victim)
            written.append((await client.put(f"w/{number}", b"v")).revision)

        async def story(watch: AsyncKeyWatch) -> list[int]:
            return [(await anext(watch)).revision for _ in written]

        async with asyncio.timeout(DEADLINE_S):
            for found in await asyncio.gather(*map(story, watches)):
                assert found == written
