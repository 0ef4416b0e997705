"""etcd's gateway on real nodes: at every kind of node, through a failover, with access and TLS."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import ssl
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

from cluster.client.results import RoleRights
from tests.nodes.conftest import MakeCluster
from tests.support.cluster import Cluster, wait_until
from tests.support.etcd_requests import b64
from tests.support.raw_http import DEADLINE_S

pytestmark = pytest.mark.slow  # real nodes

VALUE_SIZE_BYTES = 10_000
PREFIX, PREFIX_END = b64(b"big/"), b64(b"big0")


class Etcd:
    """The gateways of a cluster, asked over a connection for each request."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._tls = ssl.create_default_context(cafile=cluster.cacert) if cluster.cacert else None

    async def ask(
        self, node: str, path: str, body: Any, token: str = ""
    ) -> tuple[int, dict[str, Any]]:
        """Return the status and the document of an answer. Raises OSError, EOFError."""
        async with asyncio.timeout(DEADLINE_S):
            reader, writer = await self._send(node, path, body, token, "Connection: close\r\n")
            try:
                answer = await reader.read()
            finally:
                writer.close()
        head, _, content = answer.partition(b"\r\n\r\n")
        if not head:
            raise EOFError
        if b"chunked" in head:
            content = content.split(b"\r\n")[1]
        return int(head.split(b" ")[1]), json.loads(content)

    async def ok(self, node: str, path: str, body: Any, token: str = "") -> dict[str, Any]:
        """Return the document of a good answer."""
        status, document = await self.ask(node, path, body, token)
        assert status == 200, document
        return document

    async def _send(
        self, node: str, path: str, body: Any, token: str, lines: str
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, port = self._cluster.specs[node].etcd.rsplit(":", 1)
        reader, writer = await asyncio.open_connection(host, int(port), ssl=self._tls, limit=2**26)
        data = json.dumps(body).encode()
        if token:
            lines += f"Authorization: {token}\r\n"
        head = f"POST /v3/{path} HTTP/1.1\r\nHost: {host}\r\n{lines}Content-Length: {len(data)}"
        writer.write(f"{head}\r\n\r\n".encode() + data)
        return reader, writer

    @contextlib.asynccontextmanager
    async def watch(
        self, node: str, start: bytes, end: bytes, revision: int = 0, token: str = ""
    ) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        """Watch a range; what is iterated over are the messages after the first."""
        create = {"key": b64(start), "range_end": b64(end), "start_revision": revision}
        reader, writer = await self._send(node, "watch", {"create_request": create}, token, "")
        try:
            await reader.readuntil(b"\r\n\r\n")
            messages = self._messages(reader)
            first = await anext(messages, None)
            if first is None:
                raise EOFError
            assert first["created"]
            yield messages
        finally:
            writer.close()

    @staticmethod
    async def _messages(reader: asyncio.StreamReader) -> AsyncIterator[dict[str, Any]]:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                async with asyncio.timeout(DEADLINE_S):
                    size = int(await reader.readuntil(b"\r\n"), 16)
                    if not size:
                        return
                    line = await reader.readexactly(size + 2)
                yield json.loads(line)["result"]


async def test_every_node_serves_it(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(replicas=2, witnesses=1, etcd=True)
    await cluster.start()
    etcd = Etcd(cluster)
    revision = 0
    for node in cluster.specs:
        key = f"k/{node}".encode()
        body = {"key": b64(key), "value": b64(b"1")}
        # A witness cannot be watched, and is not among the addresses that clients are told.
        watched = "n1" if node == "w1" else node
        async with etcd.watch(watched, b"k/", b"k0") as messages:
            put = await etcd.ok(node, "kv/put", body)
            assert int(put["header"]["revision"]) > revision
            revision = int(put["header"]["revision"])
            [event] = (await anext(messages))["events"]
            assert event["kv"]["mod_revision"] == str(revision)
        for other in cluster.specs:
            found = await etcd.ok(other, "kv/range", {"key": b64(key)})
            assert found["kvs"][0]["value"] == b64(b"1")
            assert found["header"]["cluster_id"] == put["header"]["cluster_id"]
    status, said = await etcd.ask("w1", "watch", {"create_request": {"key": b64(b"k")}})
    assert (status, said["code"]) == (503, 14)
    assert "w1 is a witness" in said["message"]
    listed = (await etcd.ok("w1", "cluster/member/list", {}))["members"]
    assert [item["name"] for item in listed if "clientURLs" in item] == ["n1", "n2"]
    lease = (await etcd.ok("w1", "lease/grant", {"TTL": 2}))["ID"]
    await etcd.ok("w1", "kv/put", {"key": b64(b"leased"), "lease": lease})

    async def ended() -> bool:
        return "kvs" not in await etcd.ok("n1", "kv/range", {"key": b64(b"leased")})

    await wait_until(ended, "the lease ends")


async def test_a_watch_goes_on_at_another_node(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(etcd=True)
    await cluster.start()
    etcd = Etcd(cluster)
    primary = await cluster.primary()
    backup, other = cluster.others(primary)
    seen: list[tuple[int, str]] = []
    written: list[tuple[int, str]] = []

    async def watch() -> None:
        node, after = primary, 0
        while len(seen) < 100:
            with contextlib.suppress(OSError, EOFError):
                async with etcd.watch(node, b"w/", b"w0", after + 1 if after else 1) as messages:
                    async for message in messages:
                        assert "canceled" not in message or "cancel_reason" in message, message
                        for event in message.get("events", ()):
                            after = int(event["kv"]["mod_revision"])
                            seen.append((after, event["kv"]["value"]))
                        if len(seen) >= 100:
                            return
            node = other

    async def write() -> None:
        for number in range(100):
            value = b64(b"%d" % number)
            if number == 50:
                await cluster.kill(primary)

            async def done(value: str = value) -> bool:
                """Write it, once: a try of unknown outcome is looked up before the next."""
                key = b64(b"w/k")
                try:
                    kvs = (await etcd.ok(backup, "kv/range", {"key": key})).get("kvs")
                    if not kvs or kvs[0]["value"] != value:
                        await etcd.ok(backup, "kv/put", {"key": key, "value": value})
                        kvs = (await etcd.ok(backup, "kv/range", {"key": key}))["kvs"]
                except (AssertionError, OSError, EOFError):
                    return False
                written.append((int(kvs[0]["mod_revision"]), value))
                return True

            await wait_until(done, f"{number} is written")

    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        tasks.create_task(watch())
        tasks.create_task(write())
    # What timed out may have been carried out after it was looked up: then it came twice.
    assert set(written) <= set(seen)
    assert [revision for revision, _ in seen] == sorted({revision for revision, _ in seen})


async def test_a_range_of_megabytes_is_one_state(make_cluster: MakeCluster) -> None:
    """A writer changes keys in turn from the last to the first; a state has one step between."""
    cluster = make_cluster(replicas=2, witnesses=1, etcd=True)
    await cluster.start()
    etcd = Etcd(cluster)
    n_keys = 400  # four pages
    names = [b"big/%04d" % number for number in range(n_keys)]
    filler = b"x" * VALUE_SIZE_BYTES
    for name in names:
        await etcd.ok("n1", "kv/put", {"key": b64(name), "value": b64(b"%06d" % 0 + filler)})
    enough = asyncio.Event()

    async def write() -> None:
        async with cluster.client() as client:
            for generation in range(1, 1000):
                # The range's ends are changed in order: the last key first, then the first one.
                for name in (names[-1], names[n_keys // 2], names[0]):
                    await client.put(name.decode(), b"%06d" % generation + filler)
                if enough.is_set():
                    return

    async def read() -> None:
        moved = set()
        for number in range(8):
            for node in cluster.specs:
                status, found = await etcd.ask(
                    node, "kv/range", {"key": PREFIX, "range_end": PREFIX_END}
                )
                if status != 200:  # the witness reads again and again, and may say so
                    assert node == "w1"
                    assert "read it in parts" in found["message"], found
                    continue
                assert len(found["kvs"]) == n_keys
                first, middle, last = (
                    int(base64.b64decode(found["kvs"][at]["value"])[:6])
                    for at in (0, n_keys // 2, n_keys - 1)
                )
                assert last >= middle >= first >= last - 1, (number, node, first, middle, last)
                moved.add(last)
        assert len(moved) > 2
        enough.set()

    async with asyncio.timeout(90), asyncio.TaskGroup() as tasks:
        tasks.create_task(write())
        tasks.create_task(read())


async def test_access_and_tls(make_cluster: MakeCluster) -> None:
    audited = {"audit_file": "audit-{node}.jsonl"}
    cluster = make_cluster(replicas=2, witnesses=1, etcd=True, tls=True, access=audited)
    await cluster.start()
    etcd = Etcd(cluster)
    mine, others = {"key": b64(b"app/k"), "value": b64(b"v")}, {"key": b64(b"other")}
    async with cluster.client() as admin:
        rights = RoleRights(read=("app/",), write=("app/",), watch=("app/",))
        await admin.set_role("app", rights)
        secret = (await admin.create_token("app")).token
        for node in cluster.specs:
            user = {"name": "anybody", "password": secret}
            token = (await etcd.ok(node, "auth/authenticate", user))["token"]
            wrong = f"oct_{'0' * 16}_{'A' * 43}"
            status, said = await etcd.ask(
                node, "auth/authenticate", {"name": "anybody", "password": wrong}
            )
            assert (status, said["code"]) == (400, 3)
            await etcd.ok(node, "kv/put", mine, token)
            found = await etcd.ok(node, "kv/range", {"key": mine["key"]}, token)
            assert found["count"] == "1"
            for path in ("kv/put", "kv/range"):
                status, said = await etcd.ask(node, path, others, token)
                assert (status, said["code"]) == (403, 7), said
                status, said = await etcd.ask(node, path, mine, wrong)
                assert (status, said["code"]) == (401, 16), said
                status, said = await etcd.ask(node, path, mine)
                assert (status, said["message"]) == (400, "etcdserver: user name is empty")
        async with etcd.watch("n1", b"app/", b"app0", token=secret) as messages:
            await etcd.ok("n2", "kv/put", mine, secret)
            assert (await anext(messages))["events"]
            await admin.set_role("app", RoleRights(read=("app/",)))
            last = [message async for message in messages][-1]
            assert last["canceled"]
            assert "permission denied" in last["cancel_reason"]
    for node in cluster.specs:
        text = (cluster.directory / f"audit-{node}.jsonl").read_text()
        lines = [json.loads(line) for line in text.splitlines()]
        refused = Counter(
            (line["path"].removeprefix("/v3/"), line["status"], line.get("token", ""))
            for line in lines
            if line["event"] == "refused"
        )
        assert refused["auth/authenticate", 400, "0" * 16] == 1, "a wrong password"
        for path in ("kv/put", "kv/range"):
            assert refused[path, 400, ""] == 1, "no token at all"
            assert refused[path, 401, "0" * 16] == 1
            assert refused[path, 403, secret.split("_")[1]] == 1
        assert "A" * 43 not in text
