"""The request counters that replace prometheus-client's own."""

from __future__ import annotations

from cluster.api.metrics import LATENCY_BOUNDS_S, RequestMetrics


def values(metrics: RequestMetrics, name: str, **labels: str) -> list[float]:
    return [
        sample.value
        for family in metrics.collect()
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]


def test_latency_lands_in_the_bucket_that_bounds_it() -> None:
    metrics = RequestMetrics()
    for seconds in (0.0, LATENCY_BOUNDS_S[3], LATENCY_BOUNDS_S[3] * 1.001, 99.0):
        metrics.observe("GET", 200, seconds)
    name = "onecopy_http_request_duration_seconds_bucket"
    assert values(metrics, name, le="0.0001") == [1]
    assert values(metrics, name, le="0.001") == [2]  # a bucket's bound belongs to it
    assert values(metrics, name, le="0.0025") == [3]
    assert values(metrics, name, le="5.0") == [3]
    assert values(metrics, name, le="+Inf") == [4]


def test_statuses_are_counted_by_class_and_strange_methods_together() -> None:
    metrics = RequestMetrics()
    for method, status in (("PUT", 200), ("PUT", 201), ("PUT", 503), ("PURGE", 405), ("LOCK", 405)):
        metrics.observe(method, status, 0.001)
    name = "onecopy_http_requests_total"
    assert values(metrics, name, method="PUT", status="2xx") == [2]
    assert values(metrics, name, method="PUT", status="5xx") == [1]
    assert values(metrics, name, method="other", status="4xx") == [2]
    assert values(metrics, name, method="GET") == []
