"""Power cuts and bad disks: all nodes die at once, and logs come back torn, flipped, or longer."""

from __future__ import annotations

from pathlib import Path

import pytest

from datapath.records import HEADER_SIZE_BYTES
from datapath.storage.store import Store
from tests.nodes.conftest import MakeCluster
from tests.support.cluster import Cluster, Writer, problem_of, wait_until
from tests.support.damage import (
    Frame,
    append_garbage,
    append_zero_length_noise,
    cut_tail,
    flip_byte,
    flip_tail,
    frames,
    segments,
)
from tests.support.raw_http import kv

pytestmark = pytest.mark.slow


def unflushed(directory: Path) -> list[Frame]:
    """Return the records that the store does not hold and that a sync mark follows, in order."""
    cluster_id = (directory / "identity.json").read_text().split('"cluster": "')[1].split('"')[0]
    store = Store.open(directory / "store", cluster_id=cluster_id, map_size_bytes=1 << 30)
    try:
        durable = store.durable_index
    finally:
        store.close()
    found: list[Frame] = []
    pending: list[Frame] = []
    for path in segments(directory):
        for frame in frames(path):
            if frame.first_index:
                pending.append(frame)
            else:
                found += pending
                pending = []
    return [frame for frame in found if frame.first_index > durable]


async def kill_with_unflushed(cluster: Cluster, victim: str, *nodes: str) -> Frame:
    """Kill nodes while `victim` has records that are in its log and not in its store; name one.

    The writer goes on. A flush may come just before the kill: then it is tried again.
    """
    for _ in range(10):

        async def behind() -> bool:
            last = await cluster.metric(victim, "durable_index")
            return last - await cluster.metric(victim, "store_durable_index") > 20

        await wait_until(behind, f"{victim} has records that are not in its store")
        await cluster.kill(*nodes)
        found = unflushed(cluster.data(victim))
        if len(found) > 2:
            return found[len(found) // 2]
        await cluster.start(*nodes)
    raise AssertionError(f"the store of {victim} was never behind its log")


@pytest.mark.parametrize(
    "damage",
    [
        cut_tail,
        flip_tail,
        pytest.param(append_garbage, marks=pytest.mark.long),
        pytest.param(append_zero_length_noise, marks=pytest.mark.long),
    ],
)
async def test_a_torn_tail_on_the_primary_costs_nothing_that_was_acknowledged(
    make_cluster: MakeCluster, damage: object
) -> None:
    assert callable(damage)
    cluster: Cluster = make_cluster()
    await cluster.start()
    primary = await cluster.primary()
    async with Writer(cluster, timeout_ms=3000) as writer:
        await writer.progress(100)
        await cluster.kill(*cluster.replicas)
        damage(cluster.data(primary))
        await cluster.start()
    assert "torn tail" in cluster.nodes[primary].log()
    await cluster.wait_converged()
    await writer.verify()


@pytest.mark.long
async def test_torn_tails_on_all_nodes_at_once_cost_nothing_that_was_acknowledged(
    make_cluster: MakeCluster,
) -> None:
    """What a power cut does: the last write of each, never acknowledged, is there in part."""
    cluster: Cluster = make_cluster(replicas=2, witnesses=1)
    await cluster.start()
    for _ in range(2):
        async with Writer(cluster, name=f"w{_}", timeout_ms=3000) as writer:
            await writer.progress(100)
            await cluster.kill(*cluster.specs)
            for node in cluster.replicas:
                append_garbage(cluster.data(node))
            await cluster.start()
        await cluster.wait_converged()
        await writer.verify()


@pytest.mark.long
async def test_power_cuts_again_and_again_lose_nothing(make_cluster: MakeCluster) -> None:
    cluster: Cluster = make_cluster()
    await cluster.start()
    async with Writer(cluster, timeout_ms=5000) as writer:
        for _ in range(3):
            await writer.progress(50)
            await cluster.kill(*cluster.replicas)
            await cluster.start()
    await cluster.wait_converged()
    await writer.verify()


@pytest.mark.parametrize("role", [pytest.param("backup", marks=pytest.mark.long), "primary"])
async def test_damage_inside_acknowledged_records_is_named_and_repaired_from_the_others(
    make_cluster: MakeCluster, role: str
) -> None:
    cluster: Cluster = make_cluster()
    await cluster.start()
    primary = await cluster.primary()
    victim = primary if role == "primary" else cluster.others(primary)[0]
    async with Writer(cluster, timeout_ms=5000) as writer:
        await writer.progress(50)
        frame = await kill_with_unflushed(cluster, victim, *cluster.replicas)
        flip_byte(frame.path, frame.middle)
        await cluster.start()
    said = cluster.nodes[victim].log()
    assert f"{frame.path} is damaged at offset {frame.offset}" in said
    assert "fetched again from the primary" in said
    assert await cluster.primary() != victim, "who may lack something is not made primary"
    await cluster.wait_converged()
    await writer.verify()
    # Repaired for good: it serves alone with everything, and its next start finds nothing.
    await cluster.stop(victim)
    await cluster.start(victim)
    assert "damaged" not in cluster.nodes[victim].log()
    await cluster.wait_converged()
    await writer.verify(victim)


async def test_damage_that_nobody_can_repair_is_refused_with_an_instruction(
    make_cluster: MakeCluster,
) -> None:
    """The only replica in the in-sync set: what it lacks, nobody is known to have."""
    cluster: Cluster = make_cluster(replicas=2, witnesses=1)
    await cluster.start()
    primary = await cluster.primary()
    (backup,) = cluster.others(primary)
    await cluster.kill(backup)
    await cluster.wait_in_sync(primary)
    async with Writer(cluster, timeout_ms=1000) as writer:
        await writer.progress(50)
        frame = await kill_with_unflushed(cluster, primary, primary)
    flip_byte(frame.path, frame.middle)

    cluster.launch(primary, backup)
    assert await cluster.nodes[primary].wait_exit() == 78
    said = cluster.nodes[primary].log()
    assert f"{frame.path} is damaged at offset {frame.offset}" in said
    assert "Bring back the newest files" in said, "it says what to do"
    reply = await cluster.fetch(backup, "GET", f"{kv('w/0/00000000')}?timeout_ms=1000")
    assert (reply.status, problem_of(reply)["code"]) == (503, "no_primary")


@pytest.mark.long
async def test_damage_in_what_the_store_already_holds_is_named_and_forgiven(
    make_cluster: MakeCluster,
) -> None:
    cluster: Cluster = make_cluster(limits={"overlay_flush_bytes": 1024})
    await cluster.start()
    primary = await cluster.primary()
    async with Writer(cluster) as writer:
        await writer.progress(100)

    async def flushed() -> bool:
        durable = await cluster.metric(primary, "store_durable_index")
        return durable == await cluster.metric(primary, "last_index")

    await wait_until(flushed, "the store holds all")
    await cluster.kill(*cluster.replicas)
    path = segments(cluster.data(primary))[0]
    records = [frame for frame in frames(path) if frame.first_index]
    flip_byte(path, records[len(records) // 2].offset + HEADER_SIZE_BYTES)
    await cluster.start()
    assert f"{path} is damaged at offset" in cluster.nodes[primary].log()
    await cluster.wait_converged()
    await writer.verify()


async def test_a_byte_that_goes_bad_under_a_running_primary_is_never_sent(
    make_cluster: MakeCluster,
) -> None:
    """A backup that was away needs the log: the primary meets the damage as it reads it."""
    cluster: Cluster = make_cluster(limits={"max_value_size_bytes": 65536})
    await cluster.start()
    primary = await cluster.primary()
    victim = cluster.others(primary)[0]
    await cluster.kill(victim)
    async with Writer(cluster, size_bytes=60_000, tasks=8, pause_s=0) as writer:
        # More than what is kept in memory for backups that are a little behind.
        await wait_until(lambda: len(writer.acknowledged) > 350, "some twenty megabytes")
    records = [frame for frame in frames(segments(cluster.data(primary))[0]) if frame.first_index]
    frame = records[len(records) // 4]
    flip_byte(frame.path, frame.middle)
    cluster.launch(victim)
    await wait_until(
        lambda: f"{frame.path} is damaged at offset {frame.offset}" in log_of(cluster, primary),
        f"{primary} names the damage",
    )

    async def ended_or_went_on() -> bool:
        status = await cluster.status(primary)
        all_in_sync = status is not None and len(status.in_sync) == 3
        return all_in_sync or not cluster.nodes[primary].running

    await wait_until(ended_or_went_on, f"{primary} ends, or sends a snapshot instead")
    if not cluster.nodes[primary].running:
        cluster.launch(primary)
    await cluster.wait_converged(*cluster.replicas)
    await writer.verify()


def log_of(cluster: Cluster, node: str) -> str:
    return cluster.nodes[node].log()
