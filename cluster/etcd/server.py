"""etcd's HTTP/JSON gateway of a node: its routes, who asks, and what is answered when it fails."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from time import perf_counter
from typing import Any, cast

from aiohttp import hdrs
from aiohttp.web import BaseRequest, StreamResponse

from cluster.api.access import ApiAccess, CallersNode
from cluster.api.answer import JSON, TOO_MUCH_HELD, Answer, NoAnswer, Response
from cluster.api.body import ClientGoneError, read_body
from cluster.api.hosts import Hosts, split_target
from cluster.api.listener import HttpListener, ServerTls
from cluster.api.problems import ProblemError, from_operation_error
from cluster.api.routes import ServedNode
from cluster.api.server import FullConnection, HttpServer
from cluster.api.settings import HttpSettings
from cluster.etcd.answers import Document, encode
from cluster.etcd.auth import AuthCalls, etcd_caller
from cluster.etcd.backend import Backend
from cluster.etcd.errors import (
    INTERNAL,
    INVALID_ARGUMENT,
    NOT_FOUND,
    UNIMPLEMENTED,
    EtcdError,
    from_problem,
)
from cluster.etcd.fast_keys import EtcdFastKeys
from cluster.etcd.kv import KvCalls
from cluster.etcd.leases import EtcdLeases
from cluster.etcd.members import MemberCalls, MemberUrls
from cluster.etcd.messages import (
    AuthenticateRequest,
    CompactionRequest,
    DeleteRangeRequest,
    EmptyRequest,
    EtcdMessage,
    EtcdTxnRequest,
    EtcdWatchRequest,
    LeaseGrantRequest,
    LeaseIdRequest,
    LeaseTimeToLiveRequest,
    MemberListRequest,
    PutRequest,
    RangeRequest,
    read_message,
    read_messages,
)
from cluster.etcd.watch import LAST_CHUNK, ChunkedAnswer, WatchCalls, chunk
from cluster.services.access_guard import TokenGuard
from cluster.services.groups import GroupGuard
from cluster.services.rights import Need
from datapath.complaints import Complaints
from datapath.errors import OperationError
from datapath.operations import ANONYMOUS, Node, Principal

logger = logging.getLogger(__name__)

_PREFIXES = ("/v3/", "/v3beta/")
_HEALTH_PATHS = frozenset({"/health", "/livez", "/readyz"})
MIN_REQUEST_LIMIT_BYTES = 2 * 1024 * 1024
"""How large a request may be at least: etcd's is 1.5 MiB before base64."""

EtcdCall = Callable[[Any], Awaitable[Document]]
OnRefused = Callable[[Answer, str, str, Principal | None, asyncio.BaseTransport | None], None]


class _Route:
    """One call: the message that it takes, and what carries it out."""

    def __init__(
        self, kind: type[EtcdMessage], call: EtcdCall, *, needs_status: bool = False
    ) -> None:
        self.kind = kind
        self.call = call
        self.needs_status = needs_status


class EtcdApi:
    """Serves etcd's clients on an address of their own.

    `urls` are those of the members, by their ids. The rest is as of `HttpApi`.
    """

    def __init__(
        self,
        node: ServedNode,
        settings: HttpSettings,
        hosts: Hosts,
        urls: Mapping[str, MemberUrls],
        tls: ServerTls | None = None,
        guard: TokenGuard | None = None,
        group: GroupGuard | None = None,
    ) -> None:
        self.node: Node = node
        self.complaints = Complaints(logger)
        self._hosts = hosts
        self._settings = settings
        self.access = ApiAccess(node, guard, settings.request_timeout_ms, group)
        if guard is not None:
            node = cast("ServedNode", CallersNode(node, self.access))
        backend = Backend(node, settings.request_timeout_ms, settings.max_value_size_bytes)
        kv, leases = KvCalls(backend), EtcdLeases(backend)
        self._server = HttpServer(
            self._handle, settings, lambda: b"", self, hosts, node,
            lambda server: EtcdFastKeys(server, kv, settings.request_timeout_ms),
        )  # fmt: skip
        self.listener = HttpListener(self._server, tls)
        streams = self._server.streams
        streams.on_watcher = lambda: self.access.look_after(streams)
        self._limit_bytes = max(MIN_REQUEST_LIMIT_BYTES, 2 * settings.max_value_size_bytes)
        self._leases = leases
        self._members = members = MemberCalls(backend, urls)
        self._watches = WatchCalls(backend, streams, self.access)
        auth = AuthCalls(backend, self.access)
        time_to_live = _Route(LeaseTimeToLiveRequest, leases.time_to_live)
        revoke, list_leases = (
            _Route(LeaseIdRequest, leases.revoke),
            _Route(EmptyRequest, leases.list),
        )
        self._routes: dict[str, _Route] = {
            "kv/range": _Route(RangeRequest, kv.range),
            "kv/put": _Route(PutRequest, kv.put),
            "kv/deleterange": _Route(DeleteRangeRequest, kv.delete_range),
            "kv/txn": _Route(EtcdTxnRequest, kv.txn),
            "kv/compaction": _Route(CompactionRequest, kv.compact),
            "lease/grant": _Route(LeaseGrantRequest, leases.grant),
            "lease/revoke": revoke,
            "kv/lease/revoke": revoke,
            "lease/timetolive": time_to_live,
            "kv/lease/timetolive": time_to_live,
            "lease/leases": list_leases,
            "kv/lease/leases": list_leases,
            "cluster/member/list": _Route(MemberListRequest, members.list, needs_status=True),
            "maintenance/status": _Route(EmptyRequest, members.status, needs_status=True),
            "auth/authenticate": _Route(AuthenticateRequest, auth.authenticate),
            "auth/status": _Route(EmptyRequest, auth.status),
        }
        self.on_refused: OnRefused | None = None
        "Notes a request that was refused for its caller, in the audit log."
        self.requests_total = 0
        self.errors_total = 0

    def numbers(self) -> dict[str, float]:
        """Return numbers for metrics."""
        return {
            "etcd_requests_total": self.requests_total,
            "etcd_errors_total": self.errors_total,
            "etcd_open_connections": self._server.open_connections,
            "etcd_watchers": self._server.streams.count,
        }

    def close_refused(self, is_refused: Callable[[bytes], bool]) -> None:
        """Close the connections whose client has shown a certificate (DER) that is refused now."""
        self._server.close_refused(is_refused)

    def tick(self, now: float) -> None:
        """Time has passed; called again and again."""
        self.complaints.tick(now)

    # -- dispatch

    async def _handle(self, request: BaseRequest) -> StreamResponse:
        """Answer a request, whatever happens."""
        started = perf_counter()
        server, connection = self._server, request.protocol
        assert isinstance(connection, FullConnection)
        try:
            await server.turns.wait_while_spent()
            answer = await self._dispatch(request)
            server.turns.spend(answer.size_bytes)
            if answer.is_large and not server.memory.make_room(answer.size_bytes):
                answer = _refusal(from_problem(ProblemError("overloaded", TOO_MUCH_HELD)))
        except ClientGoneError:
            return NoAnswer()  # nothing was begun
        except Exception as error:  # noqa: BLE001 -- the client gets an answer, whatever it is
            answer = self._refuse(error, request)
        method, target = request.method, request.raw_path
        if answer.refuses_caller:
            self.note_refusal(answer, method, target, self.access.current(), request.transport)
        if connection.is_last:
            answer.closes = True
        self.observe(method, target, answer, perf_counter() - started)
        return Response(answer)

    def _refuse(self, error: Exception, request: BaseRequest) -> Answer:
        if isinstance(error, OperationError | ProblemError) and (
            error.code == "unauthenticated" and hdrs.AUTHORIZATION not in request.headers
        ):
            error = EtcdError(
                INVALID_ARGUMENT, "etcdserver: user name is empty", refuses_caller=True
            )
        return self.refuse(error, request.method, request.path)

    def note_refusal(
        self,
        answer: Answer,
        method: str,
        target: str,
        caller: Principal | None,
        transport: asyncio.BaseTransport | None,
    ) -> None:
        """Note that a request was refused for its caller, as `HttpApi` does."""
        if self.on_refused is not None:
            self.on_refused(answer, method, target, caller, transport)

    # -- what the fast path needs

    def refuse(self, error: Exception, method: str, target: str) -> Answer:
        """Return the answer that says why a request has failed."""
        if isinstance(error, EtcdError):
            return _refusal(error)
        if isinstance(error, OperationError):
            error = from_operation_error(error)
        if isinstance(error, ProblemError):
            return _refusal(from_problem(error), closes=error.closes)
        name = secrets.token_hex(8)
        text = f"request {name} of etcd's API failed: {method} {target[:200]}"
        now = asyncio.get_running_loop().time()
        self.complaints.log(type(error).__name__, text, now, error=error)
        return _refusal(EtcdError(INTERNAL, f"onecopy: internal error {name}: see the node's log"))

    def observe(self, method: str, target: str, answer: Answer, seconds: float) -> None:
        """Count an answered request, and log it if asked to."""
        self.requests_total += 1
        if answer.status >= 400:
            self.errors_total += 1
        if self._server.draining and target.partition("?")[0] not in _HEALTH_PATHS:
            self._server.requested_at = asyncio.get_running_loop().time()
        if self._settings.access_log:
            logger.info("%s %s %d %.1f ms", method, target, answer.status, seconds * 1000)

    async def _dispatch(self, request: BaseRequest) -> Answer:
        target, authority = split_target(request.raw_path)
        method = request.method
        self._hosts.check(method, authority, request.headers, request.version)
        path = target.partition("?")[0]
        if cast("FullConnection", request.protocol).reserved and path != "/health":
            raise self._server.full()
        self.access.enter_as(ANONYMOUS)
        if path in _HEALTH_PATHS:
            return self._health(path)
        if path == "/version":
            return Answer(200, encode(self._members.version()), JSON)
        name = next((path[len(start) :] for start in _PREFIXES if path.startswith(start)), None)
        if name is None:
            raise EtcdError(NOT_FOUND, "Not Found")
        if self.access.is_on:  # as in etcd, a token says nothing where there is no access control
            self.access.enter_as(etcd_caller(request.headers, request.transport))
        route = self._routes.get(name)
        if route is None and name not in {"watch", "lease/keepalive"}:
            raise EtcdError(NOT_FOUND, "Not Found")
        if method != "POST":
            raise EtcdError(UNIMPLEMENTED, "Method Not Allowed")
        if route is None:
            return await self._stream(name, request)
        body = await read_body(request, self._limit_bytes, self._settings.body_timeout_ms)
        message = read_message(route.kind, body)
        if route.needs_status and (caller := self.access.current()) is not None:
            await self.access.admit(caller, Need("status"))
        document = await route.call(message)
        return Answer(200, encode(document), JSON)

    async def _stream(self, name: str, request: BaseRequest) -> Answer:
        body = await read_body(request, self._limit_bytes, self._settings.body_timeout_ms)
        if name == "watch":
            return await self._watches.watch(read_messages(EtcdWatchRequest, body))
        leases = read_messages(LeaseIdRequest, body) or [LeaseIdRequest()]
        messages = [chunk(await self._leases.keep_alive(lease)) for lease in leases]
        # Of a body of a known length: a client that keeps its connections can read it to its end.
        return ChunkedAnswer(b"".join(messages) + LAST_CHUNK)

    def _health(self, path: str) -> Answer:
        status, document = self._members.health()
        if path == "/health":
            return Answer(status, encode(document), JSON)
        text = b"ok\n" if status == 200 or path == "/livez" else b"not ready\n"
        return Answer(200 if path == "/livez" else status, text, b"text/plain; charset=utf-8")


def _refusal(error: EtcdError, *, closes: bool = False) -> Answer:
    answer = Answer(error.status, error.body(), JSON, closes=closes)
    answer.refuses_caller |= error.refuses_caller
    return answer
