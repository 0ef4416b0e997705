"""The sending end of a snapshot transfer; see `datapath.transport.snapshot_transfer`."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable

import google_crc32c

from datapath.errors import TransferError
from datapath.transport.link import Link, LinkError
from datapath.transport.snapshot_transfer import (
    INSTALL_TIMEOUT_S,
    MAX_CHUNK_BYTES,
    RESUME_TIMEOUT_S,
    STEP_TIMEOUT_S,
    TRANSFER_WINDOW_BYTES,
    WINDOW_CHUNKS,
    Chunk,
    ChunkAck,
    End,
    Failed,
    Installed,
    Offer,
    Resume,
    SnapshotSource,
    Throttle,
    TransferMessage,
    decode_transfer,
    encode_transfer,
    in_thread,
)


class _LinkLostError(Exception):
    """The link of this attempt is gone; the next one resumes."""


class SnapshotSender:
    """The sending end towards one peer: the handler of the `Dialer` of kind "snapshot".

    `bytes_done` and `chunks_done` count what the receiver has acknowledged of the running or last
    transfer; `active` is its snapshot id, "" when none runs. Times in seconds.
    """

    encode, decode = staticmethod(encode_transfer), staticmethod(decode_transfer)

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
                self._link.send(Failed(why))
            self.active = ""
            self._retained.clear()
            await in_thread(source.close)

    async def _attempt(self, link: Link, source: SnapshotSource, offer: Offer) -> Installed:
        """Carry the transfer as far as this link lives."""
        self._forget_answers()
        link.send(offer)
        await self._wait(link, lambda: self._next >= 0, self._step_timeout_s)
        while self._installed is None:
            n = self._next
            data = self._retained.get(n)
            if data is None:
                data = await in_thread(source.read_chunk, n)
            if data is None:
                break
            if len(data) > MAX_CHUNK_BYTES:
                raise TransferError(f"chunk {n} has {len(data)} bytes, over {MAX_CHUNK_BYTES}")
            self._retained[n] = data
            await self._throttle.take(len(data))
            await self._wait(link, self._window_is_open, self._step_timeout_s)
            link.send(Chunk(n, google_crc32c.value(data), data))
            self._next = n + 1
        if self._installed is None:
            link.send(End(self._next, source.checksum, source.count))
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
        return len(self._retained) <= WINDOW_CHUNKS and size <= TRANSFER_WINDOW_BYTES

    def _is_all_acked(self) -> bool:
        return self._installed is not None or not self._retained

    async def _wait_for_link(self) -> Link:
        while self._link is None or self._link.closed:
            left_s = self._progress_at + self._resume_timeout_s - _now()
            if left_s <= 0:
                raise TransferError(f"no progress for {self._resume_timeout_s:g} s: no link")
            await self._wait_change(left_s)
        if _now() - self._progress_at > self._resume_timeout_s:
            raise TransferError(
                f"no progress for {self._resume_timeout_s:g} s: links keep breaking"
            )
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

    def on_messages(self, link: Link, messages: list[TransferMessage]) -> None:
        """Take the receiver's answers."""
        if link is not self._link:
            return
        for message in messages:
            match message:
                case Resume(snapshot_id, next_chunk) if snapshot_id == self.active:
                    self._resume(next_chunk)
                case ChunkAck(n):
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


def _now() -> float:
    return asyncio.get_running_loop().time()
