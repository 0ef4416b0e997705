"""A request, its final answer, and what an answer or a failure lets the client conclude."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, NoReturn

import msgspec

from cluster.client.errors import (
    BY_CODE,
    ClientError,
    InvalidRequestError,
    NotAppliedError,
    PreconditionFailedError,
    StorageFullError,
    UnavailableError,
    UnknownOutcomeError,
    WrongClusterError,
)
from cluster.client.results import Problem

PASSING_CODES = frozenset(
    {
        "service_failed",
        "service_timeout",
        "invalid_argument",
        "unknown_service",
        "unknown_operation",
    }
)
"""Codes that a service's call gets from one node, and might not from another, with other code."""

_decode_problem = msgspec.json.Decoder(Problem).decode


class FinalResponse(NamedTuple):
    """A final answer: not necessarily a success. `after`: what the write was first sent after."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    after: int | None = None

    def problem(self) -> Problem:
        """Return what it says has gone wrong."""
        return decode_problem(self.status, self.body)


class Request(NamedTuple):
    """A request, whole: `target` is the encoded path and query, `key` the idempotency key.

    `retry_unknown`: may be sent again though an earlier try may have been applied (reads, and
    writes under a key). `waits`: the server may wait for a primary, as long as it is told. `after`:
    a revision that was known before the first try; None: the transport takes the highest it knows.
    `drawn`: the idempotency key is of this call alone. `group`: the group that it is for, ""
    for that of its keys; `after` is one of that group's revisions. `stays`: it is for this cluster
    alone, whose revision `after` is.
    """

    method: str
    target: str
    headers: Mapping[str, str] = {}
    body: bytes | None = None
    key: str = ""
    writes: bool = False
    retry_unknown: bool = True
    waits: bool = True
    after: int | None = None
    drawn: bool = False
    group: str = ""
    stays: bool = False


def decode_problem(status: int, body: bytes) -> Problem:
    """Return the error's body, or the nearest thing where something else answered (a proxy)."""
    try:
        return _decode_problem(body)
    except msgspec.DecodeError:
        text = body[:200].decode("utf-8", "replace").strip()
        return Problem(status=status, code=f"http_{status}", detail=text or f"HTTP {status}")


def raise_for(call: Request, reply: FinalResponse) -> NoReturn:
    """Raise what an answer that is not a success means."""
    problem = decode_problem(reply.status, reply.body)
    detail = problem.detail or problem.title or f"HTTP {reply.status}"
    if call.writes and problem.outcome == "unknown":
        call = call if reply.after is None else call._replace(after=reply.after)
        raise in_doubt(call, detail, code=problem.code, status=reply.status)
    kinds: dict[int, type[NotAppliedError]] = {
        412: PreconditionFailedError,
        500: NotAppliedError,
        504: NotAppliedError,
        507: StorageFullError,
    }
    kind = BY_CODE.get(problem.code) or kinds.get(reply.status, InvalidRequestError)
    raise kind(detail, code=problem.code, status=reply.status)


def in_doubt(call: Request, detail: str, *, code: str, status: int = 0) -> ClientError:
    """Return the error of a try that may have been carried out."""
    if not call.writes:
        return UnavailableError(detail, code=code, status=status)
    return UnknownOutcomeError(
        detail,
        code=code,
        status=status,
        idempotency_key=call.key,
        idempotency_after=call.after,
    )


def raise_wrong_cluster(
    call: Request, error: WrongClusterError, doubtful: ClientError | None
) -> NoReturn:
    """Raise what a call ends with whose endpoint belongs to another cluster."""
    if doubtful is None:
        raise error
    doubtful.detail += f"; then {error.detail}"
    raise_failure(call, error, doubtful)


def hold_doubt(call: Request, reply: FinalResponse, doubtful: ClientError | None) -> None:
    """Refuse to call a write not applied after a try that may yet be.

    A failed If-Match is final all the same: a revision that has passed never comes back. So is a
    request that is wrong in itself. A right may have gone since the earlier try.
    """
    if doubtful is None or reply.status < 400:
        return
    passing = reply.status in {401, 403, 507} or (
        reply.status == 412 and "If-Match" not in call.headers
    )
    if passing or decode_problem(reply.status, reply.body).code in PASSING_CODES:
        raise_failure(call, doubtful, doubtful)


def raise_failure(call: Request, failure: ClientError, doubtful: ClientError | None) -> NoReturn:
    """Raise what a call ends with after its last try: in doubt, if one try may count."""
    if doubtful is None:
        raise failure
    detail = (
        f"{doubtful.detail} (this write may or may not have been applied; to learn which, repeat "
        f"it under the idempotency key {call.key})"
        if call.key
        else f"{doubtful.detail} (this may or may not have been done; check the status)"
    )
    raise in_doubt(call, detail, code=doubtful.code, status=doubtful.status) from doubtful
