"""A small service for tests of what stands around services."""

from __future__ import annotations

import msgspec

from onecopy import ReadTransaction, RejectedError, Service, Transaction, operation, query


class Order(msgspec.Struct):
    """What was taken, and how much is left."""

    item: str
    count: int
    left: int


class Shop(Service):
    """A shop that begins with 100 of everything."""

    @operation
    def reserve(self, tx: Transaction, item: str, count: int = 1) -> Order:
        """Take some off the stock."""
        left = self._left(tx, item)
        if count > left:
            raise RejectedError("sold_out", f"only {left} of {item} are left")
        tx.put(item.encode(), str(left - count).encode())
        return Order(item, count, left - count)

    @query
    def left(self, tx: ReadTransaction, item: str, at_least: int = 0) -> int:
        """Return how many are left."""
        return max(self._left(tx, item), at_least)

    @staticmethod
    def _left(tx: ReadTransaction, item: str) -> int:
        return int(tx.get(item.encode()) or b"100")
