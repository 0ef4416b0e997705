"""The pictures of docs/benchmarks.md: SVG, drawn from the results files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH_IN, HEIGHT_IN = 7.0, 3.6
MIB = 1024 * 1024
Data = dict[str, Any]


def draw_all(results: dict[str, Data], directory: Path) -> dict[str, Path]:
    """Draw what there are results for; return the files by the benchmark's name."""
    directory.mkdir(parents=True, exist_ok=True)
    # No date and no random ids, so that the same results give the same bytes.
    mpl.rcParams["svg.hashsalt"] = "onecopy"
    mpl.rcParams["axes.spines.top"] = mpl.rcParams["axes.spines.right"] = False
    mpl.rcParams["font.size"] = 9
    drawn = {}
    for name, draw in PLOTS.items():
        if name in results:
            figure = draw(results[name])
            path = directory / f"{name}.svg"
            figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
            plt.close(figure)
            path.write_text("\n".join(map(str.rstrip, path.read_text().splitlines())) + "\n")
            drawn[name] = path
    return drawn


def _axes(count: int, height_in: float = HEIGHT_IN) -> tuple[Figure, list[Axes]]:
    figure, found = plt.subplots(1, count, figsize=(WIDTH_IN, height_in), squeeze=False)
    figure.set_layout_engine("tight")
    return figure, list(found[0])


def _bars(axes: Axes, names: list[str], values: list[float], form: str) -> None:
    colors = ["tab:blue" if name == "onecopy" else "tab:gray" for name in names]
    bars = axes.barh(names, values, color=colors)
    axes.bar_label(bars, fmt=form, padding=3)
    axes.invert_yaxis()
    axes.set_xlim(right=max(values, default=1.0) * 1.25)


def headline(data: Data) -> Figure:
    """Three bar charts: each measure of the headline."""
    figure, axes = _axes(3)
    fields = (("per_s", "per second", "{:,.0f}"), ("p50_ms", "p50, ms", "{:.2f}"))
    for place, (measure, systems) in zip(axes, data["medians"].items(), strict=True):
        field, unit, form = fields["1 connection" in measure]
        names = list(systems)
        _bars(place, names, [systems[name][field] for name in names], form)
        place.set_title(measure)
        place.set_xlabel(unit)
        if place is not axes[0]:
            place.set_yticklabels([])
    return figure


def failover(data: Data) -> Figure:
    """Every gap of each system, as points."""
    figure, (axes,) = _axes(1, 2.6)
    for row, (name, item) in enumerate(data["results"].items()):
        gaps = item["gaps_ms"]
        axes.plot(gaps, [row] * len(gaps), "o", alpha=0.4, label=name)
    axes.set_yticks(range(len(data["results"])), list(data["results"]))
    axes.set_xlabel("longest time without a write after kill -9, ms")
    axes.set_xlim(left=0)
    axes.set_ylim(len(data["results"]) - 0.5, -0.5)
    return figure


def handover(data: Data) -> Figure:
    """The pauses in order of length."""
    figure, (axes,) = _axes(1, 2.6)
    pauses = sorted(data["pauses_ms"])
    shares = [100 * (number + 1) / len(pauses) for number in range(len(pauses))]
    axes.step(pauses, shares, where="post")
    axes.axvline(20, color="tab:red", linestyle=":", label="aim for the 99th")
    axes.set_xlabel("pause, ms")
    axes.set_ylabel("% of handovers at most")
    axes.set_xlim(left=0)
    axes.legend()
    return figure


def detector(data: Data) -> Figure:
    """Unavailability by detector period; false failovers by the length of a stall."""
    figure, (left, right) = _axes(2)
    rows = data["rows"]
    periods = [row["heartbeat_ms"] for row in rows]
    for kind, label in (("killed", "kill -9"), ("stopped", "SIGSTOP"), ("cut", "cut off")):
        left.plot(periods, [row[kind]["median_ms"] for row in rows], "o-", label=f"{label}, median")
        left.plot(periods, [row[kind]["worst_ms"] for row in rows], ".:", label=f"{label}, worst")
    left.set_xlabel("heartbeat interval, ms")
    left.set_ylabel("longest time without a write, ms")
    left.legend()
    for row in rows:
        stalls = [item["stall_ms"] for item in row["stalls"]]
        shares = [100 * item["failovers"] / item["stalls"] for item in row["stalls"]]
        right.plot(stalls, shares, "o-", label=f"{row['heartbeat_ms']} ms")
    right.set_xlabel("the primary is stopped for, ms")
    right.set_ylabel("% of stalls that end in a failover")
    right.legend(title="heartbeat")
    return figure


def early_ack(data: Data) -> Figure:
    """Latency, and acknowledged writes lost in a kill, by the distance of the nodes."""
    figure, (left, right) = _axes(2)
    for ack in ("all", "local"):
        rows = [row for row in data["rows"] if row["ack"] == ack]
        delays = [row["delay_ms"] for row in rows]
        left.plot(delays, [row["single"]["p50_ms"] for row in rows], "o-", label=f"ack={ack}")
        lost = [row["lost"] / max(1, len(row["kills"])) for row in rows]
        right.plot(delays, lost, "o-", label=f"ack={ack}")
    left.set_ylabel("one client's write, p50, ms")
    right.set_ylabel("acknowledged writes lost, per kill")
    for axes in (left, right):
        axes.set_xlabel("delay between nodes, one way, ms")
        axes.set_ylim(bottom=0)
        axes.legend()
    return figure


def backups(data: Data) -> Figure:
    """Throughput and latency by the number of replicas."""
    figure, (left, right) = _axes(2)
    replicas = [row["replicas"] for row in data["rows"]]
    left.plot(replicas, [row["64"]["per_s"] for row in data["rows"]], "o-")
    left.set_ylabel("writes/s, 64 connections")
    for field, label in (("p50_ms", "p50"), ("p99_ms", "p99")):
        right.plot(replicas, [row["1"][field] for row in data["rows"]], "o-", label=label)
    right.set_ylabel("one client's write, ms")
    right.legend()
    for axes in (left, right):
        axes.set_xlabel("replicas")
        axes.set_xticks(replicas)
        axes.set_ylim(bottom=0)
    return figure


def catch_up(data: Data) -> Figure:
    """Left: time to be in sync by how far behind. Right: live traffic while a backup returns."""
    figure, (left, right) = _axes(2)
    for way in ("log", "snapshot"):
        rows = [row for row in data["rows"] if row["way"] == way]
        behind = [row["behind"] for row in rows]
        times = [max(0.001, row["in_sync_s"] - row["answers_s"]) for row in rows]
        left.plot(behind, times, "o-", label=way)
        live = data["live"][way]
        step_s = live["bucket_ms"] / 1000
        rates = [bucket["count"] / step_s for bucket in live["timeline"]]
        right.plot([number * step_s for number in range(len(rates))], rates, label=way)
        back = live["started_s"] + live["return"]["in_sync_s"]
        right.axvspan(live["started_s"] + live["return"]["answers_s"], back, alpha=0.15)
    left.set_xscale("log")
    left.set_yscale("log")
    left.set_xlabel("entries behind (1 KiB each)")
    left.set_ylabel("from answering to in sync, s")
    left.legend()
    right.set_xlabel("s (shaded: the backup catches up)")
    right.set_ylabel("live writes/s")
    right.set_ylim(bottom=0)
    right.legend()
    return figure


def keys(data: Data) -> Figure:
    """Cost of a write and memory by the number of keys."""
    figure, (left, right) = _axes(2)
    rows = data["rows"]
    counts = [row["keys"] for row in rows]
    left.plot(counts, [row["cpu_us_per_op"] for row in rows], "o-", label="CPU of all nodes, us")
    left.set_ylabel("per write, us")
    for field, label in (("rss_bytes", "resident"), ("anonymous_bytes", "without the store's map")):
        right.plot(counts, [row["primary"][field] / MIB for row in rows], "o-", label=label)
    right.set_ylabel("the primary's memory, MiB")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xlabel("keys")
        axes.set_ylim(bottom=0)
        axes.legend()
    return figure


def memory(data: Data) -> Figure:
    """Memory that is no file's mapping, over time."""
    figure, (axes,) = _axes(1, 2.6)
    samples = data["samples"]
    for node in (name for name in samples[0] if name != "s"):
        times = [sample["s"] for sample in samples]
        axes.plot(times, [sample[node][1] / MIB for sample in samples], label=node)
    axes.set_xlabel(f"s at {data['rate_per_s']:,} writes/s")
    axes.set_ylabel("anonymous memory, MiB")
    axes.set_ylim(bottom=0)
    axes.legend()
    return figure


def unordered(data: Data) -> Figure:
    """Keys that differ between replicas, by message loss."""
    figure, (axes,) = _axes(1, 2.6)
    rows = data["rows"]
    losses = [100 * row["loss"] for row in rows]
    axes.plot(losses, [row["sent_once"] for row in rows], "o-", label="to all, sent once")
    axes.plot(losses, [row["sent_again"] for row in rows], "o-", label="to all, until acknowledged")
    axes.plot(losses, [row["onecopy"]["diverged"] for row in rows], "o-", label="onecopy")
    axes.set_xlabel("messages lost, %")
    axes.set_ylabel(f"diverged keys of {data['keys']}")
    axes.legend()
    return figure


PLOTS: dict[str, Callable[[Data], Figure]] = {
    "headline": headline,
    "failover": failover,
    "handover": handover,
    "detector": detector,
    "early-ack": early_ack,
    "backups": backups,
    "catch-up": catch_up,
    "keys": keys,
    "memory": memory,
    "unordered": unordered,
}
