"""The transaction that a user's service gets: its own keyspace, and bounds (rules X1 and X2)."""

from __future__ import annotations

from typing import NoReturn

from cluster.services.time_limit import TimeLimit
from datapath.errors import OperationNotAppliedError
from datapath.keyspaces import after_prefix
from datapath.service import ReadTransaction, Transaction

MAX_SCOPED_KEY_SIZE_BYTES = 460
MAX_WRITES = 10_000
"""Of one operation: puts and deletes, those of one key counted each time."""
MAX_SCAN_LIMIT = 10_000
"""Of one range or page."""


class ScopedReader:
    """A `ReadTransaction` over the keys that begin with a prefix, which it hides.

    `limit` is the time limit of whoever uses it: it does not
    interrupt what happens inside here. After `close` every use raises RuntimeError.
    """

    def __init__(self, tx: ReadTransaction, prefix: bytes, limit: TimeLimit) -> None:
        self._tx = tx
        self._prefix = prefix
        self._end = after_prefix(prefix)
        self._limit = limit
        self._closed = False

    def close(self) -> None:
        """Its operation is over."""
        self._closed = True

    def keyspace(self, number: int) -> NoReturn:
        """Refuse: a service sees no keys but its own (X1)."""
        raise ValueError(f"a service sees its own keys alone, and no keyspace {number}")

    def get(self, key: bytes) -> bytes | None:
        """Return the value under `key`, or None."""
        full = self._full(key)
        self._enter()
        try:
            return self._tx.get(full)
        finally:
            self._leave()

    def range(self, start: bytes, end: bytes | None, limit: int) -> list[tuple[bytes, bytes]]:
        """Return up to `limit` (at most 10,000) pairs with start <= key < end, in key order."""
        bounds = self._bounds(start, end, limit)
        self._enter()
        try:
            found = self._tx.range(*bounds, limit)
        finally:
            self._leave()
        size = len(self._prefix)
        return [(key[size:], value) for key, value in found]

    def page(
        self, start: bytes, end: bytes | None, limit: int, max_size_bytes: int
    ) -> tuple[list[tuple[bytes, bytes]], bytes | None]:
        """Return some pairs, and where to go on: see `datapath.service.ReadTransaction`."""
        bounds = self._bounds(start, end, limit)
        self._enter()
        try:
            found, following = self._tx.page(*bounds, limit, max_size_bytes)
        finally:
            self._leave()
        size = len(self._prefix)
        return [(key[size:], value) for key, value in found], following and following[size:]

    def _enter(self) -> None:
        if self._closed:
            raise RuntimeError(
                "this operation is over: a transaction cannot be kept, nor used by a task that "
                "outlives its operation"
            )
        self._limit.masked = True

    def _leave(self) -> None:
        self._limit.masked = False
        self._limit.check()

    def _full(self, key: bytes) -> bytes:
        if not isinstance(key, bytes):
            _wrong_type("a key", key)
        if not 1 <= len(key) <= MAX_SCOPED_KEY_SIZE_BYTES:
            raise ValueError(f"a key has 1 to {MAX_SCOPED_KEY_SIZE_BYTES} bytes, not {len(key)}")
        return self._prefix + key  # X1: what is not below the prefix has no name here

    def _bounds(self, start: bytes, end: bytes | None, limit: int) -> tuple[bytes, bytes | None]:
        if not isinstance(start, bytes):
            _wrong_type("start", start)
        if not isinstance(end, bytes | None):
            _wrong_type("end", end)
        if not 1 <= limit <= MAX_SCAN_LIMIT:
            raise ValueError(f"limit must be from 1 to {MAX_SCAN_LIMIT}, not {limit}")
        return self._prefix + start, self._end if end is None else self._prefix + end


class Scoped(ScopedReader):
    """A `Transaction` over those keys. `failure`: why nothing of it may count, or None."""

    def __init__(
        self, tx: Transaction, prefix: bytes, limit: TimeLimit, *, max_bytes: int, what: str
    ) -> None:
        super().__init__(tx, prefix, limit)
        self._writable = tx
        self._max_bytes = max_bytes
        self._what = what
        self._written_bytes = 0
        self._writes = 0
        self.failure: OperationNotAppliedError | None = None

    @property
    def index(self) -> int:
        """The log index that this operation's delta will have: a revision.

        Raises RuntimeError in an `async` operation: others may go before it.
        """
        if not self._writable.index:
            raise RuntimeError("an async operation does not know its index before it has ended")
        return self._writable.index

    @property
    def role(self) -> str:
        """The role of who calls; "": none, there is no access control."""
        return self._writable.role

    def put(self, key: bytes, value: bytes) -> None:
        """Write `value` under `key`."""
        full = self._full(key)
        if not isinstance(value, bytes):
            _wrong_type("a value", value)
        self._count(len(full) + len(value))
        self._enter()
        try:
            self._writable.put(full, value)
        finally:
            self._leave()

    def delete(self, key: bytes) -> None:
        """Remove `key`; nothing happens if it isn't there."""
        full = self._full(key)
        self._count(len(full))
        self._enter()
        try:
            self._writable.delete(full)
        finally:
            self._leave()

    def _count(self, size_bytes: int) -> None:
        """Raise NotAppliedError for a write too many; it sticks, whoever catches it (X2)."""
        self._written_bytes += size_bytes
        self._writes += 1
        if not fits(self._writes, self._written_bytes, self._max_bytes):
            self.failure = OperationNotAppliedError(
                "too_large",
                f"{self._what} writes too much: an operation may write {MAX_WRITES} times and "
                f"{self._max_bytes} bytes (max_write_bytes); nothing of it was written",
            )
            raise self.failure


def fits(writes: int, written_bytes: int, max_bytes: int) -> bool:
    """Whether an operation may have written so much (X2)."""
    return writes <= MAX_WRITES and written_bytes <= max_bytes


def _wrong_type(name: str, value: object) -> NoReturn:
    hint = "; use .encode()" if isinstance(value, str) else ""
    raise TypeError(f"{name} must be bytes, not {type(value).__name__}{hint}")
