"""The listening side: settings, connections and their bounds, on aiohttp's low-level server.

aiohttp's Application is left out: its router and middlewares cost more than the whole dispatch
here. What it would have done (100-continue, HEAD, problem answers) is done by the API itself. Its
runner is left out too: connections are accepted here one by one, so that a lack of descriptors is a
pause and not the end of the listener, and so that a stop can let the clients go first.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, cast

import msgspec
from aiohttp import hdrs, web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.web import BaseRequest, RequestHandler, StreamResponse

from cluster.api.answer import PROBLEM, Answer, Response
from cluster.api.fast_path import MAX_REQUEST_SIZE_BYTES, FastConnection, FastPathApi
from cluster.api.hosts import Hosts
from cluster.api.memory import Memory
from cluster.api.problems import RETRY_AFTER_S, ProblemError
from cluster.config.model import AdminFrom
from datapath.turns import Turns

UNREAD_BODY_LINGER_S = 2.0
"""How long an unread body is read and dropped, so that the client gets to see its answer."""
BACKLOG = 1024
CHECK_INTERVAL_S = 0.5
"""How often connections are looked at whether they are idle."""
MAX_PIECES_PER_TURN = 64
"""How many lines behind a request for an upgrade are parsed in one turn of the event loop."""
RESERVED_CONNECTIONS = 64
"""Connections over `max_connections` that are taken for health and the cluster's resources."""
RESERVE_PATIENCE_S = 5.0
"""How long such a connection may take until its whole request is there."""
ACCEPT_PAUSE_S = 0.1
ACCEPTS_PER_TURN = 16
DRAIN_QUIET_S = 0.5
"""A stopping node takes its clients for gone after so long without a request."""
DRAIN_POLL_S = 0.05
LAST_CALL_S = 0.2
"""What was accepted in the moment before the listener closed has so long to send its request."""
_ENDS_WITH_CLIENT = ("/v1/digest",)
"""Reads that take so long that a client that sends no more is taken for one that has gone."""

_UPGRADE = b"upgrade"

Handler = Callable[[BaseRequest], Awaitable[StreamResponse]]


class HttpSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds and defaults of the API.

    `idle_timeout_ms` bounds both a connection's idleness and the arrival of a request's head;
    `body_timeout_ms` the arrival of its body. Connections over `max_connections` get 503, except
    for health and the cluster's resources, in `reserved_connections` more. `drain_timeout_ms`: how
    long `drain` waits for clients to go elsewhere; `shutdown_grace_ms`: how long `stop` waits for
    requests under way. `admin_from`: see `cluster.api.admin`. `fast_path`: whether there is one
    (tests compare). `max_buffered_bytes` bounds what
    all clients together make the node hold, in answers not taken and bodies not complete.
    """

    max_value_size_bytes: int = 1024 * 1024
    request_timeout_ms: int = 5000
    idle_timeout_ms: int = 60_000
    body_timeout_ms: int = 30_000
    max_connections: int = 4096
    max_buffered_bytes: int = 64 * 1024 * 1024
    reserved_connections: int = RESERVED_CONNECTIONS
    drain_timeout_ms: int = 5000
    shutdown_grace_ms: int = 5000
    access_log: bool = False
    fast_path: bool = True
    admin_from: AdminFrom = "loopback"


class HttpServer(web.Server):
    """Makes connections. `identify` gives the header lines that say which node this is."""

    def __init__(
        self,
        handler: Handler,
        settings: HttpSettings,
        identify: Callable[[], bytes],
        api: FastPathApi,
        hosts: Hosts,
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
        self.idle_timeout_s = settings.idle_timeout_ms / 1000
        self.max_body_bytes = min(MAX_REQUEST_SIZE_BYTES, settings.max_value_size_bytes)
        self.now = asyncio.get_running_loop().time
        self.memory = Memory(settings.max_buffered_bytes, self.now)
        self.turns = Turns()
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
            connection = FastConnection(self)
            self._fast.add(connection)
            return connection
        if len(self._reserve) >= self.settings.reserved_connections and not self._free_reserve():
            return _Refused(self)
        reserved = self._make(reserved=True)
        self._reserve[reserved] = asyncio.get_running_loop().time()
        return reserved

    def forget(self, protocol: asyncio.Protocol) -> None:
        """Drop a connection that was gone before it could be served."""
        self._fast.discard(cast("FastConnection", protocol))
        self._reserve.pop(cast("FullConnection", protocol), None)

    def _free_reserve(self) -> bool:
        """Make room in the reserve: end the connection there that has asked nothing for longest."""
        for connection in self._reserve:
            if not connection.busy:
                connection.force_close()
                del self._reserve[connection]
                return True
        return False

    def full_path(self) -> asyncio.Protocol:
        """Make aiohttp's protocol for a connection that leaves the fast path."""
        return self._make(reserved=False)

    def _make(self, *, reserved: bool) -> FullConnection:
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
        }

    @property
    def open_connections(self) -> int:
        """How many connections there are, the reserve's too."""
        return len(self._connections) + len(self._fast)

    def full(self) -> ProblemError:
        """Return what a client is told for whom there is no connection."""
        return ProblemError(
            "too_many_connections",
            f"this node serves {self.settings.max_connections} connections already",
            closes=True,
        )

    def serve_later(self, connection: FastConnection) -> None:
        """Let a connection go on in a later turn of the loop: what this one has is spent."""
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
        while self._due and not self.turns.is_spent:
            self._due.popleft().resume()
        if self._due:
            self._begin_soon()

    def joined(self, connection: FastConnection) -> None:
        """A connection is open."""
        self._fast.add(connection)

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
        self.api.complaints.tick(now)
        self.memory.make_room()
        for connection in list(self._fast):
            connection.check(now)
        for reserved, since in list(self._reserve.items()):
            if now - since > RESERVE_PATIENCE_S and not (reserved.busy and reserved.whole):
                reserved.force_close()

    # Stopping

    @property
    def busy(self) -> bool:
        """Whether requests are under way, or have begun to arrive."""
        full_path = cast("list[FullConnection]", self.connections)
        return any(item.busy for item in self._fast) or any(item.busy for item in full_path)

    def pre_shutdown(self) -> None:
        """Take no further requests."""
        self._closing = True
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
        await super().shutdown(timeout)


class FullConnection(RequestHandler):
    """A connection on the full path: malformed requests are answered as problems.

    `reserved`: over the number of connections that this node serves, for health and the like only.
    """

    __slots__ = ("_body", "_body_left", "_ended", "_held", "_last_bytes", "_scheduled", "_server",
                 "_upgrades", "memory", "reading", "reserved", "turns")  # fmt: skip

    def __init__(self, server: HttpServer, reserved: bool, **options: object) -> None:
        super().__init__(server, **options)  # type: ignore[arg-type]
        self._server = server
        self.memory = server.memory
        self.turns = server.turns
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
        waiter = self._waiter
        return bool(self._messages or self._held) or waiter is None or waiter.done()

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
        if not self.busy or (request is not None and request.path in _ENDS_WITH_CLIENT):
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
                "head_too_large", "the request line or a header is over 8190 bytes"
            )
        else:
            # The parser's message goes on with an excerpt of the request, which may be a value.
            reason = (message or "").partition("\n")[0].rstrip(": ")
            problem = ProblemError("malformed_request", reason or "the request could not be parsed")
        body = problem.body(write=True)
        headers = self._server.identify()
        return Response(Answer(problem.status, body, PROBLEM, headers, closes=True))


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


class HttpListener:
    """Starts and stops an `HttpServer` on an address."""

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._sockets: list[socket.socket] = []
        self._taking: set[asyncio.Task[None]] = set()
        self._pause: asyncio.TimerHandle | None = None
        self._hurry = asyncio.Event()

    @property
    def port(self) -> int:
        """The port, known once started (asking for 0 lets the system choose)."""
        if not self._sockets:
            raise RuntimeError("the HTTP API has not been started")
        port: int = self._sockets[0].getsockname()[1]
        return port

    async def start(self, host: str, port: int) -> None:
        """Listen. Raises OSError if the address cannot be had."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        try:
            for family, kind, protocol, _, address in dict.fromkeys(found):
                listening = socket.socket(family, kind, protocol)
                self._sockets.append(listening)
                listening.setblocking(False)
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                listening.bind(address)
                listening.listen(BACKLOG)
        except OSError:
            for listening in self._sockets:
                listening.close()
            self._sockets = []
            raise
        self._watch()

    @property
    def listens(self) -> bool:
        """Whether new connections are taken."""
        return bool(self._sockets)

    def _on_readable(self, listening: socket.socket) -> None:
        """Take what has been accepted, a few at a time: the others are due, too."""
        try:
            for _ in range(ACCEPTS_PER_TURN):
                connection, _address = listening.accept()
                self._take(connection)
        except BlockingIOError:
            return
        except OSError as error:
            # Out of descriptors or memory, or the caller has gone: neither lasts for ever.
            # (asyncio's own server stops for a second then, uvloop's for ever.)
            if error.errno != errno.ECONNABORTED:
                self._complain(error)
                loop = asyncio.get_running_loop()
                loop.remove_reader(listening)
                self._pause = loop.call_later(ACCEPT_PAUSE_S, self._watch)

    def _watch(self) -> None:
        self._pause = None
        for listening in self._sockets:
            asyncio.get_running_loop().add_reader(listening, self._on_readable, listening)

    def _take(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        task = asyncio.get_running_loop().create_task(self._serve(connection, self._server()))
        self._taking.add(task)
        task.add_done_callback(self._taking.discard)

    async def _serve(self, connection: socket.socket, protocol: asyncio.Protocol) -> None:
        loop = asyncio.get_running_loop()
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.connect_accepted_socket(lambda: protocol, connection)
        except OSError:  # it has gone again
            connection.close()
            self._server.forget(protocol)

    def _complain(self, error: OSError) -> None:
        text = f"clients' connections cannot be accepted for now: {error.strerror}"
        self._server.api.complaints.log("accept", text, asyncio.get_running_loop().time())

    async def drain(self) -> None:
        """Let the clients go elsewhere, within a bound; all are served meanwhile.

        Each connection ends with the answer to its next request. New ones are taken, until none
        asks for anything any more: what balances the load has then noticed, or nobody is there.
        """
        server, loop = self._server, asyncio.get_running_loop()
        server.draining = True
        began = loop.time()
        deadline = began + server.settings.drain_timeout_ms / 1000
        while not self._hurry.is_set() and loop.time() < deadline:
            quiet_since = max(began, server.requested_at)
            if not server.busy and loop.time() - quiet_since >= DRAIN_QUIET_S:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DRAIN_POLL_S):
                    await self._hurry.wait()

    def hurry(self) -> None:
        """End `drain` now, or as soon as it begins."""
        self._hurry.set()

    async def stop(self) -> None:
        """Take no more requests, wait a bounded time for those under way, close everything."""
        loop = asyncio.get_running_loop()
        if self._pause is not None:
            self._pause.cancel()
        for listening in self._sockets:
            loop.remove_reader(listening)
            for connection in _accepted(listening):
                # The system has taken it already, and may have its request: to close would lose it.
                self._take(connection)
            listening.close()
        self._sockets = []
        if self._taking:
            await asyncio.wait(self._taking)
        if self._server.draining and self._server.open_connections:
            await asyncio.sleep(LAST_CALL_S)
        await asyncio.sleep(0)  # what has come is begun before idle connections are closed
        self._server.pre_shutdown()
        await self._server.shutdown(self._server.settings.shutdown_grace_ms / 1000)


def _accepted(listening: socket.socket) -> Iterator[socket.socket]:
    """Yield the connections that the system has accepted and nobody has taken."""
    for _ in range(BACKLOG):
        try:
            connection, _address = listening.accept()
        except OSError:
            return
        yield connection
