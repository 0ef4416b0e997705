"""A snapshot is the state at one index, takes over in one step, and can be resumed."""

from __future__ import annotations

import errno
import random
import threading
from pathlib import Path

import pytest

from datapath.errors import DiskFailedError, SafetyError
from datapath.keyspaces import KEYSPACES, KV
from datapath.storage.environment import set_current
from datapath.storage.snapshot import SnapshotReader, SnapshotWriter
from datapath.storage.store import Store

CHUNK_BYTES = 2000


def fill(store: Store, count: int, seed: int = 0) -> None:
    chance = random.Random(seed)
    store.apply(
        [
            [(number % KEYSPACES, b"%d" % chance.randrange(10**6), chance.randbytes(20))]
            for number in range(count)
        ],
        store.applied_index + count,
        2,
    )
    store.flush()


def transfer(reader: SnapshotReader, writer: SnapshotWriter) -> int:
    while (chunk := reader.read_chunk(writer.next_chunk)) is not None:
        writer.feed(writer.next_chunk, chunk)
    return writer.next_chunk


def test_a_snapshot_read_while_writes_go_on_is_the_state_at_its_index(tmp_path: Path) -> None:
    source, target = Store.open(tmp_path / "1"), Store.open(tmp_path / "2")
    fill(source, 3000)
    digest = source.digest()
    reader = SnapshotReader(source.acquire_environment(), chunk_size_bytes=CHUNK_BYTES)
    assert (reader.index, reader.epoch) == (3000, 2)
    writer = SnapshotWriter(target.directory, reader.index, reader.epoch, cluster_id="c1")
    seed = 1
    while (chunk := reader.read_chunk(writer.next_chunk)) is not None:
        assert len(chunk) < 2 * CHUNK_BYTES
        writer.feed(writer.next_chunk, chunk)
        fill(source, 50, seed)
        source.apply([[(KV, b"%d" % seed, None)]], source.applied_index + 1, 2)
        seed += 1
    assert writer.next_chunk > 20
    assert reader.checksum == digest[1]
    writer.finish(reader.checksum, reader.count)
    writer.install()
    target.reopen()
    target.remove_leftovers()
    assert target.digest() == digest
    assert (target.applied_index, target.active.epoch) == (3000, 2)
    assert target.cluster_id == "c1"
    assert len(list((tmp_path / "2").glob("env-*"))) == 1
    reader.close()
    source.close()
    target.close()
    target = Store.open(tmp_path / "2", cluster_id="c1")
    assert target.digest() == digest
    target.close()


def test_chunks_are_the_same_whenever_they_are_read_again(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    fill(store, 1000)
    reader = SnapshotReader(store.acquire_environment(), chunk_size_bytes=CHUNK_BYTES)
    chunks: list[bytes] = []
    while (chunk := reader.read_chunk(len(chunks))) is not None:
        chunks.append(chunk)
        with pytest.raises(ValueError, match="before chunk"):
            SnapshotReader(store.acquire_environment(), chunk_size_bytes=CHUNK_BYTES).read_chunk(1)
    checksum, count = reader.checksum, reader.count
    fill(store, 500, 7)
    for number in reversed(range(len(chunks))):
        assert reader.read_chunk(number) == chunks[number]
    assert reader.read_chunk(len(chunks)) is None
    assert reader.read_chunk(len(chunks) + 1) is None
    assert (reader.checksum, reader.count) == (checksum, count)
    reader.close()
    reader.close()
    store.close()


def test_a_broken_transfer_goes_on_where_it_stopped(tmp_path: Path) -> None:
    source, target = Store.open(tmp_path / "1"), Store.open(tmp_path / "2")
    fill(source, 1000)
    reader = SnapshotReader(source.acquire_environment(), chunk_size_bytes=CHUNK_BYTES)
    writer = SnapshotWriter(target.directory, reader.index, reader.epoch)
    chunks = [reader.read_chunk(number) or b"" for number in range(3)]
    writer.feed(0, chunks[0])
    writer.feed(1, chunks[1])
    writer.feed(0, chunks[0])  # sent again after the break
    assert writer.next_chunk == 2
    with pytest.raises(ValueError, match="but 2 is next"):
        writer.feed(3, chunks[2])
    for damaged in (chunks[2][:-1], b"\xc1" + chunks[2][1:]):
        with pytest.raises(ValueError, match="damaged"):
            writer.feed(2, damaged)
    transfer(reader, writer)
    writer.finish(reader.checksum, reader.count)
    writer.install()
    target.reopen()
    assert target.digest() == source.digest()
    reader.close()
    source.close()
    target.close()


def test_chunks_out_of_order_are_refused(tmp_path: Path) -> None:
    source, target = Store.open(tmp_path / "1"), Store.open(tmp_path / "2")
    fill(source, 1000)
    reader = SnapshotReader(source.acquire_environment(), chunk_size_bytes=CHUNK_BYTES)
    writer = SnapshotWriter(target.directory, reader.index, reader.epoch)
    first = reader.read_chunk(0) or b""
    second = reader.read_chunk(1) or b""
    writer.feed(0, second)
    for wrong in (first, second):
        with pytest.raises(ValueError, match="not in key order"):
            writer.feed(1, wrong)
    writer.abort()
    reader.close()
    source.close()
    target.close()


@pytest.mark.parametrize("wrong", ["checksum", "count", "a chunk is missing", "a bit"])
def test_a_whole_that_is_not_what_was_read_is_refused(tmp_path: Path, wrong: str) -> None:
    source, target = Store.open(tmp_path / "1"), Store.open(tmp_path / "2")
    fill(source, 1000)
    reader = SnapshotReader(source.acquire_environment(), chunk_size_bytes=CHUNK_BYTES)
    number = 0
    writer = SnapshotWriter(target.directory, reader.index, reader.epoch)
    while (chunk := reader.read_chunk(number)) is not None:
        if wrong == "a bit" and number == 2:
            chunk = chunk[:-1] + bytes([chunk[-1] ^ 1])
        if wrong != "a chunk is missing" or number != 2:
            writer.feed(writer.next_chunk, chunk)
        number += 1
    with pytest.raises(ValueError, match="items"):
        writer.finish(
            "00" * 16 if wrong == "checksum" else reader.checksum,
            reader.count + (wrong == "count"),
        )
    with pytest.raises(ValueError, match="not finished"):
        writer.install()
    writer.abort()
    assert len(list((tmp_path / "2").glob("env-*"))) == 1
    reader.close()
    source.close()
    target.close()


@pytest.mark.parametrize("stop_after", ["feed", "finish", "install", "reopen"])
def test_a_crash_leaves_the_old_store_or_the_new_one_whole(tmp_path: Path, stop_after: str) -> None:
    source, target = Store.open(tmp_path / "1"), Store.open(tmp_path / "2")
    fill(source, 1000)
    fill(target, 10, 5)
    old, new = target.digest(), source.digest()
    reader = SnapshotReader(source.acquire_environment(), chunk_size_bytes=CHUNK_BYTES)
    writer = SnapshotWriter(target.directory, reader.index, reader.epoch)
    transfer(reader, writer)
    if stop_after == "feed":
        assert writer._environment is not None
        writer._environment.release()
    else:
        writer.finish(reader.checksum, reader.count)
    if stop_after in ("install", "reopen"):
        writer.install()
    if stop_after == "reopen":
        target.reopen()
    target.close()
    (tmp_path / "2" / "CURRENT.new").write_text("half of a na")  # a crash inside the swap
    target = Store.open(tmp_path / "2")
    assert target.digest() == (new if stop_after in ("install", "reopen") else old)
    assert len(list((tmp_path / "2").glob("env-*"))) == 1
    reader.close()
    source.close()
    target.close()


@pytest.mark.parametrize("reopened", [False, True])
def test_to_abort_an_installed_snapshot_does_nothing(tmp_path: Path, reopened: bool) -> None:
    source, target = Store.open(tmp_path / "1"), Store.open(tmp_path / "2")
    fill(source, 1000)
    reader = SnapshotReader(source.acquire_environment(), chunk_size_bytes=CHUNK_BYTES)
    writer = SnapshotWriter(target.directory, reader.index, reader.epoch)
    transfer(reader, writer)
    writer.finish(reader.checksum, reader.count)
    writer.install()
    if reopened:
        target.reopen()
    writer.abort()
    target.close()
    target = Store.open(tmp_path / "2")
    assert target.digest() == source.digest()
    reader.close()
    source.close()
    target.close()


def test_to_abort_after_an_install_that_failed_late_does_not_delete_what_current_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = Store.open(tmp_path / "1"), Store.open(tmp_path / "2")
    fill(source, 1000)
    reader = SnapshotReader(source.acquire_environment(), chunk_size_bytes=CHUNK_BYTES)
    writer = SnapshotWriter(target.directory, reader.index, reader.epoch)
    transfer(reader, writer)
    writer.finish(reader.checksum, reader.count)

    def swap_and_fail(directory: Path, name: str) -> None:
        set_current(directory, name)
        raise OSError(errno.EIO, "the directory cannot be synced")

    monkeypatch.setattr("datapath.storage.snapshot.set_current", swap_and_fail)
    with pytest.raises(DiskFailedError):
        writer.install()
    writer.abort()
    target.close()
    target = Store.open(tmp_path / "2")
    assert target.digest() == source.digest()
    reader.close()
    source.close()
    target.close()


@pytest.mark.parametrize("at_the_end", [False, True])
def test_a_sync_on_the_way_that_fails_is_not_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_the_end: bool
) -> None:
    """A later sync of the same file may succeed although what this one should write is lost."""
    source, target = Store.open(tmp_path / "1"), Store.open(tmp_path / "2")
    fill(source, 1000)
    reader = SnapshotReader(source.acquire_environment(), chunk_size_bytes=CHUNK_BYTES)
    writer = SnapshotWriter(target.directory, reader.index, reader.epoch)
    chunks: list[bytes] = []
    while (chunk := reader.read_chunk(len(chunks))) is not None:
        chunks.append(chunk)

    def fail(_: Path) -> None:
        raise OSError(errno.EIO, "it cannot be written")

    def feed_all() -> None:
        for number, chunk in enumerate(chunks):
            if number == (len(chunks) - 1 if at_the_end else 3):
                monkeypatch.setattr("datapath.storage.snapshot.sync_file", fail)
                monkeypatch.setattr("datapath.storage.snapshot.WRITE_BACK_BYTES", 1)
            writer.feed(number, chunk)
        writer.finish(reader.checksum, reader.count)

    with pytest.raises(DiskFailedError):
        feed_all()
    writer.abort()
    assert len(list((tmp_path / "2").glob("env-*"))) == 1
    reader.close()
    source.close()
    target.close()


def test_an_empty_state_is_a_snapshot_of_no_chunks(tmp_path: Path) -> None:
    source, target = Store.open(tmp_path / "1"), Store.open(tmp_path / "2")
    source.apply([[]], 1, 4)
    source.flush()
    reader = SnapshotReader(source.acquire_environment())
    with pytest.raises(ValueError, match="to its end"):
        _ = reader.checksum
    writer = SnapshotWriter(target.directory, reader.index, reader.epoch)
    assert transfer(reader, writer) == 0
    writer.finish(reader.checksum, reader.count)
    writer.install()
    target.reopen()
    assert (target.applied_index, target.active.epoch) == (1, 4)
    reader.close()
    source.close()
    target.close()


def test_a_snapshot_older_than_the_store_is_refused(tmp_path: Path) -> None:
    source, target = Store.open(tmp_path / "1"), Store.open(tmp_path / "2")
    fill(source, 10)
    fill(target, 20)
    reader = SnapshotReader(source.acquire_environment())
    writer = SnapshotWriter(target.directory, reader.index, reader.epoch)
    transfer(reader, writer)
    writer.finish(reader.checksum, reader.count)
    writer.install()
    with pytest.raises(SafetyError, match="older"):
        target.reopen()
    reader.close()
    source.close()
    target.close()


def test_replacing_the_store_does_not_disturb_those_who_still_read_the_old_one(
    tmp_path: Path,
) -> None:
    source, target = Store.open(tmp_path / "1"), Store.open(tmp_path / "2")
    fill(source, 3000)
    fill(target, 2000, 9)
    old = target.digest()[1]
    slow = SnapshotReader(target.acquire_environment(), chunk_size_bytes=CHUNK_BYTES)
    assert slow.read_chunk(0)
    reader = SnapshotReader(source.acquire_environment())
    writer = SnapshotWriter(target.directory, reader.index, reader.epoch)
    transfer(reader, writer)
    writer.finish(reader.checksum, reader.count)
    writer.install()
    target.reopen()
    target.remove_leftovers()

    def read_on() -> None:
        number = 1
        while slow.read_chunk(number) is not None:
            number += 1

    thread = threading.Thread(target=read_on)
    thread.start()
    thread.join()
    assert slow.checksum == old
    slow.close()
    reader.close()
    source.close()
    target.close()
