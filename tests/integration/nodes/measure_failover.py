"""Measure the gap that a killed primary leaves: `python -m …measure_failover [KILLS]`.

One client tries to write all the time; the gap is the longest time without a success around each
kill -9 of the primary, at the default settings, on three nodes of this machine.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path

from tests.support.cluster import Cluster, Writer


async def measure(directory: Path, kills: int) -> list[float]:
    """Return the gaps in milliseconds."""
    cluster = Cluster(directory)
    gaps = []
    try:
        await cluster.start()
        async with Writer(cluster, tasks=1, pause_s=0) as writer:
            for _ in range(kills):
                await writer.progress(50)
                primary = (await cluster.wait_in_sync(*cluster.replicas)).primary
                killed_at = time.monotonic()
                await cluster.kill(primary)
                await cluster.primary(besides=primary)
                await writer.progress(20)
                gaps.append(writer.longest_gap_s(killed_at) * 1000)
                await cluster.start(primary)
        await cluster.wait_converged()
        await writer.verify()
    finally:
        cluster.end()
    return gaps


def main() -> None:
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    with tempfile.TemporaryDirectory() as directory:
        gaps = asyncio.run(measure(Path(directory) / "cluster", kills))
    print("gaps, ms:", [round(gap) for gap in gaps])
    print(f"median {statistics.median(gaps):.0f} ms, worst {max(gaps):.0f} ms of {kills} kills")


if __name__ == "__main__":
    main()
