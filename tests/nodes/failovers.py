"""Kill the primary again and again under load: `python -m tests.nodes.failovers [KILLS]`.

Three nodes at the default settings. The primary is killed (kill -9) under writes, restarted, and in
sync again before the next kill. The *gap* of a kill is the longest time without an acknowledged
write from the kill on. At the end every outcome is compared with what each node holds. Exit code 0
only if nothing acknowledged is missing. `--picture FILE` draws the gaps (needs matplotlib),
`--gaps FILE` keeps them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.support.cluster import Cluster, Writer
from tests.support.ports import use_last_block

LINE_EVERY_KILLS = 10
LONGEST_KILL_S = 60.0


def quantile(sorted_values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least this share of all do not exceed."""
    return sorted_values[max(math.ceil(share * len(sorted_values)) - 1, 0)]


def summary(gaps_ms: Sequence[float]) -> str:
    """Describe the gaps in one line."""
    ordered = sorted(gaps_ms)
    shares = (("median", 0.5), ("p90", 0.9), ("p99", 0.99), ("worst", 1.0))
    return ", ".join(f"{name} {quantile(ordered, share):.0f} ms" for name, share in shares)


async def kill_once(cluster: Cluster, writer: Writer) -> float:
    """Kill the primary once, bring it back, and return the gap in milliseconds."""
    await writer.progress(20)
    primary = (await cluster.wait_in_sync(*cluster.replicas)).primary
    killed_at = time.monotonic()
    await cluster.kill(primary)
    await writer.progress(20)
    gap_ms = writer.longest_gap_s(killed_at) * 1000
    cluster.launch(primary)
    await cluster.wait_in_sync(*cluster.replicas)
    await cluster.wait_started(primary)
    return gap_ms


async def run(directory: Path, kills: int) -> tuple[list[float], int]:
    """Return the gaps in milliseconds, and how many writes were acknowledged."""
    cluster = Cluster(directory)
    gaps: list[float] = []
    started = time.monotonic()
    try:
        await cluster.start()
        async with Writer(cluster, tasks=2) as writer:
            for number in range(1, kills + 1):
                async with asyncio.timeout(LONGEST_KILL_S):
                    gaps.append(await kill_once(cluster, writer))
                if number % LINE_EVERY_KILLS == 0 or number == kills:
                    seconds = time.monotonic() - started
                    print(
                        f"{number}/{kills} kills in {seconds:.0f} s, {len(writer.acknowledged)} "
                        f"writes acknowledged, gap: {summary(gaps)}",
                        flush=True,
                    )
        print("comparing every outcome with what each node holds ...", flush=True)
        await cluster.wait_converged(*cluster.replicas)
        await writer.verify()
    except BaseException:
        print(cluster.tails())
        raise
    finally:
        cluster.end()
    refused, unknown = len(writer.refused), len(writer.unknown)
    print(f"writes refused: {refused}, of unknown outcome: {unknown}")
    return gaps, len(writer.acknowledged)


def draw(gaps_ms: Sequence[float], path: Path) -> None:
    """Draw how often the gap was how long, and the share of kills up to each length."""
    import matplotlib as mpl  # noqa: PLC0415 -- an extra, not for everybody

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "onecopy"
    mpl.rcParams["svg.fonttype"] = "none"  # text stays text
    from matplotlib import pyplot as plt  # noqa: PLC0415

    ordered = sorted(gaps_ms)
    figure, bars = plt.subplots(figsize=(8, 4))
    width = max((ordered[-1] - ordered[0]) / 40, 5)
    edges = [
        ordered[0] + width * step for step in range(int((ordered[-1] - ordered[0]) / width) + 2)
    ]
    bars.hist(ordered, bins=edges, color="#4878a8")
    bars.set_xlabel("longest time without an acknowledged write after kill -9 of the primary, ms")
    bars.set_ylabel("kills")
    share = bars.twinx()
    shares = [100 * (number + 1) / len(ordered) for number in range(len(ordered))]
    share.step(ordered, shares, where="post", color="#b04a3a")
    share.set_ylim(0, 101)
    share.set_ylabel("share of kills up to that, %", color="#b04a3a")
    bars.set_xlim(left=0)
    bars.set_title(f"{len(ordered)} kills: {summary(ordered)}", fontsize=10)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="svg", metadata={"Date": None})


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.nodes.failovers")
    parser.add_argument("kills", type=int, nargs="?", default=20)
    parser.add_argument("--picture", type=Path, help="draw the gaps into this SVG file")
    parser.add_argument("--gaps", type=Path, help="write the gaps (ms) into this JSON file")
    parser.add_argument("--draw-from", type=Path, help="only draw what --gaps has written")
    options = parser.parse_args()
    if options.draw_from:
        draw(json.loads(options.draw_from.read_text()), options.picture)
        return 0
    use_last_block()
    with tempfile.TemporaryDirectory(prefix="onecopy-failovers-") as directory:
        try:
            gaps, acknowledged = asyncio.run(run(Path(directory) / "cluster", options.kills))
        except AssertionError as problem:
            print(f"FAILED: {problem}")
            return 1
        except KeyboardInterrupt:
            return 130
    print(f"kills {len(gaps)}, acknowledged writes {acknowledged}, of them lost 0")
    print(f"gap: {summary(gaps)}")
    if options.gaps:
        options.gaps.write_text(json.dumps([round(gap, 1) for gap in gaps]) + "\n")
    if options.picture:
        draw(gaps, options.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
