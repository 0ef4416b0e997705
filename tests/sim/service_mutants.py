"""Mutants that only tests with real disks and files notice: of E5 and D9, and of early answers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

from datapath import accepted as accepted_module
from datapath.accepted import Accepted
from datapath.disk import DiskWorker
from datapath.log import Log
from datapath.pipeline import Pipeline
from datapath.records import Record
from tests.sim.mutant import Mutant, Patch

ENGINE = "tests/integration/engine/test_visibility.py::"
STORAGE = "tests/unit/storage/"


def _d2_early_answers_tell_of_others() -> list[Patch]:
    answer_local = Pipeline.answer_local

    def tell(pipeline: Pipeline) -> None:
        for answer in pipeline._local_acks:
            answer.executed.seen_index = 0
        answer_local(pipeline)

    return [patch.object(Pipeline, "answer_local", tell)]


def _d8_the_payload_is_not_compared() -> list[Patch]:
    return [patch("datapath.executor.fingerprint", lambda _: b"")]


def _d9_reported_before_the_sync() -> list[Patch]:
    append = Log.append

    def write(log: Log, records: Sequence[Record], *, durable: bool = False) -> None:
        del durable
        append(log, records)

    return [patch.object(Log, "append", write)]


def _d9_a_failed_log_is_tried_again() -> list[Patch]:
    return [patch.object(Log, "_check_usable", lambda _: None)]


def _d9_the_disk_goes_on_after_a_failure() -> list[Patch]:
    run = DiskWorker._run

    def go_on(worker: DiskWorker) -> None:
        run(worker)
        while not worker._closed:
            run(worker)

    return [patch.object(DiskWorker, "_run", go_on)]


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


SERVICE_MUTANTS = (
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
