"""Transactions as the client makes them: a builder, and its answer.

result = (
    client.txn()
    .if_("a", revision=42)
    .if_("b", exists=False)
    .put("a", "1").delete(prefix="tmp/").get("c")
    .else_().get("a")
    .commit()
)
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any, NamedTuple, Self

import msgspec
from msgspec import UNSET, UnsetType

from cluster.client.arguments import (
    PAGE_LIMIT_MAX,
    REVISION_MAX,
    check_flag,
    check_key,
    check_number,
    check_text,
    check_value,
)
from cluster.client.errors import InvalidRequestError
from cluster.client.exchange import FinalResponse, Request
from cluster.client.requests import decode_reply
from cluster.client.results import (
    GetResult,
    Item,
    Page,
    TxnDeleteResult,
    TxnOperationResult,
    TxnPutResult,
    TxnResult,
)
from datapath.operations import Ack

LIST_LIMIT = 100


class Comparing(NamedTuple):
    """A comparison other than equality: made by `ne`, `lt` and `gt`."""

    relation: str
    operand: object


def ne(operand: int | str | bytes) -> Comparing:
    """Compare in `if_`: not equal."""
    return Comparing("ne", operand)


def lt(operand: int | str | bytes) -> Comparing:
    """Compare in `if_`: less (values byte by byte)."""
    return Comparing("lt", operand)


def gt(operand: int | str | bytes) -> Comparing:
    """Compare in `if_`: greater (values byte by byte)."""
    return Comparing("gt", operand)


class TxnBuilder:
    """Conditions and two branches. Operations go to the first branch until `else_` is called.

    Wrong types and impossible values raise TypeError and InvalidRequestError at once, what only the
    cluster can judge (bounds, keys that are written twice) when it is committed.
    """

    def __init__(self) -> None:
        self._if: list[dict[str, object]] = []
        self._then: list[dict[str, object]] = []
        self._else: list[dict[str, object]] = []
        self._branch = self._then

    def if_(
        self,
        key: str,
        *,
        exists: bool | None = None,
        revision: int | Comparing | None = None,
        create_revision: int | Comparing | None = None,
        version: int | Comparing | None = None,
        value: bytes | str | Comparing | None = None,
        lease: str | Comparing | None = None,
    ) -> Self:
        """Require something of a key; all that is given here and elsewhere has to hold.

        Numbers and values are compared for equality, or as `ne`, `lt`, `gt` say. A key that is not
        there has revision and version 0, and no value that compares.
        """
        found: dict[str, object] = {}
        if exists is not None:
            found["exists"] = check_flag("exists", exists)
        for name, number in (
            ("revision", revision),
            ("create_revision", create_revision),
            ("version", version),
        ):
            if number is not None:
                found[name] = _compared(number, lambda given, name=name: _number(name, given))
        if value is not None:
            found["value"] = _compared(value, check_value)
        if lease is not None:
            found["lease"] = _compared(lease, lambda given: check_text("lease", given))
        if not found:
            raise InvalidRequestError(
                "if_ needs something to compare: exists, revision, value, …",
                code="invalid_argument",
            )
        self._if.append({"key": check_key(key), **found})
        return self

    def if_lock(self, name: str, token: int) -> Self:
        """Require that the lock `name` is held under `token`."""
        checked = check_number("token", token, 1, REVISION_MAX)
        self._if.append({"lock": check_key(name), "token": checked})
        return self

    def put(self, key: str, value: bytes | str, *, lease: str = "") -> Self:
        """Write a value (text as UTF-8). Its result is a TxnPutResult.

        `lease`: the id of a lease that the key hangs on from now on (`AsyncLease.id`).
        """
        fields: dict[str, object] = {"key": check_key(key), "value": check_value(value)}
        if check_text("lease", lease):
            fields["lease"] = lease
        return self._add("put", fields)

    def delete(self, key: str = "", *, prefix: str = "", start: str = "", end: str = "") -> Self:
        """Remove a key, or a range as `AsyncClient.delete_range`. Its result: TxnDeleteResult."""
        bounds = _bounds(prefix, start, end)
        if bool(key) == bool(bounds):
            raise InvalidRequestError(
                "a key is needed, or a prefix, start or end, not empty", code="invalid_argument"
            )
        return self._add("delete", bounds or {"key": check_key(key)})

    def get(self, key: str) -> Self:
        """Read a key. Its result is a `GetResult`, or None if there is no such key."""
        return self._add("get", {"key": check_key(key)})

    def list(
        self,
        prefix: str = "",
        *,
        start: str = "",
        end: str = "",
        limit: int = LIST_LIMIT,
        keys_only: bool = False,
    ) -> Self:
        """Read keys in order. Its result is a Page; `AsyncClient.page` goes on with its cursor."""
        options = {
            "limit": check_number("limit", limit, 1, PAGE_LIMIT_MAX),
            "keys_only": check_flag("keys_only", keys_only),
        }
        return self._add("list", {**_bounds(prefix, start, end), **options})

    def else_(self) -> Self:
        """Let what follows be carried out if a condition does not hold."""
        if self._branch is self._else:
            raise InvalidRequestError("else_ was called already", code="invalid_argument")
        self._branch = self._else
        return self

    def _add(self, name: str, fields: dict[str, object]) -> Self:
        self._branch.append({name: fields})
        return self

    @property
    def read_only(self) -> bool:
        """Whether it changes nothing, on either branch."""
        return not any({"put", "delete"} & step.keys() for step in (*self._then, *self._else))

    def document(self) -> bytes:
        """Return the transaction as JSON, as POST /v1/txn takes it."""
        return msgspec.json.encode({"if": self._if, "then": self._then, "else": self._else})


class AsyncTxnBuilder(TxnBuilder):
    """A transaction of an `AsyncClient`."""

    def __init__(self, transact: Callable[..., Awaitable[TxnResult]]) -> None:
        super().__init__()
        self._transact = transact

    async def commit(
        self,
        *,
        ack: Ack = "all",
        min_copies: int = 0,
        idempotency_key: str = "",
        idempotency_after: int | None = None,
        timeout_ms: int | None = None,
    ) -> TxnResult:
        """Carry it out. Options and errors as for `AsyncClient.put`."""
        return await self._transact(
            self.document(),
            read_only=self.read_only,
            ack=ack,
            min_copies=min_copies,
            idempotency_key=idempotency_key,
            idempotency_after=idempotency_after,
            timeout_ms=timeout_ms,
        )


class SyncTxnBuilder(TxnBuilder):
    """A transaction of a `Client`."""

    def __init__(self, transact: Callable[..., TxnResult]) -> None:
        super().__init__()
        self._transact = transact

    def commit(
        self,
        *,
        ack: Ack = "all",
        min_copies: int = 0,
        idempotency_key: str = "",
        idempotency_after: int | None = None,
        timeout_ms: int | None = None,
    ) -> TxnResult:
        """Carry it out. Options and errors as for `AsyncClient.put`."""
        return self._transact(
            self.document(),
            read_only=self.read_only,
            ack=ack,
            min_copies=min_copies,
            idempotency_key=idempotency_key,
            idempotency_after=idempotency_after,
            timeout_ms=timeout_ms,
        )


def _number(name: str, given: object) -> int:
    return check_number(name, given, 0, REVISION_MAX)


def _compared(given: object, check: Any) -> object:
    if isinstance(given, Comparing):
        return {given.relation: check(given.operand)}
    return check(given)


def _bounds(prefix: str, start: str, end: str) -> dict[str, object]:
    named = (("prefix", prefix), ("start", start), ("end", end))
    return {name: text for name, text in named if check_text(name, text)}


# --- the answer ---


class _Key(msgspec.Struct, frozen=True, kw_only=True):
    key: str
    text: str | UnsetType = UNSET
    value: bytes = b""
    revision: int
    create_revision: int = 0
    version: int = 0
    lease: str = ""

    def fields(self) -> dict[str, Any]:
        return {
            "key": self.key,
            "value": self.value if self.text is UNSET else self.text.encode(),
            "revision": self.revision,
            "create_revision": self.create_revision,
            "version": self.version,
            "lease": self.lease,
        }


class _Listed(msgspec.Struct, frozen=True):
    items: tuple[_Key, ...]
    cursor: str | None


class _Result(msgspec.Struct, frozen=True):
    put: TxnPutResult | UnsetType = UNSET
    delete: TxnDeleteResult | UnsetType = UNSET
    get: _Key | UnsetType | None = UNSET
    list: _Listed | UnsetType = UNSET


class _Answer(msgspec.Struct, frozen=True):
    succeeded: bool
    revision: int
    epoch: int
    copies: int
    results: tuple[_Result, ...]


def decode_txn_reply(call: Request, reply: FinalResponse) -> TxnResult:
    """Return the result of a transaction. Raises as `decode_reply`."""
    answer = decode_reply(call, reply, _Answer)
    node = reply.headers.get("Onecopy-Node", "")
    return TxnResult(
        succeeded=answer.succeeded,
        revision=answer.revision,
        epoch=answer.epoch,
        copies=answer.copies,
        results=tuple(_results(answer, node)),
        idempotency_key=call.key,
    )


def _results(answer: _Answer, node: str) -> Iterator[TxnOperationResult]:
    for result in answer.results:
        if result.put is not UNSET:
            yield result.put
        elif result.delete is not UNSET:
            yield result.delete
        elif result.list is not UNSET:
            items = tuple(Item(**item.fields()) for item in result.list.items)
            yield Page(items=items, revision=answer.revision, cursor=result.list.cursor)
        elif result.get is None or result.get is UNSET:
            yield None
        else:
            yield GetResult(**result.get.fields(), node=node, epoch=answer.epoch)
