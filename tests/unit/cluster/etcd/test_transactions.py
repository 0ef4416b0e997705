"""What etcd refuses of a transaction before it executes anything."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.etcd.errors import EtcdError
from cluster.etcd.messages import (
    Compare,
    DeleteRangeRequest,
    EtcdTxnRequest,
    PutRequest,
    RangeRequest,
    RequestOp,
)
from cluster.etcd.ranges import EtcdKey, key_bounds, select
from cluster.etcd.transactions import plan_txn

DUPLICATE = "duplicate key"


def put(key: bytes = b"a", **options: Any) -> RequestOp:
    return RequestOp(request_put=PutRequest(key=key, **options))


def delete(key: bytes = b"a", end: bytes = b"") -> RequestOp:
    return RequestOp(request_delete_range=DeleteRangeRequest(key=key, range_end=end))


def within(*then: RequestOp, otherwise: tuple[RequestOp, ...] = ()) -> RequestOp:
    return RequestOp(request_txn=EtcdTxnRequest(success=then, failure=otherwise))


@pytest.mark.parametrize(
    ("branch", "problem"),
    [
        ((put(), put()), DUPLICATE),
        ((put(), delete()), DUPLICATE),
        ((delete(b"a", b"c"), put(b"b")), DUPLICATE),
        ((within(put()), put()), DUPLICATE),
        ((within(put()), within(put())), DUPLICATE),
        ((within(delete()), put()), DUPLICATE),
        ((within(put(), otherwise=(put(),)),), ""),
        ((delete(), delete(b"a", b"z")), ""),
        ((put(b"a"), put(b"b")), ""),
        ((delete(b"a", b"b"), put(b"b")), ""),
        ((RequestOp(),), "key not found"),
        ((put(b""),), "key is not provided"),
        ((RequestOp(request_range=RangeRequest()),), "key is not provided"),
        ((delete(b""),), "key is not provided"),
        ((put(value=b"1", ignore_value=True),), "value is provided"),
        ((put(lease=1, ignore_lease=True),), "lease is provided"),
        ((put(b"x" * 481),), "the limit is 480"),
        (tuple(put(b"%d" % number) for number in range(129)), "too many operations"),
        ((RequestOp(request_range=RangeRequest(key=b"a", sort_order=9)),), "sort option"),
    ],
)
@pytest.mark.parametrize("name", ["success", "failure"])
def test_a_branch(name: str, branch: tuple[RequestOp, ...], problem: str) -> None:
    then, otherwise = (branch, ()) if name == "success" else ((), branch)
    request = EtcdTxnRequest(success=then, failure=otherwise)
    if not problem:
        plan_txn(request, 1)
        return
    with pytest.raises(EtcdError, match=problem):
        plan_txn(request, 1)


def test_a_comparison_needs_a_key_and_what_is_known() -> None:
    with pytest.raises(EtcdError, match="key is not provided"):
        plan_txn(EtcdTxnRequest(compare=(Compare(),)), 1)
    with pytest.raises(EtcdError, match="not known"):
        plan_txn(EtcdTxnRequest(compare=(Compare(key=b"a", target=9),)), 1)


@pytest.mark.parametrize(
    ("key", "end", "bounds"),
    [
        (b"a", b"", (b"a", b"a\0")),
        (b"a", b"c", (b"a", b"c")),
        (b"a", b"\0", (b"a", None)),
        (b"\0", b"\0", (b"", None)),
        (b"c", b"a", (b"c", b"c")),
        (b"x" * 600, b"", (b"x" * 480 + b"\0",) * 2),
    ],
)
def test_bounds(key: bytes, end: bytes, bounds: tuple[bytes, bytes | None]) -> None:
    assert key_bounds(key, end) == bounds


def test_what_a_range_chooses() -> None:
    items = [EtcdKey(b"%d" % at, b"v", 10 - at, at, 1, 0) for at in range(1, 6)]

    def keys(**options: Any) -> tuple[list[bytes], bool]:
        found = select(RangeRequest(key=b"1", **options), items, 5, more=False)
        assert found.total == 5
        return [kv.key for kv in found.kvs], found.more

    assert keys() == ([b"1", b"2", b"3", b"4", b"5"], False)
    assert keys(limit=2) == ([b"1", b"2"], True)
    assert keys(limit=2, sort_order="DESCEND") == ([b"5", b"4"], True)
    assert keys(sort_order="ASCEND", sort_target="MOD", limit=1) == ([b"5"], True)
    assert keys(sort_target="MOD", limit=1) == ([b"2"], True), "of the first two, as etcd"
    assert keys(min_mod_revision=8) == ([b"1", b"2"], False)
    assert keys(max_create_revision=2) == ([b"1", b"2"], False)
    assert keys(count_only=True) == ([], False)
