"""Which releases may form one cluster (rules U1 to U3)."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from election.identity import Addresses, Claim
from election.registry import PeerRegistry
from election.release import (
    FIRST_LEVEL,
    LEVEL,
    OLDEST_LEVEL,
    Release,
    first_level,
    may_raise,
    own_release,
    supports,
    understands,
    unsupported,
)
from election.view import AddToInSync, Bootstrap, Confirm, Member, View, apply_change

OLD = Release()
NEW = Release("2.0", 2, 1)
NEXT = Release("3.0", 3, 2)
MEMBERS = tuple(
    Member(id=node, role="replica", client=f"{node}:1", peer=f"{node}:2", raft=f"{node}:3")
    for node in ("n1", "n2", "n3")
)


def view_at(level: int) -> View:
    made = apply_change(None, Bootstrap("c", "n1", MEMBERS, level=level), 0)
    assert isinstance(made, View)
    return made


@pytest.mark.parametrize("release", [OLD, NEW, NEXT])
@pytest.mark.parametrize("level", [1, 2, 3])
def test_a_release_takes_part_at_the_levels_that_it_supports(release: Release, level: int) -> None:
    reason = unsupported("n1", release, level)
    assert bool(reason) is not supports(release, level)
    assert not reason or ("n1" in reason and f"level {level}" in reason)


def test_who_is_too_new_is_told_to_take_the_release_in_between() -> None:
    assert "finish-upgrade" in unsupported("n1", NEXT, 1)
    assert "the other nodes run" in unsupported("n1", OLD, 2)


def test_neighbouring_releases_have_a_level_in_common() -> None:
    assert OLDEST_LEVEL in (LEVEL - 1, LEVEL)
    assert own_release("x" * 100).is_usable


def test_the_level_rises_only_if_every_member_is_known_to_support_it() -> None:
    view = view_at(1)
    for releases in itertools.product((None, OLD, NEW), repeat=3):
        known = {m.id: r for m, r in zip(MEMBERS, releases, strict=True) if r is not None}
        assert (may_raise(view, 2, known) == "") is (releases == (NEW, NEW, NEW))
    assert "n2 runs an older onecopy" in may_raise(view, 2, {"n1": NEW, "n2": OLD, "n3": NEW})
    assert "n3 is unknown" in may_raise(view, 2, {"n1": NEW, "n2": NEW})


def test_a_first_view_begins_where_all_founders_can() -> None:
    assert first_level([NEW, NEXT]) == 2
    assert first_level([NEW, OLD, NEW]) == 1


def test_nothing_new_is_asked_of_who_may_not_understand_it() -> None:
    assert not understands(None, 2)
    assert not understands(OLD, 2)
    assert understands(NEW, 2)


def test_the_views_level_never_falls() -> None:
    raised = apply_change(view_at(1), Confirm(2), 1)
    assert isinstance(raised, View)
    assert (raised.level, raised.version) == (2, 2)
    for change in (Confirm(), AddToInSync("n2")):
        again = apply_change(raised, change, 2)
        assert isinstance(again, View)
        assert again.level == 2


class _OldConfirm(msgspec.Struct, frozen=True, tag="confirm"):
    """As the release before knows it."""


def test_the_release_before_reads_the_change_as_one_of_the_version_alone() -> None:
    data = msgspec.msgpack.encode(Confirm(2))
    assert msgspec.msgpack.decode(data, type=_OldConfirm) == _OldConfirm()
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(_OldConfirm()), type=Confirm) == Confirm()


# -- links


CLAIM = Claim("c", "data2", "instance", Addresses("n2:1", "n2:2", "n2:3"))


def registry(level: int = FIRST_LEVEL) -> PeerRegistry:
    return PeerRegistry("n1", "data1", "here", {}, cluster_id="c", release=NEW, level=level)


def judged(made: PeerRegistry, claim: Claim, release: Release | None) -> str:
    return made.judge("n2", claim, "raft", asking=False, dialled=True, release=release).reason


def test_a_node_that_does_not_support_the_level_has_no_link() -> None:
    made = registry(level=2)
    assert judged(made, CLAIM, OLD)
    peer = made.judge("n2", CLAIM, "peer", asking=False, dialled=True)
    assert peer.code, "what it has told on one link counts on the others"
    asking = made.judge("n2", CLAIM, "peer", asking=True, dialled=True)
    assert not asking.code, "it may ask, and learn why"
    upgraded = msgspec.structs.replace(CLAIM, instance="after its upgrade")
    assert not judged(made, upgraded, NEW)
    assert any("level 2" in text for text in made.warnings())


def test_links_are_closed_when_the_level_rises() -> None:
    made = registry()
    closed: list[str] = []
    assert not judged(made, CLAIM, OLD)
    made.open("n2", CLAIM, "peer", lambda: closed.append("peer"), asking=False, dialled=True)
    made.open("n2", CLAIM, "raft", lambda: closed.append("raft"), asking=False, dialled=True)
    assert made.releases() == {"n1": NEW, "n2": OLD}
    made.learn(view_at(1))
    assert not closed
    made.learn(view_at(2))
    assert sorted(closed) == ["peer", "raft"]


def test_what_a_node_ran_is_forgotten_with_its_links() -> None:
    made = registry()
    assert not judged(made, CLAIM, NEW)
    token = made.open("n2", CLAIM, "raft", lambda: None, asking=False, dialled=True)
    assert isinstance(token, int)
    assert made.releases()["n2"] == NEW
    made.close(token)
    assert "n2" not in made.releases()
