"""The members of a simulated cluster."""

from __future__ import annotations

from election.view import Member


def make_member(node_id: str) -> Member:
    """Return a replica that is a member."""
    return Member(
        id=node_id,
        role="replica",
        client=f"{node_id}:1",
        peer=f"{node_id}:2",
        raft=f"{node_id}:3",
        data_id=node_id,
    )


def make_witness(node_id: str = "w") -> Member:
    """Return a witness; it runs no replica and must never get into the in-sync set."""
    return Member(
        id=node_id,
        role="witness",
        client=f"{node_id}:1",
        peer=f"{node_id}:2",
        raft=f"{node_id}:3",
    )
