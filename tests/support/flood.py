"""A stranger who floods a port of this machine: `python -m tests.support.flood`, see `flooding`.

It opens connections, sends a message on each, and never reads; it ends by itself after so many.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import cycle

RATE_PER_S = 10_000
MAX_CONNECTIONS = 100_000
KEPT_OPEN = 300
"""How many of its connections are left open before the oldest is closed."""


@contextlib.contextmanager
def flooding(address: str, messages: Sequence[bytes]) -> Iterator[None]:
    """Flood "host:port" with these messages in turn, from another process, meanwhile."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.flood"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process, process.stdin, process.stdout:
        try:
            order = json.dumps([address, [message.hex() for message in messages]])
            process.stdin.write(order.encode() + b"\n")
            process.stdin.flush()
            assert process.stdout.readline() == b"flooding\n"
            yield
        finally:
            process.kill()


def main() -> None:
    """Flood as standard input says."""
    address, texts = json.loads(sys.stdin.readline())
    host, _, port = address.rpartition(":")
    if not ipaddress.ip_address(host).is_loopback:
        raise ValueError(f"{host} is not of this machine")
    messages = cycle([bytes.fromhex(text) for text in texts])
    open_now: list[socket.socket] = []
    began = time.monotonic()
    for number in range(MAX_CONNECTIONS):
        connection = socket.socket()
        connection.setblocking(False)
        connection.connect_ex((host, int(port)))
        with contextlib.suppress(OSError):
            connection.send(next(messages))
        open_now.append(connection)
        if number == KEPT_OPEN:
            print("flooding", flush=True)
        if number >= KEPT_OPEN:
            open_now.pop(0).close()
        time.sleep(max(0.0, began + number / RATE_PER_S - time.monotonic()))


if __name__ == "__main__":
    main()
