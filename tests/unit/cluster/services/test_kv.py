"""The key-value service alone, on transactions in memory."""

from __future__ import annotations

import struct

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.services import kv
from cluster.services.kv import (
    ANY_REVISION,
    NO_REVISION,
    KeyValue,
    Revisions,
    decode_head,
)
from datapath.errors import RejectedError
from tests.support.local_node import LocalTransaction, Store

KEY_VALUE = KeyValue()


class Bench:
    """A store and the operations on it, each in a transaction that commits."""

    def __init__(self) -> None:
        self.store = Store()
        self.index = 10

    def tx(self) -> LocalTransaction:
        return LocalTransaction(self.store, self.index + 1)

    def put(
        self,
        key: bytes,
        value: bytes,
        if_revision: Revisions | None = None,
        if_absent: bool = False,
    ) -> bool:
        tx = self.tx()
        created = KEY_VALUE.put(tx, key, value, if_revision, if_absent)
        tx.commit()
        self.index += 1
        return created


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_the_marked_methods_are_the_services() -> None:
    assert set(KEY_VALUE.operations) == {"put", "delete", "delete_range", "txn"}
    assert set(KEY_VALUE.queries) == {"get", "range"}


def test_put_stores_the_head_before_the_value(bench: Bench) -> None:
    assert bench.put(b"k", b"v") is True
    assert bench.store.values[b"k"] == struct.pack(">QQQQ", 11, 11, 1, 0) + b"v"
    assert bench.put(b"k", b"w") is False
    assert KEY_VALUE.get(bench.tx(), b"k") == (b"w", 12, 11, 2, 0)
    assert decode_head(bench.store.values[b"k"]) == (12, 11, 2, 0)
    assert KEY_VALUE.get(bench.tx(), b"other") is None


@pytest.mark.parametrize("wanted", [11, ANY_REVISION, (3, 11), [11]])
def test_a_condition_that_holds(bench: Bench, wanted: Revisions) -> None:
    bench.put(b"k", b"v")
    assert bench.put(b"k", b"w", wanted) is False


@pytest.mark.parametrize("wanted", [10, 12, NO_REVISION, (), (3, 12), [10]])
def test_a_condition_that_fails_writes_nothing(bench: Bench, wanted: Revisions) -> None:
    bench.put(b"k", b"v")
    tx = bench.tx()
    with pytest.raises(RejectedError, match='ETag "11"') as caught:
        KEY_VALUE.put(tx, b"k", b"w", wanted, False)
    assert caught.value.code == "precondition_failed"
    with pytest.raises(RejectedError, match='ETag "11"') as caught:
        KEY_VALUE.delete(tx, b"k", wanted)
    assert caught.value.code == "precondition_failed"
    assert not tx.writes


@pytest.mark.parametrize("wanted", [11, ANY_REVISION, NO_REVISION, (1, 2)])
def test_no_revision_matches_a_missing_key(bench: Bench, wanted: Revisions) -> None:
    with pytest.raises(RejectedError, match="does not exist"):
        KEY_VALUE.put(bench.tx(), b"k", b"w", wanted, False)
    with pytest.raises(RejectedError, match="does not exist"):
        KEY_VALUE.delete(bench.tx(), b"k", wanted)


def test_if_absent(bench: Bench) -> None:
    assert bench.put(b"k", b"v", None, True) is True
    with pytest.raises(RejectedError, match='ETag "11"'):
        bench.put(b"k", b"w", None, True)


def test_delete(bench: Bench) -> None:
    bench.put(b"k", b"v")
    tx = bench.tx()
    assert KEY_VALUE.delete(tx, b"k", 11) is True
    assert tx.writes == {b"k": None}
    tx = bench.tx()
    assert KEY_VALUE.delete(tx, b"none") is False
    assert not tx.writes


@settings(deadline=None)
@given(
    keys=st.sets(st.binary(min_size=1, max_size=3), max_size=30),
    start=st.binary(max_size=3),
    end=st.none() | st.binary(max_size=3),
    limit=st.integers(1, 12),
    max_size_bytes=st.integers(1, 200),
)
def test_pages_of_any_size_give_the_range_once_and_in_order(
    keys: set[bytes], start: bytes, end: bytes | None, limit: int, max_size_bytes: int
) -> None:
    bench = Bench()
    for key in keys:
        bench.put(key, key * 5)
    expected = sorted(key for key in keys if start <= key and (end is None or key < end))
    found: list[bytes] = []
    following: bytes | None = start
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kv, "MAX_RANGE_SIZE_BYTES", max_size_bytes)
        while following is not None:
            items, following = KEY_VALUE.range(bench.tx(), following, end, limit, False)
            assert len(items) <= limit
            assert items or following is None
            assert all(value == key * 5 for key, value, *_ in items)
            found += [key for key, *_ in items]
    assert found == expected


def test_what_the_service_answers_travels_as_messagepack(bench: Bench) -> None:
    bench.put(b"k", b"v")
    answers = [
        KEY_VALUE.get(bench.tx(), b"k"),
        KEY_VALUE.range(bench.tx(), b"", None, 5, False),
        KEY_VALUE.range(bench.tx(), b"", None, 5, True),
    ]
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(answers)) == [
        [b"v", 11, 11, 1, 0],
        [[[b"k", b"v", 11, 11, 1, 0]], None],
        [[[b"k", None, 11, 11, 1, 0]], None],
    ]
