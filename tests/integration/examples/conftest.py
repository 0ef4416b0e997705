"""What examples run against."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.cluster import SLOW_TO_SUSPECT, Cluster


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    cluster = Cluster(tmp_path / "cluster", timing=SLOW_TO_SUSPECT)
    try:
        await cluster.start()
        yield cluster
    finally:
        cluster.end()
