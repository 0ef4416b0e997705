"""Reads are right at all times: before, during and after a flush, and after a restart."""

from __future__ import annotations

import tempfile
from pathlib import Path

import lmdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datapath.errors import DataDirectoryError, DiskFullError, SafetyError
from datapath.keyspaces import CLIENTS, KV, ROLES
from datapath.records import Entry
from datapath.storage.store import Store

KEYS = st.binary(min_size=1, max_size=2).map(lambda key: bytes(byte % 4 for byte in key))
BOUNDS = st.binary(max_size=3).map(lambda key: bytes(byte % 4 for byte in key))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), KEYS, st.binary(max_size=3)),
        st.tuples(st.just("delete"), KEYS, st.none()),
        st.tuples(
            st.sampled_from(["freeze", "write", "drop_frozen", "reopen"]), st.none(), st.none()
        ),
    ),
    max_size=60,
)


def put(store: Store, key: bytes, value: bytes | None, *, keyspace: int = KV) -> None:
    store.apply([[(keyspace, key, value)]], store.applied_index + 1, max(store.active.epoch, 1))


def expected_range(
    model: dict[bytes, bytes], start: bytes, end: bytes | None, limit: int, *, reverse: bool
) -> list[tuple[bytes, bytes]]:
    keys = [key for key in sorted(model) if key >= start and (end is None or key < end)]
    return [(key, model[key]) for key in (keys[::-1] if reverse else keys)][:limit]


@given(STEPS, BOUNDS, st.one_of(st.none(), BOUNDS), st.integers(0, 6), st.booleans())
@settings(max_examples=80, deadline=None)
def test_behaves_like_a_sorted_dictionary(
    steps: list[tuple[str, bytes | None, bytes | None]],
    start: bytes,
    end: bytes | None,
    limit: int,
    reverse: bool,
) -> None:
    with tempfile.TemporaryDirectory() as name:
        store = Store.open(name, map_size_bytes=1 << 24)
        model: dict[bytes, bytes] = {}
        for kind, key, value in steps:
            if key is not None:
                put(store, key, value)
                put(store, key, b"elsewhere", keyspace=CLIENTS)
                if value is None:
                    model.pop(key, None)
                else:
                    model[key] = value
            elif kind == "freeze":
                store.freeze()
            elif kind == "write":
                store.write_frozen()
            elif kind == "drop_frozen":
                store.drop_frozen()
            else:
                store.flush()
                store.close()
                store = Store.open(name, map_size_bytes=1 << 24)
            found = store.range(KV, start, end, limit, reverse=reverse)
            assert found == expected_range(model, start, end, limit, reverse=reverse)
            everything = store.range(KV, b"", None, 1000)
            assert everything == sorted(model.items())
            assert store.count(KV) == len(model)
            if key is not None:
                assert store.get(KV, key) == model.get(key)
        store.close()


def test_what_was_read_of_roles_is_read_again_once_it_has_changed(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    seen = []
    for value in (b"1", None, b"2", b"3"):
        put(store, b"t", value, keyspace=ROLES)
        seen.append(store.get(ROLES, b"t"))
        store.flush()
        seen += [store.get(ROLES, b"t"), store.get(ROLES, b"t")]
    assert seen == [b"1"] * 3 + [None] * 3 + [b"2"] * 3 + [b"3"] * 3
    store.close()


def fill(store: Store, count: int) -> None:
    entries: list[Entry] = [[(number % 3, b"%06d" % number, b"value")] for number in range(count)]
    store.apply(entries, store.applied_index + count, 1)


def test_the_position_is_committed_with_the_content(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    fill(store, 100)
    assert (store.applied_index, store.durable_index) == (100, 0)
    assert store.freeze()
    assert not store.freeze()
    put(store, b"later", b"1")
    store.write_frozen()
    assert (store.applied_index, store.durable_index) == (101, 0)
    store.drop_frozen()
    assert (store.durable_index, store.durable_epoch) == (100, 1)
    store.close()  # the later one was only in memory
    store = Store.open(tmp_path)
    assert (store.applied_index, store.active.epoch) == (100, 1)
    assert store.get(KV, b"later") is None
    assert store.get(KV, b"000000") == b"value"
    store.close()


def test_thawing_before_the_write_keeps_the_frozen_overlay(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    fill(store, 10)
    store.freeze()
    store.drop_frozen()
    assert store._frozen is not None
    assert store.get(KV, b"000000") == b"value"
    assert store.overlay_bytes > store.active.size_bytes == 0
    store.close()


def test_entries_without_writes_move_the_position(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    store.apply([[], []], 2, 5)
    store.flush()
    store.close()
    store = Store.open(tmp_path)
    assert (store.durable_index, store.durable_epoch) == (2, 5)
    assert not store.freeze()
    store.close()


def test_only_what_follows_is_applied(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    store.apply([[]], 1, 3)
    one: list[Entry] = [[]]
    none: list[Entry] = []
    for entries, index, epoch in ((one, 1, 3), (one, 3, 3), (one, 2, 2), (none, 2, 3)):
        with pytest.raises(SafetyError):
            store.apply(entries, index, epoch)
    for write in ((8, b"k", b""), (-1, b"k", b""), (0, b"", b""), (0, b"k" * 512, b"")):
        with pytest.raises(SafetyError):
            store.apply([[write]], 2, 3)
    assert store.applied_index == 1
    store.close()


def test_a_full_map_leaves_everything_readable_and_to_be_tried_again(tmp_path: Path) -> None:
    store = Store.open(tmp_path, map_size_bytes=1 << 18)
    put(store, b"before", b"1")
    store.flush()
    store.apply([[(0, b"big%d" % number, bytes(50_000))] for number in range(8)], 9, 1)
    store.freeze()
    for _ in range(3):
        with pytest.raises(DiskFullError):
            store.write_frozen()
        assert store._frozen is not None
        assert store.get(KV, b"big7") == bytes(50_000)
        assert store.get(KV, b"before") == b"1"
        assert store.durable_index == 1
    store._environment.lmdb.set_mapsize(1 << 24)
    store._read = store._environment.lmdb.begin()  # resizing ends all transactions
    store.write_frozen()
    store.drop_frozen()
    assert store.durable_index == 9
    store.close()


def test_equal_content_has_an_equal_digest_whatever_its_history(tmp_path: Path) -> None:
    one, other = Store.open(tmp_path / "1"), Store.open(tmp_path / "2")
    fill(one, 2000)
    one.flush()
    for _ in range(4):
        fill(other, 500)
        other.flush()
    other.apply([[(0, b"%06d" % number, None)] for number in range(500)], 2500, 1)
    other.flush()
    assert one.digest()[1] != other.digest()[1]
    one.apply([[]] * 500, 2500, 1)
    one.flush()
    for store in (one, other):  # the same content by another way
        store.apply([[(0, b"%06d" % number, b"x")] for number in range(500)], 3000, 1)
        store.flush()
        clearing: list[Entry] = [[(n % 3, b"%06d" % n, None)] for n in range(2000)]
        clearing += [[(0, b"%06d" % n, None)] for n in range(500)]
        store.apply(clearing, 5500, 1)
        put(store, b"last", b"1")
        store.flush()
    assert one.digest() == other.digest()
    put(one, b"last", b"2")
    one.flush()
    assert one.digest()[1] != other.digest()[1]
    one.close()
    other.close()


def test_digests_tell_where_one_item_ends_and_the_next_begins(tmp_path: Path) -> None:
    found = set()
    contents = [
        [(0, b"a", b"b"), (0, b"c", b"d")],
        [(0, b"a", b"bc"), (0, b"d", b"")],
        [(1, b"a", b"b"), (0, b"c", b"d")],
        [(0, b"ab", b""), (0, b"c", b"d")],
    ]
    for number, writes in enumerate(contents):
        store = Store.open(tmp_path / str(number))
        store.apply([list(writes)], 1, 1)
        store.flush()
        found.add(store.digest()[1])
        store.close()
    assert len(found) == len(contents)


def test_a_store_of_another_cluster_is_refused(tmp_path: Path) -> None:
    Store.open(tmp_path).close()
    store = Store.open(tmp_path, cluster_id="c1")
    assert store.cluster_id == "c1"
    fill(store, 3)
    store.flush()
    store.close()
    with pytest.raises(DataDirectoryError, match="belongs to cluster c1, not c2"):
        Store.open(tmp_path, cluster_id="c2")
    store = Store.open(tmp_path)
    assert (store.cluster_id, store.durable_index) == ("c1", 3)
    store.close()


def test_a_lost_or_damaged_current_never_becomes_an_empty_store(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    fill(store, 3)
    store.flush()
    store.close()
    current = tmp_path / "CURRENT"
    content = current.read_bytes()
    current.unlink()
    with pytest.raises(DataDirectoryError, match="lost its CURRENT"):
        Store.open(tmp_path)
    for wrong in (b"", b"\xff\xfe", b"env-0000000000000009\n", b"../elsewhere"):
        current.write_bytes(wrong)
        with pytest.raises(DataDirectoryError, match="CURRENT names"):
            Store.open(tmp_path)
    current.write_bytes(content)
    store = Store.open(tmp_path)
    assert store.durable_index == 3
    store.close()


def test_a_crash_while_the_store_is_made_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "env-0000000000000001").mkdir()
    store = Store.open(tmp_path)
    fill(store, 3)
    store.flush()
    store.close()
    assert [path.name for path in tmp_path.glob("env-*")] == ["env-0000000000000001"]


@pytest.mark.parametrize("rubbish", [b"rubbish" * 4096, b""], ids=["rubbish", "empty"])
def test_a_damaged_environment_is_refused_with_advice(tmp_path: Path, rubbish: bytes) -> None:
    store = Store.open(tmp_path)
    fill(store, 3)
    store.flush()
    store.close()
    data = tmp_path / "env-0000000000000001" / "data.mdb"
    data.write_bytes(rubbish)
    with pytest.raises(DataDirectoryError, match="join as a new node"):
        Store.open(tmp_path)


def test_another_format_is_refused(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    environment = store._environment
    with environment.lmdb.begin(write=True) as transaction:
        transaction.put(b"format", b"99", db=environment.meta)
    store.close()
    with pytest.raises(DataDirectoryError, match="use the version of onecopy"):
        Store.open(tmp_path)


def test_a_closed_store_lets_go_of_its_files(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    environment = store._environment
    store.close()
    store.close()
    with pytest.raises(lmdb.Error):
        environment.lmdb.begin()
    with pytest.raises(SafetyError):
        store.acquire_environment()
