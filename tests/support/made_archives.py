"""An archive that is made without a cluster: its entries are those that a test names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from cluster.archive.catalog import Base, PieceName
from cluster.archive.object_store import open_store
from cluster.archive.piece import Mark, encode_piece
from datapath.records import Entry, Record, make_record
from datapath.storage.backup_format import (
    BackupEnd,
    BackupHeader,
    BackupWriter,
    make_compressor,
)
from datapath.storage.snapshot import SnapshotReader
from datapath.storage.store import Store

EPOCH = 3
CLUSTER_ID = "c" * 32
SECOND_MS = 1000


class MadeArchive:
    """Entry n committed n seconds after `begin_ms`. `store` holds all entries that were added.

    `group`: the replica group that its base states name.
    """

    def __init__(
        self, root: Path, scratch: Path, *, cluster_id: str = CLUSTER_ID, group: str = ""
    ) -> None:
        self._group = group
        root.mkdir(exist_ok=True)
        self.url = root.as_uri()
        self.begin_ms = 1_800_000_000_000
        self.digests: dict[int, str] = {}
        self._root = root / cluster_id
        self._cluster_id = cluster_id
        self._objects = open_store(self.url)
        self.store = Store.open(scratch, cluster_id=cluster_id, map_size_bytes=1 << 26)

    def add(self, entries: Sequence[Entry], *, per_record: int = 3) -> Path:
        """Archive a piece, in records of `per_record` entries; return its file."""
        records: list[Record] = []
        for at in range(0, len(entries), per_record):
            some = list(entries[at : at + per_record])
            record = make_record(self.store.applied_index + 1, EPOCH, 0, some)
            for index, entry in enumerate(some, record.first_index):
                self.store.apply([entry], index, EPOCH)
                self.store.flush()
                self.digests[index] = self.store.digest()[1]
            records.append(record)
        first, last = records[0].first_index, records[-1].last_index
        marks = [Mark(index, self.time_ms(index)) for index in range(first, last + 1)]
        name = PieceName(first, last, EPOCH).name
        self._objects.put(
            f"{self._cluster_id}/{name}", [encode_piece(self._cluster_id, records, marks)]
        )
        return self._root / name

    def add_base(self) -> Path:
        """Archive the whole state as it is now; return its file."""
        self.store.flush()
        reader = SnapshotReader(self.store.acquire_environment())

        def parts() -> Iterator[bytes]:
            writer = BackupWriter()
            yield writer.begin(
                BackupHeader(
                    revision=reader.index,
                    epoch=reader.epoch,
                    cluster="shop",
                    cluster_id=self._cluster_id,
                    node="n1",
                    created_s=self.time_ms(reader.index) // SECOND_MS,
                    group=self._group,
                )
            )
            number = 0
            while (chunk := reader.read_chunk(number)) is not None:
                yield writer.compressed(make_compressor().compress(chunk))
                number += 1
            yield writer.end(BackupEnd(items=reader.count, digest=reader.checksum))

        name = Base(reader.index, reader.epoch, self.time_ms(reader.index)).name
        self._objects.put(f"{self._cluster_id}/{name}", parts())
        reader.close()
        return self._root / name

    def time_ms(self, index: int) -> int:
        return self.begin_ms + index * SECOND_MS
