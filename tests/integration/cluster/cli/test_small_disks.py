"""Commands that make a data directory, on disks too small for it: told, and nothing half done."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from cluster.cli.main import main
from datapath.keyspaces import KV
from datapath.records import Entry
from datapath.storage.data_directory import DataDirectory
from datapath.storage.log import Log
from datapath.storage.store import Store
from tests.integration.cluster.cli.test_backup import CONFIG, make_backup
from tests.support.made_archives import MadeArchive
from tests.support.small_disk import mount_small_disk, unmount

pytestmark = pytest.mark.slow  # test_archive_commands has a shorter one

ITEMS = 1000
ENOUGH_BYTES = 16 << 20
Command = Callable[[Path, Path], tuple[str, ...]]


def entries(prefix: bytes) -> list[Entry]:
    return [[(KV, prefix + b"%06d" % number, bytes(1000))] for number in range(ITEMS)]


def recover(directory: Path, _: Path) -> tuple[str, ...]:
    old = directory / "old"
    made = DataDirectory.open(old, node_id="n1")
    made.bind_cluster("c" * 32)
    made.close()
    store = Store.open(old / "store", cluster_id="c" * 32)
    store.apply(entries(b""), ITEMS, 1)
    store.flush()
    store.close()
    log = Log.open(old / "log", segment_size_bytes=1 << 20, base_index=ITEMS, base_epoch=1)
    log.close()
    return ("recover", str(old), *_target(directory), "--yes")


def restore(directory: Path, _: Path) -> tuple[str, ...]:
    return ("restore", str(make_backup(directory / "x.backup", ITEMS)), *_target(directory))


def restore_archive(directory: Path, _: Path) -> tuple[str, ...]:
    return ("restore", _archive(directory), *_target(directory))


def verify_archive(directory: Path, disk: Path) -> tuple[str, ...]:
    return ("archive", "verify", _archive(directory), "--dir", str(disk))


def _target(directory: Path) -> tuple[str, ...]:
    config = directory / "cluster.toml"
    config.write_text(CONFIG)
    return ("--config", str(config), "--node", "n1")


def _archive(directory: Path) -> str:
    made = MadeArchive(directory / "archive", directory / "scratch")
    made.add(entries(b""))
    made.add_base()
    made.add(entries(b"later"))
    made.store.close()
    return made.url


LONG = (restore, restore_archive, verify_archive)


@pytest.mark.parametrize(
    "command",
    [recover, *(pytest.param(each, marks=pytest.mark.long) for each in LONG)],
)
def test_a_disk_too_small_is_named_and_left_as_it_was(tmp_path: Path, command: Command) -> None:
    """At some sizes until it is enough, and where no more files can be made."""
    disk = tmp_path / "data" / "n1"
    disk.mkdir(parents=True)
    arguments = command(tmp_path, disk)

    def succeeds(size_bytes: int, files: int = 0) -> bool:
        try:
            mount_small_disk(disk, size_bytes, files)
        except OSError as error:
            pytest.skip(f"a small disk cannot be mounted: {error}")
        try:
            ended = CliRunner().invoke(main, arguments)
            if ended.exit_code != 0:
                assert ended.exit_code == 7, (ended.output, ended.exception)
                assert str(disk) in ended.output
                assert "no space" in ended.output.lower()
                assert "Free space" in ended.output
                assert not list(disk.iterdir())
            return ended.exit_code == 0
        finally:
            unmount(disk)

    tried = [succeeds(size) for size in (16 << 10, 1 << 20, 3 << 20, 5 << 20, ENOUGH_BYTES)]
    assert tried == sorted(tried)
    assert set(tried) == {False, True}
    tried = [succeeds(ENOUGH_BYTES, files) for files in (2, 3, 12)]
    assert tried == sorted(tried)
    assert set(tried) == {False, True}
