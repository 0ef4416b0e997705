"""Every route and method of the OpenAPI document, with what it needs, as requests to be tried."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

METHODS = ("get", "head", "put", "post", "delete", "patch")
BODIES: dict[str, Any] = {
    "/v1/txn": {"then": [{"put": {"key": "app/k", "text": "changed"}}]},
    "/v1/leases": {"ttl_ms": 10_000},
    "/v1/leases/keepalive": {"leases": ["1"]},
    "/v1/locks/{name}": {"ttl_ms": 10_000},
    "/v1/elections/{name}": {"ttl_ms": 10_000, "value": "x"},
    "/v1/tokens": {"role": "none"},
    "/v1/roles/{name}": {"read": [""]},
    "/v1/cluster/handover": {"to": "n2"},
    "/v1/cluster/nodes/{id}": {"client": "127.0.0.1:1"},
    "/v1/services/{service}/{method}": {},
}
QUERIES = {
    ("get", "/v1/kv"): "?prefix=app/",
    ("head", "/v1/kv"): "?prefix=app/",
    ("delete", "/v1/kv"): "?prefix=app/",
    ("get", "/v1/watch"): "?prefix=app/",
    ("head", "/v1/watch"): "?prefix=app/",
    ("delete", "/v1/locks/{name}"): "?token=1",
    ("delete", "/v1/elections/{name}"): "?token=1",
}
PARTS = {
    "{key}": "app%2Fk", "{name}": "jobs", "{service}": "shop", "{method}": "left",
    "/v1/leases/{id}": "/v1/leases/1", "/v1/tokens/{id}": "/v1/tokens/" + 16 * "0",
    "/nodes/{id}": "/nodes/n2",
}  # fmt: skip


class Attempt(NamedTuple):
    """One request, and the right that the document says it needs ("open": none)."""

    method: str
    path: str
    target: str
    body: bytes | None
    right: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Content-Type": "application/json"} if self.path != "/v1/kv/{key}" else {}


def attempts(document: dict[str, Any]) -> list[Attempt]:
    """Return a request for each operation; those without a right would change something."""
    found = []
    for path, operations in document["paths"].items():
        for method in METHODS:
            if method not in operations:
                continue
            target = path
            for part, value in PARTS.items():
                target = target.replace(part, value)
            body: bytes | None = None
            if method in {"post", "patch", "put"}:
                known = BODIES.get(path)
                body = b"changed" if known is None else json.dumps(known).encode()
            target += QUERIES.get((method, path), "")
            right = operations[method]["x-onecopy-right"]
            found.append(Attempt(method.upper(), path, target, body, right))
    return found
