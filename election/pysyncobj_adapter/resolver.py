"""Host names to addresses, without ever stopping the thread that keeps the heartbeats."""

from __future__ import annotations

import contextlib
import socket
import threading

from election.pysyncobj_adapter.settings import host_and_port

_FRESH_S = 10.0

Target = tuple[socket.AddressFamily, tuple[object, ...]]


class Resolver:
    """Looks names up in a thread of their own; numeric addresses need none."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[float, Target]] = {}
        self._asking: set[str] = set()

    def resolve(self, address: str, now: float) -> Target | None:
        """Return where to connect for "host:port"; None if that is not known yet."""
        host, port = host_and_port(address)
        with contextlib.suppress(socket.gaierror):
            return self._look_up(host, port, socket.AI_NUMERICHOST)
        known = self._known.get(address)
        if known is None or now - known[0] > _FRESH_S:
            self._ask(address, host, port, now)
        return None if known is None else known[1]

    @staticmethod
    def _look_up(host: str, port: int, flags: int) -> Target:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
        return found[0][0], found[0][4]

    def _ask(self, address: str, host: str, port: int, now: float) -> None:
        if address in self._asking:
            return
        self._asking.add(address)

        def ask() -> None:
            with contextlib.suppress(OSError):
                self._known[address] = now, self._look_up(host, port, 0)
            self._asking.discard(address)

        threading.Thread(target=ask, name=f"resolve {host}", daemon=True).start()
