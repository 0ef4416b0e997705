"""What the event loop writes of the log itself, where the disk has been fast (decision 47)."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from datapath.errors import DiskFailedError
from datapath.records import Record
from datapath.storage import log_writer
from datapath.storage.log import Log
from datapath.storage.log_files import Files
from datapath.storage.log_writer import MAX_BYTES_HERE
from tests.unit.datapath.storage.storage_faults import FailingFiles, abandon, record
from tests.unit.datapath.storage.test_disk import Owner, until


class NotingFiles(Files):
    """Notes which thread writes."""

    def __init__(self) -> None:
        self.on_loop: list[bool] = []

    def write(self, descriptor: int, buffers: Sequence[bytes], offset: int, flags: int) -> int:
        self.on_loop.append(threading.current_thread() is threading.main_thread())
        return super().write(descriptor, buffers, offset, flags)


class HereOwner(Owner):
    """Appends on the loop where that may be."""

    def append_here(self, records: list[Record]) -> int:
        self.ticket += 2
        self.worker.append_here(self.ticket, records)
        return self.ticket

    async def until_done(self, ticket: int) -> None:
        await until(lambda: self.done[-1:] == [ticket])

    async def warm_up(self) -> None:
        """Write once, as all do: how fast the disk is is known from then on."""
        ticket = self.append_here([record(2)])
        await until(lambda: self.done == [ticket])
        self.done.clear()
        files_of(self).on_loop.clear()


def files_of(owner: Owner) -> NotingFiles:
    files = owner.worker._log._files
    assert isinstance(files, NotingFiles)
    return files


@pytest.fixture
async def owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[HereOwner]:
    monkeypatch.setattr(log_writer, "FAST_SYNC_S", float("inf"))
    log = Log.open(tmp_path / "log", segment_size_bytes=1 << 18, files=NotingFiles())
    log.append([record(1)], durable=True)
    owner = HereOwner(log)
    await owner.warm_up()
    yield owner
    await owner.worker.close()
    abandon(log)


async def test_a_turns_appends_are_one_write_on_the_loop_and_reported_in_the_next(
    owner: HereOwner,
) -> None:
    owner.append_here([record(3)])
    last = owner.append_here([record(4)])
    assert owner.done == [], "never within the call"
    await asyncio.sleep(0)
    assert owner.done == [last]
    assert files_of(owner).on_loop == [True]
    assert owner.worker._log.last_index == 4
    assert owner.worker.queued_bytes == 0
    assert owner.worker.stalled_for_ms() == 0.0


async def test_a_disk_that_was_slow_is_the_threads_until_it_is_fast(
    owner: HereOwner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_writer, "FAST_SYNC_S", 0.0)
    owner.append_here([record(3)])  # on the loop still, and slow
    owner.append_here([record(4)])
    await asyncio.sleep(0)
    last = owner.append_here([record(5)])
    await owner.until_done(last)
    assert files_of(owner).on_loop == [True, False]
    monkeypatch.setattr(log_writer, "FAST_SYNC_S", float("inf"))
    for index in (6, 7):
        last = owner.append_here([record(index)])
        await owner.until_done(last)
    assert files_of(owner).on_loop == [True, False, False, True]


async def test_what_is_under_way_on_the_thread_comes_first(owner: HereOwner) -> None:
    gate = threading.Event()
    owner.call(gate.wait)
    last = owner.append_here([record(3)])
    await asyncio.sleep(0)
    assert owner.done == []
    gate.set()
    await owner.until_done(last)
    assert files_of(owner).on_loop == [False]


async def test_a_job_of_the_same_turn_leaves_all_to_the_thread_in_order(owner: HereOwner) -> None:
    owner.append_here([record(3)])
    owner.call(lambda: owner.worker._log.truncate(3))
    last = owner.append_here([record(3, epoch=2)])
    await owner.until_done(last)
    assert owner.done == sorted(owner.done)
    assert not any(files_of(owner).on_loop)
    assert (owner.worker._log.last_index, owner.worker._log.last_epoch) == (3, 2)


async def test_what_is_large_or_begins_a_segment_is_the_threads(owner: HereOwner) -> None:
    log, written = owner.worker._log, files_of(owner).on_loop
    last = owner.append_here([record(3, size=MAX_BYTES_HERE + 1)])
    await owner.until_done(last)
    assert not any(written)
    while len(log._segments) == 1:
        written.clear()
        last = owner.append_here([record(log.last_index + 1, size=20_000)])
        await owner.until_done(last)
    assert written
    assert not any(written)


async def test_closing_does_what_was_left_for_the_loop(owner: HereOwner) -> None:
    ran: list[bool] = []
    owner.append_here([record(3)])
    owner.call(lambda: ran.append(True))
    await owner.worker.close()
    await owner.until_done(owner.ticket)
    assert owner.worker._log.last_index == 3
    assert ran


async def test_after_a_failure_on_the_loop_nothing_more_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_writer, "FAST_SYNC_S", float("inf"))
    files = FailingFiles(10_000, OSError(errno.EIO, os.strerror(errno.EIO)), ["write"])
    log = Log.open(tmp_path / "log", segment_size_bytes=1 << 16, files=files)
    owner = HereOwner(log)
    good = owner.append_here([record(1)])
    await until(lambda: owner.done == [good])
    files.fail_at = files.calls
    ran: list[bool] = []
    owner.append_here([record(2)])
    await asyncio.sleep(0)
    assert [type(error) for error in owner.errors] == [DiskFailedError]
    owner.append_here([record(3)])
    owner.call(lambda: ran.append(True))
    await owner.worker.close()
    assert owner.done == [good]
    assert len(owner.errors) == 1
    assert not ran
    abandon(log)
