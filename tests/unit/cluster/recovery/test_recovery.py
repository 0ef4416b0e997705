"""What a recovery makes of directories that are torn, damaged, marked, or contradict each other."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path

import click.testing
import pytest

from cluster.cli.recover import recover
from cluster.config.file import render_config
from cluster.config.groups_section import GroupsSection, group_text
from cluster.config.model import NodeConfig
from cluster.exit_codes import EXIT_NOT_APPLIED
from cluster.recovery.examination import Examination, RecoveryError, examine
from cluster.recovery.making import make
from cluster.recovery.report import report
from datapath.errors import DataDirectoryError, DiskFullError
from datapath.keyspaces import KV
from datapath.records import Entry, make_record
from datapath.storage.accepted import Accepted
from datapath.storage.data_directory import DataDirectory, Identity, _write
from datapath.storage.log import Log
from datapath.storage.snapshot import SnapshotWriter
from datapath.storage.store import Store

MAP_BYTES = 1 << 24
SEGMENT_BYTES = 1 << 16


def replica(
    path: Path, node: str, *batches: tuple[int, int], flushed: int = 0, group: str = ""
) -> Path:
    """Make a data directory whose log has batches of (epoch, number of entries).

    Entry i writes key "i"; the first `flushed` batches are in the store, too.
    """
    directory = DataDirectory.open(path, node_id=node)
    directory.bind_cluster("c1")
    directory.bind_group(group)
    accepted = Accepted(path / "accepted")
    accepted.record(max(epoch for epoch, _ in batches), "n1")
    store = Store.open(path / "store", cluster_id="c1", map_size_bytes=MAP_BYTES)
    log = Log.open(path / "log", segment_size_bytes=SEGMENT_BYTES)
    index = committed = 0
    for number, (epoch, count) in enumerate(batches):
        entries: list[Entry] = [[(KV, b"%d" % (index + 1 + i), b"v")] for i in range(count)]
        record = make_record(index + 1, epoch, committed, entries)
        log.append([record])
        log.sync()
        committed, index = index, record.last_index
        if number < flushed:
            store.apply(entries, index, epoch)
            store.flush()
    log.close()
    for part in (store, accepted, directory):
        part.close()
    return path


def keys(path: Path) -> list[int]:
    store = Store.open(path / "store", map_size_bytes=MAP_BYTES)
    found = sorted(int(key) for key, _ in store.range(KV, b"", None, 1000))
    store.close()
    return found


def said(found: Examination) -> str:
    return "\n".join(report(found))


def first_segment(path: Path) -> Path:
    return min((path / "log").glob("*.seg"))


def test_store_and_log_together_are_what_is_recovered(tmp_path: Path) -> None:
    one = replica(tmp_path / "n1", "n1", (1, 3), (1, 4), (2, 2), flushed=1)
    with examine([one]) as found:
        assert "entries up to 9 of epoch 2" in said(found)
        assert "known to be committed up to 3" in said(found)
        assert "Revisions 4 to 9 are not known to be committed" in said(found)
        progress: list[tuple[int, int]] = []
        made = make(
            found.best, tmp_path / "new", "n5", MAP_BYTES, 100.0, lambda *at: progress.append(at)
        )
    assert progress[-1] == (9, 9)
    assert (made.founded.kept_index, made.founded.kept_epoch) == (9, 2)
    assert made.founded.next_index > 10**12 + 10**8, "it grows with the age"
    assert keys(tmp_path / "new") == list(range(1, 10))


def test_a_torn_end_is_left_out_and_told(tmp_path: Path) -> None:
    one = replica(tmp_path / "n1", "n1", (1, 3), (1, 4))
    segment = first_segment(one)
    data = segment.read_bytes()
    end = len(data.rstrip(b"\0"))
    # The last sync mark goes, and the end of the last record: as a power cut may leave it.
    torn = data[: end - 40].ljust(len(data), b"\0")
    segment.write_bytes(torn)
    with examine([one]) as found:
        assert "torn end:" in said(found)
        assert "is torn or damaged: what stood there may have been acknowledged" in said(found)
        make(found.best, tmp_path / "new", "n1", MAP_BYTES)
    assert keys(tmp_path / "new") == [1, 2, 3]
    assert segment.read_bytes() == torn


def test_what_stands_before_damage_is_recovered_and_the_rest_is_told(tmp_path: Path) -> None:
    one = replica(tmp_path / "n1", "n1", (1, 3), (1, 4), (1, 2))
    segment = first_segment(one)
    data = bytearray(segment.read_bytes())
    at = data.index(b"\xc4\x015", 64)  # the key "5", in the second record
    data[at + 2] ^= 1
    segment.write_bytes(data)
    with examine([one]) as found:
        assert f"damaged: {segment} is damaged at offset" in said(found)
        assert "May be missing" in said(found)
        make(found.best, tmp_path / "new", "n1", MAP_BYTES)
    assert keys(tmp_path / "new") == [1, 2, 3]
    assert segment.read_bytes() == data


def test_lost_marks_are_a_doubt_and_no_end(tmp_path: Path) -> None:
    one = replica(tmp_path / "n1", "n1", (1, 3))
    (one / "accepted").write_bytes(b"rubbish" * 2000)
    with examine([one]) as found:
        assert "whether entries are known to be missing here is lost" in said(found)
        assert not found.choice.is_complete
    (one / "accepted").unlink()
    with examine([one]) as found:
        assert "cannot be read: No such file" in said(found)


def test_a_marked_replica_is_told(tmp_path: Path) -> None:
    one = replica(tmp_path / "n1", "n1", (1, 3))
    accepted = Accepted(one / "accepted")
    accepted.set_incomplete()
    accepted.set_tail_cut()
    accepted.close()
    with examine([one]) as found:
        assert "marked: incomplete" in said(found)
        assert "Missing:\n  - n1 is marked as incomplete" in said(found)


def test_directories_of_two_histories_are_refused(tmp_path: Path) -> None:
    one = replica(tmp_path / "n1", "n1", (1, 3), (1, 4), flushed=2)
    two = replica(tmp_path / "n2", "n2", (1, 3), (2, 1), flushed=1)
    with (
        pytest.raises(RecoveryError, match=r"n1 has committed entry 7 .* n2 lacks.*older copy"),
        examine([one, two]),
    ):
        pass
    with examine([two]) as found:
        assert found.best.path == two


def test_the_furthest_is_taken_wherever_it_stands(tmp_path: Path) -> None:
    longer = replica(tmp_path / "n1", "n1", (1, 3), (1, 40), flushed=1)
    later = replica(tmp_path / "n2", "n2", (1, 3), (2, 1), flushed=1)
    for paths in ([longer, later], [later, longer], [later, longer, later]):
        with examine(paths) as found:
            assert found.best.path == later


def test_another_version_is_named(tmp_path: Path) -> None:
    one = replica(tmp_path / "n1", "n1", (1, 3))
    two = shutil.copytree(one, tmp_path / "n2")
    _write(two, Identity(99, "n2", "data of n2", cluster="c1"))
    with (
        pytest.raises(RecoveryError, match=r"has format 99, this version reads .*that wrote it"),
        examine([one, two]),
    ):
        pass


def test_what_cannot_be_said_of_the_view_is_told(tmp_path: Path) -> None:
    one = replica(tmp_path / "n1", "n1", (1, 3))
    with examine([one]) as found:
        assert "what it knew of the view cannot be read" in said(found)
        assert "no directory says which replicas were in sync" in said(found)


def test_a_full_disk_leaves_an_empty_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = replica(tmp_path / "n1", "n1", (1, 3), flushed=1)

    def full(*_: object) -> None:
        raise DiskFullError("no room")

    with examine([one]) as found:
        for place, name in ((SnapshotWriter, "finish"), (Store, "flush"), (Accepted, "record")):
            with monkeypatch.context() as patched:
                patched.setattr(place, name, full)
                with pytest.raises(DiskFullError):
                    make(found.best, tmp_path / "new", "n1", MAP_BYTES)
            assert not list((tmp_path / "new").iterdir()), name
        make(found.best, tmp_path / "new", "n1", MAP_BYTES)
        with pytest.raises(DataDirectoryError, match="is not empty"):
            make(found.best, tmp_path / "new", "n1", MAP_BYTES)
    assert keys(tmp_path / "new") == [1, 2, 3]


def test_what_is_left_of_another_group_is_not_recovered(tmp_path: Path) -> None:
    low = GroupsSection(id="g1", slots=((0, 2047),))
    high = GroupsSection(id="g2", slots=((2048, 4095),))
    one = replica(tmp_path / "n1", "n1", (1, 3), flushed=1, group=group_text(high))
    config, new = tmp_path / "cluster.toml", tmp_path / "new"

    def run(groups: GroupsSection | None, *options: str) -> click.testing.Result:
        node = NodeConfig(
            client="127.0.0.1:8101", peer="127.0.0.1:8201", raft="127.0.0.1:8301", data=str(new)
        )
        secret = "a secret for tests, 32 bytes long"
        config.write_text(render_config("new", secret, {"n1": node}, groups=groups))
        config.chmod(0o600)
        arguments = [str(one), "--config", str(config), "--node", "n1", *options]
        return click.testing.CliRunner().invoke(recover, arguments)

    for groups, text in ((low, "this file is of group g1:0-2047"), (None, "has no [groups]")):
        for options in ((), ("--yes",)):
            refused = run(groups, *options)
            assert refused.exit_code == EXIT_NOT_APPLIED, refused.output
            assert f"{one} is of group g2:2048-4095, and " in refused.output
            assert text in refused.output
            assert not new.exists()
    made = run(high, "--yes")
    assert made.exit_code == 0, made.output
    assert "of cluster c1, group g2:2048-4095" in made.output
    with closing(DataDirectory.open(new, node_id="n1")) as directory:
        with pytest.raises(DataDirectoryError, match="belongs to group g2:2048-4095"):
            directory.bind_group(group_text(low))
        directory.bind_group(group_text(high))
