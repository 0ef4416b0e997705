"""The connections of a server, and their bounds, on aiohttp's low-level server.

aiohttp's Application is left out: its router and middlewares cost more than the whole dispatch
here. What it would have done (100-continue, HEAD, problem answers) is done by the API itself.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, cast

from aiohttp import hdrs, web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.web import BaseRequest, RequestHandler, StreamResponse

from cluster.api.answer import PROBLEM, Answer, Response
from cluster.api.certificate_name import shown_certificate
from cluster.api.fast_path import MAX_REQUEST_SIZE_BYTES, FastConnection, FastPathServer
from cluster.api.fast_path_api import FastPathApi
from cluster.api.hosts import Hosts
from cluster.api.memory import Memory
from cluster.api.outbox import Outbox
from cluster.api.params import waits_for_change
from cluster.api.problems import RETRY_AFTER_S, ProblemError
from cluster.api.settings import HttpSettings
from cluster.api.streams import Streams, WatchedNode
from datapath.turns import Turns

UNREAD_BODY_LINGER_S = 2.0
"""How long an unread body is read and dropped, so that the client gets to see its answer."""
CHECK_INTERVAL_S = 0.5
"""How often connections are looked at whether they are idle."""
MAX_PIECES_PER_TURN = 64
"""How many lines behind a request for an upgrade are parsed in one turn of the event loop."""
RESERVE_PATIENCE_S = 5.0
"""How long such a connection may take until its whole request is there."""

_UPGRADE = b"upgrade"

Handler = Callable[[BaseRequest], Awaitable[StreamResponse]]


class HttpServer(web.Server):
    """Makes connections. `identify` gives the header lines that say which node this is.

    `connect` makes a connection of the fast path.
    """

    def __init__(
        self,
        handler: Handler,
        settings: HttpSettings,
        identify: Callable[[], bytes],
        api: FastPathApi,
        hosts: Hosts,
        node: WatchedNode,
        connect: Callable[[FastPathServer], FastConnection],
    ) -> None:
        super().__init__(
            handler,
            access_log=None,
            auto_decompress=False,  # values are stored as sent; see check_put_headers
            keepalive_timeout=settings.idle_timeout_ms / 1000,
            lingering_time=UNREAD_BODY_LINGER_S,
        )
        self.settings = settings
        self.identify = identify
        self.api = api
        self.hosts = hosts
        self._connect = connect
        self.idle_timeout_s = settings.idle_timeout_ms / 1000
        self.max_body_bytes = min(MAX_REQUEST_SIZE_BYTES, settings.max_value_size_bytes)
        self.now = asyncio.get_running_loop().time
        self.memory = Memory(settings.max_buffered_bytes, self.now)
        self.outbox = Outbox()
        self.turns = Turns()
        self.streams = Streams(node, self, settings.max_watchers, api.complaints)
        self._turn_begins = False  # for those that are due
        self._due: deque[FastConnection] = deque()
        self.has_fast_path = settings.fast_path
        self.draining = False
        self.requested_at = 0.0
        """When a request, other than for health and the like, was last served while draining."""
        self._fast: set[FastConnection] = set()
        self._reserve: dict[FullConnection, float] = {}  # and since when, the oldest first
        self._closing = False
        self._checking = asyncio.get_running_loop().call_later(CHECK_INTERVAL_S, self._check)

    # The connections: each begins on the fast path

    def __call__(self) -> asyncio.Protocol:  # type: ignore[override]
        """Return the protocol of a new connection."""
        if self.open_connections - len(self._reserve) < self.settings.max_connections:
            connection = self._connect(cast("FastPathServer", self))
            self._fast.add(connection)
            return connection
        if len(self._reserve) >= self.settings.reserved_connections and not self._free_reserve():
            return _Refused(self)
        reserved = self.full_path(reserved=True)
        self._reserve[reserved] = asyncio.get_running_loop().time()
        return reserved

    def forget(self, protocol: asyncio.Protocol) -> None:
        """Drop a connection that was gone before it could be served."""
        self._fast.discard(cast("FastConnection", protocol))
        self._reserve.pop(cast("FullConnection", protocol), None)

    def _free_reserve(self) -> bool:
        """Make room in the reserve: end the connection there that has asked nothing for longest."""
        for connection in self._reserve:
            if connection.is_idle:
                connection.force_close()
                del self._reserve[connection]
                return True
        return False

    def full_path(self, *, reserved: bool = False) -> FullConnection:
        """Make aiohttp's protocol for a connection that the fast path does not serve."""
        loop = asyncio.get_running_loop()
        connection = FullConnection(self, reserved, loop=loop, **self._kwargs)
        if self._closing:
            connection.close()
        return connection

    def numbers(self) -> dict[str, float]:
        """Return numbers for metrics."""
        return {
            "http_open_connections": self.open_connections,
            "http_buffered_bytes": self.memory.held_bytes,
            "http_cut_off_total": self.memory.cut_total,
            "http_refused_for_memory_total": self.memory.refused_total,
            **self.streams.numbers(),
        }

    @property
    def open_connections(self) -> int:
        """How many connections there are, the reserve's too, and without those of watchers."""
        return len(self._connections) + len(self._fast)

    def full(self) -> ProblemError:
        """Return what a client is told for whom there is no connection."""
        return ProblemError(
            "too_many_connections",
            f"this node already has {self.settings.max_connections} connections",
            closes=True,
        )

    def serve_later(self, connection: FastConnection) -> None:
        """Let a connection go on in the next turn of the loop, or a later one if that is spent."""
        if not connection.is_due:
            connection.is_due = True
            self._due.append(connection)
            self._begin_soon()

    def _begin_soon(self) -> None:
        if not self._turn_begins:
            self._turn_begins = True
            asyncio.get_running_loop().call_soon(self._begin_turn)

    def _begin_turn(self) -> None:
        self._turn_begins = False
        self.outbox.will_flush = True
        due, turns = self._due, self.turns
        while due and not turns.is_spent:
            connection = due.popleft()
            try:
                connection.resume()
            except Exception as error:  # noqa: BLE001 -- the others are served, whatever it is
                self._failed(connection, error)
        self.outbox.flush()
        if self._due:
            self._begin_soon()

    def _failed(self, connection: FastConnection, error: Exception) -> None:
        """End a connection that could not be served, as the loop would."""
        context = {"message": "a connection is closed: it has failed", "exception": error}
        asyncio.get_running_loop().call_exception_handler(context)
        connection.abort()

    def left(self, connection: FastConnection) -> None:
        """A connection is gone, or on the full path."""
        self._fast.discard(connection)

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        """A connection of the full path is gone."""
        self._reserve.pop(cast("FullConnection", handler), None)
        super().connection_lost(handler, exc)

    def _check(self) -> None:
        loop = asyncio.get_running_loop()
        self._checking = loop.call_later(CHECK_INTERVAL_S, self._check)
        now = loop.time()
        self.api.tick(now)
        self.memory.make_room()
        self.streams.check()
        for connection in list(self._fast):
            connection.check(now)
        for reserved, since in list(self._reserve.items()):
            if now - since > RESERVE_PATIENCE_S and not (reserved.busy and reserved.whole):
                reserved.force_close()

    def close_refused(self, is_refused: Callable[[bytes], bool]) -> None:
        """Close the connections whose client has shown a certificate (DER) that is refused now."""
        transports = [
            *(connection._transport for connection in self._fast),
            *(connection.transport for connection in self.connections),
            *self.streams.transports(),
        ]
        for transport in transports:
            shown = shown_certificate(transport)
            if transport is not None and shown and is_refused(shown):
                transport.abort()

    # Stopping

    @property
    def busy(self) -> bool:
        """Whether requests are under way, or have begun to arrive."""
        full_path = cast("list[FullConnection]", self.connections)
        return any(item.busy for item in self._fast) or any(item.busy for item in full_path)

    def end_streams(self) -> None:
        """End all watches: their clients resume at another node."""
        self.streams.end(ProblemError("stopping", "this node is stopping: watch another"))

    def pre_shutdown(self) -> None:
        """Take no further requests."""
        self._closing = True
        self.end_streams()
        super().pre_shutdown()
        for connection in list(self._fast):
            connection.close()

    async def shutdown(self, timeout: float | None = None) -> None:
        """Wait up to `timeout` seconds for requests under way, then close everything."""
        self._checking.cancel()
        waits = [connection.gone for connection in self._fast]
        if waits:
            await asyncio.wait(waits, timeout=timeout)
        for connection in list(self._fast):
            connection.abort()
        await self.streams.stop()
        await self.api.access.stop()
        await super().shutdown(timeout)


class FullConnection(RequestHandler):
    """A connection on the full path: malformed requests are answered as problems.

    `reserved`: over the number of connections that this node serves, for health and the like only.
    """

    __slots__ = ("_body", "_body_left", "_ended", "_held", "_last_bytes", "_scheduled", "_server",
                 "_upgrades", "reading", "reserved")  # fmt: skip

    def __init__(self, server: HttpServer, reserved: bool, **options: object) -> None:
        super().__init__(server, **options)  # type: ignore[arg-type]
        self._server = server
        self._ended = False  # the client has sent its last byte, and may still read
        self._body: Any = None  # of the newest request: aiohttp's stream
        self._upgrades = False  # whether the client has asked for another protocol
        self._last_bytes = b""  # of what came: the word may be cut in two
        self._body_left = 0  # bytes of the newest request's body still to come
        self._held = b""  # what has come while too many requests waited, or lines too many
        self._scheduled = False  # to go on with that in a later turn of the event loop
        self.reserved = reserved
        self.reading: asyncio.Task[Any] | None = None
        """What answers a request that only reads: it ends when the client has gone."""

    @property
    def busy(self) -> bool:
        """Whether a request is under way or waits."""
        # In its first turn nothing awaits a request yet, and none has come.
        return bool(self._messages or self._held) or (self._body is not None and not self.is_idle)

    @property
    def is_idle(self) -> bool:
        """Whether the next request is awaited: not so before it is connected, and in that turn."""
        return self._waiter is not None and not self._waiter.done()

    @property
    def whole(self) -> bool:
        """Whether the newest request has come to its end."""
        return self._body is not None and self._body.is_eof()

    @property
    def is_last(self) -> bool:
        """Whether the request that is being answered is this connection's last."""
        if self.reserved:
            return True
        return (self._ended or self._server.draining) and not (self._messages or self._held)

    @property
    def has_ended(self) -> bool:
        """Whether the client sends no more: one that waits for long is taken for gone then."""
        return self._ended

    def data_received(self, data: bytes) -> None:
        """Take what has come."""
        if not self._upgrades:
            # Bodies are looked at as well: 1 us a KiB, a tenth of what a pattern takes.
            self._upgrades = _UPGRADE in (self._last_bytes + data).lower()
            self._last_bytes = data[-len(b"upgrade") :]
        if self._upgrades:
            self._receive_carefully(data)
        else:
            self._receive(data)

    def _receive(self, data: bytes) -> None:
        super().data_received(data)
        if self._messages:
            self._body = self._messages[-1][1]

    def _receive_carefully(self, data: bytes) -> None:
        """Feed the parser so that each request ends where a piece does.

        Upgrades are ignored (RFC 9110, 7.8), and requests may follow at once; but aiohttp's parser
        drops what stands in one piece behind a request that asks for an upgrade. Heads and chunked
        bodies end where a line does, other bodies after their length.
        """
        data, self._held = self._held + data, b""
        start = pieces = 0
        while True:
            if self._body_left:
                end = min(start + self._body_left, len(data))
                self._body_left -= end - start
            else:
                end = data.find(b"\n", start) + 1 or len(data)
            before = self._request_count
            self._receive(data[start:end])
            if self._request_count > before and not self.whole:
                length = getattr(self._messages[-1][0], "headers", {}).get(hdrs.CONTENT_LENGTH)
                self._body_left = int(length or 0)
            if self._upgraded and self._parser is not None:
                self._upgraded = False
                self._parser.set_upgraded(False)
            start = end
            if start >= len(data):
                return
            if self._buffer_paused:  # aiohttp goes on with b"" when there is room
                self._held = data[start:]
                return
            pieces += 1
            if pieces >= MAX_PIECES_PER_TURN:
                self._held = data[start:]
                if self.transport is not None:
                    self.transport.pause_reading()
                if not self._scheduled:
                    self._scheduled = True
                    asyncio.get_running_loop().call_soon(self._go_on)
                return

    def _go_on(self) -> None:
        """Feed the parser some more of what is held, in a later turn of the event loop."""
        self._scheduled = False
        if self.transport is None:
            return
        if self._held and not self._buffer_paused:
            self._receive_carefully(b"")
        if not (self._held or self._buffer_paused or self._reading_paused):
            self.transport.resume_reading()

    def eof_received(self) -> bool:  # type: ignore[override]
        """The client sends no more; what it has sent whole is answered before the end."""
        self._ended = True
        request = self._current_request
        if not self.busy or (request is not None and _ends_with_client(request)):
            return False
        if self._body is not None and not self.whole:
            if request is None and not self._messages:
                return False  # it is answered already, and its rest is dropped
            self._body.set_exception(ConnectionResetError("the request was cut short"))
        if not self._messages and not self._held:
            self._close = True  # after this request: its answer may have been made already
        return True

    def connection_lost(self, exc: BaseException | None) -> None:
        """End a read whose answer has nowhere to go; a write goes on."""
        super().connection_lost(exc)
        if self.reading is not None:
            self.reading.cancel()

    def log_exception(self, *args: Any, **options: Any) -> None:
        """Log what has failed here, within the bounds of what clients can cause."""
        error = options.get("exc_info")
        if not isinstance(error, BaseException):
            error = sys.exception()
        kind, now = f"connection {type(error).__name__}", asyncio.get_running_loop().time()
        self._server.api.complaints.log(kind, str(args[0]), now, error=error)

    def handle_error(
        self,
        request: BaseRequest,  # noqa: ARG002 -- aiohttp's signature
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> StreamResponse:
        """Answer what aiohttp's parser could not read; the connection ends."""
        if status >= 500:
            self.log_exception("a handler failed outside of the dispatch", exc_info=exc)
            problem = ProblemError("internal_error", "see the node's log", outcome="unknown")
        elif isinstance(exc, LineTooLong):
            problem = ProblemError(
                "head_too_large", "the request line or a header is longer than 8190 bytes"
            )
        else:
            # The parser's message goes on with an excerpt of the request, which may be a value.
            reason = (message or "").partition("\n")[0].rstrip(": ")
            problem = ProblemError("malformed_request", reason or "the request could not be parsed")
        body = problem.body(write=True)
        headers = self._server.identify()
        return Response(Answer(problem.status, body, PROBLEM, headers, closes=True))


def _ends_with_client(request: BaseRequest) -> bool:
    """Whether an answer takes so long that who sends no more is taken for one that has gone."""
    return request.path == "/v1/digest" or waits_for_change(request.query_string)


class _Refused(asyncio.Protocol):
    """A connection for which there is no room: told so, and closed, whatever it asks."""

    def __init__(self, server: HttpServer) -> None:
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Answer before anything was asked."""
        body = self._server.full().body(write=True)  # whatever was meant has not been applied
        stream = cast("asyncio.Transport", transport)
        stream.write(
            b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: %b\r\nContent-Length: %d\r\n"
            b"Retry-After: %d\r\n%bConnection: close\r\n\r\n%b"
            % (PROBLEM, len(body), RETRY_AFTER_S, self._server.identify(), body)
        )
        stream.close()
