"""The listening sockets: what is accepted becomes connections of an `HttpServer`.

aiohttp's runner is left out: connections are accepted here one by one, so that a lack of
descriptors is a pause and not the end of the listener, and so that a stop can let the clients go
first.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import logging
import math
import socket
import ssl
from collections.abc import Iterator, Mapping
from typing import Protocol

from cluster.api.server import HttpServer
from datapath.transport.tcp import shut_down
from datapath.transport.tls import (
    TLS_HANDSHAKE_TIMEOUT_S,
    PlainTextError,
    begin_tls,
)

BACKLOG = 1024
ACCEPT_PAUSE_S = 0.1
ACCEPTS_PER_TURN = 16
DRAIN_QUIET_S = 0.5
"""A stopping node takes its clients for gone after so long without a request."""
DRAIN_POLL_S = 0.05
LAST_CALL_S = 0.2
"""What was accepted in the moment before the listener closed has so long to send its request."""

HANDSHAKE_LAST_CALL_S = 2.0
"""How long a node that stops waits for handshakes of TLS: who has connected may never begin."""
MAX_UNFINISHED_HANDSHAKES = 1024
"""More connections than these that wait for their handshake of TLS cost the oldest its place."""
MIN_UNFINISHED_HANDSHAKES = 16
"""Where connections are few, because of a low limit of open files say."""


class ServerTls(Protocol):
    """What the connections of clients are encrypted with, and its numbers for metrics."""

    @property
    def serving(self) -> ssl.SSLContext:
        """For a new connection."""

    def numbers(self) -> Mapping[str, float]:
        """Return numbers for metrics."""


class HttpListener:
    """Starts and stops an `HttpServer` on an address."""

    def __init__(self, server: HttpServer, tls: ServerTls | None = None) -> None:
        """`tls`: what new connections are encrypted with; None: nothing."""
        self._server = server
        self._tls = tls
        self._sockets: list[socket.socket] = []
        self._taking: dict[asyncio.Task[None], socket.socket] = {}  # the oldest first
        self._took_at = -math.inf  # when the newest connection was taken
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
        self._took_at = asyncio.get_running_loop().time()
        connection.setblocking(False)
        if self._tls is None:
            serving = self._serve(connection, self._server())
        else:
            self._make_room()
            serving = self._shake_hands(connection, self._tls)
        task = asyncio.get_running_loop().create_task(serving)
        self._taking[task] = connection
        task.add_done_callback(functools.partial(self._taken, connection))

    def _taken(self, connection: socket.socket, task: asyncio.Task[None]) -> None:
        self._taking.pop(task, None)
        if task.cancelled():  # perhaps before its first step
            connection.close()

    def _make_room(self) -> None:
        """Drop the connections that have waited longest for their handshake, if need be.

        They come out of what is left for clients, so that there is a descriptor for each.
        """
        left = self._server.settings.max_connections - self._server.open_connections
        room = min(MAX_UNFINISHED_HANDSHAKES, max(MIN_UNFINISHED_HANDSHAKES, left))
        while len(self._taking) >= room:
            oldest = next(iter(self._taking))
            shut_down(self._taking.pop(oldest))
            oldest.cancel()
            text = (
                f"{room} connections had not finished their handshake of TLS: the oldest was closed"
            )
            self._warn("handshakes", text)

    async def _serve(self, connection: socket.socket, protocol: asyncio.Protocol) -> None:
        loop = asyncio.get_running_loop()
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.connect_accepted_socket(lambda: protocol, connection)
        except BaseException as error:
            connection.close()
            self._server.forget(protocol)
            if not isinstance(error, OSError):
                raise

    async def _shake_hands(self, connection: socket.socket, tls: ServerTls) -> None:
        advice = "use an https:// URL"
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await begin_tls(connection, self._server, tls.serving, advice, TLS_HANDSHAKE_TIMEOUT_S)
        except BaseException as error:
            connection.close()
            if not isinstance(error, OSError):
                raise
            if isinstance(error, ssl.SSLError | PlainTextError):  # else it has gone again
                text = f"a client's connection was refused: {error}"
                self._warn("TLS", text)

    def _warn(self, kind: str, text: str) -> None:
        now = asyncio.get_running_loop().time()
        self._server.api.complaints.log(kind, text, now, level=logging.WARNING)

    def _complain(self, error: OSError) -> None:
        text = f"connections of clients cannot be accepted at the moment: {error.strerror}"
        self._server.api.complaints.log("accept", text, asyncio.get_running_loop().time())

    async def drain(self) -> None:
        """Let the clients go elsewhere, within a bound; all are served meanwhile.

        Each connection ends with the answer to its next request. New ones are taken, until none
        asks for anything any more: what balances the load has then noticed, or nobody is there.
        """
        if not self.listens:
            return
        server, loop = self._server, asyncio.get_running_loop()
        server.draining = True
        server.end_streams()
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
            timeout = None if self._tls is None else HANDSHAKE_LAST_CALL_S
            _, late = await asyncio.wait(self._taking, timeout=timeout)
            for task in late:
                task.cancel()
        if self._server.draining and self._server.open_connections:
            await asyncio.sleep(max(0.0, self._took_at + LAST_CALL_S - loop.time()))
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
