"""Strangers who flood a node's client port: others are served, and the log stays short."""

from __future__ import annotations

import contextlib
import os
import ssl

import pytest

from tests.nodes.conftest import MakeCluster
from tests.support.cluster import UNSUSPECTING, Cluster
from tests.support.flood import flooding

pytestmark = [pytest.mark.slow]

WRITES = 30
MAX_NEW_LINES = 30
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
