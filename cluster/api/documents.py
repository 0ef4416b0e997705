"""The JSON documents of the API: what it answers with, and the bodies that it takes.

OpenAPI's schemas are made from these structs (`cluster.api.schemas`), which are also what is
encoded and decoded: a document and its description cannot differ. The status, the digest and the
view are the node's own (`datapath.operations`, `election.view`), problems `cluster.api.problems`'.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from datapath.operations import Count
from election.view import MAX_REMEMBERED_STEPS, StepKind

Positive = Annotated[int, Meta(ge=1)]
Local = Annotated[
    Literal["local"] | UnsetType,
    Meta(description="Only with ack=local: the write may still be lost."),
]
AddressChange = Annotated[str, Meta(description="`host:port`; omitted: unchanged.")]


class Written(msgspec.Struct, frozen=True):
    """The answer to PUT of a key."""

    revision: Positive
    epoch: Positive
    copies: Annotated[Positive, Meta(description="Replicas that hold it durably.")]
    ack: Local = UNSET


class Deleted(msgspec.Struct, frozen=True):
    """The answer to DELETE of a key."""

    revision: Annotated[
        Count,
        Meta(description="Of the removal; if there was no such key, of the state that showed it."),
    ]
    deleted: bool
    epoch: Positive
    copies: Count
    ack: Local = UNSET


class RangeDeleted(msgspec.Struct, frozen=True):
    """The answer to DELETE of a range."""

    revision: Annotated[
        Count,
        Meta(description="Of the removal; if there was no such key, of the state that showed it."),
    ]
    deleted: Annotated[Count, Meta(description="How many keys this request has removed.")]
    epoch: Positive
    copies: Count
    cursor: Annotated[str | None, Meta(description="Where to go on; null: nothing is left.")]
    ack: Local = UNSET


LeaseId = Annotated[
    Annotated[str, Meta(pattern="^[1-9][0-9]{0,19}$")] | UnsetType,
    Meta(description="The client lease that the key is attached to; omitted: none."),
]


class RangeItem(msgspec.Struct, frozen=True, kw_only=True):
    """One key of a range; without its value where only keys were asked for."""

    key: str
    value: bytes | UnsetType = UNSET
    revision: Annotated[Positive, Meta(description="Of its last write.")]
    create_revision: Annotated[Positive, Meta(description="Of the write that created it.")]
    version: Annotated[Positive, Meta(description="How often it was written since then.")]
    lease: LeaseId = UNSET


class Range(msgspec.Struct, frozen=True):
    """The answer to GET of a range; `cluster.api.page` writes it piece by piece."""

    items: list[RangeItem]
    revision: Annotated[Count, Meta(description="The state that this page was read from.")]
    cursor: Annotated[str | None, Meta(description="null on the last page.")]


class ChangeDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What a revision has done to a key: one of `text`, `value` and `deleted` is there.

    With `deleted` come `reason` and `revision`; else all that a listing has.
    """

    key: str
    text: Annotated[str | UnsetType, Meta(description="What was written, if it is UTF-8.")] = UNSET
    value: Annotated[bytes | UnsetType, Meta(description="What was written, if it is not.")] = UNSET
    deleted: Literal[True] | UnsetType = UNSET
    reason: Annotated[
        str | UnsetType, Meta(description="`deleted` by a request, `expired` with its lease.")
    ] = UNSET
    revision: Positive
    create_revision: Positive | UnsetType = UNSET
    version: Positive | UnsetType = UNSET
    lease: LeaseId = UNSET


class EventDocument(msgspec.Struct, frozen=True):
    """All that one revision has changed of what is watched; `cluster.api.events` writes it."""

    revision: Annotated[Count, Meta(description="Where to resume: `after` this.")]
    changes: Annotated[
        list[ChangeDocument],
        Meta(description="Empty: progress. Nothing else up to there."),
    ]


class Status(msgspec.Struct, frozen=True):
    """The answer to /livez and /readyz, where it is good."""

    status: Literal["live", "ready"]


class CurrentPrimary(msgspec.Struct, frozen=True):
    """The answer to /primary, at the primary."""

    primary: str
    epoch: Positive


class ViewStepItem(msgspec.Struct, frozen=True):
    """One change of the view."""

    version: Positive
    epoch: Positive
    kind: StepKind
    reason: Annotated[str, Meta(description="What has happened, in a sentence.")]
    nodes: Annotated[tuple[str, ...], Meta(description="The nodes that it was about.")]
    primary: str
    in_sync: tuple[str, ...]
    at_ms: Annotated[
        Count,
        Meta(
            description="When it was proposed: ms since 1970, by the proposer's clock; 0: unknown."
        ),
    ]


class ViewHistory(msgspec.Struct, frozen=True):
    """The answer to GET /v1/cluster/views: the last changes of the view, oldest first."""

    views: Annotated[list[ViewStepItem], Meta(max_length=MAX_REMEMBERED_STEPS)]


class HandoverRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /v1/cluster/handover."""

    to: Annotated[str, Meta(description="A member of the in-sync set.")]


class FinishUpgrade(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /v1/cluster/finish-upgrade: an empty object."""


class Move(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of PATCH /v1/cluster/nodes/{id}."""

    client: AddressChange = ""
    peer: AddressChange = ""
    raft: AddressChange = ""


class Called(msgspec.Struct, frozen=True):
    """The answer to POST of a service's operation."""

    result: Annotated[msgspec.Raw, Meta(description="What the method returned.")]
    revision: Annotated[
        Count,
        Meta(description="Of what it wrote; of the state it was decided on if it wrote nothing."),
    ]
    epoch: Positive
    copies: Count
    ack: Local = UNSET


class QueryAnswer(msgspec.Struct, frozen=True):
    """The answer to a service's query."""

    result: Annotated[msgspec.Raw, Meta(description="What the method returned.")]
    revision: Annotated[Count, Meta(description="The state that it was read from.")]


class HostedService(msgspec.Struct, frozen=True, kw_only=True):
    """One service, as the node that is asked has it."""

    name: str
    version: Positive
    summary: str
    operations: tuple[str, ...]
    queries: tuple[str, ...]
    timers: tuple[str, ...]
    difference: Annotated[
        str,
        Meta(description="How this node's code differs from what the cluster runs; else empty."),
    ]


class ServiceList(msgspec.Struct, frozen=True):
    """The answer to GET /v1/services: those whose code the node that is asked has."""

    services: list[HostedService]
