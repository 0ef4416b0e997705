"""Mutants of a recovery: which data it takes, what it says is missing, where the new begins."""

from __future__ import annotations

from collections.abc import Iterator
from unittest.mock import patch

from datapath.errors import BackupDamagedError
from datapath.node.survivors import Survivor
from datapath.storage.backup_format import BackupEnd, BackupReader
from datapath.storage.founding import EPOCH_MARGIN, REVISION_MARGIN
from tests.sim.mutant import Mutant, Patch

SURVIVORS = "tests/unit/datapath/node/test_survivors.py::"
BACKUP = "tests/unit/datapath/storage/test_backup.py::"
FOUNDING = "tests/unit/datapath/storage/test_founding.py::"


def _the_longest_log_is_taken() -> list[Patch]:
    def goes_further(one: Survivor, other: Survivor) -> bool:
        return one.log.last_index > other.log.last_index

    return [patch("datapath.node.survivors.goes_further", goes_further)]


def _the_last_epoch_is_enough() -> list[Patch]:
    def goes_further(one: Survivor, other: Survivor) -> bool:
        return one.log.last_epoch > other.log.last_epoch

    return [patch("datapath.node.survivors.goes_further", goes_further)]


def _histories_may_differ() -> list[Patch]:
    return [patch("datapath.node.survivors.holds_committed_of", lambda *_: True)]


def _any_node_is_a_majority() -> list[Patch]:
    return [patch("datapath.node.survivors.has_majority", lambda *_: True)]


def _everybody_was_in_sync() -> list[Patch]:
    return [patch("datapath.node.survivors.is_in_sync", lambda *_: True)]


def _nothing_is_replaced() -> list[Patch]:
    return [patch("datapath.node.survivors.has_replaced", lambda *_: False)]


def _nothing_may_follow() -> list[Patch]:
    return [patch("datapath.node.survivors.may_follow", lambda *_: False)]


def _nothing_is_beyond() -> list[Patch]:
    return [patch("datapath.node.survivors.is_beyond", lambda *_: False)]


def _every_end_is_whole() -> list[Patch]:
    return [patch("datapath.node.survivors.has_whole_end", lambda *_: True)]


def _there_is_no_margin() -> list[Patch]:
    def continue_after(index: int, epoch: int, age_s: float = 0.0) -> tuple[int, int]:
        del age_s
        return index + 1, epoch + 1

    return [patch("datapath.storage.founding.continue_after", continue_after)]


def _the_margin_is_fixed() -> list[Patch]:
    def continue_after(index: int, epoch: int, age_s: float = 0.0) -> tuple[int, int]:
        del age_s
        return index + REVISION_MARGIN + 1, epoch + EPOCH_MARGIN

    return [patch("datapath.storage.founding.continue_after", continue_after)]


def _what_the_disk_holds_is_not_looked_at() -> list[Patch]:
    return [patch("datapath.storage.backup.check_read_back", _accept)]


def _accept(*_: object, **__: object) -> None:
    """Accept any store."""


def _a_file_may_end_after_any_block() -> list[Patch]:
    def chunks(self: BackupReader) -> Iterator[bytes]:
        found = real_chunks(self)
        while True:
            try:
                yield next(found)
            except (StopIteration, BackupDamagedError):
                self.end = self.end or BackupEnd(items=0, digest="")
                return

    real_chunks = BackupReader.chunks
    return [patch.object(BackupReader, "chunks", chunks)]


def _logs_are_not_compared() -> list[Patch]:
    return [patch("datapath.node.survivors.must_be_alike", lambda *_: range(0))]


RECOVERY_MUTANTS = (
    Mutant(
        "B1",
        "a backup may be cut off after any block",
        _a_file_may_end_after_any_block,
        unit=BACKUP + "test_a_backup_that_is_cut_at_any_byte_is_none",
    ),
    Mutant(
        "B1",
        "what the disk holds after a restore is not compared",
        _what_the_disk_holds_is_not_looked_at,
        unit=BACKUP + "test_what_the_disk_holds_is_compared_with_the_backup",
    ),
    Mutant(
        "B2",
        "a second restore of a backup begins where the first did",
        _the_margin_is_fixed,
        unit=BACKUP
        + "test_a_second_restore_of_a_backup_begins_above_all_that_the_first_has_given_out",
    ),
    Mutant("R1", "the longest log is taken", _the_longest_log_is_taken),
    Mutant("R1", "any log of the last epoch is taken", _the_last_epoch_is_enough),
    Mutant(
        "R1",
        "two histories become one",
        _histories_may_differ,
        unit=SURVIVORS + "test_what_another_has_committed_must_be_there",
    ),
    Mutant(
        "R1",
        "logs of one epoch are not compared",
        _logs_are_not_compared,
        unit=SURVIVORS + "test_what_one_epoch_wrote_must_be_the_same_in_all",
    ),
    Mutant(
        "R1",
        "nothing is said of entries that others replaced",
        _nothing_is_replaced,
        unit=SURVIVORS + "test_what_a_later_primary_may_have_acknowledged_is_told",
    ),
    Mutant("R2", "a lost majority cannot have agreed", _any_node_is_a_majority),
    Mutant("R2", "whoever is left was in sync", _everybody_was_in_sync),
    Mutant("R2", "what is only in a journal was not agreed", _nothing_may_follow),
    Mutant(
        "R2",
        "what others remember proves no loss",
        _nothing_is_beyond,
        unit=SURVIVORS + "test_what_a_witness_remembers_is_known_to_be_missing",
    ),
    Mutant(
        "R2",
        "a torn end was not acknowledged",
        _every_end_is_whole,
        unit=SURVIVORS + "test_a_torn_end_may_have_been_acknowledged",
    ),
    Mutant(
        "B2",
        "revisions go on where the kept state ends",
        _there_is_no_margin,
        unit=FOUNDING
        + "test_the_new_cluster_goes_on_above_all_that_the_old_one_may_have_given_out",
    ),
)
