"""Query parameters: one table for each kind of request, read strictly.

An unknown, repeated or malformed parameter is refused rather than ignored: a misspelt
`min_copies` that went unnoticed would promise a durability that nobody gave. The tables are also
what the OpenAPI document is made of.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, get_args
from urllib.parse import unquote_to_bytes

import msgspec

from cluster.api.problems import ProblemError
from cluster.services.leases import MAX_TTL_MS, MIN_TTL_MS
from cluster.services.lock_state import MAX_NAME_SIZE_BYTES
from cluster.services.txn import MAX_DELETED_KEYS
from datapath.operations import Ack, Consistency

MAX_KEY_SIZE_BYTES = 480
MAX_TIMEOUT_MS = 600_000
MAX_STALENESS_MS = 2**31 - 1
MAX_COPIES = 255
DEFAULT_RANGE_LIMIT = 100
MAX_RANGE_LIMIT = 1000
MAX_CURSOR_LENGTH = 4096
MAX_WAIT_MS = 600_000
DEFAULT_WAIT_MS = 10_000
MAX_REVISION = 2**63 - 1

_BAD_PERCENT = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_DIGITS = re.compile(r"[0-9]{1,19}")
_LEASE = re.compile(r"[1-9][0-9]{0,19}")


class Param(msgspec.Struct, frozen=True):
    """A query parameter: how it is read, and what OpenAPI says of it."""

    parse: Callable[[str], Any]
    schema: dict[str, Any]
    description: str


class WriteOptions(msgspec.Struct, frozen=True):
    """The parameters of PUT and DELETE on a key. `timeout_ms` None: the server's default."""

    ack: Ack = "all"
    min_copies: int = 0
    timeout_ms: int | None = None


class PutOptions(WriteOptions, frozen=True):
    """The parameters of PUT. `lease` 0: none; `ttl_ms` 0: no new lease."""

    lease: int = 0
    ttl_ms: int = 0


class ReadOptions(msgspec.Struct, frozen=True):
    """The parameters of every read."""

    consistency: Consistency = "linearizable"
    max_staleness_ms: int | None = None
    timeout_ms: int | None = None


def decode_percent(text: str, what: str, code: str = "invalid_key") -> bytes:
    """Return the bytes that percent-encoded `text` stands for, valid UTF-8.

    `text` may hold plain UTF-8 as well (as curl sends it). Raises Problem `code` naming `what`.
    """
    raw = text.encode("utf-8", "surrogateescape")
    if b"%" in raw:
        if _BAD_PERCENT.search(raw):
            raise ProblemError(code, f"{what}: every % must be followed by two hexadecimal digits")
        raw = unquote_to_bytes(raw)
    if not raw.isascii():
        try:
            raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ProblemError(
                code, f"{what}: not valid UTF-8 at byte {error.start} after percent-decoding"
            ) from None
    return raw


def decode_key(segment: str) -> bytes:
    """Return the key that the path names after `/v1/kv/`: 1 to 480 bytes of UTF-8.

    A slash belongs to the key, plain or as %2F. Raises Problem.
    """
    if "%" in segment or not segment.isascii():
        key = decode_percent(segment, "the key")
    else:
        key = segment.encode("ascii")
    if len(key) > MAX_KEY_SIZE_BYTES:
        raise ProblemError(
            "key_too_long", f"the key has {len(key)} bytes; the limit is {MAX_KEY_SIZE_BYTES}"
        )
    if not key:
        raise ProblemError(
            "invalid_key", "the key is empty: write /v1/kv/{key} with at least one byte"
        )
    return key


def decode_name(segment: str, what: str = "the name") -> bytes:
    """Return the name of a lock or an election, percent-encoded in `what`. Raises Problem."""
    name = decode_percent(segment, what, "invalid_name")
    if not 0 < len(name) <= MAX_NAME_SIZE_BYTES or b"\0" in name:
        raise ProblemError(
            "invalid_name",
            f"{what}: a name has 1 to {MAX_NAME_SIZE_BYTES} bytes, none of them zero",
        )
    return name


def parse_lease(text: str) -> int:
    """Return the id of a lease. Raises ValueError."""
    if not _LEASE.fullmatch(text) or int(text) >= 2**64:
        raise ValueError("must be the id of a lease, a number")
    return int(text)


def _choice(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(f"must be {' or '.join(words)}")
        return text

    return parse


def _number(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not _DIGITS.fullmatch(text) or not low <= int(text) <= high:
            raise ValueError(f"must be a whole number from {low} to {high}")
        return int(text)

    return parse


def _bound(text: str) -> bytes:
    key = text.encode("utf-8")
    if len(key) > MAX_KEY_SIZE_BYTES:
        raise ValueError(f"must have at most {MAX_KEY_SIZE_BYTES} bytes")
    return key


def _cursor(text: str) -> str:
    if len(text) > MAX_CURSOR_LENGTH:
        raise ValueError(f"must have at most {MAX_CURSOR_LENGTH} characters")
    return text


def _number_schema(low: int, high: int, default: int | None = None) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer", "minimum": low, "maximum": high}
    return schema if default is None else {**schema, "default": default}


_LEASE_SCHEMA = {"type": "string", "pattern": "^[1-9][0-9]{0,19}$", "examples": ["2"]}
TIMEOUT = {
    "timeout_ms": Param(
        _number(1, MAX_TIMEOUT_MS),
        _number_schema(1, MAX_TIMEOUT_MS),
        "How long the request may wait for a primary and its answer, in milliseconds.",
    )
}
REMOVE_PARAMS = {
    "force": Param(
        str,
        {"type": "string"},
        "The node's id once more: remove it even though that may lose what `detail` of the "
        "refusal names.",
    ),
    **TIMEOUT,
}
WRITE_PARAMS: dict[str, Param] = {
    "ack": Param(
        _choice("all", "local"),
        {"type": "string", "enum": ["all", "local"], "default": "all"},
        "`all`: acknowledge once the whole in-sync set holds the write durably. `local`: once "
        "the primary does; a failover may lose such a write, and the answer says so. No read "
        "sees it until it has committed on the whole in-sync set; following writes do.",
    ),
    "min_copies": Param(
        _number(1, MAX_COPIES),
        _number_schema(1, MAX_COPIES),
        "Minimum number of durable copies for an acknowledgement.",
    ),
    **TIMEOUT,
}
PUT_PARAMS: dict[str, Param] = {
    "lease": Param(
        parse_lease,
        _LEASE_SCHEMA,
        "The client lease that the key hangs on from now on: it goes when the lease ends.",
    ),
    "ttl_ms": Param(
        _number(MIN_TTL_MS, MAX_TTL_MS),
        _number_schema(MIN_TTL_MS, MAX_TTL_MS),
        "Hang the key on a new client lease, whose id is the revision of this write.",
    ),
    **WRITE_PARAMS,
}
TOKEN_PARAMS: dict[str, Param] = {
    "token": Param(
        _number(1, 2**63 - 1),
        _number_schema(1, 2**63 - 1),
        "The token under which it is held: give it up.",
    ),
    "lease": Param(
        parse_lease,
        _LEASE_SCHEMA,
        "A lease that holds it or waits for it, and does so no longer.",
    ),
    **TIMEOUT,
}
AFTER_TOKEN_PARAMS: dict[str, Param] = {
    "after": Param(
        _number(0, 2**63 - 1),
        _number_schema(0, 2**63 - 1),
        "Answer when it is no longer held under this token (0: when it is held), or when "
        "`wait_ms` is over.",
    ),
    "wait_ms": Param(
        _number(0, MAX_WAIT_MS),
        _number_schema(0, MAX_WAIT_MS, DEFAULT_WAIT_MS),
        "With `after`: how long to wait.",
    ),
    **TIMEOUT,
}
LEASE_LIST_PARAMS: dict[str, Param] = {
    "after": Param(
        parse_lease,
        _LEASE_SCHEMA,
        "Only leases above this id: `next` of the page before.",
    ),
    "limit": Param(
        _number(1, MAX_RANGE_LIMIT),
        _number_schema(1, MAX_RANGE_LIMIT, DEFAULT_RANGE_LIMIT),
        "Largest number of leases in the answer.",
    ),
    **TIMEOUT,
}
LOCK_LIST_PARAMS: dict[str, Param] = {
    "after": Param(_bound, {"type": "string"}, "Only names above this: `next` of the page before."),
    "limit": LEASE_LIST_PARAMS["limit"],
    **TIMEOUT,
}
READ_PARAMS: dict[str, Param] = {
    "consistency": Param(
        _choice(*get_args(Consistency)),
        {"type": "string", "enum": list(get_args(Consistency)), "default": "linearizable"},
        "`linearizable`: sees every write acknowledged with `ack=all` before, and only committed "
        "writes: one with `ack=local` once it has committed. `confirmed`: the same, even if a "
        "machine's clock stands still, for one more round trip between nodes. `stale`: the state "
        "of this node.",
    ),
    "max_staleness_ms": Param(
        _number(0, MAX_STALENESS_MS),
        _number_schema(0, MAX_STALENESS_MS),
        "With `consistency=stale`: maximum age of the state, in milliseconds.",
    ),
    **TIMEOUT,
}
BACKUP_PARAMS: dict[str, Param] = {
    "consistency": Param(
        _choice("linearizable", "stale"),
        {"type": "string", "enum": ["linearizable", "stale"], "default": "linearizable"},
        "`linearizable`: the backup has every write acknowledged before the request. `stale`: "
        "what this node has, without asking another; for a cluster that has no primary.",
    ),
    **TIMEOUT,
}
_KEY_SCHEMA = {"type": "string"}
_BOUND_PARAMS: dict[str, Param] = {
    "prefix": Param(_bound, _KEY_SCHEMA, "Only keys with this prefix."),
    "start": Param(_bound, _KEY_SCHEMA, "First key (inclusive). Empty: no lower bound."),
    "end": Param(_bound, _KEY_SCHEMA, "End of the range (exclusive). Empty: no upper bound."),
    "cursor": Param(
        _cursor,
        {"type": "string", "maxLength": MAX_CURSOR_LENGTH},
        "The `cursor` of the previous page, unchanged.",
    ),
}
DELETE_RANGE_PARAMS: dict[str, Param] = {
    **_BOUND_PARAMS,
    "limit": Param(
        _number(1, MAX_DELETED_KEYS),
        _number_schema(1, MAX_DELETED_KEYS, MAX_DELETED_KEYS),
        "Largest number of keys to remove in this request.",
    ),
    **WRITE_PARAMS,
}
RANGE_PARAMS: dict[str, Param] = {
    **_BOUND_PARAMS,
    "limit": Param(
        _number(1, MAX_RANGE_LIMIT),
        _number_schema(1, MAX_RANGE_LIMIT, DEFAULT_RANGE_LIMIT),
        "Maximum number of items in the answer.",
    ),
    "keys_only": Param(
        _choice("true", "false"),
        {"type": "boolean", "default": False},
        "`true` omits the values.",
    ),
    **READ_PARAMS,
}


_FROM_TEXT = {
    "from_text": Param(
        _choice("true", "false"),
        {"type": "boolean", "default": False},
        "`true`: arguments may come as text where the method takes a number, a date and the like.",
    )
}
WRITE_CALL_PARAMS: dict[str, Param] = {**WRITE_PARAMS, **_FROM_TEXT}
READ_CALL_PARAMS: dict[str, Param] = {**READ_PARAMS, **_FROM_TEXT}
GET_CALL_PARAMS: dict[str, Param] = {
    "arguments": Param(
        str,
        {"type": "string"},
        "All arguments, as a JSON object; in place of a parameter for each.",
    ),
    **READ_CALL_PARAMS,
}
_AFTER = Param(
    _number(0, MAX_REVISION),
    _number_schema(0, MAX_REVISION),
    "Only changes after this revision. Left out: from now on.",
)
WATCH_PARAMS: dict[str, Param] = {
    "key": Param(_bound, _KEY_SCHEMA, "Watch this key alone."),
    "prefix": Param(_bound, _KEY_SCHEMA, "Watch the keys that begin with this; empty: all keys."),
    "start": Param(_bound, _KEY_SCHEMA, "Watch the keys from this one on (inclusive)."),
    "end": Param(_bound, _KEY_SCHEMA, "Watch the keys before this one (exclusive)."),
    "after": _AFTER,
}
OBSERVE_PARAMS: dict[str, Param] = {
    "after": msgspec.structs.replace(
        _AFTER,
        description="Only changes after this revision. Left out: who leads now, then changes.",
    )
}
NEXT_CHANGE_PARAMS: dict[str, Param] = {
    "after": msgspec.structs.replace(
        _AFTER,
        description="Wait for the next change of the key after this revision; the answer is an "
        "event in JSON. Not beside `consistency` and `max_staleness_ms`.",
    ),
    **TIMEOUT,
}


def waits_for_change(query: str) -> bool:
    """Whether a GET of a key is for its next change (`cluster.api.watch`)."""
    return "after=" in query


def parse_query(query: str, allowed: Mapping[str, Param]) -> dict[str, Any]:
    """Read a raw query string against a table. Raises Problem naming the parameter."""
    values, others = split_query(query, allowed)
    for name in others:
        known = f"allowed are {', '.join(allowed)}" if allowed else "none is allowed here"
        raise ProblemError("unknown_parameter", f"query parameter {name[:100]!r}: {known}")
    return values


def split_query(query: str, allowed: Mapping[str, Param]) -> tuple[dict[str, Any], dict[str, str]]:
    """Read a raw query string; return what a table has, and the rest as text. Raises Problem."""
    values: dict[str, Any] = {}
    others: dict[str, str] = {}
    for part in query.split("&"):
        if not part:
            continue
        raw_name, _, raw_value = part.partition("=")
        name = _decode(raw_name, "a query parameter's name")
        param = allowed.get(name)
        if name in values or name in others:
            raise ProblemError("invalid_parameter", _about(name, "is given twice", allowed))
        text = _decode(raw_value, f"query parameter {name[:100]!r}")
        if param is None:
            others[name] = text
            continue
        try:
            values[name] = param.parse(text)
        except ValueError as error:
            raise ProblemError("invalid_parameter", _about(name, str(error), allowed)) from None
    return values, others


def known_params(query: str, allowed: Mapping[str, Param]) -> dict[str, Any]:
    """Return what a raw query string has of a table; nothing, if its handler will refuse it."""
    try:
        return split_query(query, allowed)[0]
    except ProblemError:
        return {}


def _about(name: str, complaint: str, allowed: Mapping[str, Param]) -> str:
    return f"query parameter {name!r} {complaint} (allowed are {', '.join(allowed)})"


def _decode(text: str, what: str) -> str:
    # Form encoding, as every library's query builder writes it: + is a space, %2B a plus.
    return decode_percent(text.replace("+", " "), what, "invalid_parameter").decode("utf-8")


@functools.lru_cache(maxsize=256)  # a client sends the same few queries again and again
def write_options(query: str) -> WriteOptions:
    """Read the query of DELETE and of a transaction. Raises Problem."""
    return make_write_options(parse_query(query, WRITE_PARAMS))


def make_write_options(values: Mapping[str, Any]) -> WriteOptions:
    """Take the write parameters from among `values`. Raises Problem if they contradict."""
    options = WriteOptions(**{name: values[name] for name in WRITE_PARAMS if name in values})
    if options.ack == "local" and options.min_copies > 1:
        raise ProblemError(
            "invalid_parameter",
            "query parameter 'min_copies' cannot be above 1 with ack=local, which waits for one "
            "copy",
        )
    return options


@functools.lru_cache(maxsize=256)
def put_options(query: str) -> PutOptions:
    """Read the query of PUT. Raises Problem."""
    values = parse_query(query, PUT_PARAMS)
    options = make_write_options(values)
    lease, ttl_ms = values.get("lease", 0), values.get("ttl_ms", 0)
    if lease and ttl_ms:
        raise ProblemError(
            "invalid_parameter", "query parameters 'lease' and 'ttl_ms' exclude each other"
        )
    return PutOptions(options.ack, options.min_copies, options.timeout_ms, lease, ttl_ms)


@functools.lru_cache(maxsize=256)
def read_options(query: str) -> ReadOptions:
    """Read the query of GET on a key. Raises Problem."""
    return make_read_options(parse_query(query, READ_PARAMS))


def make_read_options(values: Mapping[str, Any]) -> ReadOptions:
    """Take the read parameters from among `values`. Raises Problem if they contradict."""
    options = ReadOptions(**{name: values[name] for name in READ_PARAMS if name in values})
    if options.max_staleness_ms is not None and options.consistency != "stale":
        raise ProblemError(
            "invalid_parameter",
            "query parameter 'max_staleness_ms' needs consistency=stale: "
            f"a {options.consistency} read is never stale",
        )
    return options
