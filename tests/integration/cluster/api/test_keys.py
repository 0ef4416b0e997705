"""PUT, GET, HEAD and DELETE of a key: answers, headers, and what a key may be."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from tests.support.raw_http import Reply, connect, fetch, kv


def assert_identified(reply: Reply) -> None:
    assert reply.headers["onecopy-node"]
    assert int(reply.headers["onecopy-epoch"]) >= 1
    assert reply.headers["date"].endswith(" GMT")


async def test_put_creates_then_replaces(base_url: str, prefix: str) -> None:
    created = await fetch(base_url, "PUT", kv(prefix), b"one")
    assert created.status == 201
    assert set(created.json) == {"revision", "epoch", "copies"}
    assert created.headers["etag"] == f'"{created.json["revision"]}"'
    assert created.headers["content-type"] == "application/json"
    assert_identified(created)

    replaced = await fetch(base_url, "PUT", kv(prefix), b"two")
    assert replaced.status == 200
    assert replaced.json["revision"] > created.json["revision"]
    assert (await fetch(base_url, "GET", kv(prefix))).body == b"two"


async def test_get_gives_the_bytes_and_the_etag(base_url: str, prefix: str) -> None:
    value = bytes(range(256))
    written = await fetch(base_url, "PUT", kv(prefix), value)
    reply = await fetch(base_url, "GET", kv(prefix))
    assert (reply.status, reply.body) == (200, value)
    assert reply.headers["etag"] == written.headers["etag"]
    assert reply.headers["content-type"] == "application/octet-stream"
    assert reply.headers["cache-control"] == "no-cache"
    assert_identified(reply)


async def test_head_is_get_without_the_body(base_url: str, prefix: str) -> None:
    await fetch(base_url, "PUT", kv(prefix), b"four")
    async with connect(base_url) as connection:
        connection.send_request("HEAD", kv(prefix))
        head = await connection.receive(head_only=True)
        assert (head.status, head.headers["content-length"]) == (200, "4")
        connection.send_request("GET", kv(prefix))  # a body after HEAD would be read as this answer
        assert (await connection.receive()).body == b"four"


async def test_a_missing_key_is_a_problem(base_url: str, prefix: str) -> None:
    reply = await fetch(base_url, "GET", kv(prefix))
    assert (reply.status, reply.code) == (404, "key_not_found")
    assert "outcome" not in reply.json  # reads have none
    assert_identified(reply)


async def test_an_empty_value_is_a_value(base_url: str, prefix: str) -> None:
    assert (await fetch(base_url, "PUT", kv(prefix), b"")).status == 201
    reply = await fetch(base_url, "GET", kv(prefix))
    assert (reply.status, reply.body) == (200, b"")
    assert (await fetch(base_url, "PUT", kv(prefix), None)).status == 200  # no Content-Length


async def test_delete_says_whether_it_was_there(base_url: str, prefix: str) -> None:
    written = await fetch(base_url, "PUT", kv(prefix), b"x")
    removed = await fetch(base_url, "DELETE", kv(prefix))
    assert removed.status == 200
    assert removed.json["deleted"] is True
    assert removed.json["revision"] > written.json["revision"]
    assert_identified(removed)
    again = await fetch(base_url, "DELETE", kv(prefix))
    assert (again.status, again.json["deleted"]) == (200, False)
    assert (await fetch(base_url, "GET", kv(prefix))).status == 404


async def test_deleting_nothing_writes_nothing(base_url: str, prefix: str) -> None:
    before = await fetch(base_url, "PUT", kv(prefix + "a"), b"x")
    await fetch(base_url, "DELETE", kv(prefix + "b"))
    after = await fetch(base_url, "PUT", kv(prefix + "c"), b"x")
    assert after.json["revision"] == before.json["revision"] + 1


@pytest.mark.parametrize(
    "key",
    ["a/b", "/", "a//b", "naïve ☃ 語", "%", "+", "a?b#c", "a\x00b", "\n", ".", "..", "k" * 480],
    ids=ascii,
)
async def test_any_text_is_a_key(base_url: str, prefix: str, key: str) -> None:
    key = key if len(key) == 480 else prefix + key
    assert (await fetch(base_url, "PUT", kv(key), key.encode())).status in {200, 201}
    assert (await fetch(base_url, "GET", kv(key))).body == key.encode()
    query = f"/v1/kv?start={quote(key, safe='')}&limit=1&keys_only=true"
    assert (await fetch(base_url, "GET", query)).json["items"][0]["key"] == key


async def test_a_slash_is_the_same_plain_and_escaped(base_url: str, prefix: str) -> None:
    await fetch(base_url, "PUT", f"/v1/kv/{prefix}a%2Fb/c", b"x")
    assert (await fetch(base_url, "GET", f"/v1/kv/{prefix}a/b%2fc")).body == b"x"


async def test_a_plus_in_a_path_is_a_plus(base_url: str, prefix: str) -> None:
    await fetch(base_url, "PUT", f"/v1/kv/{prefix}a+b", b"x")
    assert (await fetch(base_url, "GET", kv(f"{prefix}a+b"))).body == b"x"


@pytest.mark.parametrize(
    ("raw_key", "code"),
    [
        ("", "invalid_key"),
        ("%", "invalid_key"),
        ("%4", "invalid_key"),
        ("%zz", "invalid_key"),
        ("%ff", "invalid_key"),
        ("%c3", "invalid_key"),
        ("%ed%a0%80", "invalid_key"),  # a surrogate
        ("%c0%af", "invalid_key"),  # an overlong slash
        ("k" * 481, "key_too_long"),
        ("%e2%98%83" * 161, "key_too_long"),  # 483 bytes
    ],
)
@pytest.mark.parametrize("method", ["PUT", "GET", "DELETE"])
async def test_what_is_no_key(base_url: str, method: str, raw_key: str, code: str) -> None:
    reply = await fetch(base_url, method, f"/v1/kv/{raw_key}", b"x" if method == "PUT" else None)
    assert (reply.status, reply.code) == (400, code)
    if method != "GET":
        assert reply.json["outcome"] == "not_applied"
    assert_identified(reply)


@pytest.mark.parametrize("raw_key", [b"\xff\xfe", "naïve".encode(), b"a b", b"a\x00b"])
async def test_bytes_that_should_have_been_escaped_are_refused(
    base_url: str, raw_key: bytes
) -> None:
    async with connect(base_url) as connection:
        connection.send(b"GET /v1/kv/%b HTTP/1.1\r\nHost: test\r\n\r\n" % raw_key)
        reply = await connection.receive()
        assert (reply.status, reply.code) == (400, "malformed_request")
        assert_identified(reply)


@pytest.mark.parametrize(
    ("method", "target", "allowed"),
    [
        ("POST", "/v1/kv/a", "PUT, GET, HEAD, DELETE"),
        ("OPTIONS", "/v1/kv/a", "PUT, GET, HEAD, DELETE"),
        ("PUT", "/v1/kv", "GET, HEAD, DELETE"),
        ("GET", "/v1/txn", "POST"),
        ("DELETE", "/v1/cluster", "GET, HEAD"),
        ("GET", "/v1/cluster/handover", "POST"),
        ("GET", "/v1/cluster/nodes/n3", "DELETE, PATCH"),
        ("POST", "/livez", "GET, HEAD"),
    ],
)
async def test_another_method_gets_405(
    base_url: str, method: str, target: str, allowed: str
) -> None:
    reply = await fetch(base_url, method, target)
    assert (reply.status, reply.code) == (405, "method_not_allowed")
    assert reply.headers["allow"] == allowed


@pytest.mark.parametrize("target", ["/", "/v1", "/v2/kv/a", "/v1/kvx", "/V1/kv/a", "/livez/"])
async def test_another_path_gets_404(base_url: str, target: str) -> None:
    reply = await fetch(base_url, "GET", target)
    assert (reply.status, reply.code) == (404, "not_found")


async def test_absolute_targets_are_understood(base_url: str, prefix: str) -> None:
    await fetch(base_url, "PUT", f"http://any.example{kv(prefix)}", b"x")
    assert (await fetch(base_url, "GET", kv(prefix))).body == b"x"


async def test_http_1_0_gets_its_answer_and_the_end(base_url: str, prefix: str) -> None:
    await fetch(base_url, "PUT", kv(prefix), b"x")
    async with connect(base_url) as connection:
        connection.send(f"GET {kv(prefix)} HTTP/1.0\r\n\r\n".encode())
        reply = await connection.receive()
        assert (reply.status, reply.body) == (200, b"x")
        assert reply.headers["connection"] == "close"
        assert await connection.receive_end() == b""


async def test_connection_close_is_honoured(base_url: str) -> None:
    async with connect(base_url) as connection:
        connection.send_request("GET", "/livez", headers={"Connection": "close"})
        assert (await connection.receive()).headers["connection"] == "close"
        assert await connection.receive_end() == b""


async def test_pipelined_requests_are_answered_in_order(base_url: str, prefix: str) -> None:
    async with connect(base_url) as connection:
        for number in range(100):
            connection.send_request("PUT", kv(prefix), b"%d" % number)
            connection.send_request("GET", kv(prefix))
        for number in range(100):
            assert (await connection.receive()).status == (200 if number else 201)
            assert (await connection.receive()).body == b"%d" % number
