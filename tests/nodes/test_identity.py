"""A process that is not the node that it says it is, or not of this cluster, harms nobody."""

from __future__ import annotations

import shutil

import msgspec
import pytest

from tests.nodes.conftest import MakeCluster
from tests.support.cluster import Cluster, Writer, make_spec, wait_until
from tests.support.raw_http import kv

pytestmark = pytest.mark.slow

REFUSED = 78


def copy_of(make_cluster: MakeCluster, original: Cluster, *nodes: str) -> Cluster:
    """Copy a stopped cluster's directories into one with addresses of its own."""
    copy: Cluster = make_cluster("copy")
    for node in nodes or tuple(original.specs):
        shutil.copytree(original.data(node), copy.data(node))
    return copy


@pytest.mark.long
async def test_a_copy_of_a_whole_cluster_ends_and_the_original_notices_nothing_but_that(
    make_cluster: MakeCluster,
) -> None:
    original: Cluster = make_cluster()
    await original.start()
    await original.fetch("n1", "PUT", kv("a"), b"1")
    await original.stop()
    copy = copy_of(make_cluster, original)
    await original.start()
    before = await original.wait_in_sync()
    async with Writer(original) as writer:
        copy.launch()
        for node in copy.specs:
            assert await copy.nodes[node].wait_exit() == REFUSED
            said = copy.nodes[node].log()
            assert f"two processes run as node {node}" in said
            assert f"If {copy.data(node)} is the copy" in said
            assert "onecopy load" in said
        await writer.progress(50)
    await original.wait_converged()
    await writer.verify()
    after = await original.wait_in_sync()
    assert (after.epoch, after.version) == (before.epoch, before.version)

    async def told_by_all() -> bool:
        statuses = [await original.status(node) for node in original.specs]
        return all(
            any(f"as node {node}" in text for text in status.warnings)
            for status in statuses
            if status is not None
            for node in copy.specs
        )

    await wait_until(told_by_all, "every node shows what was shut out")
    assert "two processes run as node n1" in original.nodes["n1"].log()


@pytest.mark.long
async def test_a_copy_that_lists_the_originals_addresses_gets_no_link(
    make_cluster: MakeCluster,
) -> None:
    """One node of the copy runs with ports of its own, and its file names the others' real ones."""
    original: Cluster = make_cluster()
    await original.start()
    await original.stop()
    copy = copy_of(make_cluster, original, "n3")
    mixed = {**original.specs, "n3": copy.specs["n3"]}
    copy.specs = mixed
    copy.write_config()
    await original.start()
    before = await original.wait_in_sync()
    copy.launch("n3")
    assert await copy.nodes["n3"].wait_exit() == REFUSED
    after = await original.wait_in_sync()
    assert (after.epoch, after.version) == (before.epoch, before.version)


async def test_a_stray_node_of_another_cluster_gets_no_link(make_cluster: MakeCluster) -> None:
    """Same name, same secret, other data: only the cluster id tells them apart."""
    ours: Cluster = make_cluster("ours")
    theirs: Cluster = make_cluster("theirs")
    await ours.start()
    await theirs.start()
    await theirs.stop()
    before = await ours.wait_in_sync()
    stray = theirs.nodes["n3"]
    theirs.specs = {
        node: msgspec.structs.replace(ours.specs[node], data=spec.data) if node != "n3" else spec
        for node, spec in theirs.specs.items()
    }
    theirs.write_config()
    async with Writer(ours) as writer:
        theirs.launch("n3")
        await wait_until(lambda: "belongs to another cluster" in stray.log(), "the stray is told")
        await wait_until(
            lambda: any("belongs to another cluster" in ours.nodes[n].log() for n in ours.specs),
            "the others say so",
        )
        await writer.progress(50)
    assert not list(writer.unserved())
    await ours.wait_converged()
    await writer.verify()
    after = await ours.wait_in_sync()
    assert (after.epoch, after.version) == (before.epoch, before.version)


def copy_of_one(make_cluster: MakeCluster, original: Cluster, node: str, name: str) -> Cluster:
    """Copy a stopped node's directory, for addresses of its own beside the others' real ones."""
    copy: Cluster = make_cluster(name)
    role = original.specs[node].role
    copy.specs = {**original.specs, node: make_spec(role, copy.directory / "data" / node)}
    copy._add_process(node)
    shutil.copytree(original.data(node), copy.data(node))
    copy.write_config()
    return copy


@pytest.mark.long
@pytest.mark.parametrize("node", ["n2", "w1"])
async def test_two_copies_of_one_node_end_both(make_cluster: MakeCluster, node: str) -> None:
    original: Cluster = make_cluster(replicas=2, witnesses=1)
    await original.start()
    await original.stop(node)
    copies = [copy_of_one(make_cluster, original, node, name) for name in ("copy", "another")]
    await original.start(node)
    before = await original.wait_in_sync()
    async with Writer(original) as writer:
        for copy in copies:
            copy.launch(node)
        for copy in copies:
            assert await copy.nodes[node].wait_exit() == REFUSED
            assert f"two processes run as node {node}" in copy.nodes[node].log()
        await writer.progress(50)
    await original.wait_converged()
    await writer.verify()
    after = await original.wait_in_sync()
    assert (after.epoch, after.version) == (before.epoch, before.version)


@pytest.mark.long
async def test_a_copy_that_has_taken_the_place_of_a_dead_node_keeps_it(
    make_cluster: MakeCluster,
) -> None:
    """That is how a node moves to another machine; the original is the second one then."""
    cluster: Cluster = make_cluster()
    await cluster.start()
    await cluster.stop("n2")
    moved = copy_of_one(make_cluster, cluster, "n2", "moved")
    moved.launch("n2")
    said = moved.nodes["n2"]
    await wait_until(lambda: "agreed to this node's addresses" in said.log(), "it has moved")
    cluster.launch("n2")
    assert await cluster.nodes["n2"].wait_exit() == REFUSED
    assert "two processes run as node n2" in cluster.nodes["n2"].log()
    assert said.running
    cluster.nodes["n2"], cluster.specs["n2"] = said, moved.specs["n2"]
    await cluster.wait_converged()
