"""The file that describes machines and groups, and the machine of each node."""

from __future__ import annotations

import msgspec
import pytest

from cluster.groups.fleet import FleetFileError, decode_fleet
from cluster.groups.placement import MAX_MOVING, plan_placement
from datapath.operations import ClusterStatus, NodeState

FILE = """
[machines.m1]
state = "draining"
[machines.m2]
host = "10.0.0.2"
[machines.m3]
host = "10.0.0.3"
[machines.m4]
[groups.g1]
endpoints = ["http://10.0.0.1:8101"]
nodes = { n1 = "m1" }
"""


def _status(third: str = "10.0.0.3:8101") -> ClusterStatus:
    clients = {"n1": "10.0.0.1:8101", "n2": "10.0.0.2:8101", "n3": third}
    return ClusterStatus(
        cluster="c",
        cluster_id="1",
        epoch=1,
        version=7,
        primary="n2",
        in_sync=tuple(clients),
        nodes={
            node: NodeState(
                role="replica",
                client=client,
                state="primary" if node == "n2" else "backup",
                votes=True,
            )
            for node, client in clients.items()
        },
    )


def test_a_witness_is_moved_and_one_that_is_missing_comes_where_the_file_says_how_many() -> None:
    status = _status()
    status.nodes["n3"] = msgspec.structs.replace(status.nodes["n3"], role="witness")
    status = msgspec.structs.replace(status, in_sync=("n1", "n2"))
    with pytest.raises(FleetFileError, match=r"groups.g1.witnesses: the group has n3: say how"):
        decode_fleet(FILE).observed("g1", status)
    shape = 'endpoints = ["http://10.0.0.1:8101"]\nreplicas = 2\nwitnesses = 1\n'
    file = FILE.replace('endpoints = ["http://10.0.0.1:8101"]\n', shape)
    drained = file.replace('state = "draining"\n', "").replace(
        "[machines.m3]", '[machines.m3]\nstate = "draining"'
    )
    fleet = decode_fleet(drained)
    (step,) = plan_placement(fleet.described(), [fleet.observed("g1", status)])
    assert (step.kind, step.node, step.role) == ("add", "m4-v7", "witness")
    del status.nodes["n3"]
    (step,) = plan_placement(fleet.described(), [fleet.observed("g1", status)])
    assert (step.kind, step.machine, step.role) == ("add", "m4", "witness")
    assert step.reason == "a witness is missing"
    with pytest.raises(FleetFileError, match="witnesses: at least 0"):
        decode_fleet(file.replace("witnesses = 1", "witnesses = -1"))


def test_a_node_is_on_the_machine_that_the_file_its_id_or_its_address_names() -> None:
    fleet = decode_fleet(FILE)
    state = fleet.observed("g1", _status())
    assert state.machines == {"n1": "m1", "n2": "m2", "n3": "m3"}
    (step,) = plan_placement(fleet.described(), [state])
    assert (step.kind, step.node, step.machine) == ("add", "m4-v7", "m4")
    status = _status()
    status.nodes["m4-v7"] = NodeState(role="replica", client="10.0.0.4:1", state="learner")
    state = fleet.observed("g1", status)
    assert state.machines["m4-v7"] == "m4"
    (step,) = plan_placement(fleet.described(), [state])
    assert step.kind == "wait"
    assert "m4-v7 must be live, in sync and have a vote first" in step.reason


def test_an_unknown_machine_is_an_error_that_says_what_to_add() -> None:
    with pytest.raises(FleetFileError, match=r'groups.g1.nodes: .* n3 = "MACHINE"'):
        decode_fleet(FILE).observed("g1", _status("10.9.9.9:8101"))


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("[machines.m4]", "[machines.m4]\ncapacity = 0", "machines.m4.capacity: at least 1"),
        ("[groups.g1]", "[groups.g1]\nreplicas = 0", "groups.g1.replicas: at least 1"),
        ("[machines.m4]", '[machines."10.0.0.4"]', "machines.10.0.0.4: an id is 1 to 20 of"),
        ('["http://10.0.0.1:8101"]', "[]", "groups.g1.endpoints: name a node of the group"),
        ("draining", "drained", "Invalid enum value"),
        ("nodes =", "node =", "unknown field"),
        ("[groups.g1]", "[groups.g1", "line"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(old: str, new: str, problem: str) -> None:
    with pytest.raises(FleetFileError, match=problem):
        decode_fleet(FILE.replace(old, new))


def test_no_more_groups_are_changed_at_once_than_the_bound_says() -> None:
    groups = "".join(
        f'[groups.g{n}]\nendpoints = ["http://a"]\nnodes = {{ n1 = "m1" }}\n' for n in range(20)
    )
    fleet = decode_fleet(FILE.partition("[groups")[0] + groups)
    states = [fleet.observed(group, _status()) for group in fleet.groups]
    kinds = [step.kind for step in plan_placement(fleet.described(), states)]
    assert kinds.count("add") == MAX_MOVING
    assert kinds.count("wait") == 20 - MAX_MOVING


@pytest.mark.parametrize("state", ["unreachable", "unknown"])
def test_whoever_is_out_of_reach_counts_as_dead(state: str) -> None:
    status = _status()
    status.nodes["n3"] = msgspec.structs.replace(status.nodes["n3"], state=state)
    fleet = decode_fleet(FILE.replace('"draining"', '"up"'))
    assert plan_placement(fleet.described(), [fleet.observed("g1", status)]) == []
    lost = FILE.replace('"draining"', '"up"').replace(
        "[machines.m3]", '[machines.m3]\nstate = "lost"'
    )
    fleet = decode_fleet(lost)
    (step,) = plan_placement(fleet.described(), [fleet.observed("g1", status)])
    assert (step.kind, step.node) == ("remove", "n3")


def test_a_newcomer_without_a_vote_replaces_nobody() -> None:
    status, fleet = _status(), decode_fleet(FILE)
    status = msgspec.structs.replace(status, in_sync=(*status.in_sync, "m4-v7"))
    for votes, kind in ((False, "wait"), (True, "remove")):
        status.nodes["m4-v7"] = NodeState(
            role="replica", client="10.0.0.4:1", state="backup", votes=votes
        )
        (step,) = plan_placement(fleet.described(), [fleet.observed("g1", status)])
        assert step.kind == kind


def test_a_machine_without_a_host_is_found_by_its_id() -> None:
    fleet = decode_fleet(FILE + "\n[machines.db3]\n")
    assert fleet.observed("g1", _status("db3:8101")).machines["n3"] == "db3"
