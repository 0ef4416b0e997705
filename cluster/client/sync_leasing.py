"""Leases, locks and elections without asyncio: they are kept alive on the client's own loop."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from cluster.client.leasing import AsyncLease, AsyncLock, IfLock
from cluster.client.loop_thread import LoopThread
from cluster.client.sync_watching import SIGNAL_LOOK_INTERVAL_S

END_TIMEOUT_S = 15.0

HeldT = TypeVar("HeldT", AsyncLease, AsyncLock)
_T = TypeVar("_T")


class _Held(Generic[HeldT]):
    """A lease or a lock, on the loop of `runner`."""

    def __init__(self, make: Callable[[], HeldT], runner: LoopThread) -> None:
        async def on_loop() -> HeldT:
            return make()

        self._runner = runner
        self._inner: HeldT = self._run(on_loop(), END_TIMEOUT_S)

    def _run(self, call: Coroutine[Any, Any, _T], timeout_s: float) -> _T:
        return self._runner.ask(call, timeout_s)

    def __enter__(self) -> Self:
        self._begin()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end()

    def _begin(self) -> None:
        raise NotImplementedError

    def _end(self) -> None:
        raise NotImplementedError

    @property
    def is_lost(self) -> bool:
        """Whether it may no longer be relied on, by this machine's clock."""
        return self._inner.is_lost

    def wait_lost(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds until it may no longer be relied on; return `is_lost`."""
        if not self._inner.is_lost:
            self._run(self._inner.wait_lost(timeout), timeout)
        return self._inner.is_lost


class Lease(_Held[AsyncLease]):
    """A client lease; enter it to have it granted and kept alive. See `AsyncLease`."""

    @property
    def id(self) -> str:
        """What `put(…, lease=lease.id)` takes."""
        return self._inner.id

    def _begin(self) -> None:
        self._run(self._inner.begin(), END_TIMEOUT_S)

    def _end(self) -> None:
        if not self._runner.ended:
            self._run(self._inner.end(), END_TIMEOUT_S)


class Lock(_Held[AsyncLock]):
    """A lock; enter it to wait for it and hold it. See `AsyncLock`."""

    @property
    def name(self) -> str:
        """Its name."""
        return self._inner.name

    @property
    def token(self) -> int:
        """Under which it is held; 0: it is not."""
        return self._inner.token

    @property
    def condition(self) -> IfLock:
        """What to give to `if_lock`. Raises LockLostError before it was taken."""
        return self._inner.condition

    def check(self) -> None:
        """Raise LockLostError if it may no longer be held."""
        self._inner.check()

    def acquire(self) -> int:
        """Wait for it, and return the token. Raises LockHeldError, LockLostError."""
        inner = self._inner
        if inner.lease.has_begun:  # this must not end what another thread holds
            raise RuntimeError("it has begun already: make another lock, or release this one first")
        try:
            while not self._run(inner.acquiring(SIGNAL_LOOK_INTERVAL_S), SIGNAL_LOOK_INTERVAL_S):
                pass
        except BaseException:
            self._end()
            raise
        return inner.token

    def release(self) -> None:
        """Give it up, with its lease: the next one has it."""
        self._end()

    def _begin(self) -> None:
        self.acquire()

    def _end(self) -> None:
        if not self._runner.ended:
            self._run(self._inner.release(), END_TIMEOUT_S)
