"""Many requests whose answers matter, over a few connections; see `bench.loads` for loads."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from bench.peers.process import BenchError

CONNECTIONS = 32


class HttpReply(NamedTuple):
    """A status and a body."""

    status: int
    body: bytes


async def read_reply(reader: asyncio.StreamReader) -> HttpReply:
    """Read an answer with Content-Length. Raises OSError or EOFError if the connection ends."""
    head = await reader.readuntil(b"\r\n\r\n")
    at = head.lower().find(b"content-length: ")
    length = int(head[at + 16 : head.find(b"\r", at)]) if at >= 0 else 0
    return HttpReply(int(head[9:12]), await reader.readexactly(length))


async def ask_all(address: str, requests: Iterable[bytes]) -> list[bytes]:
    """Send requests, each when its connection has been answered; return the bodies in their order.

    Raises BenchError for an answer that is no success.
    """
    bodies: dict[int, bytes] = {}
    numbered = iter(enumerate(requests))

    async with asyncio.TaskGroup() as tasks:
        for _ in range(CONNECTIONS):
            tasks.create_task(_ask_some(address, numbered, bodies))
    return [bodies[number] for number in range(len(bodies))]


async def _ask_some(
    address: str, numbered: Iterator[tuple[int, bytes]], bodies: dict[int, bytes]
) -> None:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        for number, request in numbered:
            writer.write(request)
            reply = await read_reply(reader)
            if reply.status not in {200, 201}:
                raise BenchError(f"{request[:100]!r}: {reply}")
            bodies[number] = reply.body
    finally:
        writer.close()
