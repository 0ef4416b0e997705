"""The file that describes machines and groups to the planner; what a group says of itself. Pure.

[machines.m1]
zone = "a"
capacity = 8
state = "draining"

[groups.g1]
endpoints = ["http://10.0.0.1:8101"]
replicas = 2
witnesses = 1
nodes = { n1 = "m1", n2 = "m2" }
"""

from __future__ import annotations

import re
import tomllib

import msgspec

from cluster.groups.placement import FleetMachine, FleetMachineState, GroupState, machine_of
from datapath.node.membership import Facts
from datapath.operations import ClusterStatus
from election.view import Member, View

DEFAULT_CAPACITY = 16
_MACHINE_ID = "[a-z0-9][a-z0-9-]{0,19}"
NOT_LIVE = frozenset({"unreachable", "unknown"})


class FleetFileError(ValueError):
    """The file cannot be used; `str(error)` names the field and the fix."""


class MachineSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[machines.ID]`. `host`: that of its nodes' addresses for clients; "": the id is."""

    zone: str = ""
    capacity: int = DEFAULT_CAPACITY
    state: FleetMachineState = "up"
    host: str = ""


class GroupSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[groups.ID]`. `nodes`: the machine of a node, where neither its id nor its host says it.

    `witnesses` has to be there if the group has some: what is not asked for is removed.
    """

    endpoints: tuple[str, ...]
    replicas: int = 3
    witnesses: int | None = None
    nodes: dict[str, str] = {}


class FleetFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file."""

    machines: dict[str, MachineSection]
    groups: dict[str, GroupSection]

    def described(self) -> list[FleetMachine]:
        """Return the machines as the planner takes them."""
        return [
            FleetMachine(id=name, capacity=item.capacity, zone=item.zone, state=item.state)
            for name, item in self.machines.items()
        ]

    def observed(self, group: str, status: ClusterStatus) -> GroupState:
        """Return what a group's status says. Raises FleetFileError if the file does not fit."""
        section = self.groups[group]
        nodes = status.nodes
        held = sorted(node for node, item in nodes.items() if item.role == "witness")
        if held and section.witnesses is None:
            raise FleetFileError(
                f"groups.{group}.witnesses: the group has {', '.join(held)}: say how many "
                f"witnesses it is to have, such as witnesses = {len(held)}"
            )
        members = tuple(
            Member(id=node, role=item.role, client=item.client, peer="", raft="")
            for node, item in sorted(nodes.items())
        )
        view = View(
            cluster_id=status.cluster_id,
            epoch=status.epoch,
            version=status.version,
            primary=status.primary,
            in_sync=status.in_sync,
            members=members,
        )
        facts = Facts(
            live=frozenset(node for node, item in nodes.items() if item.state not in NOT_LIVE),
            voters=frozenset(node for node, item in nodes.items() if item.votes),
        )
        machines = {member.id: self._machine(group, member) for member in members}
        return GroupState(
            id=group,
            view=view,
            facts=facts,
            machines=machines,
            replicas=section.replicas,
            witnesses=section.witnesses or 0,
        )

    def _machine(self, group: str, member: Member) -> str:
        named = self.groups[group].nodes.get(member.id) or machine_of(member.id)
        if named in self.machines:
            return named
        host = member.client.rpartition(":")[0]
        for name, item in self.machines.items():
            if host == (item.host or name):
                return name
        raise FleetFileError(
            f"groups.{group}.nodes: no machine is known for {member.id} at {member.client}: add "
            f'{member.id} = "MACHINE", or the machine with host = "{host}"'
        )


def decode_fleet(text: str) -> FleetFile:
    """Read the file. Raises FleetFileError."""
    try:
        found = msgspec.convert(tomllib.loads(text), FleetFile)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise FleetFileError(str(error)) from error
    for name, machine in found.machines.items():
        if re.fullmatch(_MACHINE_ID, name) is None:
            raise FleetFileError(
                f"machines.{name}: an id is 1 to 20 of a-z 0-9 -, not beginning with -: nodes get "
                "theirs from it (put an address into `host`)"
            )
        if machine.capacity < 1:
            raise FleetFileError(f"machines.{name}.capacity: at least 1, not {machine.capacity}")
    for name, group in found.groups.items():
        if group.replicas < 1:
            raise FleetFileError(f"groups.{name}.replicas: at least 1, not {group.replicas}")
        if (group.witnesses or 0) < 0:
            raise FleetFileError(f"groups.{name}.witnesses: at least 0, not {group.witnesses}")
        if not group.endpoints:
            raise FleetFileError(f"groups.{name}.endpoints: name a node of the group")
    return found
