"""The JSON of POST /v1/txn, both ways, and what it means to the store (`cluster.services.txn`).

Every refusal names the field by its path in the document: `$.then[2].put.key`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, get_args

import msgspec
from msgspec import UNSET, Meta, UnsetType

from cluster.api.cursor import KeyRange, encode_cursor, make_bounds
from cluster.api.documents import LeaseId, Local, Positive
from cluster.api.params import MAX_KEY_SIZE_BYTES, parse_lease
from cluster.api.problems import ProblemError
from cluster.services import txn as store
from cluster.services.txn import (
    DEFAULT_LIST_LIMIT,
    MAX_COMPARISONS,
    MAX_LIST_LIMIT,
    ComparedField,
    TooManyError,
    TxnRelation,
    WrittenTwiceError,
    check_branch,
)
from datapath.operations import Count, Result

Number = Annotated[int, Meta(ge=0, le=2**63 - 1)]
LeaseOrNone = Annotated[str, Meta(pattern="^(0|[1-9][0-9]{0,19})$")]
_RELATIONS: tuple[TxnRelation, ...] = get_args(TxnRelation)
_NUMBERS: tuple[ComparedField, ...] = ("revision", "create_revision", "version")


class NumberRelation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a number has to compare; all that are given."""

    eq: Number | UnsetType = UNSET
    ne: Number | UnsetType = UNSET
    lt: Number | UnsetType = UNSET
    gt: Number | UnsetType = UNSET


class TextRelation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a value has to compare, byte by byte, given as text."""

    eq: str | UnsetType = UNSET
    ne: str | UnsetType = UNSET
    lt: str | UnsetType = UNSET
    gt: str | UnsetType = UNSET


class BytesRelation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a value has to compare, byte by byte, given as base64."""

    eq: bytes | UnsetType = UNSET
    ne: bytes | UnsetType = UNSET
    lt: bytes | UnsetType = UNSET
    gt: bytes | UnsetType = UNSET


class LeaseRelation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the client lease of a key has to compare; "0" stands for none."""

    eq: LeaseOrNone | UnsetType = UNSET
    ne: LeaseOrNone | UnsetType = UNSET


class TxnCondition(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Conditions on one key, or on one lock; all that are given have to hold."""

    key: str | UnsetType = UNSET
    revision: Number | NumberRelation | UnsetType = UNSET
    create_revision: Number | NumberRelation | UnsetType = UNSET
    version: Number | NumberRelation | UnsetType = UNSET
    exists: bool | UnsetType = UNSET
    text: str | TextRelation | UnsetType = UNSET
    value: bytes | BytesRelation | UnsetType = UNSET
    lease: LeaseOrNone | LeaseRelation | UnsetType = UNSET
    lock: Annotated[str | UnsetType, Meta(description="A lock's name, with its `token`.")] = UNSET
    token: Positive | UnsetType = UNSET


class TxnPut(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Write a value: `text` (as UTF-8) or `value` (base64); hang the key on `lease`, or on none."""

    key: str
    text: str | UnsetType = UNSET
    value: bytes | UnsetType = UNSET
    lease: LeaseId = UNSET


class TxnDelete(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Remove one key, or those with a prefix, or from `start` up to but without `end`."""

    key: str | UnsetType = UNSET
    prefix: str = ""
    start: str = ""
    end: str = ""


class TxnGet(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Read a key."""

    key: str


class TxnList(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Read keys in order."""

    prefix: str = ""
    start: str = ""
    end: str = ""
    limit: Annotated[int, Meta(ge=1, le=MAX_LIST_LIMIT)] = DEFAULT_LIST_LIMIT
    keys_only: bool = False


class TxnOperation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One operation of a branch: exactly one of these."""

    put: TxnPut | UnsetType = UNSET
    delete: TxnDelete | UnsetType = UNSET
    get: TxnGet | UnsetType = UNSET
    list: TxnList | UnsetType = UNSET


class TxnRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /v1/txn."""

    if_: Annotated[
        tuple[TxnCondition, ...], Meta(description="All have to hold; none: they do.")
    ] = msgspec.field(default=(), name="if")
    then: Annotated[
        tuple[TxnOperation, ...], Meta(description="Carried out, in order, if all hold.")
    ] = ()
    else_: Annotated[
        tuple[TxnOperation, ...], Meta(description="Carried out, in order, if one does not.")
    ] = msgspec.field(default=(), name="else")


class TxnKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key that was read: `text` if its value is UTF-8, else `value` (base64).

    In MessagePack it is always `value`, as bytes.
    """

    key: str
    text: str | UnsetType = UNSET
    value: bytes | UnsetType = UNSET
    revision: Positive
    create_revision: Positive
    version: Positive
    lease: LeaseId = UNSET


class TxnPutDone(msgspec.Struct, frozen=True):
    """The result of a put."""

    created: bool


class TxnDeleteDone(msgspec.Struct, frozen=True):
    """The result of a delete: how many keys were there."""

    deleted: Count


class TxnListed(msgspec.Struct, frozen=True):
    """The result of a list."""

    items: list[TxnKey]
    cursor: Annotated[str | None, Meta(description="For GET /v1/kv; null: there are no more.")]


class TxnOperationDone(msgspec.Struct, frozen=True):
    """The result of one operation, under the operation's name."""

    put: TxnPutDone | UnsetType = UNSET
    delete: TxnDeleteDone | UnsetType = UNSET
    get: Annotated[TxnKey | UnsetType | None, Meta(description="null: there is no such key.")] = (
        UNSET
    )
    list: TxnListed | UnsetType = UNSET


class TxnAnswer(msgspec.Struct, frozen=True):
    """The answer to POST /v1/txn, whichever branch was carried out."""

    succeeded: Annotated[bool, Meta(description="Whether `then` was carried out.")]
    revision: Annotated[
        Count,
        Meta(description="Of all its changes; of the state it was decided on if it made none."),
    ]
    epoch: Positive
    copies: Count
    results: Annotated[
        list[TxnOperationDone], Meta(description="One for each operation, in order.")
    ]
    ack: Local = UNSET


TXN_REQUEST = TxnRequest(
    if_=(TxnCondition(key="a", revision=42), TxnCondition(key="b", exists=False)),
    then=(
        TxnOperation(put=TxnPut(key="a", text="1")),
        TxnOperation(delete=TxnDelete(prefix="tmp/")),
        TxnOperation(get=TxnGet(key="c")),
    ),
    else_=(TxnOperation(get=TxnGet(key="a")),),
)
"""An example, and its answer."""
TXN_ANSWER = TxnAnswer(
    succeeded=True,
    revision=43,
    epoch=3,
    copies=3,
    results=[
        TxnOperationDone(put=TxnPutDone(created=False)),
        TxnOperationDone(delete=TxnDeleteDone(deleted=2)),
        TxnOperationDone(
            get=TxnKey(key="c", text="ready", revision=40, create_revision=7, version=3)
        ),
    ],
)

_decoder = msgspec.json.Decoder(TxnRequest)


def parse_txn(body: bytes, max_value_size_bytes: int) -> store.Txn:
    """Read the body of POST /v1/txn. Raises Problem "invalid_body", "txn_too_large"."""
    try:
        request = _decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, UnicodeEncodeError) as error:
        raise ProblemError("invalid_body", str(error)) from None
    parser = _Parser(max_value_size_bytes)
    comparisons = tuple(parser.comparisons(request.if_))
    if len(comparisons) > MAX_COMPARISONS:
        raise ProblemError(
            "txn_too_large", f"at most {MAX_COMPARISONS} comparisons, not {len(comparisons)} - "
            "at `$.if`",
        )  # fmt: skip
    if not request.then and not request.else_:
        raise ProblemError("invalid_body", "an operation is needed in `then` or `else` - at `$`")
    then = parser.branch(request.then, "$.then")
    return store.Txn(comparisons, then, parser.branch(request.else_, "$.else"))


def _lease(text: str, at: str) -> int:
    try:
        return parse_lease(text)
    except ValueError as error:
        raise _wrong(str(error), at) from None


class _Parser:
    """Turns documents into what the store takes; `$…` is where in the document it is."""

    def __init__(self, max_value_size_bytes: int) -> None:
        self._max_value_size_bytes = max_value_size_bytes

    def comparisons(
        self, conditions: Sequence[TxnCondition]
    ) -> Iterator[store.Comparison | store.LockComparison]:
        for number, condition in enumerate(conditions):
            at = f"$.if[{number}]"
            if condition.lock is not UNSET:
                yield self._lock(condition, at)
                continue
            if condition.token is not UNSET:
                raise _wrong("`token` needs a `lock`", at)
            if condition.key is UNSET:
                raise _wrong("a `key` or a `lock` is needed", at)
            found = list(self._of_key(condition, _key(condition.key, f"{at}.key"), at))
            if not found:
                raise _wrong("a comparison is needed, such as `exists`, `revision`, `text`", at)
            yield from found

    @staticmethod
    def _lock(condition: TxnCondition, at: str) -> store.LockComparison:
        given = {name for name in condition.__struct_fields__ if getattr(condition, name) != UNSET}
        if given != {"lock", "token"} or condition.lock is UNSET or condition.token is UNSET:
            raise _wrong("a `lock` comes with its `token` and nothing else", at)
        return store.LockComparison(_key(condition.lock, f"{at}.lock"), condition.token)

    def _of_key(self, condition: TxnCondition, key: bytes, at: str) -> Iterator[store.Comparison]:
        for target in _NUMBERS:
            for relation, operand in _relations(getattr(condition, target), f"{at}.{target}"):
                yield store.Comparison(key, target, relation, operand)
        if condition.exists is not UNSET:
            yield store.Comparison(key, "exists", "eq", int(condition.exists))
        for relation, text in _relations(condition.text, f"{at}.text"):
            yield store.Comparison(key, "value", relation, _encode(text, f"{at}.text"))
        for relation, value in _relations(condition.value, f"{at}.value"):
            yield store.Comparison(key, "value", relation, value)
        for relation, lease in _relations(condition.lease, f"{at}.lease"):
            yield store.Comparison(key, "lease", relation, int(lease))

    def branch(self, operations: Sequence[TxnOperation], at: str) -> tuple[store.TxnStep, ...]:
        steps = tuple(
            self._step(operation, f"{at}[{number}]") for number, operation in enumerate(operations)
        )
        try:
            check_branch(steps)
        except TooManyError as error:
            raise ProblemError("txn_too_large", f"{error} - at `{at}`") from None
        except WrittenTwiceError as error:
            raise _wrong(str(error), f"{at}[{error.step}]") from None
        return steps

    def _step(self, operation: TxnOperation, at: str) -> store.TxnStep:
        given = [
            (name, part)
            for name in operation.__struct_fields__
            if (part := getattr(operation, name)) is not UNSET
        ]
        if len(given) != 1:
            raise _wrong("exactly one of `put`, `delete`, `get`, `list` is needed", at)
        name, part = given[0]
        at = f"{at}.{name}"
        match part:
            case TxnPut(key):
                lease = 0 if part.lease is UNSET else _lease(part.lease, f"{at}.lease")
                return store.PutStep(_key(key, f"{at}.key"), self._value(part, at), lease)
            case TxnGet(key):
                return store.GetStep(_key(key, f"{at}.key"))
            case TxnDelete():
                return _delete(part, at)
            case TxnList(limit=limit, keys_only=keys_only):
                bounds = _bounds(part, at)
                return store.ListStep(bounds.start, bounds.end, limit, keys_only)
        raise AssertionError(part)

    def _value(self, put: TxnPut, at: str) -> bytes:
        if (put.text is UNSET) == (put.value is UNSET):
            raise _wrong("exactly one of `text` and `value` (base64) is needed", at)
        value = put.value if put.text is UNSET else _encode(put.text, f"{at}.text")
        assert isinstance(value, bytes)
        if len(value) > self._max_value_size_bytes:
            raise _wrong(
                f"a value has at most {self._max_value_size_bytes} bytes, not {len(value)}", at
            )
        return value


def _relations(given: Any, at: str) -> Iterator[tuple[TxnRelation, Any]]:
    if given is UNSET:
        return
    if not isinstance(given, msgspec.Struct):
        yield "eq", given
        return
    found = [
        (relation, operand)
        for relation in _RELATIONS
        if (operand := getattr(given, relation, UNSET)) is not UNSET
    ]
    if not found:
        raise _wrong(f"one of {', '.join(f'`{name}`' for name in given.__struct_fields__)} "
                     "is needed", at)  # fmt: skip
    yield from found


def _delete(delete: TxnDelete, at: str) -> store.DeleteStep | store.DeleteRangeStep:
    has_range = bool(delete.prefix or delete.start or delete.end)
    if has_range == (delete.key is not UNSET):
        raise _wrong("a `key` is needed, or a `prefix` or `start` or `end`, not empty", at)
    if delete.key is not UNSET:
        return store.DeleteStep(_key(delete.key, f"{at}.key"))
    bounds = _bounds(delete, at)
    return store.DeleteRangeStep(bounds.start, bounds.end)


def _bounds(part: TxnDelete | TxnList, at: str) -> KeyRange:
    prefix, start, end = (
        _encode(getattr(part, name), f"{at}.{name}") for name in ("prefix", "start", "end")
    )
    for name, bound in (("prefix", prefix), ("start", start), ("end", end)):
        if len(bound) > MAX_KEY_SIZE_BYTES:
            raise _wrong(f"at most {MAX_KEY_SIZE_BYTES} bytes, not {len(bound)}", f"{at}.{name}")
    return make_bounds(prefix, start, end)


def _key(text: str, at: str) -> bytes:
    key = _encode(text, at)
    if not 0 < len(key) <= MAX_KEY_SIZE_BYTES:
        raise _wrong(f"1 to {MAX_KEY_SIZE_BYTES} bytes of UTF-8 are needed, not {len(key)}", at)
    return key


def _encode(text: str, at: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise _wrong("half of a surrogate pair is no text", at) from None


def _wrong(what: str, at: str) -> ProblemError:
    return ProblemError("invalid_body", f"{what} - at `{at}`")


# --- the answer ---


def txn_answer(asked: store.Txn, result: Result, *, local: bool, binary: bool = False) -> TxnAnswer:
    """Return the answer to a transaction that was carried out.

    `binary`: it goes out in a form that has bytes, so that all values are those, and none is text.
    """
    succeeded, values = result.value
    steps = asked.then if succeeded else asked.otherwise
    results = [_result(step, value, binary) for step, value in zip(steps, values, strict=True)]
    return TxnAnswer(
        succeeded,
        result.index,
        result.epoch,
        result.copies,
        results,
        "local" if local else UNSET,
    )


def _result(step: store.TxnStep, value: Any, binary: bool) -> TxnOperationDone:
    match step:
        case store.PutStep():
            return TxnOperationDone(put=TxnPutDone(value))
        case store.GetStep(key):
            return TxnOperationDone(get=None if value is None else _item(binary, key, *value))
        case store.ListStep(start, end):
            items, following = value
            cursor = None if following is None else encode_cursor(following, KeyRange(start, end))
            return TxnOperationDone(
                list=TxnListed([_item(binary, *item) for item in items], cursor)
            )
        case _:
            return TxnOperationDone(delete=TxnDeleteDone(value))


def _item(
    binary: bool,
    key: bytes,
    value: bytes | None,
    revision: int,
    create_revision: int,
    version: int,
    lease: int,
) -> TxnKey:
    text: str | UnsetType = UNSET
    if value is not None and not binary:
        try:
            text = value.decode()
        except UnicodeDecodeError:
            text = UNSET
    return TxnKey(
        key=key.decode("utf-8", "replace"),
        text=text,
        value=UNSET if value is None or text is not UNSET else value,
        revision=revision,
        create_revision=create_revision,
        version=version,
        lease=str(lease) if lease else UNSET,
    )
