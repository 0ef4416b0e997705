"""The OpenAPI document's operations on keys, ranges and transactions."""

from __future__ import annotations

from cluster.api.documents import Deleted, Range, RangeDeleted, RangeItem, Written
from cluster.api.headers import MAX_IDEMPOTENCY_KEY_LENGTH
from cluster.api.openapi_watch import EVENT_EXAMPLE, WATCH_CODES
from cluster.api.params import (
    DELETE_RANGE_PARAMS,
    MAX_KEY_SIZE_BYTES,
    NEXT_CHANGE_PARAMS,
    PUT_PARAMS,
    RANGE_PARAMS,
    READ_PARAMS,
    WRITE_PARAMS,
)
from cluster.api.schemas import (
    BODY_CODES,
    HEADERS,
    KEY_CODES,
    LEASE_CODES,
    LOCK_CODES,
    PARAMETER_CODES,
    READ_CODES,
    REPEAT_CODES,
    WRITE_CODES,
    Json,
    api_operation,
    coded_answer,
    header_parameter,
    headers,
    json_answer,
    json_content,
    query_parameters,
)
from cluster.api.txn_documents import TXN_ANSWER, TXN_REQUEST

_WRITTEN = Written(revision=42, epoch=3, copies=3)


def key_parameter() -> Json:
    """Return the key in the path."""
    return {
        "name": "key",
        "in": "path",
        "required": True,
        "description": f"UTF-8, percent-encoded, 1 to {MAX_KEY_SIZE_BYTES} bytes when decoded. "
        "Everything after `/v1/kv/` is the key: a slash in it may be written as / or %2F.",
        "schema": {"type": "string", "minLength": 1, "maxLength": MAX_KEY_SIZE_BYTES},
        "example": "hello",
    }


_IF_MATCH = header_parameter(
    "If-Match", "Only if the key is at one of these revisions; `*`: exists.", '"42"'
)
_ACCEPT = header_parameter(
    "Accept",
    "`application/msgpack`: the answer is MessagePack, in which values are bytes. Anything else: "
    "JSON. Errors are JSON in any case.",
    "application/msgpack",
)
IDEMPOTENCY_KEY_HEADER = header_parameter(
    "Idempotency-Key",
    f"1 to {MAX_IDEMPOTENCY_KEY_LENGTH} printable ASCII characters, with or without double "
    "quotes. A repeat of the same request gets the first answer; another request under the same "
    "key gets 422.",
    '"8e03978e-40d5-43dd-bc93-6894a57f9324"',
)
IDEMPOTENCY_AFTER_HEADER = header_parameter(
    "Idempotency-After",
    "With `Idempotency-Key`: the highest `Onecopy-Revision` that the client had seen before its "
    "first attempt. If the key is unknown and may have been dropped, the request is refused with "
    "410 instead of being executed again.",
    "42",
)

IF_LOCK_HEADER = header_parameter(
    "If-Lock",
    "The name of a lock, percent-encoded, and its token: nothing is changed unless the lock is "
    "held under it.",
    "jobs=77",
)


def put_key() -> Json:
    """Return PUT /v1/kv/{key}."""
    absent = header_parameter("If-None-Match", "`*`: only if the key does not exist.", "*")
    written = ("ETag", "Idempotent-Replayed", "Onecopy-Revision")
    return api_operation(
        "putKey",
        "Write a value",
        {
            "200": json_answer("Replaced.", _WRITTEN, *written),
            "201": json_answer("Created.", _WRITTEN, *written),
        },
        (
            *KEY_CODES,
            *BODY_CODES,
            "unsupported_content_encoding",
            "precondition_failed",
            *LOCK_CODES,
            *LEASE_CODES,
            "too_many_leases",
            *REPEAT_CODES,
            *WRITE_CODES,
        ),
        write=True,
        parameters=[
            *query_parameters(PUT_PARAMS),
            _IF_MATCH,
            absent,
            IDEMPOTENCY_KEY_HEADER,
            IDEMPOTENCY_AFTER_HEADER,
            IF_LOCK_HEADER,
        ],
        requestBody={
            "description": "The value: any bytes, up to the configured size (1 MiB).",
            "content": {"application/octet-stream": {"schema": {}}},
        },
    )


_NOT_WITH_AFTER = {
    name: {**HEADERS[name], "required": False}
    for name in ("ETag", "Onecopy-Create-Revision", "Onecopy-Key-Version", "Onecopy-Lease")
}
_KEY_HEADERS = (
    "ETag",
    "Onecopy-Create-Revision",
    "Onecopy-Key-Version",
    "Onecopy-Lease",
    "Onecopy-Revision",
)


def get_key() -> Json:
    """Return GET /v1/kv/{key}."""
    unless = header_parameter(
        "If-None-Match", "304 if the key is at one of these revisions.", '"42"'
    )
    return api_operation(
        "getKey",
        "Read a value",
        {
            "200": {
                "description": "The value's bytes; with `after` an event, which is progress if "
                "nothing has changed within `timeout_ms`.",
                "headers": {**headers("Onecopy-Revision"), **_NOT_WITH_AFTER},
                "content": {
                    "application/octet-stream": {"schema": {}},
                    **json_content(EVENT_EXAMPLE),
                },
            },
            "304": {
                "description": "Unchanged (If-None-Match).",
                "headers": headers(*_KEY_HEADERS),
            },
        },
        (*KEY_CODES, "key_not_found", "precondition_failed", *READ_CODES, *WATCH_CODES),
        parameters=[
            *query_parameters({**READ_PARAMS, **NEXT_CHANGE_PARAMS}),
            _IF_MATCH,
            unless,
        ],
    )


def delete_key() -> Json:
    """Return DELETE /v1/kv/{key}."""
    example = Deleted(revision=43, deleted=True, epoch=3, copies=3)
    return api_operation(
        "deleteKey",
        "Remove a key",
        {
            "200": json_answer(
                "Removed, or there was no such key.",
                example,
                "Idempotent-Replayed",
                "Onecopy-Revision",
            )
        },
        (*KEY_CODES, "precondition_failed", *LOCK_CODES, *REPEAT_CODES, *WRITE_CODES),
        write=True,
        parameters=[
            *query_parameters(WRITE_PARAMS),
            _IF_MATCH,
            IDEMPOTENCY_KEY_HEADER,
            IDEMPOTENCY_AFTER_HEADER,
            IF_LOCK_HEADER,
        ],
    )


def list_range() -> Json:
    """Return GET /v1/kv."""
    item = RangeItem(key="hello", value=b"world", revision=42, create_revision=7, version=3)
    example = Range(items=[item], revision=57, cursor=None)
    return api_operation(
        "rangeKeys",
        "Read keys in order",
        {
            "200": coded_answer(
                "A page, in the order of the keys' bytes.", example, "Onecopy-Revision"
            )
        },
        (*PARAMETER_CODES, "invalid_cursor", *READ_CODES),
        parameters=[*query_parameters(RANGE_PARAMS), _ACCEPT],
    )


def delete_range() -> Json:
    """Return DELETE /v1/kv."""
    example = RangeDeleted(revision=58, deleted=3, epoch=3, copies=3, cursor=None)
    return api_operation(
        "deleteRange",
        "Remove keys in order",
        {
            "200": json_answer(
                "The first keys of the range are removed, all at one revision. Go on with "
                "`cursor` where it is not null.",
                example,
                "Idempotent-Replayed",
                "Onecopy-Revision",
            )
        },
        (
            *PARAMETER_CODES,
            "invalid_header",
            "invalid_cursor",
            *LOCK_CODES,
            *REPEAT_CODES,
            *WRITE_CODES,
        ),
        write=True,
        parameters=[
            *query_parameters(DELETE_RANGE_PARAMS),
            IDEMPOTENCY_KEY_HEADER,
            IDEMPOTENCY_AFTER_HEADER,
            IF_LOCK_HEADER,
        ],
    )


def transaction() -> Json:
    """Return POST /v1/txn."""
    return api_operation(
        "txn",
        "Compare, and change several keys at once or none",
        {
            "200": coded_answer(
                "`then` or `else` was carried out, whole.",
                TXN_ANSWER,
                "Idempotent-Replayed",
                "Onecopy-Revision",
            )
        },
        (
            *PARAMETER_CODES,
            "invalid_header",
            "invalid_body",
            "txn_too_large",
            *BODY_CODES,
            "unsupported_media_type",
            *LOCK_CODES,
            *LEASE_CODES,
            *REPEAT_CODES,
            *WRITE_CODES,
        ),
        write=True,
        parameters=[
            *query_parameters(WRITE_PARAMS),
            IDEMPOTENCY_KEY_HEADER,
            IDEMPOTENCY_AFTER_HEADER,
            IF_LOCK_HEADER,
            _ACCEPT,
        ],
        requestBody={"required": True, "content": json_content(TXN_REQUEST)},
    )
