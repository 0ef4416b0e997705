"""The peer port: takes links from other nodes, once they have proved who they are.

The handshake of `datapath.transport.handshake` runs as two POSTs, and then the same connection is
upgraded to a websocket, so that nothing of websocket size is ever read from a stranger. Strangers
are bounded in number and time. See `docs/peer-protocol.md`.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import secrets
import socket
import ssl
from collections.abc import Mapping

from aiohttp import web

from datapath.complaints import Complaints
from datapath.transport.dialer import ASKING_KINDS, IDENTITY
from datapath.transport.handshake import (
    MAX_HANDSHAKE_MESSAGE_BYTES,
    NONCE_SIZE_BYTES,
    HandshakeError,
    ListenerHandshake,
    check_secret,
    encode_refusal,
)
from datapath.transport.link import (
    CLOSE_TIMEOUT_MS,
    IDLE_TIMEOUT_MS,
    MAX_OUTBOX_BYTES,
    ROUTE,
    ErrorCallback,
    Link,
    LinkError,
    LinkHandler,
)
from datapath.transport.tcp import cannot_listen, listening_socket, shut_down, tune
from datapath.transport.tls import (
    LinkTls,
    PlainTextError,
    begin_tls,
    begins_tls,
    certified_names,
    first_bytes,
)
from datapath.transport.websocket import EarlyBytes, WebSocket, accept_key
from election.identity import Verdict
from election.registry import PeerRegistry
from election.shared_secret import SharedSecret

logger = logging.getLogger(__name__)
_http_log = logging.getLogger(f"{__name__}.http")
_http_log.setLevel(logging.CRITICAL)  # aiohttp's: a stranger's garbage must not fill our log.

HANDSHAKE_TIMEOUT_MS = 3000
MAX_UNAUTHENTICATED = 256
MAX_LINKS = 1024
ACCEPT_PAUSE_MS = 100
SWEEP_INTERVAL_MS = 250


class PeerListener:
    """The peer port: takes links for `handlers` (by kind) from authenticated nodes.

    A new link of the same peer, kind and process replaces the old one, whose on_close comes first;
    another process under the same id is refused while the first has a link. Port 0 picks a free
    port, see `port`. Durations in milliseconds, sizes in bytes.
    """

    def __init__(
        self,
        host: str,
        port: int,
        node_id: str,
        cluster: str,
        secret: SharedSecret,
        handlers: Mapping[str, LinkHandler],
        *,
        registry: PeerRegistry,
        tls: LinkTls | None = None,
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
        self._registry = registry
        self._tls = tls
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
        self._pause: asyncio.TimerHandle | None = None
        self._admitting: set[asyncio.Task[None]] = set()
        self._complaints = Complaints(logger)

    async def start(self) -> None:
        """Bind and accept.

        Raises HandshakeError: no secret, and not on loopback. LinkError: the address cannot be
        used, or the port is busy.
        """
        check_secret(self.host, self._secret)
        try:
            self._socket = await listening_socket(self.host, self.port)
        except OSError as error:
            address = f"{self.host}:{self.port}"
            raise LinkError(cannot_listen(address, error, "peer", self.node_id)) from error
        self.port = self._socket.getsockname()[1]
        self._server = web.Server(
            self._handle,
            access_log=None,
            logger=_http_log,
            keepalive_timeout=self._handshake_timeout,
            # A stranger's request is this small; peers' websockets have bounds of their own.
            max_line_size=1024,
            max_field_size=1024,
            max_headers=32,
            read_bufsize=MAX_HANDSHAKE_MESSAGE_BYTES,
        )
        self._listen(self._socket, self._server)
        self._tasks = [asyncio.create_task(self._sweep())]

    async def stop(self) -> None:
        """Close all links (their on_close is called) and the port."""
        if self._pause is not None:
            self._pause.cancel()
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None
        tasks = [*self._tasks, *self._admitting]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        links = list(self.links.values())
        for link in links:
            link.close(f"{self.node_id} is stopping")
        for link in links:
            await link._handler_done.wait()
        for stranger in self._strangers.values():
            shut_down(stranger.socket)
        self._strangers.clear()
        if self._server is not None:
            await self._server.shutdown(2 * CLOSE_TIMEOUT_MS / 1000)

    def _listen(self, listening: socket.socket, server: web.Server) -> None:
        # By hand, not by `sock_accept`: cancelled, it may lose a connection that it has taken.
        asyncio.get_running_loop().add_reader(listening, self._accept, listening, server)

    def _accept(self, listening: socket.socket, server: web.Server) -> None:
        loop = asyncio.get_running_loop()
        try:
            connection, _ = listening.accept()
        except BlockingIOError:
            return  # the caller has gone
        except OSError as error:
            # Out of descriptors or memory: that does not last for ever.
            # (asyncio's own server stops for a second then, uvloop's for ever.)
            self._complain("accept", f"cannot accept peer connections: {error}")
            loop.remove_reader(listening)
            self._pause = loop.call_later(ACCEPT_PAUSE_MS / 1000, self._listen, listening, server)
            return
        connection.setblocking(False)
        protocol = server()
        stranger = _Stranger(connection, loop.time())
        self._strangers[protocol] = stranger
        task = asyncio.create_task(self._admit(stranger, protocol))
        self._admitting.add(task)
        task.add_done_callback(functools.partial(self._admitted, stranger, protocol))
        if len(self._strangers) > self._max_unauthenticated:
            self._forget_gone()
        while len(self._strangers) > self._max_unauthenticated:
            self._drop(next(iter(self._strangers)))

    def _admitted(
        self, stranger: _Stranger, protocol: web.RequestHandler, task: asyncio.Task[None]
    ) -> None:
        # Not in the task: one that is cancelled before its first step runs nothing.
        self._admitting.discard(task)
        if not stranger.connected:
            self._strangers.pop(protocol, None)
            stranger.socket.close()

    async def _admit(self, stranger: _Stranger, protocol: web.RequestHandler) -> None:
        """Make a stranger's connection one that can be talked on, with TLS where there is."""
        try:
            await self._connect(stranger.socket, protocol)
            stranger.connected = True
        except (TimeoutError, ConnectionError):
            pass  # it has gone, or has never said a word
        except (ssl.SSLError, PlainTextError) as error:
            self._complain("TLS", f"a peer connection was refused: {error}")
        except Exception as error:  # noqa: BLE001 -- the port must go on taking others
            self._complain("connection", "a peer connection could not be accepted", error)

    async def _connect(self, connection: socket.socket, protocol: web.RequestHandler) -> None:
        tune(connection)
        if self._tls is not None:
            advice, context = "set [tls] on every node", self._tls.listening
            await begin_tls(connection, lambda: protocol, context, advice, self._handshake_timeout)
            return
        if begins_tls(await first_bytes(connection, self._handshake_timeout)):
            # It is answered in plain HTTP.
            self._complain(
                "TLS",
                "a node speaks TLS to this port, which has none: set [tls] on every node or none",
            )
        loop = asyncio.get_running_loop()
        await loop.connect_accepted_socket(lambda: protocol, connection)

    async def _sweep(self) -> None:
        """Drop connections that have not become a link in time."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(min(SWEEP_INTERVAL_MS / 1000, self._handshake_timeout / 4))
            self._forget_gone()
            self._complaints.tick(loop.time())
            overdue = loop.time() - self._handshake_timeout
            for protocol, stranger in list(self._strangers.items()):
                if stranger.accepted_at < overdue:
                    self._drop(protocol)

    def _forget_gone(self) -> None:
        gone = [
            protocol
            for protocol, stranger in self._strangers.items()
            if stranger.connected and protocol.transport is None
        ]
        for protocol in gone:
            del self._strangers[protocol]

    def _drop(self, protocol: web.RequestHandler) -> None:
        shut_down(self._strangers.pop(protocol).socket)
        protocol.force_close()

    def _complain(self, kind: str, text: str, error: Exception | None = None) -> None:
        self._complaints.log(kind, text, asyncio.get_running_loop().time(), error=error)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            return await self._answer(request)
        except (web.HTTPException, ConnectionError):
            raise
        except Exception as error:
            text = f"a request from {request.remote} to the peer port failed"
            self._complain("request", text, error)
            raise

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        kind = request.path.removeprefix(ROUTE)
        stranger = self._strangers.get(request.protocol)
        if not request.path.startswith(ROUTE) or kind not in (*self._handlers, IDENTITY):
            return _plain(
                404,
                f"this is the peer port of onecopy node {self.node_id}, for nodes of the cluster "
                "only; clients use the node's `client` address",
            )
        if stranger is None:
            return _plain(400, "this connection is no longer waiting for a handshake")
        if request.method == "POST":
            return await self._take_handshake(request, stranger, kind)
        if request.method != "GET" or request.headers.get("Upgrade", "").lower() != "websocket":
            return _plain(
                426,
                f"this is a peer stream of onecopy node {self.node_id}: it needs the peer "
                "handshake and then a websocket",
                Upgrade="websocket",
            )
        handshake = stranger.handshake
        finished = handshake is not None and handshake.done and handshake.kind == kind
        if handshake is None or not finished or kind not in self._handlers:
            return _plain(401, "a websocket here needs a finished handshake on this connection")
        known = (handshake.peer, kind) in self.links
        if len(self.links) >= self._max_links and not known:
            return _plain(503, f"{self.node_id} already has {self._max_links} links")
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
                secrets=self._secret.accepted,
                node_id=self.node_id,
                kinds=(kind,),
                nonce=secrets.token_bytes(NONCE_SIZE_BYTES),
                claim=self._registry.claim,
                judge=lambda peer, claim: self._registry.judge(
                    peer,
                    claim,
                    "peer",
                    asking=kind in ASKING_KINDS or kind == IDENTITY,
                    dialled=False,
                ),
                certified=None if self._tls is None else certified_names(request.transport),
            )
        try:
            return web.Response(body=stranger.handshake.receive(body))
        except HandshakeError as error:
            text = f"refused a peer connection from {request.remote}: {error}"
            self._complain("handshake", text)
            body = error.answer or encode_refusal(str(error))
            refused = web.Response(status=403, body=body)
            refused.force_close()
            return refused

    async def _serve(
        self, request: web.BaseRequest, connection: socket.socket, handshake: ListenerHandshake
    ) -> web.StreamResponse:
        response, websocket = await _upgrade(request)
        loop = asyncio.get_running_loop()

        def evict() -> None:
            reason = f"another process holds {handshake.peer}'s address"
            loop.call_soon_threadsafe(link.close, reason)

        key = handshake.peer, handshake.kind
        link = Link(
            websocket,
            lambda: shut_down(connection),
            self._handlers[handshake.kind],
            peer=handshake.peer,
            kind=handshake.kind,
            outgoing=False,
            idle_timeout_ms=self._idle_timeout_ms,
            max_outbox_bytes=self._max_outbox_bytes,
            on_error=self._on_error,
            complaints=self._complaints,
        )
        # Judged before an older link goes: a second holder of an identity replaces nothing.
        token = self._registry.open(
            handshake.peer,
            handshake.peer_claim,
            "peer",
            evict,
            asking=handshake.kind in ASKING_KINDS,
            dialled=False,
        )
        if isinstance(token, Verdict):
            self._complain("handshake", f"closed a link from {request.remote}: {token.reason}")
            shut_down(connection)
            return response
        try:
            while (old := self.links.get(key)) is not None:
                old.close(f"{handshake.peer} opened a new link")
                await old._handler_done.wait()
                if self.links.get(key) is old:
                    del self.links[key]
            self.links[key] = link
            await link._run()
        finally:
            self._registry.close(token)
            if self.links.get(key) is link:
                del self.links[key]
        return response


async def _upgrade(request: web.BaseRequest) -> tuple[web.StreamResponse, WebSocket]:
    """Accept the upgrade of a connection, and take it from aiohttp."""
    accept = accept_key(request.headers.get("Sec-WebSocket-Key", ""))
    headers = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Accept": accept}
    response = web.StreamResponse(status=101, headers=headers)
    response.force_close()
    await response.prepare(request)
    early = EarlyBytes()
    request.protocol.set_parser(early)  # type: ignore[arg-type]  # it asks for no more
    if request.transport is None:
        raise ConnectionResetError("the other side has gone")
    gone = functools.partial(request.protocol.connection_lost, None)
    websocket = WebSocket(
        request.transport,
        is_client=False,
        early=early.data,
        on_gone=gone,
    )
    return response, websocket


class _Stranger:
    """A connection that is not a link yet."""

    def __init__(self, connection: socket.socket, accepted_at: float) -> None:
        self.socket = connection
        self.accepted_at = accepted_at
        self.connected = False
        self.handshake: ListenerHandshake | None = None


def _plain(status: int, text: str, **headers: str) -> web.Response:
    response = web.Response(status=status, text=text + "\n", headers=headers)
    response.force_close()
    return response
