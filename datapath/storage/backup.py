"""What is made of a backup: a store, or the certainty that it is whole (B1)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from datapath.errors import BackupDamagedError
from datapath.storage.backup_format import BackupEnd, BackupReader
from datapath.storage.environment import DEFAULT_MAP_SIZE_BYTES, ContentHash
from datapath.storage.read_back import ReadBackProcess
from datapath.storage.snapshot import SnapshotWriter, snapshot_items


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
    )
    try:
        with closing(ReadBackProcess(writer.path, map_size_bytes)) as back:
            writer.on_durable = back.tell
            for chunk in reader.chunks():  # in a thread beside, it would cost more than it saves
                writer.feed(writer.next_chunk, chunk)
                on_chunk(writer.count)
            end = reader.end
            assert end is not None
            writer.finish(end.digest, end.items)
            check_read_back(*back.result(), end)
        writer.install()
    except ValueError as error:
        raise _damaged(reader, str(error)) from error
    finally:
        writer.abort()
    return end


def check_read_back(items: int, digest: str, end: BackupEnd) -> None:
    """Compare what the disk holds with how the backup ends. Raises BackupDamagedError."""
    if (items, digest) != (end.items, end.digest):
        raise BackupDamagedError(
            f"the restored state has {items} items and the digest {digest}, not {end.items} and "
            f"{end.digest}, which were backed up: restore again, and check the disk if that does "
            "not help"
        )


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
