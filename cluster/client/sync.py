"""The synchronous client: the same calls, without asyncio.

A `Client` runs a `AsyncClient` on an event loop of its own, in a daemon thread; its methods may be
called from any thread.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Coroutine, Iterable, Iterator
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

from cluster.client.aio import AsyncClient
from cluster.client.arguments import (
    DEFAULT_PAGE_SIZE,
    PAGE_LIMIT_MAX,
    check_endpoints,
    check_idempotency_after,
    check_timeout,
    draw_key,
)
from cluster.client.endpoints import DEFAULT_ENDPOINTS
from cluster.client.errors import UnknownOutcomeError
from cluster.client.leasing import IfLock
from cluster.client.loop_thread import CLOSED, LoopThread, StuckError
from cluster.client.results import (
    DeleteRangeResult,
    DeleteResult,
    GetResult,
    Item,
    Page,
    PutResult,
    TxnResult,
    ViewSummary,
)
from cluster.client.sync_access import AccessCalls
from cluster.client.sync_leasing import LeaseCalls
from cluster.client.sync_services import ServiceCalls
from cluster.client.sync_watching import KeyWatch, Mirror
from cluster.client.txn import SyncTxnBuilder
from cluster.groups.group_map import GroupMap, GroupsDocument
from datapath.operations import Ack, ClusterStatus, Consistency, Digest

_T = TypeVar("_T")


class _Parts(NamedTuple):
    client: AsyncClient
    runner: LoopThread


class Client(AccessCalls, ServiceCalls, LeaseCalls):
    """A blocking client of one cluster. Use it as a context manager, or call `close`.

    After a fork, the child's copy opens new connections to the same cluster. A client that is
    garbage-collected without `close` is closed, with a ResourceWarning; at exit all are closed.
    """

    _closed = True  # until it is whole: an argument may be refused

    def __init__(
        self,
        endpoints: str | Iterable[str] | None = None,
        *,
        timeout_ms: int = 10_000,
        max_connections: int = 64,
        discover: bool = True,
        cluster_id: str = "",
        token: str = "",
        cacert: str = "",
        cert: str = "",
        key: str = "",
    ) -> None:
        """Take the same arguments as `AsyncClient`; nothing is sent yet."""
        # A tuple of them: a forked child wants them again.
        given = DEFAULT_ENDPOINTS if endpoints is None else check_endpoints(endpoints)

        self._options: dict[str, Any] = {
            "timeout_ms": timeout_ms, "max_connections": max_connections, "discover": discover,
            "token": token, "cacert": cacert, "cert": cert, "key": key,
        }  # fmt: skip

        def make(cluster_id: str) -> _Parts:
            client = AsyncClient(given, cluster_id=cluster_id, **self._options)
            return _Parts(client, LoopThread(client.close))

        self._others: dict[tuple[str, ...], Client] = {}
        self._timeout_ms = timeout_ms
        self._make = make
        self._process = os.getpid()
        self._by_process = {self._process: make(cluster_id)}  # this process, and forked children
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if self._closed:
            return
        parts = self._by_process.get(os.getpid())
        if parts is None or parts.runner.ended:
            return
        parts.runner.end(wait=False)  # whatever thread this is, it must not wait for another
        warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)

    def close(self) -> None:
        """Close the connections and end the thread. May be called twice."""
        self._closed = True
        for client in self._others.values():
            client.close()
        if parts := self._by_process.get(os.getpid()):
            parts.runner.end(wait=True)

    def _here(self) -> _Parts:
        """Return what belongs to this process; a forked child makes its own."""
        if self._closed:
            raise RuntimeError(CLOSED)
        process = os.getpid()
        found = self._by_process.get(process)
        if found is None:
            made = self._make(self._by_process[self._process].client.cluster_id)
            found = self._by_process.setdefault(process, made)
            if found is not made:  # another thread was faster
                made.runner.end(wait=False)
        return found

    def _run(
        self,
        make_call: Callable[[AsyncClient], Coroutine[Any, Any, _T]],
        timeout_ms: int | None,
        *,
        write: str | None = None,
    ) -> _T:
        """Run a call on the client's loop; `write`: it is one, under this idempotency key."""
        chosen_ms = check_timeout(timeout_ms) or self._timeout_ms
        client, runner = self._here()
        if write is None:
            return runner.ask(make_call(client), chosen_ms / 1000)
        try:
            return runner.run(make_call(client), chosen_ms / 1000)
        except StuckError as error:
            detail = f"{error}; this may or may not have been applied"
            raise UnknownOutcomeError(detail, code="stuck", idempotency_key=str(write)) from None

    def of(self, name: str) -> Client:
        """Return the client of a key's or a prefix's group; see `AsyncClient.of`."""

        async def endpoints(client: AsyncClient) -> tuple[str, ...]:
            found = await client.of(name)
            return () if found is client else found.endpoints

        urls = self._run(endpoints, None)
        if urls and urls not in self._others:
            self._others[urls] = Client(urls, **self._options)
        return self._others[urls] if urls else self

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The base URLs in use: those given, and those discovered."""
        return self._here().client.endpoints

    @property
    def cluster_id(self) -> str:
        """The id of the cluster, "" before the first answer."""
        return self._here().client.cluster_id

    @property
    def revision(self) -> int | None:
        """The highest revision in any answer so far, None before the first."""
        return self._here().client.revision

    @property
    def retries(self) -> int:
        """The number of retries, over all calls."""
        return self._here().client.retries

    def put(
        self,
        key: str,
        value: bytes | str,
        *,
        if_revision: int | None = None,
        if_absent: bool = False,
        if_lock: IfLock | None = None,
        lease: str = "",
        ack: Ack = "all",
        min_copies: int = 0,
        idempotency_key: str = "",
        idempotency_after: int | None = None,
        timeout_ms: int | None = None,
    ) -> PutResult:
        """Write `value` under `key`; see `AsyncClient.put`."""
        own_key = _key(idempotency_key, idempotency_after)
        return self._run(
            lambda client: client.put(
                key,
                value,
                if_revision=if_revision,
                if_absent=if_absent,
                if_lock=if_lock,
                lease=lease,
                ack=ack,
                min_copies=min_copies,
                idempotency_key=own_key,
                idempotency_after=idempotency_after,
                timeout_ms=timeout_ms,
            ),
            timeout_ms,
            write=own_key,
        )

    def get(
        self,
        key: str,
        *,
        consistency: Consistency = "linearizable",
        max_staleness_ms: int | None = None,
        timeout_ms: int | None = None,
    ) -> GetResult | None:
        """Return the key's value and revision, or None; see `AsyncClient.get`."""
        return self._run(
            lambda client: client.get(
                key,
                consistency=consistency,
                max_staleness_ms=max_staleness_ms,
                timeout_ms=timeout_ms,
            ),
            timeout_ms,
        )

    def delete(
        self,
        key: str,
        *,
        if_revision: int | None = None,
        if_lock: IfLock | None = None,
        ack: Ack = "all",
        min_copies: int = 0,
        idempotency_key: str = "",
        idempotency_after: int | None = None,
        timeout_ms: int | None = None,
    ) -> DeleteResult:
        """Remove `key`; see `AsyncClient.delete`."""
        own_key = _key(idempotency_key, idempotency_after)
        return self._run(
            lambda client: client.delete(
                key,
                if_revision=if_revision,
                if_lock=if_lock,
                ack=ack,
                min_copies=min_copies,
                idempotency_key=own_key,
                idempotency_after=idempotency_after,
                timeout_ms=timeout_ms,
            ),
            timeout_ms,
            write=own_key,
        )

    def delete_range(
        self,
        prefix: str = "",
        *,
        start: str = "",
        end: str = "",
        limit: int = PAGE_LIMIT_MAX,
        cursor: str | None = None,
        ack: Ack = "all",
        min_copies: int = 0,
        idempotency_key: str = "",
        idempotency_after: int | None = None,
        timeout_ms: int | None = None,
    ) -> DeleteRangeResult:
        """Remove the first keys of a range; see `AsyncClient.delete_range`."""
        own_key = _key(idempotency_key, idempotency_after)
        return self._run(
            lambda client: client.delete_range(
                prefix,
                start=start,
                end=end,
                limit=limit,
                cursor=cursor,
                ack=ack,
                min_copies=min_copies,
                idempotency_key=own_key,
                idempotency_after=idempotency_after,
                timeout_ms=timeout_ms,
            ),
            timeout_ms,
            write=own_key,
        )

    def txn(self) -> SyncTxnBuilder:
        """Begin a transaction; see `AsyncClient.txn`."""
        return SyncTxnBuilder(self.transact)

    def transact(
        self,
        document: bytes | str,
        *,
        read_only: bool = False,
        ack: Ack = "all",
        min_copies: int = 0,
        idempotency_key: str = "",
        idempotency_after: int | None = None,
        timeout_ms: int | None = None,
    ) -> TxnResult:
        """Carry out a transaction given as JSON; see `AsyncClient.transact`."""
        own_key = idempotency_key
        if not read_only:
            own_key = _key(idempotency_key, idempotency_after)
        return self._run(
            lambda client: client.transact(
                document,
                read_only=read_only,
                ack=ack,
                min_copies=min_copies,
                idempotency_key=own_key,
                idempotency_after=idempotency_after,
                timeout_ms=timeout_ms,
            ),
            timeout_ms,
            write=own_key or None,
        )

    def page(
        self,
        prefix: str = "",
        *,
        start: str = "",
        end: str = "",
        limit: int = DEFAULT_PAGE_SIZE,
        cursor: str | None = None,
        keys_only: bool = False,
        consistency: Consistency = "linearizable",
        max_staleness_ms: int | None = None,
        group: str = "",
        timeout_ms: int | None = None,
    ) -> Page:
        """Return one page of keys; see `AsyncClient.page`."""
        return self._run(
            lambda client: client.page(
                prefix,
                start=start,
                end=end,
                limit=limit,
                cursor=cursor,
                keys_only=keys_only,
                consistency=consistency,
                max_staleness_ms=max_staleness_ms,
                group=group,
                timeout_ms=timeout_ms,
            ),
            timeout_ms,
        )

    def list(
        self,
        prefix: str = "",
        *,
        start: str = "",
        end: str = "",
        keys_only: bool = False,
        consistency: Consistency = "linearizable",
        page_size: int = DEFAULT_PAGE_SIZE,
        group: str = "",
    ) -> Iterator[Item]:
        """Iterate over all keys in order, page by page; see `AsyncClient.list`."""
        self._here().client.list(  # checks the arguments, asks nothing
            prefix,
            start=start,
            end=end,
            keys_only=keys_only,
            consistency=consistency,
            page_size=page_size,
            group=group,
        )

        def pages() -> Iterator[Item]:
            cursor: str | None = None
            while True:
                page = self.page(
                    prefix,
                    start=start,
                    end=end,
                    limit=page_size,
                    cursor=cursor,
                    keys_only=keys_only,
                    consistency=consistency,
                    group=group,
                )
                yield from page.items
                cursor = page.cursor
                if not cursor:
                    return

        return pages()

    def watch(
        self,
        prefix: str | None = None,
        *,
        key: str | None = None,
        start: str | None = None,
        end: str | None = None,
        after: int | None = None,
        timeout_ms: int | None = None,
    ) -> KeyWatch:
        """Watch keys: iterate over it, event by event; see `AsyncClient.watch`.

        It begins here, so that what this program changes next is seen. `with` it, or `close` it.
        """
        client, runner = self._here()
        watch = client.watch(
            prefix, key=key, start=start, end=end, after=after, timeout_ms=timeout_ms
        )
        return KeyWatch(watch, runner, self._timeout_ms)

    def mirror(self, prefix: str) -> Mirror:
        """Return a live copy of the keys with `prefix`, as a mapping. `with` it, or `close` it."""
        client, runner = self._here()
        return Mirror(client.mirror(prefix), runner, self._timeout_ms)

    def status(self, *, timeout_ms: int | None = None) -> ClusterStatus:
        """Return the cluster as its primary sees it."""
        return self._run(lambda client: client.status(timeout_ms=timeout_ms), timeout_ms)

    def digest(self, node: str, *, timeout_ms: int | None = None) -> Digest:
        """Return the checksum of that node's own store."""
        return self._run(lambda client: client.digest(node, timeout_ms=timeout_ms), timeout_ms)

    def groups(self, *, timeout_ms: int | None = None) -> GroupsDocument:
        """Return the asked node's group, and the map of groups; see `AsyncClient.groups`."""
        return self._run(lambda client: client.groups(timeout_ms=timeout_ms), timeout_ms)

    def publish_groups(self, new_map: GroupMap, *, timeout_ms: int | None = None) -> GroupMap:
        """Make a map the deployment's; see `AsyncClient.publish_groups`."""
        return self._run(
            lambda client: client.publish_groups(new_map, timeout_ms=timeout_ms),
            timeout_ms,
            write="",
        )

    def handover(self, to: str, *, timeout_ms: int | None = None) -> ViewSummary:
        """Make the in-sync replica `to` the primary."""
        return self._run(
            lambda client: client.handover(to, timeout_ms=timeout_ms), timeout_ms, write=""
        )

    def finish_upgrade(self, *, timeout_ms: int | None = None) -> ViewSummary:
        """Let the cluster use what its upgraded nodes support; see `AsyncClient`."""
        return self._run(
            lambda client: client.finish_upgrade(timeout_ms=timeout_ms), timeout_ms, write=""
        )

    def move(
        self,
        node: str,
        *,
        client: str = "",
        peer: str = "",
        raft: str = "",
        timeout_ms: int | None = None,
    ) -> ViewSummary:
        """Change the addresses of a node; see `AsyncClient.move`."""
        return self._run(
            lambda found: found.move(
                node, client=client, peer=peer, raft=raft, timeout_ms=timeout_ms
            ),
            timeout_ms,
            write="",
        )

    def remove(
        self, node: str, *, force: bool = False, timeout_ms: int | None = None
    ) -> ViewSummary:
        """Remove a node from the cluster for good; see `AsyncClient.remove`."""
        return self._run(
            lambda client: client.remove(node, force=force, timeout_ms=timeout_ms),
            timeout_ms,
            write="",
        )


def _key(key: str, after: int | None) -> str:
    """Return the key, or one drawn for none: here, so that every error can name it."""
    check_idempotency_after(key, after)
    return draw_key() if key == "" else key
