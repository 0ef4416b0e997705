"""One attempt at one request: what was asked, and what may be concluded from what came back.

Clients of a service repeat requests behind their user's back (aiohttp's does so by itself); a
history needs to see each attempt. So requests go by hand over one connection for each endpoint.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import Any
from urllib.parse import quote, urlsplit

import msgspec

from tests.support.raw_http import Connection, Reply

_ETAG = re.compile(r'ETag "(\d+)"')
_READ_LIMIT_BYTES = 16 * 1024 * 1024


class NotSentError(Exception):
    """Nothing of the request has left: it was not applied."""


class CutError(Exception):
    """The request had (perhaps) left, and no whole answer came in time: its outcome is unknown."""


class ProtocolError(Exception):
    """An answer that the API does not know: whatever it was, it is a defect."""


class Wire:
    """A connection to one endpoint, made when it is needed, and again when it has broken."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None, url
        assert parts.port is not None, url
        self._place = (parts.hostname, parts.port)
        self._connection: Connection | None = None

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
                    streams = await asyncio.open_connection(*self._place, limit=_READ_LIMIT_BYTES)
                    connection = self._connection = Connection(*streams)
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
        return reply

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.writer.transport.abort()
            self._connection = None

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
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
