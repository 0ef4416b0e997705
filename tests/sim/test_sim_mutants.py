"""Each guard of a safety rule, taken out, is noticed. A file for itself has a worker for itself."""

from __future__ import annotations

import pytest

from tests.sim.mutant import Mutant
from tests.sim.mutants import MUTANTS, catch, rules_without_mutants

LATE = ("reads rest on leases although clocks",)
"""Those that schedules notice after many seeds, where others of their rule are noticed soon."""
QUICK = tuple(
    {m.rule: m for m in reversed(MUTANTS) if not m.unit and not m.broken.startswith(LATE)}.values()
)
"""One of each rule that the simulator notices; `make mutants` tries all."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "mutant",
    [
        pytest.param(
            mutant,
            id=f"{mutant.rule}: {mutant.broken}",
            marks=[] if mutant in QUICK else [pytest.mark.long],
        )
        for mutant in MUTANTS
    ],
)
def test_somebody_notices_when_a_guard_is_taken_out(mutant: Mutant) -> None:
    assert catch(mutant).caught_by


def test_each_rule_is_broken_by_some_mutant() -> None:
    assert rules_without_mutants() == []
