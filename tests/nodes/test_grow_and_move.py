"""A cluster that grows, shrinks, moves and gets new disks, while clients work."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from tests.nodes.conftest import MakeCluster
from tests.nodes.test_membership import remove, votes
from tests.support.cluster import UNSUSPECTING, Cluster, NodeSpec, Writer, make_spec, wait_until
from tests.support.failed_attempts import NOT_SENT
from tests.support.recorded_load import Bounds, RecordedLoad

pytestmark = pytest.mark.slow

WORK = 30
"""How many writes and reads must succeed after each step."""
PATIENT = Bounds(clients=22, rate_per_s=150.0, timeout_ms=20_000, patience_ms=25_000)
"""Requests wait for as long as any pause of a handover may last."""
JSON = {"Content-Type": "application/json"}


class Journey:
    """The cluster, and the load that must notice nothing but handovers."""

    def __init__(self, cluster: Cluster, writer: Writer, load: RecordedLoad) -> None:
        self.cluster = cluster
        self.writer = writer
        self.load = load

    def endpoint(self, node: str) -> str:
        """Return what the load calls the address at which a node is now."""
        url = self.cluster.url(node)
        return next(name for name, known in self.load.endpoints.items() if known == url)

    async def start(self, node: str) -> None:
        """Start a node, from when on no request at it may fail."""
        self.cluster.launch(node)
        await self.cluster.wait_started(node)
        await self.cluster.wait_in_sync()
        self.load.failures.is_back(self.endpoint(node))

    async def goes_on(self) -> None:
        await self.writer.progress(WORK)
        await self.load.progress(writes=WORK, reads=WORK)
        assert not list(self.writer.unserved())

    async def settled(self) -> None:
        """All members are in sync and vote; then the work goes on."""
        primary = await self.cluster.primary()
        await self.cluster.wait_in_sync()
        await votes(self.cluster, primary, **dict.fromkeys(self.cluster.specs, True))
        await self.goes_on()

    async def add(self, node: str, spec: NodeSpec) -> None:
        self.cluster.specs[node] = spec
        if node not in self.cluster.nodes:
            self.cluster._add_process(node)
        self.cluster.write_config()
        await self.start(node)
        await self.settled()

    async def give_way(self, node: str) -> None:
        """Hand over if that node is the primary: `onecopy handover` to another one."""

        async def another() -> bool:
            primary = await self.cluster.primary()
            if primary != node:
                return True
            to = self.cluster.others(node)[0]
            body = msgspec.json.encode({"to": to})
            await self.cluster.fetch(primary, "POST", "/v1/cluster/handover", body, JSON)
            return False

        await wait_until(another, f"{node} is no longer the primary")

    async def take_out(self, node: str) -> None:
        await self.give_way(node)
        asked = await self.cluster.primary()
        self.load.failures.leaves(self.endpoint(node))
        reply = await remove(self.cluster, asked, node)
        assert reply.status == 200, reply
        assert await self.cluster.nodes[node].wait_exit() in (0, 78)
        del self.cluster.specs[node]
        self.cluster.write_config()
        await self.settled()

    async def move(self, node: str, spec: NodeSpec) -> None:
        await self.give_way(node)
        self.load.failures.leaves(self.endpoint(node))
        await self.cluster.stop(node)
        self.cluster.specs[node] = spec
        self.cluster.write_config()
        await self.start(node)

        async def is_known() -> bool:
            self.cluster.check_alive()
            found = [await self.cluster.status(name) for name in self.cluster.specs]
            return all(
                status is not None
                and node in status.nodes
                and status.nodes[node].client == spec.client
                for status in found
            )

        await wait_until(is_known, f"all know where {node} is")
        await self.settled()


@pytest.mark.long
@pytest.mark.timeout(900)
async def test_growing_shrinking_moving_and_new_disks_under_load(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    cluster: Cluster = make_cluster(replicas=5, timing=UNSUSPECTING)
    first = dict(cluster.specs)
    moved = {node: make_spec("replica", first[node].data) for node in ("n1", "n2", "n3")}
    places = cluster.directory / "data"
    fresh = {node: make_spec("replica", places / node) for node in ("n6", "n7", "n8")}
    cluster.specs = {"n1": first["n1"]}
    cluster.write_config()
    await cluster.start("n1")
    every = {**first, **fresh, **{f"{node} moved": spec for node, spec in moved.items()}}
    # Two clients for each address, dead or alive: at every step some ask where a node is.
    endpoints = {name: f"http://{spec.client}" for name, spec in every.items()}
    async with (
        RecordedLoad(endpoints, tmp_path, bounds=PATIENT) as load,
        Writer(cluster, "n1", tasks=2, pause_s=0.03, timeout_ms=30_000) as writer,
    ):
        for name in endpoints.keys() - {"n1"}:
            load.failures.leaves(name)
        journey = Journey(cluster, writer, load)
        await journey.goes_on()
        for node in ("n2", "n3", "n4", "n5"):
            await journey.add(node, first[node])
        for node in ("n5", "n4"):
            await journey.take_out(node)
        for node, spec in moved.items():
            await journey.move(node, spec)
        for old, new in zip(moved, fresh, strict=True):
            await journey.add(new, fresh[new])
            await journey.take_out(old)
    await cluster.wait_converged()
    await writer.verify()
    assert sorted(cluster.specs) == sorted(fresh)
    print(load.require())
    print(load.failures.require_none_but(NOT_SENT, "no_primary"))
