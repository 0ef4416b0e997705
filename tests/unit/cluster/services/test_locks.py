from __future__ import annotations

import pytest

from cluster.services import locks as locks_module
from cluster.services.leases import LEASES_SERVICE
from cluster.services.locks import LOCKS_SERVICE, Acquired
from cluster.services.txn import LockComparison, PutStep, Txn, encode_txn
from datapath.errors import RejectedError
from datapath.keyspaces import KV, LEASES, LOCKS
from tests.support.executing import Primary

TTL_MS = 2000
JOBS = b"jobs"


def grant(primary: Primary) -> int:
    lease = primary.call(LEASES_SERVICE, "grant", TTL_MS)
    assert isinstance(lease, int)
    return lease


def acquire(
    primary: Primary, lease: int = 0, *, wait: bool = False, name: bytes = JOBS, note: bytes = b""
) -> Acquired:
    return Acquired(*primary.call(LOCKS_SERVICE, "acquire", name, lease, TTL_MS, note, wait))


Held = tuple[int, int, bytes, int, list[tuple[int, bytes]]]


def holder(primary: Primary) -> Held | None:
    found: Held | None = primary.query(LOCKS_SERVICE, "get", JOBS)
    return found


def test_the_first_gets_it_and_the_others_are_told_of_it() -> None:
    primary = Primary()
    first = acquire(primary, note=b"host 1")
    assert first.token == primary.index
    with pytest.raises(RejectedError, match="host 1") as error:
        acquire(primary)
    assert error.value.code == "lock_held"
    assert primary.state.count(LEASES) == 2  # the refused one has left no lease


def test_those_who_wait_are_served_in_their_order_and_tokens_rise() -> None:
    """K1, K2."""
    primary = Primary()
    first = acquire(primary)
    second, third = (acquire(primary, wait=True) for _ in range(2))
    assert (second.token, third.token) == (0, 0)
    tokens = [first.token]
    for expected in (second.lease, third.lease):
        primary.call(LOCKS_SERVICE, "release", JOBS, tokens[-1])
        now = holder(primary)
        assert now is not None
        assert now[1] == expected
        tokens.append(now[0])
    primary.call(LOCKS_SERVICE, "release", JOBS, tokens[-1])
    assert holder(primary) is None
    tokens.append(acquire(primary).token)
    assert tokens == sorted(set(tokens))


def test_to_ask_again_keeps_the_place() -> None:
    primary = Primary()
    acquire(primary)
    leases = [grant(primary) for _ in range(2)]
    for lease in leases:
        acquire(primary, lease, wait=True)
    index = primary.index
    assert acquire(primary, leases[0], wait=True).token == 0
    assert primary.index == index
    held = holder(primary)
    assert held is not None
    assert held[3:] == (2, [(lease, b"") for lease in leases])
    primary.call(LOCKS_SERVICE, "release", JOBS, held[0])
    got = acquire(primary, leases[0])
    assert got.token == acquire(primary, leases[0], wait=True).token == primary.index


def test_who_waits_leaves_the_queue_with_its_lease() -> None:
    primary = Primary()
    first = acquire(primary)
    second, third = (acquire(primary, wait=True) for _ in range(2))
    primary.call(LEASES_SERVICE, "revoke", second.lease)
    primary.call(LOCKS_SERVICE, "release", JOBS, first.token)
    now = holder(primary)
    assert now is not None
    assert now[1] == third.lease
    assert now[3] == 0


def test_a_lock_passes_on_when_its_lease_ends() -> None:
    primary = Primary()
    first = acquire(primary)
    second = acquire(primary, wait=True)
    third = grant(primary)
    acquire(primary, third, wait=True)
    for _ in range(30):
        primary.sleep(100)
        primary.call(LEASES_SERVICE, "keep_alive", (third,))
    now = holder(primary)
    assert now is not None
    assert now[1] == third
    assert now[0] > first.token
    assert second.lease not in (now[1], 0)


def test_nothing_is_left_of_locks_and_waiters() -> None:
    primary = Primary()
    for _ in range(3):
        acquire(primary, wait=True)
    primary.sleep(3 * TTL_MS)
    assert [primary.state.count(keyspace) for keyspace in (KV, LEASES, LOCKS)] == [0, 0, 0]


def test_a_waiter_may_withdraw_and_learns_if_it_holds_by_then() -> None:
    primary = Primary()
    first = acquire(primary)
    second = acquire(primary, wait=True)
    assert primary.call(LOCKS_SERVICE, "withdraw", JOBS, second.lease) == 0
    third = acquire(primary, wait=True)
    primary.call(LOCKS_SERVICE, "release", JOBS, first.token)
    assert primary.call(LOCKS_SERVICE, "withdraw", JOBS, third.lease) == primary.index
    assert primary.call(LEASES_SERVICE, "look_up", second.lease)[3] == []


def test_a_token_that_is_lost_releases_nothing() -> None:
    primary = Primary()
    first = acquire(primary)
    primary.call(LOCKS_SERVICE, "release", JOBS, first.token)
    second = acquire(primary)
    for token in (first.token, second.token + 1):
        with pytest.raises(RejectedError) as error:
            primary.call(LOCKS_SERVICE, "release", JOBS, token)
        assert error.value.code == "lock_lost"
    assert holder(primary) is not None


def test_a_write_under_a_lock_that_was_lost_changes_nothing() -> None:
    """K3, of any operation of any service."""
    primary = Primary()
    first = acquire(primary)
    lock = (JOBS, first.token)
    assert primary.store("put", b"a", b"1", if_lock=lock) is True
    primary.call(LEASES_SERVICE, "revoke", first.lease)
    second = acquire(primary)
    index = primary.index
    for method, args in (("put", (b"a", b"2")), ("delete", (b"a",))):
        with pytest.raises(RejectedError) as error:
            primary.store(method, *args, if_lock=lock)
        assert error.value.code == "lock_lost"
        assert error.value.for_good
    with pytest.raises(RejectedError):
        primary.call(LEASES_SERVICE, "grant", TTL_MS, if_lock=lock)
    with pytest.raises(RejectedError):
        primary.store("put", b"a", b"2", if_lock=(b"other", second.token))
    assert primary.index == index
    assert primary.store("put", b"a", b"3", if_lock=(JOBS, second.token)) is False


def test_a_transaction_compares_the_lock() -> None:
    primary = Primary()
    token = acquire(primary).token
    for given, succeeds in ((token, True), (token + 1, False)):
        txn = Txn((LockComparison(JOBS, given),), (PutStep(b"a", b"1"),))
        assert primary.store("txn", encode_txn(txn))[0] is succeeds


def test_a_queue_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks_module, "MAX_WAITING", 2)
    primary = Primary()
    for _ in range(3):
        acquire(primary, wait=True)
    with pytest.raises(RejectedError) as error:
        acquire(primary, wait=True)
    assert error.value.code == "lock_queue_full"


def test_locks_are_listed_by_name() -> None:
    primary = Primary()
    for name in (b"b", b"a", b"c"):
        acquire(primary, name=name, note=b"of " + name)
    acquire(primary, name=b"a", wait=True)
    items, after = primary.query(LOCKS_SERVICE, "list", b"", 2)
    assert [(item[0], item[3]) for item in items] == [(b"a", b"of a"), (b"b", b"of b")]
    items, after = primary.query(LOCKS_SERVICE, "list", after, 2)
    assert [item[0] for item in items] == [b"c"]
    assert after is None
