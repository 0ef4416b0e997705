"""Memory under constant load: what is kept is bounded, so it stays where it is."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.nodes.conftest import MakeCluster
from tests.support.cluster import Cluster
from tests.support.raw_http import connect, kv

pytestmark = pytest.mark.slow

WRITES = 60_000
LONGEST_S = 16.0
CONNECTIONS = 32
KEYS = 5_000
GROWTH_BYTES = 48 * 1024 * 1024
LIMITS = {
    "client_table_bytes": 4_194_304,
    "overlay_flush_bytes": 2 * 1024 * 1024,
    "log_segment_size_bytes": 4 * 1024 * 1024,
    "log_retention_bytes": 8 * 1024 * 1024,
}


@pytest.mark.long
async def test_memory_stays_where_it_is_under_constant_load(make_cluster: MakeCluster) -> None:
    cluster: Cluster = make_cluster(limits=LIMITS)
    await cluster.start()
    primary = await cluster.primary()
    done = 0
    started = time.monotonic()

    async def load(task: int) -> None:
        nonlocal done
        async with connect(cluster.url(primary)) as connection:
            count = 0
            while done < WRITES and time.monotonic() - started < LONGEST_S:
                key = f"load/{task}/{count % (KEYS // CONNECTIONS)}"
                headers = {"Idempotency-Key": f'"{task}-{count}"'}
                connection.send_request("PUT", kv(key), b"x" * 100, headers)
                reply = await connection.receive()
                assert reply.status in {200, 201}, reply
                count += 1
                done += 1

    def memory() -> dict[str, int]:
        return {node: cluster.nodes[node].rss_bytes() for node in cluster.replicas}

    tasks = asyncio.gather(*(load(task) for task in range(CONNECTIONS)))
    half: dict[str, int] = {}
    while not tasks.done():
        elapsed = time.monotonic() - started
        if not half and (done >= WRITES / 2 or elapsed > LONGEST_S / 2):
            half = memory()
        await asyncio.sleep(0.1)
    await tasks
    end = memory()
    rate = done / (time.monotonic() - started)
    for node in cluster.replicas:
        print(f"{node}: {half[node] >> 20} MiB at half of {done} writes, {end[node] >> 20} MiB")
        assert end[node] - half[node] < GROWTH_BYTES, node
    print(f"{rate:.0f} writes/s through a test client")
    await cluster.wait_converged()
