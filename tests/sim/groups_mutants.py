"""The guards of placement (P1 to P4), each taken out: schedules with machines and groups notice."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from unittest.mock import patch

from cluster.groups import placement
from cluster.groups.placement import GroupState
from datapath.node import membership
from datapath.node.membership import refusals
from tests.sim.mutant import Mutant, Patch


def _without(guard: str) -> list[Patch]:
    return [patch.object(placement, guard, lambda *_: "")]


def _no(guard: str) -> Callable[[], list[Patch]]:
    return partial(_without, guard)


def _as_the_group_judges(group: GroupState, node: str) -> str:
    found = refusals(group.view, group.facts, node)
    return found[0].reason if found else ""


def _only_m1() -> list[Patch]:
    return [patch.object(placement, "may_remove", _as_the_group_judges)]


def _bound_not_asked() -> list[Patch]:
    bounded = placement._Plan._bounded

    def unbounded(
        self: placement._Plan, group: GroupState, step: placement.PlacementStep
    ) -> placement.PlacementStep:
        self._moving = 0
        return bounded(self, group, step)

    return [patch.object(placement._Plan, "_bounded", unbounded)]


def _nobody_judges() -> list[Patch]:
    return [patch.object(membership, "GUARDS", ())]


GROUPS_MUTANTS = tuple(
    mutant._replace(groups=True, seed=1)  # seed 0 is a big one
    for mutant in (
        Mutant("P1", "a second member of a group on a machine", _no("is_apart")),
        Mutant("P1", "members on full and emptied machines", _no("has_room")),
        Mutant("P2", "a live member leaves before others are in sync", _only_m1),
        Mutant("P2", "a removal that the group refuses is asked for", _no("may_remove")),
        Mutant("P3", "a handover to whoever is a member", _no("may_hand_over")),
        Mutant("P4", "a member comes while another does not answer", _no("may_add")),
        Mutant("P4", "steps without a primary or a majority", _no("may_step")),
        Mutant("P4", "any number of groups is changed at once", _bound_not_asked),
        Mutant("M1", "nobody judges what a planner asks for", _nobody_judges),
    )
)
