"""Loads run in worker processes, with what the servers used meanwhile."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from bench.accounting import Servers, Usage, usage
from bench.histogram import figures, merge
from bench.peers.process import BenchError
from bench.spec import Bucket, Load, Outcome, Target, Workload

ROOT = Path(__file__).resolve().parents[1]
CONNECT_S = 0.05
NOBODY = Servers([])


class Result(msgspec.Struct, kw_only=True):
    """A measured load: what the clients saw, and what the servers used for each operation."""

    outcome: Outcome
    cpu_us_per_op: float
    disk_bytes_per_op: float | None
    disk_flushes_per_op: float | None
    wire_bytes_per_op: float
    server_cpu_s: float

    @property
    def rate(self) -> float:
        """Operations a second."""
        return self.outcome.rate


class Running:
    """A load under way. `finish` waits for its end; `times` are (measure_ns, end_ns)."""

    def __init__(
        self, loads: Sequence[Load], servers: Servers, warm_up_s: float, seconds: float
    ) -> None:
        self._servers = servers
        self._workers = [_Worker(load) for load in loads]
        try:
            for worker in self._workers:
                worker.wait_ready()
        except BaseException:
            self.abandon()
            raise
        measure_ns = time.monotonic_ns() + int((warm_up_s + CONNECT_S) * 1e9)
        self.times = (measure_ns, measure_ns + int(seconds * 1e9))
        for worker in self._workers:
            worker.tell(self.times)

    @property
    def pids(self) -> list[int]:
        """The workers' process ids, in the order of their loads."""
        return [worker.pid for worker in self._workers]

    def finish(self) -> Result:
        """Wait for the end, and return the figures.

        Raises BenchError if a worker failed; the others are ended then, as by any interruption.
        """
        measure_ns, end_ns = self.times
        try:
            _sleep_until(measure_ns)
            before = usage(self._servers)
            _sleep_until(end_ns)
            used = usage(self._servers).since(before)
            outcomes = [worker.outcome() for worker in self._workers]
        except BaseException:
            self.abandon()
            raise
        return result(combine(outcomes), used)

    def abandon(self) -> None:
        """End the workers."""
        for worker in self._workers:
            worker.end()


class _Worker:
    def __init__(self, load: Load) -> None:
        self._popen = subprocess.Popen(
            [sys.executable, "-m", "bench.worker"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self.tell(load)

    @property
    def pid(self) -> int:
        return self._popen.pid

    def tell(self, order: object) -> None:
        assert self._popen.stdin is not None
        self._popen.stdin.write(msgspec.json.encode(order) + b"\n")
        self._popen.stdin.flush()

    def _answer(self) -> bytes:
        assert self._popen.stdout is not None
        line = self._popen.stdout.readline()
        if not line:
            code = self._popen.wait()
            raise BenchError(f"a load worker ended with exit code {code}; see its message above")
        return line

    def wait_ready(self) -> None:
        self._answer()

    def outcome(self) -> Outcome:
        found = msgspec.json.decode(self._answer(), type=Outcome)
        self._close()
        return found

    def fill(self) -> None:
        self.wait_ready()
        self.tell("fill")
        self._answer()
        self._close()

    def _close(self) -> None:
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        self._popen.stdin.close()
        self._popen.stdout.close()
        self._popen.wait()

    def end(self) -> None:
        if self._popen.poll() is None:
            self._popen.kill()
        self._close()


def _sleep_until(moment_ns: int) -> None:
    delay = moment_ns - time.monotonic_ns()
    if delay > 0:
        time.sleep(delay / 1e9)


def combine(outcomes: Sequence[Outcome]) -> Outcome:
    """Add up what several workers measured at the same time."""
    errors: dict[str, int] = {}
    for outcome in outcomes:
        for kind, count in outcome.errors.items():
            errors[kind] = errors.get(kind, 0) + count
    steps = max(len(outcome.timeline) for outcome in outcomes)
    timeline = [Bucket() for _ in range(steps)]
    for outcome in outcomes:
        for total, bucket in zip(timeline, outcome.timeline, strict=False):
            total.count += bucket.count
            total.max_ms = max(total.max_ms, bucket.max_ms)
    histogram = merge(outcome.latency.hdr for outcome in outcomes if outcome.latency.hdr)
    return Outcome(
        seconds=outcomes[0].seconds,
        operations=sum(outcome.operations for outcome in outcomes),
        errors=errors,
        latency=figures(histogram),
        timeline=timeline,
        cpu_s=sum(outcome.cpu_s for outcome in outcomes),
        late_us=max(outcome.late_us for outcome in outcomes),
        unsent=sum(outcome.unsent for outcome in outcomes),
        acknowledged=[number for outcome in outcomes for number in outcome.acknowledged],
    )


def result(outcome: Outcome, used: Usage) -> Result:
    """Divide what the servers used by the operations."""
    operations = max(1, outcome.operations)
    disk = used.disk
    return Result(
        outcome=outcome,
        cpu_us_per_op=round(used.cpu_s / operations * 1e6, 2),
        disk_bytes_per_op=None if disk is None else round(disk.written_bytes / operations, 1),
        disk_flushes_per_op=None if disk is None else round(disk.flushes / operations, 3),
        wire_bytes_per_op=round(used.lo_bytes / operations, 1),
        server_cpu_s=round(used.cpu_s, 3),
    )


def spread(addresses: Sequence[str], connections: int) -> list[Target]:
    """Divide connections among addresses, as evenly as it goes."""
    targets = []
    for number, address in enumerate(addresses):
        share = connections // len(addresses) + (number < connections % len(addresses))
        host, _, port = address.rpartition(":")
        if share:
            targets.append(Target(host=host, port=int(port), connections=share))
    return targets


def start(
    workload: Workload,
    addresses: Sequence[str],
    *,
    connections: int,
    seconds: float,
    warm_up_s: float = 0.5,
    rate_per_s: float = 0.0,
    processes: int = 1,
    servers: Servers = NOBODY,
    bucket_ms: int = 1000,
    keep_keys: bool = False,
    first_key: int = 0,
) -> Running:
    """Begin a load; see `run`."""
    processes = min(processes, connections)
    loads = []
    for number in range(processes):
        share = connections // processes + (number < connections % processes)
        loads.append(
            Load(
                workload=msgspec.structs.replace(workload, seed=workload.seed + number),
                targets=spread(addresses, share),
                rate_per_s=rate_per_s / processes,
                bucket_ms=bucket_ms,
                keep_keys=keep_keys,
                first_key=first_key + number * 50_000_000,
            )
        )
    return Running(loads, servers, warm_up_s, seconds)


def run(
    workload: Workload,
    addresses: Sequence[str],
    *,
    connections: int,
    seconds: float,
    warm_up_s: float = 0.5,
    rate_per_s: float = 0.0,
    processes: int = 1,
    servers: Servers = NOBODY,
    bucket_ms: int = 1000,
) -> Result:
    """Load servers and return the figures. The connections are spread over `addresses`."""
    return start(
        workload,
        addresses,
        connections=connections,
        seconds=seconds,
        warm_up_s=warm_up_s,
        rate_per_s=rate_per_s,
        processes=processes,
        servers=servers,
        bucket_ms=bucket_ms,
    ).finish()


def fill(workload: Workload, address: str, connections: int = 64, first_key: int = 0) -> None:
    """Write every key of the workload once; fresh ones from `first_key` up to `keys`."""
    worker = _Worker(
        Load(
            workload=workload,
            targets=spread([address], min(connections, workload.keys)),
            first_key=first_key,
        )
    )
    try:
        worker.fill()
    except BaseException:
        worker.end()
        raise
