"""The JSON documents of tokens and roles. See `cluster.api.documents`."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from cluster.api.documents import Positive
from cluster.services.access import MAX_NOTE_LENGTH
from cluster.services.access_guard import CERTIFICATE
from cluster.services.rights import ROLE_NAME_PATTERN, Role
from datapath.operations import Count

_NAME = "[A-Za-z0-9][A-Za-z0-9 ._@-]{0,63}"
TOKEN_ID_PATTERN = f"^(?:[0-9a-f]{{16}}|{CERTIFICATE}{_NAME})$"
TokenId = Annotated[
    str,
    Meta(
        pattern=TOKEN_ID_PATTERN,
        description=f"The id of a token, or `{CERTIFICATE}` and a certificate's common name.",
    ),
]
CertificateName = Annotated[
    str,
    Meta(
        pattern=f"^{_NAME}$",
        description="Of clients that get the role: the common name in their certificates.",
    ),
]
RoleName = Annotated[str, Meta(pattern=f"^{ROLE_NAME_PATTERN}$", description="The name of a role.")]
Note = Annotated[str, Meta(max_length=MAX_NOTE_LENGTH, description="Whose it is, or what for.")]


class TokenRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /v1/tokens."""

    role: RoleName
    note: Note = ""
    certificate: CertificateName | None = None


class TokenCreated(msgspec.Struct, frozen=True):
    """The answer to POST /v1/tokens."""

    id: TokenId
    token: Annotated[str, Meta(description="Shown this once; empty for a certificate.")]
    role: RoleName
    revision: Positive
    epoch: Positive
    copies: Positive


class TokenItem(msgspec.Struct, frozen=True):
    """One token of a list."""

    id: TokenId
    role: RoleName
    note: Note
    revision: Annotated[Positive, Meta(description="At which it was made.")]


class TokenList(msgspec.Struct, frozen=True):
    """The answer to GET /v1/tokens."""

    tokens: list[TokenItem]
    revision: Count


class AccessChanged(msgspec.Struct, frozen=True):
    """The answer to a change of tokens or roles: `name` is the token's id, or the role's name."""

    name: str
    revision: Positive
    epoch: Positive
    copies: Positive


class RoleItem(msgspec.Struct, frozen=True):
    """One role of a list."""

    name: RoleName
    rights: Role


class RoleList(msgspec.Struct, frozen=True):
    """The answer to GET /v1/roles."""

    roles: list[RoleItem]
    revision: Count


class CallerDocument(msgspec.Struct, frozen=True):
    """The answer to GET /v1/whoami."""

    access_control: Annotated[bool, Meta(description="Whether callers are judged by their token.")]
    token: Annotated[str, Meta(description="The id of the caller's token; empty: none.")]
    role: Annotated[str, Meta(description="Its role; empty where there is no access control.")]
    rights: Role


ACCESS_ANSWERS = (TokenCreated, TokenList, AccessChanged, RoleList, CallerDocument)
ACCESS_BODIES = (TokenRequest, Role)
