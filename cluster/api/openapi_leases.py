"""The OpenAPI document's operations on leases, locks and elections."""

from __future__ import annotations

from cluster.api.lease_documents import (
    CandidateRequest,
    Elected,
    KeepAliveAnswer,
    KeepAliveRequest,
    KeptAlive,
    LeaderDocument,
    LeaseDocument,
    LeaseGranted,
    LeaseItem,
    LeaseList,
    LeaseRequest,
    LeaseRevoked,
    LockDocument,
    LockItem,
    LockList,
    LockReleased,
    LockRequest,
    LockTaken,
    LockWaiterItem,
)
from cluster.api.openapi_keys import (
    IDEMPOTENCY_AFTER_HEADER,
    IDEMPOTENCY_KEY_HEADER,
    IF_LOCK_HEADER,
)
from cluster.api.params import (
    AFTER_TOKEN_PARAMS,
    LEASE_LIST_PARAMS,
    LOCK_LIST_PARAMS,
    TIMEOUT,
    TOKEN_PARAMS,
)
from cluster.api.schemas import (
    BODY_CODES,
    PARAMETER_CODES,
    READ_CODES,
    REPEAT_CODES,
    WRITE_CODES,
    Json,
    api_operation,
    json_answer,
    json_content,
    query_parameters,
)
from cluster.services.lock_state import MAX_NAME_SIZE_BYTES

_JSON_CODES = ("invalid_body", *BODY_CODES, "unsupported_media_type")
_ASK_CODES = (*READ_CODES, "service_failed", "unknown_outcome", "storage_full")
"""What is executed on the primary and writes nothing."""
_REPEATABLE = (IDEMPOTENCY_KEY_HEADER, IDEMPOTENCY_AFTER_HEADER)
_REPEATED = ("Idempotent-Replayed", "Onecopy-Revision")


def lease_parameter() -> Json:
    """Return the id of a lease in the path."""
    schema = {"type": "string", "pattern": "^[1-9][0-9]{0,19}$"}
    return {"name": "id", "in": "path", "required": True, "schema": schema, "example": "42"}


def name_parameter() -> Json:
    """Return the name of a lock or an election in the path."""
    return {
        "name": "name",
        "in": "path",
        "required": True,
        "description": f"UTF-8, percent-encoded, 1 to {MAX_NAME_SIZE_BYTES} bytes when decoded. "
        "Locks and elections share their names.",
        "schema": {"type": "string", "minLength": 1, "maxLength": MAX_NAME_SIZE_BYTES},
        "example": "jobs",
    }


def grant_lease() -> Json:
    """Return POST /v1/leases."""
    example = LeaseGranted(lease="42", ttl_ms=10_000, revision=42, epoch=3, copies=3)
    return api_operation(
        "grantLease",
        "Begin a client lease",
        {"201": json_answer("Keep it alive, or it ends.", example, *_REPEATED)},
        (
            *PARAMETER_CODES, "invalid_header", "invalid_name", *_JSON_CODES, "too_many_leases",
            "lock_lost", *REPEAT_CODES, *WRITE_CODES,
        ),
        write=True,
        parameters=[*query_parameters(TIMEOUT), *_REPEATABLE, IF_LOCK_HEADER],
        requestBody={"required": True, "content": json_content(LeaseRequest(ttl_ms=10_000))},
    )  # fmt: skip


def list_leases() -> Json:
    """Return GET /v1/leases."""
    item = LeaseItem(lease="42", ttl_ms=10_000, keys=2)
    return api_operation(
        "listLeases",
        "Client leases, by their ids",
        {
            "200": json_answer(
                "A page.", LeaseList(leases=[item], revision=57, next=None), "Onecopy-Revision"
            )
        },
        (*PARAMETER_CODES, *READ_CODES),
        parameters=query_parameters(LEASE_LIST_PARAMS),
    )


def keep_alive() -> Json:
    """Return POST /v1/leases/{id}/keepalive."""
    return api_operation(
        "keepAlive",
        "Start a lease's TTL anew",
        {
            "200": json_answer(
                "It lasts for its TTL from when the primary received this.",
                KeptAlive(lease="42", ttl_ms=10_000, epoch=3),
                *_REPEATED,
            )
        },
        (*PARAMETER_CODES, "lease_not_found", *_ASK_CODES),
        write=True,
        parameters=query_parameters(TIMEOUT),
    )


def keep_all_alive() -> Json:
    """Return POST /v1/leases/keepalive."""
    example = KeepAliveAnswer(ttl_ms={"42": 10_000}, gone=["7"], epoch=3)
    return api_operation(
        "keepAllAlive",
        "Start the TTLs of many leases anew",
        {"200": json_answer("Which last, and which have ended.", example, *_REPEATED)},
        (*PARAMETER_CODES, *_JSON_CODES, *_ASK_CODES),
        write=True,
        parameters=query_parameters(TIMEOUT),
        requestBody={
            "required": True,
            "content": json_content(KeepAliveRequest(leases=["42", "7"])),
        },
    )


def get_lease() -> Json:
    """Return GET /v1/leases/{id}."""
    example = LeaseDocument(
        lease="42", ttl_ms=10_000, left_ms=7200, keys=["hello"], locks=["jobs"], epoch=3
    )
    return api_operation(
        "getLease",
        "What hangs on a lease, and how long it lasts without a keep-alive",
        {"200": json_answer("The lease.", example, *_REPEATED)},
        (*PARAMETER_CODES, "lease_not_found", *_ASK_CODES),
        parameters=query_parameters(TIMEOUT),
    )


def revoke_lease() -> Json:
    """Return DELETE /v1/leases/{id}."""
    example = LeaseRevoked(lease="42", deleted=2, revision=58, epoch=3, copies=3)
    return api_operation(
        "revokeLease",
        "End a lease now: its keys go, and its locks pass on",
        {"200": json_answer("It has ended.", example, *_REPEATED)},
        (
            *PARAMETER_CODES, "invalid_header", "invalid_name", "lease_not_found", "lock_lost",
            *REPEAT_CODES, *WRITE_CODES,
        ),
        write=True,
        parameters=[*query_parameters(TIMEOUT), *_REPEATABLE, IF_LOCK_HEADER],
    )  # fmt: skip


def list_locks() -> Json:
    """Return GET /v1/locks."""
    item = LockItem(lock="jobs", token=77, lease="42", note="host 1")
    return api_operation(
        "listLocks",
        "Locks and elections that are held, by their names",
        {
            "200": json_answer(
                "A page.", LockList(locks=[item], revision=57, next=None), "Onecopy-Revision"
            )
        },
        (*PARAMETER_CODES, *READ_CODES),
        parameters=query_parameters(LOCK_LIST_PARAMS),
    )


def acquire(*, is_election: bool) -> Json:
    """Return POST /v1/locks/{name} or /v1/elections/{name}."""
    ok: LockTaken | Elected = LockTaken(lock="jobs", token=77, lease="42", epoch=3, copies=3)
    body: LockRequest | CandidateRequest = LockRequest(ttl_ms=10_000, wait_ms=5000, note="host 1")
    if is_election:
        ok = Elected(election="jobs", token=77, lease="42", epoch=3, copies=3)
        body = CandidateRequest(ttl_ms=10_000, wait_ms=5000, value="host 1")
    return api_operation(
        "stand" if is_election else "acquireLock",
        "Stand for an election" if is_election else "Take a lock, or wait for it",
        {"200": json_answer("It is held under this token.", ok, *_REPEATED)},
        (
            *PARAMETER_CODES, "invalid_header", "invalid_name", *_JSON_CODES, "lease_not_found",
            "lock_held", "lock_queue_full", "lease_full", "too_many_leases", "stopping",
            *REPEAT_CODES, *WRITE_CODES,
        ),
        write=True,
        parameters=[*query_parameters(TIMEOUT), *_REPEATABLE],
        requestBody={"required": True, "content": json_content(body)},
    )  # fmt: skip


def get_holder(*, is_election: bool) -> Json:
    """Return GET /v1/locks/{name} or /v1/elections/{name}."""
    example: LockDocument | LeaderDocument = LockDocument(
        lock="jobs", token=77, lease="42", note="host 1", waiting=1,
        queue=[LockWaiterItem("43", "host 2")], revision=80,
    )  # fmt: skip
    if is_election:
        example = LeaderDocument(
            election="jobs", token=77, lease="42", value="host 1", waiting=2, revision=80
        )
    return api_operation(
        "getLeader" if is_election else "getLock",
        "Who leads" if is_election else "Who holds a lock",
        {"200": json_answer("The holder.", example, "Onecopy-Revision")},
        (*PARAMETER_CODES, "invalid_name", "not_held", *READ_CODES),
        parameters=query_parameters(AFTER_TOKEN_PARAMS),
    )


def release(*, is_election: bool) -> Json:
    """Return DELETE /v1/locks/{name} or /v1/elections/{name}."""
    example = LockReleased(token=77, revision=81, epoch=3, copies=3)
    return api_operation(
        "resign" if is_election else "releaseLock",
        "Resign, or stand no longer" if is_election else "Give up a lock, or wait no longer",
        {"200": json_answer("The next one has it.", example, *_REPEATED)},
        (
            *PARAMETER_CODES, "invalid_header", "invalid_name", "lock_lost", *REPEAT_CODES,
            *WRITE_CODES,
        ),
        write=True,
        parameters=[*query_parameters(TOKEN_PARAMS), *_REPEATABLE],
    )  # fmt: skip
