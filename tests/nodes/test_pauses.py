"""Processes that stand still (SIGSTOP) and go on as if nothing had happened (SIGCONT)."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.nodes.conftest import MakeCluster
from tests.support.cluster import SLOW_TO_SUSPECT, Cluster, Writer, wait_until
from tests.support.raw_http import Connection, connect, kv

pytestmark = pytest.mark.slow

KEY = kv("counter")


class StaleReads:
    """Writes rising numbers at one node, and checks that reads of another never lag behind."""

    def __init__(self, cluster: Cluster, reader: str) -> None:
        self._cluster = cluster
        self._url = cluster.url(reader)
        self._reader = reader
        self.written = 0  # the newest acknowledged number
        self.fresh = self.refused = 0
        self.stop = asyncio.Event()

    async def write(self, node: str) -> None:
        body = str(self.written + 1).encode()
        reply = await self._cluster.fetch(node, "PUT", KEY, body)
        assert reply.status in {200, 201}, reply
        self.written += 1

    async def read_once(self) -> None:
        async with connect(self._url) as connection:
            await self._read(connection)

    async def hammer(self) -> None:
        async with connect(self._url) as connection:
            while not self.stop.is_set():
                await self._read(connection)

    async def _read(self, connection: Connection) -> None:
        least = self.written
        connection.send_request("GET", KEY)
        reply = await connection.receive()
        if reply.status == 200:
            assert int(reply.body) >= least, f"{self._reader}: {reply.body!r}, {least} was there"
            self.fresh += 1
        else:
            assert reply.status in {503, 504}, reply
            self.refused += 1


# What matters is that the others have taken over meanwhile: that is waited for besides.
@pytest.mark.parametrize("pause_s", [2.0, pytest.param(10.0, marks=pytest.mark.long)])
async def test_a_paused_primary_serves_nothing_stale_when_it_wakes(
    make_cluster: MakeCluster, pause_s: float
) -> None:
    cluster: Cluster = make_cluster()
    await cluster.start()
    old = await cluster.primary()
    reads = StaleReads(cluster, old)
    await reads.write(old)
    cluster.nodes[old].pause()
    paused_at = time.monotonic()
    # Some reads wait in the paused process' sockets all along, and saw no later write begin.
    tasks = [asyncio.create_task(reads.read_once()) for _ in range(20)]
    new = await cluster.primary(besides=old)
    while time.monotonic() < paused_at + pause_s or reads.written < 50:
        await reads.write(new)
    # Others came after those writes; and more come as fast as they are answered when it wakes.
    tasks += [asyncio.create_task(reads.read_once()) for _ in range(50)]
    tasks += [asyncio.create_task(reads.hammer()) for _ in range(4)]
    await reads.write(new)  # the readers have had their turns on the loop meanwhile
    cluster.nodes[old].resume()
    try:
        for _ in range(100):
            await reads.write(new)
        status = await cluster.wait_in_sync(*cluster.replicas)
    finally:
        reads.stop.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    assert reads.fresh, "once it is in touch with the new primary it serves reads again"
    assert status.primary == new
    assert status.nodes[old].state == "backup"
    await cluster.wait_converged()
    print(f"{reads.fresh} reads answered, {reads.refused} refused, none stale")


async def test_writes_asked_of_a_paused_primary_are_acknowledged_only_if_they_stand(
    make_cluster: MakeCluster,
) -> None:
    cluster: Cluster = make_cluster()
    await cluster.start()
    old = await cluster.primary()
    cluster.nodes[old].pause()

    async def write(number: int) -> tuple[str, int, str]:
        key = f"late/{number}"
        reply = await cluster.fetch(old, "PUT", kv(key), key.encode())
        return key, reply.status, reply.json.get("outcome", "")

    tasks = [asyncio.create_task(write(number)) for number in range(50)]
    new = await cluster.primary(besides=old)
    await cluster.fetch(new, "PUT", kv("between"), b"1")
    cluster.nodes[old].resume()
    outcomes = await asyncio.gather(*tasks)
    await cluster.wait_converged()
    for key, status, outcome in outcomes:
        seen = await cluster.fetch(new, "GET", kv(key))
        if status == 201:
            assert seen.body == key.encode()
        else:
            assert outcome in {"unknown", "not_applied"}
            assert seen.status == 404 or outcome == "unknown"


async def test_service_goes_on_when_a_backup_stands_still(make_cluster: MakeCluster) -> None:
    cluster: Cluster = make_cluster(timing=SLOW_TO_SUSPECT)
    await cluster.start()
    primary = await cluster.primary()
    victim, other = cluster.others(primary)
    async with Writer(cluster, primary, other) as writer:
        await writer.progress(30)
        paused_at = time.monotonic()
        cluster.nodes[victim].pause()
        await cluster.wait_in_sync(primary, other)
        await writer.progress(50)
        gap = writer.longest_gap_s(paused_at)
        cluster.nodes[victim].resume()
        status = await cluster.wait_in_sync(*cluster.replicas)
    assert status.primary == primary
    assert not list(writer.unserved())
    print(f"writes waited {gap * 1000:.0f} ms for the paused backup to be let go")
    await cluster.wait_converged()
    await writer.verify()


@pytest.mark.long
async def test_service_goes_on_when_the_witness_stands_still(make_cluster: MakeCluster) -> None:
    cluster: Cluster = make_cluster(replicas=2, witnesses=1, timing=SLOW_TO_SUSPECT)
    await cluster.start()
    async with Writer(cluster, "n1", "n2") as writer:
        await writer.progress(30)
        cluster.nodes["w1"].pause()
        await writer.progress(100)
        cluster.nodes["w1"].resume()
        await writer.progress(30)

        async def witness_is_back() -> bool:
            status = await cluster.status("w1")
            return status is not None and len(status.in_sync) == 2

        await wait_until(witness_is_back, "the witness answers again")
    assert not list(writer.unserved())
    await cluster.wait_converged("n1", "n2")
    await writer.verify()
