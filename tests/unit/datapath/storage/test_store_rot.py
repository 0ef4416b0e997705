"""A value that rots in LMDB's file is never read: LMDB itself would not notice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from datapath.errors import DataDirectoryError, StorageError
from datapath.storage.snapshot import SnapshotReader
from datapath.storage.store import Store
from tests.support.damage import flip_byte

KEY, VALUE = b"key", b"a value that stands nowhere else"

READS: dict[str, Callable[[Store], object]] = {
    "get": lambda store: store.get(0, KEY),
    "range": lambda store: store.range(0, b"", None, 10),
    "range reversed": lambda store: store.range(0, b"", None, 10, reverse=True),
    "digest": lambda store: store.digest(),
    "snapshot": lambda store: SnapshotReader(store.acquire_environment()).read_chunk(0),
}


def rotten(directory: Path, what: bytes) -> Store:
    """Return a store in whose file all copies of `what` have a byte inverted."""
    store = Store.open(directory)
    store.apply([[(0, KEY, VALUE), (0, b"other", b"sound")]], 1, 1)
    store.flush()
    store.close()
    (file,) = directory.glob("env-*/data.mdb")
    content = file.read_bytes()
    at = content.find(what)
    assert at > 0
    while at >= 0:
        flip_byte(file, at + len(what) // 2)
        at = content.find(what, at + 1)
    return Store.open(directory)


@pytest.mark.parametrize("read", READS)
def test_a_rotten_value_is_named_and_never_read(tmp_path: Path, read: str) -> None:
    store = rotten(tmp_path / "store", VALUE)
    told: list[StorageError] = []
    store.on_damage = told.append
    try:
        with pytest.raises(DataDirectoryError, match="join as a new node"):
            READS[read](store)
        assert bool(told) == (read not in {"digest", "snapshot"}), "others tell by themselves"
        assert store.get(0, b"other") == b"sound"
    finally:
        store.close()


def test_a_rotten_key_shows_in_every_scan(tmp_path: Path) -> None:
    store = rotten(tmp_path / "store", b"other")
    try:
        for read in ("range", "range reversed", "digest", "snapshot"):
            with pytest.raises(DataDirectoryError):
                READS[read](store)
    finally:
        store.close()
