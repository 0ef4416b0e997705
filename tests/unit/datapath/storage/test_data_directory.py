"""One process, one node, one cluster for a data directory."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from datapath.errors import DataDirectoryError
from datapath.storage.data_directory import DataDirectory
from election.release import LEVEL


def test_what_it_remembers_is_there_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "data" / "n1"
    with pytest.raises(DataDirectoryError, match="does not exist"):
        DataDirectory.open(path, node_id="n1", create=False)
    directory = DataDirectory.open(path, node_id="n1")
    data_id = directory.data_id
    assert len(data_id) == 32
    assert (directory.cluster_id, directory.joined, directory.pins) == ("", False, {})
    directory.bind_cluster("c1")
    directory.mark_joined()
    assert directory.pin_peer("n2", "aa")
    assert directory.pin_peer("n2", "aa")
    assert not directory.pin_peer("n2", "bb")
    directory.close()
    directory.close()
    directory = DataDirectory.open(path, node_id="n1", create=False)
    assert (directory.data_id, directory.cluster_id, directory.joined) == (data_id, "c1", True)
    assert directory.pins == {"n2": "aa"}
    directory.close()


def test_another_cluster_or_node_is_refused(tmp_path: Path) -> None:
    directory = DataDirectory.open(tmp_path, node_id="n1")
    directory.bind_cluster("c1")
    directory.bind_cluster("c1")
    with pytest.raises(DataDirectoryError, match="belongs to cluster c1, not c2: "):
        directory.bind_cluster("c2")
    directory.mark_joined()
    directory.close()
    with pytest.raises(DataDirectoryError, match="belongs to node n1, not n2: "):
        DataDirectory.open(tmp_path, node_id="n2")
    DataDirectory.open(tmp_path, node_id="n1").close()  # refusing released the lock


def test_a_directory_with_which_somebody_may_have_voted_is_nobody_elses(tmp_path: Path) -> None:
    """Consensus starts a moment before the node notes that it has joined."""
    DataDirectory.open(tmp_path, node_id="n1").close()
    (tmp_path / "raft").mkdir()
    (tmp_path / "raft" / "journal").write_bytes(b"a vote")
    with pytest.raises(DataDirectoryError, match="belongs to node n1, not n2: "):
        DataDirectory.open(tmp_path, node_id="n2")
    assert (tmp_path / "raft" / "journal").read_bytes() == b"a vote"
    (tmp_path / "raft" / "journal").unlink()
    directory = DataDirectory.open(tmp_path, node_id="n2")  # never let in: free for another
    assert directory.node_id == "n2"
    directory.close()


def test_a_second_process_is_refused_by_name(tmp_path: Path) -> None:
    directory = DataDirectory.open(tmp_path, node_id="n1")
    code = (
        "import sys\n"
        "from datapath.storage.data_directory import DataDirectory\n"
        "from datapath.errors import DataDirectoryError\n"
        "try:\n"
        "    DataDirectory.open(sys.argv[1], node_id='n1')\n"
        "except DataDirectoryError as error:\n"
        "    print(error)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert f"in use by process {os.getpid()}" in run.stdout
    directory.close()
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert run.stdout == ""


def test_every_damaged_byte_of_the_identity_is_noticed(tmp_path: Path) -> None:
    directory = DataDirectory.open(tmp_path, node_id="n1")
    directory.bind_cluster("c1")
    directory.close()
    file = tmp_path / "identity.json"
    content = file.read_bytes()
    for offset in range(len(content) - 1):
        file.write_bytes(content[:offset] + bytes([content[offset] ^ 1]) + content[offset + 1 :])
        with pytest.raises(DataDirectoryError, match=r"identity\.json is damaged"):
            DataDirectory.open(tmp_path, node_id="n1")
    for length in range(len(content) - 1):
        file.write_bytes(content[:length])
        with pytest.raises(DataDirectoryError, match=r"identity\.json is damaged"):
            DataDirectory.open(tmp_path, node_id="n1")


def test_a_lost_identity_is_not_replaced_by_a_new_one(tmp_path: Path) -> None:
    DataDirectory.open(tmp_path, node_id="n1").close()
    (tmp_path / "log").mkdir()
    (tmp_path / "identity.json").unlink()
    with pytest.raises(DataDirectoryError, match=r"lost its identity\.json, but holds log"):
        DataDirectory.open(tmp_path, node_id="n1")


def test_a_file_in_its_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "n1").write_text("")
    with pytest.raises(DataDirectoryError, match="is not a directory"):
        DataDirectory.open(tmp_path / "n1", node_id="n1")


def test_a_crash_while_replacing_leaves_the_old_identity(tmp_path: Path) -> None:
    DataDirectory.open(tmp_path, node_id="n1").close()
    (tmp_path / "identity.json.new").write_text("half of i")
    directory = DataDirectory.open(tmp_path, node_id="n1")
    directory.mark_joined()
    directory.close()
    directory = DataDirectory.open(tmp_path, node_id="n1")
    assert directory.joined
    directory.close()


def test_one_whose_node_was_not_let_in_is_emptied(tmp_path: Path) -> None:
    directory = DataDirectory.open(tmp_path / "n1", node_id="n1")
    for name in ("log", "store"):
        (tmp_path / "n1" / name).mkdir()
        (tmp_path / "n1" / name / "file").write_bytes(b"x")
    directory.discard()
    assert list((tmp_path / "n1").iterdir()) == []


def test_one_that_has_taken_part_is_never_emptied(tmp_path: Path) -> None:
    directory = DataDirectory.open(tmp_path / "n1", node_id="n1")
    directory.mark_joined()
    with pytest.raises(ValueError, match="is, or was, a member"):
        directory.discard()
    directory.close()
    with pytest.raises(DataDirectoryError, match="belongs to node n1, not n2"):
        DataDirectory.open(tmp_path / "n1", node_id="n2")


def test_one_whose_node_never_took_part_may_become_another_nodes(tmp_path: Path) -> None:
    first = DataDirectory.open(tmp_path / "n1", node_id="n1")
    first.pin_peer("n9", "a data id")
    (tmp_path / "n1" / "log").mkdir()
    first.close()
    second = DataDirectory.open(tmp_path / "n1", node_id="n2")
    assert (second.node_id, second.pins) == ("n2", {})
    assert second.data_id != first.data_id
    assert not (tmp_path / "n1" / "log").exists()
    second.close()


def test_it_remembers_that_its_node_was_removed(tmp_path: Path) -> None:
    directory = DataDirectory.open(tmp_path / "n1", node_id="n1")
    assert not directory.removed
    directory.mark_removed()
    directory.close()
    again = DataDirectory.open(tmp_path / "n1", node_id="n1")
    assert again.removed
    again.close()


def test_the_release_before_reads_it_until_the_level_rises(tmp_path: Path) -> None:
    with closing(DataDirectory.open(tmp_path, node_id="n1")) as directory:
        directory.note_level(1)
        assert _format(tmp_path) == 2
        directory.note_level(2)
        directory.note_level(1)  # it never falls
    assert _format(tmp_path) == 3
    with closing(DataDirectory.open(tmp_path, node_id="n1")) as directory:
        assert directory.level == 2


def test_one_of_a_level_that_this_release_does_not_support_is_refused(tmp_path: Path) -> None:
    with closing(DataDirectory.open(tmp_path, node_id="n1")) as directory:
        directory.note_level(LEVEL + 1)
    with pytest.raises(DataDirectoryError, match="install the release that the other nodes run"):
        DataDirectory.open(tmp_path, node_id="n1")


def _format(path: Path) -> int:
    identity = msgspec.json.decode((path / "identity.json").read_bytes().rpartition(b"}")[0] + b"}")
    found: int = identity["format"]
    return found


def test_a_directory_belongs_to_one_group_once_it_has_voted(tmp_path: Path) -> None:
    with closing(DataDirectory.open(tmp_path / "d", node_id="n1")) as directory:
        directory.bind_group("g1:0-9")
        directory.bind_group("g1:0-99")  # a mistake, noticed before anything was done
        directory.mark_joined()
    with closing(DataDirectory.open(tmp_path / "d", node_id="n1")) as directory:
        directory.bind_group("g1:0-99")
        for other in ("", "g1:0-9", "g2:0-99"):
            with pytest.raises(DataDirectoryError, match="belongs to group g1:0-99"):
                directory.bind_group(other)


def test_the_data_of_a_cluster_without_groups_is_no_groups(tmp_path: Path) -> None:
    with closing(DataDirectory.open(tmp_path / "d", node_id="n1")) as directory:
        directory.bind_group("")
        (tmp_path / "d" / "raft").mkdir()
        (tmp_path / "d" / "raft" / "journal").touch()
        with pytest.raises(DataDirectoryError, match=r"group \(none\)"):
            directory.bind_group("g1:0-9")
