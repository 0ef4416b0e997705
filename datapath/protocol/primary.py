"""The primary's role: replicate, commit, hold leases, keep the in-sync set, hand over."""

from __future__ import annotations

import math
from collections import deque
from typing import Literal

from datapath.errors import SafetyError
from datapath.protocol import effects
from datapath.protocol.in_sync import InSync
from datapath.protocol.messages import (
    Append,
    AppendReply,
    Heartbeat,
    HeartbeatReply,
    Message,
    Probe,
    ProbeReply,
)
from datapath.protocol.progress import Progress
from datapath.protocol.state import ReplicaState
from datapath.records import Record, make_record
from election.view import (
    AddToInSync,
    Confirm,
    Handover,
    RemoveFromInSync,
    View,
)

Stage = Literal["recording", "matching", "open"]


class Primary:
    """One epoch as the primary. Made when the view says so, thrown away when it ends."""

    def __init__(self, state: ReplicaState, view: View, links: dict[str, int]) -> None:
        self._state = state
        self.epoch = view.epoch
        self.stage: Stage = "recording"
        self.opening_index = 0
        self.peers: dict[str, Progress] = {}
        self.in_sync = InSync(state, view, self.peers)
        self.recent: deque[Record] = deque()
        self._recent_bytes = 0
        self._links = links  # peer -> session of the stream that is open to it
        self._sequence = 0
        self._next_heartbeat_ms = 0.0
        self._retry_ms = 0.0
        self.handing_to = ""
        self._handover_deadline_ms = 0.0
        self._handover_version = 0  # of a handover that was proposed and not settled; 0: none
        self.disk_stalled = False
        self._lacking = ""  # what another replica has committed and this one does not hold
        self._round = 0  # the newest confirmation round that was begun
        self._round_sequence = 0  # heartbeats from this one on answer it; 0: no round is open
        self._next_round_wanted = False
        state.accept(view.epoch, state.node_id)  # E5: nothing leaves before it is durable
        self._sync_peers(view)

    @property
    def view(self) -> View:
        """The newest view of this epoch."""
        return self.in_sync.view

    def required(self) -> set[str]:
        """D1: the other replicas whose durable copy a commit needs."""
        return self.in_sync.required()

    # -- opening the epoch

    def on_durable(self) -> None:
        """The disk has caught up: open the epoch, commit."""
        if self.stage == "recording" and self._state.accepted_is_durable:
            self.stage = "matching"
            for node in self.peers:
                if node in self._links:
                    self._probe(node)
        self._maybe_open()  # or yield, once the mark of what is missing here is durable
        self._maybe_stop()
        self._maybe_commit()

    def _maybe_open(self) -> None:
        """D6: append the entry that opens the epoch, once it is sure that this log is the one."""
        state = self._state
        if self.stage != "matching" or self._lacking or not self._may_serve_after_promise():
            return
        if state.tail_cut and not self._is_longest():
            return
        for node, peer in self.peers.items():
            if peer.state == "replicate" and peer.next_index > state.log.last_index + 1:
                state.emit(effects.CloseLink(node, "its log goes further: it follows this one now"))
        state.clear_marks()
        self.stage = "open"
        record = make_record(state.log.last_index + 1, self.epoch, state.commit_index, [[]])
        self.opening_index = record.first_index
        state.emit(effects.StartEpoch(self.epoch, record.last_index))
        self._append(record)

    def _may_serve_after_promise(self) -> bool:
        """D4: what this replica promised to another primary must have run out before it serves.

        A handover needs no wait: that primary had stopped serving before it was proposed.
        """
        state = self._state
        if self.view.handed_over:
            return True
        return state.now_ms >= state.promised_ms + state.timing.grace_period_ms

    def _is_longest(self) -> bool:
        """A log whose tail was cut yields to an in-sync backup whose log goes further."""
        state = self._state
        if self._handover_version:
            return False  # one is proposed, and may commit yet (E3)
        best, best_position = "", state.log.last_position
        for node in sorted(self.required()):
            peer = self.peers[node]
            if peer.state in ("down", "probe"):
                return False  # not heard yet: it answers, or is removed
            if peer.last_position > best_position:
                best, best_position = node, peer.last_position
        if best:
            # It has been seen that this log lacks something: until that is here, this replica
            # takes over from nobody, not even if the one it yields to falls silent, nor after a
            # restart.
            state.mark_incomplete()
            if (
                state.marks_are_durable
                and state.proposal is None
                and not self.peers[best].incomplete
            ):
                self._handover_version = self.view.version
                state.propose(Handover(best), self.view.version)
            return False
        for node, peer in self.peers.items():
            self._check_holds(node, peer.applied_index)  # a learner may know of what was lost here
        return not self._lacking

    # -- replication

    def append(self, record: Record) -> None:
        """Replicate a batch of executed operations. Its first index must be the log's next."""
        self._append(record)

    def _append(self, record: Record) -> None:
        state = self._state
        state.write([record])
        self.recent.append(record)
        self._recent_bytes += len(record.data)
        while self._recent_bytes > state.bounds.recent_records_bytes and len(self.recent) > 1:
            self._recent_bytes -= len(self.recent.popleft().data)
        for peer in self.peers.values():
            self._replicate_to(peer)

    def on_link(self, node: str) -> None:
        """A stream to a replica is open: ask what it holds."""
        if node in self.peers and self.stage != "recording":
            self._probe(node)

    def on_link_lost(self, node: str) -> None:
        """The stream is gone: no more sends. It proves nothing about the replica (D4)."""
        peer = self.peers.get(node)
        if peer is not None and peer.state != "snapshot":
            peer.become_down()

    def _probe(self, node: str) -> None:
        state = self._state
        peer = self.peers[node]
        peer.become_probe(self._links[node], state.now_ms)
        probe = Probe(
            peer.session,
            self.epoch,
            state.node_id,
            state.commit_index,
            self.view.cluster_id,
            commit_epoch=state.log.epoch_at(state.commit_index) or 0,
            required=node in self.required(),
        )
        state.emit(effects.Send(node, probe))

    def on_message(self, node: str, message: Message) -> None:
        """An answer from a replica; those of older sessions or epochs are dropped."""
        peer = self.peers.get(node)
        if peer is None or not isinstance(message, ProbeReply | AppendReply | HeartbeatReply):
            return
        if message.epoch != self.epoch or message.session != peer.session or not peer.session:
            return
        peer.heard_ms = self._state.now_ms
        match message:
            case ProbeReply():
                self._on_probe_reply(peer, message)
            case AppendReply():
                self._on_append_reply(peer, message)
            case HeartbeatReply():
                self._on_heartbeat_reply(peer, message)

    def _on_probe_reply(self, peer: Progress, message: ProbeReply) -> None:
        state = self._state
        if not state.tail_cut:
            self._check_holds(peer.node_id, message.commit_index)
        if self.in_sync.giving_way:
            peer.leased_ms = state.now_ms  # it was asked for no promise, and is back
        peer.incarnation = message.incarnation
        peer.incomplete = message.incomplete
        peer.applied_index = message.commit_index
        peer.last_position = (message.last_epoch, message.last_index)
        if state.tail_cut and peer.last_position > state.log.last_position:
            # It goes further than this log, whose tail was cut: it must not be made to follow it.
            peer.become_replicate(max(message.last_index, state.log.last_index) + 1)
            self._heartbeat(peer)
            self._maybe_open()
            return
        match = state.log.match(message.last_index, message.epochs, message.commit_index)
        if match < state.log.base_index:
            peer.become_snapshot()
            self._heartbeat(peer)
            self._maybe_send_snapshot(peer)
        else:
            peer.become_replicate(match + 1)
            self._heartbeat(peer)
            self._send_records(peer, [])  # settles the match index there
            self._replicate_to(peer)
        self._maybe_open()

    def _check_holds(self, node: str, committed_index: int) -> None:
        """E1, D6: what a replica has committed, every primary holds; else this one must stop."""
        last_index = self._state.log.last_index
        if committed_index > last_index:
            self._lacking = (
                f"{node} has entry {committed_index} committed, and the primary of epoch "
                f"{self.epoch} holds entries only up to {last_index}"
            )
            self._state.mark_incomplete()
            self._maybe_stop()

    def on_gone_back(self, epoch: int, index: int) -> None:
        """Another node remembers that this one held an entry that it lacks (decision 18)."""
        state = self._state
        self._lacking = (
            f"another node remembers that {state.node_id} had entry {index} of epoch {epoch} "
            f"committed, and the primary of epoch {self.epoch} holds entries only up to "
            f"{state.log.last_index} of epoch {state.log.last_epoch}: its data directory is an "
            "older copy, or its disk has lost entries. It is noted, and the others come first"
        )
        state.mark_incomplete()
        self._maybe_stop()

    def _maybe_stop(self) -> None:
        """Stop for what is missing here, once that is noted: a restart must not forget it."""
        if self._lacking and self._state.marks_are_durable:
            raise SafetyError(self._lacking)

    def _maybe_send_snapshot(self, peer: Progress) -> None:
        """Only a learner is brought up by snapshot: an in-sync one is removed first (E1)."""
        if (
            peer.needs_snapshot
            and not peer.sending_snapshot
            and peer.node_id not in self.required()
        ):
            peer.needs_snapshot, peer.sending_snapshot = False, True
            self._state.emit(effects.SendSnapshot(peer.node_id, peer.session))

    def on_snapshot_sent(self, node: str, session: int, *, done: bool) -> None:
        """The snapshot has arrived, or failed: start over on a new session."""
        peer = self.peers.get(node)
        if peer is None:
            return
        peer.sending_snapshot = False
        if peer.state != "snapshot":
            return  # the replica has said itself what it holds now
        if peer.session != session and not done:
            self._maybe_send_snapshot(peer)
            return
        peer.heard_ms = self._state.now_ms if done else peer.heard_ms
        peer.become_down()
        self._state.emit(
            effects.CloseLink(node, "a snapshot was installed" if done else "snapshot failed")
        )

    def _replicate_to(self, peer: Progress) -> None:
        """Send what the replica lacks, from memory if it is there, within its window."""
        state = self._state
        last = state.log.last_index
        while (
            peer.state == "replicate"
            and not peer.reading
            and peer.next_index <= last
            and peer.inflight_bytes < state.bounds.max_peer_inflight_bytes
        ):
            if not self.recent or peer.next_index < self.recent[0].first_index:
                peer.reading = True
                state.emit(effects.ReadLog(peer.node_id, peer.session, peer.next_index))
                return
            records = self._recent_from(peer.next_index)
            if not records or records[0].first_index != peer.next_index:
                raise SafetyError(f"entry {peer.next_index} is not the first of its record")
            self._send_records(peer, records)

    def _recent_from(self, index: int) -> list[Record]:
        """Return the recent records from `index` on, up to one message's worth of bytes."""
        limit = self._state.bounds.max_append_bytes
        found: list[Record] = []
        for record in reversed(self.recent):
            if record.first_index < index:
                break
            found.append(record)
        found.reverse()
        size = 0
        for number, record in enumerate(found):
            size += len(record.data)
            if size > limit and number:
                return found[:number]
        return found

    def on_log_read(self, node: str, session: int, records: list[Record] | None) -> None:
        """Records from the log for a replica that is behind; None: no longer retained."""
        peer = self.peers.get(node)
        if peer is None or peer.session != session or peer.state != "replicate":
            return
        peer.reading = False
        if records is None:
            peer.become_snapshot()
            self._maybe_send_snapshot(peer)
        elif records and records[0].first_index == peer.next_index:
            self._send_records(peer, records)
            self._replicate_to(peer)
        else:
            self._state.emit(effects.CloseLink(node, "the log has changed under a read"))

    def _send_records(self, peer: Progress, records: list[Record]) -> None:
        state = self._state
        prev_index = peer.next_index - 1
        prev_epoch = state.log.epoch_at(prev_index)
        if prev_epoch is None:
            peer.become_snapshot()
            self._maybe_send_snapshot(peer)
            return
        data = [record.data for record in records]
        message = Append(peer.session, self.epoch, prev_index, prev_epoch, state.commit_index, data)
        state.emit(effects.Send(peer.node_id, message))
        if records:
            peer.sent(records[-1].last_index, sum(map(len, data)), state.now_ms)

    def _on_append_reply(self, peer: Progress, message: AppendReply) -> None:
        if peer.state == "replicate" and peer.acknowledged(message.match_index, self._state.now_ms):
            self._maybe_commit()
            self._replicate_to(peer)

    # -- commit (D1)

    def _maybe_commit(self) -> None:
        state = self._state
        if self.stage != "open" or self._lacking:
            return
        if len(self.view.in_sync) < state.bounds.min_in_sync:
            return
        index = state.durable_index
        for node in self.required():
            index = min(index, self.peers[node].match_index)
        if index >= self.opening_index:  # D6
            state.commit_to(index)
        if self.handing_to and not self._handover_version and state.proposal is None:
            self._drive_handover()

    @property
    def is_open(self) -> bool:
        """D6: whether the entry that opens the epoch has committed."""
        opened = self.stage == "open" and self._state.commit_index >= self.opening_index
        return opened and not self._lacking

    # -- leases (D4)

    def lease_until_ms(self) -> float:
        """Until when this node may serve; infinite if no other replica could take over."""
        until = math.inf
        for node in self.required():
            start = self.peers[node].lease_start_ms
            if start is None:
                return -math.inf
            until = min(until, start + self._state.timing.lease_duration_ms)
        return until

    def may_serve(self, now_ms: float) -> bool:
        """Whether a read is linearizable now, and an answer may be given."""
        return self.is_open and not self._handover_version and now_ms < self.lease_until_ms()

    def _on_heartbeat_reply(self, peer: Progress, message: HeartbeatReply) -> None:
        state = self._state
        peer.answered_heartbeat(message.sequence, state.now_ms, state.timing.lease_duration_ms)
        peer.applied_index = message.applied_index
        peer.durable_index = message.durable_index
        peer.writable = message.writable
        self._maybe_end_round()

    # -- reads that rest on no clock (decision 17)

    def confirm(self) -> int:
        """Ask the required replicas whether they still follow this epoch.

        Returns the number of a round that begins no earlier than this call: a round that is open
        already may have been answered before something that the reader knows of.
        """
        if self._round_sequence:
            self._next_round_wanted = True
            return self._round + 1
        self._begin_round()
        return self._round

    def _begin_round(self) -> None:
        self._round += 1
        self._round_sequence = self._sequence + 1
        self._next_round_wanted = False
        for node in sorted(self.required()):
            peer = self.peers[node]
            if peer.state in ("replicate", "snapshot"):
                self._heartbeat(peer)  # to the others one goes when their stream is open
        self._maybe_end_round()

    def _maybe_end_round(self) -> None:
        if self._round_sequence and self._may_confirm(self._round_sequence):
            self._state.emit(effects.Confirmed(self._round))
            self._round_sequence = 0
            if self._next_round_wanted:
                self._begin_round()

    def _may_confirm(self, sequence: int) -> bool:
        """Whether no later epoch was open when the heartbeat `sequence` left.

        Every replica that could have become the primary has answered that heartbeat or a later one.
        """
        return (
            self.is_open
            and not self._handover_version
            and all(self.peers[node].answered_sequence >= sequence for node in self.required())
        )

    def _heartbeat(self, peer: Progress) -> None:
        state = self._state
        if self.in_sync.giving_way or self.disk_stalled:
            return
        self._sequence += 1
        peer.sent_heartbeat(self._sequence, state.now_ms)
        message = Heartbeat(peer.session, self.epoch, self._sequence, state.commit_index)
        state.emit(effects.Send(peer.node_id, message))

    # -- the view

    def on_view(self, view: View) -> None:
        """A newer view of this epoch."""
        self.in_sync.on_view(view)
        self._stop_giving_way()
        if self._handover_version and view.version > self._handover_version:
            self._end_handover("the view has changed, and this node is still the primary")
        self._sync_peers(view)
        for peer in self.peers.values():
            self._maybe_send_snapshot(peer)
        self._maybe_commit()
        self._maybe_open()
        self._maybe_end_round()

    def _sync_peers(self, view: View) -> None:
        state = self._state
        replicas = {m.id for m in view.members if m.role == "replica"} - {state.node_id}
        for node in [node for node in self.peers if node not in replicas]:
            del self.peers[node]
        for node in sorted(replicas - set(self.peers)):
            self.peers[node] = Progress(node, state.now_ms)
            if self.stage != "recording" and node in self._links:
                # What is under way on its stream was said to the member that it was before.
                state.emit(effects.CloseLink(node, "it is a member anew"))

    def on_stall(self) -> None:
        """This node itself stood still: give everyone a new period before accusing them."""
        for peer in self.peers.values():
            peer.heard_ms = peer.advanced_ms = peer.leased_ms = self._state.now_ms

    def on_tick(self) -> None:
        """Heartbeats, suspicion, and whatever change of the view is due."""
        state = self._state
        if self.stage == "recording":
            return
        if self.disk_stalled:
            # It gives way; nobody can answer heartbeats that are not sent, so nobody is accused.
            self.on_stall()
            return
        self._maybe_open()
        if state.now_ms >= self._next_heartbeat_ms:
            self._next_heartbeat_ms = state.now_ms + state.timing.heartbeat_interval_ms
            for peer in self.peers.values():
                if peer.state in ("replicate", "snapshot"):
                    self._heartbeat(peer)
                self._close_unanswered(peer)
        self._maybe_end_round()
        self._check_giving_way()
        if state.proposal is None and state.now_ms >= self._retry_ms:
            self._propose_due()

    def _close_unanswered(self, peer: Progress) -> None:
        """A stream on which nothing is ever answered may have lost its beginning."""
        state = self._state
        patience_ms = state.timing.ack_timeout_ms
        since_ms = max(peer.heard_ms, peer.opened_ms)
        may_answer = self.in_sync.may_hear(peer.node_id)
        if peer.session and may_answer and state.now_ms - since_ms >= patience_ms:
            peer.opened_ms = state.now_ms
            state.emit(
                effects.CloseLink(peer.node_id, f"nothing was heard on it for {patience_ms} ms")
            )

    def _propose_due(self) -> None:
        state = self._state
        if self._handover_version:
            state.propose(Confirm(), self.view.version)  # E3: settle it
            return
        if due := self._due_out():
            state.propose(RemoveFromInSync(due), self.view.version)  # D5, also while handing over
            return
        if self.handing_to:
            self._drive_handover()
            return
        in_sync = self.in_sync
        if not in_sync.adding and self.stage == "open":
            if not (node := in_sync.next_to_join(self.opening_index)):
                return
            in_sync.add(node)
        if in_sync.adding:
            state.propose(AddToInSync(in_sync.adding), self.view.version)

    def may_propose(self, proposal: effects.Propose) -> bool:
        """Whether a removal may leave now: those whom it names are still silent (D5)."""
        return (
            isinstance(proposal.change, RemoveFromInSync)
            and proposal.expected_version == self.view.version
            and set(proposal.change.nodes) <= set(self._due_out())
        )

    def _due_out(self) -> tuple[str, ...]:
        if self._lacking:
            return ()  # E1: it stops once its loss is noted; those who hold what it lacks must stay
        return self.in_sync.due_out()

    def _check_giving_way(self) -> None:
        """A primary that cannot get a needed view change agreed gives way to another."""
        if self.in_sync.check_giving_way(is_blocked=self._handover_version > 0):
            self.on_stall()  # without heartbeats nobody could answer

    def _stop_giving_way(self) -> None:
        if self.in_sync.stop_giving_way():
            self.on_stall()  # without heartbeats nobody could answer

    def on_proposal_done(self, *, answered: bool) -> None:
        """A proposal has ended; `answered`: consensus was reached (the outcome is not unknown)."""
        state = self._state
        if answered:
            self._stop_giving_way()
        else:
            self._retry_ms = state.now_ms + state.timing.heartbeat_interval_ms

    # -- handover

    def start_handover(self, to: str, timeout_ms: int) -> str:
        """Begin to hand over; return "" or why that cannot be. No operation may be executed now."""
        state = self._state
        peer = self.peers.get(to)
        if self.handing_to or self._handover_version:
            return "a handover is under way already"
        if not self.is_open:
            return "this epoch is not open yet: try again in a moment"
        if to not in self.view.in_sync or peer is None or peer.state != "replicate":
            return f"{to!r} is not an in-sync backup (those are {sorted(self.required())})"
        self.handing_to = to
        self._handover_deadline_ms = state.now_ms + timeout_ms
        self._retry_ms = 0.0
        if state.proposal is None:
            self._drive_handover()
        return ""

    def _drive_handover(self) -> None:
        """Propose it once the chosen backup holds everything and everything is committed."""
        state = self._state
        peer = self.peers.get(self.handing_to)
        if (
            state.now_ms >= self._handover_deadline_ms
            or peer is None
            or self.handing_to not in self.view.in_sync
            or peer.state != "replicate"
        ):
            self._end_handover(f"{self.handing_to!r} did not catch up in time, or left")
        elif peer.match_index == state.log.last_index == state.commit_index:
            # From here on this node serves nothing until the outcome is known (D4).
            self._handover_version = self.view.version
            state.propose(Handover(self.handing_to), self.view.version)

    def _end_handover(self, reason: str) -> None:
        self.handing_to = ""
        self._handover_version = 0
        self._state.emit(effects.HandoverEnded(reason))
