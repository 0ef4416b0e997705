"""Mutants of the shell around the replica: only tests with real disks, files or links notice."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

from datapath.clock import clock_ms
from datapath.execution.tail import Tail
from datapath.node.interpreter import Interpreter
from datapath.node.read_index import ReadIndex
from datapath.node.retention import LogRetention
from datapath.protocol.replica import Replica
from datapath.records import Record
from datapath.storage import accepted as accepted_module
from datapath.storage.accepted import Accepted
from datapath.storage.log import Log
from datapath.storage.log_writer import LogWriter
from datapath.storage.store import Store
from datapath.transport.caller import Caller
from datapath.transport.calls import Call, NoAnswerError, NotSentError, Return
from tests.sim.mutant import Mutant, Patch

ENGINE = "tests/integration/datapath/node/test_visibility.py::"
READS = "tests/integration/datapath/node/test_reads_on_backups.py::"
STORAGE = "tests/unit/datapath/storage/"
NODE = "tests/unit/datapath/node/"
REPLICA = "tests/unit/datapath/node/"


def _d2_early_answers_tell_of_others() -> list[Patch]:
    answer_local = Tail.answer_local

    def tell(tail: Tail) -> None:
        for answer in tail.local_acks:
            answer.executed.seen_index = 0
        answer_local(tail)

    return [patch.object(Tail, "answer_local", tell)]


def _d8_the_payload_is_not_compared() -> list[Patch]:
    return [patch("datapath.execution.executor.fingerprint", lambda _: b"")]


def _d9_reported_before_the_sync() -> list[Patch]:
    append = Log.append

    def write(log: Log, records: Sequence[Record], *, durable: bool = False) -> None:
        del durable
        append(log, records)

    return [patch.object(Log, "append", write)]


def _d9_a_failed_log_is_tried_again() -> list[Patch]:
    return [patch.object(Log, "_check_usable", lambda _: None)]


def _d9_the_disk_goes_on_after_a_failure() -> list[Patch]:
    run = LogWriter._run

    def go_on(worker: LogWriter) -> None:
        run(worker)
        while not worker._closed:
            run(worker)

    return [patch.object(LogWriter, "_run", go_on)]


def _e5_the_file_takes_a_second_primary() -> list[Patch]:
    def record(accepted: Accepted, epoch: int, primary: str) -> None:
        accepted._write((accepted._sequence + 1, epoch, accepted._marks, primary))

    return [patch.object(Accepted, "record", record)]


def _e5_the_file_is_not_synced() -> list[Patch]:
    def write(accepted: Accepted, state: Any) -> None:
        size_bytes = accepted_module._SLOT_SIZE_BYTES
        for offset in (size_bytes - accepted._newest, accepted._newest):
            os.pwrite(accepted._descriptor, accepted_module._encode(state), offset)
        accepted._sequence, accepted._epoch, accepted._marks, accepted._primary = state

    return [patch.object(Accepted, "_write", write)]


def _d1_a_snapshot_in_sync() -> list[Patch]:
    refusal = Replica.snapshot_refusal

    def forget_the_view(replica: Replica, peer: str, index: int, sender_epoch: int) -> str:
        problem = refusal(replica, peer, index, sender_epoch)
        return "" if "in-sync set" in problem else problem

    return [patch.object(Replica, "snapshot_refusal", forget_the_view)]


def _d1_old_snapshots_are_taken() -> list[Patch]:
    refusal = Replica.snapshot_refusal

    def refuse(replica: Replica, peer: str, index: int, sender_epoch: int) -> str:
        problem = refusal(replica, peer, index, sender_epoch)
        return "" if "already" in problem else problem

    def start_install(_replica: Replica, _index: int, _epoch: int) -> str:
        return ""

    return [
        patch.object(Replica, "snapshot_refusal", refuse),
        patch.object(Replica, "start_install", start_install),
    ]


def _d2_the_whole_log_is_committed() -> list[Patch]:
    return [patch("datapath.node.recovery.committed_index", lambda log, _store: log.last_index)]


def _d3_snapshots_of_anybody() -> list[Patch]:
    refusal = Replica.snapshot_refusal

    def believe(replica: Replica, _peer: str, index: int, _sender_epoch: int) -> str:
        state = replica.state
        return refusal(replica, state.accepted_primary, index, state.epoch)

    return [patch.object(Replica, "snapshot_refusal", believe)]


def _d4_reads_join_an_older_question() -> list[Patch]:
    def join(reads: ReadIndex[Any], read: Any, deadline_ms: float) -> None:
        (reads._asking or reads.waiting).append((deadline_ms, read))

    return [patch.object(ReadIndex, "join", join)]


def _d4_a_read_index_without_a_lease() -> list[Patch]:
    def read_index(interpreter: Interpreter) -> tuple[int, int]:
        return interpreter.replica.state.epoch, interpreter.replica.state.commit_index

    return [patch.object(Interpreter, "read_index", read_index)]


def _d4_staleness_counts_from_the_answer() -> list[Patch]:
    applied = ReadIndex.applied

    def now(reads: ReadIndex[Any], index: int) -> list[Any]:
        ready = applied(reads, index)
        if ready:
            reads._fresh_ms = max(reads._fresh_ms, clock_ms())
        return ready

    return [patch.object(ReadIndex, "applied", now)]


def _d4_late_answers_are_taken() -> list[Patch]:
    return [patch.object(ReadIndex, "is_under_way", lambda reads, _number: reads.is_asking)]


def _d8_no_answer_means_not_sent() -> list[Patch]:
    call = Caller.call

    async def forget(caller: Caller, peer: str, body: Call, timeout_ms: float) -> Return:
        try:
            return await call(caller, peer, body, timeout_ms)
        except NoAnswerError as error:
            raise NotSentError(str(error)) from error

    return [patch.object(Caller, "call", forget)]


def _d9_the_log_is_trimmed_before_the_flush() -> list[Patch]:
    return [patch.object(Store, "durable_index", property(lambda store: store.applied_index))]


def _d7_a_snapshot_holds_no_log() -> list[Patch]:
    return [patch.object(LogRetention, "begin_snapshot", lambda *_: None)]


SERVICE_MUTANTS = (
    Mutant("D7", "the log after a snapshot on its way goes", _d7_a_snapshot_holds_no_log),
    Mutant(
        "D1", "a replica in sync takes a snapshot", _d1_a_snapshot_in_sync,
        unit=REPLICA + "test_snapshot_refusals.py::test_a_replica_in_sync_takes_none",
    ),
    Mutant(
        "D1", "a snapshot of what is committed is taken", _d1_old_snapshots_are_taken,
        unit=REPLICA + "test_snapshot_refusals.py"
        "::test_what_is_committed_here_is_not_replaced_by_what_is_older",
    ),
    Mutant(
        "D2", "recovery takes the whole log for committed", _d2_the_whole_log_is_committed,
        unit=NODE + "test_replica_disk.py"
        "::test_recovery_applies_what_is_known_to_be_committed_and_nothing_else",
    ),
    Mutant(
        "D3", "a snapshot of an old primary is taken", _d3_snapshots_of_anybody,
        unit=REPLICA + "test_snapshot_refusals.py"
        "::test_a_primary_of_an_older_epoch_is_refused",
    ),
    Mutant(
        "D4", "reads join an older question", _d4_reads_join_an_older_question, clients=True,
    ),
    Mutant(
        "D4", "a read index needs no lease", _d4_a_read_index_without_a_lease, clients=True,
    ),
    Mutant(
        "D4", "an answer to a question given up is taken", _d4_late_answers_are_taken,
        unit=NODE + "test_read_index.py"
        "::test_an_answer_to_a_question_that_was_given_up_says_nothing_to_the_next",
    ),
    Mutant(
        "D4", "staleness counts from the answer", _d4_staleness_counts_from_the_answer,
        unit=READS + "test_the_staleness_of_a_backup_counts_from_its_question",
    ),
    Mutant(
        "D8", "a write without a key is sent again", _d8_no_answer_means_not_sent,
        unit="tests/integration/datapath/node/test_sent_again.py"
        "::test_a_write_without_a_key_is_sent_once_and_its_outcome_unknown",
    ),
    Mutant(
        "D9", "the log goes before its store is flushed", _d9_the_log_is_trimmed_before_the_flush,
        unit=NODE + "test_replica_disk.py"
        "::test_what_the_store_has_not_on_disk_stays_in_the_log",
    ),
    Mutant(
        "D2", "an early answer tells of others' writes", _d2_early_answers_tell_of_others,
        unit=ENGINE + "test_d2_an_early_answer_waits_for_what_shines_through_it",
    ),
    Mutant(
        "D8", "another payload gets the first answer", _d8_the_payload_is_not_compared,
        unit=ENGINE + "test_d8_a_repeat_gets_the_first_answer_also_from_the_next_primary",
    ),
    Mutant(
        "D9", "reported durable before the sync", _d9_reported_before_the_sync,
        unit=STORAGE + "test_log_model.py"
        "::test_a_power_cut_loses_nothing_synced_and_makes_nothing_up",
    ),
    Mutant(
        "D9", "after a failed sync the log is used on", _d9_a_failed_log_is_tried_again,
        unit=STORAGE + "test_log_use.py"
        "::test_after_a_failed_write_or_sync_the_log_refuses_all_change",
    ),
    Mutant(
        "D9", "after a failure the disk goes on", _d9_the_disk_goes_on_after_a_failure,
        unit=STORAGE + "test_disk.py::test_after_a_failure_nothing_more_is_done_or_acknowledged",
    ),
    Mutant(
        "E5", "the file takes a second primary", _e5_the_file_takes_a_second_primary,
        unit=STORAGE + "test_accepted.py::test_a_second_primary_or_a_lower_epoch_is_refused",
    ),
    Mutant(
        "E5", "the file is not synced", _e5_the_file_is_not_synced,
        unit=STORAGE + "test_accepted.py::test_both_slots_are_synced_before_the_call_returns",
    ),
)  # fmt: skip
