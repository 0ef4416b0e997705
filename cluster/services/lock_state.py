"""What the replicated state has of locks, in the keyspace LOCKS.

    NAME                its holder: token (64 bits), lease (64 bits), note
    0 NAME 0 TICKET     one that waits for it, in the order of the tickets: lease, note

Tokens and tickets are the revisions of the operations that wrote them, 64 bits, big-endian. So
tokens of a name only rise (K1), also where a lock was free in between, and the first to ask is the
first served. A name has no zero byte. There is at most one holder (K2), and one whenever any wait:
it is replaced in the operation in which it goes. The ticket, or the token, is also in the lease's
claim (`cluster.services.lease_state`): by it the waiting one is found, and by its change the
waiting one alone learns that it holds the lock, or waits no longer.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from cluster.services.lease_state import CLAIM, attach, detach, read_claim, write_claim
from datapath import keyspaces
from datapath.execution.lock_guard import holds_lock
from datapath.service import ReadTransaction, Transaction

MAX_NAME_SIZE_BYTES = 200
MAX_NOTE_SIZE_BYTES = 1024
MAX_WAITING = 1000
"""How many may wait for one lock."""
MAX_SHOWN_WAITING = 20
"""How many of those are shown to who asks."""

_HOLDER = struct.Struct(">QQ")
_LEASE_SIZE_BYTES = 8


class Holder(NamedTuple):
    """Who holds a lock."""

    token: int
    lease: int
    note: bytes


class LockWaiter(NamedTuple):
    """One that waits for a lock; `key` is where it stands."""

    key: bytes
    lease: int
    note: bytes


def decode_holder(stored: bytes) -> Holder:
    """Return what stands under a lock's name."""
    token, lease = _HOLDER.unpack_from(stored)
    return Holder(token, lease, stored[_HOLDER.size :])


def read_holder(locks: ReadTransaction, name: bytes) -> Holder | None:
    """Return the holder of a lock, or None. `locks` is a view of LOCKS."""
    stored = locks.get(name)
    return None if stored is None else decode_holder(stored)


def is_held_under(locks: ReadTransaction, name: bytes, token: int) -> bool:
    """Whether a lock is held under a token (K3)."""
    return holds_lock(locks.get(name), token)


def waiting_for(locks: ReadTransaction, name: bytes, limit: int = MAX_WAITING) -> list[LockWaiter]:
    """Return those that wait for a lock, in their order."""
    prefix = b"\0" + name + b"\0"
    return [
        LockWaiter(key, int.from_bytes(stored[:_LEASE_SIZE_BYTES]), stored[_LEASE_SIZE_BYTES:])
        for key, stored in locks.range(prefix, prefix[:-1] + b"\1", limit)
    ]


def claim(tx: Transaction, name: bytes, lease: int, note: bytes) -> int:
    """Take a free lock; return the token. Raises RejectedError as `attach`."""
    attach(tx, CLAIM, lease, name)
    return take(tx, name, lease, note)


def take(tx: Transaction, name: bytes, lease: int, note: bytes) -> int:
    """A lease that has a claim on a lock becomes its holder; return the token (K1)."""
    token = tx.index
    tx.keyspace(keyspaces.LOCKS).put(name, _HOLDER.pack(token, lease) + note)
    return token


def enqueue(tx: Transaction, name: bytes, lease: int, note: bytes) -> None:
    """Wait for a lock that is held, after all who wait. Raises RejectedError as `attach`."""
    attach(tx, CLAIM, lease, name)
    tx.keyspace(keyspaces.LOCKS).put(_ticket_key(name, tx.index), lease.to_bytes(8) + note)


def pass_on(tx: Transaction, name: bytes, lease: int) -> None:
    """A lease goes: it waits for the lock no longer, or holds it no longer and the next one does.

    Its claim is the caller's to remove.
    """
    locks = tx.keyspace(keyspaces.LOCKS)
    holder = read_holder(locks, name)
    if holder is None or holder.lease != lease:
        ticket = read_claim(tx, lease, name)
        if ticket is not None:
            locks.delete(_ticket_key(name, ticket))
        return
    following = waiting_for(locks, name, 1)
    if not following:
        locks.delete(name)
        return
    locks.delete(following[0].key)
    token = take(tx, name, following[0].lease, following[0].note)
    write_claim(tx, following[0].lease, name, token)


def _ticket_key(name: bytes, ticket: int) -> bytes:
    return b"\0" + name + b"\0" + ticket.to_bytes(8)


def give_up(tx: Transaction, name: bytes, lease: int) -> None:
    """A lease that lives on gives up its claim on a lock."""
    pass_on(tx, name, lease)
    detach(tx, CLAIM, lease, name)
