"""A data directory that begins a new cluster, made of the state of another one (B1, B2).

    with RestoredDirectory.open(path, "n1") as restored:
        load_backup(reader, restored.store_path)      # or whatever else makes a store there
        founded = restored.found("…", age_s=…)

While it is being made, the directory holds the file `restoring`: a node refuses it, and the next
restore empties it. The identity is written last but for that file's removal. So a crash between any
two steps leaves a directory that is refused, or one that is complete.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from datapath.errors import BackupDamagedError, DataDirectoryError
from datapath.new_cluster import Position, begin_after
from datapath.storage.accepted import Accepted
from datapath.storage.backup_format import BackupEnd, BackupReader
from datapath.storage.data_directory import (
    IDENTITY_FORMAT,
    RESTORING,
    Identity,
    empty_directory,
    lock_directory,
    make_directory,
    replace_file,
    storage_error,
    sync_directory,
    write_identity,
)
from datapath.storage.environment import DEFAULT_MAP_SIZE_BYTES, ContentHash
from datapath.storage.snapshot import SnapshotWriter, snapshot_items
from datapath.storage.store import Store

_NOT_DATA = frozenset({"lock", "lost+found"})


class Founded(NamedTuple):
    """The new cluster: its id, the state's place in the former log, and where its own begins."""

    cluster_id: str
    state: Position
    begins_after: Position
    digest: str


class RestoredDirectory:
    """A locked directory that is being made. Leaving its block without `found` empties it."""

    def __init__(self, path: Path, node_id: str, lock: int) -> None:
        self.path = path
        self.store_path = path / "store"
        """Where the store is to be made."""
        self._node_id = node_id
        self._lock = lock
        self._founded = False

    @classmethod
    def open(cls, path: str | Path, node_id: str) -> RestoredDirectory:
        """Lock `path`, which must be empty, absent, or what an interrupted restore has left.

        Raises:
            DataDirectoryError: it holds something, or another process uses it; it is unchanged.
            DiskFullError, DiskFailedError: it could not be written.

        """
        path = Path(path).absolute()
        _check_empty(path)  # before anything is done to somebody else's directory
        make_directory(path, create=True)
        restored = cls(path, node_id, lock_directory(path))
        try:
            _check_empty(path)  # another restore may have completed it meanwhile
        except DataDirectoryError:
            restored.leave()
            raise
        try:
            empty_directory(path)
            replace_file(path / RESTORING, b"")
            restored.store_path.mkdir(mode=0o700)
        except OSError as error:
            restored.close()
            raise storage_error(error, f"writing {path}") from error
        return restored

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the directory; empty it unless it is complete. Closing twice is harmless."""
        if self._lock >= 0 and not self._founded:
            # Where that fails the marker stays: the next restore empties the directory.
            with contextlib.suppress(OSError):
                empty_directory(self.path)
                (self.path / RESTORING).unlink(missing_ok=True)
        self.leave()

    def leave(self) -> None:
        """Release the directory as it is."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def found(
        self, *, age_s: float, digest: str = "", map_size_bytes: int = DEFAULT_MAP_SIZE_BYTES
    ) -> Founded:
        """Make the store in `store_path` that of a new cluster, and complete the directory.

        `age_s`: how long ago the state was that of a cluster (`datapath.new_cluster`). `digest`:
        that of the state as it was read; what is on the disk now is compared with it.

        Raises:
            BackupDamagedError: the store has another digest.
            ValueError: as `begin_after`.
            StorageError: it could not be read or written.

        """
        cluster_id = secrets.token_hex(16)
        store = Store.open(self.store_path, map_size_bytes=map_size_bytes)
        try:
            state = Position(store.durable_index, store.durable_epoch)
            _, found = store.digest()
            if digest and found != digest:
                raise BackupDamagedError(
                    f"the restored state has the digest {found}, not {digest}: restore again"
                )
            position = begin_after(state, age_s)
            store.rebase(position, cluster_id)
        finally:
            store.close()
        accepted = Accepted(self.path / "accepted")
        try:
            # E5: what the log begins with is of an epoch that is accepted.
            accepted.record(position.epoch, self._node_id)
        finally:
            accepted.close()
        identity = Identity(
            IDENTITY_FORMAT,
            self._node_id,
            secrets.token_hex(16),
            cluster=cluster_id,
            first_epoch=position.epoch + 1,
        )
        try:
            sync_directory(self.store_path)
            write_identity(self.path, identity)
            (self.path / RESTORING).unlink()
            sync_directory(self.path)
        except OSError as error:
            raise storage_error(error, f"writing {self.path}") from error
        self._founded = True
        return Founded(cluster_id, state, position, found)


def _check_empty(path: Path) -> None:
    """Raise DataDirectoryError if `path` holds anything but what an interrupted restore left."""
    if not path.is_dir():
        return  # `make_directory` says what is wrong with it, or makes it
    try:
        held = {item.name for item in path.iterdir()}
    except OSError as error:
        raise DataDirectoryError(f"{path} cannot be read ({error.strerror})") from error
    if RESTORING not in held and (data := sorted(held - _NOT_DATA)):
        raise DataDirectoryError(
            f"{path} is not empty: it holds {', '.join(data[:5])}. Name an empty directory, or "
            "move this one away"
        )


def load_backup(
    reader: BackupReader, store_path: Path, *, map_size_bytes: int = DEFAULT_MAP_SIZE_BYTES
) -> str:
    """Make the store of a backup, at the backup's position; return the digest of its state.

    Raises:
        BackupError, OSError: as `BackupReader`; nothing was installed.
        DiskFullError, DiskFailedError: it could not be written.

    """
    header = reader.header
    writer = SnapshotWriter(
        store_path, header.revision, header.epoch, map_size_bytes=map_size_bytes
    )
    try:
        for chunk in reader.chunks():
            writer.feed(writer.next_chunk, chunk)
        end = reader.end
        assert end is not None
        writer.finish(end.digest, end.items)
        writer.install()
    except ValueError as error:
        raise BackupDamagedError(
            f"{reader.name} is damaged, before byte {reader.position}: {error}"
        ) from error
    finally:
        writer.abort()
    return end.digest


def verify_backup(reader: BackupReader) -> BackupEnd:
    """Read a whole backup, and compare its items with its digest; return what it ends with.

    Raises as `BackupReader`.
    """
    total = ContentHash()
    for chunk in reader.chunks():
        try:
            for keyspace, items in snapshot_items(chunk):
                total.update(keyspace, items)
        except ValueError as error:
            raise BackupDamagedError(
                f"{reader.name} is damaged, before byte {reader.position}: {error}"
            ) from error
    end = reader.end
    assert end is not None
    if (total.count, total.hex()) != (end.items, end.digest):
        raise BackupDamagedError(
            f"{reader.name} is damaged: its {total.count} items are not the {end.items} that were "
            "backed up, or have another digest"
        )
    return end
