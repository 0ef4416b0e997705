"""A backup as it is taken: where that is given up, nobody reads on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

import pytest

from cluster.bulk.backup import take_backup


async def test_ctrl_c_amid_a_backup_closes_what_it_reads() -> None:
    waits = asyncio.Event()
    closed = False

    async def pieces() -> AsyncGenerator[bytes, None]:
        nonlocal closed
        try:
            waits.set()
            await asyncio.Event().wait()
            yield b""
        finally:
            closed = True

    async def take() -> None:
        async with contextlib.aclosing(pieces()) as coming:
            await take_backup(coming, lambda _: None, lambda _: None)

    task = asyncio.create_task(take())
    await waits.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert closed
