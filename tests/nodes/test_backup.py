"""Backups of real nodes under writes, and the clusters that are made of them (B1, B2)."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from cluster.client.errors import RevisionCompactedError
from datapath.errors import BackupDamagedError
from datapath.storage.backup import verify_backup
from datapath.storage.backup_format import BackupReader
from datapath.storage.founding import REVISION_MARGIN
from tests.nodes.conftest import MakeCluster
from tests.nodes.test_catch_up import readers
from tests.support.cluster import Cluster, Writer, wait_until
from tests.support.commands import run
from tests.support.raw_http import kv

pytestmark = pytest.mark.slow


async def back_up(cluster: Cluster, node: str, file: Path) -> dict[str, Any]:
    ended = await run("backup", file, "--json", endpoints=[cluster.url(node)])
    assert ended.code == 0, ended.err
    summary: dict[str, Any] = json.loads(ended.out)
    return summary


async def restore(cluster: Cluster, node: str, file: Path) -> dict[str, Any]:
    ended = await run("restore", file, "--json", "--config", cluster.config_path, "--node", node)
    assert ended.code == 0, ended.err
    summary: dict[str, Any] = json.loads(ended.out)
    return summary


async def acquire(cluster: Cluster) -> dict[str, Any]:
    body, kind = b'{"ttl_ms": 3600000}', {"Content-Type": "application/json"}
    held = await cluster.fetch("n1", "POST", "/v1/locks/jobs", body, kind)
    assert held.status == 200, held
    found: dict[str, Any] = held.json
    return found


async def test_a_backup_under_writes_makes_a_cluster_that_goes_on_above_it(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    old: Cluster = make_cluster("old", replicas=2, witnesses=1)
    await old.start()
    file = tmp_path / "state.backup"
    async with old.client() as client, Writer(old, "n1", "n2") as writer:
        held = await acquire(old)
        await client.put("leased", b"1", lease=held["lease"])
        first = await client.put("once", b"1", idempotency_key="k1", idempotency_after=0)
        await writer.progress(200)
        before = set(writer.acknowledged)
        written = await back_up(old, "n2", file)  # a backup is asked, and holds what is committed
        await writer.progress()
    assert before
    await old.stop()
    old.end()

    new: Cluster = make_cluster("new", replicas=2, witnesses=1)
    founded = await restore(new, "n2", file)
    assert founded["digest"] == written["digest"]
    assert founded["kept_index"] == written["revision"] >= first.revision
    await new.start()  # n1 and w1 join n2, though the configuration names n1 first
    token = held["token"]
    async with new.client() as client:
        items = {item.key: item async for item in client.list("")}
        assert before <= set(items)
        assert all(item.revision <= written["revision"] for item in items.values())
        assert items["once"].revision == first.revision
        assert (await client.put("once", b"1", idempotency_key="k1")).revision == first.revision
        assert (await new.fetch("n1", "GET", "/v1/locks/jobs")).json["token"] == token
        written_now = await client.put("leased", b"2", if_lock=("jobs", token))
        assert written_now.revision > written["revision"] + REVISION_MARGIN
        await new.fetch("n1", "DELETE", f"/v1/locks/jobs?token={token}")
        assert (await acquire(new))["token"] > token + REVISION_MARGIN
        with pytest.raises(RevisionCompactedError):
            async with client.watch("", after=written["revision"]):
                pass
        page = await client.page("once")
        async with client.watch("once", after=page.revision) as watch:
            await client.put("once", b"3")
            assert (await anext(watch)).changes[0].key == "once"
    await new.wait_converged()


@contextlib.asynccontextmanager
async def begun(cluster: Cluster, node: str) -> AsyncIterator[asyncio.StreamReader]:
    """Begin a backup, and read its head alone."""
    host, _, port = cluster.url(node).removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
    try:
        writer.write(b"GET /v1/backup HTTP/1.0\r\nHost: %b\r\n\r\n" % host.encode())
        assert b" 200 " in await reader.readline()
        while await reader.readline() != b"\r\n":
            pass
        yield reader
    finally:
        writer.close()


async def rest(reader: asyncio.StreamReader) -> BackupReader:
    async with asyncio.timeout(60):
        content = await reader.read(-1)
    return BackupReader(io.BytesIO(content), "it")


async def test_a_node_writes_one_backup_at_a_time_and_none_for_who_has_gone(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    cluster: Cluster = make_cluster(replicas=1)
    await cluster.start()
    await fill(cluster, 24)
    async with begun(cluster, "n1"):  # which reads nothing
        refused = await cluster.fetch("n1", "GET", "/v1/backup")
        assert (refused.status, refused.code) == (503, "backup_running")
        assert await cluster.metric("n1", "http_buffered_bytes") < 4 << 20
        assert len(readers(cluster, "n1")) == 1
    await wait_until(lambda: not readers(cluster, "n1"), "the process that reads it has gone")
    await back_up(cluster, "n1", tmp_path / "x.backup")
    assert (tmp_path / "x.backup").stat().st_mode & 0o777 == 0o600
    assert await cluster.metric("n1", "backups_written_total") == 1


async def fill(cluster: Cluster, megabytes: int) -> None:
    """Write what cannot be compressed: more than sockets hold."""
    async with cluster.client() as client:
        for number in range(megabytes):
            await client.put(f"k{number:04}", os.urandom(1_000_000))


async def test_a_backup_whose_reader_dies_or_whose_node_stops_says_so(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    cluster: Cluster = make_cluster(replicas=1)
    await cluster.start()
    await fill(cluster, 24)
    async with begun(cluster, "n1") as reader:
        os.kill(readers(cluster, "n1")[0], signal.SIGKILL)
        broken = await rest(reader)
    with pytest.raises(BackupDamagedError, match="not a whole backup: the process that reads it"):
        verify_backup(broken)
    async with begun(cluster, "n1") as reader:
        cluster.nodes["n1"].signal(signal.SIGTERM)
        broken = await rest(reader)
    with pytest.raises(BackupDamagedError, match=r"n1 is stopping|cut off at byte"):
        verify_backup(broken)
    assert await cluster.nodes["n1"].wait_exit() == 0


async def test_a_witness_has_no_backup_and_without_a_primary_only_a_stale_one_is_given(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    cluster: Cluster = make_cluster(replicas=2, witnesses=1)
    await cluster.start()
    refused = await cluster.fetch("w1", "GET", "/v1/backup")
    assert (refused.status, refused.code) == (404, "no_data")
    await cluster.fetch("n1", "PUT", kv("a"), b"1")
    await cluster.kill("n1", "w1")
    refused = await cluster.fetch("n2", "GET", "/v1/backup?timeout_ms=500")
    assert (refused.status, refused.code) == (503, "no_primary")
    old = tmp_path / "x.backup"
    old.write_bytes(b"from before")
    ended = await run("backup", old, "--timeout-ms", "500", endpoints=[cluster.url("n2")])
    assert ended.code == 6, ended.err
    assert old.read_bytes() == b"from before"
    ended = await run("backup", old, "--stale", endpoints=[cluster.url("n2")])
    assert ended.code == 0, ended.err
    assert "is whole: revision" in (await run("backup", "verify", old)).out.decode()
