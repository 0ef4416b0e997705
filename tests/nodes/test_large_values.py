"""Values of 64 KiB and 1 MiB over links that break within a message, dribble, or are narrow."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.nodes.scenario import PATIENT, THREE, Scenario
from tests.support.cluster import Writer
from tests.support.toxiproxy import Attributes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.timeout(180),
    pytest.mark.fault,
]

LINKS: dict[str, tuple[str, Attributes]] = {
    "break within a message": ("limit_data", {"bytes": 1_500_000}),
    "dribble": ("slicer", {"average_size": 3000, "size_variation": 2000, "delay": 50}),
    "are narrow": ("bandwidth", {"rate": 3000}),
}


@pytest.mark.parametrize("size_bytes", [64 * 1024, 1024 * 1024])
@pytest.mark.parametrize("links", LINKS)
async def test_large_values_where_the_links_of_a_backup(
    links: str, size_bytes: int, tmp_path: Path
) -> None:
    """All that is acknowledged is held by every replica in the end, each value as it was sent."""
    kind, attributes = LINKS[links]
    async with Scenario(
        tmp_path,
        shape=THREE,
        number=f"18-large-{kind}",
        title=f"values of {size_bytes} B, a backup's links {links}",
        promise="everyone else",
        timing=PATIENT,
    ) as scenario:
        cluster, backup = scenario.cluster, scenario.backups[0]
        others = [node for node in cluster.specs if node != backup]
        await scenario.net.toxic_around(backup, kind, attributes)
        async with Writer(cluster, *others, name="large", tasks=3, size_bytes=size_bytes) as writer:
            await writer.progress(30)
        await scenario.net.heal()
        await cluster.wait_in_sync(*cluster.replicas)
        await writer.verify(await cluster.primary())
    # the scenario has compared the replicas' digests
