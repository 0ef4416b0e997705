"""The disk threads: order, group commit, and what the loop hears of failures."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest

from datapath.errors import DiskFailedError, DiskFullError, OverloadedError, SafetyError
from datapath.records import Record
from datapath.storage.log import Log
from datapath.storage.log_files import Files
from datapath.storage.log_writer import MAX_UNFLUSHED_BYTES, LogWriter
from datapath.storage.overlay import MAX_FLUSH_RECORDS
from datapath.storage.store import Store
from datapath.storage.store_flusher import StoreFlusher, is_due
from tests.unit.datapath.storage.storage_faults import FailingFiles, abandon, record, records


async def until(condition: Callable[[], bool], timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        await asyncio.sleep(0.001)


class HangingFiles(Files):
    """Writes wait at the gate; counts them."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.waiting = threading.Event()
        self.writes = 0

    def write(self, descriptor: int, buffers: Sequence[bytes], offset: int, flags: int) -> int:
        self.waiting.set()
        self.gate.wait()
        self.writes += 1
        return super().write(descriptor, buffers, offset, flags)


class Owner:
    """Keeps what the worker reports."""

    def __init__(self, log: Log, **options: int) -> None:
        self.done: list[int] = []
        self.errors: list[Exception] = []
        self.ticket = 0
        self.overlay_bytes = 0  # as of the store
        self.worker = LogWriter(
            log, self, on_done=self.done.append, on_error=self.errors.append, **options
        )

    def append(self, records: list[Record]) -> int:
        """Append under the next ticket, and return it; tickets have gaps."""
        self.ticket += 2
        self.worker.append(self.ticket, records)
        return self.ticket

    def call(self, job: Callable[[], object]) -> None:
        """Have a job done under the next ticket."""
        self.ticket += 2
        self.worker.submit(self.ticket, job)


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[Log]:
    log = Log.open(tmp_path / "log", segment_size_bytes=1 << 16, files=HangingFiles())
    log.append([record(1)], durable=True)
    yield log
    abandon(log)


def files_of(log: Log) -> HangingFiles:
    assert isinstance(log._files, HangingFiles)
    return log._files


async def test_what_waits_together_is_written_together_and_reported_once(log: Log) -> None:
    owner, files = Owner(log), files_of(log)
    files.gate.clear()
    files.waiting.clear()
    first = owner.append([record(2)])
    await asyncio.to_thread(files.waiting.wait)
    writes = files.writes
    last = [owner.append([record(index)]) for index in range(3, 60)][-1]
    assert owner.done == []
    files.gate.set()
    await until(lambda: owner.done[-1:] == [last])
    assert owner.done == [first, last]
    assert files.writes == writes + 2
    assert log.last_index == 59
    assert owner.worker.queued_bytes == 0
    await owner.worker.close()


async def test_jobs_are_done_in_the_order_in_which_they_came(log: Log) -> None:
    owner = Owner(log)
    seen: list[int] = []
    owner.append(records(2, 3))
    owner.call(lambda: seen.append(log.last_index))
    owner.append(records(5, 3))
    owner.call(lambda: log.truncate(3))
    owner.call(lambda: seen.append(log.last_index))
    last = owner.append([record(3, epoch=2)])
    await until(lambda: owner.done[-1:] == [last])
    assert seen == [4, 2]
    assert owner.done == sorted(owner.done)
    assert (log.last_index, log.last_epoch) == (3, 2)
    await owner.worker.close()


async def test_a_ticket_that_does_not_rise_is_a_broken_invariant(log: Log) -> None:
    owner = Owner(log)
    ticket = owner.append([record(2)])
    with pytest.raises(SafetyError):
        owner.worker.submit(ticket, lambda: None)
    await owner.worker.close()
    assert owner.done == [ticket]


async def test_a_hanging_disk_can_be_seen_from_outside(log: Log) -> None:
    owner, files = Owner(log), files_of(log)
    before_ms = owner.worker.stalled_for_ms()
    assert before_ms == 0.0
    files.gate.clear()
    owner.append([record(2)])
    await until(lambda: owner.worker.stalled_for_ms() > 20)
    owner.append([record(3)])
    assert owner.worker.stalled_for_ms() > 20, "the oldest counts"
    files.gate.set()
    await until(lambda: owner.worker.stalled_for_ms() == 0.0)
    await owner.worker.close()


async def test_the_queue_has_a_bound(log: Log) -> None:
    size = len(record(2).data)
    owner, files = Owner(log, max_queued_bytes=3 * size), files_of(log)
    files.gate.clear()
    for index in range(2, 5):
        assert owner.worker.reserve(size)
        owner.append([record(index)])
    assert not owner.worker.reserve(size)
    with pytest.raises(OverloadedError):
        owner.append([record(5)])
    files.gate.set()
    await until(lambda: owner.worker.queued_bytes == 0)
    assert owner.worker.reserve(size)
    await owner.worker.close()


async def test_nothing_is_taken_while_too_much_waits_for_the_store(log: Log) -> None:
    owner = Owner(log)
    owner.overlay_bytes = MAX_UNFLUSHED_BYTES - 1
    assert owner.worker.reserve(1)
    owner.overlay_bytes += 1
    assert not owner.worker.reserve(1)
    await owner.worker.close()


async def test_after_a_failure_nothing_more_is_done_or_acknowledged(tmp_path: Path) -> None:
    files = FailingFiles(10_000, OSError(errno.EIO, os.strerror(errno.EIO)), ["write"])
    log = Log.open(tmp_path / "log", segment_size_bytes=1 << 16, files=files)
    owner = Owner(log)
    good = owner.append([record(1)])
    await until(lambda: owner.done == [good])
    files.fail_at = files.calls
    ran: list[bool] = []
    owner.append([record(2)])
    owner.call(lambda: ran.append(True))
    await until(lambda: bool(owner.errors))
    owner.call(lambda: ran.append(True))
    await owner.worker.close()
    assert owner.done == [good]
    assert [type(error) for error in owner.errors] == [DiskFailedError]
    assert not ran
    assert owner.worker.stalled_for_ms() > 0.0
    abandon(log)


async def test_closing_does_what_was_submitted(log: Log) -> None:
    owner = Owner(log)
    last = [owner.append([record(index)]) for index in range(2, 100)][-1]
    await owner.worker.close()
    assert owner.done[-1] == last
    assert log.last_index == 99
    with pytest.raises(RuntimeError):
        owner.append([record(100)])


async def test_the_next_segment_is_ready_before_it_is_needed(log: Log) -> None:
    owner = Owner(log)
    owner.append([record(2, size=40_000)])
    await until(lambda: owner.worker.queued_bytes == 0 and log._spare_size_bytes > 0)
    assert not log.wants_preparing
    await owner.worker.close()


# The flusher


def put(store: Store, count: int = 1, size: int = 10) -> None:
    first = store.applied_index
    store.apply([[(0, b"%d" % (first + n), bytes(size))] for n in range(count)], first + count, 1)


async def test_a_large_overlay_is_flushed_at_once_a_small_one_when_old(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    errors: list[Exception] = []
    flushed: list[int] = []
    flusher = StoreFlusher(
        store,
        on_error=errors.append,
        on_flushed=flushed.append,
        flush_bytes=10_000,
        flush_age_ms=3_600_000,
    )
    put(store)
    flusher.applied()
    put(store, 100, 100)
    flusher.applied()
    await until(lambda: store.durable_index == 101)
    await flusher.close()
    flusher = StoreFlusher(store, on_error=errors.append, on_flushed=flushed.append, flush_age_ms=1)
    put(store)
    flusher.applied()
    await until(lambda: store.durable_index == 102)
    assert store._frozen is None
    assert flushed == [101, 102]
    assert not errors
    await flusher.close()
    store.close()


async def test_flush_now_covers_what_was_applied_while_another_flush_ran(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    errors: list[Exception] = []
    flusher = StoreFlusher(store, on_error=errors.append)
    put(store, 1000)
    first = asyncio.ensure_future(flusher.flush_now())
    await until(lambda: store._frozen is not None or first.done())
    put(store, 10)
    await flusher.flush_now()
    assert store.durable_index == 1010
    await first
    async with flusher.paused():
        put(store)
        waiting = asyncio.ensure_future(flusher.flush_now())
        await asyncio.sleep(0)
        assert store._frozen is None
    await waiting
    assert store.durable_index == 1011
    await flusher.close()
    store.close()


async def test_a_full_disk_is_tried_again_until_there_is_room(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    attempts = 0
    write = store.write_frozen

    def full_three_times() -> None:
        nonlocal attempts
        attempts += 1
        if attempts <= 3:
            raise DiskFullError("no room")
        write()

    store.write_frozen = full_three_times  # type: ignore[method-assign]
    errors: list[Exception] = []
    flusher = StoreFlusher(store, on_error=errors.append, flush_age_ms=1)
    put(store)
    with pytest.raises(DiskFullError):
        await flusher.flush_now()
    states = [flusher.full]
    await until(lambda: store.durable_index == 1)
    states.append(flusher.full)
    assert states == [True, False]
    assert attempts == 4
    assert not errors
    await flusher.close()
    store.close()


async def test_a_failed_disk_is_reported_once_and_ends_it(tmp_path: Path) -> None:
    store = Store.open(tmp_path)

    def broken() -> None:
        raise DiskFailedError("bad disk")

    store.write_frozen = broken  # type: ignore[method-assign]
    errors: list[Exception] = []
    flusher = StoreFlusher(store, on_error=errors.append, flush_age_ms=1)
    put(store)
    flusher.applied()
    await until(lambda: bool(errors))
    for _ in range(2):
        with pytest.raises(DiskFailedError):
            await flusher.flush_now()
    assert len(errors) == 1
    assert store.get(0, b"0") == bytes(10)
    await flusher.close()
    store.close()


async def test_a_pause_waits_for_a_flush_whose_waiter_has_gone(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    started, gate = threading.Event(), threading.Event()
    write = store.write_frozen

    def slow() -> None:
        started.set()
        gate.wait()
        write()

    store.write_frozen = slow  # type: ignore[method-assign]
    errors: list[Exception] = []
    flusher = StoreFlusher(store, on_error=errors.append)
    put(store)
    waiter = asyncio.ensure_future(flusher.flush_now())
    await asyncio.to_thread(started.wait)
    waiter.cancel()
    await asyncio.wait([waiter])

    async def pause() -> bool:
        async with flusher.paused():
            return store._written

    pausing = asyncio.ensure_future(pause())
    await asyncio.to_thread(gate.set)  # several turns of the loop: it could have gone on
    assert await pausing, "the pause began while the flush was running"
    await flusher.close()
    assert not errors
    store.close()


@pytest.mark.parametrize(
    ("size_bytes", "records", "expected"),
    [
        (999, MAX_FLUSH_RECORDS - 1, False),
        (1000, 1, True),
        (0, MAX_FLUSH_RECORDS, True),
    ],
)
def test_an_overlay_is_flushed_by_its_bytes_or_its_records(
    size_bytes: int, records: int, expected: bool
) -> None:
    assert is_due(size_bytes, records, 1000) is expected


async def test_many_small_records_are_flushed_however_young_they_are(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    errors: list[Exception] = []
    flusher = StoreFlusher(
        store, on_error=errors.append, flush_bytes=1 << 40, flush_age_ms=3_600_000
    )
    put(store, MAX_FLUSH_RECORDS - 1)
    flusher.applied()
    store.apply([[(0, b"0", b"again")]], store.applied_index + 1, 1)
    assert len(store.active.writes[0]) == MAX_FLUSH_RECORDS - 1
    flusher.applied()
    assert not flusher._wanted.is_set()
    store.apply([[(1, b"other", b"v")]], store.applied_index + 1, 1)
    flusher.applied()
    await until(lambda: store.durable_index == store.applied_index)
    await flusher.close()
    assert not errors
    store.close()
