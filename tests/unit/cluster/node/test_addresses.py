"""What a node does when its file and the view give it different addresses: the newer counts."""

from __future__ import annotations

import pytest

from cluster.node.addresses import AddressStep, edit_or_move, next_step
from election.identity import Addresses

OLD, NEW, THIRD = (Addresses(f"{host}:1", f"{host}:2", f"{host}:3") for host in "abc")


@pytest.mark.parametrize(
    ("configured", "agreed", "last_agreed", "is_first", "step"),
    [
        pytest.param(OLD, OLD, OLD, True, "none", id="nothing has changed"),
        pytest.param(OLD, OLD, None, True, "none", id="a new node"),
        pytest.param(NEW, OLD, OLD, True, "register", id="the file was edited"),
        pytest.param(NEW, OLD, OLD, False, "register", id="the file was edited, and a newer view"),
        pytest.param(NEW, OLD, None, True, "register", id="the file differs from the first one's"),
        pytest.param(NEW, NEW, OLD, True, "none", id="file and view were changed alike"),
        pytest.param(OLD, NEW, OLD, True, "refuse", id="moved by command, file not edited"),
        pytest.param(OLD, NEW, OLD, False, "warn", id="moved by command while it runs"),
        pytest.param(THIRD, NEW, OLD, True, "register", id="moved by command, then edited"),
    ],
)
def test_the_newer_counts(
    configured: Addresses,
    agreed: Addresses,
    last_agreed: Addresses,
    is_first: bool,
    step: AddressStep,
) -> None:
    assert next_step(configured, agreed, last_agreed, is_first=is_first) == step


def test_the_operator_is_told_both_ways_out() -> None:
    agreed = Addresses("a:1", "b:2", "b:3")
    said = edit_or_move("n2", "cluster.toml", OLD, agreed)
    assert 'nodes.n2.peer = "b:2", nodes.n2.raft = "b:3"' in said
    assert "onecopy member move n2 --peer a:2 --raft a:3" in said
    assert "client" not in said
