"""Leases, locks and elections by both clients, over nodes that fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from cluster.client.aio import AsyncClient
from cluster.client.errors import InvalidRequestError, LockHeldError, LockLostError
from cluster.client.leasing import SAFETY_SHARE, AsyncLease
from cluster.client.sync import Client
from datapath.clock import clock_s
from tests.support.fake_api import FakeCluster

TICK_S = 0.02


@pytest.fixture
async def ticking(nodes: FakeCluster) -> AsyncIterator[FakeCluster]:
    """Nodes whose primary ends what is due."""

    async def tick() -> None:
        while True:
            await nodes.core.tick()
            await asyncio.sleep(TICK_S)

    task = asyncio.create_task(tick())
    yield nodes
    task.cancel()


async def test_a_lease_is_kept_alive_and_ends_with_its_holder(ticking: FakeCluster) -> None:
    async with AsyncClient(ticking.endpoints) as client:
        async with client.lease(1) as lease:
            await client.put("k", b"v", lease=lease.id)
            for _ in range(3):
                await asyncio.sleep(0.7)
                assert not lease.is_lost
            found = await client.get("k")
            assert found is not None
            assert found.lease == lease.id
        assert lease.is_lost
        assert await client.get("k") is None


async def test_a_holder_that_cannot_reach_anybody_knows_before_the_others(
    ticking: FakeCluster,
) -> None:
    """It relies on its TTL less a share, from the sending of the last keep-alive."""
    async with AsyncClient(ticking.endpoints, discover=False, timeout_ms=200) as client:
        called = asyncio.Event()
        async with client.lock("jobs", ttl=2, on_lost=called.set) as lock:
            for server in ticking.servers.values():
                await server.stop()
            await asyncio.wait_for(lock.lost.wait(), 10)
            await asyncio.wait_for(called.wait(), 1)
            left_ms = ticking.core.services[":leases"].expiry.left_ms(int(lock.lease.id), 0)  # type: ignore[attr-defined]
            assert left_ms > 0  # for everybody else it is held still
            with pytest.raises(LockLostError):
                lock.check()


def test_a_lease_is_relied_on_from_the_sending() -> None:
    lease = AsyncLease.__new__(AsyncLease)
    lease._ttl_ms = 10_000
    sent_s = clock_s() - 5
    lease._acknowledged(sent_s)
    assert lease._relied_until_s == sent_s + 10 * (1 - SAFETY_SHARE)


async def test_one_after_the_other_holds_a_lock(ticking: FakeCluster) -> None:
    async with AsyncClient(ticking.endpoints) as client:
        inside = 0
        tokens: list[int] = []

        async def work() -> None:
            nonlocal inside
            async with client.lock("jobs", ttl=10) as lock:
                inside += 1
                assert inside == 1
                tokens.append(lock.token)
                await client.put("n", str(len(tokens)), if_lock=lock.condition)
                inside -= 1

        await asyncio.gather(*(work() for _ in range(8)))
        assert len(set(tokens)) == 8
        assert tokens == sorted(tokens)


async def test_a_write_under_a_lock_that_was_lost_is_refused(ticking: FakeCluster) -> None:
    async with AsyncClient(ticking.endpoints) as client:
        async with client.lock("jobs", ttl=10) as lock:
            condition = lock.condition
            await client.put("k", b"1", if_lock=condition)
        with pytest.raises(LockLostError):
            await client.put("k", b"2", if_lock=condition)
        with pytest.raises(LockLostError):
            await client.delete("k", if_lock=condition)
        with pytest.raises(LockLostError):
            _ = lock.condition


async def test_who_does_not_wait_is_told_of_the_holder(ticking: FakeCluster) -> None:
    async with AsyncClient(ticking.endpoints) as client, client.lock("jobs", ttl=10, note="host 1"):
        with pytest.raises(LockHeldError, match="host 1"):
            async with client.lock("jobs", ttl=10, wait=0):
                pass
        with pytest.raises(LockHeldError):
            async with client.lock("jobs", ttl=10, wait=0.2):
                pass


async def test_who_waits_keeps_its_place_when_its_node_fails(ticking: FakeCluster) -> None:
    async with (
        AsyncClient(ticking.endpoints) as client,
        AsyncClient([ticking["n2"].url, ticking["n3"].url], discover=False) as waiter,
    ):
        first = client.lock("jobs", ttl=10)
        await first.acquire()
        second = asyncio.create_task(waiter.lock("jobs", ttl=10).acquire())
        for _ in range(500):
            found = await client.leader("jobs")
            assert found is not None
            if found.waiting:
                break
            await asyncio.sleep(0.01)
        await ticking["n2"].stop()
        await first.release()
        assert await asyncio.wait_for(second, 15) > 0


async def test_a_leader_is_known_by_its_value(ticking: FakeCluster) -> None:
    async with AsyncClient(ticking.endpoints) as client:
        assert await client.leader("main") is None
        async with client.elect("main", ttl=10, value="host 1") as leading:
            leader = await client.leader("main")
            assert leader is not None
            assert (leader.value, leader.token) == ("host 1", leading.token)


async def test_without_asyncio(ticking: FakeCluster) -> None:
    def work() -> None:
        with Client(ticking.endpoints) as client:
            with client.lock("jobs", ttl=5, note="me") as lock:
                assert lock.token
                assert not lock.is_lost
                with pytest.raises(RuntimeError, match="has begun already"):
                    lock.acquire()
                lock.check()
                client.put("k", b"1", if_lock=lock.condition)
                with pytest.raises(LockHeldError):
                    client.lock("jobs", ttl=5, wait=0).acquire()
                assert not lock.wait_lost(0.01)
            assert lock.wait_lost(0)
            with pytest.raises(LockLostError):
                client.put("k", b"2", if_lock=(lock.name, 1))
            with client.lease(5) as lease:
                client.put("leased", b"", lease=lease.id)
            assert client.get("leased") is None
            with client.elect("main", ttl=5, value="me"):
                leader = client.leader("main")
                assert leader is not None
                assert leader.value == "me"

    await asyncio.to_thread(work)


async def test_a_lock_is_taken_from_its_holder_by_its_token(ticking: FakeCluster) -> None:
    async with AsyncClient(ticking.endpoints) as client:
        held = client.lock("jobs", ttl=10)
        token = await held.acquire()
        assert not await client.release_lock("jobs", token + 1)
        assert await client.release_lock("jobs", token)
        assert not await client.release_lock("jobs", token)
        with pytest.raises(LockLostError):
            await client.put("k", b"1", if_lock=held.condition)
        async with client.lock("jobs", ttl=10, wait=0) as other:
            await held.release()  # of what it does not hold any more: the other one keeps it
            await client.put("k", b"2", if_lock=other.condition)
        with pytest.raises(InvalidRequestError, match="token"):
            await client.release_lock("jobs", 0)
    with Client(ticking.endpoints) as sync:
        assert not await asyncio.to_thread(sync.release_lock, "jobs", token)


async def test_a_lock_can_be_taken_again_but_not_twice_at_once(ticking: FakeCluster) -> None:
    async with AsyncClient(ticking.endpoints) as client:
        lock = client.lock("jobs", ttl=10)
        tokens = []
        for _ in range(2):
            async with lock:
                tokens.append(lock.token)
                assert not lock.is_lost
                assert not lock.lost.is_set()
                with pytest.raises(RuntimeError, match="has begun already"):
                    await lock.acquire()
                await client.put("k", b"1", if_lock=lock.condition)
            assert lock.is_lost
        assert tokens[0] < tokens[1]
