"""What travels on a link's websocket, and whether its other end lives. Pure: no clock, no socket.

Small messages that wait together travel as one *parcel*, a binary frame that holds a MessagePack
array of them. A large message is announced by a text frame with its size, and follows in pieces,
unframed. See `docs/peer-protocol.md`.

The frames are those of RFC 6455, made and read here: a large message is sent from where it stands,
and received where it is to stand. A client's frames are masked with zeros, which leave the bytes as
they are: masks protect caches of HTTP from what scripts in browsers send, and there are neither.
"""

from __future__ import annotations

import mmap
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import msgspec

from datapath.errors import DataPathError

MAX_MESSAGE_BYTES = 70 * 1024 * 1024
"""One message: a record of 64 MiB and what surrounds it."""
MESSAGE_OVERHEAD_BYTES = 64
"""What a queued message counts beside its own bytes, so that empty ones are bounded too."""
LARGE_MESSAGE_BYTES = 32 * 1024
"""From here on a message is announced and sent in pieces; copying it into a parcel costs more."""
MAPPED_MESSAGE_BYTES = 4 * 1024 * 1024
"""From here on its memory is the kernel's, page by page as it comes; before, a copy costs less."""
PIECE_BYTES = 128 * 1024
PARCEL_BYTES = 64 * 1024
MAX_FRAME_BYTES = 256 * 1024
PINGS_PER_IDLE_TIMEOUT = 3

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10  # opcodes of RFC 6455
_MAX_DIGITS = len(str(MAX_MESSAGE_BYTES))
_FINAL, _FLAGS, _MASKED = 0x80, 0xF0, 0x80
_SIZE_IN_2, _SIZE_IN_8 = 126, 127  # instead of a size: it follows in so many bytes
_MIN_HEAD_BYTES, _MASK_BYTES, _CLOSE_CODE_BYTES, _MAX_CONTROL_BYTES = 2, 4, 2, 125
_MAX_HEAD_BYTES = 14
_SCRATCH_BYTES = 32 * 1024
"""For small frames; what of a large message comes with its announcement is copied from there."""
encode_parcel: Callable[[Sequence[bytes]], bytes] = msgspec.msgpack.Encoder().encode
_decode_parcel: Callable[[memoryview], list[bytes]] = msgspec.msgpack.Decoder(list[bytes]).decode


Payload = bytes | memoryview
"""A message that has come: a large one is a view of the only copy there is."""


class FramingError(DataPathError):
    """The other end does not keep to the protocol."""


class FrameReader:
    """Puts messages together from the bytes of one websocket, in their order.

    Read into `buffer`, and say by `received` how much came. `is_masked`: as a client's are.
    """

    def __init__(self, *, is_masked: bool) -> None:
        self._mask_bytes = _MASK_BYTES if is_masked else 0
        self._scratch = memoryview(bytearray(_SCRATCH_BYTES))
        self.buffer = self._scratch
        """Where to put what comes next; never empty."""
        self._held = 0  # of the scratch: the beginning of a frame
        self._large = memoryview(b"")  # the large message under way
        self._large_at = 0  # how much of it has come
        self._body = memoryview(b"")  # of the frame under way, that the scratch does not hold
        self._body_at = 0
        self._mask = bytes(_MASK_BYTES)  # of that frame
        self._messages: list[Payload] = []
        self._pings: list[bytes] = []
        self.close_reason: bytes | None = None
        """Of the other end's closing; None: it has not closed."""

    def _next_buffer(self) -> memoryview:
        if self._body:
            return self._body[self._body_at :]
        if self._large:  # a head, and then the message itself: nothing of it in the scratch
            return self._scratch[self._held : max(_MAX_HEAD_BYTES, self._held + 1)]
        return self._scratch[self._held :]

    def received(self, size_bytes: int) -> tuple[list[Payload], list[bytes]]:
        """Take what has been put there.

        Returns the messages that are complete now, and what the pings among them ask to be sent.
        Raises FramingError or msgspec.MsgspecError.
        """
        if not self._body:
            self._read_scratch(self._held + size_bytes)
        else:
            self._body_at += size_bytes
            if self._body_at == len(self._body):
                body, self._body = self._body, memoryview(b"")
                self._end_binary(body)
        self.buffer = self._next_buffer()
        taken = self._messages, self._pings
        self._messages, self._pings = [], []
        return taken

    def _read_scratch(self, end: int) -> None:
        scratch, at = self._scratch, 0
        while not self._body and (head := self._read_head(at, end)) is not None:
            opcode, start, size = head
            if opcode == BINARY:
                at = self._begin_binary(start, min(end, start + size), size)
                continue
            if size > _MAX_CONTROL_BYTES:
                raise FramingError(f"a frame of {size} bytes that is no binary one")
            if start + size > end:
                break
            at = start + size
            self._take_control(opcode, self._unmasked(scratch[start:at]))
        self._held = end - at
        if at:
            scratch[: self._held] = scratch[at:end]

    def _read_head(self, at: int, end: int) -> tuple[int, int, int] | None:
        """Return the opcode, where the payload begins and its size; None: the head is not whole."""
        if end - at < _MIN_HEAD_BYTES:
            return None
        scratch = self._scratch
        first, second = scratch[at], scratch[at + 1]
        if first & _FLAGS != _FINAL or bool(second & _MASKED) != bool(self._mask_bytes):
            raise FramingError("a frame in parts, an extended one, or one masked the wrong way")
        size, start = second & ~_MASKED, at + _MIN_HEAD_BYTES
        if size >= _SIZE_IN_2:
            length = 2 if size == _SIZE_IN_2 else 8
            start += length
            size = int.from_bytes(scratch[start - length : start])
        start += self._mask_bytes
        if start > end:
            return None
        if size > MAX_FRAME_BYTES:
            raise FramingError(f"a frame of {size} bytes; the limit is {MAX_FRAME_BYTES}")
        self._mask = bytes(scratch[start - self._mask_bytes : start])
        return first & ~_FLAGS, start, size

    def _unmasked(self, payload: memoryview) -> memoryview:
        if any(self._mask):
            size = len(payload)
            mask = (self._mask * (size // _MASK_BYTES + 1))[:size]
            plain = int.from_bytes(payload, "little") ^ int.from_bytes(mask, "little")
            payload[:] = plain.to_bytes(size, "little")
        return payload

    def _begin_binary(self, start: int, stop: int, size: int) -> int:
        """Take a binary frame of which the scratch holds `start` to `stop`; return `stop`."""
        if self._large and not 0 < size <= len(self._large) - self._large_at:
            raise FramingError("a large message's pieces do not add up to its size")
        here = self._scratch[start:stop]
        if self._large:
            body = self._large[self._large_at : self._large_at + size]
        elif len(here) == size:
            self._end_binary(here)
            return stop
        else:
            body = memoryview(bytearray(size))
        body[: len(here)] = here
        if len(here) == size:
            self._end_binary(body)
        else:
            self._body, self._body_at = body, len(here)
        return stop

    def _end_binary(self, body: memoryview) -> None:
        self._unmasked(body)
        if not self._large:
            self._messages += _decode_parcel(body)
            return
        self._large_at += len(body)
        if self._large_at == len(self._large):
            self._messages.append(self._large)
            self._large = memoryview(b"")

    def _take_control(self, opcode: int, payload: memoryview) -> None:
        if opcode == TEXT:
            self._announce(bytes(payload))
        elif opcode == PING:
            self._pings.append(bytes(payload))
        elif opcode == CLOSE:
            self.close_reason = bytes(payload[_CLOSE_CODE_BYTES:])
        elif opcode != PONG:
            raise FramingError(f"a frame of the unknown kind {opcode}")

    def _announce(self, text: bytes) -> None:
        size = int(text) if text.isdigit() and len(text) <= _MAX_DIGITS else 0
        if not 0 < size <= MAX_MESSAGE_BYTES or self._large:
            raise FramingError(f"a large message cannot be announced as {text[:20]!r}")
        self._large, self._large_at = memoryview(_room(size)), 0


def _room(size: int) -> bytearray | mmap.mmap:
    """Return where a large message is to stand: a very large one takes memory as it comes."""
    if size < MAPPED_MESSAGE_BYTES:
        return bytearray(size)
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def frame_head(opcode: int, size: int, *, is_masked: bool) -> bytes:
    """Return what stands before the payload of a frame."""
    first, masked = bytes((_FINAL | opcode,)), _MASKED if is_masked else 0
    mask = bytes(_MASK_BYTES if is_masked else 0)
    if size < _SIZE_IN_2:
        return first + bytes((masked | size,)) + mask
    if size < 1 << 16:
        return first + bytes((masked | _SIZE_IN_2,)) + size.to_bytes(2) + mask
    return first + bytes((masked | _SIZE_IN_8,)) + size.to_bytes(8) + mask


def frame(opcode: int, payload: bytes, *, is_masked: bool) -> bytes:
    """Return a whole frame."""
    return frame_head(opcode, len(payload), is_masked=is_masked) + payload


def pieces(parts: Sequence[bytes], *, is_masked: bool) -> Iterator[list[bytes | memoryview]]:
    """Yield what a large message, in parts that follow each other, is sent as: frames, uncopied."""
    left = sum(map(len, parts))
    buffers: list[bytes | memoryview] = [frame(TEXT, b"%d" % left, is_masked=is_masked)]
    room = 0  # in the piece that is being filled
    for part in parts:
        rest = memoryview(part)
        while rest:
            if not room:
                room = min(left, PIECE_BYTES)
                left -= room
                buffers.append(frame_head(BINARY, room, is_masked=is_masked))
            buffers.append(rest[:room])
            rest, room = rest[room:], room - len(buffers[-1])
            if not room:
                yield buffers
                buffers = []


def take_parcel(outbox: deque[bytes | Sequence[bytes]]) -> tuple[bytes, int]:
    """Take small messages from the front of `outbox`, which begins with one.

    Large ones stand there in their parts. Returns the parcel, and the bytes that its messages
    counted in the queue.
    """
    parcel: list[bytes] = []
    size = 0
    while outbox and size < PARCEL_BYTES and isinstance(message := outbox[0], bytes):
        parcel.append(message)
        outbox.popleft()
        size += len(message) + MESSAGE_OVERHEAD_BYTES
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
