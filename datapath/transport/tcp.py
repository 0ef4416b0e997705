"""TCP sockets between nodes: how they listen, their options, how they end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket

KERNEL_TIMEOUT_MS = 10_000
"""When the kernel gives up on bytes that nobody acknowledges: else dead sockets linger for long."""
ACCEPT_BACKLOG = 1024


async def listening_socket(host: str, port: int) -> socket.socket:
    """Bind and listen, without blocking. Raises OSError."""
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


def cannot_listen(address: str, error: OSError, channel: str, node: str) -> str:
    """Return what to tell an operator of whom "host:port", the node's `channel`, is not free."""
    busy = error.errno == errno.EADDRINUSE
    return (
        f"cannot listen on {address} ({error}): "
        + ("another process has this port; stop it, or " if busy else "")
        + f"change `{channel}` (or `{channel}_bind`) of node {node} in the configuration"
    )


def tune(connection: socket.socket) -> None:
    """Set TCP options. Buffer sizes are left to Linux, which grows them beyond what we may set."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, KERNEL_TIMEOUT_MS)


def shut_down(connection: socket.socket) -> None:
    """End a connection at once, whatever is still unsent; its transport notices and closes it."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
