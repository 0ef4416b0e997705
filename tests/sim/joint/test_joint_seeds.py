"""Random schedules of replicas over real consensus as tests: fixed ones, and new ones each time."""

from __future__ import annotations

import os
import secrets
from collections import Counter
from functools import partial

import pytest

from tests.sim.clockwork import ViolationError
from tests.sim.joint.schedule import JointSchedule
from tests.sim.runner import run_replicas, run_seeds

FAST_SEEDS = range(4)
FIXED_SEEDS = range(100, 130)
RANDOM_SECONDS = 3.0
MOST_SEEDS = 100_000
REPLAY = "replay: python -m tests.sim.joint --seed"


def _run(seed: int) -> Counter[str]:
    try:
        return JointSchedule(seed).run()
    except ViolationError as error:
        pytest.fail(f"seed {seed}: {error}\n{REPLAY} {seed}")


def test_a_few_schedules_hold() -> None:
    for seed in FAST_SEEDS:
        assert _run(seed)["view committed"]


def test_a_seed_gives_the_same_run_each_time() -> None:
    assert _run(17) == _run(17)


@pytest.mark.slow
def test_the_fixed_schedules_hold() -> None:
    for seed in FIXED_SEEDS:
        _run(seed)


@pytest.mark.slow
def test_schedules_that_nobody_has_seen_yet_hold() -> None:
    base = int(os.environ.get("ONECOPY_SIM_SEED", secrets.randbelow(10**9)))
    print(f"schedules from seed {base} on: python -m tests.sim.joint --start {base}")
    # One process: others test real nodes meanwhile.
    outcome = run_seeds(
        base,
        MOST_SEEDS,
        jobs=1,
        seconds=RANDOM_SECONDS,
        keep_going=False,
        run_chunk=partial(run_replicas, histories_every=1, schedule_type=JointSchedule),
    )
    print(f"{outcome.schedules} schedules in {outcome.seconds:.0f} s")
    assert outcome.schedules
    for seed, problem in outcome.failures:
        pytest.fail(f"seed {seed}: {problem}\n{REPLAY} {seed}")
