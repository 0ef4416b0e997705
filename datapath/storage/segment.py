"""One segment of the log: a file of frames, its sync marks, and reading it back.

A segment is preallocated, so its unused tail reads as zeros; frame length 0 is its end. Layout,
little-endian:

    header (64 bytes)   magic 8, format u32, first index u64, epoch of the entry before u64,
                        salt u64, CRC-32C of these u32, zeros
    frames              records (see `datapath.records`), and between them *sync marks*:
    sync mark (32)      length u32 = 24, CRC-32C of salt and body u32;
                        body: "sync", own offset u32, next index u64, epoch of the last entry u64

A sync mark opens each group that is written after a successful sync, and says "all before me was
durable": `datapath.storage.log_recovery` tells a crash from damage by it. The salt, drawn for each
segment, keeps values that happen to contain a copy of a log from being taken for one.
"""

from __future__ import annotations

import os
import secrets
import struct
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import google_crc32c

from datapath.errors import DiskFullError, LogCorruptError
from datapath.records import (
    FRAME_SIZE_BYTES,
    HEADER_SIZE_BYTES,
    Record,
    frame_length,
    parse_record,
)
from datapath.storage.data_directory import storage_error
from datapath.storage.log_files import Files, write_all

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


class SyncMark(NamedTuple):
    """A sync mark: where it stands, the next entry, and the epoch of the last one before it."""

    offset: int
    next_index: int
    last_epoch: int


class Segment:
    """One segment file. `end` is the offset (bytes) after its last frame.

    `written_s`: when that was written, by the machine's date (s since 1970).
    """

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
        self.written_s = 0.0
        self._salt = salt
        # Where to start reading for an index: one (first index, offset) each step of bytes.
        self._indices = array("Q")
        self._offsets = array("Q")

    @classmethod
    def create(
        cls, spare: Path, path: Path, first_index: int, prev_epoch: int, files: Files
    ) -> Segment:
        """Turn an allocated spare file into the segment that starts with `first_index`; durable."""
        descriptor = os.open(spare, os.O_RDWR | os.O_CLOEXEC)
        try:
            salt = secrets.token_bytes(8)
            fields = _HEADER.pack(
                _MAGIC, _FORMAT, first_index, prev_epoch, int.from_bytes(salt, "little")
            )
            header = fields + google_crc32c.value(fields).to_bytes(4, "little")
            header = header.ljust(SEGMENT_HEADER_SIZE_BYTES, b"\0")
            write_all(files, descriptor, [header], 0, 0)
            files.sync(descriptor)
            files.rename(spare, path)
            size = os.fstat(descriptor).st_size
        except BaseException:
            os.close(descriptor)
            raise
        return cls(path, descriptor, size, first_index, prev_epoch, salt)

    @classmethod
    def open(cls, path: Path, *, readonly: bool = False) -> Segment | str:
        """Open a segment and check its header; a string says what is wrong with it."""
        descriptor = os.open(path, (os.O_RDONLY if readonly else os.O_RDWR) | os.O_CLOEXEC)
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
        """Close the file. Closing twice is harmless."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def mark(self) -> bytes:
        """Return a sync mark for the end of this segment."""
        body = _MARK.pack(_MARK_MAGIC, self.end, self.last_index + 1, self.last_epoch)
        return _FRAME.pack(len(body), google_crc32c.value(self._salt + body)) + body

    def _parse_mark(self, frame: bytes, offset: int) -> SyncMark | None:
        length, checksum = _FRAME.unpack_from(frame)
        body = frame[FRAME_SIZE_BYTES:SYNC_MARK_SIZE_BYTES]
        if length != _MARK.size or len(body) != _MARK.size:
            return None
        magic, own_offset, next_index, last_epoch = _MARK.unpack(body)
        if (magic, own_offset) != (_MARK_MAGIC, offset):
            return None
        if google_crc32c.value(self._salt + body) != checksum:
            return None
        return SyncMark(offset, next_index, last_epoch)

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
                return f"a record of {length} bytes does not fit there"
            try:
                record = parse_record(
                    data[offset : offset + length], path=str(self.path), offset=offset
                )
            except LogCorruptError as error:
                return str(error)
            problem = follows(record, self.last_index, self.last_epoch)
            if problem:
                return problem
            self.note(record, offset)
        return "" if _is_zero(data, self.end) else "bytes after the end"

    def find_mark(self, data: bytes, after: int) -> SyncMark | None:
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

    def restart(self, mark: SyncMark) -> None:
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

    def verified(self, offset: int, first_index: int, data: bytes) -> Record:
        """Return the record that `walk` found there. Raises LogCorruptError if it is damaged."""
        try:
            return parse_record(data, path=str(self.path), offset=offset)
        except LogCorruptError as error:
            raise Damage(self.path, offset, first_index - 1, str(error)).error() from error

    def shorten(self, files: Files) -> None:
        """Make all after `end` read as zeros, durably.

        Cutting the file and extending it again is one journaled step: a crash leaves all of the
        old content or none. Zeroing could leave a hole with old records after it.
        """
        files.truncate(self.descriptor, self.end)
        files.sync(self.descriptor)
        try:
            files.allocate(self.descriptor, self.size)
            files.sync(self.descriptor)
        except OSError as error:
            if not isinstance(storage_error(error, ""), DiskFullError):
                raise
            self.size = os.fstat(self.descriptor).st_size


def segment_of(segments: Sequence[Segment], index: int) -> Segment:
    """Return which of the segments, in order and not none, holds an entry; else the first one."""
    position = bisect_right(segments, index, key=lambda segment: segment.first_index)
    return segments[max(position - 1, 0)]


def remove_segments(segments: Iterable[Segment], files: Files) -> None:
    """Delete segment files, each durably before the next."""
    for segment in segments:
        segment.close()
        files.remove(segment.path)


def follows(record: Record, last_index: int, last_epoch: int) -> str:
    """Return "" if a record may stand after that entry, or else what is wrong with it."""
    if record.first_index != last_index + 1 or record.last_index < record.first_index:
        return f"entries {record.first_index} to {record.last_index} follow entry {last_index}"
    if record.epoch < last_epoch:
        return f"epoch {record.epoch} follows epoch {last_epoch}"
    return ""


def _is_zero(data: bytes, offset: int) -> bool:
    return data.count(0, offset) == len(data) - offset
