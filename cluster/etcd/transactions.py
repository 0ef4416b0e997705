"""etcd's transactions as this service's own: what is asked for, and what its results mean."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from cluster.etcd.answers import (
    Document,
    compared_lease,
    delete_fields,
    put_fields,
    range_fields,
    stored_lease,
)
from cluster.etcd.errors import empty_key, invalid, key_not_found
from cluster.etcd.messages import (
    Compare,
    DeleteRangeRequest,
    EtcdTxnRequest,
    PutRequest,
    RangeRequest,
    RequestOp,
)
from cluster.etcd.ranges import (
    check_key_size,
    check_range,
    is_key,
    items_of,
    key_bounds,
    range_step,
    select,
)
from cluster.services.txn import (
    MAX_DELETED_KEYS,
    ComparedField,
    Comparison,
    DeleteRangeStep,
    DeleteStep,
    GetStep,
    ListStep,
    NestedStep,
    PutStep,
    RefuseStep,
    Txn,
    TxnRelation,
    TxnStep,
)

MAX_OPERATIONS = 128
"""Of a branch, and comparisons, in one transaction: etcd's default."""

Results = Iterator[Any]
"""The results of the steps, in turn."""
Reader = Callable[[Results, int], Document]
"""Makes an answer of as many results as its steps have, and of the revision."""


class StepsPlan(NamedTuple):
    """Steps, and what makes an answer of their results."""

    steps: tuple[TxnStep, ...]
    read: Reader


class TxnPlan(NamedTuple):
    """A transaction, and what makes an answer of its outcome."""

    txn: Txn
    then: tuple[StepsPlan, ...]
    otherwise: tuple[StepsPlan, ...]

    def read(self, outcome: Any, revision: int) -> Document:
        """Return the answer, without its header, of whether it succeeded and of its results."""
        succeeded, results = outcome
        following = iter(results)
        plans = self.then if succeeded else self.otherwise
        document: Document = {"succeeded": True} if succeeded else {}
        if plans:
            document["responses"] = [plan.read(following, revision) for plan in plans]
        return document


def plan_txn(request: EtcdTxnRequest, revision: int) -> TxnPlan:
    """Translate a transaction; `revision`: the newest that is known here. Raises EtcdError."""
    _check(request)
    for branch in (request.success, request.failure):
        _check_intervals(branch)
    return _plan(request, revision)


def plan_put(request: PutRequest) -> StepsPlan:
    """Translate a put. Raises EtcdError."""
    check_put(request)
    put = PutStep(
        request.key,
        None if request.ignore_value else request.value,
        None if request.ignore_lease else stored_lease(request.lease),
    )
    if not request.prev_kv:
        return StepsPlan((put,), lambda results, _: put_fields(_skip(results)))
    get = GetStep(request.key)

    def read(results: Results, _: int) -> Document:
        previous = items_of(get, next(results))
        next(results)
        return put_fields(previous)

    return StepsPlan((get, put), read)


def plan_delete(request: DeleteRangeRequest) -> StepsPlan:
    """Translate a delete. Raises EtcdError."""
    start, end = key_bounds(request.key, request.range_end)
    step: TxnStep = DeleteStep(start) if is_key(start, end) else DeleteRangeStep(start, end)
    if not request.prev_kv:
        return StepsPlan((step,), lambda results, _: delete_fields(next(results), ()))
    look: GetStep | ListStep
    look = GetStep(start) if is_key(start, end) else ListStep(start, end, MAX_DELETED_KEYS)

    def read(results: Results, _: int) -> Document:
        previous = items_of(look, next(results))
        return delete_fields(next(results), previous)

    return StepsPlan((look, step), read)


def plan_range(request: RangeRequest, revision: int) -> StepsPlan:
    """Translate a read within a transaction. Raises EtcdError."""
    check_range(request)
    if request.revision > 0:
        # Only if this branch is taken: it is refused then, with all that the branch would write.
        code = "future_revision" if request.revision > revision else "revision_compacted"
        refuse = RefuseStep(code, "a transaction reads the present revision alone")
        return StepsPlan((refuse,), lambda _results, _revision: {})
    step = range_step(request)

    def read(results: Results, _: int) -> Document:
        items = items_of(step, next(results))
        return range_fields(select(request, items, len(items), more=False))

    return StepsPlan((step,), read)


def _plan(request: EtcdTxnRequest, revision: int) -> TxnPlan:
    then = tuple(_plan_op(op, revision) for op in request.success)
    otherwise = tuple(_plan_op(op, revision) for op in request.failure)
    txn = Txn(
        tuple(_comparison(compare) for compare in request.compare),
        tuple(step for plan in then for step in plan.steps),
        tuple(step for plan in otherwise for step in plan.steps),
    )
    return TxnPlan(txn, then, otherwise)


def _plan_op(op: RequestOp, revision: int) -> StepsPlan:
    if op.request_range is not None:
        return _named("response_range", plan_range(op.request_range, revision))
    if op.request_put is not None:
        return _named("response_put", plan_put(op.request_put))
    if op.request_delete_range is not None:
        return _named("response_delete_range", plan_delete(op.request_delete_range))
    assert op.request_txn is not None  # checked
    nested = _plan(op.request_txn, revision)

    def read(results: Results, at: int) -> Document:
        return {"response_txn": {"header": {}, **nested.read(next(results), at)}}

    return StepsPlan((NestedStep(nested.txn),), read)


def _named(name: str, plan: StepsPlan) -> StepsPlan:
    def read(results: Results, revision: int) -> Document:
        header = {"revision": str(revision)}
        return {name: {"header": header, **plan.read(results, revision)}}

    return StepsPlan(plan.steps, read)


def _skip(results: Results) -> tuple[()]:
    next(results)
    return ()


_RELATIONS: dict[str, TxnRelation] = {
    "EQUAL": "eq",
    "NOT_EQUAL": "ne",
    "LESS": "lt",
    "GREATER": "gt",
}


def _comparison(compare: Compare) -> Comparison:
    if isinstance(compare.result, int) or isinstance(compare.target, int):
        raise invalid("onecopy: a comparison has a `result` or a `target` that is not known")
    relation = _RELATIONS[compare.result]
    start, end = key_bounds(compare.key, compare.range_end)
    bound: bytes | None = b"" if is_key(start, end) else end
    target, operand = _operand(compare)
    return Comparison(start, target, relation, operand, bound)


def _operand(compare: Compare) -> tuple[ComparedField, int | bytes]:
    """Return what is compared, and with what: the default where another field is given."""
    match compare.target:
        case "CREATE":
            return "create_revision", compare.create_revision or 0
        case "MOD":
            return "revision", compare.mod_revision or 0
        case "LEASE":
            return "lease", compared_lease(compare.lease or 0)
        case "VALUE":
            return "value", compare.value or b""
        case _:
            return "version", compare.version or 0


# -- what etcd refuses before it executes anything, in its order


def _check(request: EtcdTxnRequest) -> None:
    parts = (request.compare, request.success, request.failure)
    if max(len(part) for part in parts) > MAX_OPERATIONS:
        raise invalid("etcdserver: too many operations in txn request")
    if not all(compare.key for compare in request.compare):
        raise empty_key()
    for op in (*request.success, *request.failure):
        if op.request_range is not None:
            check_range(op.request_range)
        elif op.request_put is not None:
            check_put(op.request_put)
        elif op.request_delete_range is not None:
            if not op.request_delete_range.key:
                raise empty_key()
        elif op.request_txn is not None:
            _check(op.request_txn)
        else:
            raise key_not_found()


def check_put(request: PutRequest) -> None:
    """Refuse what etcd refuses of a put before it writes, and keys too long. Raises EtcdError."""
    if not request.key:
        raise empty_key()
    if request.ignore_value and request.value:
        raise invalid("etcdserver: value is provided")
    if request.ignore_lease and request.lease:
        raise invalid("etcdserver: lease is provided")
    check_key_size(request.key)


class _Written(NamedTuple):
    """The keys that a branch puts, and the ranges that it deletes."""

    puts: set[bytes]
    deletes: list[tuple[bytes, bytes | None]]


def _check_intervals(branch: Sequence[RequestOp]) -> _Written:
    """Refuse a branch that puts a key twice, or puts one that it deletes. Raises EtcdError."""
    deletes = [
        key_bounds(op.request_delete_range.key, op.request_delete_range.range_end)
        for op in branch
        if op.request_delete_range is not None
        # etcd's check takes a range without an end for an empty one.
        and op.request_delete_range.range_end != b"\0"
    ]
    puts: set[bytes] = set()
    for op in branch:
        if op.request_txn is None:
            continue
        then, otherwise = (
            _check_intervals(part) for part in (op.request_txn.success, op.request_txn.failure)
        )
        for key in then.puts:
            _check_put_once(key, puts, deletes)
        for key in otherwise.puts:
            # One of the two branches is carried out: they may put the same key.
            _check_put_once(key, puts - then.puts, deletes)
        puts |= then.puts | otherwise.puts
        deletes = [*deletes, *then.deletes, *otherwise.deletes]
    for op in branch:
        if op.request_put is not None:
            _check_put_once(op.request_put.key, puts, deletes)
            puts.add(op.request_put.key)
    return _Written(puts, deletes)


def _check_put_once(
    key: bytes, puts: set[bytes], deletes: Sequence[tuple[bytes, bytes | None]]
) -> None:
    if key in puts or any(start <= key and (end is None or key < end) for start, end in deletes):
        raise invalid("etcdserver: duplicate key given in txn request")
