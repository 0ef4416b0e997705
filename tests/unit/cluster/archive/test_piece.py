"""A piece is what was archived, or an error that names the place."""

from __future__ import annotations

import random

import google_crc32c
import pytest

from cluster.archive.errors import ArchiveDamagedError
from cluster.archive.piece import Mark, PieceHeader, decode_piece, encode_piece
from datapath.records import Record, make_record

CLUSTER = "c" * 32
MARKS = (Mark(3, 1000), Mark(7, 2000))


def some_records() -> list[Record]:
    return [
        make_record(1, 1, 0, [[(0, b"a", b"1")], [], [(0, b"b", b"2" * 100)]]),
        make_record(4, 1, 3, [[(0, b"a", None)]]),
        make_record(5, 3, 4, [[(0, b"c", b"%d" % n)] for n in range(3)]),
    ]


def test_a_piece_comes_back_as_it_was() -> None:
    records = some_records()
    header, found = decode_piece(encode_piece(CLUSTER, records, MARKS), "p")
    assert found == records
    size = sum(len(record.data) for record in records)
    assert header == PieceHeader(CLUSTER, 1, 7, 3, size, MARKS)


def test_a_piece_that_is_cut_at_any_byte_is_recognised() -> None:
    data = encode_piece(CLUSTER, some_records(), MARKS)
    for size in range(len(data)):
        with pytest.raises(ArchiveDamagedError, match=r"^p is (cut short|not a piece)"):
            decode_piece(data[:size], "p")
    with pytest.raises(ArchiveDamagedError, match=r"^p is damaged between bytes"):
        decode_piece(data + b"\0", "p")


def test_every_flipped_bit_is_recognised_and_its_place_is_named() -> None:
    data = encode_piece(CLUSTER, some_records(), MARKS)
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 1 << random.Random(at).randrange(8)
        with pytest.raises(ArchiveDamagedError, match=r"^p (is|has)"):
            decode_piece(bytes(damaged), "p")


def test_a_piece_of_a_newer_format_is_refused() -> None:
    data = bytearray(encode_piece(CLUSTER, some_records(), MARKS))
    data[8] = 2
    with pytest.raises(ArchiveDamagedError, match="damaged in its first"):
        decode_piece(bytes(data), "p")  # the checksum is the old one
    data[32:36] = google_crc32c.value(bytes(data[:32])).to_bytes(4, "little")
    with pytest.raises(ArchiveDamagedError, match="has format 2, and this version of onecopy"):
        decode_piece(bytes(data), "p")


@pytest.mark.parametrize(
    ("time_ms", "index"), [(999, None), (1000, 3), (1999, 3), (2000, 7), (9999, 7)]
)
def test_a_time_is_that_of_the_last_entry_known_to_have_committed(
    time_ms: int, index: int | None
) -> None:
    assert PieceHeader(CLUSTER, 1, 7, 3, 0, MARKS).revision_at(time_ms) == index
