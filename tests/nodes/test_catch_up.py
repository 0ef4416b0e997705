"""Replicas that were away, for a while or for good, and come back while writes go on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from datapath.node.engine import SLOWED_TURN_S
from tests.nodes.conftest import MakeCluster
from tests.support.cluster import ROOT, SLOW_TO_SUSPECT, Cluster, Writer, wait_until
from tests.support.damage import segments

pytestmark = pytest.mark.slow

SMALL_LOG = {
    "max_value_size_bytes": 8192,
    "log_segment_size_bytes": 131_072,
    "log_retention_bytes": 131_072,
}
JSON = {"Content-Type": "application/json"}


async def onecopy(*arguments: str) -> tuple[int, str]:
    """Run the command line; return exit code and all that it printed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "cluster.cli.main", *arguments),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


def readers(cluster: Cluster, node: str) -> list[int]:
    """The processes that read snapshots for a node."""
    own = cluster.nodes[node].pid
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = process.joinpath("stat").read_text().rsplit(")", 1)[1].split()[1]
            command = process.joinpath("cmdline").read_bytes()
            if int(parent) == own and b"datapath.storage.snapshot_child" in command:
                found.append(int(process.name))
    return found


async def test_after_a_short_absence_the_log_is_replayed(make_cluster: MakeCluster) -> None:
    cluster: Cluster = make_cluster(timing=SLOW_TO_SUSPECT)
    await cluster.start()
    primary = await cluster.primary()
    victim = cluster.others(primary)[0]
    async with Writer(cluster) as writer:
        await writer.progress(50)
        await cluster.kill(victim)
        await writer.progress(200)
        await cluster.start(victim)
        await writer.progress(20)
        assert await cluster.metric(victim, "snapshots_received_total") == 0
    assert not list(writer.unserved())
    await cluster.wait_converged()
    await writer.verify()


async def test_after_a_long_absence_a_snapshot_is_sent(make_cluster: MakeCluster) -> None:
    cluster: Cluster = make_cluster(limits=SMALL_LOG, timing=SLOW_TO_SUSPECT)
    await cluster.start()
    primary = await cluster.primary()
    victim = cluster.others(primary)[0]
    async with Writer(cluster, size_bytes=8000, pause_s=0) as writer:
        await writer.progress(50)
        await cluster.kill(victim)
        last_held = await cluster.metric(primary, "last_index")  # at most, at the victim

        async def trimmed() -> bool:
            writer.check_healthy()
            return await cluster.metric(primary, "log_first_index") > last_held + 1

        await wait_until(trimmed, f"{primary} keeps no log that far back")
        await cluster.start(victim)
        await writer.progress(20)
        assert await cluster.metric(victim, "snapshots_received_total") >= 1
        assert await cluster.metric(primary, "snapshots_sent_total") >= 1
    assert not list(writer.unserved())
    await cluster.wait_converged()
    await writer.verify()
    # What came by snapshot is as good as any: it survives a restart and a change of primary.
    await cluster.kill(*cluster.replicas)
    await cluster.start()
    await cluster.wait_converged()
    await writer.verify()


@pytest.mark.long
async def test_a_snapshot_that_is_broken_off_is_sent_again(make_cluster: MakeCluster) -> None:
    """The process that reads it is killed, then the receiver, then the sender."""
    slow = {**SMALL_LOG, "snapshot_rate_bytes_per_s": 1_000_000}
    cluster: Cluster = make_cluster(limits=slow)
    await cluster.start()
    primary = await cluster.primary()
    victim = cluster.others(primary)[0]
    await cluster.kill(victim)
    async with Writer(cluster, size_bytes=8000, tasks=8, pause_s=0) as writer:

        async def enough() -> bool:
            writer.check_healthy()
            return await cluster.metric(primary, "log_first_index") > 1 and (
                len(writer.acknowledged) > 400
            )

        await wait_until(enough, "more data than log")
    cluster.launch(victim)
    await wait_until(lambda: bool(readers(cluster, primary)), f"{primary} reads a snapshot")
    for reader in readers(cluster, primary):
        os.kill(reader, signal.SIGKILL)
    await wait_until(
        lambda: f"the snapshot for {victim} failed" in cluster.nodes[primary].log(),
        f"{primary} has noticed",
    )
    for restarted in (victim, primary):
        if not cluster.nodes[victim].running:
            cluster.launch(victim)
        sender = await cluster.primary()
        await wait_until(
            lambda: "receiving a snapshot" in cluster.nodes[victim].log(),
            f"{victim} receives a snapshot from {sender}",
        )
        await cluster.kill(restarted)
        cluster.launch(restarted)
    await cluster.wait_converged()
    await writer.verify()


@pytest.mark.long
async def test_writes_are_slowed_while_too_much_log_is_held_for_a_snapshot_under_way(
    make_cluster: MakeCluster,
) -> None:
    """The receiver stands still: the log after its snapshot grows to the bound, and it is told."""
    bound = 16 * SMALL_LOG["log_segment_size_bytes"]
    limits = {**SMALL_LOG, "snapshot_log_bytes": bound, "snapshot_rate_bytes_per_s": 200_000}
    cluster: Cluster = make_cluster(limits=limits, timing=SLOW_TO_SUSPECT)
    await cluster.start()
    primary = await cluster.primary()
    victim, other = cluster.others(primary)
    last_held = await cluster.metric(victim, "last_index")
    await cluster.kill(victim)
    async with Writer(cluster, name="before", size_bytes=8000, tasks=8, pause_s=0) as before:

        async def enough() -> bool:
            before.check_healthy()
            trimmed = await cluster.metric(primary, "log_first_index") > last_held + 1
            return trimmed and len(before.acknowledged) > 400

        await wait_until(enough, "more data than log")
    cluster.launch(victim)
    await wait_until(
        lambda: "receiving a snapshot" in cluster.nodes[victim].log(), f"{victim} receives"
    )
    cluster.nodes[victim].pause()

    async def slowed(expected: float) -> bool:
        writer.check_healthy()
        return await cluster.metric(primary, "writes_slowed") == expected

    async with Writer(cluster, primary, other, size_bytes=4000, pause_s=0) as writer:
        await wait_until(lambda: slowed(1.0), f"{primary} slows its writers down")
        assert await cluster.metric(primary, "snapshot_held_log_bytes") > bound
        assert "(limits.snapshot_log_bytes is 2 MiB)" in cluster.nodes[primary].log()
        status = await cluster.status(primary)
        assert status is not None
        assert status.nodes[victim].state == "snapshot"
        # A record is made each SLOWED_TURN_S at the most: a busy machine only makes it fewer.
        began_s, made = time.monotonic(), await cluster.metric(primary, "records_total")
        await writer.progress(20)
        made = await cluster.metric(primary, "records_total") - made
        assert made <= (time.monotonic() - began_s) / SLOWED_TURN_S + 2
        assert await slowed(1.0)

        cluster.nodes[victim].resume()
        await cluster.wait_in_sync()
        await wait_until(lambda: slowed(0.0), f"{primary} slows nobody down any more")
        assert await cluster.metric(primary, "snapshot_held_log_bytes") == 0
        assert await cluster.metric(primary, "snapshots_sent_total") == 1
        await writer.progress(50)
    assert not list(writer.unserved())
    await cluster.wait_converged()
    await before.verify()
    await writer.verify()


@pytest.mark.long
async def test_a_node_that_lost_its_disk_is_replaced_under_a_new_id(
    make_cluster: MakeCluster,
) -> None:
    cluster: Cluster = make_cluster()
    await cluster.start()
    async with Writer(cluster, "n1", "n3") as writer:
        await writer.progress(50)
        await cluster.kill("n2")
        shutil.rmtree(cluster.data("n2"))

        cluster.launch("n2")
        assert await cluster.nodes["n2"].wait_exit() == 78
        said = cluster.nodes["n2"].log()
        assert "`onecopy remove n2`" in said
        assert "new id" in said
        await writer.progress(20)

        endpoints = ",".join(cluster.url(node) for node in ("n1", "n3"))
        code, output = await onecopy("remove", "--yes", "--endpoints", endpoints, "n2")
        assert code == 0, output
        status = await cluster.status("n1")
        assert status is not None
        assert "n2" not in status.nodes

        cluster.replace_node("n2", "n4")
        await cluster.start("n4")
        await cluster.wait_in_sync("n1", "n3", "n4")
        await writer.progress(20)
    await cluster.wait_converged("n1", "n3", "n4")
    await writer.verify("n1", "n3", "n4")

    # The new node counts: with it and one other there is a majority, and it may be the primary.
    async with Writer(cluster, name="later") as later:
        await later.progress(20)
        await cluster.kill("n3")
        await later.progress(20)
        await cluster.start("n3")
        reply = await cluster.fetch("n4", "POST", "/v1/cluster/handover", b'{"to": "n4"}', JSON)
        assert reply.status == 200, reply
        await cluster.kill("n1")
        assert await cluster.primary() == "n4"
        await later.progress(20)
        await cluster.start("n1")
    await cluster.wait_converged("n1", "n3", "n4")
    await writer.verify("n1", "n3", "n4")
    await later.verify("n1", "n3", "n4")


@pytest.mark.long
async def test_all_keeps_working_while_segments_come_and_go(make_cluster: MakeCluster) -> None:
    cluster: Cluster = make_cluster(limits=SMALL_LOG)
    await cluster.start()
    async with Writer(cluster, size_bytes=8000, pause_s=0) as writer:

        async def rolled() -> bool:
            writer.check_healthy()
            firsts = [await cluster.metric(node, "log_first_index") for node in cluster.replicas]
            return min(firsts) > 200

        def keeps_few(node: str) -> bool:
            return len(segments(cluster.data(node))) < 10

        await wait_until(rolled, "every node has let go of its oldest segments")
        # How many come between two flushes depends on the writer's speed; each flush takes them.
        for node in cluster.replicas:
            await wait_until(partial(keeps_few, node), f"{node} keeps few segments")
    await cluster.wait_converged()
    await writer.verify()
