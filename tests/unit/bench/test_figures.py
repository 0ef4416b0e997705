"""The arithmetic between measurements and the report."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from bench import check, headline, machine
from bench.context import Options, Record
from bench.failover import summary
from bench.growth import growth_of, keys_aims, rate_between
from bench.headline import MEASURES, aims, medians
from bench.machine import Machine
from bench.report import crossing, write_report
from bench.spec import Bucket
from bench.tradeoffs import DETECTORS, timing
from bench.trier import Tries, Try
from bench.unordered import diverged
from cluster.config.file import load_config

MS = 1_000_000


def tries(*ended_ms: int) -> Tries:
    found = [Try(number, (end - 1) * MS, end * MS, number) for number, end in enumerate(ended_ms)]
    return Tries(acknowledged=found, failed={})


def test_a_gap_is_measured_from_the_last_success_before_the_kill() -> None:
    found = tries(10, 20, 30, 330, 340, 1000)
    assert found.longest_gap_ms(50 * MS, 340 * MS) == 660  # the one after 340 overlaps
    assert found.longest_gap_ms(50 * MS, 330 * MS) == 300
    assert found.longest_gap_ms(12 * MS, 15 * MS) == 10


def test_a_revision_of_two_writes_shows() -> None:
    found = tries(1, 2, 3)
    assert found.double_revisions() == 0
    found.acknowledged.append(Try(9, 0, 4 * MS, 2))
    assert found.double_revisions() == 1


def test_summaries_take_the_worst_of_few() -> None:
    assert summary([3.0, 1.0, 2.0]) == {"median_ms": 2.0, "p99_ms": 3.0, "worst_ms": 3.0}
    many = [float(number) for number in range(1, 201)]
    assert summary(many)["p99_ms"] == 198.0


def test_ratios_are_taken_within_a_round() -> None:
    def rounds(*rates: float) -> list[dict[str, float]]:
        return [{"per_s": rate, "p50_ms": 1.0} for rate in rates]

    results = {
        measure: {"onecopy": rounds(300, 30, 3000), "etcd gateway": rounds(100, 10, 900)}
        for measure in MEASURES
    }
    found = {item["aim"]: item for item in aims(results)}
    writes = found["writes/s, by etcd's HTTP gateway"]
    assert writes["reached"] == 3.0
    assert writes["met"] is False
    assert found["one client's write, p50, by etcd's gateway"]["met"] is False
    assert found["writes/s, by etcd's gRPC"]["met"] is None


def test_medians_are_over_the_rounds() -> None:
    item = dict.fromkeys(
        ("p50_ms", "p99_ms", "p999_ms", "cpu_us_per_op", "disk_bytes_per_op"), 1.0
    ) | {"wire_bytes_per_op": 1.0, "generator_cpu_share": 0.5}
    rounds = [item | {"per_s": rate} for rate in (5.0, 1.0, 3.0)]
    assert medians({"writes": {"onecopy": rounds}})["writes"]["onecopy"]["per_s"] == 3.0


def test_rates_and_growth() -> None:
    timeline = [Bucket(count=count) for count in (10, 20, 30, 40)]
    assert rate_between(timeline, 0.1, 0.3) == 250
    assert rate_between(timeline, 9.0, 10.0) == 0
    assert growth_of([9, 1, 5, 5, 10, 10]) == pytest.approx(10 / 5)


def test_diverged_keys_are_those_without_one_value() -> None:
    assert diverged([{"a": "1", "b": "2"}, {"a": "1", "b": "3"}, {"a": "1", "b": "2"}]) == 1
    assert diverged([{"a": "1"}, {}, {"a": "1"}]) == 1


@pytest.mark.parametrize("heartbeat_ms", DETECTORS)
def test_every_detector_setting_is_a_valid_configuration(heartbeat_ms: int, tmp_path: Path) -> None:
    lines = ['[cluster]\nname = "x"\n[nodes.n1]\nclient = "127.0.0.1:5001"']
    lines += ['peer = "127.0.0.1:5002"\nraft = "127.0.0.1:5003"\ndata = "d"\n[timing]']
    lines += [f"{name} = {value}" for name, value in timing(heartbeat_ms).items()]
    path = tmp_path / "cluster.toml"
    path.write_text("\n".join(lines))
    assert load_config(path).timing.heartbeat_interval_ms == heartbeat_ms


def test_the_report_is_written_from_whatever_results_there_are(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    page, *pictures = write_report(tmp_path, docs)
    assert "Not measured yet" in page.read_text()
    assert not pictures
    data = {
        "connections": 16,
        "pauses_ms": [9.0, 11.0],
        "steady_latency": {"median_ms": 1.0},
        "failed": {},
        "acknowledged": 10,
        "lost": 0,
        **summary([9.0, 11.0]),
        "aims": [{"aim": "pause", "wanted": "at most 20 ms", "reached": 11.0, "met": True}],
    }
    record = Record(
        name="handover",
        date=machine.today(),
        commit="abc",
        command="python -m bench handover",
        machine=Machine(
            processor="p",
            cores=2,
            memory_bytes=1 << 30,
            kernel="k",
            python="3",
            filesystem="ext4",
            fdatasync_us=100.0,
            load_average=0.1,
        ),
        options=Options(),
        missing=[],
        ceiling_per_s=30000,
        data=data,
    )
    (tmp_path / "handover.json").write_bytes(msgspec.json.encode(record))
    page, *pictures = write_report(tmp_path, docs)
    text = page.read_text()
    assert "| pause | at most 20 ms | 11 | yes | handover |" in text
    assert [path.name for path in pictures] == ["handover.svg"]
    assert "images/bench/handover.svg" in text


def test_the_crossing_of_log_and_snapshot_counts_only_ways_that_were_taken() -> None:
    def row(way: str, behind: int, took_s: float, taken: str = "") -> dict[str, object]:
        snapshot = (taken or way) == "snapshot"
        return {
            "way": way,
            "behind": behind,
            "answers_s": 1.0,
            "in_sync_s": 1.0 + took_s,
            "snapshot": snapshot,
        }

    log = [row("log", 10, 0.1), row("log", 100, 0.2), row("log", 1000, 0.9)]
    quick = row("snapshot", 10, 0.05, taken="log")
    found = crossing([*log, quick, row("snapshot", 100, 0.3), row("snapshot", 1000, 0.3)])
    assert "from 1,000 entries behind on" in found
    assert "log is up to 100." in found
    assert "up to 100 entries" in crossing([*log, row("snapshot", 100, 0.3)])
    assert "No distance" in crossing([*log, quick])


def _headline(writes: float, single_ms: float, peers: tuple[str, ...]) -> headline.Results:
    ours = {"per_s": writes, "p50_ms": single_ms}
    theirs = {"per_s": 100.0, "p50_ms": 2.0}
    return {
        measure: {"onecopy": [ours] * 3, **{peer: [theirs] * 3 for peer in peers}}
        for measure in MEASURES
    }


def test_the_check_says_how_much_better_a_measure_is_than_stored() -> None:
    stored = _headline(300, 1.0, ("nats", "redis", "etcd gRPC"))
    same = check.by_measure(check.changes(stored, stored))
    assert same == dict.fromkeys(MEASURES, 1.0)
    slower = check.by_measure(check.changes(stored, _headline(240, 1.25, ("nats", "redis"))))
    assert not check.is_within(check.changes(stored, _headline(240, 1.25, ("nats", "redis"))))
    assert check.is_within(check.changes(stored, _headline(270, 1.1, ("nats", "redis"))))
    assert slower == pytest.approx(dict.fromkeys(MEASURES, 0.8)), "of a latency less is better"
    faster = check.by_measure(check.changes(stored, _headline(330, 1.0, ("nats",))))
    assert list(faster.values()) == pytest.approx([1.1, 1.0, 1.1])


def test_one_peer_that_has_changed_moves_no_measure() -> None:
    stored = _headline(300, 1.0, ("nats", "redis", "etcd gRPC"))
    now = _headline(300, 1.0, ("nats", "redis", "etcd gRPC"))
    now[MEASURES[0]]["nats"] = [{"per_s": 200.0, "p50_ms": 1.0}] * 3
    found = check.changes(stored, now)
    assert [change.peer for change in found if change.better < 0.9] == ["nats"]
    assert check.by_measure(found) == dict.fromkeys(MEASURES, 1.0)


def test_a_large_state_is_compared_with_a_small_one() -> None:
    rows = [
        {"keys": count, "per_s": writes, "reads_per_s": reads}
        for count, writes, reads in ((10, 100.0, 1000), (100, 1.0, 1), (1000, 79.9, 800))
    ]
    writes, reads = keys_aims(rows)
    assert writes["aim"] == "writes/s at 1,000 keys, by those at 10"
    assert (writes["reached"], writes["met"]) == (0.799, False)
    assert (reads["reached"], reads["met"]) == (0.8, True)
    assert keys_aims(rows[:1]) == []
