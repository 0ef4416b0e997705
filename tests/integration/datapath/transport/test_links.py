"""Links between a real dialer and a real listener on loopback."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import pathlib
import resource
import socket

import aiohttp
import msgspec
import pytest

from datapath.complaints import MAX_LINES_PER_INTERVAL
from datapath.transport.framing import (
    BINARY,
    LARGE_MESSAGE_BYTES,
    MAX_MESSAGE_BYTES,
    PIECE_BYTES,
    frame,
)
from datapath.transport.handshake import HandshakeError
from datapath.transport.link import Link, LinkError
from election.shared_secret import SharedSecret
from tests.integration.datapath.transport.link_helpers import (
    KIND,
    Recorder,
    connected,
    make_dialer,
    make_listener,
    until,
)


async def test_messages_of_all_sizes_arrive_once_and_in_order_both_ways() -> None:
    around = (0, 1, LARGE_MESSAGE_BYTES, PIECE_BYTES, 3 * PIECE_BYTES, 2_000_000)
    sizes = [max(0, size + off) for size in around for off in (-1, 0, 1)] * 3
    messages = [os.urandom(size) for size in sizes]
    async with connected() as pair:
        for message in messages:
            pair.near.link.send(message)
            pair.far.link.send(message)
        await until(lambda: len(pair.near.frames) == len(pair.far.frames) == len(messages))
        assert pair.far.frames == messages
        assert pair.near.frames == messages


async def test_a_burst_is_delivered_in_few_batches() -> None:
    async with connected() as pair:
        batches: list[int] = []
        take = pair.far.on_messages

        def count(link: Link, messages: list[bytes]) -> None:
            batches.append(len(messages))
            take(link, messages)

        pair.far.on_messages = count  # type: ignore[method-assign]
        for n in range(10_000):
            pair.near.link.send(b"%d" % n)
        await until(lambda: len(pair.far.frames) == 10_000)
        assert pair.far.frames == [b"%d" % n for n in range(10_000)]
        assert len(batches) < 200


async def test_what_is_sent_alone_leaves_within_the_turn_and_the_rest_together() -> None:
    async with connected() as pair:
        link = pair.near.link
        for turn in range(3):
            await asyncio.sleep(0.01)
            for n in range(4):
                link.send(b"%d" % (4 * turn + n))
                waiting = n  # all but the first
                assert (link.queued_bytes > 0) == (waiting > 0)
        await until(lambda: pair.far.frames == [b"%d" % n for n in range(12)])
        assert link.queued_bytes == 0


@pytest.mark.parametrize("ends", ["by the network", "by a close"])
async def test_a_write_that_has_to_wait_keeps_its_place(
    ends: str, recwarn: pytest.WarningsRecorder
) -> None:
    async with connected(relayed=True, idle_timeout_ms=60_000) as pair:
        assert pair.relay is not None
        pair.relay.stuck = True
        link = pair.near.link
        messages: list[bytes] = []
        while not link._websocket.is_full:  # the network takes no more
            messages.append(b"%6d" % len(messages) + bytes(30_000))
            link.send(messages[-1])
            assert len(messages) < 20_000
            if not link._websocket.is_full:
                await asyncio.sleep(0)
        for _ in range(3):
            messages.append(b"%6d" % len(messages))
            link.send(messages[-1])
        if ends == "by the network":
            pair.relay.stuck = False
            await until(lambda: len(pair.far.frames) == len(messages))
            assert pair.far.frames == messages
            assert link.queued_bytes == 0
        else:
            link.close("enough")
            await until(lambda: pair.near.closed)
            assert pair.near.reason == "enough"
    gc.collect()
    assert not [str(warning.message) for warning in recwarn]


async def test_the_link_says_who_and_what_it_is() -> None:
    async with connected() as pair:
        near, far = pair.near.link, pair.far.link
        assert (near.peer, near.kind, near.outgoing) == ("n2", KIND, True)
        assert (far.peer, far.kind, far.outgoing) == ("n1", KIND, False)
        assert pair.dialer.link is near
        assert pair.listener.links == {("n1", KIND): far}


async def test_each_side_learns_why_the_other_closed() -> None:
    async with connected() as pair:
        pair.far.link.close("moved to another epoch")
        assert pair.far.link.closed
        pair.far.link.send(b"dropped in silence")
        await until(lambda: pair.near.closed)
        assert pair.far.reason == "moved to another epoch"
        assert "moved to another epoch" in pair.near.reason
        pair.far.opened[0].close("a second reason")
        assert pair.far.opened[0].reason == "moved to another epoch"


async def test_no_frame_is_delivered_after_close() -> None:
    async with connected() as pair:
        take = pair.far.on_messages

        def close_at_first(link: Link, messages: list[bytes]) -> None:
            take(link, messages)
            link.close("enough")

        pair.far.on_messages = close_at_first  # type: ignore[method-assign]
        link = pair.far.link
        pair.near.link.send(b"first")
        await until(lambda: link.closed)
        # The reader may already hold more when someone closes: the step that would deliver it.
        late = frame(BINARY, msgspec.msgpack.encode([b"late"]), is_masked=True)
        link._websocket.data_received(late)
        assert pair.far.frames == [b"first"]


async def test_an_outbox_that_overflows_closes_the_link_and_frees_its_memory() -> None:
    async with connected(relayed=True, max_outbox_bytes=4_000_000, idle_timeout_ms=60_000) as pair:
        assert pair.relay is not None
        pair.relay.stuck = True
        link = pair.near.link
        most = 0
        for _ in range(2000):
            link.send(bytes(100_000))
            most = max(most, link.queued_bytes)
            if link.closed:
                break
            await asyncio.sleep(0)
        assert link.closed
        assert most <= 4_000_000
        assert link.queued_bytes == 0
        await until(lambda: pair.near.closed)
        assert "outbox overflow" in pair.near.reason


async def test_empty_messages_count_against_the_bound_too() -> None:
    async with connected(max_outbox_bytes=64_000) as pair:
        for _ in range(1002):  # the first leaves at once
            pair.near.link.send(b"")
        assert "outbox overflow" in pair.near.link.reason


async def test_a_message_beyond_the_bound_is_the_callers_mistake() -> None:
    async with connected() as pair:
        with pytest.raises(ValueError, match="the limit is"):
            pair.near.link.send(bytes(MAX_MESSAGE_BYTES + 1))
        pair.near.link.send(b"still up")
        await until(lambda: pair.far.frames == [b"still up"])


@pytest.mark.parametrize("where", ["on_open", "on_messages", "on_close"])
async def test_a_handlers_exception_closes_its_link_and_is_passed_on(
    where: str, caplog: pytest.LogCaptureFixture
) -> None:
    errors: list[tuple[Link, Exception]] = []

    class Broken(Recorder):
        def break_at(self, place: str) -> None:
            if place == where:
                raise ZeroDivisionError(place)

        def on_open(self, link: Link) -> None:
            super().on_open(link)
            self.break_at("on_open")

        def on_messages(self, link: Link, messages: list[bytes]) -> None:
            self.break_at("on_messages")

        def on_close(self, link: Link, reason: str) -> None:
            super().on_close(link, reason)
            self.break_at("on_close")

    far, near = Broken(), Recorder()
    listener = make_listener(far, on_error=lambda link, error: errors.append((link, error)))
    await listener.start()
    dialer = make_dialer(near, listener.port)
    dialer.start()
    await until(lambda: near.opened)
    near.link.send(b"x")
    if where == "on_close":
        near.link.close("done")
    await until(lambda: errors)
    link, error = errors[0]
    assert link is far.opened[0]
    assert isinstance(error, ZeroDivisionError)
    await until(lambda: far.closed)
    assert "ZeroDivisionError" in caplog.text
    await dialer.stop()
    await listener.stop()
    assert len(far.opened) == len(far.closed)


async def test_the_dialer_comes_back_after_the_listener_restarts() -> None:
    async with connected() as pair:
        port = pair.listener.port
        await pair.listener.stop()
        await until(lambda: pair.near.closed)
        assert "n2 is stopping" in pair.near.reason
        again = make_listener(pair.far, port=port)
        await again.start()
        await pair.until_up()
        pair.near.link.send(b"hello again")
        await until(lambda: pair.far.frames == [b"hello again"])
        await again.stop()


async def test_a_lost_link_is_redialled_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async with connected() as pair:
        await asyncio.sleep(1.05)  # Older than MIN_HEALTHY_LINK_MS: not a link that flaps.
        for delay in ("MIN_REDIAL_DELAY_MS", "MAX_REDIAL_DELAY_MS"):
            monkeypatch.setattr(f"datapath.transport.dialer.{delay}", 600_000)
        pair.far.link.close("lost")
        await until(lambda: len(pair.near.opened) == 2)


async def test_links_that_close_again_and_again_fill_no_log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As at a node whose disk is full, for as long as it is."""
    caplog.set_level(logging.INFO)
    for delay in ("MIN_REDIAL_DELAY_MS", "MAX_REDIAL_DELAY_MS"):
        monkeypatch.setattr(f"datapath.transport.dialer.{delay}", 1)
    async with connected() as pair:
        for number in range(20):
            await until(lambda: pair.near.up == 1)
            pair.near.link.close(f"reason {number}")
            await until(lambda: pair.near.up == 0)
        await until(lambda: len(pair.far.closed) == 20)
    lines = [record.getMessage() for record in caplog.records if "closed>" in record.getMessage()]
    assert sum("to n2" in line for line in lines) == MAX_LINES_PER_INTERVAL
    assert sum("from n1" in line for line in lines) == MAX_LINES_PER_INTERVAL


async def test_the_dialer_takes_up_a_changed_address() -> None:
    near, first, second = Recorder(), Recorder(), Recorder()
    listeners = [make_listener(first), make_listener(second)]
    for listener in listeners:
        await listener.start()
    address: list[tuple[str, int] | None] = [None]
    dialer = make_dialer(near, 0, address=lambda: address[0])
    dialer.start()
    await until(lambda: "address is not known" in dialer.problem)
    address[0] = ("127.0.0.1", listeners[0].port)
    await until(lambda: first.up == 1)
    address[0] = ("127.0.0.1", listeners[1].port)
    await listeners[0].stop()
    await until(lambda: second.up == 1)
    await dialer.stop()
    await listeners[1].stop()


async def test_an_address_provider_that_fails_does_not_end_the_dialer() -> None:
    far = Recorder()
    listener = make_listener(far)
    await listener.start()
    known = False

    def address() -> tuple[str, int]:
        if not known:
            raise RuntimeError("not yet")
        return "127.0.0.1", listener.port

    dialer = make_dialer(Recorder(), 0, address=address)
    dialer.start()
    await until(lambda: "its address cannot be resolved" in dialer.problem)
    known = True
    await until(lambda: far.up == 1)
    await dialer.stop()
    await listener.stop()


async def test_a_new_link_of_a_peer_replaces_its_old_one_in_order() -> None:
    async with connected() as pair:
        other = make_dialer(Recorder(), pair.listener.port)
        other.start()
        await until(lambda: len(pair.far.opened) == 2)
        assert pair.far.log == ["open", "close", "open"]
        assert "opened a new link" in pair.far.closed[0][1]
        await pair.dialer.stop()
        await other.stop()


async def test_links_of_two_kinds_live_side_by_side() -> None:
    far = {"replicate": Recorder(), "request": Recorder()}
    listener = make_listener(Recorder(), handlers=far)
    await listener.start()
    dialers = [make_dialer(Recorder(), listener.port, kind=kind) for kind in far]
    for dialer in dialers:
        dialer.start()
    await until(lambda: all(each.up == 1 for each in far.values()))
    for dialer in dialers:
        await dialer.stop()
    await listener.stop()
    assert all(each.up == 0 for each in far.values())


async def test_a_busy_port_is_named_with_the_field_to_change() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            LinkError, match=f"127.0.0.1:{port}.*another process.*`peer` .*of node n2"
        ):
            await make_listener(Recorder(), port=port).start()


async def test_a_listener_without_a_secret_starts_on_loopback_only() -> None:
    open_to_all = make_listener(Recorder(), secret=SharedSecret(b""))
    open_to_all.host = "0.0.0.0"
    with pytest.raises(HandshakeError, match=r"cluster\.secret"):
        await open_to_all.start()
    async with connected(secret=SharedSecret(b"")) as pair:
        pair.near.link.send(b"x")
        await until(lambda: pair.far.frames == [b"x"])


async def test_a_wrong_secret_is_logged_once_and_cured_without_a_restart(
    caplog: pytest.LogCaptureFixture,
) -> None:
    near, far = Recorder(), Recorder()
    listener = make_listener(far, secret=SharedSecret(b"another"))
    await listener.start()
    relayed_port = listener.port
    attempts = 0

    def address() -> tuple[str, int]:
        nonlocal attempts
        attempts += 1
        return "127.0.0.1", relayed_port

    dialer = make_dialer(near, relayed_port, address=address)
    with caplog.at_level(logging.INFO):
        dialer.start()
        await until(lambda: "cluster.secret" in dialer.problem)
        enough = attempts + 3
        await until(lambda: attempts >= enough)
        errors = [r for r in caplog.records if r.levelno == logging.ERROR]
        assert [r for r in errors if "no replicate link to n2" in r.getMessage()][1:] == []
        assert [r for r in errors if "refused a peer connection" in r.getMessage()][1:] == []
        assert len(errors) == 2
    assert not near.opened
    assert not far.opened
    await listener.stop()
    cured = make_listener(far, port=relayed_port)
    await cured.start()
    await until(lambda: far.up == 1)
    await until(lambda: dialer.problem == "")  # this side hears of it a moment later
    await dialer.stop()
    await cured.stop()


def open_descriptors() -> int:
    return len(list(pathlib.Path("/proc/self/fd").iterdir()))


async def test_out_of_descriptors_the_listener_goes_on_when_there_are_some_again() -> None:
    far = Recorder()
    listener = make_listener(far)
    await listener.start()
    used = open_descriptors()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    clients = [socket.socket() for _ in range(8)]
    for client in clients:
        client.setblocking(False)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 8, hard))
        for client in clients:
            client.connect_ex(("127.0.0.1", listener.port))
        await until(lambda: "accept" in listener._complaints._kinds)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for client in clients:
            client.close()
    dialer = make_dialer(Recorder(), listener.port, dial_timeout_ms=3000)
    dialer.start()
    await until(lambda: far.up == 1)
    await dialer.stop()
    await listener.stop()


@pytest.mark.parametrize(
    ("method", "path", "status", "says"),
    [
        ("GET", "/", 404, "peer port of onecopy node n2"),
        ("GET", "/peer/v1/nothing", 404, "peer port of onecopy node n2"),
        ("GET", f"/peer/v1/{KIND}", 426, "websocket"),
        ("DELETE", f"/peer/v1/{KIND}", 426, "websocket"),
    ],
)
async def test_plain_http_is_told_what_this_port_is(
    method: str, path: str, status: int, says: str
) -> None:
    listener = make_listener(Recorder())
    await listener.start()
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, f"http://127.0.0.1:{listener.port}{path}") as response,
    ):
        assert response.status == status
        assert says in await response.text()
    await listener.stop()


async def test_a_dialer_says_what_it_found_at_a_wrong_address() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 405 No\r\nContent-Length: 11\r\n\r\nI am a shop")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    dialer = make_dialer(Recorder(), server.sockets[0].getsockname()[1])
    dialer.start()
    await until(lambda: "405" in dialer.problem)
    assert "I am a shop" in dialer.problem
    await dialer.stop()
    server.close()
