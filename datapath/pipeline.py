"""The pipeline: from operations that wait, through records, to answers. Primary only.

Operations that wait together are executed together and become one record; all of a record is
answered when it commits. No task is made and no thread asked per operation.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from datapath.clock import clock_ms
from datapath.errors import (
    NotAppliedError,
    NotPrimaryError,
    OperationError,
    OverloadedError,
    RejectedError,
    SafetyError,
    StorageFullError,
    UnknownOutcomeError,
)
from datapath.executor import Executed, Executor
from datapath.operations import Operation, Result, Sink
from datapath.records import Entry, Record, make_record
from datapath.replica import Replica
from datapath.settings import Bounds

_OPERATION_OVERHEAD_BYTES = 200


class Waiting(msgspec.Struct, gc=False):
    """An operation that waits to be executed."""

    operation: Operation
    future: Sink
    deadline_ms: float
    size_bytes: int


class Answer(msgspec.Struct, gc=False):
    """An executed operation that waits for its commit."""

    waiting: Waiting
    executed: Executed

    @property
    def wrote_nothing(self) -> bool:
        """Whether it left no entry, so that its answer is a read's."""
        return self.executed.index == 0 and not self.executed.repeated


class TailItem(msgspec.Struct, gc=False):
    """A record that has not committed; `entries` and `answers` where it was executed here."""

    record: Record
    entries: list[Entry] | None
    answers: list[Answer]


class AppliedState(Protocol):
    """Where committed entries are applied; see `datapath.store.Store`."""

    @property
    def applied_index(self) -> int:
        """The last entry that reads see."""

    def apply(self, entries: list[Entry], last_index: int, epoch: int) -> None:
        """Apply committed entries, the last of which is (`last_index`, `epoch`)."""


class Room(Protocol):
    """What the pipeline asks of a disk; see `datapath.storage.Storage`."""

    @property
    def store(self) -> AppliedState:
        """The state."""

    def reserve(self, size_bytes: int, /) -> bool:
        """Whether there is room for so much more of the log."""


class Pipeline:
    """Executes, records, and answers; also keeps the uncommitted tail of the log on a backup.

    `append` gives a record to the replica and carries out what follows. `why_not_serving` is a
    sentence for people. `clock` (ms) and `call_soon` are the replica's clock and the running event
    loop's, unless a simulator says otherwise.
    """

    def __init__(
        self,
        node_id: str,
        replica: Replica,
        executor: Executor,
        storage: Room,
        bounds: Bounds,
        tail: list[Record],
        *,
        async_operations: frozenset[str],
        append: Callable[[Record], None],
        why_not_serving: Callable[[], str],
        spawn: Callable[[Any], asyncio.Task[None]],
        clock: Callable[[], float] = clock_ms,
        call_soon: Callable[[Callable[[], None]], object] | None = None,
    ) -> None:
        self._node_id = node_id
        self._replica = replica
        self._executor = executor
        self._storage = storage
        self._bounds = bounds
        self._async_operations = async_operations
        self._append = append
        self._why_not_serving = why_not_serving
        self._spawn = spawn
        self._clock = clock
        self._call_soon = call_soon or asyncio.get_running_loop().call_soon
        self._tail: deque[TailItem] = deque(TailItem(record, None, []) for record in tail)
        self._inflight_records = 0
        self._local_acks: deque[Answer] = deque()
        self._waiting: deque[Waiting] = deque()
        self._waiting_bytes = 0
        self._next_deadline_ms = float("inf")
        self._burst_due = False
        self._executing: asyncio.Task[None] | None = None
        self._stopped = False
        self.operations_total = 0
        self.records_total = 0

    # -- operations come in

    def submit(self, operation: Operation, timeout_ms: float, sink: Sink) -> None:
        """Execute here. The answer is a NotPrimaryError if this node cannot when its turn comes.

        Raises NotPrimaryError or OverloadedError if it cannot take it at all.
        """
        if self._replica.primary is None or self._stopped:
            raise self.not_primary()
        size = _OPERATION_OVERHEAD_BYTES + sum(
            len(arg) for arg in operation.args if isinstance(arg, bytes | str)
        )
        if (
            len(self._waiting) >= self._bounds.max_waiting_operations
            or self._waiting_bytes + size > self._bounds.max_waiting_bytes
        ):
            raise OverloadedError(
                "overloaded", "too many operations wait on the primary: try again in a moment"
            )
        deadline_ms = self._clock() + timeout_ms
        self._waiting.append(Waiting(operation, sink, deadline_ms, size))
        self._waiting_bytes += size
        self._next_deadline_ms = min(self._next_deadline_ms, deadline_ms)
        if not self._burst_due:
            self.schedule()

    def not_primary(self) -> NotPrimaryError:
        """Make the error that says so, and why."""
        view = self._replica.view
        return NotPrimaryError("no_primary", self._why_not_serving(), view.primary if view else "")

    @property
    def waiting_operations(self) -> int:
        """How many wait to be executed."""
        return len(self._waiting)

    @property
    def uncommitted_records(self) -> int:
        """How many records have not committed."""
        return len(self._tail)

    # -- and are executed in bursts

    def schedule(self) -> None:
        """Execute what waits, soon, if it can be executed."""
        if self._waiting and not self._burst_due and self._may_run():
            self._burst_due = True
            self._call_soon(self._run_burst)

    def _may_run(self) -> bool:
        return (
            not self._stopped
            and self._executing is None
            and self._inflight_records < self._bounds.max_inflight_records
            and self._replica.may_execute()
        )

    def _run_burst(self) -> None:
        """Execute what waits, as one record."""
        self._burst_due = False
        if not self._may_run():
            return
        entries: list[Entry] = []
        answers: list[Answer] = []
        size, next_index = 0, self._replica.next_index
        bounds = self._bounds
        while self._waiting and size < bounds.max_record_bytes:
            waiting = self._waiting[0]
            is_async = waiting.operation.method in self._async_operations
            if is_async and answers:
                break
            self._take_waiting()
            if waiting.future.done() or not self._may_start(waiting):
                continue
            if is_async:
                self._executing = self._spawn(self._run_async(waiting))
                return
            executed, entry = self._executor.execute(waiting.operation, next_index)
            answers.append(Answer(waiting, executed))
            if entry is not None:
                entries.append(entry)
                next_index += 1
                size += waiting.size_bytes
                if len(entries) >= bounds.max_record_entries:
                    break
        self._record(entries, answers)
        self.schedule()

    def _take_waiting(self) -> None:
        self._waiting_bytes -= self._waiting.popleft().size_bytes

    def _may_start(self, waiting: Waiting) -> bool:
        """Refuse what could not be acknowledged as asked, before it is executed."""
        view = self._replica.view
        in_sync = len(view.in_sync) if view else 0
        if in_sync < self._bounds.min_in_sync:
            problem = f"{in_sync} replicas are in sync, min_in_sync is {self._bounds.min_in_sync}"
        elif self._replica.copies() < waiting.operation.min_copies:
            problem = (
                f"{self._replica.copies()} replicas are in sync, {waiting.operation.min_copies} "
                "copies are asked for"
            )
        else:
            return True
        detail = problem + ": bring a replica back, or ask for fewer"
        waiting.future.set_exception(NotAppliedError("not_enough_copies", detail))
        return False

    async def _run_async(self, waiting: Waiting) -> None:
        """Execute one `async` operation, and nothing beside it."""
        epoch = self._replica.epoch
        try:
            executed, entry = await self._executor.execute_async(
                waiting.operation, self._replica.next_index
            )
            if self._replica.epoch == epoch and self._replica.may_execute():
                self._record([entry] if entry is not None else [], [Answer(waiting, executed)])
            else:
                self._executor.drop_burst()
        finally:
            self._executing = None
            if not waiting.future.done() and not self._is_recorded(waiting):
                waiting.future.set_exception(self.not_primary())
            self.schedule()

    def _is_recorded(self, waiting: Waiting) -> bool:
        return any(answer.waiting is waiting for item in self._tail for answer in item.answers)

    def _record(self, entries: list[Entry], answers: list[Answer]) -> None:
        """Make a record of a burst's deltas and replicate it."""
        self.operations_total += len(answers)
        if not entries:
            self._answer_without_record(answers)
            return
        replica = self._replica
        try:
            record = make_record(
                replica.next_index, replica.epoch, replica.core.commit_index, entries
            )
        except ValueError as problem:
            self._executor.drop_burst()
            self._refuse(answers, RejectedError("too_large", f"the delta is too large: {problem}"))
            return
        if not self._storage.reserve(len(record.data)):
            self._executor.drop_burst()
            detail = f"no room on the disk of {self._node_id}: free some; reads go on meanwhile"
            self._refuse(answers, StorageFullError("storage_full", detail))
            return
        self._executor.keep_burst()
        self._tail.append(TailItem(record, entries, answers))
        self._inflight_records += 1
        self.records_total += 1
        for answer in answers:
            if answer.waiting.operation.ack == "local" and answer.executed.index:
                self._local_acks.append(answer)
        self._append(record)

    def _answer_without_record(self, answers: list[Answer]) -> None:
        """Nothing was written: answer when all that could have been seen has committed (D2)."""
        if self._tail:
            self._tail[-1].answers.extend(answers)
        else:
            self._answer_all(answers)

    @staticmethod
    def _refuse(answers: list[Answer], error: OperationError) -> None:
        for answer in answers:
            if not answer.waiting.future.done():
                answer.waiting.future.set_exception(error)

    # -- the log's tail, and what commits of it

    def on_written(self, records: list[Record]) -> None:
        """The replica writes records; those executed here are in the tail already."""
        if not self._tail or self._tail[-1].record is not records[-1]:
            self._tail.extend(TailItem(record, None, []) for record in records)

    def on_truncated(self, from_index: int) -> None:
        """The log was cut: what went was never committed."""
        while self._tail and self._tail[-1].record.first_index >= from_index:
            self._tail.pop()

    def on_snapshot(self) -> None:
        """The log was replaced by a snapshot."""
        self._tail.clear()

    def commit(self, index: int) -> None:
        """Apply what has committed, and answer."""
        store, executor, tail = self._storage.store, self._executor, self._tail
        while tail and tail[0].record.last_index <= index:
            item = tail.popleft()
            record = item.record
            if item.entries is None:
                store.apply(record.entries(), record.last_index, record.epoch)
            else:
                store.apply(item.entries, record.last_index, record.epoch)
                executor.committed(record.first_index, item.entries)
                self._inflight_records -= 1
            if item.answers:
                self._answer_all(item.answers)
        if store.applied_index != index:
            raise SafetyError(
                f"entry {index} committed, but entries up to {store.applied_index} could be applied"
            )
        self.answer_local()
        self.schedule()

    def _answer_all(self, answers: list[Answer]) -> None:
        copies, epoch = self._replica.copies(), self._replica.epoch
        serving: bool | None = None
        for answer in answers:
            future, executed = answer.waiting.future, answer.executed
            if future.done():
                continue
            if answer.wrote_nothing:
                # What it saw must be true of the one primary there is (D4).
                if serving is None:
                    serving = self._replica.may_serve(self._clock())
                if not serving:
                    future.set_exception(self.not_primary())
                    continue
            if executed.error is not None:
                future.set_exception(executed.error)
            elif answer.waiting.operation.min_copies > copies:
                detail = (
                    f"committed on {copies} copies while {answer.waiting.operation.min_copies} "
                    "were asked for: it stands, on fewer copies"
                )
                future.set_exception(UnknownOutcomeError("not_enough_copies", detail))
            else:
                future.set_result(self._result(executed, copies, epoch))

    def _result(self, executed: Executed, copies: int, epoch: int) -> Result:
        if executed.repeated:
            index = executed.seen_index
        else:
            index = executed.index or self._replica.core.commit_index
        return Result(executed.value, index, epoch, copies, self._node_id, executed.repeated)

    def answer_local(self) -> None:
        """Early answers: durable here, and nothing uncommitted of others shines through (D2)."""
        if not self._local_acks:
            return
        core, kept = self._replica.core, deque[Answer]()
        for answer in self._local_acks:
            future, executed = answer.waiting.future, answer.executed
            if future.done():
                continue
            if executed.index > core.durable_index or executed.seen_index > core.commit_index:
                kept.append(answer)
            elif executed.error is not None:
                future.set_exception(executed.error)
            else:
                future.set_result(self._result(executed, 1, self._replica.epoch))
        self._local_acks = kept

    # -- when answers cannot be given

    def stop(self, reason: str) -> None:
        """Take nothing more; answer who waits."""
        self._stopped = True
        self._fail_unanswered(reason)
        self._release_waiting()

    def step_down(self) -> None:
        """The epoch is over."""
        if self._executing is not None:
            self._executing.cancel()
        self._executor.start_epoch()
        self._fail_unanswered(f"{self._node_id} lost its role before this was committed")
        self._release_waiting()

    def open_epoch(self) -> None:
        """All of earlier epochs is committed and applied: execution starts from there."""
        self._executor.start_epoch()
        self.schedule()

    def _fail_unanswered(self, reason: str) -> None:
        """What is in the log but not committed may yet commit, by the next primary: unknown."""
        detail = (
            f"{reason}: it may or may not be applied. Repeat it under the same Idempotency-Key, "
            "or read before you repeat it"
        )
        for item in self._tail:
            for answer in item.answers:
                future = answer.waiting.future
                if future.done():
                    continue
                if answer.wrote_nothing:
                    future.set_exception(self.not_primary())
                else:
                    future.set_exception(UnknownOutcomeError("unknown_outcome", detail))
            item.answers, item.entries = [], None
        self._inflight_records = 0
        self._local_acks.clear()

    def _release_waiting(self) -> None:
        """What was not executed can be tried elsewhere."""
        waiting, self._waiting = self._waiting, deque()
        self._waiting_bytes = 0
        for item in waiting:
            if not item.future.done():
                item.future.set_exception(self.not_primary())

    def expire(self, now_ms: float) -> None:
        """Answer those whose time is up."""
        if now_ms < self._next_deadline_ms:
            return
        not_executed = NotPrimaryError(
            "timeout", f"not executed in time: {self._why_not_serving()}"
        )
        not_committed = UnknownOutcomeError(
            "timeout",
            "not committed in time, and may commit yet. Repeat it under the same Idempotency-Key. "
            f"Now: {self._why_not_serving()}",
        )
        executed = [answer.waiting for item in self._tail for answer in item.answers]
        self._next_deadline_ms = min(
            self._expire(self._waiting, now_ms, not_executed),
            self._expire(executed, now_ms, not_committed),
        )

    @staticmethod
    def _expire(
        waiting: deque[Waiting] | list[Waiting], now_ms: float, error: OperationError
    ) -> float:
        nearest = float("inf")
        for item in waiting:
            if item.future.done():
                continue
            if item.deadline_ms <= now_ms:
                item.future.set_exception(error)
            else:
                nearest = min(nearest, item.deadline_ms)
        return nearest


def async_operations(operations: dict[str, Callable[..., Any]]) -> frozenset[str]:
    """Return the names of the operations that are `async`."""
    return frozenset(
        name for name, method in operations.items() if inspect.iscoroutinefunction(method)
    )
