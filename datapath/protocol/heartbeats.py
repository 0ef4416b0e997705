"""A primary's heartbeats, and the rounds of them that confirm reads. Part of `Primary`."""

from __future__ import annotations

from datapath.protocol import effects
from datapath.protocol.in_sync import InSync
from datapath.protocol.messages import Heartbeat, HeartbeatReply
from datapath.protocol.progress import Progress
from datapath.protocol.state import ReplicaState


class Heartbeats:
    """One epoch's heartbeats; `sequence` is the newest one's, over all replicas.

    A round confirms that no later epoch was open when it began: it ends when every required replica
    has answered a heartbeat of it (decision 17).

    | round | meaning | left by |
    |---|---|---|
    | none | `round_sequence` is 0 | `confirm` |
    | open | heartbeats from `round_sequence` on answer it | the last answer |
    | open, another wanted | a read began after it did | the last answer: another begins |
    """

    def __init__(self, state: ReplicaState, epoch: int, in_sync: InSync) -> None:
        self._state = state
        self._epoch = epoch
        self._in_sync = in_sync
        self.sequence = 0
        self.due_ms = 0.0
        self.disk_stalled = False  # none leave: what is promised for them could not be used
        self._round = 0  # the newest that was begun
        self.round_sequence = 0
        self._next_round_wanted = False  # never without an open one

    # -- leases (D4)

    def may_send(self) -> bool:
        """Whether this primary asks for promises: it lets the others go on where it cannot."""
        return not self.disk_stalled and not self._in_sync.giving_way

    def send(self, peer: Progress) -> None:
        """Ask a replica for a promise, if promises are asked for."""
        if not self.may_send():
            return
        state = self._state
        self.sequence += 1
        peer.sent_heartbeat(self.sequence, state.now_ms)
        message = Heartbeat(peer.session, self._epoch, self.sequence, state.commit_index)
        state.emit(effects.Send(peer.node_id, message))

    def send_due(self) -> None:
        """Send one on every stream that has been answered, and renew those that seem dead."""
        state = self._state
        self.due_ms = state.now_ms + state.timing.heartbeat_interval_ms
        for peer in self._in_sync.peers.values():
            if peer.state in ("replicate", "snapshot"):
                self.send(peer)
            self._close_unanswered(peer)

    def _close_unanswered(self, peer: Progress) -> None:
        """A stream on which nothing is ever answered may have lost its beginning."""
        state = self._state
        patience_ms = state.timing.ack_timeout_ms
        since_ms = max(peer.heard_ms, peer.opened_ms)
        may_answer = self._in_sync.may_hear(peer.node_id)
        if peer.session and may_answer and state.now_ms - since_ms >= patience_ms:
            peer.opened_ms = state.now_ms
            state.emit(
                effects.CloseLink(peer.node_id, f"nothing was heard on it for {patience_ms} ms")
            )

    def on_reply(self, peer: Progress, message: HeartbeatReply) -> None:
        """A replica has promised; it says how it is doing, too."""
        state = self._state
        peer.answered_heartbeat(message.sequence, state.now_ms, state.timing.lease_duration_ms)
        peer.applied_index = message.applied_index
        peer.durable_index = message.durable_index
        peer.writable = message.writable

    # -- rounds (D10)

    def confirm(self) -> int:
        """Ask the required replicas whether they still follow this epoch.

        Returns the number of a round that begins no earlier than this call: a round that is open
        already may have been answered before something that the reader knows of.
        """
        if self.round_sequence:
            self._next_round_wanted = True
            return self._round + 1
        self._begin_round()
        return self._round

    def _begin_round(self) -> None:
        self._round += 1
        self.round_sequence = self.sequence + 1
        self._next_round_wanted = False
        for node in sorted(self._in_sync.required):
            peer = self._in_sync.peers[node]
            if peer.state in ("replicate", "snapshot"):
                self.send(peer)  # to the others one goes when their stream is open

    def end_round(self) -> None:
        """End the open round if it has been answered; the primary has authority."""
        while self.round_sequence and self.may_confirm(self.round_sequence):
            self._state.emit(effects.Confirmed(self._round))
            self.round_sequence = 0
            if self._next_round_wanted:
                self._begin_round()

    def may_confirm(self, sequence: int) -> bool:
        """Whether no later epoch was open when the heartbeat `sequence` left.

        Every replica that could have become the primary has answered that heartbeat or a later one.
        """
        peers = self._in_sync.peers
        return all(peers[node].answered_sequence >= sequence for node in self._in_sync.required)
