"""The backup's role: accept what the primary sends, promise, and take over when it falls silent."""

from __future__ import annotations

from datapath.errors import SafetyError
from datapath.protocol import effects
from datapath.protocol.messages import (
    Append,
    AppendReply,
    Heartbeat,
    HeartbeatReply,
    Probe,
    ProbeReply,
    StaleEpoch,
)
from datapath.protocol.state import CUT_TAIL_PATIENCE_GRACES, ReplicaState
from datapath.records import Record, parse_record
from election.view import Confirm, TakeOver, View

CUT_TAIL_PENALTY_GRACES = 3
"""A restarted primary whose log's tail was cut lets the others go first, by this many graces."""


class Backup:
    """What a replica does while another one is the primary."""

    def __init__(self, state: ReplicaState) -> None:
        self._state = state
        self.session = 0  # of the stream from the accepted primary; 0: none yet
        self.verified_index = 0  # up to here the log equals the primary's, in this session
        self.primary_commit_index = 0
        self.contact_ms = state.now_ms  # the primary's last sign of life in its epoch
        self._replied_index = -1
        self._unanswered_probe = False
        self._retry_ms = 0.0
        self._takeover_version = 0  # of a take-over that has left and is not settled; 0: none
        self._self_claim_ms = state.now_ms

    # -- messages from the primary

    def on_probe(self, peer: str, message: Probe) -> None:
        """A primary opens its stream: accept its epoch, and say what this log holds."""
        state = self._state
        if self._fence(peer, message.session, message.epoch) or message.primary != peer:
            return
        if message.epoch == state.accepted_epoch and peer != state.accepted_primary:
            self._refuse(peer, message.session)  # E5: no second primary for one epoch
            return
        if message.epoch == state.accepted_epoch and message.session < self.session:
            return  # a late message of an old stream
        if message.epoch > state.accepted_epoch:
            self.accept(message.epoch, peer)
        # The last entry that the primary has committed must be here: so are all before it.
        holds = state.holds_committed(message.commit_epoch, message.commit_index)
        if (message.required or state.tail_cut) and not holds:
            # It lacks what was committed, and what it had acknowledged if it is required: its tail
            # was cut, or its directory is an old copy. It takes over from nobody.
            state.mark_incomplete()
        self._start_session(message.session)
        self.contact_ms = state.now_ms
        self._unanswered_probe = True
        self._answer_probe()

    def accept(self, epoch: int, primary: str) -> None:
        """Accept the primary of a higher epoch, by its probe or by the view, whichever is first.

        By the view it is durable (E5) by the time the probe comes. What is known to match was
        learnt from the primary before: none of it may be acknowledged to this one.
        """
        self._state.accept(epoch, primary)
        self._unanswered_probe = False
        self._start_session(0)

    def _start_session(self, session: int) -> None:
        self.session = session
        self.verified_index = 0
        self.primary_commit_index = 0
        self._replied_index = -1

    def _answer_probe(self) -> None:
        state = self._state
        if not self._unanswered_probe or state.installing:
            return  # what a snapshot replaces is not worth telling
        if not state.accepted_is_durable or not state.marks_are_durable:
            return  # E5, and rule e: the records first
        self._unanswered_probe = False
        state.emit(
            effects.Reply(
                state.accepted_primary,
                ProbeReply(
                    session=self.session,
                    epoch=state.accepted_epoch,
                    incarnation=state.incarnation,
                    first_index=state.log.base_index + 1,
                    last_index=state.log.last_index,
                    last_epoch=state.log.last_epoch,
                    commit_index=state.commit_index,
                    epochs=state.log.runs_from(state.commit_index + 1),
                    tail_cut=state.tail_cut,
                    incomplete=state.incomplete,
                ),
            )
        )

    def on_append(self, peer: str, message: Append) -> None:
        """Records after a matching entry: skip what is held, cut what conflicts, write the rest."""
        state = self._state
        if self._fence(peer, message.session, message.epoch) or not self._is_current(peer, message):
            return
        if state.installing:
            return  # the probe is answered anew afterwards
        if state.log.epoch_at(message.prev_index) != message.prev_epoch:
            self._unanswered_probe = True  # no match: tell the primary again what is held
            self._answer_probe()
            return
        new: list[Record] = []
        previous_index, previous_epoch = message.prev_index, message.prev_epoch
        for data in message.records:
            record = parse_record(data)
            if record.first_index != previous_index + 1 or not (
                previous_epoch <= record.epoch <= message.epoch
            ):
                raise SafetyError(
                    f"{peer} sent record {record.first_index} of epoch {record.epoch} after entry "
                    f"{previous_index} of epoch {previous_epoch}"
                )
            previous_index, previous_epoch = record.last_index, record.epoch
            if new or not self._holds(record):
                new.append(record)
        if new:
            state.write(new)
        self.verified_index = max(self.verified_index, previous_index)
        self.primary_commit_index = max(self.primary_commit_index, message.commit_index)
        self._advance()

    def _holds(self, record: Record) -> bool:
        """Whether the log has this record already; a conflicting tail is cut."""
        state = self._state
        if record.first_index > state.log.last_index:
            return False
        mine = state.log.epoch_at(record.first_index)
        if mine is None:
            return False
        if mine == record.epoch:
            if record.last_index > state.log.last_index:
                raise SafetyError(f"record {record.first_index} is held in part: records are whole")
            return True
        if mine >= state.accepted_epoch:  # D6: only a higher epoch cuts
            raise SafetyError(f"entry {record.first_index} of epoch {mine} may not be cut")
        state.truncate(record.first_index)
        return False

    def on_heartbeat(self, peer: str, message: Heartbeat) -> None:
        """The primary asks for a promise (D4); it is given only where it can be kept."""
        state = self._state
        if self._fence(peer, message.session, message.epoch) or not self._is_current(peer, message):
            return
        self.contact_ms = state.now_ms
        self.primary_commit_index = max(self.primary_commit_index, message.commit_index)
        self._advance()
        if not state.accepted_is_durable or self._takeover_version:
            # E5; and D4: with a take-over proposed that may commit yet, no promise can be kept.
            return
        state.promised_ms = state.now_ms
        state.emit(
            effects.Reply(
                peer,
                HeartbeatReply(
                    session=message.session,
                    epoch=message.epoch,
                    sequence=message.sequence,
                    applied_index=state.commit_index,
                    durable_index=state.durable_index,
                    writable=state.writable,
                ),
            )
        )

    def _is_current(self, peer: str, message: Append | Heartbeat) -> bool:
        state = self._state
        return (
            message.epoch == state.accepted_epoch
            and peer == state.accepted_primary
            and message.session == self.session
        )

    def _fence(self, peer: str, session: int, epoch: int) -> bool:
        """D3: refuse a lower epoch than the one accepted or agreed, and say which that is."""
        if epoch >= self._state.epoch:
            return False
        self._refuse(peer, session)
        return True

    def _refuse(self, peer: str, session: int) -> None:
        state = self._state
        view = state.view
        if view is not None and view.epoch > state.accepted_epoch:
            refusal = StaleEpoch(session, view.epoch, view.primary)
        else:
            refusal = StaleEpoch(session, state.accepted_epoch, state.accepted_primary)
        state.emit(effects.Reply(peer, refusal))

    # -- a snapshot takes the log's place

    def on_install_started(self) -> None:
        """Nothing is known to match until it has ended: nothing is committed or acknowledged."""
        self._start_session(self.session)

    def on_install_ended(self) -> None:
        """The log is another one (or still the old one): tell the primary what it holds now."""
        self._start_session(self.session)
        self._unanswered_probe = self.session > 0
        self._answer_probe()

    # -- what follows from messages and from the disk

    def on_durable(self) -> None:
        """The disk has caught up: answer the probe, acknowledge, commit."""
        self._answer_probe()
        self._advance()

    def advance_commit(self, epoch: int, index: int) -> None:
        """The primary of `epoch` has said elsewhere (a read's answer) that `index` is committed."""
        if epoch == self._state.accepted_epoch and self.session:
            self.primary_commit_index = max(self.primary_commit_index, index)
            self._advance()

    def _advance(self) -> None:
        state = self._state
        match = min(self.verified_index, state.durable_index)
        committed_index = min(self.primary_commit_index, match)
        if committed_index > state.commit_index:
            state.commit_to(committed_index)
        if not state.accepted_is_durable or not self.session:
            return
        if match > self._replied_index and self.verified_index:
            self._replied_index = match
            reply = AppendReply(self.session, state.accepted_epoch, match)
            state.emit(effects.Reply(state.accepted_primary, reply))
        if (
            (state.tail_cut or state.incomplete)
            and match >= self.primary_commit_index > 0
            and state.log.epoch_at(match) == state.accepted_epoch
        ):
            # This epoch's opening entry is held, so all of earlier epochs; and all of this one that
            # its primary has committed: nothing that was ever acknowledged is missing here.
            state.clear_marks()

    # -- taking over

    def on_view(self, view: View, *, new_epoch: bool) -> None:
        """A newer view: give its primary a full grace period to make itself heard."""
        if new_epoch:
            self.contact_ms = self._state.now_ms
        if view.version > self._takeover_version:
            self._takeover_version = 0  # the proposal has committed, or never will

    def on_stall(self) -> None:
        """This node itself stood still: it heard nothing because it did not listen."""
        self.contact_ms = self._state.now_ms

    def on_tick(self) -> None:
        """Take over from a primary that is silent, once every promise to it has run out (D4)."""
        state = self._state
        view = state.view
        if view is None or state.proposal is not None or state.now_ms < self._retry_ms:
            return
        if state.node_id not in view.in_sync or state.incomplete:  # E1
            return
        if self._takeover_version:
            self._settle_takeover(view)
        elif state.now_ms >= self._may_claim_ms(view):
            self._claim(view)

    def _may_claim_ms(self, view: View) -> float:
        """The boot-clock time from which this replica may propose itself."""
        state, timing = self._state, self._state.timing
        graces = 0
        if state.tail_cut:
            # A take-over leaves the old primary out at once, and with it what may be lost here; the
            # primary itself can ask the others before it opens its epoch.
            own = view.primary == state.node_id
            graces = CUT_TAIL_PENALTY_GRACES if own else CUT_TAIL_PATIENCE_GRACES
        penalty = graces * timing.grace_period_ms
        if view.primary == state.node_id:
            # It was the primary before its restart: its own promises are to nobody else.
            return self._self_claim_ms + penalty
        rivals = [node for node in self._order(view) if node != view.primary]
        stagger = rivals.index(state.node_id) * timing.takeover_stagger_ms
        silence = max(self.contact_ms, state.promised_ms) + timing.grace_period_ms
        return silence + stagger + penalty

    def _order(self, view: View) -> list[str]:
        order = self._state.takeover_order
        return sorted(view.in_sync, key=lambda node: (order.get(node, 0), node))

    def _claim(self, view: View) -> None:
        state = self._state
        self._retry_ms = state.now_ms + state.timing.heartbeat_interval_ms
        state.propose(TakeOver(state.node_id), view.version)

    def may_propose(self, proposal: effects.Propose) -> bool:
        """Whether a take-over may leave now: the primary is still silent, every promise is over.

        From "yes" on it may commit, and no promise is given until it is settled (D4, rule b).
        """
        state, view = self._state, self._state.view
        if (
            view is None
            or view.version != proposal.expected_version
            or not isinstance(proposal.change, TakeOver)
            or state.node_id not in view.in_sync
            or state.incomplete
            or state.now_ms < self._may_claim_ms(view)
        ):
            return False
        self._takeover_version = view.version
        return True

    def _settle_takeover(self, view: View) -> None:
        """E3: the proposal's outcome is unknown. Propose again at its version; one of them wins."""
        state = self._state
        self._retry_ms = state.now_ms + state.timing.heartbeat_interval_ms
        silent = state.now_ms >= self._may_claim_ms(view)
        state.propose(TakeOver(state.node_id) if silent else Confirm(), view.version)

    def on_proposal_done(self) -> None:
        """Whatever became of it, the view says; wait a little before the next."""
        state = self._state
        self._retry_ms = state.now_ms + state.timing.heartbeat_interval_ms
