"""Snapshots read by a process of their own: the same chunks, and no end leaves anything."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from datapath.errors import DataDirectoryError, TransferError
from datapath.node.replica_disk import ReplicaStorage
from datapath.storage import snapshot_process
from datapath.storage.data_directory import DataDirectory
from datapath.storage.snapshot import SnapshotReader
from datapath.storage.snapshot_process import SnapshotProcess
from datapath.storage.store import Store
from tests.support.damage import flip_byte
from tests.support.processes import is_alive

CHUNK_BYTES = 4096
ENTRIES = 300


def fill(store: Store, value: bytes) -> None:
    store.apply(
        [[(n % 3, b"key%d" % n, value * 10)] for n in range(ENTRIES)],
        store.applied_index + ENTRIES,
        store.active.epoch + 1,
    )
    store.flush()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with contextlib.closing(Store.open(tmp_path / "store")) as store:
        fill(store, b"first")
        yield store


@pytest.fixture
def source(store: Store) -> Iterator[SnapshotProcess]:
    source = SnapshotProcess(store.acquire_environment(), chunk_size_bytes=CHUNK_BYTES)
    with contextlib.closing(source):
        source.start()
        yield source


def readers(store: Store) -> int:
    """How many readers LMDB knows of, beside its header line and the store's own."""
    environment = store.acquire_environment()
    try:
        return len(environment.lmdb.readers().strip().splitlines()) - 2
    finally:
        environment.release()


def wait_until_ended(pid: int) -> None:
    deadline = time.monotonic() + 10
    while is_alive(pid):
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.01)


def test_its_chunks_are_those_of_a_reader_in_this_process(
    store: Store, source: SnapshotProcess
) -> None:
    with contextlib.closing(
        SnapshotReader(store.acquire_environment(), chunk_size_bytes=CHUNK_BYTES)
    ) as reader:
        digest = store.digest()
        fill(store, b"later")
        assert (source.index, source.epoch) == (reader.index, reader.epoch) == (ENTRIES, 1)
        number = 0
        while (chunk := source.read_chunk(number)) is not None:
            assert chunk == reader.read_chunk(number)
            assert source.read_chunk(number) == chunk, "a chunk may be read again"
            number += 1
        assert number > 3
        assert reader.read_chunk(number) is None
        assert (source.count, source.checksum) == (reader.count, reader.checksum)
        assert (source.index, source.checksum) == digest != store.digest()


def test_when_it_is_closed_nothing_is_left(store: Store, source: SnapshotProcess) -> None:
    assert readers(store) == 1
    source.close()
    source.close()
    assert not is_alive(source.pid)
    assert readers(store) == 0
    with pytest.raises(TransferError, match="has gone"):
        source.read_chunk(0)


def test_one_that_is_killed_is_told_and_gives_its_pages_back(
    store: Store, source: SnapshotProcess
) -> None:
    source.read_chunk(0)
    os.kill(source.pid, signal.SIGKILL)
    with pytest.raises(TransferError, match="has ended"):
        source.read_chunk(1)
    source.close()
    assert readers(store) == 0


def test_one_that_hangs_is_told_and_ended(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot_process, "CHUNK_TIMEOUT_S", 3)
    source = SnapshotProcess(store.acquire_environment(), chunk_size_bytes=CHUNK_BYTES)
    source.start()
    os.kill(source.pid, signal.SIGSTOP)
    with pytest.raises(TransferError, match="does not answer"):
        source.read_chunk(0)
    with pytest.raises(TransferError, match="has gone"):
        source.read_chunk(0)  # a late answer must not be taken for this chunk
    source.close()
    assert not is_alive(source.pid)
    assert readers(store) == 0


@pytest.mark.parametrize("without", ["python", "descriptors"])
def test_one_that_cannot_be_started_is_no_damage(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, without: str
) -> None:
    source = SnapshotProcess(store.acquire_environment())
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        if without == "python":
            monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
        else:
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, limit[1]))
        with pytest.raises(TransferError, match="could not be started"):
            source.start()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
        source.close()


def test_an_environment_that_is_gone_is_no_damage(store: Store, tmp_path: Path) -> None:
    environment = store.acquire_environment()
    environment.path.rename(tmp_path / "elsewhere")
    source = SnapshotProcess(environment)
    try:
        with pytest.raises(TransferError, match="could not open the store"):
            source.start()
    finally:
        source.close()
        (tmp_path / "elsewhere").rename(environment.path)


def test_damage_that_it_meets_is_damage(tmp_path: Path) -> None:
    value = b"a value that stands nowhere else"
    with contextlib.closing(Store.open(tmp_path / "store")) as store:
        store.apply([[(0, b"key", value)]], 1, 1)
        store.flush()
    (file,) = (tmp_path / "store").glob("env-*/data.mdb")
    flip_byte(file, file.read_bytes().find(value) + 5)
    with contextlib.closing(Store.open(tmp_path / "store")) as store:
        source = SnapshotProcess(store.acquire_environment())
        with contextlib.closing(source):
            source.start()
            with pytest.raises(DataDirectoryError, match="join as a new node"):
                source.read_chunk(0)


async def test_a_cancelled_start_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids: list[int] = []
    start = SnapshotProcess.start

    def noted(source: SnapshotProcess) -> None:
        start(source)
        pids.append(source.pid)

    monkeypatch.setattr(SnapshotProcess, "start", noted)
    with contextlib.closing(DataDirectory.open(tmp_path / "data", node_id="n1")) as directory:
        storage = ReplicaStorage(
            directory,
            segment_size_bytes=1 << 20,
            map_size_bytes=1 << 30,
            flush_bytes=1 << 20,
            retention_bytes=1 << 20,
            catchup_bytes=1 << 20,
        )
        opening = asyncio.create_task(storage.snapshot_reader())
        await asyncio.sleep(0.01)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        assert [is_alive(pid) for pid in pids] == [False]
        assert readers(storage.store) == 0
        await storage.stop()


def test_it_ends_with_a_node_that_is_killed(tmp_path: Path) -> None:
    program = (
        "import sys, time\n"
        "from datapath.storage.snapshot_process import SnapshotProcess\n"
        "from datapath.storage.store import Store\n"
        "store = Store.open(sys.argv[1])\n"
        "source = SnapshotProcess(store.acquire_environment())\n"
        "source.start()\n"
        "print(source.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    node = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "store")], stdout=subprocess.PIPE, text=True
    )
    with node:
        assert node.stdout is not None
        pid = int(node.stdout.readline())
        assert is_alive(pid)
        node.kill()
    wait_until_ended(pid)
