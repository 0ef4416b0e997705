"""Hands out numbers, each once, in blocks: `[services.ids] class = "ids:Ids"`."""

from __future__ import annotations

import msgspec

from onecopy import ReadTransaction, RejectedError, Service, Transaction, operation, query

MAX_BLOCK = 1_000_000


class Block(msgspec.Struct):
    """The numbers from `first` up to, but without, `end`."""

    first: int
    end: int


class Ids(Service):
    """Numbers that nobody else gets, by the name of what they are for."""

    @operation
    def take(self, tx: Transaction, name: str, count: int = 1) -> Block:
        """Take the next `count` numbers."""
        if not 1 <= count <= MAX_BLOCK:
            raise RejectedError("bad_count", f"count is from 1 to {MAX_BLOCK}", for_good=True)
        first = _next(tx, name)
        tx.put(name.encode(), str(first + count).encode())
        return Block(first, first + count)

    @query
    def following(self, tx: ReadTransaction, name: str) -> int:
        """Return the number that will be taken next."""
        return _next(tx, name)


def _next(tx: ReadTransaction, name: str) -> int:
    return int(tx.get(name.encode()) or b"1")
