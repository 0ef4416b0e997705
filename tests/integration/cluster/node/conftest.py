from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.cluster import UNSUSPECTING, Cluster


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    """Two replicas and a witness with access control."""
    found = Cluster(
        tmp_path / "cluster",
        replicas=2,
        witnesses=1,
        timing=UNSUSPECTING,
        access={"audit_file": "audit-{node}.jsonl"},
    )
    try:
        await found.start()
        yield found
    except BaseException:
        print(found.tails())
        raise
    finally:
        found.end()
