"""The receiving end of a snapshot transfer; see `datapath.transport.snapshot_transfer`."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable

import google_crc32c

from datapath.errors import TransferError
from datapath.transport.link import Link
from datapath.transport.snapshot_transfer import (
    RESUME_TIMEOUT_S,
    TRANSFER_WINDOW_BYTES,
    WINDOW_CHUNKS,
    Chunk,
    ChunkAck,
    End,
    Failed,
    Installed,
    Offer,
    Resume,
    SnapshotSink,
    TransferMessage,
    decode_transfer,
    encode_transfer,
    in_thread,
)

logger = logging.getLogger(__name__)


class SnapshotReceiver:
    """The receiving end: the handler of kind "snapshot" of the `PeerListener`. `stop` it at last.

    `make_sink(peer, offer)` answers an offer with a sink, or a refusal as text; it runs on the
    event loop. `on_received(offer, sink)` owns the finished snapshot and installs it; the sender is
    told when it returns or raises. One transfer runs at a time; an offer of another snapshot
    replaces it, unless its sender's epoch is lower. `bytes_done` and `chunks_done` count what is
    written of the running or last transfer; `active` is its snapshot id, "" when none runs.
    `on_error(error)` gets all that ends a transfer here: what is more than the transfer's own
    failure (`datapath.errors.ends_node`) must end the node (D9).
    """

    encode, decode = staticmethod(encode_transfer), staticmethod(decode_transfer)

    def __init__(
        self,
        make_sink: Callable[[str, Offer], SnapshotSink | str],
        on_received: Callable[[Offer, SnapshotSink], Awaitable[None]],
        *,
        on_error: Callable[[Exception], None],
        resume_timeout_s: float = RESUME_TIMEOUT_S,
    ) -> None:
        self.bytes_done = 0
        self.chunks_done = 0
        self._make_sink = make_sink
        self._on_received = on_received
        self._on_error = on_error
        self._resume_timeout_s = resume_timeout_s
        self._inbox: deque[tuple[Link, TransferMessage | None]] = deque()
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

    def on_messages(self, link: Link, messages: list[TransferMessage]) -> None:
        """Queue the sender's messages for the worker, within the window's bound."""
        for message in messages:
            if isinstance(message, Chunk):
                self._inbox_chunks += 1
                self._inbox_bytes += len(message.data)
            self._put(link, message)
        if self._inbox_chunks > WINDOW_CHUNKS or (
            self._inbox_chunks > 1 and self._inbox_bytes > TRANSFER_WINDOW_BYTES
        ):
            link.close("more snapshot chunks than the window allows")

    def _put(self, link: Link, message: TransferMessage | None) -> None:
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
                    await self._abort(f"no chunk for {self._resume_timeout_s:g} s")
                continue
            link, message = self._inbox.popleft()
            try:
                await self._handle(link, message)
            except Exception as error:
                logger.exception("the snapshot from %s failed", link.peer)
                self._on_error(error)  # first: nothing more may be done on a disk that has failed
                await self._abort(f"{type(error).__name__}: {error}")

    async def _handle(self, link: Link, message: TransferMessage | None) -> None:
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
            logger.warning("%s cancelled its snapshot: %s", link.peer, ascii(message.reason))
            self._link = None
            await self._abort("")

    async def _take_offer(self, link: Link, offer: Offer) -> None:
        if self._installed == offer:  # Only the answer was lost.
            link.send(Installed(offer.index, offer.epoch))
            return
        if self._offer is not None and offer.sender_epoch < self._offer.sender_epoch:
            link.send(
                Failed(f"a primary of epoch {self._offer.sender_epoch} is already sending one")
            )
            return
        if self._sink is None or offer != self._offer:
            await self._abort("another snapshot is offered")
            made = self._make_sink(link.peer, offer)
            if isinstance(made, str):
                link.send(Failed(made))
                return
            self._sink, self._offer, self._installed = made, offer, None
            self.bytes_done = self.chunks_done = 0
        self._link = link
        link.send(Resume(offer.snapshot_id, self._sink.next_chunk))

    async def _take_chunk(self, link: Link, sink: SnapshotSink, chunk: Chunk) -> None:
        if google_crc32c.value(chunk.data) != chunk.crc:
            raise TransferError(f"chunk {chunk.n} has a wrong checksum")
        if chunk.n != sink.next_chunk:
            raise TransferError(f"chunk {chunk.n} arrived, but {sink.next_chunk} is next")
        await in_thread(sink.feed, chunk.n, chunk.data)
        self.bytes_done += len(chunk.data)
        self.chunks_done += 1
        link.send(ChunkAck(chunk.n))

    async def _take_end(self, link: Link, offer: Offer, sink: SnapshotSink, end: End) -> None:
        if end.chunks != sink.next_chunk:
            raise TransferError(f"{sink.next_chunk} of {end.chunks} chunks arrived")
        await in_thread(sink.finish, end.checksum, end.count)
        # The installer's from here on, to install or to abort.
        self._sink = None
        await self._on_received(offer, sink)
        self._installed = offer
        self._offer = self._link = None
        link.send(Installed(offer.index, offer.epoch))

    async def _abort(self, reason: str) -> None:
        """Forget the running transfer, if any; tell its sender why."""
        sink, link = self._sink, self._link
        self._sink = self._offer = self._link = None
        if link is not None:
            link.send(Failed(reason))
        if sink is not None:
            try:
                await in_thread(sink.abort)
            except Exception:
                logger.exception("a partial snapshot could not be removed")
