"""The guards of groups (G1 to G7) and of placement (P1 to P4), each taken out.

Schedules with machines and groups notice what placement does wrong, tests the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import patch

from cluster.api import access
from cluster.api.groups import GroupNode
from cluster.cli import config_option
from cluster.client import aio
from cluster.client.retries import Transport
from cluster.groups import placement, relay
from cluster.groups.placement import GroupState
from cluster.services import groups, scoped
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


def _witnesses_forgotten() -> list[Patch]:
    return [patch.object(placement, "PLACED_ROLES", ("replica",))]


def _witnesses_stay() -> list[Patch]:
    stays = placement._Plan._stays

    def or_is_a_witness(self: placement._Plan, group: GroupState, node: str) -> bool:
        return group.role_of(node) == "witness" or stays(self, group, node)

    return [patch.object(placement._Plan, "_stays", or_is_a_witness)]


def _nobody_judges() -> list[Patch]:
    return [patch.object(membership, "GUARDS", ())]


RELAY = "tests/unit/cluster/groups/test_relay.py::"
UNIT = "tests/unit/cluster/services/test_groups.py::"


def _always(guard: str) -> list[Patch]:
    return [patch.object(relay, guard, lambda *_: True)]


def _allows(guard: str) -> Callable[[], list[Patch]]:
    return partial(_always, guard)


def _everything_is_its_own() -> list[Patch]:
    return [patch.object(groups, "owns", lambda *_: True)]


def _services_see_everything() -> list[Patch]:
    return [patch.object(scoped, "owns", lambda *_: True)]


def _not_asked_on_the_way() -> list[Patch]:
    return [patch.object(GroupNode, "_check", lambda *_: None)]


def _any_map() -> list[Patch]:
    return [patch.object(groups, "may_replace_map", lambda *_: "")]


def _any_groups_data() -> list[Patch]:
    return [patch.object(config_option, "refusal_of_data", lambda *_: "")]


class _WithOwnMemory(Transport):
    def __init__(self, *args: Any, sent_after: object = None, **options: Any) -> None:
        super().__init__(*args, **options)
        del sent_after


def _each_way_remembers_for_itself() -> list[Patch]:
    return [patch.object(aio, "Transport", _WithOwnMemory)]


def _certificate_counts() -> list[Patch]:
    return [patch.object(access, "RELAYED", "x-none")]


def _as_the_map_says(module: str) -> list[Patch]:
    return [patch(f"{module}.as_reached", lambda endpoints, **_: tuple(endpoints))]


RULES_MUTANTS = (
    Mutant("G1", "a group takes keys of others", _everything_is_its_own,
           unit=UNIT + "test_a_key_of_another_group_is_refused_with_its_slot"),
    Mutant("G1", "a user's service sees keys of other groups", _services_see_everything,
           unit=UNIT + "test_a_users_service_sees_of_the_store_its_groups_keys_alone"),
    Mutant("G1", "a node does not ask whose a key is", _not_asked_on_the_way,
           unit="tests/integration/cluster/api/test_groups.py::"
           "test_a_key_of_the_group_is_served_and_another_groups_refused"),
    Mutant("G1", "a group is restored from another's state", _any_groups_data,
           unit="tests/integration/cluster/cli/test_archive_commands.py::"
           "test_the_state_of_another_group_is_refused_by_both_names"),
    Mutant("G2", "a map moves slots", _any_map, unit=UNIT + "test_slots_stay_where_they_are"),
    Mutant("G4", "what was relayed is relayed again", _allows("is_first_hop"),
           unit=RELAY + "test_a_request_goes_over_one_hop_whatever_the_maps_say"),
    Mutant("G4", "a group is administered through another's nodes", _allows("is_for_keys"),
           unit=RELAY + "test_a_group_is_administered_at_its_own_nodes"),
    Mutant("G5", "what a certificate names is relayed for nobody", _allows("shows_caller"),
           unit=RELAY + "test_a_caller_that_only_a_certificate_names_is_told_where_to_ask"),
    Mutant("G5", "whoever relays lends the right of its certificate", _certificate_counts,
           unit="tests/integration/cluster/api/test_relay.py::"
           "test_whoever_relays_lends_no_right_by_its_certificate"),
    Mutant("G5", "what came under TLS is passed on in plain text",
           partial(_as_the_map_says, "cluster.api.relay"),
           unit="tests/integration/cluster/api/test_relay.py::"
           "test_a_node_with_tls_passes_no_token_on_in_plain_text"),
    Mutant("G5", "a client with TLS follows a map in plain text",
           partial(_as_the_map_says, "cluster.client.group_routes"),
           unit="tests/unit/cluster/client/test_group_routes.py::"
           "test_what_was_given_by_https_is_reached_so_whatever_the_map_says"),
    Mutant("G6", "another endpoint is asked after any failure", _allows("may_ask_next"),
           unit=RELAY + "test_whatever_endpoints_do_a_client_is_told_the_truth"),
    Mutant("G7", "a revision goes to a group that it is not of", _allows("knows_after"),
           unit=RELAY + "test_a_revision_goes_to_its_own_group_alone"),
    Mutant("G7", "a repeat on another way is said to be a later first try",
           _each_way_remembers_for_itself,
           unit="tests/integration/cluster/api/test_group_clients.py::"
           "test_a_key_keeps_what_it_was_first_sent_after_on_whichever_way"),
)  # fmt: skip

GROUPS_MUTANTS = RULES_MUTANTS + tuple(
    mutant._replace(groups=True, seed=1)  # seed 0 is a big one
    for mutant in (
        Mutant("P1", "a second member of a group on a machine", _no("is_apart")),
        Mutant("P1", "members on full and emptied machines", _no("has_room")),
        Mutant("P2", "a live member leaves before others are in sync", _only_m1),
        Mutant("P2", "a removal that the group refuses is asked for", _no("may_remove")),
        Mutant("P2", "witnesses that are missing are forgotten", _witnesses_forgotten),
        Mutant("P2", "witnesses stay on machines that are emptied", _witnesses_stay),
        Mutant("P3", "a handover to whoever is a member", _no("may_hand_over")),
        Mutant("P4", "a member comes while another does not answer", _no("may_add")),
        Mutant("P4", "steps without a primary or a majority", _no("may_step")),
        Mutant("P4", "any number of groups is changed at once", _bound_not_asked),
        Mutant("M1", "nobody judges what a planner asks for", _nobody_judges),
    )
)
