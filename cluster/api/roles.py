"""`/v1/tokens` and `/v1/roles`: who may do what, for those with the right `admin`; `/v1/whoami`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from aiohttp.web import BaseRequest

from cluster.api.access import ApiAccess
from cluster.api.access_documents import (
    AccessChanged,
    CallerDocument,
    RoleItem,
    RoleList,
    TokenCreated,
    TokenItem,
    TokenList,
    TokenRequest,
)
from cluster.api.answer import JSON, Answer
from cluster.api.body import read_json
from cluster.api.headers import state_lines, who_lines, written_lines
from cluster.api.leases import MAX_BODY_SIZE_BYTES, decode_body
from cluster.api.params import TIMEOUT, decode_percent, parse_query
from cluster.api.problems import ProblemError
from cluster.api.settings import HttpSettings
from cluster.services.access import ACCESS_SERVICE
from cluster.services.access_guard import draw_token, of_certificate
from cluster.services.rights import (
    ADMIN,
    ADMIN_ROLE,
    ALL_BUT_ADMIN,
    Role,
    check_role,
    decode_role,
    encode_role,
)
from datapath.operations import Node, Operation, Query, QueryResult, Result

_NO_STORE = b"Cache-Control: no-store\r\n"
BodyT = TypeVar("BodyT", bound=msgspec.Struct)


class RoleHandlers:
    """The handlers of tokens and roles."""

    def __init__(
        self,
        node: Node,
        settings: HttpSettings,
        access: ApiAccess,
        may_change_cluster: Callable[[BaseRequest], bool],
    ) -> None:
        """`may_change_cluster`: whether a request may, where there is no access control."""
        self._node = node
        self._may_change_cluster = may_change_cluster
        self._access = access
        self._body_timeout_ms = settings.body_timeout_ms
        self._timeout_ms = settings.request_timeout_ms

    async def whoami(self, request: BaseRequest, query: str) -> Answer:
        """GET /v1/whoami."""
        timeout_ms = parse_query(query, TIMEOUT).get("timeout_ms") or self._timeout_ms
        caller = self._access.current()
        if caller is None:
            rights = ADMIN if self._may_change_cluster(request) else ALL_BUT_ADMIN
            document = CallerDocument(access_control=False, token="", role="", rights=rights)
            node = self._node
            who = who_lines(node.node_id, node.epoch, node.views.cluster_id)
            return Answer(200, msgspec.json.encode(document), JSON, _NO_STORE + who)
        asked = Query("role_of", (caller.token, self._access.anonymous), service=ACCESS_SERVICE)
        result = await self._node.query(asked, timeout_ms)
        if result.value is None:
            raise ProblemError("unauthenticated", "the token was revoked just now")
        name, stored = result.value
        document = CallerDocument(
            access_control=True, token=caller.token, role=name, rights=decode_role(stored)
        )
        return self._read_answer(document, result)

    async def create_token(self, request: BaseRequest, query: str) -> Answer:
        """POST /v1/tokens. The token is drawn here: the primary and the log have only its hash."""
        timeout_ms = self._timeout(query)
        asked = await self._read(request, TokenRequest)
        new = draw_token() if asked.certificate is None else of_certificate(asked.certificate)
        args = (new.id, new.digest, asked.role, asked.note)
        result = await self._execute("create_token", args, timeout_ms)
        created = TokenCreated(new.id, new.text, asked.role, *_committed(result))
        return self._written(created, result, 201)

    async def list_tokens(self, _request: BaseRequest, query: str) -> Answer:
        """GET /v1/tokens."""
        result = await self._query("tokens", query)
        tokens = [TokenItem(*item) for item in result.value]
        return self._read_answer(TokenList(tokens, result.index), result)

    async def revoke_token(self, _request: BaseRequest, raw_token: str, query: str) -> Answer:
        """DELETE /v1/tokens/{id}."""
        timeout_ms = self._timeout(query)
        token = _name(raw_token, "unknown_token")
        result = await self._execute("revoke_token", (token,), timeout_ms)
        return self._written(AccessChanged(token, *_committed(result)), result)

    async def list_roles(self, _request: BaseRequest, query: str) -> Answer:
        """GET /v1/roles."""
        result = await self._query("roles", query)
        roles = [RoleItem(ADMIN_ROLE, ADMIN)]
        roles += [RoleItem(name, decode_role(stored)) for name, stored in result.value]
        return self._read_answer(RoleList(roles, result.index), result)

    async def set_role(self, request: BaseRequest, raw_name: str, query: str) -> Answer:
        """PUT /v1/roles/{name}."""
        timeout_ms = self._timeout(query)
        name = _name(raw_name, "unknown_role")
        role = await self._read(request, Role)
        if problem := check_role(name, role):
            raise ProblemError("invalid_body", problem)
        result = await self._execute("set_role", (name, encode_role(role)), timeout_ms)
        changed = AccessChanged(name, *_committed(result))
        return self._written(changed, result, 201 if result.value else 200)

    async def delete_role(self, _request: BaseRequest, raw_name: str, query: str) -> Answer:
        """DELETE /v1/roles/{name}."""
        timeout_ms = self._timeout(query)
        name = _name(raw_name, "unknown_role")
        result = await self._execute("delete_role", (name,), timeout_ms)
        return self._written(AccessChanged(name, *_committed(result)), result)

    def _timeout(self, query: str) -> int:
        if not self._access.is_on:
            raise ProblemError(
                "access_off",
                "this cluster has no access control: add a section [access] to the configuration "
                "file of every node, and restart them one by one",
            )
        return parse_query(query, TIMEOUT).get("timeout_ms") or self._timeout_ms

    async def _read(self, request: BaseRequest, kind: type[BodyT]) -> BodyT:
        return decode_body(
            await read_json(request, MAX_BODY_SIZE_BYTES, self._body_timeout_ms), kind
        )

    async def _execute(self, method: str, args: tuple[Any, ...], timeout_ms: int) -> Result:
        operation = Operation(method, args, service=ACCESS_SERVICE)
        return await self._node.execute(operation, timeout_ms)

    async def _query(self, method: str, query: str) -> QueryResult:
        timeout_ms = self._timeout(query)
        return await self._node.query(Query(method, service=ACCESS_SERVICE), timeout_ms)

    def _written(self, document: msgspec.Struct, result: Result, status: int = 200) -> Answer:
        lines = _NO_STORE + written_lines(result, self._node.views.cluster_id)
        return Answer(status, msgspec.json.encode(document), JSON, lines)

    def _read_answer(self, document: msgspec.Struct, result: QueryResult) -> Answer:
        lines = _NO_STORE + state_lines(result, self._node.views.cluster_id)
        return Answer(200, msgspec.json.encode(document), JSON, lines)


def _name(raw_name: str, code: str) -> str:
    name = decode_percent(raw_name, "the path", "not_found").decode("utf-8", "replace")
    if not name or "/" in name:
        raise ProblemError(code, f"{name[:100]!r} is no name")
    return name


def _committed(result: Result) -> tuple[int, int, int]:
    return result.index, result.epoch, result.copies
