"""Reads at any node: here, on a backup after one question for many, or forwarded to the primary."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Protocol

from datapath.clock import clock_ms
from datapath.errors import (
    NotPrimaryError,
    OperationError,
    OperationNotAppliedError,
)
from datapath.execution.access_guard import of_a_peer, with_fresh_rights
from datapath.node.context import Context
from datapath.node.engine import Engine
from datapath.node.read_index import QUESTION_TIMEOUT_MS, ReadIndex
from datapath.operations import Consistency, Query, QueryCompletion, QueryResult
from datapath.protocol.confirmations import ReadPoint
from datapath.transport.caller import CallOutcome
from datapath.transport.calls import (
    NoAnswerError,
    NotSentError,
    QueryCall,
    QueryReturn,
    ReadIndexCall,
    ReadIndexReturn,
)
from datapath.turns import Turns

FOLLOW_TIMEOUT_MS = 1000
"""How long a read waits for this node to follow the primary, before it is tried anew (a node that
does not follow leaves the in-sync set, and then the primary answers)."""
_CONFIRM_TIMEOUT_MS = 1000
READ_COST_BYTES = 16 * 1024
"""What a read at a backup counts beside what it reads: it takes as long as copying so many."""


class FollowWaiter(Protocol):
    """Waits until this node has followed the primary: a future, or an object with its methods."""

    def done(self) -> bool:
        """Whether nobody waits any more."""

    def set_result(self, result: None, /) -> None:
        """What the primary had committed when this began is applied here."""

    def set_exception(self, exception: NotPrimaryError, /) -> None:
        """It did not come to that."""


class Reads:
    """The reads of one node."""

    def __init__(self, context: Context) -> None:
        self._context = context
        # The reads' questions to the primary: those that its leases may answer, and the others.
        self._leased = _Questions(self, confirmed=False)
        self._confirmed = _Questions(self, confirmed=True)
        self._turns = Turns()
        self._ready: deque[_BackupRead] = deque()  # those that wait for a turn of the loop
        self._timer: asyncio.TimerHandle | None = None  # for all that wait
        self._timer_ms = 0.0
        self.index_calls_total = 0

    def stop(self) -> None:
        """Ask nothing more."""
        if self._timer is not None:
            self._timer.cancel()
        for questions in (self._leased, self._confirmed):
            _refuse(questions.index.leave(), self._context.no_primary(""))

    def read_now(self, query: Query) -> QueryResult | None:
        """Read at once, if this node serves or the query may be stale; else None."""
        context, engine = self._context, self._context.engine
        if query.caller is not None:
            query = with_fresh_rights(context.access, query)
        if engine is None or not (context.views.belongs or self._may_serve_alone(query)):
            return None
        return engine.interpreter.query(query)

    def _may_serve_alone(self, query: Query) -> bool:
        """Whether what may be arbitrarily old may come from a node that can ask nobody.

        It may have been removed meanwhile; once it has heard so it answers nothing.
        """
        context = self._context
        return query.consistency == "stale" and context.is_alone and context.views.newest is None

    def submit_query(self, query: Query, timeout_ms: int, completion: QueryCompletion) -> bool:
        """Read here once this backup has followed the primary; False: use `query`.

        `completion` is answered later, never before this returns.
        """
        context, engine = self._context, self._context.engine
        if (
            engine is None
            or query.consistency == "stale"
            or not self._may_follow()
            or context.stopping
            or (query.service, query.method) in engine.interpreter.scans
        ):
            return False
        read = _BackupRead(self, engine, query, completion)
        self._join(
            read, min(timeout_ms, FOLLOW_TIMEOUT_MS), confirmed=query.consistency == "confirmed"
        )
        return True

    def _may_follow(self) -> bool:
        """Whether reads may be answered here by what the primary, another node, has committed."""
        views = self._context.views
        return views.is_in_sync and views.primary != self._context.node_id

    async def query(
        self, query: Query, timeout_ms: int, after: NotPrimaryError | None = None
    ) -> QueryResult:
        """Read; linearizable reads are answered here if this node is in touch with the primary.

        `after`: an attempt by `submit_query` has ended with that.
        """
        context, engine = self._context, self._context.engine
        if query.caller is not None:
            query = with_fresh_rights(context.access, query)
        is_scan = engine is not None and (query.service, query.method) in engine.interpreter.scans
        if is_scan:
            await self._turns.take()
        if (result := self.read_now(query)) is not None:
            return result
        now_ms = clock_ms()
        deadline_ms = now_ms + timeout_ms
        last = ""
        if after is not None:
            last = str(after)
            await context.wait_for_change(deadline_ms)
            now_ms = clock_ms()
        while True:
            left_ms = deadline_ms - now_ms
            if left_ms <= 0 or context.stopping or context.views.is_removed:
                raise context.no_primary(last)
            primary = context.views.primary
            try:
                if engine is not None and primary == context.node_id:
                    result = await self._read_as_primary(engine, query, left_ms, is_scan=is_scan)
                    if result is not None:
                        return result
                elif engine is not None and self._may_follow():
                    return await self._read_here(engine, query, left_ms, is_scan=is_scan)
                elif primary:
                    return await self._forward_query(primary, query, left_ms)
            except (NotPrimaryError, NotSentError, NoAnswerError) as problem:
                last = str(problem)
            await context.wait_for_change(deadline_ms)
            now_ms = clock_ms()

    async def catch_up(self, consistency: Consistency, timeout_ms: int) -> None:
        """Wait until this node has applied everything that was acknowledged before the call.

        It rests on no clock. "stale" does not wait. Raises NotPrimaryError, also on a witness.
        """
        context, engine = self._context, self._context.replica_here()
        deadline_ms = clock_ms() + timeout_ms
        last = ""
        while not context.views.is_removed:
            if consistency == "stale":
                return
            left_ms = deadline_ms - clock_ms()
            if left_ms <= 0 or context.stopping:
                break
            try:
                if context.views.primary == context.node_id:
                    await self._confirm(engine, left_ms)
                else:
                    await self._follow(left_ms, confirmed=True)
            except NotPrimaryError as problem:
                last = str(problem)
            else:
                return
            await context.wait_for_change(deadline_ms)
        raise context.no_primary(last)

    async def _read_as_primary(
        self, engine: Engine, query: Query, timeout_ms: float, *, is_scan: bool
    ) -> QueryResult | None:
        """Read here, under the leases or confirmed; None: this node does not serve now."""
        confirmed = engine.interpreter.needs_confirmation(query)
        if confirmed:
            await self._confirm(engine, timeout_ms)
        if is_scan:
            await self._turns.take()
        return engine.interpreter.read(query) if confirmed else engine.interpreter.query(query)

    @staticmethod
    async def _confirm(engine: Engine, timeout_ms: float) -> ReadPoint:
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                return await engine.confirm()
        except TimeoutError:
            raise NotPrimaryError("timeout", engine.interpreter.why_not_serving()) from None

    async def _forward_query(self, primary: str, query: Query, left_ms: float) -> QueryResult:
        self._context.forwarded_total += 1
        answer = await self._context.caller.call(
            primary, QueryCall(query, max(1, int(left_ms))), left_ms
        )
        if not isinstance(answer, QueryReturn):
            raise NoAnswerError(f"{primary} gave an invalid answer")
        return answer.result

    async def _read_here(
        self, engine: Engine, query: Query, left_ms: float, *, is_scan: bool
    ) -> QueryResult:
        """Read on a backup, once it holds what the primary had committed when this began."""
        if (
            query.consistency == "stale"
            and query.max_staleness_ms is not None
            and self._leased.index.age_ms(clock_ms()) <= query.max_staleness_ms
        ):
            try:
                return engine.interpreter.read(query)
            except OperationNotAppliedError:
                if query.caller is None:
                    raise
                # A token or a right that this node does not know may be new: ask before it refuses.
        await self._follow(
            min(left_ms, FOLLOW_TIMEOUT_MS), confirmed=query.consistency == "confirmed"
        )
        if is_scan:
            await self._turns.take()  # many may have waited for the same index
        if self._turns.is_spent:
            await self._turns.wait_while_spent()
        return self._read_applied(engine, query)

    def _read_applied(self, engine: Engine, query: Query) -> QueryResult:
        meter = engine.interpreter.meter
        before_bytes = meter.read_bytes
        result = engine.interpreter.read(query)
        self._turns.spend(meter.read_bytes - before_bytes + READ_COST_BYTES)
        return result

    # -- following the primary

    async def _follow(self, timeout_ms: float, *, confirmed: bool) -> None:
        """Wait until what the primary has committed is applied here. Raises NotPrimaryError."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._join(future, timeout_ms, confirmed=confirmed)
        await future

    def _join(self, waiting: FollowWaiter, timeout_ms: float, *, confirmed: bool) -> None:
        now_ms = clock_ms()
        questions = self._confirmed if confirmed else self._leased
        questions.index.join(waiting, now_ms + timeout_ms)
        self._call_expire(now_ms, now_ms + min(timeout_ms, QUESTION_TIMEOUT_MS))
        self._ask(questions, now_ms)

    def _ask(self, questions: _Questions, now_ms: float) -> None:
        """Ask for the primary's commit index, if reads wait for that and no question is open."""
        number = questions.index.ask(now_ms)
        if not number:
            return
        self.index_calls_total += 1
        context, on_outcome = self._context, partial(self._answered, questions, number)
        try:
            questions.call = context.caller.begin(context.views.primary, questions.body, on_outcome)
        except (OperationError, NotSentError) as problem:
            asyncio.get_running_loop().call_soon(on_outcome, problem)

    def _answered(
        self, questions: _Questions, number: int, answer: CallOutcome | NotSentError
    ) -> None:
        """The primary has answered a question, which may have been given up; or it has not."""
        engine = self._context.engine
        if engine is None or not isinstance(answer, ReadIndexReturn):
            is_problem = isinstance(answer, Exception)
            problem = str(answer) if is_problem else "the primary gave an invalid answer"
            _refuse(questions.index.unanswered(number), NotPrimaryError("no_primary", problem))
            self._ask(questions, clock_ms())
            return
        if not questions.index.answered(number, answer.index):
            return
        interpreter = engine.interpreter
        applied_index = interpreter.advance_commit(answer.epoch, answer.index)
        if questions.index.waiting:
            self._ask(questions, clock_ms())
        if answer.index <= applied_index:
            self._answer_reads(questions, applied_index)
        else:
            interpreter.wait_applied(answer.index, questions)

    def applied(self, questions: _Questions) -> None:
        """More is applied here, and reads wait for that."""
        self._answer_reads(questions, self._context.replica_here().interpreter.applied_index)

    def _answer_reads(self, questions: _Questions, applied_index: int) -> None:
        for waiting in questions.index.applied(applied_index):
            if not waiting.done():
                waiting.set_result(None)

    def _call_expire(self, now_ms: float, due_ms: float) -> None:
        """Call `_expire` at `due_ms`, or before."""
        if self._timer is not None:
            if self._timer_ms <= due_ms:
                return
            self._timer.cancel()
        self._timer_ms = due_ms
        delay_s = max(0.0, due_ms - now_ms) / 1000
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._expire)

    def _expire(self) -> None:
        """Give up what has waited for too long: it is tried anew, or its time is up."""
        self._timer = None
        now_ms = clock_ms()
        late = f"{self._context.node_id} did not catch up with the primary in time"
        due_ms = float("inf")
        for questions in (self._leased, self._confirmed):
            _refuse(questions.index.expire(now_ms), NotPrimaryError("timeout", late))
            if not questions.index.is_asking:
                self._context.caller.forget(questions.call)
                self._ask(questions, now_ms)
            due_ms = min(due_ms, questions.index.due_ms)
        if due_ms < float("inf"):
            self._call_expire(now_ms, due_ms)

    def serve(self, read: _BackupRead) -> None:
        """Answer a read from what is applied, in this turn of the event loop or one of the next."""
        if not self._turns.is_spent and not self._ready:
            read.serve(self._read_applied)
            return
        if not self._ready:
            asyncio.get_running_loop().call_soon(self._serve_ready)
        self._ready.append(read)

    def _serve_ready(self) -> None:
        while self._ready and not self._turns.is_spent:
            read = self._ready.popleft()
            if not read.done():
                read.serve(self._read_applied)
        if self._ready:
            asyncio.get_running_loop().call_soon(self._serve_ready)

    # -- what other nodes ask

    async def answer_query(self, query: Query, timeout_ms: float) -> QueryResult:
        """Read here as the primary, for another node."""
        engine, node_id = self._context.engine, self._context.node_id
        query = with_fresh_rights(self._context.access, of_a_peer(self._context.access, query))
        result = None
        if engine is not None:
            is_scan = (query.service, query.method) in engine.interpreter.scans
            result = await self._read_as_primary(engine, query, timeout_ms, is_scan=is_scan)
        if result is None:
            raise NotPrimaryError("no_primary", f"{node_id} does not serve")
        return result

    def read_index_now(self, *, confirmed: bool) -> ReadIndexReturn | None:
        """Answer a backup's question under the leases; None: it takes `read_index`."""
        engine = self._context.replica_here()
        if confirmed or engine.interpreter.confirms_reads:
            return None
        return ReadIndexReturn(*engine.interpreter.read_index())

    async def read_index(self) -> ReadIndexReturn:
        """Answer a backup's question that may not rest on leases."""
        point = await self._confirm(self._context.replica_here(), _CONFIRM_TIMEOUT_MS)
        return ReadIndexReturn(point.epoch, point.index)


class _Questions:
    """One kind of questions to the primary, and the reads that wait for them.

    Itself it waits, as a future would, until what an answer asks for is applied.
    """

    def __init__(self, reads: Reads, *, confirmed: bool) -> None:
        self._reads = reads
        self.body = ReadIndexCall(confirmed=confirmed)
        self.index: ReadIndex[FollowWaiter] = ReadIndex()
        self.call = 0  # the number of the last

    def done(self) -> bool:
        """Whether no read waits for that."""
        return not self.index.is_behind

    def set_result(self, _: None, /) -> None:
        """It is applied."""
        self._reads.applied(self)


class _BackupRead:
    """A read at a backup that no task waits for."""

    __slots__ = ("_completion", "_engine", "_query", "_reads")

    def __init__(
        self, reads: Reads, engine: Engine, query: Query, completion: QueryCompletion
    ) -> None:
        self._reads = reads
        self._engine = engine
        self._query = query
        self._completion = completion

    def done(self) -> bool:
        """Whether its client has gone."""
        return self._completion.done()

    def set_result(self, _: None, /) -> None:
        """This node has followed the primary."""
        self._reads.serve(self)

    def set_exception(self, problem: NotPrimaryError, /) -> None:
        """It has not."""
        self._completion.set_exception(problem)

    def serve(self, read: Callable[[Engine, Query], QueryResult]) -> None:
        """Answer it."""
        try:
            result = read(self._engine, self._query)
        except Exception as problem:  # noqa: BLE001 -- whatever it is, the client gets an answer
            self._completion.set_exception(problem)
        else:
            self._completion.set_result(result)


def _refuse(waiting: Iterable[FollowWaiter], problem: NotPrimaryError) -> None:
    for read in waiting:
        if not read.done():
            read.set_exception(problem)
