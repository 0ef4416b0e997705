"""A process of the bench's own: it gets its orders as a line, and says when it has begun."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec

from bench.peers.process import BenchError

ROOT = Path(__file__).resolve().parents[1]


def start_child(module: str, orders: msgspec.Struct, begun: bytes) -> subprocess.Popen[bytes]:
    """Start `python -m module`, give it its orders, and wait until it says `begun`.

    Raises BenchError if it says anything else, or ends.
    """
    popen = subprocess.Popen(
        [sys.executable, "-m", module],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert popen.stdin is not None
    assert popen.stdout is not None
    popen.stdin.write(msgspec.json.encode(orders) + b"\n")
    popen.stdin.flush()
    if popen.stdout.readline() != begun + b"\n":
        raise BenchError(f"{module} did not start")
    return popen
