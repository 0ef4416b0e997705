"""Data path and consensus are cut apart from each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.nodes.scenario import PATIENT, WITNESS, Scenario, long, shapes
from tests.support.partitions import PEER, RAFT, How

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180), pytest.mark.fault]


@pytest.mark.parametrize("how", ["drop", long("refuse")])
@pytest.mark.parametrize("shape", shapes(WITNESS))
async def test_the_data_path_is_cut_and_consensus_is_alive(
    shape: str, how: How, tmp_path: Path
) -> None:
    """The primary goes on alone: the silent backups are removed. Who forwards to it is refused."""
    async with Scenario(
        tmp_path,
        shape=shape,
        number=f"05-data-{how}",
        title=f"primary's data path cut, consensus alive ({how})",
        promise="the primary",
        timing=PATIENT,
    ) as scenario:
        await scenario.net.isolate(scenario.primary, kinds=PEER, how=how)
        status = await scenario.cluster.wait_in_sync(scenario.primary)
        assert status.primary == scenario.primary, "it had no reason to stop"
        await scenario.serves(scenario.primary)
        await scenario.refuses(scenario.others[0])


@pytest.mark.parametrize("how", ["drop", long("refuse")])
@pytest.mark.parametrize("shape", shapes())
async def test_consensus_is_cut_and_the_data_path_is_alive(
    shape: str, how: How, tmp_path: Path
) -> None:
    """Everything goes on under the same view: nobody needs consensus."""
    async with Scenario(
        tmp_path,
        shape=shape,
        number=f"05-consensus-{how}",
        title=f"all consensus cut, data path alive ({how})",
        promise="everything",
        timing=PATIENT,
    ) as scenario:
        for node in scenario.cluster.specs:
            await scenario.net.isolate(node, kinds=RAFT, how=how)
        before = await scenario.cluster.status(scenario.primary)
        await scenario.serves(*scenario.cluster.specs, count=40)
        after = await scenario.cluster.status(scenario.primary)
        assert before is not None
        assert after is not None
        assert (after.version, after.primary) == (before.version, before.primary)


@pytest.mark.parametrize("shape", shapes())
async def test_the_primary_is_cut_from_consensus_and_then_a_backup_dies(
    shape: str, tmp_path: Path
) -> None:
    """It cannot have the dead one removed, so it lets go, and the others go on without it."""
    async with Scenario(
        tmp_path,
        shape=shape,
        number="05-lets-go",
        title="primary's consensus cut, then its data path to one backup",
        promise="the others, after the primary has let go",
    ) as scenario:
        await scenario.net.isolate(scenario.primary, kinds=RAFT)
        await scenario.serves(*scenario.cluster.specs)
        await scenario.net.cut(scenario.primary, scenario.backups[0], kinds=PEER)
        await scenario.another_primary()
        await scenario.serves(scenario.backups[0])
