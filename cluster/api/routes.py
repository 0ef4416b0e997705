"""HTTP API, version 1, of a node: routes, cluster and health resources, errors as problems.

Any node takes any request; the node behind it finds the primary. Handlers return an `Answer` or
raise: `ProblemError` for what the API itself refuses, `OperationError` for what the node says.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from functools import cache, partial
from time import perf_counter
from typing import Protocol, TypeVar, cast

import msgspec
from aiohttp import hdrs
from aiohttp.web import BaseRequest, StreamResponse

from cluster.api.access import CHALLENGE, ApiAccess, CallersNode
from cluster.api.answer import JSON, PROBLEM, TOO_MUCH_HELD, Answer, NoAnswer, Response
from cluster.api.audit import Audit
from cluster.api.backup import BackupHandler
from cluster.api.body import ClientGoneError
from cluster.api.cors import let_read, preflight
from cluster.api.documents import CurrentPrimary, Status, ViewHistory
from cluster.api.fast_keys import FastKeys, plain_lines
from cluster.api.groups import GroupHandlers, KnownGroups, refuse_group
from cluster.api.headers import check_cluster, cluster_line, revision_line
from cluster.api.hosts import Hosts, split_target
from cluster.api.kv import KvHandlers
from cluster.api.leases import LeaseHandlers
from cluster.api.listener import HttpListener, ServerTls
from cluster.api.locks import LockHandlers
from cluster.api.members import MemberHandlers
from cluster.api.metrics import Metrics
from cluster.api.openapi_services import openapi_json
from cluster.api.pages import PageHandlers
from cluster.api.params import (
    decode_key,
    parse_query,
    waits_for_change,
)
from cluster.api.plain_head import KEYS
from cluster.api.problems import RETRY_AFTER_S, ProblemError, from_operation_error, unexpected
from cluster.api.roles import RoleHandlers
from cluster.api.route_rights import PAGES
from cluster.api.server import FullConnection, HttpServer
from cluster.api.services import SERVICES_PATH, ServiceHandlers
from cluster.api.settings import HttpSettings
from cluster.api.streams import WatchedNode
from cluster.api.txn import TxnHandlers
from cluster.api.view_steps import view_step_item
from cluster.api.watch import WatchHandlers
from cluster.services.access_guard import TokenGuard
from cluster.services.groups import WrongGroupError
from cluster.services.hosting import Host
from datapath.complaints import Complaints
from datapath.errors import OperationError
from datapath.operations import ANONYMOUS, Node, Principal

logger = logging.getLogger(__name__)

NODES = "/v1/cluster/nodes/"
BACKUP = "/v1/backup"

_VITAL = frozenset(
    {"/livez", "/readyz", "/primary", "/metrics", "/v1/cluster", "/v1/cluster/handover"}
)
_READS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
_RETRY_AFTER = b"Retry-After: %d\r\n" % RETRY_AFTER_S

Keyed = Callable[[BaseRequest, str, str], Awaitable[Answer]]
Plain = Callable[[BaseRequest, str], Awaitable[Answer]]
HandlerT = TypeVar("HandlerT", Keyed, Plain)


class ServedNode(Node, WatchedNode, Protocol):
    """A node that an API can serve."""


class HttpApi:
    """Serves a node over HTTP."""

    def __init__(
        self,
        node: ServedNode,
        settings: HttpSettings | None = None,
        hosts: Hosts | None = None,
        services: Mapping[str, Host] | None = None,
        tls: ServerTls | None = None,
        guard: TokenGuard | None = None,
        audit: Audit | None = None,
        numbers: Callable[[], dict[str, float]] | None = None,
        groups: KnownGroups | None = None,
    ) -> None:
        """Serve `node`. `hosts` (default: loopback names and IP addresses) is for whom.

        `services`: those whose code this node has, by their names. `tls`: what new connections
        are encrypted with; None: nothing. `guard`: the node's; None: there is no access control.
        `numbers`: more of them, for metrics. `groups`: what is known of them; None: there are none.
        """
        self.node: Node = node
        self._other_numbers = numbers
        self._audit = audit
        self._hosts = hosts or Hosts()
        self._settings = settings or HttpSettings()
        self.complaints = Complaints(logger)
        services = services or {}
        self._groups = groups
        self.access = ApiAccess(
            node, guard, self._settings.request_timeout_ms, groups.guard if groups else None
        )
        if guard is not None:  # what handlers ask for is asked by their request's caller
            node = cast("ServedNode", CallersNode(node, self.access))
        self.kv = kv = KvHandlers(node, self._settings)
        called = ServiceHandlers(node, self._settings, services)
        self._call_methods: dict[str, Keyed] = {
            "POST": called.post, "GET": called.get, "HEAD": called.get,
        }  # fmt: skip
        self._openapi_document = cache(lambda: openapi_json(services))  # some ms
        self._txn = TxnHandlers(node, self._settings)
        leases = LeaseHandlers(node, self._settings)
        lines = plain_lines(kv)
        self._server = HttpServer(
            self._handle, self._settings, self._identity, self, self._hosts, node,
            lambda server: FastKeys(server, lines, kv, leases, groups),
        )  # fmt: skip
        self.listener = HttpListener(self._server, tls)
        self._tls = tls
        self.streams = self._server.streams
        self.streams.on_watcher = lambda: self.access.look_after(self.streams)
        self._watches = WatchHandlers(
            node, self.streams, self._settings.request_timeout_ms, self.access
        )
        self._metrics = Metrics(node.node_id, node.counters, self._numbers, services)
        # HEAD is GET whose body is not sent (see Answer.send).
        self._key_methods: dict[str, Keyed] = {
            "PUT": kv.put, "GET": self._get, "HEAD": self._get, "DELETE": kv.delete,
        }  # fmt: skip
        members = MemberHandlers(node, self._settings, self.access)
        self._backup = BackupHandler(node, self._settings, self.access)
        roles = RoleHandlers(node, self._settings, self.access, members.may_change)
        self._group_map = GroupHandlers(
            node, self._settings, groups, members.check_admin, self._identity
        )
        self._pages = PageHandlers(self._identity)
        self._locks, self._elections = (
            LockHandlers(
                node, self._settings, lambda: self._server.draining, is_election=is_election
            )
            for is_election in (False, True)
        )
        self._named: dict[str, dict[str, Keyed]] = {
            "/v1/leases/{id}/keepalive": {"POST": leases.keep_alive},
            "/v1/leases/{id}": {**_readable(leases.get), "DELETE": leases.revoke},
            "/v1/elections/{name}/observe": _readable(self._observe),
            **{
                f"/v1/{kind}/{{name}}": {
                    "POST": handlers.acquire, **_readable(handlers.get), "DELETE": handlers.release,
                }
                for kind, handlers in (("locks", self._locks), ("elections", self._elections))
            },
            f"{NODES}{{id}}": {"DELETE": members.remove, "PATCH": members.move},
            "/v1/tokens/{id}": {"DELETE": roles.revoke_token},
            "/v1/roles/{name}": {"PUT": roles.set_role, "DELETE": roles.delete_role},
        }  # fmt: skip
        self._routes: dict[str, dict[str, Plain]] = {
            "/v1/leases": {**_readable(leases.list), "POST": leases.grant},
            "/v1/leases/keepalive": {"POST": leases.keep_all_alive},
            "/v1/locks": _readable(self._locks.list),
            "/v1/kv": {**_readable(kv.range), "DELETE": kv.delete_range},
            "/v1/txn": {"POST": self._txn.txn},
            "/v1/watch": _readable(self._watch),
            "/v1/services": _readable(called.list_services),
            "/v1/whoami": _readable(roles.whoami),
            "/v1/cluster": _readable(self._cluster),
            "/v1/cluster/views": _readable(self._views),
            "/v1/cluster/handover": {"POST": members.hand_over},
            "/v1/cluster/finish-upgrade": {"POST": members.finish_upgrade},
            "/v1/groups": {**_readable(self._group_map.get), "PUT": self._group_map.publish},
            "/v1/digest": _readable(self._digest),
            BACKUP: {"GET": self._back_up},
            "/v1/tokens": {**_readable(roles.list_tokens), "POST": roles.create_token},
            "/v1/roles": _readable(roles.list_roles),
            "/livez": _readable(self._livez),
            "/readyz": _readable(self._readyz),
            "/primary": _readable(self._primary),
            "/metrics": _readable(self._serve_metrics),
            "/openapi.json": _readable(self._openapi),
        }

    def routes(self) -> dict[str, tuple[str, ...]]:
        """Return path template -> methods, of everything that is served but the dashboard."""
        keyed: dict[str, Mapping[str, object]] = {
            f"{KEYS}{{key}}": self._key_methods,
            **self._named,
            f"{SERVICES_PATH}{{service}}/{{method}}": self._call_methods,
        }
        return {path: tuple(methods) for path, methods in {**keyed, **self._routes}.items()}

    def close_refused(self, is_refused: Callable[[bytes], bool]) -> None:
        """Close the connections whose client has shown a certificate (DER) that is refused now."""
        self._server.close_refused(is_refused)

    def _numbers(self) -> dict[str, float]:
        deleted = self.kv.range_deleted_keys_total
        waiting = self._locks.waiting + self._elections.waiting
        own = {
            **self._txn.numbers(),
            "range_deleted_keys_total": deleted,
            "lock_requests_waiting": waiting,
        }
        certificates = self._tls.numbers() if self._tls is not None else {}
        others = self._other_numbers() if self._other_numbers is not None else {}
        return {**self._server.numbers(), **own, **certificates, **others}

    def _identity(self) -> bytes:
        node = self.node
        return b"Onecopy-Node: %b\r\nOnecopy-Epoch: %d\r\n%b%b" % (
            node.node_id.encode(), node.epoch, cluster_line(node.views.cluster_id),
            b"" if self._groups is None else self._groups.line(),
        )  # fmt: skip

    # --- dispatch ---

    async def _handle(self, request: BaseRequest) -> StreamResponse:
        """Answer a request, whatever happens."""
        started = perf_counter()
        server, method = self._server, request.method
        connection = request.protocol
        assert isinstance(connection, FullConnection)
        if method in _READS:
            connection.reading = asyncio.current_task()
        try:
            await server.turns.wait_while_spent()
            answer = await self._dispatch(request, method)
            server.turns.spend(answer.size_bytes)
            if answer.is_large and not server.memory.make_room(answer.size_bytes):
                held = ProblemError("overloaded", TOO_MUCH_HELD, outcome="unknown")
                answer = self._refusal(held, method)  # a transaction may have been carried out
        except ClientGoneError:
            return NoAnswer()  # nothing was begun
        except Exception as error:  # noqa: BLE001 -- the client gets an answer, whatever it is
            answer = self.refuse(error, method, request.raw_path)
        finally:
            connection.reading = None
        if connection.is_last:
            answer.closes = True
        let_read(answer, request.headers, self._hosts)
        self._note(request, method, answer)
        self.observe(method, request.raw_path, answer, perf_counter() - started)
        return Response(answer)

    def refuse(self, error: Exception, method: str, target: str) -> Answer:
        """Return the answer that says why a request has failed."""
        if isinstance(error, WrongGroupError) and self._groups is not None:
            error = self._groups.problem(error)
        if isinstance(error, ProblemError):
            return self._refusal(error, method)
        if isinstance(error, OperationError):
            return self._refusal(from_operation_error(error), method)
        request_id = secrets.token_hex(8)
        path = target.partition("?")[0]
        text = f"request {request_id} failed: {method} {path}"
        kind, now = type(error).__name__, asyncio.get_running_loop().time()
        written = self.complaints.log(kind, text, now, error=error)
        return self._refusal(unexpected(request_id if written else ""), method)

    def _note(self, request: BaseRequest, method: str, answer: Answer) -> None:
        """Write the audit log: refusals, and what the right `admin` has changed, or backed up.

        By the right that was granted, not by the path: what is refused before anybody asked who it
        was is written by strangers, as often as they like.
        """
        if not (answer.refuses_caller or self.access.is_granted("admin")):
            return
        target, transport = split_target(request.raw_path)[0], request.transport
        changes = method not in _READS or target.partition("?")[0] == BACKUP
        caller = self.access.current() or ANONYMOUS
        if answer.refuses_caller:
            self.note_refusal(answer, method, target, caller, transport)
        elif self._audit is not None and changes:
            self._audit.admin(caller.token, _remote(transport), method, target, answer.status)

    def note_refusal(
        self,
        answer: Answer,
        method: str,
        target: str,
        caller: Principal | None,
        transport: asyncio.BaseTransport | None,
    ) -> None:
        """Note that a request was refused for its caller: in the audit log, and now and then here.

        What the caller has sent is in neither, but for the path and the id of its token.
        """
        token, remote = (caller or ANONYMOUS).token, _remote(transport)
        if self._audit is not None:
            self._audit.refused(token, remote, method, target, answer.status)
        if self.access.is_on:
            text = f"refused with {answer.status}: token {token or '(none)'} from {remote}"
            now = asyncio.get_running_loop().time()
            self.complaints.log("access", text, now, level=logging.WARNING)

    def tick(self, now: float) -> None:
        """Time has passed; called again and again."""
        self.complaints.tick(now)
        if self._audit is not None:
            self._audit.tick()

    def observe(self, method: str, target: str, answer: Answer, seconds: float) -> None:
        """Count an answered request, and log it if asked to."""
        self._metrics.requests.observe(method, answer.status, seconds)
        server = self._server
        if server.draining and not _is_vital(target.partition("?")[0]):
            server.requested_at = asyncio.get_running_loop().time()
        if self._settings.access_log:
            # Keys may show here, values never do.
            logger.info("%s %s %d %.1f ms", method, target, answer.status, seconds * 1000)

    async def _dispatch(self, request: BaseRequest, method: str) -> Answer:
        """Return the handler's answer, if the caller may have it (A1). Raises Problem."""
        self.access.enter_as(ANONYMOUS)
        target, authority = split_target(request.raw_path)
        self._hosts.check(method, authority, request.headers, request.version)
        check_cluster(request.headers, self.node.views.cluster_id)
        path, _, query = target.partition("?")
        if cast("FullConnection", request.protocol).reserved and not _is_vital(path):
            raise self._server.full()
        if (answer := preflight(method, request.headers, self._hosts)) is not None:
            return answer
        template, name, handle = self._find(request, path, query, method)
        groups, refused, body = self._groups, None, None
        if groups is None:
            refuse_group(request.headers)
        else:
            refused = groups.enter(request.headers, template, name, query)
        if refused is None:
            await self.access.enter(template, method, query, request.headers, request.transport)
            try:
                return await handle()
            except WrongGroupError as error:  # by its body
                if groups is None:
                    raise
                refused, body = groups.problem(error), error.body
        assert groups is not None  # else nothing has refused it
        self.access.enter_as(ANONYMOUS)  # the group judges the caller
        # Its client's end is the end for the group, too.
        cast("FullConnection", request.protocol).reading = asyncio.current_task()
        return await groups.pass_on(
            request, template, query, refused, self.node.views.cluster_id, body=body,
            access_on=self.access.is_on,
        )  # fmt: skip

    def _find(
        self, request: BaseRequest, path: str, query: str, method: str
    ) -> tuple[str, str, Callable[[], Awaitable[Answer]]]:
        """Return a request's path template, the name in it, and its handler. Raises Problem."""
        if path.startswith(KEYS):
            keyed, name = _method(self._key_methods, method), path[len(KEYS) :]
            return f"{KEYS}{{key}}", name, partial(keyed, request, name, query)
        route = self._routes.get(path)
        if route is not None:
            return path, "", partial(_method(route, method), request, query)
        for template, methods in self._named.items():
            before, _, rest = template.partition("{")
            after = rest.partition("}")[2]
            if path.startswith(before) and path.endswith(after):
                name = path[len(before) : len(path) - len(after)]
                return template, name, partial(_method(methods, method), request, name, query)
        if path.startswith(SERVICES_PATH):
            keyed, name = _method(self._call_methods, method), path[len(SERVICES_PATH) :]
            template = f"{SERVICES_PATH}{{service}}/{{method}}"
            return template, name, partial(keyed, request, name, query)
        if path == PAGES[:-1] or path.startswith(PAGES):
            return PAGES, "", partial(_method(self._pages.methods, method), request, path)
        raise ProblemError("not_found", f"no resource at {path[:200]!r}")

    def _refusal(self, problem: ProblemError, method: str) -> Answer:
        lines = problem.headers
        if b"Onecopy-Node" not in lines:
            lines += self._identity()
        if problem.status == 401:
            lines += CHALLENGE
        if problem.status == 503:
            lines += _RETRY_AFTER
        body = problem.body(write=method not in _READS)
        return Answer(problem.status, body, PROBLEM, lines, closes=problem.closes)

    def _answer(self, document: msgspec.Struct, status: int = 200) -> Answer:
        return Answer(status, msgspec.json.encode(document), JSON, self._identity())

    def _answer_with_revision(self, document: msgspec.Struct) -> Answer:
        """Return an answer that tells a client what to send as Idempotency-After."""
        index = self.node.commit_index
        lines = self._identity() + (revision_line(index) if index else b"")
        return Answer(200, msgspec.json.encode(document), JSON, lines)

    # --- keys ---

    async def _get(self, request: BaseRequest, raw_key: str, query: str) -> Answer:
        if waits_for_change(query):
            return await self._watches.next_change(decode_key(raw_key), query, self._identity())
        return await self.kv.get(request, raw_key, query)

    async def _watch(self, request: BaseRequest, query: str) -> Answer:
        return await self._watches.watch(request, query, self._identity())

    async def _observe(self, request: BaseRequest, raw_name: str, query: str) -> Answer:
        return await self._watches.observe(request, raw_name, query, self._identity())

    # --- cluster ---

    async def _cluster(self, _request: BaseRequest, query: str) -> Answer:
        parse_query(query, {})
        return self._answer_with_revision(await self.node.cluster_status())

    async def _views(self, _request: BaseRequest, query: str) -> Answer:
        parse_query(query, {})
        views = [view_step_item(step) for step in self.node.view_steps()]
        return self._answer(ViewHistory(views))

    async def _digest(self, _request: BaseRequest, query: str) -> Answer:
        parse_query(query, {})
        return self._answer(await self.node.digest())

    async def _back_up(self, request: BaseRequest, query: str) -> Answer:
        return await self._backup.get(request, query, self._identity())

    # --- health: any query is ignored, probes like to add their own ---

    async def _livez(self, _request: BaseRequest, _query: str) -> Answer:
        return self._answer_with_revision(Status("live"))

    async def _readyz(self, _request: BaseRequest, _query: str) -> Answer:
        if self._server.draining:
            raise ProblemError("not_ready", "this node is stopping: use another node")
        if self.node.is_ready:
            return self._answer(Status("ready"))
        primary = self.node.primary
        raise ProblemError(
            "not_ready",
            f"this node has no contact with a serving primary (last known: {primary or 'none'})",
            primary=primary,
        )

    async def _primary(self, _request: BaseRequest, _query: str) -> Answer:
        node = self.node
        if node.is_primary:
            return self._answer(CurrentPrimary(primary=node.node_id, epoch=node.epoch))
        if not node.primary:
            raise ProblemError("not_primary", "no primary is known")
        raise ProblemError(
            "not_primary",
            f"the last known primary is {node.primary!r}",
            primary=node.primary,
        )

    async def _serve_metrics(self, request: BaseRequest, _query: str) -> Answer:
        body, content_type = self._metrics.render(request.headers.get(hdrs.ACCEPT, ""))
        return Answer(200, body, content_type, self._identity())

    async def _openapi(self, _request: BaseRequest, _query: str) -> Answer:
        return Answer(200, self._openapi_document(), JSON, self._identity())


def _remote(transport: asyncio.BaseTransport | None) -> str:
    """Return the address that a request came from."""
    name = transport.get_extra_info("peername") if transport is not None else None
    return str(name[0]) if name else ""


def _is_vital(path: str) -> bool:
    """Whether a resource is served also where no connection is left: health and the cluster."""
    return path in _VITAL or path.startswith(NODES)


def _readable(handler: HandlerT) -> dict[str, HandlerT]:
    return {"GET": handler, "HEAD": handler}


def _method(methods: Mapping[str, HandlerT], method: str) -> HandlerT:
    handler = methods.get(method)
    if handler is None:
        allowed = ", ".join(methods)
        raise ProblemError(
            "method_not_allowed",
            f"{method} is not allowed here; allowed: {allowed}",
            headers=f"Allow: {allowed}\r\n".encode("ascii"),
        )
    return handler
