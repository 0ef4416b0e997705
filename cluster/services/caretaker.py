"""What a primary does for its services unasked: start them (X4), and run their timers (X3).

Every replica has one of these; only the primary's acts. It decides nothing: whether a service is to
be migrated and whether a timer is due is decided again inside the operation that it submits, so
that a node which wrongly takes itself for the primary, or one that submits too often, does no harm.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping

from cluster.services.hosting import DIFFERENCE, START, Host
from datapath.errors import OperationError
from datapath.operations import Node, Operation, Query

logger = logging.getLogger(__name__)

CARE_INTERVAL_S = 0.05
"""How often it is asked whether this node is the primary, and whether a timer is due."""
TIMEOUT_MS = 5000
RETRY_FIRST_S = 0.5
RETRY_MAX_S = 60.0
DIFFERENCE_INTERVAL_S = 5.0


class Caretaker:
    """Starts the hosts and runs their timers while `node` is the primary.

    `report` takes a sentence for operators, again and again while it holds.
    """

    def __init__(
        self,
        node: Node,
        hosts: Mapping[str, Host],
        report: Callable[[str], None],
        *,
        wall_clock_ms: Callable[[], float] = lambda: time.time() * 1000,
    ) -> None:
        self._node = node
        self._jobs = [_Job(host, START) for host in hosts.values()]
        self._jobs += [
            _Job(host, f":{method.name}", method.timer.interval_at)
            for host in hosts.values()
            for method in host.signatures.methods.values()
            if method.timer is not None
        ]
        self._hosts = hosts
        self._report = report
        self._wall_clock_ms = wall_clock_ms
        self._epoch = 0
        self._compared_at = 0.0

    async def run(self) -> None:
        """Do so until cancelled."""
        running: set[asyncio.Task[None]] = set()
        try:
            while True:
                for job in self._due():
                    job.is_running = True
                    task = asyncio.create_task(self._do(job))
                    running.add(task)
                    task.add_done_callback(running.discard)
                await self._compare()
                await asyncio.sleep(CARE_INTERVAL_S)
        finally:
            for task in running:
                task.cancel()

    def _due(self) -> list[_Job]:
        """Return what is to be submitted now; none on a node that is not the primary."""
        if not self._node.is_primary:
            return []
        if self._node.epoch != self._epoch:
            self._epoch = self._node.epoch
            for job in self._jobs:
                job.reset()
        now, wall_ms = time.monotonic(), self._wall_clock_ms()
        return [job for job in self._jobs if job.is_due(now, wall_ms)]

    async def _do(self, job: _Job) -> None:
        """Submit one operation, and remember how it ended."""
        epoch, wall_ms = self._epoch, self._wall_clock_ms()
        try:
            operation = Operation(job.operation, service=job.host.name)
            await self._node.execute(operation, TIMEOUT_MS)
        except OperationError as error:
            job.failed(error, time.monotonic())
        else:
            if epoch == self._epoch:
                job.done(wall_ms)
        finally:
            job.is_running = False

    async def _compare(self) -> None:
        """Report services whose code here is not the cluster's (X4)."""
        now = time.monotonic()
        if now < self._compared_at + DIFFERENCE_INTERVAL_S:
            return
        self._compared_at = now
        for host in self._hosts.values():
            query = Query(DIFFERENCE, consistency="stale", service=host.name)
            result = self._node.read_now(query)
            if result is not None and result.value:
                host.difference = str(result.value)
                self._report(f"{self._node.node_id}: {result.value}")
            else:
                host.difference = ""


class _Job:
    """One operation that is submitted now and then. `interval_at`: of a timer, by the time."""

    def __init__(
        self, host: Host, operation: str, interval_at: Callable[[float], int] | None = None
    ) -> None:
        self.host = host
        self.operation = operation
        self._interval_at = interval_at
        self.is_running = False
        self._done: int | None = None  # in which interval
        self._not_before = 0.0
        self._retry_s = RETRY_FIRST_S
        self._told = ""

    def reset(self) -> None:
        """Another epoch has begun."""
        self._done, self._not_before, self._retry_s = None, 0.0, RETRY_FIRST_S

    def is_due(self, now: float, wall_ms: float) -> bool:
        """Whether to submit it; `now` in seconds, of a monotonic clock."""
        if self.is_running or now < self._not_before:
            return False
        return self._done != self._interval(wall_ms)

    def done(self, wall_ms: float) -> None:
        """It was carried out, or was not due after all; `wall_ms`: when it was submitted."""
        self._done, self._retry_s, self._told = self._interval(wall_ms), RETRY_FIRST_S, ""

    def failed(self, error: OperationError, now: float) -> None:
        """It is tried again after a while."""
        self._not_before = now + self._retry_s
        self._retry_s = min(2 * self._retry_s, RETRY_MAX_S)
        if error.outcome == "not_applied" and error.detail != self._told:
            self._told = error.detail
            logger.error("service %s: %s failed: %s", self.host.name, self.operation[1:], error)

    def _interval(self, wall_ms: float) -> int:
        return 0 if self._interval_at is None else self._interval_at(wall_ms)
