"""The adapter's settings. Every duration and size has its unit in its name."""

from __future__ import annotations

from pathlib import Path

import msgspec

from election.identity import Claim
from election.registry import PeerRegistry
from election.release import Release, own_release
from election.shared_secret import SharedSecret


class AgreementSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How one node takes part in the consensus group.

    `members` maps node ids to raft addresses ("host:port"), this node included. Who is a member, it
    says only at the very first start: from then on the list agreed by the group, kept in
    `directory`, does. Its addresses are tried where the agreed ones do not answer.
    `founders` is for a node that joins a group that exists: the members with which the group's log
    began, as a member has told it; then `members` only says whom to link with at first.
    `registry` judges who is at the other end of a link; without one (in tests) the secret and the
    directory's id alone do. `routes` maps a node id to the address to dial instead of its raft
    address (NAT, a proxy).
    `secret` is the cluster secret: random, at least 128 bits; whoever knows it is a member. It may
    change while the node runs.

    The timings serve one purpose each: a leader's heartbeat, how long its silence lasts before an
    election (drawn between the two bounds), when a leader that hears no majority steps down, how
    long a silent connection lives, how often a missing one is dialled, how long a dial and its
    handshake may take.
    """

    node_id: str
    bind_address: str
    members: dict[str, str]
    directory: Path
    secret: SharedSecret
    registry: PeerRegistry | None = None
    founders: dict[str, str] | None = None
    routes: dict[str, str] = {}
    heartbeat_interval_ms: int = 40
    election_min_ms: int = 150
    election_max_ms: int = 300
    leader_fallback_ms: int = 500
    connection_timeout_ms: int = 1000
    dial_interval_ms: int = 100
    handshake_timeout_ms: int = 500
    stall_limit_ms: int = 5000
    compaction_entries: int = 512
    compaction_interval_ms: int = 60_000
    journal_reserve_bytes: int = 1024 * 1024

    @property
    def claim(self) -> Claim:
        """What this node says of itself on each new link."""
        return self.registry.claim if self.registry is not None else Claim()

    @property
    def release(self) -> Release:
        """What this node says of its program on each new link."""
        return self.registry.release if self.registry is not None else own_release("")

    def __repr__(self) -> str:
        """Return what may stand in a log: not the secret."""
        return f"AgreementSettings(node_id={self.node_id!r}, directory={str(self.directory)!r})"

    def __post_init__(self) -> None:
        """Refuse what cannot work.

        Raises:
            ValueError: naming the setting and what it must be.

        """
        if self.node_id not in self.members:
            raise ValueError(f"members must include this node, {self.node_id!r}")
        if not self.secret:
            raise ValueError(
                "secret must not be empty: any process that reaches the port could join"
            )
        if not 3 * self.heartbeat_interval_ms < self.election_min_ms < self.election_max_ms:
            raise ValueError(
                "three heartbeat_interval_ms must fit into election_min_ms, "
                "and that must be below election_max_ms"
            )
        if self.leader_fallback_ms <= self.election_max_ms:
            raise ValueError("leader_fallback_ms must be above election_max_ms")
        if self.connection_timeout_ms <= self.election_max_ms:
            raise ValueError("connection_timeout_ms must be above election_max_ms")
        if self.compaction_entries < 2:
            raise ValueError("compaction_entries must be at least 2")
        for name in ("dial_interval_ms", "handshake_timeout_ms", "stall_limit_ms"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive")
        for address in (self.bind_address, *self.members.values(), *self.routes.values()):
            host_and_port(address)


def host_and_port(address: str) -> tuple[str, int]:
    """Return the host and the port of "host:port"; an IPv6 host may stand in brackets.

    Raises:
        ValueError: there is no host, or the port is not one.

    """
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"{address!r} is not host:port")
    return host, int(port)
