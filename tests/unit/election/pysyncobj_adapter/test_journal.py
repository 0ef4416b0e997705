"""The journal keeps what it acknowledged, cuts what it never did, and refuses the rest."""

from __future__ import annotations

import errno
import os
import resource
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from election.pysyncobj_adapter.errors import RaftStorageFullError, StorageCorruptError
from election.pysyncobj_adapter.journal import Journal, RaftEntry

RESERVE_BYTES = 16 * 1024
HEADER_BYTES = 32


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def entry(index: int, term: int = 1, size_bytes: int = 20) -> RaftEntry:
    return bytes([index % 251 + 1]) * size_bytes, index, term


def written(path: Path, *entries: RaftEntry) -> list[int]:
    """Write the entries; return where each one's record ends."""
    journal = Journal(path, reserve_bytes=RESERVE_BYTES)
    ends = []
    for item in entries:
        journal.add(*item)
        ends.append(journal._end_bytes)
    journal._destroy()
    return ends


def reopened(path: Path) -> Journal:
    journal = Journal(path, reserve_bytes=RESERVE_BYTES)
    journal._destroy()
    return journal


def patch(path: Path, offset: int, data: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[offset : offset + len(data)] = data
    path.write_bytes(content)


class TestKeeps:
    def test_entries_term_vote_and_directory_id(self, path: Path) -> None:
        journal = Journal(path, reserve_bytes=RESERVE_BYTES)
        for index in (1, 2, 3):
            journal.add(*entry(index))
        journal.setCurrentTerm(7, "n2")
        journal._destroy()
        again = reopened(path)
        assert list(again) == [entry(1), entry(2), entry(3)]
        assert (again.getCurrentTerm(), again.getVotedForNodeId()) == (7, "n2")
        assert again.directory_id == journal.directory_id

    def test_a_new_term_without_a_vote(self, path: Path) -> None:
        journal = Journal(path, reserve_bytes=RESERVE_BYTES)
        journal.setCurrentTerm(7, "n2")
        journal.setCurrentTerm(8, None)
        journal._destroy()
        again = reopened(path)
        assert (again.getCurrentTerm(), again.getVotedForNodeId()) == (8, None)

    def test_truncation_and_what_was_appended_after_it(self, path: Path) -> None:
        journal = Journal(path, reserve_bytes=RESERVE_BYTES)
        for index in (1, 2, 3):
            journal.add(*entry(index))
        journal.deleteEntriesFrom(1)
        journal.deleteEntriesFrom(1)
        journal.add(*entry(2, term=2))
        journal._destroy()
        assert list(reopened(path)) == [entry(1), entry(2, term=2)]

    @pytest.mark.parametrize("kept", [0, 1, 3])
    def test_compaction(self, path: Path, kept: int) -> None:
        journal = Journal(path, reserve_bytes=RESERVE_BYTES)
        journal.setCurrentTerm(7, "n2")
        for index in (1, 2, 3):
            journal.add(*entry(index))
        journal.deleteEntriesTo(3 - kept)
        journal.add(*entry(4))
        journal._destroy()
        again = reopened(path)
        assert list(again) == [entry(index) for index in range(4 - kept, 5)]
        assert (again.getCurrentTerm(), again.getVotedForNodeId()) == (7, "n2")

    def test_entries_that_shared_one_sync(self, path: Path) -> None:
        journal = Journal(path, reserve_bytes=RESERVE_BYTES)
        with journal.one_sync():
            journal.add(*entry(1))
            journal.add(*entry(2))
            journal.sync()
            assert list(reopened(path)) == [entry(1), entry(2)]
            journal.add(*entry(3))
        assert list(reopened(path)) == [entry(1), entry(2), entry(3)]
        journal._destroy()

    def test_a_vote_inside_a_shared_sync_comes_after_the_entries(self, path: Path) -> None:
        journal = Journal(path, reserve_bytes=RESERVE_BYTES)
        with journal.one_sync():
            journal.add(*entry(1))
            journal.setCurrentTerm(2, "n1")
            journal.add(*entry(2))
        journal._destroy()
        assert list(reopened(path)) == [entry(1), entry(2)]

    def test_more_than_the_reserve(self, path: Path) -> None:
        entries = [entry(index, size_bytes=1000) for index in range(1, 50)]
        written(path, *entries)
        assert list(reopened(path)) == entries

    def test_slices_and_negative_positions(self, path: Path) -> None:
        written(path, entry(1), entry(2), entry(3))
        journal = reopened(path)
        assert journal[-1] == entry(3)
        assert journal[1:] == [entry(2), entry(3)]
        assert len(journal) == 3

    def test_a_commit_index_never_ahead_of_the_log(self, path: Path) -> None:
        journal = Journal(path, reserve_bytes=RESERVE_BYTES)
        journal.setRaftCommitIndex(99)
        journal._destroy()
        assert reopened(path).getRaftCommitIndex() == 1


class TestTornTail:
    @pytest.mark.parametrize("size_bytes", [20, 2000])
    def test_a_last_write_cut_anywhere_is_cut_off(self, path: Path, size_bytes: int) -> None:
        first, last = written(path, entry(1), entry(2, size_bytes=size_bytes))
        content = path.read_bytes()
        step = 1 if size_bytes < 100 else 97
        for cut in range(first, last - 7, step):
            path.write_bytes(content[:cut])
            assert list(reopened(path)) == [entry(1)], f"the file ended at {cut}"

    def test_a_last_write_of_which_the_rest_reads_as_zeros(self, path: Path) -> None:
        first, last = written(path, entry(1), entry(2, size_bytes=2000))
        content = path.read_bytes()
        for cut in range(first, last - 8, 61):
            path.write_bytes(content[:cut] + bytes(len(content) - cut))
            assert list(reopened(path)) == [entry(1)], f"zeros from {cut}"

    def test_a_last_write_of_which_one_sector_is_missing(self, path: Path) -> None:
        first, last = written(path, entry(1), entry(2, size_bytes=3000))
        content = path.read_bytes()
        for sector in range(first - first % 512 + 512, last - 512, 512):
            path.write_bytes(content[:sector] + bytes(512) + content[sector + 512 :])
            assert list(reopened(path)) == [entry(1)], f"zeros in the sector at {sector}"

    def test_what_is_cut_off_leaves_nothing_for_the_next_record(self, path: Path) -> None:
        first, last = written(path, entry(1), entry(2, size_bytes=2000))
        content = path.read_bytes()
        path.write_bytes(content[: last - 600] + bytes(len(content) - last + 600))
        reopened(path)
        assert not any(path.read_bytes()[first:])
        journal = Journal(path, reserve_bytes=RESERVE_BYTES)
        journal.add(*entry(2, term=3))
        journal._destroy()
        assert list(reopened(path)) == [entry(1), entry(2, term=3)]


class TestRefuses:
    def refused_at(self, path: Path) -> int:
        with pytest.raises(StorageCorruptError) as caught:
            Journal(path, reserve_bytes=RESERVE_BYTES)
        message = str(caught.value)
        assert str(path) in message
        assert str(caught.value.offset_bytes) in message
        assert "new id" in message
        return caught.value.offset_bytes

    def test_every_flipped_bit_of_every_record(self, path: Path) -> None:
        ends = written(path, entry(1), entry(2), entry(3))
        starts = [ends[0] - (ends[1] - ends[0]), ends[0], ends[1]]
        content = path.read_bytes()
        padding = -(40 + 20 + 1) % 8
        for start, end in zip(starts, ends, strict=True):
            for offset in range(start, end - padding):
                if start + 36 <= offset < start + 40:
                    continue  # Zeros that only fill the head.
                for bit in (1, 128):
                    path.write_bytes(content)
                    patch(path, offset, bytes([content[offset] ^ bit]))
                    assert self.refused_at(path) == start, f"byte {offset}, bit {bit}"

    def test_a_flipped_bit_in_the_last_record_is_no_torn_write(self, path: Path) -> None:
        (end,) = written(path, entry(1))
        patch(path, end - 10, b"\xff")
        self.refused_at(path)

    def test_a_zeroed_record_in_the_middle(self, path: Path) -> None:
        first, second, _ = written(path, entry(1), entry(2), entry(3))
        patch(path, first, bytes(second - first))
        assert self.refused_at(path) == first

    def test_an_empty_file(self, path: Path) -> None:
        path.write_bytes(b"")
        self.refused_at(path)

    def test_a_file_of_zeros(self, path: Path) -> None:
        path.write_bytes(bytes(RESERVE_BYTES))
        self.refused_at(path)

    def test_a_damaged_header(self, path: Path) -> None:
        written(path, entry(1))
        for offset in range(HEADER_BYTES - 4):
            content = path.read_bytes()
            patch(path, offset, bytes([content[offset] ^ 1]))
            assert self.refused_at(path) == 0
            path.write_bytes(content)

    def test_a_gap_between_entries(self, path: Path) -> None:
        first, _ = written(path, entry(1), entry(3))
        assert self.refused_at(path) == first


class TestSafetyAndSpace:
    def test_a_record_is_synced_before_the_call_returns(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        journal = Journal(path, reserve_bytes=RESERVE_BYTES)
        synced: list[int] = []
        real = os.fdatasync

        def note(fd: int) -> None:
            real(fd)
            synced.append(journal._end_bytes)

        monkeypatch.setattr(os, "fdatasync", note)
        journal.add(*entry(1))
        journal.setCurrentTerm(2, "n1")
        journal.deleteEntriesFrom(0)
        assert len(synced) == 3
        journal._destroy()

    def test_space_is_allocated_and_zeroed_before_it_is_needed(self, path: Path) -> None:
        written(path, entry(1))
        status = path.stat()
        assert status.st_size == RESERVE_BYTES
        assert status.st_blocks * 512 >= RESERVE_BYTES

    def test_a_full_disk_does_not_stop_votes_and_entries_within_the_reserve(
        self, path: Path, small_files: None
    ) -> None:
        journal = Journal(path, reserve_bytes=RESERVE_BYTES)
        for index in range(1, 100):
            journal.add(*entry(index))
            journal.setCurrentTerm(index, "n1")

        def fill() -> None:
            for index in range(100, 1000):
                journal.add(*entry(index))

        with pytest.raises(RaftStorageFullError, match="journal"):
            fill()
        journal._destroy()

    def test_a_full_disk_at_the_start_says_so(self, path: Path, small_files: None) -> None:
        with pytest.raises(RaftStorageFullError, match="Free space"):
            Journal(path, reserve_bytes=16 * RESERVE_BYTES)
        assert not path.exists()

    @pytest.fixture
    def small_files(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """No file may grow beyond the reserve; the kernel's EFBIG is turned into ENOSPC."""
        real = os.posix_fallocate

        def allocate(fd: int, offset: int, length: int) -> None:
            try:
                real(fd, offset, length)
            except OSError as error:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error

        monkeypatch.setattr(os, "posix_fallocate", allocate)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (RESERVE_BYTES, hard))
        yield
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    def test_random_bytes_never_open_and_never_crash(self, path: Path) -> None:
        for _ in range(50):
            path.write_bytes(secrets.token_bytes(500))
            with pytest.raises(StorageCorruptError):
                Journal(path)
