"""Random schedules of placement as tests: a few fixed ones, one of them big, and new ones."""

from __future__ import annotations

import os
import secrets
from collections import Counter

import pytest

from tests.sim.clockwork import ViolationError
from tests.sim.groups.chunks import run_chunk
from tests.sim.groups.schedule import Schedule
from tests.sim.runner import run_seeds

FAST_SEEDS = range(1, 21)
BIG_SEED = 0
RANDOM_SECONDS = 2.0
MOST_SEEDS = 100_000


def _run(seed: int) -> tuple[Schedule, Counter[str]]:
    schedule = Schedule(seed)
    try:
        return schedule, schedule.run()
    except ViolationError as error:
        pytest.fail(f"seed {seed}: {error}\nreplay: python -m tests.sim.groups --seed {seed}")


def test_a_few_schedules_hold() -> None:
    for seed in FAST_SEEDS:
        _run(seed)


@pytest.mark.slow
def test_a_hundred_machines_and_three_hundred_groups_end_in_their_places() -> None:
    schedule, seen = _run(BIG_SEED)
    assert len(schedule.fleet.machines) >= 100
    assert len(schedule.fleet.groups) == 300
    assert seen["failed over"]
    assert seen["add: witness"]
    assert seen["remove: witness"]


def test_a_seed_gives_the_same_run_each_time() -> None:
    assert _run(17)[1] == _run(17)[1]


@pytest.mark.slow
def test_schedules_that_nobody_has_seen_yet_hold() -> None:
    base = int(os.environ.get("ONECOPY_SIM_SEED", secrets.randbelow(10**9)))
    print(f"schedules from seed {base} on: python -m tests.sim.groups --start {base}")
    outcome = run_seeds(
        base, MOST_SEEDS, jobs=1, seconds=RANDOM_SECONDS, keep_going=False, run_chunk=run_chunk
    )
    assert outcome.schedules
    for seed, problem in outcome.failures:
        pytest.fail(f"seed {seed}: {problem}\nreplay: python -m tests.sim.groups --seed {seed}")
