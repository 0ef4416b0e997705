"""`onecopy lease` and `onecopy elect --observe` as users run them."""

from __future__ import annotations

import asyncio
import json
import signal

import pytest

from cluster.client.aio import AsyncClient
from tests.support.commands import finish, run, start
from tests.support.fake_api import FakeCluster

DEADLINE_S = 60.0


async def test_a_lease_from_its_grant_to_its_end(nodes: FakeCluster) -> None:
    ends = nodes.endpoints
    lease = (await run("lease", "grant", "60", endpoints=ends)).out.decode().strip()
    put = {"then": [{"put": {"key": "k", "text": "1", "lease": lease}}]}
    await run("txn", endpoints=ends, stdin=json.dumps(put).encode())
    kept = await run("lease", "keep-alive", lease, "--once", endpoints=ends)
    assert (kept.code, kept.err) == (0, f"lease {lease} lasts for 60 s from now\n")
    assert (await run("lease", "list", endpoints=ends)).out == f"{lease} 60 s, 1 key\n".encode()
    shown = (await run("lease", "get", lease, endpoints=ends)).out.decode().splitlines()
    assert shown[0].startswith(f"lease {lease}: ")
    assert shown[1:] == ["  key k"]
    as_json = json.loads((await run("lease", "get", lease, "--json", endpoints=ends)).out)
    assert (as_json["ttl_ms"], as_json["keys"], as_json["locks"]) == (60_000, ["k"], [])
    revoked = await run("lease", "revoke", lease, endpoints=ends)
    assert revoked.out.startswith(b"revoked: 1 key deleted, revision ")
    for command in ("keep-alive", "get", "revoke"):
        gone = await run("lease", command, lease, endpoints=ends)
        assert gone.code == 1
        assert lease in gone.err


async def test_a_lease_is_kept_alive_until_ctrl_c_or_its_end(nodes: FakeCluster) -> None:
    granted = json.loads(
        (await run("lease", "grant", "1", "--json", endpoints=nodes.endpoints)).out
    )
    lease = granted["lease"]
    kept_before = nodes.core.services[":leases"].counters()["client_leases_kept_alive_total"]
    first, second = [
        await start("lease", "keep-alive", lease, endpoints=nodes.endpoints) for _ in range(2)
    ]
    async with asyncio.timeout(DEADLINE_S):
        for process in (first, second):
            assert process.stderr is not None
            assert (await process.stderr.readline()).endswith(b"; Ctrl-C ends\n")
        counters = nodes.core.services[":leases"].counters
        while counters()["client_leases_kept_alive_total"] < kept_before + 4:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    first.send_signal(signal.SIGINT)
    assert (await finish(first)).code == 0
    await nodes.core.revoke(int(lease))
    ended = await finish(second)
    assert ended.code == 1
    assert "has ended" in ended.err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("lease", "grant", "0.5"), "TTL"),
        (("lease", "grant", "x"), "TTL"),
        (("lease", "get", "x"), "lease must be the id"),
        (("lease", "nonsense"), "nonsense"),
        (("elect", "main"), "--observe"),
        (("elect", "main", "--observe", "--", "true"), "--observe"),
        (("elect", "", "--observe"), "name must not be empty"),
    ],
)
async def test_a_wrong_command_line(
    nodes: FakeCluster, arguments: tuple[str, ...], named: str
) -> None:
    ended = await run(*arguments, endpoints=nodes.endpoints)
    assert ended.code == 2
    assert named in ended.err
    assert nodes.core.executed == 0


async def test_an_election_is_observed_until_ctrl_c(nodes: FakeCluster) -> None:
    ends = nodes.endpoints
    plain, as_json = [
        await start("elect", "main", "--observe", *more, endpoints=ends, PYTHONUNBUFFERED="1")
        for more in ((), ("--json",))
    ]
    assert plain.stdout is not None
    assert as_json.stdout is not None
    async with AsyncClient(ends) as client, asyncio.timeout(DEADLINE_S):
        assert await plain.stdout.readline() == b"0 none\n"
        assert json.loads(await as_json.stdout.readline()) == {"revision": 0, "leader": None}
        async with client.elect("main", ttl=60, value="host 1") as leading:
            token = leading.token
            assert await plain.stdout.readline() == b"%d %d host 1\n" % (token, token)
            leader = {"token": token, "lease": leading.lease.id, "value": "host 1"}
            shown = json.loads(await as_json.stdout.readline())
            assert shown == {"revision": token, "leader": leader}
        assert (await plain.stdout.readline()).endswith(b" none\n")
    for process in (plain, as_json):
        process.send_signal(signal.SIGINT)
        assert (await finish(process)).code == 0
