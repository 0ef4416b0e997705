"""etcd over gRPC: loaded by a small Go program (`bench/go/etcdload`) with etcd's own client.

A Python gRPC client would be measured, not etcd. The program is built once into the cache.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import msgspec

from bench.accounting import usage
from bench.histogram import figures, merge
from bench.loads import Result, result
from bench.peers.etcd import Etcd
from bench.peers.process import BenchError, go_program
from bench.spec import Outcome

SOURCE = Path(__file__).resolve().parent / "go" / "etcdload"


class _Line(msgspec.Struct):
    seconds: float
    operations: int
    errors: dict[str, int]
    hdr: str
    cpu_s: float


def program() -> Path:
    """Return the built program, building it if need be. Raises MissingPeerError without Go."""
    return go_program("etcdload", SOURCE)


def run(
    etcd: Etcd,
    operation: str,
    *,
    connections: int,
    seconds: float,
    warm_up_s: float = 0.5,
    value_bytes: int = 100,
    keys: int = 1000,
    prefix: str = "b",
) -> Result:
    """Load the leader through gRPC for some time, and return the figures.

    `operation` is put, get, txn, keepalive, or lock (the times are those of hand-overs).
    """
    command = _command(etcd, operation, connections, prefix)
    command += ["-warm-up", str(warm_up_s), "-seconds", str(seconds)]
    command += ["-value-bytes", str(value_bytes), "-keys", str(keys)]
    with _started(command) as stdout:
        time.sleep(warm_up_s)
        before = usage(etcd.servers)
        time.sleep(seconds)
        used = usage(etcd.servers).since(before)
        return result(_outcome(stdout), used)


def watch(etcd: Etcd, *, watchers: int, writes: int) -> Outcome:
    """Have watchers see writes, one after the other; the times are those until each has its event.

    Each watcher has a connection of its own.
    """
    command = [*_command(etcd, "watch", watchers, "w"), "-writes", str(writes)]
    with _started(command) as stdout:
        return _outcome(stdout)


def _command(etcd: Etcd, operation: str, connections: int, prefix: str) -> list[str]:
    command = [str(program()), "-endpoint", etcd.address(etcd.primary())]
    command += ["-operation", operation, "-connections", str(connections), "-prefix", prefix]
    return command


@contextlib.contextmanager
def _started(command: list[str]) -> Iterator[IO[bytes]]:
    """Start the program, wait until its connections are open, and let it begin."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as popen:
        assert popen.stdin is not None
        assert popen.stdout is not None
        try:
            if popen.stdout.readline() != b"ready\n":
                raise BenchError(f"{command[0]} did not start")
            popen.stdin.write(b"go\n")
            popen.stdin.flush()
            yield popen.stdout
        finally:
            popen.kill()


def _outcome(stdout: IO[bytes]) -> Outcome:
    line = stdout.readline()
    if not line:
        raise BenchError("etcdload has failed; see its message above")
    found = msgspec.json.decode(line, type=_Line)
    return Outcome(
        seconds=found.seconds,
        operations=found.operations,
        errors=found.errors,
        latency=figures(merge([found.hdr])),
        timeline=[],
        cpu_s=found.cpu_s,
    )
