"""The log's promises about room, order, failures and reading."""

from __future__ import annotations

import errno
import functools
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from datapath.errors import DiskFailedError, DiskFullError, SafetyError
from datapath.storage.log import Log
from datapath.storage.log_files import Files
from tests.unit.datapath.storage.storage_faults import (
    SEGMENT_SIZE_BYTES,
    FailingFiles,
    ShortWrites,
    abandon,
    held,
    record,
    records,
)


def open_log(directory: Path, files: Files | None = None) -> Log:
    return Log.open(directory, segment_size_bytes=SEGMENT_SIZE_BYTES, files=files)


def no_room() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def bad_disk() -> OSError:
    return OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_record_larger_than_a_segment_gets_a_segment_of_its_own_size(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    whole = [record(1), record(2, size=5 * SEGMENT_SIZE_BYTES), record(3), record(4)]
    for item in whole:
        log.append([item], durable=True)
    assert held(log) == [item.data for item in whole]
    log.close()
    log = open_log(tmp_path)
    assert held(log) == [item.data for item in whole]
    log.close()


def test_reserved_room_is_there_without_more_disk_space(tmp_path: Path) -> None:
    files = FailingFiles(10_000, no_room(), ["allocate"])
    log = open_log(tmp_path, files)
    big = record(1, size=3 * SEGMENT_SIZE_BYTES)
    assert log.reserve(len(big.data))
    files.fail_at = files.calls  # the disk is full from here on
    assert log.reserve(len(big.data))
    log.append([big], durable=True)
    assert not log.reserve(2 * SEGMENT_SIZE_BYTES)
    assert not (tmp_path / "spare").exists()
    assert held(log) == [big.data]
    abandon(log)


def test_the_next_segment_is_prepared_once_the_current_one_is_half_full(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    log.append([record(1)], durable=True)
    wanted = [log.wants_preparing]
    log.append([record(2, size=SEGMENT_SIZE_BYTES // 2)], durable=True)
    wanted.append(log.wants_preparing)
    assert log.prepare_next_segment()
    wanted.append(log.wants_preparing)
    assert wanted == [False, True, False]
    assert log.room_bytes >= SEGMENT_SIZE_BYTES - 64
    log.close()


def test_without_room_for_the_next_segment_nothing_of_an_append_stays(tmp_path: Path) -> None:
    files = FailingFiles(1, no_room(), ["allocate"])
    log = open_log(tmp_path, files)
    log.append(records(1, 3), durable=True)
    with pytest.raises(DiskFullError):
        log.append(records(4, 100))
    assert (log.last_index, len(held(log))) == (3, 3)
    files.fail_at = 10_000
    log._full_until = 0.0  # the pause before the disk is asked again is over
    log.append(records(4, 100), durable=True)
    log.close()
    assert open_log(tmp_path).last_index == 103


@pytest.mark.parametrize("durable", [True, False])
def test_a_short_write_on_a_full_disk_is_taken_back(tmp_path: Path, durable: bool) -> None:
    open_log(tmp_path).close()
    files = ShortWrites(10_000)
    log = open_log(tmp_path, files)
    log.append(records(1, 3), durable=True)
    files.room_bytes = 90
    with pytest.raises(DiskFullError):
        log.append(records(4, 4), durable=durable)
    assert log.last_index == 3
    abandon(log)
    log = open_log(tmp_path)
    assert not log.tail_cut
    assert log.last_index == 3
    log.close()


@pytest.mark.parametrize("method", ["write", "sync"])
def test_after_a_failed_write_or_sync_the_log_refuses_all_change(
    tmp_path: Path, method: str
) -> None:
    files = FailingFiles(10_000, bad_disk(), [method])
    log = open_log(tmp_path, files)
    log.append(records(1, 3), durable=True)
    files.fail_at = files.calls
    if method == "sync":
        log.append(records(4, 3))
        fail: Callable[[], None] = log.sync
    else:
        fail = functools.partial(log.append, records(4, 3))
    with pytest.raises(DiskFailedError):
        fail()
    files.fail_at = 10_000  # the disk may say yes again: it is not asked (D9)
    calls = files.calls
    changes: list[Callable[[], None]] = [
        lambda: log.append(records(4, 1)),
        log.sync,
        lambda: log.truncate(2),
        lambda: log.reset(9, 9),
        lambda: log.drop_before(2),
    ]
    for change in changes:
        with pytest.raises(DiskFailedError):
            change()
    assert not log.reserve(1 << 20)
    assert files.calls == calls
    assert log.read(1, 1 << 20)
    abandon(log)


def test_no_room_said_by_a_sync_is_a_failed_disk(tmp_path: Path) -> None:
    files = FailingFiles(10_000, no_room(), ["sync"])
    log = open_log(tmp_path, files)
    log.append(records(1, 3), durable=True)
    files.fail_at = files.calls
    log.append(records(4, 3))
    with pytest.raises(DiskFailedError):
        log.sync()
    abandon(log)


def test_a_file_system_without_write_through_is_synced_instead(tmp_path: Path) -> None:
    class Plain(Files):
        syncs = 0

        def write(self, descriptor: int, buffers: object, offset: int, flags: int) -> int:
            if flags:
                raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
            return super().write(descriptor, buffers, offset, flags)  # type: ignore[arg-type]

        def sync(self, descriptor: int) -> None:
            self.syncs += 1
            super().sync(descriptor)

    files = Plain()
    log = open_log(tmp_path, files)
    log.append(records(1, 3), durable=True)
    before = files.syncs
    log.append(records(4, 3), durable=True)
    assert files.syncs == before + 1
    assert len(held(log)) == 6
    log.close()


def test_only_what_follows_can_be_appended(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    log.append([record(1, epoch=3)])
    for wrong in (record(1, epoch=3), record(3, epoch=3), record(2, epoch=2)):
        with pytest.raises(SafetyError):
            log.append([wrong])
    with pytest.raises(SafetyError):
        log.append([record(2, epoch=3), record(4, epoch=3)])
    assert log.last_index == 1
    log.close()


def test_a_record_is_never_cut_in_two(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    log.append([record(1, entries=5)])
    with pytest.raises(SafetyError):
        log.truncate(3)
    assert log.last_index == 5
    log.close()


def test_reading_gives_the_record_that_holds_the_index_and_at_least_one(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    whole = [record(1, entries=5), record(6, entries=5, size=3000), record(11)]
    log.append(whole)
    assert [item.first_index for item in log.read(3, 1)] == [1]
    assert [item.first_index for item in log.read(6, 1)] == [6]
    assert [item.first_index for item in log.read(3, 1 << 20)] == [1, 6, 11]
    assert log.read(12, 1 << 20) == []
    log.close()
    log = open_log(tmp_path)
    log.reset(20, 2)
    with pytest.raises(IndexError):
        log.read(20, 1)
    log.close()


def test_old_segments_go_whole_and_never_the_last(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    for first in range(1, 61, 3):
        log.append(records(first, 3, size=200, commit=first - 1), durable=True)
    assert log.commit_hint == 57
    size = log.size_bytes
    second = log._segments[1].first_index
    log.drop_before(second)
    assert (log.first_index, log.base_epoch) == (second, 1)
    assert log.size_bytes < size
    log.drop_before(1000)
    assert log.first_index == log._segments[-1].first_index > second
    assert len(list(tmp_path.glob("*.seg"))) == 1
    log.close()


def test_records_can_be_read_while_others_are_appended(tmp_path: Path) -> None:
    log = Log.open(tmp_path, segment_size_bytes=1 << 16)
    done = threading.Event()
    problems: list[str] = []

    def read_all() -> None:
        index = 1
        while not done.is_set() or index <= log.last_index:
            for item in log.read(index, 5000):
                if item.first_index != index:
                    problems.append(f"{item.first_index} instead of {index}")
                index = item.last_index + 1

    reader = threading.Thread(target=read_all)
    reader.start()
    for first in range(1, 3001, 10):
        log.append(records(first, 10, size=60))
    done.set()
    reader.join()
    assert not problems
    assert len(log._segments) > 2
    log.close()


def test_old_segments_can_be_dropped_while_records_are_appended(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    done = threading.Event()

    def drop_all() -> None:
        while not done.is_set():
            log.drop_before(log.last_index)

    dropper = threading.Thread(target=drop_all)
    dropper.start()
    for first in range(1, 3001, 10):
        log.append(records(first, 10, size=60))
    done.set()
    dropper.join()
    assert log.last_index == 3000
    assert log.first_index > 1
    abandon(log)
    log = Log.open(tmp_path, segment_size_bytes=SEGMENT_SIZE_BYTES, base_index=3000, base_epoch=1)
    assert log.last_index == 3000
    assert not log.repairs
    log.close()
