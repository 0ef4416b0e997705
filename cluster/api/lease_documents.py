"""The JSON documents of leases, locks and elections. See `cluster.api.documents`."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from cluster.api.documents import Positive
from cluster.api.params import MAX_WAIT_MS
from cluster.services.leases import MAX_KEEP_ALIVES, MAX_TTL_MS, MIN_TTL_MS
from cluster.services.lock_state import MAX_SHOWN_WAITING
from datapath.operations import Count

LeaseName = Annotated[str, Meta(pattern="^[1-9][0-9]{0,19}$", description="The id of a lease.")]
Ttl = Annotated[int, Meta(ge=MIN_TTL_MS, le=MAX_TTL_MS, description="Time to live, in ms.")]
WaitMs = Annotated[
    int, Meta(ge=0, le=MAX_WAIT_MS, description="How long to wait for it; 0: not at all.")
]
KeepPlace = Annotated[
    bool,
    Meta(
        description="At the end of `wait_ms` stay in the queue, by `lease`: to ask again keeps "
        "the place, and the lock may come meanwhile."
    ),
]
Token = Annotated[Positive, Meta(description="The revision at which it was taken: they only rise.")]


class LeaseRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /v1/leases."""

    ttl_ms: Ttl


class LeaseGranted(msgspec.Struct, frozen=True):
    """The answer to POST /v1/leases."""

    lease: LeaseName
    ttl_ms: Ttl
    revision: Positive
    epoch: Positive
    copies: Positive


class KeepAliveRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /v1/leases/keepalive."""

    leases: Annotated[list[LeaseName], Meta(min_length=1, max_length=MAX_KEEP_ALIVES)]


class KeptAlive(msgspec.Struct, frozen=True):
    """The answer to a keep-alive of one lease; its TTL has started anew."""

    lease: LeaseName
    ttl_ms: Ttl
    epoch: Positive


class KeepAliveAnswer(msgspec.Struct, frozen=True):
    """The answer to a keep-alive of several leases."""

    ttl_ms: Annotated[dict[str, int], Meta(description="Of each lease whose TTL started anew.")]
    gone: Annotated[list[LeaseName], Meta(description="Those that have ended.")]
    epoch: Positive


class LeaseDocument(msgspec.Struct, frozen=True):
    """The answer to GET of a lease."""

    lease: LeaseName
    ttl_ms: Ttl
    left_ms: Annotated[Count, Meta(description="It does not end before that.")]
    keys: list[str]
    locks: Annotated[list[str], Meta(description="Those that it holds or waits for.")]
    epoch: Positive


class LeaseItem(msgspec.Struct, frozen=True):
    """One lease of a listing."""

    lease: LeaseName
    ttl_ms: Ttl
    keys: Annotated[Count, Meta(description="How many keys hang on it.")]


class LeaseList(msgspec.Struct, frozen=True):
    """The answer to GET /v1/leases."""

    leases: list[LeaseItem]
    revision: Count
    next: Annotated[str | None, Meta(description="`after` of the next page; null on the last.")]


class LeaseRevoked(msgspec.Struct, frozen=True):
    """The answer to DELETE of a lease."""

    lease: LeaseName
    deleted: Annotated[Count, Meta(description="How many keys went with it.")]
    revision: Positive
    epoch: Positive
    copies: Positive


class LockRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST of a lock: `lease`, or `ttl_ms` of a new one."""

    lease: LeaseName | None = None
    ttl_ms: Ttl | None = None
    wait_ms: WaitMs = 0
    keep_place: KeepPlace = False
    note: Annotated[str, Meta(description="Text about the holder, shown to others.")] = ""


class CandidateRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST of an election: `lease`, or `ttl_ms` of a new one."""

    lease: LeaseName | None = None
    ttl_ms: Ttl | None = None
    wait_ms: WaitMs = 0
    keep_place: KeepPlace = False
    value: Annotated[str, Meta(description="Text about the leader, shown to others.")] = ""


class LockTaken(msgspec.Struct, frozen=True):
    """The answer to who has got a lock."""

    lock: str
    token: Token
    lease: LeaseName
    epoch: Positive
    copies: Positive


class Elected(msgspec.Struct, frozen=True):
    """The answer to who has become the leader."""

    election: str
    token: Token
    lease: LeaseName
    epoch: Positive
    copies: Positive


class LockWaiterItem(msgspec.Struct, frozen=True):
    """One that waits for a lock."""

    lease: LeaseName
    note: str


class LockDocument(msgspec.Struct, frozen=True):
    """The answer to GET of a lock that is held."""

    lock: str
    token: Token
    lease: LeaseName
    note: str
    waiting: Annotated[Count, Meta(description="How many wait for it.")]
    queue: Annotated[
        list[LockWaiterItem],
        Meta(description=f"The next {MAX_SHOWN_WAITING} of them, in their order."),
    ]
    revision: Positive


class LeaderDocument(msgspec.Struct, frozen=True):
    """The answer to GET of an election that has a leader."""

    election: str
    token: Token
    lease: LeaseName
    value: str
    waiting: Annotated[Count, Meta(description="How many stand beside the leader.")]
    revision: Positive


class LeaderItem(msgspec.Struct, frozen=True):
    """The leader of an election, as its observers are told."""

    token: Token
    lease: LeaseName
    value: str


class LeaderEventDocument(msgspec.Struct, frozen=True):
    """Who leads an election at a revision; `cluster.api.events` writes it."""

    revision: Annotated[Count, Meta(description="Where to resume: `after` this.")]
    election: Annotated[str | UnsetType, Meta(description="Not in progress.")] = UNSET
    leader: Annotated[
        LeaderItem | UnsetType | None,
        Meta(description="null: nobody leads. Left out: progress, no change up to there."),
    ] = UNSET


class LockItem(msgspec.Struct, frozen=True):
    """One lock of a listing."""

    lock: str
    token: Token
    lease: LeaseName
    note: str


class LockList(msgspec.Struct, frozen=True):
    """The answer to GET /v1/locks."""

    locks: list[LockItem]
    revision: Count
    next: Annotated[str | None, Meta(description="`after` of the next page; null on the last.")]


class LockReleased(msgspec.Struct, frozen=True):
    """The answer to DELETE of a lock or an election. `token` 0: it was not held, or not yet."""

    token: Count
    revision: Count
    epoch: Positive
    copies: Positive


LEASE_ANSWERS = (
    LeaseGranted, KeptAlive, KeepAliveAnswer, LeaseDocument, LeaseList, LeaseRevoked, LockTaken,
    Elected, LockDocument, LeaderDocument, LeaderEventDocument, LockList, LockReleased,
)  # fmt: skip
LEASE_BODIES = (LeaseRequest, KeepAliveRequest, LockRequest, CandidateRequest)
