"""Leases, locks and elections, kept alive in the background.

A lease may be relied on for its TTL less SAFETY_SHARE from the *sending* of the last keep-alive
that was acknowledged, on this machine's clock, which counts through suspend: `AsyncLease.is_lost`.
That is for what lies outside; what is kept in the cluster is safe by `if_lock` alone, whatever any
clock does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from types import TracebackType
from typing import Self
from urllib.parse import quote

import msgspec

from cluster.client.arguments import check_callback, check_if_lock, check_seconds, check_text
from cluster.client.errors import (
    ClientError,
    InvalidRequestError,
    LockHeldError,
    LockLostError,
)
from cluster.client.exchange import Request
from cluster.client.group_routes import GroupRoutes, name_span
from cluster.client.requests import JSON_HEADERS, decode_reply, write_call
from cluster.client.retries import Transport
from datapath.clock import clock_s

logger = logging.getLogger(__name__)

SAFETY_SHARE = 0.1
"""Of a TTL: for clocks of different rates."""
KEEP_ALIVE_SHARE = 0.25
"""Of a TTL: how long after one keep-alive the next is sent."""
RETRY_S = 0.2
WAIT_S = 10.0
"""How long one request waits for a lock; then it asks again, and keeps its place."""
WAIT_MARGIN_MS = 2000
MIN_TTL_S, MAX_TTL_S = 1.0, 86_400.0
MAX_WAIT_S = 1e9

IfLock = tuple[str, int]
"""The name of a lock and the token under which it has to be held."""


class _LeaseReply(msgspec.Struct):
    lease: str


class _LockReply(msgspec.Struct):
    token: int


def lock_headers(if_lock: IfLock | None) -> dict[str, str]:
    """Return the header of the condition, checked."""
    checked = check_if_lock(if_lock)
    return {} if checked is None else {"If-Lock": f"{quote(checked[0], safe='')}={checked[1]}"}


def check_ttl(ttl: float) -> int:
    """Return a lease's time to live in ms. Raises TypeError, InvalidRequestError."""
    return int(check_seconds("ttl", ttl, MIN_TTL_S, MAX_TTL_S) * 1000)


async def grant(transport: Transport, ttl_ms: int) -> str:
    """Have a lease granted, and return its id. Raises ClientError."""
    body = msgspec.json.encode({"ttl_ms": ttl_ms})
    call = write_call("POST", "/v1/leases", dict(JSON_HEADERS), body, "")
    return decode_reply(call, await transport.call(call), _LeaseReply, ok=(201,)).lease


class AsyncLease:
    """A client lease; enter it to have it granted and kept alive.

    `id` is for `put(…, lease=lease.id)`. `lost` is set when it may no longer be relied on. `key`:
    where there are groups, it is granted by the group of that key.
    """

    def __init__(
        self,
        routes: GroupRoutes,
        ttl: float,
        on_lost: Callable[[], object] | None = None,
        *,
        key: str = "",
    ) -> None:
        self.transport = routes.home
        """Where it is granted, and kept alive."""
        self._routes = routes
        self._key = check_text("key", key)
        self._ttl_ms = check_ttl(ttl)
        self._on_lost = check_callback("on_lost", on_lost)
        self._relied_until_s = 0.0
        self._keeper: asyncio.Task[None] | None = None
        self.id = ""
        self.has_begun = False
        self.lost = asyncio.Event()

    async def __aenter__(self) -> Self:
        await self.begin()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.end()

    @property
    def ttl(self) -> float:
        """The time to live, in seconds."""
        return self._ttl_ms / 1000

    @property
    def is_lost(self) -> bool:
        """Whether it may no longer be relied on: it has ended, or may have."""
        return self.lost.is_set() or clock_s() >= self._relied_until_s

    async def wait_lost(self, timeout_s: float) -> None:
        """Wait until it may no longer be relied on, or until the time is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self.lost.wait()

    async def begin(self) -> None:
        """Have it granted, and keep it alive from now on. One that has ended may begin again.

        Raises RuntimeError while it is kept alive: nobody would end the one before.
        """
        if self.has_begun:
            raise RuntimeError("it has begun already: make another, or end it first")
        self.has_begun = True
        self.lost.clear()
        sent_s = clock_s()
        try:
            if self._key:
                self.transport = await self._routes.of(*name_span(self._key))
                sent_s = clock_s()
            self.id = await grant(self.transport, self._ttl_ms)
        except BaseException:
            self.has_begun = False
            raise
        self._acknowledged(sent_s)
        self._keeper = asyncio.create_task(self._keep())

    async def end(self) -> None:
        """Revoke it: what hangs on it goes now. If nobody can be asked, it ends by itself."""
        if self._keeper is None:
            return
        self._keeper.cancel()
        self._keeper = None
        self.has_begun = False
        self._relied_until_s = 0.0
        self.lost.set()
        call = write_call("DELETE", f"/v1/leases/{self.id}", {}, None, "")
        with contextlib.suppress(ClientError):
            await self.transport.call(call, min(self._ttl_ms, self.transport.timeout_ms))

    def _acknowledged(self, sent_s: float) -> None:
        self._relied_until_s = sent_s + self.ttl * (1 - SAFETY_SHARE)

    async def _keep(self) -> None:
        """Send keep-alives until it is lost."""
        pause_s = self.ttl * KEEP_ALIVE_SHARE
        while not self.is_lost:
            await asyncio.sleep(min(pause_s, max(0.0, self._relied_until_s - clock_s())))
            sent_s = clock_s()
            left_ms = int((self._relied_until_s - sent_s) * 1000)
            if left_ms <= 0:
                break
            call = Request("POST", f"/v1/leases/{self.id}/keepalive")
            try:
                reply = await self.transport.call(call, max(100, left_ms))
            except ClientError:
                pause_s = RETRY_S
                continue
            except RuntimeError:  # the client was closed: nobody keeps it alive any more
                break
            if reply.status == 404:
                break
            if reply.status == 200:
                self._acknowledged(sent_s)
                pause_s = self.ttl * KEEP_ALIVE_SHARE
            else:
                pause_s = RETRY_S
        self.lost.set()
        if self._on_lost is not None:
            try:
                self._on_lost()
            except Exception:
                logger.exception("on_lost of lease %s failed", self.id)


class AsyncLock:
    """A lock on a lease of its own; enter it to wait for it and hold it.

    `token` says under which token it is held; `lost` is set when it may be held no longer. Give
    `if_lock=lock.condition` to every write that the lock is to protect.
    """

    _kind = "locks"
    _says = "note"

    def __init__(
        self,
        routes: GroupRoutes,
        name: str,
        *,
        ttl: float,
        note: str = "",
        wait: float | None = None,
        on_lost: Callable[[], object] | None = None,
    ) -> None:
        self.name = check_text("name", name)
        if not name:
            raise InvalidRequestError("name must not be empty", code="invalid_argument")
        self._note = check_text(self._says, note)
        self._wait_s = None if wait is None else check_seconds("wait", wait, 0.0, MAX_WAIT_S)
        self.lease = AsyncLease(routes, ttl, on_lost, key=name)
        self.token = 0
        self._acquiring: asyncio.Future[int] | None = None

    async def __aenter__(self) -> Self:
        await self.acquire()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.release()

    @property
    def lost(self) -> asyncio.Event:
        """Set when it may no longer be held."""
        return self.lease.lost

    @property
    def is_lost(self) -> bool:
        """Whether it may no longer be held, by this machine's clock."""
        return not self.token or self.lease.is_lost

    @property
    def condition(self) -> IfLock:
        """What to give to `if_lock`. Raises LockLostError before it was taken."""
        if not self.token:
            raise LockLostError(f"lock {self.name!r} is not held", code="lock_lost")
        return self.name, self.token

    def check(self) -> None:
        """Raise LockLostError if it may no longer be held."""
        if self.is_lost:
            raise LockLostError(f"lock {self.name!r} may no longer be held", code="lock_lost")

    async def acquire(self) -> int:
        """Wait for it (`wait` seconds at most), and return the token.

        Raises LockHeldError after that, and LockLostError if the lease has ended meanwhile.
        """
        until_s = float("inf") if self._wait_s is None else clock_s() + self._wait_s
        await self.lease.begin()
        try:
            while True:
                left_s = max(0.0, until_s - clock_s())
                token = await self._ask(min(WAIT_S, left_s), is_last=left_s <= WAIT_S)
                if token:
                    self.token = token
                    return token
        except BaseException:
            await self.lease.end()  # its place goes with it
            raise

    async def _ask(self, wait_s: float, *, is_last: bool) -> int:
        """Ask once; return the token, or 0 to ask again: the lease keeps the place."""
        wait_ms = int(wait_s * 1000)
        body = msgspec.json.encode(
            {
                "lease": self.lease.id,
                "wait_ms": wait_ms,
                "keep_place": not is_last,
                self._says: self._note,
            }
        )
        call = Request("POST", self._target, JSON_HEADERS, body, writes=True, retry_unknown=False)
        if self.lease.is_lost:
            raise LockLostError("the lease of the one that waits has ended", code="lock_lost")
        try:
            reply = await self.lease.transport.call(call, wait_ms + WAIT_MARGIN_MS)
            return decode_reply(call, reply, _LockReply).token
        except LockHeldError:
            if is_last:
                raise
            return 0
        except InvalidRequestError as error:
            if error.code == "lease_not_found":
                raise LockLostError(error.detail, code="lock_lost", status=error.status) from None
            raise
        except ClientError:
            if is_last and not wait_s:
                raise
            await asyncio.sleep(RETRY_S)  # a node has failed, or hands over
            return 0

    @property
    def _target(self) -> str:
        return f"/v1/{self._kind}/{quote(self.name, safe='')}"

    async def acquiring(self, timeout_s: float) -> bool:
        """Go on to acquire it for so long; return whether it is held by then."""
        if self._acquiring is None:
            self._acquiring = asyncio.ensure_future(self.acquire())
        done, _ = await asyncio.wait([self._acquiring], timeout=timeout_s)
        if done:
            step, self._acquiring = self._acquiring, None
            step.result()
        return bool(done)

    async def wait_lost(self, timeout_s: float) -> None:
        """Wait until it may no longer be held, or until the time is over."""
        await self.lease.wait_lost(timeout_s)

    async def release(self) -> None:
        """Give it up, with its lease: the next one has it."""
        if self._acquiring is not None:
            self._acquiring.cancel()
            await asyncio.wait([self._acquiring])
            self._acquiring = None
        self.token = 0
        await self.lease.end()


class AsyncElection(AsyncLock):
    """Stands for an election; enter it to wait until it leads. See `AsyncLock`."""

    _kind = "elections"
    _says = "value"
