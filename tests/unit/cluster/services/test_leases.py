from __future__ import annotations

import pytest

from cluster.services import leases as leases_module
from cluster.services.lease_state import MAX_LEASE_CLAIMS, MAX_LEASE_KEYS
from cluster.services.leases import FIRST_CHOSEN_LEASE, LEASES_SERVICE, MAX_ENDED
from cluster.services.locks import LOCKS_SERVICE
from datapath.errors import RejectedError
from datapath.keyspaces import KV, LEASES, LOCKS
from tests.support.executing import STALL_MS, Primary

TTL_MS = 2000


def code_of(error: pytest.ExceptionInfo[RejectedError]) -> str:
    return error.value.code


def grant(primary: Primary, ttl_ms: int = TTL_MS) -> int:
    lease = primary.call(LEASES_SERVICE, "grant", ttl_ms)
    assert isinstance(lease, int)
    return lease


def is_there(primary: Primary, lease: int) -> bool:
    return any(item[0] == lease for item in primary.query(LEASES_SERVICE, "list", 0, 1000)[0])


def left_behind(primary: Primary) -> int:
    return sum(primary.state.count(keyspace) for keyspace in (KV, LEASES, LOCKS))


def test_a_lease_is_named_by_the_revision_of_its_grant() -> None:
    primary = Primary()
    primary.store("put", b"a", b"1")
    assert grant(primary) == 2


def test_a_lease_ends_after_its_ttl_and_not_before() -> None:
    primary = Primary()
    lease = grant(primary)
    primary.sleep(TTL_MS - 1)
    assert is_there(primary, lease)
    primary.sleep(60)
    assert not is_there(primary, lease)
    assert left_behind(primary) == 0


def test_a_keep_alive_starts_the_ttl_anew_and_writes_nothing() -> None:
    primary = Primary()
    lease = grant(primary)
    primary.sleep(TTL_MS - 100)
    index = primary.index
    assert primary.call(LEASES_SERVICE, "keep_alive", (lease, 99)) == [TTL_MS, 0]
    assert primary.index == index
    primary.sleep(TTL_MS - 100)
    assert is_there(primary, lease)
    primary.sleep(200)
    assert not is_there(primary, lease)


def test_a_keep_alive_that_was_executed_first_is_not_overtaken() -> None:
    """L2: the operation that ends leases was asked for before the keep-alive."""
    primary = Primary()
    lease = grant(primary)
    while primary.now_ms < TTL_MS:
        primary.stall(STALL_MS / 2)
        primary.leases.expiry.advance(primary.now_ms)
    assert primary.leases.expiry.due(10) == [lease]
    assert primary.call(LEASES_SERVICE, "keep_alive", (lease,)) == [TTL_MS]
    assert primary.call(LEASES_SERVICE, "end", (lease,)) == []
    assert is_there(primary, lease)


def test_a_stalled_primary_gives_the_time_back() -> None:
    """L1: keep-alives may have come that it has not read."""
    primary = Primary()
    lease = grant(primary)
    primary.sleep(TTL_MS - 500)
    primary.stall(10 * TTL_MS)
    assert primary.call(LEASES_SERVICE, "end", (lease,)) == []  # queued before it stood still
    primary.sleep(400)
    assert is_there(primary, lease)
    primary.sleep(200)
    assert not is_there(primary, lease)


def test_a_new_primary_starts_every_ttl_anew() -> None:
    """L1: also of leases that it has not loaded yet."""
    old = Primary()
    lease = grant(old)
    old.sleep(TTL_MS - 10)
    new = Primary(old.state, now_ms=50.0)
    assert new.call(LEASES_SERVICE, "end", (lease,)) == []  # asked for by whoever
    new.sleep(TTL_MS - 10)
    assert is_there(new, lease)
    new.sleep(60)
    assert not is_there(new, lease)


def test_many_leases_are_loaded_page_by_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases_module, "LOAD_PAGE", 3)
    old = Primary()
    for _ in range(10):
        grant(old)
    new = Primary(old.state)
    for count in (3, 6, 9, 10, 10):
        new.tick()
        assert len(new.leases.expiry) == count


def test_keys_go_with_their_lease_at_one_revision() -> None:
    primary = Primary()
    lease = grant(primary)
    primary.store("put", b"a", b"1", None, False, lease)
    primary.store("put", b"b", b"2", None, False, lease)
    primary.store("put", b"c", b"3")
    ttl_ms, left_ms, keys, locks = primary.call(LEASES_SERVICE, "look_up", lease)
    assert (ttl_ms, keys, locks) == (TTL_MS, [b"a", b"b"], [])
    assert 0 < left_ms <= TTL_MS
    index = primary.index
    primary.sleep(TTL_MS + 60)
    assert primary.index == index + 1
    assert primary.store("delete", b"a") is False
    assert primary.store("delete", b"c") is True
    assert left_behind(primary) == 0


def test_a_key_that_is_written_without_a_lease_leaves_it() -> None:
    primary = Primary()
    lease, other = grant(primary), grant(primary)
    for number, key in enumerate((b"a", b"b", b"c", b"d")):
        primary.store("put", key, b"1", None, False, (lease, lease, lease, other)[number])
    primary.store("put", b"a", b"2")
    primary.store("put", b"b", b"2", None, False, other)
    primary.store("delete", b"c")
    assert primary.call(LEASES_SERVICE, "look_up", lease)[2] == []
    assert primary.call(LEASES_SERVICE, "look_up", other)[2] == [b"b", b"d"]
    assert primary.store("delete_range", b"b", b"c", 10)[0] == 1
    assert primary.call(LEASES_SERVICE, "look_up", other)[2] == [b"d"]
    assert primary.call(LEASES_SERVICE, "revoke", other) == 1
    assert primary.store("delete", b"a") is True


def test_a_put_may_bring_its_own_lease() -> None:
    primary = Primary()
    primary.store("put", b"a", b"1", None, False, 0, TTL_MS)
    assert is_there(primary, primary.index)
    primary.sleep(TTL_MS + 60)
    assert left_behind(primary) == 0


def test_a_lease_that_is_gone_is_told_and_nothing_is_written() -> None:
    primary = Primary()
    lease = grant(primary)
    primary.call(LEASES_SERVICE, "revoke", lease)
    index = primary.index
    for method, args in (("look_up", (lease,)), ("revoke", (lease,))):
        with pytest.raises(RejectedError) as error:
            primary.call(LEASES_SERVICE, method, *args)
        assert code_of(error) == "lease_not_found"
    with pytest.raises(RejectedError) as error:
        primary.store("put", b"a", b"1", None, False, lease)
    assert code_of(error) == "lease_not_found"
    assert error.value.for_good
    assert primary.index == index


def test_a_lease_takes_so_many_keys_and_claims_and_no_more() -> None:
    primary = Primary()
    lease = grant(primary)
    for number in range(MAX_LEASE_KEYS):
        primary.store("put", b"k%d" % number, b"", None, False, lease)
    primary.store("put", b"k0", b"again", None, False, lease)
    with pytest.raises(RejectedError) as error:
        primary.store("put", b"one more", b"", None, False, lease)
    assert code_of(error) == "lease_full"
    for number in range(MAX_LEASE_CLAIMS):
        primary.call(LOCKS_SERVICE, "acquire", b"l%d" % number, lease, 0, b"", False)
    with pytest.raises(RejectedError) as error:
        primary.call(LOCKS_SERVICE, "acquire", b"one more", lease, 0, b"", False)
    assert code_of(error) == "lease_full"
    primary.sleep(TTL_MS + 60)
    assert left_behind(primary) == 0


def test_leases_that_end_together_do_so_in_bounded_operations() -> None:
    primary = Primary()
    for _ in range(2 * MAX_ENDED + 10):
        grant(primary, 1000)
    for _ in range(60):
        primary.stall(STALL_MS / 5)
        primary.leases.expiry.advance(primary.now_ms)
    assert [primary.tick() for _ in range(4)] == [MAX_ENDED, MAX_ENDED, 10, 0]


def test_one_operation_removes_the_keys_of_few_leases() -> None:
    primary = Primary()
    leases = [grant(primary, 1000) for _ in range(3)]
    for lease in leases:
        for number in range(600):
            primary.store("put", b"%d/%d" % (lease, number), b"", None, False, lease)
    for _ in range(60):
        primary.stall(STALL_MS / 5)
        primary.leases.expiry.advance(primary.now_ms)
    assert [primary.tick() for _ in range(3)] == [2, 1, 0]  # what is left is due at once
    assert left_behind(primary) == 0


def test_an_end_that_was_not_executed_comes_again() -> None:
    primary = Primary()
    lease = grant(primary)
    while not primary.leases.expiry.due(1):
        primary.stall(20)
        primary.leases.expiry.advance(primary.now_ms)
    assert is_there(primary, lease)  # nobody has executed it
    primary.sleep(1000)
    assert not is_there(primary, lease)


def test_a_primary_that_comes_back_starts_every_ttl_anew() -> None:
    """L1: another one has served meanwhile, and has acknowledged keep-alives."""
    primary = Primary()
    lease = grant(primary)
    primary.sleep(TTL_MS - 100)
    for service in primary.services.values():
        service.on_epoch_open(primary.now_ms)
    primary.sleep(TTL_MS - 100)
    assert is_there(primary, lease)
    primary.sleep(200)
    assert not is_there(primary, lease)


CHOSEN = FIRST_CHOSEN_LEASE + 77


def test_an_id_may_be_chosen_and_comes_again_only_when_the_lease_has_ended() -> None:
    primary = Primary()
    assert primary.call(LEASES_SERVICE, "grant", TTL_MS, CHOSEN) == CHOSEN
    with pytest.raises(RejectedError) as refused:
        primary.call(LEASES_SERVICE, "grant", TTL_MS, CHOSEN)
    assert code_of(refused) == "lease_exists"
    primary.store("put", b"a", b"1", None, False, CHOSEN)
    assert primary.call(LEASES_SERVICE, "revoke", CHOSEN) == 1
    assert primary.call(LEASES_SERVICE, "grant", TTL_MS, CHOSEN) == CHOSEN
    primary.sleep(TTL_MS + 100)
    assert left_behind(primary) == 0


@pytest.mark.parametrize("chosen", [1, FIRST_CHOSEN_LEASE - 1, 2**64 - 1])
def test_an_id_that_could_be_a_revision_is_not_chosen(chosen: int) -> None:
    primary = Primary()
    with pytest.raises(RejectedError) as refused:
        primary.call(LEASES_SERVICE, "grant", TTL_MS, chosen)
    assert code_of(refused) == "lease_exists"
    assert left_behind(primary) == 0


def test_a_lease_that_is_granted_again_before_the_end_of_the_last_is_known_still_ends() -> None:
    """`on_done` comes after the commit: a grant may have been executed in between."""
    primary = Primary()
    primary.call(LEASES_SERVICE, "grant", TTL_MS, CHOSEN)
    primary.stall(STALL_MS / 2)
    for _ in range(int(TTL_MS / (STALL_MS / 2)) + 1):
        primary.stall(STALL_MS / 2)
        primary.leases.expiry.advance(primary.now_ms)
    gone = primary.call(LEASES_SERVICE, "end", (CHOSEN,))
    assert gone == [CHOSEN]
    primary.call(LEASES_SERVICE, "grant", TTL_MS, CHOSEN)
    primary.leases.on_done(gone)
    assert is_there(primary, CHOSEN)
    primary.sleep(TTL_MS - 100)
    assert is_there(primary, CHOSEN)
    primary.sleep(200)
    assert not is_there(primary, CHOSEN)


def test_an_end_asked_for_before_a_new_grant_does_not_end_it() -> None:
    """L2: it is judged by the deadline of the lease that is there now."""
    primary = Primary()
    primary.call(LEASES_SERVICE, "grant", TTL_MS, CHOSEN)
    primary.call(LEASES_SERVICE, "revoke", CHOSEN)
    primary.call(LEASES_SERVICE, "grant", TTL_MS, CHOSEN)
    assert primary.call(LEASES_SERVICE, "end", (CHOSEN,)) == []
    assert is_there(primary, CHOSEN)
