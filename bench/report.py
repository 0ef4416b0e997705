"""docs/benchmarks.md, written from whatever results are there, with its pictures."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.accounting import disk_text
from bench.context import Record, read
from bench.markdown import table
from bench.plots import draw_all
from bench.registry import ALL, BY_NAME
from bench.report_text import GENERATOR, INTRO, MODEL, NOTES, TITLES

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
IMAGES = Path("images") / "bench"
Data = dict[str, Any]


def write_report(results: Path, docs: Path = DOCS) -> list[Path]:
    """Write the page and the pictures; return their paths."""
    records: dict[str, Record] = {}
    for name in BY_NAME:
        record = read(name, results)
        if record is not None:
            records[name] = record
    drawn = draw_all({name: record.data for name, record in records.items()}, docs / IMAGES)
    parts = [INTRO, *_aims(records), GENERATOR]
    for name, record in records.items():
        parts.append(f"## {TITLES[name]}\n\n{NOTES[name]}")
        if name in drawn:
            parts.append(f"![{TITLES[name]}]({IMAGES.as_posix()}/{name}.svg)")
        if (write := SECTIONS.get(name)) is not None:
            parts += write(record.data)
        parts.append(_provenance(record))
    missing = [benchmark.name for benchmark in ALL if benchmark.name not in records]
    if missing:
        parts.append(f"## Not measured yet\n\n{', '.join(missing)}: `python -m bench NAME`.")
    page = docs / "benchmarks.md"
    page.write_text("\n\n".join(part.strip() for part in parts) + "\n")
    return [page, *drawn.values()]


def _aims(records: dict[str, Record]) -> list[str]:
    rows = []
    for name, record in records.items():
        for aim in record.data.get("aims", ()):
            met = {True: "yes", False: "**no**", None: "not measured"}[aim["met"]]
            reached = "-" if aim["reached"] is None else f"{aim['reached']:g}"
            rows.append((aim["aim"], aim["wanted"], reached, met, name))
    if not rows:
        return []
    return ["## Aims", table(("aim", "wanted", "reached", "met", "benchmark"), rows)]


def _provenance(record: Record) -> str:
    machine = record.machine
    where = (
        f"{machine.processor}, {machine.cores} cores, {machine.memory_bytes / 2**30:.0f} GiB, "
        f"{machine.kernel}, Python {machine.python}, {machine.filesystem}, "
        f"fdatasync {machine.fdatasync_us:.0f} us, load average {machine.load_average:g} at the end"
    )
    run = f"{record.date}, commit {record.commit}, `{record.command}`"
    lines = [f"<sub>{run}; {where}; generator's ceiling {record.ceiling_per_s:,.0f}/s.</sub>"]
    lines += [f"<sub>Left out: {text}</sub>" for text in record.missing]
    return "\n\n".join(lines)


def _systems(data: Data) -> str:
    rows = [
        (
            item["name"],
            item["version"],
            item["durability"],
            "<br>".join(map(_code, item["commands"])),
        )
        for item in data["systems"]
    ]
    return table(("system", "version", "an acknowledged write is", "commands"), rows)


def _code(text: str) -> str:
    return f"`{text}`"


def _headline(data: Data) -> list[str]:
    parts = []
    for measure, systems in data["medians"].items():
        rows = [
            (
                name,
                f"{item['per_s']:,.0f}",
                f"{item['p50_ms']:.2f}",
                f"{item['p99_ms']:.2f}",
                f"{item['p999_ms']:.2f}",
                f"{item['cpu_us_per_op']:.0f}",
                disk_text(item["disk_bytes_per_op"]),
                disk_text(item.get("disk_flushes_per_op"), 2),
                f"{item['wire_bytes_per_op']:,.0f}",
                f"{item['generator_cpu_share']:.0%}",
            )
            for name, item in systems.items()
        ]
        head = ("", "/s", "p50 ms", "p99", "p99.9", "CPU us/op", "disk B/op", "flushes/op")
        parts.append(f"**{measure.capitalize()}**")
        parts.append(table((*head, "wire B/op", "generator's CPU"), rows))
    return [*parts, _systems(data)]


def _failover(data: Data) -> list[str]:
    rows = [
        (
            name,
            len(item["gaps_ms"]),
            f"{item['median_ms']:,.0f}",
            f"{item['worst_ms']:,.0f}",
            f"{item['acknowledged']:,}",
            item["lost"],
        )
        for name, item in data["results"].items()
    ]
    head = ("", "kills", "median gap, ms", "worst, ms", "acknowledged writes", "lost of them")
    return [table(head, rows), _systems(data)]


def _handover(data: Data) -> list[str]:
    text = (
        f"{len(data['pauses_ms'])} handovers under {data['connections']} connections: pause median "
        f"{data['median_ms']:g} ms, p99 {data['p99_ms']:g} ms, longest {data['worst_ms']:g} ms; "
        f"failed requests {sum(data['failed'].values())}; {data['acknowledged']:,} acknowledged "
        f"writes, {data['lost']} lost. Between handovers a write's median was "
        f"{data['steady_latency']['median_ms']:g} ms."
    )
    return [text]


def _matrix(data: Data) -> list[str]:
    rows = [
        (
            row["shape"],
            row["workload"] + (f" ({row['rate_asked']:,.0f}/s)" if row["rate_asked"] else ""),
            f"{row['value_bytes']:,}",
            row["connections"],
            f"{row['per_s']:,.0f}",
            f"{row['p50_ms']:.2f}",
            f"{row['p99_ms']:.2f}",
            f"{row['p999_ms']:.2f}",
            f"{row['cpu_us_per_op']:.0f}",
            disk_text(row["disk_bytes_per_op"]),
            f"{row['wire_bytes_per_op']:,.0f}",
            sum(row["errors"].values()),
        )
        for row in data["rows"]
    ]
    head = ("shape", "workload", "bytes", "conn.", "/s", "p50 ms", "p99", "p99.9", "CPU us/op")
    return [table((*head, "disk B/op", "wire B/op", "errors"), rows)]


def _detector(data: Data) -> list[str]:
    rows = []
    for row in data["rows"]:
        stalls = row["stalls"]
        harms = [row[kind] for kind in ("killed", "stopped", "cut")]
        lost = sum(item["lost"] for item in (*harms, *stalls))
        doubled = sum(item["double_revisions"] for item in (*harms, *stalls))
        false = ", ".join(f"{i['stall_ms']} ms: {i['failovers']}/{i['stalls']}" for i in stalls)
        rows.append(
            (
                row["heartbeat_ms"],
                *(f"{item['median_ms']:.0f} / {item['worst_ms']:.0f}" for item in harms),
                false,
                lost,
                doubled,
                "yes" if row["diverged"] else "no",
            )
        )
    head = (
        "heartbeat, ms",
        "kill -9, median / worst, ms",
        "SIGSTOP",
        "cut off",
        "failovers by stall",
    )
    return [table((*head, "acknowledged and lost", "revisions given twice", "diverged"), rows)]


def _early_ack(data: Data) -> list[str]:
    rows = [
        (
            row["ack"],
            row["delay_ms"],
            f"{row['single']['p50_ms']:.2f}",
            len(row["kills"]),
            sum(item["acknowledged"] for item in row["kills"]),
            row["lost"],
        )
        for row in data["rows"]
    ]
    head = ("ack", "delay, ms", "p50, 1 conn., ms", "kills", "acknowledged", "lost of them")
    return [table(head, rows)]


def _backups(data: Data) -> list[str]:
    rows = [
        (
            row["replicas"],
            f"{row['64']['per_s']:,.0f}",
            f"{row['1']['p50_ms']:.2f}",
            f"{row['1']['p99_ms']:.2f}",
            f"{row['64']['cpu_us_per_op']:.0f}",
        )
        for row in data["rows"]
    ]
    head = ("replicas", "writes/s, 64 conn.", "p50, 1 conn., ms", "p99", "CPU us/op, all nodes")
    return [table(head, rows)]


def _blocking(data: Data) -> list[str]:
    removing = data["removing_a_backup_ms"]
    rows = (
        ("a message's delay on this loopback", f"{data['message_delay_ms']:.3f} ms"),
        (
            "one client's write, one replica (nobody to ask)",
            f"{data['single_replica_write_p50_ms']:.3f} ms",
        ),
        ("one client's write, three replicas", f"{data['write_p50_ms']:.3f} ms"),
        ("blocking time, nothing failing (the difference)", f"{data['blocking_ms']:.3f} ms"),
        ("blocking while a killed backup is removed, longest", f"{max(removing['killed']):.0f} ms"),
        (
            "blocking while a stopped backup is removed, longest",
            f"{max(removing['stopped']):.0f} ms",
        ),
    )
    return [table(("", "measured"), rows), MODEL]


def _catch_up(data: Data) -> list[str]:
    rows = [
        (
            row["way"]
            if row["snapshot"] == (row["way"] == "snapshot")
            else f"{row['way']} (the other way was taken)",
            f"{row['behind']:,}",
            f"{row['answers_s']:.2f}",
            f"{row['in_sync_s']:.2f}",
        )
        for row in data["rows"]
    ]
    head = ("way", "entries behind", "answers after, s", "in sync after, s")
    return [table(head, rows), crossing(data["rows"])]


def crossing(rows: Sequence[Data]) -> str:
    """Return a sentence about where the snapshot becomes quicker than the log."""
    took: dict[bool, dict[int, float]] = {True: {}, False: {}}
    for row in rows:
        if row["snapshot"] == (row["way"] == "snapshot"):
            took[row["snapshot"]][row["behind"]] = row["in_sync_s"] - row["answers_s"]
    both = sorted(took[True].keys() & took[False].keys())
    quicker = [behind for behind in both if took[True][behind] < took[False][behind]]
    if not both:
        return "No distance was measured both ways."
    if not quicker:
        return (
            f"Counted from the first answer, the log is quicker up to {both[-1]:,} entries behind."
        )
    before = [behind for behind in both if behind < quicker[0]]
    since = f" The log is up to {before[-1]:,}." if before else ""
    return (
        f"Counted from the first answer, the snapshot is quicker from {quicker[0]:,} entries "
        f"behind on.{since}"
    )


def _snapshot(data: Data) -> list[str]:
    alone, loaded = data["alone"], data["under_load"]
    rows = (
        ("cp and fsync", f"{data['copied_bytes']:,} B", f"{data['copy_s']:.2f} s"),
        ("snapshot, nothing else", f"{data['state_bytes']:,} B", _span(alone)),
        ("snapshot, under live writes", f"{data['state_bytes']:,} B", _span(loaded)),
    )
    live = (
        f"Live writes: {data['live_before_per_s']:,}/s before, {data['live_during_per_s']:,}/s "
        f"from the new backup's first answer until it was in sync."
    )
    return [table(("", "bytes", "from the first answer to in sync"), rows), live]


def _backup(data: Data) -> list[str]:
    said = ", ".join(f"{rate:,} {when}" for when, rate in data["writes_per_s"].items())
    live = (
        f"{data['state_bytes']:,} B in values of 64 KiB: backup under 64 writers "
        f"{data['backup_s']} s, restore {data['restore_s']} s. Writes/s: {said}."
    )
    rows = [
        (
            f"{row['value_bytes']:,}",
            row["source"],
            f"{row['backup_bytes']:,}",
            f"{row['restore_s']} s",
            f"{row['copy_s']} s",
            f"{row['ratio']}",
        )
        for row in data["restores"]
    ]
    head = ("value B", "backup", "its B", "restore", "cp and fsync of the backup", "speed by cp")
    archive = data["archiving"]
    kept = (
        f"100 B writes/s: {archive['per_s']['off']:,} with the archive off, "
        f"{archive['per_s']['on']:,} with it on (median share {archive['share']})."
    )
    return [live, table(head, rows), kept]


def _span(item: Data) -> str:
    kind = "" if item["snapshot"] else " (log replay!)"
    return f"{item['in_sync_s'] - item['answers_s']:.2f} s{kind}"


def _keys(data: Data) -> list[str]:
    rows = [
        (
            f"{row['keys']:,}",
            f"{row['fill_per_s']:,}",
            f"{row['per_s']:,.0f}",
            f"{row['reads_per_s']:,}" if "reads_per_s" in row else "",
            f"{row['cpu_us_per_op']:.0f}",
            disk_text(row["disk_bytes_per_op"]),
            f"{row['primary']['rss_bytes'] / 2**20:.0f}",
            f"{row['primary']['anonymous_bytes'] / 2**20:.0f}",
        )
        for row in data["rows"]
    ]
    head = ("keys", "filled/s", "writes/s", "reads/s", "CPU us/write", "disk B/write")
    return [table((*head, "resident, MiB", "anonymous, MiB"), rows)]


def _confirmed(data: Data) -> list[str]:
    rows = []
    for row in data["rows"]:
        leased, confirmed = row["linearizable"], row["confirmed"]
        rows.append(
            (
                row["place"],
                row["connections"],
                f"{leased['per_s']:,}",
                f"{confirmed['per_s']:,}",
                f"{confirmed['per_s'] / leased['per_s']:.2f}",
                f"{leased['p50_ms']:.2f}",
                f"{confirmed['p50_ms']:.2f}",
                f"{leased['cpu_us_per_op']:.0f}",
                f"{confirmed['cpu_us_per_op']:.0f}",
            )
        )
    head = ("at", "connections", "leased/s", "confirmed/s", "ratio", "leased p50, ms")
    return [table((*head, "confirmed p50, ms", "leased CPU us", "confirmed CPU us"), rows)]


def _sizes(data: Data) -> list[str]:
    rows = [(name, f"{value:,.0f}") for name, value in data["medians"].items()]
    return [table(("what", "median"), rows)]


def _watch(data: Data) -> list[str]:
    idle, seen, beside = data["idle"], data["seen"], data["beside"]
    rows = [
        (f"idle watchers on a node: {idle['watchers']:,}", f"{idle['bytes_per_watcher']:,} B each"),
        ("CPU of that node meanwhile, progress events included", f"{idle['cpu_share']:.1%}"),
        ("watches begun one after the other", f"{idle['opened_per_s']:,}/s"),
        (f"one write seen by {seen['watchers']:,}: median", f"{seen['p50_ms']} ms"),
        ("… 99 %, longest", f"{seen['p99_ms']} ms, {seen['max_ms']} ms"),
        ("writes alone", f"{beside['alone_per_s']:,}/s"),
        (
            f"writes beside {beside['watchers']:,} watchers of other keys",
            f"{beside['beside_per_s']:,}/s ({beside['ratio']:.2f})",
        ),
    ]
    return [table(("what", "found"), rows)]


def _leases(data: Data) -> list[str]:
    granted, ending = data["granted"], data["ending"]
    rows = [
        (f"{granted['leases']:,} leases granted", f"{granted['per_s']:,}/s"),
        ("memory of the primary for each", f"{granted['bytes_per_lease']:,} B"),
    ]
    rows += [
        (
            f"keep-alives, {kept['in_a_request']:,} in a request",
            f"{kept['per_s']:,}/s, {kept['cpu_us_each']} us CPU each",
        )
        for kept in data["kept"]
    ]
    rows += [
        (f"ending {ending['leases']:,}: all are gone", f"{ending['took_ms']:,} ms after they may"),
        ("… CPU of an ended lease", f"{ending['cpu_us_each']} us"),
        ("… longest gap of writes, median of the rounds", f"{ending['longest_gap_ms']} ms"),
        ("… the same just before", f"{ending['longest_gap_before_ms']} ms"),
        ("… of all rounds", f"{ending['worst_gap_ms']} ms"),
    ]
    return [table(("what", "found"), rows)]


def _lease_kill(data: Data) -> list[str]:
    rows = [
        ("writes: longest gap around the kill", f"{data['write_gap_ms']:,} ms"),
        (
            f"{data['watchers']:,} watchers: the last one has seen all writes",
            f"{data['seen_by_all_ms']:,} ms after the last was acknowledged",
        ),
        ("… saw each write once, in order", f"{data['saw_each_write_once']:,}"),
        (
            f"{data['locks']:,} locks: from the request to release one to its next holder's answer",
            f"median {data['handed_over_p50_ms']} ms, longest {data['handed_over_max_ms']} ms",
        ),
        ("… got by who waited", f"{data['got_the_lock']:,}"),
        (
            f"{data['leases']:,} leases of {data['ttl_ms'] / 1000:g} s: the first ends",
            f"{data['first_end_after_kill_ms']:,} ms after the kill",
        ),
        ("… ended before their TTL", data["ended_early"]),
        ("… all have ended", f"{data['ending_took_ms']:,} ms later"),
        ("… longest gap of writes meanwhile", f"{data['ending_gap_ms']} ms"),
    ]
    return [table(("what", "found"), rows)]


def _coordination(data: Data) -> list[str]:
    rows = []
    for measure, systems in data["medians"].items():
        for name, item in systems.items():
            ratio = data["ratios"][measure].get(name)
            rows.append(
                (
                    measure,
                    name,
                    f"{item['per_s']:,.0f}" if item["per_s"] else "",
                    f"{item['p50_ms']:.2f}",
                    f"{item['p99_ms']:.2f}",
                    "" if ratio is None else f"{ratio:.2f}",
                )
            )
    head = ("what", "at", "/s", "p50 ms", "p99", "onecopy's by this")
    return [table(head, rows), _systems(data)]


def _unordered(data: Data) -> list[str]:
    rows = [
        (f"{row['loss']:.0%}", row["sent_once"], row["sent_again"], row["onecopy"]["diverged"])
        for row in data["rows"]
    ]
    head = ("messages lost", "to all, sent once", "to all, until acknowledged", "onecopy")
    return [f"Diverged keys of {data['keys']} after {data['writes']:,} writes:", table(head, rows)]


def _security(data: Data) -> list[str]:
    rows = [
        (
            f"{row['kind']}s, {row['connections']} connections",
            shape,
            f"{item['per_s']:,}",
            f"{item['share']:.2f} ({min(item['shares']):.2f} to {max(item['shares']):.2f})",
            f"{item['nodes_cpu_us_per_op']:.0f}",
            f"{item['client_cpu_us_per_op']:.0f}",
        )
        for row in data["rows"]
        for shape, item in row["shapes"].items()
    ]
    rows += [
        ("kill -9 of the primary", shape, "", f"median gap {item['median_ms']} ms", "", "")
        for shape, item in data["failover"].items()
    ]
    head = ("load", "cluster", "/s", "share of plain", "nodes' CPU us/op", "client's CPU us/op")
    return [table(head, rows)]


def _patroni(data: Data) -> list[str]:
    stores = data["stores"]
    faults = sorted({fault for store in stores.values() for fault in store["stopped_s"]})
    rows: list[list[object]] = []
    for fault in faults:
        row: list[object] = [fault]
        for store in stores.values():
            found = store["stopped_s"].get(fault)
            row += [found["median"], found["longest"], found["count"]] if found else ["", "", ""]
        rows.append(row)
    head = [
        "no commit for s",
        *(f"{name} {of}" for name in stores for of in ("median", "longest", "count")),
    ]
    totals = [
        (name, store["failovers"], f"{store['acknowledged']:,}", store["lost"],
         store["second_primary"], store["minutes"])
        for name, store in stores.items()
    ]  # fmt: skip
    judged = ("store", "failovers", "commits", "lost", "of a second primary", "minutes")
    return [table(head, rows), table(judged, totals)]


def _groups(data: Data) -> list[str]:
    kinds = list(data["rates"])
    rows = [
        (setting, *(f"{statistics.median(data['rates'][kind][setting]):,.0f}" for kind in kinds))
        for setting in data["rates"][kinds[0]]
    ]
    return [table(("", *(f"{kind}/s" for kind in kinds)), rows)]


SECTIONS: dict[str, Callable[[Data], list[str]]] = {
    "headline": _headline,
    "failover": _failover,
    "handover": _handover,
    "matrix": _matrix,
    "sizes": _sizes,
    "confirmed": _confirmed,
    "watch": _watch,
    "leases": _leases,
    "lease-kill": _lease_kill,
    "coordination": _coordination,
    "gateway": _coordination,
    "detector": _detector,
    "early-ack": _early_ack,
    "backups": _backups,
    "blocking": _blocking,
    "catch-up": _catch_up,
    "snapshot": _snapshot,
    "backup": _backup,
    "keys": _keys,
    "groups": _groups,
    "security": _security,
    "unordered": _unordered,
    "patroni": _patroni,
}
