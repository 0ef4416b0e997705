"""Links: authenticated websockets between nodes, as streams of messages. The wire is here only.

A `PeerListener` takes links, a `Dialer` keeps one up; both run the handshake of
`datapath.handshake` as two POSTs and then upgrade the same connection, so that nothing of
websocket size is ever read from a stranger. See `docs/peer-protocol.md`.

On the websocket, small messages that wait together travel as one *parcel*, a binary frame that
holds a MessagePack array of them: a frame of aiohttp's costs about 7 us at each end, a message in
a parcel 0.2 us. A large message is announced by a text frame with its size and follows in pieces,
unframed: no copies of 64 MiB that stop the event loop, and on a slow network each piece shows that
the link lives.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import random
import secrets
import socket
import types
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Mapping
from typing import Any, Protocol, TypeVar

import aiohttp
import msgspec
import yarl
from aiohttp import web

from datapath.errors import DataPathError
from datapath.handshake import (
    MAX_HANDSHAKE_MESSAGE_BYTES,
    NONCE_SIZE_BYTES,
    DialerHandshake,
    HandshakeError,
    ListenerHandshake,
    check_secret,
    encode_refusal,
)

log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 70 * 1024 * 1024
"""One message: a record of 64 MiB and what surrounds it."""
MAX_OUTBOX_BYTES = 160 * 1024 * 1024
MESSAGE_OVERHEAD_BYTES = 64
"""What a queued message counts beside its own bytes, so that empty ones are bounded too."""
LARGE_MESSAGE_BYTES = 32 * 1024
"""From here on a message is announced and sent in pieces; copying it into a parcel costs more."""
PIECE_BYTES = 64 * 1024
PARCEL_BYTES = 64 * 1024
MAX_FRAME_BYTES = 256 * 1024
IDLE_TIMEOUT_MS = 1500
PINGS_PER_IDLE_TIMEOUT = 3
CLOSE_TIMEOUT_MS = 250
"""How long a link that closes may take to tell the other side why."""
KERNEL_TIMEOUT_MS = 10_000
"""When the kernel gives up on bytes that nobody acknowledges: else dead sockets linger for long."""
HANDSHAKE_TIMEOUT_MS = 3000
DIAL_TIMEOUT_MS = 1000
MIN_REDIAL_DELAY_MS = 50
MAX_REDIAL_DELAY_MS = 500
MIN_HEALTHY_LINK_MS = 1000
"""A link that lived shorter is redialled with the delay of a failed attempt, not at once."""
MAX_UNAUTHENTICATED = 256
MAX_LINKS = 1024
ACCEPT_BACKLOG = 1024
ACCEPT_PAUSE_MS = 100
SWEEP_INTERVAL_MS = 250
REPEATED_LOG_INTERVAL_MS = 30_000
_MAX_CLOSE_REASON_BYTES = 120
_ROUTE = "/peer/v1/"

_T = TypeVar("_T")
_WebSocket = web.WebSocketResponse | aiohttp.ClientWebSocketResponse
_parcel_encoder = msgspec.msgpack.Encoder()
_parcel_decoder = msgspec.msgpack.Decoder(list[bytes])


class LinkError(DataPathError):
    """A link or the peer port cannot be used; the message says why."""


class LinkHandler(Protocol):
    """Takes what happens on the links of one kind. Sync and fast: it runs on the event loop.

    An exception closes the link, is logged, and goes to `on_error`.
    """

    def on_open(self, link: Link) -> None:
        """Take a new link; before any of its frames."""

    def on_frames(self, link: Link, frames: list[bytes]) -> None:
        """Take messages, in the order they were sent; never after `link.close`."""

    def on_close(self, link: Link, reason: str) -> None:
        """Take the end of a link: once for each `on_open`."""


ErrorCallback = Callable[["Link", Exception], None]


class Link:
    """One authenticated websocket with `peer`, for streams of one `kind`.

    `outgoing`: this side dialled. Made by `PeerListener` and `Dialer` only.
    """

    def __init__(
        self,
        websocket: _WebSocket,
        abort: Callable[[], None],
        handler: LinkHandler,
        *,
        peer: str,
        kind: str,
        outgoing: bool,
        idle_timeout_ms: int,
        max_outbox_bytes: int,
        on_error: ErrorCallback | None,
    ) -> None:
        self.peer = peer
        self.kind = kind
        self.outgoing = outgoing
        self.closed = False
        self.reason = ""
        self._websocket = websocket
        self._abort = abort
        self._handler = handler
        self._on_error = on_error
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._handler_done = asyncio.Event()
        self._outbox: deque[bytes] = deque()
        self._max_outbox_bytes = max_outbox_bytes
        self._queued_bytes = 0
        self._work = asyncio.Event()
        self._drained: list[tuple[int, asyncio.Future[None]]] = []
        self._inbox: list[bytes] = []
        self._pieces: list[bytes] = []
        self._missing_bytes = 0
        self._idle_timeout = idle_timeout_ms / 1000
        self._period = self._idle_timeout / PINGS_PER_IDLE_TIMEOUT
        self._ping_due = False
        self._pong_due = False
        self._heard_at = self._loop.time()
        self._ping_at = self._tick_at = self._heard_at
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        way = "to" if self.outgoing else "from"
        return f"<Link {self.kind} {way} {self.peer}{' closed' if self.closed else ''}>"

    @property
    def queued_bytes(self) -> int:
        """Bytes waiting in the outbox, `MESSAGE_OVERHEAD_BYTES` a message included.

        What the transport and the kernel hold (some hundred KB) is not counted.
        """
        return self._queued_bytes

    def send(self, data: bytes) -> None:
        """Queue a message; never blocks. On a closed link it is dropped, as `on_close` tells.

        An outbox over its bound closes the link. Raises ValueError beyond `MAX_MESSAGE_BYTES`.
        """
        if self.closed:
            return
        size = len(data)
        if size > MAX_MESSAGE_BYTES:
            raise ValueError(f"a message of {size} bytes is over {MAX_MESSAGE_BYTES}")
        self._queued_bytes += size + MESSAGE_OVERHEAD_BYTES
        if self._queued_bytes > self._max_outbox_bytes:
            self.close(
                f"outbox overflow: {self._queued_bytes} bytes wait, {self._max_outbox_bytes} may"
            )
            return
        self._outbox.append(data)
        self._work.set()

    async def drain_below(self, n_bytes: int) -> None:
        """Wait until at most `n_bytes` are queued. Raises LinkError if the link closes."""
        if self.closed:
            raise LinkError(f"the link with {self.peer} is closed: {self.reason}")
        if self._queued_bytes <= n_bytes:
            return
        drained: asyncio.Future[None] = self._loop.create_future()
        self._drained.append((n_bytes, drained))
        await drained

    def close(self, reason: str) -> None:
        """Close, keeping the first reason. No frame is delivered after this; on_close is soon."""
        if self.closed:
            return
        self.closed = True
        self.reason = reason
        self._outbox.clear()
        self._queued_bytes = 0
        for _, waiter in self._drained:
            if not waiter.done():
                waiter.set_exception(LinkError(f"the link with {self.peer} closed: {reason}"))
        self._drained.clear()
        if not self._ended.done():
            self._ended.set_result(None)

    async def _run(self) -> None:
        """Carry the link from on_open to on_close. Cancelling it closes the link."""
        tasks: list[asyncio.Task[None]] = []
        try:
            self._guard(self._handler.on_open, self)
            tasks += [asyncio.create_task(self._read()), asyncio.create_task(self._write())]
            self._tick()
            await self._ended
        finally:
            self.close("this node is stopping")
            if self._timer is not None:
                self._timer.cancel()
            for task in tasks:
                task.cancel()
            log.info("%s: %s", self, self.reason)
            self._guard(self._handler.on_close, self, self.reason)
            self._handler_done.set()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._say_goodbye()

    async def _say_goodbye(self) -> None:
        reason = self.reason.encode()[:_MAX_CLOSE_REASON_BYTES].decode(errors="ignore").encode()
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_MS / 1000):
                await self._websocket.close(code=aiohttp.WSCloseCode.GOING_AWAY, message=reason)
        except (TimeoutError, OSError, aiohttp.ClientError, RuntimeError):
            pass  # The other side does not listen any more: that may be why we close.
        finally:
            self._abort()

    def _guard(self, callback: Callable[..., None], *args: object) -> None:
        """Call the handler; its exception closes the link and is passed on."""
        try:
            callback(*args)
        except Exception as error:
            log.exception("the handler of %s failed", self)
            self.close(f"the handler failed: {error!r}")
            if self._on_error is not None:
                try:
                    self._on_error(self, error)
                except Exception:
                    log.exception("on_error of %s failed", self)

    # Receiving

    async def _read(self) -> None:
        try:
            while not self.closed:
                frame = await _before_waiting(self._websocket.receive(), self._deliver)
                match frame.type:
                    case aiohttp.WSMsgType.BINARY:
                        self._take_binary(frame.data)
                    case aiohttp.WSMsgType.TEXT:
                        self._take_announcement(frame.data)
                    case aiohttp.WSMsgType.PING:
                        self._pong_due = True
                        self._work.set()
                    case aiohttp.WSMsgType.PONG:
                        pass
                    case aiohttp.WSMsgType.CLOSE:
                        self._deliver()
                        self.close(f"{self.peer} closed it: {frame.extra or frame.data!a}")
                    case _:
                        self._deliver()
                        self.close(f"connection lost: {frame.data or frame.type.name}")
        except (LinkError, msgspec.MsgspecError) as error:
            self.close(f"{self.peer} broke the protocol: {error}")
        except (OSError, RuntimeError, aiohttp.ClientError) as error:
            self.close(f"connection lost: {error!r}")

    def _deliver(self) -> None:
        self._heard_at = self._loop.time()
        if self._inbox and not self.closed:
            frames, self._inbox = self._inbox, []
            self._guard(self._handler.on_frames, self, frames)

    def _take_binary(self, data: bytes) -> None:
        if not self._missing_bytes:
            self._inbox += _parcel_decoder.decode(data)
            return
        self._pieces.append(data)
        self._missing_bytes -= len(data)
        if self._missing_bytes < 0 or not data:
            raise LinkError("a large message's pieces do not add up to its size")
        if not self._missing_bytes:
            self._inbox.append(b"".join(self._pieces))
            self._pieces.clear()

    def _take_announcement(self, text: str) -> None:
        size = int(text) if text.isdecimal() and len(text) <= len(str(MAX_MESSAGE_BYTES)) else 0
        if not 0 < size <= MAX_MESSAGE_BYTES or self._missing_bytes:
            raise LinkError(f"a large message cannot be announced as {text[:20]!r}")
        self._missing_bytes = size

    # Sending

    async def _write(self) -> None:
        outbox = self._outbox
        try:
            while True:
                if self._ping_due:
                    self._ping_due = False
                    await self._websocket.ping()
                if self._pong_due:
                    self._pong_due = False
                    await self._websocket.pong()
                if outbox:
                    await self._write_some()
                else:
                    self._work.clear()
                    await self._work.wait()
        except (OSError, RuntimeError, aiohttp.ClientError) as error:
            self.close(f"connection lost: {error!r}")

    async def _write_some(self) -> None:
        """Write one large message, or one parcel of those that wait."""
        outbox = self._outbox
        if len(outbox[0]) >= LARGE_MESSAGE_BYTES:
            data = outbox.popleft()
            written = len(data) + MESSAGE_OVERHEAD_BYTES
            await self._write_large(data)
        else:
            parcel: list[bytes] = []
            written = 0
            while outbox and written < PARCEL_BYTES and len(outbox[0]) < LARGE_MESSAGE_BYTES:
                parcel.append(outbox.popleft())
                written += len(parcel[-1]) + MESSAGE_OVERHEAD_BYTES
            await self._websocket.send_bytes(_parcel_encoder.encode(parcel))
        if self.closed:
            return
        self._queued_bytes -= written
        if self._drained:
            self._wake_drained()

    async def _write_large(self, data: bytes) -> None:
        await self._websocket.send_str(str(len(data)))
        if len(data) <= PIECE_BYTES:
            await self._websocket.send_bytes(data)
            return
        for start in range(0, len(data), PIECE_BYTES):
            await self._websocket.send_bytes(data[start : start + PIECE_BYTES])
            if self._pong_due:
                self._pong_due = False
                await self._websocket.pong()

    def _wake_drained(self) -> None:
        queued = self._queued_bytes
        for n_bytes, waiter in self._drained:
            if queued <= n_bytes and not waiter.done():
                waiter.set_result(None)
        self._drained = [entry for entry in self._drained if not entry[1].done()]

    # Liveness

    def _tick(self) -> None:
        """Send pings; close when nothing came for the idle timeout.

        Where this very timer is late, the whole process stood still (SIGSTOP, a starved machine):
        what came meanwhile is still unread, so the other side gets one more period to be heard.
        """
        if self.closed:
            return
        now = self._loop.time()
        if now - self._tick_at > self._period:
            self._heard_at = max(self._heard_at, now - self._idle_timeout + self._period)
        if now - self._heard_at >= self._idle_timeout:
            self.close(f"nothing heard from {self.peer} for {self._idle_timeout * 1000:.0f} ms")
            return
        if now >= self._ping_at:
            self._ping_at = now + self._period
            self._ping_due = True
            self._work.set()
        self._tick_at = min(self._ping_at, self._heard_at + self._idle_timeout)
        self._timer = self._loop.call_at(self._tick_at, self._tick)


class PeerListener:
    """The peer port: takes links for `handlers` (by kind) from authenticated nodes.

    A new link of the same peer and kind replaces the old one, whose on_close comes first. Port 0
    picks a free port, see `port`. Durations in milliseconds, sizes in bytes.
    """

    def __init__(
        self,
        host: str,
        port: int,
        node_id: str,
        cluster: str,
        secret: bytes,
        handlers: Mapping[str, LinkHandler],
        *,
        handshake_timeout_ms: int = HANDSHAKE_TIMEOUT_MS,
        idle_timeout_ms: int = IDLE_TIMEOUT_MS,
        max_outbox_bytes: int = MAX_OUTBOX_BYTES,
        max_unauthenticated: int = MAX_UNAUTHENTICATED,
        max_links: int = MAX_LINKS,
        on_error: ErrorCallback | None = None,
    ) -> None:
        self.host = host
        self.port = port
        self.node_id = node_id
        self.links: dict[tuple[str, str], Link] = {}
        self._cluster = cluster
        self._secret = secret
        self._handlers = handlers
        self._handshake_timeout = handshake_timeout_ms / 1000
        self._idle_timeout_ms = idle_timeout_ms
        self._max_outbox_bytes = max_outbox_bytes
        self._max_unauthenticated = max_unauthenticated
        self._max_links = max_links
        self._on_error = on_error
        self._strangers: dict[web.RequestHandler, _Stranger] = {}
        self._socket: socket.socket | None = None
        self._server: web.Server | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._complaints = _Complaints()

    async def start(self) -> None:
        """Bind and accept.

        Raises HandshakeError: no secret, and not on loopback. LinkError: the address cannot be
        used, or the port is busy.
        """
        check_secret(self.host, self._secret)
        try:
            self._socket = await _listening_socket(self.host, self.port)
        except OSError as error:
            busy = error.errno == errno.EADDRINUSE
            raise LinkError(
                f"cannot listen on {self.host}:{self.port} ({error}): "
                + ("another process has this port; stop it, or " if busy else "")
                + f"change `peer` of node {self.node_id} in the configuration"
            ) from error
        self.port = self._socket.getsockname()[1]
        self._server = web.Server(
            self._handle,
            access_log=None,
            keepalive_timeout=self._handshake_timeout,
            # A stranger's request is this small; peers' websockets have bounds of their own.
            max_line_size=1024,
            max_field_size=1024,
            max_headers=32,
            read_bufsize=MAX_HANDSHAKE_MESSAGE_BYTES,
        )
        self._tasks = [
            asyncio.create_task(self._accept(self._socket, self._server)),
            asyncio.create_task(self._sweep()),
        ]

    async def stop(self) -> None:
        """Close all links (their on_close is called) and the port."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._socket is not None:
            self._socket.close()
        links = list(self.links.values())
        for link in links:
            link.close(f"{self.node_id} is stopping")
        for link in links:
            await link._handler_done.wait()
        for stranger in self._strangers.values():
            _shut_down(stranger.socket)
        self._strangers.clear()
        if self._server is not None:
            await self._server.shutdown(2 * CLOSE_TIMEOUT_MS / 1000)

    async def _accept(self, listening: socket.socket, server: web.Server) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listening)
            except OSError as error:
                # Out of descriptors or memory, or the caller has gone: neither lasts for ever.
                # (asyncio's own server stops for a second then, uvloop's for ever.)
                self._complaints.log(f"cannot accept peer connections: {error}")
                await asyncio.sleep(ACCEPT_PAUSE_MS / 1000)
                continue
            try:
                _tune(connection)
                _, protocol = await loop.connect_accepted_socket(server, connection)
            except Exception:
                log.exception("a peer connection could not be taken")
                connection.close()
                continue
            self._strangers[protocol] = _Stranger(connection, loop.time())
            if len(self._strangers) > self._max_unauthenticated:
                self._forget_gone()
            while len(self._strangers) > self._max_unauthenticated:
                self._drop(next(iter(self._strangers)))

    async def _sweep(self) -> None:
        """Drop connections that have not become a link in time."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(min(SWEEP_INTERVAL_MS / 1000, self._handshake_timeout / 4))
            self._forget_gone()
            overdue = loop.time() - self._handshake_timeout
            for protocol, stranger in list(self._strangers.items()):
                if stranger.accepted_at < overdue:
                    self._drop(protocol)

    def _forget_gone(self) -> None:
        gone = [protocol for protocol in self._strangers if protocol.transport is None]
        for protocol in gone:
            del self._strangers[protocol]

    def _drop(self, protocol: web.RequestHandler) -> None:
        _shut_down(self._strangers.pop(protocol).socket)
        protocol.force_close()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        kind = request.path.removeprefix(_ROUTE)
        stranger = self._strangers.get(request.protocol)
        if not request.path.startswith(_ROUTE) or kind not in self._handlers:
            return _plain(
                404,
                f"this is the peer port of onecopy node {self.node_id}, for the "
                "cluster's nodes only; clients use the node's `client` address",
            )
        if stranger is None:
            return _plain(400, "this connection is no longer waiting for a handshake")
        if request.method == "POST":
            return await self._take_handshake(request, stranger, kind)
        if request.method != "GET" or request.headers.get("Upgrade", "").lower() != "websocket":
            return _plain(
                426,
                f"this is a peer stream of onecopy node {self.node_id}: it takes "
                "the peer handshake and then a websocket",
                Upgrade="websocket",
            )
        handshake = stranger.handshake
        if handshake is None or not handshake.done or handshake.kind != kind:
            return _plain(401, "a websocket here takes a finished handshake on this connection")
        known = (handshake.peer, kind) in self.links
        if len(self.links) >= self._max_links and not known:
            return _plain(503, f"{self.node_id} has {self._max_links} links already")
        del self._strangers[request.protocol]
        return await self._serve(request, stranger.socket, handshake)

    async def _take_handshake(
        self, request: web.BaseRequest, stranger: _Stranger, kind: str
    ) -> web.Response:
        length = request.content_length
        if length is None or length > MAX_HANDSHAKE_MESSAGE_BYTES:
            return _plain(413, f"a handshake message has at most {MAX_HANDSHAKE_MESSAGE_BYTES} B")
        try:
            body = await request.content.readexactly(length)
        except asyncio.IncompleteReadError:
            return _plain(400, "the handshake message is cut short")
        if stranger.handshake is None:
            stranger.handshake = ListenerHandshake(
                cluster=self._cluster,
                secret=self._secret,
                node_id=self.node_id,
                kinds=(kind,),
                nonce=secrets.token_bytes(NONCE_SIZE_BYTES),
            )
        try:
            return web.Response(body=stranger.handshake.receive(body))
        except HandshakeError as error:
            self._complaints.log(f"refused a peer connection from {request.remote}: {error}")
            refused = web.Response(status=403, body=encode_refusal(str(error)))
            refused.force_close()
            return refused

    async def _serve(
        self, request: web.BaseRequest, connection: socket.socket, handshake: ListenerHandshake
    ) -> web.StreamResponse:
        websocket = web.WebSocketResponse(
            timeout=CLOSE_TIMEOUT_MS / 1000,
            autoping=False,  # The link answers: a pong must not wait inside the reader.
            compress=False,
            max_msg_size=MAX_FRAME_BYTES,
        )
        await websocket.prepare(request)
        key = handshake.peer, handshake.kind
        while (old := self.links.get(key)) is not None:
            old.close(f"{handshake.peer} opened a new link")
            await old._handler_done.wait()
            if self.links.get(key) is old:
                del self.links[key]
        link = Link(
            websocket,
            lambda: _shut_down(connection),
            self._handlers[handshake.kind],
            peer=handshake.peer,
            kind=handshake.kind,
            outgoing=False,
            idle_timeout_ms=self._idle_timeout_ms,
            max_outbox_bytes=self._max_outbox_bytes,
            on_error=self._on_error,
        )
        self.links[key] = link
        try:
            await link._run()
        finally:
            if self.links.get(key) is link:
                del self.links[key]
        return websocket


class Dialer:
    """Keeps one link of `kind` with `peer` up, until `stop`.

    `address` is asked at each attempt, so that a changed route is taken up; None or an exception
    of its means "not known now". After a loss it redials at once, then after 50 ms growing to
    500 ms, jittered. The same trouble is logged once.
    """

    def __init__(
        self,
        address: Callable[[], tuple[str, int] | None],
        peer: str,
        kind: str,
        node_id: str,
        cluster: str,
        secret: bytes,
        handler: LinkHandler,
        *,
        dial_timeout_ms: int = DIAL_TIMEOUT_MS,
        idle_timeout_ms: int = IDLE_TIMEOUT_MS,
        max_outbox_bytes: int = MAX_OUTBOX_BYTES,
        on_error: ErrorCallback | None = None,
    ) -> None:
        self.peer = peer
        self.kind = kind
        self.link: Link | None = None
        self.problem = ""
        self._address = address
        self._node_id = node_id
        self._cluster = cluster
        self._secret = secret
        self._handler = handler
        self._dial_timeout = dial_timeout_ms / 1000
        self._idle_timeout_ms = idle_timeout_ms
        self._max_outbox_bytes = max_outbox_bytes
        self._on_error = on_error
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to dial, on the running event loop."""
        if self._task is None:
            self._task = asyncio.create_task(self._keep_up())

    async def stop(self) -> None:
        """Close the link, if any (its on_close is called), and dial no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _keep_up(self) -> None:
        loop = asyncio.get_running_loop()
        delay_ms = 0.0
        while True:
            started = loop.time()
            try:
                await self._dial_and_run()
            except HandshakeError as error:
                self._report(str(error), logging.ERROR)
            except TimeoutError:
                self._report(f"no answer in {self._dial_timeout * 1000:.0f} ms", logging.WARNING)
            except (OSError, aiohttp.ClientError, LinkError) as error:
                self._report(str(error) or repr(error), logging.WARNING)
            except Exception as error:
                # A dialer that ends would keep two nodes apart until a restart.
                log.exception("%s: dialling %s failed", self._node_id, self.peer)
                self._report(repr(error), logging.ERROR)
            if self.problem or loop.time() - started < MIN_HEALTHY_LINK_MS / 1000:
                delay_ms = min(max(2 * delay_ms, MIN_REDIAL_DELAY_MS), MAX_REDIAL_DELAY_MS)
            else:
                delay_ms = 0.0
            await asyncio.sleep(delay_ms / 1000 * random.uniform(0.5, 1.0))  # noqa: S311

    def _report(self, problem: str, level: int) -> None:
        if problem != self.problem:
            log.log(level, "%s: no %s link to %s: %s", self._node_id, self.kind, self.peer, problem)
        self.problem = problem

    async def _dial_and_run(self) -> None:
        sockets: list[socket.socket] = []
        responses: list[aiohttp.ClientResponse] = []

        def make_socket(info: Any) -> socket.socket:
            family, kind, protocol, *_ = info
            sockets.append(socket.socket(family, kind, protocol))
            _tune(sockets[-1])
            return sockets[-1]

        async def keep_response(
            _session: object, _context: object, end: aiohttp.TraceRequestEndParams
        ) -> None:
            responses.append(end.response)

        def abort() -> None:
            for each in sockets:
                _shut_down(each)
            # The websocket of a client forgets to release a connection that was lost.
            for response in responses:
                response.close()

        trace = aiohttp.TraceConfig()
        trace.on_request_end.append(keep_response)
        # A session for each attempt: nothing of a failed one, such as a pooled connection, is
        # ever used again. limit=1 keeps the requests of the handshake on one connection.
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=1, use_dns_cache=False, socket_factory=make_socket
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None),
            trace_configs=[trace],
            auto_decompress=False,
        ) as session:
            try:
                async with asyncio.timeout(self._dial_timeout):
                    websocket = await self._connect(session)
                self.problem = ""
                self.link = self._make_link(websocket, abort)
                await self.link._run()
            finally:
                self.link = None
                abort()

    def _make_link(
        self, websocket: aiohttp.ClientWebSocketResponse, abort: Callable[[], None]
    ) -> Link:
        return Link(
            websocket,
            abort,
            self._handler,
            peer=self.peer,
            kind=self.kind,
            outgoing=True,
            idle_timeout_ms=self._idle_timeout_ms,
            max_outbox_bytes=self._max_outbox_bytes,
            on_error=self._on_error,
        )

    async def _connect(self, session: aiohttp.ClientSession) -> aiohttp.ClientWebSocketResponse:
        try:
            address = self._address()
        except Exception as error:
            raise LinkError(f"its address cannot be found: {error!r}") from error
        if address is None:
            raise LinkError("its address is not known")
        host, port = address
        url = yarl.URL.build(scheme="http", host=host, port=port, path=_ROUTE + self.kind)
        handshake = DialerHandshake(
            cluster=self._cluster,
            secret=self._secret,
            dialer=self._node_id,
            listener=self.peer,
            kind=self.kind,
            nonce=secrets.token_bytes(NONCE_SIZE_BYTES),
        )
        message = handshake.start()
        while not handshake.done:
            async with session.post(url, data=message, allow_redirects=False) as response:
                if response.status not in (200, 403):
                    text = ascii((await _read_bounded(response))[:200])
                    raise LinkError(f"{url} answers {response.status} {text}")
                message = handshake.receive(await _read_bounded(response))
        return await session.ws_connect(
            url,
            timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_TIMEOUT_MS / 1000),
            autoping=False,
            compress=0,
            max_msg_size=MAX_FRAME_BYTES,
        )


class _Stranger:
    """A connection that is not a link yet."""

    def __init__(self, connection: socket.socket, accepted_at: float) -> None:
        self.socket = connection
        self.accepted_at = accepted_at
        self.handshake: ListenerHandshake | None = None


class _Complaints:
    """Logs a text once, and again only after another one or some time: attempts come many times."""

    def __init__(self) -> None:
        self._last = ""
        self._at = 0.0

    def log(self, text: str) -> None:
        now = asyncio.get_running_loop().time()
        if text != self._last or now - self._at > REPEATED_LOG_INTERVAL_MS / 1000:
            log.error("%s", text)
            self._last, self._at = text, now


@types.coroutine
def _before_waiting(
    coroutine: Coroutine[Any, Any, _T], callback: Callable[[], None]
) -> Generator[Any, Any, _T]:
    """Await `coroutine`, but call `callback` first if it has to wait.

    aiohttp has no call for "all that is here already"; its receive() returns without waiting while
    something is. So a batch is complete exactly when receive() is about to wait: no extra turn of
    the event loop, no private face.
    """
    try:
        waited_for = coroutine.send(None)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    callback()
    while True:
        try:
            try:
                result = yield waited_for
            except BaseException as error:  # noqa: BLE001 - it belongs to the coroutine
                waited_for = coroutine.throw(error)
            else:
                waited_for = coroutine.send(result)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]


async def _listening_socket(host: str, port: int) -> socket.socket:
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, address = found[0]
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setblocking(False)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(ACCEPT_BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening


def _tune(connection: socket.socket) -> None:
    """Set TCP options. Buffer sizes are left to Linux, which grows them beyond what we may set."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, KERNEL_TIMEOUT_MS)


def _shut_down(connection: socket.socket) -> None:
    """End a connection at once, whatever is still unsent; its transport notices and closes it."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


async def _read_bounded(response: aiohttp.ClientResponse) -> bytes:
    body = b""
    while len(body) <= MAX_HANDSHAKE_MESSAGE_BYTES:
        some = await response.content.read(MAX_HANDSHAKE_MESSAGE_BYTES)
        if not some:
            break
        body += some
    return body


def _plain(status: int, text: str, **headers: str) -> web.Response:
    response = web.Response(status=status, text=text + "\n", headers=headers)
    response.force_close()
    return response
