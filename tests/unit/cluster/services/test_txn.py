"""Transactions: no key is written twice, and what is carried out is what a plain model says."""

from __future__ import annotations

import operator
import struct
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.services.kv import KeyValue
from cluster.services.txn import (
    Comparison,
    DeleteRangeStep,
    DeleteStep,
    GetStep,
    ListStep,
    LockComparison,
    NestedStep,
    PutStep,
    RefuseStep,
    Txn,
    TxnOutcome,
    TxnStep,
    WrittenTwiceError,
    check_branch,
    decode_txn,
    encode_txn,
    writes,
)
from datapath.errors import RejectedError
from datapath.keyspaces import LOCKS
from tests.support.local_node import LocalTransaction, Store

KEY_VALUE = KeyValue()
_HEAD = struct.Struct(">QQQQ")
KEYS = [bytes([letter]) for letter in b"abcd"]
keys = st.sampled_from(KEYS)
bounds = st.tuples(keys, keys | st.none())
steps = st.one_of(
    st.builds(PutStep, keys, st.binary(max_size=2)),
    st.builds(DeleteStep, keys),
    bounds.map(lambda bound: DeleteRangeStep(*bound)),
    st.builds(GetStep, keys),
    bounds.map(lambda bound: ListStep(*bound)),
)
numbers = st.builds(
    Comparison,
    keys,
    st.sampled_from(["revision", "create_revision", "version", "lease"]),
    st.sampled_from(["eq", "ne", "lt", "gt"]),
    st.integers(0, 12),
)
values = st.builds(
    Comparison,
    keys,
    st.just("value"),
    st.sampled_from(["eq", "ne", "lt", "gt"]),
    st.binary(max_size=2),
)
exists = st.builds(Comparison, keys, st.just("exists"), st.just("eq"), st.integers(0, 1))


def written(step: TxnStep) -> set[bytes]:
    if isinstance(step, PutStep | DeleteStep):
        return {step.key}
    if isinstance(step, DeleteRangeStep):
        return {key for key in KEYS if step.start <= key and (step.end is None or key < step.end)}
    return set()


@given(st.lists(steps, max_size=5))
def test_a_branch_that_writes_a_key_twice_is_refused(branch: list[TxnStep]) -> None:
    twice = any(
        written(one) & written(other)
        for number, one in enumerate(branch)
        for other in branch[:number]
    )
    if not twice:
        check_branch(branch)
        return
    with pytest.raises(WrittenTwiceError, match="writes a key that step"):
        check_branch(branch)


Model = dict[bytes, tuple[bytes, int, int, int, int]]
RELATIONS = {"eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "gt": operator.gt}


def holds(model: Model, asked: Comparison) -> bool:
    found = model.get(asked.key)
    fields = dict(
        zip(
            ("value", "revision", "create_revision", "version", "lease"),
            found or (b"", 0, 0, 0, 0),
            strict=True,
        )
    )
    if asked.target == "value" and found is None:
        return False
    left: Any = (found is not None) if asked.target == "exists" else fields[asked.target]
    return bool(RELATIONS[asked.relation](left, asked.operand))


def carry_out(model: Model, step: TxnStep, index: int) -> Any:
    match step:
        case PutStep(key, value):
            assert value is not None  # not drawn here
            before = model.get(key)
            model[key] = (
                value,
                index,
                before[2] if before else index,
                (before or [0] * 4)[3] + 1,
                0,
            )
            return before is None
        case GetStep(key):
            return model.get(key)
        case DeleteStep() | DeleteRangeStep():
            return sum(model.pop(key, None) is not None for key in written(step))
        case ListStep(start, end):
            found = [key for key in sorted(model) if start <= key and (end is None or key < end)]
            return [(key, *model[key]) for key in found], None


@given(
    held=st.dictionaries(keys, st.tuples(st.binary(max_size=2), st.integers(1, 9))),
    comparisons=st.lists(numbers | values | exists, max_size=3),
    then=st.lists(steps, max_size=5),
    otherwise=st.lists(steps, max_size=5),
)
def test_one_branch_is_carried_out_whole_and_in_order(
    held: dict[bytes, tuple[bytes, int]],
    comparisons: list[Comparison],
    then: list[TxnStep],
    otherwise: list[TxnStep],
) -> None:
    store, model = Store(), Model()
    for key, (value, revision) in held.items():
        model[key] = (value, revision, 1, revision, 0)
        store.put(key, _HEAD.pack(*model[key][1:]) + value)
    asked = Txn(tuple(comparisons), tuple(then), tuple(otherwise))
    assert decode_txn(encode_txn(asked)) == asked
    tx = LocalTransaction(store, 10)
    succeeded, results = KEY_VALUE.txn(tx, encode_txn(asked))
    assert succeeded is all(holds(model, comparison) for comparison in comparisons)
    assert results == [carry_out(model, step, 10) for step in (then if succeeded else otherwise)]
    tx.commit()
    kept = {key: _HEAD.pack(*found[1:]) + found[0] for key, found in model.items()}
    assert store.values == kept
    msgspec.msgpack.encode(results)
    assert writes(asked) is any(
        isinstance(step, PutStep | DeleteStep | DeleteRangeStep) for step in (*then, *otherwise)
    )


def test_a_lock_is_compared_by_its_token() -> None:
    store = Store()
    store.keyspace(LOCKS).put(b"jobs", (77).to_bytes(8) + b"more")
    for name, token, held in ((b"jobs", 77, True), (b"jobs", 76, False), (b"other", 77, False)):
        asked = Txn((LockComparison(name, token),), (GetStep(b"a"),))
        succeeded, _ = KEY_VALUE.txn(LocalTransaction(store, 10), encode_txn(asked))
        assert succeeded is held


def carried_out(store: Store, asked: Txn) -> TxnOutcome:
    tx = LocalTransaction(store, 10)
    outcome: TxnOutcome = KEY_VALUE.txn(tx, encode_txn(asked))
    tx.commit()
    return outcome


def held_keys(**values: bytes) -> Store:
    store = Store()
    for at, (key, value) in enumerate(values.items(), 1):
        store.put(key.encode(), _HEAD.pack(at, at, 1, 0) + value)
    return store


def test_comparisons_within_are_judged_before_anything_is_written() -> None:
    store = held_keys(a=b"1")
    inner = Txn((Comparison(b"a", "value", "eq", b"1"),), (GetStep(b"a"),), (GetStep(b"none"),))
    outcome = carried_out(store, Txn((), (PutStep(b"a", b"2"), NestedStep(inner))))
    assert outcome == (True, [False, (True, [(b"2", 10, 1, 2, 0)])])


def test_a_comparison_of_a_range_is_one_of_all_its_keys() -> None:
    store = held_keys(a=b"1", b=b"2", c=b"1")
    for start, end, holds_for in ((b"a", b"b", True), (b"a", None, False), (b"x", None, False)):
        comparison = Comparison(start, "value", "eq", b"1", end)
        assert carried_out(store, Txn((comparison,))).succeeded is holds_for
    nothing = Comparison(b"x", "version", "eq", 0, None)
    assert carried_out(store, Txn((nothing,))).succeeded


def test_a_put_may_keep_the_value_or_the_lease() -> None:
    store = held_keys(a=b"1")
    carried_out(store, Txn((), (PutStep(b"a", None),)))
    assert store.values[b"a"] == _HEAD.pack(10, 1, 2, 0) + b"1"
    carried_out(store, Txn((), (PutStep(b"a", b"2", None),)))
    assert store.values[b"a"] == _HEAD.pack(10, 1, 3, 0) + b"2"


@pytest.mark.parametrize(
    ("step", "code"),
    [
        (PutStep(b"none", None), "key_not_found"),
        (PutStep(b"none", b"", None), "key_not_found"),
        (PutStep(b"none", None, 5), "lease_not_found"),
        (RefuseStep("revision_compacted", "no"), "revision_compacted"),
    ],
)
def test_a_step_that_is_refused_refuses_all(step: TxnStep, code: str) -> None:
    store = held_keys(a=b"1")
    tx = LocalTransaction(store, 10)
    with pytest.raises(RejectedError) as refused:
        KEY_VALUE.txn(tx, encode_txn(Txn((), (PutStep(b"a", b"2"), step))))
    assert refused.value.code == code
    untaken = Txn((Comparison(b"a", "version", "gt", 5),), (step,), (GetStep(b"a"),))
    assert not carried_out(store, untaken).succeeded
