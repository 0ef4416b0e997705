"""The part of the OpenAPI document that is about services: what all have, and each method."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from cluster.api.documents import Called, HostedService, QueryAnswer, ServiceList
from cluster.api.openapi import own_document, readable
from cluster.api.openapi_keys import (
    IDEMPOTENCY_AFTER_HEADER,
    IDEMPOTENCY_KEY_HEADER,
    IF_LOCK_HEADER,
)
from cluster.api.params import GET_CALL_PARAMS, READ_CALL_PARAMS, WRITE_CALL_PARAMS
from cluster.api.route_rights import with_rights
from cluster.api.schemas import (
    ANY_ROLE_CODES,
    LOCK_CODES,
    REPEAT_CODES,
    WRITE_CODES,
    Json,
    api_operation,
    json_answer,
    query_parameters,
)
from cluster.api.services import SERVICES_PATH
from cluster.services.hosting import Host
from cluster.services.signatures import ServiceMethod

_SERVICE_CODES = (
    "invalid_parameter",
    "invalid_body",
    "invalid_argument",
    "not_found",
    "unknown_service",
    "refused",
    "service_starting",
    "service_outdated",
    "service_timeout",
    "service_failed",
    "too_large",
)
_POST_CODES = (
    *_SERVICE_CODES,
    "unknown_parameter",
    "invalid_header",
    "value_too_large",
    "request_timeout",
    "expectation_failed",
    "unsupported_media_type",
)
_QUERY_CODES = ("unknown_query", "no_primary", "not_primary", "overloaded", "timeout")
_OTHER_WRITE_CODES = tuple(code for code in WRITE_CODES if code not in _SERVICE_CODES)
_RESULT = msgspec.Raw(b'{"left": 8}')
_CALLED = Called(_RESULT, revision=42, epoch=3, copies=3)
_ANSWERED = QueryAnswer(_RESULT, revision=42)


def openapi_json(services: Mapping[str, Host]) -> bytes:
    """Return the whole document as it is served; each method of `services` has a path in it."""
    return msgspec.json.encode(openapi_document(services))


def openapi_document(services: Mapping[str, Host]) -> Json:
    """Return the whole document."""
    document = own_document()
    paths = {**document["paths"], **_general_paths()}
    schemas = dict(document["components"]["schemas"])
    for name, host in services.items():
        methods = [item for item in host.signatures.methods.values() if item.kind != "timer"]
        kinds = [kind for method in methods for kind in (method.arguments, method.result)]
        template = f"#/components/schemas/{name}.{{name}}"
        parts, components = msgspec.json.schema_components(kinds, ref_template=template)
        schemas |= {f"{name}.{part}": schema for part, schema in components.items()}
        for number, method in enumerate(methods):
            arguments, result = parts[2 * number : 2 * number + 2]
            paths[f"{SERVICES_PATH}{name}/{method.name}"] = _path(host, method, arguments, result)
    paths = with_rights(paths, f"{SERVICES_PATH}{{service}}/{{method}}")
    components = {**document["components"], "schemas": schemas}
    return {**document, "paths": paths, "components": components}


def _general_paths() -> Json:
    service = HostedService(
        name="shop", version=2, summary="A shop.", operations=("reserve",), queries=("left",),
        timers=("restock",), difference="",
    )  # fmt: skip
    answer = json_answer("Those of this node.", ServiceList(services=[service]))
    path = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": {"type": "string"},
            "example": value,
        }
        for name, value in (("service", "shop"), ("method", "reserve"))
    ]
    return {
        "/v1/services": readable(
            api_operation(
                "listServices",
                "List services",
                {"200": answer},
                ("unknown_parameter",),
                access=ANY_ROLE_CODES,
            )
        ),
        f"{SERVICES_PATH}{{service}}/{{method}}": {
            "parameters": path,
            "post": _post("callMethod", "Call a method", {"type": "object"}, {}),
            **readable(_get("queryMethod", "Call a query", [], {})),
        },
    }


def _path(host: Host, method: ServiceMethod, arguments: Json, result: Json) -> Json:
    name = re.sub("[^A-Za-z0-9]", "_", host.name) + f"_{method.name}"
    summary = method.summary or f"{method.name} of {host.name}"
    post = _post(name, summary, arguments, result, reads=method.kind == "query")
    if method.kind != "query":
        return {"post": post}
    return {"post": post, **readable(_get(f"{name}_get", summary, _fields(method), result))}


def _fields(method: ServiceMethod) -> list[Json]:
    """Return a query's arguments as query parameters, as text."""
    return [
        {
            "name": field.encode_name,
            "in": "query",
            "required": False,  # all may stand in `arguments`
            "description": "An argument.",
            "schema": {"type": "string"},
        }
        for field in msgspec.structs.fields(method.arguments)
    ]


def _post(name: str, summary: str, arguments: Json, result: Json, *, reads: bool = False) -> Json:
    body = {"required": True, "content": {"application/json": {"schema": arguments}}}
    if reads:
        answer = _with_result(json_answer("The result.", _ANSWERED, "Onecopy-Revision"), result)
        parameters: list[Any] = query_parameters(READ_CALL_PARAMS)
        codes: tuple[str, ...] = (*_POST_CODES, *_QUERY_CODES)
    else:
        lines = ("Idempotent-Replayed", "Onecopy-Revision")
        answer = _with_result(json_answer("The result.", _CALLED, *lines), result)
        parameters = [
            *query_parameters(WRITE_CALL_PARAMS),
            IDEMPOTENCY_KEY_HEADER,
            IDEMPOTENCY_AFTER_HEADER,
            IF_LOCK_HEADER,
        ]
        codes = (*_POST_CODES, "unknown_operation", *LOCK_CODES, *REPEAT_CODES, *_OTHER_WRITE_CODES)
    return api_operation(
        name, summary, {"200": answer}, codes, write=True, parameters=parameters, requestBody=body
    )


def _get(name: str, summary: str, fields: list[Json], result: Json) -> Json:
    answer = _with_result(json_answer("The result.", _ANSWERED, "Onecopy-Revision"), result)
    parameters = [
        {**item, "example": '{"item": "x"}'} if item["name"] == "arguments" else item
        for item in (*query_parameters(GET_CALL_PARAMS), *fields)
    ]
    codes = (*_SERVICE_CODES, *_QUERY_CODES, "method_not_allowed")
    return api_operation(name, summary, {"200": answer}, codes, parameters=parameters)


def _with_result(answer: Json, result: Json) -> Json:
    """Return an answer whose `result` has a schema of its own."""
    if not result:
        return answer
    content = answer["content"]["application/json"]
    schema = {"allOf": [content["schema"], {"properties": {"result": result}}]}
    return {**answer, "content": {"application/json": {"schema": schema}}}
