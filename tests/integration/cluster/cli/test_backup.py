"""`onecopy backup` and `restore` as processes: bad input, and what they leave behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from datapath.keyspaces import KV
from datapath.storage.backup_format import (
    BackupEnd,
    BackupHeader,
    BackupWriter,
    make_compressor,
)
from datapath.storage.data_directory import DataDirectory
from datapath.storage.founding import Founding
from datapath.storage.snapshot import SnapshotReader
from datapath.storage.store import Store
from tests.support.commands import Ended, finish, run, start
from tests.support.fake_api import FakeCluster
from tests.support.small_disk import fill, mount_small_disk, unmount

pytestmark = pytest.mark.slow  # a process for each command

CONFIG = """
[cluster]
name = "demo"
[nodes.n1]
role = "replica"
client = "127.0.0.1:1001"
peer = "127.0.0.1:1002"
raft = "127.0.0.1:1003"
data = "data/n1"
[nodes.w1]
role = "witness"
client = "127.0.0.1:1011"
peer = "127.0.0.1:1012"
raft = "127.0.0.1:1013"
data = "data/w1"
"""


def make_backup(path: Path, items: int = 100, size_bytes: int = 1000, version: int = 1) -> Path:
    store = Store.open(path.with_suffix(".store"))
    store.apply(
        [[(KV, b"%06d" % n, bytes([n % 251]) * size_bytes)] for n in range(items)], items, 1
    )
    store.flush()
    reader, writer = SnapshotReader(store.acquire_environment()), BackupWriter()
    header = BackupHeader(
        revision=items,
        epoch=1,
        cluster="demo",
        cluster_id="c1",
        node="n1",
        created_s=1,
        format=version,
    )
    compress = make_compressor().compress
    pieces, number = [writer.begin(header)], 0
    while (chunk := reader.read_chunk(number)) is not None:
        pieces.append(writer.compressed(compress(chunk)))
        number += 1
    pieces.append(writer.end(BackupEnd(items=reader.count, digest=reader.checksum)))
    reader.close()
    store.close()
    path.write_bytes(b"".join(pieces))
    return path


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "cluster.toml"
    path.write_text(CONFIG)
    return path


async def restore(
    file: Path | str, config: Path, node: str = "n1", stdin: bytes | None = None
) -> Ended:
    arguments = ("restore", file, "--config", config, "--node", node, "--json")
    return await run(*arguments, stdin=stdin)


def held_by(path: Path) -> list[str]:
    return [item.name for item in path.iterdir()] if path.is_dir() else []


async def test_what_cannot_be_restored_is_refused_by_name_and_nothing_is_changed(
    tmp_path: Path, config: Path
) -> None:
    good = make_backup(tmp_path / "good.backup")
    content = good.read_bytes()
    cut, flipped = tmp_path / "cut.backup", tmp_path / "flipped.backup"
    cut.write_bytes(content[:-10])
    flipped.write_bytes(content[:-200] + bytes([content[-200] ^ 4]) + content[-199:])
    newer = make_backup(tmp_path / "newer.backup", version=2)
    for file, said in (
        (cut, f"is cut off at byte {len(content) - 10}, in block"),
        (flipped, "is damaged in block"),
        (newer, "has format 2, this version reads 1"),
        (config, "is not a backup"),
    ):
        ended = await restore(file, config)
        assert (ended.code, ended.out) == (65, b""), ended.err
        assert said in ended.err
        checked = await run("backup", "verify", file)
        assert (checked.code, checked.out) == (65, b"")
        assert said in checked.err
    assert not held_by(tmp_path / "data" / "n1")
    for node, said in (("n7", "nodes.n7: no such node"), ("w1", "w1 is a witness")):
        ended = await restore(good, config, node)
        assert ended.code == 78
        assert said in ended.err
    assert (await restore(tmp_path / "none.backup", config)).code == 1


async def test_a_restore_needs_an_empty_directory_that_nobody_uses(
    tmp_path: Path, config: Path
) -> None:
    good = make_backup(tmp_path / "good.backup")
    path = tmp_path / "data" / "n1"
    DataDirectory.open(path, node_id="n1").close()
    ended = await restore(good, config)
    assert ended.code == 78
    assert "is not empty" in ended.err
    (path / "identity.json").unlink()
    held = Founding(path, "n1")  # as another restore would
    ended = await restore(good, config)
    assert ended.code == 78
    assert "in use by process" in ended.err
    held.abort()
    ended = await restore("-", config, stdin=good.read_bytes())
    assert ended.code == 0, ended.err
    summary = json.loads(ended.out)
    assert (summary["kept_index"], summary["items"]) == (100, 100)
    assert summary["next_index"] > 10**12
    assert (await restore(good, config)).code == 78  # it is a cluster's now


async def test_a_restore_on_a_disk_that_is_too_small_leaves_it_empty(
    tmp_path: Path, config: Path
) -> None:
    disk = tmp_path / "data" / "n1"
    disk.mkdir(parents=True)
    try:
        mount_small_disk(disk, 2 << 20)
    except OSError as error:
        pytest.skip(f"a small disk cannot be mounted: {error}")
    try:
        ended = await restore(make_backup(tmp_path / "x.backup", 5000), config)
        assert ended.code == 7, ended.err
        assert not list(disk.iterdir())
    finally:
        unmount(disk)


async def test_a_backup_goes_to_a_file_or_to_standard_output(
    nodes: FakeCluster, tmp_path: Path
) -> None:
    await run("put", "k", "1", endpoints=nodes.endpoints)
    piped = await run("backup", "-", "--json", endpoints=nodes.endpoints)
    assert piped.code == 0, piped.err
    file = tmp_path / "verify"  # a file may be called that
    ended = await run("backup", "create", file, endpoints=nodes.endpoints)
    assert ended.code == 0, ended.err
    assert "revision 1 of cluster local" in ended.err
    assert file.read_bytes() == piped.out
    assert (await run("backup", "verify", "-", stdin=piped.out)).code == 0
    ended = await run("backup", tmp_path / "no" / "x", endpoints=nodes.endpoints)
    assert ended.code == 74, ended.err
    ended = await run("backup", tmp_path / "x", endpoints=["http://127.0.0.1:1"])
    assert ended.code == 6, ended.err
    assert not (tmp_path / "x").exists()


async def test_a_backup_to_a_full_disk_or_pipe_leaves_the_old_file_and_can_be_repeated(
    nodes: FakeCluster, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        mount_small_disk(disk, 1 << 20)
    except OSError as error:
        pytest.skip(f"a small disk cannot be mounted: {error}")
    try:
        file = disk / "x.backup"
        file.write_bytes(b"the one before")
        ballast = fill(disk)
        ended = await run("backup", file, endpoints=nodes.endpoints)
        assert ended.code == 74, ended.err
        assert f"{file}: No space left on device" in ended.err
        assert "free space" in ended.err.lower()
        assert file.read_bytes() == b"the one before"
        assert set(disk.iterdir()) == {file, ballast}
        ended = await run("backup", "/dev/full", endpoints=nodes.endpoints)
        assert ended.code == 74, ended.err
        assert "No space left on device" in ended.err
        piped = disk / "piped"
        with piped.open("wb") as target:
            process = await start("backup", "-", endpoints=nodes.endpoints, stdout=target.fileno())
            ended = await finish(process)
        assert ended.code == 74, ended.err
        assert "standard output: No space left on device" in ended.err
        assert "is no whole backup" in ended.err
        assert (await run("backup", "verify", piped)).code == 65
        piped.unlink()
        ballast.unlink()
        ended = await run("backup", file, endpoints=nodes.endpoints)
        assert ended.code == 0, ended.err
        assert (await run("backup", "verify", file)).code == 0
    finally:
        unmount(disk)
