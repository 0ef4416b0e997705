"""What the two roles of a replica share: its log as the protocol sees it, tickets, and effects."""

from __future__ import annotations

from collections import deque
from typing import Literal

import msgspec

from datapath.errors import SafetyError
from datapath.protocol import effects
from datapath.protocol.log_index import LogIndex
from datapath.records import Record
from datapath.settings import Bounds, Timing
from election.view import View, ViewChange

CUT_TAIL_PATIENCE_GRACES = 20
"""How long a replica whose log's tail was cut waits for those in sync with it, in grace periods."""

ReplicaRole = Literal["backup", "primary"]


class RecoveredState(msgspec.Struct, frozen=True, kw_only=True):
    """What a replica finds on its disk when it starts.

    `commit_index` is a lower bound of what is committed, never above the log's end. `tail_cut`:
    the log's tail was cut, now or at an earlier opening, and nothing has shown since that it was
    nobody's. `incomplete`: entries may be missing that had been acknowledged.
    """

    log: LogIndex
    commit_index: int
    accepted_epoch: int
    accepted_primary: str
    tail_cut: bool = False
    incomplete: bool = False


class ReplicaState:
    """The state that a replica keeps whatever its role. All times are ms of the boot clock."""

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
        self.node_id = node_id
        self.incarnation = incarnation
        self.timing = timing
        self.bounds = bounds
        self.now_ms = now_ms
        self.takeover_order = takeover_order or {}
        self.role: ReplicaRole = "backup"
        self.view: View | None = None  # the newest one known; its version only rises
        self.log = recovered.log
        # commit_index <= durable_index <= log.last_index; the commit index never falls.
        self.durable_index = recovered.log.last_index
        self.commit_index = recovered.commit_index
        self.committed_ms = now_ms  # when it last rose
        # E5: the epoch only rises, and has one primary. It is durable unless `_accepts` has it.
        self.accepted_epoch = recovered.accepted_epoch
        self.accepted_primary = recovered.accepted_primary
        self.accepted_is_durable = True
        self.epoch = recovered.accepted_epoch  # the newest known: accepted, or by a view
        self.tail_cut = recovered.tail_cut
        self.incomplete = recovered.incomplete
        self.writable = True  # the disk has room for a record
        self.installing = False  # a snapshot is on its way into the log's place; never on a primary
        # D4: nobody knows what an earlier lifetime promised just before it ended, so a grace
        # period runs from the start.
        self.promised_ms = now_ms
        self.proposal: effects.Propose | None = None  # the one under way
        self.effects: list[effects.Effect] = []  # queued by the event that is being handled
        self.emit = self.effects.append
        self._next_ticket = 1
        # Of what is under way to the disk, by rising tickets.
        self._writes: deque[tuple[int, int]] = deque()  # (ticket, last index it makes durable)
        self._accepts: deque[int] = deque()  # tickets
        self._mark_ticket = 0  # of the incomplete mark that is on its way to the disk; 0: none

    def ticket(self) -> int:
        """Return the next disk ticket."""
        number = self._next_ticket
        self._next_ticket += 1
        return number

    def write(self, records: list[Record]) -> None:
        """Append records to the log; `durable_index` follows when the disk is done."""
        for record in records:
            self.log.append(record.first_index, record.last_index, record.epoch)
        ticket = self.ticket()
        self._writes.append((ticket, self.log.last_index))
        self.emit(effects.WriteRecords(ticket, records))

    def truncate(self, from_index: int) -> None:
        """Cut the log; never at or below what is committed (D6)."""
        if from_index <= self.commit_index:
            raise SafetyError(
                f"the primary of epoch {self.accepted_epoch} requires entry {from_index} to be "
                f"cut off, but entries up to {self.commit_index} are committed here"
            )
        self.log.truncate(from_index)
        self.durable_index = min(self.durable_index, from_index - 1)
        self._writes = deque((t, min(last, from_index - 1)) for t, last in self._writes)
        self.emit(effects.TruncateLog(self.ticket(), from_index))

    def accept(self, epoch: int, primary: str) -> None:
        """E5: record the primary of an epoch, before anything in that epoch is acknowledged."""
        if epoch < self.accepted_epoch or (
            epoch == self.accepted_epoch and primary != self.accepted_primary
        ):
            raise SafetyError(
                f"epoch {epoch} of {primary!r} cannot be accepted after epoch "
                f"{self.accepted_epoch} of {self.accepted_primary!r}"
            )
        if epoch == self.accepted_epoch:
            return
        self.accepted_epoch, self.accepted_primary = epoch, primary
        self.epoch = max(self.epoch, epoch)
        ticket = self.ticket()
        self._accepts.append(ticket)
        self.accepted_is_durable = False
        self.emit(effects.RecordAccepted(ticket, epoch, primary))

    @property
    def committed_position(self) -> tuple[int, int]:
        """(epoch, index) of the last entry that is committed, as known here, and durable here."""
        index = min(self.commit_index, self.durable_index)
        return (self.log.epoch_at(index) or 0, index)

    def holds_committed(self, epoch: int, index: int) -> bool:
        """Whether a committed entry is here: then all before it are (log matching)."""
        if index <= max(self.log.base_index, self.commit_index):
            return True
        return self.log.epoch_at(index) == epoch

    def mark_incomplete(self) -> None:
        """Something that was acknowledged is missing here: remember it, over restarts too.

        Nothing may rest on it (an answer, a handover) before `marks_are_durable`.
        """
        if not self.incomplete:
            self.incomplete = True
            self._mark_ticket = self.ticket()
            self.emit(effects.MarkIncomplete(self._mark_ticket))

    @property
    def marks_are_durable(self) -> bool:
        """Whether no mark is on its way to the disk."""
        return not self._mark_ticket

    def clear_marks(self) -> None:
        """Nothing that was acknowledged is missing here, whatever the disk had lost."""
        if self.tail_cut or self.incomplete:
            self.tail_cut = self.incomplete = False
            self.emit(effects.ClearMarks(self.ticket()))

    def note_durable(self, ticket: int) -> None:
        """Everything up to `ticket` is durable (D9: fsync has returned)."""
        while self._writes and self._writes[0][0] <= ticket:
            self.durable_index = max(self.durable_index, self._writes.popleft()[1])
        while self._accepts and self._accepts[0] <= ticket:
            self._accepts.popleft()
            self.accepted_is_durable = not self._accepts
        if self._mark_ticket <= ticket:
            self._mark_ticket = 0

    def commit_to(self, index: int) -> None:
        """Raise the commit index; it never falls."""
        if index > self.commit_index:
            if index > self.log.last_index:
                raise SafetyError(f"commit index {index} is beyond the log ({self.log.last_index})")
            self.commit_index, self.committed_ms = index, self.now_ms
            self.emit(effects.Commit(index))

    def reset_to_snapshot(self, index: int, epoch: int) -> None:
        """The log was replaced by a snapshot at (index, epoch)."""
        if index < self.commit_index:
            raise SafetyError(f"a snapshot at {index} is older than commit {self.commit_index}")
        self.log = LogIndex(index, epoch, index)
        self.installing = False
        self._writes.clear()
        self.durable_index = index
        self.commit_index = index

    def propose(self, change: ViewChange, expected_version: int) -> None:
        """Propose a change of the view; one at a time."""
        if self.proposal is None:
            self.proposal = effects.Propose(change, expected_version)
            self.emit(self.proposal)
