"""Every replica's disk gets the space of deleted keys back, under live reads and writes."""

from __future__ import annotations

import pytest

from tests.nodes.conftest import MakeCluster
from tests.support.cluster import Cluster, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.long]  # test_compaction has its parts

KEYS = 600
VALUE = b"x" * 16_384


async def test_the_space_of_deleted_keys_is_given_back(make_cluster: MakeCluster) -> None:
    cluster: Cluster = make_cluster(
        limits={"store_min_waste_bytes": 1 << 20, "overlay_flush_bytes": 1 << 20}
    )
    await cluster.start()
    async with cluster.client() as client:
        for number in range(KEYS):
            await client.put(f"big/{number}", VALUE)
        await cluster.wait_converged()
        full = {node: await cluster.metric(node, "store_file_bytes") for node in cluster.replicas}
        assert min(full.values()) > KEYS * len(VALUE) / 2
        cursor = (await client.delete_range(prefix="big/")).cursor
        while cursor:
            cursor = (await client.delete_range(cursor=cursor)).cursor
        written = 0

        async def all_compacted() -> bool:
            nonlocal written
            await client.put(f"on/{written}", b"x")
            assert await client.get(f"on/{written}")
            written += 1
            done = [
                await cluster.metric(node, "store_compactions_total") for node in cluster.replicas
            ]
            return min(done) > 0

        await wait_until(all_compacted, "every store is compacted", deadline_s=60)
        for node in cluster.replicas:
            assert await cluster.metric(node, "store_file_bytes") < full[node] / 2
        await cluster.kill(await cluster.primary())
        assert await client.get(f"on/{written - 1}")
    await cluster.wait_converged()
