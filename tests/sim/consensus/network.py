"""Simulated sockets under the adapter's own links: ordered streams, and their faults.

A cut holds back what one machine sends another, as TCP does: it arrives when the cut heals, unless
a side has closed the connection by then. A stalled connection is held back alone, so that what it
carries arrives after messages of the next one.
"""

from __future__ import annotations

import errno
import os
import select
import socket
from collections import defaultdict
from typing import TYPE_CHECKING, Literal, cast

from election.pysyncobj_adapter.network import Network
from election.pysyncobj_adapter.poller import Poller
from tests.sim.clockwork import Clockwork

if TYPE_CHECKING:
    from tests.sim.consensus.node import Node
    from tests.sim.consensus.processes import Process

FAST_MS = (0.1, 1.5)
SLOW_MS = (5.0, 40.0)
Segment = bytes | Literal["syn", "accepted", "fin", "reset"]


class Selector:
    """What a member's poller waits on, in place of `select.poll`."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._masks: dict[int, int] = {}
        self.sockets: dict[int, Socket | Listening] = {}
        self._hot: dict[int, None] = {}

    def register(self, fd: int, mask: int) -> None:
        self._masks[fd] = mask
        if fd in self.sockets:
            self._hot[fd] = None

    def unregister(self, fd: int) -> None:
        self._masks.pop(fd, None)

    def mark(self, fd: int) -> None:
        """Something has happened to this socket."""
        self._hot[fd] = None
        if fd in self._masks:
            self._process.wake()

    def poll(self, timeout_ms: float) -> list[tuple[int, int]]:
        ready = self._ready()
        if not ready:
            self._process.block(timeout_ms, interruptible=True)
            ready = self._ready()
        return ready

    def _ready(self) -> list[tuple[int, int]]:
        ready = []
        for fd in list(self._hot):
            found, mask = self.sockets.get(fd), self._masks.get(fd)
            events = 0 if found is None or mask is None else found.events() & mask
            if events:
                ready.append((fd, events))
            else:
                del self._hot[fd]
        return ready


class Socket:
    """One end of a connection, with the methods of a socket that the adapter uses."""

    def __init__(self, owner: MemberNetwork, connection: Connection, side: int) -> None:
        self._owner = owner
        self._connection = connection
        self._side = side
        self._fd = owner.adopt(self)
        self.inbox = bytearray()
        self.is_connected = side == 1
        self.has_ended = False
        self.error = 0
        self.closed = False

    def fileno(self) -> int:
        return self._fd

    def setblocking(self, flag: bool) -> None:
        pass

    def setsockopt(self, *option: int) -> None:
        pass

    def getsockopt(self, _level: int, _option: int) -> int:
        error, self.error = self.error, 0
        return error

    def send(self, data: bytearray) -> int:
        self._raise_error()
        self._owner.process.count_step()
        self._connection.send(self._side, bytes(data))
        return len(data)

    def recv(self, size: int) -> bytes:
        self._raise_error()
        data = bytes(self.inbox[:size])
        del self.inbox[:size]
        if not data and not self.has_ended:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return data

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._owner.drop(self._fd)
            if not self._owner.is_silent:
                self._connection.send(self._side, "fin")
            self._connection.on_closed()

    def events(self) -> int:
        events = select.POLLOUT if self.is_connected or self.error else 0
        if self.inbox or self.has_ended or self.error:
            events |= select.POLLIN
        return events

    def take(self, segment: Segment) -> None:
        """Take what has arrived."""
        if isinstance(segment, bytes):
            self.inbox += segment
        elif segment == "accepted":
            self.is_connected = True
        elif segment == "fin":
            self.has_ended = True
        elif segment == "reset":
            self.error = errno.ECONNRESET
        self._owner.selector.mark(self._fd)

    @property
    def answers(self) -> bool:
        """Whether its machine would tell a sender that this end is closed."""
        return not self._owner.is_silent

    def _raise_error(self) -> None:
        if self.error:
            raise OSError(self.error, os.strerror(self.error))


class Listening:
    """A listening socket."""

    def __init__(self, owner: MemberNetwork, address: str) -> None:
        self.owner = owner
        self._address = address
        self.backlog: list[Socket] = []
        self._fd = owner.adopt(self)

    def fileno(self) -> int:
        return self._fd

    def getsockopt(self, _level: int, _option: int) -> int:
        return 1

    def accept(self) -> tuple[Socket, str]:
        if not self.backlog:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return self.backlog.pop(0), ""

    def close(self) -> None:
        self.owner.drop(self._fd)
        for accepted in self.backlog:
            accepted.close()
        self.backlog.clear()
        self.owner.wires.on_deaf(self._address, self)

    def events(self) -> int:
        return select.POLLIN if self.backlog else 0

    def take(self, accepted: Socket) -> None:
        """Take a connection that was made."""
        self.backlog.append(accepted)
        self.owner.selector.mark(self._fd)


class Connection:
    """Two ordered streams. Side 0 dialled `address`; direction 0 leads away from it."""

    def __init__(self, wires: Wires, dialer: Node, acceptor: Node, address: str) -> None:
        self._wires = wires
        self.machines = (dialer, acceptor)
        self.routes = ((dialer.id, acceptor.id), (acceptor.id, dialer.id))
        self.address = address
        self.ends: list[Socket | None] = [None, None]
        self.held: tuple[list[Segment], list[Segment]] = ([], [])
        self.is_stalled = False
        self.is_broken = False
        self._arrives_at = [0.0, 0.0]

    def send(self, side: int, segment: Segment) -> None:
        """Send from one side."""
        clockwork = self._wires.clockwork
        delay = clockwork.between(*self._wires.delay_ms)
        if self._wires.extra_ms:
            delay += self._wires.extra_ms[self.routes[side]]
        at = max(clockwork.now + delay, self._arrives_at[side])
        self._arrives_at[side] = at
        clockwork.at(at, self._arrive, side, segment)

    def release(self, direction: int) -> None:
        """Let what was held back arrive."""
        held = list(self.held[direction])
        self.held[direction].clear()
        for segment in held:
            self._arrive(direction, segment)

    def break_(self) -> None:
        """Lose what is on its way; both sides notice."""
        self.is_broken = True
        for end in self.ends:
            if end is not None and not end.closed:
                end.take("reset")

    def on_closed(self) -> None:
        if all(end is not None and end.closed for end in self.ends):
            self._wires.forget(self)

    def _arrive(self, direction: int, segment: Segment) -> None:
        if self.is_broken:
            return
        if self.held[direction] or self.is_stalled or self._wires.is_cut(*self.routes[direction]):
            self.held[direction].append(segment)
            return
        if segment == "syn":
            self._on_syn()
            return
        end = self.ends[1 - direction]
        if end is None:
            return
        if not end.closed:
            end.take(segment)
        elif segment not in ("fin", "reset") and end.answers:
            self.send(1 - direction, "reset")

    def _on_syn(self) -> None:
        listening = self._wires.listening.get(self.address)
        if listening is not None:
            accepted = self.ends[1] = Socket(listening.owner, self, 1)
            listening.take(accepted)
            self.send(1, "accepted")
        elif not self.machines[1].has_no_power:
            self.send(1, "reset")


class Wires:
    """All connections, cuts and delays."""

    def __init__(self, clockwork: Clockwork) -> None:
        self.clockwork = clockwork
        self.delay_ms = FAST_MS
        self.extra_ms: defaultdict[tuple[str, str], float] = defaultdict(float)
        self.machines: dict[str, Node] = {}
        """Who has which address."""
        self.listening: dict[str, Listening] = {}
        self.connections: dict[Connection, None] = {}
        self._cuts: defaultdict[tuple[str, str], int] = defaultdict(int)

    def is_cut(self, source: str, target: str) -> bool:
        """Whether nothing gets from one machine to the other."""
        return bool(self._cuts) and self._cuts.get((source, target), 0) > 0

    def cut(self, source: str, target: str) -> None:
        """Let nothing through in one direction; cuts add up."""
        self._cuts[source, target] += 1

    def heal(self, source: str, target: str) -> None:
        """Undo one cut."""
        if self._cuts.get((source, target), 0) <= 0:
            return
        self._cuts[source, target] -= 1
        if not self._cuts[source, target]:
            del self._cuts[source, target]
            self._release((source, target))

    def heal_all(self) -> None:
        """Undo all cuts and stalls."""
        self._cuts.clear()
        for connection in list(self.connections):
            self.let_go_on(connection)

    def let_go_on(self, connection: Connection) -> None:
        """End a stall."""
        connection.is_stalled = False
        for direction in (0, 1):
            connection.release(direction)

    def forget(self, connection: Connection) -> None:
        """Both sides are closed."""
        self.connections.pop(connection, None)

    def on_deaf(self, address: str, listening: Listening) -> None:
        """Nobody listens there any more."""
        if self.listening.get(address) is listening:
            del self.listening[address]

    def _release(self, route: tuple[str, str]) -> None:
        for connection in list(self.connections):
            for direction in (0, 1):
                if connection.routes[direction] == route and not connection.is_stalled:
                    connection.release(direction)


class MemberNetwork(Network):
    """The sockets of one life of a member."""

    def __init__(self, wires: Wires, node: Node, process: Process) -> None:
        self.wires = wires
        self.process = process
        self.selector = Selector(process)
        self.is_silent = False  # without power nobody says good-bye
        self._node = node
        self._next_fd = 1_000_000

    def poller(self) -> Poller:
        poller = Poller()
        poller._poll = cast("select.poll", self.selector)
        return poller

    def listen(self, address: str) -> socket.socket:
        listening = self.wires.listening[address] = Listening(self, address)
        return cast("socket.socket", listening)

    def dial(self, address: str, now: float) -> socket.socket | None:
        target = self.wires.machines.get(address)
        if target is None:
            return None
        connection = Connection(self.wires, self._node, target, address)
        self.wires.connections[connection] = None
        dialing = connection.ends[0] = Socket(self, connection, 0)
        connection.send(0, "syn")
        return cast("socket.socket", dialing)

    def adopt(self, sock: Socket | Listening) -> int:
        """Give a socket its number."""
        self._next_fd += 1
        self.selector.sockets[self._next_fd] = sock
        return self._next_fd

    def drop(self, fd: int) -> None:
        """Take the number back."""
        self.selector.sockets.pop(fd, None)
