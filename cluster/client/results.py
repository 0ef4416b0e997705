"""What the client's calls return: frozen structs, decoded from the API's answers."""

from __future__ import annotations

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


class GetResult(msgspec.Struct, frozen=True, kw_only=True):
    """A key's value and the revision that wrote it; `node` answered, knowing of `epoch`.

    `create_revision` is of the write that created the key, `version` how often it was written since
    then, `lease` the client lease that it hangs on ("": none).
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


class ViewSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The view after a handover or a removal."""

    epoch: int
    version: int
    primary: str
    in_sync: tuple[str, ...]


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """An error's body, application/problem+json (RFC 9457); `outcome` is there for writes."""

    status: int = 0
    code: str = ""
    title: str = ""
    detail: str = ""
    outcome: str = ""
