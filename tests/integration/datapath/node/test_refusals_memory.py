"""A refused operation leaves nothing in memory: the primary may refuse millions."""

from __future__ import annotations

import contextlib
import gc
from pathlib import Path

import pytest

from cluster.services.kv import KeyValue
from datapath.errors import RejectedError
from tests.support.replicas import running

pytestmark = pytest.mark.slow

REFUSALS = 50


def _refusals_in_memory() -> int:
    gc.collect()
    return sum(isinstance(item, RejectedError) for item in gc.get_objects())


@pytest.mark.parametrize("keyed", [False, True], ids=["without a key", "under idempotency keys"])
async def test_refused_operations_are_forgotten_once_they_are_answered(
    tmp_path: Path, *, keyed: bool
) -> None:
    async with running(tmp_path, KeyValue) as cluster:
        await cluster["n1"].execute("put", b"k", b"v")
        before = _refusals_in_memory()
        for number in range(REFUSALS):
            key = f"key-{number}" if keyed else ""
            with contextlib.suppress(RejectedError):
                await cluster["n1"].execute("put", b"k", b"x", None, True, idempotency_key=key)
        assert _refusals_in_memory() - before < REFUSALS // 5
