"""Which answer a read on a backup may use, and how old it says that its data is."""

from __future__ import annotations

import math

from datapath.node.read_index import ReadIndex


def test_a_read_that_begins_while_a_question_is_under_way_waits_for_the_next() -> None:
    """What was asked before may leave out a write that this reader has seen acknowledged."""
    reads: ReadIndex[str] = ReadIndex()
    reads.join("first")
    assert reads.ask(10.0)
    reads.join("second")
    assert reads.settle() == (["first"], 10.0)
    assert reads.ask(20.0)
    assert reads.settle() == (["second"], 20.0)


def test_one_question_is_under_way_at_a_time_for_all_that_wait() -> None:
    reads: ReadIndex[str] = ReadIndex()
    reads.join("a")
    reads.join("b")
    assert reads.ask(10.0)
    reads.join("c")
    assert not reads.ask(11.0)
    assert reads.settle() == (["a", "b"], 10.0)


def test_nothing_is_asked_for_nobody() -> None:
    reads: ReadIndex[str] = ReadIndex()
    assert not reads.ask(1.0)
    reads.join("a")
    assert reads.ask(2.0)
    reads.settle()
    assert not reads.ask(3.0)


def test_when_no_answer_will_come_everybody_is_told() -> None:
    reads: ReadIndex[str] = ReadIndex()
    reads.join("a")
    reads.ask(1.0)
    reads.join("b")
    assert reads.leave() == ["a", "b"]
    assert not reads.ask(2.0)


def test_the_age_of_what_is_applied_counts_from_the_question() -> None:
    """What the primary commits between the question and its answer need not be here."""
    reads: ReadIndex[str] = ReadIndex()
    assert reads.age_ms(1000.0) == math.inf
    reads.join("a")
    reads.ask(1000.0)
    _, asked_ms = reads.settle()
    reads.applied(asked_ms)
    assert reads.age_ms(1300.0) == 300.0


def test_an_answer_that_is_applied_late_makes_nothing_older() -> None:
    reads: ReadIndex[str] = ReadIndex()
    reads.applied(2000.0)
    reads.applied(1000.0)
    assert reads.age_ms(2100.0) == 100.0
