"""Bounds on what clients make a node hold: answers not taken, bodies not completed."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from cluster.api import answer as http_answer
from cluster.api.answer import Answer
from cluster.api.fast_path import UNCOUNTED_BACKLOG_BYTES, FastConnection
from cluster.api.settings import HttpSettings
from tests.support.raw_http import fetch, kv
from tests.support.served import Local, Serve

MIB = 1024 * 1024
SETTINGS = HttpSettings(max_buffered_bytes=4 * MIB)


async def until(condition: Callable[[], Awaitable[object] | object]) -> None:
    """Poll a condition until it is true, within a deadline."""
    async with asyncio.timeout(30):
        while True:
            found = condition()
            if isinstance(found, Awaitable):
                found = await found
            if found:
                return
            await asyncio.sleep(0.02)


def held_bytes(local: Local) -> int:
    server = local.api._server
    assert server is not None
    return server.memory.held_bytes


@contextlib.asynccontextmanager
async def clients(local: Local, count: int, said: bytes) -> AsyncIterator[list[socket.socket]]:
    """Clients that say something and take nothing of the answer."""
    loop = asyncio.get_running_loop()
    sockets: list[socket.socket] = []
    try:
        for _ in range(count):
            client = socket.socket()
            sockets.append(client)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            await loop.sock_connect(client, ("127.0.0.1", local.api.listener.port))
            with contextlib.suppress(ConnectionError):  # it may be refused before it has said all
                await loop.sock_sendall(client, said)
        yield sockets
    finally:
        for client in sockets:
            client.close()


async def fill(local: Local, count: int) -> None:
    for number in range(count):
        await fetch(local.base_url, "PUT", kv(f"big{number}"), bytes(MIB))


async def answers_others(local: Local) -> bool:
    """Whether somebody who takes his answers gets them, large ones and small ones."""
    large = await fetch(local.base_url, "GET", "/v1/kv?prefix=big")
    small = await fetch(local.base_url, "GET", kv("small"))
    assert small.status in (200, 404)
    return large.status == 200


@pytest.mark.parametrize(
    "said",
    [
        b"GET /v1/kv?prefix=big HTTP/1.1\r\nHost: t\r\n\r\n" * 8,
        b"GET /v1/kv/big1 HTTP/1.1\r\nHost: t\r\n\r\n" * 8,
    ],
    ids=["pages", "values"],
)
async def test_answers_that_are_not_taken_are_bounded_together(serve: Serve, said: bytes) -> None:
    local = await serve(SETTINGS)
    await fill(local, 2)
    peak = 0
    async with clients(local, 60, said):
        for _ in range(50):
            await asyncio.sleep(0)
            peak = max(peak, held_bytes(local))
        await until(lambda: answers_others(local))
        peak = max(peak, held_bytes(local))
    assert 0 < peak <= SETTINGS.max_buffered_bytes + 60 * http_answer.LARGE_ANSWER_SIZE_BYTES
    await until(lambda: not held_bytes(local))


async def test_bodies_that_do_not_go_on_are_bounded_together(serve: Serve) -> None:
    local = await serve(SETTINGS)
    half = b"PUT /v1/kv/half HTTP/1.1\r\nHost: t\r\nContent-Length: %d\r\n\r\n" % MIB
    async with clients(local, 30, half + bytes(MIB // 2)):
        assert held_bytes(local) <= SETTINGS.max_buffered_bytes

        async def may_write() -> bool:
            reply = await fetch(local.base_url, "PUT", kv("mine"), bytes(MIB))
            assert reply.status in (201, 503)
            if reply.status == 503:
                assert (reply.code, reply.json["outcome"]) == ("overloaded", "not_applied")
                assert reply.headers["retry-after"] == "1"
            return reply.status == 201

        await until(may_write)
        assert held_bytes(local) <= SETTINGS.max_buffered_bytes
    assert list(local.node.store.values) == [b"mine"]
    await until(lambda: not held_bytes(local))


async def test_requests_sent_ahead_are_bounded_together(serve: Serve) -> None:
    local = await serve(HttpSettings(max_buffered_bytes=2 * MIB))
    if not local.node.can_submit:
        pytest.skip("the full path reads one request ahead")
    local.node.hold = asyncio.Event()
    put = b"PUT /v1/kv/k HTTP/1.1\r\nHost: t\r\nContent-Length: 900\r\n\r\n" + bytes(900)
    async with clients(local, 40, put * 100):
        await until(lambda: local.node.waiting == 40)
        server = local.api._server
        assert server is not None
        read_bytes = sum(len(connection._backlog) for connection in server._fast)
        assert held_bytes(local) <= 2 * MIB
        assert read_bytes <= 2 * MIB + 40 * UNCOUNTED_BACKLOG_BYTES
        local.node.hold.set()
        # Those whose requests were not kept hear so, after the answer to the first.
        await until(lambda: server.open_connections < 40)
        await until(lambda: not held_bytes(local))
    assert 40 <= local.node.index < 40 * 100


async def test_a_steady_slow_reader_is_not_cut_off(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_answer, "ANSWER_TIMEOUT_S", 0.6)
    local = await serve()
    await fill(local, 1)
    loop = asyncio.get_running_loop()
    for target in (b"/v1/kv?prefix=big", b"/v1/kv/big0"):
        said = b"GET %b HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n" % target
        async with clients(local, 1, said * 1) as (client,):
            taken = 0
            began = loop.time()
            while data := await asyncio.wait_for(loop.sock_recv(client, 64 * 1024), 10):
                taken += len(data)
                if loop.time() - began < 3 * http_answer.ANSWER_TIMEOUT_S:
                    await asyncio.sleep(0.1)  # the pace of this client
            assert taken > MIB


@pytest.mark.parametrize("target", ["/v1/kv?prefix=big", "/v1/kv/big0"])
async def test_a_reader_that_stops_is_cut_off(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    monkeypatch.setattr(http_answer, "ANSWER_TIMEOUT_S", 0.3)
    local = await serve()
    await fill(local, 1)
    server = local.api._server
    assert server is not None
    said = f"GET {target} HTTP/1.1\r\nHost: t\r\n\r\n".encode()
    async with clients(local, 1, said * 8):
        await until(lambda: held_bytes(local))
        await until(lambda: server.open_connections == 0)
    assert held_bytes(local) == 0


@pytest.mark.parametrize("target", ["/v1/kv?prefix=a", "/v1/kv/a"])
async def test_a_read_ends_when_its_connection_is_lost(serve: Serve, target: str) -> None:
    local = await serve()
    tasks = len(asyncio.all_tasks())
    local.node.hold = asyncio.Event()
    said = f"GET {target} HTTP/1.1\r\nHost: t\r\n\r\n".encode()
    async with clients(local, 1, said) as (client,):
        await until(lambda: local.node.waiting == 1)
        # A reset: a client that only sends no more may still wait for its answer.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await until(lambda: len(asyncio.all_tasks()) <= tasks)


async def test_large_values_are_answered_one_in_a_turn_of_the_loop(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copying a value takes a millisecond; hundreds in one turn held up all other clients."""
    local = await serve()
    await fetch(local.base_url, "PUT", kv("large"), bytes(MIB))
    sent = 0
    send = FastConnection._send

    def counted(connection: FastConnection, answer: Answer, *others: object) -> None:
        nonlocal sent
        sent += answer.is_large
        send(connection, answer, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(FastConnection, "_send", counted)
    said = b"GET /v1/kv/large HTTP/1.1\r\nHost: x\r\n\r\n" * 4
    most = 0
    async with clients(local, 20, said):
        for _ in range(500):
            before = sent
            await asyncio.sleep(0)
            most = max(most, sent - before)
    assert most <= 1
