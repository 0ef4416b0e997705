"""A piece of the archive: consecutive committed records of the log, compressed. Pure.

Layout, little-endian:

    offset  size  field
    0       8     magic "onecopyA"
    8       4     format
    12      4     length of the header, bytes
    16      8     length of the body, bytes
    24      4     CRC-32C of the header
    28      4     CRC-32C of the body
    32      4     CRC-32C of the 32 bytes before
    36      …     header: MessagePack `PieceHeader`
    …       …     body: one zstandard frame; in it the records verbatim (`datapath.records`)

Two nodes that archive the same entries may compress them differently and note other times, but the
records are the same: those of committed entries are the same everywhere.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

import google_crc32c
import msgspec
import zstandard

from cluster.archive.errors import ArchiveDamagedError
from datapath.errors import LogCorruptError
from datapath.records import (
    FRAME_SIZE_BYTES,
    MAX_RECORD_SIZE_BYTES,
    Record,
    frame_length,
    parse_record,
)
from datapath.storage.backup_format import make_compressor
from datapath.storage.segment import follows

FULL_PIECE_BYTES = 8 * 1024 * 1024
"""Above it no further record is put into a piece; what one record takes may come on top."""
FORMAT = 1

_MAGIC = b"onecopyA"
_HEAD = struct.Struct("<8sIIQII")
_SUM = struct.Struct("<I")
_MAX_HEADER_SIZE_BYTES = 16 * 1024 * 1024
_MAX_RAW_SIZE_BYTES = FULL_PIECE_BYTES + MAX_RECORD_SIZE_BYTES + FRAME_SIZE_BYTES


class Mark(NamedTuple):
    """Entries up to `revision` had committed at `time_ms`, by the archiving node's date (UTC)."""

    revision: int
    time_ms: int


class PieceHeader(msgspec.Struct, frozen=True):
    """What a piece holds: entries `first_index` to `last_index`, the last of which is of `epoch`.

    `marks` rise in revision and time; the last is of `last_index`.
    """

    cluster_id: str
    first_index: int
    last_index: int
    epoch: int
    size_bytes: int
    marks: tuple[Mark, ...]

    def revision_at(self, time_ms: int) -> int | None:
        """Return the last entry known to have committed by then; None: of none here."""
        at = bisect_right(self.marks, time_ms, key=lambda mark: mark.time_ms)
        return self.marks[at - 1].revision if at else None


class Piece(NamedTuple):
    """A piece, verified."""

    header: PieceHeader
    records: list[Record]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(PieceHeader)


def encode_piece(cluster_id: str, records: Sequence[Record], marks: Sequence[Mark]) -> bytes:
    """Make a piece of records that follow each other, one at least."""
    last = records[-1]
    raw = b"".join(record.data for record in records)
    header = _encoder.encode(
        PieceHeader(
            cluster_id,
            records[0].first_index,
            last.last_index,
            last.epoch,
            len(raw),
            tuple(marks),
        )
    )
    body = make_compressor().compress(raw)
    head = _HEAD.pack(
        _MAGIC, FORMAT, len(header), len(body), _crc(header), _crc(body)
    )  # fmt: skip
    return head + _SUM.pack(_crc(head)) + header + body


def decode_header(data: bytes, place: str) -> tuple[PieceHeader, bytes]:
    """Verify all of a piece but its records; return its header and its body. See `decode_piece`."""
    start = _HEAD.size + _SUM.size
    head = data[: _HEAD.size]
    if data[: len(_MAGIC)] != _MAGIC[: len(data)]:
        raise ArchiveDamagedError(f"{place} is not a piece of an archive: it begins otherwise")
    if len(data) < start:
        raise _cut(place, len(data), start)
    if _SUM.unpack_from(data, _HEAD.size)[0] != _crc(head):
        raise ArchiveDamagedError(f"{place} is damaged in its first {start} bytes: wrong checksum")
    _, version, header_size, body_size, header_sum, body_sum = _HEAD.unpack(head)
    if version != FORMAT:
        raise ArchiveDamagedError(
            f"{place} has format {version}, and this version of onecopy reads {FORMAT}: use the "
            "version that wrote it, or a newer one"
        )
    size = start + header_size + body_size
    if len(data) < size:
        raise _cut(place, len(data), size)
    header, body = data[start : start + header_size], data[start + header_size :]
    for part, expected, offset in (
        (header, header_sum, start),
        (body, body_sum, start + header_size),
    ):
        if _crc(part) != expected:
            raise ArchiveDamagedError(
                f"{place} is damaged between bytes {offset} and {offset + len(part)}: wrong "
                "checksum"
            )
    try:
        return _decoder.decode(header), body
    except msgspec.MsgspecError as error:
        raise ArchiveDamagedError(f"{place} has an unreadable header: {error}") from error


def decode_piece(data: bytes, place: str) -> Piece:
    """Verify a piece and return what it holds; `place` names it in errors.

    Raises ArchiveDamagedError: cut short, changed, of another format, or not consistent.
    """
    header, body = decode_header(data, place)
    if header.size_bytes > _MAX_RAW_SIZE_BYTES:
        raise ArchiveDamagedError(f"{place} says that it holds {header.size_bytes} bytes")
    try:
        raw = zstandard.ZstdDecompressor().decompress(body, max_output_size=header.size_bytes)
    except zstandard.ZstdError as error:
        raise ArchiveDamagedError(f"{place} cannot be decompressed: {error}") from error
    records = _records(raw, place)
    found = (records[0].first_index, records[-1].last_index, records[-1].epoch) if records else ()
    if found != (header.first_index, header.last_index, header.epoch):
        raise ArchiveDamagedError(f"{place} does not hold the entries that its header names")
    return Piece(header, records)


def _records(raw: bytes, place: str) -> list[Record]:
    records: list[Record] = []
    offset = 0
    while offset < len(raw):
        length = frame_length(raw[offset : offset + FRAME_SIZE_BYTES].ljust(FRAME_SIZE_BYTES))
        try:
            record = parse_record(raw[offset : offset + length], path=place, offset=offset)
        except LogCorruptError as error:
            raise ArchiveDamagedError(str(error)) from error
        if records and (problem := follows(record, records[-1].last_index, records[-1].epoch)):
            raise ArchiveDamagedError(f"{place}: {problem}")
        records.append(record)
        offset += length
    return records


def _cut(place: str, size: int, expected: int) -> ArchiveDamagedError:
    return ArchiveDamagedError(f"{place} is cut short: {size} of at least {expected} bytes")


def _crc(data: bytes) -> int:
    checksum: int = google_crc32c.value(data)
    return checksum
