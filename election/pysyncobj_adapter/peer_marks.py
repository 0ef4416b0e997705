"""What this member remembers of the others: how far each was, by what it told itself (decision 18).

A data directory that is put back from an older copy looks whole, `raft.mark` included: no disk
alone can tell. So each member tells the others on its links how far it is, of what is durable
there; they remember it by *data id*, and say so first when a link opens.

The memory is written now and then, so that it may be older than what was told; never newer.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import msgspec

from election.pysyncobj_adapter.errors import RaftStorageFullError, StorageCorruptError
from election.pysyncobj_adapter.files import REAL_DISK, Disk, load_file, store_file

PEER_MARKS_MAGIC = b"OCPEERM1"
MAX_REMEMBERED = 64
"""Data ids beyond this: the one that has told nothing for longest is forgotten."""

logger = logging.getLogger(__name__)


class PeerMark(msgspec.Struct, frozen=True, array_like=True):
    """How far a member is, at least; all of it is durable there.

    `term` and `applied_index` are of consensus; (`epoch`, `index`) is the last entry of the data
    log that it knows to be committed, (0, 0) for a witness.
    """

    term: int = 0
    applied_index: int = 0
    epoch: int = 0
    index: int = 0

    @property
    def consensus(self) -> tuple[int, int]:
        """The term and the last applied entry of consensus."""
        return (self.term, self.applied_index)

    @property
    def position(self) -> tuple[int, int]:
        """(epoch, index) of the last committed entry of the data log; the higher goes further."""
        return (self.epoch, self.index)

    def joined(self, other: PeerMark) -> PeerMark:
        """Return what is known of a member that has told both."""
        return PeerMark(
            max(self.term, other.term),
            max(self.applied_index, other.applied_index),
            *max(self.position, other.position),
        )


class PeerMarks:
    """The memory, in the file `<raft directory>.peers`. Safe to use from any thread."""

    def __init__(self, directory: Path, disk: Disk = REAL_DISK) -> None:
        """Read the file. One that is damaged or cannot be read is dropped: that is only weaker."""
        self.path = directory.with_name(directory.name + ".peers")
        self._disk = disk
        self._lock = threading.Lock()
        self._saving = threading.Lock()
        self._marks: dict[str, PeerMark] = {}
        self._saved: dict[str, PeerMark] = {}
        self._warned = False
        try:
            self._marks = load_file(self.path, PEER_MARKS_MAGIC, dict[str, PeerMark], disk) or {}
        except (StorageCorruptError, RaftStorageFullError, OSError):
            logger.warning(
                "%s is damaged or cannot be read: the remembered progress of other nodes is "
                "discarded and collected again",
                self.path,
            )
        self._saved = dict(self._marks)

    def of(self, data_id: str) -> PeerMark:
        """Return what the owner of that data directory has told; nothing known: zeros."""
        with self._lock:
            return self._marks.get(data_id, PeerMark())

    def note(self, data_id: str, mark: PeerMark) -> None:
        """Remember what the owner of that data directory has told."""
        if not data_id:
            return
        with self._lock:
            self._marks[data_id] = self._marks.pop(data_id, PeerMark()).joined(mark)
            if len(self._marks) > MAX_REMEMBERED:
                del self._marks[next(iter(self._marks))]

    def save(self) -> None:
        """Write the memory down if it has changed. Blocks on the disk; a failure is only logged."""
        with self._saving:
            with self._lock:
                marks = dict(self._marks)
            if marks == self._saved:
                return
            try:
                store_file(self.path, PEER_MARKS_MAGIC, marks, self._disk)
            except (RaftStorageFullError, OSError) as error:
                if not self._warned:
                    logger.warning("the progress of other nodes could not be saved: %s", error)
                self._warned = True
                return
            self._warned = False
            self._saved = marks
