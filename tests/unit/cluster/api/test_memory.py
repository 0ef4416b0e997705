"""What clients make a node hold is bounded, and those who stand still make room first."""

from __future__ import annotations

import base64

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from cluster.api.documents import Range, RangeItem
from cluster.api.memory import STALLED_AFTER_S, Memory, Share
from cluster.api.page import PIECE_SIZE_BYTES, PageBody
from cluster.services.kv import ScanItem


class Bench:
    def __init__(self, limit_bytes: int) -> None:
        self.time = 100.0
        self.memory = Memory(limit_bytes, lambda: self.time)
        self.cut: list[str] = []

    def take(self, name: str, size_bytes: int) -> Share | None:
        return self.memory.take(size_bytes, lambda: self.cut.append(name))


def test_a_newcomer_is_refused_while_all_others_move() -> None:
    bench = Bench(100)
    shares = [bench.take(name, 50) for name in "ab"]
    bench.time += 10 * STALLED_AFTER_S
    for share in shares:
        assert share is not None
        share.moved()
    assert bench.take("c", 1) is None
    assert not bench.cut
    assert bench.memory.held_bytes == 100


def test_who_stands_still_longest_makes_room_and_no_more_than_needed() -> None:
    bench = Bench(100)
    for name in "abcd":
        assert bench.take(name, 25) is not None
        bench.time += 0.01
    bench.time += STALLED_AFTER_S
    assert bench.take("e", 40) is not None
    assert bench.cut == ["a", "b"]
    assert bench.memory.held_bytes == 90


def test_one_that_moves_slowly_is_not_cut_off() -> None:
    bench = Bench(100)
    slow, _ = bench.take("slow", 50), bench.take("still", 50)
    assert slow is not None
    for _ in range(20):
        bench.time += 0.9 * STALLED_AFTER_S
        slow.moved()
    assert bench.take("new", 50) is not None
    assert bench.cut == ["still"]


def test_what_waits_for_this_node_is_counted_and_not_cut_off() -> None:
    bench = Bench(100)
    waiting = bench.memory.hold(150)
    bench.time += 10 * STALLED_AFTER_S
    assert not bench.memory.make_room()
    waiting.resize(0)
    assert bench.memory.make_room(100)


def test_one_larger_than_the_bound_is_refused() -> None:
    assert Bench(100).take("a", 101) is None


numbers = st.integers(1, 2**62)
items = st.lists(
    st.tuples(
        st.binary(max_size=8),
        st.none() | st.binary(max_size=300),
        numbers,
        numbers,
        numbers,
        st.just(0) | numbers,
    ),
    max_size=5,
)


@given(items, st.integers(0, 2**62), st.none() | st.text("abc", max_size=9))
def test_a_page_is_the_document_in_pieces(
    found: list[ScanItem], revision: int, cursor: str | None
) -> None:
    expected = [
        RangeItem(
            key=key.decode("utf-8", "replace"),
            value=UNSET if value is None else value,
            revision=item_revision,
            create_revision=create_revision,
            version=version,
            lease=str(lease) if lease else UNSET,
        )
        for key, value, item_revision, create_revision, version, lease in found
    ]
    whole = Range(expected, revision, cursor)
    page = PageBody(list(found), revision, cursor)
    document = b"".join(page.pieces())
    assert len(document) == page.length
    assert document == msgspec.json.encode(whole)
    page = PageBody(list(found), revision, cursor, binary=True)
    document = b"".join(page.pieces())
    assert len(document) == page.length
    assert msgspec.msgpack.decode(document, type=Range) == whole


@pytest.mark.parametrize("size_bytes", [0, 255, 256, 65_535, 65_536, PIECE_SIZE_BYTES + 1])
def test_values_of_each_size_that_messagepack_tells_apart_are_whole(size_bytes: int) -> None:
    value = bytes(size_bytes)
    page = PageBody([(b"k", value, 1, 1, 1, 0)] * 2, 3, None, binary=True)
    document = b"".join(page.pieces())
    assert len(document) == page.length
    assert [item["value"] for item in msgspec.msgpack.decode(document)["items"]] == [value] * 2


def test_large_values_come_in_bounded_pieces() -> None:
    value = bytes(range(256)) * 4096 + b"end"
    page = PageBody([(b"k", value, 1, 1, 1, 0), (b"l", value, 2, 2, 1, 0)], 3, None)
    pieces = list(page.pieces())
    assert max(map(len, pieces)) <= 2 * PIECE_SIZE_BYTES * 4 // 3 + 1000
    document = msgspec.json.decode(b"".join(pieces))
    binary = PageBody([(b"k", value, 1, 1, 1, 0)], 3, None, binary=True)
    assert max(map(len, binary.pieces())) <= 2 * PIECE_SIZE_BYTES + 1000
    assert [base64.b64decode(item["value"]) for item in document["items"]] == [value, value]
