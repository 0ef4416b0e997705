"""HTTP/1.1 by hand, over real sockets: sends exactly what a test says, malformed or not."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

DEADLINE_S = 30.0


class Reply(NamedTuple):
    """One answer; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The problem's code; fails unless this is a whole problem document."""
        assert self.headers["content-type"] == "application/problem+json", self
        document = self.json
        assert document["status"] == self.status
        assert document["type"] == f"urn:onecopy:problem:{document['code']}"
        assert document["title"]
        assert document["detail"]
        return str(document["code"])


class Connection:
    """One connection, for as many requests as it lives."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str
    ) -> None:
        self.reader = reader
        self.writer = writer
        self.host = host

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def send_request(
        self,
        method: str,
        target: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        lines = [f"{method} {target} HTTP/1.1"]
        if "Host" not in (headers or {}):
            lines.append(f"Host: {self.host}")
        if body is not None:
            lines.append(f"Content-Length: {len(body)}")
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        head = "\r\n".join(lines) + "\r\n\r\n"
        self.send(head.encode("utf-8") + (body or b""))

    async def receive(self, *, head_only: bool = False) -> Reply:
        """Read one answer, within a deadline."""
        async with asyncio.timeout(DEADLINE_S):
            head = await self.reader.readuntil(b"\r\n\r\n")
            status_line, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
            assert status_line.startswith("HTTP/1.1 "), status_line
            headers = {}
            for line in lines:
                name, _, value = line.partition(": ")
                assert name.lower() not in headers, f"{name} is sent twice"
                headers[name.lower()] = value
            size = 0 if head_only else int(headers.get("content-length", "0"))
            body = await self.reader.readexactly(size)
        return Reply(int(status_line.split(" ")[1]), headers, body)

    async def receive_end(self) -> bytes:
        """Read until the server closes; return what still came."""
        async with asyncio.timeout(DEADLINE_S):
            try:
                return await self.reader.read(-1)
            except ConnectionError:
                return b""


@contextlib.asynccontextmanager
async def connect(base_url: str) -> AsyncIterator[Connection]:
    """Open a connection, closed at the end whatever happens."""
    parts = urlsplit(base_url)
    context: ssl.SSLContext | None = None
    if parts.scheme == "https":  # whose certificate is shown is other tests' matter
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    streams = await asyncio.open_connection(
        parts.hostname, parts.port, ssl=context, limit=64 * 1024 * 1024
    )
    connection = Connection(*streams, parts.netloc)
    try:
        yield connection
    finally:
        await connection.close()


async def fetch(
    base_url: str,
    method: str,
    target: str,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
) -> Reply:
    """Make one request on a connection of its own."""
    async with connect(base_url) as connection:
        connection.send_request(method, target, body, headers)
        return await connection.receive(head_only=method == "HEAD")


def kv(key: str) -> str:
    """Return the target of a key, everything escaped."""
    return f"/v1/kv/{quote(key, safe='')}"
