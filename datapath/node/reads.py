"""Reads at any node: here, on a backup after one question for many, or forwarded to the primary."""

from __future__ import annotations

import asyncio
import logging

from datapath.clock import clock_ms
from datapath.errors import NotPrimaryError, OperationError, OperationNotAppliedError
from datapath.execution.access_guard import of_a_peer, with_fresh_rights
from datapath.node.context import Context
from datapath.node.engine import Engine
from datapath.node.read_index import ReadIndex
from datapath.operations import Consistency, Query, QueryResult
from datapath.protocol.confirmations import ReadPoint
from datapath.tasks import Tasks
from datapath.transport.calls import (
    NoAnswerError,
    NotSentError,
    QueryCall,
    QueryReturn,
    ReadIndexCall,
    ReadIndexReturn,
    Return,
)
from datapath.turns import Turns

logger = logging.getLogger(__name__)

READ_INDEX_TIMEOUT_MS = 1000
CATCH_UP_TIMEOUT_MS = 1000
"""How long a read waits for this node to follow the primary, before it is tried anew (a node that
does not follow leaves the in-sync set, and then the primary answers)."""
FOLLOW_TIMEOUT_MS = 2 * READ_INDEX_TIMEOUT_MS + CATCH_UP_TIMEOUT_MS
"""The longest that a read on a backup waits: for the question under way, for its own, to catch up.
Each has its own limit, so that a read with more time than that needs no timer."""


class Reads:
    """The reads of one node."""

    def __init__(self, context: Context) -> None:
        self._context = context
        # The reads' questions to the primary: those that its leases may answer, and the others.
        self._leased = _Questions()
        self._confirmed = _Questions()
        self._tasks = Tasks(_on_failed)
        self._turns = Turns()
        self.index_calls_total = 0

    async def stop(self) -> None:
        """Ask nothing more."""
        await self._tasks.stop()

    def read_now(self, query: Query) -> QueryResult | None:
        """Read at once, if this node serves or the query may be stale; else None."""
        context, engine = self._context, self._context.engine
        if query.caller is not None:
            query = with_fresh_rights(context.access, query)
        if engine is None or not (context.views.belongs or self._may_serve_alone(query)):
            return None
        if engine.replica.primary is None and query.consistency != "stale":
            return None
        return engine.interpreter.query(query)

    def _may_serve_alone(self, query: Query) -> bool:
        """Whether what may be arbitrarily old may come from a node that can ask nobody.

        It may have been removed meanwhile; once it has heard so it answers nothing.
        """
        context = self._context
        return query.consistency == "stale" and context.is_alone and context.views.newest is None

    async def query(self, query: Query, timeout_ms: int) -> QueryResult:
        """Read; linearizable reads are answered here if this node is in touch with the primary."""
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
                elif engine is not None and context.views.is_in_sync:
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
                async with asyncio.timeout(left_ms / 1000):
                    if context.views.primary == context.node_id:
                        index = (await self._confirm(engine, left_ms)).index
                    else:
                        _, index = await self._ask_for_index(engine, confirmed=True)
                    if not engine.interpreter.has_applied(index):
                        await engine.wait_applied(index)
                    return
            except TimeoutError:
                last = f"{context.node_id} did not catch up with the primary in time"
            except (NotPrimaryError, NotSentError, NoAnswerError) as problem:
                last = str(problem)
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
            and self._leased.age_ms(clock_ms()) <= query.max_staleness_ms
        ):
            try:
                return engine.interpreter.read(query)
            except OperationNotAppliedError:
                if query.caller is None:
                    raise
                # A token or a right that this node does not know may be new: ask before it refuses.
        try:
            if left_ms > FOLLOW_TIMEOUT_MS:
                asked_ms = await self._follow(engine, query.consistency)
            else:
                async with asyncio.timeout(left_ms / 1000):
                    asked_ms = await self._follow(engine, query.consistency)
        except TimeoutError:
            raise NotPrimaryError(
                "timeout", f"{self._context.node_id} did not catch up with the primary in time"
            ) from None
        self._leased.applied(asked_ms)
        if is_scan:
            await self._turns.take()  # many may have waited for the same index
        if self._turns.is_spent:
            await self._turns.wait_while_spent()
        meter = engine.interpreter.meter
        before_bytes = meter.read_bytes
        result = engine.interpreter.read(query)
        if read_bytes := meter.read_bytes - before_bytes:
            self._turns.spend(read_bytes)
        return result

    async def _follow(self, engine: Engine, consistency: Consistency) -> float:
        """Wait until what the primary has committed is applied here; return when it was asked.

        Raises TimeoutError, and as `_ask_for_index`.
        """
        confirmed = consistency == "confirmed"
        asked_ms, index = await self._ask_for_index(engine, confirmed=confirmed)
        if not engine.interpreter.has_applied(index):
            async with asyncio.timeout(CATCH_UP_TIMEOUT_MS / 1000):
                await engine.wait_applied(index)
        return asked_ms

    def _ask_for_index(
        self, engine: Engine, *, confirmed: bool
    ) -> asyncio.Future[tuple[float, int]]:
        """Ask for the primary's commit index; the answer is when it was asked for, and the index.

        It comes within twice READ_INDEX_TIMEOUT_MS: one question may be under way.
        """
        future: asyncio.Future[tuple[float, int]] = asyncio.get_running_loop().create_future()
        reads = self._confirmed if confirmed else self._leased
        reads.join(future)
        if not reads.has_task:
            reads.has_task = True
            self._tasks.spawn(self._ask_while_reads_wait(engine, reads))
        return future

    async def _ask_while_reads_wait(self, engine: Engine, reads: _Questions) -> None:
        """Put one question after the other to the primary, as long as reads wait for one."""
        context = self._context
        question = ReadIndexCall(confirmed=reads is self._confirmed)
        try:
            while reads.waiting and reads.ask(clock_ms()):
                self.index_calls_total += 1
                index = 0
                problem: Exception | None = None
                try:
                    call = context.caller.call(
                        context.views.primary, question, READ_INDEX_TIMEOUT_MS
                    )
                    index = _read_index_of(engine, await call)
                except (OperationError, NotSentError, NoAnswerError) as error:
                    problem = error
                answered, asked_ms = reads.settle()
                for future in answered:
                    if future.done():
                        continue  # who waited has gone
                    if problem is None:
                        future.set_result((asked_ms, index))
                    else:
                        future.set_exception(problem)
                        future.exception()  # seen: who waited may go before it is told
        except BaseException:
            for future in reads.leave():
                future.cancel()
            raise
        finally:
            reads.has_task = False

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
        point = await self._confirm(self._context.replica_here(), READ_INDEX_TIMEOUT_MS)
        return ReadIndexReturn(point.epoch, point.index)


class _Questions(ReadIndex[asyncio.Future[tuple[float, int]]]):
    """One kind of questions; `has_task`: a task puts them to the primary."""

    def __init__(self) -> None:
        super().__init__()
        self.has_task = False


def _on_failed(problem: BaseException) -> None:
    logger.error("asking the primary for its commit index failed", exc_info=problem)


def _read_index_of(engine: Engine, answer: Return) -> int:
    if not isinstance(answer, ReadIndexReturn):
        raise NoAnswerError("the primary gave an invalid answer")
    engine.interpreter.advance_commit(answer.epoch, answer.index)
    return answer.index
