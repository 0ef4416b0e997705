"""What was applied and is not in LMDB yet: changes in memory, read in key order."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from datapath.keyspaces import KEYSPACES

MAX_FLUSH_RECORDS = 32_768
"""With so many an overlay is flushed (see `datapath.storage.store_flusher.is_due`)."""
KeyChange = tuple[bytes, bytes | None]


class Overlay:
    """Writes not yet in LMDB, the last one of each key; up to (`index`, `epoch`)."""

    def __init__(self, index: int, epoch: int) -> None:
        self.index = index
        self.epoch = epoch
        self.size_bytes = 0
        self.writes: dict[int, dict[bytes, bytes | None]] = {
            number: {} for number in range(KEYSPACES)
        }
        self._sorted: dict[int, list[bytes]] = {number: [] for number in range(KEYSPACES)}

    def changes(
        self, keyspace: int, start: bytes, end: bytes | None, *, reverse: bool
    ) -> Iterator[KeyChange]:
        """Yield the changes with start <= key < end, in key order."""
        writes = self.writes[keyspace]
        keys = self._sorted[keyspace]
        if len(keys) < len(writes):
            # Keys only come: those not sorted yet are the last ones of the dict.
            keys.extend(islice(writes, len(keys), None))
            keys.sort()
        low = _position(keys, start)
        high = len(keys) if end is None else _position(keys, end)
        window = range(high - 1, low - 1, -1) if reverse else range(low, high)
        return ((keys[at], writes[keys[at]]) for at in window)


def _position(keys: list[bytes], key: bytes) -> int:
    low, high = 0, len(keys)
    while low < high:
        middle = (low + high) // 2
        if keys[middle] < key:
            low = middle + 1
        else:
            high = middle
    return low


def merge(
    upper: Iterator[KeyChange], lower: Iterator[KeyChange], *, reverse: bool
) -> Iterator[KeyChange]:
    """Merge two streams in key order; of the same key, the upper one's change counts."""
    above, below = next(upper, None), next(lower, None)
    while above is not None and below is not None:
        if above[0] == below[0]:
            yield above
            above, below = next(upper, None), next(lower, None)
        elif (above[0] < below[0]) is not reverse:
            yield above
            above = next(upper, None)
        else:
            yield below
            below = next(lower, None)
    if above is not None:
        yield above
        yield from upper
    if below is not None:
        yield below
        yield from lower
