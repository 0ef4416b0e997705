"""The replica: a pure state machine, events in and effects out, in batches.

No I/O happens here and no clock is read: the caller says what time it is (ms of a clock that never
goes back and counts through suspend), carries out the effects in order, and reports back. The same
code runs under asyncio in production and under a simulator in tests.

    events                                effects (datapath.protocol.effects)
    on_message, on_link, on_link_lost     Send, Reply, CloseLink
    on_durable(ticket)                    WriteRecords, TruncateLog, RecordAccepted, …Mark…
    on_view, on_reminder, …_done          Propose
    append(record), start_handover        StartEpoch, Commit, StepDown, HandoverEnded
    confirm                               Confirmed
    on_log_read, on_snapshot_…            ReadLog, SendSnapshot
    on_tick(now)

The protocol, its rules and why they hold: docs/architecture.md and docs/decisions/.
"""

from __future__ import annotations

from datapath.errors import SafetyError
from datapath.protocol import effects
from datapath.protocol.backup import Backup
from datapath.protocol.messages import Append, Heartbeat, Message, Probe, StaleEpoch
from datapath.protocol.primary import Primary
from datapath.protocol.state import RecoveredState, ReplicaRole, ReplicaState
from datapath.records import Record
from datapath.settings import Bounds, Timing
from election.view import View


class Replica:
    """One replica of the state, in one process lifetime (`incarnation`)."""

    def __init__(
        self,
        node_id: str,
        incarnation: str,
        recovered: RecoveredState,
        timing: Timing,
        bounds: Bounds,
        now_ms: float,
        takeover_order: dict[str, int] | None = None,
    ) -> None:
        self.state = ReplicaState(
            node_id, incarnation, recovered, timing, bounds, now_ms, takeover_order
        )
        self.backup = Backup(self.state)
        self.primary: Primary | None = None
        self._has_heard_consensus = False
        self._links: dict[str, int] = {}
        self._next_session = 1

    # -- what others may ask

    @property
    def role(self) -> ReplicaRole:
        """Is "primary" from the view on, whether it serves yet or not."""
        return self.state.role

    @property
    def view(self) -> View | None:
        """The newest view this replica knows."""
        return self.state.view

    @property
    def next_index(self) -> int:
        """The index that the next appended entry will have."""
        return self.state.log.last_index + 1

    def oldest_needed(self) -> int:
        """Return the first entry that some replica may need by log replay."""
        peers = self.primary.peers.values() if self.primary is not None else ()
        held = [peer.match_index + 1 for peer in peers if peer.match_index]
        return min([self.next_index, *held])

    def may_serve(self, now_ms: float) -> bool:
        """Whether this replica may answer a linearizable read at `now_ms` (D4, D6)."""
        return self.primary is not None and self.primary.may_serve(now_ms)

    def may_execute(self) -> bool:
        """Whether operations may be executed here: an open epoch that is not being handed over."""
        return self.primary is not None and self.primary.may_execute()

    # -- events; each returns the effects it caused

    def _taken(self) -> list[effects.Effect]:
        """Return the effects queued by an event, and forget them."""
        taken = self.state.effects.copy()
        self.state.effects.clear()
        return taken

    def on_tick(self, now_ms: float, *, disk_stalled: bool = False) -> list[effects.Effect]:
        """Time has passed. Call it at least twice per heartbeat interval."""
        self._advance_clock(now_ms)
        if self.primary:
            self.primary.on_tick(disk_stalled=disk_stalled)
        else:
            self.backup.on_tick()
        return self._taken()

    def on_message(self, peer: str, message: Message, now_ms: float) -> list[effects.Effect]:
        """A message from `peer`, on either stream between it and this node."""
        self._advance_clock(now_ms)
        if isinstance(message, StaleEpoch):
            self._on_refusal(message)
        elif isinstance(message, Probe | Append | Heartbeat):
            if self.primary and message.epoch > self.primary.epoch:
                self._step_down()
            if isinstance(message, Probe):
                self.backup.on_probe(peer, message)
            elif isinstance(message, Append):
                self.backup.on_append(peer, message)
            else:
                self.backup.on_heartbeat(peer, message)
        elif self.primary:
            self.primary.on_message(peer, message)
        return self._taken()

    def _advance_clock(self, now_ms: float) -> None:
        state = self.state
        stalled = now_ms - state.now_ms >= state.timing.stall_threshold_ms
        state.now_ms = max(now_ms, state.now_ms)
        if stalled:
            # Ticks come far more often than that, so this node stood still (paused, starved, or
            # blocked): it heard nothing because it did not listen, and accuses nobody.
            self.backup.on_stall()
            if self.primary:
                self.primary.in_sync.restart_periods()

    def _on_refusal(self, message: StaleEpoch) -> None:
        # A replica has accepted a higher epoch: this one is over, whatever the view here says.
        if self.primary and message.epoch > self.primary.epoch:
            self._step_down()

    def on_durable(self, ticket: int) -> list[effects.Effect]:
        """The disk effects up to `ticket` are durable."""
        self.state.note_durable(ticket)
        if self.primary:
            self.primary.on_durable()
        else:
            self.backup.on_durable()
        return self._taken()

    def on_link(self, peer: str) -> list[effects.Effect]:
        """This node's stream to `peer` is open (again)."""
        self._links[peer] = self._next_session
        self._next_session += 1
        if self.primary:
            self.primary.on_link(peer)
        return self._taken()

    def on_link_lost(self, peer: str) -> list[effects.Effect]:
        """This node's stream to `peer` is gone."""
        self._links.pop(peer, None)
        if self.primary:
            self.primary.on_link_lost(peer)
        return self._taken()

    def on_view(self, view: View) -> list[effects.Effect]:
        """A committed view became known; older ones than the newest known are ignored."""
        state = self.state
        old = state.view
        if old is not None and view.version <= old.version:
            return self._taken()
        state.view = view
        state.epoch = max(state.epoch, view.epoch)
        new_epoch = old is None or view.epoch > old.epoch
        self.backup.on_view(view, new_epoch=new_epoch)
        if self.primary and view.epoch > self.primary.epoch:
            self._step_down()
        if self.primary:
            self.primary.on_view(view)
        elif view.epoch > state.accepted_epoch:
            if view.primary == state.node_id:
                self._become_primary(view)
            else:
                self.backup.accept(view.epoch, view.primary)
        return self._taken()

    def _become_primary(self, view: View) -> None:
        if self.state.incomplete or self.state.installing:
            return  # it may lack what was acknowledged: another in-sync replica has to
        if not self._has_heard_consensus:
            return  # that may not be known yet: it proposes itself anew (decision 18)
        self.state.role = "primary"
        self.primary = Primary(self.state, view, self._links)

    def _step_down(self) -> None:
        if self.primary is None:
            return
        state = self.state
        epoch, self.primary = self.primary.epoch, None
        state.role = "backup"
        self.backup = Backup(state)
        state.emit(effects.StepDown(epoch))

    def on_consensus_heard(self) -> None:
        """Consensus has answered in this lifetime: what others remember of this node came first.

        Decision 18. Views may come before that, from other nodes.
        """
        self._has_heard_consensus = True

    def on_reminder(self, epoch: int, index: int) -> list[effects.Effect]:
        """Another node remembers that this one had (epoch, index) committed, and durable.

        Who lacks it has gone back: its directory is an old copy, or its disk has lost entries. It
        may lack what was acknowledged, so it takes over from nobody until it is caught up.
        Decision 18.
        """
        state = self.state
        if not self._has_gone_back(epoch, index):
            return self._taken()
        if self.primary:
            self.primary.on_gone_back(epoch, index)
        else:
            state.mark_incomplete()
        return self._taken()

    def _has_gone_back(self, epoch: int, index: int) -> bool:
        """Whether an entry is missing here that this replica has said to have committed.

        What is committed here of a later epoch followed all that was committed before. (Where
        entries after that were given up by force, nobody has them.)
        """
        state = self.state
        if state.committed_position >= (epoch, index):
            return False
        return not state.holds_committed(epoch, index)

    def may_propose(self, proposal: effects.Propose, now_ms: float) -> bool:
        """Ask once consensus was heard, just before a change leaves that excludes replicas.

        If it says no, the change was never proposed, and nothing is unknown: end it with
        `on_proposal_done`. Decision 15.
        """
        self._advance_clock(now_ms)
        if proposal is not self.state.proposal:
            return False
        role = self.primary or self.backup
        return role.may_propose(proposal)

    def on_proposal_done(self, *, answered: bool) -> list[effects.Effect]:
        """The proposal under way has ended; give `on_view` any view it brought first.

        `answered` is False when the outcome is unknown (E3).
        """
        self.state.proposal = None
        if self.primary:
            self.primary.on_proposal_done(answered=answered)
        else:
            self.backup.on_proposal_done()
        return self._taken()

    def append(self, record: Record) -> list[effects.Effect]:
        """Replicate what was executed. Raises SafetyError unless `may_execute` held."""
        primary = self.primary
        if primary is None or not primary.may_execute() or record.epoch != primary.epoch:
            raise SafetyError(f"record {record.first_index} was executed outside its epoch")
        primary.replication.append(record)
        return self._taken()

    def start_handover(self, to: str, timeout_ms: int) -> tuple[str, list[effects.Effect]]:
        """Hand over to an in-sync backup; returns why that cannot be ("" if it has begun)."""
        problem = "this node is not the primary"
        if self.primary:
            problem = self.primary.start_handover(to, timeout_ms)
        return problem, self._taken()

    def confirm(self) -> tuple[int, list[effects.Effect]]:
        """Begin to confirm that no later epoch is open; 0: this node is not the primary.

        Once `Confirmed` names the returned round or a later one, what is applied here holds all
        that was acknowledged before this call. It rests on no clock.
        """
        number = self.primary.confirm() if self.primary else 0
        return number, self._taken()

    def on_log_read(
        self, peer: str, session: int, records: list[Record] | None
    ) -> list[effects.Effect]:
        """The answer to ReadLog; None: the log is not retained that far back."""
        if self.primary:
            self.primary.replication.on_log_read(peer, session, records)
        return self._taken()

    def on_snapshot_sent(self, peer: str, session: int, *, done: bool) -> list[effects.Effect]:
        """The answer to SendSnapshot."""
        if self.primary:
            self.primary.replication.on_snapshot_sent(peer, session, done=done)
        return self._taken()

    def snapshot_refusal(self, peer: str, index: int, sender_epoch: int) -> str:
        """Return why a snapshot at `index` that `peer` offers is not taken; "" if it is."""
        state, view = self.state, self.view
        if self.primary is not None:
            return "this node is a primary"
        if sender_epoch < state.epoch or peer != state.accepted_primary:  # D3
            return f"the primary here is {state.accepted_primary!r} of epoch {state.accepted_epoch}"
        if view is not None and state.node_id in view.in_sync:
            return "this node is in the in-sync set, or has not received the view that removed it"
        if index <= state.commit_index:
            return f"this node already has entries up to {state.commit_index}"
        return ""

    def start_install(self, index: int, epoch: int) -> str:
        """Return why a snapshot at (index, epoch) is of no use here; or "", and wait for it.

        From "" on the log stands still (nothing is written, committed or cut) until
        `on_snapshot_installed` or `on_install_failed`: those who carry the snapshot out wait for
        the disk writes under way, and put it in place.
        """
        state = self.state
        if self.primary or state.installing:
            return "this node is a primary" if self.primary else "another one is being installed"
        if index <= state.commit_index or state.log.epoch_at(index) == epoch:
            # What it holds may have been acknowledged here, and more after it (D1).
            return f"this log holds entry {index} of epoch {epoch} already"
        state.installing = True
        self.backup.on_install_started()
        return ""

    def on_install_failed(self) -> list[effects.Effect]:
        """The snapshot that `start_install` let in was not put in place."""
        self.state.installing = False
        self.backup.on_install_ended()
        return self._taken()

    def on_snapshot_installed(self, index: int, epoch: int) -> list[effects.Effect]:
        """This replica's store and log were replaced by a snapshot at (index, epoch)."""
        if self.primary:
            raise SafetyError("a primary does not install snapshots")
        self.state.reset_to_snapshot(index, epoch)
        self.backup.on_install_ended()
        return self._taken()

    def on_log_trimmed(self, first_index: int) -> list[effects.Effect]:
        """The log retains entries from `first_index` on only."""
        self.state.log.trim(first_index)
        return self._taken()

    def advance_commit(self, epoch: int, index: int) -> list[effects.Effect]:
        """The primary of `epoch` has answered a read index request: `index` is committed."""
        if self.primary is None:
            self.backup.advance_commit(epoch, index)
        return self._taken()
