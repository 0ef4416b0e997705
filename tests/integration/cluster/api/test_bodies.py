"""Bodies: limits, chunks, 100-continue, encodings; and requests that are cut short or garbage."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.raw_http import connect, fetch, kv

LIMIT = 1024 * 1024
CHUNKED = "Transfer-Encoding: chunked"


def put_head(target: str, *lines: str) -> bytes:
    """Return the head of a PUT whose framing the test chooses itself."""
    return "\r\n".join([f"PUT {target} HTTP/1.1", "Host: test", *lines, "", ""]).encode()


async def test_a_value_may_have_exactly_the_limit(base_url: str, prefix: str) -> None:
    value = b"x" * LIMIT
    assert (await fetch(base_url, "PUT", kv(prefix), value)).status == 201
    assert (await fetch(base_url, "GET", kv(prefix))).body == value


async def test_a_value_over_the_limit_is_refused_by_its_length_alone(
    base_url: str, prefix: str
) -> None:
    async with connect(base_url) as connection:
        # No byte of the body is ever sent: the answer cannot have waited for it.
        connection.send(put_head(kv(prefix), f"Content-Length: {LIMIT + 1}"))
        reply = await connection.receive()
        assert (reply.status, reply.code) == (413, "value_too_large")
        assert reply.json["outcome"] == "not_applied"
        assert str(LIMIT) in reply.json["detail"]
        assert reply.headers["connection"] == "close"
        assert await connection.receive_end() == b""


async def test_an_absurd_length_is_refused(base_url: str, prefix: str) -> None:
    async with connect(base_url) as connection:
        connection.send(put_head(kv(prefix), "Content-Length: 9999999999999999"))
        assert (await connection.receive()).status == 413


async def test_a_chunked_value_is_put_together(base_url: str, prefix: str) -> None:
    async with connect(base_url) as connection:
        connection.send(put_head(kv(prefix), CHUNKED))
        for part in (b"one", b"two" * 1000, b"x"):
            connection.send(b"%x\r\n%b\r\n" % (len(part), part))
            await connection.writer.drain()
        connection.send(b"0\r\n\r\n")
        assert (await connection.receive()).status == 201
    assert (await fetch(base_url, "GET", kv(prefix))).body == b"one" + b"two" * 1000 + b"x"


async def test_a_chunked_value_is_refused_as_soon_as_it_passes_the_limit(
    base_url: str, prefix: str
) -> None:
    async with connect(base_url) as connection:
        connection.send(put_head(kv(prefix), CHUNKED))
        chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
        for _ in range(LIMIT // 0x10000 + 1):
            connection.send(chunk)
        # The body never ends, and the answer comes all the same.
        reply = await connection.receive()
        assert (reply.status, reply.code) == (413, "value_too_large")
    assert (await fetch(base_url, "GET", kv(prefix))).status == 404


async def test_expect_100_continue_is_answered_before_the_body(base_url: str, prefix: str) -> None:
    async with connect(base_url) as connection:
        connection.send(put_head(kv(prefix), "Content-Length: 4", "Expect: 100-Continue"))
        go_on = await connection.receive()
        assert (go_on.status, go_on.headers) == (100, {})
        connection.send(b"four")
        assert (await connection.receive()).status == 201


@pytest.mark.parametrize(
    ("target", "length", "status"),
    [("/v1/kv/{0}", LIMIT + 1, 413), ("/v1/kv/{0}?ack=x", 4, 400), ("/v1/kv/", 4, 400)],
)
async def test_what_is_refused_gets_no_100(
    base_url: str, prefix: str, target: str, length: int, status: int
) -> None:
    async with connect(base_url) as connection:
        head = (target.format(prefix), f"Content-Length: {length}", "Expect: 100-continue")
        connection.send(put_head(*head))
        assert (await connection.receive()).status == status


async def test_another_expectation_is_refused(base_url: str, prefix: str) -> None:
    reply = await fetch(base_url, "PUT", kv(prefix), b"x", {"Expect": "200-ok"})
    assert (reply.status, reply.code) == (417, "expectation_failed")
    assert (await fetch(base_url, "GET", kv(prefix))).status == 404


@pytest.mark.parametrize("encoding", ["gzip", "br", "identity, gzip", "x-own"])
async def test_an_encoded_value_is_refused(base_url: str, prefix: str, encoding: str) -> None:
    reply = await fetch(base_url, "PUT", kv(prefix), b"x", {"Content-Encoding": encoding})
    assert (reply.status, reply.code) == (415, "unsupported_content_encoding")
    assert reply.headers["accept-encoding"] == "identity"
    assert (await fetch(base_url, "GET", kv(prefix))).status == 404


@pytest.mark.parametrize("coding", ["gzip, chunked", "deflate,chunked", "identity, chunked"])
async def test_a_body_in_another_transfer_coding_is_refused(
    base_url: str, prefix: str, coding: str
) -> None:
    async with connect(base_url) as connection:
        connection.send(
            f"PUT {kv(prefix)} HTTP/1.1\r\nHost: localhost\r\n"
            f"Transfer-Encoding: {coding}\r\n\r\n3\r\nabc\r\n0\r\n\r\n".encode()
        )
        reply = await connection.receive()
    assert (reply.status, reply.code) == (415, "unsupported_content_encoding")
    assert (await fetch(base_url, "GET", kv(prefix))).status == 404


async def test_identity_is_no_encoding(base_url: str, prefix: str) -> None:
    reply = await fetch(base_url, "PUT", kv(prefix), b"x", {"Content-Encoding": "identity"})
    assert reply.status == 201


async def test_a_part_of_a_value_is_refused(base_url: str, prefix: str) -> None:
    await fetch(base_url, "PUT", kv(prefix), b"whole")
    reply = await fetch(base_url, "PUT", kv(prefix), b"p", {"Content-Range": "bytes 0-0/5"})
    assert (reply.status, reply.code) == (400, "invalid_header")
    assert (await fetch(base_url, "GET", kv(prefix))).body == b"whole"


@pytest.mark.parametrize("framing", ["Content-Length: 10", CHUNKED])
async def test_half_a_request_and_a_closed_socket_apply_nothing(
    base_url: str, prefix: str, framing: str
) -> None:
    part = b"4\r\nhalf\r\n" if "chunked" in framing else b"half"
    async with connect(base_url) as connection:
        connection.send(put_head(kv(prefix), framing))
        connection.send(part)
        await connection.writer.drain()
    assert (await fetch(base_url, "GET", kv(prefix))).status == 404


async def test_half_a_head_and_a_closed_socket_harm_nothing(base_url: str) -> None:
    async with connect(base_url) as connection:
        connection.send(b"PUT /v1/kv/a HTTP/1.1\r\nContent-Le")
        await connection.writer.drain()
    assert (await fetch(base_url, "GET", "/livez")).status == 200


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"garbage\r\n\r\n",
        b"BREW /v1/kv/a HTTP/1.1\r\nHost: t\r\n\r\n",
        b"GET /v1/kv/a HTTP/9.9\r\nHost: t\r\n\r\n",
        b"GET /v1/kv/a HTTP/1.1\r\nHost t\r\n\r\n",
        b"GET /v1/kv/a HTTP/1.1\r\n: t\r\n\r\n",
        b"GET /v1/kv/a HTTP/1.1\r\nHost: t\r\nA: \x00\r\n\r\n",
        b"PUT /v1/kv/a HTTP/1.1\r\nHost: t\r\nContent-Length: x\r\n\r\n",
        b"PUT /v1/kv/a HTTP/1.1\r\nHost: t\r\nContent-Length: -1\r\n\r\n",
        b"PUT /v1/kv/a HTTP/1.1\r\nHost: t\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        put_head("/v1/kv/a", "Content-Length: 1", CHUNKED),
        put_head("/v1/kv/a", CHUNKED) + b"zz\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # a TLS greeting
        b"GET example.com HTTP/1.1\r\nHost: t\r\n\r\n",
        b"GET * HTTP/1.1\r\nHost: t\r\n\r\n",
        b"GET /v1/kv/a#b HTTP/1.1\r\nHost: t\r\n\r\n",
    ],
)
async def test_garbage_gets_a_problem(base_url: str, request_bytes: bytes) -> None:
    async with connect(base_url) as connection:
        connection.send(request_bytes)
        reply = await connection.receive()
        assert (reply.status, reply.code) == (400, "malformed_request")
        assert reply.headers["onecopy-node"]
    assert (await fetch(base_url, "GET", "/livez")).status == 200


@pytest.mark.parametrize(
    "head",
    [
        "GET /v1/kv/{0} HTTP/1.1\r\nHost: t\r\n\r\n",
        "GET /v1/kv/a HTTP/1.1\r\nHost: t\r\nX: {0}\r\n\r\n",
    ],
)
async def test_an_endless_line_is_refused(base_url: str, head: str) -> None:
    async with connect(base_url) as connection:
        connection.send(head.format("x" * 9000).encode())
        reply = await connection.receive()
        assert (reply.status, reply.code) == (431, "head_too_large")
        assert await connection.receive_end() == b""


async def test_a_body_that_nobody_reads_does_not_confuse_the_next_request(base_url: str) -> None:
    async with connect(base_url) as connection:
        connection.send_request("PUT", "/nowhere", b"GET /livez HTTP/1.1\r\n\r\n" * 100)
        connection.send_request("GET", "/livez")
        assert (await connection.receive()).status == 404
        assert (await connection.receive()).status == 200
        connection.writer.write_eof()
        assert await connection.receive_end() == b""


async def test_an_upgrade_that_is_not_known_is_ignored(base_url: str) -> None:
    async with connect(base_url) as connection:
        connection.send_request(
            "GET", "/livez", headers={"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c"}
        )
        assert (await connection.receive()).status == 200


async def test_many_clients_at_once(base_url: str, prefix: str) -> None:
    async def client(number: int) -> None:
        async with connect(base_url) as connection:
            for turn in range(20):
                connection.send_request("PUT", kv(f"{prefix}{number}"), b"%d" % turn)
                assert (await connection.receive()).status in {200, 201}

    await asyncio.gather(*(client(number) for number in range(50)))
    reply = await fetch(base_url, "GET", f"/v1/kv?prefix={prefix}&limit=1000")
    assert len(reply.json["items"]) == 50
