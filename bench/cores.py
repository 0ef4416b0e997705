"""What a core carries: one node's process on a core of its own, an idle group, groups on cores."""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sysconfig
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from bench import loads
from bench.accounting import Servers, anonymous_bytes, rss_bytes, usage
from bench.context import Context, plain
from bench.loads import Running
from bench.peers.onecopy import Onecopy
from bench.peers.process import BenchError, Process
from bench.spec import Load, Workload

KEYS = 1000
CONNECTIONS = 64
WARM_UP_S = 0.5
SETTLE_S = 2.0
"""Before an idle group is measured."""
SAMPLES_PER_S = 200
"""Of the profiler. It stops the process for each: rates under it are not reported."""
PROFILER = Path(sysconfig.get_path("scripts")) / "py-spy"
LOADS = {"writes": 1.0, "reads": 0.0}
ROOMS = {
    "cluster/api/": "HTTP",
    "cluster/services/": "the service",
    "datapath/execution/": "execution",
    "datapath/protocol/": "replication",
    "datapath/storage/": "log and store",
    "datapath/transport/": "links between nodes",
    "datapath/node/": "interpreter and router",
    "election/": "consensus",
}
"""What the innermost frame of a project's file counts as; no such frame: the event loop."""
LOOP = "event loop"
Figures = dict[str, Any]


def cores() -> tuple[int, int]:
    """Return two cores of this machine. Raises BenchError if there is one only."""
    found = sorted(os.sched_getaffinity(0))
    if len(found) < 2:
        raise BenchError("needs two cores")
    return found[0], found[1]


def pin(pids: Iterable[int], allowed: set[int]) -> None:
    """Let processes run on these cores only, each of their threads."""
    for pid in pids:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(int(thread.name), allowed)


@contextlib.contextmanager
def on(allowed: set[int]) -> Iterator[None]:
    """Start what is started meanwhile on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, allowed)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


# -- one node's process


def run(context: Context) -> Figures:
    """Measure the primary on a core of its own, all else on another; and a group that is idle."""
    first, second = cores()
    with context.peer(Onecopy) as peer:
        idle = _idle(context, peer)
        primary = peer.processes[peer.primary()]
        pin((pid for pid in peer.servers.pids if pid != primary.pid), {second})
        pin([primary.pid], {first})
        loads.fill(_workload(1.0), peer.address(primary.name))
        results: dict[str, list[Figures]] = {name: [] for name in LOADS}
        shares: dict[str, dict[str, float]] = {}
        with on({second}):
            for number in range(context.options.rounds):
                context.say(f"round {number + 1} of {context.options.rounds}")
                for name, writes in LOADS.items():
                    results[name].append(_one(context, peer, primary, name, writes))
            for name, writes in LOADS.items():
                if found := _shares(context, peer, primary, writes):
                    shares[name] = found
                    told = ", ".join(f"{room} {share:.0%}" for room, share in found.items())
                    context.say(f"  {name}, main thread: {told}")
    medians = {
        name: {field: statistics.median(item[field] for item in rounds) for field in FIELDS}
        for name, rounds in results.items()
    }
    return {"idle": idle, "results": results, "medians": medians, "shares": shares}


FIELDS = ("per_s", "core", "primary_us_per_op", "full_core_per_s")


def _workload(writes: float, prefix: str = "b") -> Workload:
    return Workload(api="onecopy", keys=KEYS, write_share=writes, prefix=prefix)


def _begin(context: Context, peer: Onecopy, node: str, writes: float) -> Running:
    return loads.start(
        _workload(writes),
        [peer.address(node)],
        connections=CONNECTIONS,
        seconds=context.options.seconds,
        warm_up_s=WARM_UP_S,
        servers=Servers([peer.processes[node].pid], peer.directory),
    )


def _one(context: Context, peer: Onecopy, primary: Process, name: str, writes: float) -> Figures:
    """Return a load's figures. `core`: how much of its core the primary's process used."""
    result = _begin(context, peer, primary.name, writes).finish()
    figures = plain(result)
    spent_us = result.cpu_us_per_op
    figures |= {
        "core": round(result.server_cpu_s / result.outcome.seconds, 3),
        "primary_us_per_op": spent_us,
        "full_core_per_s": round(1e6 / spent_us) if spent_us else 0,
    }
    context.say(
        f"  {name:<7} {result.rate:>8,.0f}/s, primary {figures['core']:.0%} of its core, "
        f"{spent_us:.1f} us each: {figures['full_core_per_s']:,}/s if it were full; generator "
        f"{figures['generator_cpu_share']:.0%} of the other"
    )
    return figures


def _shares(context: Context, peer: Onecopy, primary: Process, writes: float) -> dict[str, float]:
    """Return each room's share of the main thread's time under the interpreter's lock."""
    if not PROFILER.exists():
        context.say(f"shares left out: {PROFILER.name} is not installed (`make install`)")
        return {}
    output = peer.directory / "samples"
    seconds = max(1, round(context.options.seconds))
    running = _begin(context, peer, primary.name, writes)
    profiler = subprocess.run(
        [
            *(PROFILER, "record", "--pid", str(primary.pid), "--duration", str(seconds)),
            *("--rate", str(SAMPLES_PER_S), "--gil", "--threads", "--full-filenames"),
            *("--format", "raw", "--output", output),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds + 60,
    )
    running.finish()
    if profiler.returncode:
        context.say(f"shares left out: {profiler.stderr.strip()[-300:]}")
        return {}
    return shares_of(output.read_text().splitlines())


def shares_of(lines: Iterable[str]) -> dict[str, float]:
    """Return the share of each room in samples, `frame;frame;… count`; the largest first."""
    counts: Counter[str] = Counter()
    for line in lines:
        stack, _, count = line.rpartition(" ")
        if "MainThread" in stack:
            counts[_room(stack.split(";"))] += int(count)
    total = counts.total()
    return {room: round(count / total, 3) for room, count in counts.most_common()}


def _room(frames: list[str]) -> str:
    for frame in reversed(frames):
        for folder, room in ROOMS.items():
            if f"/{folder}" in frame:
                return room
    return LOOP


# -- an idle group


def _idle(context: Context, peer: Onecopy) -> Figures:
    """Return what three nodes use that nobody asks anything."""
    time.sleep(SETTLE_S)
    before = usage(peer.servers)
    seconds = 3 * context.options.seconds
    time.sleep(seconds)
    used = usage(peer.servers).since(before)
    pids = peer.servers.pids
    found = {
        "nodes": len(pids),
        "core": round(used.cpu_s / seconds, 4),
        "anonymous_bytes": sum(map(anonymous_bytes, pids)),
        "resident_bytes": sum(map(rss_bytes, pids)),
        "seconds": seconds,
    }
    context.say(
        f"  an idle group of {len(pids)}: {found['core']:.1%} of a core, "
        f"{found['anonymous_bytes'] / 1e6:.0f} MB of its own, "
        f"{found['resident_bytes'] / 1e6:.0f} MB resident"
    )
    return found


# -- groups on cores


class Shape(msgspec.Struct, frozen=True):
    """How many groups serve. `apart`: each, with its clients, on a core of its own."""

    groups: int
    apart: bool


SHAPES = {
    "one group on one core": Shape(1, apart=True),
    "two groups, a core each": Shape(2, apart=True),
    "one group on two cores": Shape(1, apart=False),
    "two groups on two cores": Shape(2, apart=False),
}
RATIOS = {
    "a second core with its own group": ("two groups, a core each", "one group on one core"),
    "a second group on the same two cores": ("two groups on two cores", "one group on two cores"),
}


def groups(context: Context) -> Figures:
    """Measure two groups beside one: a core for each, and the same two cores for both."""
    pair = cores()
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(context.peer(Onecopy)) for _ in pair]
        for peer in peers:
            loads.fill(_workload(1.0), peer.address(peer.primary()))
        rates: dict[str, dict[str, list[float]]] = {
            name: {shape: [] for shape in SHAPES} for name in LOADS
        }
        for number in range(context.options.rounds):
            context.say(f"round {number + 1} of {context.options.rounds}")
            for name, writes in LOADS.items():
                for title, shape in SHAPES.items():
                    rate = _together(context, peers, pair, shape, writes)
                    context.say(f"  {name}, {title:<24} {rate:>8,.0f}/s")
                    rates[name][title].append(round(rate, 1))
    found = {
        name: {
            ratio: round(
                statistics.median(
                    a / b for a, b in zip(shapes[more], shapes[less], strict=True) if b
                ),
                3,
            )
            for ratio, (more, less) in RATIOS.items()
        }
        for name, shapes in rates.items()
    }
    for name, ratios in found.items():
        for title, value in ratios.items():
            context.say(f"{name}: {title}: {value:.2f} x")
    return {"rates": rates, "ratios": found}


def _together(
    context: Context, peers: list[Onecopy], pair: tuple[int, int], shape: Shape, writes: float
) -> float:
    """Load the first groups at once, each by its own generator; return the sum of the rates."""
    loaded = peers[: shape.groups]
    running = Running(
        [
            Load(
                workload=_workload(writes),
                targets=loads.spread([peer.address(peer.primary())], CONNECTIONS),
            )
            for peer in loaded
        ],
        loads.NOBODY,
        WARM_UP_S,
        context.options.seconds,
    )
    for peer, core, generator in zip(loaded, pair, running.pids, strict=False):
        pids = [generator, *peer.servers.pids]
        pin(pids, {core} if shape.apart else set(pair))
    return running.finish().rate
