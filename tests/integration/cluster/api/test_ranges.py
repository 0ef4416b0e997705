"""Ranges: bounds, order, pages, and the cursors between them."""

from __future__ import annotations

import base64
import zlib
from urllib.parse import quote, urlencode

import msgspec
import pytest

from cluster.api.documents import Range
from tests.support.raw_http import Reply, fetch, kv

KEYS = ["a", "ab", "b", "b/c", "c", "é", "☃"]


@pytest.fixture
async def filled(base_url: str, prefix: str) -> str:
    """Put a value under each of KEYS, after the prefix; neighbours outside of it too."""
    for key in [prefix + key for key in KEYS] + [prefix[:-1] + "!", prefix[:-1] + "~"]:
        await fetch(base_url, "PUT", kv(key), key.encode())
    return prefix


async def read(base_url: str, **params: object) -> Reply:
    reply = await fetch(base_url, "GET", f"/v1/kv?{urlencode(params)}")
    assert reply.status == 200, reply
    return reply


def keys_of(reply: Reply, prefix: str) -> list[str]:
    return [item["key"].removeprefix(prefix) for item in reply.json["items"]]


async def test_a_prefix_gives_its_keys_in_the_order_of_their_bytes(
    base_url: str, filled: str
) -> None:
    reply = await read(base_url, prefix=filled)
    assert keys_of(reply, filled) == KEYS
    assert reply.json["cursor"] is None
    assert reply.headers["cache-control"] == "no-cache"
    for item in reply.json["items"]:
        one = await fetch(base_url, "GET", kv(item["key"]))
        assert base64.b64decode(item["value"]) == one.body
        assert one.headers["etag"] == f'"{item["revision"]}"'
        assert item["revision"] <= reply.json["revision"]


MSGPACK = {"Accept": "application/msgpack"}


@pytest.mark.parametrize("more", ["", "&keys_only=true", "&limit=2"])
async def test_messagepack_says_what_json_says(base_url: str, filled: str, more: str) -> None:
    await fetch(base_url, "PUT", kv(filled + "bytes"), b"\xff" * 70_000)
    await fetch(base_url, "PUT", kv(filled + "leased?ttl_ms=60000"), b"")
    target = f"/v1/kv?prefix={quote(filled)}{more}"
    text = await fetch(base_url, "GET", target)
    binary = await fetch(base_url, "GET", target, None, MSGPACK)
    assert binary.status == 200
    assert text.headers["content-type"] == "application/json"
    assert binary.headers["content-type"] == "application/msgpack"
    assert int(binary.headers["content-length"]) == len(binary.body)
    assert msgspec.msgpack.decode(binary.body, type=Range) == msgspec.json.decode(
        text.body, type=Range
    )


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("Application/MsgPack", "application/msgpack"),
        ("application/msgpack, application/json", "application/msgpack"),
        ("application/msgpack;q=0.5, */*;q=0.1", "application/msgpack"),
        ("application/msgpack;q=0.5, application/json", "application/json"),
        ("application/msgpack;q=0", "application/json"),
        ("application/msgpack;q=two", "application/json"),
        ("application/msgpackage", "application/json"),
        ("*/*", "application/json"),
        ("application/cbor", "application/json"),
    ],
)
async def test_the_form_is_what_accept_prefers(
    base_url: str, filled: str, accept: str, expected: str
) -> None:
    reply = await fetch(base_url, "GET", f"/v1/kv?prefix={filled}", None, {"Accept": accept})
    assert (reply.status, reply.headers["content-type"]) == (200, expected)


async def test_errors_are_json_for_those_who_accept_messagepack(base_url: str) -> None:
    reply = await fetch(base_url, "GET", "/v1/kv?limit=0", None, MSGPACK)
    assert (reply.status, reply.headers["content-type"]) == (400, "application/problem+json")


async def test_keys_only_leaves_the_values_out(base_url: str, filled: str) -> None:
    reply = await read(base_url, prefix=filled, keys_only="true")
    assert [set(item) for item in reply.json["items"]] == [
        {"key", "revision", "create_revision", "version"}
    ] * len(KEYS)
    with_values = await read(base_url, prefix=filled, keys_only="false")
    assert all("value" in item for item in with_values.json["items"])


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        ("b", "c", ["b", "b/c"]),  # start is inside, end is not
        ("ab", "b", ["ab"]),
        ("c", "é", ["c"]),
        ("b", "b", []),
        ("c", "a", []),
    ],
)
async def test_start_and_end(
    base_url: str, filled: str, start: str, end: str, expected: list[str]
) -> None:
    reply = await read(base_url, start=filled + start, end=filled + end)
    assert keys_of(reply, filled) == expected
    with_prefix = await read(base_url, prefix=filled, start=filled + start, end=filled + end)
    assert keys_of(with_prefix, filled) == expected


async def test_a_prefix_and_bounds_intersect(base_url: str, filled: str) -> None:
    assert keys_of(await read(base_url, prefix=filled, start=filled + "c"), filled) == KEYS[4:]
    assert keys_of(await read(base_url, prefix=filled, end=filled + "b"), filled) == KEYS[:2]
    assert keys_of(await read(base_url, prefix=filled + "a", start="", end=""), filled) == KEYS[:2]
    outside = await read(base_url, prefix=filled + "b", start=filled + "c")
    assert outside.json["items"] == []


async def test_a_space_may_be_a_plus_in_a_query(base_url: str, prefix: str) -> None:
    await fetch(base_url, "PUT", kv(prefix + "a b"), b"x")
    reply = await fetch(base_url, "GET", f"/v1/kv?prefix={quote(prefix)}a+b")
    assert keys_of(reply, prefix) == ["a b"]


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 8])
@pytest.mark.parametrize("repeat_bounds", [True, False])
async def test_pages_give_everything_once(
    base_url: str, filled: str, limit: int, repeat_bounds: bool
) -> None:
    bounds = {"prefix": filled}
    reply = await read(base_url, limit=limit, **bounds)
    found = keys_of(reply, filled)
    pages = 1
    while cursor := reply.json["cursor"]:
        assert len(reply.json["items"]) == limit
        more = bounds if repeat_bounds else {}
        reply = await read(base_url, limit=limit, cursor=cursor, **more)
        found += keys_of(reply, filled)
        pages += 1
    assert found == KEYS
    assert pages == -(-len(KEYS) // limit)  # the last page says that it is the last


async def test_the_default_limit_is_100(base_url: str, prefix: str) -> None:
    for number in range(101):
        await fetch(base_url, "PUT", kv(f"{prefix}{number:03}"), b"")
    reply = await read(base_url, prefix=prefix)
    assert len(reply.json["items"]) == 100
    rest = await read(base_url, cursor=reply.json["cursor"])
    assert keys_of(rest, prefix) == ["100"]


async def test_a_page_is_bounded_in_bytes(base_url: str, prefix: str) -> None:
    value = bytes(256 * 1024)
    for number in range(6):
        assert (await fetch(base_url, "PUT", kv(f"{prefix}{number}"), value)).status == 201
    reply = await read(base_url, prefix=prefix, limit=1000)
    assert keys_of(reply, prefix) == ["0", "1", "2", "3"]
    assert [base64.b64decode(item["value"]) for item in reply.json["items"]] == [value] * 4
    rest = await read(base_url, cursor=reply.json["cursor"])
    assert keys_of(rest, prefix) == ["4", "5"]
    assert rest.json["cursor"] is None


def forge(body: object) -> str:
    data = msgspec.msgpack.encode(body)
    checked = zlib.crc32(data).to_bytes(4) + data
    return base64.urlsafe_b64encode(checked).rstrip(b"=").decode()


@pytest.mark.parametrize(
    "cursor",
    [
        "x",
        "!!!!",
        "AAAAAA",
        forge([2, b"a", b"", None]),
        forge([1, b"a", b""]),
        forge([1, "a", b"", None]),
        forge({"next_key": b"a"}),
        forge(7),
        "%00",
        "é",
    ],
)
async def test_a_damaged_cursor_is_refused(base_url: str, cursor: str) -> None:
    reply = await fetch(base_url, "GET", f"/v1/kv?cursor={quote(cursor)}")
    assert (reply.status, reply.code) == (400, "invalid_cursor")


async def test_every_changed_character_of_a_cursor_is_noticed(base_url: str, filled: str) -> None:
    cursor = (await read(base_url, prefix=filled, limit=1)).json["cursor"]
    for place in range(0, len(cursor) - 1, 7):
        changed = cursor[:place] + ("A" if cursor[place] != "A" else "B") + cursor[place + 1 :]
        reply = await fetch(base_url, "GET", f"/v1/kv?cursor={changed}")
        assert (reply.status, reply.code) == (400, "invalid_cursor")


async def test_a_cursor_continues_no_other_range(base_url: str, filled: str) -> None:
    cursor = (await read(base_url, prefix=filled, limit=1)).json["cursor"]
    for other in (f"prefix={filled}a", f"start={filled}", "end=z"):
        reply = await fetch(base_url, "GET", f"/v1/kv?cursor={cursor}&{other}")
        assert (reply.status, reply.code) == (400, "invalid_cursor")


async def test_an_overlong_cursor_is_refused(base_url: str) -> None:
    reply = await fetch(base_url, "GET", f"/v1/kv?cursor={'A' * 4097}")
    assert (reply.status, reply.code) == (400, "invalid_parameter")
