"""Whether an archive can be restored: everything is read, and states are compared."""

from __future__ import annotations

from pathlib import Path

from cluster.archive.catalog import RestorableSpan
from cluster.archive.errors import ArchiveDamagedError
from cluster.archive.reading import Archive, OnRevision, Replay, told
from cluster.archive.restoring import load_base
from datapath.storage.store import Store


def verify_span(
    archive: Archive,
    span: RestorableSpan,
    directory: Path,
    *,
    map_size_bytes: int,
    progress: OnRevision = lambda _: None,
) -> str:
    """Replay all of a span in `directory`, which is empty; return the digest of its last state.

    Wherever there is a base state, the replayed one has to have its digest.

    Raises ArchiveError, BackupError, StorageError.
    """
    first, *later = span.bases
    load_base(archive, first, directory / "store", "", map_size_bytes=map_size_bytes)
    store = Store.open(directory / "store", map_size_bytes=map_size_bytes)
    try:
        replay = Replay(told(archive.records(span.pieces), progress), store)
        for number, base in enumerate(later):
            path = directory / f"base-{number}"
            kept = load_base(archive, base, path, "", map_size_bytes=map_size_bytes)
            replay.to(base.revision)
            store.flush()
            if (base.revision, kept.digest) != store.digest():
                raise ArchiveDamagedError(
                    f"the pieces up to revision {base.revision} do not lead to the state in "
                    f"{archive.place(base)}"
                )
        replay.to(span.last)
        store.flush()
        return store.digest()[1]
    finally:
        store.close()
