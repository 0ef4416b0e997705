"""Failover and handover: the longest time without a write around a change of primary."""

from __future__ import annotations

import contextlib
import json
import signal
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from bench import loads
from bench.context import Context
from bench.peers.etcd import Etcd
from bench.peers.onecopy import Onecopy
from bench.peers.process import Peer, fetch, wait_until
from bench.peers.redis import Redis
from bench.render import key
from bench.spec import Workload
from bench.trier import Task, Trier

BEFORE_S = 0.3
RECOVERED_S = 0.3
INTERVAL_MS = 5.0
HANDOVER_INTERVAL_MS = 2.0
HANDOVER_CONNECTIONS = 16


def run(context: Context) -> dict[str, Any]:
    """Kill each system's primary in turn, round after round."""
    with contextlib.ExitStack() as stack:
        peers: list[Peer] = []
        makes: dict[str, Callable[[Path], Peer]] = {
            "onecopy": Onecopy,
            "etcd": Etcd,
            "redis": lambda path: Redis(path, sentinel=True),
        }
        for name, make in makes.items():
            if context.wants(name) and (peer := context.optional(make, stack)):
                peers.append(peer)
        described = []
        for peer in peers:
            if isinstance(peer, Redis):
                peer.wait_for_sentinels()
            described.append(msgspec.to_builtins(peer.describe()))
        found: dict[str, dict[str, Any]] = {
            peer.name: {"gaps_ms": [], "lost": 0, "acknowledged": 0, "failed": {}} for peer in peers
        }
        for number in range(context.options.kills):
            for peer in peers:
                kill_once(peer, found[peer.name], f"f{number:03}")
            gaps = {name: round(item["gaps_ms"][-1]) for name, item in found.items()}
            context.say(f"  kill {number + 1} of {context.options.kills}: longest gap, ms: {gaps}")
    for item in found.values():
        item.update(summary(item["gaps_ms"]))
    return {"systems": described, "results": found, "aims": aims(found)}


class Harm(msgspec.Struct, frozen=True):
    """What befalls a node, and how it is undone once another has taken over.

    `during`: whether the undoing still belongs to the measurement (it may go wrong).
    """

    do: Callable[[Peer, str], None]
    undo: Callable[[Peer, str], None]
    during: bool


def _kill(peer: Peer, node: str) -> None:
    peer.processes[node].end()


KILL = Harm(_kill, lambda peer, node: peer.restart(node), during=False)
STOP = Harm(
    lambda peer, node: peer.processes[node].signal(signal.SIGSTOP),
    lambda peer, node: peer.processes[node].signal(signal.SIGCONT),
    during=True,
)


def kill_once(peer: Peer, found: dict[str, Any], prefix: str, harm: Harm = KILL) -> None:
    """Harm the primary under tries; add the gap and what was lost to `found`; mend the cluster."""
    nodes = [node for node in peer.processes if not node.startswith(("s", "w"))]
    copies = 1 if isinstance(peer, Redis) else 0
    workload = Workload(api=peer.api, prefix=prefix, copies=copies, caller=peer.caller)
    addresses = [peer.address(node) for node in nodes]
    trier = Trier(Task(workload=workload, addresses=addresses, interval_ms=INTERVAL_MS))
    try:
        time.sleep(BEFORE_S)
        primary = peer.primary()
        harmed_ns = time.monotonic_ns()
        harm.do(peer, primary)
        _wait_for_other(peer, primary)
        time.sleep(RECOVERED_S)
        if harm.during:
            harm.undo(peer, primary)
            time.sleep(RECOVERED_S)
        tries = trier.stop()
    finally:
        trier.abandon()
    end_ns = max(item.ended_ns for item in tries.acknowledged)
    found["gaps_ms"].append(round(tries.longest_gap_ms(harmed_ns, end_ns), 1))
    names = [key(workload, item.number) for item in tries.acknowledged]
    found["acknowledged"] += len(names)
    found["lost"] += peer.missing(names, prefix)
    found["double_revisions"] = found.get("double_revisions", 0) + tries.double_revisions()
    for kind, count in tries.failed.items():
        found["failed"][kind] = found["failed"].get(kind, 0) + count
    if not harm.during:
        harm.undo(peer, primary)


def _wait_for_other(peer: Peer, primary: str) -> None:
    """Wait until a write through another node succeeds."""
    workload = Workload(api=peer.api, prefix="probe")
    others = [
        peer.address(node)
        for node in peer.processes
        if node != primary and not node.startswith(("s", "w"))
    ]

    def written() -> bool:
        for address in others:
            if peer.api == "onecopy":
                reply = fetch(
                    address,
                    "PUT",
                    f"/v1/kv/{key(workload, 0)}",
                    b"x",
                    timeout_s=1.0,
                    caller=peer.caller,
                )
            elif peer.api == "etcd":
                body = json.dumps({"key": "cHJvYmU=", "value": "eA=="}).encode()
                reply = fetch(address, "POST", "/v3/kv/put", body, timeout_s=1.0)
            else:
                assert isinstance(peer, Redis)
                if peer.ask_address(address, b"SET", b"probe", b"x").startswith(b"+OK"):
                    return True
                continue
            if reply is not None and reply[0] in {200, 201}:
                return True
        return False

    wait_until(written, f"{peer.name}: a write after {primary} is gone", 60.0)


def summary(values: list[float]) -> dict[str, float]:
    """Return median, 99th percentile (the worst of fewer than 100) and maximum."""
    if not values:
        return {"median_ms": 0.0, "p99_ms": 0.0, "worst_ms": 0.0}
    ordered = sorted(values)
    return {
        "median_ms": round(statistics.median(ordered), 1),
        "p99_ms": ordered[max(0, -(-99 * len(ordered) // 100) - 1)],
        "worst_ms": ordered[-1],
    }


def aims(found: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the aims of a failover with what was reached."""
    if "onecopy" not in found:
        return []
    ours = found["onecopy"]
    worst = ours["worst_ms"]
    title = f"kill -9 of the primary, worst gap of {len(ours['gaps_ms'])}"
    items = [{"aim": title, "wanted": "under 500 ms", "reached": worst, "met": worst < 500}]
    if "etcd" in found:
        for field in ("median_ms", "worst_ms"):
            share = round(ours[field] / found["etcd"][field], 3)
            name = f"the same, {field.removesuffix('_ms')}, by etcd's"
            items.append(
                {"aim": name, "wanted": "at most 0.3 x", "reached": share, "met": share <= 0.3}
            )
    return items


def handover(context: Context) -> dict[str, Any]:
    """Hand over again and again under load; measure the pause of each, and count what failed."""
    pauses, latencies = [], []
    workload = Workload(api="onecopy", prefix="h")
    with context.peer(Onecopy) as cluster:
        addresses = [cluster.address(node) for node in cluster.nodes]
        seconds = context.options.kills * 0.4 + 1.0
        load = loads.start(
            Workload(api="onecopy"),
            addresses,
            connections=HANDOVER_CONNECTIONS,
            seconds=seconds * 3,
            servers=cluster.servers,
            bucket_ms=100,
        )
        trier = Trier(
            Task(
                workload=workload,
                addresses=addresses,
                interval_ms=HANDOVER_INTERVAL_MS,
                deadline_ms=5000,
            )
        )
        times = []
        try:
            time.sleep(0.5)
            for number in range(context.options.kills):
                target = cluster.backups()[number % 2]
                start_ns = time.monotonic_ns()
                cluster.handover(target)
                times.append((start_ns, time.monotonic_ns() + 50_000_000))
                cluster.wait_in_sync()
                time.sleep(0.2)
            tries = trier.stop()
        finally:
            trier.abandon()
            load.abandon()
        names = [key(workload, item.number) for item in tries.acknowledged]
        lost = cluster.missing(names, "h")
    for start_ns, end_ns in times:
        pauses.append(round(tries.longest_gap_ms(start_ns, end_ns), 2))
        around = (
            item.ended_ns - item.started_ns
            for item in tries.acknowledged
            if item.ended_ns >= start_ns and item.started_ns <= end_ns
        )
        latencies.append(round(max(around, default=0) / 1e6, 2))
    steady = [item for item in tries.acknowledged if item.ended_ns < times[0][0]]
    base = summary([round((item.ended_ns - item.started_ns) / 1e6, 2) for item in steady])
    found = summary(pauses)
    failed = sum(tries.failed.values())
    context.say(f"  {len(pauses)} handovers: pause {found}, failed requests {tries.failed}")
    return {
        "connections": HANDOVER_CONNECTIONS,
        "interval_ms": HANDOVER_INTERVAL_MS,
        "pauses_ms": pauses,
        "slowest_request_ms": latencies,
        "steady_latency": base,
        "failed": tries.failed,
        "acknowledged": len(names),
        "lost": lost,
        **found,
        "aims": [
            {
                "aim": f"handover, p99 of the pause, of {len(pauses)}",
                "wanted": "at most 20 ms",
                "reached": found["p99_ms"],
                "met": found["p99_ms"] <= 20,
            },
            {
                "aim": "failed requests in handovers",
                "wanted": "none",
                "reached": failed,
                "met": failed == 0,
            },
        ],
    }
