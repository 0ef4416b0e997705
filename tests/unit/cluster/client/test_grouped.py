"""Which group's client a call goes to, and when a newer map is worth asking for (G2, G3)."""

from __future__ import annotations

import pytest

from cluster.client.errors import (
    InvalidRequestError,
    PreconditionFailedError,
    UnavailableError,
    WrongClusterError,
)
from cluster.client.grouped import AsyncGroupedClient, _Routes, is_misrouted
from cluster.etcd.errors import INVALID_ARGUMENT, from_problem
from cluster.groups.group_map import Group, GroupMap, GroupsDocument
from cluster.services.groups import WrongGroupError

LOW = Group("g1", ((0, 2047),), ("http://a:1",))
HIGH = Group("g2", ((2048, 4095),), ("http://b:1",))
MOVED = Group("g2", ((2048, 4095),), ("http://c:1",))


class Made:
    """Stands for a client: says where it would connect."""

    def __init__(self, endpoints: tuple[str, ...]) -> None:
        self.endpoints = endpoints

    def close(self) -> None:
        """Nothing is open."""


def routes(*groups: Group, version: int = 1) -> _Routes[Made]:
    made = _Routes(("http://seed:1",), Made)
    assert made.learn(GroupsDocument(LOW, GroupMap(version, groups)))
    return made


def test_keys_and_prefixes_go_to_their_group() -> None:
    made = routes(LOW, HIGH)
    for name, group in (("orders/1", LOW), ("orders/", LOW), ("cart{7}/x", HIGH), ("{7}", HIGH)):
        assert made.group_of(name) == group
    assert made.client(LOW) is made.client(LOW)
    assert made.client(LOW).endpoints == LOW.endpoints


def test_a_newer_map_moves_a_group_and_an_older_one_does_not_move_it_back() -> None:
    made = routes(LOW, HIGH)
    before = made.client(made.group_of("{7}"))
    assert made.learn(GroupsDocument(LOW, GroupMap(2, (LOW, MOVED))))
    assert made.client(made.group_of("{7}")).endpoints == MOVED.endpoints
    assert not made.learn(GroupsDocument(LOW, GroupMap(1, (LOW, HIGH))))
    assert not made.learn(GroupsDocument(LOW, GroupMap(3, (Group("g1", ((0, 4095),)),))))
    assert not made.learn(GroupsDocument(LOW))
    assert made.group_of("{7}") == MOVED
    assert before in made.clients(), "closed with the others"


@pytest.mark.parametrize(
    ("seeds", "scheme"),
    [(("https://seed:1",), "https"), (("https://a:1", "http://b:1"), "http")],
)
def test_what_was_given_by_https_is_reached_so_whatever_the_map_says(
    seeds: tuple[str, ...], scheme: str
) -> None:
    """A map that was published before the nodes had TLS would send the token in plain text."""
    made = _Routes(seeds, Made)
    assert made.learn(GroupsDocument(LOW, GroupMap(1, (LOW, HIGH))))
    assert made.client(HIGH).endpoints == (f"{scheme}://b:1",)
    assert next(made.sources()) == f"{scheme}://a:1"
    known = AsyncGroupedClient(seeds, cacert="ca.crt")._routes
    assert known.learn(GroupsDocument(LOW, GroupMap(1, (LOW, HIGH))))
    assert next(known.sources()) == "https://a:1", "it knows certificates"


def test_the_nodes_that_keep_the_map_are_asked_first() -> None:
    assert list(routes(LOW, HIGH).sources()) == ["http://a:1", "http://seed:1"]


def test_a_group_without_endpoints_is_unavailable() -> None:
    bare = Group("g1", ((0, 4095),))
    with pytest.raises(UnavailableError, match="endpoints"):
        routes(bare).client(bare)


def test_only_what_was_not_applied_and_may_be_elsewhere_is_tried_at_another_place() -> None:
    assert is_misrouted(UnavailableError("", code="unreachable"))
    assert is_misrouted(InvalidRequestError("", code="wrong_group"))
    assert is_misrouted(WrongClusterError("http://a:1", expected="x", found="y"))
    assert not is_misrouted(PreconditionFailedError(""))
    assert not is_misrouted(InvalidRequestError("", code="spans_groups"))


def test_etcds_clients_are_not_sent_to_other_nodes_of_the_same_group() -> None:
    said = from_problem(WrongGroupError(b"{7}", 2690, "g1"))
    assert said.code == INVALID_ARGUMENT
    assert "slot 2690" in said.message
