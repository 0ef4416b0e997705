"""A long scan that one task carries out for all who ask for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from datapath.errors import OperationNotAppliedError

_T = TypeVar("_T")


class _Scan(Generic[_T]):
    def __init__(self) -> None:
        self.future: asyncio.Future[_T] = asyncio.get_running_loop().create_future()
        self.waiting = 0
        self.stop = threading.Event()


class SharedScan(Generic[_T]):
    """Runs `scan(stop)`, one at a time, for all who wait; `stop` is set when nobody does any more.

    Who asks while one runs gets the result of the next, which all who ask meanwhile share: no
    result is of a state from before it was asked for. So nobody waits for more than two.
    """

    def __init__(self, scan: Callable[[threading.Event], Awaitable[_T]]) -> None:
        self._scan = scan
        self._running: _Scan[_T] | None = None
        self._next: _Scan[_T] | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopped = ""
        self.scans_total = 0

    async def result(self) -> _T:
        """Return what a scan finds that begins from now on. Raises what it raises."""
        if self._stopped:
            raise OperationNotAppliedError("stopping", self._stopped)
        scan = self._next
        if scan is None:
            scan = self._next = _Scan()
        scan.waiting += 1
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())
        try:
            return await asyncio.shield(scan.future)
        finally:
            scan.waiting -= 1
            if not scan.waiting:
                scan.stop.set()
                if self._next is scan:
                    self._next = None

    async def _run(self) -> None:
        try:
            while (scan := self._next) is not None:
                self._running, self._next = scan, None
                self.scans_total += 1
                try:
                    result = await self._scan(scan.stop)
                except Exception as error:  # noqa: BLE001 -- for those who asked
                    if not scan.future.done():
                        scan.future.set_exception(error)
                        scan.future.exception()  # seen: whoever waited may have gone
                else:
                    if not scan.future.done():
                        scan.future.set_result(result)
        finally:
            self._running = self._task = None

    def stop(self, reason: str) -> None:
        """End the scan that runs, and refuse all others: those who wait get a NotAppliedError."""
        self._stopped = reason
        for scan in (self._running, self._next):
            if scan is not None:
                scan.stop.set()
                if not scan.future.done():
                    scan.future.set_exception(OperationNotAppliedError("stopping", reason))
                    scan.future.exception()  # seen: whoever waited may have gone
        self._next = None
