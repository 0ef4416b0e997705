"""Each guard of a safety rule, taken out, is noticed. A file for itself has a worker for itself."""

from __future__ import annotations

import pytest

from tests.sim.mutant import Mutant
from tests.sim.mutants import MUTANTS, catch, rules_without_mutants


@pytest.mark.slow
@pytest.mark.parametrize(
    "mutant",
    [
        pytest.param(
            mutant,
            id=f"{mutant.rule}: {mutant.broken}",
            # Each of these starts a pytest of its own; `make mutants` runs them.
            marks=[pytest.mark.long] if mutant.unit else [],
        )
        for mutant in MUTANTS
    ],
)
def test_somebody_notices_when_a_guard_is_taken_out(mutant: Mutant) -> None:
    assert catch(mutant).caught_by


def test_each_rule_is_broken_by_some_mutant() -> None:
    assert rules_without_mutants() == []
