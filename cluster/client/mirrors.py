"""Mirrors: a live, read-only copy of the keys with a prefix (rule W5).

A listing at some revision, then a watch after it. In between the copy is complete at `revision`:
each event is applied whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Protocol, Self

from cluster.client.errors import ClientError, RevisionCompactedError
from cluster.client.results import Item, Page, WatchEvent
from cluster.client.watching import AsyncKeyWatch

LISTING_PAGE_SIZE = 1000


class Source(Protocol):
    """What a mirror needs of a client."""

    async def page(
        self, prefix: str = "", *, limit: int = LISTING_PAGE_SIZE, cursor: str | None = None
    ) -> Page:
        """Return a page of keys."""

    def watch(self, prefix: str | None = None, *, after: int | None = None) -> AsyncKeyWatch:
        """Watch keys."""


class Copy(Mapping[str, bytes]):
    """Keys and values at one revision; any thread may read it while it is changed.

    `revision`: the state that it is a copy of.
    """

    def __init__(self) -> None:
        self._items: dict[str, Item] = {}
        self._lock = threading.Lock()
        self.revision = 0

    def __getitem__(self, key: str) -> bytes:
        return self._items[key].value

    def __iter__(self) -> Iterator[str]:
        with self._lock:
            return iter(sorted(self._items))

    def __len__(self) -> int:
        return len(self._items)

    def item(self, key: str) -> Item | None:
        """Return a key's value with its revisions, or None."""
        return self._items.get(key)

    def snapshot(self) -> tuple[int, dict[str, bytes]]:
        """Return (revision, keys and values): one state."""
        with self._lock:
            return self.revision, {key: item.value for key, item in self._items.items()}

    def replace(self, items: dict[str, Item], revision: int) -> None:
        """Be a copy of another state."""
        with self._lock:
            self._items, self.revision = items, revision

    def apply(self, event: WatchEvent) -> None:
        """Follow what one revision has changed."""
        with self._lock:
            for change in event.changes:
                if change.value is None:
                    self._items.pop(change.key, None)
                else:
                    self._items[change.key] = Item(
                        key=change.key,
                        value=change.value,
                        revision=change.revision,
                        create_revision=change.create_revision,
                        version=change.version,
                        lease=change.lease,
                    )
            self.revision = event.revision


class AsyncMirror(Copy):
    """A copy that follows. `async with` it: it is complete when that is entered.

    While no node can be reached it stays as it is, `revision` too. `error`: why it follows no more.
    """

    def __init__(self, source: Source, prefix: str) -> None:
        super().__init__()
        self.error: ClientError | None = None
        self._source = source
        self._prefix = prefix
        self._watch: AsyncKeyWatch | None = None
        self._task: asyncio.Task[None] | None = None
        self._moved = asyncio.Event()

    async def __aenter__(self) -> Self:
        await self.begin()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def begin(self) -> None:
        """Copy, and follow from then on. Raises what the listing and the watch do."""
        if self._task is None:
            watch = await self._copy()
            self._task = asyncio.create_task(self._follow(watch))

    async def aclose(self) -> None:
        """Follow no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._watch is not None:
            await self._watch.aclose()

    async def changed(self, after: int | None = None) -> int:
        """Wait until `revision` is above `after` (None: what it is now); return it.

        Time alone raises it, too: nothing else has changed up to there. Raises `error`.
        """
        known = self.revision if after is None else after
        while self.revision <= known:
            if self.error is not None:
                raise self.error
            self._moved.clear()
            await self._moved.wait()
        return self.revision

    async def reach(self, revision: int) -> None:
        """Wait until it holds all that has changed up to a revision: of one's own write, say."""
        await self.changed(revision - 1)

    async def _copy(self) -> AsyncKeyWatch:
        """List, and watch until the pages, each of another revision, are one state."""
        while True:
            with contextlib.suppress(RevisionCompactedError):  # the listing took too long
                return await self._copy_once()

    async def _copy_once(self) -> AsyncKeyWatch:
        page = await self._source.page(self._prefix, limit=LISTING_PAGE_SIZE)
        began = page.revision
        items: dict[str, Item] = {}
        while True:
            items.update({item.key: item for item in page.items})
            if page.cursor is None:
                break
            page = await self._source.page(
                self._prefix, limit=LISTING_PAGE_SIZE, cursor=page.cursor
            )
        watch = self._source.watch(self._prefix, after=where_to_follow(began, page.revision))
        self._watch = watch
        listed = Copy()
        listed.replace(items, began)
        while listed.revision < page.revision:
            listed.apply(await watch.next_or_progress())
        self.replace(items, listed.revision)
        return watch

    async def _follow(self, watch: AsyncKeyWatch) -> None:
        while True:
            try:
                while True:
                    self.apply(await watch.next_or_progress())
                    self._moved.set()
            except RevisionCompactedError:  # it was away too long
                try:
                    await watch.aclose()
                    watch = await self._copy()
                except ClientError as error:
                    self._end(error)
                    return
                self._moved.set()
            except ClientError as error:
                self._end(error)
                return

    def _end(self, error: ClientError) -> None:
        self.error = error
        self._moved.set()


def where_to_follow(first_page: int, last_page: int) -> int:
    """W5: after the revision of the first page, which may lack what came while others were read."""
    del last_page
    return first_page
