"""The map of groups: what can be one, and what may replace one (G2)."""

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.groups.group_map import (
    Group,
    GroupMap,
    GroupMapError,
    SpansGroupsError,
    check_map,
    decode_map,
    describe_group,
    encode_map,
    may_replace_map,
    owns,
    route,
    slots_in,
)
from cluster.groups.partition import SLOTS, slot_of
from datapath.keyspaces import after_prefix

TWO = GroupMap(
    1,
    (
        Group("g1", ((0, 2047),), ("http://127.0.0.1:8101",)),
        Group("g2", ((2048, 4095),), ("http://127.0.0.1:8111", "https://[::1]:8112")),
    ),
)


@st.composite
def maps(draw: st.DrawFn) -> GroupMap:
    """Maps of up to six groups with any ranges."""
    cuts = sorted(draw(st.sets(st.integers(1, SLOTS - 1), max_size=7)))
    edges = [0, *cuts, SLOTS]
    ranges = [(first, last - 1) for first, last in itertools.pairwise(edges)]
    count = draw(st.integers(1, min(6, len(ranges))))
    owners = [*range(count), *(draw(st.integers(0, count - 1)) for _ in ranges[count:])]
    groups = tuple(
        Group(
            f"g{number}",
            tuple(r for r, owner in zip(ranges, owners, strict=True) if owner == number),
        )
        for number in range(count)
    )
    return GroupMap(draw(st.integers(1, 9)), groups)


@given(maps(), st.text("ab/{}7", max_size=10).map(str.encode))
def test_every_slot_has_exactly_one_owner(found: GroupMap, key: bytes) -> None:
    check_map(decode_map(encode_map(found)))
    owners = [group for group in found.groups if owns(group.slots, slot_of(key))]
    assert owners == [route(found, key, key + b"\0")]
    assert sum(len(list(slots_in(group.slots))) for group in found.groups) == SLOTS


@given(maps(), maps())
def test_a_map_that_may_replace_another_routes_every_slot_to_the_same_group(
    held: GroupMap, offered: GroupMap
) -> None:
    if not may_replace_map(held, offered):
        assert offered.version > held.version
        for slot in range(0, SLOTS, 37):
            owner = [g.id for g in held.groups if owns(g.slots, slot)]
            assert owner == [g.id for g in offered.groups if owns(g.slots, slot)]


def test_addresses_may_change() -> None:
    moved = msgspec.structs.replace(TWO.groups[1], endpoints=("http://10.0.0.1:81",))
    newer = GroupMap(2, (TWO.groups[0], moved))
    assert may_replace_map(TWO, newer) == ""
    assert may_replace_map(None, TWO) == ""
    assert may_replace_map(newer, TWO) != ""
    assert may_replace_map(TWO, GroupMap(1, newer.groups)) != ""


def test_slots_may_not() -> None:
    other = GroupMap(2, (Group("g1", ((0, 2048),)), Group("g2", ((2049, 4095),))))
    assert "stay as they are" in may_replace_map(TWO, other)
    assert "stay as they are" in may_replace_map(TWO, GroupMap(2, (Group("g1", ((0, 4095),)),)))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"", "not a map"),
        (b"[" * 5000, "not a map"),
        (b'{"version": 0, "groups": []}', "version"),
        (b'{"version": 1, "groups": []}', "groups: must be 1"),
        (b'{"version": 1, "slots": 16, "groups": [{"id": "a", "slots": [[0, 15]]}]}', "slots"),
        (b'{"version": 1, "groups": [{"id": "a", "slots": [[0, 4094]]}]}', "slot 4095"),
        (b'{"version": 1, "groups": [{"id": "A", "slots": [[0, 4095]]}]}', "groups[0].id"),
        (b'{"version": 1, "groups": [{"id": "a", "slots": [[0, 4096]]}]}', "groups[0].slots"),
        (b'{"version": 1, "groups": [{"id": "a", "slots": [[5, 4]]}]}', "groups[0].slots"),
        (b'{"version": 1, "groups": [{"id": "a", "slots": []}]}', "groups[0].slots"),
        (b'{"version": 1, "groups": [{"id": "a", "slots": [[9, 4095], [0, 8]]}]}', "above those"),
        (
            b'{"version":1,"groups":[{"id":"a","slots":[[0,4095]]},{"id":"b","slots":[[7,7]]}]}',
            "slot 7 belongs to 'a' and to 'b'",
        ),
        (
            b'{"version":1,"groups":[{"id":"a","slots":[[0,7]]},{"id":"a","slots":[[8,4095]]}]}',
            "is there twice",
        ),
        (
            b'{"version": 1, "groups": [{"id": "a", "slots": [[0, 4095]], "x": 1}]}',
            "unknown field",
        ),
    ],
)
def test_what_is_no_map_is_refused_with_its_field(text: bytes, told: str) -> None:
    with pytest.raises(GroupMapError) as caught:
        decode_map(text)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["", "127.0.0.1:8101", "http://a", "ftp://a:1", "http://a:1/x", "http://u@a:1", "http://[:1",
     "http://a:99999"],
)  # fmt: skip
def test_an_endpoint_is_a_url_of_a_node(url: str) -> None:
    found = GroupMap(1, (Group("a", ((0, 4095),), (url,)),))
    with pytest.raises(GroupMapError, match=r"groups\[0\].endpoints"):
        check_map(found)


def test_ranges_go_to_one_group_or_are_refused() -> None:
    group = TWO.owner(slot_of(b"orders/"))
    assert route(TWO, b"orders/", after_prefix(b"orders/")) == group
    with pytest.raises(SpansGroupsError, match="several groups"):
        route(TWO, b"orders", after_prefix(b"orders"))
    whole = GroupMap(1, (Group("g1", ((0, 4095),)),))
    assert route(whole, b"", None).id == "g1"


def test_a_group_as_it_is_bound() -> None:
    assert describe_group("g1", ((0, 9), (11, 11))) == "g1:0-9,11-11"
