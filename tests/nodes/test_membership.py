"""Nodes that come and go, on real processes: what a removal may cost (rule M1), growth from one
node and back, and that a removed node stays out.
"""

from __future__ import annotations

import shutil

import pytest

from tests.nodes.conftest import MakeCluster
from tests.support.cluster import Cluster, Writer, make_spec, wait_until
from tests.support.commands import run
from tests.support.raw_http import Reply, kv

pytestmark = pytest.mark.slow

REFUSED = 78


async def remove(cluster: Cluster, asked: str, node: str, query: str = "") -> Reply:
    """Ask a node to remove one; wait while another removal is under way."""

    async def answered() -> Reply | None:
        reply = await cluster.fetch(asked, "DELETE", f"/v1/cluster/nodes/{node}{query}")
        waits = reply.status == 409 and reply.code == "membership_pending"
        return None if waits else reply

    return await wait_until(answered, f"{asked} answers about {node}")


async def votes(cluster: Cluster, asked: str, **expected: bool) -> None:
    async def are_so() -> bool:
        status = await cluster.status(asked)
        return status is not None and expected == {
            node: state.votes for node, state in status.nodes.items()
        }

    await wait_until(are_so, f"{asked} says that the votes are {expected}")


async def serves(cluster: Cluster, *nodes: str) -> None:
    """Wait until a write at one of them is acknowledged."""

    async def written() -> bool:
        for node in nodes:
            try:
                reply = await cluster.fetch(node, "PUT", f"{kv('alive')}?timeout_ms=1000", b"1")
            except (OSError, EOFError, TimeoutError):
                continue
            if reply.status in {200, 201}:
                return True
        return False

    await wait_until(written, f"{nodes} serve")


async def ends_refused(cluster: Cluster, node: str) -> str:
    assert await cluster.nodes[node].wait_exit() == REFUSED, cluster.nodes[node].tail()
    return cluster.nodes[node].log()


def add(cluster: Cluster, node: str, role: str = "replica") -> None:
    """Write another node into the configuration file."""
    cluster.specs[node] = make_spec(role, cluster.directory / "data" / node)
    cluster._add_process(node)
    cluster.write_config()


async def test_while_one_is_dead_the_others_stay(make_cluster: MakeCluster) -> None:
    cluster: Cluster = make_cluster()
    await cluster.start()
    primary = await cluster.primary()
    dead, other = cluster.others(primary)
    await cluster.kill(dead)
    for asked in (primary, other):
        reply = await cluster.fetch(asked, "DELETE", f"/v1/cluster/nodes/{other}")
        assert (reply.status, reply.code) == (409, "unsafe_removal"), reply
        assert f"`onecopy remove {dead}`" in reply.json["detail"]
        assert "--force" in reply.json["detail"]
    status = await cluster.status(primary)
    assert status is not None
    assert set(status.nodes) == {primary, dead, other}
    assert "removal of" in cluster.nodes[primary].log()
    assert "127.0.0.1" in cluster.nodes[primary].log()

    assert (await remove(cluster, other, dead)).status == 200
    await votes(cluster, primary, **{primary: True, other: True})
    assert (await remove(cluster, other, dead)).status == 200, "to repeat it is harmless"
    assert (await remove(cluster, other, "n9")).status == 404
    await serves(cluster, other)


async def test_a_paused_node_counts_as_dead(make_cluster: MakeCluster) -> None:
    cluster: Cluster = make_cluster(replicas=2, witnesses=1)
    await cluster.start()
    primary = await cluster.primary()
    (backup,) = cluster.others(primary)
    cluster.nodes["w1"].pause()
    reply = await cluster.fetch(primary, "DELETE", f"/v1/cluster/nodes/{backup}")
    assert (reply.status, reply.code) == (409, "unsafe_removal"), reply
    assert "`onecopy remove w1`" in reply.json["detail"]
    cluster.nodes["w1"].resume()


@pytest.mark.long
async def test_one_after_the_other_down_to_one_and_everyone_removed_ends(
    make_cluster: MakeCluster,
) -> None:
    """The fuzzer's story: whoever is removed from a healthy cluster, the rest serves."""
    cluster: Cluster = make_cluster(replicas=3, witnesses=2)
    await cluster.start()
    primary = await cluster.primary()
    left = [node for node in cluster.specs if node != primary]
    for node in list(left):
        reply = await remove(cluster, left[-1], node)
        assert reply.status == 200, reply
        left.remove(node)
        await ends_refused(cluster, node)
        await serves(cluster, primary)
        if not left:
            break
    await votes(cluster, primary, **{primary: True})
    await cluster.kill(primary)
    cluster.launch(primary)
    await serves(cluster, primary)


async def test_two_removals_in_a_row_leave_a_cluster(make_cluster: MakeCluster) -> None:
    cluster: Cluster = make_cluster()
    await cluster.start()
    primary = await cluster.primary()
    one, two = cluster.others(primary)
    replies = [
        await cluster.fetch(primary, "DELETE", f"/v1/cluster/nodes/{node}") for node in (one, two)
    ]
    assert replies[0].status == 200
    assert replies[1].status == 200 or replies[1].code == "membership_pending"
    await serves(cluster, primary)


@pytest.mark.parametrize("by_cli", [False, True], ids=["api", "cli"])
async def test_by_force_it_is_done_and_undone_by_removing_the_dead(
    make_cluster: MakeCluster, by_cli: bool
) -> None:
    cluster: Cluster = make_cluster()
    await cluster.start()
    primary = await cluster.primary()
    dead, other = cluster.others(primary)
    await cluster.kill(dead)
    if by_cli:
        endpoints = (cluster.url(primary),)
        refused = await run("remove", other, "--yes", endpoints=endpoints)
        assert refused.code != 0
        assert "--force" in refused.err
        arguments = ("remove", other, "--force", "--yes-remove", other)
        ended = await run(*arguments, endpoints=endpoints)
        assert ended.code == 0, ended
        assert "can be agreed until" in ended.err, "it has said what may be lost"
    else:
        reply = await remove(cluster, primary, other, f"?force={other}")
        assert reply.status == 200, reply
    # Its vote is still needed, so it stays, and answers nothing from its own data.
    reply = await cluster.fetch(other, "GET", f"{kv('a')}?consistency=stale&timeout_ms=200")
    assert reply.status == 503, reply
    assert "removed" in reply.json["detail"]
    assert cluster.nodes[other].running
    forced = await cluster.fetch(primary, "DELETE", f"/v1/cluster/nodes/{dead}?force={dead}")
    assert forced.status == 200, forced
    await ends_refused(cluster, other)
    await votes(cluster, primary, **{primary: True})
    await serves(cluster, primary)


@pytest.mark.long
async def test_one_grows_to_three_and_shrinks_again(make_cluster: MakeCluster) -> None:
    cluster: Cluster = make_cluster(replicas=1)
    await cluster.start()
    await serves(cluster, "n1")
    names = ["n1"]
    for node, role in (("n2", "replica"), ("w1", "witness"), ("n3", "replica"), ("n4", "replica")):
        add(cluster, node, role)
        cluster.launch(node)
        await cluster.wait_started(node)
        names.append(node)
        await votes(cluster, "n1", **dict.fromkeys(names, True))
    await cluster.wait_in_sync("n1", "n2", "n3", "n4")
    await cluster.kill("n1")
    primary = await cluster.primary(besides="n1")
    await serves(cluster, primary)
    cluster.launch("n1")
    await cluster.wait_in_sync("n1", "n2", "n3", "n4")
    for node in (name for name in tuple(names) if name != primary):
        assert (await remove(cluster, primary, node)).status == 200
        await ends_refused(cluster, node)
    await votes(cluster, primary, **{primary: True})
    await serves(cluster, primary)


async def either_says(cluster: Cluster, text: str) -> None:
    """Wait until n1 has said it, or n2 has started: so far or further."""

    def said() -> bool:
        logs = [cluster.nodes[node].log() for node in ("n1", "n2")]
        return text in logs[0] or "started: http" in logs[1]

    await wait_until(said, f"n1 says {text!r}")


@pytest.mark.parametrize(
    "killed", ["n1", *(pytest.param(node, marks=pytest.mark.long) for node in ("n2", "both"))]
)
async def test_growth_from_one_survives_kills_in_the_middle(
    make_cluster: MakeCluster, killed: str
) -> None:
    cluster: Cluster = make_cluster(replicas=1)
    await cluster.start()
    add(cluster, "n2")
    victims = ("n1", "n2") if killed == "both" else (killed,)
    cluster.launch("n2")
    for text in ("joined the cluster", "started: http", "view: epoch"):
        await either_says(cluster, text)
        await cluster.kill(*victims)
        cluster.launch(*victims)
    await votes(cluster, "n1", n1=True, n2=True)
    await cluster.wait_in_sync("n1", "n2")
    await serves(cluster, "n1")


async def test_a_node_removed_while_it_was_away_ends_and_answers_nothing(
    make_cluster: MakeCluster,
) -> None:
    cluster: Cluster = make_cluster()
    await cluster.start()
    primary = await cluster.primary()
    gone, other = cluster.others(primary)
    await cluster.fetch(primary, "PUT", kv("a"), b"old")
    await cluster.wait_converged()
    await cluster.kill(gone)
    assert (await remove(cluster, primary, gone)).status == 200
    await cluster.fetch(primary, "PUT", kv("a"), b"new")

    cluster.launch(gone)
    answers = set()
    while cluster.nodes[gone].running:
        reply = await cluster.try_fetch(gone, f"{kv('a')}?consistency=stale&timeout_ms=50")
        if reply is not None:
            answers.add((reply.status, reply.body if reply.status == 200 else b""))
    assert answers <= {(503, b"")}, answers
    assert "has been removed" in await ends_refused(cluster, gone)

    await cluster.kill(primary, other)
    cluster.launch(gone)
    said = await ends_refused(cluster, gone)  # It knows by itself now.
    assert "new id" in said


@pytest.mark.long
async def test_a_lost_disk_as_the_operators_page_says(make_cluster: MakeCluster) -> None:
    cluster: Cluster = make_cluster()
    await cluster.start()
    primary = await cluster.primary()
    lost, other = cluster.others(primary)
    await cluster.kill(lost)
    directory = cluster.data(lost)
    for path in sorted(directory.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    cluster.launch(lost)
    assert f"onecopy remove {lost}" in await ends_refused(cluster, lost)
    assert list(directory.iterdir()) == [], "a refused start leaves nothing behind"

    assert (await remove(cluster, primary, lost)).status == 200
    cluster.launch(lost)  # As a supervisor would.
    await ends_refused(cluster, lost)
    assert list(directory.iterdir()) == []

    renamed(cluster, lost, "n4")
    cluster.launch("n4")
    await cluster.wait_in_sync(primary, other, "n4")
    await votes(cluster, primary, **{primary: True, other: True, "n4": True})


def renamed(cluster: Cluster, old: str, new: str) -> None:
    """Rename [nodes.OLD]; addresses and data directory stay."""
    cluster.specs = {new if node == old else node: item for node, item in cluster.specs.items()}
    cluster._add_process(new)
    cluster.write_config()


@pytest.mark.long
async def test_a_newcomer_waits_while_the_cluster_knows_no_view(make_cluster: MakeCluster) -> None:
    """It would begin a cluster of its own beside the one that it was to join, and stay outside."""
    cluster: Cluster = make_cluster(replicas=3)
    await cluster.start()
    await cluster.kill("n1", "n2", "n3")
    add(cluster, "n4")
    # Its file names one other node, and that has no majority yet.
    newcomers = cluster.write_config(cluster.directory / "newcomers.toml")
    text = newcomers.read_text()
    for node in ("n2", "n3"):
        text = text.replace(text[text.index(f"[nodes.{node}]") :].split("\n[", 1)[0] + "\n", "")
    newcomers.write_text(text)
    cluster.configs["n4"] = newcomers
    cluster.launch("n1", "n4")
    await wait_until(lambda: "waiting for ['n1']" in cluster.nodes["n4"].log(), "n4 waits for n1")
    await cluster.wait_started("n1")
    linked = "n4: no replicate link to n1"  # which is for members, so n1 has been met
    await wait_until(lambda: linked in cluster.nodes["n4"].log(), "n4 has met n1")
    said = "waiting for ['n1']"
    asked = cluster.nodes["n4"].log().count(said)
    await wait_until(lambda: cluster.nodes["n4"].log().count(said) > asked, "n4 waits still")
    assert " started: http" not in cluster.nodes["n4"].log()
    cluster.launch("n2", "n3")
    await votes(cluster, "n1", n1=True, n2=True, n3=True, n4=True)
    await cluster.wait_started("n4")
    await cluster.wait_in_sync()


@pytest.mark.long
async def test_a_node_removed_while_it_stood_still_ends(make_cluster: MakeCluster) -> None:
    """It runs, and hears of its removal from nobody: its links are refused when it wakes."""
    cluster: Cluster = make_cluster(replicas=3)
    await cluster.start()
    primary = await cluster.primary()
    removed, other = cluster.others(primary)
    cluster.nodes[removed].pause()
    await cluster.wait_in_sync(primary, other)
    assert (await remove(cluster, primary, removed, f"?force={removed}")).status == 200
    await votes(cluster, primary, **{primary: True, other: True})
    cluster.nodes[removed].resume()
    assert "removed" in await ends_refused(cluster, removed)
    await serves(cluster, primary)


@pytest.mark.long
async def test_a_lost_disk_refused_by_a_node_without_a_view_leaves_nothing_behind(
    make_cluster: MakeCluster,
) -> None:
    """Else the new id that it is told to take would be refused for what lies there."""
    cluster: Cluster = make_cluster(replicas=3)
    await cluster.start()
    await cluster.kill("n1", "n2", "n3")
    shutil.rmtree(cluster.data("n2"))
    cluster.launch("n2", "n3")  # which alone has no majority, and knows no view
    assert "known with another data directory" in await ends_refused(cluster, "n2")
    assert list(cluster.data("n2").iterdir()) == []

    cluster.launch("n1")
    await serves(cluster, "n1", "n3")
    assert (await remove(cluster, "n1", "n2")).status == 200
    renamed(cluster, "n2", "n4")
    cluster.launch("n4")
    await cluster.wait_in_sync("n1", "n3", "n4")


@pytest.mark.long
async def test_a_node_that_waits_says_what_for(make_cluster: MakeCluster) -> None:
    cluster: Cluster = make_cluster(replicas=3)
    cluster.launch("n2")

    async def warned(*texts: str) -> None:
        async def said() -> bool:
            status = await cluster.status("n2")
            log = cluster.nodes["n2"].log()
            found = () if status is None else status.warnings
            return any(all(text in line for text in texts) for line in found) and texts[0] in log

        await wait_until(said, f"the status of n2 says {texts}")

    await warned("waiting for ['n1', 'n3']", "n2: ", "; n1: ", "Cannot connect to host")
    reply = await cluster.fetch("n2", "PUT", f"{kv('a')}?timeout_ms=100", b"1")
    assert reply.status == 503
    assert "waiting for ['n1', 'n3']" in reply.json["detail"]
    shown = await run("status", endpoints=(cluster.url("n2"),))
    assert "waiting for ['n1', 'n3']" in shown.out.decode()

    cluster.launch("n1", "n3")
    await cluster.wait_in_sync()
    await cluster.kill("n1", "n2", "n3")
    cluster.launch("n2")
    await warned("consensus reaches n2 of n1, n2, n3", "; n1: ", "; n3: ")


async def test_the_last_node_and_unknown_ones_are_not_removed(make_cluster: MakeCluster) -> None:
    cluster: Cluster = make_cluster(replicas=1)
    await cluster.start()
    for query in ("", "?force=n1"):
        reply = await cluster.fetch("n1", "DELETE", f"/v1/cluster/nodes/n1{query}")
        assert (reply.status, reply.code) == (409, "is_primary"), reply
    for odd in (
        "n9",
        "%20",
        "N1",
        "n1%20",
        "%0D%0Aevil",
        "n%C3%A9",
        "..",
        "n" * 500,
        "%FF",
        "a%2Fb",
    ):
        for query in ("", f"?force={odd}"):
            reply = await cluster.fetch("n1", "DELETE", f"/v1/cluster/nodes/{odd}{query}")
            assert reply.status in {400, 404}, reply
            assert reply.json["outcome"] == "not_applied"
    reply = await cluster.fetch("n1", "DELETE", "/v1/cluster/nodes/")
    assert reply.status == 404
    await serves(cluster, "n1")


@pytest.mark.long
async def test_a_client_follows_a_cluster_that_moves_away_from_the_node_it_was_given(
    make_cluster: MakeCluster,
) -> None:
    """It has met one node, and nothing fails while others come, until that one goes."""
    cluster: Cluster = make_cluster(replicas=1)
    await cluster.start()
    async with Writer(cluster) as writer:
        await writer.progress(10)
        for node in ("n2", "n3"):
            add(cluster, node)
            cluster.launch(node)
            await cluster.wait_started(node)
        await votes(cluster, "n1", n1=True, n2=True, n3=True)
        await cluster.wait_in_sync("n1", "n2", "n3")
        async with cluster.client("n2") as client:
            await client.handover("n2")
        await cluster.primary(besides="n1")
        assert (await remove(cluster, "n2", "n1")).status == 200
        await ends_refused(cluster, "n1")
        del cluster.specs["n1"]
        await writer.progress(50)
    await cluster.wait_converged()
    await writer.verify()


@pytest.mark.long
async def test_the_node_that_is_left_answers_stale_reads_until_it_hears_of_its_removal(
    make_cluster: MakeCluster,
) -> None:
    """Restarted alone it cannot know that it was removed, and a stale read promises no age."""
    cluster: Cluster = make_cluster(replicas=3)
    await cluster.start()
    primary = await cluster.primary()
    left, other = cluster.others(primary)
    assert (await cluster.fetch(primary, "PUT", kv("a"), b"old")).status == 201
    await cluster.wait_converged()
    await cluster.kill(left)
    assert (await remove(cluster, primary, left)).status == 200
    await votes(cluster, primary, **{primary: True, other: True})
    await cluster.kill(primary, other)
    cluster.launch(left)

    async def read() -> bool:
        reply = await cluster.try_fetch(left, f"{kv('a')}?consistency=stale&timeout_ms=100")
        return reply is not None and (reply.status, reply.body) == (200, b"old")

    await wait_until(read, "the node that is left answers a stale read")
    for asked in ("", "consistency=stale&max_staleness_ms=3600000&", "consistency=confirmed&"):
        reply = await cluster.fetch(left, "GET", f"{kv('a')}?{asked}timeout_ms=100")
        assert reply.status == 503, reply
    cluster.launch(primary, other)
    await ends_refused(cluster, left)
