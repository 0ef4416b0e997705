"""What an archiver does next, and what may be told of the archive (rules B3 and B4)."""

from __future__ import annotations

import pytest

from cluster.archive.catalog import ArchivePosition, Base, Catalog, PieceName
from cluster.archive.plan import ArchivePlan, ArchiveStep, Gap, is_same_history

INTERVAL_S = 100.0


def base(revision: int, time_s: float = 0.0) -> Base:
    return Base(revision, 1, int(time_s * 1000))


def catalog(*found: Base | tuple[int, int]) -> Catalog:
    """Bases, and pieces from one entry to another, all of epoch 1."""
    return Catalog(
        [item.name if isinstance(item, Base) else PieceName(*item, 1).name for item in found]
    )


def at(entry: int) -> ArchivePosition:
    return ArchivePosition(entry, 1)


def looked_up(*found: Base | tuple[int, int], target: int, held: bool = True) -> ArchivePlan:
    plan = ArchivePlan(INTERVAL_S)
    plan.begin_round(target)
    plan.looked_up(1, catalog(*found), lambda _: held)
    return plan


def next_of(plan: ArchivePlan, now_s: float = 0.0) -> ArchiveStep:
    return plan.next(1, now_s)


def test_an_empty_archive_begins_with_a_base_and_nothing_is_told_before_that_is_there() -> None:
    plan = ArchivePlan(INTERVAL_S)
    plan.begin_round(10)
    assert next_of(plan) is ArchiveStep.LOOK_UP
    assert plan.looked_up(1, catalog(), lambda _: True) == []
    assert next_of(plan) is ArchiveStep.BASE
    plan.base_begun(base(10))
    assert next_of(plan) is ArchiveStep.REST
    plan.begin_round(12)
    assert next_of(plan) is ArchiveStep.PIECE
    plan.piece_put(at(12))
    plan.failed()  # of a step meanwhile: what the base is put with is known
    assert (plan.position, plan.told) == (at(12), None)
    assert next_of(plan) is ArchiveStep.REST
    plan.base_ended(done=True)
    assert plan.position == at(12)
    assert next_of(plan) is ArchiveStep.LOOK_UP  # another may have begun too
    plan.looked_up(1, catalog(base(10), (11, 12)), lambda _: True)
    assert plan.told == 12


def test_pieces_whose_base_could_not_be_put_are_of_no_use() -> None:
    plan = looked_up(target=10)
    plan.base_begun(base(10, 50))
    plan.base_ended(done=False)
    assert (plan.position, plan.told) == (None, None)
    assert next_of(plan) is ArchiveStep.LOOK_UP
    plan.looked_up(1, catalog(), lambda _: True)
    assert next_of(plan) is ArchiveStep.BASE


def test_pieces_follow_what_is_there() -> None:
    plan = looked_up(base(10), (11, 12), target=14)
    assert (plan.position, plan.told) == (at(12), 12)
    assert next_of(plan) is ArchiveStep.PIECE
    plan.piece_put(at(13))
    assert plan.told == 13
    assert next_of(plan) is ArchiveStep.PIECE
    plan.piece_put(at(14))
    assert next_of(plan) is ArchiveStep.REST


@pytest.mark.parametrize("how", ["another epoch", "retired", "failed"])
def test_the_place_is_looked_up_again_where_others_may_have_archived(how: str) -> None:
    plan = looked_up(base(10), target=14)
    assert next_of(plan) is ArchiveStep.PIECE
    if how == "another epoch":
        assert plan.next(2, 0.0) is ArchiveStep.LOOK_UP
        return
    plan.retire() if how == "retired" else plan.failed()
    assert next_of(plan) is ArchiveStep.LOOK_UP


def test_a_base_is_due_after_the_interval_where_there_is_news() -> None:
    plan = looked_up(base(10), (11, 12), target=13)
    assert next_of(plan, INTERVAL_S - 1) is ArchiveStep.PIECE
    assert next_of(plan, INTERVAL_S) is ArchiveStep.BASE
    plan.base_begun(base(13, INTERVAL_S))
    assert plan.position == at(12)
    assert next_of(plan, INTERVAL_S) is ArchiveStep.PIECE  # one at a time
    plan.base_ended(done=False)
    assert next_of(plan, INTERVAL_S) is ArchiveStep.BASE
    plan.base_begun(base(13, INTERVAL_S))
    plan.base_ended(done=True)
    plan.piece_put(at(13))
    assert next_of(plan, 2 * INTERVAL_S) is ArchiveStep.REST  # nothing has come since
    plan.begin_round(14)
    assert next_of(plan, 2 * INTERVAL_S - 1) is ArchiveStep.PIECE
    assert next_of(plan, 2 * INTERVAL_S) is ArchiveStep.BASE


def test_an_older_base_that_ends_late_puts_the_next_one_off_by_nothing() -> None:
    plan = looked_up(base(10), (11, 12), target=15)
    plan.base_begun(base(12, 500))
    plan.failed()
    plan.looked_up(1, catalog(base(10), (11, 14), base(14, 20)), lambda _: True)
    plan.base_ended(done=True)
    assert next_of(plan, 20 + INTERVAL_S) is ArchiveStep.BASE


def test_an_archive_that_has_gone_meanwhile_waits_for_the_base_that_is_under_way() -> None:
    plan = looked_up(base(10), (11, 12), target=15)
    plan.base_begun(base(15))
    plan.failed()
    plan.looked_up(1, catalog(), lambda _: True)
    assert next_of(plan) is ArchiveStep.REST
    plan.base_ended(done=True)
    assert next_of(plan) is ArchiveStep.LOOK_UP


def test_a_gap_before_a_base_is_filled_first() -> None:
    plan = looked_up(base(10), (11, 12), base(20), target=30)
    assert (plan.position, plan.told) == (at(12), 12)
    assert next_of(plan, 10 * INTERVAL_S) is ArchiveStep.PIECE  # one base is ahead of them
    plan.piece_put(at(15))
    assert next_of(plan) is ArchiveStep.PIECE
    plan.piece_put(at(20))
    assert next_of(plan) is ArchiveStep.LOOK_UP


def test_a_base_that_follows_the_pieces_leaves_no_gap() -> None:
    plan = ArchivePlan(INTERVAL_S)
    assert plan.looked_up(1, catalog(base(10), (11, 12), base(13)), lambda _: False) == []
    assert plan.position == at(13)


def test_a_gap_that_the_log_does_not_hold_is_told() -> None:
    plan = ArchivePlan(INTERVAL_S)
    found = catalog(base(10), (11, 12), base(20))
    assert plan.looked_up(1, found, lambda _: False) == [Gap(13, 19)]
    assert (plan.position, plan.told) == (at(20), 20)


def test_a_gap_that_the_log_turns_out_to_lack_is_told_and_not_tried_again() -> None:
    found = (base(10), (11, 12), base(20))
    plan = looked_up(*found, target=30)
    assert not plan.log_lacks()
    assert next_of(plan) is ArchiveStep.LOOK_UP
    assert plan.looked_up(1, catalog(*found), lambda _: True) == [Gap(13, 19)]
    assert plan.position == at(20)


def test_what_the_log_lacks_after_the_archives_end_makes_it_begin_anew() -> None:
    plan = looked_up(base(10), (11, 12), target=40)
    assert plan.log_lacks()
    assert plan.begun_anew(base(40)) == Gap(13, 39)
    assert (plan.position, plan.told) == (at(40), 12)
    plan.piece_put(at(41))
    assert plan.told == 12


@pytest.mark.parametrize(
    ("entry", "commit_index", "here", "expected"),
    [
        (10, 20, 3, True),
        (10, 20, 2, False),
        (10, 20, 4, False),
        (10, 20, None, True),  # the log does not go back so far
        (20, 10, 2, True),  # the archive is ahead: what follows is of this epoch or a later one
        (20, 10, 3, True),
        (20, 10, 4, False),
    ],
)
def test_the_archive_is_of_this_history(
    entry: int, commit_index: int, here: int | None, expected: bool
) -> None:
    def epoch_at(index: int) -> int | None:
        assert index == min(entry, commit_index)
        return here

    assert is_same_history(ArchivePosition(entry, 3), commit_index, epoch_at) is expected
