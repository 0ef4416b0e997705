"""The Raft journal: log entries, term and vote, in one append-only file.

Each record carries a CRC-32C and is on the disk before the call that wrote it returns. Truncation
is a record of its own, so nothing is ever rewritten in place; compaction writes a new file and
renames it. Term and vote live here too, and not in a file beside: they cannot be lost alone, and a
full disk does not stop them, because the file's blocks are allocated (and zeroed) beforehand.
Entries that arrive together are one record with one sync, so that no more than one record is ever
on its way to the disk.

Record: a head with a CRC of its own (40 bytes), the payload, the end mark, zeros up to a multiple
of 8. A torn last write leaves zeros in it (the head's CRC, the end mark, or a whole disk sector)
and is cut off: it was never acknowledged. Whatever else does not match is damage, and refuses to
start.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, overload

import msgspec

from election.pysyncobj_adapter.errors import StorageCorruptError
from election.pysyncobj_adapter.files import REAL_DISK, Disk, crc32c, disk_errors, new_path

RaftEntry = tuple[bytes, int, int]  # command, index, term: PySyncObj's order

JOURNAL_MAGIC = b"OCRAFTJ1"
MAX_PAYLOAD_BYTES = 128 * 1024
_HEADER = struct.Struct("<8s16sI4x")  # magic, id of the directory, CRC
_HEAD = struct.Struct("<IIQQQ")  # payload: length and CRC; kind, index, term
_HEAD_CHECK = struct.Struct("<I4x")  # CRC of the above
_HEAD_BYTES = _HEAD.size + _HEAD_CHECK.size
_END_MARK = b"\xa5"
_SECTOR_BYTES = 512
_ALIGN_BYTES = 8
_ENTRY, _TRUNCATE, _VOTE, _BATCH = 1, 2, 3, 4


def _record(kind: int, index: int, term: int, payload: bytes) -> bytes:
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise ValueError(f"a record of {len(payload)} bytes exceeds {MAX_PAYLOAD_BYTES}")
    head = _HEAD.pack(len(payload), crc32c(payload), kind, index, term)
    data = head + _HEAD_CHECK.pack(crc32c(head)) + payload + _END_MARK
    return data + bytes(-len(data) % _ALIGN_BYTES)


def _header(directory_id: bytes) -> bytes:
    return _HEADER.pack(JOURNAL_MAGIC, directory_id, crc32c(JOURNAL_MAGIC + directory_id))


class _Scan:
    """What a journal file holds: read front to back, once, at the start."""

    def __init__(self, path: Path, data: bytes) -> None:
        self.path = path
        self.data = data
        self.entries: list[RaftEntry] = []
        self.term = 0
        self.voted_for: str | None = None
        self.directory_id = self._read_header()
        self.end_bytes = _HEADER.size
        while self._read_record():
            pass
        self._check_tail()

    def _read_header(self) -> bytes:
        if len(self.data) < _HEADER.size:
            raise StorageCorruptError(self.path, len(self.data), "the header is cut short")
        magic, directory_id, checksum = _HEADER.unpack_from(self.data)
        if magic != JOURNAL_MAGIC or checksum != crc32c(magic + directory_id):
            raise StorageCorruptError(self.path, 0, "the header is damaged")
        return bytes(directory_id)

    def _head(self, offset: int) -> tuple[int, int, int, int, int] | None:
        """Return length, CRC of the payload, kind, index and term, if the head there is whole."""
        head = self.data[offset : offset + _HEAD.size]
        check = self.data[offset + _HEAD.size : offset + _HEAD_BYTES]
        if len(check) < _HEAD_CHECK.size or _HEAD_CHECK.pack(crc32c(head)) != check:
            return None
        return _HEAD.unpack(head)

    def _parse(self, offset: int) -> tuple[int, int, int, bytes, int] | None:
        """Return kind, index, term, payload and the offset behind of the whole record there."""
        head = self._head(offset)
        if head is None:
            return None
        length, checksum, kind, index, term = head
        end = offset + _HEAD_BYTES + length
        payload = self.data[offset + _HEAD_BYTES : end]
        if self.data[end : end + 1] != _END_MARK or crc32c(payload) != checksum:
            return None
        return kind, index, term, payload, end + 1 + -(end + 1) % _ALIGN_BYTES

    def _read_record(self) -> bool:
        record = self._parse(self.end_bytes)
        if record is None:
            return False
        kind, index, term, payload, end = record
        if kind == _ENTRY:
            self._add((payload, index, term))
        elif kind == _BATCH:
            # Its checksum matches, so this is what was encoded.
            for entry in msgspec.msgpack.decode(payload, type=list[RaftEntry]):
                self._add(entry)
        elif kind == _TRUNCATE:
            self.entries = [entry for entry in self.entries if entry[1] < index]
        elif kind == _VOTE:
            self.term, self.voted_for = term, payload.decode() or None
        else:
            raise StorageCorruptError(self.path, self.end_bytes, f"unknown record kind {kind}")
        self.end_bytes = end
        return True

    def _add(self, entry: RaftEntry) -> None:
        if self.entries and entry[1] != self.entries[-1][1] + 1:
            raise StorageCorruptError(self.path, self.end_bytes, f"entry {entry[1]} is misplaced")
        self.entries.append(entry)

    def _check_tail(self) -> None:
        """Accept a clean end or a torn last write; refuse everything else."""
        start = self.end_bytes
        if not any(self.data[start:]):
            return
        for offset in range(start + _ALIGN_BYTES, len(self.data) - _HEAD_BYTES, _ALIGN_BYTES):
            # A cheap test first: the kind is never zero.
            if self.data[offset + _ALIGN_BYTES] and self._head(offset) is not None:
                raise StorageCorruptError(self.path, start, "a record in the middle is damaged")
        if not self._is_torn(start):
            raise StorageCorruptError(self.path, start, "the last record is damaged")

    def _is_torn(self, start: int) -> bool:
        """Tell a write that never finished from one that did and was damaged since."""
        head = self._head(start)
        check_at = start + _HEAD.size
        if head is None:
            end = start + _HEAD_BYTES
            mark = self.data[check_at:end]
        else:
            end = check_at + _HEAD_CHECK.size + head[0] + 1
            mark = self.data[end - 1 : end]
        return (
            end > len(self.data)
            or not any(mark)
            or any(
                not any(self.data[max(sector, start) : min(sector + _SECTOR_BYTES, end)])
                for sector in range(start - start % _SECTOR_BYTES, end, _SECTOR_BYTES)
            )
        )


class JournalContent(NamedTuple):
    """What a journal file holds: the id of its directory, and its entries."""

    directory_id: bytes
    entries: list[RaftEntry]


def scan_journal(path: Path, disk: Disk) -> JournalContent:
    """Read a journal, and change nothing. Raises StorageCorruptError."""
    scan = _Scan(path, disk.read_from_disk(path))
    return JournalContent(scan.directory_id, scan.entries)


class Journal:
    """PySyncObj's journal interface (hence the method names) on one durable file."""

    def __init__(
        self, path: Path, *, reserve_bytes: int = 1024 * 1024, disk: Disk = REAL_DISK
    ) -> None:
        """Open or make the journal; a torn last write is cut off.

        Raises:
            StorageCorruptError: the file is damaged.
            StorageFullError: the reserve cannot be allocated.

        """
        self.path = path
        self._disk = disk
        self._reserve_bytes = reserve_bytes
        self._fd = -1
        self._end_bytes = self._size_bytes = 0
        self._batch: list[RaftEntry] | None = None
        disk.remove(new_path(path))
        if disk.exists(path):
            scan = _Scan(path, disk.read_from_disk(path))
            self.directory_id = scan.directory_id
            self._entries = scan.entries
            self._term, self._voted_for = scan.term, scan.voted_for
            self._open(scan.end_bytes)
        else:
            self.directory_id = secrets.token_bytes(16)
            self._entries = []
            self._term, self._voted_for = 0, None
            self._rewrite([])

    # What PySyncObj calls.

    def add(self, command: bytes, idx: int, term: int) -> None:
        """Append one entry; it is durable on return (or at the end of `one_sync`)."""
        entry = (command, idx, term)
        if self._batch is None:
            self._append(_record(_ENTRY, idx, term, command))
        else:
            self._batch.append(entry)
        self._entries.append(entry)

    def setCurrentTerm(self, term: int, votedForNodeId: str | None) -> None:  # noqa: N802, N803
        """Store term and vote; they are durable on return."""
        self._append(_record(_VOTE, 0, term, (votedForNodeId or "").encode()))
        self._term, self._voted_for = term, votedForNodeId

    def getCurrentTerm(self) -> int:  # noqa: N802
        """Return the stored term."""
        return self._term

    def getVotedForNodeId(self) -> str | None:  # noqa: N802
        """Return whom this node voted for in the stored term."""
        return self._voted_for

    def deleteEntriesFrom(self, entryFrom: int) -> None:  # noqa: N802, N803
        """Remove the entries from that position of the list on; durable on return."""
        if entryFrom >= len(self._entries):
            return
        self._append(_record(_TRUNCATE, self._entries[entryFrom][1], 0, b""))
        del self._entries[entryFrom:]

    def deleteEntriesTo(self, entryTo: int) -> None:  # noqa: N802, N803
        """Remove the entries before that position of the list, atomically."""
        self.replace(self._entries[entryTo:])

    def clear(self) -> None:
        """Remove all entries, atomically; term and vote stay."""
        self.replace([])

    def setRaftCommitIndex(self, raftCommitIndex: int) -> None:  # noqa: N802, N803
        """Do nothing: a commit index that is never stored is never ahead of the log."""

    def getRaftCommitIndex(self) -> int:  # noqa: N802
        """Return what is surely committed: the entry that every new log starts with."""
        return 1

    def onOneSecondTimer(self) -> None:  # noqa: N802
        """Do nothing: everything is stored at once."""

    def _destroy(self) -> None:
        if self._fd >= 0:
            self._disk.close(self._fd)
            self._fd = -1

    @overload
    def __getitem__(self, item: int) -> RaftEntry: ...
    @overload
    def __getitem__(self, item: slice) -> list[RaftEntry]: ...
    def __getitem__(self, item: int | slice) -> RaftEntry | list[RaftEntry]:
        return self._entries[item]

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[RaftEntry]:
        return iter(self._entries)

    # What the adapter calls.

    def replace(self, entries: list[RaftEntry]) -> None:
        """Put `entries` in place of all others, atomically; term and vote stay."""
        entries = list(entries)
        self._rewrite(entries)
        self._entries = entries

    @contextlib.contextmanager
    def one_sync(self) -> Iterator[None]:
        """Let the entries added meanwhile share one record and one sync.

        Whoever sends while this is open must call `sync` first (the transport does).
        """
        self._batch = []
        try:
            yield
            self.sync()
        finally:
            self._batch = None

    def sync(self) -> None:
        """Make every entry so far durable."""
        if self._batch:
            entries, self._batch = self._batch, None
            self._append(_record(_BATCH, 0, 0, msgspec.msgpack.encode(entries)))
            self._batch = []

    def _append(self, record: bytes) -> None:
        """Write one record and sync it; whatever waits in the batch goes first."""
        self.sync()
        end = self._end_bytes + len(record)
        with disk_errors(self.path):
            if end > self._size_bytes:
                self._reserve(end)
            self._disk.write_all(self._fd, record, self._end_bytes)
            self._disk.sync_data(self._fd)
        self._end_bytes = end

    def _reserve(self, at_least_bytes: int) -> None:
        """Allocate and zero the next stretch of the file; fsync, for the size to be durable."""
        new_size = self._size_bytes
        while new_size < at_least_bytes:
            new_size += self._reserve_bytes
        disk = self._disk
        disk.allocate(self._fd, self._size_bytes, new_size - self._size_bytes)
        # Written zeros make each later sync a plain data write, without a change of extents.
        disk.write_all(self._fd, bytes(new_size - self._size_bytes), self._size_bytes)
        disk.sync(self._fd)
        self._size_bytes = new_size

    def _open(self, end_bytes: int) -> None:
        """Open an existing file, and cut and zero whatever lies behind its last whole record."""
        disk = self._disk
        self._end_bytes = end_bytes
        with disk_errors(self.path):
            self._fd = disk.open(self.path, os.O_RDWR)
            size = disk.size(self._fd)
            tail = disk.read(self._fd, size - end_bytes, end_bytes)
            if any(tail) or size < end_bytes:
                disk.truncate(self._fd, end_bytes)
            self._size_bytes = disk.size(self._fd)
            if self._size_bytes < max(end_bytes, self._reserve_bytes):
                self._reserve(max(end_bytes, self._reserve_bytes))
            # What was read may still be only in the page cache, if the last process was killed.
            disk.sync(self._fd)
            disk.sync_directory(self.path.parent)

    def _rewrite(self, entries: list[RaftEntry]) -> None:
        """Write a new file with `entries`, term and vote, and rename it over the old one."""
        disk = self._disk
        data = _header(self.directory_id)
        data += _record(_VOTE, 0, self._term, (self._voted_for or "").encode())
        data += b"".join(_record(_ENTRY, index, term, command) for command, index, term in entries)
        beside = new_path(self.path)
        size = len(data) + -len(data) % self._reserve_bytes
        with disk_errors(beside):
            fd = disk.open(beside, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            try:
                disk.allocate(fd, 0, size)
                disk.write_all(fd, data + bytes(size - len(data)), 0)
                disk.sync(fd)
            except BaseException:
                disk.close(fd)
                disk.remove(beside)
                raise
        self._destroy()
        self._fd = fd
        self._end_bytes, self._size_bytes = len(data), size
        disk.rename_durably(beside, self.path)
