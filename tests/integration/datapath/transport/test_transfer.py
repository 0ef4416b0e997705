"""Snapshots over real links that break, with real ends that fail, stall and die."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec
import pytest

from datapath.errors import TransferError
from datapath.transport.dialer import Dialer
from datapath.transport.link import Link
from datapath.transport.listener import PeerListener
from datapath.transport.snapshot_receiver import SnapshotReceiver
from datapath.transport.snapshot_sender import SnapshotSender
from datapath.transport.snapshot_transfer import (
    KIND,
    MAX_CHUNK_BYTES,
    TRANSFER_WINDOW_BYTES,
    WINDOW_CHUNKS,
    Chunk,
    End,
    Failed,
    Offer,
    Resume,
    SnapshotSink,
    Throttle,
)
from tests.integration.datapath.transport.link_helpers import (
    SECRET,
    Recorder,
    Relay,
    make_dialer,
    make_listener,
    until,
)


class Chunks:
    """A SnapshotSource over chunks in memory."""

    index, epoch = 41, 3

    def __init__(self, chunks: list[bytes]) -> None:
        self.chunks = chunks
        self.count = len(chunks)
        self.checksum = hashlib.sha256(b"".join(chunks)).hexdigest()
        self.closed = False
        self.reading = 0
        self.reads = 0
        self.gate = threading.Event()
        self.gate.set()

    def read_chunk(self, number: int, /) -> bytes | None:
        assert not self.closed
        self.reading += 1
        self.gate.wait(10)
        self.reading -= 1
        self.reads += 1
        return self.chunks[number] if number < len(self.chunks) else None

    def close(self) -> None:
        assert not self.reading
        self.closed = True


class Place:
    """A SnapshotSink in memory."""

    def __init__(self) -> None:
        self.chunks: list[bytes] = []
        self.finished = False
        self.aborted = False
        self.fail_at = -1
        self.feeding = 0
        self.gate = threading.Event()
        self.gate.set()

    @property
    def next_chunk(self) -> int:
        return len(self.chunks)

    def feed(self, number: int, chunk: bytes, /) -> None:
        assert not self.aborted
        assert number == len(self.chunks)
        self.feeding += 1
        self.gate.wait(10)
        self.feeding -= 1
        if number == self.fail_at:
            raise OSError(28, "No space left on device")
        self.chunks.append(chunk)

    def finish(self, checksum: str, count: int, /) -> None:
        assert count == len(self.chunks)
        if hashlib.sha256(b"".join(self.chunks)).hexdigest() != checksum:
            raise ValueError("the whole has a wrong checksum")
        self.finished = True

    def abort(self) -> None:
        assert not self.feeding
        self.aborted = True


class Ends:
    """A sender at n1 and a receiver at n2, joined through a relay."""

    def __init__(self, **timeouts: float) -> None:
        self.places: list[Place] = []
        self.received: list[tuple[Offer, SnapshotSink]] = []
        self.errors: list[Exception] = []
        self.refusal = ""
        self.prepare: Callable[[Place], None] = lambda _: None
        self.install: Callable[[], Awaitable[None]] | None = None
        self.timeouts = timeouts
        self.throttle = Throttle()
        self.sender = SnapshotSender(throttle=self.throttle, **timeouts)
        self.receiver = self.make_receiver()
        self.links: list[Link] = []

    def make_receiver(self) -> SnapshotReceiver:
        return SnapshotReceiver(
            self.make_sink,
            self.on_received,
            on_error=self.errors.append,
            resume_timeout_s=self.timeouts.get("resume_timeout_s", 30.0),
        )

    def make_sink(self, peer: str, offer: Offer) -> SnapshotSink | str:
        assert peer.startswith("n")
        assert offer.index == 41
        if self.refusal:
            return self.refusal
        self.places.append(Place())
        self.prepare(self.places[-1])
        return self.places[-1]

    async def on_received(self, offer: Offer, sink: SnapshotSink) -> None:
        if self.install is not None:
            await self.install()
        self.received.append((offer, sink))

    async def start(self, stack: contextlib.AsyncExitStack) -> None:
        self.listener = self.make_listener(0)
        await self.listener.start()
        self.relay = Relay(self.listener.port)
        await self.relay.start()
        self.dialer = self.make_dialer(self.sender)
        self.dialer.start()
        for stop in (self.stop_receiver, self.relay.stop, self.dialer.stop):
            stack.push_async_callback(stop)

    def make_dialer(self, sender: SnapshotSender, node_id: str = "n1") -> Dialer:
        return make_dialer(sender, self.relay.port, kind=KIND, node_id=node_id, dial_timeout_ms=300)

    def make_listener(self, port: int) -> PeerListener:
        return make_listener(self.receiver, port=port, handlers={KIND: self.receiver})

    async def stop_receiver(self) -> None:
        await self.listener.stop()
        await self.receiver.stop()

    async def restart_receiver(self) -> None:
        """Start a new process's worth of state on the old port."""
        self.receiver = self.make_receiver()
        self.listener = self.make_listener(self.listener.port)
        await self.listener.start()

    async def check_that_it_still_works(self) -> None:
        """Nothing of a failed transfer stands in the way of the next one."""
        self.prepare = lambda _: None
        self.install = None
        self.refusal = ""
        chunks = some_chunks(3)
        installed = await asyncio.wait_for(self.sender.send_snapshot(Chunks(chunks), 7), 5)
        assert installed == (41, 3)
        assert self.places[-1].chunks == chunks


@contextlib.asynccontextmanager
async def ends(**timeouts: float) -> AsyncIterator[Ends]:
    pair = Ends(**timeouts)
    async with contextlib.AsyncExitStack() as stack:
        await pair.start(stack)
        yield pair


def some_chunks(n: int, size: int = 50_000) -> list[bytes]:
    return [random.randbytes(size) for _ in range(n)]


@pytest.mark.parametrize("n", [0, 1, WINDOW_CHUNKS, 60])
async def test_a_snapshot_arrives_whole_and_is_installed(n: int) -> None:
    async with ends() as pair:
        source = Chunks(some_chunks(n))
        assert await pair.sender.send_snapshot(source, 5) == (41, 3)
        (offer, sink), place = pair.received[0], pair.places[0]
        assert sink is place
        assert (offer.index, offer.epoch, offer.sender_epoch) == (41, 3, 5)
        assert place.chunks == source.chunks
        assert place.finished
        assert not place.aborted
        assert source.closed
        assert pair.sender.active == pair.receiver.active == ""
        assert pair.sender.bytes_done == pair.receiver.bytes_done == 50_000 * n
        assert pair.sender.chunks_done == pair.receiver.chunks_done == n


@pytest.mark.parametrize("seed", range(4))
async def test_cut_again_and_again_at_random_places_it_still_arrives_equal(seed: int) -> None:
    rng = random.Random(seed)
    async with ends() as pair:
        source = Chunks([rng.randbytes(rng.randrange(1, 60_000)) for _ in range(80)])
        sending = asyncio.create_task(pair.sender.send_snapshot(source, 5))
        total = sum(map(len, source.chunks))
        for place in sorted(rng.randrange(total) for _ in range(4)):
            pair.relay.cut_after_bytes = place
            await until(lambda: pair.relay.cut_after_bytes is None or sending.done())
        assert await asyncio.wait_for(sending, 15) == (41, 3)
        assert len(pair.places) == 1, "it began anew instead of resuming"
        assert pair.places[0].chunks == source.chunks
        assert source.reads <= len(source.chunks) + 10
        assert not pair.errors


async def test_an_answer_lost_with_its_link_is_given_again_without_a_second_install() -> None:
    async with ends() as pair:

        async def install_and_cut() -> None:
            pair.relay.cut()
            await asyncio.sleep(0)

        pair.install = install_and_cut
        sent = await asyncio.wait_for(pair.sender.send_snapshot(Chunks(some_chunks(3)), 5), 5)
        assert sent == (41, 3)
        assert len(pair.received) == 1


async def test_a_slow_receiver_holds_the_sender_back() -> None:
    async with ends() as pair:
        gate = threading.Event()
        pair.prepare = lambda place: setattr(place, "gate", gate)
        source = Chunks(some_chunks(60))
        sending = asyncio.create_task(pair.sender.send_snapshot(source, 5))
        await until(lambda: source.reads > WINDOW_CHUNKS)
        await asyncio.sleep(0.2)
        assert source.reads <= WINDOW_CHUNKS + 1
        assert pair.receiver._inbox_chunks <= WINDOW_CHUNKS
        assert len(pair.sender._retained) <= WINDOW_CHUNKS + 1
        gate.set()
        await asyncio.wait_for(sending, 5)


async def test_big_chunks_are_bounded_by_bytes_not_by_number() -> None:
    async with ends() as pair:
        gate = threading.Event()
        pair.prepare = lambda place: setattr(place, "gate", gate)
        source = Chunks(some_chunks(5, size=TRANSFER_WINDOW_BYTES // 2 + 1))
        sending = asyncio.create_task(pair.sender.send_snapshot(source, 5))
        await until(lambda: source.reads == 2)
        await asyncio.sleep(0.2)
        assert source.reads == 2
        gate.set()
        await asyncio.wait_for(sending, 10)
        assert pair.places[0].chunks == source.chunks


async def test_a_sender_that_ignores_the_window_loses_its_link(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with ends(resume_timeout_s=0.5) as pair:
        gate = threading.Event()
        pair.prepare = lambda place: setattr(place, "gate", gate)
        monkeypatch.setattr(pair.sender, "_window_is_open", lambda: True)
        sending = asyncio.create_task(pair.sender.send_snapshot(Chunks(some_chunks(60)), 5))
        await until(lambda: pair.receiver._inbox_chunks > WINDOW_CHUNKS)
        await until(lambda: not pair.listener.links)
        gate.set()
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


async def test_the_throttle_is_kept() -> None:
    async with ends() as pair:
        pair.throttle.bytes_per_s = 1_000_000
        loop = asyncio.get_running_loop()
        began = loop.time()
        await pair.sender.send_snapshot(Chunks(some_chunks(10)), 5)
        assert loop.time() - began > 0.4


async def test_the_throttle_rests_for_requests_as_long_as_it_worked() -> None:
    served = 0
    throttle = Throttle(requests=lambda: served)
    loop = asyncio.get_running_loop()
    worked = 0.0
    began = loop.time()
    await throttle.take(1)
    for _ in range(20):
        at = loop.time()
        await asyncio.sleep(0.01)
        served += 1000
        worked += loop.time() - at
        await throttle.take(1)
    assert loop.time() - began >= 2 * worked


async def test_a_refusal_reaches_the_sender_in_words() -> None:
    async with ends() as pair:
        pair.refusal = "this node is a primary"
        source = Chunks(some_chunks(1))
        with pytest.raises(TransferError, match="this node is a primary"):
            await pair.sender.send_snapshot(source, 5)
        assert source.closed
        await pair.check_that_it_still_works()


async def test_a_receivers_full_disk_ends_it_at_both_ends() -> None:
    async with ends() as pair:
        pair.prepare = lambda place: setattr(place, "fail_at", 12)
        source = Chunks(some_chunks(60))
        with pytest.raises(TransferError, match="No space left"):
            await pair.sender.send_snapshot(source, 5)
        assert source.closed
        await until(lambda: pair.places[0].aborted)
        assert isinstance(pair.errors[0], OSError)
        assert pair.receiver.active == ""
        await pair.check_that_it_still_works()


async def test_a_failed_installation_is_told_and_its_sink_left_to_the_installer() -> None:
    async with ends() as pair:

        async def fail() -> None:
            raise RuntimeError("the view has changed")

        pair.install = fail
        with pytest.raises(TransferError, match="the view has changed"):
            await pair.sender.send_snapshot(Chunks(some_chunks(2)), 5)
        assert pair.places[0].finished
        assert not pair.places[0].aborted
        await pair.check_that_it_still_works()


async def test_a_wrong_checksum_of_the_whole_is_refused() -> None:
    async with ends() as pair:
        source = Chunks(some_chunks(3))
        source.checksum = "0" * 64
        with pytest.raises(TransferError, match="wrong checksum"):
            await pair.sender.send_snapshot(source, 5)
        assert pair.places[0].aborted
        assert not pair.received


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (Chunk(0, 1, b"damaged on its way"), "chunk 0 has a wrong checksum"),
        (Chunk(1, 0, b""), "chunk 1 arrived, but 0 is next"),
        (End(1, "", 0), "0 of 1 chunks arrived"),
    ],
)
async def test_what_a_sender_gets_wrong_is_refused_and_removed(bad: Chunk | End, says: str) -> None:
    async with ends() as pair:
        by_hand = Recorder()
        dialer = make_dialer(by_hand, pair.relay.port, kind=KIND, node_id="n3")
        dialer.start()
        await until(lambda: by_hand.opened)
        by_hand.link.send(msgspec.msgpack.encode(Offer("by hand", 41, 3, 5)))
        await until(lambda: by_hand.frames)
        assert msgspec.msgpack.decode(by_hand.frames[0], type=Resume).next_chunk == 0
        by_hand.link.send(msgspec.msgpack.encode(bad))
        await until(lambda: len(by_hand.frames) == 2)
        assert says in msgspec.msgpack.decode(by_hand.frames[1], type=Failed).reason
        assert pair.places[0].chunks == []
        await until(lambda: pair.places[0].aborted)
        await dialer.stop()
        await pair.check_that_it_still_works()


async def test_a_cancelled_sender_tells_the_receiver_and_closes_its_source_after_the_read() -> None:
    async with ends() as pair:
        source = Chunks(some_chunks(60))
        sending = asyncio.create_task(pair.sender.send_snapshot(source, 5))
        await until(lambda: pair.places and pair.places[0].chunks)
        source.gate.clear()
        await until(lambda: source.reading)
        sending.cancel()
        await asyncio.sleep(0.05)
        assert not sending.done()
        source.gate.set()
        with pytest.raises(asyncio.CancelledError):
            await sending
        assert source.closed  # And not while it was read, see Chunks.close.
        await until(lambda: pair.places[0].aborted)
        await pair.check_that_it_still_works()


async def test_a_sender_that_dies_is_forgotten_and_its_part_removed() -> None:
    async with ends(resume_timeout_s=0.3) as pair:
        source = Chunks(some_chunks(60))
        sending = asyncio.create_task(pair.sender.send_snapshot(source, 5))
        await until(lambda: pair.places and len(pair.places[0].chunks) > 3)
        pair.relay.swallow_there = True  # Dead without a word.
        pair.relay.cut()
        await until(lambda: pair.places[0].aborted)
        assert pair.receiver.active == ""
        with pytest.raises(TransferError, match="no progress"):
            await sending
        pair.relay.swallow(False)
        await pair.check_that_it_still_works()


async def test_a_receiver_that_never_comes_back_ends_the_sending() -> None:
    async with ends(resume_timeout_s=0.4) as pair:
        source = Chunks(some_chunks(60))
        sending = asyncio.create_task(pair.sender.send_snapshot(source, 5))
        await until(lambda: pair.places and len(pair.places[0].chunks) > 3)
        await pair.stop_receiver()
        with pytest.raises(TransferError, match=r"no progress for 0\.4 s"):
            await asyncio.wait_for(sending, 3)
        assert source.closed
        assert pair.places[0].aborted


async def test_a_receiver_that_lost_its_memory_gets_it_from_the_start() -> None:
    async with ends() as pair:
        pair.throttle.bytes_per_s = 3_000_000
        source = Chunks(some_chunks(30))
        sending = asyncio.create_task(pair.sender.send_snapshot(source, 5))
        await until(lambda: pair.places and len(pair.places[0].chunks) > 10)
        await pair.stop_receiver()
        await pair.restart_receiver()
        assert await asyncio.wait_for(sending, 8) == (41, 3)
        assert len(pair.places) == 2
        assert pair.places[0].aborted
        assert pair.places[1].chunks == source.chunks


async def test_a_receiver_whose_disk_hangs_does_not_hang_the_sender() -> None:
    async with ends(step_timeout_s=0.3) as pair:
        gate = threading.Event()
        pair.prepare = lambda place: setattr(place, "gate", gate)
        with pytest.raises(TransferError, match=r"no progress at n2 for 0\.3 s"):
            await asyncio.wait_for(pair.sender.send_snapshot(Chunks(some_chunks(60)), 5), 3)
        gate.set()
        await until(lambda: pair.places[0].aborted)


async def test_an_installation_that_hangs_does_not_hang_the_sender() -> None:
    async with ends(install_timeout_s=0.3) as pair:
        free = asyncio.Event()

        async def hang() -> None:
            await free.wait()

        pair.install = hang
        with pytest.raises(TransferError, match=r"no progress at n2 for 0\.3 s"):
            await asyncio.wait_for(pair.sender.send_snapshot(Chunks(some_chunks(2)), 5), 3)
        free.set()


async def test_a_sender_whose_disk_hangs_does_not_hold_the_receiver_for_ever() -> None:
    async with ends(resume_timeout_s=0.3) as pair:
        source = Chunks(some_chunks(60))
        sending = asyncio.create_task(pair.sender.send_snapshot(source, 5))
        await until(lambda: pair.places and len(pair.places[0].chunks) > 3)
        source.gate.clear()
        await until(lambda: pair.places[0].aborted)
        source.gate.set()
        with pytest.raises(TransferError, match=r"no chunk for 0\.3 s"):
            await asyncio.wait_for(sending, 3)


async def test_a_new_primary_replaces_the_transfer_of_an_old_one_and_not_the_reverse() -> None:
    async with ends() as pair:
        gate = threading.Event()
        pair.prepare = lambda place: setattr(place, "gate", gate)
        old = asyncio.create_task(pair.sender.send_snapshot(Chunks(some_chunks(30)), 5))
        await until(lambda: pair.places)
        pair.prepare = lambda _: None
        newer = SnapshotSender()
        dialer = pair.make_dialer(newer, "n3")
        dialer.start()
        new = asyncio.create_task(newer.send_snapshot(Chunks(some_chunks(30)), 6))
        await until(lambda: newer.active)
        gate.set()
        assert await asyncio.wait_for(new, 5) == (41, 3)
        with pytest.raises(TransferError, match="another snapshot is offered"):
            await old
        assert pair.places[0].aborted

        blocked = threading.Event()
        pair.prepare = lambda place: setattr(place, "gate", blocked)
        new = asyncio.create_task(newer.send_snapshot(Chunks(some_chunks(30)), 6))
        await until(lambda: len(pair.places) == 3)
        old = asyncio.create_task(pair.sender.send_snapshot(Chunks(some_chunks(3)), 5))
        await asyncio.sleep(0.05)
        blocked.set()
        with pytest.raises(TransferError, match="epoch 6"):
            await asyncio.wait_for(old, 5)
        assert await asyncio.wait_for(new, 5) == (41, 3)
        await dialer.stop()


async def test_one_sender_sends_one_snapshot_at_a_time() -> None:
    async with ends() as pair:
        source = Chunks(some_chunks(5))
        sending = asyncio.create_task(pair.sender.send_snapshot(source, 5))
        await asyncio.sleep(0)
        with pytest.raises(TransferError, match="still being sent"):
            await pair.sender.send_snapshot(Chunks(some_chunks(1)), 5)
        await sending


async def test_a_chunk_that_no_message_can_carry_is_an_error() -> None:
    async with ends() as pair:
        with pytest.raises(TransferError, match="over"):
            await pair.sender.send_snapshot(Chunks([bytes(MAX_CHUNK_BYTES + 1)]), 5)


async def test_bytes_that_are_no_snapshot_message_cost_the_link_only() -> None:
    async with ends() as pair:
        await until(lambda: pair.dialer.link)
        assert pair.dialer.link is not None
        await until(lambda: pair.listener.links)
        link = pair.listener.links["n1", KIND]
        pair.dialer.link.send(b"\xc1 nonsense")
        await until(lambda: link.closed)
        assert link.reason.startswith("n1 violated the protocol")
        await pair.check_that_it_still_works()


SENDER_PROCESS = """
import asyncio, sys
from datapath.transport.dialer import Dialer
from datapath.transport.snapshot_transfer import KIND, Throttle
from datapath.transport.snapshot_sender import SnapshotSender
from election.registry import PeerRegistry
from election.shared_secret import SharedSecret

class Endless:
    index, epoch, count, checksum = 41, 3, 0, ""
    def read_chunk(self, number, /): return bytes(10_000)
    def close(self): pass

async def main():
    sender = SnapshotSender(throttle=Throttle(1_000_000))
    address = "127.0.0.1", int(sys.argv[1])
    secret, registry = SharedSecret(sys.argv[2].encode()), PeerRegistry(*sys.argv[3:6], {})
    dialer = Dialer(lambda: address, "n2", KIND, "n1", "demo", secret, sender, registry=registry)
    dialer.start()
    await sender.send_snapshot(Endless(), 5)

asyncio.run(main())
"""


@pytest.mark.slow
async def test_a_sender_process_that_is_killed_is_forgotten_and_its_part_removed() -> None:
    async with ends(resume_timeout_s=0.3) as pair:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", SENDER_PROCESS, str(pair.listener.port), SECRET.decode()),
            *("n1", "data of n1", "instance of n1"),
        )
        await until(lambda: pair.places and len(pair.places[0].chunks) > 3)
        process.kill()
        await process.wait()
        await until(lambda: pair.places[0].aborted)
        assert pair.receiver.active == ""
        await pair.check_that_it_still_works()
