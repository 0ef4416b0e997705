"""The addresses of one node, or of all, change: by editing the configuration."""

from __future__ import annotations

import secrets
from pathlib import Path

import msgspec
import pytest

from datapath.operations import ClusterStatus
from tests.nodes.conftest import MakeCluster
from tests.support.cluster import Cluster, NodeSpec, make_spec, wait_until
from tests.support.ports import free_port
from tests.support.raw_http import kv
from tests.support.toxiproxy import ToxiproxyServer

pytestmark = pytest.mark.slow


def move(cluster: Cluster, node: str, *channels: str) -> NodeSpec:
    """Give a node new addresses in the file; return what it was."""
    old = cluster.specs[node]
    fresh = make_spec(old.role, old.data)
    changed = {channel: getattr(fresh, channel) for channel in channels}
    cluster.specs[node] = msgspec.structs.replace(old, **changed)
    cluster.write_config()
    return old


def swap(cluster: Cluster, one: str, other: str) -> None:
    """Exchange the addresses of two nodes in the file; each keeps its directory."""
    first, second = cluster.specs[one], cluster.specs[other]
    cluster.specs[one] = msgspec.structs.replace(second, data=first.data)
    cluster.specs[other] = msgspec.structs.replace(first, data=second.data)
    cluster.write_config()


async def agreed(cluster: Cluster, *nodes: str) -> None:
    """Wait until every running node shows the addresses of the file, all in sync, all voting."""

    def is_right(status: ClusterStatus | None) -> bool:
        return (
            status is not None
            and set(status.in_sync) == set(cluster.replicas)
            and all(
                status.nodes[node].client == spec.client
                and status.nodes[node].votes
                and status.nodes[node].state != "unreachable"
                for node, spec in cluster.specs.items()
            )
            and not status.warnings
        )

    async def all_right() -> bool:
        cluster.check_alive()
        return all([is_right(await cluster.status(node)) for node in nodes or cluster.running])

    await wait_until(all_right, "all nodes show the new addresses")


async def has_a_vote(cluster: Cluster, node: str, other: str) -> None:
    """Kill a third node: with the moved one the rest is a majority, or nothing is acknowledged."""
    await cluster.kill(other)
    primary = await cluster.primary()
    await cluster.wait_in_sync(*cluster.others(other))
    assert (await cluster.fetch(primary, "PUT", kv("after"), b"2")).status in (200, 201)
    assert node in cluster.running


@pytest.mark.parametrize(
    "node", [pytest.param(node, marks=pytest.mark.long) for node in ("n1", "n2", "n3")]
)
async def test_one_node_moves_and_the_others_hear_of_it_without_a_restart(
    make_cluster: MakeCluster, node: str
) -> None:
    cluster: Cluster = make_cluster()
    await cluster.start()
    await cluster.stop(node)
    move(cluster, node, "client", "peer", "raft")
    await cluster.start(node)
    await agreed(cluster)
    await has_a_vote(cluster, node, "n3" if node != "n3" else "n1")


@pytest.mark.long
@pytest.mark.parametrize(
    "channel",
    [
        pytest.param("client", marks=pytest.mark.long),
        pytest.param("peer", marks=pytest.mark.long),
        "raft",
    ],
)
async def test_one_address_of_a_node_changes_alone(make_cluster: MakeCluster, channel: str) -> None:
    cluster: Cluster = make_cluster()
    await cluster.start()
    await cluster.stop("n2")
    move(cluster, "n2", channel)
    await cluster.start("n2")
    await agreed(cluster)


@pytest.mark.long
async def test_all_nodes_move_at_once(make_cluster: MakeCluster) -> None:
    cluster: Cluster = make_cluster()
    await cluster.start()
    assert (await cluster.fetch("n1", "PUT", kv("a"), b"1")).status == 201
    await cluster.stop()
    for node in cluster.specs:
        move(cluster, node, "client", "peer", "raft")
    await cluster.start()
    await agreed(cluster)
    assert (await cluster.fetch("n1", "GET", kv("a"))).body == b"1"
    await cluster.stop()
    await cluster.start()  # the new addresses have been agreed upon
    await agreed(cluster)


async def test_nodes_are_reached_by_other_addresses_than_they_listen_on_by_name_and_by_ipv6(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    """n1 is behind something that forwards ports, and listens on every interface; n2 has a host
    name, n3 an IPv6 address.
    """
    cluster: Cluster = make_cluster(secret=secrets.token_hex(32))
    cluster.tls_section = {"insecure": True}
    bound = {f"{channel}_bind": f"0.0.0.0:{free_port()}" for channel in ("client", "peer", "raft")}
    with ToxiproxyServer(tmp_path / "toxiproxy.log") as server:
        reached = {}
        for channel in ("client", "peer", "raft"):
            upstream = bound[f"{channel}_bind"].replace("0.0.0.0", "127.0.0.1")
            reached[channel] = server.add(channel, upstream).listen
        cluster.specs["n1"] = msgspec.structs.replace(cluster.specs["n1"], **bound, **reached)
        for node, host in (("n2", "localhost"), ("n3", "[::1]")):
            spec = cluster.specs[node]
            cluster.specs[node] = msgspec.structs.replace(
                spec,
                **{
                    channel: getattr(spec, channel).replace("127.0.0.1", host)
                    for channel in ("client", "peer", "raft")
                },
            )
        cluster.write_config()
        await cluster.start()
        await agreed(cluster)
        for node in cluster.specs:
            assert (await cluster.fetch(node, "PUT", kv(node), b"1")).status == 201
        primary = await cluster.primary()
        if primary != "n1":
            body = b'{"to": "n1"}'
            reply = await cluster.fetch(
                primary, "POST", "/v1/cluster/handover", body, {"Content-Type": "application/json"}
            )
            assert reply.status == 200, reply
        await agreed(cluster)
        assert await cluster.primary() == "n1"
        for node in cluster.specs:
            assert (await cluster.fetch("n3", "GET", kv(node))).body == b"1"
        await cluster.kill("n1")
        assert await cluster.primary() in ("n2", "n3")
        await cluster.start("n1")
        await agreed(cluster)


@pytest.mark.long
async def test_two_nodes_swap_their_addresses(make_cluster: MakeCluster) -> None:
    cluster: Cluster = make_cluster(witnesses=1, replicas=2)
    await cluster.start()
    assert (await cluster.fetch("n1", "PUT", kv("a"), b"1")).status == 201
    await cluster.stop()
    swap(cluster, "n1", "n2")
    await cluster.start()
    await agreed(cluster)
    assert (await cluster.fetch("n2", "GET", kv("a"))).body == b"1"


@pytest.mark.long
async def test_a_node_is_moved_by_command_and_its_file_has_to_follow(
    make_cluster: MakeCluster,
) -> None:
    cluster: Cluster = make_cluster()
    await cluster.start()
    old = move(cluster, "n2", "client", "peer", "raft")
    new = cluster.specs["n2"]
    async with cluster.client("n1", "n3") as client:
        await client.move("n2", client=new.client, peer=new.peer, raft=new.raft)
    said = cluster.nodes["n2"]
    await wait_until(lambda: "the agreed addresses of node n2 differ" in said.log(), "n2 warns")

    # It runs on where it was, and is not thrown out; started so again, it is refused.
    await cluster.stop("n2")
    cluster.specs["n2"] = old
    cluster.write_config()
    cluster.launch("n2")
    assert await said.wait_exit() == 78
    assert f'nodes.n2.peer = "{new.peer}"' in said.log()
    assert f"onecopy member move n2 --client {old.client}" in said.log()

    cluster.specs["n2"] = new
    cluster.write_config()
    await cluster.start("n2")
    await agreed(cluster)
    await has_a_vote(cluster, "n2", "n3")


async def test_no_node_is_moved_to_where_another_listens(make_cluster: MakeCluster) -> None:
    cluster: Cluster = make_cluster()
    await cluster.start()
    two, three = cluster.specs["n2"], cluster.specs["n3"]
    before = await cluster.status("n1")
    assert before is not None
    for body, says in (
        (f'{{"peer": "{three.peer}"}}', f"{three.peer} is the peer address of n3"),
        (f'{{"raft": "{three.client}"}}', f"{three.client} is the client address of n3"),
        (f'{{"raft": "{two.peer}"}}', f"{two.peer} is the peer address of n2"),
    ):
        reply = await cluster.fetch(
            "n1",
            "PATCH",
            "/v1/cluster/nodes/n2",
            body.encode(),
            {"Content-Type": "application/json"},
        )
        assert (reply.status, reply.code) == (409, "refused"), reply
        assert says in reply.json["detail"]
    after = await cluster.status("n1")
    assert after is not None
    assert after.version == before.version, "nothing was agreed"


@pytest.mark.long
async def test_two_swap_beside_one_that_runs_and_one_that_joins(make_cluster: MakeCluster) -> None:
    cluster: Cluster = make_cluster()
    await cluster.start()
    assert (await cluster.fetch("n1", "PUT", kv("a"), b"1")).status == 201
    await cluster.stop("n2", "n3")
    swap(cluster, "n2", "n3")
    cluster.specs["n4"] = make_spec("replica", cluster.directory / "data" / "n4")
    cluster._add_process("n4")
    cluster.write_config()
    cluster.launch("n2", "n4", "n3")
    await cluster.wait_started("n4")
    await cluster.wait_in_sync()
    assert (await cluster.fetch("n4", "GET", kv("a"))).body == b"1"
    await has_a_vote(cluster, "n2", "n1")


@pytest.mark.long
async def test_if_half_of_the_nodes_move_at_once_the_others_have_to_read_the_file(
    make_cluster: MakeCluster,
) -> None:
    """Those who run know neither the new addresses nor a majority that could agree on them."""
    cluster: Cluster = make_cluster(replicas=3, witnesses=1)
    await cluster.start()
    assert (await cluster.fetch("n1", "PUT", kv("a"), b"1")).status == 201
    await cluster.stop("n2", "n3")
    swap(cluster, "n2", "n3")
    cluster.launch("n2", "n3")
    said = cluster.nodes["n2"]
    await wait_until(lambda: "a majority of nodes that know its addresses" in said.log(), "n2 says")
    await cluster.kill("n1", "w1")
    cluster.launch("n1", "w1")
    await cluster.wait_in_sync()
    await agreed(cluster)
    assert (await cluster.fetch("n3", "GET", kv("a"))).body == b"1"
