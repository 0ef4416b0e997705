"""Who may do what, as the data path sees it: asked before anything is read or changed (A1).

What rights there are, and what an operation needs, is the guard's business
(`cluster.services.access_guard`). It is asked inside the operation, on the primary, in the order of
the log, and inside each query, on the state that the query reads. So a right that was revoked
before is gone, wherever the request came in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TypeVar

import msgspec

from datapath.errors import OperationError
from datapath.operations import ANONYMOUS, Operation, Principal, Query

if TYPE_CHECKING:  # clients load this module, and nothing of a replica
    from datapath.protocol.primary import Primary

MAX_RIGHTS_AGE_MS = 1000
"""How old what a node knows of rights may be where it decides by itself (A1)."""

StateReader = Callable[[int, bytes], bytes | None]
"""`read(keyspace, key)` of the state that is decided on."""
AskedT = TypeVar("AskedT", Operation, Query)


class AccessGuard(Protocol):
    """`is_on`: whether there is access control in this cluster.

    `mark`: the keyspace and the key that say so, where the node's configuration does not.
    `max_age_ms`: how old what a node knows of rights may be where it decides by itself.
    """

    is_on: bool
    max_age_ms: float
    mark: tuple[int, bytes]

    def notice(self, held: bytes | None, /) -> None:
        """Take what stands under the mark."""

    def judge(self, asked: Operation | Query, read: StateReader, /) -> OperationError | str:
        """Return the name of the role for which it may be done, or what refuses it.

        Asked only where `is_on`, and of what has a caller.
        """

    def judge_admin(self, caller: Principal, read: StateReader, /) -> OperationError | str:
        """Return the same of a change of the cluster itself."""

    def is_configured_admin(self, caller: Principal, read: StateReader, /) -> bool:
        """Whether this node's own file makes a caller an administrator, with nobody to ask."""


def refusal(
    guard: AccessGuard | None, asked: Operation | Query, read: StateReader
) -> OperationError | str:
    """Return what refuses an operation or a query (A1), or the role it is done for.

    The role is "" for what the node itself does, and where there is no access control.
    """
    return guard.judge(asked, read) if guard is not None and is_judged(guard, asked) else ""


def is_judged(guard: AccessGuard | None, asked: Operation | Query) -> bool:
    """Whether it is asked for a caller, in a cluster with access control."""
    return guard is not None and guard.is_on and asked.caller is not None


def knows_rights(primary: Primary | None) -> bool:
    """Whether a node may judge operations (A1): it leads an epoch that is open.

    Before that a right may have gone in an entry of an earlier epoch that is not applied yet; and
    after it, in another epoch.
    """
    return primary is not None and primary.is_open


def of_a_peer(guard: AccessGuard | None, asked: AskedT) -> AskedT:
    """Return what another node forwards, as it is judged here: one without a caller is anonymous.

    A node whose configuration has no access control must not open another one's door.
    """
    if guard is None or not guard.is_on or asked.caller is not None:
        return asked
    return msgspec.structs.replace(asked, caller=ANONYMOUS)


def with_fresh_rights(guard: AccessGuard | None, query: Query) -> Query:
    """Return a query whose answer rests on rights that are no older than they may be (A1).

    What may be stale is read by a node alone, with the rights that it knows: those of the same age.
    """
    if query.consistency != "stale" or guard is None or not is_judged(guard, query):
        return query
    age_ms, max_age_ms = query.max_staleness_ms, int(guard.max_age_ms)
    if age_ms is not None and age_ms <= max_age_ms:
        return query
    return msgspec.structs.replace(query, max_staleness_ms=max_age_ms)
