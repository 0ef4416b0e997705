"""Rolling upgrade and downgrade: this release beside the wheel of the one before (decision 36)."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from cluster.client.errors import ClientError
from election.release import LEVEL
from tests.nodes.conftest import MakeCluster
from tests.support.cluster import Cluster, make_spec, wait_until
from tests.support.environments import build_wheel_of, has_commit, pip
from tests.support.failed_attempts import NOT_SENT
from tests.support.recorded_load import RecordedLoad

pytestmark = pytest.mark.slow

RELEASE_BEFORE = "64d83dc76e0a8524365e412fc2c1a5a527d72ab1"
"""The last commit of the release before, 0.1.0: move it on with each release."""
EXIT_REFUSED = 78
NEW: Sequence[str] = (sys.executable, "-m", "cluster.cli.main")
MAX_GAP_MS = 15_000


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Sequence[str]:
    """Return the command that runs the release before."""
    if not has_commit(RELEASE_BEFORE):
        pytest.skip(f"commit {RELEASE_BEFORE[:8]} is not in this (shallow?) clone")
    wheel = build_wheel_of(RELEASE_BEFORE, tmp_path_factory.mktemp("wheel"))
    target = tmp_path_factory.mktemp("release-before")
    pip("install", "-q", "--no-deps", "--target", target, wheel)
    # -P: the working directory, which holds this release, is not searched.
    return ("env", f"PYTHONPATH={target}", sys.executable, "-P", "-m", "cluster.cli.main")


async def replace(cluster: Cluster, command: Sequence[str], *nodes: str) -> None:
    """Stop each node, and start it again with another release, one after the other."""
    for node in nodes:
        assert await cluster.nodes[node].terminate() == 0
        cluster.nodes[node].command = command
        cluster.launch(node)
        await cluster.wait_started(node)
        await cluster.wait_in_sync()


async def versions(cluster: Cluster, node: str) -> dict[str, bool]:
    """Return which nodes have told this one their version."""
    status = await cluster.status(node)
    assert status is not None
    return {name: bool(item.version) for name, item in status.nodes.items()}


async def test_a_cluster_of_both_releases_serves_until_the_upgrade_is_finished(
    make_cluster: MakeCluster, old: Sequence[str]
) -> None:
    cluster = make_cluster(replicas=2, witnesses=1)
    for process in cluster.nodes.values():
        process.command = old
    await cluster.start()
    async with cluster.client() as client:
        await client.put("before", b"1")
        await replace(cluster, NEW, "n1", "w1")
        await client.put("between", b"2")
        told = await versions(cluster, "n1")
        assert told == {"n1": True, "n2": False, "w1": True}
        with pytest.raises(ClientError) as refused:
            await client.finish_upgrade()
        assert refused.value.code in {"upgrade_pending", "not_found"}  # the old one knows no such
        await replace(cluster, NEW, "n2")
        await client.finish_upgrade()
        await client.finish_upgrade()  # harmless
        entry = await client.get("before")
        assert entry is not None
        assert entry.value == b"1"
    status = await cluster.status("n1")
    assert status is not None
    assert status.level == LEVEL
    # The release before cannot read the directory any more, and says so.
    for node in ("n2", "w1"):
        await cluster.nodes[node].terminate()
        cluster.nodes[node].command = old
        cluster.launch(node)
        assert await cluster.nodes[node].wait_exit() == EXIT_REFUSED
        assert "use the version of onecopy that wrote it" in cluster.nodes[node].log()
        cluster.nodes[node].command = NEW
        cluster.launch(node)
        await cluster.wait_started(node)


async def test_a_new_node_of_the_release_before_is_refused_once_the_upgrade_is_finished(
    make_cluster: MakeCluster, old: Sequence[str]
) -> None:
    cluster = make_cluster(replicas=2)
    await cluster.start("n1", "n2")
    status = await cluster.status("n1")
    assert status is not None
    assert status.level == LEVEL, "a cluster of this release begins at its level"
    cluster.specs["n3"] = make_spec("replica", cluster.data("n1").with_name("n3"))
    cluster._add_process("n3")
    cluster.write_config()
    cluster.nodes["n3"].command = old
    cluster.launch("n3")
    assert await cluster.nodes["n3"].wait_exit() == EXIT_REFUSED
    assert f"the cluster is at level {LEVEL}" in cluster.nodes["n3"].log()


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_rolling_upgrade_and_downgrade_under_load_are_linearizable(
    make_cluster: MakeCluster, old: Sequence[str], tmp_path: Path
) -> None:
    cluster = make_cluster()
    for process in cluster.nodes.values():
        process.command = old
    await cluster.start()
    endpoints = {node: cluster.url(node) for node in cluster.replicas}
    gaps_ms = []
    async with RecordedLoad(endpoints, tmp_path / "histories") as load:
        for command in (NEW, old, NEW):
            for node in cluster.replicas:
                await load.progress(writes=30, reads=30)
                start_ns = time.monotonic_ns()
                with load.failures.away(node):
                    await replace(cluster, command, node)
                await load.progress(writes=10, reads=10, node=node)
                now_ns = time.monotonic_ns()
                gaps_ms.append(load.availability.longest_gap_ms("write", start_ns, now_ns))
        async with cluster.client() as client:

            async def finished() -> bool:
                try:
                    await client.finish_upgrade()
                except ClientError as error:
                    return error.code != "upgrade_pending"
                return True

            await wait_until(finished, "the upgrade is finished")
        await load.progress(writes=30, reads=30)
    print(load.require())
    print(load.failures.require_none_but(NOT_SENT))
    print(dict(load.counts), "gaps without a write, ms:", [round(gap) for gap in gaps_ms])
    assert max(gaps_ms) < MAX_GAP_MS
    await cluster.wait_converged()
