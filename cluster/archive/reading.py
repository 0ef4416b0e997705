"""Reading an archive: what a revision or a time needs, and the records up to there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Protocol

from cluster.archive.catalog import Base, Catalog, PieceName, RestorePlan, cluster_ids
from cluster.archive.errors import ArchiveConflictError, ArchiveDamagedError, MissingPieceError
from cluster.archive.object_store import ObjectStore
from cluster.archive.piece import Piece, PieceHeader, decode_header, decode_piece
from datapath.records import Entry, Record

OnRevision = Callable[[int], object]
"""Called now and then with the revision that is reached."""
REPLAY_BUFFER_BYTES = 32 * 1024 * 1024
"""How much a replay holds in memory before it is written."""


class Archive:
    """The objects of one cluster in a store. Making one lists them."""

    def __init__(self, store: ObjectStore, cluster_id: str = "") -> None:
        """Raise ArchiveConflictError if it holds several clusters and none is named."""
        names = list(store.names())
        known = cluster_ids(names)
        if not known:
            text = f"{store.url} holds no archive: check the URL"
            if (catalog := Catalog(names)).bases or catalog.pieces:
                text += ". It names one cluster's part of one: leave out its last part"
            raise MissingPieceError(text, None)
        if cluster_id not in known and (cluster_id or len(known) > 1):
            what = f"nothing of cluster {cluster_id}" if cluster_id else "several clusters"
            raise ArchiveConflictError(
                f"{store.url} holds {what}: name one of {', '.join(known)} with --cluster-id"
            )
        self.cluster_id = cluster_id or known[0]
        self._store = store
        prefix = f"{self.cluster_id}/"
        self.catalog = Catalog(
            name.removeprefix(prefix) for name in names if name.startswith(prefix)
        )

    def at_revision(self, revision: int | None) -> RestorePlan:
        """Return how to reach a revision; None: the newest. Raises MissingPieceError."""
        return self.catalog.plan(revision)

    def at_time(self, time_ms: int) -> RestorePlan:
        """Return how to reach the last revision known to have committed by a time (ms since 1970).

        Raises MissingPieceError: the archive begins later, or lacks what was committed then.
        """
        bases = self.catalog.bases
        base = next((base for base in reversed(bases) if base.time_ms <= time_ms), None)
        if base is None:
            begin = min((base.time_ms for base in bases), default=None)
            detail = f"begins at {as_text(begin)}" if begin is not None else "holds no base state"
            raise MissingPieceError(
                f"{as_text(time_ms)} cannot be restored: the archive {detail}", None
            )
        chain = self.catalog.chain(base.revision)
        low, high = 0, len(chain)  # which piece is the first that ends after that time
        while low < high:
            middle = (low + high) // 2
            if self._header(chain[middle]).marks[-1].time_ms <= time_ms:
                low = middle + 1
            else:
                high = middle
        until = chain[low - 1].last if low else base.revision
        if low < len(chain):
            until = max(until, self._header(chain[low]).revision_at(time_ms) or 0)
        elif any(later.revision > until for later in bases):
            raise MissingPieceError(
                f"{as_text(time_ms)} cannot be restored: the piece with revision {until + 1}, of "
                f"about that time, is missing. The archive can go up to revision {until}",
                until,
            )
        return self.catalog.plan(until)

    def time_of(self, plan: RestorePlan) -> int:
        """Return when the last entry of a plan is known to have committed, in ms since 1970."""
        if not plan.pieces:
            return plan.base.time_ms
        marks = self._header(plan.pieces[-1]).marks
        return next(
            (mark.time_ms for mark in marks if mark.revision >= plan.until), marks[-1].time_ms
        )

    def base(self, base: Base) -> Iterator[bytes]:
        """Yield the content of a base state, in parts."""
        return self._store.read(f"{self.cluster_id}/{base.name}")

    def records(self, pieces: Iterable[PieceName]) -> Iterator[Record]:
        """Yield the records of pieces, verified. Raises ArchiveDamagedError."""
        for name in pieces:
            yield from self.piece(name).records

    def piece(self, name: PieceName) -> Piece:
        """Return a piece, verified. Raises ArchiveDamagedError."""
        piece = decode_piece(self._data(name), self.place(name))
        self._check(name, piece.header)
        return piece

    def _header(self, name: PieceName) -> PieceHeader:
        header, _ = decode_header(self._data(name), self.place(name))
        self._check(name, header)
        return header

    def _check(self, name: PieceName, header: PieceHeader) -> None:
        held = PieceName(header.first_index, header.last_index, header.epoch)
        if held != name or header.cluster_id != self.cluster_id or not header.marks:
            raise ArchiveDamagedError(
                f"{self.place(name)} holds entries {held.first} to {held.last} of cluster "
                f"{header.cluster_id}: it is not what its name says"
            )

    def _data(self, name: PieceName) -> bytes:
        return b"".join(self._store.read(f"{self.cluster_id}/{name.name}"))

    def place(self, name: PieceName | Base) -> str:
        """Return where an object is, for errors."""
        return f"{self._store.url}/{self.cluster_id}/{name.name}"


class ReplayTarget(Protocol):
    """Where records are replayed: see `datapath.storage.store.Store`."""

    @property
    def applied_index(self) -> int:
        """The last entry that it holds."""

    @property
    def overlay_bytes(self) -> int:
        """How much of it is in memory alone."""

    def apply(self, entries: list[Entry], last_index: int, epoch: int, /) -> None:
        """Apply entries, the last of which is (`last_index`, `epoch`)."""

    def flush(self) -> None:
        """Write what is in memory alone."""


class Replay:
    """Applies records in order to a store, beginning at any that it lacks.

    Records that the store holds already are passed over, also in part.
    """

    def __init__(
        self, records: Iterator[Record], store: ReplayTarget, source: str = "the archive"
    ) -> None:
        """`source`: what the records are of, for errors."""
        self._source = source
        self._records = records
        self._store = store
        self._record: Record | None = None  # the one that the next entry may be of

    def to(self, until: int) -> None:
        """Apply entries up to `until`, in memory at the end: flush the store then.

        Raises ArchiveDamagedError if an entry is missing, and what the records raise.
        """
        store, record = self._store, self._record
        while store.applied_index < until:
            following = store.applied_index + 1
            if record is None or record.last_index < following:
                record = self._record = next(self._records, None)
                if record is None or record.first_index > following:
                    raise ArchiveDamagedError(f"{self._source} lacks revision {following}")
            last = min(record.last_index, until)
            entries = record.entries()[
                max(0, following - record.first_index) : last - record.first_index + 1
            ]
            if entries:
                store.apply(entries, last, record.epoch)
            if store.overlay_bytes > REPLAY_BUFFER_BYTES:
                store.flush()


def told(records: Iterator[Record], progress: OnRevision) -> Iterator[Record]:
    """Yield records, and tell `progress` the revision that each one reaches.

    Before it is applied: nobody asks for more after the last one.
    """
    for record in records:
        progress(record.last_index)
        yield record


def as_text(time_ms: int) -> str:
    """Return a date as operators read and write it: UTC, ISO 8601."""
    moment = datetime.fromtimestamp(time_ms / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
