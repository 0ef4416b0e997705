"""Executing operations on the primary, over the committed store and what is uncommitted; deltas.

Layers that an operation reads through, newest first: its own writes, the uncommitted ones (of
operations that were executed before it), the store. Nothing in the first two is visible to anyone
else before it commits (D2). An operation's writes join the uncommitted ones only by `take`: one
that is refused after it was executed is as if it had never been.

Several services may stand side by side; each operation names its own, and is given a view of the
transaction on that service's keyspace.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

import msgspec

from datapath.clock import clock_ms
from datapath.errors import OperationError, OperationNotAppliedError, RejectedError
from datapath.execution.access_guard import AccessGuard, is_judged, refusal
from datapath.execution.client_table import ClientTable, client_key, fingerprint
from datapath.execution.key_order import KeyOrder, Place
from datapath.execution.lock_guard import holds_lock, lock_lost
from datapath.execution.read_view import CommittedState
from datapath.keyspaces import CLIENTS, KEYSPACES, LOCKS, check_open
from datapath.operations import Operation
from datapath.records import Entry
from datapath.service import Service
from datapath.settings import ClientTableBounds

logger = logging.getLogger(__name__)

MAX_SERVICE_KEY_SIZE_BYTES = 500
MAX_SCRATCH_PAGE_STEPS = 2000
"""How many keys an operation looks at for a page, those included that are deleted by now."""
_SCRATCH_PAGE = 256
_SCRATCH_PAGE_BYTES = 256 * 1024


class Executed(msgspec.Struct, gc=False):
    """What became of one operation: exactly one of `value` and `error` means something.

    `index` is its delta's log index, or 0 if it wrote nothing; `seen_index` the highest index of
    an uncommitted entry that its answer may depend on (D2). `judged`: a repeat's answer rests on
    rights besides (A1).
    """

    value: Any
    error: OperationError | None
    index: int
    seen_index: int
    repeated: bool = False
    judged: bool = False


Finished = tuple[Executed, Entry | None]
"""What became of an operation and its delta (None: it needs no entry)."""


class Execution:
    """One operation while it is executed: its writes, and the newest uncommitted entry it saw.

    `index` is its delta's log index, 0 while it is not settled: other services' operations may go
    before one that is `async`. `role`: whom it is done for. `views` are its transaction on each
    keyspace.
    """

    __slots__ = ("index", "order", "role", "seen_index", "views", "writes")

    def __init__(self, executor: Executor) -> None:
        self.index = 0
        self.role = ""
        self.seen_index = 0
        self.writes: dict[Place, bytes | None] = {}
        self.order = KeyOrder()  # of `writes`
        self.views = [WriteView(executor, self, number) for number in range(KEYSPACES)]


class WriteView:
    """The `Transaction` that an operation gets, on one keyspace."""

    __slots__ = ("_execution", "_executor", "_keyspace", "index")

    def __init__(self, executor: Executor, execution: Execution, keyspace: int) -> None:
        self.index = 0
        """The log index that this operation's delta will have; 0 while it is not settled."""
        self._executor = executor
        self._execution = execution
        self._keyspace = keyspace

    @property
    def role(self) -> str:
        """The role that this operation is done for; "": none, there is no access control."""
        return self._execution.role

    def keyspace(self, which: int | str) -> WriteView:
        """Return a view of the same transaction on another keyspace."""
        view = self._execution.views[check_open(which)]
        view.index = self.index
        return view

    def get(self, key: bytes) -> bytes | None:
        """Return the value under `key` as this operation sees it, or None."""
        execution, place = self._execution, (self._keyspace, key)
        if place in execution.writes:
            return execution.writes[place]
        held = self._executor._uncommitted.get(place)
        if held is None:
            return self._executor._state.get(self._keyspace, key)
        value, index = held
        execution.seen_index = max(execution.seen_index, index)
        return value

    def put(self, key: bytes, value: bytes) -> None:
        """Write `value` under `key`. Raises ValueError for a key of a wrong length."""
        if not 0 < len(key) <= MAX_SERVICE_KEY_SIZE_BYTES:
            raise ValueError(
                f"a key must have 1 to {MAX_SERVICE_KEY_SIZE_BYTES} bytes, not {len(key)}"
            )
        self._execution.writes[self._keyspace, key] = value

    def delete(self, key: bytes) -> None:
        """Remove `key`; nothing happens if it isn't there."""
        self._execution.writes[self._keyspace, key] = None

    def range(self, start: bytes, end: bytes | None, limit: int) -> list[tuple[bytes, bytes]]:
        """Return up to `limit` pairs with start <= key < end, this operation's writes included."""
        seen = self._executor.scan(self._execution, self._keyspace, start, end)
        present = ((key, value) for key, value in seen if value is not None)
        return list(islice(present, max(limit, 0)))

    def page(
        self, start: bytes, end: bytes | None, limit: int, max_size_bytes: int
    ) -> tuple[list[tuple[bytes, bytes]], bytes | None]:
        """Return pairs with start <= key < end, own writes included, and where to go on."""
        items: list[tuple[bytes, bytes]] = []
        size_bytes = 0
        for step, (key, value) in enumerate(
            self._executor.scan(self._execution, self._keyspace, start, end)
        ):
            if (
                step >= MAX_SCRATCH_PAGE_STEPS
                or len(items) >= limit
                or size_bytes >= max_size_bytes
            ):
                return items, key
            if value is not None:
                items.append((key, value))
                size_bytes += len(key) + len(value)
        return items, None


class Executor:
    """Executes operations in order and collects their deltas. `services` by their names."""

    def __init__(
        self,
        services: Mapping[str, Service],
        state: CommittedState,
        client_table: ClientTableBounds,
        clock: Callable[[], float] = clock_ms,
        access: AccessGuard | None = None,
    ) -> None:
        self._services = services
        self._state = state
        self._access = access
        self.table = ClientTable(state, client_table, clock)
        self._now = Execution(self)  # of operations that are not `async`, one after the other
        self.index = 0
        self._is_remembered = False  # the answer to the operation that was executed last
        self._uncommitted: dict[Place, tuple[bytes | None, int]] = {}  # values and log indices
        self._order = KeyOrder()  # of `_uncommitted`

    def start_epoch(self) -> None:
        """Forget all that is not committed."""
        self._uncommitted = {}
        self._order.reset()
        self.table.start_epoch()

    # -- what the views ask

    def _look_up(self, place: Place) -> tuple[bytes | None, int]:
        """Return what the next operation sees, and the entry that wrote it if uncommitted, or 0."""
        held = self._uncommitted.get(place)
        return (self._state.get(*place), 0) if held is None else held

    def scan(
        self, execution: Execution, keyspace: int, start: bytes, end: bytes | None
    ) -> Iterator[tuple[bytes, bytes | None]]:
        """Yield the keys of a range in order, with what an operation sees; None: removed."""
        scratch = self._scratch(execution, keyspace, start, end)
        return _merge(self._committed(keyspace, start, end), sorted(scratch.items()))

    def _scratch(
        self, execution: Execution, keyspace: int, start: bytes, end: bytes | None
    ) -> dict[bytes, bytes | None]:
        scratch: dict[bytes, bytes | None] = {}
        uncommitted, writes = self._uncommitted, execution.writes
        for place in self._order.between(uncommitted, keyspace, start, end):
            scratch[place[1]], index = uncommitted[place]
            execution.seen_index = max(execution.seen_index, index)
        for place in execution.order.between(writes, keyspace, start, end):
            scratch[place[1]] = writes[place]
        return scratch

    def _committed(
        self, keyspace: int, start: bytes, end: bytes | None
    ) -> Iterator[tuple[bytes, bytes]]:
        following: bytes | None = start
        while following is not None:
            page, following = self._state.page(
                keyspace, following, end, _SCRATCH_PAGE, _SCRATCH_PAGE_BYTES
            )
            yield from page

    # -- executing

    def repeat_of(
        self, operation: Operation, next_index: int, *, knows_rights: bool = True
    ) -> Executed | None:
        """Return the first answer if this is a repeat (D8): ask before anything may refuse it.

        Also the refusal of what may be a repeat of something that the client table has forgotten.
        Without `knows_rights` nobody is judged: an answer that is `judged` must not be told.
        """
        if not operation.idempotency_key:
            return None
        refused = self._judge(operation) if knows_rights else ""
        if isinstance(refused, OperationError):
            return Executed(None, refused, 0, 0)
        first = self._first_answer_held(operation)
        if first is None:
            error = self.table.refusal(operation.first_after, next_index)
            return None if error is None else Executed(None, error, 0, 0, repeated=True)
        first.judged = is_judged(self._access, operation)
        return first

    def _first_answer_held(self, operation: Operation) -> Executed | None:
        """Return the answer that is held under an operation's key, committed or not."""
        held, index = self._look_up((CLIENTS, client_key(operation.idempotency_key)))
        return None if held is None else self._first_answer(operation, held, index)

    def recall(self, operation: Operation) -> Executed | None:
        """Return the first answer if it is known here to have committed: on any replica.

        None for one that somebody has to be judged for (A1): what this replica knows of rights may
        be as old as the answer.
        """
        if is_judged(self._access, operation):
            return None
        held = self._state.get(CLIENTS, client_key(operation.idempotency_key))
        return None if held is None else self._first_answer(operation, held, 0)

    def _first_answer(self, operation: Operation, held: bytes, seen_index: int) -> Executed:
        answer = self.table.decode(held)
        error: OperationError | None = None
        if answer.fingerprint != fingerprint(operation):
            error = RejectedError(
                "idempotency_key_reused",
                f"idempotency key {operation.idempotency_key!r} was used for another request: "
                "use a new key for a new request",
            )
        elif answer.code:
            error = RejectedError(answer.code, answer.detail)
        return Executed(answer.value, error, 0, seen_index or answer.index, repeated=True)

    def execute(self, operation: Operation, next_index: int) -> Finished:
        """Execute one operation, no repeat, whose delta, if it has one, will be `next_index`.

        Returns what became of it and its delta (None: it needs no entry), which counts only once
        `take` is called with it. An `async` operation must go through `begin_async`.
        """
        execution = self._now
        execution.index, execution.seen_index, execution.writes = next_index, 0, {}
        if execution.order.places:
            execution.order.reset()
        if operation.caller is None:
            execution.role = ""
        else:
            judged = self._judge(operation)
            if isinstance(judged, OperationError):
                return Executed(None, judged, 0, 0), None
            execution.role = judged
        service = self._services.get(operation.service)
        method = None if service is None else service.operations.get(operation.method)
        if service is None or method is None:
            return self._unknown(operation, service), None
        try:
            if operation.if_lock is not None:
                self._check_lock(operation, execution)
            view = execution.views[service.keyspace]
            view.index = next_index
            value, error = method(view, *operation.args), None
        except Exception as problem:  # noqa: BLE001 - the service's own code may raise anything
            value, error = None, self._problem(operation, problem)
        return self._finish(operation, execution, value, error)

    async def begin_async(self, operation: Operation) -> Callable[[int], Finished]:
        """Execute one `async` operation. Other services' operations may be executed meanwhile.

        So it must see no keys that they write. Call what this returns with the index that its delta
        will have, then: it returns what `execute` does.
        """
        execution = Execution(self)
        service = self._services[operation.service]
        method = service.operations[operation.method]
        value: Any = None
        error: OperationError | None = None
        try:
            execution.role = self._check_access(operation)
            self._check_lock(operation, execution)
            value = await method(execution.views[service.keyspace], *operation.args)
        except Exception as problem:  # noqa: BLE001 - the service's own code may raise anything
            error = self._problem(operation, problem)

        def finish(next_index: int) -> Finished:
            if isinstance(refused := self._judge(operation), OperationError):
                return Executed(None, refused, 0, 0), None
            if operation.idempotency_key:
                # D8: meanwhile its key may have been used for a request to another service.
                first = self._first_answer_held(operation)
                if first is not None:
                    return first, None
            execution.index = next_index
            return self._finish(
                operation, execution, value, error or self._lost(operation, execution)
            )

        return finish

    def _judge(self, operation: Operation) -> OperationError | str:
        """Return what refuses an operation as things stand in the order of the log (A1)."""
        return refusal(self._access, operation, self._read_newest)

    def _read_newest(self, keyspace: int, key: bytes) -> bytes | None:
        return self._look_up((keyspace, key))[0]

    def _check_access(self, operation: Operation) -> str:
        """Return the role that an operation is done for, or raise what refuses it (A1)."""
        judged = self._judge(operation)
        if isinstance(judged, OperationError):
            raise judged
        return judged

    def _check_lock(self, operation: Operation, execution: Execution) -> None:
        """K3: the lock that an operation names is held under its token, or nothing is done."""
        if (error := self._lost(operation, execution)) is not None:
            raise error

    @staticmethod
    def _lost(operation: Operation, execution: Execution) -> RejectedError | None:
        """Return what refuses an operation whose lock is not held under its token (K3).

        Asked when it begins, and again when an `async` one ends: what counts is its place in the
        order of the log.
        """
        if operation.if_lock is None:
            return None
        name, token = operation.if_lock
        if holds_lock(execution.views[LOCKS].get(name), token):
            return None
        return lock_lost(name, token, execution.index)

    def _finish(
        self,
        operation: Operation,
        execution: Execution,
        value: Any,
        error: OperationError | None,
    ) -> Finished:
        self.index = index = execution.index
        entry: Entry = []
        if error is None:
            entry = [(keyspace, key, item) for (keyspace, key), item in execution.writes.items()]
        self._is_remembered = bool(operation.idempotency_key) and _must_remember(error)
        if self._is_remembered:
            entry += self.table.remember(operation, index, value, error)
        if not entry:
            return Executed(value, error, 0, execution.seen_index), None
        return Executed(value, error, index, execution.seen_index), entry

    def _unknown(self, operation: Operation, service: Service | None) -> Executed:
        if service is None:
            error = unknown_service(operation.service, self._services)
        else:
            known = ", ".join(sorted(filter(str.isidentifier, service.operations)))
            detail = f"no operation {operation.method!r}; the operations: {known}"
            error = OperationNotAppliedError("unknown_operation", detail)
        return Executed(None, error, 0, 0)

    @staticmethod
    def _problem(operation: Operation, problem: Exception) -> OperationError:
        if isinstance(problem, RejectedError):
            # A new one: the traceback of what was raised leads to the frames that hold the answer,
            # and the collector sees no cycle through structs that it does not track.
            return RejectedError(problem.code, problem.detail, for_good=problem.for_good)
        if type(problem) is OperationNotAppliedError:
            return OperationNotAppliedError(problem.code, problem.detail)
        name = f"{operation.service}.{operation.method}" if operation.service else operation.method
        logger.error("operation %s failed", name, exc_info=problem)
        return OperationNotAppliedError(
            "service_failed", f"the service failed in {name!r}: {problem!r}"
        )

    # -- what becomes of deltas

    def take(self, entry: Entry) -> None:
        """The delta that was executed last counts from now on: the next operations see it."""
        index, uncommitted = self.index, self._uncommitted
        for keyspace, key, value in entry:
            uncommitted[keyspace, key] = (value, index)
        if self._is_remembered:
            self.table.take()

    def complete(self, entries: list[Entry]) -> None:
        """These deltas become a record: complete the last one, which has the table's sums."""
        if self.table.has_changed:
            entries[-1] += self.table.summary()

    def committed(self, first_index: int, entries: list[Entry]) -> None:
        """These entries are in the store now: they need not be held longer."""
        uncommitted = self._uncommitted
        if self._order.places:
            self._order.reset()
        index = first_index
        for entry in entries:
            for keyspace, key, _ in entry:
                held = uncommitted.get((keyspace, key))
                if held is not None and held[1] == index:
                    del uncommitted[keyspace, key]
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


def _must_remember(error: OperationError | None) -> bool:
    """Whether an answer has to be remembered for repeats (D8).

    A refusal for good needs no memory: a repeat is refused again. Every other one does: what a
    repeat would find might have changed, and it would do what its client was told is not done.
    """
    return error is None or (isinstance(error, RejectedError) and not error.for_good)


def unknown_service(name: str, services: Mapping[str, Service]) -> OperationNotAppliedError:
    """Make the refusal of a call to a service that this node does not have."""
    known = ", ".join(sorted(filter(_is_a_users, services))) or "only the store"
    return OperationNotAppliedError(
        "unknown_service", f"this node has no service {name!r}; its services: {known}"
    )


def _is_a_users(name: str) -> bool:
    """Whether a service has a name that users' services have: what is built in has others."""
    return name[:1].isalpha()
