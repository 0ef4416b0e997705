"""Leases, locks and elections by both clients, over nodes that fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from cluster.client.aio import AsyncClient
from cluster.client.errors import InvalidRequestError, LockHeldError, LockLostError
from cluster.client.leasing import SAFETY_SHARE, AsyncLease
from cluster.client.sync import Client
from cluster.services.locks import LOCKS_SERVICE
from datapath.clock import clock_s
from datapath.operations import Operation, Query
from tests.support.fake_api import FakeCluster

TICK_S = 0.02
DEADLINE_S = 60.0


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
        async with client.lease(3) as lease:
            await client.put("k", b"v", lease=lease.id)
            await asyncio.sleep(3.5)  # its TTL, and some
            found = await client.get("k")
            assert found is not None
            assert found.lease == lease.id
            was_lost = lease.is_lost
        assert not was_lost
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


async def test_an_observer_is_given_every_leader_at_whatever_node(ticking: FakeCluster) -> None:
    async with AsyncClient(ticking.endpoints) as client, client.observe("main") as watch:
        async with asyncio.timeout(DEADLINE_S):
            assert (await anext(watch)).leader is None
            for number, name in enumerate(("n1", "n2", "n3")):
                await ticking[name].kill()  # it may be the one that is asked
                async with client.elect("main", ttl=60, value=f"{number}") as leading:
                    event = await anext(watch)
                    assert event.leader is not None
                    assert (event.leader.token, event.revision) == (leading.token, leading.token)
                    assert (event.leader.value, event.leader.waiting) == (f"{number}", None)
                await ticking[name].restart()
                assert (await anext(watch)).leader is None


async def test_an_observer_that_was_away_too_long_goes_on_with_who_leads(
    ticking: FakeCluster,
) -> None:
    async with AsyncClient(ticking.endpoints) as client, client.observe("main") as watch:
        async with asyncio.timeout(DEADLINE_S):
            await anext(watch)
            for server in ticking.servers.values():
                await server.kill()
            resume = asyncio.create_task(anext(watch))
            core = ticking.core
            for number in range(3):
                await core.execute(
                    Operation(
                        "acquire",
                        (b"main", 0, 60_000, b"%d" % number, False),
                        service=LOCKS_SERVICE,
                    ),
                    1000,
                )
                holder = await core.query(Query("get", (b"main",), service=LOCKS_SERVICE), 1000)
                if number < 2:
                    await core.revoke(holder.value[1])
            for server in ticking.servers.values():
                server.node.first_index = core.feed.index + 1
                await server.restart()
            event = await resume
            assert event.leader is not None
            assert event.leader.value == "2"


async def test_leases_by_their_ids(ticking: FakeCluster) -> None:
    async with AsyncClient(ticking.endpoints) as client:
        lease = await client.grant_lease(60)
        assert await client.keep_lease_alive(lease) == 60
        await client.txn().put("k", b"v", lease=lease).commit()
        found = await client.lease_info(lease)
        assert (found.lease, found.ttl_ms, found.keys, found.locks) == (lease, 60_000, ("k",), ())
        assert 0 < found.left_ms <= 60_000
        assert [(item.lease, item.keys) async for item in client.leases()] == [(lease, 1)]
        assert (await client.revoke_lease(lease)).deleted == 1
        assert await client.get("k") is None
        for call in (client.keep_lease_alive, client.lease_info, client.revoke_lease):
            with pytest.raises(InvalidRequestError) as caught:
                await call(lease)
            assert caught.value.code == "lease_not_found"
        with pytest.raises(InvalidRequestError, match="lease must be the id"):
            await client.lease_info("../kv/k")
        with pytest.raises(InvalidRequestError, match="ttl must be"):
            await client.grant_lease(0.5)
        with pytest.raises(InvalidRequestError, match="name must not be empty"):
            client.observe("")


async def test_all_leases_are_listed_over_pages(ticking: FakeCluster) -> None:
    async with AsyncClient(ticking.endpoints) as client:
        granted = [await client.grant_lease(60) for _ in range(250)]
        assert [item.lease async for item in client.leases()] == granted
        assert len((await client.lease_page()).leases) < len(granted)


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
            with client.observe("main") as watch:
                assert next(watch).leader is None
                with client.elect("main", ttl=5, value="me"):
                    leader = client.leader("main")
                    assert leader is not None
                    assert (leader.value, leader.waiting) == ("me", 0)
                    seen = next(watch).leader
                    assert seen is not None
                    assert (seen.value, seen.token) == ("me", leader.token)
                assert next(watch).leader is None
                assert watch.poll(0.01) is None
            granted = client.grant_lease(60)
            client.txn().put("leased", b"", lease=granted).commit()
            assert client.keep_lease_alive(granted) == 60
            assert client.lease_info(granted).keys == ("leased",)
            assert [item.lease for item in client.leases()] == [granted]
            assert client.revoke_lease(granted).deleted == 1

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


async def test_a_lease_of_a_client_that_was_closed_is_lost(ticking: FakeCluster) -> None:
    client = AsyncClient(ticking.endpoints)
    lease = client.lease(2)
    await lease.begin()
    await client.close()
    await asyncio.wait_for(lease.lost.wait(), 30)
    keeper = lease._keeper
    assert keeper is not None
    await keeper  # raises what has failed
