"""The links of one member: who is dialled, who may come in, which link counts.

Of each pair the member with the larger id dials the other, at each address in turn where it may
be. A link that opens replaces the pair's older one, which is closed with whatever it had not
delivered. Only members are let in, and those that the view names but that have no vote yet: there
are no read-only peers and no anonymous requests; and of two processes under one id only one
(`election.identity`). What a side remembers of the other is the first that it says (decision 18).
Every stage of a connection has a deadline.

A member that has missed who the members are is found all the same: a leader dials whom it has not
heard, and who hears no leader lets others in (docs/decisions/0021-who-missed-the-changes.md).
"""

from __future__ import annotations

import functools
import logging
import socket
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from typing import Any, Protocol

from pysyncobj.node import Node
from pysyncobj.transport import Transport

from election.identity import Verdict
from election.pysyncobj_adapter import wire
from election.pysyncobj_adapter.clock import monotonic
from election.pysyncobj_adapter.codec import UNDECODABLE
from election.pysyncobj_adapter.errors import RaftStorageFullError
from election.pysyncobj_adapter.journal import Journal
from election.pysyncobj_adapter.link import Greeting, RaftLink
from election.pysyncobj_adapter.listener import RaftListener
from election.pysyncobj_adapter.member_registry import MemberBook
from election.pysyncobj_adapter.network import Network
from election.pysyncobj_adapter.peer_marks import PeerMark, PeerMarks
from election.pysyncobj_adapter.poller import Poller
from election.pysyncobj_adapter.settings import AgreementSettings

MAX_STRANGERS = 32
PING_INTERVAL_S = 0.1
REACHING_PATIENCE_S = 1.0
"""A leader dials a larger id itself that has had no link for so long."""
TELL_INTERVAL_S = 1.0
"""How far this member is, it tells at most so often on each link."""
_REFUSAL_LOG_INTERVAL_S = 5.0
_REFUSED_DIAL_PAUSE_S = 0.4

_PING = wire.encode_raft_message(wire.Ping())

logger = logging.getLogger(__name__)


class Receiver(Protocol):
    """Who takes the messages: the Raft core."""

    def on_message(self, node: Node, message: wire.RaftMessage) -> None:
        """Take one message from a member."""

    def on_remembered(self, node: Node, mark: PeerMark) -> None:
        """Take what a member remembers of this one: before any other message on its link."""


class RaftTransport(Transport):  # type: ignore[misc]
    """PySyncObj's transport interface (hence the method names) over authenticated links."""

    def __init__(
        self,
        receiver: Receiver,
        me: Node,
        others: set[Node],
        *,
        settings: AgreementSettings,
        network: Network,
        poller: Poller,
        journal: Journal,
        book: MemberBook,
        marks: PeerMarks,
        own_mark: Callable[[], PeerMark],
        dial_addresses: Callable[[str], list[str]],
        welcome: Callable[[], AbstractSet[str]],
        lets_in: Callable[[str], bool],
        reaches_for: Callable[[str], bool],
    ) -> None:
        """Bind the raft port at once; links are made on ticks.

        Raises:
            AddressInUseError: the port cannot be bound.

        """
        super().__init__(receiver, me, others)
        self._receiver = receiver
        self._me = str(me.id)
        self._settings = settings
        self._poller = poller
        self._journal = journal
        self._book = book
        self._marks = marks
        self._own_mark = own_mark
        self._dial_addresses = dial_addresses
        self._welcome = welcome
        self._lets_in = lets_in
        self._reaches_for = reaches_for
        self._unlinked_since: dict[str, float] = {}
        self._network = network
        self._nodes: dict[str, Node] = {str(node.id): node for node in others}
        self._open: dict[str, RaftLink] = {}
        self._dialing: dict[str, RaftLink] = {}
        self._strangers: list[RaftLink] = []
        self._dialed_at: dict[str, float] = {}
        self._failed_dials: dict[str, int] = {}
        self._evicted: set[RaftLink] = (
            set()
        )  # to be closed at the next tick; added to by any thread
        self._refusal_logged_at = 0.0
        self._listener = RaftListener(settings.bind_address, poller, self._on_accepted, network)

    # What PySyncObj calls.

    def addNode(self, node: Node) -> None:  # noqa: N802
        """Take a member in."""
        self._nodes[str(node.id)] = node

    def dropNode(self, node: Node) -> None:  # noqa: N802
        """Put a member out, and close its link."""
        node_id = str(node.id)
        self._nodes.pop(node_id, None)
        for links in (self._open, self._dialing):
            link = links.get(node_id)
            if link is not None:
                link.close()
        self._dialed_at.pop(node_id, None)
        self._failed_dials.pop(node_id, None)
        self._unlinked_since.pop(node_id, None)

    def send(self, node: Node, message: dict[str, Any]) -> bool:
        """Send one of PySyncObj's messages; False if there is no link."""
        return self.send_wire(str(node.id), wire.from_pysyncobj(message))

    def destroy(self) -> None:
        """Close everything."""
        self.setOnNodeConnectedCallback(None)
        self.setOnNodeDisconnectedCallback(None)
        self._listener.close()
        for link in (*self._strangers, *self._dialing.values(), *self._open.values()):
            link.close()

    # What the Raft core calls.

    def send_wire(self, node_id: str, message: wire.RaftMessage) -> bool:
        """Send a message; False if there is no link. All that it may promise is durable first."""
        link = self._open.get(node_id)
        if link is None:
            return False
        self._journal.sync()
        link.send(wire.encode_raft_message(message), monotonic())
        return not link.closed

    def connected(self) -> list[str]:
        """Return the ids of the members with an open link."""
        return list(self._open)

    @property
    def has_links(self) -> bool:
        """Whether any link is open."""
        return bool(self._open)

    def is_heard(self, node_id: str, since: float) -> bool:
        """Whether something was read on an open link from that member since then."""
        link = self._open.get(node_id)
        return link is not None and link.last_read_at > since

    def on_tick(self, now: float) -> None:
        """Dial, ping, and close what has been silent or half-open for too long."""
        self._listener.on_tick(now)
        settings = self._settings
        for link in (*self._strangers, *self._dialing.values()):
            # A handshake whose bytes are swallowed, or a dial whose SYN is, would never end.
            if now - link.since > settings.handshake_timeout_ms / 1000:
                link.close()
        timeout_s = settings.connection_timeout_ms / 1000
        for link in list(self._open.values()):
            if now - link.last_read_at > timeout_s or link in self._evicted:
                link.close()
                continue
            if self._may_tell(link, now):
                self._tell(link, now)
            if now - link.last_sent_at > PING_INTERVAL_S:
                link.send(_PING, now)
        for node_id in sorted((self._nodes.keys() | self._welcome()) - self._open.keys()):
            if node_id not in self._dialing and self._is_to_be_dialed(node_id, now):
                self._dial(node_id, now)

    def forgive(self, gap_s: float) -> None:
        """Move all deadlines on: it was this process that stood still, not the peers."""
        for link in (*self._strangers, *self._dialing.values(), *self._open.values()):
            link.since += gap_s
            link.last_read_at += gap_s

    # Links.

    def _is_to_be_dialed(self, node_id: str, now: float) -> bool:
        """Whether this side dials: the larger id, and a leader whom the larger id cannot find."""
        if node_id <= self._me:
            return node_id != self._me
        since = self._unlinked_since.setdefault(node_id, now)
        return now - since > REACHING_PATIENCE_S and self._reaches_for(node_id)

    def _dial(self, node_id: str, now: float) -> None:
        last = self._dialed_at.get(node_id, 0.0)
        if now - last < self._settings.dial_interval_ms / 1000:
            return
        addresses = self._dial_addresses(node_id)
        if not addresses:
            return
        self._dialed_at[node_id] = now
        # Counted as failed until the link opens: then this address is the one to come back to.
        failed = self._failed_dials.get(node_id, 0)
        self._failed_dials[node_id] = failed + 1
        sock = self._network.dial(addresses[failed % len(addresses)], now)
        if sock is not None:
            self._dialing[node_id] = self._link(sock, node_id, now)

    def _on_accepted(self, sock: socket.socket) -> None:
        if len(self._strangers) >= MAX_STRANGERS:
            self._strangers[0].close()
        self._strangers.append(self._link(sock, None, monotonic()))

    def _link(self, sock: socket.socket, peer: str | None, now: float) -> RaftLink:
        return RaftLink(
            self,
            self._poller,
            sock,
            secret=self._settings.secret,
            me=self._me,
            directory_id=self._journal.directory_id,
            peer=peer,
            now=now,
            claim=self._settings.claim,
            release=self._settings.release,
        )

    def _may_link(self, node_id: str) -> bool:
        return self._is_known(node_id) or self._lets_in(node_id)

    def _is_known(self, node_id: str) -> bool:
        return node_id in self._nodes or node_id in self._welcome()

    # What links call.

    def judge(self, greeting: Greeting) -> str:
        """Return why a peer that knows the secret is refused all the same."""
        if not self._may_link(greeting.sender):
            return f"{greeting.sender!r} is not a member, as far as {self._me!r} knows"
        registry = self._settings.registry
        if registry is not None:
            # Which side dialled matters only to links that carry questions.
            verdict = registry.judge(
                greeting.sender,
                greeting.claim,
                "raft",
                asking=False,
                dialled=False,
                release=greeting.release,
            )
            if verdict.code:
                return verdict.reason
        try:
            # Of one that is let in without being known nothing is written down.
            sender = greeting.sender
            return self._book.judge(sender, greeting.directory_id, noting=self._is_known(sender))
        except RaftStorageFullError as error:
            return f"{self._me!r} cannot save the other member: {error}"

    def on_open(self, link: RaftLink) -> None:
        """Let the link replace the pair's older one, unless another process holds the identity."""
        registry = self._settings.registry
        if registry is not None and link.peer_greeting is not None:
            opened = registry.open(
                link.peer,
                link.peer_greeting.claim,
                "raft",
                functools.partial(self._evicted.add, link),
                asking=False,
                dialled=False,
            )
            if isinstance(opened, Verdict):
                link.refusal = opened.reason
                link.close()
                return
            link.token = opened
        if link.dialed:
            self._failed_dials[link.peer] = max(0, self._failed_dials.get(link.peer, 0) - 1)
        older = self._open.get(link.peer)
        if older is not None:
            older.close()
        # Before anything is sent: what is sent may find the connection broken, and forget the link.
        self._discard(link)
        self._open[link.peer] = link
        self._unlinked_since.pop(link.peer, None)
        link.last_read_at = monotonic()
        # First of all, so that the peer knows it before it votes or acts on anything sent here.
        remembered = wire.Remembered(self._marks.of(_data_id(link)))
        link.send(wire.encode_raft_message(remembered), monotonic())
        if not link.closed:
            self._onNodeConnected(self._node(link.peer))

    def on_frame(self, link: RaftLink, data: bytes) -> None:
        """Take one authentic frame from the link that counts."""
        link.last_read_at = monotonic()
        if self._open.get(link.peer) is not link or not self._may_link(link.peer):
            link.close()
            return
        try:
            message = wire.decode_raft_message(data)
        except UNDECODABLE as error:
            logger.warning("%s sent an invalid message: %s", link.peer, error)
            link.close()
            return
        if not link.is_introduced or isinstance(message, wire.Remembered):
            self._introduce(link, message)
        elif isinstance(message, wire.Told):
            self._marks.note(_data_id(link), message.mark)
        elif not isinstance(message, wire.Ping):
            self._receiver.on_message(self._node(link.peer), message)

    def _introduce(self, link: RaftLink, message: wire.RaftMessage) -> None:
        """What the peer remembers of this member is its first message; then all others count.

        It is judged before any vote or entry of that peer is taken (decision 18).
        """
        if link.is_introduced or not isinstance(message, wire.Remembered):
            logger.warning("%s sent %s out of order", link.peer, type(message).__name__)
            link.close()
            return
        self._receiver.on_remembered(self._node(link.peer), message.mark)
        link.is_introduced = True

    def _may_tell(self, link: RaftLink, now: float) -> bool:
        """Not before the peer has said what it remembers: what an old copy tells would hide it."""
        return link.is_introduced and now - link.told_at >= TELL_INTERVAL_S

    def _tell(self, link: RaftLink, now: float) -> None:
        """Tell how far this member is, if it has got on; all of it is durable here."""
        mark = self._own_mark()
        if mark != link.told:
            self._journal.sync()
            link.told, link.told_at = mark, now
            link.send(wire.encode_raft_message(wire.Told(mark)), now)

    def on_closed(self, link: RaftLink) -> None:
        """Forget the link."""
        if self._settings.registry is not None and link.token:
            self._settings.registry.close(link.token)
        self._evicted.discard(link)
        self._discard(link)
        if self._open.get(link.peer) is link:
            del self._open[link.peer]
            self._onNodeDisconnected(self._node(link.peer))
        now = monotonic()
        if link.refusal and link.dialed:
            self._dialed_at[link.peer] = now + _REFUSED_DIAL_PAUSE_S
        if link.refusal and now - self._refusal_logged_at > _REFUSAL_LOG_INTERVAL_S:
            self._refusal_logged_at = now
            logger.warning("no link between %s and %s: %s", self._me, link.peer, link.refusal)

    def _node(self, node_id: str) -> Node:
        return self._nodes.get(node_id) or Node(node_id)

    def _discard(self, link: RaftLink) -> None:
        if link in self._strangers:
            self._strangers.remove(link)
        if self._dialing.get(link.peer) is link:
            del self._dialing[link.peer]


def _data_id(link: RaftLink) -> str:
    greeting = link.peer_greeting
    return greeting.claim.data_id if greeting is not None else ""
