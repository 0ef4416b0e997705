"""Watches and mirrors without asyncio: the asynchronous ones, on the client's own event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator, Mapping
from types import TracebackType
from typing import Any, Generic, Self

from cluster.client.errors import UnavailableError
from cluster.client.loop_thread import LoopThread
from cluster.client.mirrors import AsyncMirror
from cluster.client.results import Item, LeaderEvent, WatchEvent
from cluster.client.watching import AsyncStream, EventT

SIGNAL_LOOK_INTERVAL_S = 1.0
"""How long the client's loop is waited for at once: in between Ctrl-C is noticed."""


class Stream(Generic[EventT]):
    """The events of a stream, blocking, for one thread at a time; see `AsyncStream`."""

    def __init__(
        self, watch: AsyncStream[EventT], runner: LoopThread, begin_timeout_ms: int
    ) -> None:
        self._watch = watch
        self._runner = runner
        self._step: asyncio.Task[EventT] | None = None
        self._closed = False
        try:
            _run(runner, watch.begin(), begin_timeout_ms)
        except UnavailableError as error:
            error.detail += f": {watch.problem}" * bool(watch.problem and error.code == "timeout")
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[EventT]:
        return self

    def __next__(self) -> EventT:
        """Wait for the next event."""
        while (event := self.poll(SIGNAL_LOOK_INTERVAL_S)) is None:
            if self._closed:
                raise StopIteration
        return event

    def poll(self, timeout_s: float) -> EventT | None:
        """Return the next event if it comes within so many seconds; else None."""
        if self._closed:
            return None
        return self._runner.ask(self._wait(timeout_s), timeout_s)

    async def _wait(self, timeout_s: float) -> EventT | None:
        if self._step is None:
            self._step = asyncio.ensure_future(self._next())
        done, _ = await asyncio.wait([self._step], timeout=timeout_s)
        if not done:
            return None
        step, self._step = self._step, None
        return None if step.cancelled() else step.result()

    async def _next(self) -> EventT:
        return await self._watch.__anext__()

    @property
    def revision(self) -> int | None:
        """All changes up to there have come; see `AsyncStream`."""
        return self._watch.revision

    def close(self) -> None:
        """End it. May be called twice, and from another thread."""
        if not self._closed:
            self._closed = True
            if not self._runner.ended:
                _run(self._runner, self._close(), 1000)

    async def _close(self) -> None:
        if self._step is not None:
            self._step.cancel()
        await self._watch.aclose()


class KeyWatch(Stream[WatchEvent]):
    """The events of a watch; see `Stream` and `AsyncKeyWatch`."""


class ElectionWatch(Stream[LeaderEvent]):
    """Who leads an election, now and whenever that changes; see `Stream`."""


class Mirror(Mapping[str, bytes]):
    """A live copy of keys, for any thread to read; see `AsyncMirror`. It is complete at once."""

    def __init__(self, mirror: AsyncMirror, runner: LoopThread, begin_timeout_ms: int) -> None:
        self._mirror = mirror
        self._runner = runner
        _run(runner, mirror.begin(), begin_timeout_ms)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __getitem__(self, key: str) -> bytes:
        return self._mirror[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._mirror)

    def __len__(self) -> int:
        return len(self._mirror)

    @property
    def revision(self) -> int:
        """The state that it is a copy of."""
        return self._mirror.revision

    def item(self, key: str) -> Item | None:
        """Return a key's value with its revisions, or None."""
        return self._mirror.item(key)

    def snapshot(self) -> tuple[int, dict[str, bytes]]:
        """Return (revision, keys and values): one state."""
        return self._mirror.snapshot()

    def reach(self, revision: int, timeout_ms: int = 10_000) -> None:
        """Wait until it holds all that has changed up to a revision: of one's own write, say."""
        _run(self._runner, self._mirror.reach(revision), timeout_ms)

    def close(self) -> None:
        """Follow no more. May be called twice."""
        if not self._runner.ended:
            _run(self._runner, self._mirror.aclose(), 1000)


def _run(runner: LoopThread, call: Coroutine[Any, Any, None], timeout_ms: int) -> None:
    """Run a call on the client's loop. Raises UnavailableError if it takes too long."""

    async def bounded() -> None:
        async with asyncio.timeout(timeout_ms / 1000):
            await call

    try:
        runner.ask(bounded(), timeout_ms / 1000)
    except TimeoutError:
        detail = f"no node could be watched within {timeout_ms} ms"
        raise UnavailableError(detail, code="timeout") from None
