"""Watching: what changes, as it commits, over as many connections and nodes as it takes.

A watch resumes by itself, at any node, after the last revision that it has given: nothing is
missing and nothing comes twice. Where a node no longer keeps the history that is asked for, the
others are asked before the watch ends with a RevisionCompactedError.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Generic, NamedTuple, Protocol, Self, TypeVar
from urllib.parse import quote, urlencode

import aiohttp
import msgspec

from cluster.client.arguments import (
    REVISION_MAX,
    check_optional_number,
    check_text,
    check_timeout,
)
from cluster.client.errors import (
    InvalidRequestError,
    RevisionCompactedError,
    UnavailableError,
    WrongClusterError,
)
from cluster.client.exchange import Request, raise_for
from cluster.client.group_routes import GroupRoutes, NameSpan, name_span, utf8
from cluster.client.results import Change, Problem, WatchEvent
from cluster.client.retries import BACKOFF_FIRST_S, BACKOFF_MAX_S

SILENCE_S = 25.0
"""A stream on which nothing comes for so long is given up: nodes say every 10 s how far it is."""
BEGIN_TIMEOUT_S = 8.0
"""How long a node may take to begin a stream: it may have to ask the primary first."""
MAX_EVENT_SIZE_BYTES = 256 * 1024 * 1024
"""Larger than what a node sends of one revision."""

EventT = TypeVar("EventT")
EventT_co = TypeVar("EventT_co", covariant=True)


class _Line(msgspec.Struct, frozen=True):
    """A line of a stream of changes: an event, or its end."""

    revision: int = 0
    changes: tuple[Change, ...] = ()
    end: Problem | None = None

    def event(self) -> WatchEvent:
        return WatchEvent(revision=self.revision, changes=self.changes)


_decode = msgspec.json.Decoder(_Line).decode


class StreamLine(Protocol[EventT_co]):
    """A line of a stream: an event, progress, or its end."""

    @property
    def revision(self) -> int:
        """Everything up to there has come."""

    @property
    def end(self) -> Problem | None:
        """Why the node ends the stream, where it does."""

    def event(self) -> EventT_co | None:
        """Return what is given of it; None: it only says how far the stream is."""


class AsyncStream(Generic[EventT]):
    """The events of a stream: iterate over it. It begins when it is entered or first iterated.

    `revision`: all changes up to there have come, and are given next if they were not; None before
    it has begun.
    """

    def __init__(
        self,
        routes: GroupRoutes,
        span: NameSpan,
        target: str,
        after: int | None,
        timeout_ms: int | None,
        decode: Callable[[bytes], StreamLine[EventT]],
    ) -> None:
        self.revision = check_optional_number("after", after, 0, REVISION_MAX)
        self._routes = routes
        self._span = span
        self._transport = routes.home
        self._target = target
        self._timeout_ms = check_timeout(timeout_ms)
        self._decode = decode
        self._response: aiohttp.ClientResponse | None = None
        self.problem = ""
        """Why no node has taken it, as far as is known; "" once one has."""
        self._url = ""
        self._parts: list[bytes] = []  # of a line that is not whole
        self._held_bytes = 0
        self._events: deque[EventT] = deque()
        self._compacted: dict[str, int] = {}  # the nodes that do not go back so far, and how far
        self._asked: set[str] = set()  # since the first of those
        self._without_data: set[str] = set()
        self._closed = False

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

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> EventT:
        """Return the next event. Nothing is lost where this is cancelled."""
        while not self._events:
            if self._closed:
                raise StopAsyncIteration
            await self._step()
        return self._events.popleft()

    async def begin(self) -> None:
        """Connect, so that all that changes from now on is given. Does nothing once it has begun.

        Raises UnavailableError, RevisionCompactedError, InvalidRequestError.
        """
        while self._response is None or self.revision is None:
            if self._closed:
                return
            await self._step()

    async def aclose(self) -> None:
        """End it. May be called twice."""
        self._closed = True
        self._drop()

    async def _step(self) -> None:
        if self._response is None:
            await self._connect()
        else:
            await self._read(self._response)

    # -- one stream

    async def _read(self, response: aiohttp.ClientResponse) -> None:
        try:
            data = await response.content.readany()
        except (aiohttp.ClientError, TimeoutError, OSError):
            data = b""
        self._held_bytes += len(data)
        if not data or self._held_bytes > MAX_EVENT_SIZE_BYTES:
            self._lost()
            return
        self._parts.append(data)
        if b"\n" not in data:
            return
        *lines, rest = b"".join(self._parts).split(b"\n")
        self._parts, self._held_bytes = [rest], len(rest)
        for line in lines:
            if self._response is not None:
                self._take(line)

    def _take(self, text: bytes) -> None:
        try:
            line = self._decode(text)
        except msgspec.DecodeError:
            self._lost()  # whatever answers there, it is no onecopy node
            return
        if line.end is not None:
            if line.end.code == "revision_compacted":
                self._compacted[self._url] = line.end.oldest
            self._lost()
            return
        self._transport.saw(line.revision)
        if self.revision is None or line.revision > self.revision:
            self.revision = line.revision
            self._compacted.clear()
            self._asked.clear()
            event = line.event()
            if event is not None:
                self._events.append(event)

    def _lost(self) -> None:
        """The stream has ended: another node is asked next."""
        self._drop()
        self._transport.endpoints.failed(self._url, asyncio.get_running_loop().time())

    def _drop(self) -> None:
        if self._response is not None:
            self._response.close()
        self._response = None
        self._parts, self._held_bytes = [], 0

    # -- from node to node

    async def _connect(self) -> None:
        """Find a node that takes the watch; for ever, unless there is a time-out."""
        loop = asyncio.get_running_loop()
        began, backoff_s = loop.time(), BACKOFF_FIRST_S
        while self._response is None and not self._closed:
            transport = self._transport
            try:
                transport = self._transport = await self._routes.of(*self._span, meets=False)
                self._url = await self._pick()
                await self._ask(self._url)
            except WrongClusterError:
                if transport.endpoints.is_given(self._url):
                    raise
                transport.endpoints.disown(self._url)
            except UnavailableError as error:
                self.problem = error.detail
                transport.endpoints.failed(self._url, loop.time())
                transport.refresh_soon(after_failure=True)
                timeout_ms = self._timeout_ms
                if timeout_ms is not None and loop.time() - began > timeout_ms / 1000:
                    raise
                if error.status or not transport.endpoints.has_fresh(loop.time()):
                    await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))  # noqa: S311 -- jitter
                    backoff_s = min(2 * backoff_s, BACKOFF_MAX_S)
            else:
                self.problem = ""
                transport.refresh_soon()

    async def _pick(self) -> str:
        """Return the node to ask. Raises RevisionCompactedError if none goes back so far."""
        endpoints, now = self._transport.endpoints, asyncio.get_running_loop().time()
        besides = {*self._compacted, *self._without_data}
        if self._compacted:
            besides |= self._asked
        found = endpoints.pick_any(now, besides)
        if found is None:
            await self._transport.discover()  # perhaps there are others
            besides &= set(endpoints.urls)
            found = endpoints.pick_any(now, besides)
        if found is not None:
            return found
        if self._compacted:
            oldest = min(self._compacted.values())
            self._compacted.clear()
            self._asked.clear()
            raise RevisionCompactedError(
                f"no node that answers keeps the changes after revision {self.revision}: those "
                f"after {oldest} are kept. Read the keys again, and watch after that revision",
                oldest=oldest,
            )
        raise InvalidRequestError("only witnesses were named: they hold no data", code="no_data")

    async def _ask(self, url: str) -> None:
        """Ask a node to begin the stream. Raises UnavailableError where another may do it."""
        target = self._target
        if self.revision is not None:
            target += f"{'&' if '?' in target else '?'}after={self.revision}"
        self._asked.add(url)
        call = Request("GET", target, {"Accept": "application/x-ndjson"}, waits=False)
        reply, response = await self._transport.open_stream(
            url, call, begin_timeout_s=BEGIN_TIMEOUT_S, silence_s=SILENCE_S
        )
        if response is not None:
            self._response = response
            return
        problem = reply.problem()
        if problem.code == "revision_compacted":
            self._compacted[url] = problem.oldest
        elif problem.code == "no_data":
            self._without_data.add(url)
        elif problem.code == "wrong_group" and self._routes.may_lead_on(self._transport):
            raise UnavailableError(problem.detail, code=problem.code, status=reply.status)
        else:
            raise_for(call, reply)


class AsyncKeyWatch(AsyncStream[WatchEvent]):
    """The events of one watch; see `AsyncStream`."""

    def __init__(
        self,
        routes: GroupRoutes,
        watched: WatchedNames,
        after: int | None,
        timeout_ms: int | None,
    ) -> None:
        super().__init__(routes, watched.span, watched.target, after, timeout_ms, _decode)

    async def __anext__(self) -> WatchEvent:
        """Return the next event: all that one revision has changed of what is watched."""
        while not (event := await self.next_or_progress()).changes:
            pass
        return event

    async def next_or_progress(self) -> WatchEvent:
        """Return the next event, also one without changes: nothing else up to its revision.

        Nothing is lost where this is cancelled. Raises StopAsyncIteration once it is closed.
        """
        return await super().__anext__()


class WatchedNames(NamedTuple):
    """What a watch asks for, and which keys these are."""

    target: str
    span: NameSpan


def watched(
    prefix: str | None, key: str | None, start: str | None, end: str | None
) -> WatchedNames:
    """Return what a watch is of. Raises InvalidRequestError."""
    options = {"prefix": prefix, "key": key, "start": start, "end": end}
    given = {name: check_text(name, value) for name, value in options.items() if value is not None}
    if not given:
        raise InvalidRequestError(
            'say what to watch: a prefix ("" for all keys), key=, or start= and end=',
            code="invalid_argument",
        )
    target = f"/v1/watch?{urlencode(given, quote_via=quote)}"
    if key is not None:
        return WatchedNames(target, name_span(key))
    if prefix is not None:
        return WatchedNames(target, name_span(prefix, below=True))
    return WatchedNames(target, (utf8(start or ""), utf8(end) if end else None))
