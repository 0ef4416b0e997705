"""Measures where the border lies: from which latency on does a cluster no longer serve?

    python -m tests.nodes.measure_latency [--witness] [LATENCY_MS …]

For each latency (each way, on every link, data path and consensus) a fresh cluster is observed for
some seconds: how many replicas are in sync at the end, and which part of the probes (a write or a
linearizable read every 20 ms, at each node in turn) succeeded within two seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from pathlib import Path

from tests.nodes.prober import Prober
from tests.nodes.scenario import SHAPES, THREE, WITNESS
from tests.support.cluster import Cluster
from tests.support.partitions import Network
from tests.support.toxiproxy import ToxiproxyServer

SETTLE_S = 5.0
WATCH_S = 5.0


async def measure(directory: Path, shape: str, latency_ms: int) -> str:
    """Return a row of the table."""
    replicas, witnesses = SHAPES[shape]
    cluster = Cluster(directory, replicas=replicas, witnesses=witnesses)
    with ToxiproxyServer(directory / "toxiproxy.log") as server:
        net = Network(cluster, server)
        try:
            await cluster.start()
            if latency_ms:
                await net.toxic_everywhere(
                    "latency", {"latency": latency_ms, "jitter": latency_ms // 10}
                )
            await asyncio.sleep(SETTLE_S)
            async with Prober({node: cluster.url(node) for node in cluster.specs}) as prober:
                await asyncio.sleep(WATCH_S)
                await prober.finish()
                parts = [
                    prober.availability.count(kind, 0) / asked
                    for kind, asked in prober.asked.items()
                ]
            primary = await cluster.serving()
            status = await cluster.status(primary) if primary else None
            in_sync = len(status.in_sync) if status else 0
            return f"| {latency_ms} ms | {in_sync} | {parts[0]:.0%} | {parts[1]:.0%} |"
        finally:
            cluster.end()


def main() -> None:
    """Print a row for each latency."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("latencies_ms", type=int, nargs="*")
    parser.add_argument("--witness", action="store_true")
    args = parser.parse_args()
    for latency_ms in args.latencies_ms or [0, 25, 50, 75, 100, 125, 150, 200, 300, 500]:
        with tempfile.TemporaryDirectory() as directory:
            shape = WITNESS if args.witness else THREE
            print(asyncio.run(measure(Path(directory), shape, latency_ms)), flush=True)


if __name__ == "__main__":
    main()
