"""The tail of the log: records that wait for their commit, and the answers that wait with them.

On a primary and on a backup alike. What has committed is applied; what was executed here is
answered.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

import msgspec

from datapath.errors import NotPrimaryError, OperationError, OperationUnknownError, SafetyError
from datapath.execution.changes import Feed
from datapath.execution.client_table import client_key
from datapath.execution.executor import Executed, Executor
from datapath.keyspaces import CLIENTS
from datapath.operations import Completion, Operation, Result
from datapath.protocol.confirmations import Confirmation, ReadPoint
from datapath.protocol.replica import Replica
from datapath.records import Entry, Record

CallSoon = Callable[[Callable[[], None]], object]
"""Makes a turn of the event loop, with a callback that lets nothing fail."""


class Waiting(msgspec.Struct, gc=False):
    """An operation that waits to be executed; `counted`: among those that wait under a key."""

    operation: Operation
    future: Completion
    deadline_ms: float
    size_bytes: int
    counted: bool = False


class Deadlines:
    """When the next of all that wait has to be answered at the latest: `next_ms`."""

    __slots__ = ("next_ms",)

    def __init__(self) -> None:
        self.next_ms = float("inf")

    def is_over(self, waiting: Waiting, now_ms: float) -> bool:
        """Whether the time of one that has no answer is up; if not, remember when it will be."""
        if waiting.future.done():
            return False
        if waiting.deadline_ms <= now_ms:
            return True
        self.next_ms = min(self.next_ms, waiting.deadline_ms)
        return False


class PendingAnswer(msgspec.Struct, gc=False):
    """An executed operation that waits for its commit."""

    waiting: Waiting
    executed: Executed

    def wrote_nothing(self) -> bool:
        """Whether it left no entry, so that its answer is a read's: of rights, if of nothing else.

        A1: a repeat's first answer is a fact; that its caller may have it is read now.
        """
        executed = self.executed
        return executed.index == 0 and (executed.judged or not executed.repeated)


class TailItem(msgspec.Struct, gc=False):
    """A record that has not committed; `entries` and `answers` where it was executed here."""

    record: Record
    entries: list[Entry] | None
    answers: list[PendingAnswer]


class Unconfirmed:
    """Answers that wrote nothing, and wait until this node is confirmed to be the primary still."""

    __slots__ = ("_answer", "_answers")

    def __init__(
        self, answers: list[PendingAnswer], answer: Callable[[PendingAnswer], None]
    ) -> None:
        self._answers = answers
        self._answer = answer

    def done(self) -> bool:
        """Whether nobody waits for any of them."""
        return all(answer.waiting.future.done() for answer in self._answers)

    def set_result(self, point: ReadPoint, /) -> None:
        """It is: what they saw was true when they were executed, or later."""
        del point
        for answer in self._answers:
            if not answer.waiting.future.done():
                self._answer(answer)

    def set_exception(self, exception: OperationError, /) -> None:
        """It is not, or cannot know."""
        for answer in self._answers:
            if not answer.waiting.future.done():
                answer.waiting.future.set_exception(_instead(answer, exception))


class AppliedState(Protocol):
    """Where committed entries are applied; see `datapath.storage.store.Store`."""

    @property
    def applied_index(self) -> int:
        """The last entry that reads see."""

    def apply(self, entries: list[Entry], last_index: int, epoch: int) -> None:
        """Apply committed entries, the last of which is (`last_index`, `epoch`)."""


class Tail:
    """The uncommitted end of the log, and who waits for its commit.

    `records`: what is uncommitted at the start. `feed`: who is given what has committed, once it is
    applied. `not_primary` makes the error for answers that only
    a primary may give. `confirm`: what an answer that wrote nothing waits for; None: the lease is
    enough. `call_soon` makes a turn of the event loop. `clock` (ms) is the replica's.

    `inflight_records` and `inflight_bytes`: what was executed
    here and has not committed.
    """

    def __init__(
        self,
        node_id: str,
        replica: Replica,
        executor: Executor,
        store: AppliedState,
        feed: Feed,
        records: list[Record],
        *,
        not_primary: Callable[[], NotPrimaryError],
        call_soon: CallSoon,
        confirm: Callable[[Confirmation], None] | None,
        clock: Callable[[], float],
    ) -> None:
        self._node_id = node_id
        self._replica = replica
        self._executor = executor
        self._store = store
        self._feed = feed
        self._not_primary = not_primary
        self._call_soon = call_soon
        self._confirm = confirm
        self._clock = clock
        self._items: deque[TailItem] = deque(TailItem(record, None, []) for record in records)
        self._foreign_keys: set[bytes] | None = None  # see `holds_key`; None: not gathered
        self.local_acks: deque[PendingAnswer] = deque()
        self._unconfirmed: list[
            PendingAnswer
        ] = []  # those that wait for `confirm`, and their deadlines
        self._unasked: list[PendingAnswer] = []  # of those the ones that it was not asked about yet
        self.deadlines = Deadlines()
        self.inflight_records = 0
        self.inflight_bytes = 0

    def __len__(self) -> int:
        """How many records have not committed."""
        return len(self._items)

    # -- records come in

    def add_executed(
        self, record: Record, entries: list[Entry], answers: list[PendingAnswer]
    ) -> None:
        """A record was made here; `answers` wait for it. Before the replica is given it."""
        self._items.append(TailItem(record, entries, answers))
        self.inflight_records += 1
        self.inflight_bytes += len(record.data)
        for answer in answers:
            if answer.waiting.operation.ack == "local" and answer.executed.index:
                self.local_acks.append(answer)

    def add_answers(self, answers: list[PendingAnswer]) -> None:
        """Nothing was written: answer when all that could have been seen has committed (D2)."""
        if self._items:
            self._items[-1].answers.extend(answers)
        else:
            self.answer_all(answers)

    def on_written(self, records: list[Record]) -> None:
        """The replica writes records; those executed here are in the tail already."""
        if not self._items or self._items[-1].record is not records[-1]:
            self._items.extend(TailItem(record, None, []) for record in records)
            self._foreign_keys = None

    def on_truncated(self, from_index: int) -> None:
        """The log was cut: what went was never committed."""
        while self._items and self._items[-1].record.first_index >= from_index:
            self._items.pop()
            self._foreign_keys = None

    def on_snapshot(self) -> None:
        """The log was replaced by a snapshot, which is in place."""
        self._items.clear()
        self._feed.on_snapshot(self._store.applied_index)
        self._executor.table.is_behind = True
        self._foreign_keys = None

    def holds_key(self, idempotency_key: str) -> bool:
        """Whether a request under that key was executed in another epoch, and is not committed.

        It may commit yet. Of what was executed in this one the executor knows.
        """
        if self._foreign_keys is None:
            self._foreign_keys = {
                key
                for item in self._items
                if item.entries is None
                for entry in item.record.entries()
                for keyspace, key, _ in entry
                if keyspace == CLIENTS
            }
        return client_key(idempotency_key) in self._foreign_keys

    def holds(self, waiting: Waiting) -> bool:
        """Whether an operation was executed here, and waits for its commit."""
        return any(answer.waiting is waiting for item in self._items for answer in item.answers)

    # -- and commit

    def commit(self, index: int) -> None:
        """Apply what has committed, and answer."""
        store, executor, items = self._store, self._executor, self._items
        while items and items[0].record.last_index <= index:
            item = items.popleft()
            record = item.record
            if item.entries is None:
                entries = record.entries()
                store.apply(entries, record.last_index, record.epoch)
                executor.table.is_behind = True
                self._foreign_keys = None
            else:
                entries = item.entries
                store.apply(entries, record.last_index, record.epoch)
                executor.committed(record.first_index, entries)
                self.inflight_records -= 1
                self.inflight_bytes -= len(record.data)
            self._feed.on_committed(record, entries)
            if item.answers:
                self.answer_all(item.answers)
        if store.applied_index != index:
            raise SafetyError(
                f"entry {index} committed, but entries up to {store.applied_index} could be applied"
            )
        if self.local_acks:
            self.answer_local()

    def answer_known(self, answers: list[PendingAnswer]) -> list[PendingAnswer]:
        """Answer repeats of what has committed; return the others."""
        applied = self._store.applied_index
        known: list[PendingAnswer] = []
        others: list[PendingAnswer] = []
        for answer in answers:
            executed = answer.executed
            is_fact = executed.repeated and not answer.wrote_nothing()
            is_known = is_fact and executed.seen_index <= applied
            (known if is_known else others).append(answer)
        self.answer_all(known)
        return others

    def answer_all(self, answers: list[PendingAnswer]) -> None:
        """Answer what has committed; what wrote nothing only where this node serves still (D4)."""
        serving: bool | None = None
        copies, epoch = self._copies(), self._replica.state.epoch
        for answer in answers:
            future = answer.waiting.future
            if future.done():
                continue
            if not answer.executed.index and answer.wrote_nothing():
                # What it saw must be true of the one primary there is (D4).
                if self._confirm is not None:
                    self._await_confirmation(answer)
                    continue
                if serving is None:
                    serving = self._replica.may_serve(self._clock())
                if not serving:
                    future.set_exception(_instead(answer, self._not_primary()))
                    continue
            self._tell(answer, answer.waiting.operation.min_copies, copies, epoch)

    def _answer(self, answer: PendingAnswer) -> None:
        min_copies = answer.waiting.operation.min_copies
        self._tell(answer, min_copies, self._copies(), self._replica.state.epoch)

    def _tell(self, answer: PendingAnswer, min_copies: int, copies: int, epoch: int) -> None:
        outcome = self._outcome(answer.executed, min_copies, copies, epoch)
        if isinstance(outcome, OperationError):
            answer.waiting.future.set_exception(outcome)
        else:
            answer.waiting.future.set_result(outcome)

    def _await_confirmation(self, answer: PendingAnswer) -> None:
        self._unconfirmed.append(answer)
        self._unasked.append(answer)
        if len(self._unasked) == 1:
            self._call_soon(self._ask_confirmation)

    def _ask_confirmation(self) -> None:
        asking, self._unasked = self._unasked, []
        self._unconfirmed = [item for item in self._unconfirmed if not item.waiting.future.done()]
        if asking and self._confirm is not None:
            self._confirm(Unconfirmed(asking, self._answer))

    def _copies(self) -> int:
        primary = self._replica.primary  # without that, this replica's own is what is known
        return 1 if primary is None else len(primary.in_sync.required) + 1

    def _outcome(
        self, executed: Executed, min_copies: int, copies: int, epoch: int
    ) -> Result | OperationError:
        """Return the answer to what has committed."""
        if executed.error is not None:
            return executed.error
        if min_copies > copies:
            return OperationUnknownError(
                "not_enough_copies",
                f"committed on {copies} copies, fewer than min_copies = {min_copies}: the write "
                "is applied, with fewer copies",
            )
        if executed.repeated:
            index = executed.seen_index
        else:
            index = executed.index or self._replica.state.commit_index
        return Result(executed.value, index, epoch, copies, self._node_id, executed.repeated)

    def recall(self, operation: Operation) -> Result | OperationError | None:
        """Return the answer to a repeat of what is applied on this replica, primary or not.

        Of what is in its log, and not committed, that is that it is unknown.
        """
        executed = self._executor.recall(operation)
        if executed is None:
            return uncommitted_repeat() if self.holds_key(operation.idempotency_key) else None
        return self._outcome(
            executed, operation.min_copies, self._copies(), self._replica.state.epoch
        )

    def answer_local(self) -> None:
        """Early answers: durable here, and nothing uncommitted of others shines through (D2)."""
        state, kept = self._replica.state, deque[PendingAnswer]()
        for answer in self.local_acks:
            future, executed = answer.waiting.future, answer.executed
            if future.done():
                continue
            if executed.index > state.durable_index or executed.seen_index > state.commit_index:
                kept.append(answer)
            else:
                self._tell(answer, 0, 1, state.epoch)
        self.local_acks = kept

    # -- when answers cannot be given

    def fail_unanswered(self, reason: str) -> None:
        """What is in the log but not committed may yet commit, by the next primary: unknown."""
        detail = (
            f"{reason}: the write may or may not be applied. Repeat it under the same "
            "Idempotency-Key, or read the key before repeating it"
        )
        for item in self._items:
            for answer in item.answers:
                future = answer.waiting.future
                if future.done():
                    continue
                if answer.wrote_nothing():
                    future.set_exception(_instead(answer, self._not_primary()))
                else:
                    future.set_exception(OperationUnknownError("unknown_outcome", detail))
            item.answers, item.entries = [], None
        self._foreign_keys = None
        Unconfirmed(self._unconfirmed, self._answer).set_exception(self._not_primary())
        self._unconfirmed.clear()
        self.inflight_records = self.inflight_bytes = 0
        self.local_acks.clear()

    def expire(
        self, now_ms: float, not_committed: OperationError, not_confirmed: OperationError
    ) -> None:
        """Answer those whose time is up; the deadlines of the others are remembered."""
        is_over = self.deadlines.is_over
        for item in self._items:
            for answer in item.answers:
                if is_over(answer.waiting, now_ms):
                    answer.waiting.future.set_exception(not_committed)
        for answer in self._unconfirmed:
            if is_over(answer.waiting, now_ms):
                answer.waiting.future.set_exception(_instead(answer, not_confirmed))


def uncommitted_repeat(refused: str = "") -> OperationUnknownError:
    """Return the answer to a repeat of what may commit yet; `refused`: why no other is due."""
    return OperationUnknownError(
        "unknown_outcome",
        f"{refused}An earlier request under the same Idempotency-Key is still waiting, or has "
        "not committed, and may be applied: repeat the request to learn its answer",
    )


def _instead(answer: PendingAnswer, problem: OperationError) -> OperationError:
    """Return what is told where an answer cannot be: of a repeat not that it was not applied."""
    return uncommitted_repeat() if answer.executed.repeated else problem
