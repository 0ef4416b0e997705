"""The primary's role: open the epoch, commit, hold leases, keep the in-sync set, hand over."""

from __future__ import annotations

import math
from typing import Literal

from datapath.errors import SafetyError
from datapath.protocol import effects
from datapath.protocol.handover import Handovers
from datapath.protocol.heartbeats import Heartbeats
from datapath.protocol.in_sync import InSync
from datapath.protocol.messages import AppendReply, HeartbeatReply, Message, ProbeReply
from datapath.protocol.progress import Progress
from datapath.protocol.replication import Replication
from datapath.protocol.state import ReplicaState
from datapath.records import make_record
from election.view import AddToInSync, Confirm, RemoveFromInSync, View

Stage = Literal["recording", "matching", "open"]


def is_first_epoch(view: View) -> bool:
    """Whether no primary came before this view's: only a bootstrap makes epoch 1.

    A cluster that is made of kept data begins at a higher one (B2), and waits: the primary of the
    cluster before it may still run, under a promise of this replica.
    """
    return view.epoch == 1


class Primary:
    """One epoch as the primary. Made when the view says so, thrown away when it ends.

    | stage | meaning | left by |
    |---|---|---|
    | recording | nothing leaves: this epoch is not durable here (E5) | the disk |
    | matching | the others are asked what they hold | the opening entry (D6), a yield, the end |
    | open | it is appended; once it has committed operations are executed | the end |

    The guards of the rules are pure: `may_open`, `may_commit`, `may_serve`, `may_propose` here;
    `required_nodes`, `must_remove`, `may_join` (`in_sync`); `may_send`, `may_confirm`
    (`heartbeats`); `may_send_snapshot` (`replication`); `may_take`, `may_propose` (`handover`).
    """

    def __init__(self, state: ReplicaState, view: View, links: dict[str, int]) -> None:
        self._state = state
        self.epoch = view.epoch
        self._is_first = is_first_epoch(view)
        self.stage: Stage = "recording"
        self.opening_index = 0  # of the entry that opens the epoch; 0 until "open"
        self.in_sync = InSync(state, view)
        self.peers = self.in_sync.peers
        self.replication = Replication(state, view.epoch, self.in_sync)
        self.heartbeats = Heartbeats(state, view.epoch, self.in_sync)
        self.handovers = Handovers(state, self.in_sync)
        self._links = links  # peer -> session of the stream that is open to it
        self._retry_ms = 0.0  # nothing is proposed before, after an unknown outcome
        # What another replica has committed and this one does not hold, as a sentence. Set once:
        # nothing is opened, committed or served any more, and the end comes when that is durable.
        self._lacking = ""
        state.accept(view.epoch, state.node_id)  # E5: nothing leaves before it is durable
        self._sync_peers(view)

    # -- opening the epoch

    def on_durable(self) -> None:
        """The disk has caught up: open the epoch, commit."""
        if self.stage != "open":
            if self.stage == "recording" and self._state.accepted_is_durable:
                self.stage = "matching"
                for node in self.peers:
                    self.on_link(node)
            self._maybe_open()  # or yield, once the mark of what is missing here is durable
        self._maybe_stop()
        self._maybe_commit()

    def _maybe_open(self) -> None:
        """Append the entry that opens the epoch, or yield to one that has more."""
        state = self._state
        if not self.may_open():
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
        self.replication.append(record)

    def may_open(self) -> bool:
        """D6: whether the epoch may be opened, if this log is the one (a cut one may not be)."""
        return self.stage == "matching" and not self._lacking and self.is_free_of_promises()

    def is_free_of_promises(self) -> bool:
        """D4: what this replica promised to another primary must have run out before it serves.

        A handover needs no wait: that primary had stopped serving before it was proposed. Nor does
        a cluster's first epoch: no primary came before it.
        """
        state = self._state
        if self.in_sync.view.handed_over or self._is_first:
            return True
        return state.now_ms >= state.promised_ms + state.timing.grace_period_ms

    def _is_longest(self) -> bool:
        """A log whose tail was cut yields to an in-sync backup whose log goes further."""
        state = self._state
        if self.handovers.phase == "proposed":
            return False  # it may commit yet (E3)
        best, best_position = "", state.log.last_position
        for node in sorted(self.in_sync.required):
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
                self.handovers.propose(best)
            return False
        for node, peer in self.peers.items():
            self._check_holds(node, peer.applied_index)  # a learner may know of what was lost here
        return not self._lacking

    # -- what the others answer

    def on_link(self, node: str) -> None:
        """A stream to a replica is open: ask what it holds."""
        if node in self.peers and node in self._links and self.stage != "recording":
            self.replication.probe(self.peers[node], self._links[node])

    def on_link_lost(self, node: str) -> None:
        """The stream is gone: no more sends. It proves nothing about the replica (D4)."""
        peer = self.peers.get(node)
        if peer is not None and peer.state != "snapshot":
            peer.become_down()

    def on_message(self, node: str, message: Message) -> None:
        """An answer from a replica; those of older sessions or epochs are dropped."""
        peer = self.peers.get(node)
        if peer is None or not isinstance(message, ProbeReply | AppendReply | HeartbeatReply):
            return
        if message.epoch != self.epoch or message.session != peer.session or not peer.session:
            return
        peer.heard_ms = self._state.now_ms
        match message:
            case AppendReply():
                self._on_append_reply(peer, message)
            case HeartbeatReply():
                self.heartbeats.on_reply(peer, message)
                self._maybe_end_round()
            case ProbeReply():
                self._on_probe_reply(peer, message)

    def _on_append_reply(self, peer: Progress, message: AppendReply) -> None:
        state = self._state
        if peer.state == "replicate" and peer.acknowledged(message.match_index, state.now_ms):
            self._maybe_commit()
            if peer.next_index <= state.log.last_index:
                self.replication.send(peer)

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
            self.heartbeats.send(peer)
            self._maybe_open()
            return
        match = state.log.match(message.last_index, message.epochs, message.commit_index)
        if match < state.log.base_index:
            peer.become_snapshot()
            self.heartbeats.send(peer)
            self.replication.send_due_snapshot(peer)
        else:
            peer.become_replicate(match + 1)
            self.heartbeats.send(peer)
            self.replication.send_records(peer, [])  # settles the match index there
            self.replication.send(peer)
        self._maybe_open()

    def _check_holds(self, node: str, committed_index: int) -> None:
        """E1, D6: what a replica has committed, every primary holds; else this one must stop."""
        last_index = self._state.log.last_index
        if committed_index > last_index:
            self._lacking = (
                f"{node} has committed entry {committed_index}, but the primary of epoch "
                f"{self.epoch} holds entries only up to {last_index}"
            )
            self._state.mark_incomplete()
            self._maybe_stop()

    def on_gone_back(self, epoch: int, index: int) -> None:
        """Another node remembers that this one held an entry that it lacks (decision 18)."""
        state = self._state
        self._lacking = (
            f"another node remembers that {state.node_id} had committed entry {index} of "
            f"epoch {epoch}, but the primary of epoch {self.epoch} holds entries only up to "
            f"{state.log.last_index} of epoch {state.log.last_epoch}: its data directory is an "
            "older copy, or its disk has lost entries. This is recorded on disk; other replicas "
            "take over first"
        )
        state.mark_incomplete()
        self._maybe_stop()

    def _maybe_stop(self) -> None:
        """Stop for what is missing here, once that is noted: a restart must not forget it."""
        if self._lacking and self._state.marks_are_durable:
            raise SafetyError(self._lacking)

    # -- commit (D1)

    def _maybe_commit(self) -> None:
        state = self._state
        if not self.may_commit():
            return
        index = state.durable_index
        for node in self.in_sync.required:
            index = min(index, self.peers[node].match_index)
        if index > state.commit_index and index >= self.opening_index:  # D6
            state.commit_to(index)
        if self.handovers.phase == "draining" and state.proposal is None:
            self.handovers.drive()

    def may_commit(self) -> bool:
        """Whether what the required replicas hold is committed: the epoch is open, enough count."""
        enough = len(self.in_sync.view.in_sync) >= self._state.bounds.min_in_sync
        return self.stage == "open" and not self._lacking and enough

    @property
    def is_open(self) -> bool:
        """D6: whether the entry that opens the epoch has committed."""
        opened = self.stage == "open" and self._state.commit_index >= self.opening_index
        return opened and not self._lacking

    # -- leases (D4)

    @property
    def has_authority(self) -> bool:
        """Whether this node decides for the cluster, as long as no later epoch is open."""
        return self.is_open and self.handovers.phase != "proposed"

    def lease_until_ms(self) -> float:
        """Until when this node may serve; infinite if no other replica could take over."""
        earliest_ms, peers = math.inf, self.peers
        for node in self.in_sync.required:
            start_ms = peers[node].lease_start_ms
            if start_ms is None:
                return -math.inf
            earliest_ms = min(earliest_ms, start_ms)
        return earliest_ms + self._state.timing.lease_duration_ms

    def may_serve(self, now_ms: float) -> bool:
        """Whether a read is linearizable now, and an answer may be given."""
        may_decide = self.is_open and self.handovers.phase != "proposed"  # `has_authority`
        return may_decide and now_ms < self.lease_until_ms()

    # -- the view

    def on_view(self, view: View) -> None:
        """A newer view of this epoch."""
        self.in_sync.on_view(view)
        self.in_sync.stop_giving_way()
        self.handovers.on_view(view)
        self._sync_peers(view)
        for peer in self.peers.values():
            self.replication.send_due_snapshot(peer)
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
                state.emit(effects.CloseLink(node, "it became a member again"))

    def on_tick(self, *, disk_stalled: bool) -> None:
        """Heartbeats, suspicion, and whatever change of the view is due."""
        state, heartbeats = self._state, self.heartbeats
        heartbeats.disk_stalled = disk_stalled
        if self.stage == "recording":
            return
        if disk_stalled:
            # It gives way; nobody can answer heartbeats that are not sent, so nobody is accused.
            self.in_sync.restart_periods()
            return
        self._maybe_open()
        if state.now_ms >= heartbeats.due_ms:
            heartbeats.send_due()
        self._maybe_end_round()
        due_out = self.in_sync.check_giving_way(is_blocked=self.handovers.phase == "proposed")
        if state.proposal is None and state.now_ms >= self._retry_ms:
            self._propose_due(due_out)

    def _propose_due(self, due_out: tuple[str, ...]) -> None:
        state, in_sync, handovers = self._state, self.in_sync, self.handovers
        view = in_sync.view
        if handovers.phase == "proposed":
            state.propose(Confirm(), view.version)  # E3: settle it
        elif due_out and not self._lacking:
            state.propose(RemoveFromInSync(due_out), view.version)  # D5, also while handing over
        elif handovers.phase == "draining":
            handovers.drive()
        else:
            if self.stage == "open" and not in_sync.adding:
                for node, peer in self.peers.items():
                    if node not in view.in_sync and in_sync.may_join(peer, self.opening_index):
                        in_sync.add(node)
                        break
            if in_sync.adding:
                state.propose(AddToInSync(in_sync.adding), view.version)

    def may_propose(self, proposal: effects.Propose) -> bool:
        """D5: whether a removal may leave now: those whom it names are still silent.

        E1: one that lacks entries removes nobody: those who hold them must stay.
        """
        return (
            isinstance(proposal.change, RemoveFromInSync)
            and proposal.expected_version == self.in_sync.view.version
            and not self._lacking
            and set(proposal.change.nodes) <= set(self.in_sync.due_out())
        )

    def on_proposal_done(self, *, answered: bool) -> None:
        """A proposal has ended; `answered`: consensus was reached (the outcome is not unknown)."""
        state = self._state
        if answered:
            self.in_sync.stop_giving_way()
        else:
            self._retry_ms = state.now_ms + state.timing.heartbeat_interval_ms

    # -- what is asked of it

    def may_execute(self) -> bool:
        """Whether operations may be executed: the epoch is open, and not being handed over."""
        return self.is_open and self.handovers.phase == "none"

    def confirm(self) -> int:
        """Begin a round that confirms reads; return its number (`Heartbeats.confirm`)."""
        number = self.heartbeats.confirm()
        self._maybe_end_round()
        return number

    def _maybe_end_round(self) -> None:
        if self.heartbeats.round_sequence and self.has_authority:
            self.heartbeats.end_round()

    def start_handover(self, to: str, timeout_ms: int) -> str:
        """Begin to hand over; return "" or why that cannot be. No operation may be executed now."""
        problem = self.handovers.start(to, timeout_ms, is_open=self.is_open)
        if not problem:
            self._retry_ms = 0.0
            if self._state.proposal is None:
                self.handovers.drive()
        return problem
