"""The view and its pure transitions: the one place that owns them.

A *view* says who is in charge. It changes only by `apply_change`, a total, deterministic function
run by every member of the consensus group on the same commands in the same order. Nothing here
reads a clock, draws a random number or raises: a change that may not happen is a `ViewRefusal`.

The shape (epoch, version, compare-and-set) follows PacificA's configurations and Kafka's KIP-497.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

MemberRole = Literal["replica", "witness"]


MAX_REMEMBERED_STEPS = 100
"""How many changes of the view the consensus group remembers."""
MAX_REMEMBERED_REMOVALS = 64
"""With ids of at most 31 characters, far below the largest command of consensus."""


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """A node that belongs to the cluster.

    `data_id` names its disk: a random hex string drawn when the data directory was made, empty
    until the node has registered it. A node whose disk was lost has another one, and is refused.
    `client`, `peer` and `raft` are "host:port".
    """

    id: str
    role: MemberRole
    client: str
    peer: str
    raft: str
    data_id: Annotated[str, msgspec.Meta(description="Names the node's disk.")] = ""


class View(msgspec.Struct, frozen=True, kw_only=True):
    """Who is in charge, as agreed.

    `epoch` rises whenever the primary changes (also to itself, after its restart); `version` rises
    with every change. `in_sync` and `members` are sorted by id; the primary is always in `in_sync`.
    `handed_over`: this epoch's predecessor gave up serving before it proposed the change, so the
    primary need not wait until promises made to the predecessor have run out (D4).
    `removed`: the ids removed last, oldest first, `MAX_REMEMBERED_REMOVALS` at most.
    `level`: what all members support (`election.release`); it only rises.
    """

    cluster_id: str
    epoch: int
    version: int
    primary: str
    in_sync: tuple[str, ...]
    members: tuple[Member, ...]
    handed_over: Annotated[
        bool, msgspec.Meta(description="Whether the epoch began with a planned handover.")
    ] = False
    removed: Annotated[
        tuple[str, ...], msgspec.Meta(description="The ids removed last, oldest first.")
    ] = ()
    level: Annotated[
        int, msgspec.Meta(description="The formats and features that every member supports.", ge=1)
    ] = 1

    def member(self, node_id: str) -> Member | None:
        """Return the member with that id, or None."""
        for member in self.members:
            if member.id == node_id:
                return member
        return None


class Bootstrap(msgspec.Struct, frozen=True, tag="bootstrap"):
    """Make the first view, at version 1. Needs that there is none yet (version 0).

    `epoch` is above 1 where the primary begins with data of another cluster (rule B2).
    """

    cluster_id: str
    primary: str
    members: tuple[Member, ...]
    epoch: int = 1
    level: int = 1


class TakeOver(msgspec.Struct, frozen=True, tag="take_over"):
    """Make an in-sync replica the primary of a new epoch.

    A primary that is replaced leaves the in-sync set in the same step; a primary that proposes
    itself (after its restart) stays.
    """

    candidate: str


class Handover(msgspec.Struct, frozen=True, tag="handover"):
    """Planned change of primary, proposed by the primary itself: the in-sync set stays whole."""

    to: str


class RemoveFromInSync(msgspec.Struct, frozen=True, tag="remove_from_in_sync"):
    """Take replicas out of the in-sync set (D5). Never the primary."""

    nodes: tuple[str, ...]


class AddToInSync(msgspec.Struct, frozen=True, tag="add_to_in_sync"):
    """Put a caught-up replica into the in-sync set (D7 is the proposer's to check)."""

    node: str


class AddMember(msgspec.Struct, frozen=True, tag="add_member"):
    """Add a node, or register the disk (`data_id`) and the addresses of one that is a member.

    A member may move to an address that the view still gives another one: it may have been left,
    or the two swap, one after the other. Whoever dials it learns from the handshake who is there.
    """

    member: Member


class RemoveMember(msgspec.Struct, frozen=True, tag="remove_member"):
    """Take a node out for good, and out of the in-sync set. Never the primary."""

    node: str


class Confirm(msgspec.Struct, frozen=True, tag="confirm"):
    """Change nothing but the version: settles commands whose outcome is unknown (E3).

    `level` raises that of the cluster. A member of an older release takes the rest of it, so that
    its view stays at the same version as the others' (docs/decisions/0036).
    """

    level: int = 0


ViewChange = (
    Bootstrap
    | TakeOver
    | Handover
    | RemoveFromInSync
    | AddToInSync
    | AddMember
    | RemoveMember
    | Confirm
)


StepKind = Literal[
    "bootstrap", "take_over", "restart", "handover", "removed_from_in_sync", "added_to_in_sync",
    "member_added", "member_changed", "member_removed",
]  # fmt: skip


class ViewStep(msgspec.Struct, frozen=True, array_like=True):
    """One change of the view that was agreed, for people to read. Nothing is decided by it (E2).

    `nodes`: whom it was about. `previous`: the primary before it, "" at the bootstrap. `restart`:
    a primary took over from itself. `at_ms`: when it was proposed, in ms since 1970 by the
    proposer's clock, which may be wrong; 0 if unknown.
    """

    version: int
    epoch: int
    kind: StepKind
    nodes: tuple[str, ...]
    primary: str
    previous: str
    in_sync: tuple[str, ...]
    at_ms: int = 0


class ViewRefusal(msgspec.Struct, frozen=True):
    """Why a change did not happen. `reason` is a sentence for people."""

    reason: str


def apply_change(
    view: View | None, change: ViewChange, expected_version: int
) -> View | ViewRefusal:
    """Return the view after `change`, or why it may not happen.

    `expected_version` is the version that the proposer saw (0: no view yet); any other current
    version refuses, which makes every change a compare-and-set.
    """
    version = 0 if view is None else view.version
    if expected_version != version:
        return ViewRefusal(f"the view is at version {version}, not {expected_version}")
    if view is None:
        if not isinstance(change, Bootstrap):
            return ViewRefusal("there is no view yet: the cluster has not been bootstrapped")
        return _bootstrap(change)
    match change:
        case Bootstrap():
            return ViewRefusal("the cluster has already been bootstrapped")
        case TakeOver(candidate):
            return _take_over(view, candidate)
        case Handover(to):
            return _handover(view, to)
        case RemoveFromInSync(nodes):
            return _remove_from_in_sync(view, nodes)
        case AddToInSync(node):
            return _add_to_in_sync(view, node)
        case AddMember(member):
            return _add_member(view, member)
        case RemoveMember(node):
            return _remove_member(view, node)
        case Confirm(level):
            return _next(view, level=max(view.level, level))


def step_of(
    before: View | None, change: ViewChange, after: View, at_ms: int = 0
) -> ViewStep | None:
    """Return what a change that was agreed has done; None: nothing to tell of."""
    previous = "" if before is None else before.primary
    kind: StepKind
    match change:
        case Bootstrap(primary=node):
            kind, nodes = "bootstrap", (node,)
        case TakeOver(node):
            kind, nodes = ("restart" if node == previous else "take_over"), (node,)
        case Handover(node):
            kind, nodes = "handover", (node,)
        case RemoveFromInSync(nodes):
            kind = "removed_from_in_sync"
        case AddToInSync(node):
            kind, nodes = "added_to_in_sync", (node,)
        case AddMember(member):
            is_known = before is not None and before.member(member.id) is not None
            kind, nodes = ("member_changed" if is_known else "member_added"), (member.id,)
        case RemoveMember(node):
            kind, nodes = "member_removed", (node,)
        case Confirm():
            return None
    return ViewStep(
        after.version, after.epoch, kind, nodes, after.primary, previous, after.in_sync, at_ms
    )


def _next(view: View, **changes: object) -> View:
    return msgspec.structs.replace(view, version=view.version + 1, **changes)


def _bootstrap(change: Bootstrap) -> View | ViewRefusal:
    members = tuple(sorted(change.members, key=lambda member: member.id))
    if len({member.id for member in members}) != len(members):
        return ViewRefusal("two members have the same id")
    if change.epoch < 1:
        return ViewRefusal(f"the first epoch is at least 1, not {change.epoch}")
    addresses = [address for m in members for address in (m.client, m.peer, m.raft)]
    if len(set(addresses)) != len(addresses):
        return ViewRefusal("two addresses of the members are the same")
    view = View(
        cluster_id=change.cluster_id,
        epoch=change.epoch,
        version=1,
        primary=change.primary,
        in_sync=(change.primary,),
        members=members,
        level=change.level,
    )
    member = view.member(change.primary)
    if member is None or member.role != "replica":
        return ViewRefusal(
            f"the first primary, {change.primary!r}, is not a replica among the members"
        )
    return view


def _take_over(view: View, candidate: str) -> View | ViewRefusal:
    # E1: only a member of the committed in-sync set; witnesses and learners never are.
    if candidate not in view.in_sync:
        return ViewRefusal(f"{candidate!r} is not in the in-sync set {list(view.in_sync)}")
    in_sync = view.in_sync
    if candidate != view.primary:
        in_sync = tuple(node for node in in_sync if node != view.primary)
    return _next(view, epoch=view.epoch + 1, primary=candidate, in_sync=in_sync, handed_over=False)


def _handover(view: View, to: str) -> View | ViewRefusal:
    if to not in view.in_sync:  # E1
        return ViewRefusal(f"{to!r} is not in the in-sync set {list(view.in_sync)}")
    if to == view.primary:
        return ViewRefusal(f"{to!r} is already the primary")
    return _next(view, epoch=view.epoch + 1, primary=to, handed_over=True)


def _remove_from_in_sync(view: View, nodes: tuple[str, ...]) -> View | ViewRefusal:
    if not nodes:
        return ViewRefusal("no node is named")
    for node in nodes:
        if node == view.primary:
            return ViewRefusal(f"{node!r} is the primary and stays in the in-sync set")
        if node not in view.in_sync:
            return ViewRefusal(f"{node!r} is not in the in-sync set {list(view.in_sync)}")
    return _next(view, in_sync=tuple(node for node in view.in_sync if node not in nodes))


def _add_to_in_sync(view: View, node: str) -> View | ViewRefusal:
    member = view.member(node)
    if member is None or member.role != "replica":
        return ViewRefusal(f"{node!r} is not a replica among the members")  # E1: a witness never is
    if node in view.in_sync:
        return ViewRefusal(f"{node!r} is already in the in-sync set")
    return _next(view, in_sync=tuple(sorted((*view.in_sync, node))))


def _add_member(view: View, member: Member) -> View | ViewRefusal:
    known = view.member(member.id)
    if known is not None:
        if known.data_id and known.data_id != member.data_id:
            return ViewRefusal(
                f"{member.id!r} is known with another data directory ({known.data_id[:8]}, not "
                f"{member.data_id[:8]}): a node that has lost its disk must return under a new id"
            )
        if known.role != member.role:
            return ViewRefusal(f"{member.id!r} is a {known.role}, not a {member.role}")
        if known == member:
            return ViewRefusal(f"{member.id!r} is already a member with these addresses")
    others = tuple(other for other in view.members if other.id != member.id)
    for other in others if known is None else ():
        if {other.client, other.peer, other.raft} & {member.client, member.peer, member.raft}:
            return ViewRefusal(f"{member.id!r} has an address that belongs to {other.id!r}")
    return _next(view, members=tuple(sorted((*others, member), key=lambda item: item.id)))


def _remove_member(view: View, node: str) -> View | ViewRefusal:
    if view.member(node) is None:
        return ViewRefusal(f"{node!r} is not a member")
    if node == view.primary:
        return ViewRefusal(f"{node!r} is the primary: hand over first")
    return _next(
        view,
        in_sync=tuple(item for item in view.in_sync if item != node),
        members=tuple(member for member in view.members if member.id != node),
        removed=(*(item for item in view.removed if item != node), node)[-MAX_REMEMBERED_REMOVALS:],
    )
