"""Which group's transport a call goes to, by the newest map alone (G2)."""

from __future__ import annotations

from typing import cast

import msgspec
import pytest

from cluster.client.aio import AsyncClient
from cluster.client.errors import UnavailableError
from cluster.client.exchange import FinalResponse, Request
from cluster.client.group_routes import GroupRoutes, name_span
from cluster.client.retries import Transport
from cluster.groups.group_map import Group, GroupMap, GroupsDocument

LOW = Group("g1", ((0, 2047),), ("http://a:1",))
HIGH = Group("g2", ((2048, 4095),), ("http://b:1",))
MOVED = Group("g2", ((2048, 4095),), ("http://c:1",))


class Stub:
    """Stands for a transport: as the home of a client it answers with `document`."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self.cluster_id = "c"
        self.revision = 1
        self.groups_version = 0
        self.document = GroupsDocument(LOW)
        self.endpoints = self

    async def call(self, call: Request, _timeout_ms: int | None = None) -> FinalResponse:
        assert call.target in {"/v1/groups", "/livez"}
        return FinalResponse(200, {}, msgspec.json.encode(self.document))

    def has_fresh(self, _now: float) -> bool:
        return True


class Routes:
    """Routes whose home knows these groups."""

    def __init__(self, *groups: Group, follows: bool = True, by_tls: bool = False) -> None:
        self.home = Stub(LOW)
        home = cast("Transport", self.home)
        self.routes = GroupRoutes(
            home, lambda g: cast("Transport", Stub(g)), follows=follows, by_tls=by_tls
        )
        self.tell(1, *groups)

    def tell(self, version: int, *groups: Group) -> None:
        self.home.groups_version = version
        self.home.document = GroupsDocument(LOW, GroupMap(version, groups))

    async def of(self, name: str) -> Group:
        found = cast("Stub", await self.routes.of(*name_span(name, below=name.endswith("/"))))
        return found.group


async def test_keys_and_prefixes_go_to_their_group() -> None:
    made = Routes(LOW, HIGH)
    for name, group in (("orders/1", LOW), ("orders/", LOW), ("cart{7}/x", HIGH), ("{7}", HIGH)):
        assert await made.of(name) == group
    assert await made.of("cart{7}/") == HIGH
    near = made.routes.near("{7}")
    assert cast("Stub", near).group == HIGH
    assert near is made.routes.near("cart{7}/x")
    assert made.routes.near("orders/1") is made.routes.home


async def test_a_newer_map_moves_a_group_and_an_older_one_does_not_move_it_back() -> None:
    made = Routes(LOW, HIGH)
    assert await made.of("{7}") == HIGH
    made.tell(3, LOW, MOVED)
    assert await made.of("{7}") == MOVED
    made.tell(4, Group("g1", ((0, 4095),), ("http://a:1",)))
    assert await made.of("{7}") == MOVED, "slots stay where they are"
    made.tell(2, LOW, HIGH)
    made.home.groups_version = 9
    assert await made.of("{7}") == MOVED


@pytest.mark.parametrize(
    ("given", "by_tls"),
    [
        (["https://seed:1"], True),
        (["https://a:1", "http://b:1"], False),
        (["http://seed:1"], False),
    ],
)
async def test_what_was_given_by_https_is_reached_so_whatever_the_map_says(
    given: list[str], by_tls: bool
) -> None:
    """G5: a map from before the nodes had TLS would send the token in plain text."""
    scheme = "https" if by_tls else "http"
    made = Routes(LOW, HIGH, by_tls=by_tls)
    assert (await made.of("{7}")).endpoints == (f"{scheme}://b:1",)
    found = await made.routes.group_of("{7}")
    assert found is not None
    assert found.endpoints == (f"{scheme}://b:1",)
    client = AsyncClient(given)
    assert client._routes._by_tls is by_tls
    await client.close()


async def test_the_named_nodes_are_asked_where_nothing_else_is_known() -> None:
    for made in (Routes(LOW, HIGH, follows=False), Routes(LOW, Group("g2", ((2048, 4095),)))):
        assert await made.of("{7}") == LOW
    made = Routes(LOW, HIGH)
    made.home.groups_version = 0
    assert await made.of("{7}") == LOW
    assert made.routes.near("{7}") is made.routes.home
    assert await made.routes.group_of("{7}") is None
    spread = await Routes(LOW, HIGH).routes.of(b"", None)
    assert cast("Stub", spread).group == LOW, "they say that it is spread over groups"


async def test_the_group_of_a_name_is_given_or_told_why_not() -> None:
    made = Routes(LOW, HIGH)
    assert await made.routes.group_of("{7}") == HIGH
    assert await made.routes.group_of("orders/") is None
    bare = Routes(LOW, Group("g2", ((2048, 4095),)))
    with pytest.raises(UnavailableError, match="names no node of group 'g2'"):
        await bare.routes.group_of("{7}")
