"""What the metrics say in a total outage: the alerts of docs/operations.md fire, on who is left."""

from __future__ import annotations

import functools
import urllib.request

import pytest

from tests.nodes.conftest import MakeCluster
from tests.support.cluster import Cluster, wait_until

pytestmark = pytest.mark.slow


def metrics(cluster: Cluster, node: str) -> dict[str, float]:
    """Read a node's metrics, those without labels."""
    with urllib.request.urlopen(f"{cluster.url(node)}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    pairs = [line.split() for line in lines if not line.startswith("#") and "{" not in line]
    return {name: float(value) for name, value in pairs}


def is_healthy(cluster: Cluster, node: str) -> bool:
    found = metrics(cluster, node)
    return all(found[f"onecopy_{name}"] for name in ("ready", "has_vote", "hears_majority"))


@pytest.mark.parametrize("loses", ["the primary and a backup", "both backups"])
async def test_a_total_outage_shows_on_the_node_that_is_left(
    make_cluster: MakeCluster, loses: str
) -> None:
    cluster: Cluster = make_cluster()
    await cluster.start()
    primary = await cluster.primary()
    left = primary if loses == "both backups" else cluster.others(primary)[0]
    for node in cluster.replicas:
        # What a node has heard itself may be a moment behind what the primary says of it.
        await wait_until(functools.partial(is_healthy, cluster, node), f"{node} is healthy")
        found = metrics(cluster, node)
        assert found["onecopy_is_primary"] == (node == primary)
    async with cluster.client(primary) as client:
        await client.put("a", b"1")
    assert metrics(cluster, primary)["onecopy_seconds_since_commit"] < 30

    await cluster.kill(*(node for node in cluster.replicas if node != left))

    def fires() -> bool:
        found = metrics(cluster, left)
        alerts = ("onecopy_ready", "onecopy_is_primary", "onecopy_hears_majority")
        return not any(found[alert] for alert in alerts)

    await wait_until(fires, "the alerts fire")
    before = metrics(cluster, left)["onecopy_seconds_since_commit"]
    await wait_until(
        lambda: metrics(cluster, left)["onecopy_seconds_since_commit"] > before,
        "the time since the last commit grows",
    )
