"""What a `Client` has for tokens and roles; see `cluster.client.access_calls`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from cluster.client.results import NewTokenInfo, RoleInfo, RoleRights, TokenInfo


class AccessCalls:
    """What a `Client` has for who gives out rights."""

    _run: Callable[..., Any]

    def create_token(
        self,
        role: str,
        *,
        note: str = "",
        certificate: str = "",
        timeout_ms: int | None = None,
    ) -> NewTokenInfo:
        """Make a token, which is told this once; or give a role to a certificate's name."""
        made = self._run(
            lambda client: client.create_token(
                role, note=note, certificate=certificate, timeout_ms=timeout_ms
            ),
            timeout_ms,
            write="",
        )
        return cast("NewTokenInfo", made)

    def list_tokens(self, *, timeout_ms: int | None = None) -> list[TokenInfo]:
        """Return all tokens, without what proves them."""
        found = self._run(lambda client: client.list_tokens(timeout_ms=timeout_ms), timeout_ms)
        return cast("list[TokenInfo]", found)

    def revoke_token(self, token_id: str, *, timeout_ms: int | None = None) -> None:
        """Revoke a token by its id: it is refused everywhere within about a second."""
        self._run(
            lambda client: client.revoke_token(token_id, timeout_ms=timeout_ms),
            timeout_ms,
            write="",
        )

    def set_role(self, name: str, rights: RoleRights, *, timeout_ms: int | None = None) -> None:
        """Make a role or replace it."""
        self._run(
            lambda client: client.set_role(name, rights, timeout_ms=timeout_ms),
            timeout_ms,
            write="",
        )

    def list_roles(self, *, timeout_ms: int | None = None) -> list[RoleInfo]:
        """Return all roles."""
        found = self._run(lambda client: client.list_roles(timeout_ms=timeout_ms), timeout_ms)
        return cast("list[RoleInfo]", found)

    def delete_role(self, name: str, *, timeout_ms: int | None = None) -> None:
        """Delete a role that no token has."""
        self._run(
            lambda client: client.delete_role(name, timeout_ms=timeout_ms), timeout_ms, write=""
        )
