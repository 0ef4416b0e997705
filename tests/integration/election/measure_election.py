"""Measures what docs/election.md states: run it by hand, it is no test.

python tests/integration/election/measure_election.py [rounds]
"""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

from tests.integration.election.election_groups import Group, NodeProcess, processes

IDLE_S = 5.0


async def failover(nodes: dict[str, NodeProcess], idle_s: float) -> float:
    """Kill the leader after `idle_s`, commit on a survivor; return the seconds; restart it."""
    status = await nodes["n1"].ask(do="status")
    leader = status["leader"]
    await asyncio.sleep(idle_s)
    survivor = next(node for node_id, node in nodes.items() if node_id != leader)
    start = time.monotonic()
    await nodes[leader].kill()
    outcome = await survivor.ask(do="confirm", timeout_ms=5000)
    took_s = time.monotonic() - start
    assert outcome["outcome"] in ("Committed", "Refused"), outcome
    await nodes[leader].start()
    for node in nodes.values():
        await node.ask(do="connected", count=2)
        await node.ask(do="read")
    return took_s


async def silence(nodes: dict[str, NodeProcess]) -> float:
    """Stop the leader without closing its links, as a dead host does; seconds to a commit."""
    leader = (await nodes["n1"].ask(do="status"))["leader"]
    survivor = next(node for node_id, node in nodes.items() if node_id != leader)
    await survivor.ask(do="read")
    os.kill(nodes[leader].pid, signal.SIGSTOP)
    start = time.monotonic()
    outcome = await survivor.ask(do="confirm", timeout_ms=5000)
    took_s = time.monotonic() - start
    os.kill(nodes[leader].pid, signal.SIGCONT)
    assert outcome["outcome"] == "Committed", outcome
    for node in nodes.values():
        await node.ask(do="connected", count=2)
        await node.ask(do="read")
    return took_s


async def latency(node: NodeProcess, count: int) -> list[float]:
    taken = []
    await node.ask(do="read")  # Its view is now the newest.
    for _ in range(count):
        start = time.monotonic()
        outcome = await node.ask(do="confirm")
        taken.append((time.monotonic() - start) * 1000)
        assert outcome["outcome"] == "Committed", outcome
    return sorted(taken)


async def cpu_percent(nodes: dict[str, NodeProcess], duration_s: float) -> dict[str, float]:
    before = {node_id: (await node.ask(do="status"))["cpu_s"] for node_id, node in nodes.items()}
    await asyncio.sleep(duration_s)
    after = {node_id: (await node.ask(do="status"))["cpu_s"] for node_id, node in nodes.items()}
    return {node_id: (after[node_id] - before[node_id]) / duration_s * 100 for node_id in nodes}


async def main(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        async with processes(Group(Path(directory))) as nodes:
            leader = (await nodes["n1"].ask(do="status"))["leader"]
            for node_id, node in nodes.items():
                taken = await latency(node, 300)
                kind = "leader" if node_id == leader else "follower"
                print(f"propose on {kind}: p50 {taken[150]:.2f} ms, p99 {taken[297]:.2f} ms")
            print("idle, % of a core:", await cpu_percent(nodes, 5))
            taken = sorted([await silence(nodes) for _ in range(rounds)])
            print(
                f"leader falls silent (SIGSTOP) to a commit: "
                f"median {statistics.median(taken):.3f} s, worst {taken[-1]:.3f} s of {rounds}"
            )
            for idle_s in (0.0, IDLE_S):
                taken = sorted([await failover(nodes, idle_s) for _ in range(rounds)])
                print(
                    f"kill -9 of the leader to a commit, {idle_s} s idle before: "
                    f"median {statistics.median(taken):.3f} s, worst {taken[-1]:.3f} s of {rounds}"
                )


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 20))
