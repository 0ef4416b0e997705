"""Asking before standing: when a majority has agreed, and when an orphan deserves help."""

from __future__ import annotations

from election.pysyncobj_adapter.pre_vote import ORPHAN_PATIENCE_S, Ballot


def test_a_majority_with_this_member_wins_once() -> None:
    ballot = Ballot()
    number = ballot.start()
    assert not ballot.on_answer(number, "n2", granted=True, group_size=5)
    assert not ballot.on_answer(number, "n2", granted=True, group_size=5)
    assert not ballot.on_answer(number, "n3", granted=False, group_size=5)
    assert ballot.on_answer(number, "n4", granted=True, group_size=5)
    assert ballot.won
    assert not ballot.on_answer(number, "n5", granted=True, group_size=5)


def test_answers_to_an_earlier_round_count_for_nothing() -> None:
    ballot = Ballot()
    earlier = ballot.start()
    ballot.start()
    assert not ballot.on_answer(earlier, "n2", granted=True, group_size=3)


def test_an_orphan_that_keeps_asking_is_helped_after_a_while_and_not_again_soon() -> None:
    ballot = Ballot()
    asked_at = [step * 0.1 for step in range(40)]
    helped_at = [now for now in asked_at if ballot.on_refused_orphan("n3", now)]
    assert len(helped_at) == 1
    assert ORPHAN_PATIENCE_S <= helped_at[0] < ORPHAN_PATIENCE_S + 0.2


def test_a_member_that_asks_now_and_then_is_no_orphan() -> None:
    ballot = Ballot()
    assert not any(ballot.on_refused_orphan("n3", step * 0.8) for step in range(20))
