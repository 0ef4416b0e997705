"""The committed log of one replica, for an archive: read from the disk, and held until archived."""

from __future__ import annotations

from collections.abc import Callable

from datapath.node.backups import Backups, RunningBackup
from datapath.node.replica_disk import ReplicaStorage
from datapath.protocol.replica import Replica
from datapath.records import Record


class CommittedLog:
    """What of a replica's log has committed, on any replica."""

    def __init__(
        self,
        replica: Replica,
        storage: ReplicaStorage,
        backups: Backups,
        trim: Callable[[], None],
    ) -> None:
        """`trim` deletes what of the log need not be held."""
        self._replica = replica
        self._storage = storage
        self._backups = backups
        self._trim = trim

    @property
    def commit_index(self) -> int:
        """The last entry known here to have committed."""
        return self._replica.state.commit_index

    def epoch_at(self, index: int) -> int | None:
        """Return an entry's epoch; None if it is not known any more."""
        return self._storage.log.epoch_at(index)

    def is_held(self, index: int) -> bool:
        """Whether the log goes back to that entry."""
        return index >= self._storage.log.first_index

    async def read(self, after: int, max_bytes: int) -> list[Record] | None:
        """Return committed records, from the one that holds entry `after` + 1; one, if there is.

        Records commit whole. None: the log does not hold that entry any more, or cannot be read.
        """
        commit_index = self.commit_index  # first: what it says stays committed
        if after >= commit_index:
            return []
        records = await self._storage.read_log(after + 1, max_bytes)
        if not records:
            return None  # `after` is below the commit index, so there was one
        return committed(records, commit_index)

    def archived(self, index: int) -> None:
        """Hold the log after that entry: all before is in the archive."""
        self._storage.retention.archived_up_to(index)

    def make_room(self) -> None:
        """Hold nothing for the archive on a disk that is full. To be called now and then."""
        if self._storage.is_full:
            self._trim()

    async def state(self, cluster: str, cluster_id: str) -> RunningBackup:
        """Return the whole state as it is now. Raises as `Backups.open`."""
        return await self._backups.open(cluster, cluster_id)


def committed(records: list[Record], commit_index: int) -> list[Record]:
    """D2: which of the records may leave the node for good."""
    return [record for record in records if record.last_index <= commit_index]
