"""`async` operations under way: at most one of each service, whose other operations wait for it.

What one service sees, no other writes (X1), so that those of other services go on meanwhile (X2).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Protocol

from datapath.execution.tail import Waiting


class Running(Protocol):
    """An `async` operation under way: a task, or what looks like one."""

    def cancel(self) -> object:
        """End it."""


class Concurrency:
    """Which services execute an `async` operation, and what waits for each to end."""

    def __init__(self) -> None:
        self.executing: dict[str, tuple[Waiting, Running]] = {}  # by service
        self._held: dict[str, deque[Waiting]] = {}

    def __iter__(self) -> Iterator[tuple[Waiting, Running]]:
        """Iterate over a copy of what is executed."""
        return iter(list(self.executing.values()))

    @property
    def held(self) -> list[Waiting]:
        """What waits for another operation of its service."""
        return [waiting for held in self._held.values() for waiting in held]

    def hold(self, waiting: Waiting) -> bool:
        """Let an operation wait for the one of its service that is executed, if there is one."""
        service = waiting.operation.service
        if not must_wait(service, self.executing):
            return False
        self._held.setdefault(service, deque()).append(waiting)
        return True

    def begin(self, waiting: Waiting, running: Running) -> None:
        """An operation is executed from here on."""
        self.executing[waiting.operation.service] = (waiting, running)

    def counts(self, waiting: Waiting) -> bool:
        """Whether what an operation does still counts."""
        return may_finish(waiting, self.executing)

    def end(self, waiting: Waiting) -> list[Waiting]:
        """An operation is over, or given up; return what waited for it, the last one first."""
        service = waiting.operation.service
        del self.executing[service]
        return list(reversed(self._held.pop(service, ())))

    def release(self) -> None:
        """Nothing waits any more."""
        self._held.clear()


def must_wait(service: str, executing: Mapping[str, object]) -> bool:
    """Whether an operation waits: an `async` one of the same service is executed."""
    return service in executing


def may_finish(waiting: Waiting, executing: Mapping[str, tuple[Waiting, Running]]) -> bool:
    """Whether an `async` operation that has ended counts: it was not given up meanwhile (X2)."""
    executed = executing.get(waiting.operation.service)
    return executed is not None and executed[0] is waiting
