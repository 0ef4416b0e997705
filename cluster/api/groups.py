"""`/v1/groups`, and what a node answers to what is another group's (G1, G2)."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import msgspec
from aiohttp.web import BaseRequest

from cluster.api.answer import JSON, Answer
from cluster.api.body import read_json
from cluster.api.headers import (
    GROUP,
    RELAYED,
    Headers,
    cluster_line,
    idempotency_after,
    idempotency_key,
)
from cluster.api.params import TIMEOUT, parse_query
from cluster.api.problems import ProblemError
from cluster.api.relay import GroupRelay, asked_in_head, refuse_elsewhere
from cluster.api.settings import HttpSettings
from cluster.config.tls_section import TlsSection
from cluster.groups.group_map import (
    MAX_MAP_BYTES,
    Group,
    GroupMap,
    GroupsDocument,
    may_replace_map,
)
from cluster.services.groups import GROUPS_SERVICE, GroupGuard, WrongGroupError
from datapath.errors import NotPrimaryError, OperationError
from datapath.operations import (
    Completion,
    Node,
    Operation,
    Query,
    QueryCompletion,
    QueryResult,
    Result,
)

_whole_group: ContextVar[bool] = ContextVar("whole_group", default=False)


class KnownGroups:
    """What a node knows of the groups: its own, by its configuration, and the newest map.

    `relay`: by what it passes on what is another group's; None: it tells its client where to ask.
    `tls`: what it asks other groups with; a new one with each `renew`.
    """

    def __init__(
        self, own: Group, relay: GroupRelay | None = None, tls: TlsSection | None = None
    ) -> None:
        self.relay = relay
        self.tls = tls or TlsSection()
        self.guard = GroupGuard(own.id, own.slots)
        self.own = own
        self.map: GroupMap | None = None

    def renew(self, tls: TlsSection) -> None:
        """Ask other groups with what these files hold now."""
        self.tls = tls
        if self.relay is not None:
            self.relay.renew(tls.ca)

    def learn(self, offered: GroupMap) -> bool:
        """Take a map if it may take the place of the one that is known (G2)."""
        if may_replace_map(self.map, offered):
            return False
        self.map = offered
        return True

    def enter(self, headers: Headers, template: str, name: str, query: str) -> ProblemError | None:
        """Begin a request: for this group by name, or for whatever its keys say. Raises Problem.

        Returns what refuses it here if its head shows that it is another group's (G1).
        """
        refuse_elsewhere(headers, self.own.id)
        named = headers.getall(GROUP, ())
        _whole_group.set(bool(named))
        if named and named != [self.own.id]:
            return self._elsewhere(
                f"the request is for group {', '.join(named)[:100]!r}, and this is group "
                f"{self.own.id!r}",
                self.map.group(named[0]) if self.map is not None and len(named) == 1 else None,
            )
        asked = asked_in_head(template, name, query) if self.relay is not None else None
        if asked is not None:
            error = self.guard.refusal_of(asked, whole_group=bool(named))
            if isinstance(error, WrongGroupError):
                return self.problem(error)
        return None

    async def pass_on(
        self,
        request: BaseRequest,
        template: str,
        query: str,
        refused: ProblemError,
        cluster_id: str,
        *,
        body: bytes | None,
        access_on: bool,
    ) -> Answer:
        """Return the answer of the group that `refused` names. Raises Problem."""
        if self.relay is None:
            raise refused
        return await self.relay.relay(
            request, template, query, refused, cluster_line(cluster_id) + self.line(),
            body=body, access_on=access_on,
        )  # fmt: skip

    def is_passed_on(self, asked: Operation | Query) -> bool:
        """Whether another group is asked in this one's place."""
        return self.relay is not None and self.guard.refusal_of(asked) is not None

    async def close(self) -> None:
        """Pass on nothing any more."""
        if self.relay is not None:
            await self.relay.close()

    def problem(self, error: WrongGroupError) -> ProblemError:
        """Return what a client is told: which group it is, and where, as far as it is known."""
        owner = self.map.owner(error.slot) if self.map is not None else None
        return self._elsewhere(error.detail, owner)

    def check_first(self) -> None:
        """Raise Problem unless this group keeps the map."""
        if not self.guard.is_first:
            raise self._elsewhere(
                "the first group keeps the map: publish it there",
                self.map.first if self.map is not None else None,
            )

    def line(self) -> bytes:
        """Return the header that names the map's version, if one is known."""
        return b"Onecopy-Groups: %d\r\n" % self.map.version if self.map is not None else b""

    def _elsewhere(self, detail: str, owner: Group | None) -> ProblemError:
        known = () if owner is None or owner.id == self.own.id else owner.endpoints
        return ProblemError(
            "wrong_group",
            detail,
            group="" if owner is None else owner.id,
            endpoints=known,
        )


def refuse_group(headers: Headers) -> None:
    """Raise Problem for a request that is for a group by name, where there are no groups."""
    if GROUP in headers or RELAYED in headers:
        raise ProblemError("wrong_group", "this cluster has no groups: leave out Onecopy-Group")


class GroupNode:
    """A node as its APIs see it where there are groups: refuses what is another's (G1).

    Everything that is not listed here is the node's.
    """

    def __init__(self, node: Node, guard: GroupGuard) -> None:
        self._node = node
        self.views = node.views  # each answer names the cluster: `__getattr__` takes its time
        self._guard = guard

    def __getattr__(self, name: str) -> Any:
        """Return what the node has by this name."""
        return getattr(self._node, name)

    def _check(self, asked: Operation | Query) -> None:
        refused = self._guard.refusal_of(asked, whole_group=_whole_group.get())
        if refused is not None:
            raise refused

    def submit(self, operation: Operation, timeout_ms: int, completion: Completion) -> bool:
        """Execute here; False where it is another group's: `execute` says so."""
        if self._guard.refusal_of(operation) is not None:
            return False
        return self._node.submit(operation, timeout_ms, completion)

    def read_now(self, query: Query) -> QueryResult | None:
        """Read at once, what is this group's."""
        self._check(query)
        return self._node.read_now(query)

    def submit_query(self, query: Query, timeout_ms: int, completion: QueryCompletion) -> bool:
        """Read here; False where it is another group's: `query` says so."""
        if self._guard.refusal_of(query) is not None:
            return False
        return self._node.submit_query(query, timeout_ms, completion)

    def read_here(self, query: Query) -> QueryResult:
        """Read what is applied here, of this group's."""
        self._check(query)
        return self._node.read_here(query)

    async def execute(
        self, operation: Operation, timeout_ms: int, after: OperationError | None = None
    ) -> Result:
        """Execute what is this group's."""
        self._check(operation)
        return await self._node.execute(operation, timeout_ms, after)

    async def query(
        self, query: Query, timeout_ms: int, after: NotPrimaryError | None = None
    ) -> QueryResult:
        """Read what is this group's."""
        self._check(query)
        return await self._node.query(query, timeout_ms, after)


def check_watch(guard: GroupGuard, start: bytes, end: bytes | None) -> None:
    """G1: raise what refuses a watch of the keys, or of the election, in a range."""
    guard.check_range(start, end, whole_group=_whole_group.get())


class GroupHandlers:
    """The handlers of the map. `known` None: there are no groups."""

    def __init__(
        self,
        node: Node,
        settings: HttpSettings,
        known: KnownGroups | None,
        check_admin: Callable[[BaseRequest], object],
        identify: Callable[[], bytes],
    ) -> None:
        self._node = node
        self._settings = settings
        self._known = known
        self._check_admin = check_admin
        self._identify = identify

    async def get(self, _request: BaseRequest, query: str) -> Answer:
        """GET /v1/groups: this node's group, and the newest map that it knows."""
        parse_query(query, {})
        known = self._need()
        document = msgspec.json.encode(GroupsDocument(known.own, known.map))
        return Answer(200, document, JSON, self._identify())

    async def publish(self, request: BaseRequest, query: str) -> Answer:
        """PUT /v1/groups: take the next version of the map."""
        self._check_admin(request)
        timeout_ms = parse_query(query, TIMEOUT).get(
            "timeout_ms", self._settings.request_timeout_ms
        )
        known = self._need()
        known.check_first()
        headers = request.headers
        body = await read_json(request, MAX_MAP_BYTES, self._settings.body_timeout_ms)
        operation = Operation(
            "publish",
            (body,),
            idempotency_key(headers),
            first_after=idempotency_after(headers),
            service=GROUPS_SERVICE,
        )
        await self._node.execute(operation, timeout_ms)
        return Answer(200, body, JSON, self._identify())

    def _need(self) -> KnownGroups:
        if self._known is None:
            detail = "this cluster has no groups: its configuration file has no [groups]"
            raise ProblemError("not_found", detail)
        return self._known
