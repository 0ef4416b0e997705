"""Processes killed and stopped in pairs and loops, loops that stand still, no descriptors."""

from __future__ import annotations

import asyncio
import random
import time
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest

from tests.nodes.attacked import attacked
from tests.nodes.conftest import MakeCluster
from tests.nodes.control import first_free_file, limit_files
from tests.support.cluster import UNSUSPECTING, Cluster, wait_until
from tests.support.raw_http import kv

pytestmark = [pytest.mark.slow, pytest.mark.fault]


@pytest.mark.long
async def test_the_primary_and_the_next_one_are_killed_at_once(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    """The majority is gone: nothing is acknowledged until one is back, and nothing is lost."""
    async with attacked(make_cluster(), tmp_path) as attack:
        cluster, writer = attack.cluster, attack.writer
        for _ in range(2):
            await cluster.wait_in_sync(*cluster.replicas)
            primary = await cluster.primary()
            heir, third = cluster.others(primary)  # in the order in which they propose themselves
            await cluster.kill(primary, heir)
            killed_at = time.monotonic()
            reply = await cluster.fetch(third, "PUT", f"{kv('alone')}?timeout_ms=700", b"x")
            assert reply.status == 503, "one of three can agree on nothing"
            asked = [ack for ack in writer.acknowledged.values() if ack.asked_s > killed_at]
            assert not asked
            await attack.restart(primary, heir)
            await writer.progress(20)


@pytest.mark.long
async def test_a_node_is_killed_again_while_it_comes_back(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    async with attacked(make_cluster(), tmp_path) as attack:
        cluster, chance = attack.cluster, random.Random(1)
        for node in (await cluster.primary(), cluster.replicas[-1]):
            for _ in range(4):
                await cluster.kill(node)
                cluster.launch(node)
                await asyncio.sleep(chance.uniform(0.1, 1.2))  # somewhere in its start
            await attack.writer.progress(20)
            await cluster.kill(node)
            await attack.restart(node)


@pytest.mark.long
async def test_power_is_cut_twice_within_a_second(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    async with attacked(make_cluster(replicas=2, witnesses=1), tmp_path) as attack:
        cluster = attack.cluster
        await cluster.kill(*cluster.specs)
        cluster.launch()
        await asyncio.sleep(0.8)  # in the middle of its start
        await cluster.kill(*cluster.specs)
        await attack.restart(*cluster.specs)
        await attack.writer.progress(20)


@pytest.mark.long
async def test_two_of_three_stand_still_and_wake_one_after_the_other(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    async with attacked(make_cluster(), tmp_path) as attack:
        cluster = attack.cluster
        primary = await cluster.primary()
        heir, third = cluster.others(primary)
        for pair in ((primary, heir), (heir, third)):
            for node in pair:
                cluster.nodes[node].pause()
            await asyncio.sleep(1.5)  # well beyond leases and grace periods
            cluster.nodes[pair[1]].resume()
            # Two of three run: whoever is in sync of them serves, but for a primary that sleeps.
            await attack.writer.progress(20)
            cluster.nodes[pair[0]].resume()
            await cluster.wait_in_sync(*cluster.replicas)


@pytest.mark.long
async def test_a_primary_that_flickers_serves_nothing_stale(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    """Stopped and going by turns, each time for about as long as a lease."""
    async with attacked(make_cluster(), tmp_path) as attack:
        cluster, chance = attack.cluster, random.Random(2)
        for _ in range(20):
            primary = await cluster.primary()
            cluster.nodes[primary].pause()
            await asyncio.sleep(chance.uniform(0.05, 0.6))
            cluster.nodes[primary].resume()
            await asyncio.sleep(chance.uniform(0.02, 0.2))
        await cluster.wait_in_sync(*cluster.replicas)
        await attack.writer.progress(20)


def times_alone(cluster: Cluster, victim: str) -> int:
    """How often the others have been in sync without it. It may be for an instant: they log it."""
    others = cluster.others(victim)
    view = f" in sync {', '.join(others)}\n"
    return sum(cluster.nodes[node].log().count(view) for node in others)


async def wait_let_go(cluster: Cluster, victim: str, times: int) -> None:
    await wait_until(lambda: times_alone(cluster, victim) > times, f"{victim} is let go")


@pytest.mark.long
@pytest.mark.parametrize(
    "role",
    [
        "primary",
        pytest.param("backup", marks=pytest.mark.long),
        pytest.param("witness", marks=pytest.mark.long),
    ],
)
async def test_an_event_loop_that_stands_still_costs_no_more_than_its_node(
    make_cluster: MakeCluster, tmp_path: Path, role: str
) -> None:
    """The threads beside the loop go on, and so does its consensus: only the data path stops."""
    witness = role == "witness"
    cluster = make_cluster(replicas=3 - witness, witnesses=int(witness))
    async with attacked(cluster, tmp_path) as attack:
        primary = await cluster.primary()
        victim = {"primary": primary, "backup": cluster.others(primary)[0], "witness": "w1"}[role]
        for ms in (150, 600, 2500):
            before = times_alone(cluster, victim)
            attack.faults.stall(victim, ms)
            if role != "witness" and ms == 2500:
                await wait_let_go(cluster, victim, before)
            others = [node for node in cluster.specs if node != victim]
            await attack.load.progress(writes=10, reads=10, node=others[0])
            await cluster.wait_in_sync(*cluster.replicas)


@pytest.mark.long
@pytest.mark.parametrize("role", ["primary", "backup"])
async def test_a_node_without_descriptors_recovers_when_it_gets_some(
    make_cluster: MakeCluster, tmp_path: Path, role: str
) -> None:
    async with attacked(make_cluster(), tmp_path) as attack:
        cluster = attack.cluster
        primary = await cluster.primary()
        victim = primary if role == "primary" else cluster.others(primary)[0]
        process = cluster.nodes[victim]
        before = limit_files(process.pid, first_free_file(process.pid))
        started = time.monotonic()

        async def refuses() -> bool:
            # What was just closed leaves a place free: that is taken away, too.
            limit_files(process.pid, first_free_file(process.pid))
            return await cluster.try_fetch(victim, "/livez") is None

        await wait_until(refuses, f"{victim} can take no more connections")
        other = cluster.others(victim)[0]
        await attack.load.progress(writes=20, reads=20, node=other)
        await wait_until(lambda: time.monotonic() > started + 2, "a while")
        if process.running:
            limit_files(process.pid, before)

        async def answers() -> bool:
            return not process.running or await cluster.try_fetch(victim, "/livez") is not None

        await wait_until(answers, f"{victim} takes connections again")
        if not process.running:  # it could not open a file that it must have: told, and restarted
            assert process.exit_code == 1
            assert "Too many open files" in process.log()
            await attack.restart(victim)


@pytest.mark.long
async def test_wall_clocks_that_jump_change_nothing(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    cluster = make_cluster(timing=UNSUSPECTING)
    async with attacked(cluster, tmp_path) as attack:
        before = await cluster.wait_in_sync(*cluster.replicas)
        started = time.monotonic_ns()
        for offset_s in (3600, -86_400, 365 * 86_400, 0.5, -0.5, 0):
            for node in cluster.replicas:
                attack.faults.set(node, wall_offset_s=offset_s)
                await attack.load.progress(writes=3, reads=3)
            reply = await cluster.fetch(node, "GET", "/livez")
            assert jump_of(reply.headers["date"]) == pytest.approx(offset_s, abs=5), "it took"
        after = await cluster.wait_in_sync(*cluster.replicas)
        assert after.version == before.version, "nobody was suspected, nothing was agreed anew"
        gap_ms = attack.load.availability.longest_gap_ms("read", started, time.monotonic_ns())
        print(f"longest time without a read {gap_ms:.0f} ms")


def jump_of(date: str) -> float:
    """Return how far the clock that wrote an HTTP date is ahead, in seconds."""

    return parsedate_to_datetime(date).timestamp() - time.time()
