"""Answers: one prepared block of bytes each, instead of aiohttp's header dictionaries.

An `Answer` has a head joined from prebuilt parts and is one write to the transport: about a third
less work per request than `web.Response`, which is most of what the API layer costs. The fast
path sends it as it is. aiohttp asks of a response that it can `prepare` and `write_eof` itself and
says `keep_alive`: that is a `Response`, made around an answer on the full path.
Nothing from a client reaches a head, so that none of it needs to be checked for line breaks.
"""

from __future__ import annotations

import asyncio
import email.utils
import fcntl
import struct
import termios
import time
from collections.abc import Iterator
from http import HTTPStatus
from typing import Protocol, cast

from aiohttp import HttpVersion10, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.web import BaseRequest

from cluster.api.memory import Memory, Share
from datapath.turns import Turns

JSON = b"application/json"
MSGPACK = b"application/msgpack"
PROBLEM = b"application/problem+json"
BYTES = b"application/octet-stream"

ANSWER_TIMEOUT_S = 30.0
"""How long a client may take no byte of its answer before the connection is cut."""
LOOK_INTERVAL_S = 0.25
"""How often it is looked at whether a client takes its answer."""
LARGE_ANSWER_SIZE_BYTES = 64 * 1024
"""A larger answer is given only while there is room to hold it."""
TOO_MUCH_HELD = (
    "the limit for bodies and unread answers of this node's clients is reached: try again "
    "later, and read answers as they arrive"
)
_ONE_WRITE_SIZE_BYTES = 16 * 1024

_STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode("ascii")
    for status in HTTPStatus
}


class Server(Protocol):
    """What an answer needs of the server whose connection it goes to."""

    memory: Memory
    turns: Turns


class _Clock:
    """The Date header line, made once a second."""

    second = 0
    line = b""


def _date_line() -> bytes:
    now = int(time.time())
    if now != _Clock.second:
        _Clock.second = now
        _Clock.line = f"Date: {email.utils.formatdate(now, usegmt=True)}\r\n".encode("ascii")
    return _Clock.line


_ON = b"\r\n"
_ON_10 = b"Connection: keep-alive\r\n\r\n"
_CLOSE = b"Connection: close\r\n\r\n"


REFUSED = frozenset({401, 403})
"""Statuses of what was refused for who asked. Other APIs have others, and say so."""


class Answer:
    """A whole answer. `headers` are header lines, each ending in CR LF.

    `body` None is a status that has no body (304). `closes` ends the connection after it.
    """

    __slots__ = (
        "_body", "_content_type", "_headers", "_length", "closes", "is_large", "refuses_caller",
        "size_bytes", "status",
    )  # fmt: skip

    def __init__(
        self,
        status: int,
        body: bytes | None,
        content_type: bytes = JSON,
        headers: bytes = b"",
        *,
        closes: bool = False,
    ) -> None:
        self.status = status
        self.refuses_caller = status in REFUSED
        "Whether it was refused for who asked: it is noted, and is in the audit log."
        self._body = body
        self.size_bytes = 0 if body is None else len(body)
        "Bytes of the answer that are held until the client has read it."
        self.is_large = self.size_bytes > LARGE_ANSWER_SIZE_BYTES
        "Whether it is sent only if the limit allows to hold it."
        self._length = self.size_bytes  # as Content-Length says it
        self._headers = headers
        self._content_type = content_type
        self.closes = closes

    def add_headers(self, lines: bytes) -> None:
        """Add header lines, each ending in CR LF."""
        self._headers += lines

    def as_bytes(self, *, closes: bool) -> bytes:
        """Return the whole answer to a request of HTTP/1.1 that was not HEAD."""
        body, end = self._body, _CLOSE if closes else _ON
        if body is None:
            return self._head(end)
        return b"%b%b%bContent-Type: %b\r\nContent-Length: %d\r\n%b%b" % (
            _STATUS_LINES[self.status], self._headers, _date_line(), self._content_type,
            self._length, end, body,
        )  # fmt: skip

    async def send(self, request: BaseRequest, *, closes: bool) -> None:
        """Send everything. Raises ConnectionResetError if the client has gone."""
        transport = transport_of(request)
        head, body = self._head_for(request, closes=closes), self._body
        if body is None or request.method == "HEAD":
            transport.write(head)
        elif len(body) <= _ONE_WRITE_SIZE_BYTES:
            transport.write(head + body)
        else:
            transport.write(head)
            transport.write(body)
        if request.protocol.writing_paused:
            memory = server_of(request).memory
            share = memory.hold(transport.get_write_buffer_size(), transport.abort)
            try:
                await drain(request, transport, share)
            finally:
                share.resize(0)

    def _head_for(self, request: BaseRequest, *, closes: bool) -> bytes:
        if closes:
            return self._head(_CLOSE)
        return self._head(_ON_10 if request.version == HttpVersion10 else _ON)

    def head_of_chunks(self) -> bytes:
        """Return the head of an answer that is sent in chunks (HTTP/1.1), of unknown length."""
        return self._open_head(b"Transfer-Encoding: chunked\r\n" + _ON)

    def head_until_close(self) -> bytes:
        """Return the head of an answer that the connection's end ends."""
        return self._open_head(_CLOSE)

    def _open_head(self, end: bytes) -> bytes:
        return b"%b%b%bContent-Type: %b\r\n%b" % (
            _STATUS_LINES[self.status], self._headers, _date_line(), self._content_type, end,
        )  # fmt: skip

    def _head(self, end: bytes) -> bytes:
        if self._body is None:
            return b"%b%b%b%b" % (_STATUS_LINES[self.status], self._headers, _date_line(), end)
        return self._open_head(b"Content-Length: %d\r\n%b" % (self._length, end))


class PagedAnswer(Answer):
    """An answer that is made while it is sent: a piece in a turn, as the client takes them.

    `pieces` come to `length` bytes. `share` is what its making holds; given back at the end.
    """

    def __init__(
        self,
        pieces: Iterator[bytes],
        length: int,
        share: Share,
        content_type: bytes,
        headers: bytes,
    ) -> None:
        super().__init__(200, b"", content_type, headers)
        self._pieces = pieces
        self._length = length
        self._share = share

    async def send(self, request: BaseRequest, *, closes: bool) -> None:
        """Send everything. Raises ConnectionResetError if the client has gone."""
        try:
            await self._send(request, closes=closes)
        finally:
            self._share.resize(0)

    async def _send(self, request: BaseRequest, *, closes: bool) -> None:
        transport = transport_of(request)
        transport.write(self._head_for(request, closes=closes))
        if request.method == "HEAD":
            return
        turns = server_of(request).turns
        while True:
            await turns.take()
            piece = next(self._pieces, None)
            if piece is None:
                return
            if transport.is_closing():
                raise _gone()
            transport.write(piece)
            self._share.moved()
            if request.protocol.writing_paused:
                await drain(request, transport, self._share)


class Response(web.StreamResponse):
    """An answer in aiohttp's hands."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(status=answer.status)
        self._answer = answer
        self._request: BaseRequest | None = None

    @property
    def keep_alive(self) -> bool:
        """Whether the connection serves another request."""
        request = self._request
        return not self._answer.closes and (request is None or request.keep_alive)

    async def prepare(self, request: BaseRequest) -> AbstractStreamWriter | None:
        """Take the request that this answers."""
        self._request = request
        return None

    async def write_eof(self, data: bytes = b"") -> None:  # noqa: ARG002 -- aiohttp's signature
        """Send everything. Raises ConnectionResetError if the client has gone."""
        if self._request is None:
            raise RuntimeError("write_eof before prepare")
        await self._answer.send(self._request, closes=not self.keep_alive)


def transport_of(request: BaseRequest) -> asyncio.Transport:
    """Return the connection of a request. Raises ConnectionResetError if the client has gone."""
    transport = request.transport
    if transport is None or transport.is_closing():
        raise _gone()
    return transport


def _gone() -> ConnectionResetError:
    return ConnectionResetError("the client has closed the connection")


def server_of(request: BaseRequest) -> Server:
    """Return the server whose connection a request came on."""
    return cast("Server", request.protocol._manager)


class Outgoing:
    """What a client has still to take of what was sent to it, and when it last took something.

    What it acknowledges counts, in the system's buffers too: those hold minutes of a slow client.
    """

    def __init__(self, transport: asyncio.Transport, now: float) -> None:
        self._transport = transport
        self._least_bytes = self._left_bytes()
        self.moved_at = now

    def look(self, now: float) -> bool:
        """Look whether it has taken something since the last look."""
        left_bytes = self._left_bytes()
        moved = left_bytes < self._least_bytes
        if moved:
            self._least_bytes = left_bytes
            self.moved_at = now
        return moved

    def has_stopped(self, now: float) -> bool:
        """Whether it has taken nothing for so long that it is cut off."""
        return now - self.moved_at >= ANSWER_TIMEOUT_S

    def _left_bytes(self) -> int:
        left_bytes = self._transport.get_write_buffer_size()
        connection = self._transport.get_extra_info("socket")
        try:
            found = fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4))
        except (OSError, ValueError):  # it is gone
            return left_bytes
        (in_system_bytes,) = struct.unpack("i", found)
        return left_bytes + int(in_system_bytes)


async def drain(request: BaseRequest, transport: asyncio.Transport, share: Share) -> None:
    """Wait until the client has taken most of the answer, as long as it takes anything."""
    loop = asyncio.get_running_loop()
    outgoing = Outgoing(transport, loop.time())
    draining = loop.create_task(request.writer.drain())
    try:
        while not draining.done():
            await asyncio.wait([draining], timeout=min(LOOK_INTERVAL_S, ANSWER_TIMEOUT_S))
            if outgoing.look(loop.time()):
                share.moved()
            elif outgoing.has_stopped(loop.time()):
                # A client that asks and never reads would hold its answer's memory for ever.
                transport.abort()
                raise ConnectionResetError("the client does not read its answer")
        draining.result()
    finally:
        draining.cancel()
    share.moved()


class NoAnswer(web.StreamResponse):
    """For a client that has gone: nothing is sent, the connection ends."""

    async def prepare(self, request: BaseRequest) -> AbstractStreamWriter | None:  # noqa: ARG002
        """Say that there is nobody to answer."""
        raise _gone()
