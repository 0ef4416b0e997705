"""What roles allow, and what calls need (A1)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.services.rights import (
    ADMIN,
    Need,
    Role,
    check_role,
    leaves_an_admin,
    may,
    may_read_key,
    needs_of,
)
from cluster.services.txn import (
    Comparison,
    DeleteRangeStep,
    GetStep,
    ListStep,
    LockComparison,
    NestedStep,
    PutStep,
    Txn,
    encode_txn,
)
from datapath.keyspaces import covers
from datapath.operations import STORE

KEYS = st.binary(max_size=4)


@given(KEYS, KEYS, st.one_of(st.none(), KEYS), KEYS)
def test_a_prefix_covers_a_range_only_if_it_covers_each_name_of_it(
    prefix: bytes, start: bytes, end: bytes | None, name: bytes
) -> None:
    is_inside = start <= name and (end is None or name < end)
    if covers(prefix, start, end) and is_inside:
        assert name.startswith(prefix)


@given(st.lists(st.text(max_size=3), max_size=3), KEYS, st.booleans())
def test_one_key_may_be_read_where_a_range_of_it_may(
    prefixes: list[str], key: bytes, begins_so: bool
) -> None:
    role = Role(read=tuple(prefixes))
    if begins_so and prefixes:
        key = prefixes[0].encode() + key
    expected = all(may(role, need) for need in needs_of(STORE, "get", (key,)))
    assert may_read_key(role, (key,)) == expected
    assert not may_read_key(role, ("a",))
    assert not may_read_key(role, (key, key))


@given(KEYS, KEYS)
def test_a_prefix_covers_the_names_that_begin_with_it(prefix: bytes, rest: bytes) -> None:
    name = prefix + rest
    assert covers(prefix, name, name + b"\0")


@pytest.mark.parametrize(
    ("role", "need", "expected"),
    [
        (Role(read=("app/",)), Need("read", b"app/", b"app0"), True),
        (Role(read=("app/",)), Need("read", b"app/", None), False),
        (Role(read=("app/",)), Need("read", b"apx", b"apx\0"), False),
        (Role(read=("",)), Need("read", b"", None), True),
        (Role(read=("app/",)), Need("write", b"app/k", b"app/k\0"), False),
        (Role(read=("app/",)), Need("watch", b"app/k", b"app/k\0"), False),
        (Role(write=("x",)), Need("lease"), True),
        (Role(lock=("x",)), Need("lease"), True),
        (Role(read=("",)), Need("lease"), False),
        (Role(call=("shop",)), Need("call", b"shop"), True),
        (Role(call=("shop",)), Need("call", b"shop2"), False),
        (Role(call=("*",)), Need("call", b"shop2"), True),
        (Role(), Need("status"), True),
        (Role(read=("",), write=("",), lock=("",), watch=("",)), Need("admin"), False),
        (ADMIN, Need("admin"), True),
        (ADMIN, Need("write", b"", None), True),
    ],
)
def test_rights(role: Role, need: Need, expected: bool) -> None:
    assert may(role, need) is expected


def test_what_is_not_listed_needs_the_right_admin() -> None:
    assert needs_of("", "new_operation", ()) == [Need("admin")]
    assert needs_of(":leases", "end", ((1,),)) == [Need("admin")]
    assert needs_of(":access", "create_token", ()) == [Need("admin")]
    assert needs_of("shop", ":restock", ()) == [Need("admin")]
    assert needs_of("", "put", ()) == [Need("admin")]
    assert needs_of("", "txn", (b"no msgpack",)) == [Need("admin")]


def test_a_condition_is_a_read() -> None:
    assert [need.right for need in needs_of("", "put", (b"k", b"v", None, False))] == ["write"]
    for args in ((b"k", b"v", 3, False), (b"k", b"v", None, True)):
        assert {need.right for need in needs_of("", "put", args)} == {"read", "write"}
    assert {need.right for need in needs_of("", "delete", (b"k", 0))} == {"read", "write"}


def test_a_lock_that_is_named_has_to_be_allowed() -> None:
    needs = needs_of("shop", "reserve", (b"{}",), (b"jobs", 3))
    assert needs == [Need("call", b"shop"), Need("lock", b"jobs", b"jobs\0")]


def test_a_transaction_needs_all_that_either_branch_names() -> None:
    txn = Txn(
        (Comparison(b"a", "exists", "eq", 1), LockComparison(b"l", 1)),
        (PutStep(b"b", b""), GetStep(b"c")),
        (DeleteRangeStep(b"d", None), ListStep(b"e", b"f")),
    )
    assert needs_of("", "txn", (encode_txn(txn),)) == [
        Need("read", b"a", b"a\0"),
        Need("lock", b"l", b"l\0"),
        Need("write", b"b", b"b\0"),
        Need("read", b"c", b"c\0"),
        Need("write", b"d", None),
        Need("read", b"e", b"f"),
    ]


def test_somebody_must_stay_who_may_change_rights() -> None:
    roles = {"ops": Role(admin=True), "app": Role(read=("",))}
    assert leaves_an_admin(["app", "ops"], roles)
    assert leaves_an_admin(["admin"], {})
    assert not leaves_an_admin(["app", "gone"], roles)


def test_what_is_wrong_with_a_role_is_said() -> None:
    assert check_role("app", Role(read=("ä" * 200,))) == ""
    assert "`read`" in check_role("app", Role(read=("ä" * 300,)))
    assert "a role is called" in check_role("App", Role())


def test_a_transaction_within_one_needs_all_that_it_may_do() -> None:
    inner = Txn(
        (Comparison(b"r", "version", "gt", 0, b"s"),), (PutStep(b"b", None),), (GetStep(b"c"),)
    )
    whole = encode_txn(Txn((), (NestedStep(inner),)))
    needs = needs_of("", "txn", (whole,))
    assert Need("read", b"r", b"s") in needs
    assert Need("write", b"b", b"b\0") in needs
    assert Need("read", b"c", b"c\0") in needs
