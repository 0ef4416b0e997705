"""A1 while requests are under way: what is revoked ends, and who cannot ask decides nothing."""

from __future__ import annotations

import asyncio
import json

import pytest

from cluster.client.results import RoleRights
from tests.support.cluster import Cluster, wait_until
from tests.support.commands import run
from tests.support.raw_http import Reply, connect

pytestmark = pytest.mark.slow

RIGHTS = RoleRights(read=("app/",), write=("app/",), watch=("app/",), lock=("",))
MAX_PIPELINED = 2000
NO_RIGHTS = RoleRights(read=("app/",))


async def make_user(cluster: Cluster, role: str = "app") -> tuple[str, dict[str, str]]:
    """Return a token's id, and the header that shows it."""
    async with cluster.client() as admin:
        await admin.set_role(role, RIGHTS)
        made = await admin.create_token(role)
    return made.id, {"Authorization": f"Bearer {made.token}"}


async def lines_until_end(
    cluster: Cluster, node: str, headers: dict[str, str]
) -> list[dict[str, object]]:
    """Watch at a node until it ends the watch; return what it has sent."""
    headers = {**headers, "Accept": "application/x-ndjson"}
    async with connect(cluster.url(node)) as connection:
        connection.send_request("GET", "/v1/watch?prefix=app/", None, headers)
        head = await connection.reader.readuntil(b"\r\n\r\n")
        assert b" 200 " in head.partition(b"\r\n")[0], head
        body = await connection.receive_end()
    return [json.loads(line) for line in body.splitlines() if line.strip()]


async def can_be_watched(cluster: Cluster, headers: dict[str, str]) -> None:
    """Wait until both replicas take watchers: one that was long without a primary looks again."""

    async def both() -> bool:
        target = "/v1/kv/app%2Fk?after=0&timeout_ms=1"
        replies = [await cluster.fetch(node, "GET", target, None, headers) for node in ("n1", "n2")]
        return all(reply.status == 200 for reply in replies)

    await wait_until(both, "both replicas take watchers")


@pytest.mark.parametrize("how", ["token", pytest.param("role", marks=pytest.mark.long)])
async def test_watches_and_waits_end_when_the_right_goes(cluster: Cluster, how: str) -> None:
    token, headers = await make_user(cluster)
    async with cluster.client() as admin:
        await admin.put("app/k", b"first")
        held = await cluster.fetch(
            "n1", "POST", "/v1/locks/jobs", b'{"ttl_ms": 600000}',
            {"Content-Type": "application/json"},
        )  # fmt: skip
        assert held.status == 200
        await can_be_watched(cluster, headers)
        watches = [
            asyncio.create_task(lines_until_end(cluster, node, headers)) for node in ("n1", "n2")
        ]
        waits = [
            asyncio.create_task(
                cluster.fetch(
                    node, "POST", "/v1/locks/jobs", b'{"ttl_ms": 60000, "wait_ms": 50000}',
                    {**headers, "Content-Type": "application/json"},
                )
            )
            for node in cluster.specs
        ]  # fmt: skip
        changes = [
            asyncio.create_task(
                cluster.fetch(
                    node, "GET", f"/v1/kv/app%2Fother?after={held.json['token']}&timeout_ms=50000",
                    None, headers,
                )
            )
            for node in ("n1", "n2")
        ]  # fmt: skip

        async def all_wait() -> bool:
            numbers = [await cluster.metric(node, "watchers") for node in ("n1", "n2")]
            locks = [await cluster.metric(node, "lock_requests_waiting") for node in cluster.specs]
            return min(*numbers) >= 2 and min(locks) >= 1

        await wait_until(all_wait, "the watches and waits have begun")
        if how == "token":
            await admin.revoke_token(token)
        else:
            await admin.set_role("app", NO_RIGHTS)
        await admin.put("app/k", b"after the right has gone")
        code = "unauthenticated" if how == "token" else "forbidden"
        for lines in await asyncio.gather(*watches):
            end = lines[-1]["end"]
            assert isinstance(end, dict)
            assert end["code"] == code
            assert "after the right has gone" not in json.dumps(lines)
        for reply in await asyncio.gather(*waits, *changes):
            assert reply.code == code


@pytest.mark.parametrize("node", [pytest.param("n1", marks=pytest.mark.long), "n2"])
async def test_pipelined_writes_end_when_the_right_goes(cluster: Cluster, node: str) -> None:
    """What is sent after the revocation is acknowledged changes nothing, at any node."""
    token, headers = await make_user(cluster)
    sent = 0
    async with cluster.client() as admin, connect(cluster.url(node)) as connection:

        async def pipeline(count: int) -> None:
            nonlocal sent
            for _ in range(count):
                connection.send_request("PUT", f"/v1/kv/app%2F{sent}", b"v", headers)
                sent += 1
            await connection.writer.drain()

        await pipeline(50)
        assert (await connection.receive()).status == 201
        revoked = asyncio.create_task(admin.revoke_token(token))
        while not revoked.done():
            if sent < MAX_PIPELINED:
                await pipeline(10)
            await asyncio.sleep(0)
        await revoked
        before = sent
        await pipeline(50)
        statuses = [201] + [(await connection.receive()).status for _ in range(sent - 1)]
        assert set(statuses) <= {201, 401}
        assert set(statuses[before:]) == {401}
        held = {item.key async for item in admin.list("app/")}
    assert held == {f"app/{number}" for number in range(sent) if statuses[number] == 201}


async def test_a_backup_that_cannot_ask_decides_nothing_after_a_second(cluster: Cluster) -> None:
    _, headers = await make_user(cluster)
    async with cluster.client() as admin:
        await admin.put("app/k", b"v")
    primary = await cluster.primary()
    [backup] = {"n1", "n2"} - {primary}
    await cluster.wait_converged()

    async def read(consistency: str) -> Reply:
        target = f"/v1/kv/app%2Fk?consistency={consistency}&timeout_ms=300"
        return await cluster.fetch(backup, "GET", target, None, headers)

    assert (await read("stale")).status == 200
    watch = asyncio.create_task(lines_until_end(cluster, backup, headers))

    async def watches() -> bool:
        return await cluster.metric(backup, "watchers") >= 1

    await wait_until(watches, "the watch has begun")
    cluster.nodes[primary].pause()
    cluster.nodes["w1"].pause()

    async def is_refused() -> bool:
        reply = await read("stale")
        assert reply.status in {200, 503, 504}, reply
        return reply.status in {503, 504}

    await wait_until(is_refused, "its knowledge of rights is too old")
    end = (await watch)[-1]["end"]
    assert isinstance(end, dict)
    assert end["code"] in {"not_ready", "stopping"}
    status = await cluster.fetch(backup, "GET", "/v1/cluster", None, headers)
    assert status.status == 200  # operators need it now
    wrong = {"Authorization": "Bearer oct_0000000000000000_" + 43 * "A"}
    assert (await cluster.fetch(backup, "GET", "/v1/cluster", None, wrong)).status in {503, 504}
    assert cluster.token is not None
    unknown = wrong["Authorization"].removeprefix("Bearer ")
    for words, token in (
        (["put", "app/k", "w"], cluster.token.text),
        (["remove", primary, "--yes"], cluster.token.text),
        (["status"], unknown),
    ):
        refused = await run(  # in time, and what the node says, not that the other is dead
            *words, "--timeout-ms", "4000", "--no-discover",
            endpoints=[cluster.url(backup), "http://127.0.0.1:1"], ONECOPY_TOKEN=token,
        )  # fmt: skip
        assert (refused.code, "it cannot be checked now" in refused.err) == (6, True), refused
    cluster.nodes[primary].resume()
    cluster.nodes["w1"].resume()

    async def is_served() -> bool:
        return (await read("linearizable")).status == 200

    await wait_until(is_served, "it can ask again")


@pytest.mark.long
async def test_wrong_tokens_cost_nobody_else_anything_and_few_lines(cluster: Cluster) -> None:
    _, headers = await make_user(cluster)
    wrong = {"Authorization": "Bearer oct_0000000000000000_" + 43 * "A"}

    async def flood(node: str) -> None:
        async with connect(cluster.url(node)) as connection:
            for _ in range(50):
                for _ in range(20):  # pipelined
                    connection.send_request("PUT", "/v1/kv/app%2Fx", b"v", wrong)
                for _ in range(20):
                    # On a busy machine a node may not know in time.
                    assert (await connection.receive()).status in {401, 503, 504}

    floods = [asyncio.create_task(flood(node)) for node in ("n1", "n2")]
    served = 0
    while not all(task.done() for task in floods):
        reply = await cluster.fetch("n1", "PUT", "/v1/kv/app%2Fk", b"v", headers)
        assert reply.status in {200, 201}
        served += 1
    await asyncio.gather(*floods)
    assert served
    for node in ("n1", "n2"):
        log = cluster.nodes[node].log()
        assert log.count("refused with 401") <= 10
        assert "AAAAAAAA" not in log
        lines = (cluster.directory / f"audit-{node}.jsonl").read_text().splitlines()
        assert len(lines) <= 1100
        assert "AAAAAAAA" not in "".join(lines)
    async with cluster.client() as admin:
        assert [item async for item in admin.list("app/x")] == []
