"""A store whose keys were deleted gives its disk space back, whatever ends in between."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from datapath.keyspaces import KV, ROLES
from datapath.storage import compaction
from datapath.storage.compaction import MAX_HELD_BYTES, Compactor, is_wasteful
from datapath.storage.environment import set_current
from datapath.storage.store import Store
from datapath.storage.store_flusher import StoreFlusher
from tests.support.processes import is_alive

ENTRIES = 3000
VALUE_BYTES = 1000
MIN_WASTE_BYTES = 1_000_000
DEADLINE_S = 30.0


def put(store: Store, first: int, count: int, value: bytes | None) -> None:
    store.apply(
        [[(KV, b"key%06d" % n, value)] for n in range(first, first + count)],
        store.applied_index + count,
        1,
    )


class Replica:
    """A store with the threads that a node has for it."""

    def __init__(self, path: Path) -> None:
        self.store = Store.open(path / "store", cluster_id="c1")
        self.errors: list[BaseException] = []
        self.flusher = StoreFlusher(self.store, on_error=self.errors.append, flush_age_ms=10)
        self.compactor: Compactor | None = None

    def compact(self, max_held_bytes: int = MAX_HELD_BYTES) -> Compactor:
        self.compactor = Compactor(
            self.store,
            self.flusher,
            on_error=self.errors.append,
            min_waste_bytes=MIN_WASTE_BYTES,
            check_interval_s=0.01,
            max_held_bytes=max_held_bytes,
        )
        return self.compactor

    async def fill_and_delete(self) -> None:
        """Leave a tenth of what was there."""
        put(self.store, 0, ENTRIES, b"v" * VALUE_BYTES)
        await self.flusher.flush_now()
        put(self.store, 0, ENTRIES * 9 // 10, None)
        self.store.apply([[(ROLES, b"t", b"1")]], self.store.applied_index + 1, 1)
        await self.flusher.flush_now()

    def environments(self) -> list[str]:
        return sorted(path.name for path in self.store.directory.glob("env-*"))

    async def close(self) -> None:
        if self.compactor is not None:
            await self.compactor.close()
        await self.flusher.close()
        self.store.close()


@pytest.fixture
async def replica(tmp_path: Path) -> AsyncIterator[Replica]:
    replica = Replica(tmp_path)
    await replica.fill_and_delete()
    yield replica
    await replica.close()


async def until(condition: Callable[[], object], what: str) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 -- of another process, or a thread
            await asyncio.sleep(0.005)
    assert condition(), what


def opened_again(replica: Replica) -> tuple[tuple[int, str], list[str]]:
    """Return digest and environments of what a node would find that starts now, after a crash."""
    directory = replica.store.directory
    copy = directory.with_name("crashed")
    shutil.copytree(directory, copy)
    try:
        with contextlib.closing(Store.open(copy, cluster_id="c1")) as again:
            return again.digest(), sorted(path.name for path in copy.glob("env-*"))
    finally:
        shutil.rmtree(copy)


@pytest.mark.parametrize(
    ("file_bytes", "used_bytes", "min_waste_bytes", "expected"),
    [
        (200, 0, 200, True),
        (200, 0, 201, False),  # less than what is worth it
        (200, 0, 0, False),  # switched off
        (400, 100, 100, True),  # as much as is used twice: flushes take it in turn
        (400, 100, 101, False),
        (8 << 30, 4 << 30, 3 << 30, True),  # two flushes are small beside it
        (8 << 30, (4 << 30) + 1, 3 << 30, False),  # less than half of it
    ],
)
def test_when_a_copy_is_worth_it(
    file_bytes: int, used_bytes: int, min_waste_bytes: int, expected: bool
) -> None:
    assert is_wasteful(file_bytes, used_bytes, min_waste_bytes) is expected


async def test_space_is_given_back_while_reads_and_writes_go_on(replica: Replica) -> None:
    store = replica.store
    before, digest = store.space()[0], store.digest()
    assert before > 2 * MIN_WASTE_BYTES
    compactor, written = replica.compact(), 0
    while not compactor.compacted_total:
        async with asyncio.timeout(DEADLINE_S):
            assert store.get(KV, b"key%06d" % (ENTRIES - 1)) == b"v" * VALUE_BYTES
            assert store.get(ROLES, b"t") == b"1"
            put(store, ENTRIES + written, 1, b"new")
            written += 1
            replica.flusher.applied()
            await asyncio.sleep(0.002)
    file_bytes, used_bytes = store.space()
    assert file_bytes < before / 2
    assert used_bytes <= file_bytes
    assert len(replica.environments()) == 1
    for number in range(written):
        assert store.get(KV, b"key%06d" % (ENTRIES + number)) == b"new"
    put(store, ENTRIES, written, None)
    await replica.flusher.flush_now()
    assert store.digest()[1] == digest[1]
    assert opened_again(replica) == (store.digest(), replica.environments())
    assert not replica.errors


async def test_too_much_written_meanwhile_ends_the_copy(
    replica: Replica, caplog: pytest.LogCaptureFixture
) -> None:
    store, before = replica.store, replica.environments()
    replica.compact(max_held_bytes=100_000)
    await until(lambda: len(replica.environments()) > 1, "a copy is made")
    put(store, ENTRIES, 200, b"v" * VALUE_BYTES)
    replica.flusher.applied()
    await until(lambda: "too much was written" in caplog.text, "it is given up")
    await until(lambda: store.durable_index == store.applied_index, "flushes go on")
    assert replica.environments() == before
    assert opened_again(replica) == (store.digest(), before)
    assert not replica.errors


async def test_a_copying_process_that_dies_leaves_nothing(
    replica: Replica, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    start = asyncio.create_subprocess_exec

    async def start_and_kill(*command: str, **options: object) -> asyncio.subprocess.Process:
        process = await start(*command, **options)  # type: ignore[arg-type]
        process.send_signal(signal.SIGKILL)
        return process

    monkeypatch.setattr(asyncio, "create_subprocess_exec", start_and_kill)
    before = replica.environments()
    replica.compact()
    await until(lambda: "the process that copies it ended" in caplog.text, "it is told")
    await until(lambda: replica.environments() == before, "nothing is left")
    put(replica.store, 0, 1, b"on")
    await replica.flusher.flush_now()
    assert opened_again(replica) == (replica.store.digest(), before)


async def test_a_node_that_stops_meanwhile_leaves_nothing(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = asyncio.create_subprocess_exec
    started: list[asyncio.subprocess.Process] = []

    async def start_and_stop(*command: str, **options: object) -> asyncio.subprocess.Process:
        process = await start(*command, **options)  # type: ignore[arg-type]
        os.kill(process.pid, signal.SIGSTOP)  # as a disk that hangs
        started.append(process)
        return process

    monkeypatch.setattr(asyncio, "create_subprocess_exec", start_and_stop)
    before = replica.environments()
    compactor = replica.compact()
    await until(lambda: started, "a copy is made")
    await compactor.close()
    assert not is_alive(started[0].pid)
    assert replica.environments() == before
    await replica.flusher.flush_now()


@pytest.mark.parametrize("renamed", [False, True])
async def test_an_unknown_outcome_of_the_take_over_ends_the_node(
    replica: Replica, monkeypatch: pytest.MonkeyPatch, renamed: bool
) -> None:
    def fail(directory: Path, name: str) -> None:
        if renamed:
            set_current(directory, name)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(compaction, "set_current", fail)
    digest = replica.store.digest()
    replica.compact()
    await until(lambda: replica.errors, "it is reported")
    put(replica.store, 0, 1, b"lost to the store, not to the log")
    await asyncio.sleep(0.05)
    replica.flusher.applied()
    with pytest.raises(Exception, match="refuses to flush"):
        await replica.flusher.flush_now()
    assert opened_again(replica)[0] == digest


async def test_a_stop_within_the_take_over_carries_it_through(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()

    def slowly(directory: Path, name: str) -> None:
        loop.call_soon_threadsafe(begun.set)
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0.1), loop).result()
        set_current(directory, name)

    monkeypatch.setattr(compaction, "set_current", slowly)
    compactor, before = replica.compact(), replica.environments()
    async with asyncio.timeout(DEADLINE_S):
        await begun.wait()
    await compactor.close()
    put(replica.store, 0, 1, b"after")
    await replica.flusher.flush_now()
    assert replica.environments() != before
    assert opened_again(replica) == (replica.store.digest(), replica.environments())


async def test_the_former_file_stays_while_somebody_reads_it(replica: Replica) -> None:
    reader = replica.store.acquire_environment()
    digest = replica.store.digest()
    compactor = replica.compact()
    await until(lambda: compactor.compacted_total, "it is compacted")
    assert (reader.path / "data.mdb").exists()
    with reader.lmdb.begin() as transaction:
        assert reader.state(transaction)[0] == digest[0]
    reader.release()
    assert not reader.path.exists()
