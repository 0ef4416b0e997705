"""Bounds on connections: their number, their idleness, and how slow a client may be."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from cluster.api import answer, server
from cluster.api.settings import RESERVED_CONNECTIONS, HttpSettings
from tests.support.raw_http import connect, fetch, kv
from tests.support.served import Local, Serve

SHORT_MS = 100
LONG_MS = 60_000


async def test_an_idle_connection_is_closed(serve: Serve) -> None:
    local = await serve(HttpSettings(idle_timeout_ms=SHORT_MS))
    async with connect(local.base_url) as connection:
        assert await connection.receive_end() == b""
    async with connect(local.base_url) as connection:
        connection.send_request("GET", "/livez")
        assert (await connection.receive()).status == 200
        assert await connection.receive_end() == b""


async def test_a_head_that_never_ends_is_cut_off(serve: Serve) -> None:
    local = await serve(HttpSettings(idle_timeout_ms=SHORT_MS))
    async with connect(local.base_url) as connection:
        connection.send(b"PUT /v1/kv/a HTTP/1.1\r\nHost: t\r\nX: ")
        assert await connection.receive_end() == b""


async def test_a_body_that_never_ends_is_cut_off(serve: Serve) -> None:
    local = await serve(HttpSettings(body_timeout_ms=SHORT_MS))
    async with connect(local.base_url) as connection:
        connection.send(b"PUT /v1/kv/a HTTP/1.1\r\nHost: t\r\nContent-Length: 9\r\n\r\nhalf")
        reply = await connection.receive()
        assert (reply.status, reply.code) == (408, "request_timeout")
        assert reply.json["outcome"] == "not_applied"
        assert await connection.receive_end() == b""
    assert local.node.executed == 0


async def test_dripping_does_not_extend_the_time_for_a_body(serve: Serve) -> None:
    local = await serve(HttpSettings(body_timeout_ms=3 * SHORT_MS))
    async with connect(local.base_url) as connection:
        connection.send(b"PUT /v1/kv/a HTTP/1.1\r\nHost: t\r\nContent-Length: 99999\r\n\r\n")
        receiving = asyncio.create_task(connection.receive())
        while not receiving.done():
            connection.send(b"x")
            await asyncio.wait([receiving], timeout=SHORT_MS / 1000)
        assert receiving.result().status == 408


async def test_a_chunked_value_over_the_limit_in_one_packet_is_refused(serve: Serve) -> None:
    local = await serve(HttpSettings(max_value_size_bytes=10))
    async with connect(local.base_url) as connection:
        connection.send(
            b"PUT /v1/kv/a HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"b\r\n01234567890\r\n0\r\n\r\n"
        )
        reply = await connection.receive()
        assert (reply.status, reply.code) == (413, "value_too_large")
    assert local.node.executed == 0


async def test_2000_idle_connections_do_no_harm(local: Local) -> None:
    async with AsyncExitStack() as stack:
        for _ in range(20):
            await asyncio.gather(
                *(stack.enter_async_context(connect(local.base_url)) for _ in range(100))
            )
        assert (await fetch(local.base_url, "PUT", "/v1/kv/a", b"x")).status == 201
        metrics = (await fetch(local.base_url, "GET", "/metrics")).body.decode()
        assert "onecopy_http_open_connections 2001.0" in metrics


async def test_connections_over_the_limit_are_refused_until_there_is_room(serve: Serve) -> None:
    local = await serve(HttpSettings(max_connections=2))
    async with connect(local.base_url) as first, connect(local.base_url) as second:
        for connection in (first, second):
            connection.send_request("GET", "/livez")
            assert (await connection.receive()).status == 200
        async with connect(local.base_url) as third:
            third.send_request("PUT", "/v1/kv/b", b"x")
            reply = await third.receive()
            assert (reply.status, reply.code) == (503, "too_many_connections")
            assert reply.json["outcome"] == "not_applied"
            assert reply.headers["retry-after"] == "1"
            assert reply.headers["onecopy-node"] == "n1"
            assert await third.receive_end() == b""
        second.send_request("PUT", "/v1/kv/a", b"x")  # those that are there go on
        assert (await second.receive()).status == 201

    async def accepted() -> bool:
        return (await fetch(local.base_url, "GET", "/v1/kv/a")).status == 200

    async with asyncio.timeout(10):
        while not await accepted():
            pass


VITAL = ("/livez", "/readyz", "/primary", "/metrics", "/v1/cluster")


async def test_health_and_the_cluster_are_served_when_no_connection_is_left(serve: Serve) -> None:
    local = await serve(HttpSettings(max_connections=1))
    async with connect(local.base_url) as first:
        first.send_request("GET", "/livez")
        await first.receive()
        for path in VITAL:
            reply = await fetch(local.base_url, "GET", path)
            assert (reply.status, reply.headers["connection"]) == (200, "close"), path
        moved = await fetch(
            local.base_url,
            "POST",
            "/v1/cluster/handover",
            b'{"to": "n2"}',
            {"Content-Type": "application/json"},
        )
        assert moved.status == 200
        assert (await fetch(local.base_url, "DELETE", "/v1/cluster/nodes/n3")).status == 200
        for method, path in (("GET", "/v1/kv"), ("GET", "/v1/digest"), ("DELETE", "/v1/kv/a")):
            assert (await fetch(local.base_url, method, path)).code == "too_many_connections"


async def test_idle_connections_cannot_hold_the_reserve(serve: Serve) -> None:
    local = await serve(HttpSettings(max_connections=1))
    async with AsyncExitStack() as stack:
        for _ in range(3 * RESERVED_CONNECTIONS):
            idle = await stack.enter_async_context(connect(local.base_url))
            idle.send(b"GET /livez HT")
        assert (await fetch(local.base_url, "GET", "/livez")).status == 200
        assert local.api._server.numbers()["http_open_connections"] <= 1 + RESERVED_CONNECTIONS + 1


async def test_a_connection_of_the_reserve_has_little_time(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "RESERVE_PATIENCE_S", SHORT_MS / 1000)
    local = await serve(HttpSettings(max_connections=1))
    async with connect(local.base_url) as first, connect(local.base_url) as second:
        first.send_request("GET", "/livez")
        await first.receive()
        second.send(b"POST /v1/cluster/handover HTTP/1.1\r\nHost: t\r\nContent-Length: 9\r\n")
        second.send(b"Content-Type: application/json\r\n\r\n{")
        assert await second.receive_end() == b""


async def test_a_refused_connection_is_not_read(serve: Serve) -> None:
    local = await serve(HttpSettings(max_connections=1))
    async with connect(local.base_url) as first:
        first.send_request("GET", "/livez")
        assert (await first.receive()).status == 200
        async with connect(local.base_url) as second:
            second.send_request("PUT", "/v1/kv/a", b"x")
            await second.receive_end()
    assert local.node.executed == 0


async def test_a_client_that_reads_nothing_is_cut_off(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer, "ANSWER_TIMEOUT_S", SHORT_MS / 1000)
    local = await serve()
    value = bytes(1024 * 1024)
    for number in range(4):
        await fetch(local.base_url, "PUT", kv(str(number)), value)
    async with connect(local.base_url) as connection:
        connection.writer.transport.pause_reading()  # type: ignore[attr-defined]
        for _ in range(8):  # more than the system's buffers hold
            connection.send_request("GET", "/v1/kv")
        await connection.writer.drain()
        async with asyncio.timeout(10):
            while "open_connections 1.0" not in await metrics(local):
                pass


async def metrics(local: Local) -> str:
    return (await fetch(local.base_url, "GET", "/metrics")).body.decode()
