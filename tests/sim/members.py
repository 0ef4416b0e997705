"""The members of a simulated cluster."""

from __future__ import annotations

from election.identity import Addresses
from election.view import Member


def addresses_at(host: str) -> Addresses:
    """Return the addresses of a node that runs on `host`."""
    return Addresses(client=f"{host}:1", peer=f"{host}:2", raft=f"{host}:3")


def make_member(node_id: str) -> Member:
    """Return a replica that is a member."""
    own = addresses_at(node_id)
    return Member(
        id=node_id,
        role="replica",
        client=own.client,
        peer=own.peer,
        raft=own.raft,
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
