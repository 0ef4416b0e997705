"""What watchers cost: idle ones, a write that many see, writes beside watchers of other keys."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import resource
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median, quantiles
from typing import Any, cast

import msgspec

from bench import loads
from bench.context import Context
from bench.histogram import figures, from_counts
from bench.peers.onecopy import Onecopy
from bench.peers.process import BenchError, fetch
from bench.render import http, json_request
from bench.spec import Api, Workload

IDLE_WATCHERS = 10_000
WATCHERS = 1_000
WRITES_SEEN = 50
"""How many writes each of WATCHERS is to see, one after the other."""
WRITE_CONNECTIONS = 16
WARM_UP_S = 0.3
DEADLINE_S = 120.0
OPENED_AT_ONCE = 200


def run(context: Context) -> dict[str, Any]:
    """Watch at the primary of three replicas."""
    allow_files(IDLE_WATCHERS + 1000)
    limits = {"max_watchers": IDLE_WATCHERS + WATCHERS}
    with context.peer(Onecopy.shape(replicas=3, witnesses=0, limits=limits)) as cluster:
        primary = cluster.primary()
        address = cluster.address(primary)
        workload = Workload(api="onecopy")
        loads.fill(workload, address)
        beside = _beside(context, cluster, address, workload)
        seen = _seen(context, address)
        idle = _idle(context, cluster, primary, address)
    return {"idle": idle, "seen": seen, "beside": beside}


def _idle(context: Context, cluster: Onecopy, node: str, address: str) -> dict[str, Any]:
    process = cluster.processes[node]
    before_bytes, began = _resident_bytes(process.pid), time.monotonic()
    with watching(address, [f"idle/{n}" for n in range(IDLE_WATCHERS)]):
        opened_s = time.monotonic() - began
        held_bytes = _resident_bytes(process.pid) - before_bytes
        cpu_s, began = _cpu_s(process.pid), time.monotonic()
        time.sleep(max(context.options.seconds, 10.0))  # a round of progress events
        idle_cpu = (_cpu_s(process.pid) - cpu_s) / (time.monotonic() - began)
        count = cluster.metric(node, "watchers")
    found = {
        "watchers": int(count),
        "opened_per_s": round(IDLE_WATCHERS / opened_s),
        "bytes_per_watcher": round(held_bytes / IDLE_WATCHERS),
        "cpu_share": round(idle_cpu, 3),
    }
    context.say(f"  idle: {found}")
    return found


def seen_delays_ms(address: str, api: Api = "onecopy", count: int = WATCHERS) -> list[float]:
    """Measure from before a write is sent until each of `count` watchers has its event."""
    delays_ms: list[float] = []
    with watching(address, ["seen"] * count, api) as watchers:
        for number in range(WRITES_SEEN):
            watchers.expect(count)
            began = time.monotonic()
            _write_seen(address, api, b"%d" % number)
            delays_ms += [(at - began) * 1000 for at in watchers.seen()]
    return delays_ms


def seen_figures(address: str, api: Api, count: int = WATCHERS) -> dict[str, Any]:
    """Return the figures of `seen_delays_ms`, as those of a load, without a rate."""
    times_us = Counter(round(delay_ms * 1000) for delay_ms in seen_delays_ms(address, api, count))
    latency = msgspec.to_builtins(figures(from_counts(times_us)))
    return {**latency, "per_s": 0.0, "errors": {}}


def _write_seen(address: str, api: Api, value: bytes) -> None:
    if api == "etcd":
        body = {"key": "c2Vlbg==", "value": base64.b64encode(value).decode()}
        reply = fetch(address, "POST", "/v3/kv/put", json.dumps(body).encode())
    else:
        reply = fetch(address, "PUT", "/v1/kv/seen", value)
    if reply is None or reply[0] not in {200, 201}:
        raise BenchError(f"a write beside watchers: {reply}")


def _seen(context: Context, address: str) -> dict[str, Any]:
    delays_ms = seen_delays_ms(address)
    found = {
        "watchers": WATCHERS,
        "writes": WRITES_SEEN,
        "p50_ms": round(median(delays_ms), 1),
        "p99_ms": round(quantiles(delays_ms, n=100)[-1], 1),
        "max_ms": round(max(delays_ms), 1),
    }
    context.say(f"  seen: {found}")
    return found


def _beside(context: Context, cluster: Onecopy, address: str, workload: Workload) -> dict[str, Any]:
    """Write without watchers and beside some of other keys, in turn."""
    rates: dict[bool, list[float]] = {False: [], True: []}
    for number in range(2 * context.options.rounds):
        watched = number % 4 in (1, 2)  # none, some, some, none
        keys = [f"other/{n}" for n in range(WATCHERS)] if watched else []
        with watching(address, keys):
            result = loads.run(
                workload,
                [address],
                connections=WRITE_CONNECTIONS,
                seconds=context.options.seconds,
                warm_up_s=WARM_UP_S,
                servers=cluster.servers,
            )
        context.line(f"writes beside {len(keys)} watchers", result)
        rates[watched].append(result.rate)
    ratios = [beside / alone for alone, beside in zip(rates[False], rates[True], strict=True)]
    found = {
        "watchers": WATCHERS,
        "alone_per_s": round(median(rates[False])),
        "beside_per_s": round(median(rates[True])),
        "ratio": round(median(ratios), 3),
    }
    context.say(f"  beside: {found}")
    return found


class Watchers:
    """Many watchers' connections, on an event loop in a thread of its own."""

    def __init__(self, address: str, keys: list[str], api: Api) -> None:
        self._address = address
        self._keys = keys
        self._api = api
        self._loop = asyncio.new_event_loop()
        self._transports: list[asyncio.BaseTransport] = []
        self._open = 0
        self._seen: list[float] = []
        self._wanted = 0
        self._all_seen = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def open(self) -> None:
        """Connect all, and wait until each has been told where it begins."""
        asyncio.run_coroutine_threadsafe(self._open_all(), self._loop).result(DEADLINE_S)

    async def _open_all(self) -> None:
        host, port = self._address.rsplit(":", 1)
        slots = asyncio.Semaphore(OPENED_AT_ONCE)

        async def connect(key: str) -> None:
            async with slots:
                begun: asyncio.Future[None] = self._loop.create_future()
                transport, _ = await self._loop.create_connection(
                    lambda: _Watching(self._request(key), self._marker, begun, self._on_event),
                    host,
                    int(port),
                )
                self._transports.append(transport)
                await begun

        await asyncio.gather(*map(connect, self._keys))

    def _request(self, key: str) -> bytes:
        if self._api == "etcd":
            name = base64.b64encode(key.encode()).decode()
            return json_request("/v3/watch", {"create_request": {"key": name}})
        return http("GET", f"/v1/watch?key={key}", headers="Accept: application/x-ndjson\r\n")

    @property
    def _marker(self) -> bytes:
        """What a line with an event holds."""
        return b'"events":[{' if self._api == "etcd" else b'"changes":[{'

    def _on_event(self) -> None:
        self._seen.append(time.monotonic())
        if len(self._seen) >= self._wanted:
            self._all_seen.set()

    def expect(self, count: int) -> None:
        """So many events are to come."""
        self._seen, self._wanted = [], count
        self._all_seen.clear()

    def seen(self) -> list[float]:
        """Wait for them; return when each came, on the monotonic clock, in seconds."""
        if not self._all_seen.wait(DEADLINE_S):
            raise BenchError(f"{len(self._seen)} of {self._wanted} watchers have seen a write")
        return list(self._seen)

    def close(self) -> None:
        """Close all, and the thread."""

        def stop() -> None:
            for transport in self._transports:
                cast("asyncio.Transport", transport).abort()
            self._loop.call_soon(self._loop.stop)

        self._loop.call_soon_threadsafe(stop)
        self._thread.join()
        self._loop.close()


class _Watching(asyncio.Protocol):
    """One watcher's connection: counts the lines that have changes."""

    def __init__(
        self,
        request: bytes,
        marker: bytes,
        begun: asyncio.Future[None],
        on_event: Callable[[], None],
    ) -> None:
        self._request = request
        self._marker = marker
        self._begun = begun
        self._on_event = on_event
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast("asyncio.Transport", transport).write(self._request)

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"{") and not self._begun.done():
                self._begun.set_result(None)
            if self._marker in line:
                self._on_event()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._begun.done():
            self._begun.set_exception(BenchError(f"a watch was refused: {self._rest!r} {exc}"))


@contextlib.contextmanager
def watching(address: str, keys: list[str], api: Api = "onecopy") -> Iterator[Watchers]:
    """Watch these keys for a while, each by a connection of its own."""
    watchers = Watchers(address, keys, api)
    try:
        watchers.open()
        yield watchers
    finally:
        watchers.close()


def allow_files(count: int) -> None:
    """Let this process, and those it starts, open so many files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(count, hard), hard))


def _resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100
