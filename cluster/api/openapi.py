"""The OpenAPI 3.1 document of the HTTP API, made from the tables that the API itself works by."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from cluster.api.documents import (
    CurrentPrimary,
    Deleted,
    HandoverRequest,
    Move,
    Range,
    RangeItem,
    Status,
    Written,
)
from cluster.api.headers import MAX_IDEMPOTENCY_KEY_LENGTH
from cluster.api.params import (
    MAX_KEY_SIZE_BYTES,
    RANGE_PARAMS,
    READ_PARAMS,
    REMOVE_PARAMS,
    TIMEOUT,
    WRITE_PARAMS,
    Param,
)
from cluster.api.problems import CODES
from cluster.api.schemas import (
    HEADERS,
    SCHEMAS,
    Json,
    headers,
    json_answer,
    json_content,
    problem_answers,
)
from datapath.operations import ClusterStatus, Digest, NodeState
from election.view import View

_PARAMETER_CODES = ("unknown_parameter", "invalid_parameter")
_KEY_CODES = ("invalid_key", "key_too_long", *_PARAMETER_CODES, "invalid_header")
_NODE_CODES = ("no_primary", "not_primary", "overloaded")
REPEAT_CODES = ("idempotency_key_reused", "idempotency_key_expired", "unknown_revision")
WRITE_CODES = (
    *_NODE_CODES,
    "too_large",
    "service_failed",
    "not_enough_copies",
    "unknown_outcome",
    "timeout",
    "storage_full",
)
_CHANGE_CODES = (*_NODE_CODES, "unknown_node", "refused", "unknown_outcome", "timeout")
_READ_CODES = (*_NODE_CODES, "timeout")
_BODY_CODES = ("value_too_large", "request_timeout", "expectation_failed")

_WRITTEN = Written(revision=42, epoch=3, copies=3)
_MOVE = Move(client="127.0.0.1:8103", peer="127.0.0.1:8203", raft="127.0.0.1:8303")
_VIEW = View(
    cluster_id="5f0c…",
    epoch=4,
    version=12,
    primary="n2",
    in_sync=("n1", "n2", "n3"),
    members=(),
    handed_over=True,
)


@functools.cache
def own_document() -> Json:
    """Return the document without services: `cluster.api.openapi_services` has the whole."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "onecopy",
            "version": "1",
            "description": "A replicated key-value store. Any node takes any request: it forwards "
            "to the primary. Every refusal is a problem document (RFC 9457) with a stable `code`, "
            "and on writes an `outcome`. A method that a path does not list is answered with 405, "
            "a path that is not listed with 404.\n\n" + _code_list(),
        },
        "servers": [{"url": "/"}],
        "paths": {
            "/v1/kv/{key}": {
                "parameters": [_key_parameter()],
                "put": _put(),
                "get": _get(),
                "head": _head(_get()),
                "delete": _delete(),
            },
            "/v1/kv": readable(_range()),
            "/v1/cluster": readable(_cluster()),
            "/v1/cluster/handover": {"post": _handover()},
            "/v1/cluster/nodes/{id}": {"delete": _remove_node(), "patch": _move_node()},
            "/v1/digest": readable(_digest()),
            "/livez": readable(_health("livez", "Live", "The process answers.", Status("live"))),
            "/readyz": readable(
                _health("readyz", "Ready", "It could answer a linearizable read now.",
                        Status("ready"), "not_ready")
            ),
            "/primary": readable(_primary()),
            "/metrics": readable(_metrics()),
            "/openapi.json": readable(_openapi()),
        },
        "components": {"schemas": SCHEMAS, "headers": HEADERS},
    }  # fmt: skip


def _code_list() -> str:
    lines = (f"- `{code}` ({item.status}): {item.title}. {item.advice}"
             for code, item in CODES.items())  # fmt: skip
    return "Codes:\n\n" + "\n".join(lines)


# --- pieces ---


def operation_part(
    name: str, summary: str, ok: Json, codes: tuple[str, ...], *, write: bool = False, **more: Any
) -> Json:
    """Return one operation of the document. `ok`: answers that are good; `codes`: of others."""
    parameters = [*more.pop("parameters", ()), _cluster_header()]
    return {
        "operationId": name,
        "summary": summary,
        "parameters": parameters,
        **more,
        "responses": {**ok, **problem_answers(*codes, write=write)},
    }


def readable(operation: Json) -> Json:
    """Return a path that is read: GET, and HEAD."""
    return {"get": operation, "head": _head(operation)}


def _head(operation: Json) -> Json:
    """Return the same as `operation`, without bodies."""
    responses = {
        status: {name: part for name, part in answer.items() if name != "content"}
        for status, answer in operation["responses"].items()
    }
    name = f"{operation['operationId']}Head"
    return {**operation, "operationId": name, "responses": responses}


def _cluster_header() -> Json:
    return _header(
        "Onecopy-Cluster",
        "The id of the cluster that the request is meant for, as answers name it: a node of "
        "another one refuses with 421 and does nothing.",
        "9f1c8b1d5e7a4c02",
    )


def query_parameters(params: Mapping[str, Param]) -> list[Json]:
    """Return query parameters from their table."""
    return [
        {"name": name, "in": "query", "description": param.description, "schema": param.schema}
        for name, param in params.items()
    ]


def _header(name: str, description: str, example: str) -> Json:
    schema = {"type": "string"}
    return {"name": name, "in": "header", "description": description, "schema": schema,
            "example": example}  # fmt: skip


def _key_parameter() -> Json:
    return {
        "name": "key",
        "in": "path",
        "required": True,
        "description": f"UTF-8, percent-encoded, 1 to {MAX_KEY_SIZE_BYTES} bytes when decoded. "
        "Everything after `/v1/kv/` is the key: a slash in it may be written plain or as %2F.",
        "schema": {"type": "string", "minLength": 1, "maxLength": MAX_KEY_SIZE_BYTES},
        "example": "hello",
    }


_IF_MATCH = _header(
    "If-Match", "Only if the key is at one of these revisions; `*`: exists.", '"42"'
)
_IDEMPOTENCY_KEY = _header(
    "Idempotency-Key",
    f"1 to {MAX_IDEMPOTENCY_KEY_LENGTH} printable ASCII characters, in double quotes or bare. A "
    "repeat of the same request gets the first answer, another request under the same key 422.",
    '"8e03978e-40d5-43dd-bc93-6894a57f9324"',
)
_IDEMPOTENCY_AFTER = _header(
    "Idempotency-After",
    "With `Idempotency-Key`: the highest `Onecopy-Revision` that the client had seen before it "
    "first sent this request. If the key is not known, and may have been forgotten since, the "
    "request is refused with 410 instead of being executed again.",
    "42",
)
IDEMPOTENCY_HEADERS = (_IDEMPOTENCY_KEY, _IDEMPOTENCY_AFTER)


# --- keys ---


def _put() -> Json:
    absent = _header("If-None-Match", "`*`: only if the key does not exist.", "*")
    written = ("ETag", "Idempotent-Replayed", "Onecopy-Revision")
    return operation_part(
        "putKey",
        "Write a value",
        {
            "200": json_answer("Replaced.", _WRITTEN, *written),
            "201": json_answer("Created.", _WRITTEN, *written),
        },
        (
            *_KEY_CODES,
            *_BODY_CODES,
            "unsupported_content_encoding",
            "precondition_failed",
            *REPEAT_CODES,
            *WRITE_CODES,
        ),
        write=True,
        parameters=[
            *query_parameters(WRITE_PARAMS),
            _IF_MATCH,
            absent,
            _IDEMPOTENCY_KEY,
            _IDEMPOTENCY_AFTER,
        ],
        requestBody={
            "description": "The value: any bytes, up to the configured size (1 MiB).",
            "content": {"application/octet-stream": {"schema": {}}},
        },
    )


_KEY_HEADERS = (
    "ETag",
    "Onecopy-Create-Revision",
    "Onecopy-Key-Version",
    "Onecopy-Lease",
    "Onecopy-Revision",
)


def _get() -> Json:
    unless = _header("If-None-Match", "304 if the key is at one of these revisions.", '"42"')
    return operation_part(
        "getKey",
        "Read a value",
        {
            "200": {
                "description": "The value's bytes.",
                "headers": headers(*_KEY_HEADERS),
                "content": {"application/octet-stream": {"schema": {}}},
            },
            "304": {
                "description": "Unchanged (If-None-Match).",
                "headers": headers(*_KEY_HEADERS),
            },
        },
        (*_KEY_CODES, "key_not_found", "precondition_failed", *_READ_CODES),
        parameters=[*query_parameters(READ_PARAMS), _IF_MATCH, unless],
    )


def _delete() -> Json:
    example = Deleted(revision=43, deleted=True, epoch=3, copies=3)
    return operation_part(
        "deleteKey",
        "Remove a key",
        {
            "200": json_answer(
                "Removed, or it wasn't there.",
                example,
                "Idempotent-Replayed",
                "Onecopy-Revision",
            )
        },
        (*_KEY_CODES, "precondition_failed", *REPEAT_CODES, *WRITE_CODES),
        write=True,
        parameters=[
            *query_parameters(WRITE_PARAMS),
            _IF_MATCH,
            _IDEMPOTENCY_KEY,
            _IDEMPOTENCY_AFTER,
        ],
    )


def _range() -> Json:
    item = RangeItem(key="hello", value=b"world", revision=42, create_revision=7, version=3)
    example = Range(items=[item], revision=57, cursor=None)
    return operation_part(
        "rangeKeys",
        "Read keys in order",
        {
            "200": json_answer(
                "A page, in the order of the keys' bytes.", example, "Onecopy-Revision"
            )
        },
        (*_PARAMETER_CODES, "invalid_cursor", *_READ_CODES),
        parameters=query_parameters(RANGE_PARAMS),
    )


# --- the cluster ---


def _cluster() -> Json:
    node = NodeState(
        role="replica", client="127.0.0.1:8101", state="primary", applied_index=57,
        durable_index=57, lag=0, votes=True,
    )  # fmt: skip
    example = ClusterStatus(
        cluster="demo", cluster_id="5f0c", epoch=3, version=9, primary="n1", in_sync=("n1",),
        nodes={"n1": node},
    )  # fmt: skip
    return operation_part(
        "getCluster",
        "Who is in charge, and how far everyone is",
        {
            "200": json_answer(
                "As the primary sees it, or this node.",
                example,
                "Onecopy-Revision",
            )
        },
        ("unknown_parameter",),
    )


def _handover() -> Json:
    return operation_part(
        "handOver",
        "Make another node of the in-sync set the primary",
        {"200": json_answer("The new view.", _VIEW)},
        (
            *_PARAMETER_CODES,
            "invalid_body",
            *_BODY_CODES,
            "unsupported_media_type",
            "admin_forbidden",
            "handover_failed",
            *_CHANGE_CODES,
        ),
        write=True,
        parameters=query_parameters(TIMEOUT),
        requestBody={
            "required": True,
            "content": json_content(HandoverRequest(to="n2")),
        },
    )


def _remove_node() -> Json:
    node = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"},
            "example": "n3"}  # fmt: skip
    force = {"example": "n3"}  # the node's id once more
    return operation_part(
        "removeNode",
        "Take a node out of the cluster for good",
        {"200": json_answer("The new view.", _VIEW)},
        (
            *_PARAMETER_CODES,
            "not_found",
            "admin_forbidden",
            "is_primary",
            "unsafe_removal",
            "membership_pending",
            "no_majority",
            *_CHANGE_CODES,
        ),
        write=True,
        parameters=[
            node,
            *(
                {**item, **(force if item["name"] == "force" else {})}
                for item in query_parameters(REMOVE_PARAMS)
            ),
        ],
    )


def _move_node() -> Json:
    node = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"},
            "example": "n3"}  # fmt: skip
    return operation_part(
        "moveNode",
        "Agree on other addresses of a node",
        {"200": json_answer("The new view.", _VIEW)},
        (
            *_PARAMETER_CODES,
            "not_found",
            "invalid_body",
            *_BODY_CODES,
            "unsupported_media_type",
            "admin_forbidden",
            *_CHANGE_CODES,
        ),
        write=True,
        parameters=[node, *query_parameters(TIMEOUT)],
        requestBody={
            "required": True,
            "content": json_content(_MOVE),
        },
    )


def _digest() -> Json:
    example = Digest(node="n1", applied_index=57, digest="9f86d081884c7d65…")
    return operation_part(
        "getDigest",
        "Digest of this node's own store: equal on all replicas at the same index",
        {"200": json_answer("The digest.", example)},
        ("unknown_parameter", "no_data", "stopping"),
    )


# --- health ---


def _health(path: str, word: str, meaning: str, status: Status, *codes: str) -> Json:
    revision = ("Onecopy-Revision",) if path == "livez" else ()
    answer = json_answer(meaning, status, *revision)
    return operation_part(path, word, {"200": answer}, codes)


def _primary() -> Json:
    example = CurrentPrimary(primary="n1", epoch=3)
    return operation_part(
        "primary",
        "Whether this node is the serving primary",
        {"200": json_answer("It is.", example)},
        ("not_primary",),
    )


def _metrics() -> Json:
    texts = ("text/plain", "application/openmetrics-text")
    answer = {
        "description": "Prometheus' text format, or OpenMetrics if Accept asks for it.",
        "headers": headers(),
        "content": {text: {"schema": {"type": "string"}} for text in texts},
    }
    return operation_part("getMetrics", "Numbers for Prometheus", {"200": answer}, ())


def _openapi() -> Json:
    answer = {
        "description": "This document.",
        "headers": headers(),
        "content": {"application/json": {"schema": {"type": "object"}}},
    }
    return operation_part("getOpenapi", "This document", {"200": answer}, ())
