"""One attempt at one request: what was asked, and what may be concluded from what came back.

Clients of a service repeat requests behind their user's back (aiohttp's does so by itself); a
history needs to see each attempt. So requests go by hand over one connection for each endpoint.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from typing import Any
from urllib.parse import quote, urlsplit

import msgspec

from tests.support.raw_http import Connection, Reply

_ETAG = re.compile(r'ETag "(\d+)"')
_SPARES_TIMEOUT_S = 1.0
_READ_LIMIT_BYTES = 16 * 1024 * 1024


class NotSentError(Exception):
    """Nothing of the request has left: it was not applied."""


class CutError(Exception):
    """The request had (perhaps) left, and no whole answer came in time: its outcome is unknown."""


class ProtocolError(Exception):
    """An answer that the API does not know: whatever it was, it is a defect."""


class Wire:
    """A connection to one endpoint, made when it is needed, and again when it has broken.

    `spares` more are held ready and used first when it breaks: a node that was paused finds what
    was sent on them before it gets to accept new ones. Over TLS, `cacert` is the authority's file.
    """

    def __init__(self, url: str, spares: int = 0, cacert: str = "") -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None, url
        assert parts.port is not None, url
        self._place = (parts.hostname, parts.port)
        self._context = ssl.create_default_context(cafile=cacert) if cacert else None
        self._n_spares = spares
        self._spares: list[Connection] = []
        self._connection: Connection | None = None

    async def _open(self) -> Connection:
        streams = await asyncio.open_connection(
            *self._place, ssl=self._context, limit=_READ_LIMIT_BYTES
        )
        return Connection(*streams, f"{self._place[0]}:{self._place[1]}")

    async def _take(self) -> Connection:
        """Return a connection: a spare one that still stands, or a new one."""
        while self._spares:
            spare = self._spares.pop()
            if not spare.reader.at_eof() and not spare.writer.transport.is_closing():
                return spare
            spare.writer.transport.abort()
        return await self._open()

    async def _lay_in(self) -> None:
        """Open what spares are missing; call it while the endpoint answers."""
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_SPARES_TIMEOUT_S):
                while len(self._spares) < self._n_spares:
                    self._spares.append(await self._open())

    async def ask(
        self,
        method: str,
        target: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        *,
        timeout_s: float,
    ) -> Reply:
        """Make one request, once. Raises NotSentError, CutError."""
        connection = self._connection
        if connection is not None and connection.reader.at_eof():
            self._drop()
            connection = None
        try:
            async with asyncio.timeout(timeout_s):
                if connection is None:
                    connection = self._connection = await self._take()
                connection.send_request(method, target, body, headers)
                reply = await connection.receive(head_only=method == "HEAD")
        except (OSError, EOFError, TimeoutError) as error:
            self._drop()
            if connection is None:
                raise NotSentError(repr(error)) from error
            raise CutError(repr(error)) from error
        except BaseException:
            self._drop()  # an answer may still come: it must not be taken for another's
            raise
        if reply.headers.get("connection", "").lower() == "close":
            self._drop()
        if len(self._spares) < self._n_spares:
            await self._lay_in()
        return reply

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.writer.transport.abort()
            self._connection = None

    async def close(self) -> None:
        connections, self._spares = self._spares, []
        if self._connection is not None:
            connections.append(self._connection)
            self._connection = None
        for connection in connections:
            with contextlib.suppress(OSError):
                await connection.close()


def key_target(key: str) -> str:
    return f"/v1/kv/{quote(key)}"


def problem(reply: Reply) -> dict[str, Any]:
    """Return the members of a problem document. Raises ProtocolError."""
    if reply.headers.get("content-type") != "application/problem+json":
        raise ProtocolError(f"no problem document: {reply}")
    try:
        return msgspec.json.decode(reply.body, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise ProtocolError(f"{error}: {reply}") from error


def etag(reply: Reply) -> int:
    """Return the revision that an answer's ETag names. Raises ProtocolError."""
    text = reply.headers.get("etag", "")
    if not re.fullmatch(r'"\d+"', text):
        raise ProtocolError(f"ETag {text!r}: {reply}")
    return int(text[1:-1])


def revision_seen(document: dict[str, Any]) -> int | None:
    """Return the revision that a failed condition saw, 0 for an absent key, None if not said."""
    detail = str(document.get("detail", ""))
    found = _ETAG.search(detail)
    if found:
        return int(found[1])
    return 0 if "does not exist" in detail else None
