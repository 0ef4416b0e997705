"""A backup of a large state while writes go on, and the cluster that is restored of it."""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from bench import loads
from bench.context import Context
from bench.growth import (
    LARGE_VALUE_BYTES,
    LIVE,
    LIVE_CONNECTIONS,
    TIMELINE_MS,
    copy_and_sync,
    rate_between,
)
from bench.peers.onecopy import Onecopy
from bench.peers.process import BenchError, fetch_json, output_of
from bench.spec import Workload

SIDE_S = 6.0
"""How long the load is measured before the backup, and after it."""
SLOWEST_MB_PER_S = 25
"""A backup that is slower outlasts the load."""
COMMAND_TIMEOUT_S = 120.0
CLI = (sys.executable, "-m", "cluster.cli.main")


def run(context: Context) -> dict[str, Any]:
    """Back up under 64 writers; restore, and compare the revisions and the first new one."""
    size_mb = context.options.size_mb
    keys = size_mb * 1024 * 1024 // LARGE_VALUE_BYTES
    state = Workload(
        api="onecopy", prefix="s", keys=keys, value_bytes=LARGE_VALUE_BYTES, fresh=True
    )
    with context.directory() as directory, context.peer(Onecopy) as cluster:
        context.say(f"  writing {size_mb} MB")
        address = cluster.address(cluster.primary())
        loads.fill(state, address, connections=16)
        file = directory / "bench.backup"
        rates, backup_s, summary = _backup(cluster, file, 2 * SIDE_S + size_mb / SLOWEST_MB_PER_S)
        context.say(f"  backup in {backup_s:.1f} s; writes/s: {rates}")
        revisions = _revisions(address)
        newest = max(_revisions(address, LIVE.prefix).values())
        cluster.close()
        again = Onecopy(directory / "again", replicas=1)
        try:
            restored_s, restored = _restore(again, file)
            store = next(again.data("n1").glob("store/env-*/data.mdb"))
            copied = {
                name: copy_and_sync(source, directory / "copy")
                for name, source in (("backup", file), ("store", store))
            }
            again.start()
            kept = _revisions(again.address("n1")) == revisions
            loads.fill(LIVE, again.address("n1"))
            rises = min(_revisions(again.address("n1"), LIVE.prefix).values()) > newest
        finally:
            again.close()
    context.say(f"  restored in {restored_s:.1f} s; cp and fsync: {copied}")
    during = round(rates["during"] / statistics.mean((rates["before"], rates["after"])), 3)
    same = restored["digest"] == summary["digest"] and kept and rises
    return {
        "state_bytes": size_mb * 1024 * 1024,
        "writes_per_s": rates,
        "backup_s": backup_s,
        "restore_s": restored_s,
        "copies": {name: {"s": s, "bytes": size} for name, (s, size) in copied.items()},
        "aims": [
            _aim(f"writes while {size_mb} MB are backed up, by before and after", 0.7, during),
            _aim(
                f"restore of {size_mb} MB, speed by cp and fsync of the store, cached",
                0.5,
                round(copied["store"][0] / restored_s, 3),
            ),
            {
                "aim": "restored: digest and revisions equal, new revisions above",
                "wanted": "yes",
                "reached": same,
                "met": same,
            },
        ],
    }


def _aim(text: str, least: float, reached: float) -> dict[str, Any]:
    return {
        "aim": text,
        "wanted": f"at least {least} x",
        "reached": reached,
        "met": reached >= least,
    }


def _backup(
    cluster: Onecopy, file: Path, seconds: float
) -> tuple[dict[str, int], float, dict[str, Any]]:
    """Return the writes a second, the backup's seconds (process included), and what it says."""
    primary = cluster.address(cluster.primary())
    load = loads.start(
        LIVE,
        [primary],
        connections=LIVE_CONNECTIONS,
        seconds=seconds,
        bucket_ms=TIMELINE_MS,
    )
    try:
        time.sleep(max(0.0, load.times[0] / 1e9 - time.monotonic()) + SIDE_S)
        begin = time.monotonic() - load.times[0] / 1e9
        command = [*CLI, "backup", "create", str(file), "--endpoints", primary, "--no-discover"]
        summary = msgspec.json.decode(output_of([*command, "--json"], COMMAND_TIMEOUT_S))
        end = time.monotonic() - load.times[0] / 1e9
        outcome = load.finish().outcome
    finally:
        load.abandon()
    if end + SIDE_S / 2 > seconds or outcome.errors:
        raise BenchError(f"the backup took {end - begin:.0f} s, or writes failed: {outcome.errors}")
    spans = {"before": (0.0, begin), "during": (begin, end), "after": (end, seconds)}
    rates = {name: round(rate_between(outcome.timeline, *span)) for name, span in spans.items()}
    return rates, round(end - begin, 2), summary


def _restore(target: Onecopy, file: Path) -> tuple[float, dict[str, Any]]:
    """Return the seconds (process included), and what the command says."""
    where = ["--config", str(target.config), "--node", "n1", "--json"]
    begin = time.monotonic()
    said = output_of([*CLI, "restore", str(file), *where], COMMAND_TIMEOUT_S)
    return round(time.monotonic() - begin, 2), msgspec.json.decode(said)


def _revisions(address: str, prefix: str = "s") -> dict[str, int]:
    """Return the revisions of the first thousand keys with a prefix."""
    query = f"prefix={prefix}&limit=1000&keys_only=true"
    page = fetch_json(address, "GET", f"/v1/kv?{query}", timeout_s=30.0)
    if not page or not page["items"]:
        raise BenchError(f"{address} does not list its keys")
    return {item["key"]: item["revision"] for item in page["items"]}
