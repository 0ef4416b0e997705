"""How far this node has taken part in consensus, kept beside the raft directory.

A raft directory that is restored from a copy looks whole, and has forgotten votes and entries that
this node gave. So the term and the last applied entry are noted in a file beside it, at each new
term and before each new view is used; a directory that is older than its mark is refused.

The mark may be older than the directory (after a crash, or on a full disk), never newer.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from election.pysyncobj_adapter.files import REAL_DISK, Disk, load_file, store_file

PROGRESS_MARK_MAGIC = b"OCRAFTP1"


def is_behind(held: tuple[int, int], known: tuple[int, int]) -> bool:
    """Whether who holds (term, last entry) has gone back behind (term, applied entry)."""
    return held[0] < known[0] or held[1] < known[1]


def goes_on_at(told: int, known: int) -> int:
    """Where a leader goes on sending after a refusal that names the entry `told`.

    Never further on than it knows: of several messages on their way, an early one may be refused
    for an entry that contradicts, and a later one for the end of the same log, which lies behind.
    """
    return min(told, known)


class _Content(msgspec.Struct, frozen=True, array_like=True):
    directory_id: bytes
    term: int
    applied_index: int


class ProgressMark:
    """The file `<raft directory>.mark`. `known`: (term, applied index) of this directory."""

    def __init__(self, directory: Path, directory_id: bytes, disk: Disk = REAL_DISK) -> None:
        """Read the file; a mark of another directory (one that was made anew) says nothing.

        Raises StorageCorruptError: the file is damaged.
        """
        self.path = directory.with_name(directory.name + ".mark")
        self.known = (0, 0)
        self._directory_id = directory_id
        self._disk = disk
        content = load_file(self.path, PROGRESS_MARK_MAGIC, _Content, disk)
        if content is not None and content.directory_id == directory_id:
            self.known = (content.term, content.applied_index)

    def note(self, term: int, applied_index: int) -> None:
        """Raise the mark; durable on return. Raises StorageFullError."""
        known = (max(term, self.known[0]), max(applied_index, self.known[1]))
        if known != self.known:
            content = _Content(self._directory_id, *known)
            store_file(self.path, PROGRESS_MARK_MAGIC, content, self._disk)
            self.known = known
