"""Whose request it is, and whether they may: on the node that answers, before anything else (A1).

`ApiAccess.enter` checks the route's right before a handler is called. Every operation and query
that a handler asks for carries its caller (`CallersNode` sees to that, not the handlers), and is
checked by its keys where it is executed or read (`datapath.execution.access_guard`). `caller_of` is
the one place that says who a request's caller is.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from contextvars import ContextVar
from typing import Any, cast

import msgspec
from aiohttp import hdrs

from cluster.api.certificate_name import certificate_name
from cluster.api.groups import check_watch
from cluster.api.headers import RELAYED, Headers
from cluster.api.params import TIMEOUT, known_params
from cluster.api.problems import ProblemError, from_operation_error
from cluster.api.route_rights import OPEN, is_for_no_primary, right_for
from cluster.api.streams import Streams
from cluster.services.access import ACCESS_SERVICE
from cluster.services.access_guard import (
    VERSION_KEY,
    TokenGuard,
    principal_of,
    principal_of_certificate,
)
from cluster.services.groups import GroupGuard
from cluster.services.rights import Need, Right
from datapath.errors import NotPrimaryError, OperationError
from datapath.execution.access_guard import MAX_RIGHTS_AGE_MS
from datapath.execution.changes import Span
from datapath.keyspaces import LOCKS, ROLES
from datapath.operations import ANONYMOUS, Node, Operation, Principal, Query, QueryResult, Result
from datapath.tasks import Tasks
from election.view import View

logger = logging.getLogger(__name__)

CHALLENGE = b'WWW-Authenticate: Bearer realm="onecopy"\r\n'
RIGHTS_LOOK_INTERVAL_S = 0.2
"""How often it is looked whether watchers may go on watching."""
WATCH_RIGHTS_AGE_MS = 200
"""How old what is known of rights may be where that is looked at."""
RIGHTS_OUT_OF_TOUCH_S = 0.8
"""A node that could not ask for so long ends all watches: it might send what it may not."""
LOOKED_AT_PER_TURN = 200
STATUS_WAIT_MS = 1000
"""How long it is asked who may see the status, where that is not known: clients wait for 2 s."""

_caller: ContextVar[Principal] = ContextVar("caller", default=ANONYMOUS)
_granted: ContextVar[Right | str] = ContextVar("granted", default="")


def caller_of(headers: Headers, transport: asyncio.BaseTransport | None) -> Principal:
    """Return whom a request names as its caller (`caller_named`).

    Raises Problem "unauthenticated" for what is no token at all.
    """
    values = headers.getall(hdrs.AUTHORIZATION, (None,))
    if RELAYED in headers:  # G5: whose certificate it is, only the node that relayed it knows
        transport = None
    principal = caller_named(values[0], transport) if len(values) == 1 else None
    if principal is None:
        raise ProblemError(
            "unauthenticated",
            "the Authorization header is not a token of this service: send one header, "
            "Authorization: Bearer oct_…",
        )
    return principal


def caller_named(
    authorization: str | None, transport: asyncio.BaseTransport | None
) -> Principal | None:
    """Return whom an Authorization header names, not whether that is right; None: no token.

    Without the header it is who the connection's certificate names, if the client has shown one.
    """
    if authorization is None:
        return principal_of_certificate(certificate_name(transport))
    return principal_in(authorization)


@functools.lru_cache(maxsize=1024)  # a client sends the same one with each request
def principal_in(value: str) -> Principal | None:
    """Return the caller that the value of an Authorization header names; None: no token."""
    scheme, _, text = value.strip(" \t").partition(" ")
    return principal_of(text.strip(" ")) if scheme.lower() == "bearer" else None


class ApiAccess:
    """The checks of one node's API. `guard` is the node's; None: there is no access control.

    `group`: what this node's group owns; None: everything.
    """

    def __init__(
        self,
        node: Node,
        guard: TokenGuard | None,
        timeout_ms: int,
        group: GroupGuard | None = None,
    ) -> None:
        self._node = node
        self._group = group
        self.guard = TokenGuard(is_on=False) if guard is None else guard
        self._timeout_ms = timeout_ms
        self._tasks = Tasks(_on_failed)
        self._looks = False

    @property
    def is_on(self) -> bool:
        """Whether there is access control."""
        return self.guard.is_on

    @property
    def anonymous(self) -> str:
        """The role of callers without a token, or ""."""
        return self.guard.anonymous

    async def stop(self) -> None:
        """Look at nothing any more."""
        await self._tasks.stop()

    async def enter(
        self,
        template: str,
        method: str,
        query: str,
        headers: Headers,
        transport: asyncio.BaseTransport | None,
    ) -> None:
        """Check the right that a route needs, for any key at all. Raises Problem, OperationError.

        What is done from here on is done for the request's caller. What is for a cluster without a
        primary is let in where none can be asked, for the administrator of this node's file.
        """
        self.enter_as(ANONYMOUS)
        if not self.is_on:
            return
        right = right_for(template, method, query)
        if right == OPEN:
            return
        caller = caller_of(headers, transport)
        _caller.set(caller)
        asked_ms = known_params(query, TIMEOUT).get("timeout_ms", self._timeout_ms)
        timeout_ms = min(asked_ms, self._timeout_ms)
        needs_no_primary = is_for_no_primary(template, method, query)
        if needs_no_primary and self._node.is_configured_admin(caller):
            timeout_ms = min(timeout_ms, STATUS_WAIT_MS)
        try:
            await self.admit(caller, Need(cast("Right", right)), timeout_ms=timeout_ms)
        except NotPrimaryError as error:
            detail = f"it cannot be checked now who may do this: {error.detail}"
            if needs_no_primary:
                if self._node.is_configured_admin(caller):
                    logger.warning(
                        "%s %s by the administrator of this node's configuration file: no primary "
                        "can be asked", method, template,
                    )  # fmt: skip
                    return
                detail += (
                    ". Without a primary it may be done under the token whose hash is "
                    "admin_token_hash in the configuration file of the node that is asked"
                )
            raise NotPrimaryError(error.code, detail, error.primary) from error
        _granted.set(right)

    def enter_as(self, caller: Principal) -> None:
        """Do what is done from here on for this caller: for APIs that have headers of their own."""
        _caller.set(caller if self.is_on else ANONYMOUS)
        _granted.set("")

    def is_granted(self, right: Right) -> bool:
        """Whether the request that is being served was found to have this right, by `enter`."""
        return _granted.get() == right

    async def admit(
        self,
        caller: Principal,
        need: Need,
        max_age_ms: int = MAX_RIGHTS_AGE_MS,
        timeout_ms: int | None = None,
    ) -> None:
        """Raise OperationError unless a caller has a right.

        This node decides by what it knows, if that is no older than `max_age_ms`; else it asks. It
        asks before it refuses, too. `status` may be told by rights of any age: it is what operators
        need when nobody can be asked. It asks for `timeout_ms`, or as long as a request may take.
        """
        timeout_ms = self._timeout_ms if timeout_ms is None else timeout_ms
        query = Query("permits", tuple(need), "stale", max_age_ms, ACCESS_SERVICE, caller)
        if need.right == "status":
            try:
                self._node.read_here(query)
            except OperationError:
                timeout_ms = min(timeout_ms, STATUS_WAIT_MS)  # what it does not know may be new
            else:
                return
        await self._node.query(query, timeout_ms)

    async def enter_watch(self, span: Span) -> Principal | None:
        """Refuse a watch of another group's keys (G1), and who may not watch these (A1).

        Returns the caller, None: nobody is judged.
        """
        if self._group is not None:
            check_watch(self._group, span.start, span.end)
        caller = self.current()
        if caller is not None:
            await self.admit(caller, need_of(span))
        return caller

    def here(self, caller: Principal, need: Need) -> ProblemError | None:
        """Return what refuses a right by what is applied here, however old that is; or None."""
        query = Query("permits", tuple(need), service=ACCESS_SERVICE, caller=caller)
        try:
            self._node.read_here(query)
        except OperationError as error:
            return from_operation_error(error)
        return None

    # -- those who watch

    def current(self) -> Principal | None:
        """Return the caller of the request that is being served; None where nobody is judged."""
        return _caller.get() if self.is_on else None

    def look_after(self, streams: Streams) -> None:
        """End watches whose rights go, from now on as long as there are any."""
        if self.is_on and not self._looks:
            self._looks = True
            self._tasks.spawn(self._look_after(streams))

    async def _look_after(self, streams: Streams) -> None:
        changed = asyncio.Event()

        def on_changed() -> None:  # amid the commit: what is committed after it is not sent before
            streams.hold()
            changed.set()

        leave = self._node.observe(ROLES, VERSION_KEY, on_changed)
        now = asyncio.get_running_loop().time
        known_at = now()
        try:
            while (caller := streams.any_caller()) is not None:
                asked_at = now()
                try:
                    async with asyncio.timeout(RIGHTS_OUT_OF_TOUCH_S / 2):
                        await self.admit(caller, Need("watch"), WATCH_RIGHTS_AGE_MS)
                except (TimeoutError, NotPrimaryError):
                    if now() - known_at > RIGHTS_OUT_OF_TOUCH_S:
                        streams.end_for_now("this node cannot tell who may still watch")
                except OperationError:
                    known_at = asked_at
                    changed.set()
                else:
                    known_at = asked_at
                if changed.is_set():
                    changed.clear()
                    await self._judge(streams)
                    if not changed.is_set():
                        streams.release()
                try:
                    async with asyncio.timeout(RIGHTS_LOOK_INTERVAL_S):
                        await changed.wait()
                except TimeoutError:
                    pass
        except Exception:
            streams.end_for_now("this node could not look whether they may go on")
            raise
        finally:
            self._looks = False
            streams.release()
            leave()

    async def _judge(self, streams: Streams) -> None:
        """Look at all watchers, some in a turn of the event loop."""
        for number, watcher in enumerate(streams.watched(), 1):
            if watcher.caller is not None:
                refused = self.here(watcher.caller, need_of(watcher.span))
                if refused is not None:
                    watcher.refuse(refused)
            if number % LOOKED_AT_PER_TURN == 0:
                await asyncio.sleep(0)


def need_of(span: Span) -> Need:
    """Return what a watch of these keys, or of this election, needs."""
    return Need("lock" if span.keyspace == LOCKS else "watch", span.start, span.end)


class CallersNode:
    """A node as the handlers see it: what they ask for is asked by the request's caller.

    Where nobody is judged it is the node itself. Everything that is not listed here is the node's.
    """

    def __init__(self, node: Node, access: ApiAccess) -> None:
        self._node = node
        self.views = node.views  # each answer names the cluster: `__getattr__` takes its time
        self._access = access

    def __getattr__(self, name: str) -> Any:
        """Return what the node has by this name."""
        return getattr(self._node, name)

    async def execute(
        self, operation: Operation, timeout_ms: int, after: OperationError | None = None
    ) -> Result:
        """Execute for the caller."""
        if self._access.is_on and operation.caller is None:
            operation = msgspec.structs.replace(operation, caller=_caller.get())
        return await self._node.execute(operation, timeout_ms, after)

    async def query(self, query: Query, timeout_ms: int) -> QueryResult:
        """Read for the caller."""
        return await self._node.query(self._stamped(query), timeout_ms)

    def read_now(self, query: Query) -> QueryResult | None:
        """Read at once for the caller."""
        return self._node.read_now(self._stamped(query))

    def _stamped(self, query: Query) -> Query:
        if self._access.is_on and query.caller is None:
            return msgspec.structs.replace(query, caller=_caller.get())
        return query

    async def handover(self, to: str, timeout_ms: int) -> View:
        """Hand over for the caller."""
        return await self._node.handover(to, timeout_ms, caller=self._access.current())

    async def finish_upgrade(self, timeout_ms: int, *, asked_by: str = "") -> View:
        """Raise the cluster's level for the caller."""
        caller = self._access.current()
        return await self._node.finish_upgrade(timeout_ms, asked_by=asked_by, caller=caller)

    async def remove_member(
        self, node: str, timeout_ms: int, *, force: bool = False, asked_by: str = ""
    ) -> View:
        """Remove a node for the caller."""
        caller = self._access.current()
        return await self._node.remove_member(
            node, timeout_ms, force=force, asked_by=asked_by, caller=caller
        )


def _on_failed(problem: BaseException) -> None:
    logger.error("looking after watchers failed", exc_info=problem)
