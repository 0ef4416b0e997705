"""A primary whose clock stood still is cut off when it wakes: by its clock, its lease goes on."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from tests.nodes.conftest import MakeCluster
from tests.support.cluster import Cluster
from tests.support.partitions import Network
from tests.support.raw_http import connect, kv
from tests.support.stopped_clock import stand_still
from tests.support.toxiproxy import ToxiproxyServer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180), pytest.mark.fault]

KEY = kv("k")


async def _what_it_answers(
    cluster: Cluster, directory: Path, *, query: str, conditional: bool
) -> tuple[int, bytes, str]:
    """Ask a primary that was replaced while it slept and its clock stood still, as it wakes."""
    with ToxiproxyServer(directory / "toxiproxy.log") as server:
        net = Network(cluster, server)
        clocks = {node: directory / f"{node}.clock" for node in cluster.nodes}
        for node, process in cluster.nodes.items():
            stand_still(clocks[node], 0.0)
            clock = str(clocks[node])
            process.command = (sys.executable, "-m", "tests.support.stopped_clock", clock)
        await cluster.start()
        old = await cluster.primary()
        assert (await cluster.fetch(old, "PUT", KEY, b"old")).status == 201
        cluster.nodes[old].pause()
        paused_at = time.monotonic()
        await net.isolate(old)
        new = await cluster.primary(besides=old)
        write = await cluster.fetch(new, "DELETE" if conditional else "PUT", KEY, b"new")
        assert write.status == 200
        async with connect(cluster.url(old)) as connection:
            if conditional:
                connection.send_request("PUT", KEY + query, b"mine", {"If-None-Match": "*"})
            else:
                connection.send_request("GET", KEY + query)
            # The request lies in a socket of the process that sleeps.
            stand_still(clocks[old], (time.monotonic() - paused_at) * 1000)
            cluster.nodes[old].resume()
            answer = await connection.receive()
        await net.heal()
        for node in cluster.nodes:
            read = await cluster.fetch(node, "GET", f"{KEY}?consistency=confirmed&timeout_ms=20000")
            assert read.status == 404 if conditional else read.body == b"new"
        return answer.status, answer.body, answer.code


@pytest.mark.parametrize(
    ("reads", "query", "conditional"),
    [
        ("leased", "?timeout_ms=300&consistency=confirmed", False),
        ("confirmed", "?timeout_ms=300", False),
        ("confirmed", "?timeout_ms=300", True),
    ],
)
async def test_a_confirmed_answer_is_not_stale_where_a_clock_stood_still(
    make_cluster: MakeCluster, tmp_path: Path, reads: str, query: str, conditional: bool
) -> None:
    """Neither a read nor a refused condition: with leased reads each of these would be wrong."""
    cluster: Cluster = make_cluster(reads=reads)
    status, body, code = await _what_it_answers(
        cluster, tmp_path, query=query, conditional=conditional
    )
    assert (status, code) == (503, "no_primary"), body
