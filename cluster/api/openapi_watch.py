"""The OpenAPI document's operation of watching, and what others say of events."""

from __future__ import annotations

import msgspec

from cluster.api.documents import ChangeDocument, EventDocument
from cluster.api.params import WATCH_PARAMS
from cluster.api.schemas import (
    PARAMETER_CODES,
    READ_CODES,
    Json,
    api_operation,
    header_parameter,
    headers,
    query_parameters,
)

WATCH_CODES = (
    "revision_compacted", "future_revision", "too_many_watchers", "no_data", "not_ready", "stopping"
)  # fmt: skip
EVENT_EXAMPLE = EventDocument(
    43, [ChangeDocument(key="hello", text="world", revision=43, create_revision=40, version=2)]
)


def watch_keys() -> Json:
    """Return GET /v1/watch."""
    event = msgspec.json.encode(EVENT_EXAMPLE).decode()
    example = f"id: {EVENT_EXAMPLE.revision}\ndata: {event}\n\n"
    stream = {"schema": {"type": "string"}, "example": example}
    lines = {"schema": {"type": "string"}, "example": f"{event}\n"}
    return api_operation(
        "watch",
        "Watch keys: a stream of events that does not end",
        {
            "200": {
                "description": "One event a revision, in their order; `id` is the revision. Events "
                "of the type `progress` have no changes; one of the type `end` (a line "
                '`{"end": …}`) is a problem document that says why the node ends the stream: '
                "resume at another.",
                "headers": headers("Onecopy-Revision"),
                "content": {"text/event-stream": stream, "application/x-ndjson": lines},
            }
        },
        (*PARAMETER_CODES, "invalid_header", "not_acceptable", *WATCH_CODES, *READ_CODES),
        parameters=[
            *query_parameters(WATCH_PARAMS),
            header_parameter(
                "Last-Event-ID", "Resume after this event, whatever `after` says.", "42"
            ),
            header_parameter("Accept", "`text/event-stream`, or `application/x-ndjson`.", "*/*"),
        ],
    )
