"""Transactions of the key-value store: what one asks for, and its bounds. `kv` executes them.

A transaction is comparisons and two branches of steps: `then` is carried out if all comparisons
hold, `otherwise` if one does not. Rule T1: all of a branch or nothing, at one revision, in one
delta; a step that reads sees the writes of the steps before it. It travels as MessagePack, whole,
so that what waits on the primary is counted by its bytes.

`check` is for whoever makes one: no step may write what another one of its branch writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

MAX_COMPARISONS = 128
MAX_STEPS = 1024
"""In one branch."""
MAX_RANGES = 16
"""Of the steps of one branch: lists, and deletes of a prefix or a range."""
MAX_DELETED_KEYS = 1000
"""By ranges, in one operation."""
MAX_DELETE_SCAN_SIZE_BYTES = 4 * 1024 * 1024
"""What one operation reads to delete ranges."""
MAX_COMPARED_KEYS = 1000
"""How many keys of a range are compared at once."""
MAX_RESULT_SIZE_BYTES = 4 * 1024 * 1024
"""Of keys and values that one transaction reads; the last one may be over it."""
DEFAULT_LIST_LIMIT = 100
MAX_LIST_LIMIT = 1000

ComparedField = Literal["revision", "create_revision", "version", "lease", "value", "exists"]
TxnRelation = Literal["eq", "ne", "lt", "gt"]


class Comparison(msgspec.Struct, frozen=True, array_like=True, tag="key"):
    """One condition on a key. `operand`: bytes of a value; 0 or 1 of `exists`; else a number.

    A key that is not there has revision, create_revision, version and lease 0; no comparison of
    its value holds, whatever the relation. With `end` it is a condition on all keys with
    key <= k < end (None: no upper bound); if there are none, on one that is not there.
    """

    key: bytes
    target: ComparedField
    relation: TxnRelation
    operand: int | bytes
    end: bytes | None = b""

    @property
    def is_range(self) -> bool:
        """Whether it is a condition on all keys of a range."""
        return self.end != b""


class LockComparison(msgspec.Struct, frozen=True, array_like=True, tag="lock"):
    """Holds while the lock `name` is held under `token`."""

    name: bytes
    token: int


class PutStep(msgspec.Struct, frozen=True, array_like=True, tag="put"):
    """Write a value; the result is whether the key was created. `lease` 0: none.

    None keeps the value, or the lease, that the key has; then it has to be there.
    """

    key: bytes
    value: bytes | None
    lease: int | None = 0


class DeleteStep(msgspec.Struct, frozen=True, array_like=True, tag="delete"):
    """Remove a key; the result is how many were there: 0 or 1."""

    key: bytes


class DeleteRangeStep(msgspec.Struct, frozen=True, array_like=True, tag="delete_range"):
    """Remove the keys with start <= key < end (None: no bound); the result is how many."""

    start: bytes
    end: bytes | None


class GetStep(msgspec.Struct, frozen=True, array_like=True, tag="get"):
    """Read a key; the result is what `KeyValue.get` returns."""

    key: bytes


class ListStep(msgspec.Struct, frozen=True, array_like=True, tag="list"):
    """Read a range; the result is what `KeyValue.range` returns."""

    start: bytes
    end: bytes | None
    limit: int = DEFAULT_LIST_LIMIT
    keys_only: bool = False


class RefuseStep(msgspec.Struct, frozen=True, array_like=True, tag="refuse"):
    """Refuse the whole transaction, as RejectedError of this code, if the step is reached."""

    code: str
    detail: str


class NestedStep(msgspec.Struct, frozen=True, array_like=True, tag="txn"):
    """A transaction within one; the result is a `TxnOutcome`.

    Its comparisons are judged with those of the whole, before any step is carried out.
    """

    txn: Txn


TxnStep = PutStep | DeleteStep | DeleteRangeStep | GetStep | ListStep | RefuseStep | NestedStep


class Txn(msgspec.Struct, frozen=True, array_like=True):
    """A transaction, whole."""

    comparisons: tuple[Comparison | LockComparison, ...] = ()
    then: tuple[TxnStep, ...] = ()
    otherwise: tuple[TxnStep, ...] = ()


class TxnOutcome(NamedTuple):
    """What the operation returns: whether all comparisons held, and a result for each step."""

    succeeded: bool
    results: list[Any]


encode_txn = msgspec.msgpack.Encoder().encode
decode_txn = msgspec.msgpack.Decoder(Txn).decode


class TooManyError(ValueError):
    """A part of a transaction is over its bound; the message names the bound."""


class WrittenTwiceError(ValueError):
    """Two steps of a branch write the same key; `step` is the number of the later one."""

    def __init__(self, step: int, earlier: int) -> None:
        super().__init__(f"writes a key that step {earlier} of the same branch writes")
        self.step = step


def check_branch(steps: Sequence[TxnStep]) -> None:
    """Check one branch. Raises TooManyError, WrittenTwiceError."""
    if len(steps) > MAX_STEPS:
        raise TooManyError(f"at most {MAX_STEPS} operations, not {len(steps)}")
    ranges = sum(isinstance(step, DeleteRangeStep | ListStep) for step in steps)
    if ranges > MAX_RANGES:
        raise TooManyError(f"at most {MAX_RANGES} lists and deletes of ranges, not {ranges}")
    highest_end: bytes | None = b""
    highest = 0
    for start, end, number in sorted(_written(steps), key=lambda written: written[::2]):
        if highest_end is None or start < highest_end:
            raise WrittenTwiceError(max(number, highest), min(number, highest))
        highest_end, highest = end, number


def _written(steps: Sequence[TxnStep]) -> Iterator[tuple[bytes, bytes | None, int]]:
    """Yield what each step may write: start, end, and the number of the step."""
    for number, step in enumerate(steps):
        match step:
            case PutStep(key) | DeleteStep(key):
                yield key, key + b"\0", number
            case DeleteRangeStep(start, end) if end is None or start < end:
                yield start, end, number


def compare(relation: TxnRelation, found: Any, operand: Any) -> bool:
    """Whether `found` stands in that relation to `operand`, two of one type."""
    match relation:
        case "eq":
            return bool(found == operand)
        case "ne":
            return bool(found != operand)
        case "lt":
            return bool(found < operand)
        case "gt":
            return bool(found > operand)


def all_steps(txn: Txn) -> Iterator[TxnStep]:
    """Yield the steps of both branches, and those of the transactions within."""
    for step in (*txn.then, *txn.otherwise):
        if isinstance(step, NestedStep):
            yield from all_steps(step.txn)
        else:
            yield step


def all_comparisons(txn: Txn) -> Iterator[Comparison | LockComparison]:
    """Yield the comparisons of a transaction, and those of the transactions within."""
    yield from txn.comparisons
    for step in (*txn.then, *txn.otherwise):
        if isinstance(step, NestedStep):
            yield from all_comparisons(step.txn)


def writes(txn: Txn) -> bool:
    """Whether a transaction may change anything, on either branch."""
    return any(isinstance(step, PutStep | DeleteStep | DeleteRangeStep) for step in all_steps(txn))
