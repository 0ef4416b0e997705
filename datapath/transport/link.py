"""A link: an authenticated websocket between two nodes, as a stream of messages.

A `PeerListener` takes links, a `Dialer` keeps one up. Here are the framing and the liveness of
both; see `docs/peer-protocol.md`.

The first message of a turn of the event loop leaves at once, where nothing waits before it: what
comes alone is not kept until the next turn. The others wait, and leave together in one parcel: a
frame of aiohttp's costs about 7 us at each end, a message in a parcel 0.2 us. Large messages go in
pieces: no copies of 64 MiB that stop the event loop, and on a slow network each piece shows that
the link lives.
"""

from __future__ import annotations

import asyncio
import logging
import types
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Protocol, TypeVar

import aiohttp
import msgspec
from aiohttp import web

from datapath.errors import DataPathError
from datapath.transport.framing import (
    LARGE_MESSAGE_BYTES,
    MAX_MESSAGE_BYTES,
    MESSAGE_OVERHEAD_BYTES,
    PIECE_BYTES,
    FramingError,
    Liveness,
    Unframer,
    encode_parcel,
    take_parcel,
)

logger = logging.getLogger(__name__)

ROUTE = "/peer/v1/"
"""The path of the links of a kind on the peer port, before the kind."""
MAX_OUTBOX_BYTES = 160 * 1024 * 1024
MAX_FRAME_BYTES = 256 * 1024
IDLE_TIMEOUT_MS = 1500
CLOSE_TIMEOUT_MS = 250
"""How long a link that closes may take to tell the other side why."""
_MAX_CLOSE_REASON_BYTES = 120
_MAX_QUOTED_LENGTH = 200
_UNDECODABLE = (msgspec.MsgspecError, UnicodeDecodeError, OverflowError, RecursionError)

_T = TypeVar("_T")
_WebSocket = web.WebSocketResponse | aiohttp.ClientWebSocketResponse


class LinkError(DataPathError):
    """A link or the peer port cannot be used; the message says why."""


class LinkHandler(Protocol):
    """Takes what happens on the links of one kind. Sync and fast: it runs on the event loop.

    An exception closes the link, is logged, and goes to `on_error`.
    """

    @property
    def encode(self) -> Callable[[Any], bytes]:
        """Encodes a message to be sent."""

    @property
    def decode(self) -> Callable[[bytes], Any]:
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
        websocket: _WebSocket,
        abort: Callable[[], None],
        handler: LinkHandler,
        *,
        peer: str,
        kind: str,
        outgoing: bool,
        idle_timeout_ms: int,
        max_outbox_bytes: int,
        on_error: ErrorCallback | None,
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
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._handler_done = asyncio.Event()
        self._outbox: deque[bytes] = deque()
        self._max_outbox_bytes = max_outbox_bytes
        self._queued_bytes = 0
        self._work = asyncio.Event()
        self._writer_idle = False  # the writing task waits for work, and has nothing begun
        self._written_at_once = False  # in this turn of the event loop
        self._begun: tuple[Coroutine[Any, Any, None], Any] | None = None  # a write that waits
        self._unframer = Unframer()
        self._inbox: list[bytes] = []  # complete messages, not delivered yet
        self._idle_timeout = idle_timeout_ms / 1000
        self._liveness = Liveness(self._idle_timeout, self._loop.time())
        self._ping_due = False
        self._pong_due = False
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
        size = len(data)
        if size > MAX_MESSAGE_BYTES:
            raise ValueError(f"a message has {size} bytes; the limit is {MAX_MESSAGE_BYTES}")
        self._queued_bytes += size + MESSAGE_OVERHEAD_BYTES
        if self._queued_bytes > self._max_outbox_bytes:
            self.close(
                f"outbox overflow: {self._queued_bytes} bytes are queued; the limit is "
                f"{self._max_outbox_bytes}"
            )
            return
        self._outbox.append(data)
        if self._writer_idle and not self._written_at_once and size < LARGE_MESSAGE_BYTES:
            self._write_at_once()
        else:
            self._writer_idle = False
            self._work.set()

    def close(self, reason: str) -> None:
        """Close, keeping the first reason. No frame is delivered after this; on_close is soon."""
        if self.closed:
            return
        self.closed = True
        self.reason = reason
        self._outbox.clear()
        self._queued_bytes = 0
        if not self._ended.done():
            self._ended.set_result(None)

    async def _run(self) -> None:
        """Carry the link from on_open to on_close. Cancelling it closes the link."""
        tasks: list[asyncio.Task[None]] = []
        try:
            self._guard(self._handler.on_open, self)
            tasks += [asyncio.create_task(self._read()), asyncio.create_task(self._write())]
            self._tick()
            await self._ended
        finally:
            self.close("this node is stopping")
            if self._timer is not None:
                self._timer.cancel()
            for task in tasks:
                task.cancel()
            logger.info("%s: %s", self, self.reason)
            self._guard(self._handler.on_close, self, self.reason)
            self._handler_done.set()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._say_goodbye()

    async def _say_goodbye(self) -> None:
        reason = self.reason.encode()[:_MAX_CLOSE_REASON_BYTES].decode(errors="ignore").encode()
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_MS / 1000):
                await self._websocket.close(code=aiohttp.WSCloseCode.GOING_AWAY, message=reason)
        except (TimeoutError, OSError, aiohttp.ClientError, RuntimeError):
            pass  # The other side does not listen any more: that may be why we close.
        finally:
            self._abort()

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

    # Receiving

    async def _read(self) -> None:
        try:
            while not self.closed:
                frame = await _before_waiting(self._websocket.receive(), self._deliver)
                match frame.type:
                    case aiohttp.WSMsgType.BINARY:
                        self._inbox += self._unframer.binary(frame.data)
                    case aiohttp.WSMsgType.TEXT:
                        self._unframer.text(frame.data)
                    case aiohttp.WSMsgType.PING:
                        self._pong_due = True
                        self._work.set()
                    case aiohttp.WSMsgType.PONG:
                        pass
                    case aiohttp.WSMsgType.CLOSE:
                        self._deliver()
                        self.close(f"{self.peer} closed the link: {frame.extra or frame.data!a}")
                    case _:
                        self._deliver()
                        self.close(f"connection lost: {frame.data or frame.type.name}")
        except (FramingError, msgspec.MsgspecError) as error:
            self.close(f"{self.peer} violated the protocol: {error}")
        except (OSError, RuntimeError, aiohttp.ClientError) as error:
            self.close(f"connection lost: {error!r}")

    def _deliver(self) -> None:
        self._liveness.heard_at = self._loop.time()
        if self._inbox and not self.closed:
            frames, self._inbox = self._inbox, []
            try:
                messages = [self._decode(frame) for frame in frames]
            except _UNDECODABLE as error:
                text = str(error)[:_MAX_QUOTED_LENGTH]
                self.close(f"{self.peer} violated the protocol: {text}")
            else:
                self._guard(self._handler.on_messages, self, messages)

    # Sending

    async def _write(self) -> None:
        outbox = self._outbox
        try:
            while True:
                if self._ping_due:
                    self._ping_due = False
                    await self._websocket.ping()
                if self._pong_due:
                    self._pong_due = False
                    await self._websocket.pong()
                if outbox:
                    await self._write_some()
                else:
                    self._work.clear()
                    self._writer_idle = True
                    await self._work.wait()
                    self._writer_idle = False
                    if self._begun is not None:
                        begun, self._begun = self._begun, None
                        await _resume(*begun)
        except (OSError, RuntimeError, aiohttp.ClientError) as error:
            self.close(f"connection lost: {error!r}")

    def _write_at_once(self) -> None:
        """Write what is in the outbox from here; if that has to wait, the writing task ends it."""
        self._written_at_once = True
        self._loop.call_soon(self._end_turn)
        writing = self._write_some()
        try:
            waited_for = writing.send(None)
        except StopIteration:
            return
        except (OSError, RuntimeError, aiohttp.ClientError) as error:
            self.close(f"connection lost: {error!r}")
            return
        self._begun = (writing, waited_for)
        self._writer_idle = False
        self._work.set()

    def _end_turn(self) -> None:
        self._written_at_once = False

    async def _write_some(self) -> None:
        """Write one large message, or one parcel of those that wait."""
        outbox = self._outbox
        is_large = len(outbox[0]) >= LARGE_MESSAGE_BYTES
        if is_large or len(outbox) == 1:
            data = outbox.popleft()
            written = len(data) + MESSAGE_OVERHEAD_BYTES
            if is_large:
                await self._write_large(data)
            else:
                await self._websocket.send_bytes(encode_parcel((data,)))
        else:
            frame, written = take_parcel(outbox)
            await self._websocket.send_bytes(frame)
        if not self.closed:
            self._queued_bytes -= written

    async def _write_large(self, data: bytes) -> None:
        await self._websocket.send_str(str(len(data)))
        if len(data) <= PIECE_BYTES:
            await self._websocket.send_bytes(data)
            return
        for start in range(0, len(data), PIECE_BYTES):
            await self._websocket.send_bytes(data[start : start + PIECE_BYTES])
            if self._pong_due:
                self._pong_due = False
                await self._websocket.pong()

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
                self._ping_due = True
                self._work.set()
        self._timer = self._loop.call_at(self._liveness.due_at, self._tick)


@types.coroutine
def _before_waiting(
    coroutine: Coroutine[Any, Any, _T], callback: Callable[[], None]
) -> Generator[Any, Any, _T]:
    """Await `coroutine`, but call `callback` first if it has to wait.

    aiohttp has no call for "all that is here already"; its receive() returns without waiting while
    something is. So a batch is complete exactly when receive() is about to wait: no extra turn of
    the event loop, no private face.
    """
    try:
        waited_for = coroutine.send(None)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    callback()
    return (yield from _resume(coroutine, waited_for))


@types.coroutine
def _resume(coroutine: Coroutine[Any, Any, _T], waited_for: Any) -> Generator[Any, Any, _T]:
    """Await the rest of a coroutine that was begun by hand, and waits for `waited_for` first."""
    while True:
        try:
            try:
                result = yield waited_for
            except BaseException as error:  # noqa: BLE001 - it belongs to the coroutine
                waited_for = coroutine.throw(error)
            else:
                waited_for = coroutine.send(result)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]
