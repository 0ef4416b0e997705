"""The errors of the data path: one tree; each class states what the caller may conclude.

DataPathError
├── OperationError            an operation's answer; `code` is stable, `outcome` is one of:
│   ├── OperationNotAppliedError  "not_applied": nothing changed, and nothing will
│   │   ├── RejectedError     the service refused it (a condition failed, bad input)
│   │   ├── CompactedError    the requested history is no longer kept here
│   │   ├── NotPrimaryError   this node cannot execute it now; another may
│   │   ├── PrimaryFullError  the primary's disk is full
│   │   └── OverloadedError   a bounded queue is full
│   └── OperationUnknownError "unknown": it may or may not have been applied
├── StorageError              this node's disk cannot be trusted or used
│   ├── LogCorruptError       a damaged record, named by file and offset
│   ├── DiskFullError         no room; nothing was half-written
│   ├── DiskFailedError       fsync or write failed: restart from disk (D9)
│   └── DataDirectoryError    wrong cluster, locked, missing, damaged identity, removed
│       └── NotAdmittedError  the cluster does not let this node in
├── TransferError             a snapshot did not arrive
├── BackupError               a backup cannot be restored as it is
│   ├── BackupDamagedError    cut off, or not as it was written; named by place
│   └── BackupRefusedError    of another format
├── StoppedError              a long scan was told to stop
└── SafetyError               an invariant is violated: stop this node and keep its data
"""

from __future__ import annotations

import errno
from typing import ClassVar, Literal

OutcomeWord = Literal["not_applied", "unknown"]


class DataPathError(Exception):
    """Root of the data path's errors."""


class OperationError(DataPathError):
    """An operation was not acknowledged. `str(error)` tells the user what to do next."""

    outcome: ClassVar[OutcomeWord] = "unknown"

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


class OperationNotAppliedError(OperationError):
    """Nothing changed, and nothing will: safe to try again."""

    outcome: ClassVar[OutcomeWord] = "not_applied"


class RejectedError(OperationNotAppliedError):
    """The service refused the operation; raised by service methods. Their writes are dropped.

    `code` is the service's own ("precondition_failed", …). It is the operation's answer for good:
    under an idempotency key it is remembered, at the price of a log entry, so that a repeat gets
    it as well. `for_good`: the service would refuse the same at any later time whatever happens
    meanwhile, so that a repeat may be decided anew, and nothing is written.
    """

    def __init__(self, code: str, detail: str, *, for_good: bool = False) -> None:
        super().__init__(code, detail)
        self.for_good = for_good


class CompactedError(OperationNotAppliedError):
    """The changes after the revision asked for are no longer kept on this node.

    `oldest`: the smallest revision after which all are.
    """

    def __init__(self, detail: str, oldest: int) -> None:
        super().__init__("revision_compacted", detail)
        self.oldest = oldest


class NotPrimaryError(OperationNotAppliedError):
    """This node is not serving as the primary; `primary` is the one it knows of, or ""."""

    def __init__(self, code: str, detail: str, primary: str = "") -> None:
        super().__init__(code, detail)
        self.primary = primary


class PrimaryFullError(OperationNotAppliedError):
    """The primary's disk is full. Reads still work."""


class OverloadedError(OperationNotAppliedError):
    """A bounded queue is full: try again later, or with fewer concurrent requests."""


class OperationUnknownError(OperationError):
    """The operation may or may not have been applied (or may still be).

    Try again under the same idempotency key to learn which.
    """


class StorageError(DataPathError):
    """This node's disk cannot be used as it is."""


class LogCorruptError(StorageError):
    """A record that had been durable is damaged.

    `path` and `offset` (bytes) name it; `last_good_index` is the last index before the damage.
    """

    def __init__(self, detail: str, *, path: str, offset: int, last_good_index: int) -> None:
        super().__init__(detail)
        self.path = path
        self.offset = offset
        self.last_good_index = last_good_index


class DiskFullError(StorageError):
    """`is_out_of_space`, or a full map; nothing was half-written."""


class DiskFailedError(StorageError):
    """A write or fsync failed, not for lack of space: the data cannot be trusted (D9)."""


class DataDirectoryError(StorageError):
    """The data directory is locked, belongs to another node or cluster, or is damaged."""


class NodeRemovedError(DataDirectoryError):
    """The node was removed from its cluster: it ends in order, and returns only as a new one."""


class NotAdmittedError(DataDirectoryError):
    """The cluster does not admit this node, whose directory has never been a member's."""


class SafetyError(DataPathError):
    """An invariant is violated. The node stops and keeps its data; report it."""


class TransferError(DataPathError):
    """The snapshot did not arrive; start again with a new one."""


class BackupError(DataPathError):
    """A backup cannot be restored as it is. Nothing was made of it."""


class BackupDamagedError(BackupError):
    """It is cut off, or not as it was written. The text names the place."""


class BackupRefusedError(BackupError):
    """Another version of onecopy has to restore it."""


class StoppedError(DataPathError):
    """A long scan has been told to stop, and has no result."""


def is_out_of_space(error_number: int | None) -> bool:
    """Whether an error of the operating system means that a disk, or a quota, is full."""
    return error_number in (errno.ENOSPC, errno.EDQUOT)


def ends_node(problem: BaseException) -> bool:
    """Whether a node must end, wherever it met this: a failed disk (D9) or a broken invariant.

    A full disk does not: what met it was not done, and can be tried again.
    """
    return isinstance(problem, SafetyError | StorageError) and not isinstance(
        problem, DiskFullError
    )
