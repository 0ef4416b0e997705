"""A simulated network of connections: ordered inside one, never between two.

Each node dials every other. A cut holds a direction's messages back; they arrive in a burst when
it heals, unless a side has given the connection up by then. What was on the way when a connection
broke is lost, or arrives late, after messages of the next connection.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from datapath.protocol.messages import Message
from tests.sim.clockwork import Clockwork

if TYPE_CHECKING:
    from tests.sim.node import Node

FAST_MS = (0.1, 1.5)
SLOW_MS = (5.0, 30.0)
IDLE_TIMEOUT_MS = (600.0, 1500.0)
REDIAL_MS = (20.0, 300.0)


class Connection:
    """One connection from `dialer` to `acceptor`. Direction 0 leads to the acceptor."""

    __slots__ = ("closed", "ends", "held", "is_broken", "late_ms", "lives", "ready", "routes")

    def __init__(self, dialer: Node, acceptor: Node) -> None:
        self.ends = (dialer, acceptor)
        self.routes = ((dialer.id, acceptor.id), (acceptor.id, dialer.id))
        self.is_broken = False  # closed by one side, or both
        self.lives = (dialer.life, acceptor.life)
        self.closed = [False, False]  # by the dialer, by the acceptor
        self.late_ms = 0.0  # what was on the way when it broke arrives so much later; 0: never
        self.held: tuple[list[Message], list[Message]] = ([], [])
        self.ready = [0.0, 0.0]


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

    def start_dialling(self, node: Node) -> None:
        """Dial everyone, for this lifetime."""
        for other in self.nodes:
            if other != node.id:
                self._redial_later(node.id, other, node.life, at_once=True)

    def dial(self, node: Node, other: str) -> None:
        """Dial one that has come later, for this lifetime."""
        self._redial_later(node.id, other, node.life, at_once=True)

    def _redial_later(self, source: str, target: str, life: int, *, at_once: bool = False) -> None:
        delay = self._clockwork.between(1, 10) if at_once else self._clockwork.between(*REDIAL_MS)
        self._clockwork.after(delay, self._dial, source, target, life)

    def _dial(self, source: str, target: str, life: int) -> None:
        dialer, acceptor = self.nodes[source], self.nodes[target]
        if dialer.life != life or not dialer.is_up or (source, target) in self.outgoing:
            return
        if (
            dialer.paused
            or not acceptor.is_up
            or acceptor.paused
            or self.is_cut(source, target)
            or self.is_cut(target, source)
        ):
            self._redial_later(source, target, life)
            return
        old = self.incoming.get((source, target))
        if old is not None:
            self.close(old, 1)
        connection = Connection(dialer, acceptor)
        self.connections.append(connection)
        self.outgoing[source, target] = connection
        self.incoming[source, target] = connection
        dialer.post(life, dialer.on_link, target)

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
        if all(connection.closed) and connection in self.connections:
            self.connections.remove(connection)
        if side == 0:
            if self.outgoing.get(key) is connection:
                del self.outgoing[key]
                dialer.post(connection.lives[0], dialer.on_link_lost, acceptor.id)
                self._redial_later(dialer.id, acceptor.id, connection.lives[0])
        elif self.incoming.get(key) is connection:
            del self.incoming[key]

    def drop(self, source: str, target: str) -> None:
        """Break the connection that one node has dialled to the other."""
        connection = self.outgoing.get((source, target))
        if connection is not None:
            self.close(connection, self._clockwork.random.randint(0, 1))

    def forget(self, node: Node) -> None:
        """The node's process has ended: its connections break."""
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
