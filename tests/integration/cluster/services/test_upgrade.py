"""A service's code changes while the cluster runs: versions, migration, nodes that differ (X4)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from onecopy.testing import LocalCluster
from tests.support.raw_http import fetch

pytestmark = pytest.mark.slow  # real nodes

SOURCE = """
import onecopy

class Shop(onecopy.Service):
    version = {version}

    def migrate(self, tx, from_version):
        tx.put(b"migrations", (tx.get(b"migrations") or b"") + b"%d-{version} " % from_version)

    @onecopy.operation
    def restock(self, tx: onecopy.Transaction, count: int) -> int:
        total = int(tx.get(b"total") or b"0") + count
        tx.put(b"total", str(total).encode())
        return total

    @onecopy.query
    def state(self, tx: onecopy.ReadTransaction) -> str:
        return "v{version} " + (tx.get(b"migrations") or b"").decode()
"""
DEADLINE_S = 30.0


def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, f"in time: {what}"
        time.sleep(0.05)


async def metric(cluster: LocalCluster, node: str, name: str) -> float:
    end = time.monotonic() + DEADLINE_S
    while True:  # a node may be in sync before it listens to clients
        try:
            text = (await fetch(cluster.url(node), "GET", "/metrics")).body.decode()
        except ConnectionRefusedError:
            assert time.monotonic() < end, f"{node} listens to clients"
            await asyncio.sleep(0.05)
        else:
            break
    (line,) = (line for line in text.splitlines() if line.startswith(name))
    return float(line.rpartition(" ")[2])


async def test_a_new_version_is_rolled_out_and_migrates_once(tmp_path: Path) -> None:
    module = tmp_path / "rolled_out.py"
    module.write_text(SOURCE.format(version=1))
    services = {"shop": "rolled_out:Shop"}
    with LocalCluster(tmp_path / "cluster", services=services, path=tmp_path) as cluster:
        client = cluster.client(timeout_ms=20_000)
        shop, reader = client.service("shop"), client.service("shop", reads=True)
        assert shop.restock(count=5) == 5
        old = cluster.primary()
        module.write_text(SOURCE.format(version=2))
        for node in cluster.nodes:
            if node != old:
                cluster.stop(node)
                cluster.start(node)
                cluster.wait_in_sync()
        assert shop.restock(count=5) == 10  # the old code serves as long as it is the primary
        words = "service shop: this node has version 2, and the cluster runs version 1"

        def told() -> bool:
            return any(words in text for text in client.status().warnings)

        until(told, "the status tells of nodes with other code")
        for node in cluster.nodes:  # each finds out by itself
            end = time.monotonic() + DEADLINE_S
            while await metric(cluster, node, "onecopy_service_differs") != float(node != old):
                assert time.monotonic() < end, f"{node} knows whether its code differs"
                await asyncio.sleep(0.05)
        cluster.kill(old)  # the first primary with the new code migrates
        assert shop.restock(count=5) == 15
        assert reader.state() == "v2 0-1 1-2 "
        module.write_text(SOURCE.format(version=1))
        cluster.start(old)  # somebody has put the old code back there
        cluster.wait_in_sync()
        client.handover(old)
        outdated = cluster.client(old, discover=False, timeout_ms=500).service("shop")
        with pytest.raises(Exception, match="install the newer code here"):
            outdated.restock(count=5)
        client.handover(next(node for node in cluster.nodes if node != old))
        assert shop.restock(count=5) == 20
        assert reader.state() == "v2 0-1 1-2 "
        cluster.wait_equal()
