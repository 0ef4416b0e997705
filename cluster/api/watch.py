"""Watching: GET /v1/watch and GET /v1/elections/{name}/observe, streams of events.

And GET /v1/kv/{key}?after=, the next event of one key alone.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any, NamedTuple, cast

from aiohttp import hdrs
from aiohttp.web import BaseRequest
from multidict import istr

from cluster.api.access import ApiAccess
from cluster.api.answer import JSON, Answer, transport_of
from cluster.api.cursor import make_bounds
from cluster.api.events import CONTENT_TYPES, Form, leader_event, progress_document
from cluster.api.headers import Headers, revision_line
from cluster.api.params import (
    MAX_REVISION,
    NEXT_CHANGE_PARAMS,
    OBSERVE_PARAMS,
    WATCH_PARAMS,
    decode_name,
    parse_query,
)
from cluster.api.problems import ProblemError
from cluster.api.streams import Streams
from cluster.services.access import ACCESS_SERVICE
from cluster.services.lock_state import Holder
from cluster.services.locks import LOCKS_SERVICE
from datapath.execution.changes import Event, Span
from datapath.keyspaces import LOCKS
from datapath.operations import Node, Principal, Query

LAST_EVENT_ID = istr("Last-Event-ID")
_REVISION = re.compile(r"[0-9]{1,19}")
_SSE_START = b"retry: 1000\n\n"  # a browser resumes after a second
_NO_STORE = b"Cache-Control: no-store\r\nX-Accel-Buffering: no\r\n"


class WatchRequest(NamedTuple):
    """What is asked for; `after` None: from now on."""

    span: Span
    after: int | None
    form: Form


def read_watch(query: str, headers: Headers) -> WatchRequest:
    """Read the request of a watch. Raises Problem."""
    values = parse_query(query, WATCH_PARAMS)
    return WatchRequest(_span(values), _after(values, headers), _form(headers))


def _after(values: dict[str, Any], headers: Headers) -> int | None:
    if LAST_EVENT_ID in headers:  # a stream that goes on: what it began with has passed
        return _last_event_id(headers[LAST_EVENT_ID])
    after: int | None = values.get("after")
    return after


def _span(values: dict[str, Any]) -> Span:
    bounds = {name for name in ("prefix", "start", "end") if name in values}
    if "key" in values:
        if bounds:
            detail = f"query parameter 'key' excludes {' and '.join(sorted(bounds))}"
            raise ProblemError("invalid_parameter", detail)
        if not values["key"]:
            raise ProblemError("invalid_parameter", "query parameter 'key' is empty: name a key")
        return Span(values["key"], values["key"] + b"\0")
    if not bounds:
        raise ProblemError(
            "invalid_parameter",
            "say what to watch: key=, prefix=, or start= and end= (an empty prefix= is all keys)",
        )
    span = Span(*make_bounds_of(values))
    if span.end is not None and span.start >= span.end:
        raise ProblemError(
            "invalid_parameter", "no key lies between these bounds: 'start' must be below 'end'"
        )
    return span


def make_bounds_of(values: dict[str, Any]) -> tuple[bytes, bytes | None]:
    """Return (start, end) of a prefix and a range."""
    bounds = make_bounds(*(values.get(name, b"") for name in ("prefix", "start", "end")))
    return bounds.start, bounds.end


def _last_event_id(text: str) -> int:
    if not _REVISION.fullmatch(text) or int(text) > MAX_REVISION:
        raise ProblemError(
            "invalid_header", "Last-Event-ID must be the id of an event of this service: a revision"
        )
    return int(text)


def _form(headers: Headers) -> Form:
    accept = ",".join(headers.getall(hdrs.ACCEPT, ())).lower()
    if "ndjson" in accept:
        return "ndjson"
    if not accept or "text/event-stream" in accept or "text/*" in accept or "*/*" in accept:
        return "sse"
    raise ProblemError(
        "not_acceptable", "events are text/event-stream or application/x-ndjson: accept one of them"
    )


class WatchHandlers:
    """The handlers of watches. `timeout_ms` is the default."""

    def __init__(self, node: Node, streams: Streams, timeout_ms: int, access: ApiAccess) -> None:
        self._access = access
        self._node = node
        self._streams = streams
        self._timeout_ms = timeout_ms

    async def watch(self, request: BaseRequest, query: str, identity: bytes) -> Answer:
        """GET /v1/watch: an answer that does not end."""
        wanted = read_watch(query, request.headers)
        streams = self._streams
        caller = await self._access.enter_watch(wanted.span)
        streams.check_open()
        streams.history  # noqa: B018 -- a witness refuses here
        after = wanted.after
        if after is None:  # this node may be behind what the client has been answered elsewhere
            after = await self._reached(self._timeout_ms)
        else:
            await self._check(after, self._timeout_ms)
        streams.check_open()  # others may have come meanwhile
        return StreamAnswer(streams, wanted.span, after, wanted.form, identity, caller)

    async def observe(
        self, request: BaseRequest, raw_name: str, query: str, identity: bytes
    ) -> Answer:
        """GET /v1/elections/{name}/observe: who leads, and then each change of that.

        With `after`, or Last-Event-ID, the changes alone.
        """
        name, headers = decode_name(raw_name), request.headers
        after = _after(parse_query(query, OBSERVE_PARAMS), headers)
        form, streams = _form(headers), self._streams
        span, first = Span(name, name + b"\0", LOCKS), None
        caller = await self._access.enter_watch(span)
        streams.check_open()
        if after is None:
            streams.history  # noqa: B018 -- a witness refuses here
            found = await self._node.query(
                Query("get", (name,), service=LOCKS_SERVICE), self._timeout_ms
            )
            holder = None if found.value is None else Holder(*found.value[:3])
            after = found.index
            first = leader_event(form, after, name, holder)
        await self._check(after, self._timeout_ms)
        streams.check_open()  # others may have come meanwhile
        return StreamAnswer(streams, span, after, form, identity, caller, first)

    async def next_change(self, key: bytes, query: str, identity: bytes) -> Answer:
        """GET /v1/kv/{key}?after=: the next change of a key, or how far there was none."""
        values = parse_query(query, NEXT_CHANGE_PARAMS)
        streams, span = self._streams, Span(key, key + b"\0")
        timeout_ms = values.get("timeout_ms", self._timeout_ms)
        caller = await self._access.enter_watch(span)
        await self._check(values["after"], timeout_ms)
        found = await streams.next_event(span, values["after"], timeout_ms / 1000, caller)
        await self._access.enter_watch(span)
        if isinstance(found, Event):
            document, revision = streams.encoder.encode(found, span, None), found.revision
        else:
            document, revision = progress_document(found), found
        lines = _NO_STORE + identity + revision_line(revision)
        return Answer(200, document, JSON, lines)

    async def _check(self, after: int, timeout_ms: int) -> None:
        """Refuse a watch from before what is kept, and from what nobody has seen yet."""
        history = self._streams.history
        history.check(after)
        if after <= history.feed.index:
            return
        # Another node may have told of it: this one need not have heard yet.
        reached = await self._reached(timeout_ms)
        if after > reached:
            raise ProblemError(
                "future_revision",
                f"query parameter 'after' is {after}, and this cluster is at revision "
                f"{reached}: take it from an event or a listing of this cluster",
            )

    async def _reached(self, timeout_ms: int) -> int:
        """Return the revision of a linearizable read: nothing acknowledged before is above it."""
        known = await self._node.query(Query("changed_at", service=ACCESS_SERVICE), timeout_ms)
        return known.index


class StreamAnswer(Answer):
    """The head of a watch; then the connection is a watcher's."""

    def __init__(
        self,
        streams: Streams,
        span: Span,
        after: int,
        form: Form,
        identity: bytes,
        caller: Principal | None,
        first: bytes | None = None,
    ) -> None:
        # Each answer ends with its connection: so its events need no framing of their own.
        lines = b"Content-Type: %b\r\n%b%b%b" % (
            CONTENT_TYPES[form], _NO_STORE, identity, revision_line(after),
        )  # fmt: skip
        super().__init__(200, None, headers=lines, closes=True)
        self._streams = streams
        self._watch = span, after, form, first, caller

    async def send(self, request: BaseRequest, *, closes: bool) -> None:
        """Send the head, and hand the connection over."""
        del closes
        transport_of(request).write(self._head_for(request, closes=True))
        if request.method == "HEAD":
            return
        span, after, form, first, caller = self._watch
        transport = take_over(request.protocol)
        if form == "sse":
            transport.write(_SSE_START)
        self._streams.begin(transport, span, after, form, first, caller)


def take_over(connection: Any) -> asyncio.Transport:
    """Take a connection out of aiohttp's hands, in the middle of an answer."""
    transport = cast("asyncio.Transport", connection.transport)
    connection.transport = None  # else it would be closed
    connection.connection_lost(None)
    return transport
