"""Every answer names its cluster, and a request that is meant for another one is not executed."""

from __future__ import annotations

import msgspec
import pytest

from tests.support.local_node import LocalNode
from tests.support.raw_http import connect, fetch
from tests.support.served import Local, Serve

ASKED = [
    ("PUT", "/v1/kv/a", b"x"),
    ("DELETE", "/v1/kv/a", None),
    ("GET", "/v1/kv/a", None),
    ("GET", "/v1/kv", None),
    ("GET", "/v1/cluster", None),
    ("GET", "/v1/digest", None),
    ("DELETE", "/v1/cluster/nodes/n3", None),
    ("GET", "/livez", None),
    ("GET", "/nothing", None),
    ("PUT", "/v1/kv/%zz", b"x"),
]


def rename(node: LocalNode, cluster_id: str) -> None:
    node.view = msgspec.structs.replace(node.view, cluster_id=cluster_id)


@pytest.mark.parametrize(("method", "target", "body"), ASKED)
async def test_every_answer_names_the_cluster(
    serve: Serve, method: str, target: str, body: bytes | None
) -> None:
    local = await serve()
    assert (await fetch(local.base_url, method, target, body)).headers["onecopy-cluster"] == "local"
    rename(local.node, "")
    assert "onecopy-cluster" not in (await fetch(local.base_url, method, target, body)).headers


@pytest.mark.parametrize(("method", "target", "body"), ASKED[:-2])
async def test_what_is_meant_for_another_cluster_is_refused_and_not_done(
    serve: Serve, method: str, target: str, body: bytes | None
) -> None:
    local = await serve()
    await fetch(local.base_url, "PUT", "/v1/kv/a", b"kept")
    before, view = local.node.executed, local.node.view
    refused = await fetch(local.base_url, method, target, body, {"Onecopy-Cluster": "another"})
    assert (refused.status, refused.code) == (421, "wrong_cluster")
    assert "local" in refused.json["detail"]
    assert "another" in refused.json["detail"]
    if method != "GET":
        assert refused.json["outcome"] == "not_applied"
    assert (local.node.executed, local.node.view) == (before, view)
    right = await fetch(local.base_url, "GET", "/v1/kv/a", headers={"Onecopy-Cluster": "local"})
    assert right.body == b"kept"


async def test_a_node_without_a_cluster_refuses_what_is_meant_for_one(serve: Serve) -> None:
    local = await serve()
    rename(local.node, "")
    meant = {"Onecopy-Cluster": "local"}
    refused = await fetch(local.base_url, "PUT", "/v1/kv/a", b"x", meant)
    assert (refused.status, refused.code) == (503, "cluster_unknown")
    assert refused.json["outcome"] == "not_applied"
    empty = await fetch(local.base_url, "PUT", "/v1/kv/a", b"x", {"Onecopy-Cluster": ""})
    assert empty.code == "cluster_unknown"
    assert local.node.executed == 0


async def test_a_request_that_names_two_clusters_is_refused(local: Local) -> None:
    named = [("Onecopy-Cluster", "local"), ("Onecopy-Cluster", "another")]
    async with connect(local.base_url) as connection:
        lines = [f"{name}: {value}" for name, value in named]
        head = "\r\n".join(["PUT /v1/kv/a HTTP/1.1", "Host: x", *lines, "Content-Length: 1"])
        connection.send(head.encode() + b"\r\n\r\nx")
        assert (await connection.receive()).status == 421


@pytest.mark.parametrize("method", ["GET", "PUT"])
@pytest.mark.parametrize("cluster", [b"\xff", b"local\xff", b"\xed\xa0\x80", b"\x7f\xc3"])
async def test_a_cluster_that_is_no_text_is_another_one(
    local: Local, method: str, cluster: bytes
) -> None:
    async with connect(local.base_url) as connection:
        connection.send(
            b"%b /v1/kv/a HTTP/1.1\r\nHost: x\r\nOnecopy-Cluster: %b\r\nContent-Length: 1\r\n\r\nx"
            % (method.encode(), cluster)
        )
        assert (await connection.receive()).code in {"wrong_cluster", "malformed_request"}
