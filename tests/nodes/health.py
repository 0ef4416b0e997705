"""Hours of health: `python -m tests.nodes.health --minutes 60`, or `make health`.

Three real nodes with TLS and an archive under a light load whose histories are checked, and a real
Prometheus that scrapes them as docs/howto-monitor.md says, with the alerts of `deploy/` as they
are. No alert may fire. Prints a line a minute, and one verdict at the end; the exit code is 0 only
if that is clean. The logs of the nodes and of Prometheus are kept if it is not.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from tests.support.cluster import Cluster
from tests.support.ports import use_last_block
from tests.support.prometheus import Prometheus, prometheus
from tests.support.recorded_load import Bounds, RecordedLoad

LINE_INTERVAL_S = 60.0
POLL_INTERVAL_S = 10.0
SCRAPE_INTERVAL_S = 10
LEAST_SCRAPED = 0.9
"""The part of the scrapes that must have happened, for the verdict to mean anything."""
MARGIN_S = 120.0
BOUNDS = Bounds(
    clients=6,  # two at each node
    rate_per_s=6.0,  # some hundredths of a core, for all nodes and the check
    generation_s=30.0,
    timeout_ms=10_000,
    patience_ms=12_000,
    operations=1_000_000,
)
"""Light, and patient: another program may have the machine for a moment."""


class Health:
    """A run; `problems` are what makes the verdict a bad one."""

    def __init__(self, minutes: float, directory: Path) -> None:
        self.seconds = minutes * 60
        archive = directory / "archive"
        archive.mkdir()
        self.cluster = Cluster(
            directory / "cluster", tls=True, archive={"url": f"file://{archive}"}
        )
        self.load = RecordedLoad(
            {node: self.cluster.url(node) for node in self.cluster.specs},
            directory / "histories",
            name="health",
            bounds=msgspec.structs.replace(BOUNDS, duration_s=self.seconds + MARGIN_S),
            cacert=self.cluster.cacert,
        )
        self.problems: list[str] = []
        self._directory = directory
        self._began_s = time.monotonic()

    def say(self, text: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - self._began_s), 60)
        print(f"[{minutes:02}:{seconds:02}] {text}", flush=True)

    async def run(self) -> None:
        """Run to the end, whatever fires."""
        await self.cluster.start()
        with prometheus(
            self.cluster, self._directory / "prometheus", self.cluster.specs, as_shipped=True
        ) as prom:
            self._began_s = time.monotonic()
            async with self.load:
                await self._watch(prom)
            await self._judge(prom)
        self.say(self.load.require())
        self.say(f"ends of operations: {dict(sorted(self.load.counts.items()))}")

    async def _watch(self, prom: Prometheus) -> None:
        """Tell what is pending or fires, as it changes, and how far the load is."""
        told: set[str] = set()
        line_s = self._began_s
        while (now_s := time.monotonic()) - self._began_s < self.seconds:
            self.cluster.check_alive()
            self.load.check_healthy()
            found = {
                f"{labels['alertname']} {labels['alertstate']} {labels.get('instance', '')}"
                for labels in await prom.query("ALERTS")
            }
            for text in found - told:
                self.say(f"alert: {text}")
            told = found
            if now_s >= line_s:
                line_s += LINE_INTERVAL_S
                self.say(f"-- {self.load.issued} operations, alerts now: {sorted(found) or 'none'}")
            await asyncio.sleep(POLL_INTERVAL_S)

    async def _judge(self, prom: Prometheus) -> None:
        span = f"[{int(self.seconds)}s]"
        rules = await prom.rules()
        self.say(f"{len(rules)} alerts were evaluated")
        if ill := {name: health for name, health in rules.items() if health != "ok"}:
            self.problems.append(f"alerts that were not evaluated: {ill}")
        for labels, count in await prom.values(f"count_over_time(ALERTS{span})"):
            text = f"{labels['alertname']} at {labels.get('instance', 'the cluster')}"
            self.say(f"{text} was {labels['alertstate']} at {count:g} evaluations")
            if labels["alertstate"] == "firing":
                self.problems.append(f"{text} fired")
        expected = self.seconds / SCRAPE_INTERVAL_S
        scraped = {
            labels["instance"]: count
            for labels, count in await prom.values(f"sum_over_time(up{span})")
        }
        self.say(f"successful scrapes, of {expected:g}: {scraped}")
        for address in (spec.client for spec in self.cluster.specs.values()):
            if scraped.get(address, 0) < LEAST_SCRAPED * (expected - 1):
                self.problems.append(f"{address} was scraped {scraped.get(address, 0):g} times")
        await self._figures(prom, span)

    async def _figures(self, prom: Prometheus, span: str) -> None:
        """Tell how near health came to the alerts."""
        for name, text in (
            ("fewest in sync", f"min_over_time(onecopy_in_sync_replicas{span})"),
            ("fewest voters heard", f"min_over_time(onecopy_voters_heard{span})"),
            ("most entries behind", f"max_over_time(onecopy_max_peer_lag{span})"),
            ("archive behind at most, s", f"max_over_time(onecopy_archive_lag_seconds{span})"),
            ("changes of the epoch", f"changes(onecopy_epoch{span})"),
        ):
            found = [value for _, value in await prom.values(text)]
            self.say(f"{name}, by node: {found}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.nodes.health", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    minutes = parser.parse_args().minutes
    if shutil.which("prometheus") is None:
        parser.error("prometheus is not installed (apt-get install prometheus)")
    use_last_block()
    directory = Path(tempfile.mkdtemp(prefix="onecopy-health-"))
    health = Health(minutes, directory)
    try:
        asyncio.run(health.run())
    except AssertionError as error:
        health.problems.append(str(error))
    except KeyboardInterrupt:
        health.problems.append("interrupted")
    finally:
        health.cluster.end()
    for problem in health.problems:
        print(f"PROBLEM: {problem}")
    if health.problems:
        print(f"kept: {directory}")
    else:
        shutil.rmtree(directory)
    print(f"VERDICT: {'clean' if not health.problems else 'not clean'}", flush=True)
    return int(bool(health.problems))


if __name__ == "__main__":
    sys.exit(main())
