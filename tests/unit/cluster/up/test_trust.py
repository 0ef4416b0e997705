"""`onecopy up` runs what its own user has made, where it stands, and nothing else."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from cluster.up.directory import UpError, prepare_config
from cluster.up.process import own_file
from cluster.up.supervisor import sole_runner
from tests.support.ports import free_up_port


def new_cluster(data: Path) -> Path:
    prepare_config(data, nodes=1, witnesses=None, port=free_up_port())
    (data / "logs").mkdir()
    (data / "logs" / "n1.log").write_text("")
    (data / "n1" / "log").mkdir(parents=True)
    for place in data.rglob("*"):
        place.chmod(0o700 if place.is_dir() else 0o600)
    return data


def resume(data: Path) -> None:
    prepare_config(data, nodes=None, witnesses=None, port=None)


def test_what_is_made_is_for_its_user_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        prepare_config(tmp_path / "new", nodes=1, witnesses=None, port=free_up_port())
        with sole_runner(tmp_path / "new"):
            pass
    finally:
        os.umask(before)
    modes = {item.name: stat.S_IMODE(item.stat().st_mode) for item in (tmp_path / "new").iterdir()}
    assert modes == {"cluster.toml": 0o600, "up.lock": 0o600}
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700


@pytest.mark.parametrize("place", [".", "cluster.toml", "logs", "logs/n1.log", "n1", "n1/log"])
def test_a_place_of_another_user_or_open_to_others_is_refused(tmp_path: Path, place: str) -> None:
    data = new_cluster(tmp_path / "data")
    resume(data)
    at = data / place
    mode = at.stat().st_mode
    for bit in (0o020, 0o002):
        at.chmod(mode | bit)
        with pytest.raises(UpError, match="can be changed by other users"):
            resume(data)
    at.chmod(mode)
    resume(data)
    if os.geteuid() == 0:
        os.chown(at, 12345, -1)
        with pytest.raises(UpError, match="belongs to another user"):
            resume(data)


@pytest.mark.parametrize(
    "place", ["cluster.toml", "logs", "logs/n1.log", "n1", "n1/log", "up.lock"]
)
def test_a_link_that_leads_out_is_refused(tmp_path: Path, place: str) -> None:
    data = new_cluster(tmp_path / "data")
    elsewhere = tmp_path / "elsewhere"
    if (data / place).exists():
        (data / place).rename(elsewhere)
    (data / place).symlink_to(elsewhere)  # there, or not yet
    with pytest.raises(UpError, match="is a symbolic link to outside of"):
        resume(data)


def test_a_link_within_and_the_users_own_link_to_the_directory_are_followed(tmp_path: Path) -> None:
    data = new_cluster(tmp_path / "data")
    (data / "n1").rename(data / "big")
    (data / "n1").symlink_to("big")
    (tmp_path / "named").symlink_to(data)
    resume(tmp_path / "named")
    if os.geteuid() == 0:
        os.chown(tmp_path / "named", 12345, -1, follow_symlinks=False)
        with pytest.raises(UpError, match="belongs to another user"):
            resume(tmp_path / "named")


def test_a_link_that_comes_later_is_not_written_through(tmp_path: Path) -> None:
    data = new_cluster(tmp_path / "data")
    for name in ("up.lock", "logs/n1.log"):
        (data / name).unlink(missing_ok=True)
        (data / name).symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="symbolic links"), sole_runner(data):
        pass
    with pytest.raises(OSError, match="symbolic links"):
        open(data / "logs" / "n1.log", "ab", opener=own_file)  # noqa: SIM115
    assert not (tmp_path / "victim").exists()


def test_directories_without_their_file_are_not_taken_for_a_new_cluster(tmp_path: Path) -> None:
    (tmp_path / "n2").mkdir()
    (tmp_path / "n2" / "identity.json").write_text("{}")
    with pytest.raises(UpError, match=r"holds n2 and no cluster\.toml"):
        prepare_config(tmp_path, nodes=None, witnesses=None, port=free_up_port())
    assert [item.name for item in tmp_path.iterdir()] == ["n2"]
