"""Transactions, watches, leases and locks beside etcd, in one run, round by round."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import msgspec

from bench import contenders, etcd_grpc, loads, watch
from bench.context import Context, plain
from bench.headline import medians, ratio
from bench.peers.etcd import Etcd
from bench.peers.onecopy import Onecopy
from bench.peers.process import MissingPeerError, Peer
from bench.spec import Outcome, Workload

WARM_UP_S = 0.3
KEYS = 1000
LEASES = 1000
LEASE_S = 600
BATCH = 100
"""How many leases one of onecopy's requests keeps alive, beside one with a single one."""
WAITING = (1, 10, 100)
"""How many wait for the lock beside its holder."""
OURS, GATEWAY, GRPC = "onecopy", "etcd gateway", "etcd gRPC"
BATCHES = f"onecopy, {BATCH} in a request"
TXN_64, TXN_1 = "transactions, 64 clients", "transactions, 1 client"
KEEP_ALIVES = "lease keep-alives, 64 clients"
SEEN = f"a write seen by {watch.WATCHERS:,} watchers"


def hand_over_name(waiting: int) -> str:
    """Return the name of the measure."""
    return f"lock hand-over, {waiting} waiting"


Figures = dict[str, Any]
Measure = Callable[[], Figures]


def run(context: Context) -> dict[str, Any]:
    """Measure each thing at each system in turn, round after round."""
    watch.allow_files(4 * watch.WATCHERS)
    with contextlib.ExitStack() as stack:
        measures, described = _start(context, stack)
        results = measure_in_turn(context, measures, _say)
    return {
        "systems": described,
        "results": results,
        "medians": medians(results),
        "ratios": ratios(results),
    }


def measure_in_turn(
    context: Context,
    measures: dict[str, dict[str, Measure]],
    say: Callable[[Context, str, Figures], None],
    *,
    swaps: bool = False,
) -> dict[str, dict[str, list[Figures]]]:
    """Measure each thing at each system, round after round; return all figures by both names.

    `swaps`: who has begun a round comes last in the next one.
    """
    results: dict[str, dict[str, list[Figures]]] = {
        name: {system: [] for system in systems} for name, systems in measures.items()
    }
    for number in range(context.options.rounds):
        context.say(f"round {number + 1} of {context.options.rounds}")
        step = -1 if swaps and number % 2 else 1
        for name, systems in measures.items():
            for system, measured in list(systems.items())[::step]:
                found = measured()
                results[name][system].append(found)
                say(context, f"{system}: {name}", found)
    return results


def ratios(results: dict[str, dict[str, list[Figures]]]) -> dict[str, dict[str, float | None]]:
    """Return onecopy's figure by each of etcd's: of rates, or of times (median) where it waits."""
    found: dict[str, dict[str, float | None]] = {}
    for name in results:
        field = "per_s" if name in (TXN_64, TXN_1, KEEP_ALIVES) else "p50_ms"
        found[name] = {other: ratio(results, name, field, other) for other in (GATEWAY, GRPC)}
    return found


def _say(context: Context, label: str, found: Figures) -> None:
    errors = f", errors {found['errors']}" if found["errors"] else ""
    context.say(
        f"  {label:<52} {found['per_s']:>8,.0f}/s  p50 {found['p50_ms']:.2f} ms  "
        f"p99 {found['p99_ms']:.2f}  longest {found['max_ms']:.2f}{errors}"
    )


def _start(
    context: Context, stack: contextlib.ExitStack
) -> tuple[dict[str, dict[str, Measure]], list[dict[str, Any]]]:
    """Start the systems; all stay up, idle, while others are measured."""
    names = (TXN_64, TXN_1, KEEP_ALIVES, *map(hand_over_name, WAITING), SEEN)
    measures: dict[str, dict[str, Measure]] = {name: {} for name in names}
    described = []
    makes: dict[str, Callable[..., Peer]] = {OURS: Onecopy, GATEWAY: Etcd}
    for system, make in makes.items():
        if not context.wants(system) and not (system == GATEWAY and context.wants(GRPC)):
            continue
        peer = context.optional(make, stack)
        if peer is None:
            continue
        described.append(msgspec.to_builtins(peer.describe()))
        if context.wants(system):
            _add_http(context, peer, system, measures)
        if isinstance(peer, Etcd) and context.wants(GRPC):
            _add_grpc(context, peer, measures)
    return measures, described


def _add_http(
    context: Context, peer: Peer, system: str, measures: dict[str, dict[str, Measure]]
) -> None:
    address = peer.address(peer.primary())
    txn = Workload(api=peer.api, kind="txn", keys=KEYS)
    loads.fill(txn, address)
    leases = tuple(contenders.grant(peer.api, address, LEASE_S) for _ in range(LEASES))
    kept = Workload(api=peer.api, kind="keep_alive", leases=leases)
    run_number = 0

    def load(workload: Workload, connections: int) -> Measure:
        def measure() -> Figures:
            result = loads.run(
                workload,
                [address],
                connections=connections,
                seconds=context.options.seconds,
                warm_up_s=WARM_UP_S,
                servers=peer.servers,
            )
            found = plain(result)
            found["per_s"] = round(found["per_s"] * workload.batch, 1)
            return found

        return measure

    def hand_over(waiting: int) -> Measure:
        def measure() -> Figures:
            nonlocal run_number
            run_number += 1
            outcome = contenders.hand_over(
                peer.api,
                address,
                f"handover{run_number}",
                contenders=waiting + 1,
                seconds=context.options.seconds,
                warm_up_s=WARM_UP_S,
            )
            return _times(outcome)

        return measure

    def seen() -> Figures:
        return watch.seen_figures(address, peer.api)

    measures[TXN_64][system], measures[TXN_1][system] = load(txn, 64), load(txn, 1)
    measures[KEEP_ALIVES][system] = load(kept, 64)
    if system == OURS:
        measures[KEEP_ALIVES][BATCHES] = load(msgspec.structs.replace(kept, batch=BATCH), 64)
    for waiting in WAITING:
        measures[hand_over_name(waiting)][system] = hand_over(waiting)
    measures[SEEN][system] = seen


def _add_grpc(context: Context, etcd: Etcd, measures: dict[str, dict[str, Measure]]) -> None:
    context.say("building the Go client for etcd over gRPC, if it is not there yet")
    try:
        etcd_grpc.program()
    except MissingPeerError as error:
        context.say(f"left out: {error}")
        context.missing.append(str(error))
        return

    def load(operation: str, connections: int) -> Measure:
        def measure() -> Figures:
            result = etcd_grpc.run(
                etcd,
                operation,
                connections=connections,
                seconds=context.options.seconds,
                warm_up_s=WARM_UP_S,
                keys=KEYS,
            )
            return plain(result)

        return measure

    if not context.wants(GATEWAY):  # nobody has filled it
        loads.fill(Workload(api="etcd", keys=KEYS), etcd.address(etcd.primary()))
    measures[TXN_64][GRPC], measures[TXN_1][GRPC] = load("txn", 64), load("txn", 1)
    measures[KEEP_ALIVES][GRPC] = load("keepalive", 64)
    for waiting in WAITING:
        measures[hand_over_name(waiting)][GRPC] = load("lock", waiting + 1)

    def seen() -> Figures:
        outcome = etcd_grpc.watch(etcd, watchers=watch.WATCHERS, writes=watch.WRITES_SEEN)
        return _times(outcome)

    measures[SEEN][GRPC] = seen


def _times(outcome: Outcome) -> Figures:
    rate = {"per_s": round(outcome.rate, 1), "errors": outcome.errors}
    return {**msgspec.to_builtins(outcome.latency), **rate}
