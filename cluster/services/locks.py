"""Locks and elections: one holder by name, in the order of the log; first come, first served.

An election is a lock whose note is what the leader says of itself. A holder holds by its lease,
and so does one that waits: both go with it.

Rule K1: the tokens of a name only rise. Rule K2: at most one holder. Rule K3: what names a lock and
a token (`Operation.if_lock`, a comparison of a transaction) is done only where the lock is held
under that token (`datapath.execution.lock_guard`).
"""

from __future__ import annotations

import builtins
from typing import ClassVar, NamedTuple

from cluster.services.lease_state import foreign_lease, may_use, read_claim, read_lease
from cluster.services.leases import Leases
from cluster.services.lock_state import (
    MAX_SHOWN_WAITING,
    MAX_WAITING,
    Holder,
    claim,
    decode_holder,
    enqueue,
    give_up,
    is_held_under,
    read_holder,
    waiting_for,
)
from datapath import keyspaces
from datapath.errors import RejectedError
from datapath.execution.lock_guard import lock_lost
from datapath.service import ReadTransaction, Service, Transaction, operation, query

LOCKS_SERVICE = ":locks"
"""The name of the service; no user's service can have it."""
MAX_LISTED_LOCKS = 1000
_PAGE_SIZE_BYTES = 4 * 1024 * 1024


class Acquired(NamedTuple):
    """What became of a wish for a lock. `token` 0: `lease` waits for it. `note` is the holder's."""

    token: int
    lease: int
    note: bytes


class Locks(Service):
    """The locks of a cluster. `leases` is the same node's."""

    keyspace: ClassVar[int] = keyspaces.LOCKS
    scans = frozenset({"list"})

    def __init__(self, leases: Leases) -> None:
        super().__init__()
        self._leases = leases
        self.acquired_total = self.waited_total = self.released_total = 0

    @operation
    def acquire(
        self, tx: Transaction, name: bytes, lease: int, ttl_ms: int, note: bytes, wait: bool
    ) -> Acquired:
        """Take a lock, or (`wait`) a place in its queue; a lease that has either keeps it.

        `lease` 0: grant one of `ttl_ms`. Raises RejectedError "lock_held", "lock_queue_full",
        "lease_not_found", "lease_full", "too_many_leases".
        """
        _check_owner(tx, lease)
        holder = read_holder(tx, name)
        if holder is None:
            lease = lease or self._leases.begin(tx, ttl_ms)
            token = claim(tx, name, lease, note)
            self.acquired_total += 1
            return Acquired(token, lease, note)
        if holder.lease == lease:
            return Acquired(holder.token, lease, holder.note)
        if not wait:
            raise lock_held(name, holder)
        if read_claim(tx, lease, name) is not None:
            return Acquired(0, lease, holder.note)
        if len(waiting_for(tx, name)) >= MAX_WAITING:
            raise RejectedError(
                "lock_queue_full", f"{MAX_WAITING} wait for this lock already: try again later"
            )
        lease = lease or self._leases.begin(tx, ttl_ms)
        enqueue(tx, name, lease, note)
        self.waited_total += 1
        return Acquired(0, lease, holder.note)

    @operation
    def release(self, tx: Transaction, name: bytes, token: int) -> bool:
        """Give up a lock, and let the next one have it. Raises RejectedError "lock_lost"."""
        holder = read_holder(tx, name)
        if holder is None or not is_held_under(tx, name, token):
            raise lock_lost(name, token, tx.index)
        give_up(tx, name, holder.lease)
        self.released_total += 1
        return True

    @operation
    def withdraw(self, tx: Transaction, name: bytes, lease: int) -> int:
        """Wait no longer; return 0, or the token if the lease has become the holder meanwhile."""
        _check_owner(tx, lease)
        holder = read_holder(tx, name)
        if holder is not None and holder.lease == lease:
            return holder.token
        if read_claim(tx, lease, name) is not None:
            give_up(tx, name, lease)
        return 0

    @query
    def get(
        self, tx: ReadTransaction, name: bytes
    ) -> tuple[int, int, bytes, int, builtins.list[tuple[int, bytes]]] | None:
        """Return token, lease and note of a lock's holder; None: it is free.

        Then how many wait, and lease and note of the first of them.
        """
        holder = read_holder(tx, name)
        if holder is None:
            return None
        waiting = waiting_for(tx, name)
        first = [(item.lease, item.note) for item in waiting[:MAX_SHOWN_WAITING]]
        return (*holder, len(waiting), first)

    @query
    def list(
        self, tx: ReadTransaction, after: bytes, limit: int
    ) -> tuple[list[tuple[bytes, int, int, bytes]], bytes | None]:
        """Return (name, token, lease, note) of locks above `after`; the last if more follow."""
        pairs, following = tx.page(
            max(after + b"\0", b"\1"), None, min(limit, MAX_LISTED_LOCKS), _PAGE_SIZE_BYTES
        )
        items = [(name, *decode_holder(stored)) for name, stored in pairs]
        return items, None if following is None or not pairs else pairs[-1][0]

    def counters(self) -> dict[str, float]:
        """Numbers for metrics."""
        return {
            "locks_acquired_total": self.acquired_total,
            "locks_waited_for_total": self.waited_total,
            "locks_released_total": self.released_total,
        }


def _check_owner(tx: Transaction, lease: int) -> None:
    """Refuse a lease of another role (A1): its token is nobody else's to be told."""
    state = read_lease(tx.keyspace(keyspaces.LEASES), lease) if lease else None
    if state is not None and not may_use(tx.role, state.owner):
        raise foreign_lease(lease)


def lock_held(name: bytes, holder: Holder) -> RejectedError:
    """Make the refusal of a lock that another holds."""
    lock, note = (part.decode("utf-8", "backslashreplace") for part in (name, holder.note))
    said = f"; its holder's note: {note}" if note else ""
    return RejectedError("lock_held", f"lock {lock!r} is held under token {holder.token}{said}")
