"""Where a connection or a head is odd: half-closed clients, upgrades, header values, a stop."""

from __future__ import annotations

import asyncio
import re
import socket
from typing import cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.api import listener
from cluster.api.fast_keys import FastKeys
from cluster.api.hosts import Hosts
from cluster.api.plain_head import blocks
from cluster.api.routes import HttpApi
from cluster.services.access_guard import TokenGuard, draw_token, principal_of
from datapath.operations import Query, QueryResult
from tests.support.cluster import wait_until
from tests.support.local_node import local_node
from tests.support.raw_http import connect, fetch
from tests.support.served import Local, Serve

PUT = b"PUT /v1/kv/%b HTTP/1.1\r\nHost: t\r\nContent-Length: 3\r\n%b\r\nabc"
GET = b"GET /v1/kv/%b HTTP/1.1\r\nHost: t\r\n%b\r\n"
CLOSE = b"Connection: close\r\n"


async def say(local: Local, data: bytes, *, half_close: bool = False) -> list[int]:
    """Send bytes; return the statuses that came until the end, or until nothing comes."""
    async with connect(local.base_url) as connection:
        connection.send(data)
        if half_close:
            connection.writer.write_eof()
        heard = await connection.receive_end()
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+)", heard)]


@pytest.mark.parametrize("more", [b"", CLOSE, b"X-Odd: 1\r\nTE: x\r\n"])
@pytest.mark.parametrize("held", [False, True])
async def test_a_client_that_sends_no_more_gets_its_answers(
    local: Local, more: bytes, held: bool
) -> None:
    if held:
        local.node.hold = asyncio.Event()
    asking = asyncio.create_task(say(local, PUT % (b"a", more), half_close=True))
    if local.node.hold is not None:
        await wait_until(lambda: local.node.waiting > 0, "the request is under way")
        local.node.hold.set()
    assert await asking == [201]


async def test_all_requests_before_the_end_are_answered(local: Local) -> None:
    for lane in (b"", b"TE: x\r\n"):
        data = b"".join(PUT % (b"%d" % number, lane) for number in range(20)) + GET % (b"3", lane)
        statuses = await say(local, data, half_close=True)
        assert len(statuses) == 21
        assert set(statuses) <= {200, 201}


@pytest.mark.parametrize("lane", [b"", b"TE: x\r\n"])
async def test_a_request_that_was_cut_short_is_not_applied(local: Local, lane: bytes) -> None:
    assert await say(local, PUT % (b"a", lane) + PUT[:-1] % (b"b", lane), half_close=True) in (
        [201],
        [201, 400],
    )
    assert local.node.executed == 1


async def test_a_client_that_asks_nothing_and_ends_is_let_go(local: Local) -> None:
    assert await say(local, b"", half_close=True) == []
    assert await say(local, b"GET /liv", half_close=True) == []


@pytest.mark.parametrize("lane", [b"", b"TE: x\r\n"])
async def test_no_connection_stays_behind_its_client(local: Local, lane: bytes) -> None:
    """The end may come in any moment: before, while and after the answer is made."""

    async def come_and_go(number: int) -> None:
        async with connect(local.base_url) as connection:
            connection.send(PUT % (b"%d" % number, lane))
            if number % 2:
                connection.writer.write_eof()
            for _ in range(number % 7):
                await asyncio.sleep(0)

    for start in range(0, 300, 20):
        await asyncio.gather(*(come_and_go(start + number) for number in range(20)))
        for number in range(5):
            await fetch(local.base_url, "GET", f"/v1/kv/{number}", headers={"TE": "x"})
    await wait_until(
        lambda: local.api._server.numbers()["http_open_connections"] == 0,
        "all connections are gone",
        10,
    )


H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
UPGRADES = [
    H2C,
    b"Connection: upgrade\r\nUpgrade: websocket\r\n",
    b"Connection: Upgrade\r\nUpgrade: TLS/1.0\r\n",
    b"Connection: Upgrade\r\nUpgrade: tcp\r\n",
    b"Connection: keep-alive, Upgrade\r\nUpgrade: h2c, websocket\r\n",
    b"Upgrade: h2c\r\n",
]


@pytest.mark.parametrize("upgrade", UPGRADES)
async def test_an_upgrade_is_ignored_and_what_follows_is_answered(
    local: Local, upgrade: bytes
) -> None:
    assert await say(local, PUT % (b"a", upgrade) + GET % (b"a", CLOSE)) == [201, 200]
    assert await say(local, GET % (b"a", upgrade) + GET % (b"a", CLOSE)) == [200, 200]
    many = (PUT % (b"b", upgrade) + GET % (b"a", upgrade)) * 5 + PUT % (b"b", CLOSE)
    assert await say(local, many) == [201, 200] + [200] * 9
    async with connect(local.base_url) as connection:  # in packets of their own
        for data in (PUT % (b"a", upgrade), GET % (b"a", upgrade), PUT % (b"a", b"")):
            connection.send(data)
            assert (await connection.receive()).status == 200


async def test_an_odd_accept_gets_numbers(local: Local) -> None:
    for accept in (
        "application/openmetrics-text; version=x",
        "application/openmetrics-text;version=0.0.1;escaping=?",
        "text/plain; version=x.y",
        "text/plain;version=",
        "text/plain; version=99999999999999999999.1",
        "",
        ",;=,;",
        "\xff",
    ):
        reply = await fetch(local.base_url, "GET", "/metrics", headers={"Accept": accept})
        assert reply.status == 200, accept
        assert b"onecopy_epoch" in reply.body


NAMES = (
    "Accept", "Accept-Encoding", "Authorization", "Cache-Control", "Connection", "Content-Encoding",
    "Content-Length", "Content-Range", "Content-Type", "Cookie", "Date", "Expect", "Forwarded",
    "Host", "Idempotency-Key", "If-Match", "If-None-Match", "If-Modified-Since", "If-Range",
    "Keep-Alive", "Last-Event-ID", "Origin", "Range", "Referer", "Sec-Fetch-Mode",
    "Sec-Fetch-Site", "Sec-WebSocket-Key", "TE", "Trailer", "Transfer-Encoding", "Upgrade",
    "User-Agent", "Via", "X-Forwarded-For",
)  # fmt: skip
WORDS = (
    "", "*", "*/*", '"', '"1"', 'W/"1"', "a, b", ";", "=", "version=x", "application/json",
    "application/openmetrics-text; version=x", "text/plain;version=..", "gzip", "identity",
    "chunked", "close", "keep-alive, upgrade", "h2c", "websocket", "100-continue", "bytes 0-1/2",
    "-1", "0", "1", "99999999999999999999", "0x1", "1e9", "\xe9", "\xff\xfe", "\x7f", "\t", "%00",
    "http://t", "null", "cross-site", "navigate", "q=;;,", "charset=nonsense", "x" * 3000,
)  # fmt: skip
TARGETS = (
    "/v1/kv/a", "/v1/kv", "/v1/cluster", "/v1/cluster/handover", "/v1/cluster/nodes/n9",
    "/v1/digest", "/livez", "/readyz", "/primary", "/metrics", "/openapi.json", "/none",
    "/v1/kv/a?ack=all", "*", "http://t/metrics",
)  # fmt: skip
values = st.one_of(
    st.sampled_from(WORDS),
    st.lists(st.sampled_from(WORDS), min_size=2, max_size=3).map(", ".join),
    st.text(st.characters(max_codepoint=255, exclude_characters="\r\n"), max_size=20),
)


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(["GET", "PUT", "DELETE", "HEAD", "POST", "OPTIONS", "PATCH"]),
    st.sampled_from(TARGETS),
    st.lists(st.tuples(st.sampled_from(NAMES), values), min_size=1, max_size=3),
    st.booleans(),
)
def test_no_header_makes_the_server_fail(
    method: str, target: str, fields: list[tuple[str, str]], body: bool
) -> None:
    async def run() -> None:
        api = HttpApi(local_node(), hosts=Hosts(["t"]))
        await api.listener.start("127.0.0.1", 0)
        try:
            async with connect(f"http://127.0.0.1:{api.listener.port}") as connection:
                lines = [f"{method} {target} HTTP/1.1", "Host: t"]
                lines += [f"{name}: {value}" for name, value in fields]
                lines += ["Content-Length: 1"] if body else []
                head = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"
                connection.send(head + (b"x" if body else b""))
                connection.writer.write_eof()
                heard = await connection.receive_end()
        finally:
            await api.listener.stop()
        assert b"HTTP/1.1 5" not in heard

    asyncio.run(run())


async def test_a_full_backlog_is_served_when_the_node_stops(serve: Serve) -> None:
    """What the system has accepted when the listener closes is answered, not reset."""
    local = await serve()
    place = ("127.0.0.1", local.api.listener.port)
    late = [socket.create_connection(place) for _ in range(20)]  # nobody has taken them yet
    for client in late:
        client.sendall(GET % (b"a", b""))
    drain = asyncio.create_task(local.api.listener.drain())
    local.api.listener.hurry()
    await drain
    await local.api.listener.stop()
    for client in late:
        client.settimeout(10)
        assert client.recv(65536).startswith(b"HTTP/1.1 404")
        client.close()


async def test_only_who_has_just_connected_is_waited_for_when_the_node_stops(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "LAST_CALL_S", 600)
    local = await serve()
    own = local.api.listener
    async with connect(local.base_url) as asking, connect(local.base_url):
        await wait_until(lambda: local.api._server.open_connections == 2, "both are taken")
        own.hurry()
        await own.drain()
        stop = asyncio.create_task(own.stop())
        await wait_until(lambda: not own.listens, "it stops")
        asking.send_request("GET", "/v1/kv/a")
        assert ((await asking.receive()).status, stop.done()) == (404, False)
        stop.cancel()
        own._took_at -= 600
        async with asyncio.timeout(60):
            await own.stop()


async def test_a_stopped_listener_looks_after_no_watches_any_more(serve: Serve) -> None:
    node = local_node(can_submit=True)
    node.guard.is_on, node.guard.anonymous = True, "admin"
    local = await serve(node=node)
    async with connect(local.base_url) as connection:
        connection.send_request("GET", "/v1/watch?prefix=a", None, {"Accept": "text/event-stream"})
        await wait_until(lambda: bool(local.api.access._tasks._tasks), "somebody looks")
        await local.api.listener.stop()
    assert not local.api.access._tasks._tasks


class _Transport:
    """What is written, and where the connection ends."""

    def __init__(self) -> None:
        self.told: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.told.append(data[:12])

    def is_closing(self) -> bool:
        return b"closed" in self.told

    def close(self) -> None:
        self.told.append(b"closed")

    def abort(self) -> None:
        self.close()


@pytest.mark.parametrize("end", ["eof", "close", "half"])
async def test_an_answer_that_is_about_to_leave_leaves_before_the_end(end: str) -> None:
    """It waits for the end of the loop's turn; the connection may end within the same one."""
    api = HttpApi(local_node(), hosts=Hosts(["t"]))
    server, transport = api._server, _Transport()
    connection = server()
    assert isinstance(connection, FastKeys)
    connection.connection_made(cast("asyncio.Transport", transport))
    server.outbox.will_flush = True
    connection.data_received(GET % (b"a", b""))
    if end == "half":
        connection.data_received(GET % (b"b", b"Content-Length: 1\r\n"))
    connection.resume()
    assert transport.told == []
    if end == "close":
        connection.close()
    elif not connection.eof_received():
        transport.close()  # as the loop does
    else:
        connection.resume()
    assert transport.told == [b"HTTP/1.1 404", b"closed"]
    connection.connection_lost(None)
    await server.shutdown()


async def test_a_line_that_is_kept_is_for_no_caller() -> None:
    """A1: with access control each request names its own, whoever sent the same line before."""
    guard = TokenGuard(is_on=True)
    api = HttpApi(local_node(), hosts=Hosts(["t"]), guard=guard)
    connection = api._server()
    assert isinstance(connection, FastKeys)
    line = connection._lines[b"GET /v1/kv/a HTTP/1.1"]
    assert line is not None
    for _ in range(2):
        token = draw_token().text
        block = blocks[b"Host: t\r\nAuthorization: Bearer %b\r\n" % token.encode()]
        assert block is not None
        asked = connection._parse(line, block, b"")
        assert asked is not None
        assert asked.caller == principal_of(token)
        assert line.read is not None
        assert line.read.caller is None
    await api._server.shutdown(0)


async def test_a_connection_that_fails_holds_up_no_other(
    local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not (local.api._server.has_fast_path and local.node.can_submit):
        pytest.skip("each request has a task there")
    read_now = local.node.read_now

    def failing(query: Query) -> QueryResult | None:
        if query.args == (b"bad",):
            raise ZeroDivisionError
        return read_now(query)

    monkeypatch.setattr(local.node, "read_now", failing)
    failures: list[object] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: failures.append(context["exception"]))
    async with connect(local.base_url) as bad, connect(local.base_url) as good:
        bad.send(GET % (b"bad", b""))
        good.send(GET % (b"good", b""))
        assert (await good.receive()).status == 404
        assert await bad.receive_end() == b""
    assert [type(failure) for failure in failures] == [ZeroDivisionError]
