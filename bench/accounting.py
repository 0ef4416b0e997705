"""What servers used: CPU seconds, the disk's bytes and flushes, bytes on the loopback interface."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


SECTOR_BYTES = 512
"""The unit of the kernel's block counters, whatever the device's own sectors are."""
BLOCK_DEVICES = Path("/sys/dev/block")


class Servers(msgspec.Struct, frozen=True):
    """Whose use is counted: these processes, and the disk that holds `directory`."""

    pids: list[int]
    directory: Path | None = None


class Disk(msgspec.Struct, frozen=True):
    """A block device's counters: bytes written, and flushes of its cache."""

    written_bytes: int
    flushes: int


class Usage(msgspec.Struct, frozen=True):
    """Sums over the processes since each began; over the machine for the others.

    `disk` is None where no counter tells it.
    """

    cpu_s: float
    disk: Disk | None
    lo_bytes: int

    def since(self, earlier: Usage) -> Usage:
        """Return what was used between."""
        disk = None
        if self.disk is not None and earlier.disk is not None:
            disk = Disk(
                self.disk.written_bytes - earlier.disk.written_bytes,
                self.disk.flushes - earlier.disk.flushes,
            )
        return Usage(self.cpu_s - earlier.cpu_s, disk, self.lo_bytes - earlier.lo_bytes)


def usage(servers: Servers) -> Usage:
    """Read the counters; a process that is gone counts nothing.

    Disk: the sectors written to the block device that holds the data, and its flushes, by
    everybody: keep the disk idle otherwise. (`write_bytes` of /proc/PID/io is of no use for this:
    where the page cache holds large folios, one dirtied page of 4 KiB counts as the whole folio.)
    Wire: what `lo` has received, by /proc/net/dev: everything on loopback, the clients' requests
    and replies, TCP/IP headers and bare acknowledgements included.
    """
    cpu = 0.0
    for pid in servers.pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            cpu += (int(fields[11]) + int(fields[12])) / TICKS_PER_S
    disk = None if servers.directory is None else disk_counters(servers.directory)
    return Usage(cpu, disk, _lo_bytes())


def disk_counters(directory: Path) -> Disk | None:
    """Return the counters of the block device under a directory; None: there is none.

    File systems without a device of their own (tmpfs, overlay, btrfs, a network) have no counter.
    Kernels before 5.5 count no flushes; they show as none.
    """
    number = directory.stat().st_dev
    counters = BLOCK_DEVICES / f"{os.major(number)}:{os.minor(number)}" / "stat"
    try:
        fields = [int(field) for field in counters.read_text().split()]
    except OSError:
        return None
    return Disk(fields[6] * SECTOR_BYTES, fields[15] if len(fields) > 15 else 0)


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


def disk_text(per_op: float | None, digits: int = 0) -> str:
    """Return how a figure of the disk is shown."""
    return "not known" if per_op is None else f"{per_op:,.{digits}f}"
