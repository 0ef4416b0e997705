"""What an unauthenticated client can do to the peer port: nothing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from datapath.complaints import MAX_LINE_LENGTH, MAX_LINES_PER_INTERVAL
from datapath.transport.handshake import (
    MAX_HANDSHAKE_MESSAGE_BYTES,
    NONCE_SIZE_BYTES,
    DialerHandshake,
)
from datapath.transport.listener import PeerListener
from election.identity import ACCEPTED, Claim
from election.shared_secret import SharedSecret
from tests.integration.datapath.transport.link_helpers import (
    KIND,
    SECRET,
    Recorder,
    make_dialer,
    make_listener,
    until,
)


@contextlib.asynccontextmanager
async def listening(**options: Any) -> AsyncIterator[tuple[PeerListener, Recorder]]:
    far = Recorder()
    listener = make_listener(far, **options)
    await listener.start()
    try:
        yield listener, far
    finally:
        await listener.stop()


def hello(secret: bytes = SECRET, kind: str = KIND) -> DialerHandshake:
    return DialerHandshake(
        cluster="demo",
        secret=secret,
        dialer="n1",
        listener="n2",
        kind=kind,
        nonce=secrets.token_bytes(NONCE_SIZE_BYTES),
        claim=Claim(),
        judge=lambda _peer, _claim: ACCEPTED,
    )


def one_connection() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1))


async def check_that_a_good_node_gets_in(listener: PeerListener, far: Recorder) -> None:
    before = len(far.opened)
    dialer = make_dialer(Recorder(), listener.port)
    dialer.start()
    await until(lambda: len(far.opened) > before)
    await dialer.stop()


async def post(session: aiohttp.ClientSession, url: str, data: bytes) -> tuple[int, bytes]:
    async with session.post(url, data=data) as response:
        return response.status, await response.read()


async def test_a_websocket_without_a_handshake_is_refused() -> None:
    async with listening() as (listener, far), one_connection() as session:
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            await session.ws_connect(f"http://127.0.0.1:{listener.port}/peer/v1/{KIND}")
        assert caught.value.status == 401
        assert not far.opened


async def test_a_websocket_after_half_a_handshake_is_refused() -> None:
    async with listening() as (listener, far), one_connection() as session:
        url = f"http://127.0.0.1:{listener.port}/peer/v1/{KIND}"
        status, _ = await post(session, url, hello().start())
        assert status == 200
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await session.ws_connect(url)
        assert not far.opened


async def test_a_handshake_for_one_stream_opens_no_other() -> None:
    handlers = {KIND: Recorder(), "request": Recorder()}
    async with listening(handlers=handlers) as (listener, _), one_connection() as session:
        base = f"http://127.0.0.1:{listener.port}/peer/v1/"
        one = hello()
        _, challenge = await post(session, base + KIND, one.start())
        _, accept = await post(session, base + KIND, one.receive(challenge))
        one.receive(accept)
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await session.ws_connect(base + "request")
        assert not handlers["request"].opened


async def test_a_handshake_on_one_connection_opens_no_other() -> None:
    async with (
        listening() as (listener, far),
        one_connection() as session,
        one_connection() as other,
    ):
        url = f"http://127.0.0.1:{listener.port}/peer/v1/{KIND}"
        one = hello()
        _, challenge = await post(session, url, one.start())
        one.receive((await post(session, url, one.receive(challenge)))[1])
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await other.ws_connect(url)
        assert not far.opened
        async with session.ws_connect(url):
            await until(lambda: far.up == 1)


async def test_a_replayed_transcript_is_refused() -> None:
    async with listening() as (listener, far):
        url = f"http://127.0.0.1:{listener.port}/peer/v1/{KIND}"
        one = hello()
        async with one_connection() as session:
            _, challenge = await post(session, url, one.start())
            proof = one.receive(challenge)
            assert (await post(session, url, proof))[0] == 200
        async with one_connection() as session:
            assert (await post(session, url, one.start()))[0] == 200
            status, answer = await post(session, url, proof)
            assert status == 403
            assert b"cluster.secret" in answer
        assert not far.opened


async def test_two_nodes_cannot_be_made_to_answer_for_each_other() -> None:
    """Reflection: what n2 says as a dialer is passed to n2 as a listener."""
    async with listening() as (listener, far):
        url = f"http://127.0.0.1:{listener.port}/peer/v1/{KIND}"
        n2_dialling = DialerHandshake(
            cluster="demo",
            secret=SECRET,
            dialer="n2",
            listener="n1",
            kind=KIND,
            nonce=secrets.token_bytes(NONCE_SIZE_BYTES),
            claim=Claim(),
            judge=lambda _peer, _claim: ACCEPTED,
        )
        async with one_connection() as session:
            _, challenge = await post(session, url, hello(secret=b"unknown").start())
            status, _ = await post(session, url, n2_dialling.receive(challenge))
        assert status == 403
        assert not far.opened


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"peer": "n3"}, "this is n2, not 'n3'"),
        ({"cluster": "other"}, "cluster 'demo', not 'other'"),
        ({"secret": SharedSecret(b"wrong")}, "cluster.secret"),
    ],
)
async def test_a_misdirected_or_wrong_dialer_is_told_why(
    options: dict[str, object], says: str
) -> None:
    async with listening() as (listener, far):
        near = Recorder()
        dialer = make_dialer(near, listener.port, **options)
        dialer.start()
        await until(lambda: dialer.problem)
        assert says in dialer.problem.replace("\\", "")
        await dialer.stop()
        assert not far.opened
        assert not near.opened


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00" * 3000,
        b"GET / HTTP/1.1\r\nHost: n2\r\n" + b"A: b\r\n" * 5000,
        b"POST /peer/v1/replicate HTTP/1.1\r\nHost: n2\r\nContent-Length: 99999999999\r\n\r\n"
        + b"x" * 9000,
        (
            b"POST /peer/v1/replicate HTTP/1.1\r\nHost: n2\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"ffffff\r\nx"
        ),
        b"GET /peer/v1/" + b"r" * 100_000,
        secrets.token_bytes(70_000),
    ],
    ids=["zeros", "headers", "long body", "chunked body", "long line", "noise"],
)
async def test_garbage_is_cut_off_and_harms_nobody(
    garbage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with listening(handshake_timeout_ms=400) as (listener, far):
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        writer.write(garbage)
        with contextlib.suppress(ConnectionError):
            await asyncio.wait_for(reader.read(), 3)
        writer.transport.abort()
        await check_that_a_good_node_gets_in(listener, far)
        await until(lambda: not listener._strangers)
        assert not [r for r in caplog.records if r.levelno >= logging.ERROR]


async def test_a_handshake_message_over_its_bound_is_refused_unread() -> None:
    async with listening() as (listener, _), one_connection() as session:
        url = f"http://127.0.0.1:{listener.port}/peer/v1/{KIND}"
        status, _ = await post(session, url, bytes(MAX_HANDSHAKE_MESSAGE_BYTES + 1))
        assert status == 413


@pytest.mark.parametrize(
    "said", ["nothing", "half a line", "half a body", "half a handshake", "a proof"]
)
async def test_half_a_handshake_and_then_silence_is_cut_off(said: str) -> None:
    async with listening(handshake_timeout_ms=300) as (listener, far):
        if said in {"half a handshake", "a proof"}:
            async with one_connection() as session:
                url = f"http://127.0.0.1:{listener.port}/peer/v1/{KIND}"
                one = hello()
                _, challenge = await post(session, url, one.start())
                if said == "a proof":
                    assert (await post(session, url, one.receive(challenge)))[0] == 200
                assert len(listener._strangers) == 1
                await until(lambda: not listener._strangers)
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
            line = (
                b"POST /peer/v1/replicate HTTP/1.1\r\nHost: n2\r\nContent-Length: 100\r\n\r\nbody"
            )
            writer.write({"nothing": b"", "half a line": line[:20], "half a body": line}[said])
            with contextlib.suppress(ConnectionError):
                assert await asyncio.wait_for(reader.read(), 1.5) == b""
            writer.transport.abort()
        assert not far.opened


async def test_500_silent_connections_do_not_keep_a_good_node_out() -> None:
    async with listening(handshake_timeout_ms=60_000) as (listener, far):
        idle = []
        for _ in range(500):
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", listener.port))
            idle.append(client)
        await until(lambda: len(listener._strangers) >= 250)
        await check_that_a_good_node_gets_in(listener, far)
        await asyncio.sleep(0.05)
        assert len(listener._strangers) <= 256
        for client in idle:
            client.close()


async def test_links_beyond_the_total_are_refused() -> None:
    async with listening(max_links=1) as (listener, far):
        first = make_dialer(Recorder(), listener.port)
        first.start()
        await until(lambda: far.up == 1)
        second = make_dialer(Recorder(), listener.port, node_id="n3")
        second.start()
        await until(lambda: "503" in second.problem)
        await first.stop()
        await until(lambda: far.up == 1 and far.link.peer == "n3")
        await second.stop()


async def send_after_handshake(listener: PeerListener, *frames: bytes | str) -> str:
    """Authenticate, send these websocket frames, return what the close frame says."""
    async with one_connection() as session:
        url = f"http://127.0.0.1:{listener.port}/peer/v1/{KIND}"
        one = hello()
        _, challenge = await post(session, url, one.start())
        await post(session, url, one.receive(challenge))
        async with session.ws_connect(url) as websocket:
            for frame in frames:
                if isinstance(frame, str):
                    await websocket.send_str(frame)
                else:
                    await websocket.send_bytes(frame)
            async for _ in websocket:
                pass
            return str(websocket.close_code)


@pytest.mark.parametrize(
    "frames",
    [
        (b"no parcel",),
        ("-1",),
        ("0",),
        ("73400321",),  # 70 MiB and a byte.
        ("9" * 5000,),
        ("100", "100"),
        ("10", b"12345678901"),
        ("10", b""),
        (bytes(300 * 1024),),
    ],
)
async def test_a_peer_that_breaks_the_framing_loses_its_link(frames: tuple[bytes | str]) -> None:
    async with listening() as (listener, far):
        await asyncio.wait_for(send_after_handshake(listener, *frames), 3)
        await until(lambda: far.closed)
        assert far.frames == []
        assert "violated the protocol" in far.reason or "connection lost" in far.reason


async def test_strangers_who_say_something_new_each_time_do_not_fill_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with listening() as (listener, far):
        url = f"http://127.0.0.1:{listener.port}/peer/v1/{KIND}"
        for number in range(200):
            stranger = DialerHandshake(
                cluster=f"{number}".ljust(250, "\U0001f600"),
                secret=SECRET,
                dialer=f"n{number}",
                listener="n2",
                kind=KIND,
                nonce=secrets.token_bytes(NONCE_SIZE_BYTES),
                claim=Claim(),
                judge=lambda _peer, _claim: ACCEPTED,
            )
            async with one_connection() as session:
                assert (await post(session, url, stranger.start()))[0] == 403
        lines = [record.getMessage() for record in caplog.records]
        assert 0 < len(lines) <= 2 * MAX_LINES_PER_INTERVAL
        assert max(map(len, lines)) <= MAX_LINE_LENGTH + 1
        await check_that_a_good_node_gets_in(listener, far)
