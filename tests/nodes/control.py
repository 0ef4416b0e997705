"""The handle by which a test says what is to fail in its nodes (see `faulty_node`)."""

from __future__ import annotations

import os
import resource
import signal
import sys
from pathlib import Path

import msgspec

from tests.nodes.faults import Faults
from tests.support.cluster import Cluster


class FaultyNodes:
    """Makes the nodes of a cluster (before they start) ones that fail on command."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._now: dict[str, Faults] = {}
        for node in cluster.nodes:
            self.add(node)

    def add(self, node: str) -> None:
        """Do so for a node that has come later."""
        command = (sys.executable, "-m", "tests.nodes.faulty_node", str(self._control(node)))
        self._cluster.nodes[node].command = command
        self.set(node)

    def _control(self, node: str) -> Path:
        return self._cluster.directory / f"{node}.faults.json"

    def set(self, node: str, **faults: float | str | bool) -> None:
        """Have just these faults from now on (none: all is well)."""
        self._now[node] = msgspec.convert(faults, Faults)
        path = self._control(node)
        fresh = path.with_suffix(".new")
        fresh.write_bytes(msgspec.json.encode(self._now[node]))
        fresh.replace(path)

    def clear(self, *nodes: str) -> None:
        """Have no faults at these nodes (default: all)."""
        for node in nodes or tuple(self._now):
            self.set(node)

    def stall(self, node: str, ms: float) -> None:
        """Block the node's event loop once."""
        self.set(node, **{**msgspec.structs.asdict(self._now[node]), "stall_ms": ms})
        self._cluster.nodes[node].signal(signal.SIGUSR1)


def limit_files(pid: int, count: int) -> int:
    """Set how many descriptors a running process may have; return what it was."""

    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (count, hard))
    return soft


def open_files(pid: int) -> int:
    """Return how many descriptors a process has."""
    return len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208


def first_free_file(pid: int) -> int:
    """Return the lowest descriptor that a process does not use: as its limit, it gets no more."""
    used = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}  # noqa: PTH208
    return next(number for number in range(len(used) + 1) if number not in used)
