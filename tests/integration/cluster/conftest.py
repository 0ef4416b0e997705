from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.support.fake_api import FakeCluster, fake_cluster


@pytest.fixture
async def nodes() -> AsyncIterator[FakeCluster]:
    """Three nodes over one store in memory, on real sockets."""
    async with fake_cluster() as cluster:
        yield cluster
