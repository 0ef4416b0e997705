"""Leases, locks and elections without asyncio: they are kept alive on the client's own loop."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

from cluster.client.lease_calls import AsyncLeaseCalls, LeasePage
from cluster.client.leasing import AsyncLease, AsyncLock, IfLock
from cluster.client.loop_thread import LoopThread
from cluster.client.results import Leader, LeaseInfo, ListedLease, RevokeResult
from cluster.client.sync_watching import SIGNAL_LOOK_INTERVAL_S, ElectionWatch

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


class _Parts(Protocol):
    @property
    def client(self) -> AsyncLeaseCalls: ...
    @property
    def runner(self) -> LoopThread: ...


class LeaseCalls:
    """What a `Client` has for leases, locks and elections."""

    _timeout_ms: int
    _run: Callable[..., Any]
    _here: Callable[[], _Parts]

    def lease(
        self, ttl: float, *, key: str = "", on_lost: Callable[[], object] | None = None
    ) -> Lease:
        """Return a lease of `ttl` seconds; enter it. `on_lost` runs on the client's thread.

        `key`: as for `AsyncClient.lease`.
        """
        parts = self._here()
        return Lease(lambda: parts.client.lease(ttl, key=key, on_lost=on_lost), parts.runner)

    def lock(
        self,
        name: str,
        *,
        ttl: float,
        note: str = "",
        wait: float | None = None,
        on_lost: Callable[[], object] | None = None,
    ) -> Lock:
        """Return a lock; enter it to wait for it and hold it; see `AsyncClient.lock`."""
        parts = self._here()
        return Lock(
            lambda: parts.client.lock(name, ttl=ttl, note=note, wait=wait, on_lost=on_lost),
            parts.runner,
        )

    def elect(
        self,
        name: str,
        *,
        ttl: float,
        value: str = "",
        wait: float | None = None,
        on_lost: Callable[[], object] | None = None,
    ) -> Lock:
        """Return a candidacy; enter it to wait until it leads; see `AsyncClient.elect`."""
        parts = self._here()
        return Lock(
            lambda: parts.client.elect(name, ttl=ttl, value=value, wait=wait, on_lost=on_lost),
            parts.runner,
        )

    def release_lock(self, name: str, token: int) -> bool:
        """Take a lock (or the lead) from its holder; see `AsyncClient.release_lock`."""
        found: bool = self._run(lambda client: client.release_lock(name, token), None, write="")
        return found

    def leader(self, name: str) -> Leader | None:
        """Return who leads an election, or None."""
        found: Leader | None = self._run(lambda client: client.leader(name), None)
        return found

    def observe(
        self, name: str, *, after: int | None = None, timeout_ms: int | None = None
    ) -> ElectionWatch:
        """Return who leads an election, now and whenever that changes; see `AsyncClient.observe`.

        It begins here. `with` it, or `close` it.
        """
        parts = self._here()
        watch = parts.client.observe(name, after=after, timeout_ms=timeout_ms)
        return ElectionWatch(watch, parts.runner, self._timeout_ms)

    def grant_lease(self, ttl: float, *, key: str = "") -> str:
        """Begin a lease of `ttl` seconds and return its id. Nothing here keeps it alive."""
        lease: str = self._run(lambda client: client.grant_lease(ttl, key=key), None, write="")
        return lease

    def keep_lease_alive(self, lease: str) -> float:
        """Start a lease's TTL anew; return it, in seconds; see `AsyncClient.keep_lease_alive`."""
        ttl: float = self._run(lambda client: client.keep_lease_alive(lease), None)
        return ttl

    def lease_info(self, lease: str) -> LeaseInfo:
        """Return a lease's TTL, what is left of it, its keys and locks."""
        found: LeaseInfo = self._run(lambda client: client.lease_info(lease), None)
        return found

    def revoke_lease(self, lease: str) -> RevokeResult:
        """End a lease now; see `AsyncClient.revoke_lease`."""
        result: RevokeResult = self._run(lambda client: client.revoke_lease(lease), None, write="")
        return result

    def lease_page(self, after: str | None = None) -> LeasePage:
        """Return the leases that follow the id `after`; see `AsyncClient.lease_page`."""
        page: LeasePage = self._run(lambda client: client.lease_page(after), None)
        return page

    def leases(self) -> Iterator[ListedLease]:
        """Iterate over all leases, by their ids."""
        after: str | None = None
        while True:
            page = self.lease_page(after)
            yield from page.leases
            after = page.next
            if after is None:
                return
