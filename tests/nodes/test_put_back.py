"""A whole data directory that is put back from an older copy, while who knows more is away."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec
import pytest

from election.pysyncobj_adapter.files import decode_file
from election.pysyncobj_adapter.peer_marks import PEER_MARKS_MAGIC, PeerMark
from tests.nodes.conftest import MakeCluster
from tests.support.cluster import UNSUSPECTING, Cluster, Writer, wait_until

pytestmark = pytest.mark.slow

REFUSED = 78
CONSENSUS = ("raft", "raft.mark")
JSON = {"Content-Type": "application/json"}
LIMITS = {"log_segment_size_bytes": 4 * 1024 * 1024}


def data_id(cluster: Cluster, node: str) -> str:
    text = (cluster.data(node) / "identity.json").read_text()
    return str(json.loads(text[: text.rindex("}") + 1])["data"])


def remembered(cluster: Cluster, by: str, of: str) -> PeerMark:
    """Return what one node has written down of another, without touching its files."""
    path = cluster.data(by) / "raft.peers"
    if not path.exists():
        return PeerMark()
    marks = msgspec.msgpack.decode(
        decode_file(PEER_MARKS_MAGIC, path.read_bytes(), path), type=dict[str, PeerMark]
    )
    return marks.get(data_id(cluster, of), PeerMark())


async def committed(cluster: Cluster, node: str) -> int:
    return int(await cluster.metric(node, "commit_index"))


async def copy(cluster: Cluster, node: str) -> Path:
    """Copy a data directory between two instructions of its process."""
    place = cluster.directory / f"copy of {node}"
    cluster.nodes[node].pause()
    shutil.copytree(cluster.data(node), place)
    cluster.nodes[node].resume()
    return place


def put_back(cluster: Cluster, node: str, place: Path) -> None:
    shutil.rmtree(cluster.data(node))
    shutil.copytree(place, cluster.data(node))


async def start(make_cluster: MakeCluster) -> tuple[Cluster, str, str]:
    """Start two replicas and a witness; return the primary and the backup as well."""
    cluster: Cluster = make_cluster(replicas=2, witnesses=1, timing=UNSUSPECTING, limits=LIMITS)
    await cluster.start()
    primary = await cluster.primary()
    (backup,) = cluster.others(primary)
    await cluster.wait_in_sync(primary, backup)
    return cluster, primary, backup


async def write_after_the_copy(cluster: Cluster, node: str) -> Writer:
    """Write until the witness remembers more of the node than the copy holds."""
    before = await committed(cluster, node)
    async with Writer(cluster) as writer:
        await writer.progress(50)
    await wait_until(
        lambda: remembered(cluster, "w1", node).index > before + 20,
        f"w1 remembers what {node} had committed",
    )
    return writer


async def takes_no_part(cluster: Cluster, node: str) -> None:
    """Wait until a node says that it has gone back; it must not serve."""

    async def said_so() -> bool:
        assert await cluster.serving() != node, f"{node} serves, and lacks acknowledged writes"
        status = await cluster.status(node)
        return status is not None and any("older copy" in text for text in status.warnings)

    await wait_until(said_so, f"{node} says that its directory is an older copy")
    assert "was in sync" in cluster.nodes[node].log()


@pytest.mark.long
async def test_a_backup_put_back_while_the_primary_is_away_never_takes_over(
    make_cluster: MakeCluster,
) -> None:
    """Consensus has not changed since the copy, so that nothing in it tells of the difference."""
    cluster, primary, backup = await start(make_cluster)
    place = await copy(cluster, backup)
    writer = await write_after_the_copy(cluster, backup)
    await cluster.kill(primary, backup)
    for name in CONSENSUS:
        new, old = cluster.data(backup) / name, place / name
        (shutil.rmtree if old.is_dir() else Path.unlink)(old)
        new.rename(old)
    put_back(cluster, backup, place)
    cluster.launch(backup)
    await takes_no_part(cluster, backup)
    status = await cluster.status("w1")
    assert status is not None
    assert any(backup in text and "older copy" in text for text in status.warnings)

    # It has noted it: without the one who remembers it, too.
    await cluster.kill(backup, "w1")
    (cluster.data("w1") / "raft.peers").unlink()
    cluster.launch(backup, "w1")
    said = "it does not take over or serve until a primary has caught it up"
    await wait_until(lambda: said in cluster.nodes[backup].log(), f"{backup} knows it at its start")
    await cluster.start(primary)
    await cluster.wait_converged()
    await writer.verify()
    status = await cluster.status(backup)
    assert status is not None
    assert not any("may lack acknowledged entries" in text for text in status.warnings)


@pytest.mark.long
async def test_a_backup_whose_consensus_is_old_too_is_refused_before_it_votes(
    make_cluster: MakeCluster,
) -> None:
    cluster, primary, backup = await start(make_cluster)
    await cluster.stop(backup)
    place = cluster.directory / "copy"
    shutil.copytree(cluster.data(backup), place)
    await cluster.start(backup)
    await cluster.wait_in_sync(primary, backup)
    writer = await write_after_the_copy(cluster, backup)
    await cluster.kill(primary, backup)
    put_back(cluster, backup, place)
    for witness_is_up in (True, False):
        if not witness_is_up:
            await cluster.kill("w1")
        cluster.launch(backup)
        assert await cluster.nodes[backup].wait_exit() == REFUSED
        said = cluster.nodes[backup].log()
        assert "is an old copy" in said
        assert ("w1 remembers that" in said) == witness_is_up
        assert "new id" in said
    cluster.launch(primary, "w1")
    await wait_until(cluster.serving, f"{primary} serves")
    await writer.verify()


@pytest.mark.long
async def test_a_primary_put_back_leaves_the_epoch_to_its_backup(
    make_cluster: MakeCluster,
) -> None:
    cluster, primary, backup = await start(make_cluster)
    place = await copy(cluster, primary)
    writer = await write_after_the_copy(cluster, primary)
    await cluster.kill(backup, primary)
    for name in CONSENSUS:
        new, old = cluster.data(primary) / name, place / name
        (shutil.rmtree if old.is_dir() else Path.unlink)(old)
        new.rename(old)
    put_back(cluster, primary, place)
    cluster.launch(primary)
    await takes_no_part(cluster, primary)
    await cluster.start(backup)
    assert await cluster.primary() == backup
    await cluster.wait_converged()
    await writer.verify()


@pytest.mark.long
async def test_a_primary_put_back_to_before_its_epoch_does_not_open_it_again(
    make_cluster: MakeCluster,
) -> None:
    """The witness tells it the view, which makes it the primary, before consensus is linked."""
    cluster: Cluster = make_cluster(replicas=2, witnesses=1, limits=LIMITS)
    await cluster.start()
    primary = await cluster.primary()
    (backup,) = cluster.others(primary)
    place = await copy(cluster, primary)
    for target in (backup, primary):
        body = json.dumps({"to": target}).encode()

        async def handed_over(target: str = target, body: bytes = body) -> bool:
            if await cluster.serving() != target:
                await cluster.fetch(primary, "POST", "/v1/cluster/handover", body, JSON)
            return await cluster.serving() == target

        await wait_until(handed_over, f"{target} is handed over to")
        await cluster.wait_in_sync(primary, backup)
    await cluster.kill(backup)
    await cluster.wait_in_sync(primary)
    writer = await write_after_the_copy(cluster, primary)
    newest = cluster.directory / "newest"
    await cluster.kill(primary)
    cluster.data(primary).rename(newest)
    shutil.copytree(place, cluster.data(primary))
    cluster.launch(primary)
    assert await cluster.nodes[primary].wait_exit() == REFUSED
    said = cluster.nodes[primary].log()
    assert "w1 remembers that" in said
    assert "primary of epoch" not in said
    shutil.rmtree(cluster.data(primary))
    newest.rename(cluster.data(primary))
    await cluster.start(primary, in_sync=False)
    await writer.verify()


@pytest.mark.long
async def test_a_primary_put_back_that_is_alone_in_sync_does_not_start(
    make_cluster: MakeCluster,
) -> None:
    cluster: Cluster = make_cluster(replicas=1, witnesses=2, limits=LIMITS)
    await cluster.start()
    place = await copy(cluster, "n1")
    await write_after_the_copy(cluster, "n1")
    newest = cluster.directory / "newest"
    await cluster.kill("n1")
    cluster.data("n1").rename(newest)
    shutil.copytree(place, cluster.data("n1"))
    for name in CONSENSUS:
        path = cluster.data("n1") / name
        (shutil.rmtree if path.is_dir() else Path.unlink)(path)
        (shutil.copytree if (newest / name).is_dir() else shutil.copy)(newest / name, path)
    cluster.launch("n1")
    assert await cluster.nodes["n1"].wait_exit() == REFUSED
    said = cluster.nodes["n1"].log()
    assert "older copy" in said
    assert "Bring back the newest files" in said
    shutil.rmtree(cluster.data("n1"))
    newest.rename(cluster.data("n1"))
    await cluster.start("n1")
    assert await cluster.primary() == "n1"
