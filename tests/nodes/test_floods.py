"""Strangers who flood a node's ports for clients: others are served, and the log stays short."""

from __future__ import annotations

import contextlib
import json
import os
import ssl
import time
from typing import Any

import pytest

from cluster.api.audit import MAX_LINES_PER_S
from tests.nodes.conftest import MakeCluster
from tests.support.cluster import UNSUSPECTING, Cluster
from tests.support.flood import flooding

pytestmark = [pytest.mark.slow]

WRITES = 30
MAX_NEW_LINES = 30
FLOODED_S = 2.0
BODY = b'{"key": "Zmxvb2RlZA==", "value": "dg=="}'
RECORD = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"


def client_hello(cacert: str) -> bytes:
    """Return the first bytes of a handshake that is never finished."""
    to_server = ssl.MemoryBIO()
    ends = ssl.create_default_context(cafile=cacert)
    client = ends.wrap_bio(ssl.MemoryBIO(), to_server, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return to_server.read()


@pytest.mark.long
async def test_bad_handshakes_leave_others_served(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(replicas=1, tls=True, timing=UNSUSPECTING)
    await cluster.start()
    address, before = cluster.specs["n1"].client, lines(cluster)
    floods = {
        "no TLS": [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"\0"],
        "broken": [RECORD + os.urandom(512) for _ in range(10)],
        "never finished": [client_hello(cluster.cacert), RECORD, b""],
    }
    async with cluster.client() as known:
        await known.put("k", b"0")
        for kind, messages in floods.items():
            with flooding(address, messages):
                for number in range(WRITES):
                    await known.put("k", b"%d" % number)
                async with cluster.client() as newcomer:
                    await newcomer.put(kind, b"v")
    assert lines(cluster) - before <= MAX_NEW_LINES
    assert "Traceback" not in cluster.nodes["n1"].log()


def lines(cluster: Cluster) -> int:
    return cluster.nodes["n1"].log().count("\n")


def wrong_tokens(path: str, method: str) -> list[bytes]:
    """Return requests with tokens that are none, each another's."""
    requests = []
    for number in range(200):
        token = f"oct_{number:016x}_{43 * 'A'}"
        head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\n"
        requests.append(f"{head}Content-Length: {len(BODY)}\r\n\r\n".encode() + BODY)
    return requests


@pytest.mark.long
async def test_wrong_tokens_leave_others_served(make_cluster: MakeCluster) -> None:
    """At etcd's port of a replica, and at both ports of a witness, which can judge nobody alone."""
    cluster = make_cluster(
        replicas=2,
        witnesses=1,
        etcd=True,
        access={"audit_file": "audit-{node}.jsonl"},
        timing=UNSUSPECTING,
    )
    await cluster.start()
    for node, port, method, path in (
        ("n1", cluster.specs["n1"].etcd, "POST", "/v3/kv/put"),
        ("w1", cluster.specs["w1"].client, "PUT", "/v1/kv/flooded"),
        ("w1", cluster.specs["w1"].etcd, "POST", "/v3/kv/put"),
    ):
        before, began = cluster.nodes[node].log().count("\n"), time.monotonic()
        refused = len(audited(cluster, node))
        async with cluster.client(node, discover=False, timeout_ms=30_000) as known:
            with flooding(port, wrong_tokens(path, method)):
                written = 0
                while written < WRITES or time.monotonic() - began < FLOODED_S:
                    await known.put("k", b"%d" % written)
                    written += 1
        seconds = time.monotonic() - began
        events = audited(cluster, node)[refused:]
        assert any(event["event"] == "refused" for event in events), "it was flooded"
        assert len(events) <= (MAX_LINES_PER_S + 1) * (seconds + 2)
        log = cluster.nodes[node].log()
        assert log.count("\n") - before <= MAX_NEW_LINES
        assert "Traceback" not in log
        assert 43 * "A" not in log
        assert 43 * "A" not in (cluster.directory / f"audit-{node}.jsonl").read_text()
    async with cluster.client() as admin:
        assert [item.key async for item in admin.list("")] == ["k"]


def audited(cluster: Cluster, node: str) -> list[dict[str, Any]]:
    """Return the lines of a node's audit log."""
    path = cluster.directory / f"audit-{node}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]
