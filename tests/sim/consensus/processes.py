"""A greenlet for each member's own loop: it stops where production would wait, and goes on later.

PySyncObj reads its clock and draws its random numbers from names of its own module, and iterates
over sets of nodes; `simulated_library` replaces the two names, and gives nodes a hash that is the
same in every process. Everything else is handed to the adapter (`Disk`, `Network`).
"""

from __future__ import annotations

import contextlib
import logging
import zlib
from collections.abc import Callable, Iterator
from random import Random
from unittest.mock import patch

import pysyncobj.syncobj as library
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from greenlet import greenlet
from pysyncobj.node import Node

from election.pysyncobj_adapter import link, transport
from election.pysyncobj_adapter.raft_core import RaftCore
from tests.sim.clockwork import Clockwork

WAKING_MS = 0.2


class Crashed(BaseException):
    """The process has ended where it stood. No handler for errors may take it for one."""


class Process(greenlet):
    """One life of a member. `clock` returns seconds; `on_blocked` looks at it whenever it waits.

    It is told whether the member is at rest: not in the middle of something, at a sync.
    """

    def __init__(
        self,
        clockwork: Clockwork,
        clock: Callable[[], float],
        body: Callable[[], None],
        on_blocked: Callable[[bool], None],
    ) -> None:
        super().__init__()
        self.clock = clock
        self.random = clockwork.random
        self.paused = False
        self.is_starting = True  # its constructor holds a lock: nothing may wait in there
        self.has_crashed = False
        self.crash_in: int | None = None
        """It crashes before its n-th write or message from now on; `on_crash` is told."""
        self.on_crash: Callable[[], None] = lambda: None
        self._clockwork = clockwork
        self._body = body
        self._on_blocked = on_blocked
        self._turn = 0
        self._interruptible = False
        self._poked = False
        self._is_due = False

    def run(self) -> None:
        """Run the member until it ends or crashes."""
        with contextlib.suppress(Crashed):
            self._body()

    # Called by the member.

    def block(self, duration_ms: float, *, interruptible: bool = False) -> None:
        """Let others run; return after that time, or when `wake` is called."""
        if interruptible and self._poked:
            self._poked = False
            duration_ms = WAKING_MS
        self._on_blocked(interruptible)
        self._turn += 1
        self._interruptible = interruptible
        self._clockwork.after(duration_ms, self._on_due, self._turn)
        assert self.parent is not None
        self.parent.switch()
        if interruptible:
            self._poked = False

    def look(self) -> None:
        """Let what it has done so far be looked at, in the middle of what it does."""
        self._on_blocked(False)

    def count_step(self) -> None:
        """Count a write or a message: before one of them the process may have to crash."""
        if self.has_crashed:
            raise Crashed
        if self.crash_in is not None:
            self.crash_in -= 1
            if self.crash_in < 0:
                self._on_blocked(False)
                self.has_crashed = True
                self.on_crash()
                raise Crashed

    # Called by the simulator.

    def begin(self) -> None:
        """Start it now."""
        self._take_turn()
        self.switch()

    def wake(self) -> None:
        """End its waiting, or the next one: something has arrived."""
        if not self._interruptible:
            self._poked = True
            return
        self._interruptible = False
        self._turn += 1
        self._clockwork.after(WAKING_MS, self._on_due, self._turn)

    def resume(self) -> None:
        """End a pause."""
        self.paused = False
        if self._is_due:
            self._go_on()

    def crash(self) -> None:
        """End it where it stands."""
        self.has_crashed = True
        if not self.dead:
            self._take_turn()
            self.throw(Crashed)

    def _on_due(self, turn: int) -> None:
        if turn != self._turn or self.dead:
            return
        if self.paused:
            self._is_due = True
        else:
            self._go_on()

    def _go_on(self) -> None:
        self._is_due = self._interruptible = False
        self._turn += 1
        self._take_turn()
        self.switch()

    def _take_turn(self) -> None:
        """Be the one whose clock PySyncObj reads. No time passes until it blocks."""
        _turn.now_s = self.clock()
        _turn.random = self.random


class _Turn:
    """What the process whose turn it is reads."""

    __slots__ = ("now_s", "random")

    now_s: float
    random: Random


_turn = _Turn()


def _now_s() -> float:
    return _turn.now_s


class _Chance:
    """Stands in for the random module in PySyncObj's core."""

    def random(self) -> float:
        return _turn.random.random()

    def uniform(self, low: float, high: float) -> float:
        return _turn.random.uniform(low, high)


class _Hashes(dict[str, int]):
    def __missing__(self, node_id: str) -> int:
        found = self[node_id] = zlib.crc32(node_id.encode())
        return found


_hashes = _Hashes()


def _node_hash(node: Node) -> int:
    return _hashes[node._id]


class _NoCipher:
    """Stands in for AES-GCM: it refuses what is not the next frame, too, and hides nothing."""

    def __init__(self, key: bytes) -> None:
        self._mark = key[:8]

    def encrypt(self, nonce: bytes, data: bytes, _associated: None) -> bytes:
        return self._mark + nonce + data

    def decrypt(self, nonce: bytes, data: bytes, _associated: None) -> bytes:
        if not data.startswith(self._mark + nonce):
            raise InvalidTag
        return data[len(self._mark) + len(nonce) :]


@contextlib.contextmanager
def simulated_library(*, thrifty: bool = False) -> Iterator[None]:
    """Let PySyncObj take clock and chance from the process that runs; keep its log lines away.

    `thrifty`: what is sent is not encrypted, and there are half as many pings.
    """
    ping_interval_s = transport.PING_INTERVAL_S
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            patch.object(library, "monotonicTime", _now_s),
            patch.object(library, "random", _Chance()),
            patch.object(Node, "__hash__", _node_hash),
            # Its constructor looks at each attribute, for replicated methods: there are none.
            patch.object(RaftCore, "__dir__", lambda _: (), create=True),
            patch.object(link, "AESGCM", _NoCipher if thrifty else AESGCM),
            patch.object(transport, "PING_INTERVAL_S", ping_interval_s * (1 + thrifty)),
        ):
            yield
    finally:
        logging.disable(level)
