"""What travels on a link's websocket, and whether its other end lives. Pure: no clock, no socket.

Small messages that wait together travel as one *parcel*, a binary frame that holds a MessagePack
array of them. A large message is announced by a text frame with its size, and follows in pieces,
unframed. See `docs/peer-protocol.md`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from datapath.errors import DataPathError

MAX_MESSAGE_BYTES = 70 * 1024 * 1024
"""One message: a record of 64 MiB and what surrounds it."""
MESSAGE_OVERHEAD_BYTES = 64
"""What a queued message counts beside its own bytes, so that empty ones are bounded too."""
LARGE_MESSAGE_BYTES = 32 * 1024
"""From here on a message is announced and sent in pieces; copying it into a parcel costs more."""
PIECE_BYTES = 64 * 1024
PARCEL_BYTES = 64 * 1024
PINGS_PER_IDLE_TIMEOUT = 3

_MAX_DIGITS = len(str(MAX_MESSAGE_BYTES))
encode_parcel: Callable[[Sequence[bytes]], bytes] = msgspec.msgpack.Encoder().encode
_decode_parcel: Callable[[bytes], list[bytes]] = msgspec.msgpack.Decoder(list[bytes]).decode


class FramingError(DataPathError):
    """The other end does not keep to the protocol."""


class Unframer:
    """Puts messages together from the frames of one websocket, in their order."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []  # of the large message under way
        self._missing_bytes = 0  # of it; 0: none is under way
        self.binary = _decode_parcel
        """Take a parcel, or a piece, and return the messages that are complete with it.

        Raises FramingError or msgspec.MsgspecError.
        """

    def _take_piece(self, data: bytes) -> list[bytes]:
        self._pieces.append(data)
        self._missing_bytes -= len(data)
        if self._missing_bytes < 0 or not data:
            raise FramingError("a large message's pieces do not add up to its size")
        if self._missing_bytes:
            return []
        message = b"".join(self._pieces)
        self._pieces.clear()
        self.binary = _decode_parcel
        return [message]

    def text(self, text: str) -> None:
        """Take the announcement of a large message. Raises FramingError."""
        is_number = text.isascii() and text.isdecimal() and len(text) <= _MAX_DIGITS
        size = int(text) if is_number else 0
        if not 0 < size <= MAX_MESSAGE_BYTES or self._missing_bytes:
            raise FramingError(f"a large message cannot be announced as {text[:20]!r}")
        self._missing_bytes = size
        self.binary = self._take_piece


def take_parcel(outbox: deque[bytes]) -> tuple[bytes, int]:
    """Take small messages from the front of `outbox`, which begins with one.

    Returns the frame, and the bytes that they counted in the queue.
    """
    parcel: list[bytes] = []
    size = 0
    while outbox and size < PARCEL_BYTES and len(outbox[0]) < LARGE_MESSAGE_BYTES:
        parcel.append(outbox.popleft())
        size += len(parcel[-1]) + MESSAGE_OVERHEAD_BYTES
    return encode_parcel(parcel), size


class Liveness:
    """When to ping the other end, and when to give it up. Times are s of one monotonic clock."""

    def __init__(self, idle_timeout_s: float, now: float) -> None:
        self._idle_timeout = idle_timeout_s
        self._period = idle_timeout_s / PINGS_PER_IDLE_TIMEOUT
        self.heard_at = now
        """When something last came, whatever it was."""
        self._ping_at = now
        self.due_at = now  # when `tick` is to be called next

    def tick(self, now: float) -> Literal["ping", "lost", ""]:
        """Time has passed: say what is to be done.

        Where this call itself is late, the whole process stood still (SIGSTOP, a starved machine):
        what came meanwhile is still unread, so the other end gets one more period to be heard.
        """
        if now - self.due_at > self._period:
            self.heard_at = max(self.heard_at, now - self._idle_timeout + self._period)
        if now - self.heard_at >= self._idle_timeout:
            return "lost"
        is_due = now >= self._ping_at
        if is_due:
            self._ping_at = now + self._period
        self.due_at = min(self._ping_at, self.heard_at + self._idle_timeout)
        return "ping" if is_due else ""
