"""Client leases: what applications hang keys and locks on, so that these end with them.

A lease that is not kept alive ends: its keys go, and its locks pass on, together at one revision.
Rule L1: not before its TTL has passed on the primary since it received the last keep-alive that it
acknowledged, or since its epoch opened. Rule L2: that is decided inside the operation that ends it.

A keep-alive is an operation that writes nothing: it costs no log entry, is executed in order with
the operation that would end the lease, and is acknowledged only while the primary may serve (D4).

Everything else of the primary's memory here is a deadline (`cluster.services.expiry`); what is
replicated is in `cluster.services.lease_state`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from cluster.groups.partition import SLOTS
from cluster.services.expiry import Expiry
from cluster.services.lease_state import (
    CLAIM,
    KEY,
    LEASE,
    MAX_LEASE_KEYS,
    LeaseState,
    decode_lease,
    foreign_lease,
    lease_key,
    may_use,
    names_of,
    need_lease,
    read_lease,
    write_lease,
)
from cluster.services.lock_state import pass_on
from datapath import keyspaces
from datapath.clock import clock_ms
from datapath.errors import RejectedError
from datapath.service import ReadTransaction, Service, Transaction, operation, query
from datapath.settings import Timing

LEASES_SERVICE = ":leases"
"""The name of the service; no user's service can have it."""
MIN_TTL_MS = 1000
MAX_TTL_MS = 24 * 60 * 60 * 1000
FIRST_CHOSEN_LEASE = 2**63
"""Ids below are revisions; from here on they are chosen by whoever asks (etcd's clients)."""
LAST_CHOSEN_LEASE = 2**64 - 2
MAX_LEASES = 1_000_000
"""How many there may be: the primary has a deadline of each in memory."""
MAX_KEEP_ALIVES = 1000
"""How many leases one request may keep alive."""
MAX_LISTED_LEASES = 1000
MAX_ENDED = 1000
"""How many leases one operation ends at most; it also stops after END_SLICE_MS, and with the lease
with which MAX_LEASE_KEYS keys have gone."""
END_SLICE_MS = 5.0
LOAD_PAGE = 1000
"""How many leases a new primary starts at each tick."""
_PAGE_SIZE_BYTES = 1024 * 1024


class Leases(Service):
    """The leases of a cluster; one object for each node. `clock` (ms) is the replica's."""

    keyspace: ClassVar[int] = keyspaces.LEASES
    scans = frozenset({"list"})

    def __init__(
        self,
        clock: Callable[[], float] = clock_ms,
        stall_threshold_ms: float = Timing().stall_threshold_ms,
        slot: int | None = None,
    ) -> None:
        """Keep the leases of a group; `slot` is its first one. None: there are no groups."""
        super().__init__()
        self._clock = clock
        self._slot = slot
        self.expiry = Expiry(stall_threshold_ms)
        self._load_from: bytes | None = None
        self._left: tuple[int, ...] = ()  # due, and beyond the bounds of the last operation
        self.granted_total = self.kept_alive_total = self.ended_total = 0

    # -- operations

    @operation
    def grant(self, tx: Transaction, ttl_ms: int, chosen: int = 0) -> int:
        """Begin a lease; return its id: the revision, or `chosen`, from FIRST_CHOSEN_LEASE on.

        Where there are groups, it is the revision times SLOTS, plus a slot of the group: no two
        groups grant the same one. Raises RejectedError "too_many_leases", "lease_exists".
        """
        return self.begin(tx, ttl_ms, chosen)

    def begin(self, tx: Transaction, ttl_ms: int, chosen: int = 0) -> int:
        """Begin a lease within an operation of any service; at most one in each."""
        if chosen and not FIRST_CHOSEN_LEASE <= chosen <= LAST_CHOSEN_LEASE:
            raise RejectedError("lease_exists", f"no lease can be called {chosen}")
        if chosen and read_lease(_leases_of(tx), chosen) is not None:
            raise RejectedError("lease_exists", f"there is a lease {chosen}: choose another id")
        self.expiry.advance(self._clock())
        if len(self.expiry) >= MAX_LEASES:
            raise RejectedError(
                "too_many_leases", f"there are {MAX_LEASES} leases: revoke those of no use"
            )
        lease = chosen or (tx.index if self._slot is None else tx.index * SLOTS + self._slot)
        write_lease(_leases_of(tx), lease, LeaseState(ttl_ms, 0, 0, tx.role))
        self.expiry.renew(lease, ttl_ms)
        self.granted_total += 1
        return lease

    @operation
    def keep_alive(self, tx: Transaction, leases: tuple[int, ...]) -> list[int]:
        """Start the TTLs of leases anew; return the TTL (ms) of each, 0 of those that are gone."""
        self.expiry.advance(self._clock())
        found: list[int] = []
        for lease in leases[:MAX_KEEP_ALIVES]:
            state = read_lease(tx, lease)
            if state is not None:
                if not may_use(tx.role, state.owner):
                    raise foreign_lease(lease)
                self.expiry.renew(lease, state.ttl_ms)
            found.append(0 if state is None else state.ttl_ms)
        self.kept_alive_total += len(found) - found.count(0)
        return found

    @operation
    def look_up(self, tx: Transaction, lease: int) -> tuple[int, int, list[bytes], list[bytes]]:
        """Return a lease's TTL, what is left of it, its keys, and the locks it has claims on.

        It writes nothing: it is an operation because only the primary knows what is left. Raises
        RejectedError "lease_not_found".
        """
        self.expiry.advance(self._clock())
        state = need_lease(tx, lease)
        left_ms = self.expiry.left_ms(lease, state.ttl_ms)
        keys = names_of(tx, KEY, lease, state.keys)
        return state.ttl_ms, left_ms, keys, names_of(tx, CLAIM, lease, state.claims)

    @operation
    def revoke(self, tx: Transaction, lease: int) -> int:
        """End a lease now; return how many keys went. Raises RejectedError "lease_not_found"."""
        state = need_lease(tx, lease)
        _end(tx, lease, state)
        return state.keys

    @operation
    def end(self, tx: Transaction, due: tuple[int, ...]) -> list[int]:
        """End those of `due` whose time is up; return those that are gone now, or were before.

        Each is judged here and not by who asked for it (L2). It stops when its bounds are reached:
        the others are due again at the next tick.
        """
        started_ms = self._clock()
        self.expiry.advance(started_ms)
        gone: list[int] = []
        n_keys = 0
        for asked, lease in enumerate(due[:MAX_ENDED], 1):
            state = read_lease(tx, lease)
            if state is not None:
                if not self.expiry.may_end(lease):
                    continue  # a keep-alive came first
                _end(tx, lease, state)
                n_keys += state.keys
            gone.append(lease)
            if n_keys >= MAX_LEASE_KEYS or self._clock() - started_ms >= END_SLICE_MS:
                self._left = due[asked:]
                break
        return gone

    @query
    def list(
        self, tx: ReadTransaction, after: int, limit: int
    ) -> tuple[list[tuple[int, int, int]], int | None]:
        """Return (id, TTL, number of keys) of leases above `after`; the last id if more follow."""
        pairs, following = tx.page(
            lease_key(after + 1),
            bytes([LEASE[0] + 1]),
            min(limit, MAX_LISTED_LEASES),
            _PAGE_SIZE_BYTES,
        )
        items = []
        for key, stored in pairs:
            state = decode_lease(stored)
            items.append((int.from_bytes(key[1:]), state.ttl_ms, state.keys))
        return items, None if following is None else int.from_bytes(following[1:]) - 1

    # -- what the primary does by itself

    def on_epoch_open(self, now_ms: float) -> None:
        """Start every lease's TTL anew (L1), a page at each tick: none ends before it is there."""
        self.expiry.start_epoch(now_ms)
        self._load_from, self._left = LEASE, ()

    def on_tick(self, now_ms: float) -> None:
        """Look at the clock, also while leases are being ended: that is no stall."""
        self.expiry.advance(now_ms)

    def due(self, tx: ReadTransaction, now_ms: float) -> tuple[str, tuple[Any, ...]] | None:
        """Return the operation that ends what is due."""
        self.expiry.advance(now_ms)
        if self._load_from is not None:
            pairs, self._load_from = tx.page(
                self._load_from, bytes([LEASE[0] + 1]), LOAD_PAGE, _PAGE_SIZE_BYTES
            )
            for key, stored in pairs:
                lease = int.from_bytes(key[1:])
                if lease not in self.expiry:
                    self.expiry.renew(lease, decode_lease(stored).ttl_ms)
        due, self._left = self._left or tuple(self.expiry.due(MAX_ENDED)), ()
        return ("end", (due,)) if due else None

    def on_done(self, value: Any) -> None:
        """Leases have ended. One that was granted again meanwhile, under a chosen id, stays."""
        for lease in value:
            if self.expiry.may_end(lease):
                self.expiry.forget(lease)
        self.ended_total += len(value)

    def counters(self) -> dict[str, float]:
        """Numbers for metrics."""
        return {
            "client_leases": len(self.expiry),
            "client_leases_granted_total": self.granted_total,
            "client_leases_kept_alive_total": self.kept_alive_total,
            "client_leases_ended_total": self.ended_total,
            "client_leases_given_back_ms_total": round(self.expiry.given_back_ms),
        }


def _leases_of(tx: Transaction) -> Transaction:
    return tx.keyspace(keyspaces.LEASES)


def _end(tx: Transaction, lease: int, state: LeaseState) -> None:
    """Remove a lease, its keys and its claims."""
    leases, store = _leases_of(tx), tx.keyspace(keyspaces.KV)
    prefix = lease.to_bytes(8)
    for key in names_of(leases, KEY, lease, state.keys):
        store.delete(key)
        leases.delete(KEY + prefix + key)
    for name in names_of(leases, CLAIM, lease, state.claims):
        pass_on(tx, name, lease)
        leases.delete(CLAIM + prefix + name)
    leases.delete(lease_key(lease))
