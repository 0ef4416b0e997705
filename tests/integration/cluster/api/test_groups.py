"""A node of a group: what it serves, what it refuses and what it says of others (G1, G2)."""

from __future__ import annotations

import inspect
import json

import pytest

from cluster.api.groups import GroupNode, KnownGroups
from cluster.groups.group_map import Group, GroupMap, encode_map
from datapath.operations import Node
from tests.support.local_node import local_node
from tests.support.raw_http import Reply, fetch
from tests.support.served import Local, Serve

FIRST = Group("g1", ((0, 2047),), ("http://127.0.0.1:8101",))
SECOND = Group("g2", ((2048, 4095),), ("http://127.0.0.1:9101", "http://127.0.0.1:9102"))
MAP = GroupMap(1, (FIRST, SECOND))
OWN, OTHER = "orders%2F1", "cart%7B7%7D%2Fx"  # slots 598 and 2690
JSON = {"Content-Type": "application/json"}


@pytest.fixture
async def grouped(serve: Serve) -> Local:
    node = local_node()
    node.groups = KnownGroups(FIRST)
    assert node.groups.learn(MAP)
    return await serve(None, node)


def refused(reply: Reply) -> None:
    assert (reply.status, reply.code) == (421, "wrong_group")
    assert reply.json["group"] == "g2"
    assert reply.json["endpoints"] == list(SECOND.endpoints)
    assert reply.headers["onecopy-groups"] == "1"


async def test_a_key_of_the_group_is_served_and_another_groups_refused(grouped: Local) -> None:
    url = grouped.base_url
    for method, body in (("PUT", b"x"), ("GET", None), ("DELETE", None)):
        assert (await fetch(url, method, f"/v1/kv/{OWN}", body)).status in {200, 201}
        reply = await fetch(url, method, f"/v1/kv/{OTHER}", body)
        refused(reply)
        assert reply.json.get("outcome") == (None if method == "GET" else "not_applied")
    assert grouped.node.store.keys == []


def test_nothing_that_carries_an_operation_or_a_query_passes_unseen() -> None:
    """G1: whatever else is asked of it, a node of a group gives away as the node's own."""
    takers = {
        name
        for name, method in vars(Node).items()
        if inspect.isfunction(method)
        and {"Operation", "Query"} & set(inspect.get_annotations(method).values())
    }
    assert {"submit", "execute", "read_now", "submit_query", "query"} <= takers
    assert takers <= set(vars(GroupNode))


@pytest.mark.parametrize(
    "path",
    [
        f"/v1/kv/{OTHER}?after=0",
        "/v1/kv?prefix=cart%7B7%7D",
        f"/v1/watch?key={OTHER}",
        f"/v1/locks/{OTHER}",
        f"/v1/elections/{OTHER}",
        f"/v1/elections/{OTHER}/observe",
    ],
)
async def test_whatever_is_read_of_another_group_is_refused(grouped: Local, path: str) -> None:
    refused(await fetch(grouped.base_url, "GET", path))


@pytest.mark.parametrize("path", ["/v1/kv?prefix=cart", "/v1/kv", "/v1/watch?prefix="])
async def test_a_range_over_groups_needs_the_group(grouped: Local, path: str) -> None:
    reply = await fetch(grouped.base_url, "GET", path)
    assert (reply.status, reply.code) == (400, "spans_groups")
    if "watch" not in path:
        reply = await fetch(grouped.base_url, "GET", path, None, {"Onecopy-Group": "g1"})
        assert reply.status == 200
    again = await fetch(grouped.base_url, "GET", path)
    assert again.status == 400, "the next request is for whatever its keys say"


async def test_a_transaction_over_groups_names_two_keys(grouped: Local) -> None:
    puts = [{"put": {"key": key, "text": ""}} for key in ("orders/1", "cart{7}/x")]
    document = json.dumps({"then": puts}).encode()
    reply = await fetch(grouped.base_url, "POST", "/v1/txn", document, JSON)
    assert (reply.status, reply.code) == (400, "spans_groups")
    assert "'orders/1' and 'cart{7}/x'" in reply.json["detail"]


async def test_a_request_for_another_group_by_name_is_refused(grouped: Local) -> None:
    refused(await fetch(grouped.base_url, "GET", f"/v1/kv/{OWN}", None, {"Onecopy-Group": "g2"}))


async def test_where_there_are_no_groups_a_named_one_is_refused(local: Local) -> None:
    reply = await fetch(local.base_url, "PUT", "/v1/kv/k", b"x", {"Onecopy-Group": "g1"})
    assert (reply.status, reply.code) == (421, "wrong_group")
    assert (await fetch(local.base_url, "GET", "/v1/groups")).code == "not_found"


async def test_the_map_is_served_and_published_in_the_first_group(grouped: Local) -> None:
    url = grouped.base_url
    reply = await fetch(url, "GET", "/v1/groups")
    assert reply.json["own"]["id"] == "g1"
    assert reply.json["map"]["version"] == 1
    assert (await fetch(url, "PUT", "/v1/groups", encode_map(MAP), JSON)).status == 200
    stale = await fetch(url, "PUT", "/v1/groups", encode_map(GroupMap(1, MAP.groups[::-1])), JSON)
    assert stale.code == "precondition_failed"
    assert (await fetch(url, "PUT", "/v1/groups", b"{", JSON)).code == "invalid_body"


async def test_it_is_not_published_in_another_group(serve: Serve) -> None:
    node = local_node()
    node.groups = KnownGroups(SECOND)
    node.groups.learn(MAP)
    local = await serve(None, node)
    reply = await fetch(local.base_url, "PUT", "/v1/groups", encode_map(MAP), JSON)
    assert (reply.code, reply.json["group"]) == ("wrong_group", "g1")


def test_a_map_is_not_forgotten_for_an_older_one_or_one_with_other_slots() -> None:
    known = KnownGroups(FIRST)
    newer = GroupMap(3, MAP.groups)
    assert known.learn(newer)
    assert not known.learn(MAP)
    assert not known.learn(GroupMap(4, (Group("g1", ((0, 4095),)),)))
    assert known.map == newer
