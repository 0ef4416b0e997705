"""A simulated network of connections: ordered inside one, never between two.

Each node dials every other member, where production's registry says that it is; both ends judge
who is there by the same. A cut holds a direction's messages back; they arrive in a burst when
it heals, unless a side has given the connection up by then. What was on the way when a connection
broke is lost, or arrives late, after messages of the next connection.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from datapath.protocol.messages import Message
from election.identity import ACCEPTED, Verdict
from election.registry import AddressRotation
from tests.sim.clockwork import Clockwork
from tests.sim.identities import Impostor

if TYPE_CHECKING:
    from tests.sim.node import Node

FAST_MS = (0.1, 1.5)
SLOW_MS = (5.0, 30.0)
IDLE_TIMEOUT_MS = (600.0, 1500.0)
REDIAL_MS = (20.0, 300.0)


class Connection:
    """One connection from `dialer` to `acceptor`. Direction 0 leads to the acceptor."""

    __slots__ = (
        "closed", "ends", "held", "is_broken", "late_ms", "lives", "ready", "routes", "tokens",
    )  # fmt: skip

    def __init__(self, dialer: Node | Impostor, acceptor: Node | Impostor) -> None:
        self.ends = (dialer, acceptor)
        self.tokens: list[Callable[[], None]] = []  # tell the registries that it is closed
        self.routes = ((dialer.id, acceptor.id), (acceptor.id, dialer.id))
        self.is_broken = False  # closed by one side, or both
        self.lives = (dialer.life, acceptor.life)
        self.closed = [False, False]  # by the dialer, by the acceptor
        self.late_ms = 0.0  # what was on the way when it broke arrives so much later; 0: never
        self.held: tuple[list[Message], list[Message]] = ([], [])
        self.ready = [0.0, 0.0]


class Dialling:
    """One life of a node keeps up a connection with a peer, as production's `Dialer` does."""

    __slots__ = ("failed", "life", "refused", "rotation", "source", "stopped", "target")

    def __init__(self, source: str, target: str, life: int) -> None:
        self.source, self.target, self.life = source, target, life
        self.rotation = AddressRotation()
        self.failed = False
        self.refused = ""  # why it was last; the same is noted once
        self.stopped = False


class Network:
    """Connections between nodes, directed cuts, delays."""

    def __init__(self, clockwork: Clockwork) -> None:
        self._clockwork = clockwork
        self.delay_ms = FAST_MS
        self.extra_ms: defaultdict[tuple[str, str], float] = defaultdict(float)
        """What links take longer, by (from, to)."""
        self.nodes: dict[str, Node] = {}
        self._cuts: defaultdict[tuple[str, str], int] = defaultdict(int)
        self.connections: list[Connection] = []
        self.listening: dict[str, Node | Impostor] = {}
        """Who listens at an address."""
        self._dialling: dict[tuple[str, str], Dialling] = {}
        self.outgoing: dict[tuple[str, str], Connection] = {}
        self.incoming: dict[tuple[str, str], Connection] = {}

    # -- cuts

    def is_cut(self, source: str, target: str) -> bool:
        """Whether nothing gets from one node to the other."""
        return self._cuts.get((source, target), 0) > 0

    def cut(self, source: str, target: str) -> None:
        """Let nothing through in one direction; cuts add up."""
        self._cuts[source, target] += 1
        for connection in self.connections:
            for direction in (0, 1):
                if connection.routes[direction] == (source, target):
                    self._clockwork.after(
                        self._clockwork.between(*IDLE_TIMEOUT_MS),
                        self._give_up,
                        connection,
                        direction,
                    )

    def heal(self, source: str, target: str) -> None:
        """Undo one cut."""
        if self._cuts.get((source, target), 0) <= 0:
            return
        self._cuts[source, target] -= 1
        if self._cuts[source, target]:
            return
        for connection in list(self.connections):
            for direction in (0, 1):
                if connection.routes[direction] == (source, target):
                    held = connection.held[direction]
                    messages = list(held)
                    held.clear()
                    for message in messages:
                        self._deliver(connection, direction, message)

    def heal_all(self) -> None:
        """Undo all cuts."""
        for (source, target), times in list(self._cuts.items()):
            for _ in range(times):
                self.heal(source, target)

    def _give_up(self, connection: Connection, direction: int) -> None:
        """The receiver has heard nothing for too long."""
        if self.is_cut(*connection.routes[direction]):
            self.close(connection, 1 - direction)

    # -- connections

    def is_taken(self, address: str, by: Node | Impostor) -> bool:
        """Whether another process listens there."""
        return self.listening.get(address, by) is not by

    def start(self, node: Node) -> None:
        """Let a node that starts listen, and dial whom it knows."""
        self.listening[node.identity.own.peer] = node
        self.dial_peers(node)

    def dial_peers(self, node: Node) -> None:
        """Dial whom a node wants to dial now, and nobody else (`Mesh.set_peers`)."""
        wanted = node.identity.peers()
        for other in self.nodes:
            key = node.id, other
            dialling = self._dialling.get(key)
            if dialling is not None and dialling.life != node.life:
                dialling = None
            if other in wanted and dialling is None:
                self._dialling[key] = dialling = Dialling(*key, node.life)
                self._redial_later(dialling, at_once=True)
            elif dialling is not None and other not in wanted:
                dialling.stopped = True
                del self._dialling[key]
                if (connection := self.outgoing.get(key)) is not None:
                    self.close(connection, 0)

    def _redial_later(self, dialling: Dialling, *, at_once: bool = False) -> None:
        delay = self._clockwork.between(1, 10) if at_once else self._clockwork.between(*REDIAL_MS)
        self._clockwork.after(delay, self._dial, dialling)

    def _dial(self, dialling: Dialling) -> None:
        source, target, life = dialling.source, dialling.target, dialling.life
        dialer = self.nodes[source]
        if (
            dialling.stopped
            or dialer.life != life
            or not dialer.is_up
            or (source, target) in self.outgoing
        ):
            return
        if dialer.paused or self.is_cut(source, target) or self.is_cut(target, source):
            self._redial_later(dialling)
            return
        found = dialer.identity.registry.dial_addresses(target, "peer")
        address = dialling.rotation.pick(found, failed=dialling.failed)
        dialling.failed = True
        acceptor = self.listening.get(address) if address is not None else None
        if address is not None:
            dialer.oracle.on_dialled(dialer, target, address)
        if acceptor is None or acceptor.paused or not self._shake_hands(dialling, acceptor):
            self._redial_later(dialling)

    def _shake_hands(self, dialling: Dialling, acceptor: Node | Impostor) -> bool:
        """Open a connection if both ends accept the other one; return whether they do."""
        source, target, seen = dialling.source, dialling.target, self._clockwork.seen
        if acceptor.id != target:  # the handshake names the node that is meant
            seen["link refused: another node"] += 1
            return False
        dialer = self.nodes[source]
        connection = Connection(dialer, acceptor)
        for side in (1, 0):
            verdict = self._admit(connection, side)
            if verdict.code:
                seen[f"link refused: {verdict.code}"] += 1
                if side == 1:
                    dialer.identity.registry.accuse(target, verdict.code, verdict.reason)
                if self._clockwork.tracing and dialling.refused != verdict.code:
                    self._clockwork.note(f"{source} dials {target}: refused ({verdict.code})")
                dialling.refused = verdict.code
                for forget in connection.tokens:
                    forget()
                return False
        dialling.failed, dialling.refused = False, ""
        old = self.incoming.get((source, target))
        if isinstance(acceptor, Impostor):
            seen["dialled a clone"] += 1
        elif old is not None:
            self.close(old, 1)
        self.connections.append(connection)
        self.outgoing[source, target] = connection
        if not isinstance(acceptor, Impostor):
            self.incoming[source, target] = connection
        dialer.oracle.on_connected(connection)
        dialer.post(dialling.life, dialer.on_link, target)
        return True

    def let_in(self, impostor: Impostor, node: Node) -> None:
        """Let an impostor dial a node, and hold what link it gets."""
        connection = Connection(impostor, node)
        verdict = self._admit(connection, 1)
        if verdict.code:
            self._clockwork.seen[f"{impostor.kind} refused: {verdict.code}"] += 1
            return
        self._admit(connection, 0)
        self.connections.append(connection)
        node.oracle.on_connected(connection)

    def _admit(self, connection: Connection, side: int) -> Verdict:
        """Let one end judge the other, and count the link as open there."""
        judge, other = connection.ends[side], connection.ends[1 - side]
        registry = judge.identity.registry
        opened = registry.open(
            other.id,
            other.identity.claim,
            "peer",
            partial(self._clockwork.after, 0.0, self.close, connection, side),
            asking=False,
            dialled=side == 0,
        )
        if isinstance(opened, Verdict):
            return opened
        connection.tokens.append(partial(registry.close, opened))
        return ACCEPTED

    def close(self, connection: Connection, side: int) -> None:
        """One side (0: the dialer) closes; the other one notices later."""
        clockwork = self._clockwork
        if connection.closed[side]:
            return
        dialer, acceptor = connection.ends
        key = (dialer.id, acceptor.id)
        if not any(connection.closed):
            if clockwork.chance(0.6):
                connection.late_ms = clockwork.between(0.1, 200)
            delay = clockwork.between(0.1, 5)
            if self.is_cut(*connection.routes[side]) or clockwork.chance(0.1):
                delay = clockwork.between(*IDLE_TIMEOUT_MS)
            clockwork.after(delay, self.close, connection, 1 - side)
        connection.closed[side] = connection.is_broken = True
        connection.tokens[1 - side]()  # the acceptor's comes first
        if all(connection.closed) and connection in self.connections:
            self.connections.remove(connection)
        if side == 0:
            if self.outgoing.get(key) is connection:
                del self.outgoing[key]
                node = self.nodes[dialer.id]
                node.post(connection.lives[0], node.on_link_lost, acceptor.id)
                dialling = self._dialling.get(key)
                if dialling is not None and dialling.life == connection.lives[0]:
                    self._redial_later(dialling)
        elif self.incoming.get(key) is connection:
            del self.incoming[key]

    def drop(self, source: str, target: str) -> None:
        """Break the connection that one node has dialled to the other."""
        connection = self.outgoing.get((source, target))
        if connection is not None:
            self.close(connection, self._clockwork.random.randint(0, 1))

    def forget(self, node: Node | Impostor) -> None:
        """The node's process has ended: its connections break, and its port is free."""
        if self.listening.get(node.identity.own.peer) is node:
            del self.listening[node.identity.own.peer]
        for connection in list(self.connections):
            for side in (0, 1):
                if connection.ends[side] is node:
                    self.close(connection, side)

    # -- messages

    def send(self, source: str, target: str, message: Message) -> None:
        """Send on the connection that `source` has dialled."""
        connection = self.outgoing.get((source, target))
        if connection is not None:
            self._send(connection, 0, message)

    def reply(self, source: str, target: str, message: Message) -> None:
        """Send on the connection that `target` has dialled to `source`."""
        connection = self.incoming.get((target, source))
        if connection is not None:
            self._send(connection, 1, message)

    def _send(self, connection: Connection, direction: int, message: Message) -> None:
        clockwork = self._clockwork
        low, high = self.delay_ms
        arrival = clockwork.now + low + (high - low) * clockwork.random.random()
        if self.extra_ms:
            arrival += self.extra_ms[connection.routes[direction]]
        arrival = max(arrival, connection.ready[direction])
        connection.ready[direction] = arrival
        clockwork.at(arrival, self._arrive, connection, direction, message)

    def _arrive(self, connection: Connection, direction: int, message: Message) -> None:
        if connection.is_broken:
            if connection.late_ms:
                self._clockwork.seen["late delivery"] += 1
                self._clockwork.after(
                    connection.late_ms, self._deliver, connection, direction, message
                )
            return
        if self._cuts and self._cuts.get(connection.routes[direction]):
            connection.held[direction].append(message)
            return
        receiver = connection.ends[1 - direction]
        if receiver.paused or receiver.life != connection.lives[1 - direction]:
            self._deliver(connection, direction, message)
        else:
            receiver.on_message(connection.ends[direction].id, message)

    def _deliver(self, connection: Connection, direction: int, message: Message) -> None:
        receiver, sender = connection.ends[1 - direction], connection.ends[direction]
        receiver.post(connection.lives[1 - direction], receiver.on_message, sender.id, message)
