"""What clients are told by real nodes, while these are attacked, is linearizable."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import pytest

from tests.nodes.conftest import MakeCluster
from tests.support.cluster import wait_until
from tests.support.recorded_load import Bounds, RecordedLoad

pytestmark = pytest.mark.slow

KILLS = PAUSES = 2
POWER_CUTS = 3
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


@pytest.mark.long
async def test_a_history_is_linearizable_while_the_primary_is_paused(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    """It wakes with requests in its sockets that were sent after others had written."""
    cluster = make_cluster()
    await cluster.start()
    # Clients that lose patience soon ask again, while the node they ask is still paused.
    bounds = Bounds(timeout_ms=400, patience_ms=500, clients=12, spare_connections=10)
    endpoints = {node: cluster.url(node) for node in cluster.replicas}
    async with RecordedLoad(endpoints, tmp_path / "histories", bounds=bounds) as load:
        for _ in range(PAUSES):
            await load.progress(writes=50, reads=50)
            old = (await cluster.wait_in_sync(*cluster.replicas)).primary
            cluster.nodes[old].pause()
            await cluster.primary(besides=old)
            for node in cluster.others(old):
                await load.progress(writes=20, reads=20, node=node)
            cut = load.counts["attempt cut"]
            await wait_until(
                partial(_is_cut_again, load, cut + bounds.clients), "clients ask the paused node"
            )
            cluster.nodes[old].resume()
            await load.progress(writes=10, reads=10, node=old)
            await cluster.wait_in_sync(*cluster.replicas)
    print(load.require())
    print(dict(load.counts))
    await cluster.wait_converged()


def _is_issued(load: RecordedLoad, wanted: int) -> bool:
    return load.issued >= wanted


def _is_cut_again(load: RecordedLoad, wanted: int) -> bool:
    return load.counts["attempt cut"] >= wanted


@pytest.mark.long
async def test_a_history_is_linearizable_when_all_are_killed_and_the_primary_stays_away(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    """What was on its way to the backups is lost with them: it must not have been acknowledged."""
    cluster = make_cluster()
    await cluster.start()
    endpoints = {node: cluster.url(node) for node in cluster.replicas}
    bounds = Bounds(clients=24, rate_per_s=400)
    async with RecordedLoad(endpoints, tmp_path / "histories", bounds=bounds) as load:
        for _ in range(POWER_CUTS):
            await load.progress(writes=50, reads=50)
            old = (await cluster.wait_in_sync(*cluster.replicas)).primary
            for node in cluster.others(old):
                cluster.nodes[node].pause()  # so that surely something is on its way
            await wait_until(
                partial(_is_issued, load, load.issued + bounds.clients), "clients ask for more"
            )
            await cluster.kill(*cluster.replicas)
            cluster.launch(*cluster.others(old))
            for node in cluster.others(old):
                await load.progress(writes=10, reads=10, node=node)
            cluster.launch(old)
            await cluster.wait_in_sync(*cluster.replicas)
    print(load.require())
    print(dict(load.counts))
    await cluster.wait_converged()
