"""What the replica asks its surroundings to do. Each is carried out in the order given.

Disk effects carry a `ticket`; when the disk has them durable (fsync has returned), `on_durable`
is called with the ticket. Tickets are done in order.
"""

from __future__ import annotations

import msgspec

from datapath.protocol.messages import Message
from datapath.records import Record
from election.view import ViewChange


class _Effect(msgspec.Struct, frozen=True, gc=False):
    pass


class WriteRecords(_Effect, frozen=True):
    """Append to the log and make durable."""

    ticket: int
    records: list[Record]


class TruncateLog(_Effect, frozen=True):
    """Remove the log's entries from `from_index` on, durably."""

    ticket: int
    from_index: int


class RecordAccepted(_Effect, frozen=True):
    """Make (epoch, primary) durable (E5)."""

    ticket: int
    epoch: int
    primary: str


class MarkIncomplete(_Effect, frozen=True):
    """This replica lacks entries that may have been acknowledged: note it durably."""

    ticket: int


class ClearMarks(_Effect, frozen=True):
    """This replica holds everything again: forget the durable marks (incomplete, cut tail)."""

    ticket: int


class Send(_Effect, frozen=True):
    """Send on the stream that this node has opened to `peer`; drop it if there is none."""

    peer: str
    message: Message


class Reply(_Effect, frozen=True):
    """Send back on the stream that `peer` has opened to this node; drop it if there is none."""

    peer: str
    message: Message


class ReadLog(_Effect, frozen=True):
    """Read records from `from_index` on, and give them to `on_log_read`."""

    peer: str
    session: int
    from_index: int


class SendSnapshot(_Effect, frozen=True):
    """Bring `peer` up by a full snapshot; then call `on_snapshot_sent`."""

    peer: str
    session: int


class Commit(_Effect, frozen=True):
    """Entries up to `index` are committed: apply them, and answer those who wait."""

    index: int


class Confirmed(_Effect, frozen=True):
    """Whoever asked for the confirmation round `number`, or an earlier one, may read now."""

    number: int


class Propose(_Effect, frozen=True):
    """Propose a change of the view; then call `on_proposal_done`, whatever became of it."""

    change: ViewChange
    expected_version: int


class StartEpoch(_Effect, frozen=True):
    """This node is the primary of a new epoch; it does not serve before `ready_index` commits."""

    epoch: int
    ready_index: int


class StepDown(_Effect, frozen=True):
    """This node is the primary no more: what is not committed has an unknown outcome."""

    epoch: int


class HandoverEnded(_Effect, frozen=True):
    """A handover was refused or given up: `reason`; execution may go on here."""

    reason: str


class CloseLink(_Effect, frozen=True):
    """The stream to `peer` is of no use: close it and open a new one."""

    peer: str
    reason: str


Effect = (
    WriteRecords
    | TruncateLog
    | RecordAccepted
    | MarkIncomplete
    | ClearMarks
    | Send
    | Reply
    | ReadLog
    | SendSnapshot
    | Commit
    | Confirmed
    | Propose
    | StartEpoch
    | StepDown
    | HandoverEnded
    | CloseLink
)
