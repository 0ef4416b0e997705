"""Which entries of the log a node keeps, also for snapshots that are under way. Pure.

The engine asks it before it trims the log, and so does the simulator. What follows a snapshot that
is being sent is held, for the replica that installs it asks for that next: without it, it would
need another snapshot, without end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from datapath.protocol.primary import Primary

FLOOR_KEPT_MS = 15_000.0
"""How long the log after a snapshot is held for a replica that has installed it and is not heard;
one that is heard has it held until it is in sync."""
SNAPSHOT_LOG_HARD_FACTOR = 2
"""Times its bound, the log is no longer held for a snapshot: the replica is stuck."""

Segments = Sequence[tuple[int, int, float]]
"""(last index, size in bytes, when it was last written in s) of each segment, the oldest first."""


class LogRetention:
    """What of one replica's log is kept, by size and by who needs it. All bounds are in bytes.

    `retention_bytes` are kept in any case, `catchup_bytes` at the most of what is recent or what a
    replica lacks, `snapshot_log_bytes` for snapshots; beyond that the primary slows its writes.
    `archive_log_bytes` at the most are kept of what is not archived yet; beyond that it goes.
    """

    def __init__(
        self,
        retention_bytes: int,
        catchup_bytes: int,
        snapshot_log_bytes: int,
        archive_log_bytes: int = 0,
    ) -> None:
        self.snapshot_log_bytes = snapshot_log_bytes
        self.archived_index = 0
        """Up to where the archive is known to hold the log; 0: nothing is known."""
        self._archive_log_bytes = archive_log_bytes
        self._retention_bytes = retention_bytes
        self._catchup_bytes = catchup_bytes
        self._floors: dict[str, int] = {}  # peer -> after which entry the log is held for it
        self._under_way: set[str] = set()  # those of whom a snapshot is being sent
        self._installed_ms: dict[str, float] = {}

    def archived_up_to(self, index: int) -> None:
        """The archive holds the log up to that entry."""
        self.archived_index = max(self.archived_index, index)

    def begin_snapshot(self, peer: str, index: int) -> None:
        """A snapshot at `index` is about to be sent to `peer`."""
        self._floors[peer] = index
        self._under_way.add(peer)

    def end_snapshot(self, peer: str, now_ms: float, *, installed: bool) -> None:
        """It has arrived and is installed, or it has failed."""
        self._under_way.discard(peer)
        if installed:
            self._installed_ms[peer] = now_ms
        else:
            self._floors.pop(peer, None)

    def settle(self, primary: Primary | None, now_ms: float) -> None:
        """Hold no more than is needed, as this node's `primary` (None: it is a backup) sees it."""
        for peer in set(self._floors) - self._under_way:
            needed_after = self._needed_after(primary, peer, now_ms)
            if needed_after is None:
                del self._floors[peer]
            else:
                self._floors[peer] = needed_after

    def _needed_after(self, primary: Primary | None, peer: str, now_ms: float) -> int | None:
        """Return after which entry a replica that had a snapshot needs the log; None: no more."""
        progress = primary.peers.get(peer) if primary is not None else None
        if primary is None or progress is None or peer in primary.in_sync.view.in_sync:
            return None
        heard_ms = max(progress.heard_ms, self._installed_ms.get(peer, 0.0))
        if now_ms - heard_ms > FLOOR_KEPT_MS:
            return None
        return max(self._floors[peer], progress.match_index)

    def held_after(self, peer: str) -> int | None:
        """Return after which entry the log is held for a peer's snapshot; None: it is not."""
        return self._floors.get(peer)

    def held_bytes(self, segments: Segments) -> int:
        """Return how much of the log is held for snapshots."""
        if not self._floors:
            return 0
        floor = min(self._floors.values())
        return sum(size for last, size, _ in segments if last > floor)

    def hurries(self, segments: Segments) -> bool:
        """Whether so much is held that snapshots are sent as fast as the link allows."""
        return self.held_bytes(segments) > self.snapshot_log_bytes / 2

    def slows_writes(self, segments: Segments) -> bool:
        """Whether more is held than the bound."""
        return self.held_bytes(segments) > self.snapshot_log_bytes

    def keep_from(
        self,
        segments: Segments,
        durable_index: int,
        oldest_needed: int,
        recent_s: float = math.inf,
        *,
        disk_full: bool = False,
    ) -> int:
        """Return the first entry to keep; 0: nothing may go.

        `durable_index`: up to where the store holds all on disk; `oldest_needed`: the first entry
        that some replica may need by log replay; what was written after `recent_s` is kept for
        watchers. The last segment is always kept. On a full disk nothing is kept for the archive:
        writes matter more.
        """
        floor = min(self._floors.values(), default=None)
        archive_bytes = 0 if disk_full else self._archive_log_bytes
        size = sum(size_bytes for _, size_bytes, _ in segments)
        first = 0
        for last, size_bytes, written_s in segments[:-1]:
            rest = size - size_bytes
            wanted = last >= oldest_needed or written_s > recent_s
            needed = wanted and rest < self._catchup_bytes
            held = floor is not None and last > floor
            held = held and rest < SNAPSHOT_LOG_HARD_FACTOR * self.snapshot_log_bytes
            held = held or (last > self.archived_index and rest < archive_bytes)
            if last > durable_index or needed or held or rest < self._retention_bytes:
                break
            size, first = rest, last + 1
        return first
