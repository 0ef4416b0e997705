"""Random schedules as tests: fixed ones, and new ones each time."""

from __future__ import annotations

import os
import secrets
from collections import Counter
from pathlib import Path

import pytest

from tests.sim.__main__ import report
from tests.sim.clockwork import ViolationError
from tests.sim.coverage import SITUATIONS
from tests.sim.faults import Schedule
from tests.sim.histories import Histories
from tests.sim.runner import Outcome, run_seeds

FAST_SEEDS = range(10)
FIXED_SEEDS = range(100, 160)
RANDOM_SECONDS = 6.0
MOST_SEEDS = 100_000


def _run(seed: int, histories: Histories | None = None) -> Counter[str]:
    schedule = Schedule(seed)
    try:
        seen = schedule.run()
    except ViolationError as error:
        pytest.fail(f"seed {seed}: {error}\nreplay: python -m tests.sim --seed {seed}")
    if histories is not None:
        histories.add(schedule)
    return seen


def _require(histories: Histories) -> None:
    failed = histories.check()
    print(histories)
    assert not failed, "\n".join(failed.values())


def test_a_few_schedules_hold() -> None:
    for seed in FAST_SEEDS:
        _run(seed)


def test_a_seed_gives_the_same_run_each_time() -> None:
    assert _run(17) == _run(17)
    assert Schedule(17).clients is not None


@pytest.mark.slow
def test_a_seed_gives_the_same_run_in_any_process() -> None:
    one, two = (run_seeds(500, 60, jobs=jobs) for jobs in (1, 2))
    assert (one.schedules, one.failures) == (60, [])
    assert one.seen == two.seen


def test_what_was_found_is_reported_with_its_seed() -> None:
    """`make sim` fails on a violation, and on a situation that a big run has not reached."""
    outcome = Outcome(schedules=1000, cpu_s=1.0, seconds=1.0, seen=Counter(SITUATIONS))
    assert report(outcome) == 0
    outcome.seen["truncation"] = 0
    assert report(outcome) == 1
    outcome = Outcome(schedules=1, cpu_s=1.0, seconds=1.0, failures=[(7, "D1: …")])
    assert report(outcome) == 1


@pytest.mark.slow
def test_the_fixed_schedules_hold(tmp_path: Path) -> None:
    histories = Histories(directory=tmp_path)
    for seed in FIXED_SEEDS:
        _run(seed, histories)
    assert len(FIXED_SEEDS) // 3 < len(histories)
    _require(histories)


@pytest.mark.slow
def test_schedules_that_nobody_has_seen_yet_hold() -> None:
    base = int(os.environ.get("ONECOPY_SIM_SEED", secrets.randbelow(10**9)))
    print(f"schedules from seed {base} on: python -m tests.sim --start {base}")
    # One process: others test real nodes meanwhile.
    outcome = run_seeds(base, MOST_SEEDS, jobs=1, seconds=RANDOM_SECONDS, keep_going=False)
    print(f"{outcome.schedules} schedules in {outcome.seconds:.0f} s")
    assert outcome.schedules
    for seed, problem in outcome.failures:
        pytest.fail(f"seed {seed}: {problem}\nreplay: python -m tests.sim --seed {seed}")
