"""Which slot a key belongs to."""

import zlib
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.groups.partition import SLOTS, partition_of, slot_of, slot_of_range
from datapath.keyspaces import after_prefix

keys = st.binary(max_size=12) | st.text("ab/{}", max_size=12).map(str.encode)


@pytest.mark.parametrize(
    ("key", "partition"),
    [
        (b"orders/7/lines", b"orders/"),
        (b"orders", b"orders"),
        (b"a{7}/b", b"7"),
        (b"{7}", b"7"),
        (b"x{7}{8}", b"7"),
        (b"{7", b"{7"),
        (b"{}x", b"{}x"),
        (b"{}x/y", b"{}x/"),
        (b"}{7}", b"7"),
        (b"{a/b}", b"{a/"),
        (b"orders/{7}", b"orders/"),
        (b"/a", b"/"),
        (b"", b""),
    ],
)
def test_the_partition_of_a_key(key: bytes, partition: bytes) -> None:
    assert partition_of(key) == partition


@pytest.mark.parametrize(
    ("key", "slot"),
    # Docs show these: other clients are held to them.
    [(b"orders/7", 598), (b"orders/8", 598), (b"cart{7}/x", 2690), (b"jobs", 3525)],
)
def test_slots_never_change(key: bytes, slot: int) -> None:
    assert slot_of(key) == slot


def test_a_slot_is_the_crc_of_the_partition() -> None:
    assert slot_of(b"a/b") == zlib.crc32(b"a/") % 4096


@given(keys, keys)
def test_a_prefix_that_fixes_the_partition_fixes_it_for_all_keys_below(
    prefix: bytes, rest: bytes
) -> None:
    slot = slot_of_range(prefix, after_prefix(prefix))
    if slot is not None:
        assert slot_of(prefix + rest) == slot


@given(keys, keys, keys)
def test_a_range_of_one_slot_holds_keys_of_that_slot_alone(
    start: bytes, end: bytes, key: bytes
) -> None:
    slot = slot_of_range(start, end)
    if slot is not None and start <= key < end:
        assert slot_of(key) == slot


@given(st.text("ab{}", max_size=8), st.text("ab/{}", max_size=8))
def test_every_prefix_with_a_slash_fixes_the_partition(head: str, rest: str) -> None:
    prefix = f"{head}/{rest}".encode()
    assert slot_of_range(prefix, after_prefix(prefix)) == slot_of(prefix)


@pytest.mark.parametrize("prefix", [b"", b"orders", b"{7", b"{}", b"a{b"])
def test_a_prefix_without_a_slash_or_a_tag_does_not(prefix: bytes) -> None:
    assert slot_of_range(prefix, after_prefix(prefix)) is None


def test_an_open_range_is_of_several_slots() -> None:
    assert slot_of_range(b"a/", None) is None
    assert slot_of_range(b"a/", b"b/") is None


@pytest.mark.parametrize("shape", ["user%d/", "user-%06d/x", "{%d}", "tenant%d"])
def test_partitions_spread_evenly_over_groups(shape: str) -> None:
    counts = Counter(slot_of((shape % number).encode()) * 8 // SLOTS for number in range(8000))
    assert len(counts) == 8
    assert max(counts.values()) < 1.25 * 1000
    assert min(counts.values()) > 0.75 * 1000
