"""The listening side: settings, connections and their bounds, on aiohttp's low-level server.

aiohttp's Application is left out: its router and middlewares cost more than the whole dispatch
here. What it would have done (100-continue, HEAD, problem answers) is done by the API itself.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from aiohttp import web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.web import BaseRequest, RequestHandler, StreamResponse

from cluster.http_answer import PROBLEM, Answer
from cluster.http_express import MAX_REQUEST_SIZE_BYTES, ExpressApi, ExpressConnection
from cluster.http_memory import Memory
from cluster.problems import RETRY_AFTER_S, Problem
from datapath.turns import Turns

LINGER_S = 2.0
"""How long an unread body is read and dropped, so that the client gets to see its answer."""
BACKLOG = 1024
CHECK_INTERVAL_S = 0.5
"""How often connections are looked at whether they are idle."""

Handler = Callable[[BaseRequest], Awaitable[StreamResponse]]


class HttpSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds and defaults of the API.

    `idle_timeout_ms` bounds both a connection's idleness and the arrival of a request's head;
    `body_timeout_ms` the arrival of its body. Connections over `max_connections` get 503.
    `max_buffered_bytes` bounds what all clients together make the node hold, in answers not taken
    and bodies not complete. `shutdown_grace_ms`: how long `stop` waits for requests under way.
    """

    max_value_size_bytes: int = 1024 * 1024
    request_timeout_ms: int = 5000
    idle_timeout_ms: int = 60_000
    body_timeout_ms: int = 30_000
    max_connections: int = 4096
    max_buffered_bytes: int = 64 * 1024 * 1024
    shutdown_grace_ms: int = 5000
    access_log: bool = False


class HttpServer(web.Server):
    """Makes connections. `identify` gives the header lines that say which node this is."""

    def __init__(
        self,
        handler: Handler,
        settings: HttpSettings,
        identify: Callable[[], bytes],
        api: ExpressApi,
    ) -> None:
        super().__init__(
            handler,
            access_log=None,
            auto_decompress=False,  # values are stored as sent; see check_put_headers
            keepalive_timeout=settings.idle_timeout_ms / 1000,
            lingering_time=LINGER_S,
        )
        self.settings = settings
        self.identify = identify
        self.api = api
        self.idle_timeout_s = settings.idle_timeout_ms / 1000
        self.max_body_bytes = min(MAX_REQUEST_SIZE_BYTES, settings.max_value_size_bytes)
        self.memory = Memory(settings.max_buffered_bytes, asyncio.get_running_loop().time)
        self.turns = Turns()
        self._express: set[ExpressConnection] = set()
        self._closing = False
        self._checking = asyncio.get_running_loop().call_later(CHECK_INTERVAL_S, self._check)

    # The connections: each begins in the express lane

    def __call__(self) -> asyncio.Protocol:  # type: ignore[override]
        """Return the protocol of a new connection."""
        return ExpressConnection(self)

    def ordinary(self) -> asyncio.Protocol:
        """Make aiohttp's protocol for a connection that leaves the express lane."""
        connection = OrdinaryConnection(self, loop=asyncio.get_running_loop(), **self._kwargs)
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
        """How many connections there are."""
        return len(self.connections) + len(self._express)

    def admit(self, transport: asyncio.Transport) -> bool:
        """Whether there is room for another connection; one that is refused is closed."""
        if self.open_connections < self.settings.max_connections:
            return True
        problem = Problem(
            "too_many_connections",
            f"this node serves {self.settings.max_connections} connections already",
        )
        body = problem.body(write=True)  # whatever was about to be asked has not been applied
        transport.write(
            b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: %b\r\nContent-Length: %d\r\n"
            b"Retry-After: %d\r\n%bConnection: close\r\n\r\n%b"
            % (PROBLEM, len(body), RETRY_AFTER_S, self.identify(), body)
        )
        transport.close()
        return False

    def joined(self, connection: ExpressConnection) -> None:
        """A connection is open."""
        self._express.add(connection)

    def left(self, connection: ExpressConnection) -> None:
        """A connection is gone, or in the ordinary lane."""
        self._express.discard(connection)

    def _check(self) -> None:
        loop = asyncio.get_running_loop()
        self._checking = loop.call_later(CHECK_INTERVAL_S, self._check)
        now = loop.time()
        self.api.complaints.tick(now)
        self.memory.make_room()
        for connection in list(self._express):
            connection.check(now)

    # Stopping

    def pre_shutdown(self) -> None:
        """Take no further requests."""
        self._closing = True
        super().pre_shutdown()
        for connection in list(self._express):
            connection.close()

    async def shutdown(self, timeout: float | None = None) -> None:
        """Wait up to `timeout` seconds for requests under way, then close everything."""
        self._checking.cancel()
        waits = [connection.gone for connection in self._express]
        if waits:
            await asyncio.wait(waits, timeout=timeout)
        for connection in list(self._express):
            connection.abort()
        await super().shutdown(timeout)


class OrdinaryConnection(RequestHandler):
    """A connection in the ordinary lane: malformed requests are answered as problems."""

    __slots__ = ("_server", "memory", "reading")

    def __init__(self, server: HttpServer, **options: object) -> None:
        super().__init__(server, **options)  # type: ignore[arg-type]
        self._server = server
        self.memory = server.memory
        self.reading: asyncio.Task[Any] | None = None
        """What answers a request that only reads: it ends when the client has gone."""

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
            problem = Problem("internal_error", "see the node's log", outcome="unknown")
        elif isinstance(exc, LineTooLong):
            problem = Problem("head_too_large", "the request line or a header is over 8190 bytes")
        else:
            # The parser's message goes on with an excerpt of the request, which may be a value.
            reason = (message or "").partition("\n")[0].rstrip(": ")
            problem = Problem("malformed_request", reason or "the request could not be parsed")
        body = problem.body(write=True)
        return Answer(problem.status, body, PROBLEM, self._server.identify(), closes=True)


class Listener:
    """Starts and stops an `HttpServer` on an address."""

    def __init__(self, server: HttpServer) -> None:
        self._runner = web.ServerRunner(
            server, shutdown_timeout=server.settings.shutdown_grace_ms / 1000
        )
        self._site: web.TCPSite | None = None

    @property
    def port(self) -> int:
        """The port, known once started (asking for 0 lets the system choose)."""
        if self._site is None:
            raise RuntimeError("the HTTP API has not been started")
        return self._site.port

    async def start(self, host: str, port: int) -> None:
        """Listen. Raises OSError if the address cannot be had."""
        await self._runner.setup()
        self._site = web.TCPSite(self._runner, host, port, backlog=BACKLOG)
        try:
            await self._site.start()
        except OSError:
            self._site = None
            await self._runner.cleanup()
            raise

    async def stop(self) -> None:
        """Take no more requests, wait a bounded time for those under way, close everything."""
        await self._runner.cleanup()
