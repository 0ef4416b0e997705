"""The load generator: what it counts, from when, and what it takes for a good reply."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from bench import generator, histogram, loads
from bench.generator import Generator, Recorder, now_ns
from bench.histogram import Latency, figures, from_counts, merge
from bench.nats_text import INBOX, Received, new_inbox, receive
from bench.render import Request, fill, pool, resp
from bench.replies import check_http, check_nats, check_redis
from bench.spec import Bucket, Load, Outcome, Target, Workload

GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
PUT = Request(b"", write=True)
GET = Request(b"", write=False, body_bytes=3)


class Server:
    """Answers every request; holds all answers back while `open` is not set."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.open.set()
        self.requests: list[bytes] = []
        self.refusals = 0
        self._arrived = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Known from here on: a task that has not begun when the loop ends would close nothing.
        task = asyncio.create_task(self._carry(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self.serve(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def wait_for(self, count: int) -> None:
        """Wait until so many requests have come."""
        while len(self.requests) < count:
            await self._arrived.wait()
            self._arrived.clear()

    async def ended(self) -> None:
        """Wait until the clients' connections, which they have closed, have been noticed."""
        self.open.set()
        for _ in range(10):  # a connection that has just been accepted gets its task
            await asyncio.sleep(0)
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.partition(b"Content-Length: ")[2].split(b"\r", 1)[0] or 0)
                self.requests.append(head + await reader.readexactly(length))
                self._arrived.set()
                await self.open.wait()
                writer.write(GOOD if self.refusals <= 0 else BUSY)
                self.refusals -= 1


class Leaving(Server):
    """Takes a request on each connection, and closes it."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await reader.readuntil(b"\r\n\r\n")


@contextlib.asynccontextmanager
async def serving(server: Server | None = None) -> AsyncIterator[tuple[Server, int]]:
    server = server or Server()
    listener = await asyncio.start_server(server.accept, "127.0.0.1", 0)
    async with listener:
        yield server, listener.sockets[0].getsockname()[1]
        listener.close()
        await server.ended()


def load_of(port: int, connections: int = 1, rate_per_s: float = 0.0, **options: object) -> Load:
    workload = Workload(api="onecopy", value_bytes=10, keys=10, **options)  # type: ignore[arg-type]
    target = Target(host="127.0.0.1", port=port, connections=connections)
    return Load(workload=workload, targets=[target], rate_per_s=rate_per_s, bucket_ms=100)


async def run(load: Load, seconds: float) -> Outcome:
    made = Generator(load, asyncio.get_running_loop())
    await made.connect()
    begin = now_ns()
    return await made.run(begin, begin + int(seconds * 1e9))


async def test_an_open_loop_counts_latency_from_when_each_request_was_due() -> None:
    async with serving() as (server, port):
        running = asyncio.create_task(run(load_of(port, rate_per_s=200), 2.0))
        await asyncio.sleep(0.5)
        server.open.clear()
        await asyncio.sleep(0.6)
        server.open.set()
        outcome = await running
    # 120 requests fell due during the stall on the one connection; 100 of them waited over 0.1 s.
    # Counted from their sending, one would have been slow.
    slow = merge([outcome.latency.hdr]).get_count_at_value
    waited = sum(slow(value) for value in distinct(outcome.latency) if value > 100_000)
    assert waited >= 60
    assert outcome.latency.max_ms >= 500
    assert not outcome.errors


def distinct(latency: Latency) -> list[int]:
    steps = merge([latency.hdr]).get_recorded_iterator()
    return [step.value_iterated_to for step in steps]


async def test_a_closed_loop_has_one_request_under_way_on_each_connection() -> None:
    async with serving() as (server, port):
        server.open.clear()
        running = asyncio.create_task(run(load_of(port, connections=3), 2.0))
        await server.wait_for(3)
        for _ in range(20):  # time for a fourth, if there were to be one
            await asyncio.sleep(0)
        assert len(server.requests) == 3
        server.open.set()
        outcome = await running
    assert outcome.operations > 3
    assert sum(bucket.count for bucket in outcome.timeline) == outcome.operations


async def test_fresh_writes_are_all_different_and_filling_ends_with_the_last() -> None:
    async with serving() as (server, port):
        made = Generator(load_of(port, connections=4, fresh=True), asyncio.get_running_loop())
        await made.connect()
        await made.fill()
    paths = sorted(request.split(b" ", 2)[1] for request in server.requests)
    assert paths == [b"/v1/kv/b%09d" % number for number in range(10)]


def test_a_long_measurement_is_folded_often_with_the_same_result() -> None:
    second = 1_000_000_000
    recorder = Recorder(0, 100 * second, 1000)
    for number in range(generator.FOLD_AT_OFTEN + 10):
        recorder.record(0, 1000 * (1 + number % 7))
    assert len(recorder._ended_us) == 10
    outcome = recorder.outcome()
    assert outcome.operations == outcome.timeline[0].count == generator.FOLD_AT_OFTEN + 10


async def test_filling_tries_again_what_was_refused() -> None:
    async with serving() as (server, port):
        server.refusals = 3
        made = Generator(load_of(port, connections=4), asyncio.get_running_loop())
        await made.connect()
        await made.fill()
    assert len(server.requests) == 13
    assert len(set(server.requests)) == 10


async def test_a_server_that_goes_away_is_counted_as_errors() -> None:
    async with serving(Leaving()) as (_, port):
        outcome = await run(load_of(port), 1.5)
    assert outcome.operations == 0
    assert outcome.errors[generator.LOST] >= 2  # it came back and tried again


class SlowToConnect(Generator):
    """Connects again only when `over` is set."""

    over: asyncio.Event

    async def _open(self, connection: generator.Connection) -> None:
        if self.running:
            await self.over.wait()
        await super()._open(connection)


async def test_a_connection_that_opens_after_the_end_is_closed() -> None:
    async with serving(Leaving()) as (_, port):  # which ends once all its connections have
        made = SlowToConnect(load_of(port), asyncio.get_running_loop())
        made.over = asyncio.Event()
        await made.connect()
        await made.run(now_ns(), now_ns() + 500_000_000)
        made.over.set()
        await asyncio.gather(*made._tasks)


def test_only_what_ends_within_the_measurement_counts() -> None:
    recorder = Recorder(1_000_000_000, 2_000_000_000, 100)
    recorder.record(900_000_000, 999_999_999)
    recorder.record(900_000_000, 1_000_000_000)
    recorder.record(1_500_000_000, 1_999_999_999)
    recorder.record(1_500_000_000, 2_000_000_000)
    recorder.fail("status 503", 999_999_999)
    recorder.fail("status 503", 1_200_000_000)
    outcome = recorder.outcome()
    assert outcome.operations == 2
    assert outcome.errors == {"status 503": 1}
    assert len(outcome.timeline) == 10
    assert outcome.timeline[0] == Bucket(count=1, max_ms=100.0)
    assert outcome.timeline[9].count == 1


def test_histograms_of_several_workers_add_up() -> None:
    one, other = Counter({100: 98, 5000: 2}), Counter({100: 99, 90_000: 1})
    merged = merge([histogram.encode(from_counts(part)) for part in (one, other)])
    together = figures(from_counts(one + other))
    assert figures(merged) == together
    assert together.count == 200
    assert together.p50_ms == 0.1
    assert together.p99_ms == pytest.approx(5.0, rel=0.001)
    assert together.max_ms == pytest.approx(90.0, rel=0.001)


def test_outcomes_of_several_workers_add_up() -> None:
    def one(count: int, error: str) -> Outcome:
        return Outcome(
            seconds=2.0,
            operations=count,
            errors={error: 1, "status 503": 2},
            latency=figures(from_counts({1000: count})),
            timeline=[Bucket(count=count, max_ms=float(count))],
            cpu_s=0.5,
        )

    total = loads.combine([one(10, "malformed reply"), one(30, generator.LOST)])
    assert total.rate == 20
    assert total.latency.count == 40
    assert total.errors == {"malformed reply": 1, generator.LOST: 1, "status 503": 4}
    assert total.timeline == [Bucket(count=40, max_ms=30.0)]


@pytest.mark.parametrize(
    ("data", "request_", "expected"),
    [
        (GOOD, PUT, ""),
        (GOOD[:-1], PUT, None),
        (GOOD[:20], PUT, None),
        (GOOD + b"x", PUT, "superfluous bytes"),
        (GOOD, GET, "wrong length"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", GET, ""),
        (b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n", PUT, "status 503"),
        (b"SSH-2.0\r\n\r\n", PUT, "malformed reply"),
        (b"HTTP/1.1 200 OK\r\n\r\n", PUT, "malformed reply"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", GET, ""),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n", GET, None),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",
            GET,
            "wrong length",
        ),
    ],
)
def test_http_replies_are_checked(data: bytes, request_: Request, expected: str | None) -> None:
    assert check_http(data, request_) == expected


@pytest.mark.parametrize(
    ("data", "request_", "copies", "expected"),
    [
        (b"+OK\r\n:2\r\n", PUT, 2, ""),
        (b"+OK\r\n", PUT, 2, None),
        (b"+OK\r\n:1\r\n", PUT, 2, "too few copies"),
        (b"+OK\r\n", PUT, 0, ""),
        (b"-READONLY You can't\r\n:0\r\n", PUT, 2, "error READONLY"),
        (b"$3\r\nabc\r\n", GET, 2, ""),
        (b"$3\r\n", GET, 2, None),
        (b"$2\r\nab\r\n", GET, 2, "wrong length"),
        (b"$-1\r\n", GET, 2, "no such key"),
    ],
)
def test_redis_replies_are_checked(
    data: bytes, request_: Request, copies: int, expected: str | None
) -> None:
    assert check_redis(data, request_, copies) == expected


def test_requests_are_drawn_from_the_mix_and_filling_covers_every_key() -> None:
    workload = Workload(api="onecopy", write_share=0.25, keys=50, value_bytes=100)
    requests = pool(workload)
    assert requests == pool(workload)
    assert sum(request.write for request in requests) / len(requests) == pytest.approx(
        0.25, abs=0.03
    )
    assert len({request.data for request in fill(workload)}) == 50
    assert resp(b"GET", b"k") == b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n"


NATS_PUT = Request(b"", write=True, holds=b'"seq":')


def test_a_reply_of_nats_is_taken_when_it_is_whole() -> None:
    content = b'{"stream":"KV_bench", "seq":7}'
    reply = b"MSG _INBOX.0123456789ab 1 %d\r\n%b\r\n" % (len(content), content)
    for end in range(len(reply)):
        assert receive(reply[:end]) == Received(None, reply[:end], pinged=False)
    assert receive(reply) == Received(content, b"", pinged=False)
    assert check_nats(content, NATS_PUT) == ""
    for wrong in (reply + reply, b"-ERR 'Unknown Protocol Operation'\r\n"):
        with pytest.raises(ValueError, match=r"superfluous|Unknown"):
            receive(wrong)


def test_a_failure_of_nats_is_no_success() -> None:
    content = b'{"error":{"code":503,"description":"no quorum"}}'
    assert check_nats(content, NATS_PUT) == 'error no quorum"}}'
    assert check_nats(b"{}", NATS_PUT) == "answered, but not done"


def test_lines_of_nats_that_are_no_messages_may_stand_before_and_behind_one() -> None:
    reply, ping = b"MSG i 1 2\r\n{}\r\n", b"PING\r\n"
    assert receive(b'INFO {"a":1}\r\nPING\r\nMSG ') == Received(None, b"MSG ", pinged=True)
    assert receive(b"INFO {") == Received(None, b"INFO {", pinged=False)
    assert receive(b"+OK\r\n") == Received(None, b"", pinged=False)
    assert receive(reply + ping) == Received(b"{}", b"", pinged=True)
    for end in range(len(ping)):  # it comes in pieces, and another reply behind it
        first = receive(reply + ping[:end])
        assert first == Received(b"{}", ping[:end], pinged=False)
        second = receive(first.rest + ping[end:] + reply)
        assert second == Received(b"{}", b"", pinged=True)


def test_each_connection_to_nats_has_an_inbox_of_the_length_that_is_rendered() -> None:
    (request,) = pool(Workload(api="nats", keys=1))[:1]
    assert request.data.count(INBOX) == 1
    assert len(new_inbox()) == len(INBOX)
    assert new_inbox() != new_inbox()
