"""Who may be taken out of the cluster, and who may come in (rule M1). Pure: no clock, no I/O.

The primary decides, for it knows best who is alive: `refusals` says, for a view and what the
primary has just seen (`Facts`), why a node may not be removed. Each reason is a guard of its own.
Most yield to an operator who was told what may be lost and insists (`forcible`); see
docs/decisions/0012-removing-a-node.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from election.view import Member, View


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What the primary knows at the moment of a removal.

    `live`: the nodes that have just answered on the data path and have an open consensus link, and
    the primary itself; who is not among them counts as dead. `voters`: those whose votes count in
    consensus, as applied. `min_in_sync` as configured. `may_lack_entries`: the primary's own
    log was cut, and may lack what was acknowledged.
    """

    live: frozenset[str]
    voters: frozenset[str]
    min_in_sync: int = 1
    may_lack_entries: bool = False


class MembershipRefusal(msgspec.Struct, frozen=True, kw_only=True):
    """Why a change of the members is refused.

    `reason` says why and what to do instead, `loss` what may be lost if it is done all the same;
    `forcible`: whether it may be.
    """

    code: str
    reason: str
    loss: str = ""
    forcible: bool = True


def refusals(view: View, facts: Facts, node: str) -> list[MembershipRefusal]:
    """Return every reason why `node`, a member, may not be removed, the plainest first."""
    return [found for guard in GUARDS if (found := guard(view, facts, node)) is not None]


def unjudged(view: View, node: str, why: str) -> list[MembershipRefusal]:
    """Return why `node` may not be removed by a node that does not serve, for `why`."""
    if node == view.primary:
        reason = (
            f"{node} is the primary, and no other node can replace it now: bring back a "
            f"majority of the nodes and an in-sync replica ({', '.join(view.in_sync)})"
        )
        return [MembershipRefusal(code="is_primary", reason=reason, forcible=False)]
    loss = "all data that only that node holds, and the majority if its vote is needed"
    return [MembershipRefusal(code="no_primary", reason=without_a_primary(node, why), loss=loss)]


def without_a_primary(node: str, why: str) -> str:
    """Say that nobody can judge the removal of `node`."""
    return (
        f"without a primary it is unknown which data {node} alone may hold, so it is not "
        f"removed ({why}). Restore a primary first"
    )


def may_join(view: View, member: Member) -> MembershipRefusal | None:
    """Return why a node may not become a member by asking to; None if it may."""
    if member.id in view.removed and view.member(member.id) is None:
        return MembershipRefusal(
            code="removed",
            reason=f"node {member.id} was removed from this cluster, and an id cannot be used "
            "again: give the node a new id in the configuration file and an empty data directory",
            forcible=False,
        )
    # Members may swap theirs, one after the other, so only a newcomer's are judged here.
    return may_take_addresses(view, member) if view.member(member.id) is None else None


def may_take_addresses(view: View, member: Member) -> MembershipRefusal | None:
    """Return why a node may not have these addresses: another listens there, or it does twice."""
    taken = {
        address.lower(): (other.id, channel)
        for other in view.members
        if other.id != member.id
        for channel, address in _addresses(other)
    }
    for channel, address in _addresses(member):
        if (found := taken.get(address.lower())) is not None:
            holder, its_channel = found
            advice = "" if holder == member.id else f", or move {holder} first"
            return MembershipRefusal(
                code="address_in_use",
                reason=f"{address} is the {its_channel} address of {holder}: give {member.id} "
                f"another {channel} address{advice}",
                forcible=False,
            )
        taken[address.lower()] = member.id, channel
    return None


def _addresses(member: Member) -> tuple[tuple[str, str], ...]:
    return ("client", member.client), ("peer", member.peer), ("raft", member.raft)


def primary_stays(view: View, facts: Facts, node: str) -> MembershipRefusal | None:
    """The primary is never removed: it hands over first."""
    if node != view.primary:
        return None
    others = sorted((set(view.in_sync) & facts.live) - {node})
    if others:
        advice = f"hand over first (`onecopy handover {others[0]}`)"
    else:
        advice = "no other replica in sync can take over; bring one back first"
    return MembershipRefusal(
        code="is_primary", reason=f"{node} is the primary: {advice}", forcible=False
    )


def last_step_is_done(view: View, facts: Facts, node: str) -> MembershipRefusal | None:
    """One removal at a time: who was removed before has lost its vote too."""
    del node
    leaving = facts.voters - _members(view)
    if not leaving:
        return None
    names = _list(leaving)
    return MembershipRefusal(
        code="membership_pending",
        reason=f"the removal of {names} is still in progress: {names} still has its vote. Wait a "
        "moment and try again",
        loss="two removals are in progress at once, and each removed node must keep running "
        "until it exits by itself",
    )


def majority_agrees_now(view: View, facts: Facts, node: str) -> MembershipRefusal | None:
    """Nothing can be agreed without a majority of those who vote now."""
    del node, view
    live = facts.voters & facts.live
    if 2 * len(live) > len(facts.voters):
        return None
    return MembershipRefusal(
        code="no_majority",
        reason=f"of the voters ({_list(facts.voters)}) only {_list(live)} {_answer(live)}, which "
        "is not a majority, and without one no node can be removed: bring back "
        f"{_one_of(facts.voters - live)}",
        loss="it may never be agreed, or be agreed later, when a majority is back",
    )


def majority_is_left(view: View, facts: Facts, node: str) -> MembershipRefusal | None:
    """A majority of those who vote afterwards must be alive."""
    del view
    after = facts.voters - {node}
    if not after:
        return MembershipRefusal(
            code="unsafe_removal",
            reason=f"{node} is the only voter: without it nothing could ever be agreed",
            forcible=False,
        )
    live = after & facts.live
    if 2 * len(live) > len(after):
        return None
    dead = after - live
    return MembershipRefusal(
        code="unsafe_removal",
        reason=f"without {node} the voters would be {_list(after)}, of which only {_list(live)} "
        f"{_answer(live)}: no majority. {_first(dead)}",
        loss=f"no change of the primary or of the members can be agreed until {_list(dead)} "
        f"{_is(dead)} back, and never if its disk is lost: the next failure may stop the cluster "
        "for good",
    )


def no_other_is_dead(view: View, facts: Facts, node: str) -> MembershipRefusal | None:
    """A live node is not taken out while another is dead: it is what the cluster stands on."""
    dead = _members(view) - facts.live - {node}
    if node not in facts.live or not dead:
        return None
    if node not in view.in_sync and node not in facts.voters:
        return None
    return MembershipRefusal(
        code="unsafe_removal",
        reason=f"{node} is alive, and {_list(dead)} {_answer(dead, negate=True)}. {_first(dead)}",
        loss=f"the copy and the vote of {node}, while {_list(dead)} cannot replace them",
    )


def copy_is_left(view: View, facts: Facts, node: str) -> MembershipRefusal | None:
    """What was acknowledged must be left on a live replica that is sure to hold it."""
    left = (set(view.in_sync) - {node}) & facts.live
    if node not in view.in_sync or (left and not facts.may_lack_entries):
        return None
    if facts.may_lack_entries:
        why = f"the log of {view.primary}, the primary, was cut, and {node} may hold what it lacks"
    else:
        why = f"no other replica in sync ({_list(set(view.in_sync) - {node})}) is alive"
    return MembershipRefusal(
        code="unsafe_removal",
        reason=f"{node} may hold the last copy of acknowledged writes: {why}. Bring it back, or "
        "wait until the others hold everything (`onecopy status`)",
        loss=f"acknowledged writes that only {node} holds",
    )


def enough_in_sync_are_left(view: View, facts: Facts, node: str) -> MembershipRefusal | None:
    """As many replicas must stay in sync as every write needs (`limits.min_in_sync`)."""
    left = set(view.in_sync) - {node}
    if node not in view.in_sync or len(left) >= facts.min_in_sync:
        return None
    return MembershipRefusal(
        code="unsafe_removal",
        reason=f"without {node} only {_list(left)} would be in sync, and limits.min_in_sync is "
        f"{facts.min_in_sync}: no write would be acknowledged. Bring another replica into sync "
        "first, or lower limits.min_in_sync on every node",
        loss="every write will be refused until another replica is in sync",
    )


Guard = Callable[[View, Facts, str], MembershipRefusal | None]

GUARDS: tuple[Guard, ...] = (
    primary_stays,
    last_step_is_done,
    majority_agrees_now,
    majority_is_left,
    no_other_is_dead,
    copy_is_left,
    enough_in_sync_are_left,
)
"""Rule M1, guard by guard."""


def describe(found: list[MembershipRefusal], node: str) -> str:
    """Return the refusal for people: why, what to do, and what force would cost."""
    first = found[0]
    if not all(refusal.forcible for refusal in found):
        return next(refusal.reason for refusal in found if not refusal.forcible)
    losses = "; ".join(dict.fromkeys(refusal.loss for refusal in found))
    return (
        f"{first.reason}. Only if that is impossible, run `onecopy remove {node} --force`. "
        f"That may lose: {losses}"
    )


def _members(view: View) -> frozenset[str]:
    return frozenset(member.id for member in view.members)


def _list(nodes: Iterable[str]) -> str:
    return ", ".join(sorted(nodes)) or "none"


def _one_of(nodes: frozenset[str]) -> str:
    return _list(nodes) if len(nodes) == 1 else f"one of {_list(nodes)}"


def _is(nodes: frozenset[str]) -> str:
    return "is" if len(nodes) == 1 else "are"


def _answer(nodes: frozenset[str], *, negate: bool = False) -> str:
    if negate:
        return "does not answer" if len(nodes) == 1 else "do not answer"
    return "answer" if len(nodes) > 1 else "answers"


def _first(dead: frozenset[str]) -> str:
    one = min(dead)
    return f"Bring {_list(dead)} back, or remove it first (`onecopy remove {one}`)"
