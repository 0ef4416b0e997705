"""Mutants of what clients rely on: their answers have to give it away."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import msgspec

from datapath.environment import SERVICE_SPACE
from datapath.errors import NotAppliedError
from datapath.executor import Executor
from datapath.operations import Operation
from datapath.pipeline import Answer, Burst, Pipeline
from datapath.records import Entry
from datapath.replica import Replica
from tests.scenarios import test_answers
from tests.sim.mutant import Mutant, Patch
from tests.sim.oracle import Oracle

MAX_SEEDS = 300
_BATCH = 10


def _d2_reads_see_what_is_recorded() -> list[Patch]:
    keep_burst = Executor.keep_burst

    def keep(executor: Executor, entries: list[Entry]) -> None:
        for (space, key), (value, _) in executor._burst.items():
            held: dict[bytes, bytes] = executor._state.spaces[space]  # type: ignore[attr-defined]
            if value is None:
                held.pop(key, None)
            else:
                held[key] = value
        keep_burst(executor, entries)

    return [patch.object(Executor, "keep_burst", keep)]


def _d2_failed_conditions_answer_at_once() -> list[Patch]:
    def answer(pipeline: Pipeline, answers: list[Answer]) -> None:
        pipeline._answer_all(answers)

    return [patch.object(Pipeline, "_answer_without_record", answer)]


def _d2_refused_deltas_stay() -> list[Patch]:
    execute = Executor.execute

    def take_at_once(executor: Executor, operation: Operation, next_index: int) -> Any:
        executed, entry = execute(executor, operation, next_index)
        if entry is not None:
            executor.take(entry)
        return executed, entry

    return [patch.object(Executor, "execute", take_at_once)]


def _d2_lost_entries_stay() -> list[Patch]:
    return [patch.object(Executor, "start_epoch", lambda _: None)]


def _d8_not_in_the_delta() -> list[Patch]:
    keep_burst = Executor.keep_burst

    def keep(executor: Executor, entries: list[Entry]) -> None:
        keep_burst(executor, entries)
        for entry in entries:
            entry[:] = [write for write in entry if write[0] == SERVICE_SPACE]

    return [patch.object(Executor, "keep_burst", keep)]


def _d8_not_consulted() -> list[Patch]:
    return [patch.object(Executor, "repeat_of", lambda *_: None)]


def _d8_uncommitted_ones_do_not_count() -> list[Patch]:
    def committed_only(executor: Executor, operation: Operation, _next_index: int) -> Any:
        return executor.recall(operation) if operation.idempotency_key else None

    return [patch.object(Executor, "repeat_of", committed_only)]


def _d8_refusals_are_forgotten() -> list[Patch]:
    return [patch("datapath.executor._is_remembered", lambda error: error is None)]


def _d4_reads_without_a_lease() -> list[Patch]:
    def may_serve(replica: Replica, now_ms: float) -> bool:
        del now_ms
        return replica.primary is not None and replica.primary.is_open

    return [
        patch.object(Replica, "may_serve", may_serve),
        # The oracle asks the same question: it must not notice first.
        patch.object(Oracle, "check_serving", lambda _oracle, _node: None),
    ]


def _d4_conditions_without_a_lease() -> list[Patch]:
    return [patch.object(Answer, "wrote_nothing", property(lambda _: False))]


def _d1_answers_before_the_commit() -> list[Patch]:
    record = Pipeline._record

    def at_once(pipeline: Pipeline, burst: Burst) -> None:
        record(pipeline, burst)
        if burst.entries:
            pipeline._answer_all(burst.answers)

    return [patch.object(Pipeline, "_record", at_once)]


def _d1_answers_when_the_primary_has_it() -> list[Patch]:
    """Only the primary's own disk is waited for: ack=local for everyone."""
    submit = Pipeline.submit

    def local(pipeline: Pipeline, operation: Operation, timeout_ms: float, sink: Any) -> None:
        submit(pipeline, msgspec.structs.replace(operation, ack="local"), timeout_ms, sink)

    return [patch.object(Pipeline, "submit", local)]


def _d1_unknown_is_called_not_applied() -> list[Patch]:
    return [patch("datapath.pipeline.UnknownOutcomeError", NotAppliedError)]


_MUTANTS = (
    Mutant("D1", "answers before the commit", _d1_answers_before_the_commit),
    Mutant("D1", "answers when the primary alone has it", _d1_answers_when_the_primary_has_it),
    Mutant("D1", "what a lost role leaves open is not applied", _d1_unknown_is_called_not_applied),
    Mutant("D2", "reads see what is recorded", _d2_reads_see_what_is_recorded),
    Mutant("D2", "failed conditions are answered at once", _d2_failed_conditions_answer_at_once),
    Mutant("D2", "what found no room stays in sight", _d2_refused_deltas_stay),
    Mutant(
        "D2", "what an old epoch lost stays in sight", _d2_lost_entries_stay,
        scenario=test_answers.test_what_a_lost_epoch_left_uncommitted_is_forgotten_for_good,
    ),
    Mutant("D4", "reads without a lease", _d4_reads_without_a_lease),
    Mutant(
        "D4", "failed conditions without a lease", _d4_conditions_without_a_lease,
        scenario=test_answers.test_a_primary_that_was_replaced_says_nothing_of_what_it_sees,
    ),
    Mutant("D8", "the client table is not in the delta", _d8_not_in_the_delta),
    Mutant("D8", "the client table is not consulted", _d8_not_consulted),
    Mutant("D8", "only committed answers are repeated", _d8_uncommitted_ones_do_not_count),
    Mutant("D8", "refusals are not in the client table", _d8_refusals_are_forgotten, seed=400),
)  # fmt: skip
CLIENT_MUTANTS = tuple(
    mutant._replace(clients=mutant.scenario is None, seed=mutant.seed or 1) for mutant in _MUTANTS
)
