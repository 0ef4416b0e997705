"""The Python client: `AsyncClient` for asyncio, `Client` without.

    async with AsyncClient(["http://127.0.0.1:8101", "http://127.0.0.1:8102"]) as client:
        await client.put("hello", b"world")
        entry = await client.get("hello")

Any node accepts any request; the client prefers the primary, discovers the other nodes, and tries
another node when one fails. It uses one cluster: the first that answers. Each write has one
idempotency key for all its attempts. Errors are in `cluster.client.errors`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from types import TracebackType
from typing import Any, Self

import msgspec

from cluster.client.access_calls import AsyncAccessCalls
from cluster.client.arguments import (
    DEFAULT_PAGE_SIZE,
    MILLISECONDS_MAX,
    PAGE_LIMIT_MAX,
    check_consistency,
    check_endpoints,
    check_flag,
    check_group,
    check_number,
    check_text,
    check_timeout,
    check_token,
    check_value,
)
from cluster.client.endpoints import DEFAULT_ENDPOINTS
from cluster.client.errors import (
    InvalidRequestError,
)
from cluster.client.exchange import Request, decode_problem, raise_for
from cluster.client.group_routes import GroupRoutes
from cluster.client.lease_calls import AsyncLeaseCalls
from cluster.client.leasing import IfLock, lock_headers
from cluster.client.mirrors import AsyncMirror
from cluster.client.operator_calls import AsyncOperatorCalls
from cluster.client.requests import (
    ACCEPT_MSGPACK,
    JSON_HEADERS,
    condition_headers,
    decode_reply,
    kv_target,
    query_string,
    read_query,
    write_call,
    write_query,
)
from cluster.client.results import (
    DeleteRangeResult,
    DeleteResult,
    GetResult,
    Item,
    Page,
    PutResult,
    TxnResult,
)
from cluster.client.retries import Transport
from cluster.client.services import AsyncServiceCalls
from cluster.client.sessions import make_tls
from cluster.client.txn import AsyncTxnBuilder, decode_txn_reply
from cluster.client.watching import AsyncKeyWatch, watched
from cluster.groups.group_map import Group
from datapath.operations import Ack, Consistency


class AsyncClient(AsyncOperatorCalls, AsyncAccessCalls, AsyncLeaseCalls, AsyncServiceCalls):
    """A client of one cluster. Use it as an async context manager, or call `close`."""

    def __init__(
        self,
        endpoints: str | Iterable[str] = DEFAULT_ENDPOINTS,
        *,
        timeout_ms: int = 10_000,
        max_connections: int = 64,
        discover: bool = True,
        cluster_id: str = "",
        token: str = "",
        cacert: str = "",
        cert: str = "",
        key: str = "",
    ) -> None:
        """Name at least one node ("http://host:port"); `timeout_ms` bounds each call with retries.

        With `discover` the client finds the other nodes, if the named URLs are the addresses that
        the nodes advertise; without it, or behind a proxy, it uses only the named nodes.
        `cluster_id` is the cluster to use, "" for the first that answers. `token` says who asks,
        where the cluster has access control. `cacert` names the file of the authority by which
        nodes are recognised at https URLs (default: the system's), `cert` and `key` those of a
        certificate by which they recognise this client. Nothing is sent yet. Raises ValueError for
        an invalid endpoint or file, TypeError for wrong types.
        """
        given = check_endpoints(endpoints)
        files = (check_text("cacert", cacert), check_text("cert", cert), check_text("key", key))
        tls = make_tls(*files)
        if tls is not None and given == DEFAULT_ENDPOINTS:
            given = tuple(url.replace("http:", "https:") for url in given)
        try:
            options: dict[str, Any] = {
                "timeout_ms": check_number("timeout_ms", timeout_ms, 1, MILLISECONDS_MAX),
                "max_connections": check_number("max_connections", max_connections, 1, 65_536),
                "discover": check_flag("discover", discover),
                "token": check_token(token),
                "tls": tls,
            }
            home = Transport(given, cluster_id=check_text("cluster_id", cluster_id), **options)
        except InvalidRequestError as error:  # no request: here a ValueError is what Python has
            raise ValueError(error.detail) from None

        def make(group: Group) -> Transport:
            sent = home.sent_after
            return Transport(group.endpoints, group=group.id, sent_after=sent, **options)

        self._transport = home
        by_tls = tls is not None or all(url.startswith("https:") for url in home.endpoints.urls)
        self._routes = GroupRoutes(home, make, follows=discover, by_tls=by_tls)
        self._options = {
            "timeout_ms": timeout_ms, "max_connections": max_connections, "discover": discover,
            "token": token, "cacert": cacert, "cert": cert, "key": key,
        }  # fmt: skip
        self._others: dict[Group, AsyncClient] = {}

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
        """Close the connections. Calls that are under way end as what is known of them.

        Raises RuntimeError on another event loop than the one that the client belongs to.
        """
        for client in self._others.values():
            await client.close()
        await self._routes.close()

    async def of(self, name: str) -> AsyncClient:
        """Return the client of a key's group (of a prefix's, if it ends with "/"): of its nodes.

        For what names no key: services of users, tokens, the status. It is closed with this one;
        where there are no groups it is this one. Raises InvalidRequestError "spans_groups".
        """
        group = await self._routes.group_of(check_text("name", name))
        if group is None:
            return self
        if group not in self._others:
            self._others[group] = AsyncClient(group.endpoints, **self._options)  # type: ignore[arg-type]
        return self._others[group]

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The base URLs in use: those given, and those discovered."""
        return self._transport.endpoints.urls

    @property
    def cluster_id(self) -> str:
        """The id of the cluster, "" before the first answer."""
        return self._transport.cluster_id

    @property
    def revision(self) -> int | None:
        """The highest revision in any answer so far, None before the first."""
        return self._transport.revision

    @property
    def retries(self) -> int:
        """The number of retries, over all calls."""
        return self._transport.retries

    async def put(
        self,
        key: str,
        value: bytes | str,
        *,
        if_revision: int | None = None,
        if_absent: bool = False,
        if_lock: IfLock | None = None,
        lease: str = "",
        ack: Ack = "all",
        min_copies: int = 0,
        idempotency_key: str = "",
        idempotency_after: int | None = None,
        timeout_ms: int | None = None,
    ) -> PutResult:
        """Write `value` (text as UTF-8) under `key`.

        `if_revision`: only if the key is at that revision; `if_absent`: only if it does not exist;
        `if_lock`: only while that lock is held (`AsyncLock.condition`). `lease`: the id of a lease
        with which the key ends. `ack="local"` answers once the primary has it; `min_copies` is the
        minimum number of copies.
        `idempotency_key` and `idempotency_after` of an UnknownOutcomeError repeat that write.
        Raises PreconditionFailedError, UnknownOutcomeError and the rest of the tree.
        """
        headers = condition_headers(if_revision, if_absent=if_absent) | lock_headers(if_lock)
        query = write_query(ack, min_copies) | {"lease": check_text("lease", lease)}
        target = kv_target(key, query)
        body = check_value(value)
        call = write_call("PUT", target, headers, body, idempotency_key, idempotency_after)
        reply = await self._routes.near(key).call(call, check_timeout(timeout_ms))
        result = decode_reply(call, reply, PutResult, ok=(200, 201))
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
    ) -> GetResult | None:
        """Return the key's value and revision, or None if there is no such key.

        "stale" reads the asked node's own state, at most `max_staleness_ms` old if given.
        """
        target = kv_target(key, read_query(consistency, max_staleness_ms))
        call = Request("GET", target)
        reply = await self._routes.near(key).call(call, check_timeout(timeout_ms))
        if reply.status == 404 and decode_problem(404, reply.body).code == "key_not_found":
            return None
        if reply.status != 200:
            raise_for(call, reply)
        return GetResult(
            key=key,
            value=reply.body,
            revision=int(reply.headers.get("ETag", '"0"').strip('"')),
            create_revision=int(reply.headers.get("Onecopy-Create-Revision", "0")),
            version=int(reply.headers.get("Onecopy-Key-Version", "0")),
            lease=reply.headers.get("Onecopy-Lease", ""),
            node=reply.headers.get("Onecopy-Node", ""),
            epoch=int(reply.headers.get("Onecopy-Epoch", "0")),
        )

    async def delete(
        self,
        key: str,
        *,
        if_revision: int | None = None,
        if_lock: IfLock | None = None,
        ack: Ack = "all",
        min_copies: int = 0,
        idempotency_key: str = "",
        idempotency_after: int | None = None,
        timeout_ms: int | None = None,
    ) -> DeleteResult:
        """Remove `key`; `deleted` says whether it was there. Options and errors as for `put`."""
        headers = condition_headers(if_revision) | lock_headers(if_lock)
        target = kv_target(key, write_query(ack, min_copies))
        call = write_call("DELETE", target, headers, None, idempotency_key, idempotency_after)
        reply = await self._routes.near(key).call(call, check_timeout(timeout_ms))
        result = decode_reply(call, reply, DeleteResult)
        return msgspec.structs.replace(result, idempotency_key=call.key)

    async def delete_range(
        self,
        prefix: str = "",
        *,
        start: str = "",
        end: str = "",
        limit: int = PAGE_LIMIT_MAX,
        cursor: str | None = None,
        ack: Ack = "all",
        min_copies: int = 0,
        idempotency_key: str = "",
        idempotency_after: int | None = None,
        timeout_ms: int | None = None,
    ) -> DeleteRangeResult:
        """Remove the first keys, up to `limit`, with `prefix`, or from `start` up to but not `end`.

        All go at one revision. Where the result has a `cursor`, more are left: call again with it.
        One of `prefix`, `start`, `end` must be given, so that nothing deletes the whole store by
        accident.
        """
        bounds = {
            name: check_text(name, value)
            for name, value in (("prefix", prefix), ("start", start), ("end", end))
        }
        if not any(bounds.values()) and not cursor:
            raise InvalidRequestError(
                "prefix, start or end must be given, and not empty", code="invalid_argument"
            )
        options: dict[str, object] = {
            **bounds,
            "limit": check_number("limit", limit, 1, PAGE_LIMIT_MAX),
            "cursor": None if cursor is None else check_text("cursor", cursor),
            **write_query(ack, min_copies),
        }
        target = "/v1/kv" + query_string(options)
        call = write_call("DELETE", target, {}, None, idempotency_key, idempotency_after)
        reply = await self._transport.call(call, check_timeout(timeout_ms))
        result = decode_reply(call, reply, DeleteRangeResult)
        return msgspec.structs.replace(result, idempotency_key=call.key)

    def txn(self) -> AsyncTxnBuilder:
        """Begin a transaction: conditions, and operations that are carried out all or not at all.

        result = await (
            client.txn()
            .if_("job", version=3)
            .put("job", b"taken").delete(prefix="tmp/")
            .else_().get("job")
            .commit()
        )
        """
        return AsyncTxnBuilder(self.transact)

    async def transact(
        self,
        document: bytes | str,
        *,
        read_only: bool = False,
        ack: Ack = "all",
        min_copies: int = 0,
        idempotency_key: str = "",
        idempotency_after: int | None = None,
        timeout_ms: int | None = None,
    ) -> TxnResult:
        """Carry out a transaction given as JSON, as POST /v1/txn takes it. `txn` makes it for you.

        Options and errors as for `put`; a condition that does not hold is no error. `read_only`: it
        changes nothing on either branch, so that no idempotency key is sent, and none remembered.
        """
        target = "/v1/txn" + query_string(write_query(ack, min_copies))
        body = check_value(document, "document")
        headers = JSON_HEADERS | ACCEPT_MSGPACK
        if check_flag("read_only", read_only) and not idempotency_key:
            call = Request("POST", target, headers, body)
        else:
            call = write_call("POST", target, headers, body, idempotency_key, idempotency_after)
        reply = await self._transport.call(call, check_timeout(timeout_ms))
        return decode_txn_reply(call, reply)

    async def page(
        self,
        prefix: str = "",
        *,
        start: str = "",
        end: str = "",
        limit: int = DEFAULT_PAGE_SIZE,
        cursor: str | None = None,
        keys_only: bool = False,
        consistency: Consistency = "linearizable",
        max_staleness_ms: int | None = None,
        group: str = "",
        timeout_ms: int | None = None,
    ) -> Page:
        """Return one page: keys with `prefix`, from `start` up to but excluding `end`.

        `group`: only what this group holds of them; a range over several groups needs it.
        """
        options: dict[str, object] = {
            "prefix": check_text("prefix", prefix),
            "start": check_text("start", start),
            "end": check_text("end", end),
            "limit": check_number("limit", limit, 1, PAGE_LIMIT_MAX),
            "cursor": None if cursor is None else check_text("cursor", cursor),
            "keys_only": "true" if check_flag("keys_only", keys_only) else None,
        }
        options |= read_query(consistency, max_staleness_ms)
        target = "/v1/kv" + query_string(options)
        call = Request("GET", target, ACCEPT_MSGPACK, group=check_group(group))
        return decode_reply(call, await self._transport.call(call, check_timeout(timeout_ms)), Page)

    def list(
        self,
        prefix: str = "",
        *,
        start: str = "",
        end: str = "",
        keys_only: bool = False,
        consistency: Consistency = "linearizable",
        page_size: int = DEFAULT_PAGE_SIZE,
        group: str = "",
    ) -> AsyncIterator[Item]:
        """Iterate over all keys in order, page by page. `group` as for `page`.

        Each page is one consistent state; there may be writes between two pages.
        """
        for name, value in (("prefix", prefix), ("start", start), ("end", end)):
            check_text(name, value)
        check_number("page_size", page_size, 1, PAGE_LIMIT_MAX)
        check_flag("keys_only", keys_only)
        check_consistency(consistency)
        check_group(group)

        async def pages() -> AsyncIterator[Item]:
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
                    group=group,
                )
                for item in page.items:
                    yield item
                cursor = page.cursor
                if not cursor:
                    return

        return pages()

    def watch(
        self,
        prefix: str | None = None,
        *,
        key: str | None = None,
        start: str | None = None,
        end: str | None = None,
        after: int | None = None,
        timeout_ms: int | None = None,
    ) -> AsyncKeyWatch:
        """Watch the keys with `prefix` ("" for all), one `key`, or from `start` before `end`.

        Iterate over it: each event has all that one revision has changed, in the order of
        revisions, from the one after `after` on; without `after`, from when it begins (`async
        with`, or the first step). It goes on over nodes that fail, for ever, or until no node could
        be reached for `timeout_ms`: UnavailableError. RevisionCompactedError: no node goes back so
        far.
        """
        return AsyncKeyWatch(self._routes, watched(prefix, key, start, end), after, timeout_ms)

    def mirror(self, prefix: str) -> AsyncMirror:
        """Return a live copy of the keys with `prefix`, as a mapping: `async with` it."""
        return AsyncMirror(self, check_text("prefix", prefix))
