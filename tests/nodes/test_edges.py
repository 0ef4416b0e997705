"""Real nodes at their edges: open files, file modes, the host that a request names, a stop."""

from __future__ import annotations

import os
import signal
import socket
import stat
from pathlib import Path

import pytest

from tests.nodes.conftest import MakeCluster
from tests.support.cluster import SLOW_TO_SUSPECT, Cluster, wait_until
from tests.support.raw_http import connect, fetch
from tests.support.traffic import Traffic

SMALL_LOG = {"log_segment_size_bytes": 1_200_000, "log_retention_bytes": 2_400_000}


async def test_leaking_clients_end_no_node_of_few_descriptors(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(limits=SMALL_LOG, timing=SLOW_TO_SUSPECT)
    for process in cluster.nodes.values():
        process.command = ("prlimit", "--nofile=256:256", *process.command)
    await cluster.start()
    primary = await cluster.primary()
    assert "256" in cluster.nodes[primary].log()
    host, _, port = cluster.specs[primary].client.partition(":")
    leaked: list[socket.socket] = []
    try:
        for _ in range(300):
            client = socket.create_connection((host, int(port)), timeout=10)
            client.sendall(b"GET /v1/kv/x HTTP/1.1\r\nHost: localhost\r\n\r\n")
            leaked.append(client)
        for number in range(150):  # several segments of the log: the disk needs descriptors
            reply = await cluster.fetch(
                cluster.others(primary)[0], "PUT", f"/v1/kv/{number}", bytes(40_000)
            )
            assert reply.status == 201
        for path in ("/livez", "/readyz", "/primary", "/metrics", "/v1/cluster"):
            assert (await cluster.fetch(primary, "GET", path)).status == 200
        assert (await cluster.fetch(primary, "GET", "/v1/kv/1")).status == 503
        assert "open files" not in cluster.nodes[primary].log().replace("limit of open files", "")
        assert await cluster.primary() == primary
    finally:
        for client in leaked:
            client.close()

    async def serves_again() -> bool:
        return (await cluster.fetch(primary, "GET", "/v1/kv/1")).status == 200

    await wait_until(serves_again, "clients are served again")


async def test_too_few_descriptors_are_refused_at_the_start(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(replicas=1)
    process = cluster.nodes["n1"]
    process.command = ("prlimit", "--nofile=100:100", *process.command)
    cluster.launch("n1")
    assert await process.wait_exit() == 78
    assert "the limit of open files is 100, and this node needs about" in process.log()
    assert not cluster.data("n1").exists()


async def test_only_the_nodes_user_can_read_what_it_stores(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(replicas=2, witnesses=1, limits=SMALL_LOG)
    for node in cluster.specs:  # as an operator may have made it
        cluster.data(node).mkdir(parents=True)
        cluster.data(node).chmod(0o755)
    before = os.umask(0)
    try:
        await cluster.start()
    finally:
        os.umask(before)
    for number in range(100):
        await cluster.fetch("n1", "PUT", f"/v1/kv/{number}", bytes(40_000))
    assert _readable_by_others(cluster) == []
    await cluster.stop()
    _open_to_others(cluster)
    await cluster.start()
    assert _readable_by_others(cluster) == []


def _open_to_others(cluster: Cluster) -> None:
    """As a backup may have restored it."""
    for node in cluster.specs:
        for folder, _, names in os.walk(cluster.data(node)):
            for place in (Path(folder), *(Path(folder, name) for name in names)):
                place.chmod(0o777)


def _readable_by_others(cluster: Cluster) -> list[str]:
    found = []
    for node in cluster.specs:
        for folder, _, names in os.walk(cluster.data(node)):
            for place in (Path(folder), *(Path(folder, name) for name in names)):
                mode = stat.S_IMODE(place.stat().st_mode)
                if mode != (0o700 if place.is_dir() else 0o600):
                    found.append(f"{place}: {mode:o}")
    return found


async def test_names_of_the_configuration_are_served_and_others_are_not(
    make_cluster: MakeCluster,
) -> None:
    cluster = make_cluster(replicas=1)
    text = cluster.config_path.read_text() + '\n[api]\nhosts = ["kv.shop.example"]\n'
    cluster.config_path.write_text(text)
    await cluster.start()
    for host, status in (
        (cluster.specs["n1"].client, 201),
        ("kv.shop.example", 200),
        ("kv.shop.example:443", 200),
        ("rebound.example", 421),
    ):
        reply = await cluster.fetch("n1", "PUT", "/v1/kv/a", b"x", {"Host": host})
        assert reply.status == status, host


@pytest.mark.parametrize("tls", [True, pytest.param(False, marks=pytest.mark.long)])
async def test_pages_of_named_origins_may_use_the_api_and_no_others(
    make_cluster: MakeCluster, tls: bool
) -> None:
    cluster = make_cluster(replicas=1, tls=tls, access={})
    await cluster.start()
    named, other, key = "https://tools.example", "https://evil.example", "/v1/kv/a"
    asks = {"Access-Control-Request-Method": "PUT", "Access-Control-Request-Headers": "if-match"}
    for origin in (named, other, "null"):  # none is named by default
        assert (await cluster.fetch("n1", "PUT", key, b"x", {"Origin": origin})).status == 403
        reply = await cluster.fetch("n1", "OPTIONS", key, None, {"Origin": origin, **asks})
        assert not any(name.startswith("access-control") for name in reply.headers)
    await cluster.stop("n1")
    text = cluster.config_path.read_text() + f'\n[api]\norigins = ["{named}"]\n'
    cluster.config_path.write_text(text)
    await cluster.start("n1")
    # A preflight has no token: browsers send none.
    reply = await fetch(cluster.url("n1"), "OPTIONS", key, None, {"Origin": named, **asks})
    assert reply.status == 204
    assert reply.headers["access-control-allow-origin"] == named
    assert "PUT" in reply.headers["access-control-allow-methods"]
    assert {"Authorization", "If-Match"} <= set(
        reply.headers["access-control-allow-headers"].split(", ")
    )
    assert "access-control-allow-credentials" not in reply.headers  # a page sends its token itself
    for method, body, status in (("PUT", b"x", 201), ("GET", None, 200)):
        reply = await cluster.fetch("n1", method, key, body, {"Origin": named})
        assert (reply.status, reply.headers["access-control-allow-origin"]) == (status, named)
        assert "ETag" in reply.headers["access-control-expose-headers"]
    refused = await fetch(cluster.url("n1"), "GET", key, None, {"Origin": named})
    assert (refused.status, refused.headers["access-control-allow-origin"]) == (401, named)
    for origin in (other, "null", named.upper() + ".evil.example"):
        reply = await cluster.fetch("n1", "GET", key, None, {"Origin": origin})
        assert "access-control-allow-origin" not in reply.headers
        assert (await cluster.fetch("n1", "PUT", key, b"y", {"Origin": origin})).status == 403
        reply = await cluster.fetch("n1", "OPTIONS", key, None, {"Origin": origin, **asks})
        assert "access-control-allow-origin" not in reply.headers


@pytest.mark.parametrize("lane", [{}, {"TE": "x"}], ids=["fast", "full"])
async def test_no_request_fails_in_rolling_restarts(
    make_cluster: MakeCluster, lane: dict[str, str]
) -> None:
    cluster = make_cluster(timing={**SLOW_TO_SUSPECT, "drain_timeout_ms": 1500})
    await cluster.start()
    traffic = Traffic([cluster.url(node) for node in cluster.replicas], lane)
    async with traffic.running():
        for node in ("n1", "n2", "n3"):  # the primary, and those that become it, and backups
            assert await cluster.nodes[node].terminate() == 0
            await cluster.start(node)
    assert traffic.failures == []
    assert traffic.answered > 100


async def test_a_stopping_node_says_so_and_ends_each_connection_with_an_answer(
    make_cluster: MakeCluster,
) -> None:
    cluster = make_cluster(replicas=1, timing={"drain_timeout_ms": 60_000})
    await cluster.start()
    url = cluster.url("n1")
    async with connect(url) as kept, connect(url) as ahead:
        kept.send_request("PUT", "/v1/kv/a", b"x")
        assert "connection" not in (await kept.receive()).headers
        ahead.send_request("PUT", "/v1/kv/a", b"x")
        await ahead.receive()
        cluster.nodes["n1"].signal(signal.SIGTERM)

        async def unready() -> bool:
            return (await cluster.fetch("n1", "GET", "/readyz")).status == 503

        await wait_until(unready, "the node says that it is not ready")
        kept.send_request("GET", "/v1/kv/a")
        reply = await kept.receive()
        assert (reply.status, reply.headers["connection"]) == (200, "close")
        for _ in range(5):  # sent ahead: all are answered, the last one ends the connection
            ahead.send_request("PUT", "/v1/kv/a", b"x")
        replies = [await ahead.receive() for _ in range(5)]
        assert [reply.status for reply in replies] == [200] * 5
        assert replies[-1].headers["connection"] == "close"
        assert (await cluster.fetch("n1", "PUT", "/v1/kv/new", b"x")).status == 201
    assert await cluster.nodes["n1"].wait_exit() == 0  # long before the bound: nobody asks


async def test_a_second_signal_does_not_wait_for_clients(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(replicas=1, timing={"drain_timeout_ms": 3_600_000})
    await cluster.start()
    traffic = Traffic([cluster.url("n1")], {})
    async with traffic.running():
        cluster.nodes["n1"].signal(signal.SIGTERM)
        await wait_until(lambda: traffic.answered > 50, "requests are served all the same")
        assert cluster.nodes["n1"].running
        assert traffic.failures == []
        assert await cluster.nodes["n1"].terminate() == 0
    # It waits for nobody any more: who asks as the connection closes is reset, and not answered.
    assert [item for item in traffic.failures if "ConnectionResetError" not in item] == []
