"""The load generator: connections, closed or open loop, one process's part of it.

A connection has one request under way at most. Closed loop: the next request leaves when the reply
has come. Open loop: requests are due at fixed times, every TICK_MS those of that tick, on a
connection that is free; while none is, they wait, and their latency counts from when they were due,
so that a stall of the server shows in all requests that it held up.
"""

from __future__ import annotations

import asyncio
import random
import time
from array import array
from collections import Counter, deque
from typing import cast

from bench.histogram import figures, from_counts
from bench.nats_text import INBOX, greeting, new_inbox, receive
from bench.render import Request, fill, key, pool, read_request, value, write_request
from bench.replies import MALFORMED, check_http, check_nats, check_redis, etag_of
from bench.spec import Bucket, Load, Outcome, Target
from cluster.client.sessions import make_tls
from datapath.transport.tls_transport import TlsTransport

TICK_MS = 1
RETRY_S = 0.02
RECONNECT_S = 0.02
FOLD_AT, FOLD_AT_OFTEN = 4_000_000, 50_000
"""Recorded operations at which they are folded into histogram and timeline: that takes 0.5 us each,
so a short measurement does it at its end, and one over FOLD_OFTEN_NS, for memory's sake, often."""
FOLD_OFTEN_NS = 60 * 10**9
FILL_ERRORS_MAX = 2000
LOST = "connection lost"
_ANY_NUMBER = 999_999_999
now_ns = time.monotonic_ns


class Recorder:
    """Operations as they end: two numbers each, counted only when there is time for it."""

    def __init__(self, measure_ns: int, end_ns: int, bucket_ms: int) -> None:
        self.measure_ns = measure_ns
        self.end_ns = end_ns
        self.errors: Counter[str] = Counter()
        self._fold_at = FOLD_AT_OFTEN if end_ns - measure_ns > FOLD_OFTEN_NS else FOLD_AT
        self._bucket_us = bucket_ms * 1000
        self._ended_us = array("q")
        self._latency_us = array("q")
        self._latencies: Counter[int] = Counter()
        self._buckets: dict[int, Bucket] = {}

    def record(self, started_ns: int, ended_ns: int) -> None:
        """Count an operation that ended within the measurement."""
        if self.measure_ns <= ended_ns < self.end_ns:
            self._ended_us.append((ended_ns - self.measure_ns) // 1000)
            self._latency_us.append((ended_ns - started_ns) // 1000)
            if len(self._ended_us) >= self._fold_at:
                self._fold()

    def fail(self, kind: str, ended_ns: int) -> None:
        """Count an operation that failed."""
        if self.measure_ns <= ended_ns < self.end_ns:
            self.errors[kind] += 1

    def _fold(self) -> None:
        self._latencies.update(self._latency_us)
        for ended, latency in zip(self._ended_us, self._latency_us, strict=True):
            bucket = self._buckets.setdefault(ended // self._bucket_us, Bucket())
            bucket.count += 1
            bucket.max_ms = max(bucket.max_ms, latency / 1000)
        self._ended_us, self._latency_us = array("q"), array("q")

    def outcome(self) -> Outcome:
        """Return the figures."""
        self._fold()
        seconds = (self.end_ns - self.measure_ns) / 1e9
        steps = -(-int(seconds * 1e6) // self._bucket_us)
        return Outcome(
            seconds=seconds,
            operations=self._latencies.total(),
            errors=dict(self.errors),
            latency=figures(from_counts(self._latencies)),
            timeline=[self._buckets.get(step, Bucket()) for step in range(steps)],
            cpu_s=0.0,
        )


class _Parts:
    """A request without the number in its key."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._head, _, self._tail = request.data.partition(b"%09d" % _ANY_NUMBER)

    def request(self, number: int) -> Request:
        """Return the request for a key's number."""
        like = self._request
        data = b"%b%09d%b" % (self._head, number, self._tail)
        return Request(data, like.write, like.body_bytes, like.holds)


class Generator:
    """One process's connections and the requests that they take in turn."""

    def __init__(self, load: Load, loop: asyncio.AbstractEventLoop) -> None:
        self.load = load
        self.loop = loop
        self.redis = load.workload.api == "redis"
        self.nats = load.workload.api == "nats"
        self.copies = load.workload.copies
        self.recorder: Recorder | None = None
        self.running = False
        self.late_us = 0
        self.unsent = 0
        self.acknowledged: list[int] = []
        self._requests: list[Request] = pool(load.workload)
        self._tls = make_tls(load.workload.caller.cacert, "", "")
        self._position = 0
        self._fresh = load.first_key
        self._fresh_max = 1 << 62
        self._draw = random.Random(load.workload.seed).random
        self._parts = self._split()
        self._connections: list[Connection] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle: deque[Connection] = deque()
        self._due: deque[int] = deque()
        self._to_fill: list[Request] | None = None
        self._filled = 0
        self._filling = False
        self._completed = 0
        self._again: list[Request] = []

    def _split(self) -> tuple[_Parts, _Parts]:
        """Return what stands before and after the key's number in a write, and in a read."""
        workload = self.load.workload
        name = key(workload, _ANY_NUMBER)
        content = value(workload.value_bytes, workload.seed)
        return (
            _Parts(write_request(workload, name, content)),
            _Parts(read_request(workload, name)),
        )

    # -- connections

    async def connect(self) -> None:
        """Open every connection."""
        for target in self.load.targets:
            for _ in range(target.connections):
                connection = Connection(self, target, len(self._connections))
                self._connections.append(connection)
                await self._open(connection)

    async def _open(self, connection: Connection) -> None:
        target = connection.target
        if self._tls is None:
            await self.loop.create_connection(lambda: connection, target.host, target.port)
            return
        secured = TlsTransport(self._tls, lambda: connection, target.host)
        await self.loop.create_connection(lambda: secured, target.host, target.port)
        await secured.ready

    def reconnect(self, connection: Connection) -> None:
        """Open a lost connection again, trying until it works or the load ends."""
        if self.running:
            task = self.loop.create_task(self._reconnect(connection))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _reconnect(self, connection: Connection) -> None:
        while self.running:
            await asyncio.sleep(RECONNECT_S)
            try:
                await self._open(connection)
            except OSError:
                continue
            self.free(connection)
            return

    def close(self) -> None:
        """Close every connection."""
        self.running = False
        for connection in self._connections:
            connection.close()

    # -- requests

    def next_request(self, connection: Connection) -> Request:
        """Return the request that this connection sends now."""
        if self._again:
            return self._again.pop()
        if self.load.workload.fresh:
            connection.number = self._fresh
            self._fresh += 1
            return self._parts[0].request(connection.number)
        if self.load.workload.conditional:
            return connection.conditional_request()
        if self._to_fill is not None:
            request = self._to_fill[self._filled]
            self._filled += 1
            return request
        if self.load.workload.drawn:
            parts = self._parts[self._draw() >= self.load.workload.write_share]
            return parts.request(int(self._draw() * self.load.workload.keys))
        position = self._position
        self._position = position + 1 if position + 1 < len(self._requests) else 0
        return self._requests[position]

    def done(self, connection: Connection, error: str) -> None:
        """A request has come to its end."""
        ended = now_ns()
        recorder = self.recorder
        if recorder is None:
            return
        if error:
            recorder.fail(error, ended)
            if self._filling:
                self._again.append(connection.request)
            if error != LOST and self.running:
                self.loop.call_later(RETRY_S, self.free, connection)
            return
        if self._filling:
            self._completed += 1
        else:
            recorder.record(connection.started_ns, ended)
        if self.load.keep_keys:
            self.acknowledged.append(connection.number)
        self.free(connection)

    def free(self, connection: Connection) -> None:
        """Give a free connection its next request, if one is due; after the end, close it."""
        if not self.running:
            connection.close()  # it may have been opened since
            return
        if not connection.open:
            return
        if self.load.rate_per_s:
            if self._due:
                connection.send(self._due.popleft())
            elif connection not in self._idle:
                self._idle.append(connection)
        elif self._again:
            connection.send(now_ns())
        elif self._to_fill is not None:
            if self._filled < len(self._to_fill):
                connection.send(now_ns())
        elif self._fresh < self._fresh_max:
            connection.send(now_ns())

    def begin(self, measure_ns: int, end_ns: int) -> None:
        """Start all connections."""
        self.recorder = Recorder(measure_ns, end_ns, self.load.bucket_ms)
        self.running = True
        for connection in self._connections:
            self.free(connection)

    async def run(self, measure_ns: int, end_ns: int) -> Outcome:
        """Load until `end_ns`; return what was measured from `measure_ns` on."""
        cpu_start = 0.0
        self.begin(measure_ns, end_ns)
        if self.load.rate_per_s:
            await self._pace(now_ns(), end_ns)
        else:
            await asyncio.sleep(max(0, measure_ns - now_ns()) / 1e9)
            cpu_start = time.process_time()
            await asyncio.sleep(max(0, end_ns - now_ns()) / 1e9)
        cpu_s = time.process_time() - cpu_start
        assert self.recorder is not None
        self.unsent = len(self._due)
        self.close()
        outcome = self.recorder.outcome()
        outcome.cpu_s = cpu_s
        outcome.late_us = self.late_us
        outcome.unsent = self.unsent
        outcome.acknowledged = self.acknowledged
        return outcome

    async def _pace(self, begin_ns: int, end_ns: int) -> None:
        """Make requests due at their times: `intended` is when, not when there was room."""
        interval_ns = TICK_MS * 1_000_000
        made, tick = 0, 0
        while True:
            tick += 1
            intended = begin_ns + tick * interval_ns
            if intended >= end_ns:
                return
            delay = intended - now_ns()
            if delay > 0:
                await asyncio.sleep(delay / 1e9)
            self.late_us = max(self.late_us, (now_ns() - intended) // 1000)
            wanted = int(tick * TICK_MS * self.load.rate_per_s / 1000)
            for _ in range(wanted - made):
                if self._idle:
                    self._idle.popleft().send(intended)
                else:
                    self._due.append(intended)
            made = wanted
            if delay <= 0 and tick % 16 == 0:
                await asyncio.sleep(0)  # behind: let replies in all the same

    async def fill(self) -> None:
        """Write every key, again where that fails. Raises RuntimeError if it fails too often."""
        workload = self.load.workload
        self._fresh_max = workload.keys
        wanted = workload.keys - self.load.first_key
        if not workload.fresh:
            self._to_fill = fill(workload)
        self._filling = True
        self.begin(0, 1 << 62)
        assert self.recorder is not None
        while self._completed < wanted:
            if self.recorder.errors.total() > FILL_ERRORS_MAX:
                raise RuntimeError(f"filling failed: {dict(self.recorder.errors)}")
            await asyncio.sleep(0.005)
        self.close()


class Connection(asyncio.Protocol):
    """One connection to the server."""

    def __init__(self, generator: Generator, target: Target, index: int) -> None:
        self.generator = generator
        self.target = target
        self.open = False
        self.started_ns = 0
        self.number = index
        self._busy = False
        self._index = index
        self._etag = b""
        self._buffer = b""
        self._inbox = new_inbox() if generator.nats else b""
        self.request = Request(b"", write=True)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.open = True
        self._busy = False
        self._buffer = b""
        if self._inbox:
            self._transport.write(greeting(self._inbox))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 -- asyncio's signature
        self.open = False
        if self._busy:
            self._busy = False
            self.generator.done(self, LOST)
        self.generator.reconnect(self)

    def close(self) -> None:
        if self.open:
            self._transport.close()

    def send(self, intended_ns: int) -> None:
        """Send the next request; its latency counts from `intended_ns`."""
        self.request = request = self.generator.next_request(self)
        self.started_ns = intended_ns
        self._busy = True
        data = request.data
        self._transport.write(data.replace(INBOX, self._inbox, 1) if self._inbox else data)

    def data_received(self, data: bytes) -> None:
        if self._buffer:
            data = self._buffer + data
        if self.generator.nats:
            error, data = self._receive_from_nats(data)
        elif self.generator.redis:
            error = check_redis(data, self.request, self.generator.copies)
        else:
            error = check_http(data, self.request)
        if error is None:
            self._buffer = data
            return
        if self.generator.load.workload.conditional:
            self._etag = etag_of(data)
        self._buffer = data if self.generator.nats else b""
        self._busy = False
        self.generator.done(self, error)

    def _receive_from_nats(self, data: bytes) -> tuple[str | None, bytes]:
        """Return what has come of the reply, as `check_http` does, and what is left."""
        try:
            content, data, pinged = receive(data)
        except ValueError:
            return MALFORMED, b""
        if pinged:
            self._transport.write(b"PONG\r\n")
        return None if content is None else check_nats(content, self.request), data

    def conditional_request(self) -> Request:
        """Return a write of this connection's own key, on condition that nothing has changed it."""
        workload = self.generator.load.workload
        request = write_request(workload, key(workload, self._index), b"v" * workload.value_bytes)
        if not self._etag:
            return request
        head, _, rest = request.data.partition(b"\r\n")
        return Request(b"%b\r\nIf-Match: %b\r\n%b" % (head, self._etag, rest), write=True)
