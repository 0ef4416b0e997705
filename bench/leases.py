"""What client leases cost: granting many, keeping them alive, ending many at once."""

from __future__ import annotations

import asyncio
import json
import time
from statistics import median
from typing import Any

from bench import loads
from bench.accounting import Servers, anonymous_bytes, usage
from bench.ask import ask_all
from bench.context import Context
from bench.peers.onecopy import Onecopy
from bench.peers.process import BenchError, wait_until
from bench.render import http, post
from bench.spec import Workload
from bench.trier import Task, Trier

LEASES = 100_000
KEEP_ALIVES = (1, 100, 1000)
"""How many leases a request keeps alive."""
ENDING = 10_000
LONG_TTL_MS = 3_600_000
SHORT_TTL_MS = 15_000
BEFORE_S = 3.0
"""How long before the leases end the writes are watched, to compare."""
CONNECTIONS = 64
INTERVAL_MS = 2.0
WARM_UP_S = 0.3
DEADLINE_S = 120.0


def run(context: Context) -> dict[str, Any]:
    """Measure at the primary of three replicas."""
    with context.peer(Onecopy.shape(replicas=3, witnesses=0)) as cluster:
        ending = [_end(context, cluster, number) for number in range(context.options.rounds)]
        granted, leases = _grant(context, cluster)
        kept = [_keep_alive(context, cluster, leases, number) for number in KEEP_ALIVES]
    return {"granted": granted, "kept": kept, "ending": _summary(ending)}


def _grant(context: Context, cluster: Onecopy) -> tuple[dict[str, Any], list[str]]:
    count = min(LEASES, context.options.keys_max)
    primary = cluster.primary()
    request = post("/v1/leases", json.dumps({"ttl_ms": LONG_TTL_MS})).data
    pid = cluster.processes[primary].pid
    before_bytes, began = anonymous_bytes(pid), time.monotonic()
    answers = asyncio.run(ask_all(cluster.address(primary), [request] * count))
    took_s = time.monotonic() - began
    found = {
        "leases": count,
        "per_s": round(count / took_s),
        "bytes_per_lease": round((anonymous_bytes(pid) - before_bytes) / count),
    }
    context.say(f"  granted: {found}")
    return found, [json.loads(answer)["lease"] for answer in answers]


def _keep_alive(
    context: Context, cluster: Onecopy, leases: list[str], number: int
) -> dict[str, Any]:
    """Keep all alive in turn, `number` in a request."""
    if number == 1:
        posts = [(f"/v1/leases/{lease}/keepalive", "") for lease in leases]
    else:
        posts = [
            ("/v1/leases/keepalive", json.dumps({"leases": leases[at : at + number]}))
            for at in range(0, len(leases), number)
        ]
    address = cluster.address(cluster.primary())
    results = [
        loads.run(
            Workload(api="onecopy", posts=posts),
            [address],
            connections=CONNECTIONS if number == 1 else 4,
            seconds=context.options.seconds,
            warm_up_s=WARM_UP_S,
            servers=cluster.servers,
        )
        for _ in range(context.options.rounds)
    ]
    for result in results:
        context.line(f"keep-alives, {number} in a request", result)
        if result.outcome.errors:
            raise BenchError(f"keep-alives failed: {result.outcome.errors}")
    return {
        "in_a_request": number,
        "per_s": round(median(result.rate for result in results) * number),
        "cpu_us_each": round(median(result.cpu_us_per_op for result in results) / number, 1),
        "p50_ms": round(median(result.outcome.latency.p50_ms for result in results), 2),
        "p99_ms": round(median(result.outcome.latency.p99_ms for result in results), 2),
    }


def _end(context: Context, cluster: Onecopy, number: int) -> dict[str, Any]:
    """End leases at once, each with a key, under a write every INTERVAL_MS."""
    primary = cluster.primary()
    address = cluster.address(primary)
    puts = [
        http("PUT", f"/v1/kv/end/{number}/{key}?ttl_ms={SHORT_TTL_MS}", b"x")
        for key in range(ENDING)
    ]
    leases = [str(json.loads(answer)["revision"]) for answer in asyncio.run(ask_all(address, puts))]
    batches = [leases[at : at + 1000] for at in range(0, ENDING, 1000)]
    asyncio.run(
        ask_all(
            address,
            [post("/v1/leases/keepalive", json.dumps({"leases": part})).data for part in batches],
        )
    )
    due_s = time.monotonic() + SHORT_TTL_MS / 1000
    ended = cluster.metric(primary, "client_leases_ended_total")
    trier = Trier(
        Task(
            workload=Workload(api="onecopy", prefix=f"beside{number}-"),
            addresses=[address],
            interval_ms=INTERVAL_MS,
        )
    )
    try:
        time.sleep(max(0.0, due_s - BEFORE_S - time.monotonic()))
        before_ns, servers = time.monotonic_ns(), Servers([cluster.processes[primary].pid])
        cpu_before = usage(servers)
        time.sleep(max(0.0, due_s - WARM_UP_S - time.monotonic()))
        alone_s, cpu_alone = (time.monotonic_ns() - before_ns) / 1e9, usage(servers)
        from_ns = time.monotonic_ns()
        wait_until(
            lambda: cluster.metric(primary, "client_leases_ended_total") >= ended + ENDING,
            f"{ENDING} leases end",
            DEADLINE_S,
            poll_s=0.05,
        )
        to_ns, cpu_after = time.monotonic_ns(), usage(servers)
        tries = trier.stop()
    finally:
        trier.abandon()
    idle_s = cpu_alone.since(cpu_before).cpu_s / alone_s * (to_ns - from_ns) / 1e9
    found = {
        "leases": ENDING,
        "took_ms": round((to_ns - due_s * 1e9) / 1e6),
        "cpu_us_each": round((cpu_after.since(cpu_alone).cpu_s - idle_s) / ENDING * 1e6, 1),
        "longest_gap_ms": round(tries.longest_gap_ms(from_ns, to_ns), 1),
        "longest_gap_before_ms": round(tries.longest_gap_ms(before_ns, from_ns), 1),
        "failed": tries.failed,
    }
    context.say(f"  ending: {found}")
    return found


def _summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the medians, and the longest gap of all rounds."""
    names = ("leases", "took_ms", "cpu_us_each", "longest_gap_ms", "longest_gap_before_ms")
    found: dict[str, Any] = {name: median(item[name] for item in rounds) for name in names}
    found["worst_gap_ms"] = max(item["longest_gap_ms"] for item in rounds)
    found["rounds"] = rounds
    return found
