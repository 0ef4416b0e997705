"""`/v1/kv`: the key-value store over HTTP. PUT and GET of a key are the hot path."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import msgspec
from aiohttp import hdrs
from aiohttp.web import BaseRequest
from msgspec import UNSET

from cluster.api.answer import (
    BYTES,
    JSON,
    LARGE_ANSWER_SIZE_BYTES,
    TOO_MUCH_HELD,
    Answer,
    PagedAnswer,
    server_of,
)
from cluster.api.body import ClientGoneError, read_body
from cluster.api.cursor import EVERYTHING, KeyRange, decode_cursor, encode_cursor, make_bounds
from cluster.api.documents import Deleted, RangeDeleted, Written
from cluster.api.headers import (
    REVISION_LINE,
    Headers,
    accepts_msgpack,
    check_put_headers,
    entity_tags,
    idempotency_after,
    idempotency_key,
    if_lock,
    put_if_absent,
    refuse_conditions,
    refuse_if_none_match,
    state_lines,
    who_lines,
    write_if_match,
    written_lines,
)
from cluster.api.page import PageBody
from cluster.api.params import (
    DEFAULT_RANGE_LIMIT,
    DELETE_RANGE_PARAMS,
    RANGE_PARAMS,
    PutOptions,
    WriteOptions,
    decode_key,
    make_read_options,
    make_write_options,
    parse_query,
    put_options,
    read_options,
    write_options,
)
from cluster.api.problems import ProblemError
from cluster.api.settings import HttpSettings
from cluster.services.kv import Revisions
from cluster.services.rights import Right
from cluster.services.txn import MAX_DELETED_KEYS
from datapath.operations import STORE, Node, Operation, Principal, Query, QueryResult, Result

NO_CACHE = b"Cache-Control: no-cache\r\n"
"""A cache between must ask again: an answer out of it would not be linearizable."""
_LEASE_LINE = b"Onecopy-Lease: %d\r\n"
_KEY_LINES = (
    b'ETag: "%d"\r\nOnecopy-Create-Revision: %d\r\nOnecopy-Key-Version: %d\r\n%b'
    + NO_CACHE
    + b"%b"
    + REVISION_LINE
)

_encode = msgspec.json.Encoder().encode


class KeyWrite(msgspec.Struct, frozen=True):
    """A write that may be submitted: `answer` makes its answer of the result.

    `right`: what its caller needs for any key at all.
    """

    operation: Operation
    timeout_ms: int
    answer: Callable[[Result], Answer]
    right: Right = "write"

    @property
    def caller(self) -> Principal | None:
        """For whom; None: for the node itself."""
        return self.operation.caller


class KeyRead(msgspec.Struct, frozen=True, gc=False):
    """A read of one key: `answer` makes its answer of the result."""

    query: Query
    timeout_ms: int
    answer: Callable[[QueryResult], Answer]

    @property
    def caller(self) -> Principal | None:
        """For whom; None: for the node itself."""
        return self.query.caller


KeyCall = KeyRead | KeyWrite


class Conditions(NamedTuple):
    """What a write's headers ask for: conditions on its key, and what makes a repeat known.

    That is the idempotency key, and the revision that it was first sent after. `if_lock` is the
    name and the token of a lock that has to be held.
    """

    if_revision: Revisions | None = None
    if_absent: bool = False
    repeat_key: str = ""
    first_after: int | None = None
    if_lock: tuple[bytes, int] | None = None


_UNCONDITIONAL = Conditions()


class KvHandlers:
    """The handlers of keys and ranges. Each takes the request, the raw key, the raw query."""

    def __init__(self, node: Node, settings: HttpSettings) -> None:
        self._node = node
        self._limit_bytes = settings.max_value_size_bytes
        self._body_timeout_ms = settings.body_timeout_ms
        self._timeout_ms = settings.request_timeout_ms
        self.range_deleted_keys_total = 0

    async def put(self, request: BaseRequest, raw_key: str, query: str) -> Answer:
        """PUT /v1/kv/{key}."""
        # Everything that can be refused is refused before the body is asked for.
        headers = request.headers
        conditions = _put_conditions(headers) if headers else _UNCONDITIONAL
        key, options = decode_key(raw_key), put_options(query)
        value = await read_body(request, self._limit_bytes, self._body_timeout_ms)
        return await self._execute(self._put(key, value, options, conditions))

    async def delete(self, request: BaseRequest, raw_key: str, query: str) -> Answer:
        """DELETE /v1/kv/{key}."""
        key, options, headers = decode_key(raw_key), write_options(query), request.headers
        return await self._execute(self.fast_delete(key, options, headers))

    def fast_put(
        self,
        key: bytes,
        options: PutOptions,
        headers: Headers,
        value: bytes,
        caller: Principal | None = None,
    ) -> KeyWrite:
        """Return what a PUT asks for. Raises Problem: the full path has to refuse it."""
        conditions = _put_conditions(headers) if headers else _UNCONDITIONAL
        return self._put(key, value, options, conditions, caller)

    def _put(
        self,
        key: bytes,
        value: bytes,
        options: PutOptions,
        conditions: Conditions,
        caller: Principal | None = None,
    ) -> KeyWrite:
        args: tuple[object, ...] = (key, value, conditions.if_revision, conditions.if_absent)
        if options.lease or options.ttl_ms:
            args += (options.lease, options.ttl_ms)
        return self._write("put", args, conditions, options, _put_answer, caller)

    def fast_delete(
        self, key: bytes, options: WriteOptions, headers: Headers, caller: Principal | None = None
    ) -> KeyWrite:
        """Return what a DELETE asks for. Raises Problem: the full path has to refuse it."""
        conditions = _delete_conditions(headers) if headers else _UNCONDITIONAL
        args = (key, conditions.if_revision)
        return self._write("delete", args, conditions, options, _delete_answer, caller)

    def _write(
        self,
        method: str,
        args: tuple[object, ...],
        conditions: Conditions,
        options: WriteOptions,
        answer: Callable[[Result, bool, str], Answer],
        caller: Principal | None,
    ) -> KeyWrite:
        _, _, repeat_key, first_after, lock = conditions
        local = options.ack == "local"
        return KeyWrite(
            Operation(
                method, args, repeat_key, options.ack, options.min_copies, first_after, STORE, lock,
                caller,
            ),
            options.timeout_ms or self._timeout_ms,
            lambda result: answer(result, local, self._node.views.cluster_id),
        )  # fmt: skip

    async def _execute(self, write: KeyWrite) -> Answer:
        return write.answer(await self._node.execute(write.operation, write.timeout_ms))

    async def get(self, request: BaseRequest, raw_key: str, query: str) -> Answer:
        """GET and HEAD /v1/kv/{key}."""
        read = self.plain_read(raw_key, query)
        result = await self._node.query(read.query, read.timeout_ms)
        return self._get_answer(result, request.headers)

    def plain_read(self, raw_key: str, query: str) -> KeyRead:
        """Return what a GET asks for, for nobody and on no condition. Raises Problem."""
        options = read_options(query)
        wanted = Query("get", (decode_key(raw_key),), options.consistency, options.max_staleness_ms)
        return KeyRead(wanted, options.timeout_ms or self._timeout_ms, self._get_answer)

    def read_for(self, read: KeyRead, headers: Headers, caller: Principal | None) -> KeyRead:
        """Return a plain read for a caller, on the conditions in `headers`."""
        plain = read.query
        wanted = Query("get", plain.args, plain.consistency, plain.max_staleness_ms, STORE, caller)
        answer = partial(self._get_answer, headers=headers) if headers else read.answer
        return KeyRead(wanted, read.timeout_ms, answer)

    def _get_answer(self, result: QueryResult, headers: Headers | None = None) -> Answer:
        """Make a GET's answer of what was read. Raises Problem."""
        if result.value is None:
            who = state_lines(result, self._node.views.cluster_id)
            raise ProblemError("key_not_found", "no such key", headers=who)
        value, revision, create_revision, version, lease = result.value
        lease_line = _LEASE_LINE % lease if lease else b""
        who = who_lines(result.node, result.epoch, self._node.views.cluster_id)
        lines = _KEY_LINES % (revision, create_revision, version, lease_line, who, result.index)
        if headers and self._is_unmodified(headers, revision, who + REVISION_LINE % result.index):
            return Answer(304, None, headers=lines)
        return Answer(200, value, BYTES, lines)

    @staticmethod
    def _is_unmodified(headers: Headers, revision: int, who: bytes) -> bool:
        """Evaluate a read's conditions, in RFC 9110's order (13.2.2). Raises Problem."""
        if hdrs.IF_MATCH in headers:
            tags = entity_tags(headers, hdrs.IF_MATCH)
            if tags is not None and not tags.any and revision not in tags.strong:
                detail = f'the key has ETag "{revision}", which If-Match does not list'
                raise ProblemError("precondition_failed", detail, headers=who)
        if hdrs.IF_NONE_MATCH in headers:
            tags = entity_tags(headers, hdrs.IF_NONE_MATCH)
            return tags is not None and (tags.any or revision in tags.all)
        return False

    async def delete_range(self, request: BaseRequest, query: str) -> Answer:
        """DELETE /v1/kv: a bounded part of a range, and a cursor where there is more."""
        values = parse_query(query, DELETE_RANGE_PARAMS)
        options = make_write_options(values)
        headers = request.headers
        refuse_conditions(headers, "name a key, or use POST /v1/txn")
        start, bounds = _range_of(values)
        if bounds == EVERYTHING:  # never by accident: of a variable that is empty, say
            raise ProblemError(
                "invalid_parameter",
                "one of the query parameters 'prefix', 'start' and 'end' must be given and not "
                "empty: a range that is the whole store is not deleted",
            )
        result = await self._node.execute(
            Operation(
                "delete_range",
                (start, bounds.end, values.get("limit", MAX_DELETED_KEYS)),
                idempotency_key(headers),
                options.ack,
                options.min_copies,
                idempotency_after(headers),
                if_lock=if_lock(headers),
            ),
            options.timeout_ms or self._timeout_ms,
        )
        deleted, next_key = result.value
        self.range_deleted_keys_total += 0 if result.repeated else deleted
        local = options.ack == "local"
        document = RangeDeleted(
            result.index,
            deleted,
            result.epoch,
            result.copies,
            None if next_key is None else encode_cursor(next_key, bounds),
            "local" if local else UNSET,
        )
        lines = written_lines(result, self._node.views.cluster_id, local=local)
        return Answer(200, _encode(document), JSON, lines)

    async def range(self, request: BaseRequest, query: str) -> Answer:
        """GET /v1/kv."""
        values = parse_query(query, RANGE_PARAMS)
        options = make_read_options(values)
        start, bounds = _range_of(values)
        limit = values.get("limit", DEFAULT_RANGE_LIMIT)
        keys_only = values.get("keys_only") == "true"
        result = await self._node.query(
            Query(
                "range",
                (start, bounds.end, limit, keys_only),
                options.consistency,
                options.max_staleness_ms,
            ),
            options.timeout_ms or self._timeout_ms,
        )
        items, next_key = result.value
        cursor = None if next_key is None else encode_cursor(next_key, bounds)
        lines = NO_CACHE + state_lines(result, self._node.views.cluster_id)
        binary = accepts_msgpack(request.headers)
        page = PageBody(items, result.index, cursor, binary=binary)
        if page.length <= LARGE_ANSWER_SIZE_BYTES:
            return Answer(200, b"".join(page.pieces()), page.content_type, lines)
        transport = request.transport
        if transport is None:
            raise ClientGoneError
        share = server_of(request).memory.take(page.length, transport.abort)
        if share is None:
            raise ProblemError("overloaded", TOO_MUCH_HELD)
        return PagedAnswer(page.pieces(), page.length, share, page.content_type, lines)


def _range_of(values: Mapping[str, Any]) -> tuple[bytes, KeyRange]:
    """Return where to begin, and the range's bounds. Raises Problem for a foreign cursor."""
    bounds = None
    if not values.get("cursor") or not values.keys().isdisjoint(("prefix", "start", "end")):
        bounds = make_bounds(*(values.get(name, b"") for name in ("prefix", "start", "end")))
    if values.get("cursor"):
        return decode_cursor(values["cursor"], bounds)
    assert bounds is not None
    return bounds.start, bounds


def _put_conditions(headers: Headers) -> Conditions:
    """Read a PUT's headers. Raises Problem."""
    check_put_headers(headers)
    if_absent = put_if_absent(headers)
    if_revision = write_if_match(headers)
    return Conditions(
        if_revision,
        if_absent,
        idempotency_key(headers),
        idempotency_after(headers),
        if_lock(headers),
    )


def _delete_conditions(headers: Headers) -> Conditions:
    """Read a DELETE's headers. Raises Problem."""
    refuse_if_none_match(headers)
    if_revision = write_if_match(headers)
    return Conditions(
        if_revision, False, idempotency_key(headers), idempotency_after(headers), if_lock(headers)
    )


def _put_answer(result: Result, local: bool, cluster_id: str) -> Answer:
    index = result.index
    written = Written(index, result.epoch, result.copies, "local" if local else UNSET)
    lines = b'ETag: "%d"\r\n%b' % (index, written_lines(result, cluster_id, local=local))
    return Answer(201 if result.value else 200, _encode(written), JSON, lines)


def _delete_answer(result: Result, local: bool, cluster_id: str) -> Answer:
    deleted = Deleted(
        result.index, bool(result.value), result.epoch, result.copies, "local" if local else UNSET
    )
    return Answer(200, _encode(deleted), JSON, written_lines(result, cluster_id, local=local))
