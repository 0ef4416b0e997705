"""One scan at a time, shared by all who ask, never of a state from before they asked."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from datapath.errors import OperationNotAppliedError, StoppedError
from datapath.node.shared_scan import SharedScan
from datapath.storage.store import Store


class Scans:
    """Scans that end when they are let go; each gives its number."""

    def __init__(self) -> None:
        self.begun: list[threading.Event] = []
        self.running = 0
        self.most_running = 0
        self.go_on = asyncio.Event()

    async def scan(self, stop: threading.Event) -> int:
        self.begun.append(stop)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            while not self.go_on.is_set():
                if stop.is_set():
                    raise StoppedError("stopped")
                await asyncio.sleep(0.001)
            return len(self.begun)
        finally:
            self.running -= 1


async def until_begun(scans: Scans, count: int) -> None:
    async with asyncio.timeout(10):
        while len(scans.begun) < count:  # noqa: ASYNC110 -- polled, as there is no event of it
            await asyncio.sleep(0)


async def test_all_who_ask_during_a_scan_share_the_next() -> None:
    scans = Scans()
    shared = SharedScan(scans.scan)
    first = asyncio.create_task(shared.result())
    await until_begun(scans, 1)
    later = [asyncio.create_task(shared.result()) for _ in range(150)]
    await asyncio.sleep(0)
    scans.go_on.set()
    assert await first == 1
    assert await asyncio.gather(*later) == [2] * 150
    assert scans.most_running == 1
    assert shared.scans_total == 2


async def test_a_scan_that_nobody_waits_for_ends_and_the_next_does_not_begin() -> None:
    scans = Scans()
    shared = SharedScan(scans.scan)
    asking = [asyncio.create_task(shared.result())]
    await until_begun(scans, 1)
    asking += [asyncio.create_task(shared.result()) for _ in range(150)]
    await asyncio.sleep(0)
    for task in asking:
        task.cancel()
    async with asyncio.timeout(10):
        while scans.running:  # noqa: ASYNC110 -- polled, as there is no event of it
            await asyncio.sleep(0)
    assert len(scans.begun) == 1
    scans.go_on.set()
    assert await shared.result() == 2  # and who asks then gets an answer


async def test_one_of_many_that_leaves_ends_nothing() -> None:
    scans = Scans()
    shared = SharedScan(scans.scan)
    asking = [asyncio.create_task(shared.result()) for _ in range(2)]
    await until_begun(scans, 1)
    asking[0].cancel()
    await asyncio.sleep(0)
    assert not scans.begun[0].is_set()
    scans.go_on.set()
    assert await asking[1] == 1


async def test_stopping_ends_the_scan_and_tells_who_waits() -> None:
    scans = Scans()
    shared = SharedScan(scans.scan)
    first = asyncio.create_task(shared.result())
    await until_begun(scans, 1)
    second = asyncio.create_task(shared.result())
    await asyncio.sleep(0)
    shared.stop("n1 is stopping")
    for task in (first, second):
        with pytest.raises(OperationNotAppliedError, match="n1 is stopping"):
            await task
    assert scans.begun[0].is_set()
    with pytest.raises(OperationNotAppliedError):
        await shared.result()


async def test_a_failed_scan_fails_those_who_asked_only() -> None:
    fails = True

    async def scan(_stop: threading.Event) -> str:
        if fails:
            raise OSError("broken")
        return "ok"

    shared = SharedScan(scan)
    with pytest.raises(OSError, match="broken"):
        await shared.result()
    fails = False
    assert await shared.result() == "ok"


def test_the_scan_of_a_store_stops_when_told(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    try:
        store.apply([[(0, b"%d" % number, bytes(1000))] for number in range(1000)], 1000, 1)
        store.flush()
        stop = threading.Event()
        assert store.digest(stop) == store.digest()
        stop.set()
        with pytest.raises(StoppedError):
            store.digest(stop)
    finally:
        store.close()
