"""The parts that the OpenAPI document is put together from: schemas, headers, problem answers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import msgspec

from cluster.api import access_documents, lease_documents
from cluster.api.documents import (
    Called,
    CurrentPrimary,
    Deleted,
    EventDocument,
    FinishUpgrade,
    HandoverRequest,
    Move,
    QueryAnswer,
    Range,
    RangeDeleted,
    ServiceList,
    Status,
    ViewHistory,
    Written,
)
from cluster.api.params import Param
from cluster.api.problems import CODES, ProblemDocument, ProblemError
from cluster.api.txn_documents import TxnAnswer, TxnRequest
from cluster.groups.group_map import GroupMap, GroupsDocument
from datapath.operations import ClusterStatus, Digest
from election.view import View

Json = dict[str, Any]

_UNKNOWN_CODES = {
    "unknown_outcome", "timeout", "internal_error", "idempotency_key_expired", "unknown_revision",
}  # fmt: skip
CONNECTION_CODES = (
    "malformed_request", "head_too_large", "unknown_host", "foreign_origin", "internal_error",
    "too_many_connections", "wrong_cluster", "cluster_unknown", "wrong_group",
)  # fmt: skip
"""What any request at all can be answered."""
ANY_ROLE_CODES = ("unauthenticated", "access_starting")
"""What a request can be answered that any role may make, but nobody without one."""
ACCESS_CODES = (*ANY_ROLE_CODES, "forbidden")
"""What a request can be answered that needs a right."""


ANSWERS = (
    Written, Deleted, Range, RangeDeleted, TxnAnswer, Status, CurrentPrimary, ClusterStatus, View,
    ViewHistory, Digest, EventDocument, ProblemDocument, *lease_documents.LEASE_ANSWERS,
    *access_documents.ACCESS_ANSWERS,
    Called, QueryAnswer, ServiceList, GroupsDocument, GroupMap,
)  # fmt: skip
BODIES = (
    FinishUpgrade, HandoverRequest, Move, TxnRequest, *lease_documents.LEASE_BODIES,
    *access_documents.ACCESS_BODIES,
)  # fmt: skip

PARAMETER_CODES = ("unknown_parameter", "invalid_parameter")
KEY_CODES = ("invalid_key", "key_too_long", *PARAMETER_CODES, "invalid_header")
NODE_CODES = ("no_primary", "not_primary", "overloaded")
LOCK_CODES = ("invalid_name", "lock_lost")
LEASE_CODES = ("lease_not_found", "lease_full")
REPEAT_CODES = ("idempotency_key_reused", "idempotency_key_expired", "unknown_revision")
WRITE_CODES = (
    *NODE_CODES,
    "too_large",
    "service_failed",
    "not_enough_copies",
    "unknown_outcome",
    "timeout",
    "storage_full",
    "spans_groups",
)
CHANGE_CODES = (*NODE_CODES, "unknown_node", "refused", "unknown_outcome", "timeout")
READ_CODES = (*NODE_CODES, "timeout", "spans_groups")
BODY_CODES = ("value_too_large", "request_timeout", "expectation_failed")
"""What requests of a kind can be answered, beside CONNECTION_CODES."""


def _schemas() -> Json:
    """Return the schemas of all documents, made from the structs that are encoded and decoded."""
    _, schemas = msgspec.json.schema_components(
        ANSWERS + BODIES, ref_template="#/components/schemas/{name}"
    )
    for schema in schemas.values():
        del schema["title"], schema["description"]  # docstrings are for who reads the source
        if "additionalProperties" not in schema:  # an answer: what has a default is sent, too
            schema["required"] += [
                name for name, part in schema["properties"].items() if "default" in part
            ]
        for part in schema["properties"].values():
            part.pop("default", None)
    return schemas


SCHEMAS = _schemas()

HEADERS: Json = {
    "Onecopy-Node": {
        "description": "The node that answered: the primary that executed the request, or this "
        "node.",
        "required": True,
        "schema": {"type": "string"},
    },
    "Onecopy-Epoch": {
        "description": "The epoch of the answer; 0 if none is known.",
        "required": True,
        "schema": {"type": "integer", "minimum": 0},
    },
    "Onecopy-Cluster": {
        "description": "The id of the cluster; omitted until this node knows it.",
        "schema": {"type": "string"},
    },
    "ETag": {
        "description": "The key's revision, in double quotes.",
        "required": True,
        "schema": {"type": "string", "pattern": '^"[0-9]+"$'},
    },
    "Onecopy-Create-Revision": {
        "description": "The revision of the write that created the key.",
        "required": True,
        "schema": {"type": "integer", "minimum": 1},
    },
    "Onecopy-Key-Version": {
        "description": "How often the key was written since it was created.",
        "required": True,
        "schema": {"type": "integer", "minimum": 1},
    },
    "Onecopy-Lease": {
        "description": "The client lease that the key is attached to; omitted if there is none.",
        "schema": {"type": "string", "pattern": "^[1-9][0-9]{0,19}$"},
    },
    "Onecopy-Revision": {
        "description": "The revision of the state behind the answer, for Idempotency-After; not "
        "with ack=local, because such a write may be lost, and not from a node without data.",
        "schema": {"type": "integer", "minimum": 0},
    },
    "Idempotent-Replayed": {
        "description": "The answer of an earlier attempt.",
        "schema": {"const": "true"},
    },
    "Retry-After": {
        "description": "Seconds.",
        "required": True,
        "schema": {"type": "integer", "minimum": 1},
    },
    "WWW-Authenticate": {"required": True, "schema": {"type": "string"}},
    "Allow": {"required": True, "schema": {"type": "string"}},
}


def headers(*names: str) -> Json:
    """Return references to header components, the node's identity always among them."""
    every = ("Onecopy-Node", "Onecopy-Epoch", "Onecopy-Cluster", *names)
    return {name: {"$ref": f"#/components/headers/{name}"} for name in every}


def json_content(example: msgspec.Struct) -> Json:
    """Return the content of a request or a response, of the example's type."""
    shown: Json = msgspec.json.decode(msgspec.json.encode(example))
    return {"application/json": {"schema": schema_of(type(example)), "example": shown}}


def schema_of(document: type[msgspec.Struct]) -> Json:
    """Return a reference to a document's schema."""
    return {"$ref": f"#/components/schemas/{document.__name__}"}


def json_answer(description: str, example: msgspec.Struct, *names: str) -> Json:
    """Return a JSON response of the example's type."""
    return {
        "description": description,
        "headers": headers(*names),
        "content": json_content(example),
    }


def coded_answer(description: str, example: msgspec.Struct, *names: str) -> Json:
    """Return a response of the example's type: JSON, or MessagePack for who accepts that.

    The documents are the same; where JSON has base64, MessagePack has bytes.
    """
    answer = json_answer(description, example, *names)
    answer["content"]["application/msgpack"] = {"schema": schema_of(type(example))}
    return answer


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
    extra = {503: ("Retry-After",), 405: ("Allow",), 401: ("WWW-Authenticate",)}.get(status, ())
    return {
        "description": "; ".join(f"`{code}`: {CODES[code].title}" for code in codes),
        "headers": headers(*extra),
        "content": {
            "application/problem+json": {
                "schema": schema_of(ProblemDocument),
                "examples": {code: {"value": _example(code, write=write)} for code in codes},
            }
        },
    }


def _example(code: str, *, write: bool) -> Json:
    problem = ProblemError(code, CODES[code].advice)
    if code in _UNKNOWN_CODES:
        problem.outcome = "unknown"
    document: Json = msgspec.json.decode(problem.body(write=write))
    return document


def api_operation(
    name: str,
    summary: str,
    ok: Json,
    codes: tuple[str, ...],
    *,
    write: bool = False,
    access: tuple[str, ...] = ACCESS_CODES,
    **more: Any,
) -> Json:
    """Return one operation: its good answers, and those of `codes` and `access`."""
    parameters = [*more.pop("parameters", ()), _cluster_header()]
    return {
        "operationId": name,
        "summary": summary,
        "parameters": parameters,
        **more,
        "responses": {**ok, **problem_answers(*codes, *access, write=write)},
    }


def _cluster_header() -> Json:
    return header_parameter(
        "Onecopy-Cluster",
        "The id of the cluster that the request is meant for, as answers name it: a node of "
        "another one refuses with 421 and does nothing.",
        "9f1c8b1d5e7a4c02",
    )


def query_parameters(params: Mapping[str, Param]) -> list[Json]:
    """Return the parameters of a table."""
    return [
        {"name": name, "in": "query", "description": param.description, "schema": param.schema}
        for name, param in params.items()
    ]


def header_parameter(name: str, description: str, example: str) -> Json:
    """Return a header as a parameter."""
    schema = {"type": "string"}
    return {"name": name, "in": "header", "description": description, "schema": schema,
            "example": example}  # fmt: skip
