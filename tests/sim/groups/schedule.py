"""One schedule: machines die, are cut off, are emptied and come; planners place groups meanwhile.

Planners have old information, end between two steps, and two run at once. In the end all troubles
are over, and everything must be in its place after a bounded number of steps.
"""

from __future__ import annotations

from collections import Counter, deque
from random import Random

from cluster.groups import placement
from cluster.groups.placement import FleetMachine, GroupState, PlacementStep
from election.view import MemberRole
from tests.sim.clockwork import ViolationError
from tests.sim.groups.fleet import Fleet, SimGroup, SimMachine

TRANSCRIPT_LINES = 200
BIG_EVERY = 100
"""Each hundredth schedule has 100 machines and 300 groups."""
STALE_TICKS = 6
TROUBLE_TICKS = (40, 90)
END_TICKS = 600
STEPS_PER_GROUP = 12
"""In the end, of which three are one move."""
ROOM = 0.8
"""The share of the capacity that is needed at most: what is lost and emptied beyond that is not."""
SHAPES: tuple[dict[MemberRole, int], ...] = tuple(
    {"replica": replicas, "witness": witnesses}
    for replicas, witnesses in ((1, 0), (2, 1), (2, 1), (3, 0), (3, 0), (3, 2), (5, 0))
)
"""How many members a group is to have."""
WITH_WITNESS = SHAPES[1]
DOWN_TICKS = (1, 10)


class Planner:
    """Asks what is, plans, and makes its steps one after the other, sometimes much later."""

    def __init__(self, schedule: Schedule, name: str) -> None:
        self._schedule = schedule
        self.name = name
        self._steps: deque[PlacementStep] = deque()
        self._known: dict[str, GroupState] = {}
        self._machines: dict[str, FleetMachine] = {}

    def tick(self) -> None:
        """Go on with a plan, make a new one by old information, or end in the middle."""
        schedule = self._schedule
        random = schedule.random
        if self._steps and random.random() < 0.1:
            schedule.seen["a planner ended between two steps"] += 1
            self._steps.clear()
            return
        if not self._steps:
            told = schedule.history[-random.randint(1, len(schedule.history))]
            self.plan(*told)
        for _ in range(random.randint(0, 4)):
            if self._steps:
                self.carry_out(self._steps.popleft())

    def plan(self, machines: list[FleetMachine], groups: list[GroupState]) -> None:
        self._known = {group.id: group for group in groups}
        self._machines = {machine.id: machine for machine in machines}
        steps = placement.plan_placement(machines, groups)
        per_group = Counter(step.group for step in steps)
        if any(count > 1 for count in per_group.values()):
            raise ViolationError("P4: two steps of one group in a plan")
        self._steps.extend(step for step in steps if step.kind != "wait")

    def all_at_once(self) -> int:
        """Plan by what is so, carry it all out; return how many steps that were."""
        self._steps.clear()
        self.plan(*self._schedule.fleet.told())
        count = len(self._steps)
        while self._steps:
            self.carry_out(self._steps.popleft(), exact=True)
        return count

    def carry_out(self, step: PlacementStep, *, exact: bool = False) -> None:
        schedule = self._schedule
        group = schedule.fleet.groups[step.group]
        before = group.state()
        machine = schedule.fleet.machines.get(step.machine)
        # A machine may have died since, or its description have changed.
        is_as_told = machine is not None and self._machines[step.machine] == machine.described()
        answers = machine is not None and machine.answers(schedule.fleet.now)
        knew = is_as_told and self._known[step.group] == before and (step.kind != "add" or answers)
        schedule.before(step, group, knew=knew, exact=exact)
        refused = _ask(step, group, machine)
        schedule.note(f"{self.name}: {step}: {refused or 'done'}")
        schedule.seen[f"{step.kind}: {'refused' if refused else 'done'}"] += 1
        if not refused and step.kind in {"add", "remove"}:
            schedule.seen[f"{step.kind}: {group.roles.get(step.node, 'unknown')}"] += 1
        if refused and knew:
            raise ViolationError(f"{step} was planned by what is so, and is refused: {refused}")
        if exact:
            group.join()


def _ask(step: PlacementStep, group: SimGroup, machine: SimMachine | None) -> str:
    if step.kind == "add":
        return "no such machine" if machine is None else group.start(step.node, machine, step.role)
    return group.remove(step.node) if step.kind == "remove" else group.hand_over(step.node)


class Schedule:
    """A run is a function of its seed."""

    def __init__(self, seed: int, *, trace: bool = False, big: bool | None = None) -> None:
        self.random = random = Random(f"{seed} groups")
        self.seen: Counter[str] = Counter()
        self.transcript: deque[str] = deque(maxlen=TRANSCRIPT_LINES)
        self._trace = trace
        self.fleet = Fleet(random, self.seen)
        self.history: deque[tuple[list[FleetMachine], list[GroupState]]] = deque(maxlen=STALE_TICKS)
        is_big = seed % BIG_EVERY == 0 if big is None else big
        self._zones = random.choice((0, 2, 3, 5))
        groups = 300 if is_big else random.randint(2, 20)
        self._wanted = WITH_WITNESS if is_big else random.choice(SHAPES)
        self._size = sum(self._wanted.values())
        for _ in range(100 if is_big else random.randint(self._size + 2, 12)):
            self._new_machine(groups)
        self._found(groups)
        self.planners = [Planner(self, f"planner {n + 1}") for n in range(random.randint(1, 2))]
        self.seen[f"planners: {len(self.planners)}"] += 1

    def note(self, text: str) -> None:
        if self._trace:
            self.transcript.append(f"{self.fleet.now:5d}  {text}")

    def run(self) -> Counter[str]:
        """Run it. Raises ViolationError."""
        for _ in range(self.random.randint(*TROUBLE_TICKS)):
            self._trouble()
            self.fleet.tick()
            self.history.append(self.fleet.told())
            for planner in self.planners:
                if self.random.random() < 0.5:
                    planner.tick()
        self._heal()
        self._end()
        self.seen["simulated ms"] += self.fleet.now * 1000
        return self.seen

    # -- the beginning

    def _new_machine(self, groups: int) -> None:
        machines = self.fleet.machines
        number = len(machines) + 1
        zone = f"z{number % self._zones}" if self._zones else ""
        capacity = self.random.choice((groups, groups, max(2, groups // 2)))
        if groups >= 100:
            capacity = self.random.choice((12, 16, 24))
        machines[f"m{number}"] = SimMachine(f"m{number}", capacity, zone)

    def _found(self, groups: int) -> None:
        """Half of the groups begin whole, half with one member that is to grow."""
        for number in range(groups):
            free = [m for m in self.fleet.machines.values() if len(m.directories) < m.capacity]
            count = self._size if self.random.random() < 0.5 else 1
            if len(free) < count or not self._has_room(self._size):
                break
            name = f"g{number + 1}"
            chosen = self.random.sample(free, count)
            min_in_sync = self.random.choice((1, min(2, count, self._wanted["replica"])))
            group = SimGroup(self.fleet, name, chosen, self._wanted, min_in_sync)
            self.fleet.groups[name] = group
        self.history.append(self.fleet.told())

    def _has_room(self, more: int = 0, without: SimMachine | None = None) -> bool:
        """Whether the machines that stay have enough room for all groups."""
        staying = [
            m for m in self.fleet.machines.values() if m.state == "up" and not m.gone
            and m is not without
        ]  # fmt: skip
        groups = len(self.fleet.groups)
        needed = groups * self._size + more
        # A machine holds one member of a group.
        room = sum(min(machine.capacity, max(groups, 1)) for machine in staying)
        return len(staying) > self._size + 1 and needed <= ROOM * room

    # -- troubles

    def _trouble(self) -> None:
        random, machines = self.random, list(self.fleet.machines.values())
        for machine in machines:
            if machine.state == "lost" and not machine.gone and random.random() < 0.2:
                machine.state = "up"  # it is back, and its operator sees that
        if random.random() > 0.5:
            return
        machine = random.choice(machines)
        if not machine.answers(self.fleet.now):
            if machine.state == "up" and (machine.gone or random.random() < 0.2):
                self._happen("declared lost", machine)
                machine.state = "lost"
            return
        kind = random.choice(("down", "down", "gone", "drain", "drain ended", "new"))
        if kind == "down":
            machine.back_at = self.fleet.now + random.randint(*DOWN_TICKS)
        elif kind == "gone":
            groups = self.fleet.groups.values()
            if not self._has_room(without=machine) or not all(g.survives(machine) for g in groups):
                return
            machine.gone = True
        elif kind == "drain":
            if machine.state != "up" or not self._has_room(without=machine):
                return
            machine.state = "draining"
        elif kind == "drain ended":
            if machine.state != "draining":
                return
            machine.state = "up"
        else:
            self._new_machine(len(self.fleet.groups))
        self._happen(kind, machine)

    def _happen(self, kind: str, machine: SimMachine) -> None:
        self.seen[f"machine: {kind}"] += 1
        self.note(f"{machine.id}: {kind}")

    def _heal(self) -> None:
        """Who comes back is back; who does not is known not to."""
        for machine in self.fleet.machines.values():
            machine.back_at = 0
            if machine.gone:
                machine.state = "lost"
            elif machine.state == "lost":
                machine.state = "up"
        self.note("healed")

    # -- what must hold

    def before(self, step: PlacementStep, group: SimGroup, *, knew: bool, exact: bool) -> None:
        """Judge a step by what is so, just before it is made."""
        state = group.state()
        begins = step.kind == "add" and not group.is_moving()
        if begins and exact and self.fleet.moving() >= placement.MAX_MOVING:
            raise ViolationError(f"P4: {step} begins while too many groups are changed")
        if step.kind == "add" and knew and not all(map(group.is_live, group.voters)):
            raise ViolationError(f"P4: {step}: a voter comes while another one does not answer")
        if step.kind == "hand_over" and knew and not group.is_settled(step.node):
            raise ViolationError(f"P3: {step}: it is not in sync or has no vote")
        if step.kind == "remove":
            self._judge_removal(step, group, state, knew=knew)

    def _judge_removal(
        self, step: PlacementStep, group: SimGroup, state: GroupState, *, knew: bool
    ) -> None:
        if state.view.member(step.node) is None:
            return
        role = group.roles[step.node]
        others = [n for n in group.roles if n != step.node and state.view.member(n) is not None]
        if knew and group.is_live(step.node):
            settled = sum(group.is_settled(n) for n in others if group.roles[n] == role)
            if settled < group.wanted[role]:
                raise ViolationError(f"P2: {step} leaves {settled} that are settled")
        held = 1 + sum(group.roles[node] == role for node in others)
        is_lost = group.machine_of[step.node].state == "lost"
        if knew and not group.is_live(step.node) and not is_lost and held <= group.wanted[role]:
            raise ViolationError(
                f"P2: {step}: its machine may come back, and no other has its place"
            )
        if not group.is_available() or group.is_available(without=step.node):
            return
        if not group.remove(step.node):
            raise ViolationError(f"M1: {step} took the majority or the last copy")

    def _end(self) -> None:
        made = 0
        for _ in range(END_TICKS):
            self.fleet.tick()
            steps = sum(planner.all_at_once() for planner in self.planners)
            made += steps
            if not steps and not self._problem():
                break
        self.seen["steps in the end"] += made
        if problem := self._problem():
            raise ViolationError(f"in the end {problem}")
        if made > STEPS_PER_GROUP * len(self.fleet.groups):
            raise ViolationError(f"{made} steps for {len(self.fleet.groups)} groups in the end")

    def _problem(self) -> str:
        """Return what is not in its place; "" if all is."""
        held: Counter[str] = Counter()
        primaries: Counter[str] = Counter()
        for group in self.fleet.groups.values():
            held.update(group.state().machines.values())
            primaries[group.machine_of[group.view.primary].id] += 1
        for name, count in held.items():
            if count > self.fleet.machines[name].capacity:
                return f"{name} holds {count} of {self.fleet.machines[name].capacity}"
        for group in self.fleet.groups.values():
            if found := self._group_problem(group, primaries):
                return f"{group.id}: {found}"
        return ""

    def _group_problem(self, group: SimGroup, primaries: Counter[str]) -> str:
        state = group.state()
        nodes = [member.id for member in state.view.members]
        machines = [group.machine_of[node] for node in nodes]
        roles = Counter(member.role for member in state.view.members)
        if roles != +Counter(group.wanted) or set(nodes) != group.voters:
            return f"{dict(roles)}, {len(group.voters)} votes"
        if not all(map(group.is_settled, nodes)):
            return "not all are in sync"
        if bad := [machine.id for machine in machines if machine.state != "up"]:
            return f"a member is on {bad[0]}"
        now = primaries[group.machine_of[group.view.primary].id]
        others = [group.machine_of[n].id for n in nodes if group.roles[n] == "replica"]
        if now - min(map(primaries.__getitem__, others)) > 1:
            return "another member's machine has fewer primaries"
        return self._zone_problem(machines)

    def _zone_problem(self, machines: list[SimMachine]) -> str:
        used = Counter(machine.zone for machine in machines)
        if not self._zones or max(used.values()) == 1:
            return ""
        held = Counter(
            name for g in self.fleet.groups.values() for name in g.state().machines.values()
        )
        for machine in self.fleet.machines.values():
            is_free = machine.state == "up" and held[machine.id] < machine.capacity
            if is_free and machine not in machines and used[machine.zone] < max(used.values()) - 1:
                return f"{machine.id} is free, in a zone that it hardly uses"
        return ""
