"""Every attempt of a load that failed: at which node, how, and whether that node was away.

A client that repeats sees none of these. One that does not must see none either while members are
added, removed, moved and upgraded in order, but for attempts at a node that is not there.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter, deque
from collections.abc import Iterator

import msgspec

NOT_SENT = "no connection"
CUT = "cut off"
MAX_SHOWN = 10


class FailedAttempt(msgspec.Struct, frozen=True, gc=False):
    """One attempt without success; `how` is NOT_SENT, CUT, or the code of a problem."""

    node: str
    how: str
    was_away: bool
    method: str
    asked_ns: int
    ended_ns: int
    detail: str


class FailedAttempts:
    """All of a load are counted; the last ones of each kind are kept."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, bool]] = Counter()
        self._last: dict[tuple[str, bool], deque[FailedAttempt]] = {}
        self._away: set[str] = set()
        self._back_ns: dict[str, int] = {}

    def add(self, node: str, how: str, method: str, asked_ns: int, detail: str) -> None:
        """Note one that ends now."""
        was_away = node in self._away or asked_ns <= self._back_ns.get(node, 0)
        failed = FailedAttempt(
            node, how, was_away, method, asked_ns, time.monotonic_ns(), detail[:200]
        )
        self._counts[how, was_away] += 1
        self._last.setdefault((how, was_away), deque(maxlen=MAX_SHOWN)).append(failed)

    def leaves(self, node: str) -> None:
        """Say that the node is asked to stop now."""
        self._away.add(node)

    def is_back(self, node: str) -> None:
        """Say that the node serves again."""
        self._away.discard(node)
        self._back_ns[node] = time.monotonic_ns()

    @contextlib.contextmanager
    def away(self, node: str) -> Iterator[None]:
        """Between these two, the node is being stopped, is not there, or is being started."""
        self.leaves(node)
        yield
        self.is_back(node)

    def require_none_but(self, *hows: str) -> str:
        """Raise AssertionError unless all failed in these ways, at nodes that were away."""
        kinds = {
            f"{how}, {'away' if was_away else 'there'}": count
            for (how, was_away), count in self._counts.items()
        }
        others = [
            str(failed)
            for (how, was_away), last in self._last.items()
            if how not in hows or not was_away
            for failed in last
        ]
        assert not others, "\n".join([f"attempts failed otherwise: {kinds}", *others])
        return f"failed attempts: {kinds}"
