"""The command `onecopy` as users run it: a process of its own."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: bytes
    err: str


def environment(endpoints: Sequence[str] = (), **env: str) -> dict[str, str]:
    """Return the environment of a command: this one, and which nodes it asks.

    Without the machine's authorities: aiohttp reads all of them when it is imported, which is a
    fifth of what a command takes.
    """
    found = {**os.environ, "PYTHONPATH": str(ROOT), "SSL_CERT_FILE": os.devnull, **env}
    found.pop("ONECOPY_ENDPOINTS", None)
    if endpoints:
        found["ONECOPY_ENDPOINTS"] = ",".join(endpoints)
    return found


async def start(
    *arguments: str | Path,
    endpoints: Sequence[str] = (),
    stdin: int = DEVNULL,
    stdout: int = PIPE,
    **env: str,
) -> Process:
    """Start `onecopy` with arguments; its output is piped."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "cluster.cli.main",
        *map(str, arguments),
        stdin=stdin,
        stdout=stdout,
        stderr=PIPE,
        env=environment(endpoints, **env),
    )


async def finish(process: Process, stdin: bytes | None = None, seconds: float = 30.0) -> Ended:
    """Wait for a command's end."""
    async with asyncio.timeout(seconds):
        out, err = await process.communicate(stdin)
    assert process.returncode is not None
    return Ended(process.returncode, out, err.decode())


async def run(
    *arguments: str | Path, endpoints: Sequence[str] = (), stdin: bytes | None = None, **env: str
) -> Ended:
    """Run `onecopy` with arguments to its end."""
    source = DEVNULL if stdin is None else PIPE
    process = await start(*arguments, endpoints=endpoints, stdin=source, stdout=PIPE, **env)
    return await finish(process, stdin)
