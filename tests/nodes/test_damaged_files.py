"""A torn or flipped byte in each file a node keeps: noticed and named, repaired or refused.

A backup is killed, one file of its data directory is damaged, and it is started again. Either it
comes back whole (equal digest, every value right), or it refuses with exit code 78, names the file
and says what to do; it never serves what is wrong, and the others go on.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.cluster import Cluster, Writer, value_of, wait_until
from tests.support.damage import flip_byte
from tests.support.raw_http import kv

pytestmark = [pytest.mark.slow, pytest.mark.fault]

LIMITS = {
    "max_value_size_bytes": 8192,
    "log_segment_size_bytes": 131_072,
    "log_retention_bytes": 131_072,
    "overlay_flush_bytes": 4096,
}
PAGE_BYTES = 4096
ADVICE = (
    "Bring the damaged file back",
    "move the data directory away",
    "remove this node from the cluster",
)


class Case(NamedTuple):
    """A file of the data directory (a pattern: its first match), and what becomes of the node.

    "refused": exit code 78. "named": comes back, and its log names the file. "unharmed": comes
    back; nothing in the file matters, or what is gone could not have been acknowledged.
    """

    file: str
    flipped: str
    torn: str


CASES = (
    Case("lock", "unharmed", "unharmed"),  # the lock counts, not the pid in it
    Case("identity.json", "refused", "refused"),
    Case("accepted", "named", "named"),
    Case("log/*.seg", "named", "named"),
    Case("store/CURRENT", "refused", "refused"),
    Case("store/env-*/data.mdb", "", "refused"),  # flipped: see below
    Case("store/env-*/lock.mdb", "unharmed", "unharmed"),  # LMDB makes it anew
    Case("raft/journal", "refused", "unharmed"),  # the torn half is the reserve: zeros
    Case("raft/members", "refused", "refused"),
    Case("raft/dump", "refused", "refused"),
    Case("raft.mark", "refused", "refused"),
    Case("raft.peers", "named", "named"),
)
KNOWN_FILES = {case.file.replace("*", "") for case in CASES} | {"raft/lock", "log/spare"}


class Bed(NamedTuple):
    """A cluster with history in each of its files; `keep` is a copy of the victim's directory."""

    cluster: Cluster
    writer: Writer
    victim: str
    keep: Path


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    cluster = Cluster(tmp_path_factory.mktemp("damage") / "cluster", limits=LIMITS)
    try:
        yield asyncio.run(make_bed(cluster))
    finally:
        cluster.end()


async def make_bed(cluster: Cluster) -> Bed:
    await cluster.start()
    async with Writer(cluster, size_bytes=300) as writer:
        await wait_until(lambda: len(writer.acknowledged) > 600, "some segments of log")
    # A newcomer gets a dump, which the others make for it.
    old, victim = "n3", "n4"
    await cluster.kill(old)
    async with cluster.client("n1", "n2") as client:
        await client.remove(old)
    cluster.replace_node(old, victim)
    await cluster.start(victim)
    async with Writer(cluster, name="later", size_bytes=300) as later:
        await wait_until(lambda: len(later.acknowledged) > 600, "some segments of its own log")
    await cluster.wait_converged()
    memory = cluster.data(victim) / "raft.peers"
    await wait_until(memory.exists, "what it remembers of the others is written down")
    oldest = next(iter(writer.acknowledged))
    await wait_until(
        lambda: value_of(oldest, 300) in _store_file(cluster.data(victim)).read_bytes(),
        "what it was given stands in its store, not only in its log",
    )
    await cluster.kill(victim)
    keep = cluster.directory / "keep"
    shutil.copytree(cluster.data(victim), keep)
    return Bed(cluster, writer, victim, keep)


def _store_file(data: Path) -> Path:
    return min(data.glob("store/env-*/data.mdb"))


def flip(path: Path) -> None:
    """Invert the byte in the middle of what the file holds (the rest may be reserve: zeros)."""
    used = [at for at, byte in enumerate(path.read_bytes()) if byte]
    flip_byte(path, used[len(used) // 2])


def tear(path: Path) -> None:
    """Keep the first half; of the store only LMDB's two meta pages.

    The second half of a store may be free pages, which can go without harm.
    """
    keep = 2 * PAGE_BYTES if path.name == "data.mdb" else path.stat().st_size // 2
    os.truncate(path, keep)


async def check_outcome(bed: Bed, path: Path, outcome: str) -> None:
    cluster, victim = bed.cluster, bed.victim
    cluster.launch(victim)
    process = cluster.nodes[victim]
    if outcome == "refused":
        assert await process.wait_exit() == 78, process.log()
        said = process.log()
        assert str(path) in said or str(path.parent) in said, said
        assert any(advice in said for advice in ADVICE), said
        assert "Traceback" not in said
        return
    await wait_until(lambda: " started: http" in process.log(), f"{victim} has started")
    await cluster.wait_converged(*cluster.replicas)
    await bed.writer.verify(victim)
    named = any(str(path) in line for line in process.log().splitlines() if " WARNING " in line)
    assert named == (outcome == "named"), process.log()


async def fresh_copy(bed: Bed) -> Path:
    """End the victim, and put its data directory back to what it was.

    The others must forget how far it has been since (decision 18).
    """
    cluster, victim = bed.cluster, bed.victim
    await cluster.kill(*cluster.replicas)
    cluster.nodes[victim].end()  # with whatever exit code: nobody minds it any more
    data = cluster.data(victim)
    shutil.rmtree(data)
    shutil.copytree(bed.keep, data)
    for node in cluster.others(victim):
        (cluster.data(node) / "raft.peers").unlink(missing_ok=True)
    await cluster.start(*cluster.others(victim))
    return data


@pytest.mark.parametrize(
    ("case", "damage"),
    [
        pytest.param(
            case,
            damage,
            id=f"{case.file}-{damage.__name__}",
            marks=[pytest.mark.long] if damage is tear else [],
        )
        for case in CASES
        for damage in (flip, tear)
        if (case.flipped if damage is flip else case.torn)
    ],
)
async def test_damage_to_a_file_is_noticed_named_and_repaired_or_refused(
    bed: Bed, case: Case, damage: Callable[[Path], None]
) -> None:
    cluster, victim = bed.cluster, bed.victim
    path = min((await fresh_copy(bed)).glob(case.file))
    damage(path)
    await check_outcome(bed, path, case.flipped if damage is flip else case.torn)
    serving = await wait_until(cluster.serving, "the others serve")
    assert serving != victim
    await bed.writer.verify(serving)


async def test_a_value_that_rots_in_the_store_is_never_served(bed: Bed) -> None:
    """Nor sent on: whoever reads it, a client or the digest, is refused, and the node ends."""
    cluster, victim = bed.cluster, bed.victim
    process = cluster.nodes[victim]
    key = next(iter(bed.writer.acknowledged))
    value = value_of(key, 300)
    for target in (
        f"{kv(key)}?consistency=stale",
        "/v1/kv?prefix=w/&consistency=stale",
        "/v1/digest",
    ):
        path = _store_file(await fresh_copy(bed))
        content = path.read_bytes()
        at = content.find(value)
        assert at > 0
        while at >= 0:  # older versions of the page hold it too
            flip_byte(path, at + 150)
            at = content.find(value, at + 1)
        cluster.launch(victim)
        await cluster.wait_started(victim)

        async def has_ended(target: str = target) -> bool:
            reply = await cluster.try_fetch(victim, target)
            # A node that has not heard yet that it belongs to the cluster asks the primary.
            by_itself = reply is not None and reply.headers["onecopy-node"] == victim
            assert reply is None or reply.status >= 500 or not by_itself, reply
            return not process.running

        await wait_until(has_ended, "the node has met the damage, and ended")
        assert await process.wait_exit() == 78
        said = process.log()
        assert f"{path.parent} is damaged: the value of" in said
        assert "join as a new node" in said


def test_no_file_is_left_out(bed: Bed) -> None:
    found = {str(path.relative_to(bed.keep)) for path in bed.keep.rglob("*") if path.is_file()}
    strange = {
        name
        for name in found
        if not any(Path(name).match(case.file) for case in CASES) and name not in KNOWN_FILES
    }
    assert not strange
