"""The pipeline: from operations that wait to records in the log. Primary only.

Operations that wait together are executed together and become one record; the tail answers all of a
record when it commits. No task is made and no thread asked per operation.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Protocol

from datapath.errors import (
    NotPrimaryError,
    OperationError,
    OperationNotAppliedError,
    OperationUnknownError,
    OverloadedError,
    PrimaryFullError,
)
from datapath.execution.access_guard import knows_rights
from datapath.execution.batch import Batch
from datapath.execution.client_table import SUMMARY_SIZE_BYTES
from datapath.execution.concurrency import Concurrency, Running
from datapath.execution.executor import Executor
from datapath.execution.tail import CallSoon, PendingAnswer, Tail, Waiting, uncommitted_repeat
from datapath.operations import Completion, Operation
from datapath.protocol.replica import Replica
from datapath.records import (
    HEADER_SIZE_BYTES,
    MAX_ENTRIES_SIZE_BYTES,
    Entry,
    Record,
    entry_size_bytes,
    make_record,
)
from datapath.settings import Bounds

_OPERATION_OVERHEAD_BYTES = 200
_SIZED = frozenset({bytes, str})
_FIRST_RESERVED_BYTES = 64 * 1024
"""What is asked of the disk at once for a batch, so that small operations ask it once together."""
GATHER_MS = 4
"""How long operations wait for others, at most, while each turn of the event loop brings some."""
ENOUGH_OPERATIONS = 256
"""So many wait for no others: a record of theirs costs each of them little."""
_RECORD_OVERHEAD_BYTES = HEADER_SIZE_BYTES + SUMMARY_SIZE_BYTES


class LogSpace(Protocol):
    """What the pipeline asks of a disk; see `datapath.node.replica_disk.ReplicaStorage`."""

    def reserve(self, size_bytes: int, /) -> bool:
        """Whether there is room for so much more of the log."""


class Pipeline:
    """Executes operations and makes records of them; the `tail` answers when they commit.

    `append` gives a record to the replica and carries out what follows. `not_primary` makes the
    error for who asks a node that does not serve, and `why_not_serving` a sentence for people.
    `async_operations` are told by the names of their services.
    What fails in a turn goes to `on_error`. `clock` (ms) is the replica's.
    """

    def __init__(
        self,
        node_id: str,
        replica: Replica,
        executor: Executor,
        tail: Tail,
        room: LogSpace,
        bounds: Bounds,
        *,
        async_operations: Mapping[str, frozenset[str]],
        append: Callable[[Record], None],
        not_primary: Callable[[], NotPrimaryError],
        why_not_serving: Callable[[], str],
        spawn: Callable[[Coroutine[Any, Any, None]], Running],
        call_soon: CallSoon,
        on_error: Callable[[Exception], None],
        clock: Callable[[], float],
    ) -> None:
        self._node_id = node_id
        self._replica = replica
        self._executor = executor
        self._tail = tail
        self._deadlines = tail.deadlines
        self._room = room
        self._bounds = bounds
        self._async_operations = async_operations
        self._append = append
        self._not_primary = not_primary
        self._why_not_serving = why_not_serving
        self._spawn = spawn
        self._clock = clock
        self.call_soon = call_soon
        self._on_error = on_error
        self.waiting: deque[Waiting] = deque()  # to be executed
        self._waiting_bytes = 0
        self._waiting_keys: dict[str, int] = {}
        self._overload_repeats: list[tuple[Waiting, OverloadedError]] = []  # of this turn
        self._batch_due = False
        self._gathered = 0  # how many waited in the turn before, since operations are gathered
        self._gathers_until_ms = 0.0
        self._concurrency = Concurrency()
        self._stopped = False
        self.operations_total = 0
        self.refused_for_room_total = 0
        self.records_total = 0

    # -- operations come in

    def submit(self, operation: Operation, timeout_ms: float, completion: Completion) -> None:
        """Execute here. The answer is a NotPrimaryError if this node cannot when its turn comes.

        Raises NotPrimaryError or OverloadedError if it cannot take it at all.
        """
        if self._replica.primary is None or self._stopped:
            raise self._not_primary()
        size = _OPERATION_OVERHEAD_BYTES
        for arg in operation.args:
            if type(arg) in _SIZED:
                size += len(arg)
        deadline_ms = self._clock() + timeout_ms
        waiting = Waiting(operation, completion, deadline_ms, size)
        count = self.waiting_operations() if self._concurrency.executing else len(self.waiting)
        if (
            count >= self._bounds.max_waiting_operations
            or self._waiting_bytes + size > self._bounds.max_waiting_bytes
        ):
            self._refuse_overload(waiting)
            return
        self.waiting.append(waiting)
        self._waiting_bytes += size
        if operation.idempotency_key:
            self._count(waiting)
        if deadline_ms < self._deadlines.next_ms:  # noqa: PLR1730 -- `min` is a call
            self._deadlines.next_ms = deadline_ms
        if not self._batch_due:
            self.schedule()

    def _refuse_overload(self, waiting: Waiting) -> None:
        """Raise OverloadedError, but for a repeat of what is known here: that costs nothing."""
        error = OverloadedError(
            "overloaded", "too many operations are waiting on the primary: try again in a moment"
        )
        if not self._is_known(waiting.operation):
            raise error
        self._overload_repeats.append((waiting, error))
        if not self._batch_due:
            self._batch_due = True
            self.call_soon(self._take_turn)

    def _answer_overload_repeats(self) -> None:
        repeats, self._overload_repeats = self._overload_repeats, []
        for waiting, error in repeats:
            self._refuse(waiting, error)

    def _is_known(self, operation: Operation) -> bool:
        """Whether an earlier request under its key was executed here, or waits to be."""
        key = operation.idempotency_key
        return bool(key) and (
            key in self._waiting_keys
            or self._tail.holds_key(key)
            or self._executor.repeat_of(operation, self._replica.next_index) is not None
        )

    def waiting_operations(self) -> int:
        """How many wait to be executed."""
        concurrency = self._concurrency
        return len(self.waiting) + (len(concurrency.held) if concurrency.executing else 0)

    # -- and are executed in batches

    def schedule(self) -> None:
        """Execute what waits, soon, if it can be executed then."""
        if self.waiting and not self._batch_due:
            self._batch_due = True
            self.call_soon(self._take_turn)

    def _gathers(self) -> bool:
        """Whether still more may come at once: in the turn of the loop that ends some have.

        A record costs each node much (messages, a sync), and an operation in it little; what many
        clients send comes within a few turns. One alone waits for a turn that brings nothing.
        """
        count = len(self.waiting)
        if not self._gathered < count < ENOUGH_OPERATIONS:
            return False
        now_ms = self._clock()
        if not self._gathered:
            self._gathers_until_ms = now_ms + GATHER_MS
        self._gathered = count
        return now_ms < self._gathers_until_ms

    def _take_turn(self) -> None:
        if self._gathers():
            self.call_soon(self._take_turn)
            return
        self._gathered = 0
        self._batch_due = False
        primary, tail, bounds = self._replica.primary, self._tail, self._bounds
        try:
            if (
                primary is not None
                and not self._stopped
                and tail.inflight_records < bounds.max_inflight_records
                and tail.inflight_bytes < bounds.max_inflight_bytes
                and primary.may_execute()
            ):
                self._run_batch()
            self._answer_overload_repeats()  # after: the first may be executed now
        except Exception as problem:  # noqa: BLE001  whatever it was, as in `Interpreter.run`
            self._on_error(problem)

    def _run_batch(self) -> None:
        """Execute what waits, as one record (two, where the last one is as large as a record)."""
        bounds = self._bounds
        max_bytes = min(
            bounds.max_record_bytes, bounds.max_inflight_bytes - self._tail.inflight_bytes
        )
        batch = self._begin_batch()
        while (
            self.waiting
            and batch.size_bytes < max_bytes
            and len(batch.answers) < bounds.max_record_entries
        ):
            waiting = self.waiting[0]
            if self._concurrency.executing and self._concurrency.hold(waiting):
                self.waiting.popleft()
                continue
            operation = waiting.operation
            is_async = operation.method in self._async_operations.get(operation.service, ())
            if is_async and batch.answers:
                break
            self.waiting.popleft()
            self._waiting_bytes -= waiting.size_bytes
            if waiting.counted:
                self._uncount(waiting)
            if waiting.future.done() or not self._may_start(waiting, batch):
                continue
            if is_async:
                self._count(waiting)  # D8: a repeat that is refused meanwhile may yet be answered
                self._concurrency.begin(waiting, self._spawn(self._run_async(waiting)))
                continue
            executed, entry = self._executor.execute(operation, batch.next_index)
            answer = PendingAnswer(waiting, executed)
            if entry is None:
                batch.answers.append(answer)
                continue
            size = entry_size_bytes(entry)
            if batch.size_bytes + size > MAX_ENTRIES_SIZE_BYTES >= size:
                self._record(batch)
                batch = self._begin_batch()
                if not self._may_go_on(batch):
                    self._refuse(waiting, self._not_primary())
                    return
            self._join(batch, answer, entry, size)
        self._record(batch)
        self.schedule()

    def _begin_batch(self) -> Batch:
        index, primary = self._replica.state.log.last_index + 1, self._replica.primary
        if primary is None:
            return Batch(index, 0, 0, index)
        in_sync = primary.in_sync
        return Batch(index, len(in_sync.view.in_sync), len(in_sync.required) + 1, index)

    def _count(self, waiting: Waiting) -> None:
        """A repeat of it can wait for it."""
        if key := waiting.operation.idempotency_key:
            waiting.counted = True
            self._waiting_keys[key] = self._waiting_keys.get(key, 0) + 1

    def _uncount(self, waiting: Waiting) -> None:
        """It neither waits any longer nor is executed: no repeat of it can wait for it."""
        if not waiting.counted:
            return
        waiting.counted = False
        key = waiting.operation.idempotency_key
        left = self._waiting_keys[key] - 1
        if left:
            self._waiting_keys[key] = left
        else:
            del self._waiting_keys[key]

    def _may_start(self, waiting: Waiting, batch: Batch) -> bool:
        """Whether it is to be executed: it is no repeat, and could be acknowledged as asked.

        A repeat is recognised before anything may refuse it.
        """
        operation = waiting.operation
        if operation.idempotency_key:
            repeat = self._executor.repeat_of(operation, batch.next_index)
            if repeat is not None:
                batch.answers.append(PendingAnswer(waiting, repeat))
                batch.has_repeats = True
                return False
        in_sync, min_in_sync = batch.in_sync, self._bounds.min_in_sync
        if in_sync < min_in_sync:
            problem = f"{in_sync} replicas are in sync, min_in_sync is {min_in_sync}"
        elif batch.copies < operation.min_copies:
            problem = (
                f"{batch.copies} replicas are in sync, and min_copies is {operation.min_copies}"
            )
        else:
            return True
        detail = problem + ": bring a replica back, or lower min_copies"
        self._refuse(waiting, OperationNotAppliedError("not_enough_copies", detail))
        return False

    def _may_go_on(self, batch: Batch) -> bool:
        """Whether what was executed before a record was made may follow it."""
        return self._may_record() and self._executor.index == batch.next_index

    def _join(self, batch: Batch, answer: PendingAnswer, entry: Entry, size_bytes: int) -> None:
        """Take an executed operation into the batch, or refuse it alone: nobody has seen it."""
        is_reserved = batch.size_bytes + size_bytes + _RECORD_OVERHEAD_BYTES <= batch.reserved_bytes
        if not is_reserved or size_bytes > MAX_ENTRIES_SIZE_BYTES:
            problem = self._why_refused(batch, size_bytes)
            if problem is not None:
                self._refuse(answer.waiting, problem)
                return
        self._executor.take(entry)
        batch.entries.append(entry)
        batch.next_index += 1
        batch.size_bytes += size_bytes
        batch.answers.append(answer)

    def _why_refused(self, batch: Batch, size_bytes: int) -> OperationError | None:
        if size_bytes > MAX_ENTRIES_SIZE_BYTES:
            return OperationNotAppliedError(
                "too_large",
                f"the change is too large: {size_bytes} bytes; the limit is "
                f"{MAX_ENTRIES_SIZE_BYTES}",
            )
        needed_bytes = batch.size_bytes + size_bytes + _RECORD_OVERHEAD_BYTES
        if needed_bytes > batch.reserved_bytes and not self._reserve(batch, needed_bytes):
            self.refused_for_room_total += 1
            return PrimaryFullError(
                "storage_full",
                f"the disk of {self._node_id} is full: free some space; reads still work",
            )
        return None

    def _reserve(self, batch: Batch, size_bytes: int) -> bool:
        for wanted in (max(2 * batch.reserved_bytes, _FIRST_RESERVED_BYTES), size_bytes):
            if wanted >= size_bytes and self._room.reserve(wanted):
                batch.reserved_bytes = wanted
                return True
        return False

    async def _run_async(self, waiting: Waiting) -> None:
        """Execute one `async` operation; other services' go on meanwhile, its own wait."""
        epoch = self._replica.state.epoch
        try:
            finish = await self._executor.begin_async(waiting.operation)
            is_current = self._replica.state.epoch == epoch and self._may_record()
            if is_current and self._concurrency.counts(waiting):
                self._uncount(waiting)
                batch = self._begin_batch()
                executed, entry = finish(batch.next_index)
                answer = PendingAnswer(waiting, executed)
                if entry is None:
                    batch.answers.append(answer)
                    batch.has_repeats = executed.repeated
                else:
                    self._join(batch, answer, entry, entry_size_bytes(entry))
                self._record(batch)
        finally:
            if self._concurrency.counts(waiting):
                self._end_async(waiting)
                if not self._tail.holds(waiting):
                    self._refuse(waiting, self._not_primary())

    def _end_async(self, waiting: Waiting) -> None:
        """An `async` operation is over, or given up: what it still does has no effect."""
        self._uncount(waiting)
        self.waiting.extendleft(self._concurrency.end(waiting))
        self.schedule()

    def _give_up_async(self, waiting: Waiting, running: Running, error: OperationError) -> None:
        """Cancel an `async` operation, which may take its time to end, and answer it now."""
        running.cancel()
        self._end_async(waiting)
        self._refuse(waiting, error)

    def _may_record(self) -> bool:
        """Whether what was executed may become a record now."""
        return not self._stopped and self._replica.may_execute()

    def _record(self, batch: Batch) -> None:
        """Make a record of a batch's deltas and replicate it."""
        self.operations_total += len(batch.answers)
        if batch.has_repeats:
            batch.answers = self._tail.answer_known(batch.answers)
        if not batch.entries:
            self._tail.add_answers(batch.answers)
            return
        state, entries = self._replica.state, batch.entries
        self._executor.complete(entries)
        record = make_record(
            batch.first_index, state.epoch, state.commit_index, entries, batch.size_bytes
        )
        self._tail.add_executed(record, entries, batch.answers)
        self.records_total += 1
        self._append(record)

    def _refuse(self, waiting: Waiting, error: OperationError) -> None:
        """Refuse what was not executed, unless an earlier request under its key is known here.

        A repeat gets its first answer, or waits for it. Where the earlier request has not been
        executed yet, or was in an epoch before this one is open, what becomes of it is unknown.
        """
        if waiting.future.done():
            return
        operation = waiting.operation
        if operation.idempotency_key:
            is_known = knows_rights(self._replica.primary)
            repeat = self._executor.repeat_of(
                operation, self._replica.next_index, knows_rights=is_known
            )
            is_secret = repeat is not None and repeat.judged and not is_known
            if repeat is not None and not is_secret:
                self._tail.add_answers(self._tail.answer_known([PendingAnswer(waiting, repeat)]))
                return
            key = operation.idempotency_key
            if is_secret or key in self._waiting_keys or self._tail.holds_key(key):
                error = uncommitted_repeat(f"{error.detail}. ")
        waiting.future.set_exception(error)

    # -- when answers cannot be given

    def stop(self, reason: str) -> None:
        """Take nothing more; answer who waits."""
        self._stopped = True
        self._release_waiting()
        self._tail.fail_unanswered(reason)

    def step_down(self) -> None:
        """The epoch is over."""
        for waiting, running in self._concurrency:
            self._give_up_async(waiting, running, self._not_primary())
        self._release_waiting()  # first: repeats of what is not committed share its fate
        self._tail.fail_unanswered(f"{self._node_id} lost its role before this was committed")
        self._executor.start_epoch()

    def open_epoch(self) -> None:
        """All of earlier epochs is committed and applied: execution starts from there."""
        self._executor.start_epoch()
        self.schedule()

    def _release_waiting(self) -> None:
        """What was not executed can be tried elsewhere."""
        self._answer_overload_repeats()
        waiting = [*self.waiting, *self._concurrency.held]
        self.waiting.clear()
        self._concurrency.release()
        self._waiting_bytes = 0
        self._waiting_keys.clear()
        for item in waiting:
            item.counted = False
            self._refuse(item, self._not_primary())

    def on_tick(self, now_ms: float) -> None:
        """Time has passed: some have waited too long; others may be executed now."""
        self.expire(now_ms)
        self.schedule()

    def expire(self, now_ms: float) -> None:
        """Answer those whose time is up."""
        if now_ms < self._deadlines.next_ms:
            return
        not_executed = NotPrimaryError(
            "timeout", f"not executed in time: {self._why_not_serving()}"
        )
        not_committed = OperationUnknownError(
            "timeout",
            "not committed in time, and may still commit. Repeat it under the same "
            f"Idempotency-Key. Current state: {self._why_not_serving()}",
        )
        self._deadlines.next_ms = float("inf")
        self._tail.expire(now_ms, not_committed, not_executed)
        cancelled = OperationNotAppliedError(
            "timeout", "it was still being executed when its time was up, and was cancelled"
        )
        for waiting, running in self._concurrency:
            if self._deadlines.is_over(waiting, now_ms):
                self._give_up_async(waiting, running, cancelled)
        everyone = (*self.waiting, *self._concurrency.held)
        late = [waiting for waiting in everyone if self._deadlines.is_over(waiting, now_ms)]
        for waiting in late:
            self._uncount(waiting)
            self._refuse(waiting, not_executed)
            if not waiting.future.done():  # a repeat of what has not committed
                waiting.future.set_exception(not_committed)
