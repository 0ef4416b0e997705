"""Which right each route and method needs: the one table, for the API, its document and the tests.

It is checked before a handler is called, for any key at all; the operation that the handler asks
for is then checked by the keys, locks and services that it names (`cluster.services.rights`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from cluster.api.params import BACKUP_PARAMS, REMOVE_PARAMS, known_params, waits_for_change
from cluster.services.rights import Right

OPEN: Final = "open"
"""In place of a right: anybody may ask, with or without a token."""

PAGES: Final = "/ui/"
"""The dashboard's files. They say nothing; what they show is asked of the API, with a token."""

ROUTE_RIGHTS: Mapping[str, Mapping[str, Right | str]] = {
    "/v1/kv/{key}": {"PUT": "write", "GET": "read", "DELETE": "write"},
    "/v1/kv": {"GET": "read", "DELETE": "write"},
    "/v1/txn": {"POST": "status"},
    "/v1/watch": {"GET": "watch"},
    "/v1/leases": {"GET": "admin", "POST": "lease"},
    "/v1/leases/keepalive": {"POST": "lease"},
    "/v1/leases/{id}": {"GET": "lease", "DELETE": "lease"},
    "/v1/leases/{id}/keepalive": {"POST": "lease"},
    "/v1/locks": {"GET": "lock"},
    "/v1/locks/{name}": {"GET": "lock", "POST": "lock", "DELETE": "lease"},
    "/v1/elections/{name}": {"GET": "lock", "POST": "lock", "DELETE": "lease"},
    "/v1/elections/{name}/observe": {"GET": "lock"},
    "/v1/services": {"GET": "status"},
    "/v1/services/{service}/{method}": {"GET": "call", "POST": "call"},
    "/v1/tokens": {"GET": "admin", "POST": "admin"},
    "/v1/tokens/{id}": {"DELETE": "admin"},
    "/v1/roles": {"GET": "admin"},
    "/v1/roles/{name}": {"PUT": "admin", "DELETE": "admin"},
    "/v1/whoami": {"GET": "status"},
    "/v1/cluster": {"GET": "status"},
    "/v1/cluster/views": {"GET": "status"},
    "/v1/cluster/handover": {"POST": "admin"},
    "/v1/cluster/finish-upgrade": {"POST": "admin"},
    "/v1/cluster/nodes/{id}": {"DELETE": "admin", "PATCH": "admin"},
    "/v1/groups": {"GET": OPEN, "PUT": "admin"},
    "/v1/digest": {"GET": "admin"},
    "/v1/backup": {"GET": "admin"},
    "/livez": {"GET": OPEN},
    "/readyz": {"GET": OPEN},
    "/primary": {"GET": OPEN},
    "/metrics": {"GET": "status"},
    "/openapi.json": {"GET": OPEN},
}


def right_for(template: str, method: str, query: str = "") -> Right | str:
    """Return what a request needs. What is not in the table needs the right `admin`."""
    if template == PAGES:
        return OPEN
    method = "GET" if method == "HEAD" else method
    right = ROUTE_RIGHTS.get(template, {}).get(method, "admin")
    if right == "read" and template == "/v1/kv/{key}" and waits_for_change(query):
        return "watch"
    return right


def is_for_no_primary(template: str, method: str, query: str) -> bool:
    """Whether a request is for a cluster that has no primary, and waits for none.

    `onecopy backup --stale` and `onecopy remove --force`.
    """
    match template, method:
        case "/v1/backup", "GET":
            return known_params(query, BACKUP_PARAMS).get("consistency") == "stale"
        case "/v1/cluster/nodes/{id}", "DELETE":
            return "force" in known_params(query, REMOVE_PARAMS)
    return False


def with_rights(paths: Mapping[str, Any], general: str) -> dict[str, Any]:
    """Return an OpenAPI document's paths, with the right that each operation needs.

    Paths below that of `general` (a template) need what it needs.
    """
    stem = general.partition("{")[0]
    return {
        path: {
            method: _with_right(item, general if path.startswith(stem) else path, method.upper())
            for method, item in operations.items()
        }
        for path, operations in paths.items()
    }


def _with_right(operation: Any, template: str, method: str) -> Any:
    if method == "PARAMETERS":
        return operation
    right = right_for(template, method)
    security: list[dict[str, list[str]]] = [] if right == OPEN else [{"bearer": []}, {}]
    return {**operation, "security": security, "x-onecopy-right": right}


SECURITY_SCHEMES = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "A token of `onecopy token create`, or of POST /v1/tokens. Needed where the "
        "configuration has `[access]`, unless `anonymous` names a role that may do it.",
    }
}
