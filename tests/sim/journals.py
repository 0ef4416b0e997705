"""Which views each member of the simulated consensus has on its disk, for recoveries (rule R2).

Consensus is abstract where this is used. Each of its entries, a view or a step of the voters, is on
the disks of a majority of the voters after it, drawn among those that run, and of no others until
they hear of it. Draws from random numbers of its own.
"""

from __future__ import annotations

from random import Random

from datapath.node.survivors import KnownView, NodeMemory, Position
from election.view import View

READ_RATE = 0.3
WITNESS_LEFT_RATE = 0.5


class Journals:
    """All entries, and up to which one each member has them and knows them to be agreed."""

    def __init__(self, seed: int, first: View, voters: frozenset[str]) -> None:
        self._random = Random(f"{seed} journals")
        self._entries = [KnownView(first, voters)]
        self._last: dict[str, int] = dict.fromkeys(voters, 0)
        self._known: dict[str, int] = {}

    def agreed(self, view: View, voters: frozenset[str], running: frozenset[str]) -> None:
        """An entry is agreed, after which these vote, of whom some run."""
        number = len(self._entries)
        self._entries.append(KnownView(view, voters))
        count = len(voters) // 2 + 1
        ready = sorted(running if len(running) >= count else voters)
        for name in self._random.sample(ready, count):
            self._last[name] = number

    def heard(self, node_id: str, view: View) -> None:
        """A member has heard of a view, and so has all entries up to there."""
        versions = [entry.view.version for entry in self._entries]
        number = versions.index(view.version)
        self._known[node_id] = max(number, self._known.get(node_id, 0))
        self._last[node_id] = max(number, self._last.get(node_id, 0))

    def are_read(self) -> bool:
        """Draw whether a recovery looks at them: that costs time."""
        return self._random.random() < READ_RATE

    def is_left(self) -> bool:
        """Draw whether a witness's directory is left."""
        return self._random.random() < WITNESS_LEFT_RATE

    def memory(self, node_id: str, remembered: dict[str, Position]) -> NodeMemory:
        """Return what a recovery finds in a member's directory."""
        views: tuple[KnownView, ...] = ()
        if node_id in self._last:
            first, last = self._known.get(node_id, 0), self._last[node_id]
            views = tuple(self._entries[first : last + 1])
        return NodeMemory(name=node_id, node=node_id, views=views, remembered=remembered)
