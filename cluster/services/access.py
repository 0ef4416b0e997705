"""Tokens and roles: who may do what in this cluster, in the replicated state.

Of a token only the hash is kept. Each right is checked by `cluster.services.access_guard` inside
the operation that it is for; here is what changes tokens and roles. Whatever would leave nobody who
may change them is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from cluster.services import rights
from cluster.services.access_guard import (
    ROLE,
    SEEDED,
    TOKEN,
    VERSION_KEY,
    StoredToken,
    decode_token,
    encode_token,
    is_certificate,
)
from cluster.services.rights import (
    ADMIN,
    ADMIN_ROLE,
    Role,
    decode_role,
    encode_role,
    leaves_an_admin,
)
from datapath import keyspaces
from datapath.errors import RejectedError
from datapath.operations import Principal
from datapath.service import ReadTransaction, Service, Transaction, operation, query

ACCESS_SERVICE = rights.ACCESS
MAX_TOKENS = 10_000
MAX_ROLES = 1000
MAX_NOTE_LENGTH = 200


class Access(Service):
    """The tokens and roles of a cluster. `first`: the first administrator's, as configured."""

    keyspace: ClassVar[int] = keyspaces.ROLES
    scans = frozenset({"tokens", "roles"})

    def __init__(self, first: Principal | None = None) -> None:
        super().__init__()
        self._first = first
        self._is_seeded = False

    # -- operations

    @operation
    def seed(self, tx: Transaction, token: str, digest: bytes) -> bool:
        """Take a first administrator's token, each once ever: a revoked one stays revoked."""
        if tx.get(SEEDED + digest) is not None:
            return False
        tx.put(SEEDED + digest, b"1")
        stored = StoredToken(digest, ADMIN_ROLE, "from the configuration", tx.index)
        tx.put(TOKEN + token.encode(), encode_token(stored))
        _changed(tx)
        return True

    @operation
    def create_token(
        self, tx: Transaction, token: str, digest: bytes, role: str, note: str
    ) -> bool:
        """Make a token, or give a certificate's name its role, another one than before say.

        Raises RejectedError "unknown_role", "too_many_tokens".
        """
        _need_role(tx, role)
        if len(tx.range(TOKEN, _END_OF_TOKENS, MAX_TOKENS)) >= MAX_TOKENS:
            raise RejectedError(
                "too_many_tokens", f"there are {MAX_TOKENS} tokens: revoke those of no use"
            )
        stored = StoredToken(digest, role, note, tx.index)
        tx.put(TOKEN + token.encode(), encode_token(stored))
        _changed(tx)
        return True

    @operation
    def revoke_token(self, tx: Transaction, token: str) -> bool:
        """Remove a token. Raises RejectedError "unknown_token", "last_admin"."""
        if tx.get(TOKEN + token.encode()) is None:
            raise RejectedError("unknown_token", f"there is no token {token!r}")
        tx.delete(TOKEN + token.encode())
        _check_admins(tx, f"token {token} is the last one with the right `admin`")
        _changed(tx)
        return True

    @operation
    def set_role(self, tx: Transaction, name: str, role: bytes) -> bool:
        """Make a role or replace it; return whether it is new.

        Raises RejectedError "role_reserved", "too_many_roles", "last_admin".
        """
        _check_not_built_in(name)
        is_new = tx.get(ROLE + name.encode()) is None
        if is_new and len(tx.range(ROLE, _END_OF_ROLES, MAX_ROLES)) >= MAX_ROLES:
            raise RejectedError("too_many_roles", f"there are {MAX_ROLES} roles: delete some")
        tx.put(ROLE + name.encode(), role)
        _check_admins(tx, f"the last tokens with the right `admin` have it by role {name!r}")
        _changed(tx)
        return is_new

    @operation
    def delete_role(self, tx: Transaction, name: str) -> bool:
        """Remove a role. Raises RejectedError "role_reserved", "unknown_role", "role_in_use"."""
        _check_not_built_in(name)
        _need_role(tx, name)
        for token, stored in _tokens(tx):
            if stored.role == name:
                raise RejectedError(
                    "role_in_use", f"token {token} has role {name!r}: revoke its tokens first"
                )
        tx.delete(ROLE + name.encode())
        _changed(tx)
        return True

    # -- queries

    @query
    def tokens(self, tx: ReadTransaction) -> list[tuple[str, str, str, int]]:
        """Return (id, role, note, revision) of all tokens."""
        return [(token, item.role, item.note, item.revision) for token, item in _tokens(tx)]

    @query
    def roles(self, tx: ReadTransaction) -> list[tuple[str, bytes]]:
        """Return (name, JSON) of all roles but the one that is built in."""
        found = tx.range(ROLE, _END_OF_ROLES, MAX_ROLES)
        return [(key[len(ROLE) :].decode(), stored) for key, stored in found]

    @query
    def role_of(self, tx: ReadTransaction, token: str, anonymous: str) -> tuple[str, bytes] | None:
        """Return (name, JSON) of a token's role; of a caller without one, that of `anonymous`."""
        held = tx.get(TOKEN + token.encode()) if token else None
        name = decode_token(held).role if held is not None else "" if token else anonymous
        if name == ADMIN_ROLE:
            return name, encode_role(ADMIN)
        stored = tx.get(ROLE + name.encode())
        return None if stored is None else (name, stored)

    @query
    def permits(
        self, tx: ReadTransaction, right: str, start: bytes | None, end: bytes | None
    ) -> bool:
        """Return True: it needs that right itself, and is refused without it."""
        del tx, right, start, end
        return True

    @query
    def changed_at(self, tx: ReadTransaction) -> int:
        """Return the revision of the last change of a token or a role; 0: there was none."""
        return int.from_bytes(tx.get(VERSION_KEY) or b"")

    # -- what the primary does by itself

    def on_epoch_open(self, now_ms: float) -> None:
        """Look again whether the first administrator's token is known."""
        del now_ms
        self._is_seeded = False

    def due(self, tx: ReadTransaction, now_ms: float) -> tuple[str, tuple[Any, ...]] | None:
        """Return the operation that takes the first administrator's token."""
        del now_ms
        first = self._first
        if first is None or self._is_seeded:
            return None
        if tx.get(SEEDED + first.digest) is not None:
            self._is_seeded = True
            return None
        return "seed", (first.token, first.digest)


_END_OF_TOKENS = bytes([TOKEN[0] + 1])
_END_OF_ROLES = bytes([ROLE[0] + 1])


def _tokens(tx: ReadTransaction) -> Iterator[tuple[str, StoredToken]]:
    for key, stored in tx.range(TOKEN, _END_OF_TOKENS, MAX_TOKENS + 1):
        yield key[len(TOKEN) :].decode(), decode_token(stored)


def _changed(tx: Transaction) -> None:
    tx.put(VERSION_KEY, tx.index.to_bytes(8))


def _need_role(tx: ReadTransaction, name: str) -> None:
    if name != ADMIN_ROLE and tx.get(ROLE + name.encode()) is None:
        raise RejectedError("unknown_role", f"there is no role {name!r}: make it first")


def _check_not_built_in(name: str) -> None:
    if name == ADMIN_ROLE:
        raise RejectedError(
            "role_reserved", f"role {ADMIN_ROLE!r} is built in: use another name for yours"
        )


def _check_admins(tx: ReadTransaction, why_not: str) -> None:
    """Refuse what leaves nobody who may change tokens and roles; the writes are seen by `tx`."""
    roles: dict[str, Role] = {
        key[len(ROLE) :].decode(): decode_role(stored)
        for key, stored in tx.range(ROLE, _END_OF_ROLES, MAX_ROLES + 1)
    }
    # A certificate's name does not count: nobody knows here whether somebody has one.
    holders = (stored.role for token, stored in _tokens(tx) if not is_certificate(token))
    if not leaves_an_admin(holders, roles):
        raise RejectedError(
            "last_admin",
            f"{why_not}, and nobody could change tokens and roles any more: make another first",
        )
