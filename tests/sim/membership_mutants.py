"""Mutants of rule M1: each of its guards taken out."""

from __future__ import annotations

import functools
from unittest.mock import patch

from datapath.node import membership
from datapath.node.member_change import MemberChange
from tests.sim.mutant import Mutant, Patch

UNIT = "tests/unit/datapath/node/test_membership.py::"


def _without(name: str) -> list[Patch]:
    left = tuple(guard for guard in membership.GUARDS if guard.__name__ != name)
    return [patch.object(membership, "GUARDS", left)]


NOTICED = {
    "primary_stays": "test_what_may_cost_the_cluster_is_refused",
    "majority_agrees_now": "test_what_may_cost_the_cluster_is_refused",
    "majority_is_left": "test_without_a_majority_afterwards_it_is_refused",
    "copy_is_left": "test_the_last_copy_stays_where_the_primary_lacks_something",
}
"""What schedules cannot show: another guard, or the view itself, refuses the same. Tests notice."""


def _a_join_is_judged_once() -> list[Patch]:
    return [patch("datapath.node.member_change.check_join", lambda *_: None)]


def _a_refusal_speaks_for_what_is_unknown() -> list[Patch]:
    return [patch.object(MemberChange, "did_nothing", lambda *_: True)]


MEMBERSHIP_MUTANTS = (
    *(
        Mutant(
            "M1",
            f"a removal is not held to {guard.__name__}",
            functools.partial(_without, guard.__name__),
            operators=True,
            unit=UNIT + NOTICED[guard.__name__] if guard.__name__ in NOTICED else "",
        )
        for guard in membership.GUARDS
    ),
    Mutant(
        "M1",
        "a removed id comes in by a node that has not heard of the removal",
        _a_join_is_judged_once,
        operators=True,
    ),
    Mutant(
        "M1",
        "a refusal speaks for a proposal whose outcome is unknown",
        _a_refusal_speaks_for_what_is_unknown,
        operators=True,
    ),
)
