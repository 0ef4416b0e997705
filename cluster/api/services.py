"""`/v1/services`: the methods of users' services over HTTP.

What is called, and with what, is judged on the node that executes it (`cluster.services.hosting`):
a node that only forwards, a witness say, need not have the service's code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

import msgspec
from aiohttp.web import BaseRequest
from msgspec import UNSET

from cluster.api.answer import JSON, Answer
from cluster.api.body import read_json
from cluster.api.documents import Called, HostedService, QueryAnswer, ServiceList
from cluster.api.headers import (
    idempotency_after,
    idempotency_key,
    if_lock,
    state_lines,
    who_lines,
    written_lines,
)
from cluster.api.params import (
    GET_CALL_PARAMS,
    READ_CALL_PARAMS,
    WRITE_CALL_PARAMS,
    ReadOptions,
    WriteOptions,
    decode_percent,
    make_read_options,
    make_write_options,
    parse_query,
    split_query,
)
from cluster.api.problems import ProblemError
from cluster.api.settings import HttpSettings
from cluster.services.hosting import Host
from datapath.errors import RejectedError
from datapath.operations import Node, Operation, Query, QueryResult, Result
from datapath.service import SERVICE_NAME_PATTERN

SERVICES_PATH = "/v1/services/"
MAX_NAMES_LENGTH = 300

_NEEDS_JSON = (
    "the named arguments must come as a JSON object with Content-Type: application/json; without "
    "arguments it is {}"
)
_NO_CACHE = b"Cache-Control: no-cache\r\n"
_OUR_REFUSALS = frozenset({"idempotency_key_reused", "lock_lost", "unknown_query"})
"""Codes of a RejectedError that is not the service's own."""
_encode = msgspec.json.Encoder().encode
_sorted = msgspec.json.Encoder(order="sorted").encode


class _Target(NamedTuple):
    service: str
    method: str


class ServiceHandlers:
    """The handlers of services. `hosts` are those whose code this node has."""

    def __init__(self, node: Node, settings: HttpSettings, hosts: Mapping[str, Host]) -> None:
        self._node = node
        self._settings = settings
        self._hosts = hosts

    async def list_services(self, _request: BaseRequest, query: str) -> Answer:
        """GET /v1/services."""
        parse_query(query, {})
        node = self._node
        document = ServiceList(
            services=[
                HostedService(
                    name=host.name,
                    version=host.signatures.version,
                    summary=host.signatures.summary,
                    operations=host.signatures.named("operation"),
                    queries=host.signatures.named("query"),
                    timers=host.signatures.named("timer"),
                    difference=host.difference,
                )
                for host in self._hosts.values()
            ]
        )
        who = who_lines(node.node_id, node.epoch, node.views.cluster_id)
        return Answer(200, _encode(document), JSON, who)

    async def post(self, request: BaseRequest, path: str, query: str) -> Answer:
        """POST /v1/services/{service}/{method}: arguments in the body."""
        target = _target(path)
        params = READ_CALL_PARAMS if self._kind(target) == "query" else WRITE_CALL_PARAMS
        values = parse_query(query, params)
        from_text = values.pop("from_text", "false") == "true"
        key, after = idempotency_key(request.headers), idempotency_after(request.headers)
        lock = if_lock(request.headers)
        args = (await self._arguments(request), *((True,) if from_text else ()))
        if params is READ_CALL_PARAMS:
            return await self._query(target, args, make_read_options(values))
        return await self._execute(target, args, make_write_options(values), key, after, lock)

    async def get(self, _request: BaseRequest, path: str, query: str) -> Answer:
        """GET /v1/services/{service}/{method}: arguments in the query string, or `arguments`."""
        target = _target(path)
        if self._kind(target) == "operation":
            raise ProblemError(
                "method_not_allowed",
                f"{target.method} is an operation: call it with POST",
                headers=b"Allow: POST\r\n",
            )
        values, texts = split_query(query, GET_CALL_PARAMS)
        given = values.pop("arguments", None)
        from_text = values.pop("from_text", "false") == "true"
        read = make_read_options(values)
        if given is None:
            return await self._query(target, (_encode(texts), True), read)
        if texts:
            raise ProblemError(
                "invalid_parameter",
                "query parameter 'arguments' has all of them: leave out "
                + ", ".join(repr(name[:100]) for name in texts),
            )
        args = (_canonical(given.encode()), *((True,) if from_text else ()))
        return await self._query(target, args, read)

    def _kind(self, target: _Target) -> str:
        """Return the kind of a method, "" where this node does not know it."""
        host = self._hosts.get(target.service)
        method = None if host is None else host.signatures.methods.get(target.method)
        return "" if method is None else method.kind

    async def _arguments(self, request: BaseRequest) -> bytes:
        settings = self._settings
        limit_bytes, timeout_ms = settings.max_value_size_bytes, settings.body_timeout_ms
        return _canonical(await read_json(request, limit_bytes, timeout_ms, needs=_NEEDS_JSON))

    async def _execute(
        self,
        target: _Target,
        args: tuple[Any, ...],
        options: WriteOptions,
        key: str,
        after: int | None,
        lock: tuple[bytes, int] | None,
    ) -> Answer:
        node, local = self._node, options.ack == "local"
        operation = Operation(
            target.method, args, key, options.ack, options.min_copies, after,
            service=target.service, if_lock=lock,
        )  # fmt: skip
        timeout_ms = options.timeout_ms or self._settings.request_timeout_ms
        try:
            result: Result = await node.execute(operation, timeout_ms)
        except RejectedError as error:
            _refuse(error)
        document = Called(
            msgspec.Raw(result.value), result.index, result.epoch, result.copies,
            "local" if local else UNSET,
        )  # fmt: skip
        lines = written_lines(result, node.views.cluster_id, local=local)
        return Answer(200, _encode(document), JSON, lines)

    async def _query(self, target: _Target, args: tuple[Any, ...], options: ReadOptions) -> Answer:
        node = self._node
        wanted = Query(
            target.method, args, options.consistency, options.max_staleness_ms,
            service=target.service,
        )  # fmt: skip
        timeout_ms = options.timeout_ms or self._settings.request_timeout_ms
        try:
            result: QueryResult = await node.query(wanted, timeout_ms)
        except RejectedError as error:
            _refuse(error)
        lines = state_lines(result, node.views.cluster_id) + _NO_CACHE
        return Answer(
            200, _encode(QueryAnswer(msgspec.Raw(result.value), result.index)), JSON, lines
        )


def _target(path: str) -> _Target:
    """Return the service and the method that a path names. Raises Problem."""
    names = [decode_percent(part, "the path", "not_found").decode() for part in path.split("/")]
    is_one = len(names) == 2 and len(path) <= MAX_NAMES_LENGTH
    # What is built in has names that no user's service may have, and is not to be had here.
    if (
        not is_one
        or not re.fullmatch(SERVICE_NAME_PATTERN, names[0])
        or not names[1].isidentifier()
    ):
        raise ProblemError(
            "not_found", "name a service and a method: /v1/services/{service}/{method}"
        )
    return _Target(*names)


def _canonical(body: bytes) -> bytes:
    """Return a JSON object in its one form: a repeat may order its names differently."""
    try:
        found = msgspec.json.decode(body, type=dict[str, Any])
        return _sorted(found)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProblemError(
            "invalid_body",
            f'the arguments are not a JSON object of names, say {{"item": "x"}}: {error}',
        ) from None


def _refuse(error: RejectedError) -> NoReturn:
    """Raise what a refusal is to the client: 409 with the service's own code."""
    if error.code in _OUR_REFUSALS:
        raise error
    problem = ProblemError("refused", error.detail)
    problem.code, problem.title = error.code, "The service refuses"
    raise problem
