"""What a role may do: its rights, what an operation needs, and whether that fits. Pure.

Rule A1: nothing is read or changed before the right is checked. `may` is that check; `needs_of`
says which rights a call needs, by the keys, locks and services that it names. What it does not know
needs the right `admin`: a new operation is closed until it is listed here.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal, NamedTuple, get_args

import msgspec
from msgspec import Meta

from cluster.services.txn import (
    Comparison,
    DeleteRangeStep,
    DeleteStep,
    GetStep,
    ListStep,
    LockComparison,
    PutStep,
    RefuseStep,
    all_comparisons,
    all_steps,
    decode_txn,
)
from datapath.keyspaces import covers
from datapath.operations import STORE

Right = Literal["status", "read", "write", "watch", "lock", "lease", "call", "admin"]
"""`status`: any caller that is known. `lease`: to hold leases; who may write or lock somewhere.
The others stand in roles."""
RIGHTS: tuple[Right, ...] = get_args(Right)

ADMIN_ROLE = "admin"
"""The name of the role that is always there, and may do everything."""
ROLE_NAME_PATTERN = "[a-z][a-z0-9_-]{0,30}"
"""What roles may be called."""
ANY_SERVICE = "*"
MAX_PREFIXES = 100
"""Of one right in one role."""
MAX_PREFIX_BYTES = 480

_Prefix = Annotated[str, Meta(max_length=MAX_PREFIX_BYTES)]
_Prefixes = Annotated[tuple[_Prefix, ...], Meta(max_length=MAX_PREFIXES)]
_Names = Annotated[tuple[Annotated[str, Meta(max_length=31)], ...], Meta(max_length=MAX_PREFIXES)]


class Role(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What those who have the role may do. An empty prefix is everything."""

    read: Annotated[_Prefixes, Meta(description="Prefixes of keys that may be read.")] = ()
    write: Annotated[_Prefixes, Meta(description="Of keys that may be written and deleted.")] = ()
    watch: Annotated[_Prefixes, Meta(description="Of keys that may be watched.")] = ()
    lock: Annotated[_Prefixes, Meta(description="Of names of locks and elections.")] = ()
    call: Annotated[_Names, Meta(description="Services that may be called; `*`: all.")] = ()
    admin: Annotated[bool, Meta(description="Everything, and changes of the cluster.")] = False


ADMIN = Role(admin=True)
ALL_BUT_ADMIN = Role(read=("",), write=("",), watch=("",), lock=("",), call=(ANY_SERVICE,))


class Need(NamedTuple):
    """A right that is needed for the keys or names with start <= name < end (None: no bound).

    `start` None: somewhere, wherever. Of `call`, `start` is the service's name.
    """

    right: Right
    start: bytes | None = None
    end: bytes | None = None


def may(role: Role, need: Need) -> bool:
    """A1: whether a role has the right that is needed."""
    if role.admin:
        return True
    match need.right:
        case "status":
            return True
        case "lease":
            return bool(role.write or role.lock)
        case "call":
            name = None if need.start is None else need.start.decode("utf-8", "replace")
            return bool(role.call) and (
                name is None or name in role.call or ANY_SERVICE in role.call
            )
        case "read" | "write" | "watch" | "lock":
            prefixes: tuple[str, ...] = getattr(role, need.right)
            if need.start is None:
                return bool(prefixes)
            return any(covers(prefix.encode(), need.start, need.end) for prefix in prefixes)
        case _:
            return False


def may_read_key(role: Role, args: tuple[Any, ...]) -> bool:
    """A1: whether a role may read the one key that a `get` names, as `may` would say, in one step.

    False says nothing: `needs_of` and `may` decide then.
    """
    return len(args) == 1 and isinstance(args[0], bytes) and args[0].startswith(_encoded(role.read))


@functools.lru_cache(maxsize=1024)
def _encoded(prefixes: tuple[str, ...]) -> tuple[bytes, ...]:
    return tuple(prefix.encode() for prefix in prefixes)


def leaves_an_admin(holders: Iterable[str], roles: Mapping[str, Role]) -> bool:
    """Whether somebody could still change roles and tokens; `holders`: the role of each token."""
    return any(name == ADMIN_ROLE or roles.get(name, Role()).admin for name in holders)


def check_role(name: str, role: Role) -> str:
    """Return what is wrong with a role, in a sentence, or ""."""
    if not re.fullmatch(ROLE_NAME_PATTERN, name):
        return f"a role is called by 1 to 31 of a-z, 0-9, '_' and '-', not {name[:50]!r}"
    for right in ("read", "write", "watch", "lock"):
        for prefix in getattr(role, right):
            if len(prefix.encode()) > MAX_PREFIX_BYTES:
                return f"`{right}`: a prefix has up to {MAX_PREFIX_BYTES} bytes"
    return ""


# --- what calls need


def _one(right: Right, name: bytes) -> Need:
    return Need(right, name, name + b"\0")


def _put(
    key: bytes, _value: bytes, if_revision: object = None, if_absent: bool = False, *_lease: int
) -> list[Need]:
    return _written(key, if_revision is not None or if_absent)


def _delete(key: bytes, if_revision: object = None) -> list[Need]:
    return _written(key, if_revision is not None)


def _written(key: bytes, is_compared: bool) -> list[Need]:
    """A condition on a key tells something about it: that is a read."""
    return [_one("write", key), *([_one("read", key)] if is_compared else ())]


def _range(right: Right) -> Callable[..., list[Need]]:
    return lambda start, end, *_: [Need(right, start, end)]


def _txn(request: bytes) -> list[Need]:
    txn = decode_txn(request)
    needs: list[Need] = []
    for part in (*all_comparisons(txn), *all_steps(txn)):
        match part:
            case LockComparison(name):
                needs.append(_one("lock", name))
            case Comparison(key, end=end) if part.is_range:
                needs.append(Need("read", key, end))
            case Comparison(key) | GetStep(key):
                needs.append(_one("read", key))
            case PutStep(key) | DeleteStep(key):
                needs.append(_one("write", key))
            case DeleteRangeStep(start, end):
                needs.append(Need("write", start, end))
            case ListStep(start, end):
                needs.append(Need("read", start, end))
            case RefuseStep():
                pass
            case _:
                needs.append(Need("admin"))
    return needs


def _permits(right: Right, start: bytes | None, end: bytes | None) -> list[Need]:
    return [Need(right if right in RIGHTS else "admin", start, end)]


def _named(right: Right) -> Callable[..., list[Need]]:
    return lambda name, *_: [_one(right, name)]


def _always(right: Right) -> Callable[..., list[Need]]:
    return lambda *_: [Need(right)]


_LEASES, _LOCKS, ACCESS = ":leases", ":locks", ":access"
"""The names of the services that are built in."""

_NEEDS: dict[tuple[str, str], Callable[..., list[Need]]] = {
    (STORE, "put"): _put,
    (STORE, "delete"): _delete,
    (STORE, "delete_range"): _range("write"),
    (STORE, "txn"): _txn,
    (STORE, "get"): _named("read"),
    (STORE, "range"): _range("read"),
    (_LEASES, "grant"): _always("lease"),
    (_LEASES, "keep_alive"): _always("lease"),
    (_LEASES, "look_up"): _always("lease"),
    (_LEASES, "revoke"): _always("lease"),
    (_LOCKS, "acquire"): _named("lock"),
    (_LOCKS, "release"): _named("lock"),
    (_LOCKS, "withdraw"): _always("lease"),  # to give up a place needs the lease alone
    (_LOCKS, "get"): _named("lock"),
    (_LOCKS, "list"): lambda *_: [Need("lock", b"", None)],
    (ACCESS, "permits"): _permits,
    (ACCESS, "role_of"): _always("status"),
    (ACCESS, "changed_at"): _always("status"),
}


def needs_of(
    service: str, method: str, args: tuple[Any, ...], if_lock: tuple[bytes, int] | None = None
) -> list[Need]:
    """Return what a call needs, all of it."""
    find = _NEEDS.get((service, method))
    if find is not None:
        try:
            needs = find(*args)
        except (TypeError, ValueError, AttributeError, msgspec.MsgspecError):
            return [Need("admin")]  # nothing that the API makes
    elif service and not service.startswith(":") and method.isidentifier():
        needs = [Need("call", service.encode())]
    else:
        return [Need("admin")]
    if if_lock is not None:
        needs.append(_one("lock", if_lock[0]))
    return needs


def said(need: Need) -> str:
    """Return a right that is needed in words, to end a sentence with."""
    if need.start is None or need.right in {"status", "lease", "admin"}:
        return f"the right `{need.right}`"
    name = need.start.decode("utf-8", "backslashreplace")
    if need.right == "call":
        return f"the right `call` on service {name!r}"
    what = "lock" if need.right == "lock" else "key"
    if need.end == need.start + b"\0":
        return f"the right `{need.right}` on {what} {name[:100]!r}"
    return f"the right `{need.right}` on all {what}s of the range that begins with {name[:100]!r}"


encode_role = msgspec.json.Encoder().encode
_decoder = msgspec.json.Decoder(Role)


@functools.lru_cache(maxsize=1024)
def decode_role(stored: bytes) -> Role:
    """Return a role as it is stored."""
    return _decoder.decode(stored)
