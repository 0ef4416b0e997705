"""The headline: writes and reads of 100 B beside the peers, in interleaved rounds, and the aims."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable
from typing import Any

import msgspec

from bench import etcd_grpc, loads
from bench.context import Context, plain
from bench.loads import Result
from bench.peers.bare import Bare
from bench.peers.etcd import DebianEtcd, Etcd
from bench.peers.nats import Nats
from bench.peers.onecopy import Onecopy
from bench.peers.process import MissingPeerError, Peer
from bench.peers.redis import Redis
from bench.spec import Workload

KEYS = 1000
WARM_UP_S = 0.5
MEASURES = ("writes, 64 connections", "writes, 1 connection", "reads, 64 connections")
FIELDS = (
    *("per_s", "p50_ms", "p99_ms", "p999_ms", "cpu_us_per_op"),
    *("disk_bytes_per_op", "disk_flushes_per_op", "wire_bytes_per_op", "generator_cpu_share"),
)
ORDER = (
    *("onecopy", "etcd gateway", "etcd gRPC", "Debian's etcd gateway"),
    *("nats", "redis", "bare aiohttp"),
)
Run = Callable[[bool, int], Result]


def run(context: Context) -> dict[str, Any]:
    """Measure every system in turn, round after round."""
    with contextlib.ExitStack() as stack:
        systems, described = _start(context, stack)
        results: dict[str, dict[str, list[dict[str, Any]]]] = {
            measure: {name: [] for name in systems} for measure in MEASURES
        }
        for number in range(context.options.rounds):
            context.say(f"round {number + 1} of {context.options.rounds}")
            for measure in MEASURES:
                read, connections = measure.startswith("reads"), 1 if " 1 " in measure else 64
                for name, measured in systems.items():
                    result = measured(read, connections)
                    context.line(f"{name}: {measure}", result)
                    results[measure][name].append(plain(result))
    return {
        "systems": described,
        "results": results,
        "medians": medians(results),
        "aims": aims(results),
    }


def _start(
    context: Context, stack: contextlib.ExitStack
) -> tuple[dict[str, Run], list[dict[str, Any]]]:
    """Start every system that is wanted and present; all stay up, idle, while others are loaded."""
    systems: dict[str, Run] = {}
    described = []

    def http(peer: Peer, workload: Workload) -> Run:
        def measure(read: bool, connections: int) -> Result:
            return loads.run(
                msgspec.structs.replace(workload, write_share=0.0 if read else 1.0),
                [peer.address(peer.primary())],
                connections=connections,
                seconds=context.options.seconds,
                warm_up_s=WARM_UP_S,
                servers=peer.servers,
            )

        loads.fill(workload, peer.address(peer.primary()))
        return measure

    makes: dict[str, Callable[..., Peer]] = {
        "onecopy": Onecopy,
        "etcd gateway": Etcd,
        "Debian's etcd gateway": DebianEtcd,
        "nats": Nats,
        "redis": Redis,
        "bare aiohttp": Bare,
    }
    for name, make in makes.items():
        grpc = name == "etcd gateway" and context.wants("etcd gRPC")
        if not context.wants(name) and not grpc:
            continue
        peer = context.optional(make, stack)
        if peer is None:
            continue
        description = peer.describe()
        context.say(f"{name}: {description.version}")
        described.append(msgspec.to_builtins(description))
        measure = http(peer, Workload(api=peer.api, keys=KEYS))
        if context.wants(name):
            systems[name] = measure
        if grpc and isinstance(peer, Etcd) and (found := _grpc(context, peer)):
            systems["etcd gRPC"] = found
    return {name: systems[name] for name in ORDER if name in systems}, described


def _grpc(context: Context, etcd: Etcd) -> Run | None:
    context.say("building the Go client for etcd over gRPC, if it is not there yet")
    try:
        etcd_grpc.program()
    except MissingPeerError as error:
        context.say(f"left out: {error}")
        context.missing.append(str(error))
        return None

    def measure(read: bool, connections: int) -> Result:
        return etcd_grpc.run(
            etcd,
            "get" if read else "put",
            connections=connections,
            seconds=context.options.seconds,
            warm_up_s=WARM_UP_S,
            keys=KEYS,
        )

    return measure


Results = dict[str, dict[str, list[dict[str, Any]]]]


def medians(results: Results) -> dict[str, dict[str, dict[str, float | None]]]:
    """Return the median over the rounds of each figure; None of one that a round could not tell."""
    return {
        measure: {
            name: {field: _median([item.get(field) for item in rounds]) for field in FIELDS}
            for name, rounds in systems.items()
            if rounds
        }
        for measure, systems in results.items()
    }


def _median(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if len(known) == len(values) else None


def ratio(results: Results, measure: str, field: str, other: str) -> float | None:
    """Return the median over the rounds of onecopy's figure by another's of the same round."""
    ours, theirs = results[measure].get("onecopy"), results[measure].get(other)
    if not ours or not theirs:
        return None
    ratios = [
        float(mine[field] / its[field])
        for mine, its in zip(ours, theirs, strict=True)
        if its[field]
    ]
    return statistics.median(ratios) if ratios else None


def aims(results: Results) -> list[dict[str, Any]]:
    """Return each aim with what was reached; `met` is None where a peer was missing."""
    writes, single, reads = MEASURES
    wanted = (
        ("writes/s, by etcd's HTTP gateway", writes, "per_s", "etcd gateway", 3.5, True),
        ("writes/s, by etcd's gRPC", writes, "per_s", "etcd gRPC", 3.5, True),
        ("writes/s, by NATS's", writes, "per_s", "nats", 1.5, True),
        ("writes/s, by Redis's", writes, "per_s", "redis", 1.0, True),
        ("writes/s, by the bare aiohttp server", writes, "per_s", "bare aiohttp", 0.7, True),
        (
            "one client's write, p50, by etcd's gateway",
            single,
            "p50_ms",
            "etcd gateway",
            0.6,
            False,
        ),
        ("one client's write, p50, by etcd's gRPC", single, "p50_ms", "etcd gRPC", 0.6, False),
        ("one client's write, p50, by NATS's", single, "p50_ms", "nats", 1.0, False),
        ("one client's write, p50, by Redis's", single, "p50_ms", "redis", 1.2, False),
        ("linearizable reads/s, by etcd's gateway", reads, "per_s", "etcd gateway", 5.0, True),
        ("linearizable reads/s, by etcd's gRPC", reads, "per_s", "etcd gRPC", 5.0, True),
    )
    found = []
    for title, measure, field, other, aim, at_least in wanted:
        reached = ratio(results, measure, field, other)
        met = None if reached is None else (reached >= aim if at_least else reached <= aim)
        sign = "at least" if at_least else "at most"
        found.append(
            {
                "aim": title,
                "wanted": f"{sign} {aim:g} x",
                "reached": None if reached is None else round(reached, 3),
                "met": met,
            }
        )
    return found
