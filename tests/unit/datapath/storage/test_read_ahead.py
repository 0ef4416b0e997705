"""A store's file is read into memory before requests need it: as much as is allowed."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from datapath.storage.data_directory import trust_the_disk
from datapath.storage.read_ahead import read_ahead

PAGE_BYTES = 4096
SIZE_BYTES = 10 * 1024 * 1024


def cold_file(path: Path) -> Path:
    file = path / "data.mdb"
    file.write_bytes(os.urandom(SIZE_BYTES))
    descriptor = os.open(file, os.O_RDWR)
    trust_the_disk(descriptor)
    os.close(descriptor)
    return file


def cached(file: Path, first: int, end: int) -> int:
    """How many pages of [first, end), in bytes, are read without waiting for the disk."""
    descriptor = os.open(file, os.O_RDONLY)
    found = 0
    for at in range(first, end, PAGE_BYTES):
        try:
            found += os.preadv(descriptor, [bytearray(PAGE_BYTES)], at, os.RWF_NOWAIT) > 0
        except BlockingIOError:
            continue
    os.close(descriptor)
    return found


def test_all_of_it_is_in_memory_afterwards(tmp_path: Path) -> None:
    file = cold_file(tmp_path)
    assert read_ahead(file, 1 << 30, threading.Event()) == SIZE_BYTES
    assert cached(file, 0, SIZE_BYTES) == SIZE_BYTES // PAGE_BYTES


def test_no_more_is_read_than_allowed_nor_after_the_stop(tmp_path: Path) -> None:
    file = cold_file(tmp_path)
    assert read_ahead(file, 5 * 1024 * 1024, threading.Event()) == 5 * 1024 * 1024
    assert read_ahead(file, 0, threading.Event()) == 0
    stop = threading.Event()
    stop.set()
    assert read_ahead(file, 1 << 30, stop) == 0


def test_a_file_that_is_gone_is_not_an_error(tmp_path: Path) -> None:
    assert read_ahead(tmp_path / "data.mdb", 1 << 30, threading.Event()) == 0
