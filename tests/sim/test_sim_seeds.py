"""Random schedules as tests: fixed ones, new ones each time, and the mutants that prove them."""

from __future__ import annotations

import os
import secrets
import time
from collections import Counter

import pytest

from tests.sim.clockwork import ViolationError
from tests.sim.faults import Schedule
from tests.sim.mutant import Mutant
from tests.sim.mutants import MUTANTS, catch

FAST_SEEDS = range(10)
FIXED_SEEDS = (*range(100, 160), 192, 643, 201935)
RANDOM_SECONDS = 20.0


def _run(seed: int) -> Counter[str]:
    try:
        return Schedule(seed).run()
    except ViolationError as error:
        pytest.fail(f"seed {seed}: {error}\nreplay: python -m tests.sim --seed {seed}")


def test_a_few_schedules_hold() -> None:
    for seed in FAST_SEEDS:
        _run(seed)


def test_a_seed_gives_the_same_run_each_time() -> None:
    assert _run(17) == _run(17)


@pytest.mark.slow
def test_the_fixed_schedules_hold() -> None:
    for seed in FIXED_SEEDS:
        _run(seed)


@pytest.mark.slow
def test_schedules_that_nobody_has_seen_yet_hold() -> None:
    base = int(os.environ.get("ONECOPY_SIM_SEED", secrets.randbelow(10**9)))
    print(f"schedules from seed {base} on: python -m tests.sim --start {base}")
    deadline = time.monotonic() + RANDOM_SECONDS
    seed = base
    while time.monotonic() < deadline:
        _run(seed)
        seed += 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "mutant", MUTANTS, ids=[f"{mutant.rule}: {mutant.broken}" for mutant in MUTANTS]
)
def test_the_simulator_notices_when_a_guard_is_taken_out(mutant: Mutant) -> None:
    assert catch(mutant)
