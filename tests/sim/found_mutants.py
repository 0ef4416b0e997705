"""Faults that were found from outside, each mend taken out again: schedules have to notice.

`python -m tests.sim.mutants found` says after how many. The simulators were widened until they did.
"""

from __future__ import annotations

from collections.abc import Callable
from unittest.mock import patch

from datapath.execution.batch import Batch
from datapath.execution.pipeline import Pipeline
from datapath.execution.tail import PendingAnswer, Tail
from datapath.node import membership
from datapath.records import Entry
from tests.sim import client_mutants, consensus_mutants, raft_mutants, replica_mutants
from tests.sim.mutant import Mutant, Patch


def _one_refused_delta_refuses_all() -> list[Patch]:
    """What has no room takes those with it that are in its record, and their repeats."""

    def join(
        pipeline: Pipeline, batch: Batch, answer: PendingAnswer, entry: Entry, size_bytes: int
    ) -> None:
        problem = pipeline._why_refused(batch, size_bytes)
        if problem is None:
            joins(pipeline, batch, answer, entry, size_bytes)
            return
        repeats = [item for item in batch.answers if item.executed.repeated]
        batch.answers = [item for item in batch.answers if not item.executed.repeated]
        for item in [*repeats, answer]:
            if not item.waiting.future.done():
                item.waiting.future.set_exception(problem)

    joins = Pipeline._join
    return [patch.object(Pipeline, "_join", join)]


def _nobody_judges_a_removal() -> list[Patch]:
    return [patch.object(membership, "GUARDS", ())]


def _what_another_epoch_left_is_not_known() -> list[Patch]:
    return [patch.object(Tail, "holds_key", lambda *_: False)]


def _mutant(rule: str, broken: str, patches: Callable[[], list[Patch]]) -> Mutant:
    return Mutant(rule, f"found: {broken}", patches)


FOUND_MUTANTS = tuple(
    mutant._replace(
        clients=mutant.rule in ("D1", "D8"),
        operators=mutant.rule == "M1",
        consensus=mutant.rule == "E4",
    )
    for mutant in (
        _mutant("D1", "an uncertain attempt is forgotten",
                client_mutants._d1_uncertain_attempts_are_forgotten),
        _mutant("D1", "any refusal proves what others did",
                client_mutants._d1_any_refusal_is_proof),
        _mutant("D8", "refused before it is recognised",
                client_mutants._d8_refused_before_it_is_recognised),
        _mutant("D8", "refused, whatever is known",
                client_mutants._d8_refused_whatever_is_known),
        _mutant("D8", "another epoch's entry is not known",
                _what_another_epoch_left_is_not_known),
        _mutant("D8", "one without room refuses its batch", _one_refused_delta_refuses_all)
        ._replace(seed=1),
        _mutant("M1", "nobody judges a removal", _nobody_judges_a_removal),
        _mutant("E4", "one voter never meets the second",
                raft_mutants._welcomes_voters_only),
        _mutant("E4", "two voter changes wait in one queue",
                consensus_mutants._e4_changes_wait_in_the_queue),
        _mutant("e", "a loss is noted in memory only",
                replica_mutants._e_told_of_a_loss_and_forgets_it)
        ._replace(seed=590),
        _mutant("b", "a take-over that never left is unknown",
                replica_mutants._b_wishing_counts_as_proposing),
    )
)  # fmt: skip
