"""What the client's calls return: frozen structs, decoded from the API's answers."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec


class PutResult(msgspec.Struct, frozen=True, kw_only=True):
    """A write that was acknowledged.

    `revision` is the key's new revision; `copies` how many replicas hold it durably; `created`
    whether the key was new. `idempotency_key` is what the write was sent under.
    """

    revision: int
    epoch: int
    copies: int
    created: bool = False
    idempotency_key: str = ""


class DeleteResult(msgspec.Struct, frozen=True, kw_only=True):
    """A removal that was acknowledged; `deleted` is False where there was no such key."""

    revision: int
    deleted: bool
    epoch: int = 0
    copies: int = 0
    idempotency_key: str = ""


class DeleteRangeResult(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a range that was removed; `cursor` asks for the next one, None: nothing is left."""

    revision: int
    deleted: int
    cursor: str | None = None
    epoch: int = 0
    copies: int = 0
    idempotency_key: str = ""


class GetResult(msgspec.Struct, frozen=True, kw_only=True):
    """A key's value and the revision that wrote it; `node` answered, in `epoch`.

    `create_revision` is of the write that created the key, `version` how often it was written since
    then, `lease` the client lease that it is attached to ("": none).
    """

    key: str
    value: bytes
    revision: int
    create_revision: int = 0
    version: int = 0
    lease: str = ""
    node: str = ""
    epoch: int = 0


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """One row of a listing; `value` is b"" where only keys were asked for. See `GetResult`."""

    key: str
    revision: int
    value: bytes = b""
    create_revision: int = 0
    version: int = 0
    lease: str = ""


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """One page of a listing: the state at `revision`. `cursor` asks for the next; None: the end."""

    items: tuple[Item, ...]
    revision: int
    cursor: str | None = None


class TxnPutResult(msgspec.Struct, frozen=True):
    """What a put in a transaction did: whether the key was new."""

    created: bool


class TxnDeleteResult(msgspec.Struct, frozen=True):
    """What a delete in a transaction did: how many keys were there."""

    deleted: int


TxnOperationResult = TxnPutResult | TxnDeleteResult | GetResult | Page | None
"""Of a put, a delete, a get (None: no such key), a list."""


@dataclass(frozen=True, kw_only=True)  # msgspec knows no union of structs without tags
class TxnResult:
    """A transaction that was carried out: its first branch if it `succeeded`, else the other.

    `revision` is that of all its changes; `results` has one for each operation, in order.
    """

    succeeded: bool
    revision: int
    epoch: int
    copies: int
    results: tuple[TxnOperationResult, ...]
    idempotency_key: str = ""


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """What a revision has done to a key: written `value`, or, where that is None, removed it.

    `reason` says why it was removed: "deleted" by a request, "expired" with its lease.
    """

    key: str
    revision: int
    text: str | None = None
    encoded: bytes | None = msgspec.field(default=None, name="value")
    reason: str = ""
    create_revision: int = 0
    version: int = 0
    lease: str = ""

    @property
    def value(self) -> bytes | None:
        """What was written; None: the key was removed."""
        return self.encoded if self.text is None else self.text.encode()

    @property
    def deleted(self) -> bool:
        """Whether the key was removed."""
        return self.text is None and self.encoded is None


class WatchEvent(msgspec.Struct, frozen=True, kw_only=True):
    """All that one revision has changed of what is watched."""

    revision: int
    changes: tuple[Change, ...]


class Leader(msgspec.Struct, frozen=True, kw_only=True):
    """Who leads an election, or holds a lock: `value` is what it says of itself.

    `waiting`: how many wait; None where it is not known, in events.
    """

    token: int
    value: str
    lease: str
    waiting: int | None = None


class LeaderEvent(msgspec.Struct, frozen=True, kw_only=True):
    """Who leads an election from a revision on; `leader` None: nobody."""

    revision: int
    leader: Leader | None


class LeaseInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A client lease: its TTL, what is left of it, and the keys and locks that hang on it."""

    lease: str
    ttl_ms: int
    left_ms: int
    keys: tuple[str, ...]
    locks: tuple[str, ...]


class ListedLease(msgspec.Struct, frozen=True, kw_only=True):
    """A lease of a listing: `keys` says how many hang on it."""

    lease: str
    ttl_ms: int
    keys: int


class RevokeResult(msgspec.Struct, frozen=True, kw_only=True):
    """A lease has ended; `deleted` keys went with it."""

    lease: str
    deleted: int
    revision: int
    epoch: int
    copies: int


class ViewSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The view after a handover or a removal."""

    epoch: int
    version: int
    primary: str
    in_sync: tuple[str, ...]


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """An error's body, application/problem+json (RFC 9457); `outcome` is there for writes.

    `oldest`, of "revision_compacted": the smallest revision after which all changes are kept.
    `group`, of "wrong_group": the group that owns the keys; `revision`: one that it had committed.
    """

    status: int = 0
    code: str = ""
    title: str = ""
    detail: str = ""
    outcome: str = ""
    oldest: int = 0
    group: str = ""
    revision: int | None = None


class TokenInfo(msgspec.Struct, frozen=True):
    """A token, without what proves it. `revision`: at which it was made."""

    id: str
    role: str
    note: str
    revision: int


class NewTokenInfo(msgspec.Struct, frozen=True):
    """A token that was just made: `token` is its text, which is told this once."""

    id: str
    token: str
    role: str


class RoleRights(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a role may do: prefixes of keys, and of names of locks; names of services."""

    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    watch: tuple[str, ...] = ()
    lock: tuple[str, ...] = ()
    call: tuple[str, ...] = ()
    admin: bool = False


class RoleInfo(msgspec.Struct, frozen=True):
    """A role, and its rights."""

    name: str
    rights: RoleRights
