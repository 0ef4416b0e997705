"""`kill -9` of the primary under many leases, locks and watchers: the benchmark, as a test."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from bench.context import Context, Options
from bench.lease_kill import Size, measure

SMALL = Size(leases=500, locks=100, watchers=50, ttl_ms=10_000)
WHOLE = Size()


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("size", [SMALL, WHOLE], ids=["small", "whole"])
def test_no_lease_ends_early_and_nobody_who_waits_or_watches_misses_anything(
    size: Size, tmp_path: Path
) -> None:
    """L1, K2, W2, W3."""
    found = measure(Context(Options(), tmp_path, Console()), size)
    assert found["ended_early"] == 0
    assert found["ended"] == size.leases
    assert found["ended_twice"] == 0
    assert found["reasons"] == ["expired"]
    assert found["got_the_lock"] == size.locks
    assert found["saw_each_write_once"] == size.watchers
