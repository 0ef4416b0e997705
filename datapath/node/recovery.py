"""What a starting replica makes of its log, store and marks. Pure, but for applying to the store.

`datapath.node.replica_disk` gives it the files, and the simulator its disks in memory.
"""

from __future__ import annotations

from typing import Protocol

from datapath.errors import DataDirectoryError, SafetyError
from datapath.protocol.log_index import LogIndex
from datapath.protocol.state import RecoveredState
from datapath.records import Entry, Record

_READ_BATCH_BYTES = 4 * 1024 * 1024


class FoundLog(Protocol):
    """The log as it was found, torn ends cut off; see `datapath.storage.log.Log`."""

    @property
    def first_index(self) -> int:
        """The first entry held."""

    @property
    def base_epoch(self) -> int:
        """The epoch of the entry before it."""

    @property
    def last_index(self) -> int:
        """The last entry held."""

    @property
    def last_epoch(self) -> int:
        """The epoch of the last entry."""

    @property
    def commit_hint(self) -> int:
        """The highest commit index that a record held carries."""

    def epochs(self) -> list[tuple[int, int]]:
        """Return (epoch, its first index held) for all entries held, in order."""

    def read(self, from_index: int, max_bytes: int, /) -> list[Record]:
        """Return some records from the one on that holds `from_index`."""


class FoundStore(Protocol):
    """The state as it was found; see `datapath.storage.store.Store`."""

    @property
    def durable_index(self) -> int:
        """The last entry that is in it for good."""

    @property
    def applied_index(self) -> int:
        """The last entry that is applied."""

    def apply(self, entries: list[Entry], last_index: int, epoch: int, /) -> None:
        """Apply committed entries, the last of which is (`last_index`, `epoch`)."""


class FoundMarks(Protocol):
    """What was noted beside the log; see `datapath.storage.accepted.Accepted`."""

    @property
    def epoch(self) -> int:
        """The epoch accepted last (E5)."""

    @property
    def primary(self) -> str:
        """Its primary."""

    @property
    def tail_cut(self) -> bool:
        """Whether the end of the log was cut off."""

    @property
    def incomplete(self) -> bool:
        """Whether entries are known to be missing that may have been acknowledged."""


def committed_index(log: FoundLog, store: FoundStore) -> int:
    """Return up to where entries are known to be committed: what a record says, or was applied.

    The rest of the log may yet be cut: a primary says what of it stands.
    """
    return max(store.durable_index, min(log.commit_hint, log.last_index))


def recover_replica(
    log: FoundLog, store: FoundStore, marks: FoundMarks, where: object
) -> RecoveredState:
    """Apply what is known to be committed, and say what this replica holds.

    Raises:
        DataDirectoryError: the marks are an old copy; `where` names them.
        SafetyError: a record is committed in part.

    """
    commit_index = committed_index(log, store)
    while store.applied_index < commit_index:
        for record in log.read(store.applied_index + 1, _READ_BATCH_BYTES):
            if record.first_index > commit_index:
                break
            if record.last_index > commit_index:
                raise SafetyError(
                    f"record {record.first_index}-{record.last_index} is committed in part "
                    f"(up to {commit_index}): records are whole"
                )
            store.apply(record.entries(), record.last_index, record.epoch)
    if log.last_epoch > marks.epoch:
        # E5: the primary of an epoch is recorded before any of its entries.
        raise DataDirectoryError(
            f"{where} is an old copy: it has epoch {marks.epoch}, but the log holds entries of "
            f"epoch {log.last_epoch}. With it this node could acknowledge to a primary that was "
            "replaced. Put the newest file back; or remove this node, and start it under a new id "
            "with an empty data directory"
        )
    return RecoveredState(
        log=LogIndex.from_runs(log.first_index - 1, log.base_epoch, log.last_index, log.epochs()),
        commit_index=commit_index,
        accepted_epoch=marks.epoch,
        accepted_primary=marks.primary,
        tail_cut=marks.tail_cut,
        incomplete=marks.incomplete,
    )


def uncommitted(log: FoundLog, commit_index: int) -> list[Record]:
    """Return the records after `commit_index`."""
    found: list[Record] = []
    index = commit_index + 1
    while index <= log.last_index:
        found += log.read(index, _READ_BATCH_BYTES)
        index = found[-1].last_index + 1
    return found
