"""Watches and mirrors of the client: no gap, no double, over nodes that fail (W2, W3, W5)."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

from cluster.client import mirrors
from cluster.client.aio import AsyncClient
from cluster.client.errors import (
    InvalidRequestError,
    RevisionCompactedError,
    UnavailableError,
    WrongClusterError,
)
from cluster.client.results import Page
from cluster.client.sync import Client
from cluster.client.watching import AsyncKeyWatch
from tests.support.fake_api import FakeCluster, fake_cluster

DEADLINE_S = 20.0


@pytest.fixture
async def client(nodes: FakeCluster) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(nodes.endpoints) as made:
        yield made


async def revisions(watch: AsyncKeyWatch, count: int) -> list[int]:
    async with asyncio.timeout(DEADLINE_S):
        return [(await anext(watch)).revision for _ in range(count)]


async def test_an_event_has_what_a_revision_has_changed(client: AsyncClient) -> None:
    async with client.watch("a/") as watch:
        first = await client.put("a/1", "✓")
        await client.put("b", "not watched")
        second = await client.put("a/1", b"\xff")
        third = await client.delete("a/1")
        async with asyncio.timeout(DEADLINE_S):
            [put], [again], [deleted] = [(await anext(watch)).changes for _ in range(3)]
    assert (put.key, put.value, put.text, put.revision, put.deleted) == (
        "a/1", "✓".encode(), "✓", first.revision, False
    )  # fmt: skip
    assert (again.value, again.text, again.revision, again.version) == (
        b"\xff", None, second.revision, 2
    )  # fmt: skip
    assert (deleted.value, deleted.deleted, deleted.reason, deleted.revision) == (
        None, True, "deleted", third.revision
    )  # fmt: skip


async def test_a_watch_resumes_at_other_nodes_without_gap_or_double(nodes: FakeCluster) -> None:
    chance = random.Random(7)
    async with AsyncClient(nodes.endpoints) as client, client.watch("k") as watch:
        written: list[int] = []
        seen: list[int] = []
        for _ in range(12):
            victim = chance.choice(list(nodes.servers))
            await nodes[victim].kill()
            written += [(await client.put(f"k{n}", b"v")).revision for n in range(5)]
            seen += await revisions(watch, chance.randint(0, len(written) - len(seen)))
            await nodes[victim].restart()
        seen += await revisions(watch, len(written) - len(seen))
        assert seen == written


async def test_a_cut_line_is_no_event(nodes: FakeCluster) -> None:
    # Large events, broken off anywhere: what was not whole comes again, whole.
    async with AsyncClient(nodes.endpoints) as client, client.watch("k", after=0) as watch:
        written = [(await client.put("k", b"\xff" * 200_000)).revision for _ in range(10)]
        seen: list[int] = []
        while len(seen) < len(written):
            seen += await revisions(watch, 1)
            for server in nodes.servers.values():
                await server.kill()
                await server.restart()
        assert seen == written


async def test_other_nodes_are_asked_before_history_is_called_gone(nodes: FakeCluster) -> None:
    async with AsyncClient(nodes.endpoints) as client:
        written = [(await client.put("k", b"v")).revision for _ in range(9)]
        nodes["n1"].node.first_index = nodes["n3"].node.first_index = 6
        for _ in range(5):  # whichever node is asked first
            async with client.watch("", after=2) as watch:
                assert await revisions(watch, 7) == written[2:]
        nodes["n2"].node.first_index = 5
        with pytest.raises(RevisionCompactedError) as refusal:
            async with client.watch("", after=2):
                pass
        assert refusal.value.oldest == 4
        async with client.watch("", after=4) as watch:
            assert await revisions(watch, 5) == written[4:]


async def test_history_that_is_gone_for_one_node_alone_is_had_elsewhere_amid_a_watch(
    nodes: FakeCluster,
) -> None:
    async with AsyncClient(nodes.endpoints) as client, client.watch("k") as watch:
        [first] = [(await client.put("k", b"v")).revision]
        assert await revisions(watch, 1) == [first]
        for server in nodes.servers.values():
            await server.kill()
        nodes["n1"].node.first_index = nodes["n2"].node.first_index = 100
        nodes.core.feed._recent_bytes = 1
        for server in nodes.servers.values():
            await server.restart()
        missed = [(await client.put("k", b"v")).revision for _ in range(5)]
        assert await revisions(watch, 5) == missed


async def test_progress_moves_where_a_quiet_watch_resumes(client: AsyncClient) -> None:
    await client.put("k", b"v")
    async with client.watch("quiet", after=0) as watch:
        event = await asyncio.wait_for(watch.next_or_progress(), DEADLINE_S)
        assert (event.revision, event.changes) == (1, ())
        assert watch.revision == 1


async def test_nobody_there_is_said_after_the_time_that_was_given(nodes: FakeCluster) -> None:
    for server in nodes.servers.values():
        await server.kill()
    async with AsyncClient(nodes.endpoints) as client:
        with pytest.raises(UnavailableError):
            async with client.watch("k", timeout_ms=300):
                pass
        watch = client.watch("k")
        beginning = asyncio.ensure_future(watch.begin())
        await asyncio.sleep(0)
        await nodes["n2"].restart()
        await asyncio.wait_for(beginning, DEADLINE_S)
        await watch.aclose()


async def test_a_watch_that_is_waited_for_with_a_time_out_loses_nothing(
    client: AsyncClient,
) -> None:
    async with client.watch("k") as watch:
        for _ in range(5):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(watch), 0.001)
            result = await client.put("k", b"v")
            assert await revisions(watch, 1) == [result.revision]


async def test_a_closed_watch_ends(client: AsyncClient) -> None:
    watch = client.watch("k")
    await watch.begin()
    await watch.aclose()
    await watch.aclose()
    assert [event async for event in watch] == []


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({}, "say what to watch"),
        ({"after": 3}, "say what to watch"),
        ({"prefix": "a", "after": -1}, "after"),
        ({"key": "a", "timeout_ms": 0}, "timeout_ms"),
    ],
)
async def test_nonsense_is_refused_before_anything_is_sent(
    client: AsyncClient, options: dict[str, object], named: str
) -> None:
    with pytest.raises(InvalidRequestError, match=named):
        client.watch(**options)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="prefix"):
        client.watch(b"bytes")  # type: ignore[arg-type]


async def test_what_only_the_node_can_refuse_ends_the_watch(client: AsyncClient) -> None:
    with pytest.raises(InvalidRequestError, match="revision 0") as refusal:
        async with client.watch("", after=1_000_000):
            pass
    assert refusal.value.code == "future_revision"
    with pytest.raises(InvalidRequestError, match="excludes"):
        async with client.watch("a", key="b"):
            pass


async def test_another_cluster_is_not_watched(nodes: FakeCluster) -> None:
    async with AsyncClient(nodes.endpoints, cluster_id="another") as client:
        with pytest.raises(WrongClusterError):
            async with client.watch("k"):
                pass


# --- mirrors ---


async def test_a_mirror_is_complete_and_follows(client: AsyncClient) -> None:
    for number in range(20):
        await client.put(f"config/{number}", f"{number}")
    await client.put("other", "x")
    async with client.mirror("config/") as mirror:
        assert dict(mirror) == {f"config/{n}": f"{n}".encode() for n in range(20)}
        assert list(mirror) == sorted(mirror)
        await client.delete("config/3")
        last = await client.put("config/4", "new")
        async with asyncio.timeout(DEADLINE_S):
            await mirror.reach(last.revision)
        assert "config/3" not in mirror
        assert mirror["config/4"] == b"new"
        item = mirror.item("config/4")
        assert item is not None
        assert (item.revision, item.version) == (last.revision, 2)
        assert mirror.snapshot() == (last.revision, dict(mirror))
        assert len(mirror) == 19
        with pytest.raises(TypeError):
            mirror["config/4"] = b"mine"  # type: ignore[index]


async def test_a_mirror_survives_nodes_and_history_that_go(nodes: FakeCluster) -> None:
    async with AsyncClient(nodes.endpoints) as client, client.mirror("") as mirror:
        for round_ in range(6):
            victim = f"n{round_ % 3 + 1}"
            await nodes[victim].kill()
            for number in range(10):
                await client.put(f"k{number}", f"{round_}")
            await client.delete(f"k{round_}")
            if round_ % 2:
                for server in nodes.servers.values():
                    server.node.first_index = nodes.core.index + 1
                nodes.core.feed._recent.clear()
            await nodes[victim].restart()
            last = await client.put("last", f"{round_}")
            async with asyncio.timeout(DEADLINE_S):
                await mirror.reach(last.revision)
            held = {key.decode(): nodes.value(key.decode()) for key in nodes.core.store.keys}
            assert dict(mirror) == held


async def test_what_changes_while_a_mirror_lists_is_in_it(
    nodes: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirrors, "LISTING_PAGE_SIZE", 2)
    async with AsyncClient(nodes.endpoints) as client, AsyncClient(nodes.endpoints) as writer:
        for number in range(6):
            await client.put(f"k{number}", "old")
        page = client.page

        async def page_and_change(*args: Any, **options: Any) -> Page:
            found = await page(*args, **options)
            if found.cursor is not None:
                await writer.put("k0", f"after {found.items[-1].key}")  # it is listed already
            return found

        monkeypatch.setattr(client, "page", page_and_change)
        async with asyncio.timeout(DEADLINE_S), client.mirror("k") as mirror:
            held = {f"k{number}": b"old" for number in range(1, 6)}
            assert dict(mirror) == {**held, "k0": b"after k3"}
            assert mirror.revision == nodes.core.index


async def test_a_change_before_one_waits_for_it_is_not_missed(client: AsyncClient) -> None:
    async with asyncio.timeout(DEADLINE_S), client.mirror("k") as mirror:
        revision, _ = mirror.snapshot()
        written = await client.put("k", b"v")
        await mirror.reach(written.revision)
        assert await mirror.changed(revision) == written.revision
        waiting = [asyncio.ensure_future(mirror.changed()) for _ in range(3)]
        await asyncio.sleep(0)
        written = await client.put("k", b"w")
        assert await asyncio.gather(*waiting) == [written.revision] * 3


async def test_a_mirror_that_cannot_follow_says_why(client: AsyncClient) -> None:
    async with asyncio.timeout(DEADLINE_S), client.mirror("k") as mirror:
        mirror._end(UnavailableError("gone"))
        with pytest.raises(UnavailableError, match="gone"):
            await mirror.changed()


# --- without asyncio ---


def test_the_plain_client_watches_and_mirrors() -> None:
    ready, done = threading.Event(), threading.Event()
    endpoints: list[str] = []

    def serve() -> None:
        async def run() -> None:
            async with fake_cluster() as cluster:
                endpoints.extend(cluster.endpoints)
                ready.set()
                while not done.is_set():  # noqa: ASYNC110 -- set by another thread
                    await asyncio.sleep(0.01)

        asyncio.run(run())

    thread = threading.Thread(target=serve)
    thread.start()
    assert ready.wait(DEADLINE_S)
    try:
        with Client(endpoints) as client, client.watch("k") as watch, client.mirror("k") as mirror:
            assert watch.poll(0.01) is None
            written = [client.put(f"k{number}", b"v").revision for number in range(5)]
            assert [next(watch).revision for _ in range(5)] == written
            mirror.reach(written[-1])
            assert dict(mirror) == {f"k{number}": b"v" for number in range(5)}
            assert (mirror.revision, watch.revision) == (written[-1], written[-1])
            closing = threading.Timer(0.1, watch.close)
            closing.start()
            assert list(watch) == []
            closing.join()
        with Client(endpoints) as client, pytest.raises(InvalidRequestError):
            client.watch()
    finally:
        done.set()
        thread.join()
