"""The log: append-only segments of records, each record verbatim as the primary made it.

A directory holds `<first index, 20 digits>.seg` files and perhaps one `spare`, the next segment's
room, taken ahead of time. A segment is preallocated, so its unused tail reads as zeros; frame
length 0 is its end. Layout, little-endian:

    header (64 bytes)   magic 8, format u32, first index u64, epoch of the entry before u64,
                        salt u64, CRC-32C of these u32, zeros
    frames              records (see `datapath.records`), and between them *sync marks*:
    sync mark (32)      length u32 = 24, CRC-32C of salt and body u32;
                        body: "sync", own offset u32, next index u64, epoch of the last entry u64

A sync mark opens each group that is written after a successful sync, and says "all before me was
durable". That tells a crash from damage: a bad frame without a sync mark after it belongs to the
last group, which nobody was promised (a torn tail, cut off); with one, something that was durable
is damaged (LogCorruptError). The salt, drawn for each segment, keeps values that happen to contain
a copy of a log from being taken for one.

A new segment gets its name only when its header is durable, and all before it is: so only the last
segment may end in a torn tail, and nothing may be torn in a header.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import struct
import threading
import time
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import google_crc32c

from datapath.datadir import storage_error, sync_directory
from datapath.errors import DiskFailedError, DiskFullError, LogCorruptError, SafetyError
from datapath.records import (
    FRAME_SIZE_BYTES,
    HEADER_SIZE_BYTES,
    Record,
    frame_length,
    parse_record,
)

DEFAULT_SEGMENT_SIZE_BYTES = 64 * 1024 * 1024
MAX_SEGMENT_SIZE_BYTES = 1 << 28
SEGMENT_HEADER_SIZE_BYTES = 64
SYNC_MARK_SIZE_BYTES = 32

_FORMAT = 1
_MAGIC = b"onecopyL"
_HEADER = struct.Struct("<8sIQQQ")
_MARK = struct.Struct("<4sIQQ")
_MARK_MAGIC = b"sync"
_FRAME = struct.Struct("<II")
_INDEX_AND_COUNT = struct.Struct("<Q16xI")
_SPARSE_STEP_BYTES = 16 * 1024
_READ_SIZE_BYTES = 64 * 1024
_MAX_BUFFERS = 512
_FULL_PAUSE_S = 0.2  # how long a full disk is believed to be full: asking it is dear
_SEGMENT_NAME = re.compile(r"\d{20}\.seg")


class Files:
    """The system calls that change the log; tests inject failures and crashes here."""

    write_through: int = getattr(os, "RWF_DSYNC", 0)

    def write(self, descriptor: int, buffers: Sequence[bytes], offset: int, flags: int) -> int:
        """Write at an offset; return how many bytes were taken."""
        return os.pwritev(descriptor, buffers, offset, flags)

    def sync(self, descriptor: int) -> None:
        """Make a file's data durable."""
        os.fdatasync(descriptor)

    def allocate(self, descriptor: int, size_bytes: int) -> None:
        """Give the file that size, and the room for it."""
        os.posix_fallocate(descriptor, 0, size_bytes)

    def truncate(self, descriptor: int, size_bytes: int) -> None:
        """Cut the file to that size."""
        os.ftruncate(descriptor, size_bytes)

    def remove(self, path: Path) -> None:
        """Delete a file, durably."""
        path.unlink()
        sync_directory(path.parent)

    def rename(self, path: Path, target: Path) -> None:
        """Give a file another name, durably."""
        path.rename(target)
        sync_directory(target.parent)
        if path.parent != target.parent:
            sync_directory(path.parent)


class Damage(NamedTuple):
    """A place where the log cannot be read on. `last_good_index` is the index before it."""

    path: Path
    offset: int
    last_good_index: int
    reason: str

    def error(self) -> LogCorruptError:
        """Return the error that names it."""
        return LogCorruptError(
            f"{self.path} is damaged at offset {self.offset}, after entry "
            f"{self.last_good_index}: {self.reason}",
            path=str(self.path),
            offset=self.offset,
            last_good_index=self.last_good_index,
        )


class TailCut(NamedTuple):
    """What was cut off as torn: `size_bytes` from `offset` of the file `path`."""

    path: str
    offset: int
    size_bytes: int


class _Mark(NamedTuple):
    offset: int
    next_index: int
    last_epoch: int


class _Segment:
    """One segment file. `end` is the offset (bytes) after its last frame."""

    def __init__(
        self, path: Path, descriptor: int, size: int, first_index: int, prev_epoch: int, salt: bytes
    ) -> None:
        self.path = path
        self.descriptor = descriptor
        self.size = size
        self.start = self.end = SEGMENT_HEADER_SIZE_BYTES
        self.first_index = first_index
        self.last_index = first_index - 1
        self.prev_epoch = self.last_epoch = prev_epoch
        self.epochs: list[tuple[int, int]] = []
        self.commit_hint = 0
        self._salt = salt
        # Where to start reading for an index: one (first index, offset) each step of bytes.
        self._indices = array("Q")
        self._offsets = array("Q")

    @classmethod
    def create(
        cls, spare: Path, path: Path, first_index: int, prev_epoch: int, files: Files
    ) -> _Segment:
        """Turn an allocated spare file into the segment that starts with `first_index`; durable."""
        descriptor = os.open(spare, os.O_RDWR | os.O_CLOEXEC)
        try:
            salt = secrets.token_bytes(8)
            fields = _HEADER.pack(
                _MAGIC, _FORMAT, first_index, prev_epoch, int.from_bytes(salt, "little")
            )
            header = fields + google_crc32c.value(fields).to_bytes(4, "little")
            header = header.ljust(SEGMENT_HEADER_SIZE_BYTES, b"\0")
            _write_all(files, descriptor, [header], 0, 0)
            files.sync(descriptor)
            files.rename(spare, path)
            size = os.fstat(descriptor).st_size
        except BaseException:
            os.close(descriptor)
            raise
        return cls(path, descriptor, size, first_index, prev_epoch, salt)

    @classmethod
    def open(cls, path: Path) -> _Segment | str:
        """Open a segment and check its header; a string says what is wrong with it."""
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        header = os.pread(descriptor, SEGMENT_HEADER_SIZE_BYTES, 0)
        problem = ""
        fields = header[: _HEADER.size]
        checksum = header[_HEADER.size : _HEADER.size + 4]
        if len(header) < SEGMENT_HEADER_SIZE_BYTES:
            problem = "the segment's header is cut short"
        elif google_crc32c.value(fields).to_bytes(4, "little") != checksum:
            problem = "the segment's header has a wrong checksum"
        elif _HEADER.unpack(fields)[:2] != (_MAGIC, _FORMAT):
            problem = f"not a log segment of format {_FORMAT}"
        elif _HEADER.unpack(fields)[2] != int(path.stem):
            problem = "the segment's header belongs to another file"
        if problem:
            os.close(descriptor)
            return problem
        _, _, first_index, prev_epoch, salt = _HEADER.unpack(fields)
        size = os.fstat(descriptor).st_size
        return cls(path, descriptor, size, first_index, prev_epoch, int(salt).to_bytes(8, "little"))

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def mark(self) -> bytes:
        """Return a sync mark for the end of this segment."""
        body = _MARK.pack(_MARK_MAGIC, self.end, self.last_index + 1, self.last_epoch)
        return _FRAME.pack(len(body), google_crc32c.value(self._salt + body)) + body

    def _parse_mark(self, frame: bytes, offset: int) -> _Mark | None:
        length, checksum = _FRAME.unpack_from(frame)
        body = frame[FRAME_SIZE_BYTES:SYNC_MARK_SIZE_BYTES]
        if length != _MARK.size or len(body) != _MARK.size:
            return None
        magic, own_offset, next_index, last_epoch = _MARK.unpack(body)
        if (magic, own_offset) != (_MARK_MAGIC, offset):
            return None
        if google_crc32c.value(self._salt + body) != checksum:
            return None
        return _Mark(offset, next_index, last_epoch)

    def note(self, record: Record, offset: int) -> None:
        """Count in a record that stands at `offset`."""
        if not self._offsets or offset - self._offsets[-1] >= _SPARSE_STEP_BYTES:
            self._indices.append(record.first_index)
            self._offsets.append(offset)
        if not self.epochs or self.epochs[-1][0] != record.epoch:
            self.epochs.append((record.epoch, record.first_index))
        self.last_index = record.last_index
        self.last_epoch = record.epoch
        self.commit_hint = max(self.commit_hint, record.commit_index)
        self.end = offset + len(record.data)

    def scan(self, data: bytes) -> str:
        """Count in the frames from `end` on; return what stopped it, "" for a proper end."""
        while self.end + FRAME_SIZE_BYTES <= self.size:
            offset = self.end
            length = frame_length(data[offset : offset + FRAME_SIZE_BYTES])
            if not length:
                break
            if length == SYNC_MARK_SIZE_BYTES:
                mark = self._parse_mark(data[offset : offset + length], offset)
                if mark is None:
                    return "a bad sync mark"
                if (mark.next_index, mark.last_epoch) != (self.last_index + 1, self.last_epoch):
                    return f"a sync mark of entry {mark.next_index} is out of place"
                self.end = offset + length
                continue
            if length < HEADER_SIZE_BYTES or offset + length > self.size:
                return f"a record of {length} bytes cannot stand there"
            try:
                record = parse_record(
                    data[offset : offset + length], path=str(self.path), offset=offset
                )
            except LogCorruptError as error:
                return str(error)
            problem = _follows(record, self.last_index, self.last_epoch)
            if problem:
                return problem
            self.note(record, offset)
        return "" if _is_zero(data, self.end) else "bytes after the end"

    def find_mark(self, data: bytes, after: int) -> _Mark | None:
        """Return the first sync mark that stands after the offset `after`."""
        at = data.find(_MARK_MAGIC, after + 1)
        while at >= 0:
            offset = at - FRAME_SIZE_BYTES
            if offset > after:
                mark = self._parse_mark(data[offset : offset + SYNC_MARK_SIZE_BYTES], offset)
                if mark:
                    return mark
            at = data.find(_MARK_MAGIC, at + 1)
        return None

    def restart(self, mark: _Mark) -> None:
        """Forget what stands before a sync mark: the segment now starts there."""
        self.start = self.end = mark.offset
        self.first_index = mark.next_index
        self.last_index = mark.next_index - 1
        self.prev_epoch = self.last_epoch = mark.last_epoch
        self.epochs = []
        self._indices, self._offsets = array("Q"), array("Q")

    def epoch_at(self, index: int) -> int:
        """Return the epoch of an entry of this segment, or of the one before it."""
        position = bisect_right(self.epochs, index, key=lambda item: item[1])
        return self.epochs[position - 1][0] if position else self.prev_epoch

    def forget(self, from_index: int, offset: int) -> None:
        """Take back the entries from `from_index`, which stands at `offset`."""
        self.last_epoch = self.epoch_at(from_index - 1)
        self.last_index = from_index - 1
        self.end = offset
        self.epochs = [item for item in self.epochs if item[1] < from_index]
        while self._offsets and self._offsets[-1] >= offset:
            self._offsets.pop()
            self._indices.pop()

    def walk(self, from_index: int, end: int) -> Iterable[tuple[int, int, bytes]]:
        """Yield (offset, first index, bytes) of records, from the one that holds `from_index`."""
        position = bisect_right(self._indices, from_index) - 1
        offset = self._offsets[position] if position >= 0 else self.start
        expected = self._indices[position] if position >= 0 else self.first_index
        buffer, origin = b"", offset
        while offset < end:
            at = offset - origin
            length = 0
            if len(buffer) - at >= HEADER_SIZE_BYTES or origin + len(buffer) >= end:
                length = frame_length(buffer[at : at + FRAME_SIZE_BYTES].ljust(8, b"\0"))
                if length < SYNC_MARK_SIZE_BYTES or offset + length > end:
                    raise Damage(self.path, offset, expected - 1, "a bad frame length").error()
            if not length or len(buffer) - at < length:
                wanted = max(length, _READ_SIZE_BYTES)
                buffer = os.pread(self.descriptor, min(wanted, end - offset), offset)
                if len(buffer) < min(wanted, end - offset):
                    raise Damage(self.path, offset, expected - 1, "the file is cut short").error()
                origin = offset
                continue
            if length > SYNC_MARK_SIZE_BYTES:
                first, count = _INDEX_AND_COUNT.unpack_from(buffer, at + FRAME_SIZE_BYTES)
                if expected != first:
                    raise Damage(self.path, offset, expected - 1, f"found entry {first}").error()
                expected = first + count
                if expected > from_index:
                    yield offset, first, buffer[at : at + length]
            offset += length


def _follows(record: Record, last_index: int, last_epoch: int) -> str:
    if record.first_index != last_index + 1 or record.last_index < record.first_index:
        return f"entries {record.first_index} to {record.last_index} follow entry {last_index}"
    if record.epoch < last_epoch:
        return f"epoch {record.epoch} follows epoch {last_epoch}"
    return ""


def _write_all(
    files: Files, descriptor: int, buffers: list[bytes], offset: int, flags: int
) -> None:
    """Write all, also where the system takes it in parts."""
    if len(buffers) > _MAX_BUFFERS:
        buffers = [b"".join(buffers)]
    total = sum(map(len, buffers))
    taken = files.write(descriptor, buffers, offset, flags)
    if taken == total:
        return
    rest = b"".join(buffers)
    while taken < total:
        taken += files.write(descriptor, [rest[taken:]], offset + taken, flags)


def _is_zero(data: bytes, offset: int) -> bool:
    return data.count(0, offset) == len(data) - offset


class Log:
    """A replica's log. `Log.open` makes one.

    One thread at a time may change it (`append` to `close`); `read`, `reserve`, `drop_before` and
    the properties may be used from any thread meanwhile. After DiskFailedError it refuses all
    change (D9).
    """

    def __init__(
        self, directory: Path, segment_size_bytes: int, base: tuple[int, int], files: Files
    ) -> None:
        if not 4096 <= segment_size_bytes <= MAX_SEGMENT_SIZE_BYTES:
            raise ValueError(f"a segment has 4096 to {MAX_SEGMENT_SIZE_BYTES} bytes")
        self.directory = directory
        self.repairs: list[str] = []
        self.cut: TailCut | None = None
        self._segment_size_bytes = segment_size_bytes
        self._files = files
        self._base_index, self._base_epoch = base
        self._segments: list[_Segment] = []
        self._spare_size_bytes = 0
        self._full_until = 0.0  # monotonic clock, seconds
        self._dirty = False
        self._broken = ""
        self._shape = threading.Lock()  # held to read, and to take segments away
        self._space = threading.Lock()  # held to make or use the spare

    @classmethod
    def open(
        cls,
        directory: str | Path,
        *,
        segment_size_bytes: int = DEFAULT_SEGMENT_SIZE_BYTES,
        base_index: int = 0,
        base_epoch: int = 0,
        salvage: bool = False,
        files: Files | None = None,
    ) -> Log:
        """Open the log of a store that holds everything up to (`base_index`, `base_epoch`).

        All checksums are verified. What is found is durable when it returns.

        `salvage` keeps what stands before the damage, and moves the rest to `damaged-<time>/`:
        the replica has then lost entries it may have acknowledged, so note that durably first
        (`Accepted.set_damaged`).

        Raises:
            LogCorruptError: entries after `base_index` are damaged or missing.
            DiskFullError, DiskFailedError: it could not be read or repaired.

        """
        log = cls(Path(directory), segment_size_bytes, (base_index, base_epoch), files or Files())
        try:
            _Recovery(log, salvage=salvage).run()
        except OSError as error:
            log._release()
            raise storage_error(error, f"opening the log {directory}") from error
        except BaseException:
            log._release()
            raise
        return log

    # What it holds

    @property
    def tail_cut(self) -> bool:
        """Whether opening cut off a torn tail; `cut` says what."""
        return self.cut is not None

    @property
    def first_index(self) -> int:
        """The first entry still held (or the next to come, if there is none)."""
        segments = self._segments
        return segments[0].first_index if segments else self._base_index + 1

    @property
    def base_epoch(self) -> int:
        """The epoch of the entry before `first_index`."""
        segments = self._segments
        return segments[0].prev_epoch if segments else self._base_epoch

    @property
    def last_index(self) -> int:
        """The last entry held; not necessarily durable, see `sync`."""
        segments = self._segments
        return segments[-1].last_index if segments else self._base_index

    @property
    def last_epoch(self) -> int:
        """The epoch of the entry `last_index`."""
        segments = self._segments
        return segments[-1].last_epoch if segments else self._base_epoch

    @property
    def commit_hint(self) -> int:
        """The highest commit index that a record held carries."""
        return max((segment.commit_hint for segment in self._segments), default=0)

    @property
    def size_bytes(self) -> int:
        """How many bytes the segments use, preallocated tails left out."""
        return sum(segment.end for segment in self._segments)

    @property
    def room_bytes(self) -> int:
        """How much can be appended for sure; each group costs SYNC_MARK_SIZE_BYTES on top."""
        segments = self._segments
        current = segments[-1].size - segments[-1].end if segments else 0
        # Whatever does not fit into the current segment goes to the spare, whole.
        return max(current, self._spare_size_bytes - SEGMENT_HEADER_SIZE_BYTES, 0)

    def epochs(self) -> list[tuple[int, int]]:
        """Return (epoch, its first index held) for all entries held, in order."""
        with self._shape:
            found: list[tuple[int, int]] = []
            for segment in self._segments:
                for item in segment.epochs:
                    if not found or found[-1][0] != item[0]:
                        found.append(item)
            return found

    def epoch_at(self, index: int) -> int | None:
        """Return an entry's epoch; None if it is not held. Knows `first_index` - 1 as well."""
        with self._shape:
            if not self._segments:
                return self._base_epoch if index == self._base_index else None
            if not self.first_index - 1 <= index <= self.last_index:
                return None
            return self._segment_of(index).epoch_at(index)

    def read(self, from_index: int, max_bytes: int) -> list[Record]:
        """Return whole records from the one that holds `from_index`: at least one, if there is.

        Raises:
            IndexError: `from_index` is no longer held.
            LogCorruptError: a record is damaged.

        """
        with self._shape:
            if from_index < self.first_index:
                raise IndexError(
                    f"entry {from_index} is gone: the log starts at {self.first_index}"
                )
            records: list[Record] = []
            taken, index = 0, from_index
            while index <= self.last_index:
                segment = self._segment_of(index)
                # `end` first: appending moves `last_index` before it, never after.
                for offset, first, data in segment.walk(index, segment.end):
                    if records and taken + len(data) > max_bytes:
                        return records
                    record = self._verified(segment, offset, first, data)
                    records.append(record)
                    taken += len(data)
                    index = record.last_index + 1
                if taken >= max_bytes or segment is self._segments[-1]:
                    break
            return records

    def _verified(self, segment: _Segment, offset: int, first: int, data: bytes) -> Record:
        try:
            return parse_record(data, path=str(segment.path), offset=offset)
        except LogCorruptError as error:
            raise Damage(segment.path, offset, first - 1, str(error)).error() from error

    def _segment_of(self, index: int) -> _Segment:
        position = bisect_right(self._segments, index, key=lambda segment: segment.first_index)
        return self._segments[max(position - 1, 0)]

    # Room

    def reserve(self, n_bytes: int) -> bool:
        """Make sure that `n_bytes` more can be appended without more disk space; False if not.

        Counted from what has been appended: whoever queues records adds them up himself.
        """
        n_bytes += SYNC_MARK_SIZE_BYTES
        return n_bytes <= self.room_bytes or self._make_spare(n_bytes + SEGMENT_HEADER_SIZE_BYTES)

    def prepare_next_segment(self) -> bool:
        """Take the room for the next segment, unless it is there; False if the disk is full."""
        return self._make_spare(self._segment_size_bytes)

    @property
    def wants_preparing(self) -> bool:
        """Whether the current segment is over half full and there is no spare."""
        if self._spare_size_bytes or self._broken:
            return False
        segments = self._segments
        return not segments or segments[-1].end * 2 > segments[-1].size

    def _make_spare(self, size_bytes: int) -> bool:
        with self._space:
            if self._broken:
                return False
            size_bytes = max(size_bytes, self._segment_size_bytes)
            if size_bytes <= self._spare_size_bytes:
                return True
            if time.monotonic() < self._full_until:
                return False
            spare = self.directory / "spare"
            try:
                descriptor = os.open(spare, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
                try:
                    self._files.allocate(descriptor, size_bytes)
                finally:
                    os.close(descriptor)
            except OSError as error:
                # A partial allocation would keep the last bytes of a full disk from everybody.
                spare.unlink(missing_ok=True)
                self._spare_size_bytes = 0
                failure = storage_error(error, f"preallocating {spare}")
                if isinstance(failure, DiskFullError):
                    self._full_until = time.monotonic() + _FULL_PAUSE_S
                    return False
                raise failure from error
            self._spare_size_bytes = size_bytes
            return True

    # Change

    def append(self, records: Sequence[Record], *, durable: bool = False) -> None:
        """Append records; they are durable only after `sync`, or at once if `durable`.

        `durable` writes and syncs in one system call where the system can: beside a busy event
        loop each call more costs a wait for the interpreter's lock.

        Raises:
            SafetyError: they do not follow what is held.
            DiskFullError: no room; nothing of them is held.
            DiskFailedError: the disk failed; the log refuses further change (D9).

        """
        self._check_usable()
        last_index, last_epoch = self.last_index, self.last_epoch
        for record in records:
            problem = _follows(record, last_index, last_epoch)
            if problem:
                raise SafetyError(f"append to {self.directory}: {problem}")
            last_index, last_epoch = record.last_index, record.epoch
        before = self.last_index
        try:
            self._append(records, durable=durable)
        except OSError as error:
            failure = storage_error(error, f"appending to {self.directory}")
            if isinstance(failure, DiskFullError):
                self._take_back(before)
            else:
                self._broken = str(failure)
            raise failure from error

    def _append(self, records: Sequence[Record], *, durable: bool) -> None:
        group: list[Record] = []
        size = SYNC_MARK_SIZE_BYTES
        for record in records:
            length = len(record.data)
            segment = self._segments[-1] if self._segments else None
            if segment is None or segment.end + size + length > segment.size:
                self._write(group, 0)
                self._roll(length)
                group, size = [], 0
            group.append(record)
            size += length
        # Writing through makes only this write durable, so nothing older may be waiting.
        if durable and not self._dirty and self._files.write_through:
            try:
                self._write(group, self._files.write_through)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                    raise
                self._files.write_through = 0  # not on this file system
            else:
                return
        self._write(group, 0)
        if durable:
            self._sync()

    def _write(self, group: list[Record], flags: int) -> None:
        if not group:
            return
        segment = self._segments[-1]
        buffers = [record.data for record in group]
        offset = segment.end
        if not self._dirty and offset > segment.start:
            buffers.insert(0, segment.mark())
            offset += SYNC_MARK_SIZE_BYTES
        self._dirty = not flags
        _write_all(self._files, segment.descriptor, buffers, segment.end, flags)
        for record in group:
            segment.note(record, offset)
            offset = segment.end

    def _roll(self, record_size_bytes: int) -> None:
        """Seal the current segment and start the next, with room for the record to come."""
        self._sync()
        first_index = self.last_index + 1
        needed = record_size_bytes + SEGMENT_HEADER_SIZE_BYTES
        if not self._make_spare(needed):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with self._space:
            path = self.directory / f"{first_index:020}.seg"
            try:
                segment = _Segment.create(
                    self.directory / "spare", path, first_index, self.last_epoch, self._files
                )
            except OSError as error:
                raise self._break(error, f"starting {path}") from error
            self._spare_size_bytes = 0
            with self._shape:
                self._segments = [*self._segments, segment]

    def sync(self) -> None:
        """Make all that was appended durable. Raises DiskFailedError; never tried again (D9)."""
        self._check_usable()
        self._sync()

    def _sync(self) -> None:
        if self._dirty:
            try:
                self._files.sync(self._segments[-1].descriptor)
            except OSError as error:
                raise self._break(error, f"syncing {self.directory}") from error
            self._dirty = False

    def _break(self, error: OSError, doing: str) -> DiskFailedError:
        """Refuse all further change (D9): whatever the reason, what was written is suspect."""
        self._broken = f"{doing}: {error.strerror or error}"
        return DiskFailedError(self._broken)

    def truncate(self, from_index: int) -> None:
        """Remove that entry and all later ones; durable when it returns.

        A crash leaves a prefix of the old log that holds at least what was to be kept.

        Raises:
            SafetyError: `from_index` is not the start of a record, or no longer held.
            DiskFailedError: the disk failed; the log refuses further change (D9).

        """
        self._check_usable()
        if from_index > self.last_index:
            return
        if from_index < self.first_index:
            raise SafetyError(f"cannot cut at {from_index}: the log starts at {self.first_index}")
        segment = self._segment_of(from_index)
        offset, first, _ = next(iter(segment.walk(from_index, segment.end)))
        if first != from_index:
            raise SafetyError(f"cannot cut at {from_index}: its record starts at {first}")
        try:
            self._cut(segment, from_index, offset)
        except OSError as error:
            raise self._break(error, f"truncating {self.directory}") from error

    def _cut(self, segment: _Segment, from_index: int, offset: int) -> None:
        with self._shape:
            keep = self._segments.index(segment) + 1
            gone = self._segments[keep:]
            self._segments = self._segments[:keep]
            segment.forget(from_index, offset)
        self._remove(reversed(gone))
        self._shorten(segment)
        self._dirty = False

    def _remove(self, segments: Iterable[_Segment]) -> None:
        """Delete segment files, each durably before the next."""
        for segment in segments:
            segment.close()
            self._files.remove(segment.path)

    def _shorten(self, segment: _Segment) -> None:
        """Make all after `end` read as zeros, durably.

        Cutting the file and extending it again is one journaled step: a crash leaves all of the
        old content or none. Zeroing could leave a hole with old records after it.
        """
        self._files.truncate(segment.descriptor, segment.end)
        self._files.sync(segment.descriptor)
        try:
            self._files.allocate(segment.descriptor, segment.size)
            self._files.sync(segment.descriptor)
        except OSError as error:
            if not isinstance(storage_error(error, ""), DiskFullError):
                raise
            segment.size = os.fstat(segment.descriptor).st_size

    def _take_back(self, last_index: int) -> None:
        """After ENOSPC: leave nothing of a half-written append."""
        try:
            if self.last_index > last_index:
                self.truncate(last_index + 1)
            elif self._segments:
                self._shorten(self._segments[-1])
        except OSError as error:
            raise self._break(error, f"taking back an append to {self.directory}") from error

    def reset(self, index: int, epoch: int) -> None:
        """Forget everything: the next entry is `index` + 1, after (`index`, `epoch`).

        A crash leaves a prefix of the old log or nothing; opening it beside a store at
        (`index`, `epoch`) finishes the job. Raises DiskFailedError.
        """
        self._check_usable()
        try:
            self._reset(index, epoch)
        except OSError as error:
            raise self._break(error, f"resetting {self.directory}") from error

    def _reset(self, index: int, epoch: int) -> None:
        with self._shape:
            gone, self._segments = self._segments, []
            self._base_index, self._base_epoch = index, epoch
        self._remove(reversed(gone))
        self._dirty = False

    def drop_before(self, index: int) -> None:
        """Delete the segments all of whose entries are before `index`, but never the last one."""
        self._check_usable()
        with self._shape:
            keep = bisect_right(self._segments, index, key=lambda segment: segment.first_index)
            gone, self._segments = (
                self._segments[: max(keep - 1, 0)],
                self._segments[max(keep - 1, 0) :],
            )
        try:
            # Oldest first: a crash must not leave a gap.
            self._remove(gone)
        except OSError as error:
            raise storage_error(error, f"deleting old segments in {self.directory}") from error

    def close(self) -> None:
        """Sync, note that all is durable (a sync mark, for the next opening), and close.

        Raises DiskFailedError if the last sync fails. Closing twice is harmless.
        """
        try:
            if self._segments and not self._broken:
                self.sync()
                self._write_last_mark()
        finally:
            self._release()

    def _write_last_mark(self) -> None:
        segment = self._segments[-1]
        if segment.last_index >= segment.first_index and segment.end + SYNC_MARK_SIZE_BYTES <= (
            segment.size
        ):
            try:
                _write_all(self._files, segment.descriptor, [segment.mark()], segment.end, 0)
                self._files.sync(segment.descriptor)
            except OSError as error:
                raise storage_error(error, f"closing {segment.path}") from error

    def _release(self) -> None:
        self._broken = self._broken or f"the log {self.directory} is closed"
        with self._shape:
            gone, self._segments = self._segments, []
        for segment in gone:
            segment.close()

    def _check_usable(self) -> None:
        if self._broken:
            raise DiskFailedError(f"the log refuses further change: {self._broken}")


class _Recovery:
    """Opens the segments in order, and decides about every place that cannot be read.

    Nothing on the disk changes before all is decided (`_finish`).
    """

    def __init__(self, log: Log, *, salvage: bool) -> None:
        self._log = log
        self._salvage = salvage
        self._paths: list[Path] = []
        self._chain: list[_Segment] = []
        self._obsolete: list[_Segment] = []  # sound, but before damage that was forgiven
        self._aside: list[Path] = []  # damaged, wholly before what is kept
        self._damage: Damage | None = None  # where reading stopped, and has not gone on
        self._torn: TailCut | None = None

    def run(self) -> None:
        log = self._log
        if not log.directory.is_dir():
            log.directory.mkdir(parents=True)
            sync_directory(log.directory.parent)
        (log.directory / "spare").unlink(missing_ok=True)
        names = (path for path in log.directory.iterdir() if _SEGMENT_NAME.fullmatch(path.name))
        self._paths = sorted(names)
        try:
            for path in self._paths:
                self._take(path, last=path == self._paths[-1])
            self._match_base()
            self._finish()
        finally:
            log._segments = self._chain
            for segment in self._obsolete:
                segment.close()

    def _take(self, path: Path, *, last: bool) -> None:
        segment = _Segment.open(path)
        if isinstance(segment, str):
            self._stop(path, 0, segment)
            return
        before = self._chain[-1] if self._chain else None
        if before and not self._damage:
            ends = (before.last_index, before.last_epoch)
            starts = (segment.first_index - 1, segment.prev_epoch)
            if ends != starts:
                reason = f"its last entry is {ends}, but {path.name} follows {starts}"
                self._stop(before.path, before.end, f"{reason} (index, epoch)")
        if self._damage and not self._resume(segment.first_index, inside=False):
            segment.close()
            return
        self._chain.append(segment)
        if last:
            # D9: after a failed fsync the page cache may hold what the disk does not.
            self._log._files.sync(segment.descriptor)
            os.posix_fadvise(segment.descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        self._scan(segment, path.read_bytes(), last=last)

    def _scan(self, segment: _Segment, data: bytes, *, last: bool) -> None:
        while problem := segment.scan(data):
            mark = segment.find_mark(data, segment.end)
            if mark is None and last:
                size = len(data.rstrip(b"\0")) - segment.end
                self._torn = TailCut(str(segment.path), segment.end, size)
                return
            self._stop(segment.path, segment.end, problem)
            if mark is None or not self._resume(mark.next_index, inside=True):
                return
            segment.restart(mark)

    def _stop(self, path: Path, offset: int, reason: str) -> None:
        if self._damage is None:
            last_good = self._chain[-1].last_index if self._chain else int(path.stem) - 1
            self._damage = Damage(path, offset, last_good, reason)

    def _resume(self, next_index: int, *, inside: bool) -> bool:
        """Go on after damage, if all that it took is in the store already.

        `inside`: in the damaged segment itself, not in the one after it.
        """
        log = self._log
        if self._damage is None or next_index - 1 > log._base_index:
            return False
        log.repairs.append(
            f"{self._damage.error()}; the store holds all up to {log._base_index}, so the log now "
            f"starts at {next_index}"
        )
        kept = self._chain[-1:] if inside else []
        self._obsolete += self._chain[: len(self._chain) - len(kept)]
        if not inside:
            self._aside.append(self._damage.path)
        self._chain = kept
        self._damage = None
        return True

    def _match_base(self) -> None:
        """Compare what was read with what the store holds, which is committed."""
        log, chain = self._log, self._chain
        if chain and not self._damage and chain[0].first_index > log._base_index + 1:
            reason = f"the log starts at {chain[0].first_index}: entries are missing"
            self._damage = Damage(chain[0].path, 0, log._base_index, reason)
            for segment in chain:
                segment.close()
            chain.clear()
        if self._damage and not self._salvage:
            raise self._damage.error()

    def _finish(self) -> None:
        log = self._log
        for segment in self._obsolete:
            # Oldest first: a crash must not leave a gap.
            if segment.path not in self._aside:
                log._remove([segment])
        for path in self._aside:
            self._move_aside(path)
        if self._damage:
            self._keep_prefix(self._damage)
        log._segments = self._chain
        if self._torn and self._chain:
            log.cut = self._torn
            log._shorten(self._chain[-1])
        self._reset_unless_it_reaches_the_base()
        self._chain = log._segments
        if self._chain:
            self._fill_up(self._chain[-1])

    def _keep_prefix(self, damage: Damage) -> None:
        """Salvage: at every crash in between, the damage is still seen by the next opening."""
        last = self._chain[-1] if self._chain else None
        kept = [segment.path for segment in self._chain]
        if (
            last
            and last.path == damage.path
            and last.end < len(last.path.read_bytes().rstrip(b"\0"))
        ):
            place = self._aside_directory()
            shutil.copyfile(last.path, place / last.path.name)
            with (place / last.path.name).open("rb") as copy:
                os.fsync(copy.fileno())
            self._log._shorten(last)
        for path in reversed(self._paths):
            if path not in kept and path.exists():
                self._move_aside(path)
        self._log.repairs.append(f"{damage.error()}; what follows it was moved aside")

    def _aside_directory(self) -> Path:
        place = self._log.directory / f"damaged-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
        place.mkdir(exist_ok=True)
        sync_directory(self._log.directory)
        return place

    def _move_aside(self, path: Path) -> None:
        if path.exists():
            place = self._aside_directory()
            self._log._files.rename(path, place / path.name)

    def _reset_unless_it_reaches_the_base(self) -> None:
        log = self._log
        index, epoch = log._base_index, log._base_epoch
        if not log._segments:
            return
        if log.last_index < index:
            reason = f"it ends with entry {log.last_index}"
        elif log.epoch_at(index) not in (epoch, None):
            reason = f"its entry {index} is of epoch {log.epoch_at(index)}"
        else:
            return
        log.repairs.append(
            f"the log {log.directory} was emptied: {reason}, but the store holds all up to entry "
            f"{index} of epoch {epoch}"
        )
        log._reset(index, epoch)

    def _fill_up(self, segment: _Segment) -> None:
        """Take the room back that a crash while cutting, or a full disk, left out."""
        if segment.size < self._log._segment_size_bytes:
            try:
                self._log._files.allocate(segment.descriptor, self._log._segment_size_bytes)
            except OSError as error:
                if not isinstance(storage_error(error, ""), DiskFullError):
                    raise
            segment.size = os.fstat(segment.descriptor).st_size
