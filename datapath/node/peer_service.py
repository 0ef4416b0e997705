"""What other nodes ask of this one: to execute, to read, to join."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable

from datapath.errors import OperationError, OperationNotAppliedError
from datapath.execution.access_guard import of_a_peer
from datapath.node.context import Context
from datapath.node.members import MemberAdmin
from datapath.node.reads import Reads
from datapath.node.remote_changes import next_mark
from datapath.operations import ANONYMOUS, ClusterStatus, Result
from datapath.tasks import Tasks
from datapath.transport.calls import (
    Call,
    Envelope,
    ErrorReturn,
    ExecuteCall,
    ExecuteReturn,
    FinishUpgradeCall,
    HandoverCall,
    HelloCall,
    JoinCall,
    NoticeNote,
    ObserveCall,
    ObserveReturn,
    PingCall,
    PingReturn,
    QueryCall,
    QueryReturn,
    ReadIndexCall,
    RemoveCall,
    Return,
    StatusCall,
    StatusReturn,
    ViewNote,
    ViewReturn,
    decode_call,
    encode_call,
    error_return,
)
from datapath.transport.link import Link
from election.view import View

logger = logging.getLogger(__name__)


class PeerService:
    """The `LinkHandler` of incoming links of the kind "request"."""

    encode, decode = staticmethod(encode_call), staticmethod(decode_call)

    def __init__(
        self,
        context: Context,
        reads: Reads,
        members: MemberAdmin,
        *,
        status: Callable[[], ClusterStatus],
        hand_over: Callable[[str, int], Awaitable[View]],
    ) -> None:
        self._context = context
        self._reads = reads
        self._members = members
        self._status = status
        self._hand_over = hand_over
        self._mark_secret = secrets.token_bytes()
        self._tasks = Tasks(_on_failed)

    async def stop(self) -> None:
        """Stop answering."""
        await self._tasks.stop()

    def on_open(self, link: Link) -> None:
        """A node may ask from now on: it is told the view."""
        self._context.tell_view(link)

    def on_close(self, link: Link, reason: str) -> None:
        """A node asks no more. What it has asked goes on: its answer has nowhere to go."""

    def on_messages(self, link: Link, messages: list[Envelope]) -> None:
        """Calls and notes from another node."""
        for envelope in messages:
            body = envelope.body
            match body:
                case ReadIndexCall():
                    self._answer_read_index(link, envelope.id, body)
                case ViewNote() | NoticeNote():
                    self._context.take_note(body)
                case PingCall():
                    link.send(Envelope(envelope.id, PingReturn()))
                case ExecuteCall():
                    self._execute(link, envelope.id, body)
                case StatusCall():
                    link.send(Envelope(envelope.id, StatusReturn(self._status())))
                case _:
                    self._tasks.spawn(self._serve(link, envelope.id, body))

    def _execute(self, link: Link, number: int, call: ExecuteCall) -> None:
        """Execute for another node, without a task of its own."""

        def answer(future: asyncio.Future[Result]) -> None:
            if future.cancelled():
                return
            problem = future.exception()
            if problem is None:
                link.send(Envelope(number, ExecuteReturn(future.result())))
            elif isinstance(problem, OperationError):
                link.send(Envelope(number, error_return(problem)))
            else:
                raise problem

        try:
            engine = self._context.replica_here()
            operation = of_a_peer(self._context.access, call.operation)
            engine.submit(operation, call.timeout_ms).add_done_callback(answer)
        except OperationError as error:
            link.send(Envelope(number, error_return(error)))

    def _answer_read_index(self, link: Link, number: int, call: ReadIndexCall) -> None:
        """Answer from the leases, without a task; what has to be confirmed takes one."""
        answer: Return | None
        try:
            answer = self._reads.read_index_now(confirmed=call.confirmed)
        except OperationError as error:
            answer = error_return(error)
        if answer is None:
            self._tasks.spawn(self._serve(link, number, call))
        else:
            link.send(Envelope(number, answer))

    async def _serve(self, link: Link, number: int, body: Call | Return) -> None:
        answer: Return
        try:
            answer = await self._carry_out(body)
        except OperationError as error:
            answer = error_return(error)
        except Exception as problem:
            logger.exception("a call from %s failed", link.peer)
            detail = f"{self._context.node_id}: {problem!r}"
            answer = ErrorReturn("unknown", "internal_error", detail)
        link.send(Envelope(number, answer))

    async def _carry_out(self, body: Call | Return) -> Return:
        match body:
            case ReadIndexCall():
                return await self._reads.read_index()
            case QueryCall(query, timeout_ms):
                return QueryReturn(await self._reads.answer_query(query, timeout_ms))
            case HandoverCall(to, timeout_ms, caller):
                self._context.check_admin(caller or ANONYMOUS)
                return ViewReturn(await self._hand_over(to, timeout_ms))
            case JoinCall(member, timeout_ms, release):
                return await self._members.let_join(member, timeout_ms, release)
            case RemoveCall(node, timeout_ms, force, asked_by, caller):
                self._context.check_admin(caller or ANONYMOUS)
                view = await self._members.remove_here(
                    node, timeout_ms, force=force, asked_by=asked_by
                )
                return ViewReturn(view)
            case FinishUpgradeCall(timeout_ms, asked_by, caller):
                self._context.check_admin(caller or ANONYMOUS)
                return ViewReturn(await self._members.finish_upgrade_here(timeout_ms, asked_by))
            case ObserveCall():
                engine = self._context.replica_here()
                return ObserveReturn(await next_mark(engine, body, self._mark_secret))
            case HelloCall(node, data_id, joined, release):
                return await self._members.hello(node, data_id, joined=joined, release=release)
            case _:
                raise OperationNotAppliedError(
                    "unknown_call", f"{type(body).__name__} is not a call"
                )


def _on_failed(problem: BaseException) -> None:
    logger.error("answering another node failed", exc_info=problem)
