"""Mutants of client leases and locks: when a lease ends, who holds, and what is fenced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

from cluster.services import expiry, kv, lock_state, locks
from cluster.services.expiry import Expiry
from cluster.services.leases import Leases
from cluster.services.lock_state import Holder
from cluster.services.locks import Locks
from datapath.execution import executor, lock_guard
from datapath.execution.executor import Executor
from datapath.execution.tail import Tail
from datapath.keyspaces import LOCKS
from datapath.service import ReadTransaction, Transaction
from tests.scenarios import test_client_leases
from tests.sim.mutant import Mutant, Patch


def _some_time_before(awake_ms: float, ends_ms: float) -> bool:
    return awake_ms >= ends_ms - 25


def _ends_a_tick_early() -> list[Patch]:
    return [patch.object(expiry, "may_end", _some_time_before)]


def _a_stall_counts() -> list[Patch]:
    return [patch.object(expiry, "is_stall", lambda *_: False)]


def _a_new_primary_knows_the_old_deadlines() -> list[Patch]:
    def start_epoch(self: Expiry, now_ms: float) -> None:
        self.advance(now_ms)

    return [patch.object(Expiry, "start_epoch", start_epoch)]


def _a_keep_alive_does_not_look_at_the_clock() -> list[Patch]:
    keep_alive = Leases.keep_alive

    def blind(leases: Leases, tx: Transaction, kept: tuple[int, ...]) -> list[int]:
        with patch.object(leases.expiry, "advance", lambda _: None):
            return keep_alive(leases, tx, kept)

    blind.__onecopy__ = "operation"  # type: ignore[attr-defined]
    return [patch.object(Leases, "keep_alive", blind)]


def _a_keep_alive_is_acknowledged_by_whoever_executed_it() -> list[Patch]:
    """The answer does not ask whether this node is the primary still."""
    answer_all = Tail.answer_all

    def tell(tail: Tail, answers: list[Any]) -> None:
        with (
            patch.object(tail, "_confirm", None),
            patch.object(type(tail._replica), "may_serve", lambda *_: True),
        ):
            answer_all(tail, answers)

    return [patch.object(Tail, "answer_all", tell)]


def _a_keep_alive_renews_nothing() -> list[Patch]:
    def keep_alive(leases: Leases, tx: Transaction, kept: tuple[int, ...]) -> list[int]:
        with patch.object(leases.expiry, "renew", lambda *_: None):
            return _KEEP_ALIVE(leases, tx, kept)

    keep_alive.__onecopy__ = "operation"  # type: ignore[attr-defined]
    return [patch.object(Leases, "keep_alive", keep_alive)]


_KEEP_ALIVE = Leases.keep_alive


def _who_asks_for_the_end_decides() -> list[Patch]:
    """L2: what was due when it was asked for ends, whatever has come meanwhile."""
    end = Leases.end

    def without(leases: Leases, tx: Transaction, due: tuple[int, ...]) -> list[int]:
        with patch.object(leases.expiry, "may_end", lambda _: True):
            return end(leases, tx, due)

    without.__onecopy__ = "operation"  # type: ignore[attr-defined]
    return [patch.object(Leases, "end", without)]


def _the_lease_is_the_token() -> list[Patch]:
    def take(tx: Transaction, name: bytes, lease: int, note: bytes) -> int:
        stored = lock_state._HOLDER.pack(lease, lease) + note
        tx.keyspace(LOCKS).put(name, stored)
        return lease

    return [patch.object(lock_state, "take", take)]


def _tokens_begin_anew_where_a_lock_is_free() -> list[Patch]:
    def take(tx: Transaction, name: bytes, lease: int, note: bytes) -> int:
        held = lock_state.read_holder(tx.keyspace(LOCKS), name)
        token = 1 if held is None else held.token + 1
        stored = lock_state._HOLDER.pack(token, lease) + note
        tx.keyspace(LOCKS).put(name, stored)
        return token

    return [patch.object(lock_state, "take", take)]


def _a_lock_that_is_held_is_taken() -> list[Patch]:
    """K2: acquire regards the lock as free, but for a lease that holds it already."""
    acquire, read_holder = Locks.acquire, lock_state.read_holder

    def take(
        service: Locks, tx: Transaction, name: bytes, lease: int, *args: Any
    ) -> locks.Acquired:
        def free(view: ReadTransaction, name: bytes) -> Holder | None:
            holder = read_holder(view, name)
            return holder if holder is not None and holder.lease == lease else None

        with patch.object(locks, "read_holder", free):
            return acquire(service, tx, name, lease, *args)

    take.__onecopy__ = "operation"  # type: ignore[attr-defined]
    return [patch.object(Locks, "acquire", take)]


def _whoever_goes_the_lock_is_passed_on() -> list[Patch]:
    """K2: also where it was not the holder that gave up, or ended."""
    pass_on, read_holder = lock_state.pass_on, lock_state.read_holder

    def always(tx: Transaction, name: bytes, lease: int) -> None:
        def its_own(view: ReadTransaction, name: bytes) -> Holder | None:
            holder = read_holder(view, name)
            return None if holder is None else holder._replace(lease=lease)

        with patch.object(lock_state, "read_holder", its_own):
            pass_on(tx, name, lease)

    return [patch.object(lock_state, "pass_on", always), _in_leases("pass_on", always)]


def _in_leases(name: str, value: Callable[..., Any]) -> Patch:
    return patch(f"cluster.services.leases.{name}", value)


def _a_lease_that_ends_leaves_its_locks() -> list[Patch]:
    return [_in_leases("pass_on", lambda *_: None)]


def _the_last_to_ask_is_the_next() -> list[Patch]:
    waiting_for = lock_state.waiting_for

    def backwards(view: ReadTransaction, name: bytes, limit: int = 1000) -> list[Any]:
        return waiting_for(view, name)[::-1][:limit]

    return [patch.object(lock_state, "waiting_for", backwards)]


def _if_lock_is_not_asked() -> list[Patch]:
    return [patch.object(Executor, "_lost", staticmethod(lambda *_: None))]


def _a_comparison_of_a_lock_always_holds() -> list[Patch]:
    return [patch.object(kv, "is_held_under", lambda *_: True)]


def _any_token_will_do() -> list[Patch]:
    def holds_lock(held: bytes | None, token: int) -> bool:
        del token
        return held is not None

    return [
        patch.object(module, "holds_lock", holds_lock)
        for module in (executor, lock_guard, lock_state)
    ]


def _a_fence_looks_at_what_has_committed() -> list[Patch]:
    """K3: not at what the operation sees, in the order of the log."""

    def committed(operation: Any, execution: Any) -> Any:
        if operation.if_lock is None:
            return None
        name, token = operation.if_lock
        held = execution.views[LOCKS]._executor._state.get(LOCKS, name)
        if lock_guard.holds_lock(held, token):
            return None
        return lock_guard.lock_lost(name, token, execution.index)

    return [patch.object(Executor, "_lost", staticmethod(committed))]


LEASE_MUTANTS = (
    Mutant("L1", "a lease ends a tick too early", _ends_a_tick_early, holders=True),
    Mutant("L1", "a keep-alive renews nothing", _a_keep_alive_renews_nothing, holders=True),
    Mutant("L1", "the time of a stall counts", _a_stall_counts, holders=True),
    Mutant(
        "L1", "a new primary goes by its old deadlines",
        _a_new_primary_knows_the_old_deadlines, holders=True,
    ),
    Mutant(
        "L1", "a keep-alive counts from an earlier look", _a_keep_alive_does_not_look_at_the_clock,
        holders=True,
    ),
    Mutant(
        "L1", "whoever executed a keep-alive acknowledges it",
        _a_keep_alive_is_acknowledged_by_whoever_executed_it,
        scenario=test_client_leases.test_who_has_been_replaced_acknowledges_no_keep_alive,
    ),
    Mutant("L2", "who asks for the end decides", _who_asks_for_the_end_decides, holders=True),
    Mutant("K1", "the lease is the token", _the_lease_is_the_token, holders=True),
    Mutant(
        "K1", "tokens begin anew where a lock is free",
        _tokens_begin_anew_where_a_lock_is_free, holders=True,
    ),
    Mutant("K2", "a lock that is held is taken", _a_lock_that_is_held_is_taken, holders=True),
    Mutant(
        "K2", "the lock is passed on whoever goes", _whoever_goes_the_lock_is_passed_on,
        holders=True,
    ),
    Mutant(
        "K2", "a lease that ends leaves its locks", _a_lease_that_ends_leaves_its_locks,
        holders=True,
    ),
    Mutant("K2", "the last to ask is the next", _the_last_to_ask_is_the_next, holders=True),
    Mutant("K3", "If-Lock is not asked", _if_lock_is_not_asked, holders=True),
    Mutant(
        "K3", "a comparison of a lock always holds", _a_comparison_of_a_lock_always_holds,
        holders=True,
    ),
    Mutant("K3", "any token will do", _any_token_will_do, holders=True),
    Mutant(
        "K3", "a fence looks at what has committed", _a_fence_looks_at_what_has_committed,
        holders=True,
    ),
)  # fmt: skip
