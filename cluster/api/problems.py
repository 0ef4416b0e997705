"""Problems: what the HTTP API answers when it does not do what was asked (RFC 9457).

`CODES` is the one list of codes, each with its status. What a client may conclude about a write
stands in `outcome`, which comes from the error's class (`datapath.errors`), never from its code.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from cluster.services.access_guard import without_tokens
from datapath.errors import (
    CompactedError,
    NotPrimaryError,
    OperationError,
    OperationUnknownError,
    OutcomeWord,
    OverloadedError,
    PrimaryFullError,
    RejectedError,
)
from datapath.operations import Count

RETRY_AFTER_S = 1
"""What Retry-After says on every 503: a failover takes less, and a client adds its own jitter."""


class ProblemCode(msgspec.Struct, frozen=True):
    """One problem code: its HTTP status, its title, and what the client should do."""

    status: int
    title: str
    advice: str


CODES: dict[str, ProblemCode] = {
    "malformed_request": ProblemCode(
        400, "The request is not valid HTTP/1.1", "Fix the client; the connection is closed."
    ),
    "invalid_key": ProblemCode(
        400,
        "The key is empty, not valid percent-encoding, or not UTF-8",
        "Percent-encode the key's UTF-8 bytes.",
    ),
    "key_too_long": ProblemCode(400, "The key is longer than 480 bytes", "Use a shorter key."),
    "unknown_parameter": ProblemCode(
        400, "Unknown query parameter", "Use the parameters listed in `detail`."
    ),
    "invalid_parameter": ProblemCode(
        400, "Invalid value of a query parameter", "Fix the parameter named in `detail`."
    ),
    "invalid_header": ProblemCode(
        400, "Invalid value of a header", "Fix the header named in `detail`."
    ),
    "invalid_cursor": ProblemCode(
        400,
        "The cursor is damaged or belongs to another range",
        "Start the range again without a cursor.",
    ),
    "invalid_body": ProblemCode(
        400, "The body is not the expected JSON", "Fix the field named in `detail`."
    ),
    "invalid_argument": ProblemCode(
        400, "Invalid argument of a service's method", "Fix the argument named in `detail`."
    ),
    "unauthenticated": ProblemCode(
        401,
        "The caller is not known",
        "Send a token that this cluster knows: Authorization: Bearer oct_…",
    ),
    "forbidden": ProblemCode(
        403,
        "The caller's role does not allow it",
        "Ask an administrator for the right that `detail` names.",
    ),
    "foreign_origin": ProblemCode(
        403,
        "The request comes from a web page of another origin",
        "Serve the page from the node's own address, or list its origin under [api] origins.",
    ),
    "admin_forbidden": ProblemCode(
        403,
        "Allowed only from the node's own machine",
        "Send it from there, or set [api] admin_from in the configuration file.",
    ),
    "not_found": ProblemCode(404, "No such resource", "See /openapi.json for the resources."),
    "key_not_found": ProblemCode(404, "No such key", "Nothing to do: the key has no value."),
    "unknown_service": ProblemCode(
        404,
        "No such service on the node that would execute it",
        "Use a service listed in `detail`; see also /v1/services.",
    ),
    "unknown_operation": ProblemCode(
        404, "No such operation of the service", "Use one listed in `detail`."
    ),
    "unknown_query": ProblemCode(
        404, "No such query of the service", "Use one listed in `detail`."
    ),
    "lease_not_found": ProblemCode(
        404, "No such lease", "It has ended, or was never granted: grant a new one."
    ),
    "not_held": ProblemCode(404, "Nobody holds the lock", "Nothing to do: it is free."),
    "unknown_node": ProblemCode(404, "No such node", "See /v1/cluster for the nodes."),
    "unknown_token": ProblemCode(404, "No such token", "See `onecopy token list`."),
    "unknown_role": ProblemCode(404, "No such role", "See `onecopy role list`."),
    "no_data": ProblemCode(
        404, "This node holds no data", "Ask a replica; /v1/cluster lists them."
    ),
    "invalid_name": ProblemCode(
        400,
        "The name of a lock or an election is empty, too long, or not UTF-8 without zero bytes",
        "Use a name of 1 to 200 bytes.",
    ),
    "lock_held": ProblemCode(
        409, "Another holds the lock", "Wait with `wait_ms`, or try again later."
    ),
    "lock_queue_full": ProblemCode(409, "Too many wait for the lock", "Try again later."),
    "lease_full": ProblemCode(
        409, "The lease has as many keys or locks as one may", "Grant another lease."
    ),
    "too_many_leases": ProblemCode(
        409, "There are as many leases as there may be", "Revoke those of no use."
    ),
    "backup_running": ProblemCode(
        503, "This node is writing a backup already", "Wait for it, or ask another replica."
    ),
    "access_off": ProblemCode(
        409,
        "This cluster has no access control",
        "Add [access] to the configuration file of every node.",
    ),
    "last_admin": ProblemCode(
        409,
        "Nobody could change tokens and roles any more",
        "Make another token with the right `admin` first.",
    ),
    "role_in_use": ProblemCode(409, "Tokens have the role", "Revoke these tokens first."),
    "role_reserved": ProblemCode(409, "The role is built in", "Use another name."),
    "too_many_tokens": ProblemCode(409, "There are 10000 tokens", "Revoke those of no use."),
    "too_many_roles": ProblemCode(409, "There are 1000 roles", "Delete those of no use."),
    "lock_lost": ProblemCode(
        412,
        "The lock is not held under this token",
        "Nothing was changed. Take the lock again, and read again what it protects.",
    ),
    "method_not_allowed": ProblemCode(
        405, "Method not allowed", "Use a method listed in the Allow header."
    ),
    "request_timeout": ProblemCode(
        408, "The body did not arrive in time", "Send it again; the connection is closed."
    ),
    "handover_failed": ProblemCode(
        409, "The handover did not happen", "`detail` says why; the primary is unchanged."
    ),
    "upgrade_pending": ProblemCode(
        409,
        "Not every node runs a release that supports this",
        "`detail` names the nodes: upgrade or start them, and try again.",
    ),
    "is_primary": ProblemCode(
        409, "The primary cannot be removed", "Hand over to another node first."
    ),
    "unsafe_removal": ProblemCode(
        409,
        "The removal could lose acknowledged writes or the majority",
        "Do first what `detail` says.",
    ),
    "membership_pending": ProblemCode(
        409, "Another removal is in progress", "Wait a moment and try again."
    ),
    "no_majority": ProblemCode(
        409, "No majority of the voting nodes is alive", "Bring one of them back first."
    ),
    "refused": ProblemCode(409, "The cluster refused the change", "`detail` says why."),
    "unknown_revision": ProblemCode(
        409,
        "`Idempotency-After` names a revision that this cluster has not reached",
        "Use the `Onecopy-Revision` of an answer from this cluster.",
    ),
    "idempotency_key_expired": ProblemCode(
        410,
        "The idempotency key may have been used and is no longer remembered",
        "This request was not applied; read the key to learn whether an earlier one was.",
    ),
    "revision_compacted": ProblemCode(
        410,
        "The changes after that revision are no longer kept on this node",
        "Ask another node; or read the keys again, and watch from that revision.",
    ),
    "future_revision": ProblemCode(
        400,
        "`after` names a revision that this cluster has not reached",
        "Use the revision of an event, a listing or an answer from this cluster.",
    ),
    "not_acceptable": ProblemCode(
        406,
        "None of the accepted media types is available",
        "Accept text/event-stream or application/x-ndjson.",
    ),
    "precondition_failed": ProblemCode(
        412, "A condition of the request does not hold", "Read the key and decide again."
    ),
    "wrong_cluster": ProblemCode(
        421,
        "The request is meant for another cluster",
        "Check the address: the node behind it belongs to the cluster named in `detail`.",
    ),
    "wrong_group": ProblemCode(
        421,
        "The key belongs to another group",
        "Ask one of `endpoints`, or see /v1/groups; nothing was changed here.",
    ),
    "spans_groups": ProblemCode(
        400,
        "The keys are spread over several groups",
        "Use keys or a prefix of one group, as `detail` says.",
    ),
    "cluster_unknown": ProblemCode(
        503,
        "This node does not know its cluster yet",
        "Try again later or at another node: a node learns its cluster when it joins.",
    ),
    "value_too_large": ProblemCode(
        413, "The body is too large", "Split the value; the connection is closed."
    ),
    "txn_too_large": ProblemCode(
        413,
        "The transaction is too large",
        "Split it: `detail` names the limit.",
    ),
    "too_large": ProblemCode(413, "The change is too large for the log", "Use a smaller value."),
    "unsupported_content_encoding": ProblemCode(
        415, "Content encodings are not accepted", "Send the bytes without Content-Encoding."
    ),
    "unsupported_media_type": ProblemCode(
        415, "The body's media type is not accepted", "Send Content-Type: application/json."
    ),
    "expectation_failed": ProblemCode(
        417, "The Expect header is not supported", "Send 100-continue, or no Expect."
    ),
    "unknown_host": ProblemCode(
        421,
        "The Host header names no address of this cluster",
        "Use a node's address, or add the name to [api] hosts in the configuration file.",
    ),
    "idempotency_key_reused": ProblemCode(
        422,
        "The idempotency key was used with another request",
        "Use a new key for each new request; repeat a key only with the same request.",
    ),
    "head_too_large": ProblemCode(
        431, "The request line or a header is too long", "Shorten it; the connection is closed."
    ),
    "internal_error": ProblemCode(
        500,
        "The server failed unexpectedly",
        "Report it with its `instance`; try again under the same idempotency key.",
    ),
    "service_failed": ProblemCode(
        500, "The service failed", "Report it; the details are in the primary's log."
    ),
    "service_starting": ProblemCode(
        503, "The service has not started yet in this cluster", "Try again in a moment."
    ),
    "service_outdated": ProblemCode(
        503,
        "The primary has older code of the service than the stored data",
        "Install the newer code on that node, or hand over to a node that has it.",
    ),
    "service_timeout": ProblemCode(
        504, "The method took too long and was stopped", "Make it do less in one call."
    ),
    "no_primary": ProblemCode(
        503, "No primary could be reached in time", "Try again at any node, after Retry-After."
    ),
    "not_primary": ProblemCode(
        503, "This node is not the serving primary", "Ask the node named in `primary`."
    ),
    "access_starting": ProblemCode(
        503, "The first token is not known to the cluster yet", "Try again in a moment."
    ),
    "not_ready": ProblemCode(
        503,
        "This node cannot answer linearizable reads now",
        "Ask another node, or try again later.",
    ),
    "stopping": ProblemCode(503, "This node is stopping", "Ask another node."),
    "overloaded": ProblemCode(
        503, "Too many requests are waiting", "Try again later with fewer concurrent requests."
    ),
    "too_many_watchers": ProblemCode(503, "Watcher limit reached", "Ask another node."),
    "too_many_connections": ProblemCode(
        503, "Connection limit reached", "Reuse connections, or ask another node."
    ),
    "not_enough_copies": ProblemCode(
        503,
        "Fewer replicas are in sync than `min_copies` requires",
        "Try again when more are in sync, or lower `min_copies`. Check `outcome` first.",
    ),
    "unknown_outcome": ProblemCode(
        503,
        "The write may or may not have been applied",
        "Try again under the same idempotency key to learn which.",
    ),
    "timeout": ProblemCode(
        504,
        "No answer within timeout_ms",
        "Try again under the same idempotency key to learn whether it was applied.",
    ),
    "storage_full": ProblemCode(
        507,
        "The primary's disk is full",
        "Free space on its disk. Nothing was applied; reads still work.",
    ),
}


class ProblemDocument(msgspec.Struct, frozen=True):
    """What is served of a problem, `application/problem+json`."""

    type: Annotated[str, Meta(extra_json_schema={"format": "uri"})]
    title: str
    status: Annotated[int, Meta(ge=400, le=599)]
    detail: Annotated[str, Meta(description="For people: what is wrong here, and the fix.")]
    code: Annotated[
        str,
        Meta(
            description="Stable. Those listed here are this service's own.",
            extra_json_schema={
                "anyOf": [{"enum": sorted(CODES)}, {"pattern": "^[a-z][a-z0-9_]*$"}]
            },
        ),
    ]
    outcome: Annotated[
        OutcomeWord | UnsetType,
        Meta(
            description="On requests that change something: whether they may have. "
            "`not_applied`: nothing changed, and nothing will."
        ),
    ] = UNSET
    primary: Annotated[str | UnsetType, Meta(description="The primary that the node knows of.")] = (
        UNSET
    )
    instance: Annotated[str | UnsetType, Meta(extra_json_schema={"format": "uri"})] = UNSET
    oldest: Annotated[
        Count | UnsetType, Meta(description="The smallest `after` that this node can serve.")
    ] = UNSET
    group: Annotated[str | UnsetType, Meta(description="The group that owns the key.")] = UNSET
    endpoints: Annotated[
        tuple[str, ...] | UnsetType, Meta(description="URLs of that group's nodes.")
    ] = UNSET
    revision: Annotated[
        Count | UnsetType, Meta(description="A revision of that group, for Idempotency-After.")
    ] = UNSET


class ProblemError(Exception):
    """A request that is refused before it reaches the node, by a code of `CODES`.

    `outcome` shows on writes only. `closes`: the connection cannot be used further (an unread
    body, say). `headers` are header lines, each ending in CR LF. `primary` is the primary that is
    known, `instance` a URI that names this occurrence in the log; "": neither is shown. `oldest` is
    the smallest revision after which this node knows all changes. `group` and its `endpoints` are
    those that the request belongs to.
    """

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        outcome: OutcomeWord = "not_applied",
        closes: bool = False,
        headers: bytes = b"",
        primary: str = "",
        instance: str = "",
        oldest: int | UnsetType = UNSET,
        group: str = "",
        endpoints: tuple[str, ...] = (),
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.status = CODES[code].status
        self.title = CODES[code].title
        self.outcome = outcome
        self.closes = closes
        self.headers = headers
        self.primary = primary
        self.instance = instance
        self.oldest = oldest
        self.group = group
        self.endpoints = endpoints
        self.revision: int | UnsetType = UNSET
        "A revision that `group` had committed before this was said."

    def body(self, *, write: bool) -> bytes:
        """Return the JSON document; `write`: the request was to change something."""
        document = ProblemDocument(
            type=f"urn:onecopy:problem:{self.code}",
            title=self.title,
            status=self.status,
            # It may name what came as bytes that are no text: these are surrogates here.
            detail=without_tokens(self.detail.encode(errors="backslashreplace").decode()),
            code=self.code,
            outcome=self.outcome if write else UNSET,
            primary=self.primary or UNSET,
            instance=self.instance or UNSET,
            oldest=self.oldest,
            group=self.group or UNSET,
            endpoints=self.endpoints or UNSET,
            revision=self.revision,
        )
        return msgspec.json.encode(document)


def unexpected(request_id: str) -> ProblemError:
    """Return the problem of a defect; `request_id` "": the log has only others like it."""
    if not request_id:
        detail = "for details of similar failures see the node's log"
        return ProblemError("internal_error", detail, outcome="unknown")
    return ProblemError(
        "internal_error",
        f"for details see {request_id} in the node's log",
        outcome="unknown",
        instance=f"urn:onecopy:request:{request_id}",
    )


def from_operation_error(error: OperationError) -> ProblemError:
    """Return the problem that says what `error` says.

    The status goes by the code if `CODES` has it, else by the class, so that a code the engine or
    a service makes up still gets a fitting status. The outcome is the class's own.
    """
    code = error.code if error.code in CODES else _code_of_class(error)
    primary = error.primary if isinstance(error, NotPrimaryError) else ""
    oldest = error.oldest if isinstance(error, CompactedError) else UNSET
    problem = ProblemError(
        code, error.detail, outcome=error.outcome, primary=primary, oldest=oldest
    )
    problem.code = error.code
    return problem


def _code_of_class(error: OperationError) -> str:
    match error:
        case RejectedError():
            return "refused"
        case NotPrimaryError():
            return "no_primary"
        case PrimaryFullError():
            return "storage_full"
        case OverloadedError():
            return "overloaded"
        case OperationUnknownError():
            return "unknown_outcome"
        case _:
            return "no_primary" if error.outcome == "not_applied" else "unknown_outcome"
