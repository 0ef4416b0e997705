"""When a timer is due: once in each interval, whatever the clocks say (X3)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cluster.services.timers import Timer, at, may_fire, timer_of

DAY_MS = 86_400_000
HOUR_MS = 3_600_000


def test_at_begins_its_day_at_that_time() -> None:
    @at("03:30")
    def nightly() -> None: ...

    timer = timer_of(nightly)
    assert timer is not None
    begins_ms = 10 * DAY_MS + 3 * HOUR_MS + 30 * 60_000
    assert timer.interval_at(begins_ms - 1) == 9
    assert timer.interval_at(begins_ms) == 10


def test_a_new_timer_waits_for_its_first_interval() -> None:
    assert not may_fire(7, None)
    assert not may_fire(7, 7)
    assert may_fire(8, 7)


@given(
    times=st.lists(st.integers(0, 10_000_000), max_size=60),
    interval_ms=st.integers(100, 1_000_000),
    offset_ms=st.integers(0, 1000),
)
def test_no_interval_has_two_runs_whatever_the_clocks_say(
    times: list[int], interval_ms: int, offset_ms: int
) -> None:
    timer = Timer(interval_ms, offset_ms)
    last: int | None = None
    runs = []
    for now_ms in times:
        interval = timer.interval_at(now_ms)
        fires = may_fire(interval, last)
        if fires:
            runs.append(interval)
        if fires or last is None:
            last = interval
    assert len(set(runs)) == len(runs)
    assert runs == sorted(runs)
