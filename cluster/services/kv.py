"""The key-value store: the service that HTTP API version 1 serves under /v1/kv and /v1/txn.

Under each key the store keeps a head of HEAD_SIZE_BYTES, then the value. The head (`Head`) is four
64-bit numbers, big-endian: the revision of the key's last write, the revision that created it, its
version (how often it was written since then), and the client lease it hangs on (0: none).

A revision is the log index of a write: revisions only rise, across all keys, and one names the
same write on every replica. All changes of one operation share one revision.

Conditions are evaluated inside the operation, on the primary, in the order of the log, so that
between a check and its write nothing else happens.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from cluster.services.lease_state import KEY, attach, detach, keys_gone_with_leases, need_lease
from cluster.services.leases import Leases
from cluster.services.lock_state import is_held_under
from cluster.services.txn import (
    MAX_COMPARED_KEYS,
    MAX_DELETE_SCAN_SIZE_BYTES,
    MAX_DELETED_KEYS,
    MAX_RESULT_SIZE_BYTES,
    Comparison,
    DeleteRangeStep,
    DeleteStep,
    GetStep,
    ListStep,
    LockComparison,
    NestedStep,
    PutStep,
    RefuseStep,
    Txn,
    TxnOutcome,
    TxnStep,
    compare,
    decode_txn,
)
from datapath import keyspaces
from datapath.errors import RejectedError
from datapath.records import Entry
from datapath.service import (
    ReadTransaction,
    Service,
    Transaction,
    operation,
    query,
)
from datapath.settings import MAX_RANGE_SIZE_BYTES

ANY_REVISION = 0
"""In place of a revision in a condition: the key exists, whatever its revision."""
NO_REVISION = -1
"""In place of a revision in a condition: one that no key ever has, so that it always fails."""

_HEAD = struct.Struct(">QQQQ")
HEAD_SIZE_BYTES = _HEAD.size

Revisions = int | Sequence[int]
"""One revision, or several of which any will do."""
Found = tuple[bytes, int, int, int, int]
"""(value, revision, create_revision, version, lease) of a key."""
ScanItem = tuple[bytes, bytes | None, int, int, int, int]
"""(key, value or None when only keys were asked for, and the head's four fields)."""


class Head(NamedTuple):
    """What the store keeps of a key beside its value; see the module."""

    revision: int
    create_revision: int
    version: int
    lease: int


_NO_HEAD = Head(0, 0, 0, 0)


def decode_head(stored: bytes) -> Head:
    """Return the head of what the store keeps under a key; the value is the rest."""
    return Head(*_HEAD.unpack_from(stored))


def write_value(
    tx: Transaction, key: bytes, value: bytes, stored: bytes | None, lease: int = 0
) -> None:
    """Put a value under a key that the operation has read as `stored`; hang it on `lease`, or none.

    Raises RejectedError "lease_not_found", "lease_full".
    """
    index = tx.index
    held = 0
    if stored is None:
        head = _HEAD.pack(index, index, 1, lease)
    else:
        _, create_revision, version, held = _HEAD.unpack_from(stored)
        head = _HEAD.pack(index, create_revision, version + 1, lease)
    if held != lease:
        if held:
            detach(tx, KEY, held, key)
        if lease:
            attach(tx, KEY, lease, key)
    tx.put(key, head + value)


def remove_key(tx: Transaction, key: bytes, stored: bytes) -> None:
    """Remove a key that the operation has read as `stored`."""
    lease = _HEAD.unpack_from(stored)[3]
    if lease:
        detach(tx, KEY, lease, key)
    tx.delete(key)


class EntryChange(NamedTuple):
    """What an entry did to a key: it wrote `head` and `value`, or (`head` None) removed it.

    `reason` says why it was removed: "deleted", or "expired" where it went with its lease.
    """

    key: bytes
    head: Head | None
    value: bytes
    reason: str


def changes(entry: Entry) -> list[EntryChange]:
    """Return what an entry of the log did to keys, in its order."""
    expired = keys_gone_with_leases(entry)
    return [
        EntryChange(key, None, b"", "expired" if key in expired else "deleted")
        if stored is None
        else EntryChange(key, decode_head(stored), stored[HEAD_SIZE_BYTES:], "")
        for space, key, stored in entry
        if space == keyspaces.KV
    ]


class KeyValue(Service):
    """Values under ordered byte keys, with conditions on revisions."""

    keyspace: ClassVar[int] = keyspaces.KV
    scans = frozenset({"range"})

    def __init__(self, leases: Leases | None = None) -> None:
        """Hang keys on the leases of this node's `leases`."""
        super().__init__()
        self._leases = Leases() if leases is None else leases

    @operation
    def put(
        self,
        tx: Transaction,
        key: bytes,
        value: bytes,
        if_revision: Revisions | None = None,
        if_absent: bool = False,
        lease: int = 0,
        ttl_ms: int = 0,
    ) -> bool:
        """Write `value` under `key`; return whether the key was created (not replaced).

        The key hangs on `lease` from now on, or (`ttl_ms`) on a new lease, whose id is the revision
        of this write, or on none.

        Raises RejectedError "precondition_failed" if the key hasn't (one of) `if_revision`, or
        is there although `if_absent`; "lease_not_found", "lease_full", "too_many_leases".
        """
        stored = tx.get(key)
        if if_absent and stored is not None:
            raise _failed(stored)
        if if_revision is not None:
            _check_revision(stored, if_revision, tx.index)
        if ttl_ms:
            lease = self._leases.begin(tx, ttl_ms)
        write_value(tx, key, value, stored, lease)
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
        remove_key(tx, key, stored)
        return True

    @operation
    def delete_range(
        self, tx: Transaction, start: bytes, end: bytes | None, limit: int
    ) -> tuple[int, bytes | None]:
        """Remove up to `limit` keys with start <= key < end, the first ones.

        Returns how many were removed, and where to go on, None at the end. `limit` is at most
        MAX_DELETED_KEYS. Fewer are removed when MAX_DELETE_SCAN_SIZE_BYTES have been read before,
        or many keys had to be passed over that had just been removed.
        """
        limit = min(limit, MAX_DELETED_KEYS)
        pairs, following = tx.page(start, end, limit, MAX_DELETE_SCAN_SIZE_BYTES)
        for key, stored in pairs:
            remove_key(tx, key, stored)
        return len(pairs), following

    @operation
    def txn(self, tx: Transaction, request: bytes) -> TxnOutcome:
        """Carry out a transaction (`cluster.services.txn`), encoded by `encode_txn`.

        Raises RejectedError "txn_too_large" if it reads or deletes more than the bounds allow,
        "key_not_found" where a step keeps the value or the lease of a key that is not there.
        """
        asked = decode_txn(request)
        return _Branch(tx).carry_out_txn(asked)

    @query
    def get(self, tx: ReadTransaction, key: bytes) -> Found | None:
        """Return the value and the head of a key, or None."""
        stored = tx.get(key)
        if stored is None:
            return None
        return stored[HEAD_SIZE_BYTES:], *_HEAD.unpack_from(stored)

    @query
    def range(
        self, tx: ReadTransaction, start: bytes, end: bytes | None, limit: int, keys_only: bool
    ) -> tuple[list[ScanItem], bytes | None]:
        """Return up to `limit` items with start <= key < end, and where to go on, None at the end.

        Fewer come when MAX_RANGE_SIZE_BYTES has been read before (values count although
        `keys_only`: they are read for their revisions), or many keys had to be passed over that
        have just been deleted; then there may even be none, and more follow.
        """
        pairs, following = tx.page(start, end, limit, MAX_RANGE_SIZE_BYTES)
        return [_item(key, stored, keys_only=keys_only) for key, stored in pairs], following


def _revision(stored: bytes) -> int:
    return int.from_bytes(stored[:8])


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
            "the key does not exist, so no If-Match holds",
            for_good=for_good,
        )
    raise _failed(stored, for_good=for_good)


def _failed(stored: bytes, *, for_good: bool = False) -> RejectedError:
    return RejectedError(
        "precondition_failed",
        f'the key exists with ETag "{_revision(stored)}": read it and decide again',
        for_good=for_good,
    )


def _holds(tx: Transaction, comparison: Comparison | LockComparison) -> bool:
    if isinstance(comparison, LockComparison):
        return is_held_under(tx.keyspace(keyspaces.LOCKS), comparison.name, comparison.token)
    return _compare(comparison, tx.get(comparison.key))


def _compare(comparison: Comparison, stored: bytes | None) -> bool:
    """Whether a comparison holds for what the store keeps under a key."""
    target, relation, operand = comparison.target, comparison.relation, comparison.operand
    if target == "exists":
        return compare(relation, int(stored is not None), operand)
    if target == "value":
        return stored is not None and compare(relation, stored[HEAD_SIZE_BYTES:], operand)
    head = _NO_HEAD if stored is None else decode_head(stored)
    return compare(relation, getattr(head, target), operand)


class _Chosen(NamedTuple):
    """Whether a transaction's comparisons hold, and so for the transactions within its branch."""

    succeeded: bool
    steps: tuple[TxnStep, ...]
    within: dict[int, _Chosen]  # by the number of the step


class _Branch:
    """Carries out the steps of a transaction, one after the other, within its bounds."""

    def __init__(self, tx: Transaction) -> None:
        self._tx = tx
        self._result_bytes = MAX_RESULT_SIZE_BYTES
        self._deletes = MAX_DELETED_KEYS
        self._scan_bytes = MAX_DELETE_SCAN_SIZE_BYTES

    def carry_out_txn(self, txn: Txn) -> TxnOutcome:
        """Return what a transaction comes to. Raises RejectedError."""
        return self._carry_out_all(self._choose(txn))

    def _choose(self, txn: Txn) -> _Chosen:
        """Judge all comparisons, before anything is written."""
        succeeded = all(self._holds(comparison) for comparison in txn.comparisons)
        steps = txn.then if succeeded else txn.otherwise
        within = {
            at: self._choose(step.txn)
            for at, step in enumerate(steps)
            if isinstance(step, NestedStep)
        }
        return _Chosen(succeeded, steps, within)

    def _carry_out_all(self, chosen: _Chosen) -> TxnOutcome:
        results = [
            self._carry_out_all(chosen.within[at])
            if isinstance(step, NestedStep)
            else self._carry_out(step)
            for at, step in enumerate(chosen.steps)
        ]
        return TxnOutcome(chosen.succeeded, results)

    def _holds(self, comparison: Comparison | LockComparison) -> bool:
        if isinstance(comparison, LockComparison) or not comparison.is_range:
            return _holds(self._tx, comparison)
        following: bytes | None = comparison.key
        is_empty = True
        while following is not None:
            pairs, following = self._tx.page(
                following, comparison.end, MAX_COMPARED_KEYS, max(1, self._result_bytes)
            )
            self._take(sum(len(key) + len(stored) for key, stored in pairs))
            if not all(_compare(comparison, stored) for _, stored in pairs):
                return False
            is_empty = is_empty and not pairs
        return not is_empty or _compare(comparison, None)

    def _carry_out(self, step: TxnStep) -> object:
        """Return the step's result. Raises RejectedError."""
        tx = self._tx
        match step:
            case PutStep(key, value, lease):
                stored = tx.get(key)
                if value is None or lease is None:
                    if lease:
                        need_lease(tx.keyspace(keyspaces.LEASES), lease)
                    if stored is None:
                        raise RejectedError(
                            "key_not_found",
                            f"there is no key {key[:100]!r} whose value or lease could be kept",
                        )
                    value = stored[HEAD_SIZE_BYTES:] if value is None else value
                    lease = decode_head(stored).lease if lease is None else lease
                write_value(tx, key, value, stored, lease)
                return stored is None
            case DeleteStep(key):
                stored = tx.get(key)
                if stored is None:
                    return 0
                remove_key(tx, key, stored)
                return 1
            case DeleteRangeStep(start, end):
                return self._delete_range(start, end)
            case GetStep(key):
                return self._get(key)
            case ListStep(start, end, limit, keys_only):
                return self._list(start, end, limit, keys_only=keys_only)
            case RefuseStep(code, detail):
                raise RejectedError(code, detail)
            case NestedStep():
                raise AssertionError("carried out by its own branch")

    def _get(self, key: bytes) -> Found | None:
        stored = self._tx.get(key)
        if stored is None:
            return None
        self._take(len(stored))
        return stored[HEAD_SIZE_BYTES:], *_HEAD.unpack_from(stored)

    def _list(
        self, start: bytes, end: bytes | None, limit: int, *, keys_only: bool
    ) -> tuple[list[ScanItem], bytes | None]:
        pairs, following = self._tx.page(start, end, limit, max(1, self._result_bytes))
        self._take(sum(len(key) + len(stored) for key, stored in pairs))
        return [_item(key, stored, keys_only=keys_only) for key, stored in pairs], following

    def _take(self, size_bytes: int) -> None:
        if self._result_bytes <= 0:
            raise RejectedError(
                "txn_too_large",
                f"the transaction reads more than {MAX_RESULT_SIZE_BYTES} bytes of keys and "
                "values: read less in one, or outside of it",
            )
        self._result_bytes -= size_bytes

    def _delete_range(self, start: bytes, end: bytes | None) -> int:
        deleted = 0
        following: bytes | None = start
        while following is not None:
            if self._deletes <= 0 or self._scan_bytes <= 0:
                raise RejectedError(
                    "txn_too_large",
                    f"the transaction deletes more than {MAX_DELETED_KEYS} keys or "
                    f"{MAX_DELETE_SCAN_SIZE_BYTES} bytes by ranges: delete the range first, in "
                    "parts, by DELETE /v1/kv",
                )
            pairs, following = self._tx.page(following, end, self._deletes, self._scan_bytes)
            for key, stored in pairs:
                remove_key(self._tx, key, stored)
                self._scan_bytes -= len(key) + len(stored)
            self._deletes -= len(pairs)
            deleted += len(pairs)
        return deleted


def _item(key: bytes, stored: bytes, *, keys_only: bool) -> ScanItem:
    return key, None if keys_only else stored[HEAD_SIZE_BYTES:], *_HEAD.unpack_from(stored)
