"""A really full disk, a small tmpfs: nothing is lost, and all goes on once there is room."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from datapath.errors import DiskFullError
from datapath.records import Record, make_record
from datapath.storage.accepted import Accepted
from datapath.storage.data_directory import DataDirectory
from datapath.storage.environment import lmdb_failure
from datapath.storage.log import Log
from datapath.storage.snapshot import SnapshotReader, SnapshotWriter
from datapath.storage.store import Store

pytestmark = pytest.mark.slow
SIZE_MIB = 16


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MIB}m", "tmpfs", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mount.returncode:
        pytest.skip(f"mounting a tmpfs is not permitted here: {mount.stderr.strip()}")
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def fill_up(disk: Path, leave_bytes: int = 0) -> Path:
    ballast = disk / "ballast"
    with ballast.open("ab", buffering=0) as file:
        for piece in (1 << 20, 1 << 12):
            try:
                while file.write(bytes(piece)) == piece:
                    pass
            except OSError:
                pass
        if leave_bytes:
            file.truncate(file.tell() - leave_bytes)
    return ballast


def record(index: int, size: int = 1000) -> Record:
    return make_record(index, 1, 0, [[(0, b"k%d" % index, bytes(size))]])


def test_the_log_keeps_its_reservation_and_refuses_what_does_not_fit(disk: Path) -> None:
    log = Log.open(disk / "log", segment_size_bytes=1 << 20)
    log.append([record(1)], durable=True)
    assert log.reserve(1 << 19)
    ballast = fill_up(disk)
    index = 2
    while log.reserve(len(record(index).data)):
        log.append([record(index)], durable=True)
        index += 1
    assert index > (1 << 19) // 1100
    with pytest.raises(DiskFullError):
        log.append([record(index), record(index + 1), record(index + 2)], durable=True)
    assert log.last_index == index - 1
    assert len(log.read(1, 1 << 30)) == index - 1
    ballast.unlink()
    log._full_until = 0.0  # the pause before the disk is asked again is over
    assert log.reserve(1 << 20)
    log.append([record(index, size=2 << 20)], durable=True)
    log.close()
    log = Log.open(disk / "log", segment_size_bytes=1 << 20)
    assert log.last_index == index
    log.close()


def test_a_full_disk_does_not_keep_a_log_from_opening_or_cutting(disk: Path) -> None:
    log = Log.open(disk / "log", segment_size_bytes=1 << 20)
    log.append([record(index) for index in range(1, 500)], durable=True)
    log.close()
    fill_up(disk)
    log = Log.open(disk / "log", segment_size_bytes=1 << 20)
    log.truncate(400)
    log.append([record(400)], durable=True)
    log.close()
    log = Log.open(disk / "log", segment_size_bytes=1 << 20)
    assert log.last_index == 400
    log.close()


@pytest.mark.parametrize("leave_bytes", [0, 40_000, 500_000])
def test_a_flush_without_room_is_tried_again_with_nothing_lost(
    disk: Path, leave_bytes: int
) -> None:
    store = Store.open(disk / "store")
    store.apply([[(0, b"a%d" % n, bytes(100))] for n in range(100)], 100, 1)
    store.flush()
    ballast = fill_up(disk, leave_bytes)
    store.apply([[(0, b"b%d" % n, bytes(1000))] for n in range(2000)], 2100, 1)
    store.freeze()
    for _ in range(3):
        with pytest.raises(DiskFullError):
            store.write_frozen()
        assert store.get(0, b"b1999") == bytes(1000)
        assert store.count(0) == 2100
    ballast.unlink()
    store.write_frozen()
    store.drop_frozen()
    assert store.durable_index == 2100
    store.close()
    store = Store.open(disk / "store")
    assert store.count(0) == 2100
    store.close()


def test_room_that_is_made_just_after_a_flush_had_none_is_no_failed_disk(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LMDB says EIO for both: what counts is the room that there was."""
    store = Store.open(disk / "store")
    ballast = fill_up(disk, 500_000)  # a part fits: a short write
    store.apply([[(0, b"b%d" % n, bytes(1000))] for n in range(2000)], 2000, 1)
    store.freeze()

    def make_room_first(*args: Any) -> Any:
        ballast.unlink()
        return lmdb_failure(*args)

    monkeypatch.setattr("datapath.storage.environment.lmdb_failure", make_room_first)
    with pytest.raises(DiskFullError):
        store.write_frozen()
    store.write_frozen()
    store.drop_frozen()
    assert store.durable_index == 2000
    store.close()


def test_a_new_primary_can_be_accepted_on_a_full_disk(disk: Path) -> None:
    accepted = Accepted(disk / "accepted")
    fill_up(disk)
    for epoch in range(1, 5):
        accepted.record(epoch, f"n{epoch}")
    accepted.set_incomplete()
    accepted.close()
    accepted = Accepted(disk / "accepted")
    assert (accepted.epoch, accepted.primary, accepted.incomplete) == (4, "n4", True)
    accepted.close()


def test_a_pin_without_room_is_not_taken_and_spoils_nothing(disk: Path) -> None:
    directory = DataDirectory.open(disk / "data", node_id="n1")
    directory.bind_cluster("c1")
    fill_up(disk)
    with pytest.raises(DiskFullError):
        directory.pin_peer("n2", "aa" * 3000)
    assert directory.pins == {}
    directory.close()
    directory = DataDirectory.open(disk / "data", node_id="n1")
    assert (directory.cluster_id, directory.pins) == ("c1", {})
    directory.close()


def feed_all(writer: SnapshotWriter, chunks: list[bytes]) -> None:
    for number, chunk in enumerate(chunks):
        writer.feed(number, chunk)


def test_a_snapshot_without_room_is_given_up_without_harm(disk: Path) -> None:
    store = Store.open(disk / "store")
    store.apply([[(0, b"a%d" % n, bytes(1000))] for n in range(3000)], 3000, 1)
    store.flush()
    digest = store.digest()
    reader = SnapshotReader(store.acquire_environment())
    fill_up(disk, 1 << 20)
    writer = SnapshotWriter(store.directory, reader.index, reader.epoch)
    chunks = [reader.read_chunk(number) or b"" for number in range(5)]
    with pytest.raises(DiskFullError):
        feed_all(writer, chunks)
    writer.abort()
    reader.close()
    assert store.digest() == digest
    store.close()
