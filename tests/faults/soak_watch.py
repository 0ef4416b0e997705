"""What the soak watches beside the recorded load: stale reads, memory, descriptors, disk use."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path

import msgspec

from cluster.client import (
    AsyncClient,
    ClientError,
    NotAppliedError,
    PreconditionFailedError,
    UnknownOutcomeError,
)
from tests.faults.control import open_files
from tests.faults.soak_cluster import SoakCluster
from tests.support.raw_http import kv

SAMPLE_INTERVAL_S = 1.0
DISK_INTERVAL_S = 10.0
WARM_UP_S = 30.0
JUDGED_LIFE_S = 120.0
GROWTH_BYTES = 24 * 1024 * 1024
GROWTH_SHARE = 0.25
GROWTH_FILES = 16
KEY = "sentinel"
READ_INTERVAL_S = 0.04
READ_TIMEOUT_S = 10.0
MAX_OPEN_READS = 60


class Sentinel:
    """One writer counts up under a key; readers at every node must never lag behind.

    A read that began after a number was acknowledged, or was read by anyone, must give at least
    that number. This needs no checker: it is the shortest proof of a stale read.
    """

    def __init__(self, cluster: SoakCluster) -> None:
        self._cluster = cluster
        self.newest = 0  # acknowledged, or seen by a reader
        self.reads = self.writes = self.unanswered = 0
        self.stale: list[str] = []

    async def run(self, stop: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._write(stop))
            for place in range(len(self._cluster.specs)):
                tasks.create_task(self._read(stop, place))

    async def _write(self, stop: asyncio.Event) -> None:
        number, revision = 0, 0
        while not stop.is_set():
            number += 1
            # A condition on each: a write that is delayed for long must not come after a later one.
            async with self._cluster.client(timeout_ms=5000) as client:
                try:
                    while not stop.is_set():
                        result = await client.put(
                            KEY,
                            str(number),
                            if_revision=revision or None,
                            if_absent=not revision,
                        )
                        revision = result.revision
                        self.newest = max(self.newest, number)
                        self.writes += 1
                        number += 1
                        await asyncio.sleep(0.01)
                except (UnknownOutcomeError, NotAppliedError, PreconditionFailedError):
                    number, revision = await self._look(client, stop)

    async def _look(self, client: AsyncClient, stop: asyncio.Event) -> tuple[int, int]:
        """Return what stands under the key now, and its revision."""
        while not stop.is_set():
            try:
                entry = await client.get(KEY)
            except ClientError:
                await asyncio.sleep(0.1)
                continue
            return (int(entry.value), entry.revision) if entry else (0, 0)
        return 0, 0

    async def _read(self, stop: asyncio.Event, place: int) -> None:
        """Ask at a steady pace, whether or not answers come.

        So some requests wait in the sockets of a node that stands still, asked for after others
        have taken over: what it says to those when it wakes is what matters.
        """
        open_reads: set[asyncio.Task[None]] = set()
        try:
            while not stop.is_set():
                if len(open_reads) < MAX_OPEN_READS:
                    task = asyncio.create_task(self._read_once(list(self._cluster.specs)[place]))
                    open_reads.add(task)
                    task.add_done_callback(open_reads.discard)
                await asyncio.sleep(READ_INTERVAL_S)
        finally:
            await asyncio.gather(*open_reads, return_exceptions=True)

    async def _read_once(self, node: str) -> None:
        least = self.newest
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                reply = await self._cluster.fetch(node, "GET", kv(KEY))
        except (OSError, EOFError, TimeoutError):
            self.unanswered += 1
            return
        if reply.status == 200:
            self.reads += 1
            if int(reply.body) < least:
                self.stale.append(f"{node} gave {reply.body!r} when {least} was there")
            self.newest = max(self.newest, int(reply.body))
        elif reply.status == 404 and least:
            self.stale.append(f"{node} knew no number when {least} was there")
        else:
            self.unanswered += 1


class Life(msgspec.Struct):
    """One process of a node: samples of (seconds, private bytes, descriptors)."""

    node: str
    pid: int
    samples: list[tuple[float, int, int]] = []

    @property
    def seconds(self) -> float:
        return self.samples[-1][0] - self.samples[0][0] if self.samples else 0.0

    def growth(self) -> tuple[int, int, int, int]:
        """Return the floors of memory early and late, and of descriptors early and late.

        Early is the second quarter of what comes after the warm-up, late the last quarter. The
        floor is the least value: faults lift both for a while, only a leak lifts the floor.
        """
        first = self.samples[0][0] + WARM_UP_S
        kept = [sample for sample in self.samples if sample[0] >= first]
        quarter = max(len(kept) // 4, 1)
        early, late = kept[quarter : 2 * quarter] or kept, kept[-quarter:]
        return (
            min(sample[1] for sample in early),
            min(sample[1] for sample in late),
            min(sample[2] for sample in early),
            min(sample[2] for sample in late),
        )

    def complaint(self) -> str:
        """Say what grew, "" if nothing did."""
        memory, memory_late, files, files_late = self.growth()
        if memory_late - memory > max(GROWTH_BYTES, int(GROWTH_SHARE * memory)):
            return f"{self.node} grew from {memory >> 20} to {memory_late >> 20} MiB"
        if files_late - files > GROWTH_FILES:
            return f"{self.node} went from {files} to {files_late} file descriptors"
        return ""

    def __str__(self) -> str:
        memory, memory_late, files, files_late = self.growth()
        return (
            f"{self.node} over {self.seconds:.0f} s: {memory / 2**20:.0f} -> "
            f"{memory_late / 2**20:.0f} MiB, {files} -> {files_late} descriptors"
        )


class Resources:
    """Samples every node's memory and descriptors, and the disk use of all."""

    def __init__(self, cluster: SoakCluster) -> None:
        self._cluster = cluster
        self._lives: dict[tuple[str, int], Life] = {}
        self.most_disk_bytes = 0

    async def run(self, stop: asyncio.Event) -> None:
        next_disk = 0.0
        while not stop.is_set():
            now = time.monotonic()
            for node in self._cluster.specs:
                process = self._cluster.nodes[node]
                if process.running:
                    with contextlib.suppress(OSError, ValueError):
                        self._sample(node, process.pid, now)
            if now >= next_disk:
                next_disk = now + DISK_INTERVAL_S
                used = await asyncio.to_thread(self._cluster.disk_bytes)
                self.most_disk_bytes = max(self.most_disk_bytes, used)
            await asyncio.sleep(SAMPLE_INTERVAL_S)

    def _sample(self, node: str, pid: int, now: float) -> None:
        life = self._lives.setdefault((node, pid), Life(node, pid))
        life.samples.append((now, private_bytes(pid), open_files(pid)))

    def judged(self) -> list[Life]:
        """Return the lives that were long enough, the longest first."""
        lives = [life for life in self._lives.values() if life.seconds >= JUDGED_LIFE_S]
        return sorted(lives, key=lambda life: -life.seconds)


def private_bytes(pid: int) -> int:
    """Return a process's anonymous memory: without the files it maps (the store)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"process {pid} is ending")
