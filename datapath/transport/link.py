"""A link: an authenticated websocket between two nodes, as a stream of messages.

A `PeerListener` takes links, a `Dialer` keeps one up. Here are the framing and the liveness of
both; see `docs/peer-protocol.md`.

The first message of a turn of the event loop leaves at once, where nothing waits before it: what
comes alone is not kept until the next turn. The others wait, and leave together in one parcel: a
frame costs some us at each end, a message in a parcel 0.2 us. Large messages go in pieces, from
where they stand, and only as fast as the other end takes them.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import msgspec

from datapath.complaints import Complaints
from datapath.errors import DataPathError
from datapath.transport.framing import (
    BINARY,
    LARGE_MESSAGE_BYTES,
    MAX_MESSAGE_BYTES,
    MESSAGE_OVERHEAD_BYTES,
    PING,
    PONG,
    Liveness,
    Payload,
    encode_parcel,
    frame,
    pieces,
    take_parcel,
)
from datapath.transport.websocket import WebSocket

logger = logging.getLogger(__name__)

ROUTE = "/peer/v1/"
"""The path of the links of a kind on the peer port, before the kind."""
MAX_OUTBOX_BYTES = 160 * 1024 * 1024
IDLE_TIMEOUT_MS = 1500
CLOSE_TIMEOUT_MS = 250
"""How long a link that closes may take to tell the other side why."""
_MAX_CLOSE_REASON_BYTES = 120
_MAX_CONTROL_FRAMES = 4
"""Pings and pongs that wait: one that came later says as much as one that is left out."""
_MAX_QUOTED_LENGTH = 200
_UNDECODABLE = (msgspec.MsgspecError, UnicodeDecodeError, OverflowError, RecursionError)


class LinkError(DataPathError):
    """A link or the peer port cannot be used; the message says why."""


class LinkHandler(Protocol):
    """Takes what happens on the links of one kind. Sync and fast: it runs on the event loop.

    An exception closes the link, is logged, and goes to `on_error`.
    """

    @property
    def encode(self) -> Callable[[Any], bytes | list[bytes]]:
        """Encodes a message to be sent, whole or in parts that follow each other."""

    @property
    def decode(self) -> Callable[[Payload], Any]:
        """Decodes a message; what it cannot decode closes the link."""

    def on_open(self, link: Link) -> None:
        """Take a new link; before any of its messages."""

    def on_messages(self, link: Link, messages: list[Any]) -> None:
        """Take messages, in the order they were sent; never after `link.close`."""

    def on_close(self, link: Link, reason: str) -> None:
        """Take the end of a link: once for each `on_open`."""


ErrorCallback = Callable[["Link", Exception], None]


class Link:
    """One authenticated websocket with `peer`, for streams of one `kind`.

    `outgoing`: this side dialled. Made by `PeerListener` and `Dialer` only.
    """

    def __init__(
        self,
        websocket: WebSocket,
        abort: Callable[[], None],
        handler: LinkHandler,
        *,
        peer: str,
        kind: str,
        outgoing: bool,
        idle_timeout_ms: int,
        max_outbox_bytes: int,
        on_error: ErrorCallback | None,
        complaints: Complaints,
    ) -> None:
        self.peer = peer
        self.kind = kind
        self.outgoing = outgoing
        self.closed = False
        self.reason = ""
        self._websocket = websocket
        self._abort = abort
        self._handler = handler
        self._encode = handler.encode
        self._decode = handler.decode
        self._on_error = on_error
        self._complaints = complaints
        self._log_kind = "end"  # or "violation": neither hides the other
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._handler_done = asyncio.Event()
        self._outbox: deque[bytes | Sequence[bytes]] = deque()
        self._max_outbox_bytes = max_outbox_bytes
        self._queued_bytes = 0
        self._turn_is_due = False  # `_turn` is to be called
        self._pieces: Iterator[list[bytes | memoryview]] | None = None  # a large message under way
        self._pieces_bytes = 0  # what that counts in the queue
        self._control = deque[bytes](maxlen=_MAX_CONTROL_FRAMES)
        self._idle_timeout = idle_timeout_ms / 1000
        self._liveness = Liveness(self._idle_timeout, self._loop.time())
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        way = "to" if self.outgoing else "from"
        return f"<Link {self.kind} {way} {self.peer}{' closed' if self.closed else ''}>"

    @property
    def queued_bytes(self) -> int:
        """Bytes waiting in the outbox, `MESSAGE_OVERHEAD_BYTES` a message included.

        What the transport and the kernel hold (some hundred KB) is not counted.
        """
        return self._queued_bytes

    @property
    def certificate(self) -> bytes:
        """The certificate (DER) that the other end has proved to hold; b"": none, or no TLS."""
        connection = self._websocket.get_extra_info("ssl_object")
        return (connection.getpeercert(binary_form=True) or b"") if connection is not None else b""

    def send(self, message: Any) -> None:
        """Queue a message; never blocks. On a closed link it is dropped, as `on_close` tells.

        An outbox over its bound closes the link. Raises ValueError beyond `MAX_MESSAGE_BYTES`.
        """
        if self.closed:
            return
        data = self._encode(message)
        size = len(data) if isinstance(data, bytes) else sum(map(len, data))
        if size > MAX_MESSAGE_BYTES:
            raise ValueError(f"a message has {size} bytes; the limit is {MAX_MESSAGE_BYTES}")
        self._queued_bytes += size + MESSAGE_OVERHEAD_BYTES
        if self._queued_bytes > self._max_outbox_bytes:
            self.close(
                f"outbox overflow: {self._queued_bytes} bytes are queued; the limit is "
                f"{self._max_outbox_bytes}"
            )
            return
        is_small = size < LARGE_MESSAGE_BYTES
        if isinstance(data, bytes):
            self._outbox.append(data if is_small else [data])
        else:
            self._outbox.append(b"".join(data) if is_small else data)
        if self._turn_is_due or self._websocket.is_full:
            return
        self._wake()
        if is_small:
            self._write_next()

    def close(self, reason: str) -> None:
        """Close, keeping the first reason. No frame is delivered after this; on_close is soon."""
        if self.closed:
            return
        self.closed = True
        self.reason = reason
        self._outbox.clear()
        self._queued_bytes = 0
        self._pieces = None
        if not self._ended.done():
            self._ended.set_result(None)

    async def _run(self) -> None:
        """Carry the link from on_open to on_close. Cancelling it closes the link."""
        try:
            self._guard(self._handler.on_open, self)
            self._websocket.begin(self)
            self._tick()
            await self._ended
        finally:
            self.close("this node is stopping")
            if self._timer is not None:
                self._timer.cancel()
            text = f"{self}: {self.reason}"
            kind = f"{self._log_kind} of {self.kind} with {self.peer}"
            self._complaints.log(kind, text, self._loop.time(), level=logging.INFO)
            self._guard(self._handler.on_close, self, self.reason)
            self._handler_done.set()
            reason = self.reason.encode()[:_MAX_CLOSE_REASON_BYTES].decode(errors="ignore")
            try:
                await self._websocket.close(reason.encode(), CLOSE_TIMEOUT_MS / 1000)
            finally:
                self._abort()
                self._websocket.abort()

    def _guard(self, callback: Callable[..., None], *args: object) -> None:
        """Call the handler; its exception closes the link and is passed on."""
        try:
            callback(*args)
        except Exception as error:
            logger.exception("the handler of %s failed", self)
            self.close(f"the handler failed: {error!r}")
            if self._on_error is not None:
                try:
                    self._on_error(self, error)
                except Exception:
                    logger.exception("on_error of %s failed", self)

    # Receiving: what the websocket tells

    def on_received(self, payloads: list[Payload], pings: list[bytes]) -> None:
        """Deliver what is complete, and answer pings."""
        self._liveness.heard_at = self._loop.time()
        for payload in pings:
            self._send_control(PONG, payload)
        if payloads and not self.closed:
            try:
                messages = [self._decode(payload) for payload in payloads]
            except _UNDECODABLE as error:
                self.on_violation(error)
            else:
                self._guard(self._handler.on_messages, self, messages)
        reason = self._websocket.reader.close_reason
        if reason is not None:
            self.close(f"{self.peer} closed the link: {reason.decode(errors='replace')!a}")

    def on_violation(self, error: Exception) -> None:
        """Close."""
        self._log_kind = "violation"
        self.close(f"{self.peer} violated the protocol: {str(error)[:_MAX_QUOTED_LENGTH]}")

    def on_lost(self, error: Exception | None) -> None:
        """Close."""
        self.close(f"connection lost: {error or 'the other end has closed it'}")

    # Sending

    def on_writable(self) -> None:
        """Go on with what waits."""
        self._write_all()

    def _turn(self) -> None:
        self._turn_is_due = False
        self._write_all()

    def _write_all(self) -> None:
        """Write all that waits, as long as the other end takes it."""
        while not self._websocket.is_full and not self.closed:
            if self._control:
                self._write([self._control.popleft()])
            elif self._pieces is not None:
                piece = next(self._pieces, None)
                if piece is None:
                    self._pieces = None
                    self._queued_bytes -= self._pieces_bytes
                else:
                    self._write(piece)
            elif self._outbox:
                self._write_next()
            else:
                return

    def _write_next(self) -> None:
        """Write one parcel of the messages that wait, or begin with a large one."""
        is_masked, first = self._websocket.is_client, self._outbox[0]
        if isinstance(first, bytes):
            if len(self._outbox) == 1:
                self._outbox.popleft()
                parcel, taken_bytes = encode_parcel((first,)), len(first) + MESSAGE_OVERHEAD_BYTES
            else:
                parcel, taken_bytes = take_parcel(self._outbox)
            self._queued_bytes -= taken_bytes
            self._write([frame(BINARY, parcel, is_masked=is_masked)])
        else:
            self._outbox.popleft()
            self._pieces = pieces(first, is_masked=is_masked)
            self._pieces_bytes = sum(map(len, first)) + MESSAGE_OVERHEAD_BYTES

    def _write(self, frames: Sequence[bytes | memoryview]) -> None:
        try:
            self._websocket.write(frames)
        except (OSError, RuntimeError) as error:
            self.close(f"connection lost: {error!r}")

    def _send_control(self, opcode: int, payload: bytes) -> None:
        self._control.append(frame(opcode, payload, is_masked=self._websocket.is_client))
        self._wake()

    def _wake(self) -> None:
        if not self._turn_is_due:
            self._turn_is_due = True
            self._loop.call_soon(self._turn)

    # Liveness

    def _tick(self) -> None:
        """Send pings; close when nothing came for the idle timeout."""
        if self.closed:
            return
        match self._liveness.tick(self._loop.time()):
            case "lost":
                timeout_ms = self._idle_timeout * 1000
                self.close(f"nothing heard from {self.peer} for {timeout_ms:.0f} ms")
                return
            case "ping":
                self._send_control(PING, b"")
        self._timer = self._loop.call_at(self._liveness.due_at, self._tick)
