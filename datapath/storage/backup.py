"""What is made of a backup: a store, or the certainty that it is whole (B1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from threading import Event

import lmdb

from datapath.errors import BackupDamagedError
from datapath.storage.backup_format import BackupEnd, BackupReader
from datapath.storage.environment import (
    DEFAULT_MAP_SIZE_BYTES,
    ContentHash,
    Environment,
    current_environment,
    lmdb_failure,
)
from datapath.storage.snapshot import SnapshotWriter, snapshot_items

_ITEMS_AT_ONCE = 1000
_READ_AHEAD_BYTES = 1024 * 1024


def _no_progress(_items: int) -> None:
    """Tell nobody."""


def load_backup(
    reader: BackupReader,
    store_path: Path,
    cluster_id: str,
    *,
    map_size_bytes: int = DEFAULT_MAP_SIZE_BYTES,
    on_chunk: Callable[[int], object] = _no_progress,
) -> BackupEnd:
    """Make the store of a backup, at the backup's revision, for cluster `cluster_id`.

    What is on the disk then has the digest of the state that was backed up. `on_chunk` is called
    after each chunk. Returns how the backup ends.

    Raises:
        BackupError, OSError: as `BackupReader`; the store is not complete.
        DiskFullError, DiskFailedError: it could not be written.

    """
    header = reader.header
    store_path.mkdir(mode=0o700, exist_ok=True)
    writer = SnapshotWriter(
        store_path,
        header.revision,
        header.epoch,
        cluster_id=cluster_id,
        map_size_bytes=map_size_bytes,
        offline=True,
    )
    try:
        for chunk in reader.chunks():  # in a thread beside, it would cost more than it saves
            writer.feed(writer.next_chunk, chunk)
            on_chunk(writer.count)
        end = reader.end
        assert end is not None
        writer.finish(end.digest, end.items)
        writer.install()
    except ValueError as error:
        raise _damaged(reader, str(error)) from error
    finally:
        writer.abort()
    check_digest(store_path, end.digest, map_size_bytes=map_size_bytes)
    return end


def check_digest(
    store_path: Path, digest: str, *, map_size_bytes: int = DEFAULT_MAP_SIZE_BYTES
) -> None:
    """Read a whole store from the disk, and compare it.

    Raises:
        BackupDamagedError: it has another digest.
        StorageError: it cannot be read.

    """
    environment = Environment(
        store_path / current_environment(store_path), map_size_bytes, scans=True
    )
    total = ContentHash()
    try:
        with (
            _file_read_ahead(environment.path / "data.mdb"),
            environment.lmdb.begin(buffers=True) as transaction,
        ):
            for keyspace, database in enumerate(environment.keyspaces):
                items = transaction.cursor(database).iternext()
                while piece := list(islice(items, _ITEMS_AT_ONCE)):
                    total.update(keyspace, piece)
    except lmdb.Error as error:
        raise lmdb_failure(error, environment.path) from error
    finally:
        environment.release()
    if total.hex() != digest:
        raise BackupDamagedError(
            f"the restored state has the digest {total.hex()}, not {digest}, which was backed up: "
            "restore again, and check the disk if that does not help"
        )


@contextmanager
def _file_read_ahead(path: Path) -> Iterator[None]:
    """Read a file from the disk in order, beside a scan of its map.

    The scan alone would wait for the disk at every few pages. What the reader cannot read, the scan
    finds.
    """
    given_up = Event()

    def read() -> None:
        buffer = bytearray(_READ_AHEAD_BYTES)
        with suppress(OSError), path.open("rb", buffering=0) as file:
            while not given_up.is_set() and file.readinto(buffer):
                pass

    with ThreadPoolExecutor(1, "restore-reader") as reader:
        reader.submit(read)
        try:
            yield
        finally:
            given_up.set()


def verify_backup(
    reader: BackupReader, on_chunk: Callable[[int], object] = _no_progress
) -> BackupEnd:
    """Read a whole backup, and compare its items with its digest; return how it ends.

    Raises as `BackupReader`.
    """
    total = ContentHash()
    for chunk in reader.chunks():
        try:
            for keyspace, items in snapshot_items(chunk):
                total.update(keyspace, items)
        except ValueError as error:
            raise _damaged(reader, str(error)) from error
        on_chunk(total.count)
    end = reader.end
    assert end is not None
    if (total.count, total.hex()) != (end.items, end.digest):
        raise _damaged(
            reader,
            f"its {total.count} items are not the {end.items} that were backed up, or have another "
            "digest",
        )
    return end


def _damaged(reader: BackupReader, why: str) -> BackupDamagedError:
    return BackupDamagedError(f"{reader.name} is damaged before byte {reader.position}: {why}")
