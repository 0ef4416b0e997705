"""The fast path of etcd's gateway and the full one give the same answers, whatever comes."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
import uvloop

from cluster.api.hosts import Hosts
from cluster.api.settings import HttpSettings
from cluster.etcd.server import EtcdApi
from tests.support.etcd_requests import Draws, b64
from tests.support.local_node import LocalNode, local_node
from tests.support.raw_http import connect

PUT, RANGE = "/v3/kv/put", "/v3/kv/range"
PLAIN_BODIES: list[tuple[str, Any]] = [
    (PUT, {"key": b64(b"a"), "value": b64(b"1")}),
    (PUT, {"value": b64(b"2"), "key": b64(b"a")}),
    (PUT, {"key": b64(b"a")}),
    (PUT, {"key": b64(b"a"), "prev_kv": False, "lease": "0", "unknown": [1]}),
    (PUT, {"key": b64(b"a"), "value": b64(b"3"), "lease": 404}),
    (PUT, '{"key":"YQ==","value":"Mw=="}'),
    (PUT, '{"key": "YQ", "value": "M_-"}'),
    (PUT, '{"key": "YR==", "value": "MR=="}'),
    (RANGE, {"key": b64(b"a")}),
    (RANGE, '{"key":"YR=="}'),
    (RANGE, '{"key": "YQ"}'),
    (RANGE, {"key": b64(b"a"), "value": "MQ=="}),
    (RANGE, {"key": b64(b"a"), "serializable": True, "keys_only": True}),
    (RANGE, {"key": b64(b"a"), "count_only": True}),
    (RANGE, {"key": b64(b"a"), "revision": 1}),
    (RANGE, {"key": b64(b"a"), "revision": 10**6}),
    (RANGE, {"key": b64(b"a"), "min_mod_revision": 10**6}),
    (RANGE, {"key": b64(b"none"), "limit": 1}),
    (RANGE, {"key": b64(b"a"), "range_end": b64(b"a\0")}),
    ("/v3beta/kv/range", {"key": b64(b"a")}),
]
OTHER_BODIES: list[tuple[str, Any]] = [
    (PUT, {"key": ""}),
    (PUT, {"key": b64(b"k" * 481)}),
    (PUT, {"key": b64(b"a"), "prev_kv": True}),
    (PUT, {"key": b64(b"b"), "ignore_value": True}),
    (PUT, '{"key": "YQ==", "key": "Yg=="}'),
    (PUT, '{"key": "YQ=="'),
    (PUT, '{"key": "YQ==", "value": "MQ==="}'),
    (RANGE, '{"key": "Y"}'),
    (PUT, b"\xff"),
    (PUT, ""),
    (PUT + "?x=1", {"key": b64(b"a")}),
    (RANGE, {"key": b64(b"a"), "range_end": b64(b"b")}),
    (RANGE, {"key": b64(b"a"), "sort_order": 9}),
    ("/v3/kv/deleterange", {"key": b64(b"a")}),
    ("/v1/kv/a", "x"),
    ("/v3/nothing", {}),
]


def _request(path: str, body: Any, line: str = "", method: str = "POST") -> bytes:
    data = body if isinstance(body, bytes) else body if isinstance(body, str) else json.dumps(body)
    raw = data if isinstance(data, bytes) else data.encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: test\r\nContent-Length: {len(raw)}\r\n{line}\r\n"
    return head.encode() + raw


async def _answers(node: LocalNode, said: list[bytes], *, fast: bool) -> list[Any]:
    settings = HttpSettings(max_value_size_bytes=1000, fast_path=fast)
    api = EtcdApi(node, settings, Hosts(["test"]), {}, guard=node.guard)
    refused: list[tuple[int, str, str]] = []

    def on_refused(answer: Any, method: str, target: str, _caller: Any, _transport: Any) -> None:
        refused.append((answer.status, method, target))

    api.on_refused = on_refused
    await api.listener.start("127.0.0.1", 0)
    try:
        heard: list[Any] = []
        async with connect(f"http://127.0.0.1:{api.listener.port}") as connection:
            for request in said:
                connection.send(request)
                try:
                    reply = await connection.receive()
                except (asyncio.IncompleteReadError, ConnectionError):
                    heard.append("closed")
                    break
                headers = {k: v for k, v in reply.headers.items() if k != "date"}
                heard.append((reply.status, headers, reply.body))
            is_fast = bool(api._server._fast)
        return [heard, refused, node.store.values, api.numbers(), is_fast]
    finally:
        await api.listener.stop()


def compare(said: list[bytes], *, stays: bool | None = None) -> None:
    """Say the same on both paths; `stays`: whether the fast one serves all of it."""

    async def run() -> None:
        told = [
            await _answers(local_node(can_submit=can_submit), said, fast=fast)
            for can_submit, fast in ((True, True), (False, True), (False, False))
        ]
        is_fast = [each.pop() for each in told]
        assert told[0] == told[1] == told[2]
        assert stays is None or is_fast == [stays, stays, False]

    uvloop.run(run())


def test_what_is_plain_is_served_on_the_fast_path() -> None:
    compare([_request(path, body) for path, body in PLAIN_BODIES], stays=True)


@pytest.mark.parametrize(("path", "body"), OTHER_BODIES, ids=repr)
def test_all_else_goes_the_full_path(path: str, body: Any) -> None:
    said = [
        _request(PUT, PLAIN_BODIES[0][1]),
        _request(path, body),
        _request(RANGE, {"key": "YQ=="}),
    ]
    compare(said, stays=False)


@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_other_methods_go_the_full_path(method: str) -> None:
    compare([_request(PUT, {"key": "YQ=="}, method=method)], stays=False)


@pytest.mark.parametrize(
    "line",
    [
        "Origin: http://evil.example\r\n",
        "Expect: 100-foo\r\n",
        "Host: other\r\n",
        "Authorization: x\r\n",
    ],
)
def test_heads_with_more_in_them(line: str) -> None:
    compare([_request(PUT, {"key": "YQ=="}, line), _request(RANGE, {"key": "YQ=="})])


@pytest.mark.parametrize("seed", range(5))
def test_generated_requests(seed: int) -> None:
    draws = Draws(seed)
    known: dict[str, Any] = {}
    drawn = [draws.request() for _ in range(150)]
    said = [_request(each.path, each.make(known)) for each in drawn if each.path in {PUT, RANGE}]
    assert len(said) > 20
    # Each on a connection of its own would be served on the fast path wherever it can be.
    for request in said:
        compare([_request(PUT, PLAIN_BODIES[0][1]), request])
