"""A writer at each PostgreSQL, what was acknowledged to them, and what must not be among it."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from bench.peers.process import Process, wait_until

WRITER = Path(__file__).with_name("writer.py")


class Commit(NamedTuple):
    """A commit that was acknowledged. Times are monotonic, in ns."""

    number: int
    server: str
    timeline: int
    begun_ns: int
    acknowledged_ns: int


class Writers:
    """A process that writes at each server; `ports` by the servers' names, logs in `home`.

    They are on the servers' own machines, as it were: a server that is cut off goes on being asked.
    """

    def __init__(self, ports: dict[str, str], python: Path, home: Path) -> None:
        self.commits: list[Commit] = []
        self._processes: dict[str, Process] = {}
        self._read: dict[str, int] = {}
        for first, (server, port) in enumerate(ports.items()):
            command = [str(python), str(WRITER), port, str(first), str(len(ports))]
            self._processes[server] = Process(server, command, home / f"{server}.acknowledged")

    def start(self) -> None:
        """Start them."""
        for process in self._processes.values():
            process.start()

    def end(self) -> None:
        """End them."""
        for process in self._processes.values():
            process.end()

    def refresh(self) -> None:
        """Read what has been acknowledged since."""
        for server, process in self._processes.items():
            with process.log_path.open("rb") as log:
                log.seek(self._read.get(server, 0))
                whole = log.read().rpartition(b"\n")[0]
            if not whole:
                continue
            self._read[server] = self._read.get(server, 0) + len(whole) + 1
            for line in whole.splitlines():
                number, timeline, begun_ns, acknowledged_ns = line.split()
                self.commits.append(
                    Commit(
                        int(number), server, int(timeline, 16), int(begun_ns), int(acknowledged_ns)
                    )
                )

    def mark(self) -> int:
        """Return where in `commits` comes what is acknowledged from now on."""
        self.refresh()
        return len(self.commits)

    def wait_for(self, count: int, since_ns: int, deadline_s: float) -> None:
        """Wait until so many commits that were begun since then (monotonic) are acknowledged."""
        mark = len(self.commits)

        def enough() -> bool:
            self.refresh()
            return sum(commit.begun_ns >= since_ns for commit in self.commits[mark:]) >= count

        wait_until(enough, f"{count} more commits are acknowledged", deadline_s, poll_s=0.1)


def longest_gap_s(commits: Iterable[Commit]) -> float:
    """Return the longest time between two acknowledgements, in seconds."""
    times = sorted(commit.acknowledged_ns for commit in commits)
    return max((after - before for before, after in itertools.pairwise(times)), default=0) / 1e9


def of_a_second_primary(commits: Iterable[Commit]) -> list[Commit]:
    """Return the commits of a server that was primary no longer, or beside another.

    Each promotion begins a timeline. So no commit may be acknowledged on an older timeline that was
    begun after one on a newer had been acknowledged, nor two servers write on one timeline.
    """
    ordered = sorted(commits, key=lambda commit: commit.acknowledged_ns)
    newest = list(itertools.accumulate((commit.timeline for commit in ordered), max))
    times = [commit.acknowledged_ns for commit in ordered]
    owners: dict[int, str] = {}
    found = []
    for commit in ordered:
        before = bisect.bisect_left(times, commit.begun_ns)
        is_old = before > 0 and newest[before - 1] > commit.timeline
        if is_old or owners.setdefault(commit.timeline, commit.server) != commit.server:
            found.append(commit)
    return found
