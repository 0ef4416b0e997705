"""What TLS and access control cost: rates beside a plain cluster's, CPU of nodes and of clients."""

from __future__ import annotations

import contextlib
import statistics
from typing import Any

import msgspec

from bench import failover, loads
from bench.context import Context, plain
from bench.loads import Result
from bench.peers.onecopy import Onecopy
from bench.peers.process import BenchError, fetch
from bench.spec import Caller, Workload

SHAPES: dict[str, dict[str, bool]] = {
    "plain": {},
    "tls": {"tls": True},
    "token": {"access": True},
}
LOADS = (("write", 64), ("write", 1), ("read", 64))
AIMS = {"tls": 0.8, "token": 0.9}
"""Least share of a plain cluster's rate at 64 connections."""
FAILOVER_MS = 50.0
"""How much longer than a plain cluster's the median gap under TLS may be."""


def run(context: Context) -> dict[str, Any]:
    """Measure the clusters in turn, round after round; then kill primaries in turn."""
    with contextlib.ExitStack() as stack:
        clusters = {
            shape: stack.enter_context(context.peer(Onecopy.shape(**options)))
            for shape, options in SHAPES.items()
            if context.wants(shape)
        }
        rows = [_load(context, clusters, kind, connections) for kind, connections in LOADS]
    found = _failover(context) if context.wants("failover") else {}
    return {"rows": rows, "failover": found, "aims": aims(rows, found)}


def _load(
    context: Context, clusters: dict[str, Onecopy], kind: str, connections: int
) -> dict[str, Any]:
    callers = {shape: caller_of(cluster) for shape, cluster in clusters.items()}
    measured: dict[str, list[Result]] = {shape: [] for shape in clusters}
    for _ in range(context.options.rounds):
        for shape, cluster in clusters.items():
            share = 1.0 if kind == "write" else 0.0
            workload = Workload(api="onecopy", write_share=share, caller=callers[shape])
            address = cluster.address(cluster.primary())
            loads.fill(msgspec.structs.replace(workload, write_share=1.0), address)
            result = loads.run(
                workload,
                [address],
                connections=connections,
                seconds=context.options.seconds,
                servers=cluster.servers,
            )
            measured[shape].append(result)
    row: dict[str, Any] = {"kind": kind, "connections": connections, "shapes": {}}
    for shape, results in measured.items():
        row["shapes"][shape] = figures(results, measured.get("plain", results))
        context.say(f"  {kind} {connections:>2} {shape:<6} {row['shapes'][shape]['said']}")
    return row


def caller_of(cluster: Onecopy) -> Caller:
    """Return as whom a cluster is loaded: with a token of a role that may do just that."""
    if not cluster.caller.token:
        return cluster.caller
    primary = cluster.address(cluster.primary())
    json_type = {"Content-Type": "application/json"}
    role = msgspec.json.encode({"read": ["b"], "write": ["b"]})
    made = fetch(primary, "PUT", "/v1/roles/bench", role, json_type, caller=cluster.caller)
    body = msgspec.json.encode({"role": "bench"})
    drawn = fetch(primary, "POST", "/v1/tokens", body, json_type, caller=cluster.caller)
    if made is None or drawn is None or drawn[0] != 201:
        raise BenchError(f"no token could be made: {made}, {drawn}")
    token = msgspec.json.decode(drawn[1])["token"]
    return msgspec.structs.replace(cluster.caller, token=token)


def figures(results: list[Result], base: list[Result]) -> dict[str, Any]:
    """Return a shape's medians, and its rate's share of the plain one's, round by round."""
    shares = [own.rate / max(1.0, other.rate) for own, other in zip(results, base, strict=True)]
    share = statistics.median(shares)
    rate = statistics.median(result.rate for result in results)
    nodes_us = statistics.median(result.cpu_us_per_op for result in results)
    client_us = statistics.median(
        result.outcome.cpu_s / max(1, result.outcome.operations) * 1e6 for result in results
    )
    return {
        "per_s": round(rate),
        "share": round(share, 3),
        "shares": [round(each, 3) for each in shares],
        "nodes_cpu_us_per_op": round(nodes_us, 1),
        "client_cpu_us_per_op": round(client_us, 1),
        "rounds": [plain(result) for result in results],
        "said": f"{rate:>7,.0f}/s  {share:.2f} of plain ({min(shares):.2f} to {max(shares):.2f})  "
        f"CPU/op: nodes {nodes_us:.0f} us, client {client_us:.0f} us",
    }


def _failover(context: Context) -> dict[str, Any]:
    found: dict[str, dict[str, Any]] = {}
    with contextlib.ExitStack() as stack:
        clusters = {
            shape: stack.enter_context(context.peer(Onecopy.shape(**SHAPES[shape])))
            for shape in ("plain", "tls")
        }
        for shape in clusters:
            found[shape] = {"gaps_ms": [], "lost": 0, "acknowledged": 0, "failed": {}}
        for number in range(context.options.kills):
            for shape, cluster in clusters.items():
                failover.kill_once(cluster, found[shape], f"f{number:03}")
    for shape, item in found.items():
        item.update(failover.summary(item["gaps_ms"]))
        context.say(f"  kill -9, {shape}: {item['gaps_ms']} ms, median {item['median_ms']}")
    return found


def aims(rows: list[dict[str, Any]], found: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the aims with what was reached."""
    items = []
    for row in rows:
        for shape, least in AIMS.items():
            if row["connections"] == 1 or shape not in row["shapes"]:
                continue
            share = row["shapes"][shape]["share"]
            items.append(
                {
                    "aim": f"{row['kind']}s at {row['connections']} connections, {shape}",
                    "wanted": f"at least {least} of plain",
                    "reached": share,
                    "met": share >= least,
                }
            )
    if found:
        longer = round(found["tls"]["median_ms"] - found["plain"]["median_ms"], 1)
        items.append(
            {
                "aim": "kill -9 under TLS, median gap longer than plain's by",
                "wanted": f"at most {FAILOVER_MS:g} ms",
                "reached": longer,
                "met": longer <= FAILOVER_MS,
            }
        )
    return items
