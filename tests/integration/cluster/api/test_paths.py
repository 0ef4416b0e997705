"""The fast path and the full one give the same answers, whatever comes."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from contextlib import AsyncExitStack

import msgspec
import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.api import fast_path as http_fast_path
from cluster.api import server as http_server
from cluster.api.hosts import Hosts
from cluster.api.routes import HttpApi
from cluster.api.server import HttpServer
from cluster.api.settings import HttpSettings
from datapath.errors import NotPrimaryError, OperationUnknownError
from datapath.operations import Query, QueryResult
from datapath.turns import TURN_COST_BYTES
from tests.support.local_node import local_node
from tests.support.raw_http import Connection, Reply, connect, fetch
from tests.support.served import Serve

SETTINGS = HttpSettings(max_value_size_bytes=1000, idle_timeout_ms=5000, body_timeout_ms=5000)

methods = st.sampled_from(["PUT", "PUT", "GET", "GET", "DELETE", "HEAD", "POST", "put"])
targets = st.sampled_from(
    [
        *("/v1/kv/a", "/v1/kv/a", "/v1/kv/b", "/v1/kv/a/b", "/v1/kv//a", "/v1/kv/%C3%A9"),
        *("/v1/kv/%zz", "/v1/kv/%FF", "/v1/kv/", "/v1/kv", "/v1/kv/a#b", "/v1/kv/a?b?c"),
        *("/livez", "/v1/kv/" + "k" * 480, "/v1/kv/" + "k" * 481, "/v1/kv/..", "http://x/v1/kv/a"),
        *("/v1/kv/a?ack=local", "/v1/kv/a?min_copies=2", "/v1/kv/a?min_copies=9"),
        *("/v1/kv/a?consistency=stale", "/v1/kv/a?bogus=1", "/v1/kv/a?timeout_ms=0", "/v1/kv/a?"),
        *("/v1/leases/1/keepalive", "/v1/leases/1/keepalive?timeout_ms=9", "/v1/leases/1"),
        *("/v1/kv/a?ack=local&min_copies=2", "/v1/kv/a?ack=%6cocal", "/v1/kv/\xe9"),
    ]
)
fields = st.lists(
    st.sampled_from(
        [
            *('If-Match: "1"', 'If-Match: "2", "3"', "If-Match: *", "If-Match: 1", "If-Match:"),
            *('If-Match: W/"1"', "If-None-Match: *", 'If-None-Match: "1"', 'if-none-match: "2"'),
            *("Idempotency-Key: k1", 'Idempotency-Key: "k1"', "IDEMPOTENCY-KEY:k2"),
            *("Idempotency-Key: ", "Idempotency-Key: a b", "Idempotency-Key: \xe9"),
            *("Content-Encoding: gzip", "Content-Encoding: identity", "Content-Range: bytes 0-1/2"),
            *("Connection: keep-alive", "Connection: close", "Connection: upgrade", "Upgrade: x"),
            *("Onecopy-Cluster: local", "Onecopy-Cluster: another", "Onecopy-Cluster:"),
            *("Accept: */*", "X-One:1", "X-Two :2", "X-Three:  3 \t", "X-Four: \xe9", "X_Five: 5"),
            *("Content-Type: text/plain", "Expect: 100-continue", "Expect: 200-ok", "TE: gzip"),
            *("Origin: http://test", "Origin: http://evil.example", "Origin: null", "Host: evil"),
            *("Sec-Fetch-Site: cross-site", "Sec-Fetch-Site: same-origin", "Upgrade: h2c"),
            *("Host: other", "Range: bytes=0-1", "Cookie: a=b", "Trailer: x", " folded", "nocolon"),
        ]
    ),
    max_size=3,
)
bodies = st.sampled_from([None, b"", b"v", b"value", b"x" * 1000, b"x" * 1001, b"\r\n\r\n"])
framings = st.sampled_from(["chunked", "padded", "plus", "twice", "both"])
cuts = st.lists(st.integers(1, 400), max_size=2)

ODDITIES = ["fields", "fields", "target", "method", "framing", "version", "body", "cuts"]


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, list[bytes]]:
    """A request's method, and its bytes in pieces. It is odd in one or two ways, and else plain."""
    odd = draw(st.lists(st.sampled_from(ODDITIES), max_size=2))
    method = draw(methods) if "method" in odd else draw(st.sampled_from(["PUT", "PUT", "GET"]))
    target = draw(targets) if "target" in odd else "/v1/kv/a"
    version = "1.0" if "version" in odd else "1.1"
    body = draw(bodies) if "body" in odd or method != "GET" else None
    lines = [f"{method} {target} HTTP/{version}", "Host: test"]
    lines += draw(fields) if "fields" in odd else []
    framing = draw(framings) if "framing" in odd else "length"
    data = body or b""
    if body is not None:
        match framing:
            case "length":
                lines.append(f"Content-Length: {len(body)}")
            case "padded":
                lines.append(f"content-length:   00{len(body)} ")
            case "plus":
                lines.append(f"Content-Length: +{len(body)}")
            case "twice":
                lines += [f"Content-Length: {len(body)}"] * 2
            case _:
                if framing == "both":
                    lines.append(f"Content-Length: {len(body)}")
                lines.append("Transfer-Encoding: chunked")
                data = (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + b"0\r\n\r\n"
    whole = "\r\n".join(lines).encode("utf-8") + b"\r\n\r\n" + data
    pieces, start = [], 0
    for size in draw(cuts) if "cuts" in odd else []:
        pieces.append(whole[start : start + size])
        start += size
    return method, [piece for piece in (*pieces, whole[start:]) if piece]


async def _converse(api: HttpApi, said: list[tuple[str, list[bytes]]]) -> list[object]:
    """Say one request after the other, and return what was answered, until the end."""
    heard: list[object] = []
    async with connect(f"http://127.0.0.1:{api.listener.port}") as connection:
        for method, pieces in said:
            for piece in pieces:
                if connection.writer.is_closing():
                    break
                connection.send(piece)
                for _ in range(8):
                    await asyncio.sleep(0)  # the loop takes up what is there: it comes in pieces
            try:
                heard.append(_comparable(await _receive(connection, method)))
            except (asyncio.IncompleteReadError, ConnectionError):
                heard.append("closed")
                break
    return heard


async def _receive(connection: Connection, method: str) -> Reply:
    reply = await connection.receive(head_only=method == "HEAD")
    return await connection.receive() if reply.status == 100 else reply


def _comparable(reply: Reply) -> tuple[int, dict[str, str], bytes]:
    return reply.status, {k: v for k, v in reply.headers.items() if k != "date"}, reply.body


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
@given(st.lists(requests(), min_size=1, max_size=5))
@pytest.mark.slow
def test_both_lanes_say_the_same(said: list[tuple[str, list[bytes]]]) -> None:
    compare_lanes(said)


@pytest.mark.parametrize("count", [126, 127, 128, 129, 200, 500])
def test_both_lanes_take_as_many_fields(count: int) -> None:
    fields = "".join(f"X{number}:1\r\n" for number in range(count))
    head = f"PUT /v1/kv/a HTTP/1.1\r\nHost: test\r\nContent-Length: 1\r\n{fields}\r\n"
    compare_lanes([("PUT", [head.encode() + b"1"])])


@pytest.mark.parametrize(
    "line",
    [
        "",
        "Onecopy-Cluster: local\r\n",
        "Onecopy-Cluster: another\r\n",
        "Idempotency-Key: a b\r\n",
        "Content-Length: 2\r\n",
        "Content-Length: 2\r\nContent-Type: text/plain\r\n",
    ],
)
def test_both_lanes_keep_leases_alive_alike(line: str) -> None:
    """The first write grants lease 1."""
    granted = b"PUT /v1/kv/a?ttl_ms=60000 HTTP/1.1\r\nHost: test\r\nContent-Length: 1\r\n\r\n1"
    body = "xx" if "Content-Length" in line else ""
    paths = ("1", "1", "2", "0", "01", str(2**64), "1x")
    queries = ("", "?timeout_ms=1000", "?timeout_ms=0", "?bogus=1", "?")
    asked = [
        f"POST /v1/leases/{lease}/keepalive{query} HTTP/1.1\r\nHost: test\r\n{line}\r\n{body}"
        for lease in paths
        for query in queries
    ]
    compare_lanes([("PUT", [granted]), *(("POST", [text.encode()]) for text in asked)])


def compare_lanes(said: list[tuple[str, list[bytes]]]) -> None:
    async def run() -> None:
        told: list[list[object]] = []
        for can_submit, lane in ((True, True), (False, True), (False, False)):
            node = local_node(can_submit=can_submit)
            api = HttpApi(node, msgspec.structs.replace(SETTINGS, fast_path=lane), Hosts(["test"]))
            await api.listener.start("127.0.0.1", 0)
            try:
                told.append([*await _converse(api, said), node.store.values])
            finally:
                await api.listener.stop()
        assert told[0] == told[1] == told[2]

    uvloop.run(run())


def _lane(server: HttpServer | None) -> str:
    """Which lane the only connection is in."""
    assert server is not None
    assert server.open_connections == 1
    return "fast" if server._fast else "full"


async def test_what_is_plain_stays_in_the_express_lane(serve: Serve) -> None:
    local = await serve()
    server = local.api._server
    assert server is not None
    if not server.has_fast_path:
        pytest.skip("there is no fast path")
    async with connect(local.base_url) as connection:
        for method, body in (("PUT", b"1"), ("GET", None), ("DELETE", None), ("GET", None)):
            headers = {"Idempotency-Key": method, "Connection": "Keep-Alive"}
            connection.send_request(method, "/v1/kv/a", body, headers)
            await connection.receive()
        connection.send_request("POST", "/v1/leases/1/keepalive")
        assert (await connection.receive()).status == 404
        assert _lane(local.api._server) == "fast"
        connection.send_request("GET", "/livez")
        assert (await connection.receive()).status == 200
        assert _lane(local.api._server) == "full"
        connection.send_request("PUT", "/v1/kv/a", b"2")
        assert (await connection.receive()).status == 201


async def test_requests_sent_ahead_are_answered_in_order(serve: Serve) -> None:
    local = await serve()
    async with connect(local.base_url) as connection:
        for number in range(300):
            connection.send_request("PUT", "/v1/kv/k", b"%d" % number)
            connection.send_request("GET", "/v1/kv/k" if number % 7 else "/v1/kv/k?timeout_ms=100")
        connection.send_request("GET", "/livez", headers={"Connection": "close"})
        for number in range(300):
            put, got = await connection.receive(), await connection.receive()
            assert put.status == (200 if number else 201)
            assert got.body == b"%d" % number
            assert got.headers["etag"] == put.headers["etag"]
        assert (await connection.receive()).json == {"status": "live"}
        assert await connection.receive_end() == b""


async def test_a_client_that_sends_far_ahead_is_not_read(serve: Serve) -> None:
    local = await serve()
    local.node.hold = asyncio.Event()
    async with connect(local.base_url) as connection:
        request = b"PUT /v1/kv/k HTTP/1.1\r\nHost: a\r\nContent-Length: 900\r\n\r\n" + b"x" * 900
        connection.send(request * 20_000)  # 19 MB: more than the sockets hold
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await connection.writer.drain()
        assert local.node.waiting == 1
        server = local.api._server
        assert server is not None
        held = [len(c._backlog) for c in server._fast]
        assert all(size <= 2 * http_fast_path.MAX_BACKLOG_BYTES for size in held)
        local.node.hold.set()
        for _ in range(20_000):
            assert (await connection.receive()).status in (200, 201)


@pytest.mark.parametrize(
    ("error", "key", "status"),
    [
        (NotPrimaryError("no_primary", "gone"), "", 201),
        (OperationUnknownError("unknown_outcome", "lost"), "again", 201),
        (OperationUnknownError("unknown_outcome", "lost"), "", 503),
        (OperationUnknownError("timeout", "late"), "again", 504),
    ],
)
async def test_a_write_goes_on_elsewhere_only_where_that_is_right(
    serve: Serve, error: Exception, key: str, status: int
) -> None:
    local = await serve()
    if not local.node.can_submit:
        pytest.skip("what the node itself does then is the gateway's test")
    local.node.fail_next = error
    local.node.hold = asyncio.Event()
    async with connect(local.base_url) as connection:
        headers = {"Idempotency-Key": key} if key else None
        connection.send_request("PUT", "/v1/kv/a?timeout_ms=4000", b"1", headers)
        await asyncio.sleep(0.05)  # so long the first attempt takes
        local.node.hold.set()
        reply = await connection.receive()
    assert reply.status == status
    first, *others = local.node.timeouts_ms
    assert first == 4000
    assert [0 < timeout_ms < 4000 for timeout_ms in others] == [True] * (status == 201)
    if status != 201:
        assert reply.json["outcome"] == "unknown"


async def test_a_body_that_stops_half_way_is_left_to_the_ordinary_lane(serve: Serve) -> None:
    local = await serve(HttpSettings(body_timeout_ms=300))
    async with connect(local.base_url) as connection:
        connection.send(b"PUT /v1/kv/a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab")
        assert (await connection.receive()).code == "request_timeout"
        assert await connection.receive_end() == b""
    assert local.node.index == 0


async def test_requests_sent_ahead_let_others_have_their_turn(serve: Serve) -> None:
    local = await serve()
    if not local.node.can_submit:
        pytest.skip("the full path serves one request in a turn")
    await fetch(local.base_url, "PUT", "/v1/kv/k", b"x")
    served: list[int] = []
    read_now = local.node.read_now
    counted = itertools.count(1)

    def counting(query: Query) -> QueryResult | None:
        served.append(next(counted))
        return read_now(query)

    local.node.read_now = counting  # type: ignore[method-assign]
    steps = []
    async with AsyncExitStack() as stack:
        for _ in range(10):
            connection = await stack.enter_async_context(connect(local.base_url))
            connection.send(b"GET /v1/kv/k HTTP/1.1\r\nHost: a\r\n\r\n" * 500)
        while len(served) < 5000:
            before = len(served)
            await asyncio.sleep(0)
            steps.append(len(served) - before)
        for _ in range(500):
            assert (await connection.receive()).status == 200
    # Two turns of the loop may pass between two looks at it.
    assert max(steps) <= 2 * TURN_COST_BYTES // http_fast_path.REQUEST_COST_BYTES + 2


async def test_a_connection_that_met_a_backup_is_in_the_express_lane_when_it_is_the_primary(
    serve: Serve,
) -> None:
    local = await serve()
    server = local.api._server
    assert server is not None
    if not server.has_fast_path:
        pytest.skip("there is no fast path")
    local.node.can_submit = False  # as a backup: it takes nothing at once
    async with connect(local.base_url) as connection:
        for _ in ("backup", "primary"):
            for method, body in (("PUT", b"1"), ("GET", None), ("DELETE", None), ("GET", None)):
                connection.send_request(method, "/v1/kv/a", body)
                assert (await connection.receive()).status in (200, 201, 404)
            assert _lane(server) == "fast"
            local.node.can_submit = True


async def test_lines_behind_an_upgrade_let_others_have_their_turn(serve: Serve) -> None:
    local = await serve()
    head = b"GET /v1/kv/a HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"
    last = b"GET /livez HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    async with connect(local.base_url) as connection:
        connection.send(head + b"\r\n" * 20_000 + last)
        assert (await connection.receive()).status == 404
        turns = 0
        receiving = asyncio.ensure_future(connection.receive())
        while not receiving.done():
            await asyncio.sleep(0)
            turns += 1
        assert receiving.result().json == {"status": "live"}
    assert turns >= 20_000 // http_server.MAX_PIECES_PER_TURN // 4
