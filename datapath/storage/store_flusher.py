"""The thread that flushes the store, and when it does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor

from datapath.errors import DiskFullError
from datapath.storage.overlay import MAX_FLUSH_RECORDS
from datapath.storage.store import Store

DEFAULT_FLUSH_BYTES = 8 * 1024 * 1024
DEFAULT_FLUSH_AGE_MS = 5000
"""Of the oldest change: a flush of few records costs several times as much for each."""
_FIRST_RETRY_MS = 100
_LAST_RETRY_MS = 5000


def is_due(size_bytes: int, records: int, flush_bytes: int) -> bool:
    """Whether an overlay is large enough to be flushed, however young it is.

    In a store that is much larger each record is on a page of its own, which LMDB holds in memory
    until the flush ends, and whose former place is free only after the one that follows. What reads
    a range, or counts, goes over the records, too.
    """
    return size_bytes >= flush_bytes or records >= MAX_FLUSH_RECORDS


class StoreFlusher:
    """Flushes the store on a thread of its own, when its overlay is large or old enough.

    Made and used on the event loop's thread, and reports there.

    A full disk is tried again, each time later (`full` says so meanwhile); any other failure is
    reported once with `on_error(error)`, and ends it.
    """

    def __init__(
        self,
        store: Store,
        *,
        on_error: Callable[[Exception], object],
        on_flushed: Callable[[int], object] | None = None,
        flush_bytes: int = DEFAULT_FLUSH_BYTES,
        flush_age_ms: int = DEFAULT_FLUSH_AGE_MS,
    ) -> None:
        self._store = store
        self._on_error = on_error
        self._on_flushed = on_flushed
        self._flush_bytes = flush_bytes
        self._flush_age_ms = flush_age_ms
        self._loop = asyncio.get_running_loop()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="onecopy-flush")
        self._wanted = asyncio.Event()
        self._alarm: asyncio.TimerHandle | None = None
        self._turn = asyncio.Lock()
        self._failure: Exception | None = None
        self.full = False
        self._task = self._loop.create_task(self._run(), name="onecopy-flush")

    def applied(self) -> None:
        """Say that entries were applied: starts a flush when one is due."""
        active = self._store.active
        if is_due(active.size_bytes, sum(map(len, active.writes.values())), self._flush_bytes):
            self._wanted.set()
        elif self._alarm is None:
            self._alarm = self._loop.call_later(self._flush_age_ms / 1000, self._ring)

    def _ring(self) -> None:
        self._alarm = None
        self._wanted.set()

    async def flush_now(self) -> None:
        """Make all that is applied now durable in the store.

        Raises DiskFullError (it will be tried again) or DiskFailedError.
        """
        async with self._turn:
            target = self._store.applied_index
            while self._store.durable_index < target:
                await self._flush_once()

    @contextlib.asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """Hold flushes off, a running one awaited: to install a snapshot."""
        async with self._turn:
            # A flush whose waiter was cancelled may still be running.
            await self._loop.run_in_executor(self._executor, lambda: None)
            yield

    async def close(self) -> None:
        """Stop; a flush that runs is awaited. What is not flushed is in the log."""
        self._task.cancel()
        if self._alarm is not None:
            self._alarm.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        await asyncio.to_thread(self._executor.shutdown)

    async def _run(self) -> None:
        retry_ms = _FIRST_RETRY_MS
        while self._failure is None:
            await self._wanted.wait()
            self._wanted.clear()
            try:
                await self.flush_now()
                retry_ms = _FIRST_RETRY_MS
            except DiskFullError:
                await asyncio.sleep(retry_ms / 1000)
                retry_ms = min(2 * retry_ms, _LAST_RETRY_MS)
            except Exception:  # noqa: BLE001  reported where it was met
                return

    async def _flush_once(self) -> None:
        if self._failure is not None:
            raise self._failure
        self._store.freeze()
        try:
            writing = self._loop.run_in_executor(self._executor, self._store.write_frozen)
            await asyncio.shield(writing)
            self._store.drop_frozen()
        except DiskFullError:
            self.full = True
            self._wanted.set()
            raise
        except Exception as error:
            self._failure = error
            self._on_error(error)
            raise
        self.full = False
        if self._on_flushed is not None:
            self._on_flushed(self._store.durable_index)
