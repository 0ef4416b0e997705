"""The raft port. It survives a lack of descriptors, and comes back if it dies."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Callable

from election.pysyncobj_adapter import poller as events
from election.pysyncobj_adapter.clock import monotonic
from election.pysyncobj_adapter.errors import AddressInUseError
from election.pysyncobj_adapter.network import Network
from election.pysyncobj_adapter.poller import Poller

_PAUSE_S = 0.1
_CHECK_INTERVAL_S = 1.0
_MAX_DEAD_S = 5.0
_TRANSIENT = (errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR, errno.ECONNABORTED)
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class RaftListener:
    """Accepts connections while it can, and says when it cannot any more."""

    def __init__(
        self,
        address: str,
        poller: Poller,
        on_accepted: Callable[[socket.socket], None],
        network: Network,
    ) -> None:
        """Bind at once.

        Raises:
            AddressInUseError: the address cannot be bound.

        """
        self._address = address
        self._poller = poller
        self._on_accepted = on_accepted
        self._network = network
        self._socket = network.listen(address)
        self._paused_until: float | None = None
        self._checked_at = 0.0
        self._dead_since: float | None = None
        self._watched_fd = -1
        self._watch()

    def on_tick(self, now: float) -> None:
        """Resume after a pause; check now and then that the port still listens, or bind it anew.

        Raises:
            AddressInUseError: it has been dead, and could not be bound, for several seconds.

        """
        if self._paused_until is not None and now >= self._paused_until:
            self._paused_until = None
            self._watch()
        if now - self._checked_at < _CHECK_INTERVAL_S:
            return
        self._checked_at = now
        if self._listens():
            self._dead_since = None
            return
        if self._dead_since is None:
            self._dead_since = now
        self._unwatch()
        with contextlib.suppress(OSError):  # Its descriptor may have been closed by others.
            self._socket.close()
        try:
            self._socket = self._network.listen(self._address)
        except AddressInUseError:
            if now - self._dead_since > _MAX_DEAD_S:
                raise
            return
        self._paused_until = None
        self._watch()

    def close(self) -> None:
        """Stop listening. Idempotent."""
        self._unwatch()
        self._socket.close()

    def _listens(self) -> bool:
        try:
            return bool(self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
        except OSError:
            return False

    def _watch(self) -> None:
        self._watched_fd = self._socket.fileno()
        self._poller.subscribe(self._watched_fd, self._on_event, events.READ | events.ERROR)

    def _unwatch(self) -> None:
        if self._watched_fd >= 0:
            self._poller.unsubscribe(self._watched_fd)
            self._watched_fd = -1

    def _on_event(self, _descr: int, _mask: int) -> None:
        try:
            sock, _ = self._socket.accept()
        except OSError as error:
            if error.errno in _TRANSIENT:
                return
            # Without a descriptor to spare, accept fails and the port stays readable: stop
            # looking at it for a moment, or the thread would spin. Other errors: the port is dead,
            # and the next check binds it anew.
            self._unwatch()
            if error.errno in _EXHAUSTED:
                self._paused_until = monotonic() + _PAUSE_S
            else:
                self._checked_at = 0.0
            return
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._on_accepted(sock)
