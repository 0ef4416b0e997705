"""When entries committed, as a node notes it."""

from __future__ import annotations

from cluster.archive.marks import MAX_MARKS, CommitTimes
from cluster.archive.piece import Mark


def test_marks_rise_also_where_the_clock_goes_back() -> None:
    marks = CommitTimes()
    for index, time_ms in ((3, 100), (3, 200), (5, 90), (9, 300)):
        marks.note(index, time_ms)
    assert marks.within(1, 9, 400) == (Mark(3, 100), Mark(5, 100), Mark(9, 300))


def test_an_entry_between_two_marks_has_the_time_of_the_later_one() -> None:
    marks = CommitTimes()
    marks.note(3, 100)
    marks.note(9, 300)
    assert marks.within(1, 5, 400) == (Mark(3, 100), Mark(5, 300))
    assert marks.within(4, 5, 400) == (Mark(5, 300),)
    assert marks.within(9, 12, 400) == (Mark(9, 300), Mark(12, 400))


def test_what_is_archived_is_forgotten_and_the_lag_counts_from_the_rest() -> None:
    marks = CommitTimes()
    marks.note(3, 100)
    marks.note(9, 300)
    assert marks.lag_ms(1000) == 900
    marks.archived(4)
    assert marks.lag_ms(1000) == 700
    marks.archived(9)
    assert marks.lag_ms(1000) == 0


def test_what_was_archived_before_it_was_noted_does_not_lag() -> None:
    marks = CommitTimes()
    marks.archived(7)
    marks.note(7, 100)
    assert marks.lag_ms(1000) == 0
    marks.note(8, 300)
    assert marks.lag_ms(1000) == 700


def test_marks_get_coarser_where_nothing_can_be_archived() -> None:
    marks = CommitTimes()
    for number in range(1, 2 * MAX_MARKS):
        marks.note(number, number)
    found = marks.within(1, 2 * MAX_MARKS, 0)
    assert MAX_MARKS // 2 <= len(found) <= MAX_MARKS + 1
    assert found[-2].revision == 2 * MAX_MARKS - 1
