"""A backup of a large state while writes go on, and the cluster that is restored of it."""

from __future__ import annotations

import os
import random
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
from datapath.keyspaces import KV
from datapath.storage.backup_format import BackupEnd, BackupHeader, BackupWriter, make_compressor
from datapath.storage.environment import ContentHash, add_checksum
from datapath.storage.snapshot import DEFAULT_CHUNK_SIZE_BYTES

SIDE_S = 6.0
"""How long the load is measured before the backup, and after it."""
SLOWEST_MB_PER_S = 25
"""A backup that is slower outlasts the load."""
COMMAND_TIMEOUT_S = 120.0
RESTORED_VALUE_BYTES = (LARGE_VALUE_BYTES, 1024)
FROM_DISK = "read from the disk"
SOURCES = (FROM_DISK, "in the page cache")
"""Where the backup is as it is copied and restored. One that is needed was written long ago."""
READ_BYTES = 1024 * 1024
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
            again.start()
            kept = _revisions(again.address("n1")) == revisions
            loads.fill(LIVE, again.address("n1"))
            rises = min(_revisions(again.address("n1"), LIVE.prefix).values()) > newest
        finally:
            again.close()
        context.say(f"  restored in {restored_s:.1f} s")
        restores = [
            row
            for size in RESTORED_VALUE_BYTES
            for row in _restores(context, directory, size_mb * 1024 * 1024, size)
        ]
    archiving = _archiving(context)
    during = round(rates["during"] / statistics.mean((rates["before"], rates["after"])), 3)
    same = restored["digest"] == summary["digest"] and kept and rises
    return {
        "state_bytes": size_mb * 1024 * 1024,
        "writes_per_s": rates,
        "backup_s": backup_s,
        "restore_s": restored_s,
        "restores": restores,
        "archiving": archiving,
        "aims": [
            _aim(f"writes while {size_mb} MB are backed up, by before and after", 0.7, during),
            *(
                _aim(
                    f"restore of {size_mb} MB in values of {row['value_bytes']} B, speed by cp and "
                    f"fsync of the backup, {row['source']}",
                    0.5,
                    row["ratio"],
                )
                for row in restores
            ),
            _aim("writes with the archive on, by off", 0.9, archiving["share"]),
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


def _archiving(context: Context) -> dict[str, Any]:
    """Measure writes with the archive off and on, two clusters in turn."""
    rates: dict[str, list[float]] = {"off": [], "on": []}
    with (
        context.peer(Onecopy) as off,
        context.peer(Onecopy.shape(archive=True)) as on,
    ):
        for _ in range(context.options.rounds):
            for name, cluster in (("off", off), ("on", on)):
                address = cluster.address(cluster.primary())
                result = loads.run(
                    LIVE, [address], connections=LIVE_CONNECTIONS, seconds=context.options.seconds
                )
                rates[name].append(result.rate)
        assert on.archive is not None
        pieces = sum(1 for path in on.archive.rglob("*") if path.is_file())
    if not pieces:
        raise BenchError("nothing was archived")
    shares = [own / base for own, base in zip(rates["on"], rates["off"], strict=True)]
    said = {name: round(statistics.median(found)) for name, found in rates.items()}
    context.say(f"  writes/s with the archive off and on: {said}")
    return {"per_s": said, "objects": pieces, "share": round(statistics.median(shares), 3)}


def _restores(
    context: Context, directory: Path, size: int, value_bytes: int
) -> list[dict[str, Any]]:
    """Restore a backup that does not compress, and copy it, in turn: from the disk, and cached."""
    file = directory / "random.backup"
    _write_backup(file, size, value_bytes)
    found = []
    for source in SOURCES:
        rows = []
        for number in range(context.options.rounds):
            _prepare(file, source)
            copy_s, occupied = copy_and_sync(file, directory / "copy")
            _prepare(file, source)
            with context.directory() as place:
                restore_s, _ = _restore(Onecopy(place / str(number), replicas=1), file)
            rows.append((copy_s / restore_s, copy_s, restore_s))
        ratio, copy_s, restore_s = (statistics.median(column) for column in zip(*rows, strict=True))
        context.say(
            f"  values of {value_bytes} B, {source}: restored in {restore_s:.2f} s, "
            f"cp {copy_s:.2f} s"
        )
        found.append(
            {
                "value_bytes": value_bytes,
                "source": source,
                "backup_bytes": occupied,
                "restore_s": round(restore_s, 2),
                "copy_s": round(copy_s, 2),
                "ratio": round(ratio, 3),
            }
        )
    file.unlink()
    return found


def _prepare(file: Path, source: str) -> None:
    """Have a file in the page cache, or not."""
    with file.open("rb") as opened:
        if source == FROM_DISK:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            return
        while opened.read(READ_BYTES):
            pass


def _write_backup(file: Path, size: int, value_bytes: int) -> None:
    """Write the backup of a state of random values, and keep it in the page cache."""
    chance, writer, total = random.Random(1), BackupWriter(), ContentHash()
    compress = make_compressor().compress
    header = BackupHeader(
        revision=1, epoch=1, cluster="bench", cluster_id="0" * 32, node="n1", created_s=0
    )
    at_once = max(1, DEFAULT_CHUNK_SIZE_BYTES // value_bytes)
    with file.open("wb") as out:
        out.write(writer.begin(header))
        for first in range(0, size // value_bytes, at_once):
            keys = [b"s%09d" % number for number in range(first, first + at_once)]
            items = [(key, add_checksum(key, chance.randbytes(value_bytes))) for key in keys]
            total.update(KV, items)
            chunk = msgspec.msgpack.encode([(KV, *item) for item in items])
            out.write(writer.compressed(compress(chunk)))
        out.write(writer.end(BackupEnd(items=total.count, digest=total.hex())))
        out.flush()
        os.fsync(out.fileno())


def _revisions(address: str, prefix: str = "s") -> dict[str, int]:
    """Return the revisions of the first thousand keys with a prefix."""
    query = f"prefix={prefix}&limit=1000&keys_only=true"
    page = fetch_json(address, "GET", f"/v1/kv?{query}", timeout_s=30.0)
    if not page or not page["items"]:
        raise BenchError(f"{address} does not list its keys")
    return {item["key"]: item["revision"] for item in page["items"]}
