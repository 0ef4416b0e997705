"""Latency histograms: HDR, three significant digits, from 1 us to 60 s, in microseconds.

They are recorded from a multiset of values (`collections.Counter`), after the measurement, because
`record_value` costs the load generator 6 us a call.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec
from hdrh.histogram import HdrHistogram

LOWEST_US = 1
HIGHEST_US = 60_000_000
DIGITS = 3
PERCENTILES = (50.0, 90.0, 99.0, 99.9)


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """A histogram's figures, in milliseconds, and the histogram itself for later merging."""

    count: int
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    hdr: str


def from_counts(counts: Mapping[int, int]) -> HdrHistogram:
    """Return a histogram of {latency in us: how often}; longer ones count as HIGHEST_US."""
    histogram = HdrHistogram(LOWEST_US, HIGHEST_US, DIGITS)
    for value, count in counts.items():
        histogram.record_value(min(max(value, LOWEST_US), HIGHEST_US), count)
    return histogram


def merge(encoded: Iterable[str]) -> HdrHistogram:
    """Return the sum of encoded histograms."""
    total = HdrHistogram(LOWEST_US, HIGHEST_US, DIGITS)
    for text in encoded:
        total.add(HdrHistogram.decode(text))
    return total


def encode(histogram: HdrHistogram) -> str:
    """Return the histogram in HdrHistogram's own compressed form, base64."""
    text: bytes = histogram.encode()
    return text.decode()


def figures(histogram: HdrHistogram) -> Latency:
    """Return the figures of a histogram; zeros if nothing was recorded."""
    count = histogram.get_total_count()
    if not count:
        return Latency(
            count=0, mean_ms=0, p50_ms=0, p90_ms=0, p99_ms=0, p999_ms=0, max_ms=0, hdr=""
        )
    p50, p90, p99, p999 = (histogram.get_value_at_percentile(at) / 1000 for at in PERCENTILES)
    return Latency(
        count=count,
        mean_ms=round(histogram.get_mean_value() / 1000, 4),
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        p999_ms=p999,
        max_ms=histogram.get_max_value() / 1000,
        hdr=encode(histogram),
    )
