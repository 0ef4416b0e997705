"""Loopback ports for tests that run side by side.

Each test worker has ports of its own, below those that the kernel hands out by itself: so neither
another worker nor somebody's outgoing connection takes a port between its choice and its use, or
while a node that will be restarted on it is down.
"""

from __future__ import annotations

import os
import socket

_FIRST, _BLOCKS, _END = 10_000, 24_000, 32_000
_WORKERS = 8
_given_out: set[int] = set()
_block: list[int] = []  # the one chosen, if one was


def free_port() -> int:
    """Return a port that nobody listens on, and that was not given out before."""
    return _free_port(_FIRST, _BLOCKS, (0,))


def free_address() -> str:
    """Return "127.0.0.1:port" of a free port."""
    return f"127.0.0.1:{free_port()}"


def free_up_port() -> int:
    """Return a port for `onecopy up`, whose ports 100 and 200 above it are free too."""
    offsets = tuple(hundred + node for hundred in (0, 100, 200) for node in range(5))
    return _free_port(_BLOCKS, _END - 300, offsets)


def use_last_block() -> None:
    """Take ports that test workers hardly ever take: for long runs, whose nodes are often down."""
    _block[:] = [_WORKERS - 1]


def _free_port(first: int, end: int, offsets: tuple[int, ...]) -> int:
    own = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _WORKERS
    worker = _block[0] if _block else own
    size = (end - first) // _WORKERS
    start = first + worker * size
    # Two test runs side by side rarely begin at the same place.
    turn = os.getpid() * 7 % size
    for step in range(size):
        port = start + (turn + step) % size
        wanted = {port + offset for offset in offsets}
        if not wanted & _given_out and all(map(_is_free, wanted)):
            _given_out.update(wanted)
            return port
    raise RuntimeError("no free ports")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
