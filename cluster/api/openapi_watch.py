"""The OpenAPI document's operation for watches, and what a GET of a key shares with it."""

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

EXAMPLE_EVENT = EventDocument(
    43, [ChangeDocument(key="hello", text="world", revision=43, create_revision=40, version=2)]
)
WATCH_CODES = (
    "revision_compacted",
    "future_revision",
    "too_many_watchers",
    "no_data",
    "not_ready",
    "stopping",
)


def watch_keys() -> Json:
    """Return GET /v1/watch."""
    event = msgspec.json.encode(EXAMPLE_EVENT).decode()
    stream, lines = f"id: {EXAMPLE_EVENT.revision}\ndata: {event}\n\n", f"{event}\n"
    return api_operation(
        "watch",
        "Watch keys: a stream of events that does not end",
        {
            "200": {
                "description": "One event for each revision, in order; `id` is the revision. "
                "Events of the type `progress` have no changes; one of the type `end` (a line "
                '`{"end": …}`) is a problem document that says why the node ends the stream: '
                "resume at another.",
                "headers": headers("Onecopy-Revision"),
                "content": {
                    "text/event-stream": {"schema": {"type": "string"}, "example": stream},
                    "application/x-ndjson": {"schema": {"type": "string"}, "example": lines},
                },
            }
        },
        (*PARAMETER_CODES, "invalid_header", "not_acceptable", *WATCH_CODES, *READ_CODES),
        parameters=[
            *query_parameters(WATCH_PARAMS),
            header_parameter("Last-Event-ID", "Resume after this event, not `after`.", "42"),
            header_parameter("Accept", "`text/event-stream`, `application/x-ndjson`.", "*/*"),
        ],
    )
