"""The OpenAPI document's operations of watching, and what others say of events."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from cluster.api.documents import ChangeDocument, EventDocument
from cluster.api.lease_documents import LeaderEventDocument, LeaderItem
from cluster.api.params import OBSERVE_PARAMS, WATCH_PARAMS, Param
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


LEADER_EXAMPLE = LeaderEventDocument(43, "jobs", LeaderItem(token=43, lease="42", value="host 1"))
_END = (
    'one of the type `end` (a line `{"end": …}`) is a problem document that says why the node '
    "ends the stream: resume at another."
)


def watch_keys() -> Json:
    """Return GET /v1/watch."""
    return _stream(
        "watch",
        "Watch keys: a stream of events that does not end",
        "One event a revision, in their order; `id` is the revision. Events of the type "
        f"`progress` have no changes; {_END}",
        EVENT_EXAMPLE,
        WATCH_PARAMS,
        (),
    )


def observe_election() -> Json:
    """Return GET /v1/elections/{name}/observe."""
    return _stream(
        "observe",
        "Observe an election: a stream of its leaders that does not end",
        "First who leads, unless the stream resumes; then an event for each change, in their "
        f"order; `id` is the revision. Events of the type `progress` have no `leader`; {_END}",
        LEADER_EXAMPLE,
        OBSERVE_PARAMS,
        ("invalid_name",),
    )


def _stream(
    name: str,
    summary: str,
    description: str,
    example: EventDocument | LeaderEventDocument,
    params: Mapping[str, Param],
    codes: tuple[str, ...],
) -> Json:
    event = msgspec.json.encode(example).decode()
    text = f"id: {example.revision}\ndata: {event}\n\n"
    stream = {"schema": {"type": "string"}, "example": text}
    lines = {"schema": {"type": "string"}, "example": f"{event}\n"}
    return api_operation(
        name,
        summary,
        {
            "200": {
                "description": description,
                "headers": headers("Onecopy-Revision"),
                "content": {"text/event-stream": stream, "application/x-ndjson": lines},
            }
        },
        (*PARAMETER_CODES, *codes, "invalid_header", "not_acceptable", *WATCH_CODES, *READ_CODES),
        parameters=[
            *query_parameters(params),
            header_parameter(
                "Last-Event-ID", "Resume after this event, whatever `after` says.", "42"
            ),
            header_parameter("Accept", "`text/event-stream`, or `application/x-ndjson`.", "*/*"),
        ],
    )
