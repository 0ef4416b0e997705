"""Operations that come in turns of the event loop one after another become one record."""

from __future__ import annotations

from datapath.execution.pipeline import ENOUGH_OPERATIONS, GATHER_MS
from tests.unit.datapath.execution.test_pipeline_guards import Desk


def _turn(desk: Desk) -> None:
    """One turn of the loop: what it adds comes in the next."""
    turns, desk.turns[:] = desk.turns[:], []
    for callback in turns:
        callback()


def _records(desk: Desk) -> int:
    return desk.pipeline.records_total


def test_one_alone_is_executed_once_a_turn_has_brought_no_other() -> None:
    desk = Desk()
    desk.put("k")
    _turn(desk)
    assert _records(desk) == 0, "others may come with it"
    _turn(desk)
    assert _records(desk) == 1
    assert not desk.turns, "nothing is left to do"


def test_what_comes_turn_after_turn_becomes_one_record() -> None:
    desk = Desk()
    told = []
    for number in range(10):
        told.append(desk.put(f"k{number}"))
        _turn(desk)
    assert _records(desk) == 0
    _turn(desk)
    assert _records(desk) == 1
    desk.commit()
    assert [one.said for one in told] == ["done"] * 10
    desk.put("later")
    _turn(desk)
    assert _records(desk) == 1, "it waits for others as the first did"
    _turn(desk)
    assert _records(desk) == 2


def test_they_wait_for_others_only_so_long() -> None:
    desk = Desk()
    for number in range(GATHER_MS):
        desk.put(f"k{number}")
        _turn(desk)
        desk.lead.now_ms += 1
    assert _records(desk) == 0
    desk.put("one more")
    _turn(desk)
    assert _records(desk) == 1, "turns that always bring some hold nothing up"
    assert len(desk.pipeline.waiting) == 0


def test_where_the_clock_stands_still_many_wait_for_no_others() -> None:
    desk = Desk()
    for number in range(ENOUGH_OPERATIONS - 1):
        desk.put(f"k{number}")
        _turn(desk)
    assert _records(desk) == 0
    desk.put("enough")
    _turn(desk)
    assert _records(desk) == 1


def test_what_was_gathered_and_cannot_be_executed_is_released_when_the_role_is_lost() -> None:
    desk = Desk()
    told = desk.put("k")
    _turn(desk)
    desk.depose()
    assert told.said == "not_applied no_primary"
    _turn(desk)
    _turn(desk)
    assert _records(desk) == 0
    assert not desk.turns
