"""No configuration is joint: the voters change by one, so old and new majorities meet (E4, R2)."""

from __future__ import annotations

from itertools import combinations

from datapath.node.survivors import has_majority
from election.pysyncobj_adapter.members import _steps
from election.pysyncobj_adapter.view_machine import changed_members

NAMES = "abcde"
SETS = [frozenset(some) for size in range(len(NAMES) + 1) for some in combinations(NAMES, size)]


def test_each_step_changes_one_voter_and_old_and_new_majorities_have_a_node_in_common() -> None:
    """Whoever recovers from a majority of either knows of the step, or it was never agreed."""
    for voters in SETS[1:]:
        members = dict.fromkeys(voters, "address")
        for wanted in SETS[1:]:
            for step in _steps(members, dict.fromkeys(wanted, "address")):
                after = frozenset(changed_members(members, step))
                assert len(voters ^ after) == 1
                for left in SETS:
                    lost = set(NAMES) - left
                    assert not (has_majority(set(left), voters) and has_majority(lost, after))
