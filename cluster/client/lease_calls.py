"""What `AsyncClient` offers of leases, locks and elections."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from urllib.parse import quote

import msgspec

from cluster.client.arguments import (
    REVISION_MAX,
    check_lease,
    check_number,
    check_text,
)
from cluster.client.errors import LockLostError
from cluster.client.exchange import Request
from cluster.client.group_routes import GroupRoutes, name_span
from cluster.client.leasing import AsyncElection, AsyncLease, AsyncLock, check_ttl, grant
from cluster.client.observing import AsyncElectionWatch, election_target
from cluster.client.requests import decode_reply, query_string, write_call
from cluster.client.results import Leader, LeaseInfo, ListedLease, RevokeResult
from cluster.client.retries import Transport


class _Released(msgspec.Struct):
    token: int


class _KeptAlive(msgspec.Struct):
    ttl_ms: int


class LeasePage(msgspec.Struct, frozen=True):
    """A part of a listing of leases; `next`: after which the next part begins, None at its end."""

    leases: tuple[ListedLease, ...]
    next: str | None


class AsyncLeaseCalls:
    """What `AsyncClient` offers of leases, locks and elections."""

    _transport: Transport
    _routes: GroupRoutes

    def lease(
        self, ttl: float, *, key: str = "", on_lost: Callable[[], object] | None = None
    ) -> AsyncLease:
        """Return a lease of `ttl` seconds; enter it to have it granted and kept alive.

        `on_lost` is called when it may no longer be relied on. `key`, where there are groups: a key
        that is to hang on it, whose group it is then of; without, that of the named nodes.
        """
        return AsyncLease(self._routes, ttl, on_lost, key=key)

    def lock(
        self,
        name: str,
        *,
        ttl: float,
        note: str = "",
        wait: float | None = None,
        on_lost: Callable[[], object] | None = None,
    ) -> AsyncLock:
        """Return a lock; enter it to wait for it, up to `wait` seconds (None: for ever).

        If its holder is gone for `ttl` seconds the next one has it. `note` is what others are told.
        """
        return AsyncLock(self._routes, name, ttl=ttl, note=note, wait=wait, on_lost=on_lost)

    def elect(
        self,
        name: str,
        *,
        ttl: float,
        value: str = "",
        wait: float | None = None,
        on_lost: Callable[[], object] | None = None,
    ) -> AsyncElection:
        """Return a candidacy; enter it to wait until it leads. See `lock`."""
        return AsyncElection(self._routes, name, ttl=ttl, note=value, wait=wait, on_lost=on_lost)

    async def release_lock(self, name: str, token: int) -> bool:
        """Take a lock (or the lead) from its holder; return whether it was held under `token`.

        For operators, and for a token that another program has handed on: what a lock object holds,
        its own `release` gives up.
        """
        token = check_number("token", token, 1, REVISION_MAX)
        target = f"/v1/locks/{quote(check_text('name', name), safe='')}?token={token}"
        call = write_call("DELETE", target, {}, None, "")
        try:
            decode_reply(call, await self._transport.call(call), _Released)
        except LockLostError:
            return False
        return True

    async def leader(self, name: str) -> Leader | None:
        """Return who leads an election (or holds a lock), or None."""
        call = Request("GET", election_target(name))
        reply = await self._transport.call(call)
        if reply.status == 404:
            return None
        return decode_reply(call, reply, Leader)

    def observe(
        self, name: str, *, after: int | None = None, timeout_ms: int | None = None
    ) -> AsyncElectionWatch:
        """Return who leads an election, now and whenever that changes: iterate over it.

        `after`: only changes after that revision. It goes from node to node as `watch` does, and
        raises UnavailableError if none answers for `timeout_ms` (None: it goes on trying).
        """
        return AsyncElectionWatch(self._routes, name, after, timeout_ms)

    # -- leases by their ids: for those that another process keeps alive

    async def grant_lease(self, ttl: float, *, key: str = "") -> str:
        """Begin a lease of `ttl` seconds and return its id. Nothing here keeps it alive.

        `key`: as for `lease`.
        """
        ttl_ms, transport = check_ttl(ttl), self._transport
        if check_text("key", key):
            transport = await self._routes.of(*name_span(key))
        return await grant(transport, ttl_ms)

    async def keep_lease_alive(self, lease: str) -> float:
        """Start a lease's TTL anew; return it, in seconds.

        Raises InvalidRequestError with `code` "lease_not_found" if it has ended.
        """
        call = Request("POST", f"{_path(lease)}/keepalive")  # twice is as good as once
        return decode_reply(call, await self._transport.call(call), _KeptAlive).ttl_ms / 1000

    async def lease_info(self, lease: str) -> LeaseInfo:
        """Return a lease's TTL, what is left of it, its keys and locks.

        Raises InvalidRequestError with `code` "lease_not_found" if it has ended.
        """
        call = Request("GET", _path(lease))
        return decode_reply(call, await self._transport.call(call), LeaseInfo)

    async def revoke_lease(self, lease: str) -> RevokeResult:
        """End a lease now: its keys go, and its locks pass on.

        Raises InvalidRequestError with `code` "lease_not_found" if it has ended.
        """
        call = write_call("DELETE", _path(lease), {}, None, "")
        return decode_reply(call, await self._transport.call(call), RevokeResult)

    async def lease_page(self, after: str | None = None) -> LeasePage:
        """Return the leases that follow the id `after` (None: from the first), as one part."""
        given = None if after is None else check_lease(after, "after")
        call = Request("GET", f"/v1/leases{query_string({'after': given})}")
        return decode_reply(call, await self._transport.call(call), LeasePage)

    async def leases(self) -> AsyncIterator[ListedLease]:
        """Iterate over all leases, by their ids."""
        after: str | None = None
        while True:
            page = await self.lease_page(after)
            for item in page.leases:
                yield item
            after = page.next
            if after is None:
                return


def _path(lease: str) -> str:
    return f"/v1/leases/{check_lease(lease)}"
