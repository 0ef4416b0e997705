"""Trade-offs as pictures: failure detector, early acknowledgement, number of backups."""

from __future__ import annotations

import signal
import statistics
import time
from typing import Any

from bench import failover, loads
from bench.context import Context, plain
from bench.peers.bare import Bare
from bench.peers.onecopy import Onecopy
from bench.peers.relayed import RelayedOnecopy
from bench.render import key
from bench.spec import Workload
from bench.trier import Task, Trier

DETECTORS = (20, 50, 100, 200)
"""Heartbeat intervals, ms. The other periods keep the defaults' proportions to it."""
STALLS_MS = (40, 120, 300, 700)
STALL_PAUSE_S = 0.6
CONVERGE_S = 30.0
DELAYS_MS = (0, 2, 10)
BACKUPS = (1, 2, 3, 4, 5)


def timing(heartbeat_ms: int) -> dict[str, int]:
    """Return `[timing]` for a heartbeat interval, in the proportions of the defaults."""
    lease = 5 * heartbeat_ms
    return {
        "heartbeat_interval_ms": heartbeat_ms,
        "suspect_after_ms": 3 * heartbeat_ms,
        "lease_duration_ms": lease,
        "grace_period_ms": max(6 * heartbeat_ms, lease + -(-lease // 10) + 20),
        "takeover_stagger_ms": heartbeat_ms,
        "ack_timeout_ms": max(1000, 3 * heartbeat_ms),
        "raft_heartbeat_ms": max(10, 4 * heartbeat_ms // 5),
        "raft_election_min_ms": 3 * max(10, 4 * heartbeat_ms // 5) + 30,
        "raft_election_max_ms": 2 * (3 * max(10, 4 * heartbeat_ms // 5) + 30),
        "view_change_timeout_ms": max(1000, 20 * heartbeat_ms),
    }


def detector(context: Context) -> dict[str, Any]:
    """For each detector setting: unavailability after three kinds of harm, and false failovers.

    A false failover: the epoch rises although the stopped primary was continued after d ms.
    """
    rows = []
    for heartbeat in DETECTORS:
        settings = timing(heartbeat)
        found: dict[str, dict[str, Any]] = {
            kind: {"gaps_ms": [], "lost": 0, "acknowledged": 0, "failed": {}}
            for kind in ("killed", "stopped", "cut")
        }
        with context.peer(Onecopy.shape(timing=settings)) as cluster:
            for number in range(context.options.kills):
                failover.kill_once(cluster, found["killed"], f"k{number:03}")
                failover.kill_once(cluster, found["stopped"], f"p{number:03}", failover.STOP)
                cluster.wait_in_sync()
            stalls = [_stalls(cluster, ms, context.options.kills) for ms in STALLS_MS]
            diverged = _differ(cluster)
        with context.peer(RelayedOnecopy.network(raft=True, timing=settings)) as relayed:
            cut = _cut(relayed)
            for number in range(context.options.kills):
                failover.kill_once(relayed, found["cut"], f"c{number:03}", cut)
                relayed.wait_in_sync()
            diverged = diverged or _differ(relayed)
        for item in found.values():
            item.update(failover.summary(item["gaps_ms"]))
        row = {"heartbeat_ms": heartbeat, "timing": settings, "stalls": stalls}
        rows.append(row | found | {"diverged": diverged})
        gaps = {kind: item["gaps_ms"] for kind, item in found.items()}
        lost = sum(item["lost"] for item in (*found.values(), *stalls))
        context.say(
            f"  heartbeat {heartbeat} ms: gaps, ms: {gaps}; "
            f"false failovers {[(item['stall_ms'], item['failovers']) for item in stalls]}; "
            f"lost {lost}, diverged {diverged}"
        )
    return {"rows": rows}


def _cut(cluster: RelayedOnecopy) -> failover.Harm:
    """Cut a node off from all others, and heal it before the measurement ends."""
    return failover.Harm(
        lambda _, node: cluster.cut(node), lambda _, node: cluster.heal(node), during=True
    )


def _differ(cluster: Onecopy) -> bool:
    return len({digest for _, digest in _settled(cluster).values()}) > 1


def _stalls(cluster: Onecopy, stall_ms: int, times: int) -> dict[str, Any]:
    """Stop the primary for `stall_ms` and continue it, several times, under tries."""
    prefix = f"d{stall_ms}x"
    workload = Workload(api="onecopy", prefix=prefix)
    addresses = [cluster.address(node) for node in cluster.replicas]
    trier = Trier(Task(workload=workload, addresses=addresses, interval_ms=10.0, deadline_ms=3000))
    failovers = 0
    gaps = []
    windows = []
    try:
        time.sleep(0.2)
        for _ in range(times):
            primary = cluster.primary()
            before = _epoch(cluster)
            begin = time.monotonic_ns()
            cluster.processes[primary].signal(signal.SIGSTOP)
            time.sleep(stall_ms / 1000)
            cluster.processes[primary].signal(signal.SIGCONT)
            time.sleep(STALL_PAUSE_S)
            cluster.wait_in_sync()
            failovers += _epoch(cluster) > before
            windows.append((begin, time.monotonic_ns()))
        tries = trier.stop()
    finally:
        trier.abandon()
    gaps = [round(tries.longest_gap_ms(*window), 1) for window in windows]
    names = [key(workload, item.number) for item in tries.acknowledged]
    return {
        "stall_ms": stall_ms,
        "stalls": times,
        "failovers": failovers,
        "gaps_ms": gaps,
        "acknowledged": len(names),
        "lost": cluster.missing(names, prefix),
        "double_revisions": tries.double_revisions(),
        "failed": tries.failed,
    }


def _epoch(cluster: Onecopy) -> int:
    status = cluster.status(cluster.primary())
    return int(status["epoch"]) if status else 0


def _settled(cluster: Onecopy) -> dict[str, tuple[int, str]]:
    """Return the digests once all replicas are at one index, or the last ones seen."""
    end = time.monotonic() + CONVERGE_S
    while True:
        found = cluster.digests()
        if len({index for index, _ in found.values()}) == 1 or time.monotonic() > end:
            return found
        time.sleep(0.05)


def early_ack(context: Context) -> dict[str, Any]:
    """`ack=all` against `ack=local`: latency, and what is lost when the primary's machine dies.

    Nodes are `delay_ms` apart; what the network had under way dies with the primary.
    """
    rows = []
    for delay in DELAYS_MS:
        for ack in ("all", "local"):
            query = "" if ack == "all" else "?ack=local"
            losses = []
            point: dict[str, Any] = {}
            for number in range(context.options.kills):
                with context.peer(RelayedOnecopy.network(delay_ms=delay)) as cluster:
                    if not number:
                        result = loads.run(
                            Workload(api="onecopy", query=query),
                            [cluster.address(cluster.primary())],
                            connections=1,
                            seconds=context.options.seconds,
                        )
                        point = plain(result)
                    losses.append(_kill_under_load(cluster, query))
            lost = [item["lost"] for item in losses]
            row = {"ack": ack, "delay_ms": delay, "single": point, "kills": losses}
            rows.append(row | {"lost": sum(lost)})
            context.say(
                f"  ack={ack}, nodes {delay} ms apart: p50 {point['p50_ms']:.2f} ms with 1 "
                f"connection; acknowledged writes lost in {len(losses)} kills: {lost}"
            )
    return {"rows": rows}


def _kill_under_load(cluster: RelayedOnecopy, query: str) -> dict[str, Any]:
    """Kill the primary under 64 writers of new keys; count acknowledged keys that are gone."""
    primary = cluster.primary()
    load = loads.start(
        Workload(api="onecopy", prefix="e", query=query, fresh=True),
        [cluster.address(primary)],
        connections=64,
        seconds=1.0,
        warm_up_s=0.0,
        keep_keys=True,
    )
    try:
        time.sleep(0.7)
        cluster.kill(primary)
        result = load.finish()
    finally:
        load.abandon()
    cluster.primary(besides=primary)  # what counts is what the new primary leads on from
    workload = Workload(api="onecopy", prefix="e")
    names = [key(workload, item) for item in result.outcome.acknowledged]
    return {"acknowledged": len(names), "lost": cluster.missing(names, "e")}


def backups(context: Context) -> dict[str, Any]:
    """Throughput and latency by number of replicas (witnesses make the voters odd)."""
    rows = []
    for replicas in BACKUPS:
        witnesses = 0 if replicas % 2 else 1
        with context.peer(Onecopy.shape(replicas=replicas, witnesses=witnesses)) as cluster:
            row: dict[str, Any] = {"replicas": replicas, "witnesses": witnesses}
            for connections in (1, 64):
                runs = [
                    loads.run(
                        Workload(api="onecopy"),
                        [cluster.address(cluster.primary())],
                        connections=connections,
                        seconds=context.options.seconds,
                        servers=cluster.servers,
                    )
                    for _ in range(context.options.rounds)
                ]
                runs.sort(key=lambda item: item.rate)
                middle = runs[len(runs) // 2]
                context.line(f"{replicas} replicas, {connections} conn.", middle)
                row[str(connections)] = plain(middle)
        rows.append(row)
    return {"rows": rows}


def blocking(context: Context) -> dict[str, Any]:
    """The cost model's figures as measured: message delay, blocking time, and its worst moment.

    Blocking time is taken as one client's write less one client's write on a single replica, which
    executes and flushes but asks nobody. While a backup is being removed: the longest write after
    a backup is killed, or stopped.
    """
    singles: dict[int, float] = {}
    for replicas in (1, 3):
        with context.peer(Onecopy.shape(replicas=replicas)) as cluster:
            result = loads.run(
                Workload(api="onecopy"),
                [cluster.address(cluster.primary())],
                connections=1,
                seconds=context.options.seconds,
            )
            singles[replicas] = result.outcome.latency.p50_ms
            if replicas == 3:
                removals = {
                    name: [
                        _remove_backup(cluster, number, f"{name[0]}{turn:02}")
                        for turn in range(context.options.kills)
                    ]
                    for name, number in (("killed", signal.SIGKILL), ("stopped", signal.SIGSTOP))
                }
    delay = _message_delay_ms(context)
    found = {
        "message_delay_ms": delay,
        "write_p50_ms": singles[3],
        "single_replica_write_p50_ms": singles[1],
        "blocking_ms": round(singles[3] - singles[1], 3),
        "removing_a_backup_ms": removals,
    }
    context.say(f"  {found}")
    return found


def _remove_backup(cluster: Onecopy, number: int, prefix: str) -> float:
    """Return the longest write gap, ms, around the end of a backup; mend the cluster."""
    workload = Workload(api="onecopy", prefix=prefix)
    primary = cluster.primary()
    backup = cluster.backups()[0]
    addresses = [cluster.address(primary)]
    trier = Trier(Task(workload=workload, addresses=addresses, interval_ms=2.0, deadline_ms=5000))
    try:
        time.sleep(0.2)
        begin = time.monotonic_ns()
        if number == signal.SIGKILL:
            cluster.processes[backup].end()
        else:
            cluster.processes[backup].signal(number)
        cluster.wait_in_sync([node for node in cluster.replicas if node != backup])
        time.sleep(0.2)
        end = time.monotonic_ns()
        tries = trier.stop()
    finally:
        trier.abandon()
    if number == signal.SIGKILL:
        cluster.restart(backup)
    else:
        cluster.processes[backup].signal(signal.SIGCONT)
        cluster.wait_in_sync()
    return round(tries.longest_gap_ms(begin, end), 1)


def _message_delay_ms(context: Context) -> float:
    """Return half of a bare server's p50 with one client: a message's delay on this loopback."""
    with context.peer(Bare) as bare:
        rounds = [
            loads.run(
                Workload(api="bare"), [bare.address("bare")], connections=1, seconds=0.5
            ).outcome.latency.p50_ms
            for _ in range(3)
        ]
    return round(statistics.median(rounds) / 2, 4)
