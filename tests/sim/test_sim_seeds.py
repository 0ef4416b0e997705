"""Random schedules as tests: fixed ones, new ones each time, and the mutants that prove them."""

from __future__ import annotations

import os
import secrets
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.sim.client_mutants import CLIENT_MUTANTS, catch_by_clients
from tests.sim.clockwork import ViolationError
from tests.sim.faults import Schedule
from tests.sim.histories import Histories
from tests.sim.mutant import Mutant
from tests.sim.mutants import MUTANTS, catch

FAST_SEEDS = range(10)
FIXED_SEEDS = (*range(100, 160), 192, 643, 201935)
RANDOM_SECONDS = 20.0


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
    deadline = time.monotonic() + RANDOM_SECONDS
    histories = Histories()
    seed = base
    while time.monotonic() < deadline:
        _run(seed, histories)
        seed += 1
    _require(histories)


@pytest.mark.slow
@pytest.mark.parametrize(
    "mutant", MUTANTS, ids=[f"{mutant.rule}: {mutant.broken}" for mutant in MUTANTS]
)
def test_the_simulator_notices_when_a_guard_is_taken_out(mutant: Mutant) -> None:
    assert catch(mutant)


@pytest.mark.slow
@pytest.mark.parametrize(
    "mutant",
    CLIENT_MUTANTS,
    ids=[f"{mutant.rule}: {mutant.broken}" for mutant in CLIENT_MUTANTS],
)
def test_clients_notice_when_a_guard_is_taken_out(mutant: Mutant, tmp_path: Path) -> None:
    assert catch_by_clients(mutant, tmp_path)
