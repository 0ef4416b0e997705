"""TLS between nodes: whom a certificate names, and how a plain connection is told from a TLS one.

Each connection asks for the contexts anew, so that certificates can change while the node runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from typing import Protocol

from datapath.transport.tls_transport import TlsTransport

TLS_HANDSHAKE_TIMEOUT_S = 5.0
"""How long the other side may take over a handshake of TLS, from its first byte on."""
_TLS_RECORD = b"\x16\x03"  # a handshake record: no request of HTTP begins so
_PLAIN_ANSWER = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n"
    b"Content-Length: %d\r\nConnection: close\r\n\r\n%b"
)
SPEAKS_TLS = "this port speaks TLS only"


class LinkTls(Protocol):
    """What the links of a node are encrypted with, now."""

    @property
    def dialing(self) -> ssl.SSLContext:
        """For a link to another node, whose id is the server's name."""

    @property
    def listening(self) -> ssl.SSLContext:
        """For a link from another node, which must show a certificate."""


class PlainTextError(OSError):
    """The other side does not speak TLS at a port that does; it has been told so."""


async def first_bytes(connection: socket.socket, timeout_s: float) -> bytes:
    """Wait for the first bytes of a connection and return one or two, without taking them.

    Raises TimeoutError where nothing comes, ConnectionError where the other side has gone.
    """
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(connection, readable.set)
    try:
        async with asyncio.timeout(timeout_s):
            await readable.wait()
    finally:
        loop.remove_reader(connection)
    first = connection.recv(len(_TLS_RECORD), socket.MSG_PEEK)
    if not first:
        raise ConnectionResetError("the other side has gone")
    return first


def refuse_plain(connection: socket.socket, advice: str) -> PlainTextError:
    """Answer what is no TLS in plain HTTP with `advice`; return the error to raise."""
    body = f"{SPEAKS_TLS}: {advice}\n".encode()
    with contextlib.suppress(OSError):
        connection.recv(65536)  # else closing would reset the connection, and lose the answer
        connection.send(_PLAIN_ANSWER % (len(body), body))
        connection.shutdown(socket.SHUT_WR)
    return PlainTextError(SPEAKS_TLS)


async def begin_tls(
    connection: socket.socket,
    make_protocol: Callable[[], asyncio.BaseProtocol],
    context: ssl.SSLContext,
    advice: str,
    timeout_s: float,
) -> None:
    """Serve an accepted connection under TLS; what is no TLS is answered with `advice`.

    `make_protocol` is called when the handshake is done. `timeout_s` bounds the wait for the first
    byte. Raises PlainTextError; ssl.SSLError where the handshake fails; TimeoutError,
    ConnectionError where the other side is silent or has gone.
    """
    if not begins_tls(await first_bytes(connection, timeout_s)):
        raise refuse_plain(connection, advice)
    secured = TlsTransport(context, make_protocol)
    loop = asyncio.get_running_loop()
    plain, _ = await loop.connect_accepted_socket(lambda: secured, connection)
    try:
        async with asyncio.timeout(TLS_HANDSHAKE_TIMEOUT_S):
            await secured.ready
    except ssl.SSLError:
        raise  # it closes when its last word is sent
    except BaseException:
        plain.abort()
        raise


def begins_tls(data: bytes) -> bool:
    """Whether what came first on a connection is the beginning of TLS."""
    return bool(data) and _TLS_RECORD.startswith(data[: len(_TLS_RECORD)])


def certified_names(transport: asyncio.BaseTransport | None) -> tuple[str, ...]:
    """Return the DNS names in the certificate that the other side has proved to hold."""
    connection = transport.get_extra_info("ssl_object") if transport is not None else None
    certificate = connection.getpeercert() if connection is not None else None
    names = (certificate or {}).get("subjectAltName", ())
    return tuple(value for kind, value in names if kind == "DNS")
