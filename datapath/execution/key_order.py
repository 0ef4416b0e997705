"""The keys of writes in order, for reading ranges of them."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from itertools import islice
from typing import TypeVar

ValueT = TypeVar("ValueT")
Place = tuple[int, bytes]
"""Where a write goes: a keyspace and a key."""

SORTED_AT_ONCE = 64
"""From so many new places on, sorting all takes less time than inserting each."""


class KeyOrder:
    """The places of a dict of writes, in order.

    It is brought up to date when a range is read: most operations read none, and pay nothing. What
    has come since the last time is inserted, so that an operation that writes and reads ranges in
    turn (one that ends leases, say) takes time in proportion to what it does. Between two calls of
    `reset` places only come. `places`: those that are in order by now; with none, nothing is there
    to `reset`.
    """

    __slots__ = ("places",)

    def __init__(self) -> None:
        self.places: list[Place] = []

    def reset(self) -> None:
        """Places have gone, or it is another dict."""
        self.places = []

    def between(
        self, writes: dict[Place, ValueT], keyspace: int, start: bytes, end: bytes | None
    ) -> Sequence[Place]:
        """Return the places of a keyspace with start <= key < end, in order."""
        places = self.places
        n_new = len(writes) - len(places)
        new = islice(reversed(writes), n_new)
        if n_new < SORTED_AT_ONCE:
            for place in new:
                insort(places, place)
        else:
            places.extend(new)
            places.sort()
        low = bisect_left(places, (keyspace, start))
        high = bisect_left(places, (keyspace + 1, b"") if end is None else (keyspace, end), low)
        return places[low:high]
