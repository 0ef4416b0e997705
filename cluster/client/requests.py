"""How the client's calls become requests, and answers become results: targets, options, headers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar
from urllib.parse import quote, urlencode

import msgspec

from cluster.client.arguments import (
    COPIES_MAX,
    MILLISECONDS_MAX,
    REVISION_MAX,
    DrawnKey,
    check_ack,
    check_consistency,
    check_flag,
    check_idempotency_after,
    check_idempotency_key,
    check_key,
    check_number,
    check_optional_number,
    draw_key,
)
from cluster.client.errors import InvalidRequestError, UnavailableError, UnknownOutcomeError
from cluster.client.exchange import FinalResponse, Request, raise_for
from datapath.operations import Ack, Consistency

JSON_HEADERS = {"Content-Type": "application/json"}
_MSGPACK = "application/msgpack"
ACCEPT_MSGPACK = {"Accept": _MSGPACK}
"""Of calls whose answers have values in them. A node that knows JSON only answers with that."""

T = TypeVar("T")


def kv_target(key: str, options: Mapping[str, object] | None = None) -> str:
    """Return the encoded path and query of a key. Raises InvalidRequestError for what is no key."""
    return f"/v1/kv/{quote(check_key(key), safe='')}{query_string(options or {})}"


def write_call(
    method: str,
    target: str,
    headers: dict[str, str],
    body: bytes | None,
    key: str,
    after: int | None = None,
) -> Request:
    """Return a write under an idempotency key, drawn at random where none is given."""
    after = check_idempotency_after(check_idempotency_key(key), after)
    key = key or draw_key()
    drawn = isinstance(key, DrawnKey)
    headers["Idempotency-Key"] = f'"{key}"'
    return Request(method, target, headers, body, str(key), writes=True, after=after, drawn=drawn)


def condition_headers(if_revision: int | None, *, if_absent: bool = False) -> dict[str, str]:
    """Return the headers of a write's condition. Raises InvalidRequestError for two."""
    revision = check_optional_number("if_revision", if_revision, 1, REVISION_MAX)
    if check_flag("if_absent", if_absent):
        if revision is not None:
            raise InvalidRequestError("if_revision and if_absent cannot be combined")
        return {"If-None-Match": "*"}
    return {} if revision is None else {"If-Match": f'"{revision}"'}


def write_query(ack: Ack, min_copies: int) -> dict[str, object]:
    """Return the query options of a write, checked."""
    word, copies = check_ack(ack), check_number("min_copies", min_copies, 0, COPIES_MAX)
    return {"ack": None if word == "all" else word, "min_copies": copies or None}


def read_query(consistency: Consistency, max_staleness_ms: int | None) -> dict[str, object]:
    """Return the query options of a read, checked."""
    word = check_consistency(consistency)
    staleness = check_optional_number("max_staleness_ms", max_staleness_ms, 0, MILLISECONDS_MAX)
    if staleness is not None and word != "stale":
        raise InvalidRequestError('max_staleness_ms needs consistency="stale"')
    return {
        "consistency": None if word == "linearizable" else word,
        "max_staleness_ms": staleness,
    }


def query_string(options: Mapping[str, object]) -> str:
    """Return the query of all options that are neither None nor ""."""
    chosen = {name: value for name, value in options.items() if value not in (None, "")}
    return f"?{urlencode(chosen, quote_via=quote)}" if chosen else ""


def decode_reply(
    call: Request, reply: FinalResponse, kind: type[T], ok: tuple[int, ...] = (200,)
) -> T:
    """Return the document of a good answer. Raises what any other means."""
    if reply.status not in ok:
        raise_for(call, reply)
    is_msgpack = reply.headers.get("Content-Type") == _MSGPACK
    try:
        if is_msgpack:
            return msgspec.msgpack.decode(reply.body, type=kind)
        return msgspec.json.decode(reply.body, type=kind)
    except msgspec.DecodeError as error:
        # Whatever answered "OK" is no onecopy node: nothing can be concluded from it.
        kind_of_error = UnknownOutcomeError if call.writes else UnavailableError
        raise kind_of_error(f"not an answer of onecopy: {error}", code="bad_answer") from error
