"""`onecopy backup`: a backup is checked while it comes, and written as it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

import msgspec

from datapath.storage.backup import verify_backup
from datapath.storage.backup_format import BackupEnd, BackupHeader, BackupReader


class BackupSummary(NamedTuple):
    """What a backup is of, how it ends, and how large it is."""

    header: BackupHeader
    end: BackupEnd
    size_bytes: int

    def fields(self) -> dict[str, Any]:
        """Return it as --json shows it."""
        header, end = msgspec.structs.asdict(self.header), msgspec.structs.asdict(self.end)
        return {**header, **end, "bytes": self.size_bytes}


class _Incoming:
    """Pieces as a file, for another thread than that of their event loop.

    What is read has been handed to `write` before.
    """

    def __init__(self, pieces: AsyncIterator[bytes], write: Callable[[bytes], object]) -> None:
        self._loop = asyncio.get_running_loop()
        self._pieces = pieces
        self._write = write
        self._held = memoryview(b"")
        self._coming: asyncio.Task[Any] | None = None
        self._is_stopped = False

    def stop(self) -> None:
        """Let nothing more be read: CancelledError there."""
        self._is_stopped = True
        if self._coming is not None:
            self._coming.cancel()

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes; none at the end."""
        if not self._held:
            piece = asyncio.run_coroutine_threadsafe(self._next(), self._loop).result()
            self._write(piece)
            self._held = memoryview(piece)
        taken, self._held = self._held[:size], self._held[size:]
        return bytes(taken)

    async def _next(self) -> bytes:
        self._coming = asyncio.current_task()
        if self._is_stopped:
            raise asyncio.CancelledError
        return await anext(self._pieces, b"")


async def take_backup(
    pieces: AsyncIterator[bytes],
    write: Callable[[bytes], object],
    on_progress: Callable[[int], object],
) -> BackupSummary:
    """Write a backup as it comes, and check all of it meanwhile.

    `on_progress` is told how many items have come.

    Raises:
        BackupError: it is not whole, or not as it was written.
        OSError: it cannot be written. And what `pieces` and `write` raise.

    """
    source = _Incoming(pieces, write)

    def check() -> BackupSummary:
        reader = BackupReader(source, "the backup")
        end = verify_backup(reader, on_progress)
        return BackupSummary(reader.header, end, reader.position)

    checking = asyncio.ensure_future(asyncio.to_thread(check))
    try:
        return await asyncio.shield(checking)
    except asyncio.CancelledError:  # who has called closes `pieces`: nobody may read them then
        source.stop()
        await asyncio.gather(checking, return_exceptions=True)
        raise
