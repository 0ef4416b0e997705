"""Requests that a foreign web page may have caused are refused, on both paths, on every route."""

from __future__ import annotations

import pytest

from cluster.api.hosts import Hosts
from tests.support.raw_http import Reply, connect, fetch
from tests.support.served import Local

ROUTES = (
    ("GET", "/v1/kv/a"), ("PUT", "/v1/kv/a"), ("DELETE", "/v1/kv/a"), ("HEAD", "/v1/kv/a"),
    ("GET", "/v1/kv"), ("GET", "/v1/cluster"), ("GET", "/v1/digest"), ("GET", "/metrics"),
    ("POST", "/v1/cluster/handover"), ("DELETE", "/v1/cluster/nodes/n3"), ("GET", "/livez"),
    ("GET", "/openapi.json"), ("GET", "/nothing"), ("PATCH", "/v1/kv/a"),
)  # fmt: skip
OWN = (
    "localhost", "localhost:8101", "LOCALHOST:1", "localhost.", "app.localhost:80", "127.0.0.1",
    "127.0.0.1:8101", "127.9.9.9", "[::1]:8101", "[::1]", "10.1.2.3:8101", "t", "T:99",
)  # fmt: skip
FOREIGN = (
    "rebound.example", "rebound.example:8101", "127.0.0.1.rebound.example", "localhost.example",
    "notlocalhost", "0.0.0.0:8101", "[::]:8101", "127.1", "2130706433", "0x7f.1", "a@127.0.0.1",
    "127.0.0.1/x", "127.0.0.1 evil", "[::1", "evil:80:80", "127.0.0.1:port", "\xe9", ".", "*",
)  # fmt: skip


async def ask(local: Local, method: str, path: str, **headers: str) -> Reply:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    body = b"x" if method in {"PUT", "POST", "PATCH"} else None
    async with connect(local.base_url) as connection:
        connection.send_request(method, path, body, named)
        return await connection.receive(head_only=method == "HEAD")


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_another_host_is_refused_on_every_route(local: Local, method: str, path: str) -> None:
    reply = await ask(local, method, path, Host="rebound.example:8101")
    assert reply.status == 421
    if method != "HEAD":
        assert reply.code == "unknown_host"
    assert local.node.executed == 0


@pytest.mark.parametrize("method", ["GET", "PUT"])
async def test_names_of_this_machine_and_addresses_are_served(local: Local, method: str) -> None:
    await ask(local, "PUT", "/v1/kv/a", Host="t")
    for host in OWN:
        assert (await ask(local, method, "/v1/kv/a", Host=host)).status == 200, host


@pytest.mark.parametrize("method", ["GET", "PUT"])
async def test_other_names_and_what_is_no_host_are_refused(local: Local, method: str) -> None:
    for host in FOREIGN:
        assert (await ask(local, method, "/v1/kv/a", Host=host)).status in {400, 421}, host
    assert local.node.executed == 0


async def test_a_known_head_does_not_open_the_door_of_another_host(local: Local) -> None:
    async with connect(local.base_url) as connection:
        for host, status in (("t", 201), ("evil", 421)):
            connection.send_request("PUT", "/v1/kv/a", b"x", {"Host": host})
            assert (await connection.receive()).status == status
    assert local.node.executed == 1


async def test_host_is_there_once_and_only_version_1_0_may_leave_it_out(local: Local) -> None:
    for head, status in (
        (b"GET /livez HTTP/1.1\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nHost:\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nHost: t\r\nHost: evil\r\n\r\n", 400),
        (b"PUT /v1/kv/a HTTP/1.1\r\nHost: t\r\nHost: t\r\nContent-Length: 1\r\n\r\nx", 400),
        (b"GET /livez HTTP/1.0\r\n\r\n", 200),
        (b"GET /livez HTTP/1.0\r\nHost: evil\r\n\r\n", 421),
    ):
        async with connect(local.base_url) as connection:
            connection.send(head)
            assert (await connection.receive()).status == status, head
    assert local.node.executed == 0


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("http://t/v1/kv/abs", 201),
        ("HTTP://127.0.0.1:8101/v1/kv/abs?ack=all", 201),
        ("https://t/v1/kv/abs", 201),
        ("http://t?x=/v1/kv/abs", 404),
        ("http://t", 404),
        ("http://h?x=/v1/kv/abs", 421),
        ("http://h/v1/kv/abs", 421),
        ("http:///v1/kv/abs", 400),
        ("http://user@t/v1/kv/abs", 400),
        ("http://t#/v1/kv/abs", 400),
        ("http://h\\t/v1/kv/abs", 400),
        ("ftp://t/v1/kv/abs", 400),
        ("//t/v1/kv/abs", 404),
        ("t/v1/kv/abs", 400),
    ],
)
async def test_the_target_in_absolute_form_says_host_and_path(
    local: Local, target: str, status: int
) -> None:
    reply = await ask(local, "PUT", target, Host="evil")  # the target's host counts
    assert reply.status == (421 if target.startswith("//") else status)
    assert (await fetch(local.base_url, "GET", "/v1/kv/abs")).status == (
        200 if status == 201 else 404
    )
    assert local.node.executed == (status == 201)


WRITES = [("PUT", "/v1/kv/a"), ("DELETE", "/v1/kv/a"), ("DELETE", "/v1/cluster/nodes/n3")]


@pytest.mark.parametrize(("method", "path"), WRITES)
@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:3000"},  # another program of the same machine
        {"Origin": "http://t.evil.example"},
        {"Origin": "file://"},
        {"Origin": ""},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},
        {"Sec-Fetch-Site": "unheard-of", "Origin": "http://t:8101"},
    ],
)
async def test_a_foreign_page_changes_nothing(
    local: Local, method: str, path: str, headers: dict[str, str]
) -> None:
    async with connect(local.base_url) as connection:
        connection.send_request(
            method, path, b"x" if method == "PUT" else None, {"Host": "t:8101", **headers}
        )
        reply = await connection.receive()
    assert (reply.status, reply.code) == (403, "foreign_origin")
    assert reply.json["outcome"] == "not_applied"
    assert local.node.executed == 0
    assert len(local.node.view.members) == 3


@pytest.mark.parametrize(
    ("host", "headers"),
    [
        ("t:8101", {"Origin": "http://t:8101"}),
        ("T:8101", {"Origin": "http://t:8101", "Sec-Fetch-Site": "same-origin"}),
        ("t", {"Origin": "http://t"}),
        ("t:80", {"Origin": "http://t"}),
        ("t", {"Origin": "https://t"}),  # TLS ends before this node
        ("[::1]:8101", {"Origin": "http://[::1]:8101"}),
        ("t", {"Sec-Fetch-Site": "none"}),
    ],
)
async def test_a_page_of_the_nodes_own_may_write(
    local: Local, host: str, headers: dict[str, str]
) -> None:
    async with connect(local.base_url) as connection:
        connection.send_request("PUT", "/v1/kv/a", b"x", {"Host": host, **headers})
        assert (await connection.receive()).status == 201


async def test_a_foreign_page_embeds_nothing_and_may_link(local: Local) -> None:
    cross = {"Sec_Fetch_Site": "cross-site"}
    for path in ("/v1/digest", "/v1/kv", "/v1/cluster"):
        assert (await ask(local, "GET", path, **cross, Sec_Fetch_Mode="no-cors")).status == 403
        assert (await ask(local, "GET", path, **cross, Sec_Fetch_Mode="navigate")).status == 200
        assert (await ask(local, "GET", path, Origin="http://evil.example")).status == 200


def test_what_is_listed_is_allowed() -> None:
    hosts = Hosts(["Node1.Example.", "fd00::1"], ["https://tools.example"])
    assert hosts.allows("node1.example:99")
    assert hosts.allows("[FD00::1]")
    assert not hosts.allows("node2.example")
    hosts.learn(["node2.example"])
    assert hosts.allows("node2.example")
    assert Hosts(["*"]).allows("anything.example")
    assert not Hosts(["*"]).allows("any thing")
