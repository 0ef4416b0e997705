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
from unittest.mock import patch

import pysyncobj.syncobj as library
from greenlet import greenlet
from pysyncobj.node import Node

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
        self.now_s = clock()
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
        self.now_s = self.clock()
        _Turn.process = self


class _Turn:
    """Whose turn it is."""

    process: Process


def _now_s() -> float:
    return _Turn.process.now_s


class _Chance:
    """Stands in for the random module in PySyncObj's core."""

    def random(self) -> float:
        return _Turn.process.random.random()

    def uniform(self, low: float, high: float) -> float:
        return _Turn.process.random.uniform(low, high)


_hashes: dict[str, int] = {}


def _node_hash(node: Node) -> int:
    found = _hashes.get(node.id)
    if found is None:
        found = _hashes[node.id] = zlib.crc32(node.id.encode())
    return found


@contextlib.contextmanager
def simulated_library() -> Iterator[None]:
    """Let PySyncObj take clock and chance from the process that runs; keep its log lines away."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            patch.object(library, "monotonicTime", _now_s),
            patch.object(library, "random", _Chance()),
            patch.object(Node, "__hash__", _node_hash),
        ):
            yield
    finally:
        logging.disable(level)
