"""What a replica's disk says that it holds, and what it keeps of its log."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from datapath.node.replica_disk import ReplicaStorage
from datapath.records import Entry, make_record
from datapath.storage.data_directory import DataDirectory
from tests.unit.datapath.storage.storage_faults import SEGMENT_SIZE_BYTES, abandon

VALUE = b"v" * 1000


class Disk:
    """A storage, opened as often as wanted; closing it is a crash."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._open()

    def _open(
        self, retention_bytes: int = 0, catchup_bytes: int = 0, retention_ms: int = 0
    ) -> None:
        self.directory = DataDirectory.open(self._path, node_id="n1")
        self.storage = ReplicaStorage(
            self.directory,
            segment_size_bytes=SEGMENT_SIZE_BYTES,
            map_size_bytes=1 << 24,
            flush_bytes=1 << 20,
            retention_bytes=retention_bytes,
            catchup_bytes=catchup_bytes,
            retention_ms=retention_ms,
        )

    def reopen(
        self, *, retention_bytes: int = 0, catchup_bytes: int = 0, retention_ms: int = 0
    ) -> ReplicaStorage:
        """Crash, and start again."""
        self.close()
        self._open(retention_bytes, catchup_bytes, retention_ms)
        return self.storage

    def append(self, n_records: int, *, commit_index: int = 0) -> None:
        """Write records of one entry each, which say that much is committed."""
        log = self.storage.log
        self.storage.accepted.record(1, "n1")  # E5: before any entry of that epoch
        for _ in range(n_records):
            index = log.last_index + 1
            entry: Entry = [(0, b"k%d" % index, VALUE)]
            log.append([make_record(index, 1, commit_index, [entry])], durable=True)

    def apply(self, up_to: int, *, flush: bool = True) -> None:
        """Apply entries to the store."""
        store = self.storage.store
        for record in self.storage.log.read(store.applied_index + 1, 1 << 24):
            if record.last_index <= up_to:
                store.apply(record.entries(), record.last_index, record.epoch)
        if flush:
            store.flush()

    def close(self) -> None:
        """End it like a crash."""
        abandon(self.storage.log)
        self.storage.store.close()
        self.storage.accepted.close()
        self.directory.close()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    opened = Disk(tmp_path)
    yield opened
    opened.close()


# -- recovery (D2)


def test_recovery_applies_what_is_known_to_be_committed_and_nothing_else(disk: Disk) -> None:
    """What stands after it in the log may be cut by the next primary."""
    disk.append(3)
    disk.append(2, commit_index=2)
    storage = disk.reopen()
    recovered = storage.recover()
    assert recovered.commit_index == 2
    assert recovered.log.last_index == 5
    assert storage.store.applied_index == 2
    assert storage.store.get(0, b"k2") == VALUE
    assert storage.store.get(0, b"k3") is None
    assert [record.first_index for record in storage.uncommitted(2)] == [3, 4, 5]


def test_recovery_goes_on_from_what_the_store_has(disk: Disk) -> None:
    disk.append(5)
    disk.apply(3)
    storage = disk.reopen()
    assert storage.recover().commit_index == 3
    assert storage.store.get(0, b"k4") is None


# -- trimming


def _segments(storage: ReplicaStorage) -> list[int]:
    """The last entry of each segment."""
    return [segment.last_index for segment in storage.log.segment_bounds()]


async def _trim(storage: ReplicaStorage, oldest_needed: int) -> int:
    """Trim, and return the first entry that is still there."""
    done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    storage.trim(oldest_needed, done.set_result)
    if storage._trimming is not None:
        await asyncio.wait_for(done, 30)
    return storage.log.first_index


async def test_all_but_the_last_segment_may_go_when_the_store_has_it(disk: Disk) -> None:
    disk.append(60)
    disk.apply(60)
    storage = disk.reopen()
    ends = _segments(storage)
    assert len(ends) > 3
    assert await _trim(storage, oldest_needed=61) == ends[-2] + 1


async def test_what_the_store_has_not_on_disk_stays_in_the_log(disk: Disk) -> None:
    """Else a crash would leave a gap between them."""
    disk.append(60)
    flushed = _segments(disk.storage)[1]
    disk.apply(flushed)
    storage = disk.reopen()
    disk.apply(60, flush=False)
    assert await _trim(storage, oldest_needed=61) == flushed + 1


async def test_the_log_after_a_snapshot_that_is_on_its_way_stays(disk: Disk) -> None:
    disk.append(60)
    disk.apply(60)
    storage = disk.reopen(catchup_bytes=1 << 30)
    first_end = _segments(storage)[0]
    storage.retention.begin_snapshot("n2", first_end)
    assert await _trim(storage, oldest_needed=61) == first_end + 1
    storage.retention.end_snapshot("n2", 0.0, installed=False)
    assert await _trim(storage, oldest_needed=61) > first_end + 1


async def test_what_a_replica_lacks_stays_within_the_bound_of_catch_up(disk: Disk) -> None:
    disk.append(60)
    disk.apply(60)
    needed = _segments(disk.storage)[0] + 1
    assert await _trim(disk.reopen(catchup_bytes=1 << 30), oldest_needed=needed) == needed
    ends = _segments(disk.storage)
    storage = disk.reopen(catchup_bytes=2 * SEGMENT_SIZE_BYTES)
    assert await _trim(storage, oldest_needed=needed) > needed
    assert storage.log.first_index < ends[-1]


async def test_the_newest_of_the_log_is_retained_though_nobody_needs_it(disk: Disk) -> None:
    disk.append(60)
    disk.apply(60)
    storage = disk.reopen(retention_bytes=2 * SEGMENT_SIZE_BYTES)
    ends = _segments(storage)
    assert 1 < await _trim(storage, oldest_needed=61) <= ends[-2]
    assert storage.log.size_bytes >= 2 * SEGMENT_SIZE_BYTES


HOUR_MS = 3_600_000


def _age(storage: ReplicaStorage, n_segments: int, age_ms: float) -> None:
    """Make the oldest segments as old as this, by the dates of their files."""
    for path in sorted((storage.log.directory).glob("*.seg"))[:n_segments]:
        then_s = time.time() - age_ms / 1000
        os.utime(path, (then_s, then_s))


async def test_history_is_kept_for_a_time_also_over_restarts(disk: Disk) -> None:
    disk.append(60)
    disk.apply(60)
    ends = _segments(disk.storage)
    _age(disk.storage, 2, 2 * HOUR_MS)
    storage = disk.reopen(catchup_bytes=1 << 30, retention_ms=HOUR_MS)
    assert await _trim(storage, oldest_needed=61) == ends[1] + 1
    assert await _trim(storage, oldest_needed=61) == ends[1] + 1


async def test_what_was_just_written_is_young(disk: Disk) -> None:
    storage = disk.reopen(catchup_bytes=1 << 30, retention_ms=HOUR_MS)
    disk.append(60)
    disk.apply(60)
    assert await _trim(storage, oldest_needed=61) == 1


async def test_history_by_time_stays_within_the_bound_of_catch_up(disk: Disk) -> None:
    disk.append(60)
    disk.apply(60)
    ends = _segments(disk.storage)
    storage = disk.reopen(catchup_bytes=2 * SEGMENT_SIZE_BYTES, retention_ms=HOUR_MS)
    assert 1 < await _trim(storage, oldest_needed=61) <= ends[-2]
    assert storage.log.size_bytes >= 2 * SEGMENT_SIZE_BYTES
