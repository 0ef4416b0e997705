"""One end of a websocket on a transport, from the upgrade on: bytes in and out, nothing else.

aiohttp has shaken hands; its own websocket would copy what is large six times at each end.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec

from datapath.transport.framing import CLOSE, FrameReader, FramingError, Payload, frame

GOING_AWAY = 1001
"""The code of every closing (RFC 6455, 7.4.1); the reason says more."""
_ACCEPT_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 1.3


class WebSocketUser(Protocol):
    """Whom a websocket tells what happens; sync and fast."""

    def on_received(self, payloads: list[Payload], pings: list[bytes]) -> None:
        """Something has come: these messages are complete, and these pings ask for an answer."""

    def on_violation(self, error: Exception) -> None:
        """What has come breaks the protocol."""

    def on_writable(self) -> None:
        """The other end has taken most of what was written."""

    def on_lost(self, error: Exception | None) -> None:
        """The connection is gone."""


class WebSocket(asyncio.BufferedProtocol):
    """Takes a transport over, which reads nothing until `begin`.

    `early`: what has come behind the upgrade. `on_gone` is called when the connection is lost, for
    whom it belonged to before. Raises ConnectionResetError where it has been lost already.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        *,
        is_client: bool,
        early: bytes,
        on_gone: Callable[[], object],
    ) -> None:
        if transport.is_closing():
            raise ConnectionResetError("the other side has gone")
        self.reader = FrameReader(is_masked=not is_client)
        self.is_client = is_client
        self.is_full = False
        """Whether more is written than the other end takes: write no more for now."""
        self.write: Callable[[Sequence[bytes | memoryview]], None] = transport.writelines
        """Send frames. Raises RuntimeError where the connection is gone."""
        self._transport = transport
        self._early = early
        self._on_gone = on_gone
        self._user: WebSocketUser | None = None
        self._over = asyncio.get_running_loop().create_future()  # the other end says no more
        transport.pause_reading()
        transport.set_protocol(self)

    def begin(self, user: WebSocketUser) -> None:
        """Tell `user` what comes from now on."""
        self._user = user
        early, self._early = self._early, b""
        self.data_received(early)
        if self._over.done():
            user.on_lost(None)
        elif not self._transport.is_closing():
            self._transport.resume_reading()

    def get_extra_info(self, name: str) -> Any:
        """Return what the transport knows."""
        return self._transport.get_extra_info(name)

    async def close(self, reason: bytes, timeout_s: float) -> None:
        """Say why, and wait until the other end has heard it, but not for long."""
        with contextlib.suppress(OSError, RuntimeError, TimeoutError):
            payload = GOING_AWAY.to_bytes(2) + reason
            self.write([frame(CLOSE, payload, is_masked=self.is_client)])
            async with asyncio.timeout(timeout_s):
                await self._over

    def abort(self) -> None:
        """End the connection at once."""
        self._transport.abort()

    # -- the transport's protocol

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 -- asyncio's signature
        """Return where to put what comes."""
        return self.reader.buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Take what has been put there."""
        user = self._user
        if user is None or self._over.done():
            return
        try:
            payloads, pings = self.reader.received(nbytes)
        except (FramingError, msgspec.MsgspecError) as error:
            self._end()
            user.on_violation(error)
            return
        if self.reader.close_reason is not None:
            self._end()
        user.on_received(payloads, pings)

    def data_received(self, data: bytes) -> None:
        """Take what comes from a transport that has buffers of its own."""
        rest = memoryview(data)
        while rest and not self._over.done():
            buffer = self.reader.buffer
            size = min(len(buffer), len(rest))
            buffer[:size], rest = rest[:size], rest[size:]
            self.buffer_updated(size)

    def _end(self) -> None:
        if not self._over.done():
            self._over.set_result(None)

    def eof_received(self) -> bool:
        """Let the transport close."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell who uses it, and whom the connection belonged to."""
        self._end()
        if self._user is not None:
            self._user.on_lost(exc)
        self._on_gone()

    def pause_writing(self) -> None:
        """Write no more for now."""
        self.is_full = True

    def resume_writing(self) -> None:
        """Go on."""
        self.is_full = False
        if self._user is not None:
            self._user.on_writable()


class EarlyBytes:
    """Takes from aiohttp, as the parser of an upgraded connection, what it has read too much."""

    def __init__(self) -> None:
        self.data = b""

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """Keep it."""
        self.data += data
        return False, b""

    def feed_eof(self) -> None:
        """Nothing more comes."""


def accept_key(key: str) -> str:
    """Return what the server answers to a client's `Sec-WebSocket-Key`."""
    digest = hashlib.sha1(key.encode() + _ACCEPT_GUID, usedforsecurity=False).digest()
    return base64.b64encode(digest).decode()
