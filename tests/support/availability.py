"""When requests succeeded, and where they were asked: what a service did while it was attacked."""

from __future__ import annotations

import itertools
from array import array
from bisect import bisect_left
from collections.abc import Iterable
from typing import Literal

Success = Literal["read", "write", "stale"]
"""Linearizable reads, acknowledged writes, stale reads."""


class Availability:
    """The successes of one load: 16 bytes for each. Times are time.monotonic_ns()."""

    def __init__(self, nodes: Iterable[str]) -> None:
        self.nodes = list(nodes)
        self._asked: dict[tuple[Success, str], array[int]] = {}
        self._answered: dict[tuple[Success, str], array[int]] = {}

    def add(self, kind: Success, node: str, asked_ns: int, answered_ns: int) -> None:
        """Note a success; in the order of the answers."""
        self._asked.setdefault((kind, node), array("q")).append(asked_ns)
        self._answered.setdefault((kind, node), array("q")).append(answered_ns)

    def count(
        self, kind: Success, start_ns: int, end_ns: int | None = None, *, node: str | None = None
    ) -> int:
        """Return how many were asked for after `start_ns` and answered before `end_ns`."""
        total = 0
        for name in [node] if node is not None else self.nodes:
            answered = self._answered.get((kind, name), array("q"))
            last = len(answered) if end_ns is None else bisect_left(answered, end_ns)
            first = bisect_left(answered, start_ns)
            if last > first:
                total += sum(moment >= start_ns for moment in self._asked[kind, name][first:last])
        return total

    def longest_gap_ms(
        self, kind: Success, start_ns: int, end_ns: int, *, node: str | None = None
    ) -> float:
        """Return the longest time without a success within these bounds, both included."""
        moments = [start_ns, end_ns]
        for name in [node] if node is not None else self.nodes:
            answered = self._answered.get((kind, name), array("q"))
            moments += answered[bisect_left(answered, start_ns) : bisect_left(answered, end_ns)]
        moments.sort()
        return max(later - earlier for earlier, later in itertools.pairwise(moments)) / 1e6
