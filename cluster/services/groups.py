"""Replica groups on a node: what its group refuses (G1), and the map, which the first group keeps.

Keys and names of locks that are another group's are neither read nor changed here: that is decided
by this node's own configuration, never by the map (G2).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cluster.groups.group_map import (
    GroupMapError,
    SlotRange,
    decode_map,
    may_replace_map,
    owns,
    spans_detail,
)
from cluster.groups.partition import SLOTS, slot_of_range
from cluster.services.leases import FIRST_CHOSEN_LEASE, LEASES_SERVICE
from cluster.services.locks import LOCKS_SERVICE
from cluster.services.rights import Right, needs_of
from datapath.errors import OperationNotAppliedError, RejectedError
from datapath.operations import STORE, Operation, Query
from datapath.service import ReadTransaction, Service, Transaction, operation, query

GROUPS_SERVICE = ":groups"
"""The name of the service; no user's service can have it."""
MAP_KEY = b":groups\0map"
"""Beside users' services, whose names have no colon."""
_KEYED: frozenset[Right] = frozenset({"read", "write", "watch", "lock"})


class WrongGroupError(OperationNotAppliedError):
    """The key belongs to another group, which owns `slot`; nothing was applied (G3).

    `body`: the request's, if it had to be read to see that.
    """

    body: bytes | None = None

    def __init__(self, name: bytes, slot: int, group_id: str) -> None:
        told = name[:100].decode("utf-8", "backslashreplace")
        super().__init__(
            "wrong_group",
            f"{told!r} has slot {slot}, which group {group_id!r} does not own",
        )
        self.slot = slot


class GroupGuard:
    """What one group owns: `slots`, as its own configuration says (G1)."""

    def __init__(self, group_id: str, slots: Sequence[SlotRange]) -> None:
        self.group_id = group_id
        self.slots = tuple(slots)

    @property
    def is_first(self) -> bool:
        """Whether this group keeps the map."""
        return owns(self.slots, 0)

    def refusal_of(
        self, asked: Operation | Query, *, whole_group: bool = False
    ) -> OperationNotAppliedError | None:
        """G1: return what refuses an operation or a query, by the keys and locks that it names.

        `whole_group`: a range that is spread over groups means this group's part of it.
        """
        foreign: tuple[bytes, int] | None = None
        own: bytes | None = None
        for start, end in spans_of(asked):
            slot = slot_of_range(start, end)
            if slot is None:
                if not whole_group:
                    return OperationNotAppliedError("spans_groups", spans_detail(start))
            elif owns(self.slots, slot):
                own = start
            else:
                foreign = foreign or (start, slot)
        if foreign is None:
            return self._refusal_of_leases(asked)
        if own is not None:
            return OperationNotAppliedError("spans_groups", _apart(own, foreign[0]))
        return WrongGroupError(*foreign, self.group_id)

    def _refusal_of_leases(self, asked: Operation | Query) -> OperationNotAppliedError | None:
        """Return what refuses a lease that another group has granted, or None.

        What clients have called leases themselves has no slot. Those of a transaction are not
        looked at: as no two groups grant the same one, it finds none.
        """
        for lease in leases_of(asked):
            if SLOTS <= lease < FIRST_CHOSEN_LEASE and not owns(self.slots, lease % SLOTS):
                if asked.service == LEASES_SERVICE:
                    return WrongGroupError(b"lease %d" % lease, lease % SLOTS, self.group_id)
                return OperationNotAppliedError(
                    "spans_groups",
                    f"lease {lease} is another group's: a key or a lock needs one that its own "
                    f"group, {self.group_id!r}, has granted: name the key when it is granted "
                    f"(lease grant --for; Onecopy-Group: {self.group_id})",
                )
        return None

    def check_range(self, start: bytes, end: bytes | None, *, whole_group: bool = False) -> None:
        """G1: raise what refuses a watch of the keys with start <= key < end."""
        read = Query("range", (start, end))
        if (refused := self.refusal_of(read, whole_group=whole_group)) is not None:
            raise refused


def leases_of(asked: Operation | Query) -> tuple[int, ...]:
    """Return the leases that a call names, but for a transaction's."""
    match asked.service, asked.method, asked.args:
        case "", "put", (_, _, _, _, int(lease), *_):
            return (lease,)
        case service, "acquire" | "withdraw", (_, int(lease), *_) if service == LOCKS_SERVICE:
            return (lease,)
        case service, "keep_alive", (leases, *_) if service == LEASES_SERVICE:
            return tuple(leases)
        case service, "look_up" | "revoke", (int(lease), *_) if service == LEASES_SERVICE:
            return (lease,)
    return ()


def spans_of(asked: Operation | Query) -> Iterator[tuple[bytes, bytes | None]]:
    """Yield the ranges of keys and of locks' names that a call names: those that have slots.

    Users' services have keys of their own, and what is asked of rights touches none.
    """
    lock = asked.if_lock if isinstance(asked, Operation) else None
    if lock is not None:
        yield lock[0], lock[0] + b"\0"
    if asked.service not in {STORE, LOCKS_SERVICE} or asked.method == "list":
        return
    for need in needs_of(asked.service, asked.method, asked.args):
        if need.right in _KEYED and need.start is not None:
            yield need.start, need.end
        elif need.right == "admin":  # nothing that is listed there: it may name any key
            yield b"", None


def _apart(own: bytes, other: bytes) -> str:
    first, second = (key[:100].decode("utf-8", "backslashreplace") for key in (own, other))
    return (
        f"{first!r} and {second!r} belong to different groups: keys that are used together need "
        "the same text before their first '/', or the same {tag} there"
    )


class Groups(Service):
    """The map, in the replicated state of the first group."""

    @operation
    def publish(self, tx: Transaction, document: bytes) -> int:
        """Take a map of a higher version than what is held; return its version (G2).

        Whoever publishes raises the highest version that any group knows: after a restore of the
        first group's state others may know later ones than that has. The same map once more is
        taken as a repeat. Raises RejectedError "invalid_body", "precondition_failed" for a version
        that is not above, "refused" for other slots.
        """
        try:
            offered = decode_map(document)
        except GroupMapError as error:
            raise RejectedError("invalid_body", str(error), for_good=True) from None
        stored = tx.get(MAP_KEY)
        held = None if stored is None else decode_map(stored)
        if held == offered:
            return offered.version
        if held is not None and offered.version <= held.version:
            raise RejectedError(
                "precondition_failed",
                f"version: must be above {held.version}, which is held, not {offered.version}: "
                "another map may have been published meanwhile; read it, and decide again",
            )
        if problem := may_replace_map(held, offered):
            raise RejectedError("refused", f"groups: {problem}")
        tx.put(MAP_KEY, document)
        return offered.version

    @query
    def map(self, tx: ReadTransaction) -> bytes | None:
        """Return the newest map as JSON, or None."""
        return tx.get(MAP_KEY)
