"""A simulated disk: writes become durable late, a crash loses what was not, a fault loses more."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from datapath.records import Record
from tests.sim.clockwork import Clockwork

OperationKind = Literal["records", "truncate", "accepted", "mark_incomplete", "clear_incomplete"]
Operation = tuple[int, OperationKind, Any]

FAST_MS = (0.1, 1.5)
SLOW_MS = (5.0, 60.0)


class LogImage:
    """A log's records after (`base_index`, `base_epoch`)."""

    def __init__(self) -> None:
        self.base_index = 0
        self.base_epoch = 0
        self.last_index = 0
        self.cuts = 0  # how often entries were taken away again
        self.records: list[Record] = []
        self._firsts: list[int] = []

    def append(self, record: Record) -> None:
        self.records.append(record)
        self._firsts.append(record.first_index)
        self.last_index = record.last_index

    def truncate(self, from_index: int) -> None:
        while self.records and self.records[-1].last_index >= from_index:
            self.records.pop()
            self._firsts.pop()
        self._set_end()

    def _set_end(self) -> None:
        self.last_index = self.records[-1].last_index if self.records else self.base_index
        self.cuts += 1

    def trim(self, first_index: int) -> None:
        keep = bisect_right(self._firsts, first_index) - 1
        if keep > 0:
            gone = self.records[keep - 1]
            self.base_index, self.base_epoch = gone.last_index, gone.epoch
            del self.records[:keep]
            del self._firsts[:keep]

    def reset(self, index: int, epoch: int) -> None:
        self.base_index, self.base_epoch = index, epoch
        self.records.clear()
        self._firsts.clear()
        self._set_end()

    def epoch_at(self, index: int) -> int | None:
        if index == self.base_index:
            return self.base_epoch
        if not self.base_index < index <= self.last_index:
            return None
        return self.records[bisect_right(self._firsts, index) - 1].epoch

    def record_end(self, index: int) -> int:
        """Return the end of the last record that ends at or before `index`."""
        for record in reversed(self.records):
            if record.last_index <= index:
                return record.last_index
        return self.base_index

    def read_some(self, from_index: int, limit: int) -> list[Record] | None:
        if from_index <= self.base_index:
            return None
        start = bisect_right(self._firsts, from_index) - 1
        return self.records[max(start, 0) : max(start, 0) + limit]

    # -- as a starting replica reads it (`datapath.node.recovery.FoundLog`)

    @property
    def first_index(self) -> int:
        """The first entry held."""
        return self.base_index + 1

    @property
    def last_epoch(self) -> int:
        """The epoch of the last entry."""
        return self.records[-1].epoch if self.records else self.base_epoch

    @property
    def commit_hint(self) -> int:
        """The highest commit index that a record held carries."""
        return max((record.commit_index for record in self.records), default=0)

    def epochs(self) -> list[tuple[int, int]]:
        """Return (epoch, its first index held)."""
        runs: list[tuple[int, int]] = []
        for record in self.records:
            if not runs or runs[-1][0] != record.epoch:
                runs.append((record.epoch, record.first_index))
        return runs

    def read(self, from_index: int, max_bytes: int) -> list[Record]:
        """Return the records from the one on that holds that entry."""
        del max_bytes
        return self.records[bisect_right(self._firsts, from_index) - 1 :]

    def copy_from(self, other: LogImage) -> None:
        self.base_index, self.base_epoch = other.base_index, other.base_epoch
        self.records, self._firsts = list(other.records), list(other._firsts)
        self._set_end()


class Disk:
    """What survives a crash (`durable`), and what is on the way there."""

    def __init__(
        self,
        clockwork: Clockwork,
        on_durable: Callable[[int, int], None],
        on_failed: Callable[[], None],
    ) -> None:
        self._clockwork = clockwork
        self._on_durable = on_durable
        self._on_failed = on_failed
        self.fails_next = False  # the next fsync does
        self.durable = LogImage()
        self.cache = LogImage()  # the durable log with all writes on the way applied
        self.accepted = (0, "")
        self.incomplete = False
        self.life = 0
        self.latency_ms = FAST_MS
        self.stalled_since: float | None = None
        self.pending: deque[Operation] = deque()
        self._waiting_since: deque[float] = deque()
        self._busy = False

    def submit(self, ticket: int, kind: OperationKind, payload: object) -> None:
        """Take a write; `on_durable` follows, in order."""
        self._apply_log(self.cache, kind, payload)
        self.pending.append((ticket, kind, payload))
        self._waiting_since.append(self._clockwork.now)
        self._work()

    def _work(self) -> None:
        if self._busy or not self.pending or self.stalled_since is not None:
            return
        self._busy = True
        # One fsync for all that waits now (group commit).
        batch = len(self.pending)
        delay = self._clockwork.between(*self.latency_ms)
        self._clockwork.after(delay, self._synced, self.life, batch)

    def _synced(self, life: int, batch: int) -> None:
        if life != self.life:
            return
        self._busy = False
        if self.stalled_since is not None:
            return  # the fsync hangs; `resume` starts it again
        if self.fails_next:
            self.fails_next = False
            self._on_failed()
            return
        ticket = 0
        for _ in range(batch):
            ticket, kind, payload = self.pending.popleft()
            self._waiting_since.popleft()
            self._make_durable(kind, payload)
        self._work()
        self._on_durable(life, ticket)

    @staticmethod
    def _apply_log(log: LogImage, kind: OperationKind, payload: Any) -> None:
        if kind == "records":
            for record in payload:
                log.append(record)
        elif kind == "truncate":
            log.truncate(payload)

    def _make_durable(self, kind: OperationKind, payload: Any) -> None:
        if kind == "accepted":
            self.accepted = payload
        elif kind in ("mark_incomplete", "clear_incomplete"):
            self.incomplete = kind == "mark_incomplete"
        else:
            self._apply_log(self.durable, kind, payload)

    def stall(self) -> None:
        """Hang: nothing becomes durable until `resume`."""
        self.stalled_since = self._clockwork.now

    def resume(self) -> None:
        """Go on after a stall."""
        self.stalled_since = None
        self._work()

    def stalled_for_ms(self) -> float:
        """How long the oldest write has waited."""
        return self._clockwork.now - self._waiting_since[0] if self._waiting_since else 0.0

    @property
    def idle(self) -> bool:
        """Whether nothing is on the way."""
        return not self.pending

    def trim(self, first_index: int) -> int:
        """Forget durable records before that entry; return the first one retained."""
        self.durable.trim(first_index)
        self.cache.trim(first_index)
        return self.cache.base_index + 1

    def install(self, index: int, epoch: int) -> None:
        """Put a snapshot in place of the log; nothing may be on the way."""
        self.durable.reset(index, epoch)
        self.cache.reset(index, epoch)

    def crash(self, lost_from: int | None, *, damage: bool) -> bool:
        """Lose what was not durable, or keep some of it; return whether the tail was cut.

        `lost_from`: a fault of the medium takes the durable entries from there on. With `damage`
        it is found to be one, without it looks like a torn tail.
        """
        clockwork = self._clockwork
        log_writes = [item for item in self.pending if item[1] in ("records", "truncate")]
        other_writes = [item for item in self.pending if item[1] not in ("records", "truncate")]
        for _, kind, payload in other_writes[: clockwork.random.randint(0, len(other_writes))]:
            self._make_durable(kind, payload)
        kept = clockwork.random.randint(0, len(log_writes))
        for _, kind, payload in log_writes[:kept]:
            self._make_durable(kind, payload)
        if kept < len(log_writes):
            clockwork.seen["unsynced writes lost"] += 1
        torn = False
        if kept < len(log_writes) and log_writes[kept][1] == "records" and clockwork.chance(0.5):
            torn = True
            clockwork.seen["torn tail"] += 1
            records = log_writes[kept][2]
            self._make_durable("records", records[: clockwork.random.randint(0, len(records) - 1)])
        if lost_from is not None and lost_from <= self.durable.last_index:
            self.durable.truncate(lost_from)
            self.incomplete = self.incomplete or damage
            torn = torn or not damage
        self.life += 1
        self.pending.clear()
        self._waiting_since.clear()
        self._busy = False
        self.stalled_since = None
        self.cache.copy_from(self.durable)
        return torn

    def marks(self, *, tail_cut: bool) -> Marks:
        """Return what a starting replica finds beside its log."""
        return Marks(*self.accepted, tail_cut, self.incomplete)


class Marks(NamedTuple):
    """What was noted beside the log."""

    epoch: int
    primary: str
    tail_cut: bool
    incomplete: bool
