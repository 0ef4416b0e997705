"""The OpenAPI document's operations on tokens and roles."""

from __future__ import annotations

from cluster.api.access_documents import (
    TOKEN_ID_PATTERN,
    AccessChanged,
    CallerDocument,
    RoleItem,
    RoleList,
    TokenCreated,
    TokenItem,
    TokenList,
    TokenRequest,
)
from cluster.api.params import TIMEOUT
from cluster.api.schemas import (
    ANY_ROLE_CODES,
    BODY_CODES,
    PARAMETER_CODES,
    READ_CODES,
    WRITE_CODES,
    Json,
    api_operation,
    json_answer,
    json_content,
    query_parameters,
)
from cluster.services.rights import Role

_ROLE = Role(read=("app/",), write=("app/",), lock=("jobs/",))
_CHANGED = AccessChanged(name="app", revision=42, epoch=3, copies=3)
_TOKEN = "1f3c9a0b7d2e4f58"  # noqa: S105 -- an id, and an example
_READ = (*PARAMETER_CODES, "access_off", *READ_CODES)
_WRITE = (*PARAMETER_CODES, "access_off", *WRITE_CODES)
_JSON = ("invalid_body", "unsupported_media_type", *BODY_CODES)


def token_parameter() -> Json:
    """Return a token's id in the path."""
    schema = {"type": "string", "pattern": TOKEN_ID_PATTERN}
    return {"name": "id", "in": "path", "required": True, "schema": schema, "example": _TOKEN}


def role_parameter() -> Json:
    """Return a role's name in the path."""
    schema = {"type": "string", "pattern": "^[a-z][a-z0-9_-]{0,30}$"}
    return {"name": "name", "in": "path", "required": True, "schema": schema, "example": "app"}


def whoami() -> Json:
    """Return GET /v1/whoami."""
    caller = CallerDocument(access_control=True, token=_TOKEN, role="app", rights=_ROLE)
    return api_operation(
        "whoami", "The caller's role and rights",
        {"200": json_answer("Who asks.", caller, "Onecopy-Revision")},
        (*PARAMETER_CODES, *READ_CODES), access=ANY_ROLE_CODES,
        parameters=query_parameters(TIMEOUT),
    )  # fmt: skip


def list_tokens() -> Json:
    """Return GET /v1/tokens."""
    item = TokenItem(id=_TOKEN, role="app", note="worker 1", revision=42)
    answer = json_answer("All tokens.", TokenList([item], 57), "Onecopy-Revision")
    return api_operation(
        "listTokens", "Tokens, without what proves them", {"200": answer}, _READ,
        parameters=query_parameters(TIMEOUT),
    )  # fmt: skip


def create_token() -> Json:
    """Return POST /v1/tokens."""
    created = TokenCreated(
        id=_TOKEN, token=f"oct_{_TOKEN}_…", role="app", revision=42, epoch=3, copies=3
    )
    return api_operation(
        "createToken",
        "Make a token, which is shown this once; or give a role to a certificate's name",
        {"201": json_answer("The token.", created, "Idempotent-Replayed", "Onecopy-Revision")},
        (*_WRITE, *_JSON, "unknown_role", "too_many_tokens"),
        write=True,
        parameters=query_parameters(TIMEOUT),
        requestBody={"required": True, "content": json_content(TokenRequest("app", "worker 1"))},
    )


def revoke_token() -> Json:
    """Return DELETE /v1/tokens/{id}."""
    return api_operation(
        "revokeToken",
        "Revoke a token",
        {"200": json_answer("It is revoked.", _CHANGED, "Idempotent-Replayed", "Onecopy-Revision")},
        (*_WRITE, "not_found", "unknown_token", "last_admin"),
        write=True,
        parameters=query_parameters(TIMEOUT),
    )


def list_roles() -> Json:
    """Return GET /v1/roles."""
    answer = json_answer("All roles.", RoleList([RoleItem("app", _ROLE)], 57), "Onecopy-Revision")
    return api_operation(
        "listRoles", "Roles and their rights", {"200": answer}, _READ,
        parameters=query_parameters(TIMEOUT),
    )  # fmt: skip


def set_role() -> Json:
    """Return PUT /v1/roles/{name}."""
    lines = ("Idempotent-Replayed", "Onecopy-Revision")
    return api_operation(
        "setRole",
        "Make a role, or replace it",
        {
            "200": json_answer("Replaced.", _CHANGED, *lines),
            "201": json_answer("Created.", _CHANGED, *lines),
        },
        (*_WRITE, *_JSON, "not_found", "unknown_role", "role_reserved", "too_many_roles",
         "last_admin"),
        write=True,
        parameters=query_parameters(TIMEOUT),
        requestBody={"required": True, "content": json_content(_ROLE)},
    )  # fmt: skip


def delete_role() -> Json:
    """Return DELETE /v1/roles/{name}."""
    return api_operation(
        "deleteRole",
        "Delete a role that no token has",
        {"200": json_answer("It is gone.", _CHANGED, "Idempotent-Replayed", "Onecopy-Revision")},
        (*_WRITE, "not_found", "unknown_role", "role_reserved", "role_in_use"),
        write=True,
        parameters=query_parameters(TIMEOUT),
    )
