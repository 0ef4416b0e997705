"""Requests of etcd's gateway: protobuf's JSON form, read into structs.

A field goes by its protobuf name or by that name in camel case. 64-bit numbers may be strings,
bytes are base64 of either alphabet, with padding or without, and enumerations go by name or by
number: a name that is not known counts as 0, a field that is not known is passed over, and null is
the field's default. What etcd refuses is refused with its code (`INVALID_ARGUMENT`); the words of
such a refusal are those of its parser, and differ here.
"""

from __future__ import annotations

import base64
import binascii
import functools
import json
import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from cluster.etcd.errors import EtcdError, invalid

MAX_MESSAGES = 16
"""In one body of a stream."""
MAX_NESTING = 32
"""Of messages within messages: transactions within transactions."""

SortOrder = Literal["NONE", "ASCEND", "DESCEND"]
SortTarget = Literal["KEY", "VERSION", "CREATE", "MOD", "VALUE"]
CompareResult = Literal["EQUAL", "GREATER", "LESS", "NOT_EQUAL"]
CompareTarget = Literal["VERSION", "CREATE", "MOD", "VALUE", "LEASE"]
WatchFilter = Literal["NOPUT", "NODELETE"]


class EtcdMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A request, or a part of one."""


class RangeRequest(EtcdMessage, frozen=True, kw_only=True):
    """A read of a key or of a range."""

    key: bytes = b""
    range_end: bytes = b""
    limit: int = 0
    revision: int = 0
    sort_order: SortOrder | int = "NONE"
    sort_target: SortTarget | int = "KEY"
    serializable: bool = False
    keys_only: bool = False
    count_only: bool = False
    min_mod_revision: int = 0
    max_mod_revision: int = 0
    min_create_revision: int = 0
    max_create_revision: int = 0


class PutRequest(EtcdMessage, frozen=True, kw_only=True):
    """A write of a key."""

    key: bytes = b""
    value: bytes = b""
    lease: int = 0
    prev_kv: bool = False
    ignore_value: bool = False
    ignore_lease: bool = False


class DeleteRangeRequest(EtcdMessage, frozen=True, kw_only=True):
    """The removal of a key or of a range."""

    key: bytes = b""
    range_end: bytes = b""
    prev_kv: bool = False


class Compare(EtcdMessage, frozen=True, kw_only=True):
    """A comparison of a transaction. One of the last five but `range_end` is given: a oneof."""

    result: CompareResult | int = "EQUAL"
    target: CompareTarget | int = "VERSION"
    key: bytes = b""
    version: int | None = None
    create_revision: int | None = None
    mod_revision: int | None = None
    value: bytes | None = None
    lease: int | None = None
    range_end: bytes = b""


class RequestOp(EtcdMessage, frozen=True, kw_only=True):
    """One operation of a transaction: one of the four."""

    request_range: RangeRequest | None = None
    request_put: PutRequest | None = None
    request_delete_range: DeleteRangeRequest | None = None
    request_txn: EtcdTxnRequest | None = None


class EtcdTxnRequest(EtcdMessage, frozen=True, kw_only=True):
    """A transaction."""

    compare: tuple[Compare, ...] = ()
    success: tuple[RequestOp, ...] = ()
    failure: tuple[RequestOp, ...] = ()


class CompactionRequest(EtcdMessage, frozen=True, kw_only=True):
    """The wish that older revisions be forgotten."""

    revision: int = 0
    physical: bool = False


class WatchCreateRequest(EtcdMessage, frozen=True, kw_only=True):
    """A watch of a key or of a range."""

    key: bytes = b""
    range_end: bytes = b""
    start_revision: int = 0
    progress_notify: bool = False
    filters: tuple[WatchFilter | int, ...] = ()
    prev_kv: bool = False
    watch_id: int = 0
    fragment: bool = False


class WatchCancelRequest(EtcdMessage, frozen=True, kw_only=True):
    """The end of a watch."""

    watch_id: int = 0


class WatchProgressRequest(EtcdMessage, frozen=True, kw_only=True):
    """The question how far the watches of a stream are."""


class EtcdWatchRequest(EtcdMessage, frozen=True, kw_only=True):
    """One message of the asking side of a watch stream: one of the three."""

    create_request: WatchCreateRequest | None = None
    cancel_request: WatchCancelRequest | None = None
    progress_request: WatchProgressRequest | None = None


class LeaseGrantRequest(EtcdMessage, frozen=True, kw_only=True):
    """A new lease; `TTL` in seconds. `ID` 0: the server draws one."""

    TTL: int = 0
    ID: int = 0


class LeaseIdRequest(EtcdMessage, frozen=True, kw_only=True):
    """A lease, to be revoked or kept alive."""

    ID: int = 0


class LeaseTimeToLiveRequest(EtcdMessage, frozen=True, kw_only=True):
    """The question how long a lease has still to live."""

    ID: int = 0
    keys: bool = False


class AuthenticateRequest(EtcdMessage, frozen=True, kw_only=True):
    """A name and a password, for a token."""

    name: str = ""
    password: str = ""


class MemberListRequest(EtcdMessage, frozen=True, kw_only=True):
    """The question who the members are."""

    linearizable: bool = False


class EmptyRequest(EtcdMessage, frozen=True, kw_only=True):
    """A request without fields that count here."""


ONEOFS: dict[type[EtcdMessage], frozenset[str]] = {
    Compare: frozenset({"version", "create_revision", "mod_revision", "value", "lease"}),
    RequestOp: frozenset({"request_range", "request_put", "request_delete_range", "request_txn"}),
    EtcdWatchRequest: frozenset({"create_request", "cancel_request", "progress_request"}),
}
"""The fields of which one message has one at the most."""

MessageT = TypeVar("MessageT", bound=EtcdMessage)
_Reader = Callable[[Any, str, int], Any]

_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]{0,18})(?:\.[0-9]{1,20})?(?:[eE][+-]?[0-9]{1,3})?")
_MAX_INT64_DIGITS = 19
_MAX_INT64 = 2**63 - 1


def read_message(kind: type[MessageT], body: bytes) -> MessageT:
    """Return a request: the first value of a body; what follows it is not looked at.

    Raises EtcdError.
    """
    text = _text(body)
    if not text:
        return kind()
    return from_document(kind, _decode(text)[0])


def read_messages(kind: type[MessageT], body: bytes) -> list[MessageT]:
    """Return all requests of a stream, up to MAX_MESSAGES. Raises EtcdError."""
    text = _text(body)
    found: list[MessageT] = []
    while text and len(found) < MAX_MESSAGES:
        document, end = _decode(text)
        found.append(from_document(kind, document))
        text = text[end:].lstrip()
    return found


def _text(body: bytes) -> str:
    try:
        return body.decode().lstrip(" \t\r\n")
    except UnicodeDecodeError as error:
        raise invalid(f"proto: invalid UTF-8: {error}") from None


def _decode(text: str) -> tuple[Any, int]:
    try:
        return _json.raw_decode(text)
    except ValueError as error:
        raise invalid(f"proto: syntax error: {error}") from None
    except RecursionError:
        raise invalid("proto: exceeded maximum recursion depth") from None


class _Object(tuple[tuple[str, Any], ...]):
    """The fields of a JSON object, as they stand there: one may stand there twice."""

    __slots__ = ()


def _no_constant(word: str) -> Any:
    raise ValueError(f"invalid value {word}")


def _decimal(text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation:  # its exponent has more than 18 digits
        raise ValueError(f"invalid number {text[:40]}") from None


_json = json.JSONDecoder(
    object_pairs_hook=_Object, parse_constant=_no_constant, parse_float=_decimal
)


def from_document(kind: type[MessageT], document: Any, where: str = "", depth: int = 0) -> MessageT:
    """Return a message out of its JSON document. Raises EtcdError."""
    if not isinstance(document, _Object):
        raise invalid(f"proto: {where or 'the request'} must be an object")
    if depth > MAX_NESTING:
        raise invalid(f"proto: {where} is nested more than {MAX_NESTING} deep")
    readers = _readers(kind)
    oneof = ONEOFS.get(kind, frozenset())
    found: dict[str, Any] = {}
    for given, value in document:
        reader = readers.get(given)
        if reader is None or value is None:
            continue
        name, read = reader
        place = f"{where}.{name}" if where else name
        if name in found:
            raise invalid(f"proto: duplicate field {place}")
        if name in oneof and not oneof.isdisjoint(found):
            raise invalid(f"proto: {place}: another field of its oneof is already set")
        found[name] = read(value, place, depth)
    return kind(**found)


@functools.cache
def _readers(kind: type[EtcdMessage]) -> dict[str, tuple[str, _Reader]]:
    """Return, for each spelling of a field, its name and what reads it."""
    found: dict[str, tuple[str, _Reader]] = {}
    for name, hint in get_type_hints(kind).items():
        reader = _reader(hint)
        first, *others = name.split("_")
        camel = first + "".join(part[:1].upper() + part[1:] for part in others)
        found[name] = found[camel] = (name, reader)
    return found


def _reader(hint: Any) -> _Reader:
    plain = {int: _int64, bytes: _bytes, bool: _bool, str: _string}
    if hint in plain:
        return plain[hint]
    args = get_args(hint)
    if get_origin(hint) is Literal:
        return _enumeration(args)
    if get_origin(hint) is tuple:
        return _repeated(_reader(args[0]))
    if args:  # a union: with None, or of an enumeration's names with other numbers
        return _reader(next(arg for arg in args if arg is not type(None)))
    return functools.partial(_nested, hint)


def _nested(kind: type[EtcdMessage], value: Any, place: str, depth: int) -> EtcdMessage:
    return from_document(kind, value, place, depth + 1)


def _repeated(read: _Reader) -> _Reader:
    def read_all(value: Any, place: str, depth: int) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise invalid(f"proto: {place} must be an array")
        return tuple(read(item, f"{place}[{at}]", depth) for at, item in enumerate(value))

    return read_all


def _int64(value: Any, place: str, _depth: int) -> int:
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        value = Decimal(value)
    value = _whole(value)
    if type(value) is not int or not -_MAX_INT64 - 1 <= value <= _MAX_INT64:
        raise _bad("int64", place, value)
    return value


def _whole(value: Any) -> Any:
    """Return a number that is written with a point or an exponent as an int, if it is whole."""
    if isinstance(value, Decimal) and value.adjusted() < _MAX_INT64_DIGITS and value % 1 == 0:
        return int(value)
    return value


def _bool(value: Any, place: str, _depth: int) -> bool:
    if not isinstance(value, bool):
        raise _bad("bool", place, value)
    return value


def _string(value: Any, place: str, _depth: int) -> str:
    if not isinstance(value, str):
        raise _bad("string", place, value)
    return value


def _bytes(value: Any, place: str, _depth: int) -> bytes:
    if isinstance(value, str):
        try:
            return binascii.a2b_base64(value, strict_mode=True)
        except ValueError:
            pass
        text = value.replace("-", "+").replace("_", "/")
        is_one_alphabet = text == value or not ("+" in value or "/" in value)
        if is_one_alphabet and (len(value) % 4 == 0 or "=" not in value):  # padded whole, or not
            try:
                # Bits left over in the last character are dropped, as Go's decoder does.
                return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
            except ValueError:
                pass
    raise _bad("bytes", place, value)


def _enumeration(names: tuple[str, ...]) -> _Reader:
    def read(value: Any, place: str, _depth: int) -> str | int:
        if isinstance(value, str):
            return value if value in names else names[0]
        value = _whole(value)
        if type(value) is not int or not -(2**31) <= value < 2**31:
            raise _bad("enum", place, value)
        return names[value] if 0 <= value < len(names) else value

    return read


def _bad(kind: str, place: str, value: Any) -> EtcdError:
    return invalid(f"proto: invalid value for {kind} field {place}: {str(value)[:100]!r}")
