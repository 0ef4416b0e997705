"""A primary that dies, by kill -9, under load."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.nodes.conftest import MakeCluster
from tests.support.cluster import SLOW_TO_SUSPECT, UNSUSPECTING, Writer, wait_until
from tests.support.raw_http import kv

pytestmark = pytest.mark.slow

KILLS = 3


@pytest.mark.long
async def test_nothing_acknowledged_is_lost_when_the_primary_is_killed_again_and_again(
    make_cluster: MakeCluster,
) -> None:
    cluster = make_cluster(timing=SLOW_TO_SUSPECT)
    await cluster.start()
    epochs, gaps = [], []
    async with Writer(cluster) as writer:
        for _ in range(KILLS):
            await writer.progress(50)
            status = await cluster.wait_in_sync()
            epochs.append(status.epoch)
            old = status.primary
            killed_at = time.monotonic()
            await cluster.kill(old)
            new = await cluster.primary(besides=old)
            await writer.progress(20)
            gaps.append(writer.longest_gap_s(killed_at))
            cluster.launch(old)
            status = await cluster.wait_in_sync(*cluster.replicas)
            assert status.primary == new, "who comes back comes back as a backup"
            assert status.nodes[old].state == "backup"
    epochs.append(status.epoch)
    assert epochs == sorted(set(epochs)), "every change of primary raises the epoch"
    await cluster.wait_converged()
    await writer.verify()
    assert not writer.refused
    print("longest gaps without an acknowledged write, ms:", [round(gap * 1000) for gap in gaps])


async def test_every_node_reads_and_writes_the_one_copy(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(timing=UNSUSPECTING)
    await cluster.start()
    primary = await cluster.primary()
    for node in cluster.replicas:
        reply = await cluster.fetch(node, "PUT", kv("greeting"), node.encode())
        assert reply.status in {200, 201}
        assert reply.json["copies"] == 3
        for reader in cluster.replicas:
            seen = await cluster.fetch(reader, "GET", kv("greeting"))
            assert (seen.status, seen.body) == (200, node.encode())
            assert seen.headers["etag"] == reply.headers["etag"]
            assert seen.headers["onecopy-node"] == reader
    for node in cluster.others(primary):
        assert await cluster.metric(node, "forwarded_total") > 0, "a backup forwards writes"


async def test_a_write_through_a_backup_while_the_primary_is_killed_ends_truthfully(
    make_cluster: MakeCluster,
) -> None:
    """Without an idempotency key, so that the backup may not simply try again."""
    cluster = make_cluster()
    await cluster.start()
    primary = await cluster.primary()
    via = cluster.others(primary)[0]
    outcomes: dict[str, tuple[int, str]] = {}
    stop = asyncio.Event()

    async def write(task: int) -> None:
        count = 0
        while not stop.is_set():
            key = f"raw/{task}/{count}"
            count += 1
            reply = await cluster.fetch(via, "PUT", kv(key), key.encode())
            outcomes[key] = (reply.status, reply.json.get("outcome", ""))

    tasks = [asyncio.create_task(write(task)) for task in range(4)]
    try:
        await wait_until(lambda: len(outcomes) > 50, "writes flow")
        await cluster.kill(primary)
        await cluster.primary(besides=primary)
        after = len(outcomes)
        await wait_until(lambda: len(outcomes) > after + 20, "writes flow again")
    finally:
        stop.set()
        await asyncio.gather(*tasks)
    cluster.launch(primary)
    await cluster.wait_converged()
    for key, (status, outcome) in outcomes.items():
        seen = await cluster.fetch(via, "GET", kv(key))
        if status in {200, 201}:
            assert seen.body == key.encode(), f"{key} was acknowledged"
        else:
            assert outcome in {"not_applied", "unknown"}, f"{key} failed without an outcome"
            if outcome == "not_applied":
                assert seen.status == 404, f"{key} was called not applied"
    unknown = [key for key, (_, outcome) in outcomes.items() if outcome == "unknown"]
    assert len(unknown) <= 4, "only what was under way at that moment may be unknown"
