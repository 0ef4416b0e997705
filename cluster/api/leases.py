"""`/v1/leases`: grant, keep alive, look up, list and revoke client leases."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, TypeVar

import msgspec
from aiohttp.web import BaseRequest

from cluster.api.answer import JSON, Answer
from cluster.api.body import read_json
from cluster.api.headers import (
    idempotency_after,
    idempotency_key,
    if_lock,
    state_lines,
    written_lines,
)
from cluster.api.kv import KeyWrite
from cluster.api.lease_documents import (
    KeepAliveAnswer,
    KeepAliveRequest,
    KeptAlive,
    LeaseDocument,
    LeaseGranted,
    LeaseItem,
    LeaseList,
    LeaseRequest,
    LeaseRevoked,
)
from cluster.api.params import (
    DEFAULT_RANGE_LIMIT,
    LEASE_LIST_PARAMS,
    TIMEOUT,
    parse_lease,
    parse_query,
)
from cluster.api.plain_head import KEEP_ALIVE, LEASES_PATH
from cluster.api.problems import ProblemError
from cluster.api.settings import HttpSettings
from cluster.services.leases import LEASES_SERVICE
from datapath.operations import Node, Operation, Principal, Query, Result

MAX_BODY_SIZE_BYTES = 64 * 1024

DocumentT = TypeVar("DocumentT", bound=msgspec.Struct)


def decode_body(body: bytes, kind: type[DocumentT]) -> DocumentT:
    """Return a request's document. Raises Problem "invalid_body" naming the field."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, UnicodeEncodeError) as error:
        raise ProblemError("invalid_body", str(error)) from None


def lease_id(text: str, field: str = "$.lease") -> int:
    """Return a lease's id out of a document. Raises Problem."""
    try:
        return parse_lease(text)
    except ValueError as error:
        raise ProblemError("invalid_body", f"{error} - at `{field}`") from None


class LeaseHandlers:
    """The handlers of leases."""

    def __init__(self, node: Node, settings: HttpSettings) -> None:
        self._node = node
        self._body_timeout_ms = settings.body_timeout_ms
        self._timeout_ms = settings.request_timeout_ms

    async def grant(self, request: BaseRequest, query: str) -> Answer:
        """POST /v1/leases."""
        timeout_ms = self._timeout(query)
        body = await read_json(request, MAX_BODY_SIZE_BYTES, self._body_timeout_ms)
        ttl_ms = decode_body(body, LeaseRequest).ttl_ms
        result = await self._write(request, "grant", (ttl_ms,), timeout_ms)
        lease = str(result.value)
        granted = LeaseGranted(lease, ttl_ms, result.index, result.epoch, result.copies)
        return self._answer(granted, result, 201)

    async def keep_alive(self, _request: BaseRequest, raw_lease: str, query: str) -> Answer:
        """POST /v1/leases/{id}/keepalive."""
        timeout_ms = self._timeout(query)
        lease = _in_path(raw_lease)
        return self._kept_alive(lease, await self._ask("keep_alive", ((lease,),), timeout_ms))

    def fast_keep_alive(self, target: str, caller: Principal | None = None) -> KeyWrite | None:
        """Return what a keep-alive of one lease asks for; None: the full path has to judge it."""
        path, _, query = target.partition("?")
        try:
            timeout_ms = self._timeout(query)
            lease = _in_path(path[len(LEASES_PATH) : -len(KEEP_ALIVE)])
        except ProblemError:
            return None
        operation = Operation("keep_alive", ((lease,),), service=LEASES_SERVICE, caller=caller)
        return KeyWrite(operation, timeout_ms, partial(self._kept_alive, lease), "lease")

    def _kept_alive(self, lease: int, result: Result) -> Answer:
        [ttl_ms] = result.value
        if not ttl_ms:
            raise ProblemError("lease_not_found", f"there is no lease {lease}: it has ended")
        return self._answer(KeptAlive(str(lease), ttl_ms, result.epoch), result)

    async def keep_all_alive(self, request: BaseRequest, query: str) -> Answer:
        """POST /v1/leases/keepalive."""
        timeout_ms = self._timeout(query)
        body = await read_json(request, MAX_BODY_SIZE_BYTES, self._body_timeout_ms)
        leases = decode_body(body, KeepAliveRequest).leases
        asked = tuple(lease_id(text, f"$.leases[{at}]") for at, text in enumerate(leases))
        result = await self._ask("keep_alive", (asked,), timeout_ms)
        found: Sequence[int] = result.value
        kept = {lease: ttl_ms for lease, ttl_ms in zip(leases, found, strict=True) if ttl_ms}
        gone = [lease for lease, ttl_ms in zip(leases, found, strict=True) if not ttl_ms]
        return self._answer(KeepAliveAnswer(kept, gone, result.epoch), result)

    async def get(self, _request: BaseRequest, raw_lease: str, query: str) -> Answer:
        """GET /v1/leases/{id}."""
        lease = _in_path(raw_lease)
        result = await self._ask("look_up", (lease,), self._timeout(query))
        ttl_ms, left_ms, keys, locks = result.value
        document = LeaseDocument(
            str(lease),
            ttl_ms,
            left_ms,
            [key.decode("utf-8", "replace") for key in keys],
            [name.decode("utf-8", "replace") for name in locks],
            result.epoch,
        )
        return self._answer(document, result)

    async def list(self, _request: BaseRequest, query: str) -> Answer:
        """GET /v1/leases."""
        values = parse_query(query, LEASE_LIST_PARAMS)
        limit = values.get("limit", DEFAULT_RANGE_LIMIT)
        asked = Query("list", (values.get("after", 0), limit), service=LEASES_SERVICE)
        result = await self._node.query(asked, values.get("timeout_ms") or self._timeout_ms)
        items, following = result.value
        leases = [LeaseItem(str(lease), ttl_ms, keys) for lease, ttl_ms, keys in items]
        after = None if following is None else str(following)
        body = msgspec.json.encode(LeaseList(leases, result.index, after))
        return Answer(200, body, JSON, state_lines(result, self._node.views.cluster_id))

    async def revoke(self, request: BaseRequest, raw_lease: str, query: str) -> Answer:
        """DELETE /v1/leases/{id}."""
        timeout_ms = self._timeout(query)
        lease = _in_path(raw_lease)
        result = await self._write(request, "revoke", (lease,), timeout_ms)
        index, epoch, copies = result.index, result.epoch, result.copies
        return self._answer(LeaseRevoked(str(lease), result.value, index, epoch, copies), result)

    def _timeout(self, query: str) -> int:
        return parse_query(query, TIMEOUT).get("timeout_ms") or self._timeout_ms

    async def _write(
        self, request: BaseRequest, method: str, args: tuple[Any, ...], timeout_ms: int
    ) -> Result:
        headers = request.headers
        operation = Operation(
            method,
            args,
            idempotency_key(headers),
            first_after=idempotency_after(headers),
            service=LEASES_SERVICE,
            if_lock=if_lock(headers),
        )
        return await self._node.execute(operation, timeout_ms)

    async def _ask(self, method: str, args: tuple[Any, ...], timeout_ms: int) -> Result:
        """Execute what writes nothing: twice is as good as once, so it needs no key."""
        return await self._node.execute(Operation(method, args, service=LEASES_SERVICE), timeout_ms)

    def _answer(self, document: msgspec.Struct, result: Result, status: int = 200) -> Answer:
        lines = written_lines(result, self._node.views.cluster_id)
        return Answer(status, msgspec.json.encode(document), JSON, lines)


def _in_path(raw_lease: str) -> int:
    try:
        return parse_lease(raw_lease)
    except ValueError:
        raise ProblemError(
            "lease_not_found", f"{raw_lease[:100]!r} is not the id of a lease"
        ) from None
