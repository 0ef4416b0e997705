"""Asking before standing: elections that cannot win are not held, so they depose nobody.

PySyncObj has no pre-vote: a member that merely lost its link to the leader raises its term and
deposes it. Here a member first asks; the others say no while they hear a leader. Pure: the time
and the random draw are inputs. Nothing here bears on safety, which PySyncObj's votes keep.
"""

from __future__ import annotations

ORPHAN_PATIENCE_S = 1.0
_ORPHAN_GAP_S = 0.5
_HELP_INTERVAL_S = 5.0


class Ballot:
    """One member's rounds of asking, and its memory of others who ask in vain."""

    def __init__(self) -> None:
        self.round = 0
        self.won = False
        self._granted: set[str] = set()
        self._orphans: dict[str, tuple[float, float]] = {}  # id: first and last time it asked
        self._helped_at = float("-inf")

    def start(self) -> int:
        """Begin a new round of asking; return its number."""
        self.round += 1
        self.won = False
        self._granted = set()
        return self.round

    def on_answer(self, round_number: int, node_id: str, *, granted: bool, group_size: int) -> bool:
        """Count an answer; True when a majority, this member included, has just agreed."""
        if round_number != self.round or not granted or self.won:
            return False
        self._granted.add(node_id)
        self.won = 2 * (len(self._granted) + 1) > group_size
        return self.won

    def on_refused_orphan(self, node_id: str, now: float) -> bool:
        """Note that a member without a leader was told that there is one.

        True when it has been asking for so long that this member, which has links to both, should
        stand itself: as the leader it is heard by everybody.
        """
        first, last = self._orphans.get(node_id, (now, now))
        if now - last > _ORPHAN_GAP_S:
            first = now
        self._orphans[node_id] = (first, now)
        if now - first < ORPHAN_PATIENCE_S or now - self._helped_at < _HELP_INTERVAL_S:
            return False
        self._helped_at = now
        return True
