"""Idempotency-Key: a repeat gets the first answer, another request under the key is refused."""

from __future__ import annotations

import uuid

import pytest

from tests.support.raw_http import connect, fetch, kv


def key_header(key: str) -> dict[str, str]:
    return {"Idempotency-Key": key}


async def test_a_repeat_gets_the_first_answer_and_does_nothing(base_url: str, prefix: str) -> None:
    header = key_header(f'"{uuid.uuid4()}"')
    first = await fetch(base_url, "PUT", kv(prefix), b"1", header)
    await fetch(base_url, "PUT", kv(prefix), b"2")
    repeat = await fetch(base_url, "PUT", kv(prefix), b"1", header)
    assert (first.status, repeat.status) == (201, 201)
    assert repeat.json["revision"] == first.json["revision"]
    assert repeat.headers["etag"] == first.headers["etag"]
    assert repeat.headers["idempotent-replayed"] == "true"
    assert "idempotent-replayed" not in first.headers
    assert (await fetch(base_url, "GET", kv(prefix))).body == b"2"


async def test_a_repeated_delete_says_deleted_again(base_url: str, prefix: str) -> None:
    header = key_header(f'"{uuid.uuid4()}"')
    await fetch(base_url, "PUT", kv(prefix), b"1")
    first = await fetch(base_url, "DELETE", kv(prefix), None, header)
    repeat = await fetch(base_url, "DELETE", kv(prefix), None, header)
    assert first.json["deleted"] is True
    assert (repeat.json["deleted"], repeat.json["revision"]) == (True, first.json["revision"])


async def test_a_refusal_is_an_answer_too(base_url: str, prefix: str) -> None:
    header = key_header(f'"{uuid.uuid4()}"') | {"If-Match": "*"}
    assert (await fetch(base_url, "PUT", kv(prefix), b"1", header)).status == 412
    await fetch(base_url, "PUT", kv(prefix), b"2")  # the condition would hold now
    repeat = await fetch(base_url, "PUT", kv(prefix), b"1", header)
    assert (repeat.status, repeat.code) == (412, "precondition_failed")
    assert (await fetch(base_url, "GET", kv(prefix))).body == b"2"


async def test_quoted_and_bare_are_the_same_key(base_url: str, prefix: str) -> None:
    key = str(uuid.uuid4())
    first = await fetch(base_url, "PUT", kv(prefix), b"1", key_header(f'"{key}"'))
    repeat = await fetch(base_url, "PUT", kv(prefix), b"1", key_header(key))
    assert repeat.json["revision"] == first.json["revision"]


async def test_escapes_in_a_quoted_key_are_undone(base_url: str, prefix: str) -> None:
    key = str(uuid.uuid4())
    await fetch(base_url, "PUT", kv(prefix), b"1", key_header(rf'"{key}\\a"'))
    other = await fetch(base_url, "PUT", kv(prefix), b"2", key_header(rf'"{key}\"a"'))
    assert other.status == 200  # another key: not a repeat, not a reuse


@pytest.mark.parametrize(
    ("method", "suffix", "body", "headers"),
    [
        ("PUT", "", b"2", {}),
        ("PUT", "other", b"1", {}),
        ("PUT", "", b"1", {"If-Match": "*"}),
        ("DELETE", "", None, {}),
    ],
    ids=["another value", "another key", "another condition", "another method"],
)
async def test_another_request_under_the_key_is_refused(
    base_url: str,
    prefix: str,
    method: str,
    suffix: str,
    body: bytes | None,
    headers: dict[str, str],
) -> None:
    header = key_header(f'"{uuid.uuid4()}"')
    await fetch(base_url, "PUT", kv(prefix), b"1", header)
    reply = await fetch(base_url, method, kv(prefix + suffix), body, header | headers)
    assert (reply.status, reply.code) == (422, "idempotency_key_reused")
    assert reply.json["outcome"] == "not_applied"
    assert (await fetch(base_url, "GET", kv(prefix))).body == b"1"


@pytest.mark.parametrize(
    "template", ['"{0:k<255}"', "{0:k<255}", '"{0} with a space, and more"', "{0}:/?#[]@!$&'()*+="]
)
async def test_long_and_odd_keys_are_keys(base_url: str, prefix: str, template: str) -> None:
    key = template.format(str(uuid.uuid4()))
    assert (await fetch(base_url, "PUT", kv(prefix), b"1", key_header(key))).status == 201


@pytest.mark.parametrize(
    "key",
    [
        "",
        '""',
        '"open',
        'a"b',
        "a b",
        "a,b",
        "a;b",
        '"a";b=1',
        "k" * 256,
        '"' + "k" * 256 + '"',
        '"é"',
    ],
)
async def test_what_is_no_idempotency_key(base_url: str, prefix: str, key: str) -> None:
    reply = await fetch(base_url, "PUT", kv(prefix), b"1", key_header(key))
    assert (reply.status, reply.code) == (400, "invalid_header")
    assert reply.json["detail"].startswith("Idempotency-Key")
    assert (await fetch(base_url, "GET", kv(prefix))).status == 404


async def test_two_idempotency_keys_are_refused(base_url: str, prefix: str) -> None:
    async with connect(base_url) as connection:
        connection.send(
            f"DELETE {kv(prefix)} HTTP/1.1\r\nHost: test\r\n"
            "Idempotency-Key: a\r\nIdempotency-Key: a\r\n\r\n".encode()
        )
        assert (await connection.receive()).code == "invalid_header"


@pytest.mark.parametrize("after", ["x", "-1", "1.5", '"7"', "", "1, 2"])
async def test_what_is_no_revision_in_idempotency_after(
    base_url: str, prefix: str, after: str
) -> None:
    header = key_header(str(uuid.uuid4())) | {"Idempotency-After": after}
    reply = await fetch(base_url, "PUT", kv(prefix), b"1", header)
    assert (reply.status, reply.code) == (400, "invalid_header")
    assert reply.json["detail"].startswith("Idempotency-After")


async def test_answers_name_the_revision_to_be_sent_after(base_url: str, prefix: str) -> None:
    put = await fetch(base_url, "PUT", kv(prefix), b"1")
    assert put.headers["onecopy-revision"] == str(put.json["revision"])
    get = await fetch(base_url, "GET", kv(prefix))
    assert int(get.headers["onecopy-revision"]) >= put.json["revision"]
    page = await fetch(base_url, "GET", f"/v1/kv?prefix={prefix}")
    assert page.headers["onecopy-revision"] == str(page.json["revision"])
    local = await fetch(base_url, "PUT", f"{kv(prefix)}?ack=local", b"2")
    assert "onecopy-revision" not in local.headers
    header = key_header(str(uuid.uuid4())) | {"Idempotency-After": get.headers["onecopy-revision"]}
    first = await fetch(base_url, "PUT", kv(prefix), b"3", header)
    again = await fetch(base_url, "PUT", kv(prefix), b"3", header)
    assert again.json["revision"] == first.json["revision"]
