"""If-Match and If-None-Match (RFC 9110, section 13), on writes and reads."""

from __future__ import annotations

import pytest

from tests.support.raw_http import fetch, kv


async def put(base_url: str, key: str) -> int:
    return int((await fetch(base_url, "PUT", kv(key), b"x")).json["revision"])


async def test_if_match_writes_only_at_that_revision(base_url: str, prefix: str) -> None:
    revision = await put(base_url, prefix)
    first = await fetch(base_url, "PUT", kv(prefix), b"1", {"If-Match": f'"{revision}"'})
    assert first.status == 200
    second = await fetch(base_url, "PUT", kv(prefix), b"2", {"If-Match": f'"{revision}"'})
    assert (second.status, second.code) == (412, "precondition_failed")
    assert second.json["outcome"] == "not_applied"
    assert first.headers["etag"] in second.json["detail"]  # names what there is
    assert (await fetch(base_url, "GET", kv(prefix))).body == b"1"


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
@pytest.mark.parametrize(
    ("template", "status"),
    [
        ('"{0}"', 200),
        ("*", 200),
        ('"1999999999", "{0}"', 200),
        ('"1999999999" ,"{0}"', 200),
        ('"1999999999"', 412),
        ('"1999999999", "1999999998"', 412),
        ('W/"{0}"', 412),  # a weak tag never matches strongly
        ('"abc"', 412),  # a tag, but none of ours
        ('""', 412),
    ],
)
async def test_if_match_on_a_key_that_exists(
    base_url: str, prefix: str, method: str, template: str, status: int
) -> None:
    revision = await put(base_url, prefix)
    condition = {"If-Match": template.format(revision)}
    reply = await fetch(base_url, method, kv(prefix), b"y" if method == "PUT" else None, condition)
    assert reply.status == status
    if status == 412:
        assert (await fetch(base_url, "GET", kv(prefix))).body == b"x"


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
@pytest.mark.parametrize("tags", ["*", '"1"'])
async def test_if_match_fails_on_a_missing_key(
    base_url: str, prefix: str, method: str, tags: str
) -> None:
    reply = await fetch(base_url, method, kv(prefix), None, {"If-Match": tags})
    assert (reply.status, reply.code) == (412, "precondition_failed")
    assert (await fetch(base_url, "GET", kv(prefix))).status == 404


async def test_if_none_match_star_creates_once(base_url: str, prefix: str) -> None:
    condition = {"If-None-Match": "*"}
    assert (await fetch(base_url, "PUT", kv(prefix), b"1", condition)).status == 201
    reply = await fetch(base_url, "PUT", kv(prefix), b"2", condition)
    assert (reply.status, reply.code) == (412, "precondition_failed")
    assert (await fetch(base_url, "GET", kv(prefix))).body == b"1"


@pytest.mark.parametrize("name", ["If-Match", "If-None-Match"])
@pytest.mark.parametrize(
    "value", ["42", "", '"42', '42"', "'42'", 'w/"42"', '"a" "b"', '*, "4"', '"4",,x', '"a b"']
)
@pytest.mark.parametrize("method", ["PUT", "GET"])
async def test_a_malformed_condition_is_refused(
    base_url: str, prefix: str, name: str, value: str, method: str
) -> None:
    revision = await put(base_url, prefix)
    reply = await fetch(
        base_url, method, kv(prefix), b"y" if method == "PUT" else None, {name: value}
    )
    assert (reply.status, reply.code) == (400, "invalid_header")
    assert reply.json["detail"].startswith(name)
    assert (await fetch(base_url, "GET", kv(prefix))).headers["etag"] == f'"{revision}"'


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        ("PUT", {"If-None-Match": '"42"'}),
        ("PUT", {"If-None-Match": "*", "If-Match": '"42"'}),
        ("DELETE", {"If-None-Match": "*"}),
    ],
)
async def test_conditions_without_meaning_are_refused(
    base_url: str, prefix: str, method: str, headers: dict[str, str]
) -> None:
    reply = await fetch(base_url, method, kv(prefix), b"" if method == "PUT" else None, headers)
    assert (reply.status, reply.code) == (400, "invalid_header")
    assert reply.json["detail"].startswith("If-None-Match")


@pytest.mark.parametrize("template", ['"{0}"', 'W/"{0}"', '"7777777", "{0}"', "*"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_reader_that_has_it_gets_304(
    base_url: str, prefix: str, template: str, method: str
) -> None:
    revision = await put(base_url, prefix)
    condition = {"If-None-Match": template.format(revision)}
    reply = await fetch(base_url, method, kv(prefix), None, condition)
    assert (reply.status, reply.body) == (304, b"")
    assert reply.headers["etag"] == f'"{revision}"'
    assert "content-length" not in reply.headers
    assert reply.headers["onecopy-node"]


async def test_a_reader_that_has_another_gets_200(base_url: str, prefix: str) -> None:
    await put(base_url, prefix)
    reply = await fetch(base_url, "GET", kv(prefix), None, {"If-None-Match": '"7777777", "abc"'})
    assert (reply.status, reply.body) == (200, b"x")
    missing = await fetch(base_url, "GET", kv(prefix + "no"), None, {"If-None-Match": "*"})
    assert missing.status == 404


async def test_if_match_on_a_read(base_url: str, prefix: str) -> None:
    revision = await put(base_url, prefix)
    assert (
        await fetch(base_url, "GET", kv(prefix), None, {"If-Match": f'"{revision}"'})
    ).status == 200
    assert (await fetch(base_url, "GET", kv(prefix), None, {"If-Match": "*"})).status == 200
    reply = await fetch(base_url, "GET", kv(prefix), None, {"If-Match": f'W/"{revision}"'})
    assert (reply.status, reply.code) == (412, "precondition_failed")
