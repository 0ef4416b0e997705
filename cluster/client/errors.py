"""The client's errors: one tree, each class saying what the caller may conclude.

ClientError
├── NotAppliedError           nothing changed, and nothing will
│   ├── InvalidRequestError   the request itself is wrong: sending it again cannot help
│   ├── RefusedError          the service refuses, with a code of its own
│   ├── PreconditionFailedError   the key was not at the revision that was asked for
│   ├── WrongClusterError     another cluster answers at this address
│   ├── RevisionCompactedError  no node keeps the changes after that revision
│   ├── StorageFullError      no room on the primary's disk
│   └── UnavailableError      nobody could take it before the deadline; also for reads
└── UnknownOutcomeError       it may or may not have been applied, or may be yet
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
    """The request itself was refused: mend it; trying again as it is cannot help."""


class RefusedError(NotAppliedError):
    """A service of one's own has refused: it raised `RejectedError`, whose `code` this has."""


class PreconditionFailedError(NotAppliedError):
    """The key was not at the asked revision, or was there though it should not be."""


class WrongClusterError(NotAppliedError):
    """The node at this address belongs to another cluster than the one this client has met.

    Nothing was done there. `expected` and `found` are the two clusters' ids.
    """

    def __init__(self, url: str, *, expected: str, found: str) -> None:
        super().__init__(
            f"{url} belongs to cluster {found}, and this client talks to cluster {expected}: "
            "correct the address, or make a new client for the other cluster",
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
    """The primary's disk has no room. Reads go on."""


class UnavailableError(NotAppliedError):
    """No node could take the request before the deadline. Later, or elsewhere, it may work."""


class UnknownOutcomeError(ClientError):
    """At least one try may have been applied, and none was confirmed before the deadline.

    Call again with `idempotency_key=error.idempotency_key`,
    `idempotency_after=error.idempotency_after` and the same arguments to learn which: if it was
    applied you get its answer, and it is not applied twice. `code` "idempotency_key_expired" and
    "unknown_revision" are final: the cluster cannot tell any more; read the key, and decide anew.
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
        """Whether to call again under the same key cannot help."""
        return self.code in {"idempotency_key_expired", "unknown_revision"}
