"""The benchmarks by name, in the order of the tour, with what the tour asks of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from bench import (
    backup,
    confirmed,
    coordination,
    cores,
    failover,
    gateway,
    growth,
    headline,
    lease_kill,
    leases,
    matrix,
    security,
    sizes,
    tradeoffs,
    unordered,
    watch,
)
from bench.context import Context, Options
from bench.patroni import run as patroni


class Benchmark(msgspec.Struct, frozen=True):
    """`default` are the options when it is run by name, `tour` within the 15 minutes."""

    name: str
    summary: str
    run: Callable[[Context], dict[str, Any]]
    default: Options
    tour: Options


ALL = (
    Benchmark(
        "headline",
        "100 B writes and reads beside etcd, Redis, PySyncObj and a bare server; the aims",
        headline.run,
        Options(seconds=3, rounds=5),
        Options(seconds=1.5, rounds=3),
    ),
    Benchmark(
        "failover",
        "kill -9 of the primary: the longest write gap, beside etcd and Redis with Sentinel",
        failover.run,
        Options(kills=50),
        Options(kills=5),
    ),
    Benchmark(
        "handover",
        "planned changes of primary under load: pauses and failed requests",
        failover.handover,
        Options(kills=100),
        Options(kills=20),
    ),
    Benchmark(
        "snapshot",
        "a whole snapshot to a new backup, beside cp and fsync; live writes meanwhile",
        growth.snapshot,
        Options(size_mb=1024),
        Options(size_mb=128),
    ),
    Benchmark(
        "backup",
        "writes while a backup is made, and with the archive on by off; the restore beside cp",
        backup.run,
        Options(size_mb=1024),
        Options(size_mb=64),
    ),
    Benchmark(
        "memory",
        "resident memory over time at a constant load",
        growth.memory,
        Options(minutes=10),
        Options(minutes=0.5),
    ),
    Benchmark(
        "matrix",
        "workloads, sizes, connections, shapes, ack=all and local, closed and open loop",
        matrix.run,
        Options(seconds=3),
        Options(seconds=1),
    ),
    Benchmark(
        "sizes",
        "reads at backups by the primary's; 64 KiB writes by cp and fsync; ranges in two forms",
        sizes.run,
        Options(seconds=1, rounds=5),
        Options(seconds=0.7, rounds=3),
    ),
    Benchmark(
        "confirmed",
        "confirmed reads, which rest on no clock, beside leased ones",
        confirmed.run,
        Options(seconds=2, rounds=5),
        Options(seconds=1, rounds=1),
    ),
    Benchmark(
        "watch",
        "watchers: 10,000 idle ones, one write seen by 1,000, writes beside 1,000 of other keys",
        watch.run,
        Options(seconds=3, rounds=5),
        Options(seconds=1, rounds=2),
    ),
    Benchmark(
        "leases",
        "client leases: 100,000 of them, keep-alives, 10,000 that end at once under writes",
        leases.run,
        Options(seconds=3, rounds=3),
        Options(seconds=1, rounds=1, keys_max=10_000),
    ),
    Benchmark(
        "lease-kill",
        "kill -9 of the primary under 10,000 leases, 1,000 locks with waiters, 1,000 watchers",
        lease_kill.run,
        Options(),
        Options(),
    ),
    Benchmark(
        "coordination",
        "transactions, watches, leases and lock hand-overs beside etcd (4 minutes)",
        coordination.run,
        Options(seconds=2, rounds=3),
        Options(seconds=1, rounds=1),
    ),
    Benchmark(
        "gateway",
        "etcd's HTTP/JSON gateway beside onecopy's: puts, reads of a key, watches (90 seconds)",
        gateway.run,
        Options(seconds=2, rounds=3),
        Options(seconds=1, rounds=1),
    ),
    Benchmark(
        "detector",
        "failure-detector periods: unavailability, and false failovers under stalls",
        tradeoffs.detector,
        Options(kills=10),
        Options(kills=2),
    ),
    Benchmark(
        "early-ack",
        "ack=local: what it saves, and what it loses when the primary is killed",
        tradeoffs.early_ack,
        Options(seconds=3, kills=10),
        Options(seconds=1, kills=2),
    ),
    Benchmark(
        "backups",
        "number of replicas against throughput and latency",
        tradeoffs.backups,
        Options(seconds=3, rounds=3),
        Options(seconds=1, rounds=2),
    ),
    Benchmark(
        "blocking",
        "the cost model: message delay, blocking time, and while a backup is being removed",
        tradeoffs.blocking,
        Options(seconds=3, kills=10),
        Options(seconds=1, kills=3),
    ),
    Benchmark(
        "catch-up",
        "log replay against snapshot by how far behind, and their effect on live traffic",
        growth.catch_up,
        Options(seconds=3),
        Options(seconds=2, keys_max=80_000),
    ),
    Benchmark(
        "keys",
        "cost of a write and resident memory by the number of keys (--keys-max 10000000)",
        growth.keys,
        Options(seconds=3, keys_max=1_000_000),
        Options(seconds=1, keys_max=1_000_000),
    ),
    Benchmark(
        "security",
        "what TLS and tokens cost, beside a plain cluster: rates, CPU, failover",
        security.run,
        Options(seconds=2, rounds=5, kills=9),
        Options(seconds=1, rounds=2, kills=2),
    ),
    Benchmark(
        "unordered",
        "every request to every replica without an agreed order: diverged keys, beside ours",
        unordered.run,
        Options(),
        Options(),
    ),
)
NOT_IN_TOUR = (
    Benchmark(
        "cores",
        "what one node's process serves on a core of its own, by part; an idle group (1 minute)",
        cores.run,
        Options(seconds=3, rounds=3),
        Options(seconds=1, rounds=1),
    ),
    Benchmark(
        "groups",
        "two groups of three nodes beside one: a core for each, and the same two cores (2 minutes)",
        cores.groups,
        Options(seconds=2, rounds=3),
        Options(seconds=1, rounds=1),
    ),
    Benchmark(
        "patroni",
        "PostgreSQL under Patroni: 50 failovers, kills and cuts, beside a three-node etcd (35 min)",
        patroni.run,
        Options(kills=50),
        Options(kills=5),
    ),
)
"""They need more of the machine: cores that they pin; PostgreSQL, and Patroni from PyPI."""
BY_NAME = {benchmark.name: benchmark for benchmark in (*ALL, *NOT_IN_TOUR)}
