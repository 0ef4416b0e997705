"""Two processes under one id, over real sockets: the first keeps its links."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from datapath.transport.dialer import Dialer, find_second_holder
from datapath.transport.listener import PeerListener
from election.identity import Addresses
from election.registry import KnownMember, PeerRegistry
from election.shared_secret import SharedSecret
from tests.integration.datapath.transport.link_helpers import (
    SECRET,
    Recorder,
    make_dialer,
    make_listener,
    until,
)

HOME, AWAY = Addresses("n1:1", "n1:2", "n1:3"), Addresses("x:1", "x:2", "x:3")
KIND = "request"


def registry(
    node: str, instance: str, addresses: Addresses = HOME, cluster: str = "c1"
) -> PeerRegistry:
    return PeerRegistry(
        node,
        f"data of {node}",
        instance,
        {node: addresses},
        cluster_id=cluster,
        members={"n1": KnownMember("data of n1", HOME), "n2": KnownMember("data of n2", AWAY)},
    )


@contextlib.asynccontextmanager
async def listening() -> AsyncIterator[tuple[PeerListener, Recorder, PeerRegistry]]:
    far, known = Recorder(), registry("n2", "i2", AWAY)
    listener = make_listener(far, handlers={KIND: far}, registry=known)
    await listener.start()
    try:
        yield listener, far, known
    finally:
        await listener.stop()


def dial(listener: PeerListener, near: Recorder, instance: str, where: Addresses = HOME) -> Dialer:
    dialer = make_dialer(near, listener.port, kind=KIND, registry=registry("n1", instance, where))
    dialer.start()
    return dialer


async def test_a_second_process_takes_no_link_from_the_first_and_is_named() -> None:
    async with listening() as (listener, far, known):
        near, twin_near = Recorder(), Recorder()
        first = dial(listener, near, "first")
        await until(lambda: far.up == 1)
        twin = dial(listener, twin_near, "twin")
        await until(lambda: "two processes run as node n1" in twin.problem)
        assert near.up == 1
        assert twin_near.opened == []
        assert any("two processes run as node n1" in text for text in known.warnings())

        # The first one's process ends: the next process of the node gets in.
        await first.stop()
        await until(lambda: twin_near.up == 1)
        await twin.stop()


async def test_who_returns_to_the_agreed_address_replaces_who_came_in_meanwhile() -> None:
    async with listening() as (listener, far, _known):
        clone_near, near = Recorder(), Recorder()
        clone = dial(listener, clone_near, "clone", AWAY)
        await until(lambda: far.up == 1)
        original = dial(listener, near, "original")
        await until(lambda: near.up == 1 and clone_near.up == 0)
        await until(lambda: "two processes" in clone.problem)
        assert near.closed == []
        await clone.stop()
        await original.stop()


async def test_a_process_of_another_cluster_gets_no_link() -> None:
    async with listening() as (listener, far, known):
        near = Recorder()
        stray = make_dialer(
            near, listener.port, kind=KIND, registry=registry("n1", "stray", HOME, "c2")
        )
        stray.start()
        await until(lambda: "another cluster" in stray.problem)
        assert far.opened == []
        assert any("another cluster" in text for text in known.warnings())
        await stray.stop()


async def test_a_process_finds_another_with_its_own_identity_before_it_listens() -> None:
    async with listening() as (listener, _, known):
        address = "127.0.0.1", listener.port
        twin = registry("n2", "twin", AWAY)
        assert "two processes run as node n2" in await find_second_holder(
            address, "demo", SharedSecret(SECRET), twin
        )
        assert any("two processes run as node n2" in text for text in known.warnings())
        assert await find_second_holder(address, "demo", SharedSecret(b"another"), twin) == ""
        assert (
            await find_second_holder(address, "demo", SharedSecret(SECRET), registry("n1", "i1"))
            == ""
        )
    assert await find_second_holder(address, "demo", SharedSecret(SECRET), twin) == ""
