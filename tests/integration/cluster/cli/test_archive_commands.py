"""`onecopy restore URL` and `onecopy archive`: what they make, and what they refuse."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import click.testing
import msgspec
import pytest

from cluster.archive.reading import as_text
from cluster.cli.common import report_disk_errors
from cluster.cli.main import main
from cluster.config.file import render_config
from cluster.config.groups_section import GroupsSection, group_text
from cluster.config.model import NodeConfig
from cluster.exit_codes import EXIT_INTERRUPTED
from datapath.errors import DataDirectoryError
from datapath.keyspaces import KV
from datapath.records import Entry
from datapath.storage.data_directory import DataDirectory
from datapath.storage.store import Store
from tests.support.made_archives import MadeArchive
from tests.support.small_disk import mount_small_disk, unmount

PER_PIECE = 8


class Made:
    """An archive of a base at 8, pieces up to 40, another base at 24; and a cluster to be made."""

    def __init__(self, directory: Path, group: str = "") -> None:
        self.archive = MadeArchive(directory / "archive", directory / "scratch", group=group)
        self.files = [self.archive.add(entries(0))]
        self.bases = [self.archive.add_base()]
        self.files += [self.archive.add(entries(number)) for number in (1, 2)]
        self.bases.append(self.archive.add_base())
        self.files += [self.archive.add(entries(number)) for number in (3, 4)]
        self.data = directory / "data"
        self.config = directory / "cluster.toml"
        self.configure(None)

    def configure(self, groups: GroupsSection | None) -> None:
        node = NodeConfig(
            client="127.0.0.1:8101",
            peer="127.0.0.1:8201",
            raft="127.0.0.1:8301",
            data=str(self.data),
        )
        secret = "a secret for tests, 32 bytes long"
        self.config.write_text(render_config("new", secret, {"n1": node}, groups=groups))
        self.config.chmod(0o600)

    def restore(self, *options: str, url: str = "") -> click.testing.Result:
        place = ("--config", str(self.config), "--node", "n1", "--json")
        return run("restore", url or self.archive.url, *options, *place)


def entries(number: int) -> list[Entry]:
    return [
        [(KV, b"k%d" % (n % 5), b"%d" % (number * PER_PIECE + n)), (KV, b"gone", None)]
        for n in range(PER_PIECE)
    ]


def run(*arguments: str) -> click.testing.Result:
    return click.testing.CliRunner().invoke(main, arguments)


def output(result: click.testing.Result) -> Any:
    assert result.exit_code == 0, result.output
    return msgspec.json.decode(result.stdout)


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Made]:
    made = Made(tmp_path)
    yield made
    made.archive.store.close()


@pytest.mark.parametrize("revision", [8, 9, 17, 24, 25, 40])
def test_a_revision_is_restored_with_its_digest(made: Made, revision: int) -> None:
    restored = output(made.restore("--to-revision", str(revision)))
    assert restored["kept_index"] == revision
    assert restored["digest"] == made.archive.digests[revision]
    store = Store.open(made.data / "store", map_size_bytes=1 << 36)
    assert store.applied_index == restored["next_index"] - 1 > 10**12
    assert store.digest()[1] == made.archive.digests[revision]
    store.close()


def test_the_newest_revision_is_restored_without_options(made: Made) -> None:
    assert output(made.restore())["kept_index"] == 40


@pytest.mark.parametrize(
    ("shift_ms", "revision"), [(0, 12), (999, 12), (-1, 11), (100 * 1000, 40), (-3 * 1000, 9)]
)
def test_a_time_is_the_last_revision_that_had_committed(
    made: Made, shift_ms: int, revision: int
) -> None:
    moment = as_text(made.archive.time_ms(12) + shift_ms)
    assert output(made.restore("--to-time", moment))["kept_index"] == revision


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        (("--to-time", "2026-11-28T09:30:00"), 2, "has no offset from UTC"),
        (("--to-time", "yesterday"), 2, "is not like 2026"),
        (("--to-time", "2026-11-28T09:30:00Z", "--to-revision", "9"), 2, "not both"),
        (("--to-revision", "0"), 2, "Invalid value"),
        (("--to-time", "2001-01-01T00:00:00Z"), 65, "the archive begins at"),
        (("--to-revision", "7"), 65, "the archive begins with revision 8"),
        (("--to-revision", "41"), 65, "can go up to revision 40"),
        (("--cluster-id", "other"), 65, "holds nothing of cluster other"),
    ],
)
def test_what_cannot_be_restored_is_refused(
    made: Made, options: tuple[str, ...], code: int, text: str
) -> None:
    result = made.restore(*options)
    assert (result.exit_code, text in result.output) == (code, True), result.output
    assert not made.data.exists() or not list(made.data.iterdir())


LOW = GroupsSection(id="g1", slots=((0, 2047),))
HIGH = GroupsSection(id="g2", slots=((2048, 4095),), first=("http://127.0.0.1:8101",))


@pytest.mark.parametrize(
    ("held", "own", "text"),
    [
        (HIGH, LOW, "of group g2:2048-4095, and this file is of group g1:0-2047"),
        (HIGH, GroupsSection(id="g2", slots=((2048, 4000),)), "this file is of group g2:2048-4000"),
        (HIGH, None, "of group g2:2048-4095, and this file has no [groups]"),
        (None, LOW, "of a cluster without groups, and this file is of group g1:0-2047"),
    ],
)
def test_the_state_of_another_group_is_refused_by_both_names(
    tmp_path: Path, held: GroupsSection | None, own: GroupsSection | None, text: str
) -> None:
    made = Made(tmp_path, group_text(held))
    made.archive.store.close()
    made.configure(own)
    for source in (made.archive.url, str(made.bases[-1])):
        refused = made.restore(url=source)
        assert refused.exit_code == 78
        assert text in refused.output
        assert "groups: " in refused.output
        assert not list(made.data.iterdir())
        made.configure(held)
        output(made.restore(url=source))
        with closing(DataDirectory.open(made.data, node_id="n1")) as directory:
            with pytest.raises(DataDirectoryError, match="belongs to group"):
                directory.bind_group(group_text(own))
            directory.bind_group(group_text(held))
        shutil.rmtree(made.data)
        made.configure(own)


def test_a_missing_piece_says_up_to_which_revision_it_can_go(made: Made) -> None:
    made.files[2].unlink()
    for options in (("--to-revision", "20"), ("--to-time", as_text(made.archive.time_ms(20)))):
        result = made.restore(*options)
        assert result.exit_code == 65
        assert "can go up to revision 16" in result.output
    shown = output(run("archive", "show", made.archive.url, "--json"))
    assert [(span["first"], span["last"]) for span in shown["spans"]] == [(8, 16), (24, 40)]
    assert output(made.restore("--to-revision", "16"))["kept_index"] == 16


@pytest.mark.parametrize("part", ["piece", "base"])
def test_what_is_damaged_is_named_and_nothing_is_made(made: Made, part: str) -> None:
    file = made.files[3] if part == "piece" else made.bases[1]
    whole = file.read_bytes()
    for damaged, text in (
        (whole[: len(whole) // 2], "cut"),
        (whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:], "damaged"),
        (b"", "is"),
    ):
        file.write_bytes(damaged)
        for result in (made.restore(), run("archive", "verify", made.archive.url)):
            assert result.exit_code == 65, result.output
            assert file.name in result.output
            assert text in result.output
    assert not made.data.exists() or not list(made.data.iterdir())


def test_verify_notices_pieces_that_lead_to_another_state(made: Made, tmp_path: Path) -> None:
    verified = output(run("archive", "verify", made.archive.url, "--json"))
    assert [(span["last"], span["digest"]) for span in verified["spans"]] == [
        (40, made.archive.digests[40])
    ]
    other = MadeArchive(tmp_path / "other", tmp_path / "other-scratch")
    other.add(entries(0))
    file = other.add([[(KV, b"k", b"another history")] for _ in range(PER_PIECE)])
    other.store.close()
    made.files[1].write_bytes(file.read_bytes())
    result = run("archive", "verify", made.archive.url)
    assert result.exit_code == 65
    assert "do not lead to the state" in result.output


def test_a_directory_that_is_not_empty_is_left_alone(made: Made) -> None:
    made.data.mkdir()
    (made.data / "mine").write_text("x")
    result = made.restore()
    assert (result.exit_code, "is not empty" in result.output) == (78, True), result.output
    assert [path.name for path in made.data.iterdir()] == ["mine"]


def test_an_archive_of_several_clusters_wants_one_named(made: Made, tmp_path: Path) -> None:
    second = MadeArchive(tmp_path / "archive", tmp_path / "scratch2", cluster_id="d" * 32)
    second.add(entries(0))
    second.add_base()
    second.store.close()
    result = made.restore()
    assert (result.exit_code, "--cluster-id" in result.output) == (65, True), result.output
    assert output(made.restore("--cluster-id", "d" * 32))["kept_index"] == PER_PIECE


def test_what_is_no_archive_is_told(made: Made, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for url, code, text in (
        ((tmp_path / "empty").as_uri(), 65, "holds no archive"),
        ((tmp_path / "none").as_uri(), 6, "does not exist"),
        ("ftp://host/path", 2, "must begin with one of file://"),
        (f"{made.archive.url}/{'c' * 32}", 65, "leave out its last part"),
        (str(tmp_path), 1, "Name a file that onecopy backup has written"),
        (str(tmp_path / "none"), 1, "Name a file that onecopy backup has written"),
    ):
        result = made.restore(url=url)
        assert (result.exit_code, text in result.output) == (code, True), result.output
    result = made.restore("--to-revision", "9", url=str(made.config))
    assert (result.exit_code, "are for an archive's URL" in result.output) == (2, True)


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("member add", "onecopy serve"),
        ("member remove", "onecopy remove NODE"),
        ("member list", "onecopy status"),
        ("member replace", "onecopy remove NODE"),
        ("member promote", "onecopy handover NODE"),
        ("stauts", "Did you mean: onecopy status"),
        ("export", "Did you mean: onecopy dump"),
        ("qqqqqq", "No such command 'qqqqqq'"),
    ],
)
def test_what_is_not_a_command_is_named(word: str, text: str) -> None:
    result = run(*word.split(), "n4")
    assert (result.exit_code, text in result.output) == (2, True), result.output


def test_an_interruption_says_that_nothing_was_changed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, report_disk_errors(if_full="", else_=""):
        raise KeyboardInterrupt
    assert ended.value.code == EXIT_INTERRUPTED
    assert "interrupted; nothing was changed" in capsys.readouterr().err


def test_a_disk_that_is_too_small_is_named_and_left_empty(made: Made) -> None:
    made.archive.add([[(KV, b"large%d" % n, bytes(100_000))] for n in range(PER_PIECE * 4)])
    made.data.mkdir()
    try:
        mount_small_disk(made.data, 1 << 20)
    except OSError as error:
        pytest.skip(f"a small disk cannot be mounted: {error}")
    try:
        restored = made.restore()
        verified = run("archive", "verify", made.archive.url, "--dir", str(made.data))
        for result in (restored, verified):
            assert result.exit_code == 7, result.output
            assert f"store {made.data}" in result.output
            assert "no space is left on the disk" in result.output
        assert "Free space on the disk" in restored.output
        assert "--dir" in verified.output
        assert not list(made.data.iterdir())
    finally:
        unmount(made.data)
    assert output(made.restore())["kept_index"] == 40 + PER_PIECE * 4
