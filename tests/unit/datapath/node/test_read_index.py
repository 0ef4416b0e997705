"""Which answer a read on a backup may use, how long it waits, and how old its data is."""

from __future__ import annotations

import math

from datapath.node.read_index import QUESTION_TIMEOUT_MS, ReadIndex

LATE_MS = 500.0


def asked(*reads: str, now_ms: float = 10.0) -> tuple[ReadIndex[str], int]:
    """Return a read index with a question under way for reads that wait until `LATE_MS`."""
    index: ReadIndex[str] = ReadIndex()
    for read in reads:
        index.join(read, LATE_MS)
    return index, index.ask(now_ms)


def test_a_read_that_begins_while_a_question_is_under_way_waits_for_the_next() -> None:
    """What was asked before may leave out a write that this reader has seen acknowledged."""
    reads, number = asked("first")
    reads.join("second", LATE_MS)
    assert reads.answered(number, 7)
    assert reads.applied(7) == ["first"]
    number = reads.ask(20.0)
    assert reads.answered(number, 7)
    assert reads.applied(7) == ["second"]


def test_one_question_is_under_way_at_a_time_for_all_that_wait() -> None:
    reads, number = asked("a", "b")
    reads.join("c", LATE_MS)
    assert not reads.ask(11.0)
    assert reads.unanswered(number) == ["a", "b"]
    assert reads.ask(12.0)


def test_nothing_is_asked_for_nobody() -> None:
    reads: ReadIndex[str] = ReadIndex()
    assert not reads.ask(1.0)
    assert not reads.is_under_way(0)
    reads.join("a", LATE_MS)
    number = reads.ask(2.0)
    reads.answered(number, 1)
    assert not reads.ask(3.0)


def test_reads_wait_until_what_was_answered_is_applied() -> None:
    reads, number = asked("a")
    reads.answered(number, 7)
    reads.join("b", LATE_MS)
    reads.answered(reads.ask(20.0), 9)
    assert reads.applied(6) == []
    assert reads.is_behind
    assert reads.applied(8) == ["a"]
    assert reads.applied(9) == ["b"]
    assert not reads.is_behind


def test_an_answer_to_a_question_that_was_given_up_says_nothing_to_the_next() -> None:
    reads, old = asked("impatient")
    reads.join("second", 2 * LATE_MS)
    assert reads.expire(LATE_MS) == ["impatient"]
    assert not reads.is_under_way(old)
    new = reads.ask(LATE_MS)
    assert not reads.answered(old, 3)
    assert reads.unanswered(old) == []
    assert reads.is_under_way(new)
    assert not reads.is_behind


def test_a_read_waits_no_longer_than_it_may_whatever_it_waits_for() -> None:
    reads, number = asked("asking", "answered")
    reads.answered(number, 7)
    reads.join("asked again", 700.0)
    reads.ask(20.0)
    reads.join("waiting", 600.0)
    assert reads.due_ms == LATE_MS
    assert reads.expire(LATE_MS - 1) == []
    assert reads.expire(LATE_MS) == ["asking", "answered"]
    assert not reads.is_behind
    assert reads.expire(600.0) == ["waiting"]
    assert reads.expire(700.0) == ["asked again"]
    assert reads.due_ms == math.inf


def test_a_question_without_an_answer_is_asked_anew_for_who_has_time() -> None:
    reads: ReadIndex[str] = ReadIndex()
    reads.join("patient", 10_000.0)
    old = reads.ask(10.0)
    assert reads.due_ms == 10.0 + QUESTION_TIMEOUT_MS
    assert reads.expire(reads.due_ms - 1) == []
    assert reads.is_under_way(old)
    assert reads.expire(reads.due_ms) == []
    new = reads.ask(2000.0)
    assert not reads.answered(old, 1)
    assert reads.answered(new, 2)
    assert reads.applied(2) == ["patient"]


def test_when_no_answer_will_come_everybody_is_told() -> None:
    reads, number = asked("answered")
    reads.answered(number, 7)
    reads.join("a", LATE_MS)
    reads.ask(20.0)
    reads.join("b", LATE_MS)
    assert reads.leave() == ["answered", "a", "b"]
    assert not reads.ask(30.0)
    assert reads.due_ms == math.inf


def test_the_age_of_what_is_applied_counts_from_the_question() -> None:
    """What the primary commits between the question and its answer need not be here."""
    reads, number = asked("a", now_ms=1000.0)
    assert reads.age_ms(1000.0) == math.inf
    reads.answered(number, 7)
    assert reads.age_ms(1000.0) == math.inf
    reads.applied(7)
    assert reads.age_ms(1300.0) == 300.0


def test_an_answer_that_is_applied_late_makes_nothing_older() -> None:
    reads, number = asked("a", now_ms=1000.0)
    reads.answered(number, 9)
    reads.join("b", 3000.0)
    reads.answered(reads.ask(2000.0), 7)
    reads.applied(7)
    reads.applied(9)
    assert reads.age_ms(2100.0) == 100.0
