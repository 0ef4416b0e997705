"""When client leases end: deadlines in the memory of the primary. No I/O, no clock: time comes in.

The time that counts here is that in which the primary was awake. Between two looks at the clock
that are a stall apart (`is_stall`) it stood still: keep-alives may have come that it has not read,
so none of that time counts against any lease (L1: a stalled primary gives it back).

Nothing here is replicated. A new primary starts with `start_epoch`, and every lease starts its TTL
anew (L1). Whether a lease ends is decided inside the operation that ends it, by `Expiry.may_end`,
in the order of the log: after every keep-alive that was executed before (L2).
"""

from __future__ import annotations

import heapq

RETRY_MS = 500.0
"""After how long a lease that was due and has not ended is due again."""


def is_stall(gap_ms: float, stall_threshold_ms: float) -> bool:
    """Whether the primary stood still between two looks at the clock (L1)."""
    return gap_ms >= stall_threshold_ms


def may_end(awake_ms: float, ends_ms: float) -> bool:
    """Whether a lease that ends at `ends_ms` may end now (L1), both on the counted time."""
    return awake_ms >= ends_ms


class Expiry:
    """The deadlines of leases, by their ids."""

    def __init__(self, stall_threshold_ms: float) -> None:
        self._stall_threshold_ms = stall_threshold_ms
        self._awake_ms = 0.0  # how long this primary was awake, of this epoch
        self._now_ms: float | None = None
        self._ends_ms: dict[int, float] = {}
        self._queue: list[tuple[float, int]] = []  # (not after its end, id), one for each lease
        self.given_back_ms = 0.0

    def __len__(self) -> int:
        return len(self._ends_ms)

    def __contains__(self, lease: int) -> bool:
        return lease in self._ends_ms

    def start_epoch(self, now_ms: float) -> None:
        """Forget everything: this node has become the primary now."""
        self._now_ms = now_ms
        self._ends_ms.clear()
        self._queue.clear()

    def advance(self, now_ms: float) -> None:
        """Say what time it is: before anything else, at every operation and every tick."""
        gap_ms = 0.0 if self._now_ms is None else max(0.0, now_ms - self._now_ms)
        self._now_ms = now_ms if self._now_ms is None else max(now_ms, self._now_ms)
        if is_stall(gap_ms, self._stall_threshold_ms):
            self.given_back_ms += gap_ms
        else:
            self._awake_ms += gap_ms

    def renew(self, lease: int, ttl_ms: int) -> None:
        """A lease begins, or a keep-alive has come: its TTL starts now."""
        ends_ms = self._awake_ms + ttl_ms
        if lease not in self._ends_ms:
            heapq.heappush(self._queue, (ends_ms, lease))
        self._ends_ms[lease] = ends_ms

    def forget(self, lease: int) -> None:
        """A lease has ended."""
        self._ends_ms.pop(lease, None)

    def may_end(self, lease: int) -> bool:
        """Whether a lease may end now; one that is not known here starts anew, and may not."""
        ends_ms = self._ends_ms.get(lease)
        return ends_ms is not None and may_end(self._awake_ms, ends_ms)

    def left_ms(self, lease: int, ttl_ms: int) -> int:
        """Return how long a lease lasts at least without a keep-alive."""
        ends_ms = self._ends_ms.get(lease)
        return ttl_ms if ends_ms is None else max(0, int(ends_ms - self._awake_ms))

    def due(self, limit: int) -> list[int]:
        """Return up to `limit` leases that may end now; each again after RETRY_MS if it stays."""
        found: list[int] = []
        queue = self._queue
        while queue and len(found) < limit and may_end(self._awake_ms, queue[0][0]):
            _, lease = queue[0]
            ends_ms = self._ends_ms.get(lease)
            if ends_ms is None:
                heapq.heappop(queue)
            elif not may_end(self._awake_ms, ends_ms):
                heapq.heapreplace(queue, (ends_ms, lease))
            else:
                found.append(lease)
                heapq.heapreplace(queue, (self._awake_ms + RETRY_MS, lease))
        return found
