"""A disk that fails, or an invariant that breaks, ends the node wherever it is met (D9)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.services.kv import KeyValue
from datapath.errors import DiskFailedError, SafetyError
from datapath.settings import Bounds
from datapath.storage.snapshot import SnapshotWriter
from datapath.storage.store import Store
from datapath.transport.snapshot_transfer import Offer
from tests.support.replicas import PATIENT, LocalCluster, LocalReplica, until

pytestmark = pytest.mark.slow

VALUE = b"x" * 10_000


def _failing(*_: object, **__: object) -> None:
    raise OSError(5, os.strerror(5))


def _fail_the_log(replica: LocalReplica, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica.storage.log, "_reset", _failing)


def _fail_the_switch(_: LocalReplica, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datapath.storage.snapshot.set_current", _failing)


def _fail_the_reopening(_: LocalReplica, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "reopen", _failing)


def _fail_the_sync(_: LocalReplica, monkeypatch: pytest.MonkeyPatch) -> None:
    def finish(writer: SnapshotWriter, checksum: str, count: int) -> None:
        raise DiskFailedError(f"syncing {writer.path} ({checksum}, {count}): it failed")

    monkeypatch.setattr(SnapshotWriter, "finish", finish)


def _break_an_invariant(replica: LocalReplica, monkeypatch: pytest.MonkeyPatch) -> None:
    async def install(offer: Offer, _: object) -> None:
        raise SafetyError(f"a snapshot at {offer.index} is older than commit 99")

    monkeypatch.setattr(replica.receiver, "_on_received", install)


@pytest.mark.parametrize(
    "fail",
    [
        _fail_the_log, _fail_the_switch, _fail_the_reopening, _fail_the_sync, _break_an_invariant,
    ],
)  # fmt: skip
async def test_a_failure_while_a_snapshot_is_installed_ends_the_node(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fail: Callable[[LocalReplica, pytest.MonkeyPatch], None],
) -> None:
    cluster = LocalCluster(tmp_path, KeyValue, PATIENT, Bounds(), 2)
    await cluster.start("n1")
    await cluster.until_in_sync("n1")
    primary = cluster["n1"]
    for number in range(250):
        await primary.execute("put", b"k%d" % number, VALUE)
    await primary.engine.digest()  # all of it is in the store
    primary.storage.log.drop_before(primary.storage.log.last_index)
    primary.engine._on_trimmed(primary.storage.log.first_index)
    late = await cluster.start("n2")
    fail(late, monkeypatch)
    await until(lambda: bool(cluster.failures), "n2 has given up")
    assert late.engine.failed
    assert not primary.engine.failed
    cluster.failures.clear()
    monkeypatch.undo()
    for node in ("n2", "n1"):
        await cluster.stop(node)


async def test_a_disk_that_fails_when_room_is_asked_for_ends_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backup's tick asks for room, and so do an append and a batch: none is a link's affair."""
    cluster = LocalCluster(tmp_path, KeyValue, PATIENT, Bounds(), 1)
    replica = await cluster.start("n1")
    await cluster.until_in_sync("n1")

    def reserve(n_bytes: int) -> bool:
        raise DiskFailedError(f"preallocating {n_bytes} bytes: {os.strerror(5)}")

    monkeypatch.setattr(replica.storage, "reserve", reserve)
    writing = asyncio.create_task(replica.execute("put", b"k", VALUE))
    await until(lambda: bool(cluster.failures), "n1 has given up")
    assert replica.engine.failed
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    cluster.failures.clear()
    await cluster.stop("n1")


async def test_a_disk_that_fails_under_a_message_ends_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The link is closed for it, and that alone would hide it."""
    cluster = LocalCluster(tmp_path, KeyValue, PATIENT, Bounds(), 2)
    for node in ("n1", "n2"):
        await cluster.start(node)
    await cluster.until_in_sync()

    def reserve(_: object) -> bool:
        raise DiskFailedError(f"preallocating the spare: {os.strerror(5)}")

    monkeypatch.setattr(cluster["n2"].engine.incoming._room, "reserve", reserve)
    writing = asyncio.create_task(cluster["n1"].execute("put", b"k", VALUE))
    await until(lambda: bool(cluster.failures), "n2 has given up")
    assert cluster["n2"].engine.failed
    assert not cluster["n1"].engine.failed
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    cluster.failures.clear()
    for node in ("n2", "n1"):
        await cluster.stop(node)
