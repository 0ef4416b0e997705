"""Links that carry bytes one way only: the faults that time-outs alone get wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from tests.nodes.scenario import PATIENT, THREE, Scenario, long, shapes
from tests.support.partitions import BOTH, PEER, RAFT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180), pytest.mark.fault]

KINDS = {"both": BOTH, "data path": PEER, "consensus": RAFT}


@pytest.mark.parametrize("direction", [long("out"), "in"])
@pytest.mark.parametrize("kinds", ["both", long("data path"), long("consensus")])
@pytest.mark.parametrize("shape", shapes(THREE))
async def test_a_primary_that_only_hears_or_is_only_heard(
    shape: str, kinds: str, direction: Literal["out", "in"], tmp_path: Path
) -> None:
    """Data path cut: the primary goes on, and has the silent backups removed. Consensus cut: it
    goes on with them, it needs no agreement. Both cut: the others take over.
    """
    deaf = "hears nobody" if direction == "in" else "is heard by nobody"
    serving = "the others, after a take-over" if kinds == "both" else "the primary"
    async with Scenario(
        tmp_path,
        shape=shape,
        number=f"03-{kinds}-{direction}",
        title=f"primary {deaf} ({kinds})",
        promise=serving,
        timing={} if kinds == "both" else PATIENT,
    ) as scenario:
        await scenario.net.isolate(scenario.primary, kinds=KINDS[kinds], direction=direction)
        if kinds == "both":
            await scenario.another_primary()
            await scenario.serves(*scenario.others)
            await scenario.refuses(scenario.primary)
        else:
            await scenario.serves(scenario.primary)
            status = await scenario.cluster.status(scenario.primary)
            assert status is not None
            assert status.primary == scenario.primary
        if kinds == "consensus":
            await scenario.serves(*scenario.others)


@pytest.mark.parametrize("direction", ["to the backup", "from the backup"])
@pytest.mark.parametrize("kinds", ["both", "data path"])
@pytest.mark.parametrize("shape", shapes())
async def test_one_direction_between_primary_and_backup(
    shape: str, kinds: str, direction: str, tmp_path: Path
) -> None:
    """One of the two serves, and clients of the third node, which reaches both, with it."""
    async with Scenario(
        tmp_path,
        shape=shape,
        number=f"04-{kinds}-{direction}",
        title=f"nothing passes {direction} ({kinds})",
        promise="one of the two, and whoever reaches it",
    ) as scenario:
        backup = scenario.backups[0]
        (third,) = set(scenario.others) - {backup}
        pair = (scenario.primary, backup)
        await scenario.net.cut(
            *(pair if direction == "to the backup" else pair[::-1]),
            kinds=KINDS[kinds],
            one_way=True,
        )
        await scenario.serves(third)
