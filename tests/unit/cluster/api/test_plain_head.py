"""The fields that the fast path takes say the same to the full path's parser."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import HttpRequestParser
from hypothesis import example, given
from hypothesis import strategies as st
from multidict import CIMultiDictProxy

from cluster.api.plain_head import HeaderBlock, _parse_block, blocks

NAMES = (
    "Host", "X", "If-Match", "if-none-match", "Idempotency-Key", "Connection", "Content-Length",
    "Upgrade", "TE", "A_b", "Onecopy-Cluster", "Transfer-Encoding", "Expect", "Origin",
)  # fmt: skip
VALUES = ("", "a", "a b", "*", '"1"', "close", "keep-alive", "0", "7", "007", "+7", "é", "a\tb")
ODD = (b"\r", b"\n", b"\0", b":", b" ", b"\t", b"\x7f", b"\xff", b"\r\n", b"\r\n ", b"\n\n")

lists = st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(VALUES)), max_size=4)


def write(pairs: list[tuple[str, str]]) -> bytes:
    return "".join(f"{name}: {value}\r\n" for name, value in [("Host", "h"), *pairs]).encode()


spoilt = st.tuples(lists.map(write), st.integers(0, 80), st.sampled_from(ODD)).map(
    lambda found: found[0][: found[1]] + found[2] + found[0][found[1] :]
)


def read_by_aiohttp(fields: bytes) -> CIMultiDictProxy[str] | None:
    """Return the headers of a whole, plain head with these fields."""
    loop = asyncio.new_event_loop()
    try:
        parser = HttpRequestParser(BaseProtocol(loop), loop, limit=65536)
        messages, _, rest = parser.feed_data(b"PUT /v1/kv/a HTTP/1.1\r\n" + fields + b"\r\n")
    except HttpProcessingError:
        return None
    finally:
        loop.close()
    if len(messages) != 1 or rest:
        return None
    message = messages[0][0]
    return None if message.should_close or message.chunked or message.upgrade else message.headers


@given(st.one_of(lists.map(write), spoilt))
@example(b"Host: h\r\nConnection: upgrade\r\nUpgrade: x\r\n")
@example(b"Host: h\r\nX: 1\nContent-Length: 3\r\n")
@example(b"Host: h\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n")
def test_both_lanes_read_the_same_in_fields(fields: bytes) -> None:
    if not fields.endswith(b"\r\n") or b"\r\n\r\n" in b"\r\n" + fields:
        return  # these are no fields of one head
    block = _parse_block(fields)
    if block is None:
        return
    headers = read_by_aiohttp(fields)
    assert headers is not None
    assert block.host == headers["Host"].strip(" \t")
    assert block.body_size_bytes == int(headers.get("Content-Length", 0))
    for name, value in block.headers.items():
        assert value == headers[name].strip(" \t")
    for name, taken in (("Authorization", block.authorization), ("Onecopy-Cluster", block.cluster)):
        assert taken == (headers[name].strip(" \t") if name in headers else None)
    named = [name for name in headers if name.lower() in {"if-match", "if-none-match",
             "idempotency-key"}]  # fmt: skip
    assert len(block.headers) == len(named)


def test_plain_fields_are_taken() -> None:
    fields = (
        b'host:\tt \r\nX: 1\r\nConnection: Keep-Alive\r\nIF-MATCH: "1"\r\nContent-Length: 03\r\n'
    )
    fields += b"".join(b"X%d: 1\r\n" % number for number in range(123))  # 128 in all
    block = _parse_block(fields)
    assert isinstance(block, HeaderBlock)
    assert (block.host, block.body_size_bytes, dict(block.headers)) == ("t", 3, {"if-match": '"1"'})


@pytest.mark.parametrize(
    "fields",
    [
        b"",
        b"X: 1\r\n",
        b"Host:\r\n",
        b"Host: \xff\r\n",
        b"Host: t\r\nhost: t\r\n",
        b"Host: t\r\nX: \xc3\xa9\r\n",
        b"Host: t\r\nX: a\tb\r\n",
        b"Host: t\r\nX: a\x7fb\r\n",
        b"Host: t\r\n folded\r\n",
        b"Host: t\r\nX : 1\r\n",
        b"Host: t\r\nnocolon\r\n",
        b"Host: t\r\nContent-Length: 1234567\r\n",
        b"Host: t\r\nContent-Length: -1\r\n",
        b"Host: t\r\nContent-Length:\r\n",
        b"Host: t\r\nConnection: close\r\n",
        b"Host: t\r\nConnection: keep-alive, close\r\n",
        b"Host: t\r\nConnection: upgrade\r\nUpgrade: h2c\r\n",
        b"Host: t\r\nExpect: 100-continue\r\n",
        b"Host: t\r\nTransfer-Encoding: chunked\r\n",
        b"Host: t\r\nX: 1\nY: 2\r\n",
        b"Host: t\r\nOnecopy-Cluster: \r\n",
        b"Host: t\r\nOnecopy-Cluster: c\r\nonecopy-cluster: c\r\n",
        b"Host: t\r\nAuthorization: Bearer x\r\nauthorization: Bearer x\r\n",
        b"Host: t\r\n" + b"".join(b"X%d: 1\r\n" % number for number in range(128)),
    ],
)
def test_others_go_the_ordinary_way(fields: bytes) -> None:
    assert _parse_block(fields) is None


@pytest.mark.parametrize(
    "fields",
    [b"", b"Authorization: Bearer oct_1\r\n", b"Onecopy-Cluster: c\r\naUTHORIZATION: x\r\n"],
)
def test_the_same_fields_are_parsed_once(fields: bytes) -> None:
    head = b"Host: h\r\n" + fields
    assert blocks[head] is blocks[bytes(bytearray(head))]


def test_what_differs_from_request_to_request_is_not_kept() -> None:
    head = b'Host: h\r\nIf-Match: "1"\r\n'
    assert blocks[head] is not blocks[head]
