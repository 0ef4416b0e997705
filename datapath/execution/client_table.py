"""The client table (D8): the answers that repeats get, and what of it is forgotten when.

It is part of the replicated state, and changes with the deltas of the operations themselves.
Keyspace 1 holds the answer under a digest of each idempotency key; keyspace 2 the same keys in the
order of their log indices, with the time and the size of each, so that the oldest are forgotten
first; keyspace 3 the sums: the highest index that was forgotten, the bytes that are held, and the
time.

The time is the cluster's own: it goes on by the monotonic clock of whoever is primary, from where
the last delta of the epoch before left it, and stands still while nobody is. So it never goes back,
no clock is compared with another machine's, and what is dropped is the same on every replica,
for the delta says so. See docs/decisions/0009-what-repeats-are-forgotten.md.
"""

from __future__ import annotations

import functools
import hashlib
import struct
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from datapath.errors import OperationError, OperationUnknownError
from datapath.keyspaces import CLIENT_ORDER, CLIENT_SUMS, CLIENTS
from datapath.operations import Operation
from datapath.records import Entry
from datapath.settings import ClientTableBounds

ENTRY_OVERHEAD_BYTES = 136
"""What an answer costs in the store beside its own bytes, about 23 for a put: pages of the two
keyspaces in use, in a table that forgets as much as it takes (measured: docs/storage.md)."""
MAX_FORGOTTEN_PER_OPERATION = 64
"""How many answers one delta drops at the most; more follow with the next ones."""
SUMMARY_SIZE_BYTES = 64
"""What the sums add to a record, at the most."""
_READ_AHEAD = 256
_SUMS_KEY = b"sums"
_SUMS = struct.Struct("<QQQ")  # highest forgotten index, bytes held, time in ms
_ORDER = struct.Struct("<QI")  # time in ms, size in bytes; the key's digest follows


class TableState(Protocol):
    """What the table reads of the store."""

    def get(self, keyspace: int, key: bytes) -> bytes | None:
        """Return the committed value under a key of a keyspace."""

    def range(
        self, keyspace: int, start: bytes, end: bytes | None, limit: int
    ) -> list[tuple[bytes, bytes]]:
        """Return committed pairs with start <= key < end, in key order."""


class FirstAnswer(msgspec.Struct, frozen=True, array_like=True):
    """An answer as it is kept; `code` "" means success."""

    fingerprint: bytes
    index: int
    value: Any
    code: str
    detail: str


class _Old(msgspec.Struct, frozen=True):
    """One of the oldest answers: its place in keyspace 2, and what stands there."""

    order: bytes
    time_ms: int
    size_bytes: int
    key: bytes


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(FirstAnswer)


class ClientTable:
    """What the executor keeps of the table in memory: sums, and the oldest answers."""

    def __init__(
        self, state: TableState, bounds: ClientTableBounds, clock: Callable[[], float]
    ) -> None:
        self._state = state
        self._bounds = bounds
        self._clock = clock
        self._forgotten_index = 0
        self.is_behind = False
        """Whether entries were applied that another primary made: they may have forgotten more."""
        self._size_bytes = 0
        self._time_ms = 0
        self._began_ms = (0, 0.0)  # the table's time when the epoch began, and this node's clock
        self._oldest: deque[_Old] = deque()
        self._read_to: bytes = b""
        self._next = (0, 0, 0, 0)  # sums, and how many go, on `take`
        self.has_changed = False
        """Whether the sums have, since a record told them."""
        self.start_epoch()

    def start_epoch(self) -> None:
        """Take the committed sums: what the last epoch left uncommitted is gone, or is in them."""
        self._forgotten_index, self._size_bytes, self._time_ms = self._committed_sums()
        self.is_behind = False
        self._began_ms = (self._time_ms, self._clock())
        self._oldest.clear()
        self._read_to = b""
        self.has_changed = False

    def _committed_sums(self) -> tuple[int, int, int]:
        held = self._state.get(CLIENT_SUMS, _SUMS_KEY)
        forgotten_index, size_bytes, time_ms = (0, 0, 0) if held is None else _SUMS.unpack(held)
        return forgotten_index, size_bytes, time_ms

    @staticmethod
    def decode(held: bytes) -> FirstAnswer:
        """Decode what stands in keyspace 1."""
        return _decoder.decode(held)

    def refusal(self, first_after: int | None, next_index: int) -> OperationError | None:
        """May an operation whose key is not held be executed? Return what refuses it, or None.

        It was first sent after `first_after` had committed, so that every earlier attempt has a
        higher index. All that is above the highest forgotten index is held: an attempt that was
        executed would have been found.
        """
        if first_after is None:
            return None
        if self.is_behind:
            self._forgotten_index = max(self._forgotten_index, self._committed_sums()[0])
            self.is_behind = False
        if first_after >= next_index:
            return OperationUnknownError(
                "unknown_revision",
                f"Idempotency-After names revision {first_after}, which this cluster has not "
                "reached: use the Onecopy-Revision of this cluster's answers, never that of a "
                "write with ack=local",
            )
        if first_after >= self._forgotten_index:
            return None
        return OperationUnknownError(
            "idempotency_key_expired",
            "the idempotency key is unknown, and keys of requests this old may have been "
            f"dropped (up to revision {self._forgotten_index}; this request was first sent after "
            f"{first_after}). It was not executed now; read the key to learn whether it was before",
        )

    # -- remembering and forgetting, within a delta

    def remember(
        self, operation: Operation, index: int, value: Any, error: OperationError | None
    ) -> Entry:
        """Return the writes that keep an answer and drop the oldest; they count on `take`."""
        code, detail = (error.code, error.detail) if error else ("", "")
        answer = _encoder.encode(FirstAnswer(fingerprint(operation), index, value, code, detail))
        key = client_key(operation.idempotency_key)
        size = len(answer) + ENTRY_OVERHEAD_BYTES
        base_ms, began_ms = self._began_ms
        now_ms = max(self._time_ms, base_ms + int(self._clock() - began_ms))
        order = index.to_bytes(8, "big")
        entry: Entry = [
            (CLIENTS, key, answer),
            (CLIENT_ORDER, order, _ORDER.pack(now_ms, size) + key),
        ]
        held, forgotten, gone = self._size_bytes + size, self._forgotten_index, 0
        for old in self._too_old(now_ms, held):
            entry += ((CLIENT_ORDER, old.order, None), (CLIENTS, old.key, None))
            held -= old.size_bytes
            forgotten = int.from_bytes(old.order, "big")
            gone += 1
        self._next = (forgotten, held, now_ms, gone)
        return entry

    def _too_old(self, now_ms: int, held_bytes: int) -> list[_Old]:
        """Return what has to go: beyond the time, then beyond the bytes, a bounded number."""
        bounds = self._bounds
        found: list[_Old] = []
        while len(found) < MAX_FORGOTTEN_PER_OPERATION:
            if len(found) == len(self._oldest) and not self._find_oldest():
                break
            old = self._oldest[len(found)]
            if old.time_ms + bounds.retention_ms > now_ms and held_bytes <= bounds.max_bytes:
                break
            held_bytes -= old.size_bytes
            found.append(old)
        return found

    def _find_oldest(self) -> bool:
        """Look up the next oldest answers in the committed state; uncommitted ones are newer."""
        page = self._state.range(CLIENT_ORDER, self._read_to, None, _READ_AHEAD)
        for order, held in page:
            time_ms, size_bytes = _ORDER.unpack_from(held)
            self._oldest.append(_Old(order, time_ms, size_bytes, held[_ORDER.size :]))
        if page:
            self._read_to = page[-1][0] + b"\0"
        return bool(page)

    def take(self) -> None:
        """The delta with the writes that `remember` returned last counts now."""
        self._forgotten_index, self._size_bytes, self._time_ms, gone = self._next
        for _ in range(gone):
            self._oldest.popleft()
        self.has_changed = True

    def summary(self) -> Entry:
        """Return the write that makes a record tell the sums."""
        self.has_changed = False
        sums = _SUMS.pack(self._forgotten_index, self._size_bytes, self._time_ms)
        return [(CLIENT_SUMS, _SUMS_KEY, sums)]


@functools.lru_cache(maxsize=16)  # it is asked for twice, one after the other
def client_key(idempotency_key: str) -> bytes:
    """Return the digest that stands for an idempotency key."""
    return hashlib.blake2b(idempotency_key.encode(), digest_size=16).digest()


def fingerprint(operation: Operation) -> bytes:
    """Return a digest of what an operation asks for: a key belongs to one request."""
    asked: tuple[Any, ...] = (operation.service, operation.method, operation.args)
    if operation.if_lock is not None:
        asked += (operation.if_lock,)
    payload = _encoder.encode(asked)
    return hashlib.blake2b(payload, digest_size=16).digest()
