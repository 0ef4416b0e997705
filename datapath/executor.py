"""Executing operations on the primary: a scratch overlay over the committed store, and deltas.

Layers that an operation reads through, newest first: its own writes, the burst's (operations
executed since the last record), the pending ones (in records that have not committed), the store.
Nothing in the first three is visible to anyone else before it commits (D2).

The client table (D8) is part of the state: space 1 holds the answer under a digest of each
idempotency key, space 2 the same keys by log index, so that the oldest can be dropped.
"""

from __future__ import annotations

import hashlib
import logging
from collections import deque
from collections.abc import Iterator
from typing import Any, Protocol

import msgspec

from datapath.environment import CLIENT_ORDER_SPACE, CLIENT_SPACE, SERVICE_SPACE
from datapath.errors import NotAppliedError, OperationError, RejectedError
from datapath.operations import Operation
from datapath.records import Entry
from datapath.service import Service

log = logging.getLogger(__name__)

MAX_KEY_SIZE_BYTES = 500
_EVICTION_BATCH = 256
_SCRATCH_RANGE_STEP = 256


class CommittedState(Protocol):
    """What the executor reads of the store; see `datapath.store.Store`."""

    def get(self, space: int, key: bytes) -> bytes | None:
        """Return the committed value under a key of a space."""

    def range(
        self, space: int, start: bytes, end: bytes | None, limit: int
    ) -> list[tuple[bytes, bytes]]:
        """Return committed pairs with start <= key < end, in key order."""

    def page(
        self, space: int, start: bytes, end: bytes | None, limit: int, max_size_bytes: int
    ) -> tuple[list[tuple[bytes, bytes]], bytes | None]:
        """Return some of those pairs, bounded in work, and where to go on."""

    def count(self, space: int) -> int:
        """Return how many keys a space has, near enough."""


class Executed(msgspec.Struct, gc=False):
    """What became of one operation: exactly one of `value` and `error` means something.

    `index` is its delta's log index, or 0 if it wrote nothing; `seen_index` the highest index of
    an uncommitted entry that its answer may depend on (D2).
    """

    value: Any
    error: OperationError | None
    index: int
    seen_index: int
    repeated: bool = False


class _Answer(msgspec.Struct, frozen=True, array_like=True):
    """An answer as the client table keeps it; `code` "" means success."""

    fingerprint: bytes
    index: int
    value: Any
    code: str
    detail: str


_answer_encoder = msgspec.msgpack.Encoder()
_answer_decoder = msgspec.msgpack.Decoder(_Answer)


class ReadView:
    """A `ReadTransaction` over the committed state."""

    __slots__ = ("_state",)

    def __init__(self, state: CommittedState) -> None:
        self._state = state

    def get(self, key: bytes) -> bytes | None:
        """Return the committed value under `key`, or None."""
        return self._state.get(SERVICE_SPACE, key)

    def range(self, start: bytes, end: bytes | None, limit: int) -> list[tuple[bytes, bytes]]:
        """Return up to `limit` committed pairs with start <= key < end, in key order."""
        return self._state.range(SERVICE_SPACE, start, end, limit)

    def page(
        self, start: bytes, end: bytes | None, limit: int, max_size_bytes: int
    ) -> tuple[list[tuple[bytes, bytes]], bytes | None]:
        """Return committed pairs with start <= key < end, and where to go on."""
        return self._state.page(SERVICE_SPACE, start, end, limit, max_size_bytes)


class Executor:
    """Executes operations in order and collects their deltas; also the `Transaction` they get."""

    def __init__(self, service: Service, state: CommittedState, client_table_entries: int) -> None:
        self._service = service
        self._state = state
        self._max_clients = client_table_entries
        self.index = 0
        self._seen_index = 0
        self._writes: dict[bytes, bytes | None] = {}
        self._burst: dict[tuple[int, bytes], tuple[bytes | None, int]] = {}
        self._pending: dict[tuple[int, bytes], tuple[bytes | None, int]] = {}
        self._clients = 0
        self._oldest: deque[tuple[bytes, bytes]] = deque()
        self._evicted: bytes = b""

    def start_epoch(self) -> None:
        """Forget all that is not committed; count what the client table holds."""
        self._writes, self._burst, self._pending = {}, {}, {}
        self._clients = self._state.count(CLIENT_ORDER_SPACE)
        self._oldest.clear()
        self._evicted = b""

    # -- the Transaction that operations see

    def get(self, key: bytes) -> bytes | None:
        """Return the value under `key` as this operation sees it, or None."""
        if key in self._writes:
            return self._writes[key]
        return self._lookup(SERVICE_SPACE, key)

    def _lookup(self, space: int, key: bytes) -> bytes | None:
        place = (space, key)
        held = self._burst.get(place) or self._pending.get(place)
        if held is None:
            return self._state.get(space, key)
        self._seen_index = max(self._seen_index, held[1])
        return held[0]

    def put(self, key: bytes, value: bytes) -> None:
        """Write `value` under `key`. Raises ValueError for a key of a wrong length."""
        if not 0 < len(key) <= MAX_KEY_SIZE_BYTES:
            raise ValueError(f"a key has 1 to {MAX_KEY_SIZE_BYTES} bytes, not {len(key)}")
        self._writes[key] = value

    def delete(self, key: bytes) -> None:
        """Remove `key`; nothing happens if it isn't there."""
        self._writes[key] = None

    def range(self, start: bytes, end: bytes | None, limit: int) -> list[tuple[bytes, bytes]]:
        """Return up to `limit` pairs with start <= key < end, this operation's writes included."""
        scratch = self._scratch(start, end)
        found: list[tuple[bytes, bytes]] = []
        for key, value in _merge(self._committed(start, end), sorted(scratch.items())):
            if len(found) >= limit:
                break
            if value is not None:
                found.append((key, value))
        return found

    def _scratch(self, start: bytes, end: bytes | None) -> dict[bytes, bytes | None]:
        scratch: dict[bytes, bytes | None] = {}
        for layer in (self._pending, self._burst):
            for (space, key), (value, index) in layer.items():
                if space == SERVICE_SPACE and start <= key and (end is None or key < end):
                    scratch[key] = value
                    self._seen_index = max(self._seen_index, index)
        own = self._writes.items()
        scratch.update((k, v) for k, v in own if start <= k and (end is None or k < end))
        return scratch

    def _committed(self, start: bytes, end: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        while True:
            page = self._state.range(SERVICE_SPACE, start, end, _SCRATCH_RANGE_STEP)
            yield from page
            if len(page) < _SCRATCH_RANGE_STEP:
                return
            start = page[-1][0] + b"\0"

    # -- executing

    def execute(self, operation: Operation, next_index: int) -> tuple[Executed, Entry | None]:
        """Execute one operation whose delta, if it has one, will be entry `next_index`.

        Returns what became of it and its delta (None: it needs no entry). An `async` operation
        must go through `execute_async`.
        """
        started = self._start(operation, next_index)
        if started is not None:
            return started, None
        method = self._service.operations.get(operation.method)
        if method is None:
            return self._unknown_method(operation), None
        try:
            value, error = method(self, *operation.args), None
        except Exception as problem:  # noqa: BLE001 - the service's own code may raise anything
            value, error = None, self._problem(operation, problem)
        return self._finish(operation, value, error)

    async def execute_async(
        self, operation: Operation, next_index: int
    ) -> tuple[Executed, Entry | None]:
        """Execute one `async` operation; nothing else may execute meanwhile."""
        started = self._start(operation, next_index)
        if started is not None:
            return started, None
        try:
            value = await self._service.operations[operation.method](self, *operation.args)
            error = None
        except Exception as problem:  # noqa: BLE001 - the service's own code may raise anything
            value, error = None, self._problem(operation, problem)
        return self._finish(operation, value, error)

    def _start(self, operation: Operation, next_index: int) -> Executed | None:
        """Prepare the transaction; return the first answer if this is a repeat (D8)."""
        self.index = next_index
        self._seen_index = 0
        self._writes = {}
        if not operation.idempotency_key:
            return None
        held = self._lookup(CLIENT_SPACE, _client_key(operation))
        if held is None:
            return None
        answer = _answer_decoder.decode(held)
        if answer.fingerprint != _fingerprint(operation):
            error: OperationError | None = RejectedError(
                "idempotency_key_reused",
                f"idempotency key {operation.idempotency_key!r} was used for another request: "
                "use a new key for a new request",
            )
        elif answer.code:
            error = RejectedError(answer.code, answer.detail)
        else:
            error = None
        return Executed(answer.value, error, 0, self._seen_index or answer.index, repeated=True)

    def _finish(
        self, operation: Operation, value: Any, error: OperationError | None
    ) -> tuple[Executed, Entry | None]:
        index, burst = self.index, self._burst
        entry: Entry = []
        if error is None:
            for key, written in self._writes.items():
                entry.append((SERVICE_SPACE, key, written))
                burst[(SERVICE_SPACE, key)] = (written, index)
        if operation.idempotency_key and (error is None or isinstance(error, RejectedError)):
            self._remember(operation, value, error, entry)
        if not entry:
            return Executed(value, error, 0, self._seen_index), None
        return Executed(value, error, index, self._seen_index), entry

    def _unknown_method(self, operation: Operation) -> Executed:
        known = ", ".join(sorted(self._service.operations))
        detail = f"there is no operation {operation.method!r}; there are: {known}"
        return Executed(None, RejectedError("unknown_operation", detail), 0, 0)

    @staticmethod
    def _problem(operation: Operation, problem: Exception) -> OperationError:
        if isinstance(problem, RejectedError):
            # A new one: the traceback of what was raised leads to the frames that hold the answer,
            # and the collector sees no cycle through structs that it does not track.
            return RejectedError(problem.code, problem.detail)
        log.error("operation %s failed", operation.method, exc_info=problem)
        return NotAppliedError(
            "service_failed", f"the service failed in {operation.method!r}: {problem!r}"
        )

    # -- the client table (D8)

    def _remember(
        self, operation: Operation, value: Any, error: OperationError | None, entry: Entry
    ) -> None:
        code, detail = (error.code, error.detail) if error else ("", "")
        answer = _Answer(_fingerprint(operation), self.index, value, code, detail)
        key, order = _client_key(operation), self.index.to_bytes(8, "big")
        self._write_system(entry, CLIENT_SPACE, key, _answer_encoder.encode(answer))
        self._write_system(entry, CLIENT_ORDER_SPACE, order, key)
        self._clients += 1
        while self._clients > self._max_clients:
            if not self._oldest and not self._find_oldest():
                break
            old_order, old_key = self._oldest.popleft()
            self._write_system(entry, CLIENT_ORDER_SPACE, old_order, None)
            self._write_system(entry, CLIENT_SPACE, old_key, None)
            self._clients -= 1

    def _write_system(self, entry: Entry, space: int, key: bytes, value: bytes | None) -> None:
        entry.append((space, key, value))
        self._burst[(space, key)] = (value, self.index)

    def _find_oldest(self) -> bool:
        """Look up the next oldest answers in the committed state; uncommitted ones are newer."""
        page = self._state.range(CLIENT_ORDER_SPACE, self._evicted, None, _EVICTION_BATCH)
        if page:
            self._oldest.extend(page)
            self._evicted = page[-1][0] + b"\0"
        return bool(page)

    # -- what becomes of a burst

    def keep_burst(self) -> None:
        """The burst's deltas are in a record now."""
        self._pending.update(self._burst)
        self._burst = {}

    def drop_burst(self) -> None:
        """The burst's deltas could not be recorded: as if it had never been executed."""
        self._burst = {}
        self._clients = self._state.count(CLIENT_ORDER_SPACE)
        self._oldest.clear()
        self._evicted = b""

    def committed(self, first_index: int, entries: list[Entry]) -> None:
        """These entries are in the store now: the pending layer need not hold them longer."""
        pending = self._pending
        index = first_index
        for entry in entries:
            for space, key, _ in entry:
                held = pending.get((space, key))
                if held is not None and held[1] == index:
                    del pending[(space, key)]
            index += 1


def _merge(
    committed: Iterator[tuple[bytes, bytes]], scratch: list[tuple[bytes, bytes | None]]
) -> Iterator[tuple[bytes, bytes | None]]:
    """Merge two sorted sequences of pairs; the scratch's win."""
    position = 0
    for key, value in committed:
        while position < len(scratch) and scratch[position][0] < key:
            yield scratch[position]
            position += 1
        if position < len(scratch) and scratch[position][0] == key:
            yield scratch[position]
            position += 1
        else:
            yield key, value
    yield from scratch[position:]


def _client_key(operation: Operation) -> bytes:
    return hashlib.blake2b(operation.idempotency_key.encode(), digest_size=16).digest()


def _fingerprint(operation: Operation) -> bytes:
    payload = _answer_encoder.encode((operation.method, operation.args))
    return hashlib.blake2b(payload, digest_size=16).digest()
