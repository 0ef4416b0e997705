"""Whose request it is, and whether its role allows it: the guard that the data path asks (A1).

In the keyspace ROLES:

    t ID      a token: the SHA-256 of it, its role, a note, the revision that made it;
              or, with an ID that begins with `cn=`, the role of a certificate's common name
    r NAME    a role, as JSON
    s DIGEST  a first administrator's token of that digest was taken from a configuration
    v         the revision of the last change of any of these
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import logging
import re
import secrets
from typing import NamedTuple

import msgspec

from cluster.services.rights import (
    ADMIN,
    ADMIN_ROLE,
    Need,
    Role,
    decode_role,
    may,
    may_read_key,
    needs_of,
    said,
)
from datapath.errors import NotPrimaryError, OperationError, OperationNotAppliedError
from datapath.execution.access_guard import MAX_RIGHTS_AGE_MS, StateReader
from datapath.keyspaces import ROLES
from datapath.operations import ANONYMOUS, STORE, Operation, Principal, Query

logger = logging.getLogger(__name__)

TOKEN, ROLE, SEEDED = b"t", b"r", b"s"
VERSION_KEY = b"v"
CERTIFICATE = "cn="
"""Begins the id of a certificate's name among those of tokens, which have hexadecimal digits."""

_MAX_KNOWN = 1024
"""Callers whose roles are kept, each until its token or its role changes."""
_TOKEN = re.compile(r"oct_([0-9a-f]{16})_[A-Za-z0-9_-]{43}")
_SHOWN = re.compile(r"(oct_[0-9a-f]{16}_)[A-Za-z0-9_-]+")


class StoredToken(msgspec.Struct, frozen=True, array_like=True):
    """A token as it is stored."""

    digest: bytes
    role: str
    note: str
    revision: int


_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(StoredToken)


def encode_token(token: StoredToken) -> bytes:
    """Return what stands under a token's id."""
    return _encode(token)


@functools.lru_cache(maxsize=4096)
def decode_token(stored: bytes) -> StoredToken:
    """Return a token as it is stored."""
    return _decoder.decode(stored)


class NewToken(NamedTuple):
    """A token that was just drawn: its text, which is shown once, its id, and its digest."""

    text: str
    id: str
    digest: bytes


def draw_token() -> NewToken:
    """Draw a token: 256 random bits, and an id that says nothing about them."""
    text = f"oct_{secrets.token_hex(8)}_{secrets.token_urlsafe(32)}"
    principal = principal_of(text)
    assert principal is not None
    return NewToken(text, principal.token, principal.digest)


def of_certificate(name: str) -> NewToken:
    """Return what stands for a certificate's name in place of a token: an id, and no digest."""
    return NewToken("", CERTIFICATE + name, b"")


def hash_line(token: NewToken) -> str:
    """Return what a configuration has of the first administrator's token."""
    return f"{token.id}:{token.digest.hex()}"


def principal_of(text: str) -> Principal | None:
    """Return whom a token's text names, not whether it is right; None: it is no token.

    One fast hash is enough: nobody guesses 256 random bits.
    """
    found = _TOKEN.fullmatch(text)
    if found is None:
        return None
    return Principal(found[1], hashlib.sha256(text.encode()).digest())


def without_tokens(text: str) -> str:
    """Return a text that says of each token, or beginning of one, whose it is and no more (A2).

    For what is written down, or told to others, and has come from a caller: a path, say.
    """
    return _SHOWN.sub(r"\1…", text) if "oct_" in text else text


def principal_of_certificate(name: str) -> Principal:
    """Return who has shown a certificate of this common name, "" for none, at this node.

    Only the node that has verified it may call this: nothing else proves it. A request's header
    cannot name such an id (`principal_of`), and another node's word is taken as for all it sends.
    """
    return Principal(CERTIFICATE + name) if name else ANONYMOUS


def is_certificate(token_id: str) -> bool:
    """Whether an id is that of a certificate's name."""
    return token_id.startswith(CERTIFICATE)


def unauthenticated(detail: str) -> OperationNotAppliedError:
    """Make the refusal of a caller that is not known."""
    return OperationNotAppliedError("unauthenticated", detail)


def forbidden(role: str, need: Need) -> OperationNotAppliedError:
    """Make the refusal of a caller whose role does not allow it."""
    return OperationNotAppliedError("forbidden", f"role {role!r} does not have {said(need)}")


class _Known(NamedTuple):
    """A caller who was found to have a role: what stood in the state, and the role."""

    token_key: bytes
    token: bytes
    role_key: bytes
    role: bytes | None
    found: tuple[str, Role]


class TokenGuard:
    """The guard of one node. `anonymous`: the role of callers without a token; "": none.

    `is_on`: as configured; and as soon as the cluster is found to have access control. A node whose
    configuration lacks it must not be the way around it. `first`: whose token its file names.
    """

    mark = ROLES, VERSION_KEY

    def __init__(
        self,
        *,
        is_on: bool = True,
        anonymous: str = "",
        first: Principal | None = None,
        max_age_ms: float = MAX_RIGHTS_AGE_MS,
    ) -> None:
        self.is_on = is_on
        self.max_age_ms = max_age_ms
        self.anonymous = anonymous
        self._first = first
        self._known: dict[Principal, _Known] = {}

    def notice(self, held: bytes | None) -> None:
        """Take what stands under the mark: with a token or a role there is access control."""
        if held is not None and not self.is_on:
            self.is_on = True
            logger.error(
                "this cluster has access control, and the configuration of this node has not: "
                "requests without a token are refused here too. Add [access] to its file"
            )

    def judge(self, asked: Operation | Query, read: StateReader) -> OperationError | str:
        """Return the name of the role for which it may be done, or what refuses it (A1)."""
        assert asked.caller is not None
        found = self._role_of(asked.caller, read)
        if isinstance(found, OperationError):
            return found
        name, role = found
        if role.admin:  # whatever it needs
            return name
        if isinstance(asked, Query):
            lock = None
            if asked.method == "get" and asked.service == STORE and may_read_key(role, asked.args):
                return name
        else:
            lock = asked.if_lock
        for need in needs_of(asked.service, asked.method, asked.args, lock):
            if not may(role, need):
                return forbidden(name, need)
        return name

    def judge_admin(self, caller: Principal, read: StateReader) -> OperationError | str:
        """Return the same of a change of the cluster itself."""
        found = self._role_of(caller, read)
        if isinstance(found, OperationError):
            return found
        name, role = found
        need = Need("admin")
        return name if may(role, need) else forbidden(name, need)

    def is_configured_admin(self, caller: Principal, read: StateReader) -> bool:
        """Whether this node's own file makes a caller an administrator, with nobody to ask (A1)."""
        if not caller.token:
            return self.anonymous == ADMIN_ROLE
        return self._first is not None and is_first_admin(self._first, caller, read)

    def _role_of(self, caller: Principal, read: StateReader) -> OperationError | tuple[str, Role]:
        known = self._known.get(caller)
        if known is not None and is_unchanged(known, read):
            return known.found
        found = self._find_role(caller, read)
        if caller.token and not isinstance(found, OperationError):
            token_key, role_key = TOKEN + caller.token.encode(), ROLE + found[0].encode()
            token = read(ROLES, token_key)
            if token is not None:
                if len(self._known) >= _MAX_KNOWN:
                    self._known.clear()
                self._known[caller] = _Known(
                    token_key, token, role_key, read(ROLES, role_key), found
                )
        return found

    def _find_role(self, caller: Principal, read: StateReader) -> OperationError | tuple[str, Role]:
        token = None
        if caller.token:
            held = read(ROLES, TOKEN + caller.token.encode())
            token = None if held is None else decode_token(held)
            if token is None and read(ROLES, VERSION_KEY) is None:
                return _starting()
        if token is not None and is_proved(caller, token):
            name = token.role
        elif caller.token and not is_certificate(caller.token):
            return unauthenticated("the token is unknown, or was revoked")
        elif self.anonymous:  # also for a certificate without a role: no less than without one
            name = self.anonymous
        else:
            return unauthenticated(_needed(caller))
        if name == ADMIN_ROLE:
            return name, ADMIN
        stored = read(ROLES, ROLE + name.encode())
        if stored is None:
            return unauthenticated(
                f"there is no role {name!r}, which callers without a token are to have"
                if token is None
                else f"there is no role {name!r} any more, which this token has"
            )
        return name, decode_role(stored)


def is_first_admin(first: Principal, caller: Principal, read: StateReader) -> bool:
    """A1: whether a caller has shown the token of a configuration, as far as this state goes.

    A state that has no tokens says nothing of which were revoked.
    """
    if caller.token != first.token or not hmac.compare_digest(caller.digest, first.digest):
        return False
    held = read(ROLES, TOKEN + caller.token.encode())
    if held is not None:
        token = decode_token(held)
        return is_proved(caller, token) and token.role == ADMIN_ROLE
    is_revoked = read(ROLES, SEEDED + caller.digest) is not None
    return read(ROLES, VERSION_KEY) is not None and not is_revoked


def is_unchanged(known: _Known, read: StateReader) -> bool:
    """A1: whether what a caller's role was found by stands there still: the very same objects.

    So it is what would be found again, whichever state `read` reads; equal ones are looked at anew.
    """
    return read(ROLES, known.token_key) is known.token and read(ROLES, known.role_key) is known.role


def is_proved(caller: Principal, token: StoredToken) -> bool:
    """A1: whether a caller has shown the very token that is known under this id.

    A certificate's name has no token, and was proved to the node that answers.
    """
    return hmac.compare_digest(caller.digest, token.digest)


def _needed(caller: Principal) -> str:
    needed = "a token is needed: send Authorization: Bearer TOKEN"
    if not caller.token:
        return needed
    name = caller.token.removeprefix(CERTIFICATE)
    return f"no role is given to certificates of the name {name[:100]!r}, and {needed}"


def _starting() -> NotPrimaryError:
    return NotPrimaryError(
        "access_starting", "the first administrator's token is not known yet: try again in a moment"
    )
