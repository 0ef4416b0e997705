"""What writes the log: group commit, and what else changes the log, in order.

A thread does it. A backup has nothing to do before the sync of what it has just been sent, so
there the event loop does it itself, where the disk has just been fast: that saves the thread's
wake-up, its wait for the interpreter, and the way back (decision 47).
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import NamedTuple, Protocol

from datapath.clock import clock_s
from datapath.errors import OverloadedError, SafetyError
from datapath.records import Record
from datapath.storage.log import Log
from datapath.storage.segment import SYNC_MARK_SIZE_BYTES

DEFAULT_MAX_QUEUED_BYTES = 192 * 1024 * 1024
MAX_UNFLUSHED_BYTES = 128 * 1024 * 1024
"""With so much waiting for the store, no more records are taken: it is in memory."""
MAX_GROUP_BYTES = 8 * 1024 * 1024
FAST_SYNC_S = 0.001
"""The event loop waits for a disk only if its last write and sync took less."""
MAX_BYTES_HERE = 64 * 1024
"""What the event loop writes itself at most."""

Job = Callable[[], object]


class _Task(NamedTuple):
    ticket: int
    job: Job | None  # None: append `records`
    records: Sequence[Record] = ()
    size_bytes: int = 0


class _Pending(NamedTuple):
    ticket: int
    size_bytes: int
    since: float


class Overlaid(Protocol):
    """Where what the log holds goes next; see `datapath.storage.store.Store`."""

    overlay_bytes: int
    """What is applied there, and only in memory."""


class LogWriter:
    """Carries out the log's writes, in the order in which they were submitted: mostly on a thread.

    Made and used on the event loop's thread, and reports there.

    Each has a ticket, a number of the caller's that rises (`ReplicaState.ticket`). Appends that
    wait together are written and synced together (group commit). `on_done(ticket)` says
    that this and all earlier ones are durable (D9); one call stands for a whole group. After
    the first error `on_error(error)` is called, once, and nothing more is carried out: what was
    submitted after it has not happened.
    """

    def __init__(
        self,
        log: Log,
        store: Overlaid,
        *,
        on_done: Callable[[int], object],
        on_error: Callable[[Exception], object],
        max_queued_bytes: int = DEFAULT_MAX_QUEUED_BYTES,
    ) -> None:
        self._log = log
        self._store = store
        self._on_done = on_done
        self._on_error = on_error
        self._max_queued_bytes = max_queued_bytes
        self._loop = asyncio.get_running_loop()
        self._queue: SimpleQueue[_Task | None] = SimpleQueue()
        self._here: list[_Task] | None = None  # what the loop carries out itself in its next turn
        self._is_fast = False  # the last write and sync were
        self._pending: deque[_Pending] = deque()
        self._last_ticket = 0
        self._queued_bytes = 0
        self._finished_ticket = 0
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="onecopy-disk", daemon=True)
        self._thread.start()

    @property
    def queued_bytes(self) -> int:
        """Bytes of records submitted and not reported durable."""
        return self._queued_bytes

    def stalled_for_ms(self) -> float:
        """For how long the oldest job has been under way; 0: there is none."""
        finished = self._finished_ticket
        for pending in self._pending:
            if pending.ticket > finished:
                return (clock_s() - pending.since) * 1000.0
        return 0.0

    def reserve(self, n_bytes: int) -> bool:
        """Whether `n_bytes` of records can be appended, beside what is queued and not flushed.

        Raises DiskFailedError if the disk fails while room is taken.
        """
        if self._is_over(n_bytes) or self._store.overlay_bytes >= MAX_UNFLUSHED_BYTES:
            return False
        marks = len(self._pending) * SYNC_MARK_SIZE_BYTES
        return self._log.reserve(self._queued_bytes + marks + n_bytes)

    def append(self, ticket: int, records: Sequence[Record]) -> None:
        """Append records and sync.

        Raises:
            OverloadedError: the queue is full; ask `reserve` first.

        """
        size_bytes = sum([len(record.data) for record in records])
        if self._is_over(size_bytes):
            raise OverloadedError("disk_queue_full", "the disk is too slow: try again later")
        self._submit(ticket, None, records, size_bytes)

    def append_here(self, ticket: int, records: Sequence[Record]) -> None:
        """Append records and sync: in the next turn of the event loop, if the disk was fast.

        For who has nothing else to do until then; raises as `append` does.
        """
        if self._is_fast and not self._pending:
            self._here = []
            self._loop.call_soon(self._write_here)
        self.append(ticket, records)

    def _is_over(self, n_bytes: int) -> bool:
        # One record may be larger than the bound: it waits for an empty queue.
        return self._queued_bytes > 0 and self._queued_bytes + n_bytes > self._max_queued_bytes

    def submit(self, ticket: int, job: Job) -> None:
        """Call `job` on the disk thread after all that was submitted before."""
        self._submit(ticket, job, (), 0)

    def _submit(
        self, ticket: int, job: Job | None, records: Sequence[Record], size_bytes: int
    ) -> None:
        if self._closed:
            raise RuntimeError("the log writer is closed")
        if ticket <= self._last_ticket:
            raise SafetyError(f"disk ticket {ticket} comes after {self._last_ticket}")
        self._last_ticket = ticket
        self._queued_bytes += size_bytes
        self._pending.append(_Pending(ticket, size_bytes, clock_s()))
        task = _Task(ticket, job, records, size_bytes)
        if self._here is None:
            self._queue.put(task)
        else:
            self._here.append(task)

    async def close(self) -> None:
        """Carry out what was submitted, then end the thread. The log stays open."""
        if not self._closed:
            self._closed = True
            self._leave_to_thread()
            self._queue.put(None)
        await asyncio.to_thread(self._thread.join)

    # On the loop

    def _write_here(self) -> None:
        """Write and sync what has been submitted since the last turn, or leave it to the thread."""
        tasks = self._here or []
        if not may_write_here(tasks, self._log):
            self._leave_to_thread()
            return
        self._here = None
        try:
            self._write([record for task in tasks for record in task.records])
        except Exception as error:  # noqa: BLE001  as on the thread
            self._queue.put(None)  # it carries out nothing more
            self._on_error(error)
            return
        self._finished_ticket = tasks[-1].ticket
        self._done(self._finished_ticket)

    def _leave_to_thread(self) -> None:
        tasks, self._here = self._here or (), None
        for task in tasks:
            self._queue.put(task)

    def _done(self, ticket: int) -> None:
        pending = self._pending
        while pending and pending[0].ticket <= ticket:
            self._queued_bytes -= pending.popleft().size_bytes
        self._on_done(ticket)

    # On either

    def _write(self, records: list[Record]) -> None:
        begun_s = clock_s()
        self._log.append(records, durable=True)
        self._is_fast = clock_s() - begun_s < FAST_SYNC_S

    # On the thread

    def _run(self) -> None:
        try:
            self._prepare()
            waiting: _Task | None = None
            while (task := waiting or self._queue.get()) is not None:
                waiting = None
                if task.job is None:
                    task, waiting, ended = self._append_group(task)
                    if ended:
                        self._finish(task.ticket)
                        return
                else:
                    task.job()
                self._finish(task.ticket)
                self._prepare()
        except Exception as error:  # noqa: BLE001  whatever it was, going on would lose order
            self._report(self._on_error, error)

    def _append_group(self, first: _Task) -> tuple[_Task, _Task | None, bool]:
        """Append and sync all appends that wait; return the last, what comes next, and the end."""
        records = list(first.records)
        size_bytes = first.size_bytes
        last, following, ended = first, None, False
        with contextlib.suppress(Empty):
            while size_bytes < MAX_GROUP_BYTES:
                task = self._queue.get_nowait()
                if task is None or task.job is not None:
                    following, ended = task, task is None
                    break
                records += task.records
                size_bytes += task.size_bytes
                last = task
        self._write(records)
        return last, following, ended

    def _prepare(self) -> None:
        if self._log.wants_preparing:
            self._log.prepare_next_segment()

    def _finish(self, ticket: int) -> None:
        self._finished_ticket = ticket
        self._report(self._done, ticket)

    def _report(self, callback: Callable[..., object], argument: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is gone, and nobody waits any more
            self._loop.call_soon_threadsafe(callback, argument)


def may_write_here(tasks: Sequence[_Task], log: Log) -> bool:
    """Whether the event loop may carry out these: small appends, and the segment takes them."""
    size_bytes = sum([task.size_bytes for task in tasks])
    return (
        0 < size_bytes <= MAX_BYTES_HERE
        and all(task.job is None for task in tasks)
        and log.takes_at_once(size_bytes)
    )
