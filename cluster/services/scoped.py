"""The transaction that a user's service gets: its own keys, and bounds (rules X1 and X2).

X1: it sees and writes its own keys, and those of others that its `Rights` name, which come from the
configuration alone. Reading and writing are separate rights.
"""

from __future__ import annotations

from typing import NoReturn

import msgspec

from cluster.groups.group_map import SlotRange, owns
from cluster.groups.partition import slot_of
from cluster.services.kv import HEAD_SIZE_BYTES, remove_key, write_value
from cluster.services.time_limit import TimeLimit
from datapath.errors import OperationNotAppliedError
from datapath.keyspaces import KV, SERVICES, after_prefix
from datapath.service import STORE_NAME, ReadTransaction, Transaction

MAX_SCOPED_KEY_SIZE_BYTES = 460
MAX_STORE_KEY_SIZE_BYTES = 480
MAX_WRITES = 10_000
"""Of one operation: puts and deletes, those of one key counted each time."""
MAX_SCAN_LIMIT = 10_000
"""Of one range or page."""


class Rights(msgspec.Struct, frozen=True, kw_only=True):
    """Whose keys a service may read and write besides its own: names of services, or STORE_NAME.

    `slots`: which of the store's keys are this group's; (): all (G1).
    """

    reads: frozenset[str] = frozenset()
    writes: frozenset[str] = frozenset()
    slots: tuple[SlotRange, ...] = ()


OWN_KEYS_ALONE = Rights()


class WriteBounds:
    """The writes of one operation so far, whatever keys they are of (X2).

    `failure`: why nothing of the operation may count, or None. It sticks, whoever catches it.
    """

    def __init__(self, max_bytes: int, what: str) -> None:
        self.failure: OperationNotAppliedError | None = None
        self._max_bytes = max_bytes
        self._what = what
        self._written_bytes = 0
        self._writes = 0

    def count(self, size_bytes: int) -> None:
        """Raise NotAppliedError for a write too many."""
        self._written_bytes += size_bytes
        self._writes += 1
        if not fits(self._writes, self._written_bytes, self._max_bytes):
            self.failure = OperationNotAppliedError(
                "too_large",
                f"{self._what} writes too much: an operation may write {MAX_WRITES} times and "
                f"{self._max_bytes} bytes (max_write_bytes); nothing of it was written",
            )
            raise self.failure


class ScopedReader:
    """A `ReadTransaction` over the keys that begin with a prefix, which it hides.

    `limit` is the time limit of whoever uses it: it does not
    interrupt what happens inside here. After `close` every use raises RuntimeError.
    """

    def __init__(
        self,
        tx: ReadTransaction,
        prefix: bytes,
        limit: TimeLimit,
        rights: Rights = OWN_KEYS_ALONE,
        owner: str = "",
    ) -> None:
        """`owner`: whose keys they are, "" for the service's own."""
        self._tx = tx
        self._prefix = prefix
        self._end = after_prefix(prefix)
        self._limit = limit
        self._rights = rights
        self._owner = owner
        self._head_bytes = HEAD_SIZE_BYTES if owner == STORE_NAME else 0
        self._opened: dict[str, ScopedReader] = {}
        self._closed = False

    def close(self) -> None:
        """Its operation is over."""
        self._closed = True
        for view in self._opened.values():
            view.close()

    def keyspace(self, which: int | str) -> ScopedReader:
        """Return a view of the keys of another service, or of the store ("kv"), by its name.

        Raises ValueError for one that the configuration gives no right to (X1).
        """
        name = str(which)
        if name not in self._opened:
            self._opened[name] = ScopedReader(*self._other(name))
        return self._opened[name]

    def _other(self, name: str) -> tuple[ReadTransaction, bytes, TimeLimit, Rights, str]:
        rights = self._rights
        if not (may_read(name, rights) or may_write(name, rights)):
            raise ValueError(
                f"a service sees its own keys alone, and those named by `reads` and `writes` in "
                f"its section of the configuration file: {name!r} is not among them"
            )
        self._check_open()
        if name == STORE_NAME:
            return self._tx.keyspace(KV), b"", self._limit, rights, name
        return self._tx.keyspace(SERVICES), data_prefix(name), self._limit, rights, name

    def get(self, key: bytes) -> bytes | None:
        """Return the value under `key`, or None."""
        full = self._full(key)
        self._enter_read()
        try:
            found = self._tx.get(full)
        finally:
            self._leave()
        return None if found is None else found[self._head_bytes :]

    def range(self, start: bytes, end: bytes | None, limit: int) -> list[tuple[bytes, bytes]]:
        """Return up to `limit` (at most 10,000) pairs with start <= key < end, in key order."""
        bounds = self._bounds(start, end, limit)
        self._enter_read()
        try:
            found = self._tx.range(*bounds, limit)
        finally:
            self._leave()
        return self._pairs(found)

    def page(
        self, start: bytes, end: bytes | None, limit: int, max_size_bytes: int
    ) -> tuple[list[tuple[bytes, bytes]], bytes | None]:
        """Return some pairs, and where to go on: see `datapath.service.ReadTransaction`."""
        bounds = self._bounds(start, end, limit)
        self._enter_read()
        try:
            found, following = self._tx.page(*bounds, limit, max_size_bytes)
        finally:
            self._leave()
        return self._pairs(found), following and following[len(self._prefix) :]

    def _pairs(self, found: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        size, head = len(self._prefix), self._head_bytes
        return [(key[size:], stored[head:]) for key, stored in found]

    def _enter_read(self) -> None:
        if self._owner and not may_read(self._owner, self._rights):
            raise ValueError(f"it may write the keys of {self._owner!r}, not read them: {_ADVICE}")
        self._enter()

    def _enter(self) -> None:
        self._check_open()
        self._limit.masked = True

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError(
                "this operation is over: a transaction cannot be kept, nor used by a task that "
                "outlives its operation"
            )

    def _leave(self) -> None:
        self._limit.masked = False
        self._limit.check()

    def _full(self, key: bytes) -> bytes:
        if not isinstance(key, bytes):
            _wrong_type("a key", key)
        longest = MAX_STORE_KEY_SIZE_BYTES if self._head_bytes else MAX_SCOPED_KEY_SIZE_BYTES
        if not 1 <= len(key) <= longest:
            raise ValueError(f"a key has 1 to {longest} bytes, not {len(key)}")
        slots = self._rights.slots if self._head_bytes else ()
        if slots and not owns(slots, slot_of(key)):  # G1
            raise ValueError(f"the store's key {key!r} belongs to another group")
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
    """A `Transaction` over those keys; `bounds` are of all that its operation writes."""

    def __init__(
        self,
        tx: Transaction,
        prefix: bytes,
        limit: TimeLimit,
        rights: Rights,
        bounds: WriteBounds,
        owner: str = "",
    ) -> None:
        super().__init__(tx, prefix, limit, rights, owner)
        self._writable = tx
        self.bounds = bounds

    def keyspace(self, which: int | str) -> Scoped:
        """Return a view of the keys of another service, or of the store: see `ScopedReader`."""
        view = self._opened.get(str(which))
        if not isinstance(view, Scoped):
            _, prefix, limit, rights, name = self._other(str(which))
            tx = self._writable.keyspace(KV if name == STORE_NAME else SERVICES)
            view = self._opened[name] = Scoped(tx, prefix, limit, rights, self.bounds, name)
        return view

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
        """Write `value` under `key`; a key of the store hangs on no lease from then on."""
        full = self._full(key)
        if not isinstance(value, bytes):
            _wrong_type("a value", value)
        self._enter_write(full, len(value))
        try:
            if self._head_bytes:
                write_value(self._writable, full, value, self._writable.get(full))
            else:
                self._writable.put(full, value)
        finally:
            self._leave()

    def delete(self, key: bytes) -> None:
        """Remove `key`; nothing happens if it isn't there."""
        full = self._full(key)
        self._enter_write(full, 0)
        try:
            if not self._head_bytes:
                self._writable.delete(full)
            elif (stored := self._writable.get(full)) is not None:
                remove_key(self._writable, full, stored)
        finally:
            self._leave()

    def _enter_write(self, full: bytes, value_bytes: int) -> None:
        if self._owner and not may_write(self._owner, self._rights):
            raise ValueError(f"it may read the keys of {self._owner!r}, not write them: {_ADVICE}")
        if self._head_bytes and not _is_text(full):
            raise ValueError(f"a key of the store is UTF-8, not {full!r}")
        self.bounds.count(len(full) + value_bytes)
        self._enter()


def data_prefix(name: str) -> bytes:
    """Return what all keys of a service begin with in the keyspace SERVICES."""
    return name.encode() + b"\0"


def may_read(name: str, rights: Rights) -> bool:
    """Whether a service with these rights may read the keys of another, or of the store (X1)."""
    return name in rights.reads


def may_write(name: str, rights: Rights) -> bool:
    """Whether it may write them (X1)."""
    return name in rights.writes


def _is_text(key: bytes) -> bool:
    try:
        key.decode()
    except UnicodeDecodeError:
        return False
    return True


_ADVICE = "see `reads` and `writes` in its section of the configuration file"


def fits(writes: int, written_bytes: int, max_bytes: int) -> bool:
    """Whether an operation may have written so much (X2)."""
    return writes <= MAX_WRITES and written_bytes <= max_bytes


def _wrong_type(name: str, value: object) -> NoReturn:
    hint = "; use .encode()" if isinstance(value, str) else ""
    raise TypeError(f"{name} must be bytes, not {type(value).__name__}{hint}")
