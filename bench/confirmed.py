"""What a confirmed read costs: beside a leased one, in the same run, round by round."""

from __future__ import annotations

from statistics import median
from typing import Any

import msgspec

from bench import loads
from bench.context import Context
from bench.peers.onecopy import Onecopy
from bench.spec import Workload

KINDS = ("linearizable", "confirmed")
CONNECTIONS = (1, 16, 64)
WARM_UP_S = 0.3


def run(context: Context) -> dict[str, Any]:
    """Read 100 B values at the primary and at a backup of three replicas, both ways in turn."""
    with context.peer(Onecopy.shape(replicas=3, witnesses=0)) as cluster:
        base = Workload(api="onecopy")
        primary = cluster.primary()
        loads.fill(base, cluster.address(primary))
        places = {"primary": primary, "backup": cluster.backups()[0]}
        rows = [
            _row(context, cluster, base, place, node, connections)
            for place, node in places.items()
            for connections in CONNECTIONS
        ]
    return {"rows": rows}


def _row(
    context: Context,
    cluster: Onecopy,
    base: Workload,
    place: str,
    node: str,
    connections: int,
) -> dict[str, Any]:
    found: dict[str, list[loads.Result]] = {kind: [] for kind in KINDS}
    for number in range(context.options.rounds):
        for kind in KINDS if number % 2 == 0 else reversed(KINDS):
            reads = msgspec.structs.replace(
                base, write_share=0.0, read_query=f"?consistency={kind}"
            )
            result = loads.run(
                reads,
                [cluster.address(node)],
                connections=connections,
                seconds=context.options.seconds,
                warm_up_s=WARM_UP_S,
                servers=cluster.servers,
            )
            context.line(f"{kind}, {place}, {connections}", result)
            found[kind].append(result)
    figures = {
        kind: {
            "per_s": round(median(result.rate for result in results)),
            "p50_ms": round(median(result.outcome.latency.p50_ms for result in results), 3),
            "p99_ms": round(median(result.outcome.latency.p99_ms for result in results), 3),
            "cpu_us_per_op": round(median(result.cpu_us_per_op for result in results), 1),
        }
        for kind, results in found.items()
    }
    return {"place": place, "connections": connections, **figures}
