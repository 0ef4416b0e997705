"""What the replicated state has of client leases, in the keyspace LEASES.

    l ID        a lease: its TTL in ms (32 bits), how many keys hang on it, how many claims it has,
                and the name of the role that it was granted to, empty without access control
    k ID KEY    a key hangs on it
    c ID NAME   it holds the lock NAME, or waits for it: the revision since which it does

ID is the revision of the grant, 64 bits, big-endian: such ids only rise, and none comes twice.
Those from 2**63 on were chosen by who asked for the lease: they may come again once it has ended.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from cluster.services.rights import ADMIN_ROLE
from datapath import keyspaces
from datapath.errors import OperationNotAppliedError, RejectedError
from datapath.records import Entry
from datapath.service import ReadTransaction, Transaction

MAX_LEASE_KEYS = 1000
"""How many keys may hang on one lease: they go together, in one delta."""
MAX_LEASE_CLAIMS = 100
"""How many locks one lease may hold or wait for."""

LEASE, KEY, CLAIM = b"l", b"k", b"c"
_STATE = struct.Struct(">III")
_PAGE_SIZE_BYTES = 1024 * 1024


class LeaseState(NamedTuple):
    """A lease as it is stored."""

    ttl_ms: int
    keys: int
    claims: int
    owner: str = ""


def may_use(role: str, owner: str) -> bool:
    """A1: whether a lease of `owner` is for who has `role`: its own, or the administrators'."""
    return role in {"", owner, ADMIN_ROLE} or not owner


def lease_key(lease: int) -> bytes:
    """Return where a lease stands."""
    return LEASE + lease.to_bytes(8)


def read_lease(leases: ReadTransaction, lease: int) -> LeaseState | None:
    """Return a lease, or None. `leases` is a view of LEASES."""
    stored = leases.get(lease_key(lease))
    return None if stored is None else decode_lease(stored)


def decode_lease(stored: bytes) -> LeaseState:
    """Return what stands under a lease's key."""
    ttl_ms, keys, claims = _STATE.unpack_from(stored)
    return LeaseState(ttl_ms, keys, claims, stored[_STATE.size :].decode())


def write_lease(leases: Transaction, lease: int, state: LeaseState) -> None:
    """Store a lease."""
    leases.put(lease_key(lease), _STATE.pack(*state[:3]) + state.owner.encode())


def need_lease(leases: Transaction, lease: int) -> LeaseState:
    """Return a lease. Raises RejectedError "lease_not_found", OperationNotAppliedError."""
    state = read_lease(leases, lease)
    if state is None:
        raise RejectedError(
            "lease_not_found",
            f"there is no lease {lease}: it has ended, or was never granted. Grant a new one",
            for_good=lease < leases.index,
        )
    if not may_use(leases.role, state.owner):
        raise foreign_lease(lease)
    return state


def foreign_lease(lease: int) -> OperationNotAppliedError:
    """Make the refusal of a lease that was granted to another role."""
    return OperationNotAppliedError(
        "forbidden", f"lease {lease} was granted to another role: use one of your own"
    )


def attach(tx: Transaction, kind: bytes, lease: int, name: bytes) -> None:
    """Hang a key (`kind` KEY) on a lease, or its claim on a lock (CLAIM), to hold or await it.

    Raises RejectedError "lease_not_found", "lease_full".
    """
    leases = tx.keyspace(keyspaces.LEASES)
    state = need_lease(leases, lease)
    full = ""
    if kind == KEY and state.keys >= MAX_LEASE_KEYS:
        full = f"{MAX_LEASE_KEYS} keys hang on lease {lease}, and no more may"
    elif kind == CLAIM and state.claims >= MAX_LEASE_CLAIMS:
        full = f"lease {lease} holds or waits for {MAX_LEASE_CLAIMS} locks, and no more may be"
    if full:
        raise RejectedError("lease_full", f"{full}: grant another lease")
    write_lease(leases, lease, _counted(state, kind, 1))
    if kind == CLAIM:
        write_claim(tx, lease, name, tx.index)
    else:
        leases.put(KEY + lease.to_bytes(8) + name, b"")


def detach(tx: Transaction, kind: bytes, lease: int, name: bytes) -> None:
    """Take a key, or its claim on a lock, off the lease that it hangs on."""
    leases = tx.keyspace(keyspaces.LEASES)
    state = read_lease(leases, lease)
    if state is not None:
        write_lease(leases, lease, _counted(state, kind, -1))
    leases.delete(kind + lease.to_bytes(8) + name)


def _counted(state: LeaseState, kind: bytes, more: int) -> LeaseState:
    if kind == KEY:
        return state._replace(keys=state.keys + more)
    return state._replace(claims=state.claims + more)


def claim_key(lease: int, name: bytes) -> bytes:
    """Return where a lease's claim on a lock stands: what is there changes with its place."""
    return CLAIM + lease.to_bytes(8) + name


def read_claim(tx: ReadTransaction, lease: int, name: bytes) -> int | None:
    """Return the revision since which a lease holds a lock or waits for it; None: neither."""
    stored = tx.keyspace(keyspaces.LEASES).get(claim_key(lease, name))
    return None if stored is None else int.from_bytes(stored)


def write_claim(tx: Transaction, lease: int, name: bytes, revision: int) -> None:
    """A lease holds a lock, or waits for it, since a revision."""
    tx.keyspace(keyspaces.LEASES).put(claim_key(lease, name), revision.to_bytes(8))


def keys_gone_with_leases(entry: Entry) -> frozenset[bytes]:
    """Return the keys that an entry of the log has removed because their lease has ended."""
    gone = [key for keyspace, key, value in entry if keyspace == keyspaces.LEASES and value is None]
    if not gone:
        return frozenset()
    ended = {key[1:] for key in gone if key[:1] == LEASE}
    return frozenset(key[9:] for key in gone if key[:1] == KEY and key[1:9] in ended)


def names_of(leases: ReadTransaction, kind: bytes, lease: int, count: int) -> list[bytes]:
    """Return the keys (`kind` KEY) or the locks (CLAIM) of a lease that has `count` of them."""
    start = kind + lease.to_bytes(8)
    end = kind + (lease + 1).to_bytes(8)
    return [key[len(start) :] for key, _ in leases.range(start, end, count)] if count else []
