"""What of the commits that PostgreSQL has acknowledged is wrong, and which faults are drawn."""

from __future__ import annotations

import itertools
from collections import Counter
from random import Random

from bench.patroni.faults import FAULTS, OTHERS_EVERY, schedule
from bench.patroni.writers import Commit, longest_gap_s, of_a_second_primary

FIRST = Commit(0, "pg1", 1, 100, 110)
PROMOTED = Commit(1, "pg2", 2, 300, 310)


def test_commits_before_and_after_a_promotion_are_those_of_one_primary() -> None:
    waited = Commit(2, "pg1", 1, 120, 330)  # begun before the promotion
    assert of_a_second_primary([FIRST, PROMOTED, waited]) == []


def test_a_commit_begun_on_an_old_timeline_after_the_promotion_is_a_second_primarys() -> None:
    late = Commit(2, "pg1", 1, 311, 320)
    assert of_a_second_primary([late, PROMOTED, FIRST]) == [late]


def test_two_servers_on_one_timeline_are_two_primaries() -> None:
    beside = Commit(3, "pg2", 1, 90, 120)
    assert of_a_second_primary([FIRST, beside]) == [beside]


def test_the_longest_gap_is_between_acknowledgements_of_either_server() -> None:
    commits = [FIRST, PROMOTED, Commit(2, "pg1", 3, 200, 400)]
    assert longest_gap_s(commits) == 200 / 1e9
    assert longest_gap_s([FIRST]) == 0


def test_each_cycle_has_every_fault_that_changes_the_leader_and_each_other_comes_in_turn() -> None:
    moving = sum(fault.moves for fault in FAULTS)
    others = len(FAULTS) - moving
    drawn = list(
        itertools.islice(schedule(list(FAULTS), Random(1)), OTHERS_EVERY * moving + others)
    )
    counts = Counter(fault.name for fault, _ in drawn)
    assert counts == {fault.name: OTHERS_EVERY if fault.moves else 1 for fault in FAULTS}
    for fault in FAULTS:
        hows = Counter(how for drawn_fault, how in drawn if drawn_fault is fault)
        assert max(hows.values()) - hows.total() // 2 <= 1, "dropped and refused in turn"
    assert drawn != list(itertools.islice(schedule(list(FAULTS), Random(2)), len(drawn)))
