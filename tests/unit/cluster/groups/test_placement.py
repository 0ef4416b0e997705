"""What the planner chooses, where schedules end in their places all the same."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from cluster.groups.placement import (
    MAX_MOVING,
    FleetMachine,
    FleetMachineState,
    GroupState,
    PlacementStep,
    plan_placement,
)
from datapath.node.membership import Facts
from election.view import Member, View


def machines(count: int, capacity: int = 50, **states: FleetMachineState) -> list[FleetMachine]:
    return [
        FleetMachine(id=name, capacity=capacity, state=states.get(name, "up"))
        for name in (f"m{number}" for number in range(1, count + 1))
    ]


def group(
    name: str,
    places: Iterable[str],
    *,
    witness: str = "",
    dead: Iterable[str] = (),
    coming: Iterable[str] = (),
    primary: str = "",
    replicas: int = 3,
    witnesses: int = 0,
) -> GroupState:
    """A member on each machine of `places`, named as that; `coming`: without data or vote."""
    held, late, gone = list(places), set(coming), set(dead)
    members = tuple(
        Member(
            id=place, role="witness" if place == witness else "replica",
            client=f"{place}.{name}:1", peer=f"{place}.{name}:2", raft=f"{place}.{name}:3",
        )
        for place in held
    )  # fmt: skip
    view = View(
        cluster_id=name,
        epoch=1,
        version=9,
        primary=primary or held[0],
        in_sync=tuple(p for p in held if p != witness and p not in late | gone),
        members=members,
    )
    facts = Facts(live=frozenset(held) - gone, voters=frozenset(held) - late)
    return GroupState(
        id=name, view=view, facts=facts, machines={place: place for place in held},
        replicas=replicas, witnesses=witnesses,
    )  # fmt: skip


def planned(fleet: list[FleetMachine], *groups: GroupState) -> dict[str, PlacementStep]:
    return {step.group: step for step in plan_placement(fleet, groups)}


def moving(count: int, primary: str = "m1") -> list[GroupState]:
    """Groups that have a fourth member, so that one is to go."""
    return [group(f"a{n}", ("m1", "m2", "m3", "m4"), primary=primary) for n in range(count)]


def test_what_waits_takes_nobodys_place() -> None:
    places = ("m1", "m2", "m3")
    stuck = [group(f"a{n}", places, dead=("m3",), replicas=4) for n in range(MAX_MOVING + 1)]
    steps = planned(machines(4), *stuck, group("z", ("m1", "m2")))
    assert {steps[item.id].kind for item in stuck} == {"wait"}
    assert steps["z"].kind == "add"


def test_what_was_begun_goes_on_however_many_there_are() -> None:
    fleet = machines(5, m1="draining")
    busy = moving(MAX_MOVING + 2)
    steps = planned(fleet, *busy)
    assert {step.kind for step in steps.values()} == {"hand_over"}
    steps = planned(fleet, *moving(MAX_MOVING + 2, primary="m2"))
    assert {(step.kind, step.node) for step in steps.values()} == {("remove", "m1")}


def test_what_is_lost_goes_while_as_many_groups_as_may_are_changed() -> None:
    fleet = machines(6, m6="lost")
    lost = group("z", ("m1", "m2", "m6"), dead=("m6",))
    steps = planned(fleet, *moving(MAX_MOVING, primary="m2"), lost, group("y", ("m1", "m2")))
    assert (steps["z"].kind, steps["z"].node) == ("remove", "m6")
    assert steps["y"].kind == "wait"
    assert f"{MAX_MOVING} groups are being changed already" in steps["y"].reason


def test_whoever_does_not_answer_stays_as_long_as_its_machine_is_not_lost() -> None:
    down = group("g", ("m1", "m2", "m3"), dead=("m3",))
    assert planned(machines(5), down) == {}
    assert planned(machines(5, m3="lost"), down)["g"].kind == "remove"


def test_a_machine_that_is_not_described_or_holds_too_much_is_left() -> None:
    fleet = machines(4)
    step = planned(fleet[1:], group("g", ("m1", "m2", "m3")))["g"]
    assert (step.kind, step.reason) == ("add", "m1 is to leave m1")
    small = [*machines(3), *machines(5, 1)[3:]]
    full = [group(f"g{n}", ("m1", "m2", "m4")) for n in (1, 2)]
    steps = planned(small, *full)
    assert (steps["g1"].kind, steps["g1"].machine) == ("add", "m3")
    assert steps["g1"].reason == "m4 is to leave m4"


@pytest.mark.parametrize("state", ["lost", "draining"])
def test_whoever_answers_on_a_machine_that_goes_is_replaced_first(state: FleetMachineState) -> None:
    step = planned(machines(4, m3=state), group("g", ("m1", "m2", "m3")))["g"]
    assert (step.kind, step.machine) == ("add", "m4")


def test_primaries_are_not_balanced_while_a_member_is_away_or_comes() -> None:
    fleet = machines(3)
    others = [group(f"g{n}", ("m1", "m2", "m3")) for n in range(3)]
    assert any(step.kind == "hand_over" for step in planned(fleet, *others).values())
    away = [group(f"g{n}", ("m1", "m2", "m3"), dead=("m3",)) for n in range(3)]
    assert planned(fleet, *away) == {}


def test_a_witness_is_placed_as_a_replica_is_and_never_leads() -> None:
    held = {"witness": "m3", "replicas": 2, "witnesses": 1}
    leaving = group("g", ("m1", "m2", "m3"), **held)  # type: ignore[arg-type]
    step = planned(machines(4, m3="draining"), leaving)["g"]
    assert (step.kind, step.role, step.machine) == ("add", "witness", "m4")
    primary = planned(machines(4, m1="draining"), leaving)["g"]
    assert (primary.kind, primary.role, primary.machine) == ("add", "replica", "m4")
    both = group("g", ("m1", "m2", "m3", "m4"), **held)  # type: ignore[arg-type]
    step = planned(machines(4, m1="draining"), both)["g"]
    assert (step.kind, step.node) == ("hand_over", "m2")
    lost = group("g", ("m1", "m2", "m3"), dead=("m3",), **held)  # type: ignore[arg-type]
    assert planned(machines(4, m3="lost"), lost)["g"].node == "m3"
    left = group("g", ("m1", "m2"), replicas=2, witnesses=1)
    step = planned(machines(4), left)["g"]
    assert (step.kind, step.role) == ("add", "witness")


def test_a_machine_without_a_zone_is_one_of_its_own() -> None:
    fleet = [*machines(2), FleetMachine(id="m3", capacity=50, zone="a")]
    assert planned(fleet, group("g", ("m1", "m2"), replicas=2)) == {}
    zoned = [FleetMachine(id=f"m{n}", capacity=50, zone=zone) for n, zone in enumerate("aab", 1)]
    step = planned(zoned, group("g", ("m1", "m2"), replicas=2))["g"]
    assert (step.kind, step.machine) == ("add", "m3")


def test_members_go_to_a_machine_that_holds_less() -> None:
    steps = planned(machines(4), *(group(f"g{n}", ("m1", "m2", "m3")) for n in range(4)))
    assert [(step.kind, step.machine) for step in steps.values()][:2] == [("add", "m4")] * 2
