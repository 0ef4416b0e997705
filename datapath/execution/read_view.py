"""What queries and the executor read: the committed state, and views of its keyspaces."""

from __future__ import annotations

from typing import Protocol

from datapath.keyspaces import KV, check_open


class CommittedState(Protocol):
    """What the executor reads of the store; see `datapath.storage.store.Store`."""

    def get(self, keyspace: int, key: bytes) -> bytes | None:
        """Return the committed value under a key of a keyspace."""

    def range(
        self, keyspace: int, start: bytes, end: bytes | None, limit: int
    ) -> list[tuple[bytes, bytes]]:
        """Return committed pairs with start <= key < end, in key order."""

    def page(
        self, keyspace: int, start: bytes, end: bytes | None, limit: int, max_size_bytes: int
    ) -> tuple[list[tuple[bytes, bytes]], bytes | None]:
        """Return some of those pairs, bounded in work, and where to go on."""


class ReadMeter:
    """Counts `read_bytes`: of values that were asked for by their keys, so far."""

    __slots__ = ("read_bytes",)

    def __init__(self) -> None:
        self.read_bytes = 0


class ReadView:
    """A `ReadTransaction` over the committed state of a keyspace; views may share a `meter`."""

    __slots__ = ("_keyspace", "_state", "meter")

    def __init__(
        self, state: CommittedState, keyspace: int = KV, meter: ReadMeter | None = None
    ) -> None:
        self._state = state
        self._keyspace = keyspace
        self.meter = meter or ReadMeter()

    def keyspace(self, which: int | str) -> ReadView:
        """Return a view of the same state on another keyspace."""
        return ReadView(self._state, check_open(which), self.meter)

    def get(self, key: bytes) -> bytes | None:
        """Return the committed value under `key`, or None."""
        value = self._state.get(self._keyspace, key)
        if value is not None:
            self.meter.read_bytes += len(value)
        return value

    def range(self, start: bytes, end: bytes | None, limit: int) -> list[tuple[bytes, bytes]]:
        """Return up to `limit` committed pairs with start <= key < end, in key order."""
        return self._state.range(self._keyspace, start, end, limit)

    def page(
        self, start: bytes, end: bytes | None, limit: int, max_size_bytes: int
    ) -> tuple[list[tuple[bytes, bytes]], bytes | None]:
        """Return committed pairs with start <= key < end, and where to go on."""
        return self._state.page(self._keyspace, start, end, limit, max_size_bytes)
