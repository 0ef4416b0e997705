"""Disks that fail to sync, are slow, or hang: nothing acknowledged is lost, service goes on."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.nodes.attacked import Attacked, attacked
from tests.nodes.conftest import MakeCluster
from tests.support.cluster import SLOW_TO_SUSPECT, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.fault]


async def fail_syncs(attack: Attacked, *nodes: str, path: str, loses: bool) -> None:
    """Let every sync fail, and see that the nodes end and say why (D9).

    A last one may be left to which nothing came that it could have synced: alone it is no majority,
    and opens no epoch. It is killed.
    """
    processes = [attack.cluster.nodes[node] for node in nodes]
    for node in nodes:
        attack.faults.set(node, sync_fails=True, failing_path=path, loses_what_failed=loses)
    certain = max(1, len(nodes) - 1)
    await wait_until(
        lambda: sum(not process.running for process in processes) >= certain,
        f"{certain} of {', '.join(nodes)} end",
    )
    for process in processes:
        if process.running and len(nodes) > 1:
            await process.kill()
            continue
        assert await process.wait_exit() == 1, "a restart may help"
        said = process.log()
        assert "Input/output error" in said
        assert "Traceback" not in said


@pytest.mark.long
@pytest.mark.parametrize("loses", [True, False], ids=["lost", "kept"])
@pytest.mark.parametrize("path", ["/log/", "/raft/", "/store/"])
@pytest.mark.parametrize("role", ["primary", "backup"])
async def test_a_failed_sync_ends_the_node_and_loses_nothing(
    make_cluster: MakeCluster, tmp_path: Path, role: str, path: str, loses: bool
) -> None:
    async with attacked(make_cluster(), tmp_path) as attack:
        cluster = attack.cluster
        primary = await cluster.primary()
        victim = primary if role == "primary" else cluster.others(primary)[0]
        if path == "/raft/":
            attack.faults.set(victim, sync_fails=True, failing_path=path, loses_what_failed=loses)
            # Consensus writes when a view changes: to let the third replica go, and take it back.
            third = cluster.others(victim, primary)[0]
            await cluster.kill(third)
            assert await cluster.nodes[victim].wait_exit() == 1
            attack.faults.clear(victim)
            await attack.restart(victim, third)
            return
        await fail_syncs(attack, victim, path=path, loses=loses)
        await attack.writer.progress(20)
        attack.faults.clear(victim)
        await attack.restart(victim)


@pytest.mark.long
async def test_syncs_that_fail_everywhere_at_once_lose_nothing_acknowledged(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    """All replicas drop what they could not sync: only what nobody was promised is gone."""
    async with attacked(make_cluster(), tmp_path) as attack:
        cluster = attack.cluster
        for loses in (True, False):
            await fail_syncs(attack, *cluster.replicas, path="/log/", loses=loses)
            attack.faults.clear()
            await attack.restart(*cluster.replicas)
            await attack.writer.progress(20)


@pytest.mark.long
async def test_a_replica_alone_acknowledges_nothing_that_its_disk_has_dropped(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    async with attacked(make_cluster(replicas=1), tmp_path) as attack:
        for loses in (True, False, True):
            await fail_syncs(attack, "n1", path="/log/", loses=loses)
            failed_at = time.monotonic()
            late = [ack for ack in attack.writer.acknowledged.values() if ack.asked_s > failed_at]
            assert not late
            attack.faults.clear()
            await attack.restart("n1")
            await attack.writer.progress(20)


@pytest.mark.long
@pytest.mark.parametrize("role", ["primary", "backup"])
async def test_a_slow_disk_makes_writes_slow_and_changes_nothing(
    make_cluster: MakeCluster, tmp_path: Path, role: str
) -> None:
    async with attacked(make_cluster(timing=SLOW_TO_SUSPECT), tmp_path) as attack:
        cluster = attack.cluster
        before = await cluster.wait_in_sync(*cluster.replicas)
        victim = before.primary if role == "primary" else cluster.others(before.primary)[0]
        attack.faults.set(victim, sync_delay_ms=30)
        await attack.load.progress(writes=60, reads=60)
        after = await cluster.wait_in_sync(*cluster.replicas)
        assert after.epoch == before.epoch
        slow = [ack.answered_s - ack.asked_s for ack in attack.writer.acknowledged.values()][-20:]
        assert min(slow) > 0.02, "the delay took: each write waits for the slowest disk"


@pytest.mark.long
async def test_a_backup_whose_disk_hangs_is_let_go_and_comes_back(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    async with attacked(make_cluster(timing=SLOW_TO_SUSPECT), tmp_path) as attack:
        cluster = attack.cluster
        primary = await cluster.primary()
        victim, other = cluster.others(primary)
        hung_at = time.monotonic_ns()
        attack.faults.set(victim, sync_delay_ms=60_000)
        await cluster.wait_in_sync(primary, other)
        await attack.load.progress(writes=20, reads=20, node=primary)
        now = time.monotonic_ns()
        writes_ms = attack.load.availability.longest_gap_ms("write", hung_at, now)
        reads_ms = attack.load.availability.longest_gap_ms("read", hung_at, now)
        print(f"longest without a write {writes_ms:.0f} ms, without a read {reads_ms:.0f} ms")
        attack.faults.clear(victim)
        status = await cluster.wait_in_sync(*cluster.replicas)
        assert status.primary == primary


async def test_a_primary_whose_disk_hangs_lets_another_take_over(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    async with attacked(make_cluster(), tmp_path) as attack:
        cluster = attack.cluster
        old = await cluster.primary()
        hung_at = time.monotonic_ns()
        attack.faults.set(old, sync_delay_ms=60_000)
        new = await cluster.primary(besides=old)
        await attack.load.progress(writes=20, reads=20, node=new)
        now = time.monotonic_ns()
        gap_ms = attack.load.availability.longest_gap_ms("write", hung_at, now)
        print(f"longest without a write {gap_ms:.0f} ms")
        attack.faults.clear(old)
        await cluster.wait_in_sync(*cluster.replicas)
