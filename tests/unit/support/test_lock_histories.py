"""The history checker's model of leases and locks accepts what one log can explain, nothing else.

Each history is made by hand, of one lock "jobs"; times are in ms, and calls are apart by GAP_MS.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.history import History, LeaseKind, Operation, Verdict

TTL_MS = 100
GAP_MS = 10


class Script:
    """Writes a history: each call follows the one before."""

    def __init__(self) -> None:
        self.history = History("by hand")
        self.now_ms = 0

    def sleep(self, ms: int) -> None:
        self.now_ms += ms

    def begin(self, kind: LeaseKind, **options: Any) -> Operation:
        self.now_ms += GAP_MS
        return self.history.lease_call(
            self.history.new_client(), kind, self.now_ms * 1_000_000, key="jobs", ttl_ms=TTL_MS,
            **options,
        )  # fmt: skip

    def end_ns(self) -> int:
        self.now_ms += 1
        return self.now_ms * 1_000_000

    def grant(self, lease: int) -> None:
        self.begin("grant").granted(self.end_ns(), lease=lease, revision=lease)

    def acquire(self, lease: int, revision: int, token: int = 0) -> None:
        call = self.begin("acquire", lease=lease)
        call.granted(self.end_ns(), token=token, revision=revision)

    def does(self, kind: LeaseKind, revision: int = 0, **options: Any) -> None:
        self.begin(kind, **options).granted(self.end_ns(), revision=revision)

    def is_refused(self, kind: LeaseKind, code: str, **options: Any) -> None:
        self.begin(kind, **options).refused(self.end_ns(), code)

    def sees(self, lease: int, token: int) -> None:
        self.begin("look").granted(self.end_ns(), lease=lease, token=token)


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def held(script: Script) -> Script:
    """Lease 1 holds the lock under token 3; lease 2 waits."""
    script.grant(1)
    script.grant(2)
    script.acquire(1, 3, token=3)
    script.acquire(2, 4)
    return script


def check(script: Script, path: Path) -> Verdict:
    return script.history.check(path)


def require_violation(script: Script, path: Path) -> None:
    verdict = check(script, path)
    assert verdict.status == "violation", verdict
    assert "keys jobs" in verdict.reasons[0]
    assert Path(verdict.picture).exists()


def test_a_released_lock_goes_to_the_one_that_waits(held: Script, tmp_path: Path) -> None:
    held.does("fenced", 5, lease=1, token=3)
    held.does("release", 6, lease=1, token=3)
    held.acquire(2, 7, token=6)
    held.is_refused("fenced", "lock_lost", lease=1, token=3)
    held.is_refused("release", "lock_lost", lease=1, token=3)
    held.does("fenced", 8, lease=2, token=6)
    held.does("revoke", 9, lease=2)
    held.sees(0, 0)
    check(held, tmp_path).require()


def test_a_lease_ends_by_itself_and_the_next_one_holds(held: Script, tmp_path: Path) -> None:
    held.does("keepalive", lease=2)
    held.sleep(TTL_MS - 30)
    held.does("keepalive", lease=2)
    held.sleep(30)
    held.acquire(2, 9, token=8)
    held.is_refused("keepalive", "lease_not_found", lease=1)
    held.sees(2, 8)
    check(held, tmp_path).require()


@pytest.mark.parametrize(("kind", "options"), [("release", {"token": 3}), ("revoke", {})])
def test_one_that_waits_ends_before_the_lock_is_passed_on(
    held: Script, kind: LeaseKind, options: dict[str, int], tmp_path: Path
) -> None:
    """The next one is served under the token that is given then, and not a later one."""
    held.grant(5)
    held.acquire(5, 6)
    held.sleep(TTL_MS)
    held.does(kind, 7, lease=1, **options)
    held.acquire(5, 8, token=7)
    assert check(held, tmp_path).status == "linearizable"


def test_two_leases_end_at_any_time_after_their_ttls(held: Script, tmp_path: Path) -> None:
    held.grant(5)
    held.acquire(5, 6)
    held.sleep(3 * TTL_MS)
    held.sees(1, 3)  # late, which is no fault
    held.sees(5, 8)
    held.acquire(5, 9, token=8)
    check(held, tmp_path).require()


def test_a_lease_that_does_not_last_is_caught(script: Script, tmp_path: Path) -> None:
    """L1."""
    script.grant(1)
    script.sleep(TTL_MS // 2)
    script.is_refused("keepalive", "lease_not_found", lease=1)
    require_violation(script, tmp_path)


def test_a_keep_alive_counts_from_its_call(script: Script, tmp_path: Path) -> None:
    """L1: it was acknowledged, however long ago the lease was granted."""
    script.grant(1)
    script.sleep(2 * TTL_MS)
    script.does("keepalive", lease=1)
    script.sleep(TTL_MS // 2)
    script.is_refused("fenced", "lease_not_found", lease=1)
    require_violation(script, tmp_path)


def test_a_lock_that_goes_early_is_caught(held: Script, tmp_path: Path) -> None:
    """L1: the next one has it before the TTL has passed."""
    held.acquire(2, 6, token=5)
    require_violation(held, tmp_path)


def test_a_lease_that_comes_back_is_caught(script: Script, tmp_path: Path) -> None:
    """L2."""
    script.grant(1)
    script.sleep(2 * TTL_MS)
    script.is_refused("keepalive", "lease_not_found", lease=1)
    script.does("keepalive", lease=1)
    require_violation(script, tmp_path)


def test_a_token_that_does_not_rise_is_caught(held: Script, tmp_path: Path) -> None:
    """K1."""
    held.sleep(2 * TTL_MS)
    held.acquire(2, 6, token=2)
    require_violation(held, tmp_path)


def test_two_holders_are_caught(held: Script, tmp_path: Path) -> None:
    """K2."""
    held.acquire(2, 5, token=5)
    held.does("keepalive", lease=1)
    held.does("fenced", 6, lease=1, token=3)
    require_violation(held, tmp_path)


def test_one_that_waits_less_and_is_served_first_is_caught(held: Script, tmp_path: Path) -> None:
    """K2, in the order of the log."""
    held.grant(5)
    held.acquire(5, 6)
    held.does("release", 7, lease=1, token=3)
    held.acquire(5, 8, token=7)
    require_violation(held, tmp_path)


def test_a_write_under_a_lost_token_is_caught(held: Script, tmp_path: Path) -> None:
    """K3."""
    held.does("release", 5, lease=1, token=3)
    held.does("fenced", 6, lease=1, token=3)
    require_violation(held, tmp_path)


def test_a_write_refused_while_the_lock_is_held_is_caught(held: Script, tmp_path: Path) -> None:
    """K3."""
    held.is_refused("fenced", "lock_lost", lease=1, token=3)
    require_violation(held, tmp_path)


def test_a_lock_with_a_call_of_unknown_outcome_is_left_out(held: Script, tmp_path: Path) -> None:
    held.begin("release", lease=1, token=3).unknown(held.end_ns())
    held.does("fenced", 6, lease=1, token=3)
    held.acquire(2, 7, token=5)
    assert check(held, tmp_path).parts == 0


def test_a_keep_alive_of_unknown_outcome_counts_for_nothing(held: Script, tmp_path: Path) -> None:
    held.sleep(TTL_MS)
    held.begin("keepalive", lease=1).unknown(held.end_ns())
    held.acquire(2, 6, token=5)
    check(held, tmp_path).require()
