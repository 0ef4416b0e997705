"""The primary is cut off: from everyone, from one backup, from the witness, one way only."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.nodes.scenario import THREE, WITNESS, Scenario, long, shapes
from tests.support.partitions import How

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180), pytest.mark.fault]


@pytest.mark.parametrize("how", ["drop", long("refuse")])
@pytest.mark.parametrize("shape", shapes(THREE, WITNESS))
async def test_a_primary_cut_off_from_everyone(shape: str, how: How, tmp_path: Path) -> None:
    """The others take over and serve at each of their nodes; the old one serves nobody."""
    async with Scenario(
        tmp_path,
        shape=shape,
        number=f"01-{how}",
        title=f"primary cut off from everyone ({how})",
        promise="the others, after a take-over",
    ) as scenario:
        await scenario.net.isolate(scenario.primary, how=how)
        assert await scenario.another_primary() in scenario.backups
        await scenario.serves(*scenario.others)
        await scenario.refuses(scenario.primary)


@pytest.mark.parametrize("how", ["drop", long("refuse")])
@pytest.mark.parametrize("shape", shapes(WITNESS))
async def test_a_primary_cut_from_one_backup(shape: str, how: How, tmp_path: Path) -> None:
    """One of the two goes on as the primary, without the other, and serves the third node too."""
    async with Scenario(
        tmp_path,
        shape=shape,
        number=f"02-{how}",
        title=f"primary cut from one backup ({how})",
        promise="one of the two, and whoever reaches it",
    ) as scenario:
        backup = scenario.backups[0]
        (third,) = set(scenario.others) - {backup}
        await scenario.net.cut(scenario.primary, backup, how=how)
        await scenario.serves(third)
