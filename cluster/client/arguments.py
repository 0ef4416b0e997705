"""What the client's methods take: types and ranges, checked before anything is sent.

A wrong type is a TypeError, an impossible value an InvalidRequestError; both name the argument.
Nothing is converted: a value that was guessed at would be stored.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import NoReturn, get_args

from cluster.client.errors import InvalidRequestError
from cluster.groups.group_map import GroupMapError, check_group_id
from datapath.operations import Ack, Consistency

KEY_MAX_BYTES = 480
COPIES_MAX = 255
PAGE_LIMIT_MAX = 1000
DEFAULT_PAGE_SIZE = 500  # of a listing that names no limit
REVISION_MAX = 2**63 - 1
LEASE_MAX_DIGITS = 20
AFTER_MAX = 10**18 - 1  # what Idempotency-After takes
MILLISECONDS_MAX = 2**31 - 1


def check_key(key: object) -> str:
    """Return the key: text of 1 to 480 bytes of UTF-8."""
    text = check_text("key", key)
    size = len(text.encode())
    if not 1 <= size <= KEY_MAX_BYTES:
        problem = f"a key must have 1 to {KEY_MAX_BYTES} bytes of UTF-8; this one has {size}"
        raise InvalidRequestError(problem, code="invalid_key")
    return text


def check_value(value: object, name: str = "value") -> bytes:
    """Return a value's bytes; text becomes UTF-8."""
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        _wrong_type(name, value, "bytes or str")
    return check_text(name, value).encode()


def check_token(token: object) -> str:
    """Return a token that a header can carry; what is wrong with it is said without it."""
    text = check_text("token", token)
    if not all("!" <= character <= "~" for character in text):
        raise InvalidRequestError(
            "token must be printable ASCII without spaces: strip the line end of a file",
            code="invalid_argument",
        )
    return text


def check_text(name: str, value: object) -> str:
    """Return text that UTF-8 can carry."""
    if not isinstance(value, str):
        _wrong_type(name, value, "str")
    try:
        value.encode()
    except UnicodeEncodeError:
        code = "invalid_key" if name == "key" else "invalid_argument"
        raise InvalidRequestError(
            f"{name} cannot be encoded in UTF-8: it contains half of a surrogate pair", code=code
        ) from None
    return value


def check_group(value: object) -> str:
    """Return a group's id, or "" for the group that the keys themselves name."""
    group = check_text("group", value)
    if group:
        try:
            check_group_id("group", group)
        except GroupMapError as error:
            raise InvalidRequestError(str(error), code="invalid_argument") from None
    return group


def check_number(name: str, value: object, low: int, high: int) -> int:
    """Return a whole number from `low` to `high`. True and False are none."""
    if not isinstance(value, int) or isinstance(value, bool):
        _wrong_type(name, value, "int")
    if not low <= value <= high:
        raise InvalidRequestError(
            f"{name} must be from {low} to {high}, not {value}", code="invalid_argument"
        )
    return value


def check_seconds(name: str, value: object, low: float, high: float) -> float:
    """Return a number of seconds from `low` to `high`."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        _wrong_type(name, value, "float")
    if not low <= value <= high:
        raise InvalidRequestError(
            f"{name} must be from {low:g} to {high:g} seconds, not {value}", code="invalid_argument"
        )
    return value


def check_callback(name: str, value: Callable[[], object] | None) -> Callable[[], object] | None:
    """Return what is to be called, or None."""
    if value is not None and not callable(value):
        _wrong_type(name, value, "a callable or None")
    return value


def check_if_lock(value: tuple[str, int] | None) -> tuple[str, int] | None:
    """Return the name and the token of a lock, or None."""
    if value is None:
        return None
    if not isinstance(value, tuple) or len(value) != 2:
        _wrong_type("if_lock", value, "a tuple of a lock's name and its token")
    name, token = value
    return check_text("if_lock", name), check_number("if_lock", token, 1, REVISION_MAX)


def check_lease(value: object, name: str = "lease") -> str:
    """Return the id of a lease, an argument called `name`."""
    lease = check_text(name, value)
    if not (lease.isascii() and lease.isdigit() and len(lease) <= LEASE_MAX_DIGITS):
        problem = f"{name} must be the id of a lease, a number as text, not {lease[:80]!r}"
        raise InvalidRequestError(problem, code="invalid_argument")
    return lease


def check_optional_number(name: str, value: object, low: int, high: int) -> int | None:
    """Return a whole number from `low` to `high`, or None."""
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        _wrong_type(name, value, "int or None")
    return check_number(name, value, low, high)


def check_timeout(value: object) -> int | None:
    """Return a time-out in milliseconds, or None for the client's own."""
    return check_optional_number("timeout_ms", value, 1, MILLISECONDS_MAX)


def check_flag(name: str, value: object) -> bool:
    """Return True or False."""
    if not isinstance(value, bool):
        _wrong_type(name, value, "bool")
    return value


def check_ack(value: object) -> str:
    """Return "all" or "local"."""
    return _check_word("ack", value, get_args(Ack))


def check_consistency(value: object) -> str:
    """Return "linearizable", "confirmed" or "stale"."""
    return _check_word("consistency", value, get_args(Consistency))


def check_endpoints(value: object) -> tuple[str, ...]:
    """Return the endpoints, one or several."""
    if isinstance(value, str):
        return (value,)
    if isinstance(value, bytes | Mapping) or not isinstance(value, Iterable):
        _wrong_type("endpoints", value, "str or several str")
    endpoints = tuple(value)
    for endpoint in endpoints:
        if not isinstance(endpoint, str):
            _wrong_type("each of endpoints", endpoint, "str")
    return endpoints


def check_node(name: str, value: object) -> str:
    """Return a node's id."""
    node = check_text(name, value)
    if not node:
        raise InvalidRequestError(f"{name} must name a node", code="invalid_argument")
    return node


def check_idempotency_key(value: object) -> str:
    """Return an idempotency key, "" for one that is to be drawn."""
    key = check_text("idempotency_key", value)
    if not key.isascii() or not key.isprintable() or '"' in key or "\\" in key or len(key) > 255:
        problem = (
            f"{key[:80]!r} is not an idempotency key: use 1 to 255 printable ASCII "
            "characters without quotes and backslashes"
        )
        raise InvalidRequestError(problem, code="invalid_idempotency_key")
    return key


def check_idempotency_after(key: object, value: object) -> int | None:
    """Return the revision that a write under `key` was first sent after, None if not given."""
    after = check_optional_number("idempotency_after", value, 0, AFTER_MAX)
    if after is not None and key == "":
        raise InvalidRequestError(
            "idempotency_after needs idempotency_key, both from the same write"
        )
    return after


class DrawnKey(str):
    """An idempotency key that was drawn for one call."""

    __slots__ = ()


def draw_key() -> DrawnKey:
    """Draw an idempotency key."""
    return DrawnKey(os.urandom(16).hex())


def _check_word(name: str, value: object, words: tuple[str, ...]) -> str:
    if not isinstance(value, str):
        _wrong_type(name, value, "str")
    if value not in words:
        raise InvalidRequestError(
            f"{name} must be {' or '.join(map(repr, words))}, not {value[:80]!r}",
            code="invalid_argument",
        )
    return value


def _wrong_type(name: str, value: object, wanted: str) -> NoReturn:
    raise TypeError(f"{name} must be {wanted}, not {type(value).__name__}")
