"""TLS and access control together, on real nodes: everything that works without them works."""

from __future__ import annotations

import asyncio
import json
import ssl
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cluster.client.errors import ClientError
from onecopy.testing import LocalCluster
from tests.support.cluster import ROOT
from tests.support.commands import Ended, finish, run, start
from tests.support.doc_shop import Shop

pytestmark = pytest.mark.slow  # real nodes

SHOP = {"shop": "tests.support.doc_shop:Shop"}
HELD = 'import os; print("held under", os.environ["ONECOPY_LOCK_TOKEN"])'


class Secured:
    """A cluster that answers over TLS, with tokens, only."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.cluster = cluster
        self.env = {"ONECOPY_CACERT": cluster.cacert, "ONECOPY_TOKEN": cluster.token}
        self.endpoints = [cluster.url(node) for node in cluster.nodes]

    async def run(
        self, *arguments: str | Path, code: int = 0, stdin: bytes | None = None, **env: str
    ) -> Ended:
        """Run a command to its end, which must have this exit code."""
        env = {**self.env, **env}
        ended = await run(*arguments, endpoints=self.endpoints, stdin=stdin, **env)
        assert ended.code == code, (arguments, ended)
        return ended

    def scrape(self, node: str, token: str) -> bytes:
        """Do what Prometheus does, with `ca_file` and `credentials` of its configuration."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        request = urllib.request.Request(f"{self.cluster.url(node)}/metrics", headers=headers)
        context = ssl.create_default_context(cafile=self.cluster.cacert)
        with urllib.request.urlopen(request, timeout=30, context=context) as reply:
            body: bytes = reply.read()
        return body


@pytest.fixture(params=[(2, 1), pytest.param((3, 0), marks=pytest.mark.long)], ids=["2+1", "3"])
async def secured(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Secured]:
    replicas, witnesses = request.param
    cluster = LocalCluster(
        tmp_path / "cluster", replicas=replicas, witnesses=witnesses, services=SHOP, path=ROOT,
        tls=True, access=True,
    )  # fmt: skip
    await asyncio.to_thread(cluster.__enter__)
    try:
        yield Secured(cluster)
    finally:
        await asyncio.to_thread(cluster.close)


async def test_every_call_works_at_every_node(secured: Secured) -> None:
    """By way of each node: what is no primary forwards. Others are told what they lack."""
    for node in secured.cluster.nodes:
        await asyncio.to_thread(_call_at, secured.cluster, node)
        assert secured.cluster.token not in secured.scrape(node, secured.cluster.token).decode()
        with pytest.raises(urllib.error.HTTPError, match="401"):
            secured.scrape(node, "")
    _said_nothing_they_should_not(secured.cluster)


@pytest.mark.long
@pytest.mark.timeout(300)  # many processes
async def test_every_command_works_and_a_failover(secured: Secured, tmp_path: Path) -> None:
    cluster = secured.cluster
    await commands_work(secured, tmp_path)
    killed = await asyncio.to_thread(cluster.primary)
    cluster.kill(killed)
    await secured.run("put", "after", "a failover", "--timeout-ms", "30000")
    cluster.start(killed)
    await asyncio.to_thread(cluster.wait_equal)
    _said_nothing_they_should_not(cluster)


def _said_nothing_they_should_not(cluster: LocalCluster) -> None:
    for node in cluster.nodes:
        log = cluster.log(node)
        assert "Traceback" not in log, log
        assert cluster.token not in log


def _call_at(cluster: LocalCluster, node: str) -> None:
    client = cluster.client(node, discover=False, timeout_ms=30_000)
    key = f"calls/{node}"
    client.put(key, b"1")
    found = client.get(key)
    assert found is not None
    assert found.value == b"1"
    with client.lock(f"lock-{node}", ttl=30) as lock:
        client.put(key, b"2", if_lock=lock.condition)
        leader = client.leader(f"lock-{node}")
        assert leader is not None
    with client.lease(30) as lease:
        client.put(f"{key}/leased", b"x", lease=lease.id)
    assert client.get(f"{key}/leased") is None
    assert client.txn().put(f"{key}/t", b"3").commit().succeeded
    assert [item.key for item in client.list(key)] == [key, f"{key}/t"]
    assert client.service(Shop).reserve(item=node, count=1).left == 99
    assert client.service(Shop).left(item=node) == 99
    if node.startswith("n"):
        with client.watch(key, after=found.revision - 1) as events:
            event = events.poll(30)
            assert event is not None
    stranger = cluster.client(node, discover=False, token="", timeout_ms=30_000)
    with pytest.raises(ClientError) as caught:
        stranger.get(key)
    assert caught.value.code == "unauthenticated"
    plain = cluster.url(node).replace("https", "http")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(plain, timeout=30)
    assert b"this port speaks TLS only" in refused.value.read()


async def commands_work(secured: Secured, directory: Path) -> None:
    """Run every command that asks a cluster for something."""
    cluster, run = secured.cluster, secured.run
    token_file = directory / "token"
    token_file.write_text(cluster.token)
    token_file.chmod(0o600)
    assert (await run("get", "a", code=3)).out == b""
    await run("put", "a", "1", "--token-file", token_file, ONECOPY_TOKEN="")
    assert (await run("get", "a")).out == b"1"
    refused = await run("get", "a", code=1, ONECOPY_TOKEN="")
    assert "--token-file or ONECOPY_TOKEN" in refused.err
    script = b'{"then": [{"put": {"key": "t", "text": "x"}}]}'
    assert b"succeeded" in (await run("txn", stdin=script)).out
    assert (await run("list")).out.split()[:1] == [b"a"]
    called = await run("call", "shop", "reserve", "item=pear", "count=2", "--json")
    assert json.loads(called.out)["result"]["left"] == 98, called
    assert b"held under" in (await run("lock", "jobs", "--", "python3", "-c", HELD)).out
    assert b"held under" in (await run("elect", "boss", "--", "python3", "-c", HELD)).out
    lease = (await run("lease", "grant", "60")).out.decode().strip()
    await run("lease", "keep-alive", "--once", lease)
    assert lease in (await run("lease", "list")).out.decode()
    await run("lease", "revoke", lease)
    records = directory / "in.ndjson"
    lines = [json.dumps({"key": f"load/{n:03}", "value": f"value {n}"}) for n in range(300)]
    records.write_text("\n".join(lines) + "\n")
    assert b"300 acknowledged" in (await run("load", records)).out
    dumped = directory / "out.ndjson"
    await run("dump", "--prefix", "load/", "-o", dumped)
    assert len(dumped.read_text().splitlines()) == 300
    command = ("watch", "--prefix", "w/", "--after", "0", "--json", "--token-file", token_file)
    watching = await start(*command, "--cacert", cluster.cacert, endpoints=secured.endpoints)
    await run("put", "w/1", "seen")
    assert watching.stdout is not None
    async with asyncio.timeout(30):
        assert b"w/1" in await watching.stdout.readline()
    watching.terminate()
    await finish(watching)
    await run("role", "set", "guest", "--read", "w/")
    made = (await run("token", "create", "guest")).out.decode().strip()
    assert (await run("get", "w/1", ONECOPY_TOKEN=made)).out == b"seen"
    assert "forbidden" in (await run("put", "w/1", "x", "--json", code=1, ONECOPY_TOKEN=made)).err
    status = json.loads((await run("status", "--json", ONECOPY_TOKEN=made)).out)
    [backup, *_] = [node for node in status["in_sync"] if node != status["primary"]]
    assert "admin" in (await run("handover", backup, code=1, ONECOPY_TOKEN=made)).err
    await run("handover", backup, "--timeout-ms", "30000")
    await run("delete", "a")
