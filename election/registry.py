"""What this process knows of the identity of nodes, for all its links. Safe to use from any thread.

The links of both planes are judged and counted here, so that a node whose one link breaks for a
moment is still known by its others (I5 in `election.identity`).
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import msgspec

from election.identity import (
    ACCEPTED,
    Addresses,
    Channel,
    Claim,
    IdentityCode,
    Known,
    Verdict,
    judge,
)
from election.release import FIRST_LEVEL, Release, own_release, unsupported
from election.view import Member, View

MAX_NOTICES = 16
NOTICE_LIFETIME_S = 600.0
ACCUSED_LIMIT_S = 10.0
"""How long a peer may call this process the second of its identity before this process ends: longer
than any link of its own predecessor can seem open."""
ACCUSATION_GAP_S = 3.0
"""A peer that has not repeated it for so long has stopped to say so."""


_Address = TypeVar("_Address")


class AddressRotation:
    """Which of a node's addresses to dial: stay with what worked, after a failure take the next."""

    def __init__(self) -> None:
        self._failures = 0

    def pick(self, found: Sequence[_Address], *, failed: bool) -> _Address | None:
        """Return one of `found`; `failed`: the last dial, or the link that came of it, did."""
        self._failures += failed
        return found[self._failures % len(found)] if found else None


class KnownMember(msgspec.Struct, frozen=True):
    """A member as a node remembers it over a restart."""

    data_id: str
    addresses: Addresses


def known_members(view: View) -> dict[str, KnownMember]:
    """Return what is to be remembered of a view's members."""
    return {member.id: KnownMember(member.data_id, addresses_of(member)) for member in view.members}


def addresses_of(member: Member) -> Addresses:
    """Return a member's agreed addresses."""
    return Addresses(member.client, member.peer, member.raft)


class PeerRegistry:
    """Judges claims by the newest view, and keeps who holds which identity now.

    `configured` are the addresses in this node's own configuration; `pins` gives the data ids of
    nodes met before there was a view; `members` are those remembered from the last run.
    `release` is this program's, `level` that of the cluster as far as it is known.
    """

    def __init__(
        self,
        node_id: str,
        data_id: str,
        instance: str,
        configured: Mapping[str, Addresses],
        *,
        cluster_id: str = "",
        members: Mapping[str, KnownMember] | None = None,
        pins: Callable[[], Mapping[str, str]] = dict,
        release: Release = own_release(""),  # noqa: B008 -- frozen
        level: int = FIRST_LEVEL,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.node_id = node_id
        self._configured = dict(configured)
        self._claim = Claim(
            cluster_id, data_id, instance, self._configured.get(node_id, Addresses())
        )
        self._members: Mapping[str, KnownMember] | None = members or None
        self._pins = pins
        self.release = release
        self._level = level
        self._releases: dict[str, tuple[str, Release]] = {}  # by node: instance, and what it runs
        self._clock = clock
        self._lock = threading.Lock()
        self._tokens = itertools.count(1)
        self._holders: dict[int, tuple[str, Claim, Callable[[], None]]] = {}
        self._notices: OrderedDict[str, float] = OrderedDict()
        self.on_notice: Callable[[str], None] = lambda _text: None
        """Told each new notice, on any thread; must not block."""
        self._had_a_link = False
        self._accused: dict[str, tuple[float, float, Verdict]] = {}  # peer: since, last, why

    @property
    def claim(self) -> Claim:
        """What this node says of itself."""
        return self._claim

    def learn(self, view: View) -> None:
        """Take the newest view: its members, and the cluster that this node belongs to."""
        with self._lock:
            self._members = known_members(view)
            self._claim = msgspec.structs.replace(self._claim, cluster_id=view.cluster_id)
            self._level = max(self._level, view.level)
            unfit = self._unfit()
        for evict in unfit:
            evict()

    def known(self, node: str) -> Known:
        """Return what is known of a node."""
        members = self._members
        member = members.get(node) if members is not None else None
        return Known(
            is_member=None if members is None else member is not None,
            data_id=(member.data_id if member else "") or self._pins().get(node, ""),
            agreed=member.addresses if member else Addresses(),
            configured=self._configured.get(node, Addresses()),
        )

    def dial_addresses(self, node: str, channel: Channel) -> list[str]:
        """Return where to look for a node: the agreed address first, then the configured one."""
        known = self.known(node)
        found = (known.agreed.of(channel), known.configured.of(channel))
        return [address for address in dict.fromkeys(found) if address]

    # -- links

    def judge(
        self,
        node: str,
        claim: Claim,
        channel: Channel,
        *,
        asking: bool,
        dialled: bool,
        release: Release | None = None,
    ) -> Verdict:
        """Return whether the node with that claim may have a link; note a second holder.

        `release`: what it runs, where it has told that; it counts for its other links too.
        """
        with self._lock:
            verdict = self._judge(node, claim, channel, asking=asking, dialled=dialled)
            if release is None or verdict.code:
                return verdict
            self._releases[node] = (claim.instance, release)
            verdict = self._judge_release(node, claim)
            unfit = self._unfit()
        for evict in unfit:
            evict()
        return verdict

    def open(
        self,
        node: str,
        claim: Claim,
        channel: Channel,
        evict: Callable[[], None],
        *,
        asking: bool,
        dialled: bool,
    ) -> int | Verdict:
        """Judge again and count the link as open, in one step; return what `close` takes.

        `evict` closes the link; it may be called on any thread and must not block.
        """
        with self._lock:
            verdict = self._judge(node, claim, channel, asking=asking, dialled=dialled)
            if verdict.code:
                return verdict
            replaced = [
                holder[2]
                for holder in self._holders.values()
                if holder[0] == node and holder[1].instance != claim.instance
            ]
            token = next(self._tokens)
            self._holders[token] = (node, claim, evict)
            self._had_a_link = True
            self._accused.pop(node, None)
        for evict_other in replaced:
            evict_other()
        return token

    def close(self, token: int) -> None:
        """Count the link as closed. Idempotent."""
        with self._lock:
            self._holders.pop(token, None)

    def _judge(
        self, node: str, claim: Claim, channel: Channel, *, asking: bool, dialled: bool
    ) -> Verdict:
        verdict = judge(
            self.node_id,
            self._claim,
            node,
            claim,
            self.known(node),
            channel,
            asking=asking,
            dialled=dialled,
            holders=[held for name, held, _ in self._holders.values() if name == node],
        )
        if verdict.code in ("second", "cluster", "data") and claim.cluster_id:
            self._notice(verdict.reason)
        return verdict if verdict.code or asking else self._judge_release(node, claim)

    # -- what the nodes run

    def _judge_release(self, node: str, claim: Claim) -> Verdict:
        """U1: whether what it is known to run supports the cluster's level."""
        instance, release = self._releases.get(node, ("", Release()))
        if instance != claim.instance:
            return ACCEPTED  # it tells that on its consensus link
        reason = unsupported(node, release, self._level)
        if not reason:
            return ACCEPTED
        self._notice(reason)
        return Verdict("member", reason)  # a code that the release before knows

    def _unfit(self) -> list[Callable[[], None]]:
        """Return what closes the links of nodes that may have none any more (U1)."""
        return [
            evict
            for node, claim, evict in self._holders.values()
            if self._judge_release(node, claim).code
        ]

    def releases(self) -> dict[str, Release]:
        """Return what runs on this node, and on those that have a link and have told it."""
        with self._lock:
            known = {
                node: self._releases[node][1]
                for node, claim, _ in self._holders.values()
                if node in self._releases and self._releases[node][0] == claim.instance
            }
        return {**known, self.node_id: self.release}

    # -- what people are told

    def notice(self, text: str) -> None:
        """Keep what another node has noticed."""
        with self._lock:
            self._keep(text)

    def report(self, text: str) -> None:
        """Keep what this node itself has noticed, and tell it to the others."""
        with self._lock:
            self._notice(text)

    def _notice(self, text: str) -> None:
        is_news = self._notices.get(text, float("-inf")) < self._clock() - NOTICE_LIFETIME_S
        self._keep(text)
        if is_news:
            self.on_notice(text)

    def _keep(self, text: str) -> None:
        self._notices.pop(text, None)
        self._notices[text] = self._clock()
        if len(self._notices) > MAX_NOTICES:
            self._notices.popitem(last=False)

    def accuse(self, peer: str, code: IdentityCode, reason: str) -> None:
        """Note that `peer`, which proved itself, refuses this process.

        It counts if this is the second process of its identity; or if it belongs to another cluster
        and has had no link with anybody: then its data directory is in the wrong place. (A member
        of this cluster that dials one wrong address has links with others.)
        """
        now = self._clock()
        with self._lock:
            if code != "second" and (code != "cluster" or self._had_a_link):
                return
            since, last, known = self._accused.get(peer, (now, now, ACCEPTED))
            if now - last >= ACCUSATION_GAP_S or known.code != code:
                since = now
            self._accused[peer] = (since, now, Verdict(code, reason))

    def accusation(self) -> Verdict:
        """Return why this process must end, or `ACCEPTED`."""
        with self._lock:
            for peer, (since, last, verdict) in self._accused.items():
                if last - since >= ACCUSED_LIMIT_S:
                    text = f"{peer} has refused this process for {last - since:.0f} s"
                    return Verdict(verdict.code, f"{text}: {verdict.reason}")
        return ACCEPTED

    def warnings(self) -> tuple[str, ...]:
        """Return sentences for `status`: who was shut out, and who runs at another address."""
        oldest = self._clock() - NOTICE_LIFETIME_S
        with self._lock:
            notices = [text for text, at in self._notices.items() if at >= oldest]
            holders = {node: claim for node, claim, _ in self._holders.values()}
        moved = []
        for node, claim in sorted(holders.items()):
            agreed = self.known(node).agreed
            if agreed != Addresses() and claim.addresses != agreed:
                moved.append(
                    f"{node} runs at {_text(claim.addresses)}, but the agreed addresses are "
                    f"{_text(agreed)}"
                )
        return (*notices, *moved)


def _text(addresses: Addresses) -> str:
    return f"client {addresses.client}, peer {addresses.peer}, raft {addresses.raft}"
