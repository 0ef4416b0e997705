"""The errors of the client: one tree; each class states what the caller may conclude.

ClientError
├── NotAppliedError           nothing changed, and nothing will
│   ├── InvalidRequestError   the request itself is invalid: repeating it will not help
│   ├── RefusedError          a user's service refuses, with its own code
│   ├── PreconditionFailedError   the condition on the key does not hold
│   ├── LockHeldError         another client holds the lock
│   ├── LockLostError         the lock is not held under this token
│   ├── WrongClusterError     the node belongs to another cluster
│   ├── RevisionCompactedError  no node keeps the changes after that revision
│   ├── StorageFullError      the primary's disk is full
│   └── UnavailableError      no node available in time; also for reads
└── UnknownOutcomeError       it may have been applied, or may still be
"""

from __future__ import annotations


class ClientError(Exception):
    """Root of the client's errors.

    `code` is the server's stable code, or the client's own ("unreachable", "timeout", …); `status`
    the HTTP status, 0 where no answer came.
    """

    def __init__(self, detail: str, *, code: str = "", status: int = 0) -> None:
        super().__init__(detail)
        self.detail = detail
        self.code = code
        self.status = status


class NotAppliedError(ClientError):
    """Nothing changed, and nothing will."""


class InvalidRequestError(NotAppliedError):
    """The request itself is invalid: fix it; repeating it unchanged will not help."""


class RefusedError(NotAppliedError):
    """A user's service has refused: it raised `RejectedError`, whose `code` this has."""


class PreconditionFailedError(NotAppliedError):
    """The key is not at the given revision, or exists despite `if_absent`."""


class LockHeldError(NotAppliedError):
    """Another holds the lock; `detail` has what it says of itself."""


class LockLostError(NotAppliedError):
    """The lock is not held under this token, or may not be held any more."""


class WrongClusterError(NotAppliedError):
    """The node at this address belongs to another cluster than this client's.

    Nothing was applied there. `expected` and `found` are the two clusters' ids.
    """

    def __init__(self, url: str, *, expected: str, found: str) -> None:
        super().__init__(
            f"{url} belongs to cluster {found}, and this client uses cluster {expected}: correct "
            "the address, or create a new client for the other cluster",
            code="wrong_cluster",
            status=421,
        )
        self.expected = expected
        self.found = found


class RevisionCompactedError(NotAppliedError):
    """No node that answers keeps the changes after the revision that a watch asked for.

    Read the keys again, and watch after the revision of what was read. `oldest`: the smallest
    revision after which a node keeps them all.
    """

    def __init__(self, detail: str, *, oldest: int) -> None:
        super().__init__(detail, code="revision_compacted", status=410)
        self.oldest = oldest


class StorageFullError(NotAppliedError):
    """The primary's disk is full. Reads still work."""


class UnavailableError(NotAppliedError):
    """No node was available before the deadline. Try again later, or with other nodes."""


class UnknownOutcomeError(ClientError):
    """An attempt may have been applied, and none was confirmed before the deadline.

    Call again with `idempotency_key=error.idempotency_key`,
    `idempotency_after=error.idempotency_after` and the same arguments to learn which: if it was
    applied you get its answer, and it is not applied twice. `code` "idempotency_key_expired" and
    "unknown_revision" are final: the cluster no longer knows; read the key and decide again.
    """

    def __init__(
        self,
        detail: str,
        *,
        code: str = "",
        status: int = 0,
        idempotency_key: str = "",
        idempotency_after: int | None = None,
    ) -> None:
        super().__init__(detail, code=code, status=status)
        self.idempotency_key = idempotency_key
        self.idempotency_after = idempotency_after

    @property
    def is_final(self) -> bool:
        """Whether a repeat under the same key will not help."""
        return self.code in {"idempotency_key_expired", "unknown_revision"}


BY_CODE: dict[str, type[NotAppliedError]] = {
    "lock_held": LockHeldError,
    "lock_lost": LockLostError,
}
"""The errors that a problem's code decides, and not its status."""
