"""A raft directory that is restored from a copy is noticed, and refused before it votes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from election.pysyncobj_adapter.errors import RolledBackError, StorageCorruptError
from election.pysyncobj_adapter.settings import AgreementSettings
from election.pysyncobj_adapter.storage import RaftStorage
from election.shared_secret import SharedSecret


@pytest.fixture
def settings(tmp_path: Path) -> AgreementSettings:
    return AgreementSettings(
        node_id="n1",
        bind_address="127.0.0.1:1",
        members={"n1": "127.0.0.1:1"},
        directory=tmp_path / "raft",
        secret=SharedSecret(b"x" * 32),
    )


def take_part(settings: AgreementSettings, term: int, index: int) -> None:
    """Add entries up to `index`, in `term`; note it as the core does."""
    storage = RaftStorage(settings)
    storage.journal.setCurrentTerm(term, "n1")
    for number in range(len(storage.journal) + 1, index + 1):
        storage.journal.add(b"\x00", number, term)
    storage.note_progress(term, index)
    storage.close()


def copied(settings: AgreementSettings) -> Path:
    copy = settings.directory.with_name("copy")
    shutil.copytree(settings.directory, copy)
    return copy


def put_back(settings: AgreementSettings, copy: Path) -> None:
    shutil.rmtree(settings.directory)
    copy.rename(settings.directory)


def test_a_directory_that_goes_on_is_taken(settings: AgreementSettings) -> None:
    for number in (2, 3):
        take_part(settings, number, 2 * number)
    RaftStorage(settings).close()


@pytest.mark.parametrize(("term", "index"), [(1, 5), (2, 3)], ids=["entries", "a vote"])
def test_an_old_copy_is_refused(settings: AgreementSettings, term: int, index: int) -> None:
    take_part(settings, 1, 3)
    copy = copied(settings)
    take_part(settings, term, index)
    put_back(settings, copy)
    for _ in range(2):
        with pytest.raises(RolledBackError, match="is an old copy"):
            RaftStorage(settings)


def test_a_copy_that_lacks_nothing_is_taken(settings: AgreementSettings) -> None:
    take_part(settings, 1, 3)
    put_back(settings, copied(settings))
    RaftStorage(settings).close()


def test_a_directory_made_anew_is_the_other_members_affair(settings: AgreementSettings) -> None:
    """They know this member with another one, and refuse it."""
    take_part(settings, 4, 9)
    shutil.rmtree(settings.directory)
    RaftStorage(settings).close()


def test_a_damaged_mark_is_refused(settings: AgreementSettings) -> None:
    take_part(settings, 1, 3)
    mark = settings.directory.with_name("raft.mark")
    mark.write_bytes(mark.read_bytes()[:-1] + b"\xff")
    with pytest.raises(StorageCorruptError):
        RaftStorage(settings)
