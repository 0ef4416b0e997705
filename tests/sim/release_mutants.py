"""Mutants of which releases may form one cluster (rules U1 to U3 of `election.release`)."""

from __future__ import annotations

from unittest.mock import patch

import msgspec

from datapath.transport import caller
from election import registry, release, view
from election.release import Release
from election.view import View
from tests.sim.mutant import Mutant, Patch

UNIT = "tests/unit/election/test_release.py::"
_next = view._next


def _everybody_fits() -> list[Patch]:
    return [patch.object(registry, "unsupported", lambda *_: "")]


def _links_stay_open() -> list[Patch]:
    return [patch.object(registry.PeerRegistry, "_unfit", lambda _: [])]


def _who_is_silent_is_no_matter() -> list[Patch]:
    may_raise = release.may_raise

    def lenient(view: View, level: int, releases: dict[str, Release]) -> str:
        return may_raise(
            view, level, {m.id: release.own_release("") for m in view.members} | releases
        )

    return [patch.object(release, "may_raise", lenient)]


def _who_is_old_is_no_matter() -> list[Patch]:
    return [patch.object(release, "supports", lambda *_: True)]


def _the_level_falls() -> list[Patch]:
    def next_(before: View, **changes: object) -> View:
        return _next(msgspec.structs.replace(before, level=1), **changes)

    return [patch.object(view, "_next", next_)]


def _a_call_goes_to_anybody() -> list[Patch]:
    return [patch.object(caller, "understands", lambda *_: True)]


RELEASE_MUTANTS = (
    Mutant("U1", "a node that does not support the level has links", _everybody_fits,
           unit=UNIT + "test_a_node_that_does_not_support_the_level_has_no_link"),
    Mutant("U1", "its links stay open when the level rises", _links_stay_open,
           unit=UNIT + "test_links_are_closed_when_the_level_rises"),
    Mutant("U2", "the level rises while a node is away", _who_is_silent_is_no_matter,
           unit=UNIT + "test_the_level_rises_only_if_every_member_is_known_to_support_it"),
    Mutant("U2", "the level rises beside an older node", _who_is_old_is_no_matter,
           unit=UNIT + "test_the_level_rises_only_if_every_member_is_known_to_support_it"),
    Mutant("U2", "the level falls with the next change of the view", _the_level_falls,
           unit=UNIT + "test_the_views_level_never_falls"),
    Mutant("U3", "an older node is asked what it does not understand", _a_call_goes_to_anybody,
           unit="tests/unit/datapath/transport/test_caller_levels.py"),
)  # fmt: skip
