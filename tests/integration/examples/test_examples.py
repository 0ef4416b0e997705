"""The programs in `examples/`, as a reader runs them, against real nodes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from examples import record_once
from onecopy import Client
from tests.support.cluster import Cluster, wait_until

pytestmark = pytest.mark.slow  # real nodes

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = ROOT / "examples"
END_DEADLINE_S = 30.0


class Program:
    """An example that runs; what it prints goes into a file."""

    def __init__(self, cluster: Cluster, log: Path, name: str, *arguments: str | Path) -> None:
        urls = ",".join(cluster.url(node) for node in cluster.replicas)
        self._log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "error", str(EXAMPLES / name), *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": str(ROOT), "ONECOPY_ENDPOINTS": urls},
            )

    @property
    def lines(self) -> list[str]:
        return self._log.read_text().splitlines()

    async def prints(self, text: str) -> None:
        """Wait for a line that has `text` in it."""
        await wait_until(
            lambda: any(text in line for line in self.lines) or self.ended, f"it prints {text!r}"
        )
        assert any(text in line for line in self.lines), self.lines

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    async def end(self) -> int:
        """Wait for its end, and return its exit code."""
        return await asyncio.to_thread(self.process.wait, END_DEADLINE_S)


@contextmanager
def running(*programs: Program) -> Iterator[None]:
    """Leave none of them behind."""
    try:
        yield
    finally:
        for program in programs:
            program.process.kill()
            program.process.wait()


def test_every_example_is_listed_and_run() -> None:
    tested = Path(__file__).read_text()
    index = (EXAMPLES / "README.md").read_text()
    for path in EXAMPLES.glob("*.py"):
        assert f'"{path.name}"' in tested
        assert f"]({path.name})" in index


async def test_counters_lose_no_increment_though_the_primary_is_killed(
    cluster: Cluster, tmp_path: Path
) -> None:
    counters = [
        Program(cluster, tmp_path / f"{number}.log", "counter.py", "visits", "40")
        for number in range(3)
    ]
    with running(*counters):
        await wait_until(lambda: all(len(each.lines) > 2 for each in counters), "all count")
        await cluster.kill(await cluster.primary())
        assert [await each.end() for each in counters] == [0, 0, 0], [c.lines for c in counters]
    printed = sorted(int(line) for each in counters for line in each.lines)
    assert printed == list(range(1, 121))  # each value once, none left out


async def test_transfers_keep_the_sum_while_the_primary_is_killed(
    cluster: Cluster, tmp_path: Path
) -> None:
    pairs = (("a", "b", 1), ("b", "c", 2), ("c", "a", 3))
    programs = [
        Program(cluster, tmp_path / f"{one}.log", "transfer.py", one, other, str(amount), "25")
        for one, other, amount in pairs
    ]
    with running(*programs):
        await wait_until(lambda: all(len(each.lines) > 2 for each in programs), "all transfer")
        await cluster.kill(await cluster.primary())
        assert [await each.end() for each in programs] == [0, 0, 0], [p.lines for p in programs]

    def balances() -> list[int]:
        with Client([cluster.url(node) for node in cluster.replicas]) as client:
            return [int(item.value) for item in client.list()]

    assert await asyncio.to_thread(balances) == [100 - 25 + 75, 100 - 50 + 25, 100 - 75 + 50]


async def test_a_suspended_worker_loses_its_lock_and_changes_nothing(
    cluster: Cluster, tmp_path: Path
) -> None:
    steps = "12"
    first = Program(cluster, tmp_path / "a.log", "one_worker.py", "job", "a", steps, "5")
    await first.prints("a has done step 2")
    second = Program(cluster, tmp_path / "b.log", "one_worker.py", "job", "b", steps, "5")
    with running(first, second):
        first.process.send_signal(signal.SIGSTOP)
        await second.prints(f"b has done step {steps}")
        assert await second.end() == 0
        first.process.send_signal(signal.SIGCONT)
        assert await first.end() == 1
    assert "a has lost the lock" in first.lines[-1]
    saved = [int(line.split()[-1]) for line in second.lines]
    assert saved == list(range(saved[0], 13))
    assert saved[0] > 2  # it went on, and did not begin anew
    async with cluster.client() as client:
        entry = await client.get("job")
    assert entry is not None
    assert entry.value == steps.encode()


async def test_a_released_lock_is_taken_at_once(cluster: Cluster, tmp_path: Path) -> None:
    for worker, steps in (("a", "1"), ("b", "2")):  # b: well within the TTL of a's lock
        program = Program(cluster, tmp_path / worker, "one_worker.py", "job", worker, steps, "600")
        with running(program):
            assert await program.end() == 0
        assert program.lines == [f"{worker} has done step {steps}"]


async def test_another_leads_when_the_leader_and_the_primary_are_killed(
    cluster: Cluster, tmp_path: Path
) -> None:
    first = Program(cluster, tmp_path / "a.log", "leader.py", "main", "a")
    with running(first):
        await first.prints("a leads, under token")
        second = Program(cluster, tmp_path / "b.log", "leader.py", "main", "b")
        with running(second):
            await second.prints("b: the leader is a")
            await first.prints("members: a b")
            await cluster.kill(await cluster.primary())
            first.process.kill()
            await second.prints("b leads, under token")
            await wait_until(lambda: second.lines[-1] == "members: b", "a is gone")


async def test_a_configuration_is_followed_through_a_failover(
    cluster: Cluster, tmp_path: Path
) -> None:
    program = Program(cluster, tmp_path / "log", "follow_config.py", "config/")
    with running(program):
        await program.prints("none yet")
        async with cluster.client() as client:
            await client.put("config/colour", "blue")
            await program.prints("now: config/colour=blue")
            await cluster.kill(await cluster.primary())
            await client.put("config/colour", "red")
            await program.prints("now: config/colour=red")
            await client.delete("config/colour")
            await wait_until(lambda: program.lines.count("none yet") == 2, "it sees the removal")
        program.process.send_signal(signal.SIGINT)
        assert await program.end() == 0
    assert program.lines == [
        *("none yet", "now: config/colour=blue", "now: config/colour=red", "none yet")
    ]


async def test_a_write_is_applied_once_wherever_its_program_was_killed(
    cluster: Cluster, tmp_path: Path
) -> None:
    journal = tmp_path / "journal"

    async def run(key: str, value: str) -> list[str]:
        program = Program(cluster, tmp_path / value, "record_once.py", journal, key, value)
        with running(program):
            assert await program.end() == 0, program.lines
        return program.lines

    def prepare_order(value: str) -> None:
        with Client([cluster.url(node) for node in cluster.replicas]) as client:
            record_once.prepare(client, journal, "order", value)

    # Killed before it was sent: the next run sends it.
    await asyncio.to_thread(prepare_order, "first")
    left = journal.read_bytes()
    lines = await run("other", "x")
    assert lines[0].startswith("from an earlier run: order was written")
    assert not journal.exists()
    async with cluster.client() as client:
        assert (entry := await client.get("order"))
        assert entry.value == b"first"
        await client.put("order", "another program's")
        # Killed after it was applied: the next run gets the first answer, over a failover too.
        await cluster.kill(await cluster.primary())
        journal.write_bytes(left)
        assert (await run("other", "y"))[0] == lines[0]
        assert (entry := await client.get("order"))
        assert entry.value == b"another program's"
