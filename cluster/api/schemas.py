"""The parts that the OpenAPI document is put together from: schemas, headers, problem answers."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from cluster.api.problems import CODES, Problem
from datapath.operations import NODE_STATES

Json = dict[str, Any]

_UNKNOWN_CODES = {
    "unknown_outcome", "timeout", "internal_error", "idempotency_key_expired", "unknown_revision",
}  # fmt: skip
CONNECTION_CODES = (
    "malformed_request", "head_too_large", "unknown_host", "foreign_origin", "internal_error",
    "too_many_connections", "wrong_cluster", "cluster_unknown",
)  # fmt: skip
"""What any request at all can be answered."""


def _object(properties: Json, *optional: str, **more: Any) -> Json:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required, **more}


_COUNT: Json = {"type": "integer", "minimum": 0}
_POSITIVE: Json = {"type": "integer", "minimum": 1}
_TEXT: Json = {"type": "string"}
_NODES: Json = {"type": "array", "items": _TEXT}
_INDEX: Json = {"type": ["integer", "null"], "minimum": 0}

SCHEMAS: Json = {
    "Written": _object(
        {
            "revision": _POSITIVE,
            "epoch": _POSITIVE,
            "copies": {
                **_POSITIVE,
                "description": "Replicas that hold it durably.",
            },
            "ack": {"const": "local", "description": "Only with ack=local: it may yet be lost."},
        },
        "ack",
        additionalProperties=False,
    ),
    "Deleted": _object(
        {
            "revision": {
                **_COUNT,
                "description": "Of the removal; of the state it was decided on if nothing was.",
            },
            "deleted": {"type": "boolean"},
            "epoch": _POSITIVE,
            "copies": _COUNT,
            "ack": {"const": "local", "description": "Only with ack=local: it may yet be lost."},
        },
        "ack",
        additionalProperties=False,
    ),
    "Range": _object(
        {
            "items": {"type": "array", "items": {"$ref": "#/components/schemas/Item"}},
            "revision": {**_COUNT, "description": "The state that this page was read from."},
            "cursor": {"type": ["string", "null"], "description": "null on the last page."},
        },
        additionalProperties=False,
    ),
    "Item": _object(
        {
            "key": _TEXT,
            "value": {"type": "string", "contentEncoding": "base64"},
            "revision": _POSITIVE,
        },
        "value",
        additionalProperties=False,
    ),
    "ClusterStatus": _object(
        {
            "cluster": _TEXT,
            "cluster_id": {**_TEXT, "description": "Drawn once; empty before the first view."},
            "epoch": _COUNT,
            "version": _COUNT,
            "primary": {**_TEXT, "description": "Empty while none is known."},
            "in_sync": _NODES,
            "nodes": {
                "type": "object",
                "additionalProperties": {"$ref": "#/components/schemas/NodeState"},
            },
            "warnings": {
                "type": "array",
                "items": _TEXT,
                "description": "What an operator should see to: a second process under a node's "
                "identity, a node at another address than the agreed one.",
            },
        },
        additionalProperties=False,
    ),
    "NodeState": _object(
        {
            "role": {"enum": ["replica", "witness"]},
            "client": _TEXT,
            "state": {
                "enum": list(NODE_STATES),
                "description": "`unknown`: in touch, but only the primary knows how far it is; "
                "`unreachable`: nothing is known of how far it is.",
            },
            "applied_index": _INDEX,
            "durable_index": _INDEX,
            "lag": {**_INDEX, "description": "Entries behind the primary; null: unknown."},
            "votes": {
                "type": ["boolean", "null"],
                "description": "Whether its vote counts in consensus; null: unknown. A node "
                "without one cannot take over, in sync or not.",
            },
        },
        additionalProperties=False,
    ),
    "View": _object(
        {
            "cluster_id": _TEXT,
            "epoch": _POSITIVE,
            "version": _POSITIVE,
            "primary": _TEXT,
            "in_sync": _NODES,
            "members": {"type": "array", "items": {"$ref": "#/components/schemas/Member"}},
            "handed_over": {
                "type": "boolean",
                "description": "Whether the epoch began with a planned handover.",
            },
        }
    ),
    "Member": _object(
        {
            "id": _TEXT,
            "role": {"enum": ["replica", "witness"]},
            "client": _TEXT,
            "peer": _TEXT,
            "raft": _TEXT,
            "data_id": {**_TEXT, "description": "Names the node's disk."},
        }
    ),
    "Handover": _object(
        {"to": {**_TEXT, "description": "A member of the in-sync set."}},
        additionalProperties=False,
    ),
    "Move": {
        "type": "object",
        "properties": {
            channel: {**_TEXT, "description": "`host:port`; left out: as it is."}
            for channel in ("client", "peer", "raft")
        },
        "additionalProperties": False,
    },
    "Digest": _object(
        {"node": _TEXT, "applied_index": _COUNT, "digest": _TEXT}, additionalProperties=False
    ),
    "Status": _object({"status": {"enum": ["live", "ready"]}}, additionalProperties=False),
    "Primary": _object({"primary": _TEXT, "epoch": _POSITIVE}, additionalProperties=False),
    "Problem": _object(
        {
            "type": {"type": "string", "format": "uri"},
            "title": _TEXT,
            "status": {"type": "integer", "minimum": 400, "maximum": 599},
            "detail": {**_TEXT, "description": "For people: what is wrong here, and the fix."},
            "code": {
                "description": "Stable. Those listed here are this service's own.",
                "anyOf": [
                    {"enum": sorted(CODES)},
                    {"type": "string", "pattern": "^[a-z][a-z0-9_]*$"},
                ],
            },
            "outcome": {
                "enum": ["not_applied", "unknown"],
                "description": "On requests that change something: whether they may have. "
                "`not_applied`: nothing changed, and nothing will.",
            },
            "primary": {**_TEXT, "description": "The primary that the node knows of."},
            "instance": {"type": "string", "format": "uri"},
        },
        "outcome",
        "primary",
        "instance",
        additionalProperties=False,
    ),
}

HEADERS: Json = {
    "Onecopy-Node": {
        "description": "Who answered: the primary that executed it, or this node.",
        "required": True,
        "schema": {"type": "string"},
    },
    "Onecopy-Epoch": {
        "description": "The epoch in which it was answered; 0 while none is known.",
        "required": True,
        "schema": {"type": "integer", "minimum": 0},
    },
    "Onecopy-Cluster": {
        "description": "The id of the cluster; left out while this node has not learned it.",
        "schema": {"type": "string"},
    },
    "ETag": {
        "description": "The key's revision, in double quotes.",
        "required": True,
        "schema": {"type": "string", "pattern": '^"[0-9]+"$'},
    },
    "Onecopy-Revision": {
        "description": "The state that this is an answer of, for Idempotency-After; not with "
        "ack=local, for that may yet be lost, nor from a node without data.",
        "schema": {"type": "integer", "minimum": 0},
    },
    "Idempotent-Replayed": {
        "description": "This is the first answer given again.",
        "schema": {"const": "true"},
    },
    "Retry-After": {
        "description": "Seconds.",
        "required": True,
        "schema": {"type": "integer", "minimum": 1},
    },
    "Allow": {"required": True, "schema": {"type": "string"}},
}


def headers(*names: str) -> Json:
    """Return references to header components, the node's identity always among them."""
    every = ("Onecopy-Node", "Onecopy-Epoch", "Onecopy-Cluster", *names)
    return {name: {"$ref": f"#/components/headers/{name}"} for name in every}


def json_answer(description: str, schema: str, example: Any, *names: str) -> Json:
    """Return a JSON response with an example."""
    content = {"schema": {"$ref": f"#/components/schemas/{schema}"}, "example": example}
    return {
        "description": description,
        "headers": headers(*names),
        "content": {"application/json": content},
    }


def problem_answers(*codes: str, write: bool) -> Json:
    """Return status -> response for these codes and those of every connection."""
    by_status: defaultdict[int, list[str]] = defaultdict(list)
    for code in (*codes, *CONNECTION_CODES):
        by_status[CODES[code].status].append(code)
    return {
        str(status): _problem_answer(status, by_status[status], write=write)
        for status in sorted(by_status)
    }


def _problem_answer(status: int, codes: list[str], *, write: bool) -> Json:
    extra = {503: ("Retry-After",), 405: ("Allow",)}.get(status, ())
    return {
        "description": "; ".join(f"`{code}`: {CODES[code].title}" for code in codes),
        "headers": headers(*extra),
        "content": {
            "application/problem+json": {
                "schema": {"$ref": "#/components/schemas/Problem"},
                "examples": {code: {"value": _example(code, write=write)} for code in codes},
            }
        },
    }


def _example(code: str, *, write: bool) -> Json:
    example = {
        "type": f"urn:onecopy:problem:{code}",
        "title": CODES[code].title,
        "status": CODES[code].status,
        "detail": CODES[code].advice,
        "code": code,
    }
    if write:
        unknown = code in _UNKNOWN_CODES
        example["outcome"] = "unknown" if unknown else Problem(code, "").outcome
    return example
