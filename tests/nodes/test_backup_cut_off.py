"""A backup, or the witness, is cut off; and the majority is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.nodes.scenario import PATIENCE, PATIENT, THREE, WITNESS, Scenario, long, shapes
from tests.support.cluster import wait_until
from tests.support.partitions import PEER, RAFT, How
from tests.support.recorded_load import Bounds, Mix

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180), pytest.mark.fault]

SMALL_LOG = {
    "max_value_size_bytes": 8192,
    "log_segment_size_bytes": 131_072,
    "log_retention_bytes": 131_072,
}
HEAVY = Bounds(
    timeout_ms=PATIENCE.timeout_ms,
    patience_ms=PATIENCE.patience_ms,
    give_up_s=PATIENCE.give_up_s,
    generation_s=PATIENCE.generation_s,
    value_size_bytes=4000,
)
MOSTLY_PUTS = Mix(put=120)


@pytest.mark.parametrize("how", ["drop", "refuse"])
@pytest.mark.parametrize("shape", shapes())
async def test_a_backup_is_cut_off_shortly(shape: str, how: How, tmp_path: Path) -> None:
    """The primary removes it and goes on; afterwards the backup replays the log."""
    async with Scenario(
        tmp_path,
        shape=shape,
        number=f"06-short-{how}",
        title=f"backup cut off, short: log replay ({how})",
        promise="everyone else, without a take-over",
        timing=PATIENT,
    ) as scenario:
        backup = scenario.backups[0]
        await scenario.net.isolate(backup, how=how)
        await scenario.goes_on(besides=backup)
        await scenario.serves(*(node for node in scenario.cluster.specs if node != backup))
        await scenario.refuses(backup)
        await scenario.net.heal()
        await scenario.cluster.wait_in_sync(*scenario.cluster.replicas)
        assert await scenario.cluster.metric(backup, "snapshots_received_total") == 0


@pytest.mark.parametrize("shape", shapes(THREE))
async def test_a_backup_is_cut_off_for_long(shape: str, tmp_path: Path) -> None:
    """The primary goes on, and lets go of log that the backup lacks; a snapshot makes up for it."""
    async with Scenario(
        tmp_path,
        shape=shape,
        number="06-long",
        title="backup cut off, long: snapshot",
        promise="everyone else, without a take-over",
        timing=PATIENT,
        limits=SMALL_LOG,
        bounds=HEAVY,
        mix=MOSTLY_PUTS,
    ) as scenario:
        cluster, backup = scenario.cluster, scenario.backups[0]
        await scenario.net.isolate(backup)
        await scenario.goes_on(besides=backup)
        held = await cluster.metric(backup, "last_index")

        async def trimmed() -> bool:
            scenario.load.check_healthy()
            return await cluster.metric(scenario.primary, "log_first_index") > held + 1

        await wait_until(trimmed, f"{scenario.primary} keeps no log that far back", 40)
        await scenario.net.heal()
        await cluster.wait_in_sync(*cluster.replicas)
        assert await cluster.metric(backup, "snapshots_received_total") >= 1


@pytest.mark.parametrize("shape", [long(WITNESS)])
async def test_the_primary_is_cut_from_the_witness(shape: str, tmp_path: Path) -> None:
    """Nothing changes for the two replicas; the witness's clients are refused."""
    async with Scenario(
        tmp_path,
        shape=shape,
        number="07-witness",
        title="primary cut from the witness",
        promise="both replicas, without a take-over",
    ) as scenario:
        await scenario.net.cut(scenario.primary, "w1")
        await scenario.serves(*scenario.cluster.replicas, count=40)
        status = await scenario.cluster.status(scenario.primary)
        assert status is not None
        assert status.primary == scenario.primary
        assert set(status.in_sync) == set(scenario.cluster.replicas)
        await scenario.refuses("w1")


@pytest.mark.parametrize("shape", [long(WITNESS)])
async def test_the_witness_is_cut_off_and_then_the_backup(shape: str, tmp_path: Path) -> None:
    """Without the witness both go on. Without both, the primary has no majority and refuses."""
    async with Scenario(
        tmp_path,
        shape=shape,
        number="07-witness-backup",
        title="witness cut off, then the backup",
        promise="both replicas; then nothing (no majority)",
    ) as scenario:
        await scenario.net.isolate("w1")
        await scenario.serves(*scenario.cluster.replicas)
        await scenario.net.cut(scenario.primary, scenario.backups[0])
        for node in scenario.cluster.replicas:
            await scenario.refuses(node)


@pytest.mark.parametrize("shape", shapes(WITNESS))
async def test_the_majority_is_lost(shape: str, tmp_path: Path) -> None:
    """Everybody is alone: once the lease is over, reads and writes get a 503 everywhere. What was
    committed can be read with consistency=stale."""
    async with Scenario(
        tmp_path,
        shape=shape,
        number="08-majority",
        title="majority lost: every node alone",
        promise="stale reads",
    ) as scenario:
        for kinds in (RAFT, PEER):
            for node in scenario.others:
                await scenario.net.isolate(node, kinds=kinds)
        for node in scenario.cluster.specs:
            await scenario.refuses(node)
        for node in scenario.cluster.replicas:
            reply = await scenario.cluster.fetch(node, "GET", "/v1/kv?consistency=stale&limit=5")
            assert reply.status == 200
            assert reply.json["items"]


@pytest.mark.parametrize("shape", shapes())
async def test_the_majority_is_lost_one_after_the_other(shape: str, tmp_path: Path) -> None:
    """The primary alone in the in-sync set goes on when the last link to the majority is cut: it
    needs nobody's promise any more."""
    async with Scenario(
        tmp_path,
        shape=shape,
        number="08-one-by-one",
        title="majority lost, after the backups were removed",
        promise="the primary",
        timing=PATIENT,
    ) as scenario:
        await scenario.net.isolate(scenario.primary, kinds=PEER)
        await scenario.cluster.wait_in_sync(scenario.primary)
        await scenario.net.isolate(scenario.primary, kinds=RAFT)
        await scenario.serves(scenario.primary, count=40)
