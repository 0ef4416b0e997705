"""What a node passes on to another group, and what it may then tell its client (G4 to G7)."""

from __future__ import annotations

from itertools import product

import pytest

from cluster.groups import relay
from cluster.groups.relay import Asking, Came, conclude, in_order, refusal_to_relay

KEY = "/v1/kv/{key}"
ENDPOINTS = {
    "refuses the connection": (Came(sent=False), 0),
    "loses the request": (Came(sent=True), 0),
    "loses its answer": (Came(sent=True), 1),
    "carries it out": (Came(sent=True, status=200), 1),
    "has no primary": (Came(True, 503, "not_applied"), 0),
    "does not know": (Came(True, 503, "unknown"), 1),
    "fails": (Came(True, 500, "unknown"), 1),
    "serves another group now": (Came(True, 421, "not_applied"), 0),
    "refuses it": (Came(True, 412, "not_applied"), 0),
}
"""What an endpoint may do, and how often the change was applied there then."""


@pytest.mark.parametrize("changes", [True, False])
def test_whatever_endpoints_do_a_client_is_told_the_truth(changes: bool) -> None:
    """G6: a change is applied once at most, and "not applied" is said of none that may be."""
    for kinds in product(ENDPOINTS, repeat=3):
        applied = 0
        for number, kind in enumerate(kinds):
            came, n_times = ENDPOINTS[kind]
            if not changes:
                came = came._replace(outcome="")
            applied += n_times
            end = conclude(changes, came, is_last=number == 2)
            if end != "next":
                break
        assert end != "next"
        if changes:
            assert applied <= 1, kinds
            told = came.outcome if end == "answer" else end
            assert applied == 0 or told in {"", "unknown"}, kinds
        else:
            assert end != "unknown"
            assert end == "answer" or not came.status


def test_one_answer_is_enough_wherever_it_can_be_had() -> None:
    for changes, kinds in (
        (True, ("refuses the connection", "has no primary", "carries it out")),
        (False, ("loses the request", "serves another group now", "carries it out")),
    ):
        ends = [conclude(changes, ENDPOINTS[kind][0], is_last=False) for kind in kinds]
        assert ends == ["next", "next", "answer"]
    assert in_order(["a", "b", "c"], "b") == ["b", "a", "c"]
    assert in_order(["a", "b", "c"], None) == ["a", "b", "c"]


def test_a_request_goes_over_one_hop_whatever_the_maps_say() -> None:
    """G4: with maps that name each other in a circle it ends at the second node."""
    hops, asking = 0, Asking(KEY, changes=True)
    while refusal_to_relay(asking) is None and hops < 10:
        hops += 1
        asking = asking._replace(is_relayed=True)
    assert hops == 1


@pytest.mark.parametrize(
    "template",
    ["/v1/tokens", "/v1/cluster/nodes/{id}", "/v1/backup", "/v1/groups", "/v1/watch", "/v1/roles"],
)
def test_a_group_is_administered_at_its_own_nodes(template: str) -> None:
    """G4: a node on the same machine would be taken for an administrator there."""
    assert refusal_to_relay(Asking(template, changes=True, named="g2")) == ""


def test_a_caller_that_only_a_certificate_names_is_told_where_to_ask() -> None:
    """G5."""
    assert "certificate" in (refusal_to_relay(Asking(KEY, True, is_certificates=True)) or "")


def test_a_revision_goes_to_its_own_group_alone() -> None:
    """G7: another group's would have it execute a write again, or refuse one."""
    assert "Onecopy-Group" in (refusal_to_relay(Asking(KEY, True, has_after=True)) or "")
    assert refusal_to_relay(Asking(KEY, True, has_after=True, named="g2")) is None
    assert refusal_to_relay(Asking(KEY, True)) is None


def test_every_guard_is_asked() -> None:
    asked = {
        "is_first_hop": Asking(KEY, True, is_relayed=True),
        "is_for_keys": Asking("/v1/tokens", True),
        "shows_caller": Asking(KEY, True, is_certificates=True),
        "knows_after": Asking(KEY, True, has_after=True),
    }
    for guard, asking in asked.items():
        assert not getattr(relay, guard)(asking)
        assert refusal_to_relay(asking) is not None
