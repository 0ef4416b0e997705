"""What the bench says a server used is what the kernel counted, at the place that is meant."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import accounting
from bench.accounting import Disk, Servers, Usage, disk_counters, disk_text, usage

MIB = 2**20
PAGES = 64
SPREAD_BYTES = 2 * MIB
"""Further apart than the largest folio of the page cache."""


@pytest.fixture
def on_a_device(tmp_path: Path) -> Iterator[Path]:
    for directory in (tmp_path, Path("/var/tmp")):
        if disk_counters(directory) is not None:
            path = directory / f"accounting-{os.getpid()}"
            path.mkdir()
            yield path
            for file in path.iterdir():
                file.unlink()
            path.rmdir()
            return
    pytest.skip("no directory here lies on a block device of its own")


def _written_by(directory: Path, write: int) -> Disk:
    """Dirty one page in each of PAGES far places of a file, and say what the device counted."""
    path = directory / "data"
    with path.open("wb") as file:
        for _ in range(PAGES):
            file.write(os.urandom(SPREAD_BYTES))
        file.flush()
        os.fsync(file.fileno())
    os.sync()
    before = usage(Servers([os.getpid()], directory))
    descriptor = os.open(path, os.O_WRONLY)
    try:
        for number in range(PAGES):
            os.pwrite(descriptor, os.urandom(write), number * SPREAD_BYTES)
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)
    used = usage(Servers([os.getpid()], directory)).since(before)
    assert used.disk is not None
    return used.disk


def test_single_pages_that_are_dirtied_count_as_pages(on_a_device: Path) -> None:
    found = _written_by(on_a_device, 4096)
    assert found.written_bytes >= PAGES * 4096
    # Others write to the same device: a few MiB at most in that moment. Whole folios would be more.
    assert found.written_bytes < PAGES * SPREAD_BYTES / 4


def test_a_flush_counts_as_a_flush(on_a_device: Path) -> None:
    if not _counts_flushes(on_a_device):
        pytest.skip("this kernel, or this device, counts no flushes")
    before = disk_counters(on_a_device)
    assert before is not None
    with (on_a_device / "data").open("wb", buffering=0) as file:
        for _ in range(5):
            file.write(bytes(4096))
            os.fdatasync(file.fileno())
    after = disk_counters(on_a_device)
    assert after is not None
    assert after.flushes - before.flushes >= 5


def _counts_flushes(directory: Path) -> bool:
    found = disk_counters(directory)
    return found is not None and found.flushes > 0


def test_a_directory_without_a_block_device_has_no_figure() -> None:
    memory = Path("/dev/shm")
    if not memory.is_dir() or accounting.disk_counters(memory) is not None:
        pytest.skip("/dev/shm is not a memory file system here")
    begin = usage(Servers([os.getpid()], memory))
    assert begin.disk is None
    assert usage(Servers([os.getpid()], memory)).since(begin).disk is None
    assert disk_text(None) == "not known"


def test_what_was_used_is_a_difference() -> None:
    used = Usage(5.0, Disk(700, 9), 90).since(Usage(2.0, Disk(500, 5), 30))
    assert used == Usage(3.0, Disk(200, 4), 60)
    assert Usage(5.0, Disk(700, 9), 90).since(Usage(2.0, None, 30)).disk is None


def test_processes_that_are_gone_count_nothing() -> None:
    assert usage(Servers([2**22 + 1])).cpu_s == 0.0
