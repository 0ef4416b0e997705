"""E5: one primary for an epoch, whatever happens to the file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from datapath.errors import DataDirectoryError, DiskFailedError, SafetyError
from datapath.storage.accepted import Accepted


def test_a_second_primary_or_a_lower_epoch_is_refused(tmp_path: Path) -> None:
    accepted = Accepted(tmp_path / "accepted")
    assert (accepted.epoch, accepted.primary, accepted.incomplete) == (0, "", False)
    accepted.record(3, "n1")
    accepted.record(3, "n1")
    for epoch, primary in ((3, "n2"), (2, "n1"), (2, "n2")):
        with pytest.raises(SafetyError, match="refused"):
            accepted.record(epoch, primary)
    accepted.record(4, "n2")
    accepted.close()
    accepted = Accepted(tmp_path / "accepted")
    assert (accepted.epoch, accepted.primary) == (4, "n2")
    accepted.close()


def test_the_damaged_mark_outlives_restarts_and_new_epochs(tmp_path: Path) -> None:
    for damaged in (True, True, False):
        accepted = Accepted(tmp_path / "accepted")
        if damaged:
            accepted.set_incomplete()
        else:
            accepted.clear_marks()
        accepted.record(accepted.epoch + 1, "n1")
        accepted.close()
        accepted = Accepted(tmp_path / "accepted")
        assert accepted.incomplete is damaged
        accepted.close()


def test_the_file_has_its_full_size_from_the_start(tmp_path: Path) -> None:
    path = tmp_path / "accepted"
    accepted = Accepted(path)
    size, blocks = path.stat().st_size, path.stat().st_blocks
    for epoch in range(1, 20):
        accepted.record(epoch, "n" * 255)
    accepted.close()
    assert (path.stat().st_size, path.stat().st_blocks) == (size, blocks)


def test_a_write_torn_at_any_byte_leaves_the_last_one_reported_done(tmp_path: Path) -> None:
    path = tmp_path / "accepted"
    accepted = Accepted(path)
    accepted.record(1, "n1")
    accepted.record(2, "n2")
    before = path.read_bytes()
    accepted.record(3, "n3")
    accepted.close()
    after = path.read_bytes()
    changed = [at for at in range(len(after)) if after[at] != before[at]]
    for torn in (*changed, changed[-1] + 1):
        for content in (after[:torn] + before[torn:], before[:torn] + after[torn:]):
            path.write_bytes(content)
            accepted = Accepted(path)
            found = (accepted.epoch, accepted.primary)
            whole = {content[:4096], content[4096:]} & {after[:4096], after[4096:]}
            assert found == ((3, "n3") if whole else (2, "n2"))
            accepted.record(3, "n4" if found[0] == 2 else "n3")
            accepted.close()


def test_both_slots_are_synced_before_the_call_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accepted = Accepted(tmp_path / "accepted")
    calls: list[str] = []
    write, sync = os.pwrite, os.fsync

    def pwrite(descriptor: int, data: bytes, offset: int) -> int:
        calls.append(f"write {offset}")
        return write(descriptor, data, offset)

    def fsync(descriptor: int) -> None:
        sync(descriptor)
        calls.append("sync")

    monkeypatch.setattr("datapath.storage.accepted.os.pwrite", pwrite)
    monkeypatch.setattr("datapath.storage.accepted.os.fsync", fsync)
    changes: list[Callable[[], None]] = [
        lambda: accepted.record(1, "n1"),
        accepted.set_incomplete,
        accepted.clear_marks,
    ]
    for change in changes:
        calls.clear()
        change()
        # The older slot first: if the write is torn, the newer one stands.
        assert sorted(calls[::2]) == ["write 0", "write 4096"]
        assert calls[1::2] == ["sync", "sync"]
    accepted.close()


@pytest.mark.parametrize("offset", [0, 4096])
def test_a_slot_that_rots_costs_nothing_and_is_repaired(tmp_path: Path, offset: int) -> None:
    path = tmp_path / "accepted"
    accepted = Accepted(path)
    accepted.record(1, "n1")
    accepted.set_incomplete()
    accepted.record(2, "n2")
    accepted.close()
    sound = path.read_bytes()
    for at in range(offset, offset + 28):
        path.write_bytes(sound[:at] + bytes([sound[at] ^ 0x10]) + sound[at + 1 :])
        accepted = Accepted(path)
        assert (accepted.epoch, accepted.primary, accepted.incomplete) == (2, "n2", True)
        assert str(path) in accepted.repair
        accepted.close()
        accepted = Accepted(path)
        assert accepted.repair == ""
        accepted.close()
        assert path.read_bytes() == sound


def test_with_both_slots_damaged_the_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "accepted"
    accepted = Accepted(path)
    accepted.record(1, "n1")
    accepted.close()
    path.write_bytes(path.read_bytes().replace(b"n1", b"n2").replace(b"\1", b"\2"))
    with pytest.raises(DataDirectoryError, match="join as a new node"):
        Accepted(path)


def test_after_a_failed_write_nothing_more_is_accepted(tmp_path: Path) -> None:
    accepted = Accepted(tmp_path / "accepted")
    accepted.record(1, "n1")
    descriptor = accepted._descriptor
    reader = (tmp_path / "accepted").open("rb")
    accepted._descriptor = reader.fileno()  # cannot be written: EBADF
    with pytest.raises(DiskFailedError):
        accepted.record(2, "n2")
    accepted._descriptor = descriptor
    with pytest.raises(DiskFailedError):
        accepted.record(2, "n2")
    assert (accepted.epoch, accepted.primary) == (1, "n1")
    accepted.close()
    reader.close()
