"""Making a new cluster's first data directory of a point in an archive."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

from cluster.archive.catalog import Base, Plan
from cluster.archive.reading import Archive, Progress, Replay, told
from datapath.storage.backup import load_backup
from datapath.storage.backup_format import BackupReader
from datapath.storage.store import Store


def restore_store(
    archive: Archive,
    plan: Plan,
    path: Path,
    cluster_id: str,
    *,
    map_size_bytes: int,
    progress: Progress = lambda _: None,
) -> tuple[int, int, str]:
    """Make the store of `plan`'s revision in `path`, durably; return its (index, epoch, digest).

    What is on the disk then is read once more. `path` must hold no store.

    Raises:
        ArchiveError: an object is missing or damaged: the store is not complete.
        BackupError: the base state is.
        StorageError: it could not be written.

    """
    load_base(archive, plan.base, path, cluster_id, map_size_bytes=map_size_bytes)
    store = Store.open(path, map_size_bytes=map_size_bytes)
    try:
        progress(store.applied_index)
        Replay(told(archive.records(plan.pieces), progress), store).to(plan.until)
        store.flush()
        index, digest = store.digest()
        return index, store.durable_epoch, digest
    finally:
        store.close()


def load_base(
    archive: Archive, base: Base, path: Path, cluster_id: str, *, map_size_bytes: int
) -> str:
    """Make the store of a base state; return its digest. Raises as `restore_store`."""
    with io.BufferedReader(_Parts(archive.base(base))) as file:
        reader = BackupReader(file, archive.place(base))
        return load_backup(reader, path, cluster_id, map_size_bytes=map_size_bytes).digest


class _Parts(io.RawIOBase):
    """A file of what an iterator yields."""

    def __init__(self, parts: Iterator[bytes]) -> None:
        self._parts = parts
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Fill the buffer with what there is; 0 at the end."""
        while not self._rest:
            part = next(self._parts, None)
            if part is None:
                return 0
            self._rest = memoryview(part)
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size
