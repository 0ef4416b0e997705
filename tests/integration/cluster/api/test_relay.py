"""A node of one group passes on what is another's, to real sockets, and its answer back."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from aiohttp import hdrs
from multidict import CIMultiDict, CIMultiDictProxy

from cluster.api.access import caller_of
from cluster.api.admin import PROXY_HEADERS
from cluster.api.groups import KnownGroups
from cluster.api.headers import Headers
from cluster.api.relay import GroupRelay
from cluster.api.settings import HttpSettings
from cluster.certificates.authority import Authority
from cluster.client.aio import AsyncClient
from cluster.client.errors import InvalidRequestError, UnknownOutcomeError
from cluster.groups.group_map import Group
from cluster.services.access import ACCESS_SERVICE
from cluster.services.access_guard import TokenGuard, draw_token
from datapath.operations import ANONYMOUS, Operation
from tests.support.group_pair import HIGH, LOW, Pair, know, node_of
from tests.support.ports import free_port
from tests.support.raw_http import Reply, fetch
from tests.support.served import Serve

OWN, OTHER = "orders%2F1", "cart%7B7%7D%2Fx"  # slots 598 and 2690
JSON = {"Content-Type": "application/json"}


def told_by_the_other(reply: Reply) -> Reply:
    assert reply.headers["onecopy-group"] == "g2"
    assert reply.headers["onecopy-cluster"] == "1" * 32, "that of the node that was asked"
    assert reply.headers["onecopy-groups"] == "1"
    return reply


async def test_keys_of_another_group_are_written_read_and_removed(pair: Pair) -> None:
    reply = told_by_the_other(await fetch(pair.url, "PUT", f"/v1/kv/{OTHER}", b"x"))
    assert (reply.status, reply.json["revision"]) == (201, pair.high.node.index)
    assert reply.headers["onecopy-revision"] == str(pair.high.node.index)
    reply = told_by_the_other(await fetch(pair.url, "GET", f"/v1/kv/{OTHER}"))
    assert (reply.status, reply.body) == (200, b"x")
    tag = reply.headers["etag"]
    unchanged = await fetch(pair.url, "GET", f"/v1/kv/{OTHER}", None, {"If-None-Match": tag})
    assert told_by_the_other(unchanged).status == 304
    assert (await fetch(pair.url, "HEAD", f"/v1/kv/{OTHER}")).headers["content-length"] == "1"
    failed = await fetch(pair.url, "DELETE", f"/v1/kv/{OTHER}", None, {"If-Match": '"1"'})
    assert (failed.status, failed.json["outcome"]) == (412, "not_applied")
    page = await fetch(pair.url, "GET", "/v1/kv?prefix=cart%7B7%7D")
    assert [item["key"] for item in told_by_the_other(page).json["items"]] == ["cart{7}/x"]
    deleted = told_by_the_other(await fetch(pair.url, "DELETE", "/v1/kv?prefix=cart%7B7%7D"))
    assert deleted.json["deleted"] == 1
    assert (await fetch(pair.url, "GET", f"/v1/kv/{OTHER}")).status == 404
    assert pair.low.node.store.keys == []
    own = await fetch(pair.url, "PUT", f"/v1/kv/{OWN}", b"y")
    assert "onecopy-group" not in own.headers


async def test_a_transaction_goes_by_its_keys_and_a_lease_by_the_groups_name(pair: Pair) -> None:
    document = json.dumps({"then": [{"put": {"key": "cart{7}/x", "text": "1"}}]}).encode()
    reply = told_by_the_other(await fetch(pair.url, "POST", "/v1/txn", document, JSON))
    assert reply.json["succeeded"]
    assert pair.high.node.store.keys == [b"cart{7}/x"]
    named = {**JSON, "Onecopy-Group": "g2"}
    lease = await fetch(pair.url, "POST", "/v1/leases", b'{"ttl_ms": 60000}', named)
    held = told_by_the_other(lease).json["lease"]
    body = json.dumps({"lease": held, "wait_ms": 0}).encode()
    lock = await fetch(pair.url, "POST", "/v1/locks/cart%7B7%7D", body, JSON)
    assert told_by_the_other(lock).json["lease"] == held


async def test_a_client_lists_what_one_group_holds_of_all_keys(pair: Pair) -> None:
    for key in (OWN, OTHER):
        await fetch(pair.url, "PUT", f"/v1/kv/{key}", b"x")
    async with AsyncClient(pair.url) as client:
        listed = {
            group: [item.key async for item in client.list(group=group, page_size=1)]
            for group in ("g1", "g2")
        }
        assert listed == {"g1": ["orders/1"], "g2": ["cart{7}/x"]}
        page = await client.page(group="g2", prefix="orders")
        assert (page.items, page.revision) == ((), pair.high.node.index), "the group's own revision"
        for group, prefix, code in (
            ("", "", "spans_groups"),
            ("g9", "", "wrong_group"),
            ("g2", "orders/", "wrong_group"),
            ("g2\r\nX: 1", "", "invalid_argument"),
        ):
            with pytest.raises(InvalidRequestError) as error:
                await client.page(prefix, group=group)
            assert error.value.code == code


async def test_what_two_maps_say_of_each_other_ends_with_421(pair: Pair) -> None:
    """G4: one hop, whatever the maps say."""
    wrong = (Group("g1", LOW, (pair.high.base_url,)), Group("g2", HIGH, (pair.low.base_url,)))
    for node in (pair.low.node, pair.high.node):
        know(node, *wrong, version=2)
    reply = await fetch(pair.url, "PUT", f"/v1/kv/{OTHER}", b"x")
    assert (reply.status, reply.code, reply.json["outcome"]) == (421, "wrong_group", "not_applied")
    marked = {"Onecopy-Relayed": "g1"}
    reply = await fetch(pair.url, "PUT", f"/v1/kv/{OTHER}", b"x", marked)
    assert (reply.status, reply.json["group"]) == (421, "g2")
    marked = {"Onecopy-Relayed": "g3"}
    assert (await fetch(pair.url, "GET", f"/v1/kv/{OWN}", None, marked)).status == 421


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", f"/v1/watch?key={OTHER}"), ("GET", "/v1/backup"), ("POST", "/v1/tokens")],
)
async def test_what_streams_or_administers_is_asked_there(
    pair: Pair, method: str, path: str
) -> None:
    reply = await fetch(pair.url, method, path, None, {"Onecopy-Group": "g2"})
    assert (reply.status, reply.json["endpoints"]) == (421, [pair.high.base_url])


async def test_a_group_that_is_not_there_is_told_as_not_applied(pair: Pair) -> None:
    gone = f"http://127.0.0.1:{free_port()}"
    first = Group("g1", LOW, (pair.url,))
    know(pair.low.node, first, Group("g2", HIGH, (gone, pair.high.base_url)), version=2)
    assert (await fetch(pair.url, "PUT", f"/v1/kv/{OTHER}", b"x")).status == 201
    know(pair.low.node, first, Group("g2", HIGH, (gone,)), version=3)
    reply = await fetch(pair.url, "PUT", f"/v1/kv/{OTHER}", b"y")
    assert (reply.status, reply.code, reply.json["outcome"]) == (503, "no_primary", "not_applied")


async def test_a_change_without_an_answer_is_unknown_and_asked_of_no_other(pair: Pair) -> None:
    """G6: it may have been applied by who took it."""
    taken: list[bytes] = []

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        taken.append(await reader.readuntil(b"\r\n\r\n"))
        writer.close()

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    try:
        silent = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        groups = Group("g1", LOW, (pair.url,)), Group("g2", HIGH, (silent, pair.high.base_url))
        know(pair.low.node, *groups, version=2)
        reply = await fetch(pair.url, "PUT", f"/v1/kv/{OTHER}", b"x")
        assert (reply.code, reply.json["outcome"]) == ("unknown_outcome", "unknown")
        assert pair.high.node.store.keys == []
        assert (await fetch(pair.url, "GET", f"/v1/kv/{OTHER}")).status == 404, "of the other one"
        assert len(taken) == 2
        assert b"Onecopy-Relayed: g2\r\n" in taken[0]
    finally:
        server.close()


async def test_a_client_for_one_cluster_works_with_keys_of_all(pair: Pair) -> None:
    """G7: what it sends its writes after is a revision of the group that they go to."""
    async with AsyncClient(pair.url, discover=False) as client:
        await client.put("orders/1", b"own")
        written = await client.put("cart{7}/x", b"1", idempotency_key="once")
        assert written.revision == pair.high.node.index
        again = await client.put("cart{7}/x", b"1", idempotency_key="once")
        assert again.revision == written.revision
        found = await client.get("cart{7}/x")
        assert found is not None
        assert found.value == b"1"
        await client.put("orders/1", b"own")
        committed = await client.txn().put("cart{7}/y", b"2").delete("cart{7}/x").commit()
        assert committed.succeeded
    assert pair.low.node.store.keys == [b"orders/1"]
    reply = await fetch(
        pair.url, "PUT", f"/v1/kv/{OTHER}", b"x",
        {"Idempotency-Key": "k", "Idempotency-After": "1"},
    )  # fmt: skip
    assert (reply.status, reply.json["revision"]) == (421, pair.high.node.index)


async def test_a_lost_relayed_write_names_the_groups_revision_for_its_repeat(pair: Pair) -> None:
    high = pair.high.node
    async with AsyncClient(pair.url, discover=False, timeout_ms=700) as client:
        await client.put("orders/1", b"own")
        high.hold = asyncio.Event()
        before = high.index
        with pytest.raises(UnknownOutcomeError) as caught:
            await client.put("cart{7}/x", b"1")
        high.hold.set()
        error = caught.value
        assert error.idempotency_after == before
    async with AsyncClient(pair.url, discover=False) as client:
        high.hold = None
        await client.put("orders/1", b"own")
        await client.put(
            "cart{7}/x", b"1",
            idempotency_key=error.idempotency_key, idempotency_after=error.idempotency_after,
        )  # fmt: skip
    assert {after for key, after in high.sent_after if key == error.idempotency_key} == {before}


async def test_whoever_relays_lends_no_right_by_its_certificate() -> None:
    """G5: nor does being on the node's own machine count."""
    shown = {"subject": ((("commonName", "admin"),),)}
    transport = asyncio.BaseTransport(extra={"peercert": shown})
    none: Headers = CIMultiDictProxy(CIMultiDict())
    relayed: Headers = CIMultiDictProxy(CIMultiDict({"onecopy-relayed": "g2"}))
    assert caller_of(none, transport) != ANONYMOUS
    assert caller_of(relayed, transport) == ANONYMOUS
    assert hdrs.VIA in PROXY_HEADERS


async def test_callers_are_judged_by_the_group_that_owns_the_key(serve: Serve, pair: Pair) -> None:
    """G5: by their token alone; this node neither lends its rights nor asks for more."""
    high, token = pair.high.node, draw_token()
    high.guard = TokenGuard(is_on=True)
    second = await serve(None, high)
    groups = Group("g1", LOW, (pair.url,)), Group("g2", HIGH, (second.base_url,))
    know(pair.low.node, *groups, version=2)
    for node, admin in ((high, token), (pair.low.node, draw_token())):
        seed = Operation("seed", (admin.id, admin.digest), service=ACCESS_SERVICE)
        await node.execute(seed, 1000)
    assert (await fetch(pair.url, "PUT", f"/v1/kv/{OTHER}", b"x")).status == 401
    bearer = {"Authorization": f"Bearer {token.text}"}
    assert (await fetch(pair.url, "PUT", f"/v1/kv/{OTHER}", b"x", bearer)).status == 201
    forged = {"Authorization": f"Bearer {draw_token().text}"}
    reply = await fetch(pair.url, "PUT", f"/v1/kv/{OTHER}", b"x", forged)
    assert (reply.status, "www-authenticate" in reply.headers) == (401, True)
    pair.low.node.guard.is_on = True  # now this group judges, and does not know the token
    assert (await fetch(pair.url, "PUT", f"/v1/kv/{OTHER}", b"x", bearer)).status == 200
    assert (await fetch(pair.url, "PUT", f"/v1/kv/{OWN}", b"x", bearer)).status == 401


async def test_a_node_with_tls_passes_no_token_on_in_plain_text(
    serve: Serve, tmp_path: Path
) -> None:
    """G5: whatever the map says. It may be older than the certificates."""
    Authority(tmp_path / "certs").create()
    received: list[bytes] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(await reader.read(65536))
        writer.close()

    listener = await asyncio.start_server(listen, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    node = node_of("g1", "1" * 32)
    relay = GroupRelay(HttpSettings(), str(tmp_path / "certs" / "ca.crt"))
    node.groups = KnownGroups(Group("g1", LOW), relay)
    local = await serve(None, node)
    know(node, Group("g1", LOW, (local.base_url,)), Group("g2", HIGH, (url,)))
    bearer = {"Authorization": f"Bearer {draw_token().text}"}
    after = {"Idempotency-Key": "k", "Idempotency-After": "3", **bearer}
    replies = [
        await fetch(local.base_url, "PUT", f"/v1/kv/{OTHER}", b"x", headers)
        for headers in (bearer, after)
    ]
    listener.close()
    await relay.close()
    assert {data[:2] for data in received} == {b"\x16\x03"}, "handshakes of TLS"
    assert {reply.code for reply in replies} == {"no_primary"}
