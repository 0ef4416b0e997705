"""What the servers used: CPU seconds, bytes written to disk, bytes on the loopback interface."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Usage(msgspec.Struct, frozen=True):
    """Sums over the processes (`lo_bytes`: over the machine) since each began."""

    cpu_s: float
    disk_bytes: int
    lo_bytes: int

    def since(self, earlier: Usage) -> Usage:
        """Return what was used between."""
        return Usage(
            self.cpu_s - earlier.cpu_s,
            self.disk_bytes - earlier.disk_bytes,
            self.lo_bytes - earlier.lo_bytes,
        )


def usage(pids: Iterable[int]) -> Usage:
    """Read the processes' counters; one that is gone counts nothing.

    Disk: `write_bytes` of /proc/PID/io, what the process made the kernel send to the disk. Wire:
    what `lo` has received, by /proc/net/dev: everything on loopback, the clients' requests and
    replies, TCP/IP headers and bare acknowledgements included.
    """
    cpu, disk = 0.0, 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            cpu += (int(fields[11]) + int(fields[12])) / TICKS_PER_S
            for line in Path(f"/proc/{pid}/io").read_text().splitlines():
                name, _, number = line.partition(": ")
                if name == "write_bytes":
                    disk += int(number)
    return Usage(cpu, disk, _lo_bytes())


def _lo_bytes() -> int:
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == "lo":
            return int(numbers.split()[0])
    return 0


def rss_bytes(pid: int) -> int:
    """Return a process's resident memory; 0 if it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES
    except OSError:
        return 0


def anonymous_bytes(pid: int) -> int:
    """Return the resident memory that is not the mapping of a file; 0 if the process is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    for line in text.splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0
