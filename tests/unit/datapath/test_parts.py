"""MessagePack in parts is MessagePack, and copies nothing large."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datapath.parts import LARGE_PART_BYTES, encode_in_parts
from datapath.protocol.messages import Append, decode_message, encode_message
from datapath.records import Entry, entry_size_bytes, make_record

SMALL = st.none() | st.integers(-5, 70_000) | st.binary(max_size=20) | st.text(max_size=5)
LARGE = st.integers(LARGE_PART_BYTES - 2, LARGE_PART_BYTES + 70_000).map(bytes)


@given(st.recursive(SMALL | LARGE, lambda each: st.lists(each, max_size=20), max_leaves=40))
def test_the_parts_together_are_what_messagepack_makes(value: Any) -> None:
    assert b"".join(encode_in_parts(value)) == msgspec.msgpack.encode(value)


@pytest.mark.parametrize("count", [15, 16, 70_000])
def test_arrays_of_all_sizes_have_their_heads(count: int) -> None:
    value = [b""] * count
    assert b"".join(encode_in_parts(value)) == msgspec.msgpack.encode(value)


def test_large_records_leave_as_they_are() -> None:
    records = [bytes(100_000), b"small", bytes(LARGE_PART_BYTES)]
    parts = encode_message(Append(1, 2, 3, 4, 5, records))
    assert isinstance(parts, list)
    assert any(part is records[0] for part in parts)
    assert decode_message(b"".join(parts)) == Append(1, 2, 3, 4, 5, records)
    assert isinstance(encode_message(Append(1, 2, 3, 4, 5, [b"small"])), bytes)


def test_a_record_is_the_same_bytes_however_it_is_made() -> None:
    entries: list[Entry] = [
        [(0, b"key", bytes(100_000)), (0, b"other", None)],
        [],
        [(3, b"k", b"v")],
    ]
    size_bytes = sum(map(entry_size_bytes, entries))
    in_parts = make_record(7, 2, 6, entries, size_bytes)
    assert in_parts == make_record(7, 2, 6, entries)
    assert in_parts.entries() == entries
