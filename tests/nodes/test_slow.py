"""Links that are slow, narrow or shaky, but carry everything in the end."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.nodes.scenario import PATIENT, THREE, WATCHED_S, Scenario, shapes
from tests.nodes.test_backup_cut_off import SMALL_LOG
from tests.support.cluster import wait_until
from tests.support.partitions import PEER
from tests.support.recorded_load import Bounds

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180), pytest.mark.fault]

BALLAST = 300
"""Values of 8 kB that make a snapshot of 2.4 MB: 37 s at 64 KB/s."""
UNHURRIED = Bounds(timeout_ms=4000, patience_ms=5000, give_up_s=12.0, generation_s=3.0)


@pytest.mark.parametrize(("latency_ms", "jitter_ms"), [(50, 20), (200, 50)])
@pytest.mark.parametrize("shape", shapes())
async def test_every_link_is_slow(
    shape: str, latency_ms: int, jitter_ms: int, tmp_path: Path
) -> None:
    """The cluster serves: with all replicas while answers come back within the lease, and with the
    primary alone in the in-sync set where they do not."""
    async with Scenario(
        tmp_path,
        shape=shape,
        number=f"10-latency-{latency_ms:04}",
        title=f"latency {latency_ms} ± {jitter_ms} ms on every link, each way",
        promise="the primary at least",
        bounds=UNHURRIED,
    ) as scenario:
        await scenario.net.toxic_everywhere("latency", {"latency": latency_ms, "jitter": jitter_ms})
        primary = await scenario.cluster.primary()
        await scenario.serves(primary, count=20)


@pytest.mark.parametrize(("latency_ms", "jitter_ms"), [(500, 100), (1000, 200)])
@pytest.mark.parametrize("shape", shapes())
async def test_every_link_is_slower_than_any_time_out(
    shape: str, latency_ms: int, jitter_ms: int, tmp_path: Path
) -> None:
    """Safety, and recovery afterwards: nothing else is promised."""
    async with Scenario(
        tmp_path,
        shape=shape,
        number=f"10-latency-{latency_ms:04}",
        title=f"latency {latency_ms} ± {jitter_ms} ms on every link, each way",
        promise="nothing (safety only)",
        bounds=UNHURRIED,
    ) as scenario:
        await scenario.net.toxic_everywhere("latency", {"latency": latency_ms, "jitter": jitter_ms})
        await asyncio.sleep(WATCHED_S)  # nothing is waited for: this is how long it lasts


@pytest.mark.parametrize("shape", shapes())
async def test_one_backup_is_suddenly_too_far_away(shape: str, tmp_path: Path) -> None:
    """Its promises come back when they have run out: the primary goes on without it.

    Consensus is spared: if its leader were the far one, no agreement would come within a second.
    """
    async with Scenario(
        tmp_path,
        shape=shape,
        number="11-far",
        title="latency 300 ms to one backup, each way",
        promise="everyone else",
        timing=PATIENT,
        bounds=UNHURRIED,
    ) as scenario:
        backup = scenario.backups[0]
        others = [node for node in scenario.cluster.specs if node != backup]
        for other in others:
            await scenario.net.toxic(backup, other, "latency", {"latency": 300}, kinds=PEER)
        await scenario.goes_on(besides=backup)
        await scenario.keeps_serving(*others)


@pytest.mark.parametrize("shape", shapes())
async def test_one_backup_is_moved_too_far_away_by_and_by(shape: str, tmp_path: Path) -> None:
    """The same, but it is never silent: its answers come regularly, later and later."""
    async with Scenario(
        tmp_path,
        shape=shape,
        number="11-creeping",
        title="latency to one backup growing to 200 ms, each way",
        promise="everyone else",
        timing=PATIENT,
        bounds=UNHURRIED,
    ) as scenario:
        backup = scenario.backups[0]
        others = [node for node in scenario.cluster.specs if node != backup]
        for _ in range(10):
            for other in others:
                await scenario.net.toxic(backup, other, "latency", {"latency": 20}, kinds=PEER)
        await scenario.goes_on(besides=backup)
        await scenario.keeps_serving(*others)


@pytest.mark.parametrize("shape", shapes())
async def test_64_kb_per_second_in_the_middle_of_a_snapshot(shape: str, tmp_path: Path) -> None:
    """The transfer crawls, and holds up nobody's writes."""
    async with Scenario(
        tmp_path,
        shape=shape,
        number="12-narrow",
        title="64 KB/s to a backup in the middle of its snapshot",
        promise="everyone else, without a take-over",
        limits=SMALL_LOG,
        timing=PATIENT,
    ) as scenario:
        cluster, backup = scenario.cluster, scenario.backups[0]
        others = [node for node in cluster.specs if node != backup]
        await scenario.net.isolate(backup)
        await scenario.goes_on(besides=backup)
        held = await cluster.metric(backup, "last_index")
        async with cluster.client(scenario.primary) as client:
            for number in range(0, BALLAST, 10):
                keys = [f"ballast/{number + step}" for step in range(10)]
                await asyncio.gather(*(client.put(key, bytes(8000)) for key in keys))

        async def trimmed() -> bool:
            return await cluster.metric(scenario.primary, "log_first_index") > held + 1

        await wait_until(trimmed, f"{scenario.primary} keeps no log that far back")
        await scenario.net.heal()
        for node in others:
            await scenario.net.toxic(node, backup, "bandwidth", {"rate": 64}, kinds=PEER)
        await scenario.keeps_serving(*others, seconds=4.0)
        status = await cluster.status(scenario.primary)
        assert status is not None
        assert status.primary == scenario.primary
        assert backup not in status.in_sync, "so much does not pass in 4 s"
        await scenario.net.heal()
        await cluster.wait_in_sync(*cluster.replicas)
        assert await cluster.metric(backup, "snapshots_received_total") >= 1


@pytest.mark.parametrize("shape", shapes())
async def test_flapping_links(shape: str, tmp_path: Path) -> None:
    """The primary's links go down and up again, longer than its lease and grace; whenever they are
    up for a while, everyone serves."""
    async with Scenario(
        tmp_path,
        shape=shape,
        number="13-flapping",
        title="primary's links down and up, 5 times",
        promise="everyone, between the cuts",
    ) as scenario:
        for turn in range(5):
            primary = await scenario.cluster.primary()
            await scenario.net.isolate(primary, how="refuse" if turn % 2 else "drop")
            await asyncio.sleep(0.2 * turn)  # shorter and longer than a lease, a grace, an election
            await scenario.net.heal()
            await scenario.serves(*scenario.cluster.specs, count=5)


@pytest.mark.parametrize("shape", shapes(THREE))
async def test_messages_that_arrive_after_another_has_taken_over(
    shape: str, tmp_path: Path
) -> None:
    """All that the primary sends and hears is 700 ms old: what it sent before another took over
    arrives afterwards, on connections that have never broken."""
    async with Scenario(
        tmp_path,
        shape=shape,
        number="13-late",
        title="latency 700 ms to and from the primary",
        promise="the others, after a take-over",
    ) as scenario:
        await scenario.net.toxic_around(scenario.primary, "latency", {"latency": 700})
        await scenario.another_primary()
        await scenario.keeps_serving(*scenario.others)
