"""The key-value store: the first service, and the one that HTTP API version 1 serves.

Under each key the store keeps an 8-byte big-endian revision, then the value. A key's revision is
the log index of the write that made it: revisions only rise, across all keys, and one names the
same write on every replica.

Conditions are evaluated inside the operation, on the primary, in the order of the log, so that
between a check and its write nothing else happens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from datapath.errors import RejectedError
from datapath.records import Entry
from datapath.service import (
    QueryTransaction,
    ReadTransaction,
    Service,
    Transaction,
    operation,
    query,
)
from datapath.settings import MAX_RANGE_SIZE_BYTES
from datapath.storage.environment import SERVICE_SPACE

REVISION_SIZE_BYTES = 8
ANY_REVISION = 0
"""In place of a revision in a condition: the key exists, whatever its revision."""
NO_REVISION = -1
"""In place of a revision in a condition: one that no key ever has, so that it always fails."""

Revisions = int | Sequence[int]
"""One revision, or several of which any will do."""
Item = tuple[bytes, bytes | None, int]
"""(key, value or None when only keys were asked for, revision)."""


class Change(NamedTuple):
    """What an entry did to a key: `value` is what was written, None: it was removed.

    `reason` says why it was removed: "deleted".
    """

    key: bytes
    value: bytes | None
    reason: str = ""


def changes(entry: Entry) -> list[Change]:
    """Return what an entry of the log did to keys, in its order."""
    return [
        Change(key, None, "deleted")
        if stored is None
        else Change(key, stored[REVISION_SIZE_BYTES:])
        for space, key, stored in entry
        if space == SERVICE_SPACE
    ]


class KeyValue(Service):
    """Values under ordered byte keys, with conditions on revisions."""

    scans = frozenset({"range"})

    @operation
    def put(
        self,
        tx: Transaction,
        key: bytes,
        value: bytes,
        if_revision: Revisions | None = None,
        if_absent: bool = False,
    ) -> bool:
        """Write `value` under `key`; return whether the key was created (not replaced).

        Raises RejectedError "precondition_failed" if the key hasn't (one of) `if_revision`, or
        is there although `if_absent`.
        """
        stored = tx.get(key)
        if if_absent and stored is not None:
            raise _failed(stored)
        if if_revision is not None:
            _check_revision(stored, if_revision, tx.index)
        tx.put(key, tx.index.to_bytes(REVISION_SIZE_BYTES) + value)
        return stored is None

    @operation
    def delete(self, tx: Transaction, key: bytes, if_revision: Revisions | None = None) -> bool:
        """Remove `key`; return whether it was there. One that wasn't there writes nothing.

        Raises RejectedError "precondition_failed" if the key hasn't (one of) `if_revision`.
        """
        stored = tx.get(key)
        if if_revision is not None:
            _check_revision(stored, if_revision, tx.index)
        if stored is None:
            return False
        tx.delete(key)
        return True

    @query
    def get(self, tx: ReadTransaction, key: bytes) -> tuple[bytes, int] | None:
        """Return (value, revision), or None."""
        stored = tx.get(key)
        if stored is None:
            return None
        return stored[REVISION_SIZE_BYTES:], _revision(stored)

    @query
    def range(
        self, tx: QueryTransaction, start: bytes, end: bytes | None, limit: int, keys_only: bool
    ) -> tuple[list[Item], bytes | None]:
        """Return up to `limit` items with start <= key < end, and where to go on, None at the end.

        Fewer come when MAX_RANGE_SIZE_BYTES has been read before (values count although
        `keys_only`: they are read for their revisions), or many keys had to be passed over that
        have just been deleted; then there may even be none, and more follow.
        """
        pairs, following = tx.page(start, end, limit, MAX_RANGE_SIZE_BYTES)
        items = [
            (key, None if keys_only else stored[REVISION_SIZE_BYTES:], _revision(stored))
            for key, stored in pairs
        ]
        return items, following


def _revision(stored: bytes) -> int:
    return int.from_bytes(stored[:REVISION_SIZE_BYTES])


def _check_revision(stored: bytes | None, wanted: Revisions, next_revision: int) -> None:
    """Raise RejectedError "precondition_failed" unless the key has (one of) these revisions.

    The refusal is for good where all of them have passed: a revision never comes back.
    """
    revisions = (wanted,) if isinstance(wanted, int) else wanted
    if stored is not None:
        current = _revision(stored)
        if wanted == ANY_REVISION or current in revisions:
            return
    for_good = all(revision < next_revision for revision in revisions) and wanted != ANY_REVISION
    if stored is None:
        raise RejectedError(
            "precondition_failed",
            "the key does not exist, so that no If-Match can hold",
            for_good=for_good,
        )
    raise _failed(stored, for_good=for_good)


def _failed(stored: bytes, *, for_good: bool = False) -> RejectedError:
    return RejectedError(
        "precondition_failed",
        f'the key exists with ETag "{_revision(stored)}": read it, and decide again',
        for_good=for_good,
    )
