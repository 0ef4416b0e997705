"""Mutants of what clients rely on: their answers have to give it away."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import msgspec

from cluster.services import kv
from cluster.services.txn import decode_txn
from datapath.errors import DataPathError, OperationError, OperationNotAppliedError
from datapath.execution.batch import Batch
from datapath.execution.client_table import ClientTable
from datapath.execution.executor import Execution, Executor
from datapath.execution.pipeline import Pipeline
from datapath.execution.tail import PendingAnswer, Tail, Waiting
from datapath.keyspaces import KV
from datapath.node.router import Attempts, was_not_carried_out
from datapath.operations import Operation
from datapath.protocol.replica import Replica
from datapath.records import Entry
from datapath.transport.calls import NoAnswerError
from tests.scenarios import test_answers
from tests.sim.mutant import Mutant, Patch
from tests.sim.oracle import Oracle
from tests.sim.service import MemoryStore

ROUTER = "tests/unit/datapath/node/test_router.py::"
OUTCOMES = "tests/integration/datapath/node/test_outcomes.py::"
MAX_SEEDS = 300
_BATCH = 10


def _d2_reads_see_what_is_recorded() -> list[Patch]:
    complete = Executor.complete

    def show(executor: Executor, entries: list[Entry]) -> None:
        for entry in entries:
            for keyspace, key, value in entry:
                held: dict[bytes, bytes] = executor._state.keyspaces[keyspace]  # type: ignore[attr-defined]
                if value is None:
                    held.pop(key, None)
                else:
                    held[key] = value
        complete(executor, entries)

    return [patch.object(Executor, "complete", show)]


def _d2_failed_conditions_answer_at_once() -> list[Patch]:
    def answer(tail: Tail, answers: list[PendingAnswer]) -> None:
        tail.answer_all(answers)

    return [patch.object(Tail, "add_answers", answer)]


def _d2_refused_deltas_stay() -> list[Patch]:
    execute = Executor.execute

    def take_at_once(executor: Executor, operation: Operation, next_index: int) -> Any:
        executed, entry = execute(executor, operation, next_index)
        if entry is not None:
            executor.take(entry)
            executor._is_remembered = False  # the table takes an answer once
        return executed, entry

    return [patch.object(Executor, "execute", take_at_once)]


def _d2_lost_entries_stay() -> list[Patch]:
    return [patch.object(Executor, "start_epoch", lambda _: None)]


def _d8_not_in_the_delta() -> list[Patch]:
    complete = Executor.complete

    def keep(executor: Executor, entries: list[Entry]) -> None:
        complete(executor, entries)
        for entry in entries:
            entry[:] = [write for write in entry if write[0] == KV]

    return [patch.object(Executor, "complete", keep)]


def _d8_not_consulted() -> list[Patch]:
    return [patch.object(Executor, "repeat_of", lambda *_, **__: None)]


def _d8_uncommitted_ones_do_not_count() -> list[Patch]:
    def committed_only(executor: Executor, operation: Operation, *_: int, **__: bool) -> Any:
        return executor.recall(operation) if operation.idempotency_key else None

    return [patch.object(Executor, "repeat_of", committed_only)]


def _d8_refusals_are_forgotten() -> list[Patch]:
    return [patch("datapath.execution.executor._must_remember", lambda error: error is None)]


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
    return [patch.object(PendingAnswer, "wrote_nothing", lambda _: False)]


def _d1_answers_before_the_commit() -> list[Patch]:
    record = Pipeline._record

    def at_once(pipeline: Pipeline, batch: Batch) -> None:
        record(pipeline, batch)
        if batch.entries:
            pipeline._tail.answer_all(batch.answers)

    return [patch.object(Pipeline, "_record", at_once)]


def _d1_answers_when_the_primary_has_it() -> list[Patch]:
    """Only the primary's own disk is waited for: ack=local for everyone."""
    submit = Pipeline.submit

    def local(pipeline: Pipeline, operation: Operation, timeout_ms: float, completion: Any) -> None:
        submit(pipeline, msgspec.structs.replace(operation, ack="local"), timeout_ms, completion)

    return [patch.object(Pipeline, "submit", local)]


def _d1_unknown_is_called_not_applied() -> list[Patch]:
    return [patch("datapath.execution.tail.OperationUnknownError", OperationNotAppliedError)]


def _d1_uncertain_attempts_are_forgotten() -> list[Patch]:
    failed = Attempts.failed

    def forget(attempts: Attempts, problem: DataPathError) -> None:
        attempts.is_uncertain = False
        failed(attempts, problem)

    return [patch.object(Attempts, "failed", forget)]


def _d1_any_refusal_is_proof() -> list[Patch]:
    return [
        patch(
            "datapath.node.router.proves",
            lambda problem: isinstance(problem, OperationNotAppliedError),
        )
    ]


def _d8_repeated_without_a_key() -> list[Patch]:
    def may_repeat(_operation: Operation, problem: DataPathError) -> bool:
        return (
            was_not_carried_out(problem)
            or isinstance(problem, NoAnswerError)
            or getattr(problem, "code", "") == "unknown_outcome"
        )

    return [patch("datapath.node.router.may_repeat", may_repeat)]


def _d8_refused_before_it_is_recognised() -> list[Patch]:
    may_start = Pipeline._may_start

    def refuse_first(pipeline: Pipeline, waiting: Waiting, batch: Batch) -> bool:
        with patch.object(pipeline._executor, "repeat_of", lambda *_, **__: None):
            may = may_start(pipeline, waiting, batch)
        return may and may_start(pipeline, waiting, batch)

    return [patch.object(Pipeline, "_may_start", refuse_first)]


def _d8_refused_whatever_is_known() -> list[Patch]:
    def refuse(_pipeline: Pipeline, waiting: Waiting, error: OperationError) -> None:
        waiting.future.set_exception(error)

    return [patch.object(Pipeline, "_refuse", refuse)]


def _d8_forgotten_ones_are_executed() -> list[Patch]:
    return [patch.object(ClientTable, "refusal", lambda *_: None)]


def _d8_what_is_forgotten_is_not_in_the_delta() -> list[Patch]:
    return [patch.object(ClientTable, "summary", lambda _: [])]


def _t1_half_of_it_is_applied() -> list[Patch]:
    finish = Executor._finish

    def halve(
        executor: Executor, operation: Operation, execution: Execution, value: Any, error: Any
    ) -> Any:
        if operation.method == "txn":
            writes = list(execution.writes.items())
            execution.writes = dict(writes[: (len(writes) + 1) // 2])
        return finish(executor, operation, execution, value, error)

    return [patch.object(Executor, "_finish", halve)]


def _t1_half_of_it_comes_later() -> list[Patch]:
    """A reader between the two finds one half."""
    write = MemoryStore._write

    def in_halves(store: MemoryStore, entries: list[Entry], last_index: int) -> None:
        late: list[Entry] = getattr(store, "late", [])
        write(store, late, store.applied_index)
        kept: list[Entry] = []
        store.late = []  # type: ignore[attr-defined]
        for entry in entries:
            writes = [item for item in entry if item[0] == KV]
            if len(writes) > 1:
                store.late.append(writes[1:])  # type: ignore[attr-defined]
                kept.append([item for item in entry if item not in writes[1:]])
            else:
                kept.append(entry)
        write(store, kept, last_index)

    return [patch.object(MemoryStore, "_write", in_halves)]


def _t1_reads_miss_the_writes_before_them() -> list[Patch]:
    scan = Executor.scan

    def without_own(
        executor: Executor, execution: Execution, keyspace: int, start: bytes, end: bytes | None
    ) -> Any:
        own, execution.writes = execution.writes, {}
        try:
            return scan(executor, execution, keyspace, start, end)
        finally:
            execution.writes = own

    return [patch.object(Executor, "scan", without_own)]


def _t1_a_condition_is_not_looked_at() -> list[Patch]:
    return [patch("cluster.services.kv._holds", lambda *_: True)]


def _t1_both_branches_are_carried_out() -> list[Patch]:
    decode = decode_txn

    def both(request: bytes) -> Any:
        asked = decode(request)
        return msgspec.structs.replace(asked, otherwise=(*asked.otherwise, *asked.then))

    return [patch.object(kv, "decode_txn", both)]


def _t1_failed_comparisons_tell_early() -> list[Patch]:
    add_answers = Tail.add_answers

    def answer(tail: Tail, answers: list[PendingAnswer]) -> None:
        early = [item for item in answers if item.waiting.operation.method == "txn"]
        tail.answer_all(early)
        add_answers(tail, [item for item in answers if item not in early])

    return [patch.object(Tail, "add_answers", answer)]


_MUTANTS = (
    Mutant("T1", "half of a transaction is applied", _t1_half_of_it_is_applied),
    Mutant("T1", "half of a transaction comes later", _t1_half_of_it_comes_later),
    Mutant("T1", "reads inside miss the writes before", _t1_reads_miss_the_writes_before_them),
    Mutant("T1", "a condition is not looked at", _t1_a_condition_is_not_looked_at),
    Mutant("T1", "both branches are carried out", _t1_both_branches_are_carried_out),
    Mutant("T1", "a failed comparison tells early (D2)", _t1_failed_comparisons_tell_early),
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
    Mutant(
        "D1", "an uncertain attempt is forgotten", _d1_uncertain_attempts_are_forgotten,
        unit=ROUTER + "test_once_an_attempt_is_uncertain_no_refusal_makes_it_not_applied",
    ),
    Mutant(
        "D1", "any refusal proves what others did", _d1_any_refusal_is_proof,
        unit=ROUTER + "test_once_an_attempt_is_uncertain_no_refusal_makes_it_not_applied",
    ),
    Mutant("D8", "an unkeyed write is sent again", _d8_repeated_without_a_key),
    Mutant(
        "D8", "refused before it is recognised", _d8_refused_before_it_is_recognised,
        unit=OUTCOMES
        + "test_a_repeat_of_what_is_not_committed_waits_for_it_whatever_it_asks",
    ),
    Mutant(
        "D8", "refused, whatever is known of the key", _d8_refused_whatever_is_known,
        unit=OUTCOMES + "test_a_repeat_is_recognised_where_too_many_wait",
    ),
    Mutant("D8", "a forgotten repeat is executed again", _d8_forgotten_ones_are_executed),
    Mutant(
        "D8", "what is forgotten is not in the delta", _d8_what_is_forgotten_is_not_in_the_delta,
        unit=OUTCOMES
        + "test_the_oldest_answers_are_forgotten_beyond_the_bytes_and_then_refused",
    ),
)  # fmt: skip
CLIENT_MUTANTS = tuple(
    mutant._replace(clients=mutant.scenario is None and not mutant.unit, seed=mutant.seed or 1)
    for mutant in _MUTANTS
)
