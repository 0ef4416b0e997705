"""Stops that are planned: SIGTERM to one node or to all, and a start from what is on the disks."""

from __future__ import annotations

import asyncio

import pytest

from tests.nodes.conftest import MakeCluster
from tests.support.cluster import Cluster, Writer, wait_until
from tests.support.raw_http import kv

pytestmark = pytest.mark.slow


@pytest.mark.long
async def test_a_restart_of_the_whole_cluster_keeps_everything(make_cluster: MakeCluster) -> None:
    cluster: Cluster = make_cluster(replicas=2, witnesses=1)
    await cluster.start()
    async with Writer(cluster) as writer:
        await writer.progress(200)
    before = await cluster.wait_converged()
    first = await cluster.status("n1")
    codes = await cluster.stop()
    assert codes == {"n1": 0, "n2": 0, "w1": 0}
    await cluster.start()
    after = await cluster.wait_converged()
    assert after.digest == before.digest
    await writer.verify()
    again = await cluster.status("n1")
    assert first is not None
    assert again is not None
    assert again.epoch > first.epoch
    async with Writer(cluster, name="later") as later:
        await later.progress(50)
    await cluster.wait_converged()
    await later.verify()


async def test_sigterm_under_load_ends_a_node_soon_with_code_0_and_all_its_data(
    make_cluster: MakeCluster,
) -> None:
    cluster: Cluster = make_cluster()
    await cluster.start()
    async with Writer(cluster) as writer:
        for _ in range(2):
            primary = (await cluster.wait_in_sync(*cluster.replicas)).primary
            await writer.progress(30)
            victim = cluster.others(primary)[0]
            assert await cluster.nodes[victim].terminate() == 0
            await writer.progress(30)
            await cluster.start(victim)
    assert not list(writer.unserved())
    await cluster.wait_converged()
    await writer.verify()


@pytest.mark.long
async def test_a_primary_that_is_stopped_hands_over_first(make_cluster: MakeCluster) -> None:
    """No idempotent request fails, and the pause is a handover's, not a failover's."""
    cluster: Cluster = make_cluster()
    await cluster.start()
    async with Writer(cluster) as writer:
        for _ in range(3):
            old = (await cluster.wait_in_sync(*cluster.replicas)).primary
            await writer.progress(30)
            assert await cluster.nodes[old].terminate() == 0
            assert "handed over to" in cluster.nodes[old].log()
            assert await cluster.primary() != old
            await writer.progress(30)
            await cluster.start(old)
    assert not list(writer.unserved())
    await cluster.wait_converged()
    await writer.verify()


@pytest.mark.long
async def test_plain_requests_through_the_others_survive_the_stop_of_the_primary(
    make_cluster: MakeCluster,
) -> None:
    """Sent once, without a key: those that the primary has not answered are passed on."""
    cluster: Cluster = make_cluster()
    await cluster.start()
    primary = await cluster.primary()
    via = cluster.others(primary)
    replies: list[int] = []
    stop = asyncio.Event()

    async def load(task: int) -> None:
        count = 0
        while not stop.is_set():
            reply = await cluster.fetch(via[task % 2], "PUT", kv(f"{task}/{count}"), b"x")
            replies.append(reply.status)
            count += 1

    tasks = [asyncio.create_task(load(task)) for task in range(4)]
    try:
        await wait_until(lambda: len(replies) > 50, "the load runs")
        assert await cluster.nodes[primary].terminate() == 0
        seen = len(replies)
        await wait_until(lambda: len(replies) > seen + 50, "the load goes on")
    finally:
        stop.set()
        await asyncio.gather(*tasks)
    assert set(replies) == {201}


async def test_a_node_stopped_while_it_waits_for_others_ends_at_once(
    make_cluster: MakeCluster,
) -> None:
    cluster: Cluster = make_cluster()
    cluster.launch("n1")
    await wait_until(lambda: "waiting for" in cluster.nodes["n1"].log(), "n1 waits")
    assert await cluster.nodes["n1"].terminate() == 0
    await cluster.start()
    await cluster.kill("n2", "n3")
    assert await cluster.nodes["n1"].terminate() == 0
