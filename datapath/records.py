"""Records: batches of consecutive log entries, the same bytes on the wire and in every log.

A record is made once, by the primary, and never changed or split: its bytes go to the primary's
log and to every backup. Layout, little-endian:

    offset  size  field
    0       4     length of what follows the checksum, bytes (never 0)
    4       4     CRC-32C of all that follows
    8       8     first index
    16      8     epoch
    24      8     commit index of the primary when it made the record
    32      4     number of entries (never 0)
    36      …     entries: MessagePack [[[keyspace, key, value or nil], …], …], one item an entry

Entry i of the record (from 0) has log index `first index + i`. An entry is the *delta* of one
operation: its writes, in order. An entry without writes opens an epoch or records an answer.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import google_crc32c
import msgspec

from datapath.errors import LogCorruptError
from datapath.parts import LARGE_PART_BYTES, encode_in_parts

Write = tuple[int, bytes, bytes | None]
"""(keyspace, key, value): `value` None deletes. For the numbers see `datapath.keyspaces`."""

Entry = list[Write]

_FRAME = struct.Struct("<II")
_BODY = struct.Struct("<QQQI")
FRAME_SIZE_BYTES = _FRAME.size
HEADER_SIZE_BYTES = _FRAME.size + _BODY.size
MAX_RECORD_SIZE_BYTES = 64 * 1024 * 1024

MAX_ENTRIES_SIZE_BYTES = MAX_RECORD_SIZE_BYTES - 4096
"""What a record's entries may take by `entry_size_bytes`: the rest is for its own framing."""
_ENTRY_OVERHEAD_BYTES = 8
_WRITE_OVERHEAD_BYTES = 16

_CHECKED_BYTES = 64 * 1024
"""What a checksum takes at once of a record, which has to be copied for that."""
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[list[tuple[int, bytes, bytes | None]]])


class Record(msgspec.Struct, frozen=True, gc=False):
    """A record's header and its whole bytes (frame included), verified."""

    first_index: int
    last_index: int
    epoch: int
    commit_index: int
    data: bytes

    def entries(self) -> list[Entry]:
        """Decode the entries."""
        return _decoder.decode(memoryview(self.data)[HEADER_SIZE_BYTES:])


def entry_size_bytes(entry: Entry) -> int:
    """Return how much an entry adds to a record, at the most."""
    size = _ENTRY_OVERHEAD_BYTES + _WRITE_OVERHEAD_BYTES * len(entry)
    for _, key, value in entry:
        size += len(key)
        if value is not None:
            size += len(value)
    return size


def make_record(
    first_index: int, epoch: int, commit_index: int, entries: Sequence[Entry], size_bytes: int = 0
) -> Record:
    """Encode a batch of entries. Raises ValueError if it is empty or too large.

    `size_bytes`: their sizes together, where known, so that large ones are copied once only.
    """
    if not entries:
        raise ValueError("a record holds at least one entry")
    head = _BODY.pack(first_index, epoch, commit_index, len(entries))
    is_large = size_bytes >= LARGE_PART_BYTES * len(entries)
    body = encode_in_parts(entries) if is_large else [_encoder.encode(entries)]
    body.insert(0, head)
    length, checksum = sum(map(len, body)), 0
    if length > MAX_RECORD_SIZE_BYTES:
        raise ValueError(f"a record of {length} bytes is over {MAX_RECORD_SIZE_BYTES}")
    for part in body:
        checksum = google_crc32c.extend(checksum, part)
    data = b"".join((_FRAME.pack(length, checksum), *body))
    return Record(first_index, first_index + len(entries) - 1, epoch, commit_index, data)


def frame_length(frame: bytes | memoryview) -> int:
    """Return the whole size in bytes of the record that starts with these 8 bytes; 0 for none."""
    length = int(_FRAME.unpack_from(frame)[0])
    return length + _FRAME.size if length else 0


def parse_record(data: bytes, *, path: str = "", offset: int = 0) -> Record:
    """Verify a record's checksum and read its header.

    Raises:
        LogCorruptError: wrong length, checksum or count; `path` and `offset` are passed on.

    """
    problem = ""
    if len(data) < HEADER_SIZE_BYTES:
        problem = "is cut short"
    else:
        length, checksum = _FRAME.unpack_from(data)
        if length + _FRAME.size != len(data):
            problem = f"says {length + _FRAME.size} bytes, but there are {len(data)}"
        elif _checksum(data) != checksum:
            problem = "has a wrong checksum"
    if problem:
        raise LogCorruptError(
            f"record at offset {offset} of {path or 'a message'} {problem}",
            path=path,
            offset=offset,
            last_good_index=0,
        )
    first_index, epoch, commit_index, count = _BODY.unpack_from(data, _FRAME.size)
    return Record(first_index, first_index + count - 1, epoch, commit_index, data)


def _checksum(data: bytes) -> int:
    """Return the CRC-32C of a record behind its frame."""
    checksum = 0
    for at in range(_FRAME.size, len(data), _CHECKED_BYTES):
        checksum = google_crc32c.extend(checksum, data[at : at + _CHECKED_BYTES])
    return checksum
