"""Two replicas and a witness: any one may fail; who lags behind never becomes the primary."""

from __future__ import annotations

import asyncio
import re

import pytest

from tests.nodes.conftest import MakeCluster
from tests.support.cluster import SLOW_TO_SUSPECT, Cluster, Writer, problem_of, wait_until
from tests.support.raw_http import kv

pytestmark = pytest.mark.slow


async def start(make_cluster: MakeCluster) -> tuple[Cluster, str, str]:
    """Start two replicas and a witness; return the primary and the backup as well."""
    cluster: Cluster = make_cluster(replicas=2, witnesses=1, timing=SLOW_TO_SUSPECT)
    await cluster.start()
    primary = await cluster.primary()
    (backup,) = cluster.others(primary)
    return cluster, primary, backup


@pytest.mark.long
async def test_each_of_the_three_may_be_killed_alone(make_cluster: MakeCluster) -> None:
    cluster, primary, backup = await start(make_cluster)
    async with Writer(cluster) as writer:
        for victim in ("w1", backup, primary):
            await writer.progress(30)
            await cluster.kill(victim)
            await writer.progress(30)
            await cluster.start(victim)
        await writer.progress(30)
    await cluster.wait_converged("n1", "n2")
    await writer.verify()
    assert not writer.refused


async def test_a_replica_that_lags_behind_is_never_made_primary(make_cluster: MakeCluster) -> None:
    cluster, primary, backup = await start(make_cluster)
    await cluster.fetch(primary, "PUT", kv("early"), b"1")
    await cluster.wait_converged()
    await cluster.kill(backup)
    await cluster.wait_in_sync(primary)
    async with Writer(cluster, primary) as writer:
        await writer.progress(50)
    await cluster.kill(primary)

    cluster.launch(backup)

    async def knows_the_view() -> bool:
        status = await cluster.status(backup)
        return status is not None and status.in_sync == (primary,)

    await wait_until(knows_the_view, f"{backup} learns that it is not in sync")
    for method, body in (("PUT", b"x"), ("GET", None)):
        reply = await cluster.fetch(backup, method, f"{kv('early')}?timeout_ms=1500", body)
        problem = problem_of(reply)
        assert reply.status == 503
        assert problem["code"] == "no_primary"
        assert primary in problem["detail"]
        assert "in-sync set" in problem["detail"]
        if method == "PUT":
            assert problem["outcome"] == "not_applied"
    stale = await cluster.fetch(backup, "GET", f"{kv('early')}?consistency=stale")
    assert stale.body == b"1", "an old state is there for those who ask for it"
    assert (await cluster.fetch(backup, "GET", "/readyz")).status == 503
    assert (await cluster.fetch(backup, "GET", "/livez")).status == 200
    status = await cluster.status(backup)
    assert status is not None
    assert (status.primary, status.in_sync) == (primary, (primary,))

    await cluster.start(primary)
    await cluster.wait_converged(primary, backup)
    await writer.verify()


@pytest.mark.long
async def test_a_primary_left_alone_in_the_in_sync_set_goes_on_serving(
    make_cluster: MakeCluster,
) -> None:
    """First the backup dies, and is let go while the witness can agree; then the witness dies."""
    cluster, primary, backup = await start(make_cluster)
    async with Writer(cluster, primary) as writer:
        await writer.progress(30)
        await cluster.kill(backup)
        await cluster.wait_in_sync(primary)
        await cluster.kill("w1")
        await writer.progress(100)
        assert (await cluster.fetch(primary, "GET", "/readyz")).status == 200
        assert (await cluster.fetch(primary, "GET", "/primary")).status == 200
        await cluster.start(backup, "w1")
    assert not list(writer.unserved())
    await cluster.wait_converged(primary, backup)
    await writer.verify()


async def test_a_backup_left_alone_refuses_and_says_why(make_cluster: MakeCluster) -> None:
    cluster, primary, backup = await start(make_cluster)
    await cluster.fetch(primary, "PUT", kv("early"), b"1")
    await cluster.kill("w1")
    await cluster.kill(primary)
    for method, body in (("PUT", b"x"), ("GET", None)):
        reply = await cluster.fetch(backup, method, f"{kv('early')}?timeout_ms=1500", body)
        problem = problem_of(reply)
        assert reply.status == 503
        assert problem["code"] == "no_primary"
        assert "majority" in problem["detail"]
        assert reply.headers["retry-after"]
        if method == "PUT":
            assert problem["outcome"] == "not_applied"
    cluster.launch("w1")
    assert await cluster.primary() == backup, "with the witness there is a majority again"
    assert (await cluster.fetch(backup, "GET", kv("early"))).body == b"1"


@pytest.mark.long
async def test_a_primary_that_loses_both_at_once_stops_serving_and_says_why(
    make_cluster: MakeCluster,
) -> None:
    """The backup is still in the in-sync set, and without a majority nobody can let it go."""
    cluster, primary, backup = await start(make_cluster)
    await cluster.fetch(primary, "PUT", kv("early"), b"1")
    await cluster.kill(backup, "w1")
    for method, body in (("PUT", b"x"), ("GET", None)):
        reply = await cluster.fetch(primary, method, f"{kv('early')}?timeout_ms=1500", body)
        problem = problem_of(reply)
        assert reply.status in {503, 504}
        assert "majority" in problem["detail"]
        if method == "PUT":
            assert problem["outcome"] == "unknown" or problem["code"] == "no_primary"
    cluster.launch("w1")
    assert await cluster.primary() == primary
    seen = await cluster.fetch(primary, "GET", kv("early"))
    assert seen.body in {b"1", b"x"}


async def test_a_witness_forwards_every_request(make_cluster: MakeCluster) -> None:
    cluster, primary, _ = await start(make_cluster)
    assert (await cluster.fetch("w1", "PUT", kv("a"), b"1")).status == 201
    reply = await cluster.fetch("w1", "GET", kv("a"))
    assert (reply.status, reply.body) == (200, b"1")
    assert problem_of(await cluster.fetch("w1", "GET", "/v1/digest"))["code"] == "no_data"
    status = await cluster.status("w1")
    assert status is not None
    assert status.primary == primary
    assert status.nodes["w1"].state == "witness"


async def test_a_wait_for_a_lock_at_a_witness_ends_with_the_release(
    make_cluster: MakeCluster,
) -> None:
    """The witness has no data: the primary tells it, and it asks nobody again and again."""
    cluster, primary, _ = await start(make_cluster)

    async def take(node: str, wait_ms: int) -> int:
        body = b'{"ttl_ms": 60000, "wait_ms": %d}' % wait_ms
        headers = {"Content-Type": "application/json"}
        reply = await cluster.fetch(node, "POST", "/v1/locks/jobs", body, headers)
        assert reply.status == 200, reply
        token: int = reply.json["token"]
        return token

    async def forwarded() -> int:
        status = await cluster.fetch("w1", "GET", "/metrics")
        (found,) = re.findall(rb"^onecopy_forwarded_total ([0-9.e+]+)$", status.body, re.MULTILINE)
        return int(float(found))

    async def is_waiting() -> bool:
        reply = await cluster.fetch(primary, "GET", "/v1/locks/jobs")
        return bool(reply.json["waiting"])

    token, before = await take(primary, 0), await forwarded()
    for _ in range(10):
        waiting = asyncio.create_task(take("w1", 20_000))
        await wait_until(is_waiting, "the other one waits")
        await cluster.fetch(primary, "DELETE", f"/v1/locks/jobs?token={token}")
        following = await waiting
        assert following > token
        token = following
    # Each: the request, twice at its beginning, and the one that has it now; keep-alives with them.
    assert await forwarded() - before <= 10 * 10
