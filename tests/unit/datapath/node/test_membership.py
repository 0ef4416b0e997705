"""Rule M1, guard by guard: which node may be taken out, as the primary sees the cluster."""

from __future__ import annotations

import msgspec
import pytest

from datapath.errors import RejectedError
from datapath.node.gateway import Gateway
from datapath.node.membership import (
    Facts,
    MembershipRefusal,
    describe,
    may_join,
    may_take_addresses,
    refusals,
)
from election.static import StaticGroup
from election.view import Member, MemberRole, RemoveMember, View, apply_change


def member(node: str) -> Member:
    role: MemberRole = "witness" if node.startswith("w") else "replica"
    return Member(id=node, role=role, client=f"{node}:1", peer=f"{node}:2", raft=f"{node}:3")


def view_of(members: str, in_sync: str, removed: str = "") -> View:
    """Return a view; the primary is the first in sync."""
    return View(
        cluster_id="c",
        epoch=1,
        version=1,
        primary=in_sync.split(maxsplit=1)[0],
        in_sync=tuple(sorted(in_sync.split())),
        members=tuple(member(node) for node in sorted(members.split())),
        removed=tuple(removed.split()),
    )


def judge(
    view: View, node: str, dead: str = "", voters: str | None = None, min_in_sync: int = 1
) -> MembershipRefusal | None:
    members = {item.id for item in view.members}
    facts = Facts(
        live=frozenset(members - set(dead.split())),
        voters=frozenset(members if voters is None else voters.split()),
        min_in_sync=min_in_sync,
    )
    return next(iter(refusals(view, facts, node)), None)


@pytest.mark.parametrize(
    ("members", "in_sync", "node", "dead"),
    [
        ("n1 n2 n3", "n1 n2 n3", "n3", ""),
        ("n1 n2 n3", "n1 n2", "n3", "n3"),
        ("n1 n2", "n1 n2", "n2", ""),  # from two to one
        ("n1 n2 w1", "n1 n2", "w1", ""),
        ("n1 n2 w1", "n1 n2", "w1", "w1"),
        ("n1 n2 w1", "n1", "n2", "n2"),
        ("n1 n2 n3 n4 n5", "n1 n2 n3", "n5", "n4 n5"),  # one dead after the other
        ("n1 n2 n3", "n1 n2 n3", "n3", "n3"),  # dead, and consensus has not let it go yet
    ],
)
def test_what_costs_nothing_is_allowed(members: str, in_sync: str, node: str, dead: str) -> None:
    assert judge(view_of(members, in_sync), node, dead) is None


@pytest.mark.parametrize(
    ("members", "in_sync", "node", "dead", "code", "says"),
    [
        ("n1 n2 n3", "n1 n2", "n1", "n3", "is_primary", "handover n2"),
        ("n1 n2", "n1", "n1", "", "is_primary", "bring one back"),
        ("n1 n2 n3", "n1 n2", "n2", "n3", "unsafe_removal", "`onecopy remove n3`"),
        ("n1 n2 w1", "n1", "w1", "n2", "unsafe_removal", "`onecopy remove n2`"),
        ("n1 n2 w1", "n1 n2", "n2", "w1", "unsafe_removal", "`onecopy remove w1`"),
        ("n1 n2 n3 n4 n5", "n1 n2 n3 n4", "n2", "n5", "unsafe_removal", "n5 does not answer."),
        ("n1 n2 n3 w1 w2", "n1 n2 n3", "w1", "n3", "unsafe_removal", "w1 is alive"),
        ("n1 n2", "n1", "n2", "n2", "no_majority", "bring back n2"),
        ("n1 n2 n3", "n1", "n3", "n2 n3", "no_majority", "bring back one of n2, n3"),
        ("n1", "n1", "n1", "", "is_primary", "bring one back"),
        ("n1 n2 n3", "n1", "n3", "n2 n3", "no_majority", "only n1 answers"),
        ("n1 n2 n3 n4", "n1 n2", "n4", "n3 n4", "no_majority", "n1, n2 answer,"),
    ],
)
def test_what_may_cost_the_cluster_is_refused(
    members: str, in_sync: str, node: str, dead: str, code: str, says: str
) -> None:
    refusal = judge(view_of(members, in_sync), node, dead)
    assert refusal is not None
    assert refusal.code == code
    assert says in refusal.reason


def test_without_a_majority_afterwards_it_is_refused() -> None:
    view = view_of("n1 n2 n3", "n1 n2")
    facts = Facts(live=frozenset({"n1", "n2"}), voters=frozenset({"n1", "n2", "n3"}))
    (first, second) = refusals(view, facts, "n2")
    assert "the voters would be n1, n3" in first.reason
    assert "n2 is alive" in second.reason
    both = msgspec.structs.replace(facts, live=frozenset({"n2"}))
    reasons = [item.reason for item in refusals(view, both, "n2")]
    assert any("n2 is alive, and n1, n3 do not answer" in reason for reason in reasons)


def test_that_nobody_votes_who_answers_is_said() -> None:
    view = view_of("n1 n2 w1", "n1 n2")
    refusal = judge(view, "n2", dead="w1", voters="w1")
    assert refusal is not None
    assert "only none answers" in refusal.reason


def test_the_only_one_that_votes_stays() -> None:
    view = view_of("n1 n2", "n1 n2")
    found = refusals(view, Facts(live=frozenset({"n1", "n2"}), voters=frozenset({"n2"})), "n2")
    assert [item.code for item in found if not item.forcible] == ["unsafe_removal"]
    assert "n2 is the only voter" in describe(found, "n2")


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"peer": "n2:2"}, "n2:2 is the peer address of n2: give n4 another peer address, or move"),
        ({"peer": "N2:2"}, "N2:2 is the peer address of n2"),
        ({"client": "n3:3"}, "n3:3 is the raft address of n3: give n4 another client address, or"),
        ({"raft": "n4:2"}, "n4:2 is the peer address of n4: give n4 another raft address"),
    ],
)
def test_two_never_listen_at_one_address(changed: dict[str, str], says: str) -> None:
    wrong = msgspec.structs.replace(member("n4"), **changed)
    for members in ("n1 n2 n3", "n1 n2 n3 n4"):
        view = view_of(members, "n1")
        refusal = may_take_addresses(view, wrong)
        assert refusal is not None
        assert refusal.reason.startswith(says)
        assert ("first" in refusal.reason) == ("of n4:" not in refusal.reason)
        assert may_take_addresses(view, member("n4")) is None
    newcomer = may_join(view_of("n1 n2 n3", "n1"), wrong)
    assert newcomer is not None
    assert newcomer.code == "address_in_use"


def test_members_may_swap_addresses() -> None:
    view = view_of("n1 n2 n3", "n1")
    swapped = msgspec.structs.replace(member("n2"), client="n3:1", peer="n3:2", raft="n3:3")
    assert may_join(view, swapped) is None


def test_one_removal_waits_for_the_vote_of_the_one_before() -> None:
    view = view_of("n1 n2", "n1 n2", "n3")
    refusal = judge(view, "n2", voters="n1 n2 n3")
    assert refusal is not None
    assert refusal.code == "membership_pending"
    assert "n3" in refusal.reason
    assert judge(view, "n2", voters="n1 n2") is None


def test_an_addition_that_waits_keeps_no_dead_node_in() -> None:
    view = view_of("n1 n2 n3 n4", "n1 n3")
    assert judge(view, "n2", dead="n2 n4", voters="n1 n2 n3") is None
    assert judge(view, "n4", dead="n4", voters="n1 n2 n3") is None
    assert judge(view, "n4", dead="n2", voters="n1 n2 n3") is None, "it has no copy and no vote"
    copy = view_of("n1 n2 n3 n4", "n1 n3 n4")
    refusal = judge(copy, "n4", dead="n2", voters="n1 n2 n3")
    assert refusal is not None, "it has a copy, though no vote yet"
    assert "n4 is alive" in refusal.reason


def test_the_last_copy_stays_where_the_primary_lacks_something() -> None:
    view = view_of("n1 n2 n3", "n1 n2")
    facts = Facts(
        live=frozenset({"n1", "n3"}), voters=frozenset({"n1", "n2", "n3"}), may_lack_entries=True
    )
    refusal = refusals(view, facts, "n2")[0]
    assert "last copy" in refusal.reason
    assert "the log of n1, the primary, was cut" in refusal.reason
    assert "n2 holds" in refusal.loss
    assert refusals(view_of("n1 n2 n3", "n1"), facts, "n2") == [], "it was not in sync"
    certain = msgspec.structs.replace(facts, may_lack_entries=False)
    assert refusals(view, certain, "n2") == []


def test_the_last_live_copy_besides_a_primary_that_is_not_sure_to_live_stays() -> None:
    view = view_of("n1 n2 n3", "n1 n2")
    facts = Facts(live=frozenset({"n2", "n3"}), voters=frozenset({"n1", "n2", "n3"}))
    found = [item.reason for item in refusals(view, facts, "n2")]
    assert any("no other replica in sync (n1) is alive" in reason for reason in found)


def test_as_many_stay_in_sync_as_every_write_needs() -> None:
    view = view_of("n1 n2 n3 w1 w2", "n1 n2")
    refusal = judge(view, "n2", min_in_sync=2)
    assert refusal is not None
    assert "limits.min_in_sync" in refusal.reason
    assert judge(view, "n3", min_in_sync=2) is None
    alone = view_of("n1 n2 n3", "n1")
    assert judge(alone, "n3", dead="n3", min_in_sync=2) is None, "it was not in sync before"
    assert judge(view_of("n1 n2 n3", "n1 n2 n3"), "n2", min_in_sync=2) is None


def test_what_force_may_cost_is_said() -> None:
    view = view_of("n1 n2 n3", "n1 n2")
    facts = Facts(live=frozenset({"n1", "n2"}), voters=frozenset({"n1", "n2", "n3"}))
    text = describe(refusals(view, facts, "n2"), "n2")
    assert "onecopy remove n2 --force" in text
    alone = msgspec.structs.replace(facts, live=frozenset({"n2"}))
    assert "until n1, n3 are back" in describe(refusals(view, alone, "n2"), "n2")
    assert "no change of the primary or of the members can be agreed until n3 is back" in text
    firm = MembershipRefusal(code="x", reason="it is out of the question", forcible=False)
    assert describe([*refusals(view, facts, "n2"), firm], "n2") == firm.reason
    primary = describe(refusals(view, facts, "n1"), "n1")
    assert "--force" not in primary, "the primary is never removed"


def test_a_removed_id_does_not_come_in_again() -> None:
    view = view_of("n1 n2", "n1", removed="n3")
    refusal = may_join(view, member("n3"))
    assert refusal is not None
    assert "new id" in refusal.reason
    assert may_join(view, member("n4")) is None
    assert may_join(view, member("n2")) is None, "it is a member, and repeats its request"
    back = view_of("n1 n2", "n1", removed="n2")
    assert may_join(back, member("n2")) is None, "who is a member is asked for nothing more"


async def test_a_removed_id_does_not_come_in_by_a_node_that_has_not_heard_of_the_removal() -> None:
    """The node that is asked judges again by the view that its change is made for."""
    group = StaticGroup(view_of("n1 n2 n3", "n1 n2"))
    agreement = group.agreement("n1")
    await agreement.start()
    gateway = Gateway("n1", "test", agreement, lambda _node, _data: True)
    assert agreement.view is not None
    gateway.on_view(agreement.view)
    without = apply_change(group.view, RemoveMember("n3"), agreement.view.version)
    assert isinstance(without, View)
    group.view = without
    anew = msgspec.structs.replace(member("n3"), data_id="new")
    with pytest.raises(RejectedError, match="an id cannot be used again"):
        await gateway.add_member(anew, 1000)
    assert group.view == without
    await gateway.stop()
