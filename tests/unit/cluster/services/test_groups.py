"""What a group refuses (G1), and the map in the replicated state (G2)."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from cluster.etcd.errors import INVALID_ARGUMENT, from_problem
from cluster.groups.group_map import Group, GroupMap, encode_map
from cluster.groups.partition import SLOTS, slot_of
from cluster.services.access_guard import TokenGuard
from cluster.services.groups import GROUPS_SERVICE, GroupGuard, WrongGroupError, spans_of
from cluster.services.locks import LOCKS_SERVICE
from cluster.services.scoped import Rights, Scoped, WriteBounds
from cluster.services.time_limit import TimeLimit
from cluster.services.txn import (
    Comparison,
    DeleteRangeStep,
    GetStep,
    ListStep,
    LockComparison,
    PutStep,
    Txn,
    TxnStep,
    encode_txn,
)
from datapath.errors import OperationNotAppliedError, RejectedError
from datapath.operations import ANONYMOUS, Operation, Query
from tests.support.executing import Primary
from tests.support.local_node import LocalTransaction, Store

GUARD = GroupGuard("g1", [(0, 2047)])
OWN, OTHER = b"orders/1", b"cart{7}/x"  # slots 598 and 2690


def code(asked: Operation | Query, *, whole_group: bool = False) -> str:
    refused = GUARD.refusal_of(asked, whole_group=whole_group)
    return "" if refused is None else refused.code


def put(key: bytes, **options: Any) -> Operation:
    return Operation("put", (key, b"v"), **options)


def test_the_keys_lie_where_the_tests_want_them() -> None:
    assert (slot_of(OWN), slot_of(OTHER)) == (598, 2690)


def test_a_key_of_another_group_is_refused_with_its_slot() -> None:
    assert code(put(OWN)) == ""
    refused = GUARD.refusal_of(put(OTHER))
    assert isinstance(refused, WrongGroupError)
    assert refused.slot == 2690
    assert refused.outcome == "not_applied"
    for method, args in (
        ("put", (OTHER, b"v", 5, False, 7, 0)),
        ("delete", (OTHER,)),
        ("delete_range", (OTHER + b"/", OTHER + b"0", 10)),
    ):
        assert code(Operation(method, args)) == "wrong_group"
    assert code(Query("get", (OTHER,))) == "wrong_group"
    assert code(Query("range", (b"cart{7}", b"cart{7~", 9, False))) == "wrong_group"


def test_a_lease_of_another_group_is_told_apart() -> None:
    """No two groups grant the same one, so none is taken for another."""
    own, other = (Primary(slot=slot).call(":leases", "grant", 60_000) for slot in (0, 2048))
    assert (own % SLOTS, other % SLOTS) == (0, 2048)
    assert own // SLOTS == other // SLOTS
    for method in ("look_up", "revoke"):
        assert code(Operation(method, (own,), service=":leases")) == ""
        assert code(Operation(method, (other,), service=":leases")) == "wrong_group"
    assert code(Operation("keep_alive", ((own, other),), service=":leases")) == "wrong_group"
    for lease, told in ((own, ""), (2**63, ""), (other, "spans_groups")):
        assert code(Operation("put", (OWN, b"v", None, False, lease, 0))) == told
        assert code(Operation("acquire", (OWN, lease, 0, b"", False), service=":locks")) == told
    assert code(Operation("put", (OTHER, b"v", None, False, other, 0))) == "wrong_group"


@pytest.mark.parametrize("method", ["acquire", "release", "get"])
def test_names_of_locks_have_slots_too(method: str) -> None:
    asked: Any = Query if method == "get" else Operation
    assert code(asked(method, (OWN,), service=LOCKS_SERVICE)) == ""
    assert code(asked(method, (OTHER,), service=LOCKS_SERVICE)) == "wrong_group"


def test_a_lock_that_is_to_be_held_lies_in_the_keys_group() -> None:
    assert code(put(OWN, if_lock=(OWN, 7))) == ""
    assert code(put(OWN, if_lock=(OTHER, 7))) == "spans_groups"
    assert code(Operation("do", service="shop", if_lock=(OTHER, 7))) == "wrong_group"


def test_a_range_over_several_groups_is_refused_unless_this_group_is_meant() -> None:
    every = Query("range", (b"", None, 9, False))
    assert code(every) == "spans_groups"
    assert code(every, whole_group=True) == ""
    assert code(Operation("delete_range", (b"o", b"p", 9))) == "spans_groups"
    assert code(put(OTHER), whole_group=True) == "wrong_group"


@pytest.mark.parametrize(
    "step",
    [
        PutStep(OTHER, b"v"),
        GetStep(OTHER),
        DeleteRangeStep(b"cart{7}", b"cart{7~"),
        ListStep(b"cart{7}", b"cart{7~"),
    ],
)
def test_a_transaction_has_all_its_keys_in_one_group(step: TxnStep) -> None:
    def txn(
        *conditions: Any, then: tuple[TxnStep, ...] = (), other: tuple[TxnStep, ...] = ()
    ) -> str:
        return code(Operation("txn", (encode_txn(Txn(conditions, then, other)),)))

    own = PutStep(OWN, b"v")
    assert txn(Comparison(OWN, "version", "eq", 0), then=(own,), other=(GetStep(OWN),)) == ""
    assert txn(then=(step,)) == "wrong_group"
    assert txn(then=(own, step)) == "spans_groups"
    assert txn(then=(own,), other=(step,)) == "spans_groups"
    assert txn(Comparison(OTHER, "version", "eq", 0), then=(own,)) == "spans_groups"
    assert txn(LockComparison(OTHER, 7), then=(own,)) == "spans_groups"


def test_the_refusal_names_two_keys() -> None:
    both = Txn((), (PutStep(OWN, b""), PutStep(OTHER, b"")), ())
    refused = GUARD.refusal_of(Operation("txn", (encode_txn(both),)))
    assert refused is not None
    assert "'orders/1'" in refused.detail
    assert "'cart{7}/x'" in refused.detail


def test_what_names_keys_in_an_unknown_way_is_refused() -> None:
    assert code(Operation("new_operation", (OWN,))) == "spans_groups"
    assert code(Operation("txn", (b"nonsense",))) == "spans_groups"


def test_what_names_no_key_belongs_to_the_group_that_is_asked() -> None:
    assert not list(spans_of(Operation("grant", (1000,), service=":leases")))
    assert not list(spans_of(Query("permits", ("write", b"a", b"b"), service=":access")))
    assert code(Query("list", (b"", None, 10), service=LOCKS_SERVICE)) == ""
    assert code(Operation("reserve", (b"{}",), service="shop")) == ""


def test_watches_are_judged_alike() -> None:
    GUARD.check_range(OWN, OWN + b"\0")
    with pytest.raises(WrongGroupError):
        GUARD.check_range(OTHER, OTHER + b"\0")
    with pytest.raises(OperationNotAppliedError, match="several groups"):
        GUARD.check_range(b"", None)
    GUARD.check_range(b"", None, whole_group=True)


def test_a_users_service_sees_of_the_store_its_groups_keys_alone() -> None:
    rights = Rights(reads=frozenset({"kv"}), writes=frozenset({"kv"}), slots=((0, 2047),))
    tx = LocalTransaction(Store(), 1)
    scoped = Scoped(tx, b"shop\0", TimeLimit(1.0), rights, WriteBounds(1000, "shop"))
    scoped.put(OTHER, b"its own keys have no slots")
    store = scoped.keyspace("kv")
    store.put(OWN, b"v")
    with pytest.raises(ValueError, match="another group"):
        store.get(OTHER)
    with pytest.raises(ValueError, match="another group"):
        store.put(OTHER, b"")
    with pytest.raises(ValueError, match="another group"):
        store.delete(OTHER)


def test_etcds_clients_are_not_sent_to_other_nodes_of_the_same_group() -> None:
    said = from_problem(WrongGroupError(b"{7}", 2690, "g1"))
    assert said.code == INVALID_ARGUMENT
    assert "slot 2690" in said.message


# -- the map

ONE = GroupMap(1, (Group("g1", ((0, 2047),)), Group("g2", ((2048, 4095),))))
MOVED = GroupMap(2, (ONE.groups[0], Group("g2", ((2048, 4095),), ("http://10.0.0.1:81",))))


def publish(primary: Primary, offered: GroupMap | bytes, **options: Any) -> int:
    document = offered if isinstance(offered, bytes) else encode_map(offered)
    version: int = primary.call(GROUPS_SERVICE, "publish", document, **options)
    return version


def refused(primary: Primary, offered: GroupMap | bytes, **options: Any) -> str:
    with pytest.raises(RejectedError) as caught:
        publish(primary, offered, **options)
    assert primary.index == 1
    return caught.value.code


def test_versions_rise() -> None:
    primary = Primary()
    assert publish(primary, ONE) == 1
    assert publish(primary, ONE) == 1, "a repeat"
    assert refused(primary, msgspec.structs.replace(MOVED, version=1)) == "precondition_failed"
    later = msgspec.structs.replace(MOVED, version=7)  # others know 6: this state was restored
    assert publish(primary, later) == 7
    with pytest.raises(RejectedError, match="must be above 7"):
        publish(primary, MOVED)


def test_slots_stay_where_they_are() -> None:
    primary = Primary()
    publish(primary, ONE)
    other = GroupMap(2, (Group("g1", ((0, 2046),)), Group("g2", ((2047, 4095),))))
    assert refused(primary, other) == "refused"
    assert refused(primary, GroupMap(2, (Group("g1", ((0, 4095),)),))) == "refused"
    assert refused(primary, b"{}") == "invalid_body"


def test_only_an_administrator_publishes() -> None:
    primary = Primary(guard=TokenGuard(anonymous="x"))
    with pytest.raises(Exception, match="role"):
        publish(primary, ONE, caller=ANONYMOUS)
    assert primary.index == 0
