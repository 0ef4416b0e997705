"""Nodes that must not start, or must not join: each says why, and the others go on."""

from __future__ import annotations

import os
import shutil

import pytest

from tests.nodes.conftest import MakeCluster
from tests.support.cluster import Cluster, Writer, listening, wait_until
from tests.support.raw_http import kv

pytestmark = pytest.mark.slow

REFUSED = 78


async def ends(cluster: Cluster, node: str) -> tuple[int, str]:
    """Start a node that is to end by itself; return exit code and what it printed."""
    cluster.launch(node)
    code = await cluster.nodes[node].wait_exit()
    said = cluster.nodes[node].log()
    assert "Traceback" not in said, said
    return code, said


async def says(cluster: Cluster, node: str, text: str) -> None:
    await wait_until(lambda: text in cluster.nodes[node].log(), f"{node} says {text!r}")


@pytest.mark.long
async def test_another_clusters_data_is_refused(make_cluster: MakeCluster) -> None:
    one: Cluster = make_cluster("one")
    two: Cluster = make_cluster("two")
    await one.start()
    await one.fetch("n1", "PUT", kv("mine"), b"one")
    await one.stop()
    await two.start()
    await two.fetch("n1", "PUT", kv("mine"), b"two")
    await two.wait_converged()

    # One node of the second cluster gets the directory of its namesake in the first.
    victim = two.others(await two.primary())[0]
    await two.kill(victim)
    await two.wait_in_sync(*two.others(victim))
    shutil.rmtree(two.data(victim))
    shutil.copytree(one.data(victim), two.data(victim))
    two.launch(victim)

    async def ended() -> bool:
        status = await two.status(two.others(victim)[0])
        assert status is None or victim not in status.in_sync, "it counts as a copy of ours"
        return not two.nodes[victim].running

    await wait_until(ended, f"{victim} ends")
    assert await two.nodes[victim].wait_exit() == REFUSED
    said = two.nodes[victim].log()
    assert str(two.data(victim)) in said
    assert "cluster" in said
    for node in two.others(victim):
        assert (await two.fetch(node, "GET", kv("mine"))).body == b"two"


async def test_another_nodes_data_is_refused(make_cluster: MakeCluster) -> None:
    cluster: Cluster = make_cluster()
    await cluster.start()
    victim = cluster.others(await cluster.primary())[0]
    (donor,) = cluster.others(victim, await cluster.primary())
    await cluster.kill(victim, donor)
    shutil.rmtree(cluster.data(victim))
    shutil.copytree(cluster.data(donor), cluster.data(victim))
    code, said = await ends(cluster, victim)
    assert code == REFUSED
    assert f"belongs to node {donor}, not {victim}" in said


@pytest.mark.parametrize(
    "which",
    ["client", *(pytest.param(which, marks=pytest.mark.long) for which in ("peer", "raft"))],
)
async def test_a_busy_port_is_named(make_cluster: MakeCluster, which: str) -> None:
    cluster: Cluster = make_cluster()
    await cluster.start()
    victim = cluster.others(await cluster.primary())[0]
    await cluster.kill(victim)
    address = getattr(cluster.specs[victim], which)
    with listening(address):
        code, said = await ends(cluster, victim)
    assert code == 1  # the next start may find it free
    assert f"{address} (" in said
    assert "in use" in said
    assert f"stop it, or change `{which}` (or `{which}_bind`) of" in said
    await cluster.start(victim)
    await cluster.wait_converged()


async def test_without_a_secret_only_loopback_addresses_are_taken(
    make_cluster: MakeCluster,
) -> None:
    cluster: Cluster = make_cluster(secret="")
    await cluster.start()
    assert (await cluster.fetch("n1", "PUT", kv("a"), b"1")).status == 201
    await cluster.stop()
    open_address = "192.0.2.1:8201"
    text = cluster.config_path.read_text().replace(cluster.specs["n1"].peer, open_address)
    cluster.config_path.write_text(text)
    code, said = await ends(cluster, "n1")
    assert code == REFUSED
    assert "nodes.n1.peer" in said
    assert open_address in said
    assert "secret" in said


@pytest.mark.parametrize(
    ("broken", "named"),
    [
        ("[cluster\nname = 1", "is not TOML"),
        ('[cluster]\nname = "x"\nsecrett = "y"', "did you mean 'secret'"),
        ("", "is missing"),
        (None, "no such file"),
    ],
)
async def test_a_broken_configuration_file_is_named_with_the_field(
    make_cluster: MakeCluster, broken: str | None, named: str
) -> None:
    cluster: Cluster = make_cluster()
    if broken is None:
        cluster.config_path.unlink()
    else:
        cluster.config_path.write_text(broken)
    code, said = await ends(cluster, "n1")
    assert code == REFUSED
    assert str(cluster.config_path) in said
    assert named in said


async def test_a_node_that_the_file_does_not_know_is_refused(make_cluster: MakeCluster) -> None:
    cluster: Cluster = make_cluster()
    cluster.nodes["n1"].node = "n11"
    code, said = await ends(cluster, "n1")
    assert code == REFUSED
    assert "nodes.n11" in said
    assert "n1, n2, n3" in said or "did you mean 'n1'" in said


async def test_a_node_with_another_secret_never_joins_and_the_others_serve(
    make_cluster: MakeCluster,
) -> None:
    cluster: Cluster = make_cluster()
    await cluster.start()
    victim = cluster.others(await cluster.primary())[0]
    await cluster.stop(victim)
    path = cluster.write_config(
        cluster.directory / "wrong.toml", secret="a wrong secret, 32 bytes of it too"
    )
    cluster.configs[victim] = path
    others = cluster.others(victim)
    async with Writer(cluster, *others) as writer:
        cluster.launch(victim)
        await says(cluster, victim, "secret")
        for node in others:
            await says(cluster, node, "secret")
        await writer.progress(100)
        status = await cluster.wait_in_sync(*others)
        assert victim not in status.in_sync
        reply = await cluster.fetch(victim, "GET", f"{kv('w/0/00000000')}?timeout_ms=500")
        assert reply.status == 503
        await cluster.kill(victim)
        del cluster.configs[victim]
        await cluster.start(victim)
    assert not list(writer.unserved())
    await cluster.wait_converged()
    await writer.verify()


async def test_a_second_process_on_a_data_directory_is_refused(make_cluster: MakeCluster) -> None:
    cluster: Cluster = make_cluster()
    await cluster.start()
    second = make_cluster("second")
    second.config_path.write_text(cluster.config_path.read_text())
    code, said = await ends(second, "n1")
    assert code == REFUSED
    assert str(cluster.data("n1")) in said
    assert f"in use by process {cluster.nodes['n1'].pid}" in said
    assert (await cluster.fetch("n1", "GET", "/livez")).status == 200


async def test_a_data_directory_that_cannot_be_written_is_refused(
    make_cluster: MakeCluster,
) -> None:
    cluster: Cluster = make_cluster()
    cluster.data("n1").parent.mkdir(parents=True)
    cluster.data("n1").write_text("a file stands where the directory should")
    code, said = await ends(cluster, "n1")
    assert code == REFUSED
    assert str(cluster.data("n1")) in said


async def test_a_damaged_identity_is_refused(make_cluster: MakeCluster) -> None:
    cluster: Cluster = make_cluster()
    await cluster.start()
    victim = cluster.others(await cluster.primary())[0]
    await cluster.kill(victim)
    path = cluster.data(victim) / "identity.json"
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"joined": true', b'"joined": false'))
    code, said = await ends(cluster, victim)
    assert code == REFUSED
    assert str(path) in said
    os.truncate(path, 0)
    code, said = await ends(cluster, victim)
    assert code == REFUSED
    assert str(path) in said
    path.write_bytes(content)
    await cluster.start(victim)
    await cluster.wait_converged()


@pytest.mark.long
async def test_a_disk_put_back_to_an_older_state_never_makes_a_primary_that_lacks_writes(
    make_cluster: MakeCluster,
) -> None:
    """A directory restored from an old copy: same ids, fewer entries than were acknowledged."""
    cluster: Cluster = make_cluster()
    await cluster.start()
    primary = await cluster.primary()
    victim = cluster.others(primary)[0]
    await cluster.stop(victim)
    copy = cluster.directory / "copy"
    shutil.copytree(cluster.data(victim), copy)
    await cluster.start(victim)
    async with Writer(cluster) as writer:
        await writer.progress(100)
    await cluster.wait_converged()
    await cluster.kill(victim)
    await cluster.wait_in_sync(*cluster.others(victim))
    shutil.rmtree(cluster.data(victim))
    shutil.copytree(copy, cluster.data(victim))
    cluster.launch(victim)
    process = cluster.nodes[victim]

    async def settled() -> bool:
        status = await cluster.status(primary)
        return not process.running or (status is not None and victim in status.in_sync)

    # It is refused if the others were told in time how far it was; else it is caught up as any
    # learner: it was not in sync any more.
    await wait_until(settled, "it is refused, or caught up")
    if process.running:
        await cluster.wait_converged()
    else:
        assert process.exit_code == REFUSED
        assert "remembers that this node had reached" in process.log()
    await writer.verify()
