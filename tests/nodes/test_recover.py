"""A majority is lost for good, and a new cluster is made of what is left."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from cluster.cli.recover import recover as command
from cluster.recovery.examination import examine
from cluster.recovery.making import make
from cluster.recovery.report import report
from datapath.keyspaces import KV
from datapath.storage.data_directory import DataDirectory
from datapath.storage.log import Log
from datapath.storage.store import Store
from tests.nodes.conftest import MakeCluster
from tests.support.cluster import ROOT, Cluster, Writer, make_spec, wait_until
from tests.support.raw_http import kv

pytestmark = pytest.mark.slow

REFUSED = 78
MAP_BYTES = 1 << 30
VALUE = b"x" * 1000
SEGMENT_BYTES = 2 * 1024 * 1024
LIMITS = {
    "log_segment_size_bytes": SEGMENT_BYTES,
    "log_retention_bytes": SEGMENT_BYTES,
    "overlay_flush_bytes": 1024,
}


def recover(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cluster.cli.main", "recover", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


def content(path: Path) -> dict[str, bytes]:
    return {
        str(item.relative_to(path)): item.read_bytes()
        for item in sorted(path.rglob("*"))
        if item.is_file()
    }


def keys_of(store: Store) -> set[str]:
    return {key.decode() for key, _ in store.range(KV, b"", None, 1_000_000)}


def held(path: Path, scratch: Path) -> set[str]:
    """Return the keys that a data directory holds, its whole log applied: found out on a copy."""
    copy = scratch / f"copy of {path.name}"
    shutil.copytree(path, copy)
    if not (copy / "store").exists():
        return set()
    store = Store.open(copy / "store", map_size_bytes=MAP_BYTES)
    log = Log.open(
        copy / "log",
        segment_size_bytes=SEGMENT_BYTES,
        base_index=store.durable_index,
        base_epoch=store.durable_epoch,
    )
    while store.applied_index < log.last_index:
        for record in log.read(store.applied_index + 1, 1 << 20):
            store.apply(record.entries(), record.last_index, record.epoch)
    found = keys_of(store)
    store.close()
    log.close()
    return found


def recovered(paths: Sequence[Path], target: Path) -> tuple[set[str], bool]:
    """Recover in this process; return what the new directory holds, and if all is said to be."""
    with examine(paths) as found:
        text = "\n".join(report(found))
        complete = found.choice.is_complete
        made = make(found.best, target, "n1", MAP_BYTES)
    assert complete == ("Nothing that was acknowledged is missing." in text)
    DataDirectory.open(target, node_id="n1", create=False).close()
    store = Store.open(target / "store", cluster_id=made.founded.cluster_id)
    assert store.digest() == (made.founded.next_index - 1, made.digest)
    keys = keys_of(store)
    store.close()
    return keys, complete


async def lose_one_after_the_other(cluster: Cluster) -> Writer:
    """Kill node after node under writes, as long as there is a majority, then all at once."""
    async with Writer(cluster, timeout_ms=3000) as writer:
        await writer.progress(40)
        victims = list(reversed(cluster.specs))
        spare = (len(victims) - 1) // 2
        for victim in victims[:spare]:
            await cluster.kill(victim)
            await writer.progress(40)
        await cluster.kill(*cluster.specs)
        writer.stop_soon()
    return writer


@pytest.mark.parametrize(
    ("replicas", "witnesses"),
    [
        (3, 0),
        pytest.param(2, 1, marks=pytest.mark.long),
        pytest.param(5, 0, marks=pytest.mark.long),
        pytest.param(3, 2, marks=pytest.mark.long),
    ],
)
async def test_each_set_of_survivors_gives_back_all_that_it_holds_and_says_so_truthfully(
    make_cluster: MakeCluster, tmp_path: Path, replicas: int, witnesses: int
) -> None:
    old: Cluster = make_cluster(replicas=replicas, witnesses=witnesses, limits=LIMITS)
    await old.start()
    writer = await lose_one_after_the_other(old)
    acknowledged = set(writer.acknowledged)
    before = {node: content(old.data(node)) for node in old.specs}
    holds = {node: held(old.data(node), tmp_path) for node in old.specs}
    assert any(holds[node] >= acknowledged for node in old.replicas)
    said = set()
    for size in range(1, len(old.specs) + 1):
        for nodes in itertools.combinations(old.specs, size):
            if not set(nodes) & set(old.replicas):
                continue
            target = tmp_path / "recovered from" / " ".join(nodes)
            paths = [old.data(node) for node in nodes]
            keys, complete = await asyncio.to_thread(recovered, paths, target)
            shutil.rmtree(target)
            everything = set[str]().union(*(holds[node] for node in nodes))
            assert keys >= everything & acknowledged, nodes
            assert not keys & set(writer.refused), nodes
            assert not complete or keys >= acknowledged, nodes
            said.add(complete)
            if size == len(old.specs):
                assert complete  # and nothing is only said to be safe
    assert said == {True, False}
    assert {node: content(old.data(node)) for node in old.specs} == before


@pytest.mark.long
async def test_lost_nodes_that_return_are_shut_out_until_they_come_empty(
    make_cluster: MakeCluster,
) -> None:
    cluster: Cluster = make_cluster(limits=LIMITS)
    await cluster.start()
    async with Writer(cluster, timeout_ms=3000) as writer:
        await writer.progress(40)
        await cluster.kill(*cluster.specs)
        writer.stop_soon()
    source = cluster.data("n2")
    # The operator keeps file, addresses and secret, and gives n2 a new directory.
    place = cluster.directory / "new n2"
    cluster.specs["n2"] = msgspec.structs.replace(cluster.specs["n2"], data=place)
    cluster.write_config()
    done = recover(source, "--config", cluster.config_path, "--node", "n2", "--yes")
    assert done.returncode == 0, done.stderr
    await cluster.start("n2", in_sync=False)
    cluster.launch("n1")
    assert await cluster.nodes["n1"].wait_exit(deadline_s=60) == REFUSED
    assert "belongs to another cluster" in cluster.nodes["n1"].log()
    status = await cluster.status("n2")
    assert status is not None
    assert set(status.nodes) == {"n2"}
    del cluster.specs["n3"]
    cluster.write_config()
    shutil.rmtree(cluster.data("n1"))
    await cluster.start("n1")
    assert (await cluster.fetch("n1", "PUT", kv("new"), b"1")).status == 201
    await cluster.wait_in_sync("n1", "n2")
    for key in writer.acknowledged:
        assert (await cluster.fetch("n1", "GET", kv(key))).status == 200


def old_directories(tmp_path: Path, *nodes: str, cluster_id: str = "c1") -> list[Path]:
    """Make the data directories of replicas that hold an entry."""
    paths = []
    for node in nodes:
        path = tmp_path / node
        directory = DataDirectory.open(path, node_id=node)
        directory.bind_cluster(cluster_id)
        directory.close()
        paths.append(path)
    return paths


async def test_bad_input_is_named_and_nothing_is_made(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    cluster: Cluster = make_cluster(replicas=2, witnesses=1, limits=LIMITS)
    await cluster.start()
    assert (await cluster.fetch("n1", "PUT", kv("large"), VALUE)).status == 201
    place = make_spec("replica", cluster.directory / "new")
    one, two, witness = (cluster.data(node) for node in ("n1", "n2", "w1"))
    data = two / "store" / "env-0000000000000001" / "data.mdb"
    await wait_until(lambda: VALUE in data.read_bytes(), "n2 has flushed the value to its store")
    await cluster.stop("n2", "w1")

    def refused(*paths: Path) -> str:
        before = {path: content(path) for path in paths if path != one}
        text = error_of(*paths)
        assert {path: content(path) for path in paths if path != one} == before
        return text

    assert f"{one} is in use by process" in refused(two, one)
    await cluster.kill("n1")
    assert "none of these directories holds data: witnesses only vote" in refused(witness)
    shutil.copytree(two, tmp_path / "copy")
    assert "are copies of the same data directory" in refused(two, tmp_path / "copy")
    (other,) = old_directories(tmp_path, "n9")
    assert "belongs to cluster" in (text := refused(two, other))
    assert "to c1: name the directories of one cluster" in text
    (tmp_path / "nothing").mkdir()
    assert "holds no identity.json" in refused(two, tmp_path / "nothing")
    DataDirectory.open(tmp_path / "fresh", node_id="n8").close()
    assert "has never been part of a cluster" in refused(tmp_path / "fresh")
    _overwrite(two / "identity.json", b'"format": 3', b'"format": 9')
    assert "identity.json is damaged" in refused(one, two)
    _overwrite(two / "identity.json", b'"format": 9', b'"format": 3')
    _overwrite(data, VALUE, VALUE[:-1] + b"y")
    assert "Leave such a directory out of the command" in (text := refused(one, two))
    assert "has a wrong checksum" in text
    _overwrite(data, VALUE[:-1] + b"y", VALUE)
    sound = data.read_bytes()
    data.write_bytes(b"")
    assert "Leave such a directory out of the command" in refused(one, two)
    data.write_bytes(sound)
    # The target.
    cluster.specs["n1"] = msgspec.structs.replace(cluster.specs["n1"], data=place.data)
    cluster.write_config()
    new = ("--config", cluster.config_path)
    assert "is one of the directories to recover from" in error_of(two, *new, "--node", "n2")
    assert "no such replica; the replicas: n1, n2" in error_of(two, *new, "--node", "w1")
    assert "--yes needs --node" in error_of(two, "--yes")
    place.data.mkdir()
    (place.data / "notes").write_text("mine")
    assert "is not empty (it holds notes)" in error_of(two, *new, "--node", "n1", "--yes")
    assert [item.name for item in place.data.iterdir()] == ["notes"]


def error_of(*arguments: object) -> str:
    """Run the command in this process; it must fail, and print no result."""
    got = CliRunner().invoke(command, [str(argument) for argument in arguments])
    assert got.exit_code in (1, 2), got.output
    assert not got.stdout
    return got.stderr


def _overwrite(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))


async def test_two_histories_of_one_cluster_are_told_apart(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    """The machines were copied, and each half went on without knowing of the other."""
    cluster: Cluster = make_cluster()
    await cluster.start()
    async with cluster.client() as client:
        await client.put("before", b"1")
    await cluster.wait_converged()
    await cluster.kill(*cluster.specs)
    aside, data = tmp_path / "aside", cluster.directory / "data"
    shutil.copytree(data, aside)

    async def go_on(*nodes: str, writes: int) -> None:
        cluster.launch(*nodes)
        async with cluster.client(*nodes, discover=False) as client:
            for number in range(writes):
                await client.put(f"after/{number}", f"{nodes} {number}".encode())
        await cluster.wait_converged(*nodes)
        await cluster.kill(*nodes)

    await go_on("n1", "n2", writes=4)
    left = data.rename(tmp_path / "left")
    aside.rename(data)
    await go_on("n2", "n3", writes=9)
    for paths in ((left / "n1", data / "n3"), (data / "n3", left / "n1", data / "n2")):
        refused = recover(*paths)
        assert refused.returncode != 0, refused
        assert "not of one history" in refused.stderr
        assert "n1" in refused.stderr
        assert refused.stdout == ""
    for paths in ((left / "n1", left / "n2"), (data / "n2", data / "n3")):
        assert recover(*paths).returncode == 0
