"""A client that was given nodes of one group works with the names of all."""

from __future__ import annotations

import asyncio

import pytest

from cluster.client.aio import AsyncClient
from cluster.client.errors import InvalidRequestError, UnavailableError, UnknownOutcomeError
from cluster.client.sync import Client
from cluster.groups.group_map import Group
from tests.support.cluster import wait_until
from tests.support.group_pair import HIGH, LOW, Pair, know
from tests.support.ports import free_port

OWN, OTHER = "orders/1", "cart{7}/x"  # slots 598 and 2690


def relayed(pair: Pair) -> int:
    assert pair.low.node.groups is not None
    assert pair.low.node.groups.relay is not None
    return pair.low.node.groups.relay.relayed_total


async def goes_directly(client: AsyncClient, pair: Pair) -> bool:
    before = relayed(pair)
    await client.get(OTHER)
    return relayed(pair) == before


async def test_calls_on_keys_of_all_groups_save_the_hop_once_the_map_is_known(pair: Pair) -> None:
    async with AsyncClient(pair.url) as client:
        assert (await client.put(OTHER, b"1")).revision == pair.high.node.index
        assert relayed(pair)
        await wait_until(lambda: goes_directly(client, pair), "it knows where g2 is")
        before = relayed(pair)
        written = await client.put(OTHER, b"2", idempotency_key="once")
        assert await client.put(OTHER, b"2", idempotency_key="once") == written
        found = await client.get(OTHER)
        assert found is not None
        assert (found.value, found.revision) == (b"2", pair.high.node.index)
        assert (await client.delete(OTHER)).deleted
        await client.put(OWN, b"own")
        assert relayed(pair) == before
        assert client.revision == pair.low.node.index, "that of the named nodes' group"
    assert pair.low.node.store.keys == [OWN.encode()]


@pytest.mark.parametrize("met", [True, False])
async def test_a_key_keeps_what_it_was_first_sent_after_on_whichever_way(
    pair: Pair, met: bool
) -> None:
    """G7: a write that went over a relay may be repeated at the group itself, and back."""
    high = pair.high.node
    async with AsyncClient(pair.url, timeout_ms=700) as client:
        if met:
            await client.put(OWN, b"")
        high.hold = asyncio.Event()
        with pytest.raises(UnknownOutcomeError) as caught:
            await client.put(OTHER, b"1", idempotency_key="k")
        high.hold.set()
        high.hold = None
        first = caught.value.idempotency_after
        assert (first is not None) is met, "before any revision is known, none is named"
        await wait_until(lambda: goes_directly(client, pair), "it knows where g2 is")
        for _ in range(5):  # what is known rises
            await client.put("cart{7}/y", b"")
        await client.put(OTHER, b"1", idempotency_key="k")
        assert {after for key, after in high.sent_after if key == "k"} == {first}
        assert client._routes.near(OTHER).revision == high.index != first
        home, there = client._routes.home, client._routes.near(OTHER)
        assert home is not there
        assert home.sent_after is there.sent_after


async def test_a_group_that_cannot_be_reached_from_here_is_reached_by_the_relay(
    pair: Pair,
) -> None:
    """A client behind a proxy learns addresses that lead nowhere from there."""
    nowhere = f"http://127.0.0.1:{free_port()}"
    async with AsyncClient(pair.url, timeout_ms=3000) as client:
        client._routes._make = lambda _: AsyncClient(nowhere)._transport
        for _ in range(5):
            await client.put(OTHER, b"1")
            await asyncio.sleep(0.02)
        assert client._routes._map is not None
        with pytest.raises(UnavailableError, match=r"group 'g2' at http.*which cannot be reached"):
            await client.grant_lease(5.0, key=OTHER)


async def test_locks_leases_and_streams_go_to_the_group_of_the_name(pair: Pair) -> None:
    high = pair.high.node
    async with AsyncClient(pair.url) as client:
        async with client.lock(OTHER, ttl=5.0, note="me") as lock:
            assert lock.token == high.index
            await client.put(OTHER, b"1", if_lock=lock.condition)
        async with client.lease(5.0, key=OTHER) as lease:
            await client.put(OTHER, b"2", lease=lease.id)
        async with client.watch(key=OTHER) as watch, client.watch("cart{7}/") as below:
            written = await client.put(OTHER, b"3")
            for events in (watch, below):
                event = await anext(events)
                assert (event.revision, event.changes[0].value) == (written.revision, b"3")
        async with client.mirror("cart{7}/") as copy:
            assert copy[OTHER] == b"3"
        async with client.elect(OTHER, ttl=5.0, value="x"):
            seen = await anext(client.observe(OTHER))
            assert seen.leader is not None
            assert seen.leader.value == "x"
        async with client.lock(OWN, ttl=5.0) as own:
            assert own.token == pair.low.node.index


async def test_what_belongs_to_no_one_group_is_refused_and_the_groups_client_is_given(
    pair: Pair,
) -> None:
    async with AsyncClient(pair.url) as client:
        for refused in (client.watch("").begin(), client.watch("cart").begin()):
            with pytest.raises(InvalidRequestError) as caught:
                await refused
            assert caught.value.code == "spans_groups"
        assert await client.of("orders/") is client
        other = await client.of("cart{7}/")
        assert other.endpoints == (pair.high.base_url,)
        assert await client.of(OTHER) is other


async def test_without_discovery_only_the_named_nodes_are_used(pair: Pair) -> None:
    async with AsyncClient(pair.url, discover=False) as client:
        await client.put(OTHER, b"1")
        with pytest.raises(InvalidRequestError) as caught:
            await client.watch(key=OTHER).begin()
        assert caught.value.code == "wrong_group"
        told = f"belongs to group 'g2': ask a node of that, {pair.high.base_url}"
        assert told in caught.value.detail


async def test_a_group_at_new_addresses_is_found_by_the_next_map(pair: Pair) -> None:
    gone = f"http://127.0.0.1:{free_port()}"
    low = Group("g1", LOW, (pair.url,))
    know(pair.low.node, low, Group("g2", HIGH, (gone,)), version=2)
    async with AsyncClient(pair.url) as client:
        with pytest.raises(UnavailableError, match="cannot be reached"):
            await client.grant_lease(5.0, key=OTHER)
        watch = client.watch(key=OTHER)
        waiting = asyncio.ensure_future(anext(watch))
        know(pair.low.node, low, Group("g2", HIGH, (pair.high.base_url,)), version=3)
        await client.grant_lease(5.0, key=OTHER)
        await wait_until(lambda: watch.revision is not None, "it watches")
        written = await client.put(OTHER, b"x")
        assert (await waiting).revision == written.revision


async def test_the_client_without_asyncio_does_the_same(pair: Pair) -> None:
    def work() -> None:
        with Client(pair.url) as client:
            with client.lock(OTHER, ttl=5.0) as lock:
                client.put(OTHER, b"1", if_lock=lock.condition)
            with client.lease(5.0, key=OTHER) as lease, client.watch(key=OTHER) as watch:
                client.put(OTHER, b"2", lease=lease.id)
                assert next(watch).changes[0].value == b"2"
            assert client.of("orders/") is client
            other = client.of("cart{7}/")
            assert other is client.of(OTHER)
            assert other.grant_lease(5.0)
        assert other._closed

    await asyncio.to_thread(work)
