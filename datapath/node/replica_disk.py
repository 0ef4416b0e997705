"""A replica's disk as the engine sees it: log, store, accepted record, and the threads on them."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path

from datapath.errors import DataDirectoryError, LogCorruptError
from datapath.node import recovery
from datapath.node.retention import LogRetention
from datapath.protocol.state import RecoveredState
from datapath.records import Record
from datapath.settings import Bounds
from datapath.storage.accepted import Accepted
from datapath.storage.compaction import DEFAULT_MIN_WASTE_BYTES, Compactor
from datapath.storage.data_directory import DataDirectory
from datapath.storage.log import Log
from datapath.storage.log_writer import DEFAULT_MAX_QUEUED_BYTES, LogWriter
from datapath.storage.read_ahead import DEFAULT_READ_AHEAD_BYTES, read_ahead
from datapath.storage.snapshot import SnapshotWriter
from datapath.storage.snapshot_process import SnapshotProcess
from datapath.storage.store import Store
from datapath.storage.store_flusher import StoreFlusher
from datapath.transport.snapshot_transfer import in_thread

logger = logging.getLogger(__name__)

MIN_ROOM_BYTES = 64 * 1024
"""A replica with less room than that on its disk says that it takes no records."""


class ReplicaStorage:
    """Opens what a data directory holds, and recovers it; `start` starts the threads.

    Of the log `retention_bytes` are kept, and up to `catchup_bytes` of what was written within
    `retention_ms`, by the machine's date, or a replica lacks.

    `max_queued_bytes` bounds what waits for the log: a primary bounds that itself, and tighter.

    Raises StorageError from the constructor, with what to do.
    """

    def __init__(
        self,
        directory: DataDirectory,
        *,
        segment_size_bytes: int,
        map_size_bytes: int,
        flush_bytes: int,
        retention_bytes: int,
        catchup_bytes: int,
        retention_ms: int = Bounds().log_retention_ms,
        snapshot_log_bytes: int = Bounds().snapshot_log_bytes,
        archive_log_bytes: int = 0,
        max_queued_bytes: int = DEFAULT_MAX_QUEUED_BYTES,
        min_waste_bytes: int = DEFAULT_MIN_WASTE_BYTES,
        read_ahead_bytes: int = DEFAULT_READ_AHEAD_BYTES,
    ) -> None:
        path = directory.path
        self._read_ahead_bytes = read_ahead_bytes
        self._stopping = threading.Event()
        self._reading_ahead: set[asyncio.Task[int]] = set()
        self._max_queued_bytes = max_queued_bytes
        # After each segment at the latest: only what is flushed goes from the log.
        self._flush_bytes = min(flush_bytes, segment_size_bytes)
        self._min_waste_bytes = min_waste_bytes
        self._map_size_bytes = map_size_bytes
        self._retention_ms = retention_ms
        self._archives = archive_log_bytes > 0
        self.retention = LogRetention(
            retention_bytes, catchup_bytes, snapshot_log_bytes, archive_log_bytes
        )
        self.accepted = Accepted(path / "accepted")
        if self.accepted.repair:
            logger.warning("%s", self.accepted.repair)
        self.store = Store.open(
            path / "store", cluster_id=directory.cluster_id, map_size_bytes=map_size_bytes
        )
        self.log = self._open_log(path / "log", segment_size_bytes)
        self._worker: LogWriter | None = None
        self._flusher: StoreFlusher | None = None
        self._compactor: Compactor | None = None
        self.wants_flush: Callable[[], None] = lambda: None
        """Say that entries were applied to the store."""
        self.write: Callable[[int, list[Record]], None]
        """Append records."""
        self.write_here: Callable[[int, list[Record]], None]
        """The same, on the event loop if the disk has been fast."""
        self.stalled_for_ms: Callable[[], float]
        """For how long the oldest write has been under way; 0: there is none."""
        self.reserve: Callable[[int], bool]
        """Whether records of so many bytes can be taken."""
        self._on_error: Callable[[BaseException], None] = lambda _: None
        self._trimming: asyncio.Task[None] | None = None

    def _open_log(self, path: Path, segment_size_bytes: int) -> Log:
        base_index, base_epoch = self.store.durable_index, self.store.durable_epoch

        def opened(*, salvage: bool) -> Log:
            return Log.open(
                path,
                segment_size_bytes=segment_size_bytes,
                base_index=base_index,
                base_epoch=base_epoch,
                salvage=salvage,
                before_cut=lambda _: self.accepted.set_tail_cut(),
            )

        try:
            found = opened(salvage=False)
        except LogCorruptError as error:
            # Never served: what stood after the damage is fetched from the primary again. Until
            # then this replica may lack what it has acknowledged, and must know that it does.
            logger.error(  # noqa: TRY400 -- the error names file and offset; a traceback adds nothing
                "%s. Entries after %d are fetched again from the primary",
                error,
                error.last_good_index,
            )
            self.accepted.set_incomplete()
            found = opened(salvage=True)
        for repair in found.repairs:
            logger.warning("log repaired: %s", repair)
        if found.cut is not None:
            logger.warning("a torn tail was cut off the log: %s", found.cut)
        return found

    def recover(self) -> RecoveredState:
        """Apply what is known to be committed, and say what this replica holds."""
        recovered = recovery.recover_replica(
            self.log, self.store, self.accepted, self.accepted.path
        )
        if self.accepted.incomplete:
            logger.error(
                "this replica may lack entries that it has acknowledged: it does not take over "
                "or serve until a primary has caught it up"
            )
        return recovered

    def uncommitted(self, commit_index: int) -> list[Record]:
        """Return the records after `commit_index`."""
        return recovery.uncommitted(self.log, commit_index)

    def start(
        self,
        *,
        on_durable: Callable[[int], None],
        on_flushed: Callable[[], None],
        on_error: Callable[[BaseException], None],
    ) -> None:
        """Start the threads. `on_durable` gets the replica's tickets; all on the event loop."""
        self._on_error = on_error
        self.store.on_damage = on_error
        self._worker = LogWriter(
            self.log,
            self.store,
            on_done=on_durable,
            on_error=on_error,
            max_queued_bytes=self._max_queued_bytes,
        )
        self.write, self.write_here = self._worker.append, self._worker.append_here
        self.stalled_for_ms = self._worker.stalled_for_ms
        self.reserve = self._worker.reserve
        self._flusher = StoreFlusher(
            self.store,
            on_error=on_error,
            on_flushed=lambda _: on_flushed(),
            flush_bytes=self._flush_bytes,
        )
        self.wants_flush = self._flusher.applied
        self.wants_flush()
        self._compactor = Compactor(
            self.store,
            self._flusher,
            on_error=on_error,
            on_compacted=self._read_store_ahead,
            min_waste_bytes=self._min_waste_bytes,
        )
        self._read_store_ahead()

    def _read_store_ahead(self) -> None:
        """The store stands in another file than before, of which no page is in memory."""
        reading = asyncio.to_thread(
            read_ahead, self.store.file, self._read_ahead_bytes, self._stopping
        )
        task = asyncio.get_running_loop().create_task(reading, name="onecopy-read-ahead")
        self._reading_ahead.add(task)
        task.add_done_callback(self._reading_ahead.discard)

    async def stop(self) -> None:
        """Write what was submitted, and close everything."""
        if self._worker is not None:
            await self._worker.close()
        if self._trimming is not None:
            await asyncio.gather(self._trimming, return_exceptions=True)
        if self._compactor is not None:
            await self._compactor.close()
        if self._flusher is not None:
            await self._flusher.close()
        self._stopping.set()
        await asyncio.gather(*self._reading_ahead)
        self.store.close()
        self.log.close()
        self.accepted.close()

    @property
    def _disk(self) -> LogWriter:
        if self._worker is None:
            raise RuntimeError("the storage has not been started")
        return self._worker

    # -- ordered writes

    def truncate(self, ticket: int, from_index: int) -> None:
        """Cut the log."""
        self._disk.submit(ticket, lambda: self.log.truncate(from_index))

    def record_accepted(self, ticket: int, epoch: int, primary: str) -> None:
        """E5."""
        self._disk.submit(ticket, lambda: self.accepted.record(epoch, primary))

    def mark_incomplete(self, ticket: int) -> None:
        """Entries are missing that may have been acknowledged."""
        logger.error(
            "entries that may have been acknowledged are missing: this replica does not take "
            "over or serve until a primary has caught it up"
        )
        self._disk.submit(ticket, self.accepted.set_incomplete)

    def clear_marks(self, ticket: int) -> None:
        """Nothing is missing any more."""
        self._disk.submit(ticket, self.accepted.clear_marks)

    # -- room and health

    @property
    def writable(self) -> bool:
        """Whether there is room for a record at all."""
        return self.reserve(MIN_ROOM_BYTES)

    @property
    def is_full(self) -> bool:
        """Whether the log's next segment is wanted, and the disk has no room for it."""
        return self.log.wants_preparing and not self.log.prepare_next_segment()

    # -- store, log reads, retention

    async def read_log(self, from_index: int, max_bytes: int) -> list[Record] | None:
        """Return records from `from_index` on; None if it is not retained."""
        try:
            return await asyncio.to_thread(self.log.read, from_index, max_bytes)
        except IndexError:
            return None
        except LogCorruptError as error:
            # What it holds is in the store as well: a snapshot serves. The next start repairs.
            logger.error("%s. A snapshot is sent instead", error)  # noqa: TRY400 -- names the place
            return None

    def trim(self, oldest_needed: int, on_trimmed: Callable[[int], None]) -> None:
        """Delete segments that nobody needs (`LogRetention.keep_from`).

        Calls `on_trimmed` with the new first index if something went.
        """
        if self._trimming is not None:
            return
        recent_s = time.time() - self._retention_ms / 1000.0 if self._retention_ms else math.inf
        keep_from = self.retention.keep_from(
            self.log.segment_bounds(),
            self.store.durable_index,
            oldest_needed,
            recent_s,
            disk_full=self._archives and self.is_full,
        )
        if keep_from > self.log.first_index:
            self._trimming = asyncio.get_running_loop().create_task(
                self._trim(keep_from, on_trimmed)
            )

    async def _trim(self, keep_from: int, on_trimmed: Callable[[int], None]) -> None:
        try:
            await asyncio.to_thread(self.log.drop_before, keep_from)
        except BaseException as error:
            self._on_error(error)
            raise
        finally:
            self._trimming = None
        on_trimmed(self.log.first_index)

    async def digest(self, stop: threading.Event) -> tuple[int, str]:
        """Return (index, digest) of the store, all that is applied now included.

        Raises StoppedError soon after `stop` is set.
        """
        if self._flusher is not None:
            await self._flusher.flush_now()
        try:
            return await asyncio.to_thread(self.store.digest, stop)
        except DataDirectoryError as error:
            self._on_error(error)
            raise

    # -- snapshots

    async def snapshot_reader(self, *, compresses: bool = False) -> SnapshotProcess:
        """Return a consistent snapshot of all that is applied now.

        Raises TransferError if its process cannot be started, and as `StoreFlusher.flush_now`.
        """
        if self._flusher is not None:
            await self._flusher.flush_now()
        source = SnapshotProcess(self.store.acquire_environment(), compresses=compresses)
        try:
            await in_thread(source.start)
        except BaseException:
            await in_thread(source.close)
            raise
        return source

    def snapshot_writer(self, index: int, epoch: int) -> SnapshotWriter:
        """Return a place for a snapshot that is to be received."""
        return SnapshotWriter(
            self.store.directory,
            index,
            epoch,
            cluster_id=self.store.cluster_id,
            map_size_bytes=self._map_size_bytes,
        )

    async def install_snapshot(
        self, writer: SnapshotWriter, index: int, epoch: int, next_ticket: Callable[[], int]
    ) -> None:
        """Put a finished snapshot in place of the store, and empty the log under `next_ticket()`.

        A crash in between leaves a store that is ahead of its log, which then starts anew.
        """
        if self._flusher is None:
            raise RuntimeError("the storage has not been started")
        async with self._flusher.paused():
            await asyncio.to_thread(writer.install)
            self.store.reopen()
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            loop = asyncio.get_running_loop()

            def reset() -> None:
                try:
                    self.log.reset(index, epoch)
                except BaseException as error:
                    loop.call_soon_threadsafe(done.set_exception, error)
                    raise
                loop.call_soon_threadsafe(done.set_result, None)

            self._disk.submit(next_ticket(), reset)
            await done
            # Within: a copy that the compactor makes would be a leftover, too.
            await asyncio.to_thread(self.store.remove_leftovers)
        self._read_store_ahead()

    def counters(self) -> dict[str, float]:
        """Numbers for metrics."""
        file_bytes, used_bytes = self.store.space()
        return {
            "log_bytes": self.log.size_bytes,
            "snapshot_held_log_bytes": self.retention.held_bytes(self.log.segment_bounds()),
            "log_queued_bytes": self._worker.queued_bytes if self._worker else 0,
            "store_durable_index": self.store.durable_index,
            "store_overlay_bytes": self.store.overlay_bytes,
            "store_file_bytes": file_bytes,
            "store_used_bytes": used_bytes,
            "store_compactions_total": self._compactor.compacted_total if self._compactor else 0,
            "storage_full": float(not self.writable) if self._worker else 0.0,
        }
