"""What the figures were measured on, and when."""

from __future__ import annotations

import datetime as dt
import os
import platform
import statistics
import subprocess
import time
from pathlib import Path

import msgspec

ROOT = Path(__file__).resolve().parents[1]
PROBES = 200


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """`fdatasync_us`: median of appending 4 KiB and flushing it, where the data lay."""

    processor: str
    cores: int
    memory_bytes: int
    kernel: str
    python: str
    filesystem: str
    fdatasync_us: float
    load_average: float


def machine(directory: Path) -> Machine:
    """Describe this machine; `directory` is where the servers keep their data."""
    return Machine(
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        kernel=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        filesystem=filesystem(directory),
        fdatasync_us=round(_fdatasync_us(directory), 1),
        load_average=round(os.getloadavg()[0], 2),
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(": ")[2]
    return platform.machine()


def filesystem(directory: Path) -> str:
    """Return the type of the file system that holds a directory."""
    best, kind = "", "unknown"
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, name, *_ = line.split()
        if directory.is_relative_to(where) and len(where) >= len(best):
            best, kind = where, name
    return kind


def _fdatasync_us(directory: Path) -> float:
    path = directory / "probe"
    times = []
    with path.open("wb", buffering=0) as file:
        for _ in range(PROBES):
            start = time.perf_counter()
            file.write(bytes(4096))
            os.fdatasync(file.fileno())
            times.append((time.perf_counter() - start) * 1e6)
    path.unlink()
    return statistics.median(times)


def commit() -> str:
    """Return the commit that is checked out, with "+" if the product's files differ from it."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD").strip()
        changed = _git(
            "status", "--porcelain", "--", "cluster", "datapath", "election", "bench/*.py"
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+" if changed.strip() else "")


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True, timeout=30
    ).stdout


def today() -> str:
    """Return the time, UTC, to the second."""
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
