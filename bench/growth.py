"""State that grows, replicas that are behind: catch-up, snapshots, cost by size, memory by time."""

from __future__ import annotations

import mmap
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from bench import loads
from bench.accounting import anonymous_bytes, rss_bytes
from bench.context import Context, plain
from bench.peers.onecopy import Onecopy
from bench.peers.process import fetch, wait_until
from bench.spec import Bucket, Workload

BEHIND = (1_000, 5_000, 20_000, 80_000, 320_000)
BEHIND_STATE = Workload(api="onecopy", prefix="c", keys=20_000, value_bytes=1024)
LOG_ONLY: dict[str, int] = {"log_retention_bytes": 1 << 30}
SNAPSHOT_ONLY = {
    "max_value_size_bytes": 65536,
    "log_segment_size_bytes": 262_144,
    "log_retention_bytes": 262_144,
}
"""So little log is kept that a replica soon needs a snapshot."""
LARGE_VALUE_BYTES = 65536
BEHIND_KEYS = 32
LIVE = Workload(api="onecopy", prefix="live")
LIVE_CONNECTIONS = 64
BASELINE_S = 2.0
TIMELINE_MS = 100
GROWTH = (10_000, 100_000, 1_000_000, 10_000_000)
GROWTH_S = 15.0
_MAP_LOCKED = 0x2000  # Linux; Python has no name for it yet
KEYS_SHARE = 0.8
"""Of the rate at the smallest state, at the largest."""
MEMORY_CONNECTIONS = 32
MEMORY_SHARE = 0.5
CATCH_UP_DEADLINE_S = 600.0


class CaughtUp(msgspec.Struct, kw_only=True):
    """A replica's return. Seconds from the start of its process: answering; in sync.

    `transfer_s`: as long as the primary said that it sends a snapshot.
    """

    answers_s: float
    in_sync_s: float
    snapshot: bool
    transfer_s: float


def return_of(cluster: Onecopy, node: str) -> CaughtUp:
    """Start a replica and wait until it is in sync."""
    begin = time.monotonic()
    cluster.processes[node].start()
    answers = snapshot_from = snapshot_to = 0.0
    log = cluster.processes[node].log_path
    size = log.stat().st_size

    def in_sync() -> bool:
        nonlocal answers, snapshot_from, snapshot_to
        now = time.monotonic() - begin
        cluster.check_started()
        if not answers and fetch(cluster.address(node), "GET", "/livez", timeout_s=0.5):
            answers = now
        primary = cluster.serving()  # it may change, on a machine that is busy enough
        status = None if primary is None else cluster.status(primary)
        if status is None:
            return False
        if status["nodes"][node]["state"] == "snapshot":
            snapshot_from = snapshot_from or now
            snapshot_to = now
        return node in status["in_sync"]

    # Each look is three requests to nodes that have other work to do.
    wait_until(in_sync, f"{node} is in sync again", CATCH_UP_DEADLINE_S, poll_s=0.05)
    done = time.monotonic() - begin
    with log.open("rb") as file:
        file.seek(size)
        received = b"receiving a snapshot" in file.read()
    return CaughtUp(
        answers_s=round(answers, 3),
        in_sync_s=round(done, 3),
        snapshot=received,
        transfer_s=round(snapshot_to - snapshot_from, 3),
    )


def catch_up(context: Context) -> dict[str, Any]:
    """Log replay and snapshot by how far behind the backup is; and both under live traffic."""
    rows = []
    for way, limits in (("log", LOG_ONLY), ("snapshot", SNAPSHOT_ONLY)):
        with context.peer(Onecopy.shape(limits=limits)) as cluster:
            loads.fill(BEHIND_STATE, cluster.address(cluster.primary()))
            for behind in (size for size in BEHIND if size <= context.options.keys_max):
                backup = cluster.backups()[0]
                cluster.processes[backup].end()
                cluster.wait_in_sync()
                _overwrite(cluster, behind)
                found = return_of(cluster, backup)
                rows.append({"way": way, "behind": behind, **msgspec.to_builtins(found)})
                context.say(f"  {way}, {behind} entries behind: {found}")
    lives = {}
    for way, limits in (("log", LOG_ONLY), ("snapshot", SNAPSHOT_ONLY)):
        with context.peer(Onecopy.shape(limits=limits)) as cluster:
            lives[way] = _under_load(context, cluster)
    return {
        "state_bytes": BEHIND_STATE.keys * BEHIND_STATE.value_bytes,
        "rows": rows,
        "live": lives,
    }


def _overwrite(cluster: Onecopy, count: int) -> None:
    """Write the state's keys again, in turn: it stays as large, only the log grows."""
    address = cluster.address(cluster.primary())
    while count > 0:
        part = min(count, BEHIND_STATE.keys)
        loads.fill(msgspec.structs.replace(BEHIND_STATE, keys=part), address)
        count -= part


def _under_load(context: Context, cluster: Onecopy) -> dict[str, Any]:
    """Kill a backup and bring it back under a constant closed-loop load; return the timeline."""
    loads.fill(BEHIND_STATE, cluster.address(cluster.primary()))
    primary, backup = cluster.primary(), cluster.backups()[0]
    seconds = max(8.0, 4 * context.options.seconds)
    load = loads.start(
        msgspec.structs.replace(LIVE, value_bytes=1024),
        [cluster.address(primary)],
        connections=LIVE_CONNECTIONS,
        seconds=seconds,
        servers=cluster.servers,
        bucket_ms=TIMELINE_MS,
    )
    try:
        begin = load.times[0] / 1e9
        _sleep_until(begin + 0.2 * seconds)
        cluster.processes[backup].end()
        killed = time.monotonic() - begin
        _sleep_until(begin + 0.4 * seconds)
        started = time.monotonic() - begin
        found = return_of(cluster, backup)
        result = load.finish()
    finally:
        load.abandon()
    context.say(f"  under load: {found}, {result.rate:,.0f}/s, {result.outcome.errors}")
    return {
        "killed_s": round(killed, 3),
        "started_s": round(started, 3),
        "return": msgspec.to_builtins(found),
        "bucket_ms": TIMELINE_MS,
        "timeline": msgspec.to_builtins(result.outcome.timeline),
        "errors": result.outcome.errors,
    }


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))


def snapshot(context: Context) -> dict[str, Any]:
    """A whole snapshot to a replica that is too far behind, beside cp and fsync of its bytes."""
    size = context.options.size_mb * 1024 * 1024
    keys = size // LARGE_VALUE_BYTES
    with context.peer(Onecopy.shape(limits=SNAPSHOT_ONLY)) as cluster:
        primary = cluster.primary()
        new = cluster.backups()[-1]
        cluster.processes[new].end()
        cluster.wait_in_sync()
        workload = Workload(
            api="onecopy",
            prefix="s",
            keys=keys,
            value_bytes=LARGE_VALUE_BYTES,
            fresh=True,
        )
        context.say(f"  writing {context.options.size_mb} MB")
        loads.fill(workload, cluster.address(primary), connections=16)
        before = _live(cluster, BASELINE_S)
        data = max(cluster.data(primary).rglob("data.mdb"), key=lambda path: path.stat().st_blocks)
        copied_s, copied_bytes = copy_and_sync(data, cluster.directory / "copy")
        alone = return_of(cluster, new)
        context.say(f"  cp and fsync of {copied_bytes:,} bytes: {copied_s:.2f} s; snapshot {alone}")
        # Again under live writes: the replica is killed, falls behind, and needs everything anew.
        cluster.processes[new].end()
        cluster.wait_in_sync()
        loads.fill(
            msgspec.structs.replace(workload, fresh=False, keys=BEHIND_KEYS),
            cluster.address(cluster.primary()),
        )
        during, loaded = _live_while(cluster, new, expected_s=4 * alone.in_sync_s + 5)
    share = round(during / before, 3) if before else 0.0
    net_s = max(0.001, alone.in_sync_s - alone.answers_s)
    times = round(net_s / copied_s, 2)
    context.say(f"  under live writes: {loaded}; {during:,.0f}/s of {before:,.0f}/s before")
    return {
        "state_bytes": size,
        "copied_bytes": copied_bytes,
        "copy_s": round(copied_s, 3),
        "alone": msgspec.to_builtins(alone),
        "under_load": msgspec.to_builtins(loaded),
        "live_before_per_s": round(before),
        "live_during_per_s": round(during),
        "aims": [
            {
                "aim": f"snapshot of {context.options.size_mb} MB to a new backup, by cp and fsync",
                "wanted": "at most 2 x",
                "reached": times,
                "met": times <= 2,
            },
            {
                "aim": "live writes meanwhile, by their rate before",
                "wanted": "at least 0.5 x",
                "reached": share,
                "met": share >= 0.5,
            },
        ],
    }


def copy_and_sync(source: Path, target: Path) -> tuple[float, int]:
    """Copy a file and flush it; return the seconds, and the bytes that it occupies."""
    begin = time.monotonic()
    shutil.copyfile(source, target)
    with target.open("rb+") as file:
        os.fsync(file.fileno())
    seconds = time.monotonic() - begin
    occupied = source.stat().st_blocks * 512
    target.unlink()
    return seconds, occupied


def _live(cluster: Onecopy, seconds: float) -> float:
    address = cluster.address(cluster.primary())
    return loads.run(LIVE, [address], connections=LIVE_CONNECTIONS, seconds=seconds).rate


def _live_while(cluster: Onecopy, node: str, expected_s: float) -> tuple[float, CaughtUp]:
    """Return the rate of live writes from the node's first answer until it is in sync."""
    load = loads.start(
        LIVE,
        [cluster.address(cluster.primary())],
        connections=LIVE_CONNECTIONS,
        seconds=expected_s,
        bucket_ms=TIMELINE_MS,
    )
    try:
        time.sleep(1.0)
        begin = time.monotonic() - load.times[0] / 1e9
        found = return_of(cluster, node)
        result = load.finish()
    finally:
        load.abandon()
    return rate_between(
        result.outcome.timeline, begin + found.answers_s, begin + found.in_sync_s
    ), found


def rate_between(timeline: list[Bucket], from_s: float, to_s: float) -> float:
    """Return the operations a second in the steps of TIMELINE_MS that lie in [from_s, to_s]."""
    first = int(from_s * 1000) // TIMELINE_MS
    last = max(first + 1, int(to_s * 1000) // TIMELINE_MS)
    chosen = timeline[first:last]
    if not chosen:
        return 0.0
    return sum(bucket.count for bucket in chosen) / (len(chosen) * TIMELINE_MS / 1000)


def keys(context: Context) -> dict[str, Any]:
    """Rates of writes and reads, and resident memory, by the number of keys; drawn from all."""
    rows = []
    with context.peer(Onecopy) as cluster:
        primary = cluster.primary()
        address = cluster.address(primary)
        held = 0
        for count in (size for size in GROWTH if size <= context.options.keys_max):
            begin = time.monotonic()
            writes = Workload(api="onecopy", prefix="g", fresh=True, keys=count)
            loads.fill(writes, address, first_key=held)
            filled_s, held_before, held = time.monotonic() - begin, held, count
            workload = Workload(api="onecopy", prefix="g", keys=count, drawn=True)
            with in_memory(context, cluster):
                result, read = (
                    loads.run(
                        msgspec.structs.replace(workload, write_share=share),
                        [address],
                        connections=64,
                        # Several flushes fit, and of each as much as belongs to it.
                        seconds=max(GROWTH_S, context.options.seconds),
                        servers=cluster.servers,
                    )
                    for share in (1.0, 0.0)
                )
            context.line(f"{count:,} keys, writes", result)
            context.line(f"{count:,} keys, reads", read)
            memory = {
                node: {
                    "rss_bytes": rss_bytes(cluster.processes[node].pid),
                    "anonymous_bytes": anonymous_bytes(cluster.processes[node].pid),
                }
                for node in cluster.nodes
            }
            rows.append(
                {
                    "keys": count,
                    "fill_per_s": round((count - held_before) / filled_s),
                    "primary": memory[primary],
                    "nodes": memory,
                    "reads_per_s": round(read.rate),
                    **plain(result),
                }
            )
    return {"value_bytes": 100, "rows": rows, "aims": keys_aims(rows)}


@contextmanager
def in_memory(context: Context, cluster: Onecopy) -> Iterator[None]:
    """Hold the stores' files in memory meanwhile, as a machine that has enough of it does.

    Some kernels give back what nobody has read for a minute (DAMON), however much is free.
    """
    held: list[mmap.mmap] = []
    try:
        for path in sorted(cluster.directory.glob("**/data.mdb")):
            with path.open("rb") as file, suppress(ValueError):  # an empty one
                flags = mmap.MAP_SHARED | _MAP_LOCKED
                held.append(mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ))
    except OSError as error:
        context.say(f"  not held in memory (raise the limit `ulimit -l`): {error}")
    try:
        yield
    finally:
        for each in held:
            each.close()


def keys_aims(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the aims of the largest state, by the smallest, with what was reached."""
    small, large = rows[0], rows[-1]
    if large["keys"] == small["keys"]:
        return []
    items = []
    for kind, rate in (("writes", "per_s"), ("reads", "reads_per_s")):
        share = round(large[rate] / small[rate], 3)
        items.append(
            {
                "aim": f"{kind}/s at {large['keys']:,} keys, by those at {small['keys']:,}",
                "wanted": f"at least {KEYS_SHARE} x",
                "reached": share,
                "met": share >= KEYS_SHARE,
            }
        )
    return items


def memory(context: Context) -> dict[str, Any]:
    """Resident memory over time at a constant rate of writes to a fixed set of keys."""
    workload = Workload(api="onecopy", prefix="m", keys=10_000)
    seconds = context.options.minutes * 60
    samples: list[dict[str, Any]] = []
    with context.peer(Onecopy) as cluster:
        address = cluster.address(cluster.primary())
        reached = loads.run(workload, [address], connections=MEMORY_CONNECTIONS, seconds=1.0).rate
        rate = round(reached * MEMORY_SHARE)
        context.say(f"  {rate:,} writes/s for {seconds:g} s")
        load = loads.start(
            workload,
            [address],
            connections=MEMORY_CONNECTIONS,
            seconds=seconds,
            rate_per_s=rate,
            servers=cluster.servers,
        )
        try:
            begin = time.monotonic()
            while (passed := time.monotonic() - begin) < seconds:
                samples.append(
                    {"s": round(passed, 2)}
                    | {
                        node: [rss_bytes(process.pid), anonymous_bytes(process.pid)]
                        for node, process in cluster.processes.items()
                    }
                )
                time.sleep(max(0.25, seconds / 300))
            result = load.finish()
        finally:
            load.abandon()
        nodes = cluster.nodes
    growth = {node: growth_of([sample[node][1] for sample in samples]) for node in nodes}
    context.say(f"  memory's growth over the last two thirds: {growth}")
    worst = max(growth.values())
    return {
        "rate_per_s": rate,
        "samples": samples,
        "load": plain(result),
        "growth": growth,
        "aims": [
            {
                "aim": f"memory over {context.options.minutes:g} min of constant load, last third "
                "by middle third",
                "wanted": "flat: at most 1.1 x",
                "reached": worst,
                "met": worst <= 1.1,
            }
        ],
    }


def growth_of(values: list[int]) -> float:
    """Return the mean of the last third by that of the middle third."""
    third = len(values) // 3
    if not third:
        return 1.0
    middle, last = values[third : 2 * third], values[2 * third :]
    return round((sum(last) / len(last)) / (sum(middle) / len(middle)), 3)
