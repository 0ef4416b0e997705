"""Machines, and groups as far as placement can touch them: production's views and rule M1.

Time goes by in ticks. Of a group there are its view (`election.view`), who has a vote, who runs,
and how much of its data a newcomer still lacks. Elections are abstract: any member that is in sync
and has a vote may take over.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random

from cluster.groups.placement import FleetMachine, FleetMachineState, GroupState
from datapath.errors import NotPrimaryError, OperationError, RejectedError
from datapath.node.member_change import addition, removal
from datapath.node.membership import Facts, refusals
from election.view import (
    AddToInSync,
    Bootstrap,
    Handover,
    Member,
    MemberRole,
    RemoveFromInSync,
    TakeOver,
    View,
    ViewChange,
    ViewRefusal,
    apply_change,
)
from tests.sim.clockwork import ViolationError

COPY_TICKS = (1, 4)
_NOBODY = NotPrimaryError("no_primary", "nobody answers")


@dataclass
class SimMachine:
    """`directories`: the node whose data directory it holds, by group. `gone`: never comes back."""

    id: str
    capacity: int
    zone: str
    state: FleetMachineState = "up"
    back_at: int = 0  # down or cut off until then
    gone: bool = False
    directories: dict[str, str] = field(default_factory=dict)

    def answers(self, now: int) -> bool:
        return not self.gone and now >= self.back_at

    def described(self) -> FleetMachine:
        return FleetMachine(id=self.id, capacity=self.capacity, zone=self.zone, state=self.state)


def _member(group: str, node: str, role: MemberRole) -> Member:
    client, peer, raft = (f"{channel}.{node}.{group}" for channel in ("client", "peer", "raft"))
    return Member(id=node, role=role, client=client, peer=peer, raft=raft, data_id="d")


class SimGroup:
    """One group. `machine_of`, `roles`: of each node that ever was a member or is about to be.

    `wanted`: how many members of each role. The machines are those of its first replicas, then
    witnesses.
    """

    def __init__(
        self,
        fleet: Fleet,
        name: str,
        machines: list[SimMachine],
        wanted: Mapping[MemberRole, int],
        min_in_sync: int,
    ) -> None:
        self.fleet = fleet
        self.id = name
        self.wanted = wanted
        self.min_in_sync = min_in_sync
        self.machine_of = {f"{machine.id}-v0": machine for machine in machines}
        self.roles: dict[str, MemberRole] = {}
        for number, (node, machine) in enumerate(self.machine_of.items()):
            machine.directories[name] = node
            self.roles[node] = "replica" if number < wanted["replica"] else "witness"
        members = tuple(_member(name, node, self.roles[node]) for node in self.machine_of)
        founded = Bootstrap(cluster_id=name, primary=members[0].id, members=members)
        view = apply_change(None, founded, 0)
        assert isinstance(view, View)
        self.view = view
        for member in members[1:]:
            if member.role == "replica":
                self.apply(AddToInSync(member.id))
        self.voters = {member.id for member in members}
        self._lacks: dict[str, int] = {}
        self._known: GroupState | None = None

    # -- what is so

    def is_live(self, node: str) -> bool:
        machine = self.machine_of[node]
        return machine.answers(self.fleet.now) and machine.directories.get(self.id) == node

    def can_agree(self, without: str = "") -> bool:
        voters = self.voters - {without}
        return 2 * sum(map(self.is_live, voters)) > len(voters)

    def serves(self) -> bool:
        return self.is_live(self.view.primary) and self.can_agree()

    def is_available(self, without: str = "") -> bool:
        """Whether a failover would succeed, or none is needed."""
        copies = [node for node in self.view.in_sync if node != without and self.is_live(node)]
        return bool(copies) and self.can_agree(without)

    def survives(self, machine: SimMachine) -> bool:
        """Whether nothing is lost for good if this machine is."""

        def stays(node: str) -> bool:
            found = self.machine_of[node]
            return found is not machine and not found.gone

        # Whoever was removed is about to lose its vote.
        remaining = {node for node in self.voters if self.view.member(node) is not None}
        majorities = all(
            2 * sum(map(stays, voters)) > len(voters) for voters in (self.voters, remaining)
        )
        return majorities and any(map(stays, self.view.in_sync))

    def facts(self) -> Facts:
        known = sorted(self.voters | {member.id for member in self.view.members})
        live = frozenset(node for node in known if self.is_live(node))
        return Facts(live=live, voters=frozenset(self.voters), min_in_sync=self.min_in_sync)

    def state(self) -> GroupState:
        """Return what a planner that asks now is told. An equal answer is the same object."""
        facts = self.facts()
        known = self._known
        if known is None or known.view is not self.view or known.facts != facts:
            machines = {m.id: self.machine_of[m.id].id for m in self.view.members}
            self._known = known = GroupState(
                id=self.id,
                view=self.view,
                facts=facts,
                machines=machines,
                replicas=self.wanted["replica"],
                witnesses=self.wanted["witness"],
            )
        return known

    def is_moving(self) -> bool:
        """Whether a member is to leave once another one has come, or is on its way in."""
        roles = Counter(member.role for member in self.view.members)
        comes = (
            self.is_live(member.id) and not self.is_settled(member.id)
            for member in self.view.members
        )
        return any(comes) or any(roles[role] > count for role, count in self.wanted.items())

    def is_settled(self, node: str) -> bool:
        """Whether a member is live, has its vote, and is in sync if it holds data."""
        holds = node in self.view.in_sync or self.roles[node] == "witness"
        return holds and node in self.voters and self.is_live(node)

    # -- what happens by itself

    def apply(self, change: ViewChange) -> str:
        """Change the view; return why not, or ""."""
        found = apply_change(self.view, change, self.view.version)
        if isinstance(found, ViewRefusal):
            return found.reason
        self.view = found
        return ""

    def tick(self, random: Random) -> None:
        """Fail over, or let members fall out of sync, come back into it, get and lose votes."""
        if not self.can_agree():
            return
        seen = self.fleet.seen
        if not self.is_live(self.view.primary):
            able = [n for n in self.view.in_sync if n in self.voters and self.is_live(n)]
            if able and random.random() < 0.7:
                seen["failed over"] += 1
                self.apply(TakeOver(random.choice(able)))
            return
        self.join()
        for member in self.view.members:
            node = member.id
            if node in self.view.in_sync:
                if not self.is_live(node) and random.random() < 0.5:
                    self.apply(RemoveFromInSync((node,)))
            elif self.is_live(node) and member.role == "replica":
                self._lacks.setdefault(node, random.randint(*COPY_TICKS))
                self._lacks[node] -= 1
                if self._lacks[node] <= 0:
                    del self._lacks[node]
                    self.apply(AddToInSync(node))
        self._settle_votes()

    def _settle_votes(self) -> None:
        """One change at a time, who leaves first."""
        leaving = sorted(node for node in self.voters if self.view.member(node) is None)
        if leaving:
            self.voters.remove(leaving[0])
            return
        holders = [m.id for m in self.view.members if m.role == "witness"]
        for node in (*self.view.in_sync, *holders):
            if node not in self.voters and self.is_live(node):
                self.voters.add(node)
                return

    def join(self) -> None:
        """Let nodes come in whose processes were started."""
        if not self.serves():
            return
        for node, machine in self.machine_of.items():
            if self.view.member(node) is not None or not self.is_live(node):
                continue
            change = addition(_member(self.id, node, self.roles[node]), 1)
            try:
                if change.next(0, self.view) == "propose" and change.change is not None:
                    self.apply(change.change)
            except OperationError as error:
                raise ViolationError(str(error)) from error
            held = [self.machine_of[m.id].id for m in self.view.members]
            if len(set(held)) < len(held):
                raise ViolationError(f"P1: {self.id} has two members on {machine.id}")

    # -- what planners ask for: return why it was refused, or ""

    def start(self, node: str, machine: SimMachine, role: MemberRole) -> str:
        """Start a process on a machine, on a new data directory."""
        if not machine.answers(self.fleet.now):
            return "the machine does not answer"
        there = machine.directories.get(self.id)
        if there is not None and self.view.member(there) is not None:
            return "" if there == node else f"{machine.id} has a data directory of {there}"
        machine.directories[self.id] = node
        self.machine_of[node] = machine
        self.roles[node] = role
        return ""

    def hand_over(self, node: str) -> str:
        """The primary hands over, if it is there."""
        if not self.serves():
            return "no primary"
        if node not in self.machine_of or not self.is_live(node):
            return f"{node} does not answer"
        return self.apply(Handover(node))

    def remove(self, node: str) -> str:
        """The primary judges by what it sees (M1)."""
        if not self.serves():
            return "no primary"
        change = removal(node, 1)
        change.next(0, self.view)
        if change.view is not None:
            change.looked(self.view, refusals(self.view, self.facts(), node))
        if change.next(0, self.view) == "propose" and change.change is not None:
            return self.apply(change.change)
        found = change.answer(_NOBODY)
        return str(found) if isinstance(found, RejectedError) else ""


class Fleet:
    """All machines and groups, and how often what happened."""

    def __init__(self, random: Random, seen: Counter[str]) -> None:
        self.random = random
        self.seen = seen
        self.now = 0
        self.machines: dict[str, SimMachine] = {}
        self.groups: dict[str, SimGroup] = {}

    def told(self) -> tuple[list[FleetMachine], list[GroupState]]:
        """Return what a planner that asks now is told."""
        machines = [machine.described() for machine in self.machines.values()]
        return machines, [group.state() for group in self.groups.values()]

    def moving(self) -> int:
        return sum(group.is_moving() for group in self.groups.values())

    def tick(self) -> None:
        """Let time go on. Nothing that happens to one group changes another's epoch."""
        self.now += 1
        epochs = {group.id: group.view.epoch for group in self.groups.values()}
        headless = {g.id for g in self.groups.values() if not g.is_live(g.view.primary)}
        for group in self.groups.values():
            group.tick(self.random)
        for group in self.groups.values():
            if group.view.epoch != epochs[group.id] and group.id not in headless:
                raise ViolationError(f"{group.id} has failed over, and its primary is well")
