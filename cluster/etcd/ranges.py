"""Reads of keys and ranges: what etcd's range asks for, out of pages of this service's own.

A range of one page is one state. One of several pages is read in pages that are each of one state;
what has changed between them is taken from the changes of the range, so that the whole is of one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from cluster.api.params import MAX_KEY_SIZE_BYTES
from cluster.etcd.errors import (
    RESOURCE_EXHAUSTED,
    UNAVAILABLE,
    EtcdError,
    compacted,
    empty_key,
    future_revision,
    invalid,
)
from cluster.etcd.messages import RangeRequest
from cluster.services.txn import GetStep, ListStep
from datapath.execution.changes import Span
from datapath.keyspaces import KV

MAX_RANGE_KEYS = 100_000
"""How many keys one range may have to be read or counted whole."""
MAX_WHOLE_RANGE_BYTES = 16 * 1024 * 1024
"""Of keys and values of one range; one with a `limit` reads no more than it answers."""
PAGE_KEYS = 10_000
"""How many keys are asked for at once; a page also ends after a megabyte."""
CONSISTENT_ATTEMPTS = 5
"""How often a range of several pages is read again because something wrote meanwhile."""

_ZERO = b"\0"


class EtcdKey(NamedTuple):
    """A key as etcd shows it. `value` None: only keys were asked for."""

    key: bytes
    value: bytes | None
    mod_revision: int
    create_revision: int
    version: int
    lease: int


def key_bounds(key: bytes, range_end: bytes) -> tuple[bytes, bytes | None]:
    r"""Return start and end of the keys that are meant: one, a range, or all from `key` on.

    A range that ends before it begins has no keys. Raises EtcdError.
    """
    if not key:
        raise empty_key()
    start = _clipped(key)
    if not range_end:
        return start, start + _ZERO if start == key else start
    if range_end == _ZERO:
        return (b"" if key == _ZERO else start), None
    return start, max(start, _clipped(range_end))


def _clipped(bound: bytes) -> bytes:
    """Return a bound that a key can be compared with: no key is longer than MAX_KEY_SIZE_BYTES."""
    if len(bound) <= MAX_KEY_SIZE_BYTES:
        return bound
    return bound[:MAX_KEY_SIZE_BYTES] + _ZERO


def is_key(start: bytes, end: bytes | None) -> bool:
    """Whether these are the bounds of one key."""
    return end == start + _ZERO


def check_key_size(key: bytes) -> None:
    """Refuse to write a key that is too long. Raises EtcdError."""
    if len(key) > MAX_KEY_SIZE_BYTES:
        raise invalid(f"onecopy: the key has {len(key)} bytes; the limit is {MAX_KEY_SIZE_BYTES}")


def span_of(key: bytes, range_end: bytes) -> Span:
    """Return the keys that are watched. Raises EtcdError."""
    return Span(*key_bounds(key, range_end), KV)


def check_range(request: RangeRequest) -> None:
    """Refuse what etcd refuses before it reads. Raises EtcdError."""
    if not request.key:
        raise empty_key()
    if isinstance(request.sort_order, int) or isinstance(request.sort_target, int):
        raise invalid("etcdserver: invalid sort option")


def check_revision(asked: int, revision: int) -> None:
    """Refuse a read of another revision than the present one. Raises EtcdError."""
    if asked > revision:
        raise future_revision()
    if 0 < asked < revision:
        raise compacted()


def is_selective(request: RangeRequest) -> bool:
    """Whether all keys of the range have to be looked at, whatever the limit."""
    return (
        request.sort_order != "NONE"
        or request.min_mod_revision != 0
        or request.max_mod_revision != 0
        or request.min_create_revision != 0
        or request.max_create_revision != 0
    )


def range_step(request: RangeRequest) -> GetStep | ListStep:
    """Return the step of a transaction that reads what a range asks for."""
    start, end = key_bounds(request.key, request.range_end)
    if is_key(start, end):
        return GetStep(start)
    return ListStep(start, end, MAX_RANGE_KEYS, keys_only=needs_no_values(request))


def needs_no_values(request: RangeRequest) -> bool:
    """Whether the keys' values are neither answered nor sorted by."""
    return request.count_only or (request.keys_only and request.sort_target != "VALUE")


def items_of(step: GetStep | ListStep, result: Any) -> list[EtcdKey]:
    """Return the keys that such a step has found. Raises EtcdError if there are too many."""
    if isinstance(step, GetStep):
        return [] if result is None else [EtcdKey(step.key, *result)]
    items, following = result
    if following is not None:
        raise too_large()
    return [EtcdKey(*item) for item in items]


def too_large() -> EtcdError:
    """Make the refusal of a range that is too large to be read at once."""
    return EtcdError(
        RESOURCE_EXHAUSTED,
        f"onecopy: the range has more than {MAX_RANGE_KEYS} keys or {MAX_WHOLE_RANGE_BYTES} bytes: "
        "read it in parts, with `limit` and without sorting",
    )


def changed_meanwhile() -> EtcdError:
    """Make the refusal of a range of several pages that never stood still."""
    return EtcdError(
        UNAVAILABLE,
        "onecopy: the range is larger than a megabyte, and was written again and again while it "
        "was read: read it in parts, with `limit`",
    )


class FoundRange(NamedTuple):
    """What is answered of a range: its keys, how many there are in all, whether more follow."""

    kvs: Sequence[EtcdKey]
    total: int
    more: bool


def select(
    request: RangeRequest, items: Sequence[EtcdKey], total: int, *, more: bool
) -> FoundRange:
    """Return of the keys of a range those that are asked for, as etcd chooses and orders them.

    `total` is how many keys the range has; `more`: `items` lacks the last ones.
    """
    if request.count_only:
        return FoundRange((), total, more=False)
    if request.limit > 0 and not is_selective(request):
        items = items[: request.limit + 1]  # as etcd: what is sorted without an order are these
    kept = [kv for kv in items if _is_chosen(request, kv)]
    order, target = request.sort_order, str(request.sort_target)
    if target != "KEY" and order == "NONE":
        order = "ASCEND"
    if order == "DESCEND" or (order == "ASCEND" and target != "KEY"):
        kept.sort(key=_SORT_KEYS[target], reverse=order == "DESCEND")
    if request.keys_only:
        kept = [kv._replace(value=None) for kv in kept]
    if 0 < request.limit < len(kept):
        return FoundRange(kept[: request.limit], total, more=True)
    return FoundRange(kept, total, more=more)


def _is_chosen(request: RangeRequest, kv: EtcdKey) -> bool:
    return (
        (not request.max_mod_revision or kv.mod_revision <= request.max_mod_revision)
        and (not request.min_mod_revision or kv.mod_revision >= request.min_mod_revision)
        and (not request.max_create_revision or kv.create_revision <= request.max_create_revision)
        and (not request.min_create_revision or kv.create_revision >= request.min_create_revision)
    )


_SORT_KEYS: dict[str, Callable[[EtcdKey], Any]] = {
    "KEY": lambda kv: kv.key,
    "VERSION": lambda kv: kv.version,
    "CREATE": lambda kv: kv.create_revision,
    "MOD": lambda kv: kv.mod_revision,
    "VALUE": lambda kv: kv.value or b"",
}
