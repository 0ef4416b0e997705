"""A replica that had to cut its log's tail remembers it until it is known to be harmless."""

from __future__ import annotations

from pathlib import Path

import pytest

from datapath.errors import DataDirectoryError
from datapath.node.replica_disk import ReplicaStorage
from datapath.storage.data_directory import DataDirectory
from datapath.storage.log import Log
from datapath.storage.log_recovery import TailCut
from tests.unit.datapath.storage.storage_faults import (
    SEGMENT_SIZE_BYTES,
    Crash,
    FailingFiles,
    abandon,
    records,
)


def open_storage(path: Path) -> tuple[DataDirectory, ReplicaStorage]:
    directory = DataDirectory.open(path, node_id="n1")
    storage = ReplicaStorage(
        directory,
        segment_size_bytes=SEGMENT_SIZE_BYTES,
        map_size_bytes=1 << 24,
        flush_bytes=1 << 20,
        retention_bytes=1 << 20,
        catchup_bytes=1 << 20,
    )
    return directory, storage


def suspects(path: Path, *, clears: bool = False) -> bool:
    """Open the storage, as a process does that is killed at once; say whether it is suspect."""
    directory, storage = open_storage(path)
    suspect = storage.recover().tail_cut
    if clears:
        storage.accepted.clear_marks()
    abandon(storage.log)
    storage.store.close()
    storage.accepted.close()
    directory.close()
    return suspect


def write_and_tear(path: Path) -> None:
    """Leave a log whose last group has lost its end."""
    directory, storage = open_storage(path)
    storage.accepted.record(1, "n2")
    storage.log.append(records(1, 3), durable=True)
    storage.log.append(records(4, 3), durable=True)
    segment, end = storage.log._segments[-1].path, storage.log._segments[-1].end
    abandon(storage.log)
    storage.store.close()
    storage.accepted.close()
    directory.close()
    with segment.open("r+b") as file:
        file.seek(end - 10)
        file.write(bytes(10))


def test_a_cut_tail_is_remembered_until_the_replica_has_caught_up(tmp_path: Path) -> None:
    assert not suspects(tmp_path)
    write_and_tear(tmp_path)
    assert suspects(tmp_path)
    assert suspects(tmp_path), "the tail is sound now, and what was cut may have been promised"
    assert suspects(tmp_path, clears=True)
    assert not suspects(tmp_path)


def test_the_mark_outlives_new_epochs_and_stands_beside_the_other(tmp_path: Path) -> None:
    write_and_tear(tmp_path)
    directory, storage = open_storage(tmp_path)
    storage.accepted.record(7, "n2")
    storage.accepted.set_incomplete()
    recovered = storage.recover()
    assert (recovered.tail_cut, recovered.incomplete, recovered.accepted_epoch) == (True, True, 7)
    storage.accepted.clear_marks()
    assert not storage.accepted.tail_cut
    assert not storage.accepted.incomplete
    assert storage.accepted.epoch == 7
    storage.log.close()
    storage.store.close()
    storage.accepted.close()
    directory.close()


def test_it_is_noted_before_the_tail_is_cut(tmp_path: Path) -> None:
    """Between the two a crash would leave a sound log, and no trace of what it has lost."""
    write_and_tear(tmp_path)
    noted: list[TailCut] = []
    with pytest.raises(Crash):
        Log.open(
            tmp_path / "log",
            segment_size_bytes=SEGMENT_SIZE_BYTES,
            before_cut=noted.append,
            files=FailingFiles(0, Crash(), ["truncate"]),
        )
    assert len(noted) == 1
    log = Log.open(tmp_path / "log", segment_size_bytes=SEGMENT_SIZE_BYTES)
    assert log.tail_cut, "nothing was cut yet"
    log.close()


def test_an_accepted_record_older_than_the_log_is_refused(tmp_path: Path) -> None:
    """It is an old copy: the primary of an epoch is recorded before any of its entries (E5)."""
    directory, storage = open_storage(tmp_path)
    old = (tmp_path / "accepted").read_bytes()
    storage.accepted.record(1, "n2")
    storage.log.append(records(1, 3), durable=True)
    abandon(storage.log)
    storage.store.close()
    storage.accepted.close()
    (tmp_path / "accepted").write_bytes(old)
    directory.close()
    directory, storage = open_storage(tmp_path)
    with pytest.raises(DataDirectoryError, match="is an old copy"):
        storage.recover()
    storage.log.close()
    storage.store.close()
    storage.accepted.close()
    directory.close()
