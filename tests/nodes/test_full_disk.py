"""Full disks, on a small tmpfs: a clear refusal, reads go on, and service resumes with room."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.nodes.conftest import MakeCluster
from tests.support import commands
from tests.support.archives import wait_archived
from tests.support.cluster import Cluster, Writer, problem_of, wait_until
from tests.support.raw_http import Reply, kv
from tests.support.small_disk import fill, mount_small_disk, unmount

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs"),
]

DISK_SIZE_BYTES = 96 * 1024 * 1024
LIMITS = {
    "max_value_size_bytes": 1_048_576,
    "log_segment_size_bytes": 2 * 1024 * 1024,
    "log_retention_bytes": 4 * 1024 * 1024,
}
VALUE = b"x" * 500_000

SmallDisk = Callable[[str], Path]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """Mount small file systems, which go away after the test (and after its cluster)."""
    mounted: list[Path] = []

    def mount(name: str) -> Path:
        path = tmp_path / name
        path.mkdir()
        try:
            mount_small_disk(path, DISK_SIZE_BYTES)
        except OSError as error:
            pytest.skip(f"a tmpfs cannot be mounted here ({error.strerror}): run as root")
        mounted.append(path)
        return path

    yield mount
    for path in mounted:
        unmount(path)


async def put(cluster: Cluster, node: str, key: str, timeout_ms: int = 5000) -> Reply:
    return await cluster.fetch(node, "PUT", f"{kv(key)}?timeout_ms={timeout_ms}", VALUE)


async def write_until_full(cluster: Cluster, node: str) -> tuple[list[str], Reply]:
    """Write until a write is refused; return the keys that were acknowledged, and the refusal."""
    written: list[str] = []
    for number in range(200):
        key = f"big/{number}"
        reply = await put(cluster, node, key)
        if reply.status not in {200, 201}:
            return written, reply
        written.append(key)
    raise AssertionError("the disk was never full")


async def test_all_disks_full_refuses_writes_serves_reads_and_recovers(
    make_cluster: MakeCluster, small_disk: SmallDisk
) -> None:
    disk = small_disk("disk")
    cluster: Cluster = make_cluster(
        limits=LIMITS, data={node: disk / node for node in ("n1", "n2", "n3")}
    )
    await cluster.start()
    primary = await cluster.primary()
    ballast = fill(disk, leave_bytes=6 * 1024 * 1024)
    written, refusal = await write_until_full(cluster, primary)
    assert refusal.status == 507, refusal
    problem = problem_of(refusal)
    assert (problem["code"], problem["outcome"]) == ("storage_full", "not_applied")
    for node in cluster.replicas:
        for key in written:
            reply = await cluster.fetch(node, "GET", kv(key))
            assert (reply.status, reply.body) == (200, VALUE), f"{key} at {node}"
        assert (await cluster.fetch(node, "GET", kv(f"big/{len(written)}"))).status == 404
    again = await put(cluster, cluster.others(primary)[0], "refused")
    assert again.status == 507, "through a backup as well"

    ballast.unlink()

    async def accepted() -> bool:
        return (await put(cluster, primary, "afterwards")).status in {200, 201}

    await wait_until(accepted, "writes are taken again")
    await cluster.wait_converged(*cluster.replicas)


async def test_a_full_disk_on_the_primary_alone_is_told_truthfully_and_recovers(
    make_cluster: MakeCluster, small_disk: SmallDisk
) -> None:
    disk = small_disk("disk")
    cluster: Cluster = make_cluster(limits=LIMITS, data={"n1": disk / "n1"})
    await cluster.start()
    assert await cluster.primary() == "n1"
    ballast = fill(disk, leave_bytes=3 * 1024 * 1024)
    outcomes: dict[str, int] = {}
    full = 0
    for number in range(60):
        key = f"big/{number}"
        reply = await put(cluster, cluster.replicas[number % 3], key, timeout_ms=3000)
        outcomes[key] = reply.status
        if reply.status not in {200, 201}:
            assert problem_of(reply)["outcome"] == "not_applied"
            assert reply.status == 507
            full += 1
            if full >= 3:
                break
    for node in cluster.replicas:
        for key, status in outcomes.items():
            expected = 404 if status == 507 else 200
            assert (await cluster.fetch(node, "GET", kv(key))).status == expected
    ballast.unlink()

    async def accepted() -> bool:
        return (await put(cluster, "n1", "afterwards")).status in {200, 201}

    await wait_until(accepted, "writes are taken again")
    await cluster.wait_converged(*cluster.replicas)


async def test_a_backup_with_a_full_disk_is_let_go_and_comes_back_when_there_is_room(
    make_cluster: MakeCluster, small_disk: SmallDisk
) -> None:
    disk = small_disk("disk")
    cluster: Cluster = make_cluster(limits=LIMITS, data={"n3": disk / "n3"})
    await cluster.start()
    assert await cluster.primary() != "n3"
    async with Writer(cluster, "n1", "n2", size_bytes=20_000) as writer:
        await writer.progress(20)
        ballast = fill(disk)
        await cluster.wait_in_sync("n1", "n2")
        await writer.progress(50)
        newest = list(writer.acknowledged)[-1]
        reply = await cluster.fetch("n3", "GET", kv(newest))
        assert reply.status == 200, "reads through it go on, with what it could not take itself"
        ballast.unlink()
        await cluster.wait_in_sync("n1", "n2", "n3")
        await writer.progress(20)
    assert not list(writer.unserved())
    await cluster.wait_converged()
    await writer.verify()


@pytest.mark.long
async def test_a_snapshot_that_finds_no_room_is_tried_again_until_there_is_some(
    make_cluster: MakeCluster, small_disk: SmallDisk
) -> None:
    disk = small_disk("disk")
    cluster: Cluster = make_cluster(limits=LIMITS, data={"n3": disk / "n3"})
    await cluster.start()
    assert await cluster.primary() == "n1"
    cluster.nodes["n3"].pause()
    async with Writer(cluster, "n1", "n2", size_bytes=60_000, pause_s=0) as writer:

        async def trimmed() -> bool:
            writer.check_healthy()
            # By more than n3 finds in its sockets, and in the log that it has space for, when it
            # goes on: 400 records are 24 MB.
            return await cluster.metric("n1", "log_first_index") > 400

        await wait_until(trimmed, "the primary keeps no log that far back")
    ballast = fill(disk)
    cluster.nodes["n3"].resume()

    def failed() -> bool:
        cluster.check_alive()
        said = cluster.nodes["n1"].log()
        again = re.search(r"(\d+) more lines like 'failed snapshot for n3'", said)
        return "the snapshot for n3 failed" in said and again is not None and int(again[1]) > 2

    await wait_until(failed, "the snapshot finds no room, again and again")
    reply = await cluster.fetch("n3", "GET", kv(next(iter(writer.acknowledged))))
    assert reply.status == 200
    ballast.unlink()
    await cluster.wait_converged()
    await writer.verify()


async def test_nodes_start_and_serve_what_they_hold_on_full_disks(
    make_cluster: MakeCluster, small_disk: SmallDisk
) -> None:
    disk = small_disk("disk")
    cluster: Cluster = make_cluster(replicas=1, limits=LIMITS, data={"n1": disk / "n1"})
    await cluster.start()
    ballast = fill(disk, leave_bytes=3 * 1024 * 1024)
    written, refusal = await write_until_full(cluster, "n1")
    assert refusal.status == 507
    await cluster.kill("n1")
    cluster.launch("n1")

    async def served_or_ended() -> bool:
        return not cluster.nodes["n1"].running or await cluster.serving() == "n1"

    await wait_until(served_or_ended, "n1 serves, or says why it cannot")
    if not cluster.nodes["n1"].running:
        said = cluster.nodes["n1"].log()
        assert "Traceback" not in said
        assert "No space left" in said
        ballast.unlink()
        await cluster.start("n1")
    for key in written:
        assert (await cluster.fetch("n1", "GET", kv(key))).body == VALUE
    ballast.unlink(missing_ok=True)

    async def accepted() -> bool:
        return (await put(cluster, "n1", "afterwards")).status in {200, 201}

    await wait_until(accepted, "writes are taken again")


@pytest.mark.long  # tests/unit/datapath/node/test_archive_log.py has the rule
async def test_log_that_waits_for_the_archive_makes_room_for_writes(
    make_cluster: MakeCluster, small_disk: SmallDisk, tmp_path: Path
) -> None:
    """The archive is away, and its bound is above the disk: it gets a gap, and writes go on."""
    disk = small_disk("disk")
    archive = {"url": (tmp_path / "away").as_uri(), "max_log_bytes": 1 << 30}
    cluster: Cluster = make_cluster(
        replicas=1, limits=LIMITS, data={"n1": disk / "n1"}, archive=archive
    )
    await cluster.start()
    for _ in range(3 * DISK_SIZE_BYTES // (2 * len(VALUE))):
        reply = await put(cluster, "n1", "same", timeout_ms=20_000)
        while reply.status == 507:  # until the log is trimmed
            reply = await put(cluster, "n1", "same", timeout_ms=20_000)
        assert reply.status in {200, 201}, reply
    assert await cluster.metric("n1", "log_bytes") < DISK_SIZE_BYTES


async def test_an_archive_whose_disk_is_full_is_told_and_catches_up_with_room(
    make_cluster: MakeCluster, small_disk: SmallDisk
) -> None:
    disk = small_disk("archive")
    archive = {"url": disk.as_uri(), "piece_interval_ms": 100}
    cluster: Cluster = make_cluster(replicas=1, limits=LIMITS, archive=archive)
    await cluster.start()
    await wait_archived(cluster, 1)
    ballast = fill(disk)

    async def told() -> bool:
        assert (await put(cluster, "n1", "same")).status in {200, 201}, "writes go on"
        status = await cluster.status("n1")
        assert status is not None
        assert status.archive is not None
        return "free space on that disk" in status.archive.problem and status.archive.lag_ms > 0

    await wait_until(told, "the archive's disk is told to be full")
    assert "the archive cannot be written: writing" in cluster.nodes["n1"].log()
    ballast.unlink()
    written = await cluster.fetch("n1", "PUT", kv("last"), b"1")
    await wait_archived(cluster, int(written.headers["etag"].strip('"')))

    async def well() -> bool:
        status = await cluster.status("n1")
        return status is not None and status.archive is not None and not status.archive.problem

    await wait_until(well, "nothing is told any more")
    ended = await commands.run("archive", "verify", disk.as_uri())
    assert ended.code == 0, ended.err
