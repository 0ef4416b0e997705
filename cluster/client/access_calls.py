"""The client's calls for tokens and roles; all need the right `admin`."""

from __future__ import annotations

from urllib.parse import quote

import msgspec

from cluster.client.arguments import check_text, check_timeout
from cluster.client.exchange import Request, raise_for
from cluster.client.requests import JSON_HEADERS, decode_reply
from cluster.client.results import NewTokenInfo, RoleInfo, RoleRights, TokenInfo
from cluster.client.retries import Transport


class _Tokens(msgspec.Struct, frozen=True):
    tokens: list[TokenInfo]


class _Roles(msgspec.Struct, frozen=True):
    roles: list[RoleInfo]


class AsyncAccessCalls:
    """What `AsyncClient` offers to who gives out rights."""

    _transport: Transport

    async def create_token(
        self,
        role: str,
        *,
        note: str = "",
        certificate: str = "",
        timeout_ms: int | None = None,
    ) -> NewTokenInfo:
        """Make a token. It is told this once; a second try after a lost answer makes another.

        `certificate`: give clients' certificates of this common name the role, and make no token.
        """
        body = {"role": check_text("role", role), "note": check_text("note", note)}
        if check_text("certificate", certificate):
            body["certificate"] = certificate
        call = Request(
            "POST",
            "/v1/tokens",
            JSON_HEADERS,
            msgspec.json.encode(body),
            writes=True,
            retry_unknown=False,
        )
        reply = await self._transport.call(call, check_timeout(timeout_ms))
        return decode_reply(call, reply, NewTokenInfo, (201,))

    async def list_tokens(self, *, timeout_ms: int | None = None) -> list[TokenInfo]:
        """Return all tokens, without what proves them."""
        call = Request("GET", "/v1/tokens")
        reply = await self._transport.call(call, check_timeout(timeout_ms))
        return decode_reply(call, reply, _Tokens).tokens

    async def revoke_token(self, token_id: str, *, timeout_ms: int | None = None) -> None:
        """Revoke a token by its id: it is refused everywhere within about a second."""
        await self._delete("/v1/tokens/", check_text("token_id", token_id), timeout_ms)

    async def set_role(
        self, name: str, rights: RoleRights, *, timeout_ms: int | None = None
    ) -> None:
        """Make a role or replace it."""
        target = f"/v1/roles/{quote(check_text('name', name), safe='')}"
        if not isinstance(rights, RoleRights):
            raise TypeError(f"rights must be a RoleRights, not {type(rights).__name__}")
        body = msgspec.json.encode(rights)
        call = Request("PUT", target, JSON_HEADERS, body, writes=True)  # twice is as good as once
        reply = await self._transport.call(call, check_timeout(timeout_ms))
        if reply.status not in {200, 201}:
            raise_for(call, reply)

    async def list_roles(self, *, timeout_ms: int | None = None) -> list[RoleInfo]:
        """Return all roles."""
        call = Request("GET", "/v1/roles")
        reply = await self._transport.call(call, check_timeout(timeout_ms))
        return decode_reply(call, reply, _Roles).roles

    async def delete_role(self, name: str, *, timeout_ms: int | None = None) -> None:
        """Delete a role that no token has."""
        await self._delete("/v1/roles/", check_text("name", name), timeout_ms)

    async def _delete(self, folder: str, name: str, timeout_ms: int | None) -> None:
        call = Request("DELETE", folder + quote(name, safe=""), writes=True, retry_unknown=False)
        reply = await self._transport.call(call, check_timeout(timeout_ms))
        if reply.status != 200:
            raise_for(call, reply)
