"""A failed fsync: the page cache holds what the disk does not, and a restart reads the disk (D9).

`LostWriteback` plays the disk: pages that it failed to write are clean in the cache, a later fsync
succeeds without writing them, and only dropping them from the cache shows what the disk has.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from datapath.errors import DiskFailedError
from datapath.records import make_record
from datapath.storage.accepted import Accepted
from datapath.storage.environment import Environment
from datapath.storage.log import Log
from datapath.storage.log_files import Files
from election.pysyncobj_adapter.journal import Journal
from election.pysyncobj_adapter.member_registry import MemberBook


class LostWriteback:
    """What the disk has of a file from now on; `fail` makes the next syncs fail."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._path = path
        self._on_disk = path.read_bytes()
        self._patch = monkeypatch
        self._fadvise = os.posix_fadvise

    def fail(self) -> None:
        def sync(_: int) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        for name in ("fsync", "fdatasync"):
            self._patch.setattr(os, name, sync)

    def restart(self) -> None:
        """The process has ended; the disk works again, and has lost what it could not write."""
        self._patch.undo()
        self._patch.setattr(os, "posix_fadvise", self._drop)

    def _drop(self, descriptor: int, offset: int, length: int, advice: int) -> None:
        if advice == os.POSIX_FADV_DONTNEED and os.fstat(descriptor).st_ino == (
            self._path.stat().st_ino
        ):
            with self._path.open("r+b") as file:
                file.write(self._on_disk)
                file.truncate()
        self._fadvise(descriptor, offset, length, advice)


def test_the_journal_does_not_believe_a_vote_that_the_disk_has_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal"
    journal = Journal(path)
    journal.setCurrentTerm(1, "n1")
    disk = LostWriteback(path, monkeypatch)
    disk.fail()
    with pytest.raises(OSError, match="Input/output"):
        journal.setCurrentTerm(2, "n2")
    journal._destroy()
    disk.restart()
    again = Journal(path)
    assert (again.getCurrentTerm(), again.getVotedForNodeId()) == (1, "n1")
    again._destroy()


def test_the_accepted_primary_is_not_believed_if_the_disk_has_lost_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "accepted"
    accepted = Accepted(path)
    accepted.record(1, "n1")
    disk = LostWriteback(path, monkeypatch)
    disk.fail()
    with pytest.raises(DiskFailedError):
        accepted.record(2, "n2")
    accepted.close()
    disk.restart()
    accepted = Accepted(path)
    assert (accepted.epoch, accepted.primary) == (1, "n1")
    accepted.close()


def test_the_log_does_not_believe_records_that_the_disk_has_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoWriteThrough(Files):
        write_through = 0

    log = Log.open(tmp_path / "log", segment_size_bytes=1 << 16, files=NoWriteThrough())
    log.append([make_record(1, 1, 0, [[(0, b"k", b"v")]])], durable=True)
    (segment,) = (tmp_path / "log").glob("*.seg")
    disk = LostWriteback(segment, monkeypatch)
    disk.fail()
    with pytest.raises(DiskFailedError):
        log.append([make_record(2, 1, 0, [[(0, b"k", b"w")]])], durable=True)
    log._release()
    disk.restart()
    log = Log.open(tmp_path / "log", segment_size_bytes=1 << 16)
    assert log.last_index == 1
    log.close()


def _write(environment: Environment, index: int) -> None:
    with environment.lmdb.begin(write=True) as transaction:
        environment.write_meta(transaction, index, 1, "c")


def test_the_store_does_not_believe_a_transaction_that_the_disk_has_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = Environment(tmp_path, 1 << 20, fresh=True)
    _write(environment, 1)
    disk = LostWriteback(tmp_path / "data.mdb", monkeypatch)
    _write(environment, 2)  # LMDB syncs by itself: this one shall be lost
    environment.release()
    disk.restart()
    environment = Environment(tmp_path, 1 << 20)
    with environment.lmdb.begin() as transaction:
        assert environment.state(transaction) == (1, 1)
    environment.release()


@pytest.mark.parametrize(
    "read",
    [
        lambda path: MemberBook(path, {"n1": "127.0.0.1:1"}),
    ],
    ids=["members"],
)
def test_files_that_are_replaced_are_read_from_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[Path], object]
) -> None:
    path = tmp_path / "file"
    read(path)
    dropped: list[int] = []
    monkeypatch.setattr(
        os, "posix_fadvise", lambda descriptor, *_: dropped.append(os.fstat(descriptor).st_ino)
    )
    read(path)
    assert dropped == [path.stat().st_ino]
