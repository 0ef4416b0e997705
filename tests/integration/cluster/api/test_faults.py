"""What the node's failures look like from outside, and that clients who leave break nothing."""

from __future__ import annotations

import asyncio
import logging

import pytest

from cluster.api.routes import HttpApi
from cluster.api.settings import HttpSettings
from datapath.complaints import MAX_LINES_PER_INTERVAL
from datapath.errors import (
    NotPrimaryError,
    OperationError,
    OperationNotAppliedError,
    OperationUnknownError,
    OverloadedError,
    PrimaryFullError,
    RejectedError,
    SafetyError,
)
from tests.support.raw_http import connect, fetch
from tests.support.served import Local, Serve

ERRORS = [
    (RejectedError("precondition_failed", "d"), 412, "not_applied"),
    (RejectedError("idempotency_key_reused", "d"), 422, "not_applied"),
    (RejectedError("a_service_says_no", "d"), 409, "not_applied"),
    (NotPrimaryError("no_primary", "d"), 503, "not_applied"),
    (NotPrimaryError("stepping_down", "d", "n2"), 503, "not_applied"),
    (PrimaryFullError("storage_full", "d"), 507, "not_applied"),
    (PrimaryFullError("no_room", "d"), 507, "not_applied"),
    (OverloadedError("overloaded", "d"), 503, "not_applied"),
    (OperationNotAppliedError("not_enough_copies", "d"), 503, "not_applied"),
    # The outcome is the class's, whatever the code sounds like.
    (OperationUnknownError("not_enough_copies", "d"), 503, "unknown"),
    (OperationUnknownError("timeout", "d"), 504, "unknown"),
    (OperationUnknownError("primary_lost", "d"), 503, "unknown"),
    (OperationUnknownError("storage_full", "d"), 507, "unknown"),
    (OperationNotAppliedError("timeout", "d"), 504, "not_applied"),
    (OperationNotAppliedError("something_new", "d"), 503, "not_applied"),
    (OperationError("something_new", "d"), 503, "unknown"),
]


@pytest.mark.parametrize(("error", "status", "outcome"), ERRORS)
@pytest.mark.parametrize("method", ["PUT", "DELETE", "GET"])
async def test_errors_of_the_node_are_problems(
    local: Local, method: str, error: OperationError, status: int, outcome: str
) -> None:
    local.node.fail_with = error
    body = b"x" if method == "PUT" else None
    reply = await fetch(local.base_url, method, "/v1/kv/a", body)
    assert (reply.status, reply.code) == (status, error.code)
    assert reply.json["detail"] == "d"
    assert ("retry-after" in reply.headers) == (status == 503)
    if method == "GET":
        assert "outcome" not in reply.json
    else:
        assert reply.json["outcome"] == outcome
    if isinstance(error, NotPrimaryError) and error.primary:
        assert reply.json["primary"] == "n2"


@pytest.mark.parametrize(
    "error", [RuntimeError("boom"), ConnectionResetError("peer"), TimeoutError(), SafetyError("x")]
)
async def test_an_unexpected_failure_is_a_500_with_unknown_outcome(
    local: Local, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    local.node.fail_with = error
    reply = await fetch(local.base_url, "PUT", "/v1/kv/a?timeout_ms=700", b"a-secret-value")
    assert (reply.status, reply.code) == (500, "internal_error")
    assert reply.json["outcome"] == "unknown"
    request_id = reply.json["instance"].removeprefix("urn:onecopy:request:")
    assert request_id in caplog.text  # an operator finds the traceback by it
    assert type(error).__name__ in caplog.text
    assert "a-secret-value" not in caplog.text
    local.node.fail_with = None
    assert (await fetch(local.base_url, "PUT", "/v1/kv/a", b"x")).status == 201


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"PUT /v1/kv/a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\na-secret\r\n",
        b"PUT /v1/kv/a HTTP/1.1\r\nHost a-secret\r\n\r\n",
        b"a-secret\r\n\r\n",
    ],
)
async def test_garbage_is_neither_logged_nor_sent_back(
    local: Local, caplog: pytest.LogCaptureFixture, request_bytes: bytes
) -> None:
    caplog.set_level(logging.DEBUG)
    async with connect(local.base_url) as connection:
        connection.send(request_bytes)
        reply = await connection.receive()
        assert reply.code == "malformed_request"
        assert "secret" not in reply.json["detail"]
        assert "\n" not in reply.json["detail"]
    assert "secret" not in caplog.text


async def until(condition: object, *args: object) -> None:
    """Wait for a condition, within a deadline."""
    assert callable(condition)
    async with asyncio.timeout(10):
        while not condition(*args):  # noqa: ASYNC110 -- polled, as there is no event of it
            await asyncio.sleep(0.001)


async def test_a_client_that_leaves_does_not_stop_its_operation(
    local: Local, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    tasks = len(asyncio.all_tasks())
    local.node.hold = asyncio.Event()
    async with connect(local.base_url) as connection:
        connection.send_request("PUT", "/v1/kv/a", b"x")
        await until(lambda: local.node.waiting == 1)
    local.node.hold.set()
    await until(lambda: local.node.index == 1)
    assert (await fetch(local.base_url, "GET", "/v1/kv/a")).body == b"x"
    await until(lambda: len(asyncio.all_tasks()) <= tasks)  # nothing leaked
    assert not caplog.records


async def test_a_client_that_leaves_half_way_leaves_nothing(
    local: Local, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    tasks = len(asyncio.all_tasks())
    for _ in range(50):
        async with connect(local.base_url) as connection:
            connection.send(b"PUT /v1/kv/a HTTP/1.1\r\nHost: t\r\nContent-Length: 9\r\n\r\nhalf")
            await connection.writer.drain()
    await until(lambda: len(asyncio.all_tasks()) <= tasks)
    assert local.node.executed == 0
    assert not caplog.records


async def test_stopping_waits_for_what_is_under_way(local: Local) -> None:
    local.node.hold = asyncio.Event()
    async with connect(local.base_url) as connection:
        connection.send_request("PUT", "/v1/kv/a", b"x")
        await until(lambda: local.node.waiting == 1)
        stopping = asyncio.create_task(local.api.listener.stop())
        await until(lambda: not accepts(local))
        local.node.hold.set()
        reply = await connection.receive()
        assert reply.status == 201
        await stopping


def accepts(local: Local) -> bool:
    return local.api.listener.listens


async def test_stopping_does_not_wait_for_ever(serve: Serve) -> None:
    local = await serve(HttpSettings(shutdown_grace_ms=50))
    local.node.hold = asyncio.Event()
    async with connect(local.base_url) as connection:
        connection.send_request("PUT", "/v1/kv/a", b"x")
        await until(lambda: local.node.waiting == 1)
        async with asyncio.timeout(5):
            await local.api.listener.stop()
        assert await connection.receive_end() == b""
    assert local.node.index == 0  # cut off before it executed, not half-way


async def test_a_busy_port_is_an_error_that_leaves_nothing(local: Local) -> None:
    other = HttpApi(local.node)
    with pytest.raises(OSError, match=r"(?i)address already in use"):
        await other.listener.start("127.0.0.1", local.api.listener.port)
    await other.listener.stop()
    assert (await fetch(local.base_url, "GET", "/livez")).status == 200


async def test_requests_that_meet_a_defect_do_not_fill_the_log(
    local: Local, caplog: pytest.LogCaptureFixture
) -> None:
    local.node.fail_with = RuntimeError("boom")
    async with connect(local.base_url) as connection:
        for number in range(100):
            connection.send_request("PUT", f"/v1/kv/{number}", b"x")
            reply = await connection.receive()
            assert (reply.status, reply.json["outcome"]) == (500, "unknown")
    assert 0 < len(caplog.records) <= MAX_LINES_PER_INTERVAL
    assert caplog.text.count("urn:") == 0
    assert reply.json["detail"].startswith("for details of similar failures")
