"""Backups that a replica writes of its own store: one at a time (B1).

What is written is read by a process of its own, which compresses it too, inside one read
transaction. While that is open, the store cannot reuse the pages that it sees: so the store grows
with what is written meanwhile, and a backup is given up before it has filled half of what was free.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from importlib.metadata import PackageNotFoundError, version

from datapath.errors import (
    DiskFullError,
    OperationNotAppliedError,
    OverloadedError,
    PrimaryFullError,
    StorageError,
    TransferError,
)
from datapath.node.replica_disk import ReplicaStorage
from datapath.storage.backup_format import BackupEnd, BackupHeader, BackupWriter
from datapath.storage.snapshot_process import SnapshotProcess
from datapath.transport.snapshot_transfer import Throttle, in_thread

logger = logging.getLogger(__name__)

UNREAD_TIMEOUT_S = 30.0
"""A backup that nobody has begun to read for so long is given up."""
MAX_SHARE_OF_ROOM = 0.5
"""How much of the disk's free space the store may grow by while a backup is written."""


class Backups:
    """The backups of one replica. `on_error` is told what the store could not be read for."""

    def __init__(
        self,
        node_id: str,
        storage: ReplicaStorage,
        throttle: Throttle,
        on_error: Callable[[BaseException], None],
    ) -> None:
        self.node_id = node_id
        self.throttle = throttle
        self.on_error = on_error
        self.stopped = ""
        """Why no backup is written any more, or ""."""
        self.written_total = 0
        self._storage = storage
        self._is_running = False

    async def open(self, cluster: str, cluster_id: str) -> RunningBackup:
        """Begin a backup of all that is applied now.

        Raises OperationNotAppliedError: one is running, the node is stopping, or its disk is full.
        """
        if self.stopped:
            raise OperationNotAppliedError("stopping", self.stopped)
        if self._is_running:
            raise OverloadedError(
                "backup_running",
                f"{self.node_id} is writing a backup already: wait for it, or ask another replica",
            )
        self._is_running = True
        try:
            source = await self._storage.snapshot_reader(compresses=True)
        except BaseException as error:
            self._is_running = False
            if isinstance(error, DiskFullError):
                raise PrimaryFullError("storage_full", str(error)) from error
            if isinstance(error, TransferError):
                raise OverloadedError("overloaded", str(error)) from error
            raise
        header = BackupHeader(
            revision=source.index,
            epoch=source.epoch,
            cluster=cluster,
            cluster_id=cluster_id,
            node=self.node_id,
            created_s=int(time.time()),
            store_bytes=source.store_file.stat().st_size,
            written_by=_own_version(),
            group=self._storage.group,
        )
        logger.info("writing a backup of revision %d", source.index)
        return RunningBackup(self, source, header)

    def ended(self, *, whole: bool) -> None:
        """The backup that was opened has ended."""
        self._is_running = False
        self.written_total += whole

    def stop(self, reason: str) -> None:
        """Have the running backup say that it is not whole, and begin no other."""
        self.stopped = reason


class RunningBackup:
    """A `BackupSource` (see `datapath.operations`)."""

    def __init__(self, backups: Backups, source: SnapshotProcess, header: BackupHeader) -> None:
        self.revision, self.epoch = header.revision, header.epoch
        self._backups = backups
        self._source = source
        self._header = header
        self._whole = False
        self._closed = False
        self._closing: asyncio.Task[None] | None = None
        self._room_bytes = _room_bytes(source)
        loop = asyncio.get_running_loop()
        self._unread = loop.call_later(UNREAD_TIMEOUT_S, self._begin_close)

    @property
    def is_whole(self) -> bool:
        """Whether all of it was read, and it was not given up."""
        return self._whole

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield it piece by piece; what ends early says why. Closes it."""
        self._unread.cancel()
        writer = BackupWriter()
        number = 0
        try:
            yield writer.begin(self._header)
            while (chunk := await in_thread(self._source.read_chunk, number)) is not None:
                if problem := self._problem():
                    logger.warning("the backup was given up: %s", problem)
                    yield writer.failure(problem)
                    return
                await self._backups.throttle.take(len(chunk))
                yield writer.compressed(chunk)
                number += 1
            yield writer.end(BackupEnd(items=self._source.count, digest=self._source.checksum))
            self._whole = True
        except (TransferError, StorageError) as error:
            logger.warning("the backup has failed: %s", error)
            self._backups.on_error(error)
            yield writer.failure(str(error))
        finally:
            await self.close()

    def _problem(self) -> str:
        """Return why it must end early, or ""."""
        if self._backups.stopped:
            return self._backups.stopped
        grown_bytes = self._source.store_file.stat().st_size - self._header.store_bytes
        if grown_bytes > self._room_bytes * MAX_SHARE_OF_ROOM:
            return (
                f"the store has grown by {grown_bytes >> 20} MiB since it began, with "
                f"{self._room_bytes >> 20} MiB free then: read it faster, or free space on the disk"
            )
        return ""

    def _begin_close(self) -> None:
        logger.warning("a backup was given up: nobody has read it for %g s", UNREAD_TIMEOUT_S)
        self._closing = asyncio.get_running_loop().create_task(self.close())

    async def close(self) -> None:
        """Let go of the state. Closing twice is harmless."""
        self._unread.cancel()
        if not self._closed:
            self._closed = True
            await in_thread(self._source.close)
            self._backups.ended(whole=self._whole)


def _room_bytes(source: SnapshotProcess) -> int:
    room = os.statvfs(source.store_file)
    return room.f_bavail * room.f_frsize


def _own_version() -> str:
    with contextlib.suppress(PackageNotFoundError):
        return version("onecopy")
    return ""
