"""The alerts of `deploy/prometheus`, in a real Prometheus, while a real cluster fails."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.nodes.conftest import MakeCluster
from tests.nodes.test_full_disk import LIMITS, SmallDisk, put, small_disk, write_until_full  # noqa: F401
from tests.support.cluster import UNSUSPECTING, Cluster, make_spec, wait_until
from tests.support.ports import free_address
from tests.support.prometheus import Prometheus, prometheus
from tests.support.small_disk import fill

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(300)]

OUTAGE = ("OnecopyNoPrimary", "OnecopyNotReady", "OnecopyNoMajority")
HEALTHY_S = 5
"""How long nothing may fire: as many evaluations."""


async def wait_up(prom: Prometheus, count: int) -> None:
    """Wait until Prometheus answers, and has scraped so many nodes."""

    async def scraped() -> bool:
        return len(await prom.query("up == 1")) == count

    await wait_until(scraped, f"{count} nodes are scraped")


async def wait_healthy(prom: Prometheus) -> None:
    """Wait until nothing fires any more, and see that nothing does for some evaluations."""
    await prom.wait_firing()
    asked_s = time.time()

    async def evaluated() -> bool:
        assert await prom.firing() == set()
        return bool(await prom.query(f"timestamp(up) > {asked_s + HEALTHY_S}"))

    await wait_until(evaluated, "the rules have been evaluated in health")


async def test_each_failure_raises_its_alert_and_health_none(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    cluster = make_cluster(replicas=2, witnesses=1)
    await cluster.start()
    with prometheus(cluster, tmp_path / "prometheus", cluster.specs) as prom:
        await wait_up(prom, 3)
        await wait_healthy(prom)

        # The witness is lost.
        await cluster.kill("w1")
        await prom.wait_firing("OnecopyNodeDown", "OnecopyVoterLost")
        await back(cluster, prom, "w1")

        # A backup is lost.
        primary = await cluster.primary()
        (backup,) = cluster.others(primary)
        await cluster.kill(backup)
        await prom.wait_firing("OnecopyNodeDown", "OnecopyVoterLost", "OnecopyNotInSync")
        await back(cluster, prom, backup)

        # The primary and the witness are lost: nobody may take over.
        primary = await cluster.primary()
        await cluster.kill(primary, "w1")
        await prom.wait_firing("OnecopyNodeDown", "OnecopyNodeNotReady", *OUTAGE)

        # All are lost.
        await cluster.kill(*cluster.others(primary))
        await prom.wait_firing("OnecopyNodeDown", *OUTAGE)
        await back(cluster, prom, *cluster.specs)


async def back(cluster: Cluster, prom: Prometheus, *nodes: str) -> None:
    """Start nodes again, and see that all alerts end."""
    cluster.launch(*nodes)
    await cluster.wait_in_sync(*cluster.replicas)
    await wait_healthy(prom)


async def test_a_full_disk_raises_its_alert(
    make_cluster: MakeCluster,
    small_disk: SmallDisk,  # noqa: F811
    tmp_path: Path,
) -> None:
    disk = small_disk("disk")
    cluster = make_cluster(replicas=1, limits=LIMITS, timing=UNSUSPECTING, data={"n1": disk / "n1"})
    await cluster.start()
    with prometheus(cluster, tmp_path / "prometheus", ["n1"]) as prom:
        await wait_up(prom, 1)
        await wait_healthy(prom)
        ballast = fill(disk)
        _, refusal = await write_until_full(cluster, "n1")
        assert refusal.code == "storage_full"

        async def fires() -> bool:
            await put(cluster, "n1", "one more")  # clients go on
            return await prom.firing() == {"OnecopyDiskFull"}

        await wait_until(fires, "the alert fires", 60.0)
        ballast.unlink()
        await wait_healthy(prom)


async def test_a_node_without_a_vote_raises_its_alert(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    cluster = make_cluster(replicas=1)
    await cluster.start()
    cluster.specs["n2"] = make_spec("replica", cluster.data("n1").with_name("n2"))
    cluster._add_process("n2")
    nowhere = free_address()  # consensus cannot be reached, replication can
    cluster.routes = {("n1", "n2"): {"raft": nowhere}, ("n2", "n1"): {"raft": nowhere}}
    cluster.write_config()
    await cluster.stop("n1")
    cluster.launch("n1")
    await cluster.primary()
    cluster.launch("n2")
    with prometheus(cluster, tmp_path / "prometheus", ["n1", "n2"]) as prom:
        await wait_up(prom, 2)

        async def fires() -> bool:
            return "OnecopyNoVote" in await prom.firing()

        await wait_until(fires, "the alert fires", 60.0)
