"""Request lines are read once, and what is kept of them is bounded."""

from __future__ import annotations

import pytest
from multidict import CIMultiDict, CIMultiDictProxy

from cluster.api import plain_line
from cluster.api.fast_keys import plain_lines
from cluster.api.kv import KvHandlers
from cluster.api.plain_line import PlainLines
from cluster.api.settings import HttpSettings
from datapath.operations import Principal
from tests.support.local_node import local_node


@pytest.fixture
def kv() -> KvHandlers:
    return KvHandlers(local_node(), HttpSettings())


@pytest.fixture
def lines(kv: KvHandlers) -> PlainLines:
    return plain_lines(kv)


def test_the_same_line_is_read_once(lines: PlainLines) -> None:
    line = b"GET /v1/kv/a%2Fb?consistency=stale&timeout_ms=7 HTTP/1.1"
    known = lines[line]
    assert known is not None
    assert known is lines[bytes(bytearray(line))]
    assert (known.method, known.target) == ("GET", "/v1/kv/a%2Fb?consistency=stale&timeout_ms=7")
    assert known.read is not None
    assert known.read.query.args == (b"a/b",)
    assert known.read.query.consistency == "stale"
    assert known.read.query.caller is None
    assert known.read.timeout_ms == 7


def test_a_read_for_a_caller_is_another_one(kv: KvHandlers, lines: PlainLines) -> None:
    known = lines[b"GET /v1/kv/a?consistency=stale&max_staleness_ms=5 HTTP/1.1"]
    assert known is not None
    assert known.read is not None
    read = kv.read_for(known.read, no_headers(), Principal("t", b"d"))
    assert read.query == type(read.query)("get", (b"a",), "stale", 5, "", Principal("t", b"d"))
    assert known.read.caller is None


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"HEAD /v1/kv/a HTTP/1.1",
        b"GET /v1/kv/a HTTP/1.0",
        b"GET /v1/kv/a HTTP/1.1 ",
        b"GET /v1/kv/ HTTP/1.1",
        b"GET /v1/kv/%zz HTTP/1.1",
        b"GET /v1/kv/" + b"k" * 481 + b" HTTP/1.1",
        b"GET /v1/kv/a?bogus=1 HTTP/1.1",
        b"GET /v1/kv/a?after=1 HTTP/1.1",
        b"PUT /v1/kv/a?ack=local&min_copies=2 HTTP/1.1",
        b"DELETE /v1/kv/a?ttl_ms=1000 HTTP/1.1",
    ],
)
def test_others_are_the_full_paths(lines: PlainLines, line: bytes) -> None:
    assert lines[line] is None
    assert not lines


def test_a_long_line_is_not_kept(lines: PlainLines) -> None:
    line = b"GET /v1/kv/" + b"k" * 400 + b" HTTP/1.1"
    assert lines[line] is not None
    assert not lines


def test_what_is_kept_is_bounded(lines: PlainLines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_line, "_MAX_LINES", 10)
    for number in range(100):
        assert lines[b"PUT /v1/kv/%d HTTP/1.1" % number] is not None
        assert len(lines) <= 10


def no_headers() -> CIMultiDictProxy[str]:
    return CIMultiDictProxy(CIMultiDict())
