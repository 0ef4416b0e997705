"""Two groups of three real nodes each: what happens in one is nothing to the other."""

from __future__ import annotations

import asyncio
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cluster.client.aio import AsyncClient
from cluster.client.errors import InvalidRequestError
from cluster.exit_codes import EXIT_REFUSED
from cluster.groups.group_map import Group, GroupMap
from tests.support import commands
from tests.support.cluster import (
    SLOW_TO_SUSPECT,
    UNSUSPECTING,
    Cluster,
    Writer,
    wait_until,
)

pytestmark = pytest.mark.slow
LOW, HIGH = [[0, 2047]], [[2048, 4095]]
OWN, OTHER = "orders/1", "cart{7}/x"  # slots 598 and 2690


@pytest.fixture
async def groups(tmp_path: Path) -> AsyncIterator[tuple[Cluster, Cluster]]:
    low = {"id": "g1", "slots": LOW}
    first = Cluster(tmp_path / "g1", groups=low, timing=UNSUSPECTING)
    urls = [first.url(node) for node in first.specs]
    high = {"id": "g2", "slots": HIGH, "first": urls}
    second = Cluster(tmp_path / "g2", groups=high, timing=SLOW_TO_SUSPECT)
    try:
        await asyncio.gather(first.start(), second.start())
        yield first, second
    finally:
        first.end()
        second.end()


def map_of(first: Cluster, second: Cluster) -> GroupMap:
    def urls(cluster: Cluster) -> tuple[str, ...]:
        return tuple(map(cluster.url, cluster.specs))

    low, high = Group("g1", ((0, 2047),), urls(first)), Group("g2", ((2048, 4095),), urls(second))
    return GroupMap(1, (low, high))


async def test_groups_know_each_other_and_fail_over_apart(
    groups: tuple[Cluster, Cluster],
) -> None:
    first, second = groups
    async with first.client() as client, second.client() as other:
        ended = await commands.run("groups", "publish", second.url("n3"), first.url("n2"))
        assert ended.code == 0, ended
        published = (await client.groups()).map
        assert published is not None
        assert {group.id: set(group.endpoints) for group in published.groups} == {
            group.id: set(group.endpoints) for group in map_of(first, second).groups
        }
        for cluster in groups:
            for node in cluster.specs:

                async def knows(url: str = cluster.url(node)) -> bool:
                    async with AsyncClient(url, discover=False) as asking:
                        return (await asking.groups()).map == published

                await wait_until(knows, f"{node} of {cluster.directory.name} knows the map")
        async with AsyncClient(second.url("n2")) as deployment:
            for key in (OWN, OTHER, "jobs"):
                await deployment.put(key, key)
            own = await deployment.of("orders/")
            assert set(own.endpoints) == set(map(first.url, first.specs))
            assert await own.get(OWN) is not None
            async with deployment.watch(key=OWN) as watch, deployment.lock(OWN, ttl=5.0) as lock:
                written = await deployment.put(OWN, b"held", if_lock=lock.condition)
                assert (await anext(watch)).revision == written.revision
            async with deployment.lease(5.0, key=OWN) as lease:
                await deployment.put("orders/2", b"", lease=lease.id)
            with pytest.raises(InvalidRequestError, match="another group's"):
                await deployment.put(OWN, b"", lease=await deployment.grant_lease(5.0))
            ended = await commands.run("lock", OWN, "--", "true", endpoints=[second.url("n3")])
            assert ended.code == 0, ended
            assert await other.get(OTHER) == await deployment.get(OTHER)
            assert (await deployment.delete(OWN)).deleted
            # Any node of any group passes on what is another's, for a client of one cluster too.
            await other.put(OWN, b"relayed")
            assert (await deployment.get(OWN)) == (await other.get(OWN))
            ended = await commands.run("get", OWN, endpoints=[second.url("n1")])
            assert (ended.code, ended.out) == (0, b"relayed"), ended
            ended = await commands.run("list", "--group", "g1", endpoints=[second.url("n1")])
            assert (ended.code, ended.out) == (0, b"orders/1\n"), ended
            assert (await other.delete(OWN)).deleted
        before, other_before = (await client.status()).epoch, (await other.status()).epoch
        async with Writer(first, name="orders") as writer:
            await writer.progress()
            await second.kill(await second.primary())
            assert (await other.put(OTHER, b"y")).epoch > other_before
            await writer.progress()
        assert (writer.retries, writer.refused, writer.unknown) == (0, {}, {})
        assert (await client.status()).epoch == before
        await first.wait_converged()
        await writer.verify()


async def test_a_backup_of_a_group_makes_that_group_alone(tmp_path: Path) -> None:
    second = Cluster(tmp_path / "g2", replicas=1, groups={"id": "g2", "slots": HIGH})
    low = Cluster(tmp_path / "low", replicas=1, groups={"id": "g1", "slots": LOW})
    high = Cluster(tmp_path / "high", replicas=1, groups={"id": "g2", "slots": HIGH})
    file = tmp_path / "g2.backup"
    try:
        await second.start()
        async with second.client() as client:
            await client.put(OTHER, b"kept")
        ended = await commands.run("backup", file, endpoints=[second.url("n1")])
        assert (ended.code, "cluster test, group g2:2048-4095" in ended.err) == (0, True), ended
        restore = ("restore", file, "--node", "n1", "--config")
        ended = await commands.run(*restore, low.config_path)
        assert ended.code == EXIT_REFUSED
        assert "g2.backup is of group g2:2048-4095, and this file is of group g1" in ended.err
        assert (await commands.run(*restore, high.config_path)).code == 0
        await high.start()
        async with high.client() as client:
            found = await client.get(OTHER)
            assert found is not None
            assert found.value == b"kept"
    finally:
        for cluster in (second, low, high):
            cluster.end()


async def test_a_node_with_other_slots_gets_no_link_and_does_not_start_on_a_groups_data(
    tmp_path: Path,
) -> None:
    cluster = Cluster(tmp_path, groups={"id": "g1", "slots": LOW})
    cluster.groups["slots"] = HIGH
    wrong = cluster.write_config(tmp_path / "wrong.toml")
    try:
        await cluster.start()
        await cluster.stop("n3")
        node = cluster.nodes["n3"]
        node.start(wrong)
        assert await node.wait_exit() == EXIT_REFUSED
        assert "belongs to group g1:0-2047" in node.log()
        shutil.rmtree(cluster.data("n3"))
        node.start(wrong)
        told = "belongs to cluster 'test/g1:0-2047', not 'test/g1:2048-4095'"
        await wait_until(lambda: told in node.log(), "n3 says why it has no link")
        view = await cluster.status(await cluster.primary())
        assert view is not None
        assert "n3" not in view.in_sync
    finally:
        cluster.end()


async def test_a_running_node_trusts_another_groups_authority_once_its_file_names_it(
    tmp_path: Path,
) -> None:
    first = Cluster(tmp_path / "g1", replicas=1, groups={"id": "g1", "slots": LOW}, tls=True)
    high = {"id": "g2", "slots": HIGH, "first": [first.url("n1")]}
    second = Cluster(tmp_path / "g2", replicas=1, groups=high, tls=True)
    try:
        await asyncio.gather(first.start(), second.start())
        async with first.client() as client:
            await client.publish_groups(map_of(first, second))
        refused = await second.fetch("n1", "GET", f"/v1/kv/{OWN}")
        assert refused.status == 421, "it could not ask for the map"
        folders = [cluster.authority.directory for cluster in (first, second)]
        for name in ("ca.crt", "ca.crl"):
            both = b"".join((folder / name).read_bytes() for folder in folders)
            for folder in folders:
                (folder / name).write_bytes(both)
        for cluster in (first, second):
            cluster.nodes["n1"].signal(signal.SIGHUP)

        async def is_answered() -> bool:
            reply = await second.fetch("n1", "GET", "/v1/kv/orders%2F1")
            return reply.status == 404

        await wait_until(is_answered, "it knows the map, and asks the group that owns the key")
    finally:
        first.end()
        second.end()
