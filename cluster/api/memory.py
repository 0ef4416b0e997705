"""What clients make a node hold: answers they have not taken, bodies they have not completed.

All together are bounded. When the bound is reached, those who have not moved for a while are cut
off, the longest first; where nobody has stood still, the newcomer is refused. So clients who take
or send steadily, however slowly, are left alone, and clients who stop cannot keep others out.
"""

from __future__ import annotations

from collections.abc import Callable

STALLED_AFTER_S = 1.0
"""For so long a client must not have moved before it is cut off to make room."""


class Share:
    """What is held for one client. `cut` ends it, when room is needed and it stands still.

    None: the client waits for this node, and is not cut off.
    """

    __slots__ = ("_memory", "cut", "moved_at", "size_bytes")

    def __init__(self, memory: Memory, size_bytes: int, cut: Callable[[], None] | None) -> None:
        self._memory = memory
        self.size_bytes = size_bytes
        self.cut = cut
        self.moved_at = memory.now()

    def moved(self) -> None:
        """The client has taken, or sent, something."""
        self.moved_at = self._memory.now()

    def resize(self, size_bytes: int) -> None:
        """So much is held now; 0 gives it back."""
        self._memory.resize(self, size_bytes)


class Memory:
    """The bound of all shares together. `now()` is in seconds."""

    def __init__(self, limit_bytes: int, now: Callable[[], float]) -> None:
        self.limit_bytes = limit_bytes
        self.now = now
        self.held_bytes = 0
        self.cut_total = 0
        self.refused_total = 0
        self._shares: set[Share] = set()

    def take(self, size_bytes: int, cut: Callable[[], None]) -> Share | None:
        """Hold so much more for a client, if there is room or room can be made; else None."""
        if not self.make_room(size_bytes):
            self.refused_total += 1
            return None
        return self.hold(size_bytes, cut)

    def hold(self, size_bytes: int, cut: Callable[[], None] | None = None) -> Share:
        """Count what is held already, room or not."""
        share = Share(self, 0, cut)
        self.resize(share, size_bytes)
        return share

    def resize(self, share: Share, size_bytes: int) -> None:
        """Let a share hold so much from now on."""
        self.held_bytes += size_bytes - share.size_bytes
        share.size_bytes = size_bytes
        if size_bytes:
            self._shares.add(share)
        else:
            self._shares.discard(share)

    def make_room(self, size_bytes: int = 0) -> bool:
        """Cut off clients that stand still until there is room; return whether there is."""
        excess = self.held_bytes + size_bytes - self.limit_bytes
        if excess <= 0:
            return True
        latest = self.now() - STALLED_AFTER_S
        stalled = [share for share in self._shares if share.moved_at <= latest]
        for share in sorted(stalled, key=lambda share: share.moved_at):
            if share.cut is None:
                continue
            excess -= share.size_bytes
            self.resize(share, 0)
            self.cut_total += 1
            share.cut()
            if excess <= 0:
                return True
        return False
