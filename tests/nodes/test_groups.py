"""Two groups of three real nodes each: what happens in one is nothing to the other."""

from __future__ import annotations

import asyncio
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cluster.client.aio import AsyncClient
from cluster.client.grouped import AsyncGroupedClient
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
        async with AsyncGroupedClient(second.url("n2")) as deployment:
            for key in (OWN, OTHER, "jobs"):
                await deployment.put(key, key)
            assert await (await deployment.of("orders/")).get(OWN) is not None
            assert await other.get(OTHER) == await deployment.get(OTHER)
            assert (await deployment.delete(OWN)).deleted
            # Any node of any group passes on what is another's, for a client of one cluster too.
            await other.put(OWN, b"relayed")
            assert (await deployment.get(OWN)) == (await other.get(OWN))
            ended = await commands.run("get", OWN, endpoints=[second.url("n1")])
            assert (ended.code, ended.out) == (0, b"relayed"), ended
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
