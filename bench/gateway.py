"""etcd's HTTP/JSON gateway beside onecopy's: puts, reads of a key, watches; round by round."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import msgspec

from bench import loads, watch
from bench.context import Context, plain
from bench.coordination import measure_in_turn
from bench.headline import medians, ratio
from bench.peers.etcd import Etcd
from bench.peers.onecopy import Onecopy
from bench.peers.process import Peer
from bench.spec import Workload

WARM_UP_S = 0.3
KEYS = 1000
CONNECTIONS = (64, 1)
WATCHERS = (1, 100)
OURS, THEIRS = "onecopy", "etcd gateway"
Figures = dict[str, Any]
Measure = Callable[[], Figures]
Measures = dict[str, dict[str, Measure]]


def run(context: Context) -> dict[str, Any]:
    """Measure each thing at both in turn, round after round."""
    with contextlib.ExitStack() as stack:
        measures, described = _start(context, stack)
        results = measure_in_turn(context, measures, _say, swaps=True)
    return {
        "systems": described,
        "results": results,
        "medians": medians(results),
        "ratios": {
            name: {THEIRS: ratio(results, name, _compared(results, name), THEIRS)}
            for name in results
        },
    }


def _say(context: Context, label: str, found: Figures) -> None:
    context.say(
        f"  {label:<48} {found['per_s']:>8,.0f}/s  "
        f"p50 {found['p50_ms']:.2f} ms  p99 {found['p99_ms']:.2f}"
    )


def _compared(results: dict[str, dict[str, list[Figures]]], name: str) -> str:
    """Return which figure the ratio is of: the rate, or the median time where there is none."""
    return "per_s" if any(item["per_s"] for item in results[name][OURS]) else "p50_ms"


def _start(context: Context, stack: contextlib.ExitStack) -> tuple[Measures, list[Figures]]:
    measures: Measures = {}
    described = []
    makes: dict[str, Callable[..., Peer]] = {OURS: Onecopy.shape(etcd=True), THEIRS: Etcd}
    for system, make in makes.items():
        peer = context.optional(make, stack)
        if peer is None:
            continue
        described.append(msgspec.to_builtins(peer.describe()))
        primary = peer.primary()
        address = (
            peer.etcd_addresses[primary] if isinstance(peer, Onecopy) else peer.address(primary)
        )
        _add(context, peer, address, system, measures)
    return measures, described


def _add(context: Context, peer: Peer, address: str, system: str, measures: Measures) -> None:
    puts = Workload(api="etcd", keys=KEYS)
    loads.fill(puts, address)

    def load(workload: Workload, connections: int) -> Measure:
        return lambda: plain(
            loads.run(
                workload,
                [address],
                connections=connections,
                seconds=context.options.seconds,
                warm_up_s=WARM_UP_S,
                servers=peer.servers,
            )
        )

    def seen(watchers: int) -> Measure:
        return lambda: watch.seen_figures(address, "etcd", watchers)

    for connections in CONNECTIONS:
        named = f"{connections} connection{'s' if connections > 1 else ''}"
        gets = msgspec.structs.replace(puts, write_share=0.0)
        for kind, workload in (("puts", puts), ("reads of a key", gets)):
            measured = measures.setdefault(f"{kind}, {named}", {})
            measured[system] = load(workload, connections)
    for watchers in WATCHERS:
        name = f"a put seen by {watchers} watcher{'s' if watchers > 1 else ''}"
        measures.setdefault(name, {})[system] = seen(watchers)
