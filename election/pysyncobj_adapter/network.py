"""The sockets under the links: who listens, who dials. The simulator has another one."""

from __future__ import annotations

import errno
import socket

from election.pysyncobj_adapter.errors import AddressInUseError
from election.pysyncobj_adapter.poller import Poller
from election.pysyncobj_adapter.resolver import Resolver
from election.pysyncobj_adapter.settings import host_and_port

_BACKLOG = 64


class Network:
    """Makes one member's sockets and the poller that watches them."""

    def __init__(self) -> None:
        self._resolver = Resolver()

    def poller(self) -> Poller:
        """Return what waits for the sockets."""
        return Poller()

    def listen(self, address: str) -> socket.socket:
        """Return a non-blocking socket that listens on "host:port".

        Raises:
            AddressInUseError: it cannot be bound; the message names the address.

        """
        host, port = host_and_port(address)
        try:
            family, kind, _, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            sock = socket.socket(family, kind)
        except OSError as error:
            raise _cannot_listen(address, error) from error
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setblocking(False)
            sock.bind(target)
            sock.listen(_BACKLOG)
        except OSError as error:
            sock.close()
            raise _cannot_listen(address, error) from error
        return sock

    def dial(self, address: str, now: float) -> socket.socket | None:
        """Return a non-blocking socket that is connecting, or None: tried again soon."""
        target = self._resolver.resolve(address, now)
        if target is None:
            return None
        try:
            sock = socket.socket(target[0], socket.SOCK_STREAM)
        except OSError:
            return None  # No descriptor to spare.
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            sock.connect(target[1])
        except BlockingIOError:
            pass
        except OSError:
            sock.close()
            return None
        return sock


def _cannot_listen(address: str, error: OSError) -> AddressInUseError:
    busy = error.errno == errno.EADDRINUSE
    return AddressInUseError(
        f"cannot listen on raft address {address} ({error}): "
        + ("another process has this port; stop it, or " if busy else "")
        + "change `raft` (or `raft_bind`) of this node in the configuration"
    )
