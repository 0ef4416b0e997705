"""Makes the first data directory of the new cluster. The sources are only read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from cluster.archive.reading import Replay, told
from datapath.storage.founding import Founded, Founding
from datapath.storage.inspection import InspectedDirectory
from datapath.storage.snapshot import SnapshotWriter
from datapath.storage.store import Store


class Made(NamedTuple):
    """The new cluster, and the digest of its state (that of the source with its whole log)."""

    founded: Founded
    digest: str


def make(
    source: InspectedDirectory,
    target: Path,
    node_id: str,
    map_size_bytes: int,
    age_s: float = 0.0,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Made:
    """Make `target`, an empty directory, the beginning of a new cluster of all that `source` has.

    `age_s`: how long ago `source` was written to (`continue_after`). `on_progress` gets (items and
    entries done, of how many). Durable when it returns; on any error `target` is empty again.

    Raises:
        DataDirectoryError: `target` is not empty, or in use.
        StorageError: it could not be written, or `source` not be read.

    """
    log = source.log
    assert log is not None
    with Founding(target, node_id) as founding:
        total = source.items + log.last_index - source.store_index
        _copy_store(source, founding, map_size_bytes, lambda done: on_progress(done, total))
        store = Store.open(
            founding.store, cluster_id=founding.cluster_id, map_size_bytes=map_size_bytes
        )
        try:
            records = told(
                log.records_after(store.applied_index),
                lambda index: on_progress(source.items + index - source.store_index, total),
            )
            Replay(records, store, "the log").to(log.last_index)
            store.flush()
            _, digest = store.digest()
        finally:
            store.close()
        founded = founding.finish(log.last_index, log.last_epoch, map_size_bytes, age_s=age_s)
    return Made(founded, digest)


def _copy_store(
    source: InspectedDirectory,
    founding: Founding,
    map_size_bytes: int,
    on_progress: Callable[[int], None],
) -> None:
    founding.store.mkdir(mode=0o700)
    reader = source.open_store()
    try:
        writer = SnapshotWriter(
            founding.store,
            reader.index,
            reader.epoch,
            cluster_id=founding.cluster_id,
            map_size_bytes=map_size_bytes,
        )
        try:
            while (chunk := reader.read_chunk(writer.next_chunk)) is not None:
                writer.feed(writer.next_chunk, chunk)
                on_progress(reader.count_so_far)
            writer.finish(reader.checksum, reader.count)
            writer.install()
        finally:
            writer.abort()
    finally:
        reader.close()
