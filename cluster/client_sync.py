"""The client's plain face: the same calls, without asyncio.

A `SyncClient` runs a `Client` on an event loop of its own, in a daemon thread; its methods may be
called from any thread.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from cluster.client_types import DeleteResult, Entry, Item, Page, PutResult, ViewSummary
from datapath.operations import Ack, ClusterStatus, Consistency, Digest

if TYPE_CHECKING:
    from cluster.client import Client

T = TypeVar("T")


class SyncClient:
    """Talks to one cluster, blocking. Use it as a context manager, or call `close`."""

    def __init__(
        self, endpoints: str | Iterable[str] | None = None, *, timeout_ms: int = 10_000
    ) -> None:
        """Take the same arguments as `Client`; nothing is sent yet."""
        from cluster.client import DEFAULT_ENDPOINTS, Client  # noqa: PLC0415 -- it imports us

        self._client: Client = Client(endpoints or DEFAULT_ENDPOINTS, timeout_ms=timeout_ms)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="onecopy-client", daemon=True
        )
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections and end the thread. May be called twice."""
        if self._loop.is_closed():
            return
        self._run(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, call: Coroutine[Any, Any, T]) -> T:
        if self._loop.is_closed():
            call.close()
            raise RuntimeError("this client is closed")
        future = asyncio.run_coroutine_threadsafe(call, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # Ctrl-C while waiting: do not leave the request running
            raise

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The nodes known by now."""
        return self._client.endpoints

    def put(
        self,
        key: str,
        value: bytes | str,
        *,
        if_revision: int | None = None,
        if_absent: bool = False,
        ack: Ack = "all",
        min_copies: int = 0,
        idempotency_key: str = "",
        timeout_ms: int | None = None,
    ) -> PutResult:
        """Write `value` under `key`; see `Client.put`."""
        call = self._client.put(
            key,
            value,
            if_revision=if_revision,
            if_absent=if_absent,
            ack=ack,
            min_copies=min_copies,
            idempotency_key=idempotency_key,
            timeout_ms=timeout_ms,
        )
        return self._run(call)

    def get(
        self,
        key: str,
        *,
        consistency: Consistency = "linearizable",
        max_staleness_ms: int | None = None,
        timeout_ms: int | None = None,
    ) -> Entry | None:
        """Return the key's value and revision, or None; see `Client.get`."""
        call = self._client.get(
            key,
            consistency=consistency,
            max_staleness_ms=max_staleness_ms,
            timeout_ms=timeout_ms,
        )
        return self._run(call)

    def delete(
        self,
        key: str,
        *,
        if_revision: int | None = None,
        ack: Ack = "all",
        min_copies: int = 0,
        idempotency_key: str = "",
        timeout_ms: int | None = None,
    ) -> DeleteResult:
        """Remove `key`; see `Client.delete`."""
        call = self._client.delete(
            key,
            if_revision=if_revision,
            ack=ack,
            min_copies=min_copies,
            idempotency_key=idempotency_key,
            timeout_ms=timeout_ms,
        )
        return self._run(call)

    def page(self, prefix: str = "", **options: Any) -> Page:
        """Return one page of a listing; see `Client.page`."""
        return self._run(self._client.page(prefix, **options))

    def list(self, prefix: str = "", *, page_size: int = 500, **options: Any) -> Iterator[Item]:
        """Iterate over all keys in order, page by page; see `Client.list`."""
        cursor: str | None = None
        while True:
            page = self.page(prefix, limit=page_size, cursor=cursor, **options)
            yield from page.items
            cursor = page.cursor
            if not cursor:
                return

    def status(self, *, timeout_ms: int | None = None) -> ClusterStatus:
        """Return the cluster as its primary sees it."""
        return self._run(self._client.status(timeout_ms=timeout_ms))

    def digest(self, node: str, *, timeout_ms: int | None = None) -> Digest:
        """Return the checksum of that node's own store."""
        return self._run(self._client.digest(node, timeout_ms=timeout_ms))

    def handover(self, to: str, *, timeout_ms: int | None = None) -> ViewSummary:
        """Make the in-sync replica `to` the primary."""
        return self._run(self._client.handover(to, timeout_ms=timeout_ms))

    def move(
        self,
        node: str,
        *,
        client: str = "",
        peer: str = "",
        raft: str = "",
        timeout_ms: int | None = None,
    ) -> ViewSummary:
        """Have the cluster agree on other addresses of a node; see `Client.move`."""
        return self._run(
            self._client.move(node, client=client, peer=peer, raft=raft, timeout_ms=timeout_ms)
        )

    def remove(
        self, node: str, *, force: bool = False, timeout_ms: int | None = None
    ) -> ViewSummary:
        """Take a node out of the cluster for good; see `Client.remove`."""
        return self._run(self._client.remove(node, force=force, timeout_ms=timeout_ms))
