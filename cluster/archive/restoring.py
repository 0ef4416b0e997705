"""Making a new cluster's first data directory of a point in an archive."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from cluster.archive.catalog import Base, RestorePlan
from cluster.archive.reading import Archive, OnRevision, Replay, told
from datapath.keyspaces import KEYSPACES
from datapath.storage.backup import load_backup
from datapath.storage.backup_format import BackupHeader, BackupReader
from datapath.storage.store import Store


class LoadedBase(NamedTuple):
    """A base state that was loaded: what it is of, and its digest."""

    header: BackupHeader
    digest: str


def _take_any(_header: BackupHeader) -> None:
    """Refuse none."""


class RestoredState(NamedTuple):
    """The state that was made: its place in the log, its items, and what it was of."""

    revision: int
    epoch: int
    items: int
    digest: str
    source: str


def restore_store(
    archive: Archive,
    plan: RestorePlan,
    path: Path,
    cluster_id: str,
    *,
    map_size_bytes: int,
    check: Callable[[BackupHeader], object] = _take_any,
    progress: OnRevision = lambda _: None,
) -> RestoredState:
    """Make the store of `plan`'s revision in `path`, durably.

    What is on the disk then is read once more. `path` must hold no store. `check` raises for a base
    state that is not to be loaded.

    Raises:
        ArchiveError: an object is missing or damaged: the store is not complete.
        BackupError: the base state is.
        StorageError: it could not be written.

    """
    base = load_base(
        archive, plan.base, path, cluster_id, map_size_bytes=map_size_bytes, check=check
    )
    store = Store.open(path, map_size_bytes=map_size_bytes)
    try:
        progress(store.applied_index)
        Replay(told(archive.records(plan.pieces), progress), store).to(plan.until)
        store.flush()
        index, digest = store.digest()
        items = sum(store.count(keyspace) for keyspace in range(KEYSPACES))
        return RestoredState(index, store.durable_epoch, items, digest, base.header.source)
    finally:
        store.close()


def load_base(
    archive: Archive,
    base: Base,
    path: Path,
    cluster_id: str,
    *,
    map_size_bytes: int,
    check: Callable[[BackupHeader], object] = _take_any,
) -> LoadedBase:
    """Make the store of a base state. Raises as `restore_store`."""
    with io.BufferedReader(_Parts(archive.base(base))) as file:
        reader = BackupReader(file, archive.place(base))
        check(reader.header)
        end = load_backup(reader, path, cluster_id, map_size_bytes=map_size_bytes)
        return LoadedBase(reader.header, end.digest)


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
