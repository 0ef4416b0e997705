"""Every benchmark has its words in the report: else the report of its first result ends."""

from __future__ import annotations

from bench.registry import BY_NAME
from bench.report_text import NOTES, TITLES


def test_each_benchmark_has_a_title_and_a_note() -> None:
    assert set(BY_NAME) == set(TITLES) == set(NOTES)
