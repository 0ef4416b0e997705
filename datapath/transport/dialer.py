"""The dialling end of a link: proves who it is to a peer port, and keeps one link up.

The handshake of `datapath.transport.handshake` runs as two POSTs, and then the same connection is
upgraded to a websocket. See `docs/peer-protocol.md`.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import logging
import random
import secrets
import socket
import ssl
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import aiohttp
import yarl

from datapath.complaints import Complaints
from datapath.tls_records import without_context
from datapath.transport.handshake import (
    MAX_HANDSHAKE_MESSAGE_BYTES,
    NONCE_SIZE_BYTES,
    DialerHandshake,
    HandshakeError,
)
from datapath.transport.link import (
    IDLE_TIMEOUT_MS,
    MAX_OUTBOX_BYTES,
    ROUTE,
    ErrorCallback,
    Link,
    LinkError,
    LinkHandler,
)
from datapath.transport.tcp import shut_down, tune
from datapath.transport.tls import LinkTls
from datapath.transport.tls_transport import TlsTransport
from datapath.transport.websocket import EarlyBytes, WebSocket, accept_key
from election.identity import Claim, Verdict
from election.registry import PeerRegistry
from election.shared_secret import SharedSecret

logger = logging.getLogger(__name__)

DIAL_TIMEOUT_MS = 1000
MIN_REDIAL_DELAY_MS = 50
MAX_REDIAL_DELAY_MS = 500
ASKING_KINDS = frozenset({"request"})
"""Streams of questions only: a node may have one before it is admitted (`election.identity`)."""
IDENTITY = "identity"
"""No stream: a handshake under this kind only tells both ends who the other is."""
MIN_HEALTHY_LINK_MS = 1000
"""A link that lived shorter is redialled with the delay of a failed attempt, not at once."""
_KEY_BYTES = 16  # of a websocket's key (RFC 6455, 4.1)


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
        secret: SharedSecret,
        handler: LinkHandler,
        *,
        registry: PeerRegistry,
        tls: LinkTls | None = None,
        dial_timeout_ms: int = DIAL_TIMEOUT_MS,
        idle_timeout_ms: int = IDLE_TIMEOUT_MS,
        max_outbox_bytes: int = MAX_OUTBOX_BYTES,
        on_error: ErrorCallback | None = None,
    ) -> None:
        self.peer = peer
        self.kind = kind
        self.link: Link | None = None
        self.problem = ""
        self._complaints = Complaints(logger)
        self._address = address
        self._node_id = node_id
        self._cluster = cluster
        self._secret = secret
        self._handler = handler
        self._registry = registry
        self._tls = tls
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
            self._complaints.tick(started)
            try:
                await self._dial_and_run()
            except HandshakeError as error:
                if error.by_peer:
                    self._registry.accuse(self.peer, error.code, str(error))
                self._report(str(error), logging.ERROR)
            except TimeoutError:
                self._report(f"no answer in {self._dial_timeout * 1000:.0f} ms", logging.WARNING)
            except (OSError, aiohttp.ClientError, LinkError) as error:
                self._report(_explain(error), logging.WARNING)
            except Exception as error:  # noqa: BLE001 -- see below
                # A dialer that ends would keep two nodes apart until a restart.
                text = f"{self._node_id}: dialling {self.peer} failed"
                self._complaints.log("defect", text, loop.time(), error=error)
                self._report(repr(error), logging.ERROR)
            if self.problem or loop.time() - started < MIN_HEALTHY_LINK_MS / 1000:
                delay_ms = min(max(2 * delay_ms, MIN_REDIAL_DELAY_MS), MAX_REDIAL_DELAY_MS)
            else:
                delay_ms = 0.0
            await asyncio.sleep(delay_ms / 1000 * random.uniform(0.5, 1.0))  # noqa: S311

    def _report(self, problem: str, level: int) -> None:
        if problem != self.problem:  # which may quote what answers there, another text each time
            text = f"{self._node_id}: no {self.kind} link to {self.peer}: {problem}"
            now = asyncio.get_running_loop().time()
            self._complaints.log("dial", text, now, level=level)
        self.problem = problem

    async def _dial_and_run(self) -> None:
        sockets: list[socket.socket] = []
        responses: list[aiohttp.ClientResponse] = []

        def make_socket(info: Any) -> socket.socket:
            family, kind, protocol, *_ = info
            sockets.append(socket.socket(family, kind, protocol))
            tune(sockets[-1])
            return sockets[-1]

        async def keep_response(
            _session: object, _context: object, end: aiohttp.TraceRequestEndParams
        ) -> None:
            responses.append(end.response)

        def abort() -> None:
            for each in sockets:
                shut_down(each)
            for response in responses:
                response.close()

        trace = aiohttp.TraceConfig()
        trace.on_request_end.append(keep_response)
        # A session for each attempt: nothing of a failed one, such as a pooled connection, is
        # ever used again. limit=1 keeps the requests of the handshake on one connection.
        async with aiohttp.ClientSession(
            connector=_Connector(limit=1, use_dns_cache=False, socket_factory=make_socket),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None),
            trace_configs=[trace],
            auto_decompress=False,
        ) as session:
            try:
                async with asyncio.timeout(self._dial_timeout):
                    websocket, claim = await self._connect(session)
                self.link = self._make_link(websocket, abort)
                token = self._open(claim, self.link)
                self.problem = ""
                try:
                    await self.link._run()
                finally:
                    self._registry.close(token)
            finally:
                self.link = None
                abort()

    def _open(self, claim: Claim, link: Link) -> int:
        loop = asyncio.get_running_loop()

        def evict() -> None:
            loop.call_soon_threadsafe(link.close, f"another process holds {self.peer}'s address")

        opened = self._registry.open(
            self.peer, claim, "peer", evict, asking=self.kind in ASKING_KINDS, dialled=True
        )
        if isinstance(opened, Verdict):
            raise HandshakeError(opened.reason, code=opened.code)
        return opened

    def _make_link(self, websocket: WebSocket, abort: Callable[[], None]) -> Link:
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
            complaints=self._complaints,
        )

    async def _connect(self, session: aiohttp.ClientSession) -> tuple[WebSocket, Claim]:
        try:
            address = self._address()
        except Exception as error:
            raise LinkError(f"its address cannot be resolved: {error!r}") from error
        if address is None:
            raise LinkError("its address is not known")
        host, port = address
        target = _Target(host, port, self.kind, self.peer, self._tls)
        handshake = DialerHandshake(
            cluster=self._cluster,
            secret=self._secret.current,
            dialer=self._node_id,
            listener=self.peer,
            kind=self.kind,
            nonce=secrets.token_bytes(NONCE_SIZE_BYTES),
            claim=self._registry.claim,
            judge=lambda peer, claim: self._registry.judge(
                peer, claim, "peer", asking=self.kind in ASKING_KINDS, dialled=True
            ),
        )
        await _shake_hands(session, target, handshake)
        websocket = await _upgrade(session, target)
        return websocket, handshake.peer_claim


async def find_second_holder(
    address: tuple[str, int],
    cluster: str,
    secret: SharedSecret,
    registry: PeerRegistry,
    tls: LinkTls | None = None,
) -> str:
    """Ask at this node's own address, before it listens there, whether another process is it.

    Returns why this one is the second holder of the identity, or "": nobody answers there, or
    somebody else, or nobody who knows the secret.
    """
    me = registry.node_id
    target = _Target(*address, IDENTITY, me, tls)
    handshake = DialerHandshake(
        cluster=cluster,
        secret=secret.current,
        dialer=me,
        listener=me,
        kind=IDENTITY,
        nonce=secrets.token_bytes(NONCE_SIZE_BYTES),
        claim=registry.claim,
        judge=lambda peer, claim: registry.judge(peer, claim, "peer", asking=True, dialled=True),
    )
    connector = _Connector(limit=1, use_dns_cache=False)
    try:
        async with (
            asyncio.timeout(DIAL_TIMEOUT_MS / 1000),
            aiohttp.ClientSession(connector=connector, auto_decompress=False) as session,
        ):
            await _shake_hands(session, target, handshake)
    except HandshakeError as error:
        if error.code == "second" and handshake.peer_claim.data_id == registry.claim.data_id:
            return str(error)
    except (TimeoutError, OSError, aiohttp.ClientError, LinkError):
        pass
    return ""


class _Connector(aiohttp.TCPConnector):
    """aiohttp's, with TLS by the transport that the listening end has as well."""

    async def _wrap_create_connection(self, *args: Any, **options: Any) -> tuple[Any, Any]:
        context = options.pop("ssl")
        if context is None:
            return await super()._wrap_create_connection(*args, ssl=None, **options)
        (make_protocol,) = args
        key = options["req"].connection_key
        secured = TlsTransport(context, make_protocol, options.pop("server_hostname"))
        await super()._wrap_create_connection(
            lambda: secured, ssl=None, server_hostname=None, **options
        )
        try:
            await secured.ready
        except BaseException as error:
            secured.abort()
            if isinstance(error, ssl.SSLCertVerificationError):
                raise aiohttp.ClientConnectorCertificateError(key, error) from error
            raise
        return secured, secured.get_protocol()


class _Target:
    """Where a dialer connects. With TLS only to whom a certificate names with the peer's id."""

    def __init__(self, host: str, port: int, kind: str, peer: str, tls: LinkTls | None) -> None:
        scheme = "http" if tls is None else "https"
        self.url = yarl.URL.build(scheme=scheme, host=host, port=port, path=ROUTE + kind)
        self.ssl = True if tls is None else tls.dialing
        self.server_name = None if tls is None else peer


async def _shake_hands(
    session: aiohttp.ClientSession, target: _Target, handshake: DialerHandshake
) -> None:
    message = handshake.start()
    while not handshake.done:
        async with session.post(
            target.url,
            data=message,
            allow_redirects=False,
            ssl=target.ssl,
            server_hostname=target.server_name,
        ) as response:
            if response.status not in (200, 403):
                text = ascii((await _read_bounded(response))[:200])
                raise LinkError(f"{target.url} answers {response.status} {text}")
            message = handshake.receive(await _read_bounded(response))


async def _upgrade(session: aiohttp.ClientSession, target: _Target) -> WebSocket:
    """Make a websocket of the connection, and take it from aiohttp."""
    key = base64.b64encode(secrets.token_bytes(_KEY_BYTES)).decode()
    response = await session.get(
        target.url,
        headers={
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": key,
        },
        allow_redirects=False,
        ssl=target.ssl,
        server_hostname=target.server_name,
    )
    accepted = response.headers.get("Sec-WebSocket-Accept") == accept_key(key)
    if response.status != HTTPStatus.SWITCHING_PROTOCOLS or not accepted:
        text = ascii((await _read_bounded(response))[:200])
        raise LinkError(f"{target.url} answers {response.status} {text}, and opens no link")
    connection, early = response.connection, EarlyBytes()
    if connection is None or connection.transport is None or connection.protocol is None:
        raise ConnectionResetError("the other side has gone")
    connection.protocol.set_parser(early, None)
    return WebSocket(
        connection.transport,
        is_client=True,
        early=early.data,
        on_gone=functools.partial(connection.protocol.connection_lost, None),
    )


def _explain(error: Exception) -> str:
    """Return what an error of the connection says, and what to do where TLS is the matter."""
    text = without_context(str(error)) or repr(error)
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        reason = getattr(error.certificate_error, "verify_message", "") or text
        return f"its certificate is refused here: {reason}"
    if "WRONG_VERSION_NUMBER" in text:
        return "it answers without TLS: [tls] must be set on every node"
    return text


async def _read_bounded(response: aiohttp.ClientResponse) -> bytes:
    body = b""
    while len(body) <= MAX_HANDSHAKE_MESSAGE_BYTES:
        some = await response.content.read(MAX_HANDSHAKE_MESSAGE_BYTES)
        if not some:
            break
        body += some
    return body
