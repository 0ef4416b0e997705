"""The Python client: `Client` for asyncio, `SyncClient` for everyone else.

    async with Client(["http://127.0.0.1:8101", "http://127.0.0.1:8102"]) as client:
        await client.put("hello", b"world")
        entry = await client.get("hello")

Any node takes any request; the client prefers the primary, learns the other nodes' addresses and
moves on when one fails. Each write has one idempotency key for all its tries. Errors are in
`cluster.client_errors`.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterable
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from cluster.client_errors import (
    ClientError,
    InvalidRequestError,
    NotAppliedError,
    PreconditionFailedError,
    StorageFullError,
    UnavailableError,
    UnknownOutcomeError,
)
from cluster.client_sync import SyncClient
from cluster.client_transport import STATUS, Call, Reply, Transport, decode_problem, raise_for
from cluster.client_types import DeleteResult, Entry, Item, Page, PutResult, ViewSummary
from datapath.operations import Ack, ClusterStatus, Consistency, Digest

__all__ = [
    "DEFAULT_ENDPOINTS",
    "Client",
    "ClientError",
    "ClusterStatus",
    "DeleteResult",
    "Digest",
    "Entry",
    "InvalidRequestError",
    "Item",
    "NotAppliedError",
    "Page",
    "PreconditionFailedError",
    "PutResult",
    "StorageFullError",
    "SyncClient",
    "UnavailableError",
    "UnknownOutcomeError",
    "ViewSummary",
]

DEFAULT_ENDPOINTS = ("http://127.0.0.1:8101", "http://127.0.0.1:8102", "http://127.0.0.1:8103")
KEY_MAX_BYTES = 480
PAGE_SIZE = 500

T = TypeVar("T")


class Client:
    """Talks to one cluster. Use it as an async context manager, or call `close`."""

    def __init__(
        self,
        endpoints: str | Iterable[str] = DEFAULT_ENDPOINTS,
        *,
        timeout_ms: int = 10_000,
        max_connections: int = 64,
    ) -> None:
        """Name at least one node ("http://host:port"); `timeout_ms` bounds each call, retries in.

        Nothing is sent yet. Raises ValueError for an endpoint that is none.
        """
        given = [endpoints] if isinstance(endpoints, str) else endpoints
        self._transport = Transport(given, timeout_ms=timeout_ms, max_connections=max_connections)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._transport.close()

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The nodes known by now."""
        return self._transport.endpoints.urls

    @property
    def retries(self) -> int:
        """How many tries beyond the first there were, over all calls."""
        return self._transport.retries

    async def put(
        self,
        key: str,
        value: bytes | str,
        *,
        if_revision: int | None = None,
        if_absent: bool = False,
        ack: Ack = "all",
        min_copies: int = 0,
        idempotency_key: str = "",
        timeout_ms: int | None = None,
    ) -> PutResult:
        """Write `value` (text as UTF-8) under `key`.

        `if_revision`: only if the key is at that revision; `if_absent`: only if there is none.
        `ack="local"` answers when the primary alone has it; `min_copies` wants at least so many.
        Raises PreconditionFailedError, UnknownOutcomeError and the rest of the tree.
        """
        headers = _condition(if_revision, if_absent=if_absent)
        target = kv_target(key, ack=ack, min_copies=min_copies)
        body = value.encode() if isinstance(value, str) else value
        call = write_call("PUT", target, headers, body, idempotency_key)
        reply = await self._transport.call(call, timeout_ms)
        result = _decode(call, reply, PutResult, ok=(200, 201))
        return msgspec.structs.replace(
            result, created=reply.status == 201, idempotency_key=call.key
        )

    async def get(
        self,
        key: str,
        *,
        consistency: Consistency = "linearizable",
        max_staleness_ms: int | None = None,
        timeout_ms: int | None = None,
    ) -> Entry | None:
        """Return the key's value and revision, or None where there is no such key.

        "stale" reads whatever the asked node has, no older than `max_staleness_ms` if given.
        """
        target = kv_target(key, **_read_options(consistency, max_staleness_ms))
        call = Call("GET", target)
        reply = await self._transport.call(call, timeout_ms)
        if reply.status == 404 and decode_problem(404, reply.body).code == "key_not_found":
            return None
        if reply.status != 200:
            raise_for(call, reply)
        return Entry(
            key=key,
            value=reply.body,
            revision=int(reply.headers.get("ETag", '"0"').strip('"')),
            node=reply.headers.get("Onecopy-Node", ""),
            epoch=int(reply.headers.get("Onecopy-Epoch", "0")),
        )

    async def delete(
        self,
        key: str,
        *,
        if_revision: int | None = None,
        ack: Ack = "all",
        min_copies: int = 0,
        idempotency_key: str = "",
        timeout_ms: int | None = None,
    ) -> DeleteResult:
        """Remove `key`; `deleted` says whether it was there. Options and errors as for `put`."""
        headers = _condition(if_revision)
        target = kv_target(key, ack=ack, min_copies=min_copies)
        call = write_call("DELETE", target, headers, None, idempotency_key)
        reply = await self._transport.call(call, timeout_ms)
        result = _decode(call, reply, DeleteResult)
        return msgspec.structs.replace(result, idempotency_key=call.key)

    async def page(
        self,
        prefix: str = "",
        *,
        start: str = "",
        end: str = "",
        limit: int = PAGE_SIZE,
        cursor: str | None = None,
        keys_only: bool = False,
        consistency: Consistency = "linearizable",
        max_staleness_ms: int | None = None,
        timeout_ms: int | None = None,
    ) -> Page:
        """Return one page: keys with `prefix`, from `start` up to but without `end`."""
        options: dict[str, object] = {"prefix": prefix, "start": start, "end": end}
        options |= {"limit": limit, "cursor": cursor, "keys_only": "true" if keys_only else None}
        options |= _read_options(consistency, max_staleness_ms)
        call = Call("GET", "/v1/kv" + _query(options))
        return _decode(call, await self._transport.call(call, timeout_ms), Page)

    async def list(
        self,
        prefix: str = "",
        *,
        start: str = "",
        end: str = "",
        keys_only: bool = False,
        consistency: Consistency = "linearizable",
        page_size: int = PAGE_SIZE,
    ) -> AsyncIterator[Item]:
        """Iterate over all keys in order, page by page.

        Each page is one consistent state; writes may fall between two pages.
        """
        cursor: str | None = None
        while True:
            page = await self.page(
                prefix,
                start=start,
                end=end,
                limit=page_size,
                cursor=cursor,
                keys_only=keys_only,
                consistency=consistency,
            )
            for item in page.items:
                yield item
            cursor = page.cursor
            if not cursor:
                return

    async def status(self, *, timeout_ms: int | None = None) -> ClusterStatus:
        """Return the cluster as its primary sees it."""
        reply = await self._transport.call(STATUS, timeout_ms)
        status = _decode(STATUS, reply, ClusterStatus)
        self._transport.learn(status)
        return status

    async def digest(self, node: str, *, timeout_ms: int | None = None) -> Digest:
        """Return the checksum of that node's own store, scanned now (an id, or a base URL)."""
        url = node if "://" in node else self._transport.endpoints.url_of(node)
        if url is None:
            await self.status(timeout_ms=timeout_ms)
            url = self._transport.endpoints.url_of(node)
        if url is None:
            raise InvalidRequestError(f"there is no node {node!r}", code="unknown_node")
        reply = await self._transport.ask(url, "/v1/digest", timeout_ms)
        return _decode(Call("GET", "/v1/digest"), reply, Digest)

    async def handover(self, to: str, *, timeout_ms: int | None = None) -> ViewSummary:
        """Make the in-sync replica `to` the primary. No waiting request fails."""
        body = msgspec.json.encode({"to": to})
        headers = {"Content-Type": "application/json"}
        call = Call("POST", "/v1/cluster/handover", headers, body, writes=True, retry_unknown=False)
        try:
            return _decode(call, await self._transport.call(call, timeout_ms), ViewSummary)
        except UnknownOutcomeError:
            view = await self.status(timeout_ms=timeout_ms)
            if view.primary != to:
                raise
            return ViewSummary(
                epoch=view.epoch, version=view.version, primary=to, in_sync=view.in_sync
            )

    async def move(
        self,
        node: str,
        *,
        client: str = "",
        peer: str = "",
        raft: str = "",
        timeout_ms: int | None = None,
    ) -> ViewSummary:
        """Have the cluster agree on other addresses ("host:port") of a node; "" leaves one.

        The node itself is to be started with them: its configuration file has to say the same.
        """
        given = {"client": client, "peer": peer, "raft": raft}
        body = msgspec.json.encode({name: text for name, text in given.items() if text})
        target = f"/v1/cluster/nodes/{quote(node, safe='')}"
        headers = {"Content-Type": "application/json"}
        call = Call("PATCH", target, headers, body, writes=True)  # twice is as good as once
        return _decode(call, await self._transport.call(call, timeout_ms), ViewSummary)

    async def remove(
        self, node: str, *, force: bool = False, timeout_ms: int | None = None
    ) -> ViewSummary:
        """Take a node out of the cluster for good; its id is not to be used again.

        Refused (`code` "unsafe_removal", …) where it may cost acknowledged writes or the majority:
        the error says what to do first. `force` removes it all the same.
        """
        target = f"/v1/cluster/nodes/{quote(node, safe='')}"
        if force:
            target += f"?force={quote(node, safe='')}"
        call = Call("DELETE", target, writes=True)  # to remove a node twice is to remove it
        return _decode(call, await self._transport.call(call, timeout_ms), ViewSummary)


def kv_target(key: str, **options: object) -> str:
    """Return the encoded path and query of a key. Raises InvalidRequestError for what is no key."""
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        raise InvalidRequestError("a key must be text that UTF-8 can carry") from None
    if not 1 <= size <= KEY_MAX_BYTES:
        problem = f"a key has 1 to {KEY_MAX_BYTES} bytes of UTF-8; this one has {size}"
        raise InvalidRequestError(problem, code="invalid_key")
    return f"/v1/kv/{quote(key, safe='')}{_query(options)}"


def write_call(
    method: str, target: str, headers: dict[str, str], body: bytes | None, key: str
) -> Call:
    """Return a write under an idempotency key, drawn at random where none is given."""
    key = key or os.urandom(16).hex()
    if not key.isascii() or not key.isprintable() or '"' in key or "\\" in key:
        problem = f"{key!r} is no idempotency key: printable ASCII without quotes and backslashes"
        raise InvalidRequestError(problem, code="invalid_idempotency_key")
    headers["Idempotency-Key"] = f'"{key}"'
    return Call(method, target, headers, body, key, writes=True)


def _condition(if_revision: int | None, *, if_absent: bool = False) -> dict[str, str]:
    if if_revision is not None and if_absent:
        raise InvalidRequestError("if_revision and if_absent exclude each other")
    if if_absent:
        return {"If-None-Match": "*"}
    return {} if if_revision is None else {"If-Match": f'"{if_revision}"'}


def _read_options(consistency: Consistency, max_staleness_ms: int | None) -> dict[str, Any]:
    return {
        "consistency": None if consistency == "linearizable" else consistency,
        "max_staleness_ms": max_staleness_ms,
    }


def _query(options: dict[str, object]) -> str:
    defaults = (None, "", "all")
    chosen = {
        name: value
        for name, value in options.items()
        if value not in defaults and not (name == "min_copies" and value == 0)
    }
    return f"?{urlencode(chosen, quote_via=quote)}" if chosen else ""


def _decode(call: Call, reply: Reply, kind: type[T], ok: tuple[int, ...] = (200,)) -> T:
    if reply.status not in ok:
        raise_for(call, reply)
    try:
        return msgspec.json.decode(reply.body, type=kind)
    except msgspec.DecodeError as error:
        # Whatever answered "OK" is no onecopy node: nothing can be concluded from it.
        kind_of_error = UnknownOutcomeError if call.writes else UnavailableError
        raise kind_of_error(f"the answer is not onecopy's: {error}", code="bad_answer") from error
