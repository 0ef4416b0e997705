"""Who may have a link: the rules of `election.identity`, one after the other and together."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from election.identity import ACCEPTED, Addresses, Claim, Known, Verdict, judge
from election.registry import (
    ACCUSATION_GAP_S,
    ACCUSED_LIMIT_S,
    MAX_NOTICES,
    NOTICE_LIFETIME_S,
    PeerRegistry,
    known_members,
)
from election.view import Member, View

HOME = Addresses("b:1", "b:2", "b:3")
AWAY = Addresses("x:1", "x:2", "x:3")
OWN = Claim("c1", "data a", "ia", Addresses("a:1", "a:2", "a:3"))
PEER = Claim("c1", "data b", "ib", HOME)
CLONE = msgspec.structs.replace(PEER, instance="clone", addresses=AWAY)
KNOWN = Known(is_member=True, data_id="data b", agreed=HOME, configured=HOME)
UNMET = Known()


def verdict(
    claim: Claim,
    known: Known = KNOWN,
    *,
    own: Claim = OWN,
    peer: str = "b",
    asking: bool = False,
    dialled: bool = False,
    holders: tuple[Claim, ...] = (),
    raft: bool = False,
) -> Verdict:
    return judge(
        "a",
        own,
        peer,
        claim,
        known,
        "raft" if raft else "peer",
        asking=asking,
        dialled=dialled,
        holders=holders,
    )


def changed(claim: Claim, **fields: object) -> Claim:
    return msgspec.structs.replace(claim, **fields)


EVERY_LINK: list[dict[str, Any]] = [
    {"asking": asking, "dialled": dialled, "raft": raft}
    for asking, dialled, raft in itertools.product((False, True), repeat=3)
    if not (asking and raft)
]


@pytest.mark.parametrize("link", EVERY_LINK)
def test_a_known_member_at_its_agreed_address_gets_every_link(link: dict[str, Any]) -> None:
    assert verdict(PEER, **link) == ACCEPTED


@pytest.mark.parametrize("link", EVERY_LINK)
def test_a_node_of_another_cluster_gets_none(link: dict[str, Any]) -> None:
    assert verdict(changed(PEER, cluster_id="c2"), **link).code == "cluster"


@pytest.mark.parametrize("link", EVERY_LINK)
def test_before_there_is_a_cluster_all_who_have_none_may_talk(link: dict[str, Any]) -> None:
    own, peer = changed(OWN, cluster_id=""), changed(PEER, cluster_id="")
    assert verdict(peer, UNMET, own=own, **link) == ACCEPTED


@pytest.mark.parametrize("link", EVERY_LINK)
def test_a_founder_that_has_not_heard_of_the_cluster_yet_is_known_by_its_data(
    link: dict[str, Any],
) -> None:
    pinned = Known(data_id="data b")
    assert verdict(changed(PEER, cluster_id=""), **link) == ACCEPTED
    assert verdict(PEER, pinned, own=changed(OWN, cluster_id=""), **link) == ACCEPTED


def test_who_has_no_cluster_may_ask_one_that_has_and_no_cluster_comes_to_him() -> None:
    newcomer = changed(PEER, cluster_id="")
    unknown = Known(is_member=False)
    assert verdict(newcomer, unknown, asking=True) == ACCEPTED
    assert verdict(newcomer, unknown).code == "cluster"
    assert verdict(PEER, UNMET, own=changed(OWN, cluster_id=""), asking=True, dialled=True) == (
        ACCEPTED
    )
    nameless = changed(newcomer, data_id="")
    assert verdict(nameless, UNMET).code == "cluster"
    stray = verdict(PEER, UNMET, own=changed(OWN, cluster_id=""), asking=True, dialled=False)
    assert stray.code == "cluster"


@pytest.mark.parametrize("link", EVERY_LINK)
def test_a_member_with_another_data_directory_gets_none(link: dict[str, Any]) -> None:
    assert verdict(changed(PEER, data_id="other"), **link).code == "data"


def test_a_member_that_lost_its_disk_may_ask_to_be_told_so() -> None:
    fresh = changed(PEER, cluster_id="", data_id="new")
    assert verdict(fresh, asking=True) == ACCEPTED
    assert verdict(fresh).code == "cluster"


def test_who_is_no_member_may_only_ask() -> None:
    unknown = Known(is_member=False)
    assert verdict(PEER, unknown).code == "member"
    assert verdict(PEER, unknown, asking=True) == ACCEPTED


def test_who_is_no_member_takes_part_in_consensus_as_long_as_that_counts_it() -> None:
    """A removed node votes until its vote is taken away."""
    assert verdict(PEER, Known(is_member=False), raft=True) == ACCEPTED


@pytest.mark.parametrize("raft", [False, True])
def test_a_member_at_another_address_may_only_ask_until_that_is_agreed(raft: bool) -> None:
    moved = changed(PEER, addresses=AWAY)
    assert verdict(moved, raft=raft).code == "address"
    assert verdict(moved, asking=True) == ACCEPTED
    agreed = msgspec.structs.replace(KNOWN, agreed=AWAY)
    assert verdict(moved, agreed, raft=raft) == ACCEPTED


@pytest.mark.parametrize("raft", [False, True])
def test_where_this_nodes_own_file_says_so_too_a_move_needs_no_agreement_first(raft: bool) -> None:
    """Else a cluster all of whose nodes have moved could never agree on anything again."""
    written = msgspec.structs.replace(KNOWN, configured=AWAY)
    assert verdict(changed(PEER, addresses=AWAY), written, raft=raft) == ACCEPTED


@pytest.mark.parametrize("link", EVERY_LINK)
def test_a_second_process_gets_no_link_while_the_first_has_one(link: dict[str, Any]) -> None:
    twin = changed(PEER, instance="twin")
    assert verdict(twin, **link, holders=(PEER,)).code == "second"
    assert verdict(CLONE, **link, holders=(PEER,)).code in ("second", "address")
    assert verdict(CLONE, asking=True, holders=(PEER,)).code == "second"


@pytest.mark.parametrize("link", EVERY_LINK)
def test_the_same_process_reconnects_at_once(link: dict[str, Any]) -> None:
    assert verdict(PEER, **link, holders=(PEER, PEER)) == ACCEPTED


def test_the_next_process_of_a_node_that_has_no_link_left_gets_in_at_once() -> None:
    assert verdict(changed(PEER, instance="next")) == ACCEPTED


def test_who_is_at_the_agreed_address_replaces_who_is_not_and_never_the_other_way() -> None:
    assert verdict(PEER, holders=(CLONE,)) == ACCEPTED
    assert verdict(CLONE, asking=True, holders=(PEER,)).code == "second"
    assert verdict(PEER, holders=(CLONE, changed(PEER, instance="twin"))).code == "second"
    another = changed(CLONE, instance="another clone")
    assert verdict(another, asking=True, holders=(CLONE,)).code == "second"


def test_a_process_with_ones_own_identity_is_always_refused() -> None:
    assert verdict(changed(OWN, instance="copy"), peer="a", asking=True).code == "second"


texts = st.sampled_from(["", "c1", "c2", "data b", "other", "ib", "clone"])
addresses = st.sampled_from([HOME, AWAY, Addresses()])
claims = st.builds(Claim, texts, texts, texts, addresses)


@settings(deadline=None)  # a busy machine is no failure
@given(claims, claims, st.lists(claims, max_size=3), st.booleans(), st.booleans())
def test_two_processes_never_hold_one_identity_at_the_agreed_address(
    own: Claim, claim: Claim, holders: list[Claim], asking: bool, dialled: bool
) -> None:
    found = verdict(claim, own=own, asking=asking, dialled=dialled, holders=tuple(holders))
    others = [holder for holder in holders if holder.instance != claim.instance]
    if found == ACCEPTED and others:
        assert claim.addresses == HOME
        assert all(holder.addresses != HOME for holder in others)
    if found == ACCEPTED and own.cluster_id and claim.cluster_id:
        assert own.cluster_id == claim.cluster_id
    if found == ACCEPTED and not asking:
        assert claim.data_id == "data b"


# -- the registry


def view(*, peer: str = "b:2", version: int = 1) -> View:
    members = (
        Member(id="a", role="replica", client="a:1", peer="a:2", raft="a:3", data_id="data a"),
        Member(id="b", role="replica", client="b:1", peer=peer, raft="b:3", data_id="data b"),
    )
    return View(
        cluster_id="c1", epoch=1, version=version, primary="a", in_sync=("a",), members=members
    )


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def registry(clock: Clock | None = None) -> PeerRegistry:
    made = PeerRegistry(
        "a", "data a", "ia", {"a": OWN.addresses, "b": HOME}, clock=clock or Clock()
    )
    made.learn(view())
    return made


def opened(made: PeerRegistry, claim: Claim, evicted: list[str], *, asking: bool = False) -> int:
    token = made.open(
        "b", claim, "peer", lambda: evicted.append(claim.instance), asking=asking, dialled=False
    )
    assert isinstance(token, int)
    return token


def refused(made: PeerRegistry, claim: Claim) -> Verdict:
    found = made.open("b", claim, "peer", lambda: None, asking=True, dialled=False)
    assert isinstance(found, Verdict)
    return found


def test_an_identity_is_held_as_long_as_any_link_of_it_is_open() -> None:
    made, evicted = registry(), list[str]()
    one, two = opened(made, PEER, evicted), opened(made, PEER, evicted)
    made.close(one)
    assert refused(made, CLONE).code == "second"
    made.close(two)
    opened(made, CLONE, evicted, asking=True)
    assert evicted == []


def test_the_original_that_returns_evicts_all_links_of_who_came_in_meanwhile() -> None:
    made, evicted = registry(), list[str]()
    opened(made, CLONE, evicted, asking=True)
    opened(made, CLONE, evicted, asking=True)
    opened(made, PEER, evicted)
    assert evicted == ["clone", "clone"]


def test_a_move_is_dialled_at_the_agreed_address_first_and_then_at_the_configured_one() -> None:
    made = registry()
    assert made.dial_addresses("b", "peer") == ["b:2"]
    made.learn(view(peer="moved:2", version=2))
    assert made.dial_addresses("b", "peer") == ["moved:2", "b:2"]
    assert made.dial_addresses("b", "raft") == ["b:3"]
    assert made.dial_addresses("stranger", "raft") == []


def test_members_remembered_from_the_last_run_count_before_the_first_view() -> None:
    made = PeerRegistry(
        "a", "data a", "ia", {}, cluster_id="c1", members=known_members(view(peer="moved:2"))
    )
    assert made.dial_addresses("b", "peer") == ["moved:2"]
    lost = msgspec.structs.replace(PEER, data_id="other")
    assert made.judge("b", lost, "raft", asking=False, dialled=True).code == "data"


def test_what_was_shut_out_is_told_once_and_shown_for_a_while() -> None:
    clock = Clock()
    made, told = registry(clock), list[str]()
    made.on_notice = told.append
    opened(made, PEER, [])
    refused(made, CLONE)
    refused(made, CLONE)
    assert len(told) == 1
    assert "two processes run as node b" in told[0]
    assert "'x:2'" in told[0]
    assert made.warnings() == (told[0],)
    clock.now = NOTICE_LIFETIME_S + 1
    assert made.warnings() == ()


def test_notices_are_bounded() -> None:
    made = registry()
    for number in range(3 * MAX_NOTICES):
        made.notice(str(number))
    assert len(made.warnings()) == MAX_NOTICES


def test_a_node_that_runs_at_another_address_than_agreed_is_shown() -> None:
    made = registry()
    opened(made, msgspec.structs.replace(PEER, addresses=AWAY), [], asking=True)
    (warning,) = made.warnings()
    assert "b runs at client x:1" in warning


def test_only_an_accusation_that_goes_on_ends_a_process() -> None:
    clock = Clock()
    made = registry(clock)
    while clock.now < ACCUSED_LIMIT_S:
        made.accuse("b", "second", "two processes run as node a")
        assert made.accusation() == ACCEPTED
        clock.now += 1
    made.accuse("b", "second", "two processes run as node a")
    assert "two processes run as node a" in made.accusation().reason


def test_an_accusation_that_was_dropped_counts_anew() -> None:
    clock = Clock()
    made = registry(clock)
    made.accuse("b", "second", "two")
    clock.now = ACCUSED_LIMIT_S + ACCUSATION_GAP_S
    made.accuse("b", "second", "two")
    assert made.accusation() == ACCEPTED
    clock.now += 1
    made.accuse("b", "second", "two")
    opened(made, PEER, [])
    clock.now += ACCUSATION_GAP_S
    assert made.accusation() == ACCEPTED


def test_a_node_in_the_wrong_cluster_ends_only_if_nobody_ever_knew_it() -> None:
    clock = Clock()
    lost, member = registry(clock), registry(clock)
    opened(member, PEER, [])
    while clock.now <= ACCUSED_LIMIT_S:
        for made in (lost, member):
            made.accuse("c", "cluster", "another cluster")
            made.accuse("d", "address", "at another address")
        clock.now += 1
    assert "another cluster" in lost.accusation().reason
    assert member.accusation() == ACCEPTED
