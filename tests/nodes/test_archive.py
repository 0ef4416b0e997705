"""The continuous archive: what nodes write to it, and what is read from it, against real clusters.

The archive is a directory here; `test_archive_s3.py` has it on an S3 server.
"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import msgspec
import pytest

from cluster.archive.errors import MissingPieceError
from cluster.archive.object_store import open_store
from cluster.archive.reading import Archive
from cluster.client.aio import AsyncClient
from datapath.storage.founding import REVISION_MARGIN
from tests.nodes.conftest import MakeCluster
from tests.support import commands
from tests.support.archives import Model, check_points, restored_digest, wait_archived
from tests.support.cluster import Cluster, wait_until

pytestmark = pytest.mark.slow

WRITES = 1500
POINTS = 1000
KEYS = 40


async def write_some(client: AsyncClient, model: Model, count: int, seed: int) -> None:
    """Put and delete keys at random, from eight tasks, and record every revision."""
    chosen = random.Random(seed)

    async def work() -> None:
        for _ in range(count // 8):
            key = f"k{chosen.randrange(KEYS):02}"
            if chosen.random() < 0.2:
                removed = await client.delete(key)
                if removed.deleted:
                    model.note(removed.revision, key, None)
            else:
                value = chosen.randbytes(chosen.randrange(200))
                written = await client.put(key, value)
                model.note(written.revision, key, value)

    await asyncio.gather(*(work() for _ in range(8)))


def check_times(archive: Archive) -> None:
    """Each time leads to the last revision that was noted by then."""
    base, *_ = archive.catalog.bases
    marks = [
        mark
        for name in archive.catalog.chain(base.revision)
        for mark in archive.piece(name).header.marks
    ]
    assert len(marks) > 3
    for time_ms in sorted({mark.time_ms + shift for mark in marks for shift in (-1, 0, 1)}):
        if time_ms >= base.time_ms:
            expected = [mark.revision for mark in marks if mark.time_ms <= time_ms]
            begun = [b.revision for b in archive.catalog.bases if b.time_ms <= time_ms]
            assert archive.at_time(time_ms).until == max(*expected, *begun, 0)
    with pytest.raises(MissingPieceError, match="the archive begins at"):
        archive.at_time(base.time_ms - 1)


async def test_each_revision_of_a_recorded_history_is_restored(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    """1,000 random revisions, across a kill -9 of the primary, in one pass over each base."""
    root = tmp_path / "archive"
    root.mkdir()
    cluster: Cluster = make_cluster(
        replicas=2,
        witnesses=1,
        archive={"url": root.as_uri(), "piece_interval_ms": 100, "base_interval_ms": 3000},
    )
    await cluster.start()
    await wait_archived(cluster, 1)  # the first base state
    model = Model()
    async with cluster.client() as client:
        await write_some(client, model, WRITES // 2, seed=1)
        primary = await cluster.primary()
        await cluster.kill(primary)
        await write_some(client, model, WRITES // 2, seed=2)
    await wait_archived(cluster, model.last)
    survivor = await cluster.primary()
    digest = await cluster.digest(survivor)
    assert digest is not None
    await cluster.stop()

    archive = Archive(open_store(root.as_uri()))
    first = archive.catalog.bases[0].revision
    points = sorted(random.Random(3).sample(range(first, model.last + 1), POINTS))
    for base in archive.catalog.bases:
        check_points(archive, base, [n for n in points if n >= base.revision], model, tmp_path)
    check_times(archive)
    ended = await commands.run("archive", "verify", root.as_uri(), "--json")
    assert ended.code == 0, ended.err
    shown = msgspec.json.decode(ended.out)
    assert [(span["first"], span["last"], span["digest"]) for span in shown["spans"]] == [
        (first, digest.applied_index, digest.digest)
    ]
    plan = archive.at_revision(None)
    assert restored_digest(archive, plan, tmp_path / "newest") == (
        digest.applied_index,
        digest.digest,
    )


async def test_writes_go_on_while_the_archive_is_away(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    """It catches up where the log is held; where it is not, it has a gap, which is told."""
    root, away = tmp_path / "archive", tmp_path / "away"
    root.mkdir()
    cluster: Cluster = make_cluster(
        replicas=1,
        archive={"url": root.as_uri(), "piece_interval_ms": 100, "max_log_bytes": 1 << 20},
        limits={
            "log_segment_size_bytes": 1 << 17,
            "log_retention_bytes": 1 << 17,
            "overlay_flush_bytes": 1 << 14,
            "max_value_size_bytes": 1 << 14,
        },
    )
    await cluster.start()
    model = Model()
    async with cluster.client() as client:
        await write_some(client, model, 80, seed=1)
        await wait_archived(cluster, model.last)
        before_first = model.last
        root.rename(away)
        await write_some(client, model, 80, seed=2)

        async def tells_problem() -> bool:
            status = await cluster.status("n1")
            archive = status.archive if status else None
            return archive is not None and "does not exist" in archive.problem

        await wait_until(tells_problem, "the status says what is wrong")
        assert await cluster.metric("n1", "archive_failing") == 1
        assert await cluster.metric("n1", "archive_lag_entries") >= model.last - before_first
        away.rename(root)
        await wait_archived(cluster, model.last)
        assert await cluster.metric("n1", "archive_gaps_total") == 0

        root.rename(away)
        caught_up = model.last
        for _ in range(150):  # 2.4 MB: more than the bound
            written = await client.put("large", random.randbytes(1 << 14))
            model.note(written.revision, "large", None)

        async def log_is_bounded() -> bool:
            return await cluster.metric("n1", "log_bytes") < (1 << 20) + (1 << 19)

        await wait_until(log_is_bounded, "the log is dropped")
        away.rename(root)
        await wait_archived(cluster, model.last)
        assert await cluster.metric("n1", "archive_gaps_total") == 1
        status = await cluster.status("n1")
        assert status is not None
        assert any("archive lacks revisions" in warning for warning in status.warnings)
    await cluster.stop()

    archive = Archive(open_store(root.as_uri()))
    assert archive.at_revision(caught_up).until == caught_up
    with pytest.raises(MissingPieceError, match="can go up to revision") as found:
        archive.at_revision(caught_up + 20)
    assert found.value.reaches is not None
    assert found.value.reaches >= caught_up
    assert archive.at_revision(None).until >= model.last


async def restore(cluster: Cluster, *options: str | Path) -> commands.Ended:
    place = ("--config", cluster.config_path, "--node", "n1", "--json")
    return await commands.run("restore", *options, *place)


@pytest.mark.long
async def test_a_cluster_goes_on_from_a_point_of_the_archive(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    root = tmp_path / "archive"
    root.mkdir()
    url = root.as_uri()
    old: Cluster = make_cluster("old", replicas=1, archive={"url": url, "piece_interval_ms": 100})
    await old.start()
    await wait_archived(old, 1)
    model = Model()
    async with old.client() as client:
        for seed in (1, 2, 3):
            await write_some(client, model, 80, seed)
            await wait_archived(old, model.last)
    await old.stop()
    point = (model.first + model.last) // 2

    new: Cluster = make_cluster("new", replicas=1, archive={"url": url})
    ended = await restore(new, url, "--to-revision", str(point))
    assert ended.code == 0, ended.err
    made = msgspec.json.decode(ended.out)
    assert made["kept_index"] == point
    await new.start()
    async with new.client() as client:
        items = {item.key: (item.revision, item.value) async for item in client.list("")}
        assert items == model.at(point)
        assert (await client.put("new", b"1")).revision > model.last + REVISION_MARGIN
    await wait_archived(new, made["next_index"])  # under its own id, in the same place
    await new.stop()
