"""What etcd's gateway answers when it does not do what was asked: gRPC's codes and etcd's words."""

from __future__ import annotations

import msgspec

from cluster.api.problems import ProblemError
from datapath.errors import OperationError

CANCELED = 1
UNKNOWN = 2
INVALID_ARGUMENT = 3
DEADLINE_EXCEEDED = 4
NOT_FOUND = 5
PERMISSION_DENIED = 7
RESOURCE_EXHAUSTED = 8
FAILED_PRECONDITION = 9
OUT_OF_RANGE = 11
UNIMPLEMENTED = 12
INTERNAL = 13
UNAVAILABLE = 14
UNAUTHENTICATED = 16

HTTP_STATUSES = {
    CANCELED: 499,
    UNKNOWN: 500,
    INVALID_ARGUMENT: 400,
    DEADLINE_EXCEEDED: 504,
    NOT_FOUND: 404,
    PERMISSION_DENIED: 403,
    RESOURCE_EXHAUSTED: 429,
    FAILED_PRECONDITION: 400,
    OUT_OF_RANGE: 400,
    UNIMPLEMENTED: 501,
    INTERNAL: 500,
    UNAVAILABLE: 503,
    UNAUTHENTICATED: 401,
}
"""As the gateway of gRPC maps them."""

_encode = msgspec.json.Encoder().encode


class EtcdError(Exception):
    """A refusal: a code of gRPC, and a message.

    `refuses_caller`: for who asked, where the code does not say so.
    """

    def __init__(self, code: int, message: str, *, refuses_caller: bool = False) -> None:
        super().__init__(message)
        self.refuses_caller = refuses_caller
        self.code = code
        self.message = message

    @property
    def status(self) -> int:
        """The HTTP status."""
        return HTTP_STATUSES[self.code]

    def body(self) -> bytes:
        """Return the JSON document. etcd 3.5 has the field `error`, later ones have not."""
        return _encode({"error": self.message, "code": self.code, "message": self.message})


def invalid(message: str) -> EtcdError:
    """Make the refusal of a request that is not valid."""
    return EtcdError(INVALID_ARGUMENT, message)


def empty_key() -> EtcdError:
    """Make the refusal of a request without a key."""
    return invalid("etcdserver: key is not provided")


_TOO_LARGE = (INVALID_ARGUMENT, "etcdserver: request is too large")
OF_CODES: dict[str, tuple[int, str]] = {
    "lease_not_found": (NOT_FOUND, "etcdserver: requested lease not found"),
    "lease_exists": (FAILED_PRECONDITION, "etcdserver: lease already exists"),
    "key_not_found": (INVALID_ARGUMENT, "etcdserver: key not found"),
    "unauthenticated": (UNAUTHENTICATED, "etcdserver: invalid auth token"),
    "forbidden": (PERMISSION_DENIED, "etcdserver: permission denied"),
    "overloaded": (RESOURCE_EXHAUSTED, "etcdserver: too many requests"),
    "too_many_connections": (RESOURCE_EXHAUSTED, "etcdserver: too many requests"),
    "storage_full": (RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded"),
    "value_too_large": _TOO_LARGE,
    "too_large": _TOO_LARGE,
    "txn_too_large": _TOO_LARGE,
    "revision_compacted": (OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted"),
    "future_revision": (
        OUT_OF_RANGE,
        "etcdserver: mvcc: required revision is a future revision",
    ),
    "not_found": (NOT_FOUND, "Not Found"),
    "method_not_allowed": (UNIMPLEMENTED, "Method Not Allowed"),
}


def key_not_found() -> EtcdError:
    """Make the refusal of what needs a key that is not there."""
    return EtcdError(*OF_CODES["key_not_found"])


def compacted() -> EtcdError:
    """Make the refusal of a revision that is no longer kept."""
    return EtcdError(*OF_CODES["revision_compacted"])


def future_revision() -> EtcdError:
    """Make the refusal of a revision that is not there yet."""
    return EtcdError(*OF_CODES["future_revision"])


NO_LEADER = "etcdserver: no leader"
TIMED_OUT = "etcdserver: request timed out"
"""Of a request that may have been carried out, and may not."""


def from_problem(error: OperationError | ProblemError) -> EtcdError:
    """Return what etcd says of the same."""
    known = OF_CODES.get(error.code)
    if known is not None:
        return EtcdError(*known)
    if error.code == "no_data":  # clients try another node
        return EtcdError(UNAVAILABLE, f"onecopy: {error.detail}: watch at another node")
    if error.code in {"wrong_group", "spans_groups"}:  # another node of this group says the same
        return invalid(f"onecopy: {error.detail}")
    if error.outcome == "unknown":
        return EtcdError(UNAVAILABLE, TIMED_OUT)
    status = error.status if isinstance(error, ProblemError) else 503
    if status == 503:
        return EtcdError(UNAVAILABLE, NO_LEADER)
    code = {409: RESOURCE_EXHAUSTED, 401: UNAUTHENTICATED, 403: PERMISSION_DENIED}.get(
        status, INVALID_ARGUMENT
    )
    return EtcdError(code, f"onecopy: {error.detail}")
