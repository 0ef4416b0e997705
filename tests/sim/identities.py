"""Where a simulated node listens, and who it says it is: its files, and production's registry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from cluster.node.addresses import AddressStep, next_step
from election.identity import Addresses, Claim
from election.registry import KnownMember, PeerRegistry, addresses_of, known_members
from election.view import Member, View

if TYPE_CHECKING:
    from tests.sim.node import Node

ImpostorKind = Literal["clone", "twin", "stranger", "namesake", "other data", "emptied"]


class Identity:
    """A node's configuration file, what its data directory remembers, and a registry for each life.

    `file` is what operators have written last, `configured` what the running process has read.
    """

    def __init__(self, node: Node, file: Mapping[str, Addresses]) -> None:
        self._node = node
        self.file = dict(file)
        self.configured = dict(file)
        self.former: list[str] = []  # peer addresses that it has left
        self.newest: View | None = None  # that this life has heard of
        self.registry: PeerRegistry
        # As met while the cluster was founded.
        self._pins = {name: name for name in file} if node.world.is_registered else {}
        self._last_agreed: Addresses | None = None
        self._members: Mapping[str, KnownMember] = {}
        self._version = 0
        self._view_seen = False

    @property
    def own(self) -> Addresses:
        """The addresses of this process."""
        return self.configured[self._node.id]

    @property
    def claim(self) -> Claim:
        """What it says of itself."""
        return self.registry.claim

    def member(self) -> Member:
        """Return the member that it is, by its own file."""
        name, own = self._node.id, self.own
        return Member(
            id=name, role="replica", client=own.client, peer=own.peer, raft=own.raft, data_id=name
        )

    def start(self, life: int) -> None:
        """Read the file and the directory, as a process that starts does."""
        node, left = self._node, self.own.peer
        self.configured = dict(self.file)
        if left != self.own.peer:
            self.former.append(left)
        self.newest, self._view_seen = None, False
        self.registry = PeerRegistry(
            node.id,
            node.id,
            f"{node.id}.{life}",
            self.configured,
            cluster_id="sim" if self._version else "",
            members=self._members,
            pins=lambda: self._pins,
            clock=lambda: node.clock() / 1000,
        )

    def take(self, view: View) -> bool:
        """Take a view, if it is news (`cluster.node.process`); return whether it is."""
        if self.newest is not None and view.version <= self.newest.version:
            return False
        self.newest = view
        self.registry.learn(view)
        return True

    def step(self, view: View) -> AddressStep:
        """Return what is to be done about the own entry (`cluster.node.joining`); note the rest."""
        is_first = not self._view_seen and view.version >= self._version
        self._view_seen = self._view_seen or is_first
        members = known_members(view)
        if view.version > self._version and members != self._members:
            self._members, self._version = members, view.version
        member = view.member(self._node.id)
        if member is None:
            return "none"
        agreed = addresses_of(member)
        step = next_step(self.own, agreed, self._last_agreed, is_first=is_first)
        if step == "none":
            self._last_agreed = agreed
            return "none" if member.data_id else "register"
        return step

    def peers(self) -> set[str]:
        """Return whom it dials: the replicas of the newest view, else those that it remembers."""
        if self.newest is not None:
            found = {member.id for member in self.newest.members if member.role == "replica"}
        else:
            found = set(self._members or self.configured)
        return found - {self._node.id}

    def places(self, peer: str) -> tuple[str, str]:
        """Return where `peer` is by its file, and by its newest view or what it remembers."""
        known = self.configured.get(peer, Addresses()).peer
        if self.newest is not None:
            member = self.newest.member(peer)
            agreed = "" if member is None else member.peer
        else:
            agreed = self._members[peer].addresses.peer if peer in self._members else ""
        return known, agreed


class _Trusting:
    """The registry of an impostor: it has a link with anybody."""

    def __init__(self, claim: Claim) -> None:
        self.claim = claim

    def open(self, *_: object, **__: object) -> int:
        return 0

    def close(self, _token: int) -> None:
        pass


class Impostor:
    """A process that knows the secret, runs under a node's id, and is another one.

    It listens and dials, and holds what links it gets; no replica runs on it. "clone": on a copy of
    the node's directory, with addresses of its own or those that the node has left; "twin": with
    the same addresses, in another network; "stranger": of another cluster; "namesake": too, on a
    directory that was met here while the cluster was founded; "other data": of this cluster, with
    another directory; "emptied": with an empty directory.
    """

    is_up = True
    paused = False
    life = 0

    def __init__(self, kind: ImpostorKind, node_id: str, instance: str, own: Addresses) -> None:
        self.kind = kind
        self.id = node_id
        self.own = own
        cluster = {"stranger": "other", "namesake": "other", "emptied": ""}.get(kind, "sim")
        data_id = node_id if kind in ("clone", "twin", "namesake") else f"not {node_id}"
        self.claim = Claim(cluster, data_id, instance, own)
        self.registry = _Trusting(self.claim)
        self.has_ended = False

    @property
    def identity(self) -> Impostor:
        """What a network asks of a node."""
        return self

    def post(self, *_: object) -> None:
        """Take what arrives, and do nothing."""

    def on_message(self, *_: object) -> None:
        """Take what arrives, and do nothing."""
