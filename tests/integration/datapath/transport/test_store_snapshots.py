"""Snapshots of real stores over real links: read, cut, resumed, installed or refused."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from datapath.errors import TransferError
from datapath.keyspaces import KEYSPACES
from datapath.node.catch_up import Snapshots
from datapath.protocol.replica import Replica
from datapath.storage.snapshot import SnapshotReader, SnapshotWriter
from datapath.storage.store import Store
from datapath.transport.snapshot_receiver import SnapshotReceiver
from datapath.transport.snapshot_sender import SnapshotSender
from datapath.transport.snapshot_transfer import KIND, Offer, SnapshotSink
from tests.integration.datapath.transport.link_helpers import (
    Relay,
    make_dialer,
    make_listener,
    until,
)

CHUNK_BYTES = 10_000


def fill(store: Store, count: int, seed: int) -> None:
    rng = random.Random(seed)
    store.apply(
        [[(n % KEYSPACES, b"%d" % rng.randrange(10**6), rng.randbytes(200))] for n in range(count)],
        store.applied_index + count,
        2,
    )
    store.flush()


class Stores:
    """A full store that is sent, and one with other content that shall become the same."""

    def __init__(self, path: Path) -> None:
        self.source = Store.open(path / "source")
        self.target = Store.open(path / "target")
        fill(self.source, 3000, seed=1)
        fill(self.target, 100, seed=2)
        self.writers: list[SnapshotWriter] = []

    def make_writer(self, index: int, epoch: int) -> SnapshotWriter:
        self.writers.append(SnapshotWriter(self.target.directory, index, epoch))
        return self.writers[-1]

    def make_sink(self, peer: str, offer: Offer) -> SnapshotSink:
        assert peer == "n1"
        return self.make_writer(offer.index, offer.epoch)

    async def install(self, offer: Offer, sink: SnapshotSink) -> None:
        assert sink is self.writers[-1]
        await asyncio.to_thread(self.writers[-1].install)
        self.target.reopen()
        assert self.target.applied_index == offer.index
        await asyncio.to_thread(self.target.remove_leftovers)

    def environments(self) -> int:
        return len(list(self.target.directory.glob("env-*")))

    def close(self) -> None:
        self.source.close()
        self.target.close()


@pytest.fixture
def stores(tmp_path: Path) -> Any:
    with contextlib.closing(Stores(tmp_path)) as both:
        yield both


@contextlib.asynccontextmanager
async def joined(
    make_sink: Callable[[str, Offer], SnapshotSink | str],
    on_received: Callable[[Offer, SnapshotSink], Awaitable[None]],
) -> AsyncIterator[tuple[SnapshotSender, Relay]]:
    """A sender with a link, through a relay, to a receiver of these two callbacks."""
    async with contextlib.AsyncExitStack() as stack:
        receiver = SnapshotReceiver(make_sink, on_received, on_error=lambda _: None)
        sender = SnapshotSender()
        stack.push_async_callback(receiver.stop)
        listener = make_listener(receiver, handlers={KIND: receiver})
        await listener.start()
        stack.push_async_callback(listener.stop)
        relay = Relay(listener.port)
        await relay.start()
        stack.push_async_callback(relay.stop)
        dialer = make_dialer(sender, relay.port, kind=KIND, dial_timeout_ms=300)
        dialer.start()
        stack.push_async_callback(dialer.stop)
        yield sender, relay


@pytest.mark.parametrize("seed", range(3))
async def test_cut_in_the_middle_a_store_arrives_as_it_was_while_writes_go_on(
    stores: Stores, seed: int
) -> None:
    rng = random.Random(seed)
    digest = stores.source.digest()
    reader = SnapshotReader(stores.source.acquire_environment(), chunk_size_bytes=CHUNK_BYTES)
    async with joined(stores.make_sink, stores.install) as (sender, relay):
        sending = asyncio.create_task(sender.send_snapshot(reader, 5))
        for part in (1, 2):  # Of some 650 KB in all.
            relay.cut_after_bytes = part * 200_000 + rng.randrange(50_000)
            await until(lambda: relay.cut_after_bytes is None)
            assert not sending.done()
            fill(stores.source, 50, seed=10 + part)
        assert await asyncio.wait_for(sending, 15) == (3000, 2)
        assert relay.connections >= 3
    assert len(stores.writers) == 1, "it began anew instead of resuming"
    assert stores.writers[0].next_chunk > 50
    assert stores.target.digest() == digest
    assert stores.source.digest() != digest
    assert stores.environments() == 1


async def test_a_snapshot_that_is_refused_when_it_is_complete_leaves_nothing(
    stores: Stores,
) -> None:
    """The receiver became a primary while it received."""
    before = stores.target.digest()
    replica = SimpleNamespace(
        primary=None,
        view=None,
        state=SimpleNamespace(epoch=5, accepted_primary="n1", accepted_epoch=5, commit_index=0),
    )
    replica.snapshot_refusal = partial(Replica.snapshot_refusal, cast("Any", replica))
    storage = SimpleNamespace(snapshot_writer=stores.make_writer)
    snapshots = make_snapshots(replica, storage)

    async def install(offer: Offer, sink: SnapshotSink) -> None:
        assert stores.environments() == 2
        replica.primary = "this node"
        await snapshots.install(offer, sink)

    reader = SnapshotReader(stores.source.acquire_environment(), chunk_size_bytes=CHUNK_BYTES)
    async with joined(snapshots.make_sink, install) as (sender, _):
        with pytest.raises(TransferError, match="this node is a primary"):
            await asyncio.wait_for(sender.send_snapshot(reader, 5), 15)
    assert len(stores.writers) == 1
    assert stores.environments() == 1
    assert stores.target.digest() == before


def make_snapshots(replica: Any, storage: Any) -> Snapshots:
    mesh: Any = None
    return Snapshots(
        "n2",
        replica,
        storage,
        mesh,
        0,
        requests=lambda: 0,
        on_sent=lambda _peer, _session, _done: None,
        on_installed=lambda _index, _epoch: None,
        on_install_failed=lambda: None,
        on_fatal=lambda _: None,
    )
