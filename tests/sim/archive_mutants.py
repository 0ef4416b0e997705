"""Mutants of the archive: what it may hold, and which gaps are told (rules B3 and B4)."""

from __future__ import annotations

from collections.abc import Callable
from unittest.mock import patch

from cluster.archive import archiver, plan
from cluster.archive.catalog import Catalog
from cluster.archive.plan import ArchivePlan, Gap
from datapath.node import committed_log
from datapath.records import Record
from tests.sim.mutant import Mutant, Patch

UNIT = "tests/unit/cluster/archive/test_archiver.py::"


def _what_has_not_committed() -> list[Patch]:
    def all_of(records: list[Record], _: int) -> list[Record]:
        return records

    return [patch.object(committed_log, "committed", all_of)]


def _another_history() -> list[Patch]:
    return [patch.object(archiver, "is_same_history", lambda *_: True)]


def _the_same_epochs_again() -> list[Patch]:
    return [patch.object(archiver, "have_same_entries", lambda *_: True)]


def _told_before_the_base_is_there() -> list[Patch]:
    def tell(self: ArchivePlan) -> None:
        if self.position is not None:
            self.told = self.position.entry

    return [patch.object(ArchivePlan, "_tell", tell)]


def _on_from_the_newest_base() -> list[Patch]:
    looked_up = ArchivePlan.looked_up

    def newest(
        self: ArchivePlan, epoch: int, catalog: Catalog, is_held: Callable[[int], bool]
    ) -> list[Gap]:
        with patch.object(plan, "may_fill", lambda *_: False):
            looked_up(self, epoch, catalog, is_held)
        return []

    return [patch.object(ArchivePlan, "looked_up", newest)]


def _no_gap_is_filled() -> list[Patch]:
    return [patch.object(plan, "may_fill", lambda *_: False)]


ARCHIVE_MUTANTS = (
    Mutant("B3", "what has not committed is archived", _what_has_not_committed),
    Mutant("B3", "another history is added to", _another_history,
           unit=UNIT + "test_another_history_of_the_same_cluster_is_not_mixed_in"),
    Mutant("B3", "another history with the same epochs is added to", _the_same_epochs_again,
           unit=UNIT + "test_another_history_with_the_same_epochs_is_not_mixed_in"),
    Mutant("B4", "pieces are told before their base is there", _told_before_the_base_is_there),
    Mutant("B4", "the archive goes on from the newest base, whatever it lacks before",
           _on_from_the_newest_base),
    Mutant("B4", "a gap that the log could close is left", _no_gap_is_filled,
           unit=UNIT + "test_a_base_that_was_there_before_its_pieces_leaves_no_gap"),
)  # fmt: skip
