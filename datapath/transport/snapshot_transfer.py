"""Snapshot transfer: a primary pushes one snapshot to a replica, over links of kind "snapshot".

    sender                               receiver
    Offer(snapshot, index, epoch) ->
                                      <- Resume(next chunk)    or Failed, or Installed already
    Chunk(n, crc, data) … ->
                                      <- Ack(n) …
    End(chunks, checksum, count) ->
                                      <- Installed(index, epoch)    or Failed

A broken link loses nothing: the sender offers again on the next one, and the receiver says from
which chunk on. What neither side may do is wait for ever: each step has a time limit, and Failed,
which both may send, ends the transfer at both ends. Memory is bounded by the window of chunks
that are not acknowledged. Chunks are read in a process of its own, and written in threads.

Here is what both ends share; they are `datapath.transport.snapshot_sender` and
`datapath.transport.snapshot_receiver`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol, TypeVar

import msgspec

from datapath.parts import struct_in_parts

KIND = "snapshot"
WINDOW_CHUNKS = 8
TRANSFER_WINDOW_BYTES = 8 * 1024 * 1024
"""In flight together; one chunk that is larger travels alone."""
MAX_CHUNK_BYTES = 65 * 1024 * 1024
STEP_TIMEOUT_S = 10.0
"""The receiver answers an offer, and takes a chunk, within this."""
INSTALL_TIMEOUT_S = 300.0
RESUME_TIMEOUT_S = 30.0
"""How long both sides keep a transfer that makes no progress, for a new link to resume it."""
REST_PER_REQUEST_S, MAX_REST_S = 0.0005, 0.05
"""What the sender rests after a chunk, for each request served beside it, and at most."""

_T = TypeVar("_T")


class SnapshotSource(Protocol):
    """A snapshot to read; `datapath.storage.snapshot_process.SnapshotProcess` is one.

    The methods block; they are called in threads, one at a time.
    """

    @property
    def index(self) -> int:
        """The log index that it holds everything up to."""

    @property
    def epoch(self) -> int:
        """The epoch of that log entry."""

    @property
    def count(self) -> int:
        """Items in it; known after the last chunk."""

    @property
    def checksum(self) -> str:
        """Over all of it; known after the last chunk."""

    def read_chunk(self, number: int, /) -> bytes | None:
        """Return a chunk, None after the last; in order, or one that was read before."""

    def close(self) -> None:
        """Release what it holds."""


class SnapshotSink(Protocol):
    """Where a snapshot goes; `datapath.storage.snapshot.SnapshotWriter` is one.

    The methods block; they are called in threads, one at a time.
    """

    @property
    def next_chunk(self) -> int:
        """The chunk it needs next."""

    def feed(self, number: int, chunk: bytes, /) -> None:
        """Take the chunk `next_chunk`."""

    def finish(self, checksum: str, count: int, /) -> None:
        """Verify the whole and make it durable, or raise."""

    def abort(self) -> None:
        """Remove what was written. Once `on_received` has the sink, only that may call it."""


class _Message(msgspec.Struct, frozen=True, array_like=True, gc=False):
    pass


class Offer(_Message, frozen=True, tag=1):
    """Sender: I have this snapshot for you; `sender_epoch` is of my view (D3).

    `snapshot_id` is drawn for each transfer: equal ids mean the same chunks.
    """

    snapshot_id: str
    index: int
    epoch: int
    sender_epoch: int


class Resume(_Message, frozen=True, tag=2):
    """Receiver: send from chunk `next_chunk` on."""

    snapshot_id: str
    next_chunk: int


class Chunk(_Message, frozen=True, tag=3):
    """Sender: chunk `n`, counted from 0; `crc` is CRC-32C of `data`."""

    n: int
    crc: int
    data: bytes


class ChunkAck(_Message, frozen=True, tag=4):
    """Receiver: all up to and with chunk `n` is written."""

    n: int


class End(_Message, frozen=True, tag=5):
    """Sender: that was all."""

    chunks: int
    checksum: str
    count: int


class Installed(_Message, frozen=True, tag=6):
    """Receiver: the snapshot is durable and in use."""

    index: int
    epoch: int


class Failed(_Message, frozen=True, tag=7):
    """Either: I have given up, and forgotten this transfer."""

    reason: str


TransferMessage = Offer | Resume | Chunk | ChunkAck | End | Installed | Failed

_encode: Callable[[TransferMessage], bytes] = msgspec.msgpack.Encoder().encode


def encode_transfer(message: TransferMessage) -> bytes | list[bytes]:
    """Encode a message, a chunk in parts that follow each other."""
    return struct_in_parts(message) if isinstance(message, Chunk) else _encode(message)


decode_transfer: Callable[[bytes | memoryview], TransferMessage] = msgspec.msgpack.Decoder(
    TransferMessage
).decode
"""What is no message closes its link."""


class Throttle:
    """Paces chunks: by a token bucket of one chunk, and by what else the node has to do.

    `bytes_per_s` 0 does not limit; it may change at any time. `requests()` counts what was served:
    for those since the last chunk it rests `REST_PER_REQUEST_S` each, but no longer than that chunk
    took, nor than `MAX_REST_S`: on a slow link it waits enough. So half of a busy node's time is
    left to live requests, and an idle one sends at full speed.
    """

    def __init__(self, bytes_per_s: int = 0, requests: Callable[[], int] = lambda: 0) -> None:
        self.bytes_per_s = bytes_per_s
        self._requests = requests
        self._served = 0
        self._free_at = 0.0
        self._rested_at = float("inf")

    async def take(self, size_bytes: int) -> None:
        """Wait until that much may be sent. Always lets other tasks run once."""
        loop = asyncio.get_running_loop()
        now, served = loop.time(), self._requests()
        asked = (served - self._served) * REST_PER_REQUEST_S
        rest = min(asked, now - self._rested_at, MAX_REST_S)
        wait = max(0.0, self._free_at - now, rest)
        if self.bytes_per_s:
            self._free_at = now + wait + size_bytes / self.bytes_per_s
        await asyncio.sleep(wait)
        self._rested_at, self._served = loop.time(), self._requests()


async def in_thread(function: Callable[..., _T], *args: object) -> _T:
    """Call it in a thread. A cancelled caller waits for its end: nobody closes a file under it."""
    work = asyncio.ensure_future(asyncio.to_thread(function, *args))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        while not work.done():
            await asyncio.wait([work])
        raise
