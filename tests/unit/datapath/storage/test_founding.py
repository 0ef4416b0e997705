"""A new cluster's first directory: above all that the old one gave out, whole or not there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from datapath.errors import DataDirectoryError, DiskFullError
from datapath.keyspaces import KV
from datapath.node.recovery import recover_replica
from datapath.storage.accepted import Accepted
from datapath.storage.data_directory import UNFINISHED, DataDirectory
from datapath.storage.founding import EPOCH_MARGIN, REVISION_MARGIN, Founding, continue_after
from datapath.storage.log import Log
from datapath.storage.store import Store

MAP_BYTES = 1 << 24


def fill(found: Founding) -> str:
    store = Store.open(found.store, cluster_id=found.cluster_id, map_size_bytes=MAP_BYTES)
    store.apply([[(KV, b"a", b"1")], [(KV, b"b", b"2")]], 2, 1)
    store.flush()
    _, digest = store.digest()
    store.close()
    return digest


def test_the_new_cluster_goes_on_above_all_that_the_old_one_may_have_given_out() -> None:
    assert continue_after(123, 4) == (123 + REVISION_MARGIN + 1, 4 + EPOCH_MARGIN)
    assert continue_after(0, 0)[0] > REVISION_MARGIN
    assert continue_after(2**52, 9)[0] < 2**53  # exact in every JSON reader


def test_a_founded_directory_holds_the_state_and_a_new_identity(tmp_path: Path) -> None:
    found = Founding(tmp_path / "n1", "n1")
    digest = fill(found)
    result = found.finish(2, 1, MAP_BYTES)
    assert (result.kept_index, result.kept_epoch) == (2, 1)
    assert (result.next_index, result.next_epoch) == continue_after(2, 1)
    found.abort()  # nothing is left to be given up
    with DataDirectoryOf(tmp_path / "n1") as directory:
        assert directory.cluster_id == result.cluster_id == found.cluster_id
        assert directory.first_epoch == result.next_epoch
        assert not directory.joined
        with pytest.raises(ValueError, match="is, or was, a member"):
            directory.discard()
    store = Store.open(tmp_path / "n1" / "store", cluster_id=result.cluster_id)
    assert store.digest() == (result.next_index - 1, digest)
    log = Log.open(
        tmp_path / "n1" / "log", base_index=store.durable_index, base_epoch=store.durable_epoch
    )
    accepted = Accepted(tmp_path / "n1" / "accepted")
    recovered = recover_replica(log, store, accepted, "accepted")
    assert recovered.commit_index == recovered.log.last_index == result.next_index - 1
    assert recovered.accepted_epoch == result.next_epoch - 1
    assert not recovered.incomplete
    assert not recovered.tail_cut
    for part in (store, log, accepted):
        part.close()


class DataDirectoryOf:
    def __init__(self, path: Path) -> None:
        self._directory = DataDirectory.open(path, node_id="n1", create=False)

    def __enter__(self) -> DataDirectory:
        return self._directory

    def __exit__(self, *_: object) -> None:
        self._directory.close()


def test_a_directory_that_holds_something_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("text")
    with pytest.raises(DataDirectoryError, match=r"not empty \(it holds mine\): name an empty one"):
        Founding(tmp_path, "n1")
    assert [item.name for item in tmp_path.iterdir()] == ["mine"]


def test_a_directory_in_use_is_refused(tmp_path: Path) -> None:
    first = Founding(tmp_path, "n1")
    with pytest.raises(DataDirectoryError, match="in use by process"):
        Founding(tmp_path, "n1")
    first.abort()
    assert not list(tmp_path.iterdir())


def test_an_interrupted_founding_starts_no_node_and_is_begun_anew(tmp_path: Path) -> None:
    found = Founding(tmp_path, "n1")
    fill(found)
    found._directory.close()  # as if the process had died
    with pytest.raises(DataDirectoryError, match=r"was interrupted\. Run that command again"):
        DataDirectory.open(tmp_path, node_id="n1")
    again = Founding(tmp_path, "n1")
    assert not again.store.exists()
    fill(again)
    assert again.finish(2, 1, MAP_BYTES).cluster_id == again.cluster_id != found.cluster_id
    assert not (tmp_path / UNFINISHED).exists()
    shutil.copytree(tmp_path, tmp_path / "copy")
    DataDirectory.open(tmp_path / "copy", node_id="n1", create=False).close()


def test_a_crash_before_the_last_step_leaves_a_whole_directory(tmp_path: Path) -> None:
    """The identity is the last thing written: with it the mark counts no more."""
    found = Founding(tmp_path, "n1")
    fill(found)
    found.finish(2, 1, MAP_BYTES)
    (tmp_path / UNFINISHED).touch()  # as if it had died before removing that
    DataDirectory.open(tmp_path, node_id="n1", create=False).close()
    with pytest.raises(DataDirectoryError, match="is not empty"):
        Founding(tmp_path, "n1")  # it may have served meanwhile


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Founding(tmp_path, "n1")
    fill(found)

    def full(*_: object) -> None:
        raise DiskFullError("no room")

    monkeypatch.setattr(Accepted, "record", full)
    with pytest.raises(DiskFullError):
        found.finish(2, 1, MAP_BYTES)
    found.abort()
    assert not list(tmp_path.iterdir())
