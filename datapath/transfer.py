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
that are not acknowledged. Chunks are read and written in threads.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

import google_crc32c
import msgspec

from datapath.errors import DataPathError
from datapath.links import Link, LinkError

log = logging.getLogger(__name__)

KIND = "snapshot"
WINDOW_CHUNKS = 8
WINDOW_BYTES = 8 * 1024 * 1024
"""In flight together; one chunk that is larger travels alone."""
MAX_CHUNK_BYTES = 65 * 1024 * 1024
STEP_TIMEOUT_S = 10.0
"""The receiver answers an offer, and takes a chunk, within this."""
INSTALL_TIMEOUT_S = 300.0
RESUME_TIMEOUT_S = 30.0
"""How long both sides keep a transfer that makes no progress, for a new link to resume it."""

_T = TypeVar("_T")


class TransferError(DataPathError):
    """The snapshot did not arrive; start again with a new one."""


class SnapshotSource(Protocol):
    """A snapshot to read; `datapath.snapshot.SnapshotReader` is one.

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
    """Where a snapshot goes; `datapath.snapshot.SnapshotWriter` is one.

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
        """Remove what was written. Never called once `on_received` has it."""


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


class Ack(_Message, frozen=True, tag=4):
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


Message = Offer | Resume | Chunk | Ack | End | Installed | Failed

_encode = msgspec.msgpack.Encoder().encode
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


class Throttle:
    """A token bucket of one chunk. `bytes_per_s` 0 does not limit; it may change at any time."""

    def __init__(self, bytes_per_s: int = 0) -> None:
        self.bytes_per_s = bytes_per_s
        self._free_at = 0.0

    async def take(self, size_bytes: int) -> None:
        """Wait until that much may be sent. Always lets other tasks run once."""
        now = asyncio.get_running_loop().time()
        wait = max(0.0, self._free_at - now)
        if self.bytes_per_s:
            self._free_at = now + wait + size_bytes / self.bytes_per_s
        await asyncio.sleep(wait)


class _LinkLostError(Exception):
    """The link of this attempt is gone; the next one resumes."""


class SnapshotSender:
    """The sending end towards one peer: the handler of the `Dialer` of kind "snapshot".

    `bytes_done` and `chunks_done` count what the receiver has acknowledged of the running or last
    transfer; `active` is its snapshot id, "" when none runs. Times in seconds.
    """

    def __init__(
        self,
        *,
        throttle: Throttle | None = None,
        step_timeout_s: float = STEP_TIMEOUT_S,
        install_timeout_s: float = INSTALL_TIMEOUT_S,
        resume_timeout_s: float = RESUME_TIMEOUT_S,
    ) -> None:
        self.active = ""
        self.bytes_done = 0
        self.chunks_done = 0
        self._throttle = throttle or Throttle()
        self._step_timeout_s = step_timeout_s
        self._install_timeout_s = install_timeout_s
        self._resume_timeout_s = resume_timeout_s
        self._link: Link | None = None
        self._changed = asyncio.Event()
        self._retained: dict[int, bytes] = {}
        self._next = -1  # The chunk to send next; below 0 until the receiver says.
        self._acked = 0
        self._progress_at = 0.0
        self._installed: Installed | None = None
        self._failure = ""

    async def send_snapshot(self, source: SnapshotSource, sender_epoch: int) -> tuple[int, int]:
        """Send all of it, over as many links as it takes; return the installed (index, epoch).

        Closes the source. Raises TransferError when the receiver refuses or fails, or nothing
        moves for the time limits; and what the source raises. Cancelled, it tells the receiver.
        """
        if self.active:
            raise TransferError(f"snapshot {self.active} is still being sent")
        self.active = secrets.token_hex(16)
        self.bytes_done = self.chunks_done = self._acked = 0
        self._retained.clear()
        self._progress_at = _now()
        offer = Offer(self.active, source.index, source.epoch, sender_epoch)
        why = "the sender has failed"
        try:
            while True:
                try:
                    installed = await self._attempt(await self._wait_for_link(), source, offer)
                except (_LinkLostError, LinkError):
                    continue
                why = ""
                return installed.index, installed.epoch
        except TransferError as error:
            why = str(error)
            raise
        except asyncio.CancelledError:
            why = "the sender has cancelled it"
            raise
        finally:
            if why and self._link is not None and not self._failure:
                self._link.send(_encode(Failed(why)))
            self.active = ""
            self._retained.clear()
            await _in_thread(source.close)

    async def _attempt(self, link: Link, source: SnapshotSource, offer: Offer) -> Installed:
        """Carry the transfer as far as this link lives."""
        self._forget_answers()
        link.send(_encode(offer))
        await self._wait(link, lambda: self._next >= 0, self._step_timeout_s)
        while self._installed is None:
            n = self._next
            data = self._retained.get(n)
            if data is None:
                data = await _in_thread(source.read_chunk, n)
            if data is None:
                break
            if len(data) > MAX_CHUNK_BYTES:
                raise TransferError(f"chunk {n} has {len(data)} bytes, over {MAX_CHUNK_BYTES}")
            self._retained[n] = data
            await self._throttle.take(len(data))
            await self._wait(link, self._window_is_open, self._step_timeout_s)
            link.send(_encode(Chunk(n, google_crc32c.value(data), data)))
            self._next = n + 1
        if self._installed is None:
            link.send(_encode(End(self._next, source.checksum, source.count)))
        await self._wait(link, self._is_all_acked, self._step_timeout_s)
        await self._wait(link, lambda: self._installed is not None, self._install_timeout_s)
        assert self._installed is not None
        return self._installed

    def _forget_answers(self) -> None:
        self._next = -1
        self._installed = None
        self._failure = ""

    def _window_is_open(self) -> bool:
        """Whether the last retained chunk, which is to be sent next, may be."""
        if len(self._retained) <= 1:
            return True
        size = sum(map(len, self._retained.values()))
        return len(self._retained) <= WINDOW_CHUNKS and size <= WINDOW_BYTES

    def _is_all_acked(self) -> bool:
        return self._installed is not None or not self._retained

    async def _wait_for_link(self) -> Link:
        while self._link is None or self._link.closed:
            left_s = self._progress_at + self._resume_timeout_s - _now()
            if left_s <= 0:
                raise TransferError(f"no progress for {self._resume_timeout_s:g} s: no link")
            await self._wait_change(left_s)
        if _now() - self._progress_at > self._resume_timeout_s:
            raise TransferError(f"no progress for {self._resume_timeout_s:g} s: links break")
        return self._link

    async def _wait(self, link: Link, ready: Callable[[], bool], timeout_s: float) -> None:
        """Wait until `ready`. Time counts from the last progress that was seen while waiting."""
        began = _now()
        while True:
            if self._failure:
                raise TransferError(f"{link.peer} failed: {self._failure}")
            if self._link is not link or link.closed:
                raise _LinkLostError
            if ready():
                return
            left_s = max(began, self._progress_at) + timeout_s - _now()
            if left_s <= 0:
                raise TransferError(f"no progress at {link.peer} for {timeout_s:g} s")
            await self._wait_change(left_s)

    async def _wait_change(self, timeout_s: float) -> None:
        self._changed.clear()
        try:
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        except TimeoutError:
            pass

    def on_open(self, link: Link) -> None:
        """Take the link to send on."""
        self._link = link
        self._changed.set()

    def on_close(self, link: Link, reason: str) -> None:
        """Take its loss; `send_snapshot` goes on with the next one."""
        del reason
        if self._link is link:
            self._link = None
            self._changed.set()

    def on_frames(self, link: Link, frames: list[bytes]) -> None:
        """Take the receiver's answers."""
        if link is not self._link:
            return
        for message in _decode_all(link, frames):
            match message:
                case Resume(snapshot_id, next_chunk) if snapshot_id == self.active:
                    self._resume(next_chunk)
                case Ack(n):
                    self._ack(n)
                case Installed() as installed:
                    self._installed = installed
                    self._next = max(self._next, 0)
                case Failed(reason):
                    self._failure = ascii(reason)
        self._changed.set()

    def _resume(self, next_chunk: int) -> None:
        """Go on from there: forget what has arrived, and all if it starts before what we retain."""
        self._next = self._acked = next_chunk
        self._retained = {n: data for n, data in self._retained.items() if n >= next_chunk}
        if next_chunk not in self._retained:
            self._retained.clear()

    def _ack(self, n: int) -> None:
        for acked in range(self._acked, n + 1):
            data = self._retained.pop(acked, None)
            if data is None:
                return  # Not in flight: of an earlier transfer, or nonsense.
            self.bytes_done += len(data)
            self.chunks_done += 1
            self._acked = acked + 1
            self._progress_at = _now()


class SnapshotReceiver:
    """The receiving end: the handler of kind "snapshot" of the `PeerListener`. `stop` it at last.

    `make_sink(peer, offer)` answers an offer with a sink, or a refusal as text; it runs on the
    event loop. `on_received(offer, sink)` owns the finished snapshot and installs it; the sender is
    told when it returns or raises. One transfer runs at a time; an offer of another snapshot
    replaces it, unless its sender's epoch is lower. `bytes_done` and `chunks_done` count what is
    written of the running or last transfer; `active` is its snapshot id, "" when none runs.
    """

    def __init__(
        self,
        make_sink: Callable[[str, Offer], SnapshotSink | str],
        on_received: Callable[[Offer, SnapshotSink], Awaitable[None]],
        *,
        on_error: Callable[[Exception], None] | None = None,
        resume_timeout_s: float = RESUME_TIMEOUT_S,
    ) -> None:
        self.bytes_done = 0
        self.chunks_done = 0
        self._make_sink = make_sink
        self._on_received = on_received
        self._on_error = on_error
        self._resume_timeout_s = resume_timeout_s
        self._inbox: deque[tuple[Link, Message | None]] = deque()
        self._inbox_chunks = 0
        self._inbox_bytes = 0
        self._arrived = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self._link: Link | None = None
        self._offer: Offer | None = None
        self._sink: SnapshotSink | None = None
        self._installed: Offer | None = None

    @property
    def active(self) -> str:
        """The snapshot id of the running transfer, "" when none runs."""
        return self._offer.snapshot_id if self._offer else ""

    async def stop(self) -> None:
        """Give up what runs and remove what is written of it."""
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)
            self._worker = None
        await self._abort("the receiver is stopping")

    def on_open(self, link: Link) -> None:
        """Begin to work, at the first link."""
        del link
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())

    def on_close(self, link: Link, reason: str) -> None:
        """Remember the partial snapshot: the next link may resume it."""
        del reason
        self._put(link, None)

    def on_frames(self, link: Link, frames: list[bytes]) -> None:
        """Queue the sender's messages for the worker, within the window's bound."""
        for message in _decode_all(link, frames):
            if isinstance(message, Chunk):
                self._inbox_chunks += 1
                self._inbox_bytes += len(message.data)
            self._put(link, message)
        if self._inbox_chunks > WINDOW_CHUNKS or (
            self._inbox_chunks > 1 and self._inbox_bytes > WINDOW_BYTES
        ):
            link.close("more snapshot chunks than the window allows")

    def _put(self, link: Link, message: Message | None) -> None:
        self._inbox.append((link, message))
        self._arrived.set()

    async def _work(self) -> None:
        """Handle all in the order of arrival: one task, so that nothing races with the sink."""
        while True:
            if not self._inbox:
                self._arrived.clear()
                try:
                    async with asyncio.timeout(self._resume_timeout_s if self._sink else None):
                        await self._arrived.wait()
                except TimeoutError:
                    await self._abort(f"no chunk came for {self._resume_timeout_s:g} s")
                continue
            link, message = self._inbox.popleft()
            try:
                await self._handle(link, message)
            except Exception as error:
                log.exception("the snapshot from %s failed", link.peer)
                await self._abort(f"{type(error).__name__}: {error}")
                self._pass_on(error)

    def _pass_on(self, error: Exception) -> None:
        try:
            if self._on_error is not None:
                self._on_error(error)
        except Exception:
            log.exception("on_error of the snapshot receiver failed")

    async def _handle(self, link: Link, message: Message | None) -> None:
        if isinstance(message, Chunk):
            self._inbox_chunks -= 1
            self._inbox_bytes -= len(message.data)
        if isinstance(message, Offer):
            await self._take_offer(link, message)
        elif link is not self._link or self._offer is None or self._sink is None:
            return  # Of a transfer that is over.
        elif message is None:
            self._link = None
        elif isinstance(message, Chunk):
            await self._take_chunk(link, self._sink, message)
        elif isinstance(message, End):
            await self._take_end(link, self._offer, self._sink, message)
        elif isinstance(message, Failed):
            log.warning("%s gave up its snapshot: %s", link.peer, ascii(message.reason))
            self._link = None
            await self._abort("")

    async def _take_offer(self, link: Link, offer: Offer) -> None:
        if self._installed == offer:  # Only the answer was lost.
            link.send(_encode(Installed(offer.index, offer.epoch)))
            return
        if self._offer is not None and offer.sender_epoch < self._offer.sender_epoch:
            link.send(
                _encode(Failed(f"a primary of epoch {self._offer.sender_epoch} sends one (D3)"))
            )
            return
        if self._sink is None or offer != self._offer:
            await self._abort("another snapshot is offered")
            made = self._make_sink(link.peer, offer)
            if isinstance(made, str):
                link.send(_encode(Failed(made)))
                return
            self._sink, self._offer, self._installed = made, offer, None
            self.bytes_done = self.chunks_done = 0
        self._link = link
        link.send(_encode(Resume(offer.snapshot_id, self._sink.next_chunk)))

    async def _take_chunk(self, link: Link, sink: SnapshotSink, chunk: Chunk) -> None:
        if google_crc32c.value(chunk.data) != chunk.crc:
            raise TransferError(f"chunk {chunk.n} has a wrong checksum")
        if chunk.n != sink.next_chunk:
            raise TransferError(f"chunk {chunk.n} came where {sink.next_chunk} is next")
        await _in_thread(sink.feed, chunk.n, chunk.data)
        self.bytes_done += len(chunk.data)
        self.chunks_done += 1
        link.send(_encode(Ack(chunk.n)))

    async def _take_end(self, link: Link, offer: Offer, sink: SnapshotSink, end: End) -> None:
        if end.chunks != sink.next_chunk:
            raise TransferError(f"{sink.next_chunk} chunks came of {end.chunks}")
        await _in_thread(sink.finish, end.checksum, end.count)
        # The installer's from here on: to abort an installed one would delete the store.
        self._sink = None
        await self._on_received(offer, sink)
        self._installed = offer
        self._offer = self._link = None
        link.send(_encode(Installed(offer.index, offer.epoch)))

    async def _abort(self, reason: str) -> None:
        """Forget the running transfer, if any; tell its sender why."""
        sink, link = self._sink, self._link
        self._sink = self._offer = self._link = None
        if link is not None:
            link.send(_encode(Failed(reason)))
        if sink is not None:
            try:
                await _in_thread(sink.abort)
            except Exception:
                log.exception("a partial snapshot could not be removed")


def _decode_all(link: Link, frames: list[bytes]) -> list[Message]:
    try:
        return [_decoder.decode(frame) for frame in frames]
    except msgspec.MsgspecError as error:
        link.close(f"{link.peer} sent no snapshot message: {error}")
        return []


def _now() -> float:
    return asyncio.get_running_loop().time()


async def _in_thread(function: Callable[..., _T], *args: object) -> _T:
    """Call it in a thread. A cancelled caller waits for its end: nobody closes a file under it."""
    work = asyncio.ensure_future(asyncio.to_thread(function, *args))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        while not work.done():
            await asyncio.wait([work])
        raise
