"""What bytes cost: large values beside cp and fsync, ranges in two forms, reads at the backups."""

from __future__ import annotations

import http.client
import os
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from bench import loads
from bench.accounting import usage
from bench.context import Context
from bench.peers.onecopy import Onecopy
from bench.peers.process import BenchError
from bench.spec import Workload
from cluster.client.requests import ACCEPT_MSGPACK

CONNECTIONS = 64
WARM_UP_S = 0.3
LARGE_BYTES = 64 * 1024
LARGE_KEYS = 200
RANGE_KEYS, RANGE_VALUE_BYTES = 10_000, 1024
PAGE_LIMIT = 1000
COPY_BYTES = 64 * 1024 * 1024
COPIES = {"cp and fsync": 1, "three cp and fsync at once": 3}
FORMS = {"JSON": {}, "MessagePack": ACCEPT_MSGPACK}


READS, LARGE = "reads at the primary, /s", "64 KiB writes, /s"
RATIOS = (
    ("reads/s at both backups, by the primary's", "reads at both backups, /s", READS, 0.8),
    ("reads/s at one backup, by the primary's", "reads at one backup, /s", READS, 0.8),
    ("64 KiB writes/s, by cp and fsync", LARGE, "cp and fsync", 0.5),
    ("64 KiB writes/s, by three cp and fsync at once", LARGE, "three cp and fsync at once", 0.5),
    (
        "ms of a 10 MB range as JSON, by MessagePack's",
        "range, JSON, ms",
        "range, MessagePack, ms",
        1.0,
    ),
)


def run(context: Context) -> dict[str, Any]:
    """Measure each pair in turn, round after round, in one run."""
    small = Workload(api="onecopy")
    large = Workload(api="onecopy", prefix="large", keys=LARGE_KEYS, value_bytes=LARGE_BYTES)
    listed = Workload(api="onecopy", prefix="r", keys=RANGE_KEYS, value_bytes=RANGE_VALUE_BYTES)
    found: dict[str, list[float]] = {}
    with context.peer(Onecopy) as cluster:
        primary = cluster.address(cluster.primary())
        backups = [cluster.address(node) for node in cluster.backups()]
        for workload in (small, large, listed):
            loads.fill(workload, primary)

        def rate(label: str, workload: Workload, addresses: list[str]) -> None:
            result = loads.run(
                workload,
                addresses,
                connections=CONNECTIONS,
                seconds=context.options.seconds,
                warm_up_s=WARM_UP_S,
                servers=cluster.servers,
            )
            context.line(label, result)
            found.setdefault(f"{label}, /s", []).append(result.rate)
            found.setdefault(f"{label}, CPU us", []).append(result.cpu_us_per_op)

        reads = msgspec.structs.replace(small, write_share=0.0)
        for number in range(context.options.rounds):
            context.say(f"round {number + 1} of {context.options.rounds}")
            rate("reads at the primary", reads, [primary])
            rate("reads at both backups", reads, backups)
            rate("reads at one backup", reads, backups[:1])
            rate("64 KiB writes", large, [primary])
            for name, copies in COPIES.items():
                copied = copied_per_s(context.work / "copies", copies)
                context.say(f"  {name}: {copied:,.0f} x 64 KiB/s")
                found.setdefault(name, []).append(copied)
            for form, headers in FORMS.items():
                for name, value in range_times(cluster, primary, headers, context).items():
                    found.setdefault(f"range, {form}, {name}", []).append(value)
    medians = {name: statistics.median(values) for name, values in found.items()}
    for name, value in medians.items():
        context.say(f"  {name}: {value:,.1f}")
    return {
        "medians": medians,
        "rounds": found,
        "aims": [
            _aim(title, found[ours], found[other], wanted) for title, ours, other, wanted in RATIOS
        ],
    }


def _aim(title: str, ours: list[float], others: list[float], wanted: float) -> dict[str, Any]:
    reached = statistics.median(a / b for a, b in zip(ours, others, strict=True))
    return {
        "aim": title,
        "wanted": f"at least {wanted:g} x",
        "reached": round(reached, 3),
        "met": reached >= wanted,
    }


def copied_per_s(directory: Path, copies: int) -> float:
    """Return how many times 64 KiB a second `cp` and fsync write, of a file in memory.

    `copies` files at once, as replicas that share a disk write them; each counts its own bytes.
    """
    directory.mkdir(exist_ok=True)
    source = directory / "source"
    source.write_bytes(os.urandom(LARGE_BYTES) * (COPY_BYTES // LARGE_BYTES))
    targets = [directory / f"copy-{number}" for number in range(copies)]
    os.sync()
    begin = time.monotonic()
    processes = [
        subprocess.Popen(
            ["dd", f"if={source}", f"of={target}", "bs=1M", "conv=fsync", "status=none"]
        )
        for target in targets
    ]
    failed = [process.wait() for process in processes]
    seconds = time.monotonic() - begin
    for path in (source, *targets):
        path.unlink()
    if any(failed):
        raise BenchError(f"dd has failed in {directory}")
    return COPY_BYTES / LARGE_BYTES / seconds


def range_times(
    cluster: Onecopy, address: str, headers: dict[str, str], context: Context
) -> dict[str, float]:
    """Read the range page by page, decoding each, for some time; return one range's figures."""
    decode: Callable[[bytes], Any] = msgspec.msgpack.decode if headers else msgspec.json.decode
    before, begin, client_begin = usage(cluster.servers), time.monotonic(), time.process_time()
    ranges, size_bytes = 0, 0
    connection = http.client.HTTPConnection(address)
    while not ranges or time.monotonic() < begin + context.options.seconds:
        keys = 0
        cursor: str | None = ""
        while cursor is not None:
            query = f"prefix=r&limit={PAGE_LIMIT}" + (f"&cursor={cursor}" if cursor else "")
            connection.request("GET", f"/v1/kv?{query}", headers=headers)
            body = connection.getresponse().read()
            page = decode(body)
            size_bytes += len(body)
            keys, cursor = keys + len(page["items"]), page["cursor"]
        if keys != RANGE_KEYS:
            raise BenchError(f"the range has {keys} keys, not {RANGE_KEYS}")
        ranges += 1
    seconds, client_s = time.monotonic() - begin, time.process_time() - client_begin
    connection.close()
    used = usage(cluster.servers).since(before)
    return {
        "ms": seconds / ranges * 1e3,
        "CPU of the nodes, ms": used.cpu_s / ranges * 1e3,
        "CPU of the client, ms": client_s / ranges * 1e3,
        "bytes": size_bytes / ranges,
    }
