"""Who a node says it is, and whether that fits what is known of it. Pure.

Every link between two nodes, of either plane, begins with a *claim* from each end, under the
secret's proof: cluster id, data id, the instance (drawn at each start of a process) and the
addresses that its configuration gives it. `judge` decides whether the claim's owner may have the
link. An address is only a hint where to dial; these rules are what makes a wrong one harmless:

I1  A node of another cluster gets no link. One that belongs to none yet may ask to be admitted.
I2  A node gets no link with another data directory than the one it is known with.
I3  A node that the view does not hold gets no link but to ask.
I4  A node that claims another address than the agreed one (or the one that this node's own
    configuration gives it) may only ask: to have its new address agreed.
I5  One instance holds a node's identity: while one of its links is open, another instance is a
    second holder and gets none. Only who claims the agreed addresses replaces who does not.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import msgspec

Channel = Literal["peer", "raft"]
IdentityCode = Literal["", "cluster", "data", "member", "address", "second"]
MAX_CLAIM_TEXT_LENGTH = 300


class Addresses(msgspec.Struct, frozen=True, array_like=True):
    """Where a node is reached, each "host:port"; "" where that is not known."""

    client: str = ""
    peer: str = ""
    raft: str = ""

    def of(self, channel: Channel) -> str:
        """Return the address of one channel."""
        return self.peer if channel == "peer" else self.raft


class Claim(msgspec.Struct, frozen=True, array_like=True):
    """What a node says of itself in a handshake.

    `cluster_id` is "" before it belongs to a cluster; `data_id` names its data directory;
    `instance` its process; `addresses` are those of its own configuration.
    """

    cluster_id: str = ""
    data_id: str = ""
    instance: str = ""
    addresses: Addresses = Addresses()

    @property
    def is_usable(self) -> bool:
        """Whether every text has a length that may stand in a log."""
        texts = (self.cluster_id, self.data_id, self.instance, *_texts(self.addresses))
        return all(len(text) <= MAX_CLAIM_TEXT_LENGTH for text in texts)


class Known(msgspec.Struct, frozen=True):
    """What this node knows of a peer.

    `is_member`: the newest view holds it; None while no view is known. `data_id` "": any.
    `agreed` comes from the view, `configured` from this node's own configuration file.
    """

    is_member: bool | None = None
    data_id: str = ""
    agreed: Addresses = Addresses()
    configured: Addresses = Addresses()


class Verdict(msgspec.Struct, frozen=True):
    """`code` "": the link may open. Otherwise `reason` is a sentence for people."""

    code: IdentityCode = ""
    reason: str = ""


ACCEPTED = Verdict()


def judge(
    me: str,
    own: Claim,
    peer: str,
    claim: Claim,
    known: Known,
    channel: Channel,
    *,
    asking: bool,
    dialled: bool,
    holders: Collection[Claim],
) -> Verdict:
    """Return whether `peer`, which proved the secret and claims `claim`, may have a link with `me`.

    `asking`: the link carries questions only, among them to be admitted or moved. `dialled`: this
    side dialled. `holders` are the claims of the peer's links that are open.
    """
    if other_cluster(own, claim):
        return Verdict(
            "cluster",
            f"{peer} belongs to another cluster (id {claim.cluster_id[:8]}, not "
            f"{own.cluster_id[:8]}) with the same name and secret: check the addresses in the "
            "configuration, and give each cluster its own name and secret",
        )
    if peer == me:
        return Verdict("second", _second(me, claim, own))
    if not admitted(own, claim, known) and not may_ask(own, claim, asking, dialled):
        return Verdict(
            "cluster",
            f"one of {me} and {peer} belongs to a cluster that the other has not joined yet",
        )
    if other_data(claim, known) and not (asking and not claim.cluster_id):
        return Verdict(
            "data",
            f"{peer} is known with another data directory ({known.data_id[:8]}, not "
            f"{claim.data_id[:8]}): start it with that one, or remove it and give it a new id",
        )
    if known.is_member is False and channel == "peer" and not asking:
        return Verdict("member", f"{peer} is not a member, as far as {me} knows")
    if not asking and not at_known_address(claim, known, channel):
        return Verdict(
            "address",
            f"{peer} reports the address {claim.addresses.of(channel)}, but the agreed address "
            f"is {known.agreed.of(channel)}: the new address must be agreed first",
        )
    second = second_holder(claim, known, holders)
    if second is not None:
        return Verdict("second", _second(peer, claim, second))
    return ACCEPTED


def other_cluster(own: Claim, claim: Claim) -> bool:
    """I1: both belong to a cluster, and not to the same."""
    return bool(own.cluster_id and claim.cluster_id) and own.cluster_id != claim.cluster_id


def admitted(own: Claim, claim: Claim, known: Known) -> bool:
    """I1: where only one side knows its cluster yet, the other's data directory must be known."""
    if own.cluster_id == claim.cluster_id:
        return True
    return known.data_id != "" and known.data_id == claim.data_id


def may_ask(own: Claim, claim: Claim, asking: bool, dialled: bool) -> bool:
    """I1: who has no cluster yet may ask one that has; the cluster does not come to it."""
    return asking and (dialled if not own.cluster_id else not claim.cluster_id)


def other_data(claim: Claim, known: Known) -> bool:
    """I2: it is known with another data directory."""
    return known.data_id not in ("", claim.data_id)


def at_known_address(claim: Claim, known: Known, channel: Channel) -> bool:
    """I4: it claims the agreed address, or the one that this node's operator has written down."""
    agreed = known.agreed.of(channel)
    return not agreed or claim.addresses.of(channel) in (agreed, known.configured.of(channel))


def second_holder(claim: Claim, known: Known, holders: Collection[Claim]) -> Claim | None:
    """I5: return the claim of the instance that holds this identity, if it keeps it."""
    others = [holder for holder in holders if holder.instance != claim.instance]
    if not others or (
        at_agreed_addresses(claim, known)
        and not any(at_agreed_addresses(holder, known) for holder in others)
    ):
        return None
    return others[0]


def at_agreed_addresses(claim: Claim, known: Known) -> bool:
    """Whether nodes reach its owner, and no other process, at what it claims."""
    agreed = known.agreed
    return (claim.addresses.peer, claim.addresses.raft) == (agreed.peer, agreed.raft)


def _second(node: str, claim: Claim, holder: Claim) -> str:
    return (
        f"two processes run as node {node}: one at {holder.addresses.peer!a}, and a second "
        f"one at {claim.addresses.peer!a}, which was refused. One of their data directories is a "
        "copy of the other: stop the process that runs on the copy"
    )


def _texts(addresses: Addresses) -> tuple[str, str, str]:
    return addresses.client, addresses.peer, addresses.raft
