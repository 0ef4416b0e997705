"""The frame of a fault test: a cluster under a recorded load, and what must be true afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from tests.nodes.control import FaultyNodes
from tests.support.cluster import Cluster, Writer
from tests.support.recorded_load import Bounds, RecordedLoad

BOUNDS = Bounds(rate_per_s=100, operations=50_000, duration_s=110)


class Attacked:
    """A cluster under attack: `faults` is for those whose nodes fail on command."""

    def __init__(
        self, cluster: Cluster, faults: FaultyNodes, writer: Writer, load: RecordedLoad
    ) -> None:
        self.cluster = cluster
        self.faults = faults
        self.writer = writer
        self.load = load

    async def restart(self, *nodes: str) -> None:
        """Start nodes that have ended, and wait until all replicas are in sync."""
        self.cluster.launch(*nodes)
        for node in nodes:
            await self.cluster.wait_started(node)
        await self.cluster.wait_in_sync(*self.cluster.replicas)


@contextlib.asynccontextmanager
async def attacked(cluster: Cluster, directory: Path) -> AsyncIterator[Attacked]:
    """Start the cluster, of nodes that fail on command, and load it.

    When the block is over, with every node running again: the replicas have equal digests, hold
    every acknowledged write and none that was called not applied, and all that clients saw is
    linearizable.
    """
    faults = FaultyNodes(cluster)
    await cluster.start()
    endpoints = {node: cluster.url(node) for node in cluster.specs}
    load = RecordedLoad(endpoints, directory / "histories", bounds=BOUNDS)
    async with load, Writer(cluster, tasks=2) as writer:
        await writer.progress(10)
        yield Attacked(cluster, faults, writer, load)
        faults.clear()
        await cluster.wait_in_sync(*cluster.replicas)
        await writer.progress(10)
    await cluster.wait_converged(*cluster.replicas)
    await writer.verify()
    print(load.require())
