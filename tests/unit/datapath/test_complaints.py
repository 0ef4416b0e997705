"""Log lines that strangers can cause are bounded for each kind, and what is left out is told."""

from __future__ import annotations

import logging

import pytest

from datapath.complaints import (
    INTERVAL_S,
    MAX_KINDS,
    MAX_LINE_LENGTH,
    MAX_LINES_PER_INTERVAL,
    Complaints,
)

LOGGER = logging.getLogger("test.complaints")


def test_a_new_text_each_time_is_still_the_same_kind(caplog: pytest.LogCaptureFixture) -> None:
    complaints = Complaints(LOGGER)
    written = [complaints.log("handshake", f"refused {n}", n / 1000) for n in range(10_000)]
    assert sum(written) == len(caplog.records) == MAX_LINES_PER_INTERVAL
    complaints.tick(INTERVAL_S)
    assert f"{10_000 - MAX_LINES_PER_INTERVAL} more lines like 'handshake'" in caplog.text
    complaints.tick(2 * INTERVAL_S)
    assert len(caplog.records) == MAX_LINES_PER_INTERVAL + 1  # nothing more to tell


def test_one_kind_does_not_hide_another(caplog: pytest.LogCaptureFixture) -> None:
    complaints = Complaints(LOGGER)
    for number in range(100):
        complaints.log("handshake", f"refused {number}", 0.0)
    assert complaints.log("accept", "out of descriptors", 0.0)
    assert "out of descriptors" in caplog.text


def test_after_the_interval_a_kind_is_written_again(caplog: pytest.LogCaptureFixture) -> None:
    complaints = Complaints(LOGGER)
    for number in range(100):
        complaints.log("handshake", f"refused {number}", 0.0)
    assert complaints.log("handshake", "refused again", INTERVAL_S)
    assert [r.getMessage()[:4] for r in caplog.records[-2:]] == ["95 m", "refu"]


def test_the_summary_is_as_loud_as_what_it_stands_for(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    complaints = Complaints(LOGGER)
    for _ in range(2):
        complaints.log("closed n2", "n2 closed the link", 0.0, level=logging.INFO)
    for level in (logging.INFO, logging.WARNING):
        complaints.log("dial", "busy", 0.0, level=level)
    caplog.clear()
    complaints.tick(INTERVAL_S)
    assert [record.levelno for record in caplog.records] == [logging.INFO, logging.WARNING]


def test_the_same_text_is_written_once(caplog: pytest.LogCaptureFixture) -> None:
    complaints = Complaints(LOGGER)
    assert [complaints.log("accept", "busy", 0.0) for _ in range(3)] == [True, False, False]


def test_a_line_and_the_number_of_kinds_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    complaints = Complaints(LOGGER)
    complaints.log("handshake", "x" * 100_000, 0.0)
    assert len(caplog.records[0].getMessage()) <= MAX_LINE_LENGTH + 1
    written = sum(complaints.log(f"kind {n}", f"text {n}", 0.0) for n in range(10 * MAX_KINDS))
    assert written <= MAX_KINDS + MAX_LINES_PER_INTERVAL
