"""What one attempt's end lets a client conclude, with real sockets and servers that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from tests.support.attempts import (
    CutError,
    NotSentError,
    ProtocolError,
    Wire,
    etag,
    problem,
    revision_seen,
)
from tests.support.ports import free_address
from tests.support.raw_http import Reply

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@contextlib.asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    """Run a server whose connections are handled so; yield its URL."""
    host, _, port = free_address().rpartition(":")
    tasks: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await handler(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, host, int(port))
    try:
        yield f"http://{host}:{port}"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def ask(wire: Wire, timeout_s: float = 5.0) -> Reply:
    return await wire.ask("GET", "/", timeout_s=timeout_s)


async def test_a_refused_connection_was_not_sent() -> None:
    wire = Wire(f"http://{free_address()}")
    with pytest.raises(NotSentError):
        await ask(wire)


@pytest.mark.parametrize("said", [b"", OK[:10], OK[:-1]], ids=["nothing", "half a head", "a part"])
async def test_an_answer_that_breaks_off_is_a_cut(said: bytes) -> None:
    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)

    async with serving(cut) as url:
        wire = Wire(url)
        with pytest.raises(CutError):
            await ask(wire)
        await wire.close()


async def test_an_answer_that_never_comes_is_a_cut() -> None:
    async def hang(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read(-1)

    async with serving(hang) as url:
        wire = Wire(url)
        with pytest.raises(CutError):
            await ask(wire, timeout_s=0.05)
        await wire.close()


async def test_each_request_is_sent_once_and_an_answer_is_never_anothers() -> None:
    """A broken connection is given up, and nothing is repeated behind the caller's back."""
    requests = 0

    async def second_time_slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        while True:
            await reader.readuntil(b"\r\n\r\n")
            requests += 1
            if requests == 2:
                await asyncio.sleep(0.2)
                writer.write(OK.replace(b"ok", b"no"))
            else:
                writer.write(OK)

    async with serving(second_time_slow) as url:
        wire = Wire(url)
        assert (await ask(wire)).body == b"ok"
        with pytest.raises(CutError):
            await ask(wire, timeout_s=0.05)
        assert (await ask(wire)).body == b"ok"
        assert requests == 3
        await wire.close()


async def test_spare_connections_are_used_before_new_ones() -> None:
    connections = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while True:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(OK)

    async with serving(answer) as url:
        wire = Wire(url, spares=2)
        await ask(wire)
        spare = wire._spares[-1]
        wire._drop()
        await ask(wire)
        assert wire._connection is spare
        await ask(wire)
        assert len(wire._spares) == 2, "laid in again"
        assert connections == 4
        await wire.close()


def test_what_answers_say_is_read_strictly() -> None:
    document = {"code": "precondition_failed", "detail": 'the key exists with ETag "42": read it'}
    assert revision_seen(document) == 42
    assert revision_seen({"detail": "the key does not exist, so that no If-Match can hold"}) == 0
    assert revision_seen({}) is None
    assert etag(Reply(200, {"etag": '"7"'}, b"")) == 7
    for reply in (Reply(200, {}, b""), Reply(200, {"etag": 'W/"7"'}, b"")):
        with pytest.raises(ProtocolError):
            etag(reply)
    for reply in (
        Reply(500, {"content-type": "text/plain"}, b"oops"),
        Reply(500, {"content-type": "application/problem+json"}, b"oops"),
    ):
        with pytest.raises(ProtocolError):
            problem(reply)
