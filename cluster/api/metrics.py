"""Metrics in Prometheus' format: requests, the node's own numbers, the process.

Requests are counted in plain lists and turned into metric families when they are scraped:
prometheus-client's own counters cost several microseconds a request, with their locks and labels.
Everything runs on the event loop, so that nothing needs a lock.
"""

from __future__ import annotations

import platform
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Info, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from cluster.installed import installed_version
from cluster.services.hosting import Host

PREFIX = "onecopy_"
OPENMETRICS = "application/openmetrics-text"
LATENCY_BOUNDS_S = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
)  # fmt: skip
METHODS = ("GET", "HEAD", "PUT", "DELETE", "POST", "other")


class _MethodTally:
    """What one method's requests have come to."""

    __slots__ = ("by_class", "by_latency", "seconds")

    def __init__(self) -> None:
        self.by_class = [0] * 6  # by the status' first digit
        self.by_latency = [0] * (len(LATENCY_BOUNDS_S) + 1)
        self.seconds = 0.0


class RequestMetrics(Collector):
    """Counts of requests by method and status class, and their latency."""

    def __init__(self) -> None:
        self._tallies = {method: _MethodTally() for method in METHODS}
        self._other = self._tallies["other"]

    def observe(self, method: str, status: int, seconds: float) -> None:
        """Count one request."""
        tally = self._tallies.get(method, self._other)
        tally.by_class[status // 100] += 1
        tally.by_latency[bisect_left(LATENCY_BOUNDS_S, seconds)] += 1
        tally.seconds += seconds

    def collect(self) -> Iterator[Metric]:
        """Yield the families, for the registry."""
        requests = CounterMetricFamily(
            f"{PREFIX}http_requests",
            "Requests answered, by method and class of status.",
            labels=("method", "status"),
        )
        latency = HistogramMetricFamily(
            f"{PREFIX}http_request_duration_seconds",
            "From the request's head to its answer, without sending it.",
            labels=("method",),
        )
        for method, tally in self._tallies.items():
            if not any(tally.by_class):
                continue
            for status_class, count in enumerate(tally.by_class):
                if count:
                    requests.add_metric((method, f"{status_class}xx"), count)
            latency.add_metric((method,), _cumulative(tally.by_latency), tally.seconds)
        yield requests
        yield latency


def _cumulative(counts: list[int]) -> list[tuple[str, float]]:
    total = 0
    buckets: list[tuple[str, float]] = []
    for bound, count in zip((*map(str, LATENCY_BOUNDS_S), "+Inf"), counts, strict=True):
        total += count
        buckets.append((bound, total))
    return buckets


class NumbersCollector(Collector):
    """Numbers read when scraped: names that end in _total are counters, the others gauges."""

    def __init__(self, read: Callable[[], Mapping[str, float]]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        """Yield one family a number, for the registry."""
        for name, value in self._read().items():
            text = name.replace("_", " ")
            if name.endswith("_total"):
                yield CounterMetricFamily(PREFIX + name.removesuffix("_total"), text, value=value)
            else:
                yield GaugeMetricFamily(PREFIX + name, text, value=value)


class ServiceCollector(Collector):
    """Calls of hosted services on this node. The labels are bounded: by the methods there are."""

    def __init__(self, hosts: Mapping[str, Host]) -> None:
        self._hosts = hosts

    def collect(self) -> Iterator[Metric]:
        """Yield the families, for the registry; none where nothing is hosted."""
        if not self._hosts:
            return
        calls = CounterMetricFamily(
            f"{PREFIX}service_calls",
            "Calls executed here, by service, method and outcome; of a timer also those not due.",
            labels=("service", "method", "outcome"),
        )
        seconds = CounterMetricFamily(
            f"{PREFIX}service_call_seconds",
            "Time that calls took to be executed, without replication.",
            labels=("service", "method"),
        )
        version = GaugeMetricFamily(
            f"{PREFIX}service_version", "Version of the code here.", labels=("service",)
        )
        differs = GaugeMetricFamily(
            f"{PREFIX}service_differs",
            "1 if the code here is not what the cluster runs.",
            labels=("service",),
        )
        for name, host in self._hosts.items():
            version.add_metric((name,), host.signatures.version)
            differs.add_metric((name,), float(bool(host.difference)))
            for method, tally in host.tallies.items():
                seconds.add_metric((name, method), tally.seconds)
                for outcome, count in tally.counts.items():
                    calls.add_metric((name, method, outcome), count)
        yield from (calls, seconds, version, differs)


class Metrics:
    """The registry of one node's API, apart from the process-wide default one."""

    def __init__(
        self,
        node_id: str,
        read_node: Callable[[], Mapping[str, float]],
        read_server: Callable[[], Mapping[str, float]],
        hosts: Mapping[str, Host],
    ) -> None:
        self.requests = RequestMetrics()
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self.requests)
        self._registry.register(NumbersCollector(read_node))
        self._registry.register(NumbersCollector(read_server))
        self._registry.register(ServiceCollector(hosts))
        ProcessCollector(registry=self._registry)
        build = Info(f"{PREFIX}build", "What runs here.", registry=self._registry)
        build.info(
            {"version": installed_version(), "python": platform.python_version(), "node": node_id}
        )

    def render(self, accept: str) -> tuple[bytes, bytes]:
        """Return (body, content type) in the exposition format that `accept` asks for.

        Whatever stands there gets numbers: what it does not clearly ask for is the text format.
        """
        # Not prometheus_client's choice: it fails on parameters that it does not know.
        if OPENMETRICS in accept:
            body: bytes = openmetrics.generate_latest(self._registry)  # type: ignore[no-untyped-call]
            return body, openmetrics.CONTENT_TYPE_LATEST.encode("ascii")
        return generate_latest(self._registry), CONTENT_TYPE_PLAIN_0_0_4.encode("ascii")
