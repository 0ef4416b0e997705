"""Locks whose holders stand still for longer than their TTL, and primaries that are killed."""

from __future__ import annotations

import asyncio
import random
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

from datapath.clock import clock_s
from tests.nodes.conftest import MakeCluster
from tests.nodes.locked_counter import KEY, TTL_S
from tests.support.cluster import Cluster, wait_until

pytestmark = pytest.mark.slow

PAUSE_S = 2 * TTL_S
SEED = 20261127


class Worker(NamedTuple):
    """A process that increments the number; what it says goes to `log`."""

    process: asyncio.subprocess.Process
    log: Path

    def words(self) -> Counter[str]:
        return Counter(self.log.read_text().split())


async def start_worker(cluster: Cluster, mode: str, log: Path) -> Worker:
    endpoints = [cluster.url(node) for node in ("n1", "n2", "n3")]
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.nodes.locked_counter", mode, *endpoints, stdout=output
        )
    return Worker(process, log)


async def torture(cluster: Cluster, mode: str, logs: Path, duration_s: float) -> tuple[int, int]:
    """Stop holders, kill primaries; return (updates that were lost at least, updates done)."""
    chance = random.Random(SEED)
    workers = [
        await start_worker(cluster, mode, logs / f"{mode}{number}.log") for number in range(8)
    ]
    loop = asyncio.get_running_loop()
    until_s = loop.time() + duration_s
    kill_at_s = loop.time() + duration_s / 3
    try:
        while loop.time() < until_s:
            stopped = chance.sample(workers, 3)
            for worker in stopped:
                worker.process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(PAUSE_S)
            for worker in stopped:
                worker.process.send_signal(signal.SIGCONT)
            if loop.time() >= kill_at_s:
                kill_at_s += duration_s / 2
                primary = await cluster.primary()
                await cluster.kill(primary)
                await cluster.primary(besides=primary)
                cluster.launch(primary)
            await asyncio.sleep(0.2 + chance.random() / 2)
    finally:
        for worker in workers:
            worker.process.kill()
            await worker.process.wait()
    words = sum((worker.words() for worker in workers), Counter[str]())
    async with cluster.client() as client:
        found = await client.get(KEY)
    number = 0 if found is None else int(found.value)
    in_flight = len(workers)  # what was under way when they were killed
    print(f"{mode}: the number is {number}; {dict(words)}")
    assert number <= words["done"] + words["unknown"] + in_flight
    return max(0, words["done"] - number), words["done"]


@pytest.mark.parametrize(
    "duration_s",
    [5.0, pytest.param(600.0, marks=[pytest.mark.long, pytest.mark.timeout(900)])],
)
async def test_no_update_is_lost_under_a_lock(
    make_cluster: MakeCluster, tmp_path: Path, duration_s: float
) -> None:
    """K3; the holders stand still for twice their TTL."""
    cluster = make_cluster()
    await cluster.start()
    lost, done = await torture(cluster, "if_lock", tmp_path, duration_s)
    assert lost == 0
    assert done > 0


@pytest.mark.long
async def test_time_alone_loses_updates(make_cluster: MakeCluster, tmp_path: Path) -> None:
    """What the same does without If-Lock: why there is one."""
    cluster = make_cluster()
    await cluster.start()
    lost, _ = await torture(cluster, "time", tmp_path, 60)
    assert lost > 0


async def test_a_change_of_primary_ends_no_lease_and_loses_no_place(
    make_cluster: MakeCluster,
) -> None:
    """L1: every TTL starts anew. One that waits keeps its place, and gets the lock."""
    cluster = make_cluster()
    await cluster.start()
    primary = await cluster.primary()
    async with cluster.client() as client:
        await client.put("mine", "x")
        headers = {"Content-Type": "application/json"}
        granted = await cluster.fetch(primary, "POST", "/v1/leases", b'{"ttl_ms": 4000}', headers)
        await client.put("hangs", "x", lease=granted.json["lease"])
        holder = client.lock("jobs", ttl=20)
        await holder.acquire()
        waiter = asyncio.create_task(client.lock("jobs", ttl=20).acquire())
        await asyncio.sleep(2)  # half of the TTL has gone when the primary dies
        killed_s = clock_s()  # before another takes over, which begins the TTL anew
        await cluster.kill(primary)

        async def is_gone() -> bool:
            return await client.get("hangs") is None

        await wait_until(is_gone, "it ends")
        assert clock_s() - killed_s >= 4
        first = holder.token
        await holder.release()
        assert await asyncio.wait_for(waiter, 20) > first
