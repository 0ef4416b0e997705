"""A planned change of primary, asked of any node, under load: nobody notices but the clock."""

from __future__ import annotations

import asyncio
import itertools
import time

import pytest

from tests.nodes.conftest import MakeCluster
from tests.support.cluster import UNSUSPECTING, Cluster, Writer, problem_of, wait_until
from tests.support.raw_http import connect, kv

pytestmark = pytest.mark.slow

JSON = {"Content-Type": "application/json"}
TARGET = "/v1/cluster/handover"


async def reaches(answered: list[float], count: int) -> None:
    await wait_until(lambda: len(answered) > count, "the load goes on")


async def test_no_request_fails_while_the_role_is_handed_around(
    make_cluster: MakeCluster,
) -> None:
    """Plain requests, each sent once, without idempotency key and without a client's retries."""
    cluster: Cluster = make_cluster(timing=UNSUSPECTING)
    await cluster.start()
    failures: list[str] = []
    answered: list[float] = []
    written: dict[str, bytes] = {}
    stop = asyncio.Event()

    async def load(task: int) -> None:
        """Write and read back over one connection to one node."""
        async with connect(cluster.url(cluster.replicas[task % 3])) as connection:
            count = 0
            while not stop.is_set():
                key, value = f"load/{task}/{count % 50}", f"{count}".encode()
                count += 1
                connection.send_request("PUT", kv(key), value)
                reply = await connection.receive()
                if reply.status not in {200, 201}:
                    failures.append(f"PUT {key}: {reply}")
                answered.append(time.monotonic())
                connection.send_request("GET", kv(key))
                reply = await connection.receive()
                if reply.status != 200 or reply.body != value:
                    failures.append(f"GET {key}: {reply}, not {value!r}")
                written[key] = value

    tasks = [asyncio.create_task(load(task)) for task in range(6)]
    pauses: list[float] = []
    try:
        await wait_until(lambda: len(answered) > 100, "the load runs")
        for via in (0, 1, 2, 0, 1, 2):
            status = await cluster.wait_in_sync(*cluster.replicas)
            to = cluster.others(status.primary)[via % 2]
            start = time.monotonic()
            body = b'{"to": "%b"}' % to.encode()
            reply = await cluster.fetch(cluster.replicas[via], "POST", TARGET, body, JSON)
            assert reply.status == 200, reply
            assert reply.json["primary"] == to
            assert reply.json["epoch"] == status.epoch + 1
            assert await cluster.primary() == to
            seen = len(answered)
            await reaches(answered, seen + 50)
            times = [moment for moment in answered if moment > start - 0.1]
            pauses.append(max(b - a for a, b in itertools.pairwise(times)))
    finally:
        stop.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert not failures, failures[:5]
    assert not any(isinstance(result, BaseException) for result in results), results
    print("pauses of handovers, ms:", [round(pause * 1000) for pause in pauses])
    await cluster.wait_converged()
    for key, value in written.items():
        assert (await cluster.fetch("n1", "GET", kv(key))).body == value


async def test_who_cannot_take_the_role_is_refused_with_the_reason(
    make_cluster: MakeCluster,
) -> None:
    cluster: Cluster = make_cluster(replicas=2, witnesses=1)
    await cluster.start()
    primary = await cluster.primary()
    (backup,) = cluster.others(primary)
    before = await cluster.status(primary)
    assert before is not None

    async def refused(via: str, to: str) -> tuple[str, str]:
        body = b'{"to": "%b"}' % to.encode()
        reply = await cluster.fetch(via, "POST", f"{TARGET}?timeout_ms=2000", body, JSON)
        assert 400 <= reply.status < 600, reply
        problem = problem_of(reply)
        assert problem["outcome"] == "not_applied"
        return problem["code"], problem["detail"]

    for via in cluster.specs:
        code, detail = await refused(via, "n9")
        assert code == "unknown_node"
        assert "n1" in detail, "it says which nodes there are"
        code, detail = await refused(via, primary)
        assert "already the primary" in detail
        code, detail = await refused(via, "w1")
        assert "in-sync" in detail or "witness" in detail

    await cluster.kill(backup)
    await cluster.wait_in_sync(primary)
    code, detail = await refused("w1", backup)
    assert "in-sync" in detail
    status = await cluster.status(primary)
    assert status is not None
    assert (status.primary, status.epoch) == (primary, before.epoch), "nothing has changed"
    assert (await cluster.fetch(primary, "PUT", kv("a"), b"1")).status == 201


@pytest.mark.long
async def test_a_handover_to_a_node_that_dies_just_then_leaves_one_primary(
    make_cluster: MakeCluster,
) -> None:
    cluster: Cluster = make_cluster()
    await cluster.start()
    async with Writer(cluster) as writer:
        for _ in range(3):
            await writer.progress(20)
            status = await cluster.wait_in_sync(*cluster.replicas)
            to = cluster.others(status.primary)[0]
            body = b'{"to": "%b"}' % to.encode()
            request = asyncio.create_task(
                cluster.fetch(status.primary, "POST", f"{TARGET}?timeout_ms=2000", body, JSON)
            )
            await asyncio.sleep(0)
            cluster.nodes[to].pause()
            reply = await request
            assert reply.status == 200 or problem_of(reply)["outcome"] in {"not_applied", "unknown"}
            await cluster.kill(to)
            await cluster.primary()
            await writer.progress(20)
            await cluster.start(to)
    await cluster.wait_converged()
    await writer.verify()
    assert not writer.refused


@pytest.mark.long
async def test_a_handover_to_a_silent_node_is_given_up_when_that_is_let_go(
    make_cluster: MakeCluster,
) -> None:
    """It must not stop the service for as long as the request was told to wait."""
    cluster: Cluster = make_cluster()
    await cluster.start()
    primary = await cluster.primary()
    to, other = cluster.others(primary)
    async with Writer(cluster, primary, other, pause_s=0) as writer:
        await writer.progress(20)
        cluster.nodes[to].pause()
        body = b'{"to": "%b"}' % to.encode()
        paused_at = time.monotonic()
        request = asyncio.create_task(
            cluster.fetch(primary, "POST", f"{TARGET}?timeout_ms=30000", body, JSON)
        )
        await writer.progress(20)
        gap = writer.longest_gap_s(paused_at)
        reply = await request
        # If all was quiet just then it has the role, and another has taken it over meanwhile.
        assert reply.status == 200 or problem_of(reply)["outcome"] == "not_applied"
        cluster.nodes[to].resume()
        await cluster.wait_in_sync(*cluster.replicas)
    print(f"writes waited {gap * 1000:.0f} ms")
    assert gap < 15, "half of what the handover was told to wait, at most"
    assert not list(writer.unserved())
    await cluster.wait_converged()
    await writer.verify()
