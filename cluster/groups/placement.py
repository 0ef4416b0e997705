"""Which machine holds which member of which replica group: the next safe step of each. Pure.

`plan_placement` compares what is with what should be, and returns at most one step a group: a
member is added on a machine with room and given its data and its vote; what it replaces hands over,
and is removed. Nothing is remembered between two plans, so that a planner that has ended in the
middle is no special case, and two that run at once want the same.

The rules, each a guard of its own, for a step by what is known:

P1  A machine holds at most one member of a group.
P2  A live member leaves only when as many others of its role as are wanted have a vote, and data.
P3  A primary hands over only to a member that is live, in sync and has a vote.
P4  One step a group at a time, and none begins while `MAX_MOVING` groups are being changed.

What is known may be old. So nothing of a group's safety rests on them: the group's own primary
judges each removal by what it sees then (M1), its view each handover, and a machine has one data
directory for each group, which belongs to one member (docs/decisions/0045).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec

from datapath.node.membership import Facts, majority_agrees_now, refusals
from election.view import MemberRole, View

MAX_MOVING = 8
"""How many groups are changed at a time: each copies its data to a new member."""

FleetMachineState = Literal["up", "draining", "lost"]
PLACED_ROLES: tuple[MemberRole, ...] = ("replica", "witness")
PlacementKind = Literal["add", "hand_over", "remove", "wait"]


class FleetMachine(msgspec.Struct, frozen=True, kw_only=True):
    """A machine, as its operator describes it.

    `capacity`: how many members it may hold, of all groups. `draining`: all leave it, as long as it
    runs. `lost`: it does not come back; members that do not answer are removed before others come.
    """

    id: str
    capacity: int
    zone: str = ""
    state: FleetMachineState = "up"


class GroupState(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a group. `machines`: where each of its members is.

    `replicas`, `witnesses`: how many are wanted.
    """

    id: str
    view: View
    facts: Facts
    machines: Mapping[str, str]
    replicas: int = 3
    witnesses: int = 0

    def is_settled(self, node: str) -> bool:
        """Whether a member is live, has its vote, and is in sync if it holds data."""
        holds = node in self.view.in_sync or self.role_of(node) == "witness"
        return holds and node in self.facts.live and node in self.facts.voters

    def members_in(self, role: MemberRole) -> list[str]:
        """Return the members of a role."""
        return [member.id for member in self.view.members if member.role == role]

    def wanted(self, role: MemberRole) -> int:
        """Return how many of a role there are to be."""
        return self.replicas if role == "replica" else self.witnesses

    def role_of(self, node: str) -> MemberRole:
        """Return a member's role."""
        return "witness" if node in self.members_in("witness") else "replica"


class PlacementStep(msgspec.Struct, frozen=True, kw_only=True):
    """What to do next with a group; `wait`: nothing can be done yet, `reason` says why.

    `role`: that of the node which is added.
    """

    kind: PlacementKind
    group: str
    node: str = ""
    machine: str = ""
    role: MemberRole = "replica"
    reason: str


# -- the guards: why a step may not be made; "" if it may


def may_step(group: GroupState) -> str:
    """Nothing is changed that nobody could agree on, or while a removal is in progress (P4)."""
    members = {member.id for member in group.view.members}
    if group.view.primary not in group.facts.live:
        return "its primary does not answer"
    if no_majority := majority_agrees_now(group.view, group.facts, ""):
        return no_majority.reason
    if leaving := group.facts.voters - members:
        return f"{', '.join(sorted(leaving))} was removed and still has its vote"
    return ""


def is_apart(group: GroupState, machine: str) -> str:
    """P1: a machine holds at most one member of a group."""
    return f"{machine} holds a member already" if machine in group.machines.values() else ""


def has_room(machine: FleetMachine, held: int) -> str:
    """A machine that stays takes members up to its capacity."""
    if machine.state != "up":
        return f"{machine.id} is {machine.state}"
    return "" if held < machine.capacity else f"{machine.id} is full"


def may_add(group: GroupState) -> str:
    """P4: nobody comes while another comes, or does not answer: it would weigh on the majority."""
    waiting = [m.id for m in group.view.members if not group.is_settled(m.id)]
    return _waits_for(waiting) if waiting else ""


def may_remove(group: GroupState, node: str) -> str:
    """M1 as the group will judge, and P2: others have the place of a live member."""
    if found := refusals(group.view, group.facts, node):
        return found[0].reason
    role = group.role_of(node)
    others = [item for item in group.members_in(role) if item != node]
    if node in group.facts.live and sum(map(group.is_settled, others)) < group.wanted(role):
        return _waits_for(item for item in others if not group.is_settled(item))
    return ""


def may_hand_over(group: GroupState, node: str) -> str:
    """P3: to a member that is live, in sync and has a vote."""
    return "" if group.is_settled(node) else _waits_for([node])


def _waits_for(nodes: Iterable[str]) -> str:
    names = ", ".join(sorted(nodes))
    return f"{names or 'another member'} must be live, in sync and have a vote first"


# -- the plan


def plan_placement(
    machines: Iterable[FleetMachine], groups: Iterable[GroupState]
) -> list[PlacementStep]:
    """Return the next step of each group that has one: what is lost first, balance last."""
    return _Plan(machines, groups).steps()


class _Plan:
    """One plan. What is decided for one group counts when the next one is decided.

    `_held`: the members on each machine; `_expected`: without those that are to leave (`_leaving`,
    by group); `_least`: the load of the emptiest machine, with one member more. `_moving`: how many
    groups are being changed, those included that begin with this plan.
    """

    def __init__(self, machines: Iterable[FleetMachine], groups: Iterable[GroupState]) -> None:
        self._machines = {machine.id: machine for machine in machines}
        self._groups = sorted(groups, key=lambda group: group.id)
        self._held: Counter[str] = Counter()
        self._primaries: Counter[str] = Counter()
        for group in self._groups:
            self._held.update(group.machines.values())
            self._primaries[group.machines[group.view.primary]] += 1
        self._expected = self._held.copy()
        self._zones = {self._zone(m.id) for m in self._machines.values() if m.state == "up"}
        self._moving = 0
        self._leaving: dict[str, list[str]] = {}
        for group in self._groups:
            self._moving += is_moving(group)
            leaving = [node for role in PLACED_ROLES for node in self._surplus(group, role)]
            self._leaving[group.id] = leaving
            for node in leaving:
                self._expected[group.machines[node]] -= 1
        self._least = self._least_load()

    def steps(self) -> list[PlacementStep]:
        found: dict[str, PlacementStep] = {}
        for decide in (self._repair, self._go_on, self._drain, self._spread, self._balance):
            for group in self._groups:
                if group.id not in found and (step := decide(group)) is not None:
                    found[group.id] = self._bounded(group, step)
        return list(found.values())

    def _bounded(self, group: GroupState, step: PlacementStep) -> PlacementStep:
        """Return the step, or that it has to wait (P4); count what it changes."""
        if step.kind == "wait":
            return step
        if reason := may_step(group):
            return _wait(group, reason)
        begins = step.kind != "remove" and not is_moving(group)
        if begins and self._moving >= MAX_MOVING:
            return _wait(group, f"{MAX_MOVING} groups are being changed already")
        self._moving += begins
        if step.kind == "add":
            for node in self._surplus(group, step.role, step.machine):
                self._expected[group.machines[node]] -= 1
            self._held[step.machine] += 1
            self._expected[step.machine] += 1
            self._least = self._least_load()
        elif step.kind == "hand_over":
            self._primaries[group.machines[group.view.primary]] -= 1
            self._primaries[step.machine] += 1
        return step

    # -- one pass each, the most urgent first

    def _repair(self, group: GroupState) -> PlacementStep | None:
        """Take out what is lost, and have as many members as are wanted."""
        for member in group.view.members:
            is_lost = self._state(group, member.id) == "lost"
            if is_lost and member.id not in group.facts.live:
                return _remove(group, member.id, "its machine is lost")
        for role in PLACED_ROLES:
            if len(group.members_in(role)) < group.wanted(role):
                return self._add(group, role, "", f"a {role} is missing")
        return None

    def _go_on(self, group: GroupState) -> PlacementStep | None:
        """End what was begun: take out who is one too many."""
        for node in self._leaving[group.id]:
            if node != group.view.primary:
                return _remove(group, node, "others have its place")
            to = self._best_primary(group, node)
            if to is None:
                return _wait(group, _waits_for([]))
            return _hand_over(group, to, f"{node} is to leave")
        return None

    def _drain(self, group: GroupState) -> PlacementStep | None:
        """Replace what is on a machine that is to be emptied, is too full, or not described."""
        for member in group.view.members:
            if not self._stays(group, member.id):
                reason = f"{member.id} is to leave {group.machines[member.id]}"
                return self._add(group, member.role, member.id, reason)
        return None

    def _spread(self, group: GroupState) -> PlacementStep | None:
        """Move a member to a zone that has none, or to a machine that holds less."""
        if self._moving >= MAX_MOVING or may_add(group):
            return None
        for role in PLACED_ROLES:
            for node in self._by_worth(group, role):
                best = self._best_machine(group, node) if self._may_gain(group, node) else None
                if best is not None and self._is_better(group, node, best):
                    return _add_on(group, role, best, f"in the place of {node}")
        return None

    def _balance(self, group: GroupState) -> PlacementStep | None:
        """Have each machine hold about as many primaries as the others."""
        to = self._best_primary(group, group.view.primary)
        if to is None or may_add(group):
            return None
        here = self._primaries[group.machines[group.view.primary]]
        if here - self._primaries[group.machines[to]] < 2:
            return None
        return _hand_over(group, to, "its machine holds fewer primaries")

    def _add(self, group: GroupState, role: MemberRole, leaver: str, reason: str) -> PlacementStep:
        if why := may_add(group):
            return _wait(group, why)
        if (machine := self._best_machine(group, leaver)) is None:
            return _wait(group, "no machine has room: add one, or raise a machine's capacity")
        return _add_on(group, role, machine, reason)

    # -- who and where

    def _state(self, group: GroupState, node: str) -> FleetMachineState:
        machine = self._machines.get(group.machines[node])
        return "draining" if machine is None else machine.state

    def _stays(self, group: GroupState, node: str) -> bool:
        """Whether a member's machine is not to be emptied, and holds no more than it may."""
        full = self._load(group.machines[node], self._expected) > 1
        return self._state(group, node) == "up" and not full

    def _load(self, machine: str, counts: Counter[str], more: int = 0) -> float:
        known = self._machines.get(machine)
        return (counts[machine] + more) / known.capacity if known else 0.0

    def _least_load(self) -> float:
        """Return the load of the emptiest machine if it took one more."""
        up = [machine for machine in self._machines.values() if machine.state == "up"]
        return min((self._load(machine.id, self._expected, 1) for machine in up), default=0.0)

    def _zone(self, machine: str) -> str:
        known = self._machines.get(machine)
        # A machine that names no zone is one of its own.
        return f"machine {machine}" if known is None or not known.zone else known.zone

    def _surplus(self, group: GroupState, role: MemberRole, coming: str = "") -> list[str]:
        """Return who is one too many, once a member on the machine `coming` has joined."""
        count = len(group.members_in(role)) + bool(coming) - group.wanted(role)
        return self._by_worth(group, role, coming)[:count] if count > 0 else []

    def _by_worth(self, group: GroupState, role: MemberRole, coming: str = "") -> list[str]:
        """Return the members of a role, who can best be missed first.

        Whoever came last stays, if it is as well placed as another: else the next plan, by other
        loads, would take out whom this one brings in.
        """
        nodes = group.members_in(role)
        newest = max(nodes, key=_came_at, default="")
        zones = Counter(map(self._zone, group.machines.values()))
        zones[self._zone(coming)] += bool(coming)

        def worth(node: str) -> tuple[bool, int, bool, float, bool, str]:
            machine = group.machines[node]
            shared, load = zones[self._zone(machine)], self._load(machine, self._expected)
            stays, is_newest = self._stays(group, node), node == newest and not coming
            return stays, -shared, is_newest, -load, node == group.view.primary, node

        return sorted(nodes, key=worth)

    def _others_zones(self, group: GroupState, leaver: str) -> Counter[str]:
        return Counter(
            self._zone(machine) for node, machine in group.machines.items() if node != leaver
        )

    def _best_machine(self, group: GroupState, leaver: str) -> FleetMachine | None:
        """Return where the next member comes if `leaver` ("": nobody) goes; None: nowhere."""
        zones = self._others_zones(group, leaver)
        able = [
            machine
            for machine in self._machines.values()
            if not (has_room(machine, self._held[machine.id]) or is_apart(group, machine.id))
        ]
        return min(
            able,
            key=lambda m: (zones[self._zone(m.id)], self._load(m.id, self._expected, 1), m.id),
            default=None,
        )

    def _is_better(self, group: GroupState, leaver: str, best: FleetMachine) -> bool:
        """Whether the group is wider spread so, or as wide and on a machine that holds less."""
        zones, now = self._others_zones(group, leaver), group.machines[leaver]
        would_share, shared = zones[self._zone(best.id)], zones[self._zone(now)]
        if would_share != shared:
            return would_share < shared
        return self._load(best.id, self._expected, 1) < self._load(now, self._expected)

    def _may_gain(self, group: GroupState, leaver: str) -> bool:
        """Whether it is worth while to look at each machine: some zone or machine is better."""
        zones, now = self._others_zones(group, leaver), group.machines[leaver]
        shared = zones[self._zone(now)]
        return self._least < self._load(now, self._expected) or (
            shared > 0 and any(zones[zone] < shared for zone in self._zones)
        )

    def _best_primary(self, group: GroupState, besides: str) -> str | None:
        """Return who may take over: rather on a machine that stays, and has few primaries."""

        def rank(node: str) -> tuple[bool, int, str]:
            return not self._stays(group, node), self._primaries[group.machines[node]], node

        replicas = group.members_in("replica")
        able = [n for n in replicas if n != besides and not may_hand_over(group, n)]
        return min(able, key=rank, default=None)


def is_moving(group: GroupState) -> bool:
    """Whether a new member of the group gets its data, or has it and the old one is still there."""
    ids = [member.id for member in group.view.members]
    comes = any(node in group.facts.live and not group.is_settled(node) for node in ids)
    return comes or any(len(group.members_in(role)) > group.wanted(role) for role in PLACED_ROLES)


def _add_on(
    group: GroupState, role: MemberRole, machine: FleetMachine, reason: str
) -> PlacementStep:
    # The version only rises, so that an id that was removed is not used again.
    node = f"{machine.id}-v{group.view.version}"
    return PlacementStep(
        kind="add", group=group.id, node=node, machine=machine.id, role=role, reason=reason
    )


def machine_of(node: str) -> str:
    """Return the machine for which `_add_on` made a node's id; "": another made it."""
    return node.rpartition("-v")[0]


def _came_at(node: str) -> int:
    """Return the version at which a member came, as its id says; 0: it was there before."""
    version = node.rpartition("-v")[2]
    return int(version) if version.isdecimal() else 0


def _hand_over(group: GroupState, to: str, reason: str) -> PlacementStep:
    machine = group.machines[to]
    return PlacementStep(kind="hand_over", group=group.id, node=to, machine=machine, reason=reason)


def _remove(group: GroupState, node: str, reason: str) -> PlacementStep:
    if why := may_remove(group, node):
        return _wait(group, why)
    machine = group.machines[node]
    return PlacementStep(kind="remove", group=group.id, node=node, machine=machine, reason=reason)


def _wait(group: GroupState, reason: str) -> PlacementStep:
    return PlacementStep(kind="wait", group=group.id, reason=reason)
