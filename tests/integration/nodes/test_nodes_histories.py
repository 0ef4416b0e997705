"""What clients are told by real nodes, while these are attacked, is linearizable."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.integration.nodes.conftest import MakeCluster
from tests.support.recorded_load import RecordedLoad

pytestmark = pytest.mark.slow

KILLS = PAUSES = 2
MAX_GAP_MS = 15_000
"""For a failover on a machine as busy as it may be: that it ends at all is what counts here."""


async def test_a_history_is_linearizable_while_the_primary_is_killed(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    cluster = make_cluster()
    await cluster.start()
    gaps_ms = []
    endpoints = {node: cluster.url(node) for node in cluster.replicas}
    async with RecordedLoad(endpoints, tmp_path / "histories") as load:
        for _ in range(KILLS):
            await load.progress(writes=50, reads=50)
            old = (await cluster.wait_in_sync(*cluster.replicas)).primary
            killed_ns = time.monotonic_ns()
            await cluster.kill(old)
            for node in cluster.others(old):
                await load.progress(writes=10, reads=10, node=node)
            now_ns = time.monotonic_ns()
            gaps_ms.append(load.availability.longest_gap_ms("write", killed_ns, now_ns))
            cluster.launch(old)
            await cluster.wait_in_sync(*cluster.replicas)
            await load.progress(writes=10, reads=10, node=old)
    print(load.require())
    print(dict(load.counts), "gaps without a write, ms:", [round(gap) for gap in gaps_ms])
    assert load.operations > 300
    assert load.counts["put failed_condition"], "conditions are tried, and fail"
    assert load.counts["repeats"], "idempotent repeats are tried"
    assert max(gaps_ms) < MAX_GAP_MS
    await cluster.wait_converged()


async def test_a_history_is_linearizable_while_the_primary_is_paused(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    """It wakes with requests in its sockets that were sent after others had taken over."""
    cluster = make_cluster()
    await cluster.start()
    endpoints = {node: cluster.url(node) for node in cluster.replicas}
    async with RecordedLoad(endpoints, tmp_path / "histories") as load:
        for _ in range(PAUSES):
            await load.progress(writes=50, reads=50)
            old = (await cluster.wait_in_sync(*cluster.replicas)).primary
            cluster.nodes[old].pause()
            new = await cluster.primary(besides=old)
            for node in cluster.others(old):
                await load.progress(writes=40, reads=40, node=node)
            cluster.nodes[old].resume()
            await load.progress(writes=10, reads=10, node=old)
            assert (await cluster.wait_in_sync(*cluster.replicas)).primary == new
    print(load.require())
    print(dict(load.counts))
    await cluster.wait_converged()
