"""The gateway: any node takes any request. It finds the primary, forwards, waits, and retries
what is known not to have been carried out, and nothing else.

It also answers what other nodes ask: to execute, to read, to join.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import msgspec

from datapath.clock import clock_ms
from datapath.errors import (
    DataPathError,
    NotAppliedError,
    NotPrimaryError,
    OperationError,
    RejectedError,
    UnknownOutcomeError,
)
from datapath.node.engine import Engine
from datapath.node.membership import (
    Facts,
    Refusal,
    describe,
    may_join,
    may_take_addresses,
    refusals,
)
from datapath.node.read_index import ReadIndex
from datapath.node.router import Attempts, Step
from datapath.node.status import other_state
from datapath.operations import (
    ClusterStatus,
    Digest,
    Operation,
    Query,
    QueryResult,
    Result,
    Sink,
)
from datapath.protocol.confirmations import ReadPoint
from datapath.transport.caller import Caller
from datapath.transport.calls import (
    Call,
    ErrorReturn,
    ExecuteCall,
    ExecuteReturn,
    HandoverCall,
    HelloCall,
    HelloReturn,
    JoinCall,
    JoinReturn,
    NoAnswerError,
    NoticeNote,
    NotSentError,
    PingCall,
    PingReturn,
    QueryCall,
    QueryReturn,
    ReadIndexCall,
    ReadIndexReturn,
    RemoveCall,
    Return,
    StatusCall,
    StatusReturn,
    ViewNote,
    ViewReturn,
    decode,
    encode,
    error_return,
)
from datapath.transport.link import Link
from datapath.turns import Turns
from election.agreement import (
    Agreement,
    AgreementUnavailableError,
    Committed,
    Outcome,
    Refused,
)
from election.identity import Addresses
from election.registry import PeerRegistry
from election.view import AddMember, Change, Member, RemoveMember, View

log = logging.getLogger(__name__)

RETRY_INTERVAL_S = 0.05
"""How long to wait for a change (a view, a link) before trying again anyway."""
STATUS_TIMEOUT_MS = 500
READ_INDEX_TIMEOUT_MS = 1000
CATCH_UP_TIMEOUT_MS = 1000
"""How long a read waits for this node to follow the primary, before it is tried anew (a node that
does not follow leaves the in-sync set, and then the primary answers)."""
CALL_MARGIN_MS = 200
MAX_NOTICE_LENGTH = 500
PING_TIMEOUT_MS = 500
"""Who has not answered within so long counts as dead when a node is to be removed."""
REMOVAL_TIMEOUT_MS = 1000
"""For so long one proposal of a removal runs; then what was seen is looked at anew."""
CONFIRM_TIMEOUT_MS = 400
"""How long a node that asks whether it was removed makes this one ask consensus."""


class Gateway:
    """The `Node` of `datapath.operations`, for replicas (with an engine) and witnesses (without).

    `pin` remembers another node's data id and says whether it is the known one. `cluster_id` is
    the cluster that this node's data belongs to, "" where it has none yet.
    """

    def __init__(
        self,
        node_id: str,
        cluster: str,
        agreement: Agreement,
        pin: Callable[[str, str], bool],
        cluster_id: str = "",
        min_in_sync: int = 1,
    ) -> None:
        self.node_id = node_id
        self._cluster = cluster
        self._bound_cluster_id = cluster_id
        self._agreement = agreement
        self._pin = pin
        self._min_in_sync = min_in_sync
        self.waits_for = ""
        """Why this node knows no view yet, for who asks it."""
        self._belongs = False  # whether the newest view has this node among its members
        self._engine: Engine | None = None
        self._view: View | None = None
        self._view_listeners: list[Callable[[View], None]] = []
        self._changed = asyncio.Event()
        self.caller = Caller(self.note_change, self._take_note)
        self._tasks: set[asyncio.Task[None]] = set()
        self._registry: PeerRegistry | None = None
        # The reads' questions to the primary: those that its leases may answer, and the others.
        self._leased_reads = _Questions()
        self._confirmed_reads = _Questions()
        self._stopping = False
        self._turns = Turns()
        self._counters = {"forwarded_total": 0.0, "read_index_calls_total": 0.0}

    def attach(self, engine: Engine) -> None:
        """Give it the replica that runs on this node."""
        self._engine = engine

    def share_notices(self, registry: PeerRegistry) -> None:
        """Show what `registry` warns of in the status, and tell it to the other nodes."""
        self._registry = registry
        loop = asyncio.get_running_loop()
        registry.on_notice = lambda text: _post(loop, self._tell_notice, text)

    def _tell_notice(self, text: str) -> None:
        log.error("%s", text)
        for peer in self.caller.peers:
            self.caller.note(peer, NoticeNote(text))

    def use_agreement(self, agreement: Agreement) -> None:
        """Go over to another consensus member, before it is started: this node has just joined."""
        self._agreement = agreement

    async def stop(self) -> None:
        """Stop answering other nodes."""
        self._stopping = True
        self.note_change()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- views

    @property
    def view(self) -> View | None:
        """The newest committed view that this node has heard of."""
        return self._view

    @property
    def cluster_id(self) -> str:
        """The cluster of the newest view, before there is one that of the data, or ""."""
        return self._bound_cluster_id if self._view is None else self._view.cluster_id

    @property
    def commit_index(self) -> int:
        """The highest revision that this node knows to have committed (0: none)."""
        return self._engine.replica.core.commit_index if self._engine else 0

    def on_view(self, view: View) -> None:
        """Take a committed view, from consensus or from a peer that has it from there."""
        if self._view is not None and view.version <= self._view.version:
            return
        if self._view is not None and view.cluster_id != self._view.cluster_id:
            log.error("a view of another cluster, %s, was offered", view.cluster_id)
            return
        if self._view is not None:
            self._tell_removed(self._view, view)
        self._view = view
        self._belongs = view.member(self.node_id) is not None
        for listener in self._view_listeners:
            listener(view)
        if self._engine is not None:
            self._engine.on_view(view)
        self.note_change()

    def share_view(self, view: View) -> None:
        """Take a view that this node has just got committed, and tell every peer."""
        if self._view is None or view.version > self._view.version:
            for peer in self.caller.peers:
                self.caller.note(peer, ViewNote(view))
        self.on_view(view)

    def _tell_removed(self, before: View, after: View) -> None:
        """Tell who is no member any more, as long as there is a link to it."""
        for member in before.members:
            if after.member(member.id) is None:
                self.caller.note(member.id, ViewNote(after))

    def listen(self, listener: Callable[[View], None]) -> None:
        """Call `listener` with each newer view."""
        self._view_listeners.append(listener)

    def note_change(self) -> None:
        """A view, a role or a link has changed: who waits may try again."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def _wait_for_change(self, deadline_ms: float) -> None:
        changed = self._changed
        left_s = max(0.0, (deadline_ms - clock_ms()) / 1000)
        try:
            async with asyncio.timeout(min(RETRY_INTERVAL_S, left_s)):
                await changed.wait()
        except TimeoutError:
            pass

    # -- the Node face

    @property
    def epoch(self) -> int:
        """The newest epoch that this node knows of (0: none)."""
        known = self._engine.replica.epoch if self._engine else 0
        return max(known, self._view.epoch if self._view else 0)

    @property
    def primary(self) -> str:
        """The primary of the newest view this node knows, or ""."""
        return self._view.primary if self._view else ""

    @property
    def is_primary(self) -> bool:
        """Whether this node is the primary and serves under its leases right now."""
        return self._engine is not None and self._engine.replica.may_serve(clock_ms())

    @property
    def belongs(self) -> bool:
        """Whether this node is known to be a member, by a view that it has heard since its start.

        Before that, and after its removal, it answers nothing from its own data: what it holds may
        be from long before it was removed.
        """
        return self._belongs

    @property
    def hears_majority(self) -> bool:
        """Whether consensus has links with a majority of those who vote, this node included."""
        voters = self._agreement.voters or frozenset()
        return 2 * len(voters & self._agreement.heard) > len(voters)

    @property
    def is_ready(self) -> bool:
        """Whether this node could answer a linearizable read now (itself or by the primary)."""
        if not self._belongs:
            return False
        if self.primary == self.node_id:
            return self.is_primary
        return bool(self.primary) and self.caller.reaches(self.primary)

    def submit(self, operation: Operation, timeout_ms: int, sink: Sink) -> bool:
        """Execute here, if this node is the primary; False: nothing was done."""
        if self._engine is None or self.primary != self.node_id or self._stopping:
            return False
        try:
            self._engine.submit_to(operation, timeout_ms, sink)
        except OperationError:
            return False
        return True

    def read_now(self, query: Query) -> QueryResult | None:
        """Read at once, if this node serves or the query may be stale; else None."""
        return self._engine.query(query) if self._engine is not None and self._belongs else None

    async def execute(
        self, operation: Operation, timeout_ms: int, after: OperationError | None = None
    ) -> Result:
        """Execute on the primary, wherever it is; wait for one up to `timeout_ms`.

        What is tried again, and what the client is told, is decided in `datapath.node.router`.
        `after`: an attempt has ended so, with an error that `router.may_repeat`.
        """
        attempts = Attempts(operation, clock_ms() + timeout_ms)
        if after is not None:
            attempts.failed(after)
        while True:
            now_ms, primary = clock_ms(), self.primary
            is_here = primary == self.node_id and self._engine is not None
            stopping = self._stopping or self._is_removed
            match attempts.next(now_ms, primary=primary, is_here=is_here, stopping=stopping):
                case "answer":
                    return self._answer(operation, attempts)
                case "wait":
                    await self._wait_for_change(attempts.deadline_ms)
                case step:
                    try:
                        return await self._attempt(
                            step, primary, operation, attempts.deadline_ms - now_ms
                        )
                    except DataPathError as problem:
                        attempts.failed(problem)

    def _answer(self, operation: Operation, attempts: Attempts) -> Result:
        """Return or raise what the client is told when no further attempt is made."""
        engine = self._engine
        outcome = attempts.answer(
            self._no_primary(attempts.last),
            lambda: None if engine is None else engine.recall(operation),
        )
        if isinstance(outcome, OperationError):
            raise outcome
        return outcome

    async def _attempt(
        self, step: Step, primary: str, operation: Operation, left_ms: float
    ) -> Result:
        if step == "here" and self._engine is not None:
            return await self._engine.submit(operation, left_ms)
        return await self._forward(primary, operation, left_ms)

    async def _forward(self, primary: str, operation: Operation, left_ms: float) -> Result:
        self._counters["forwarded_total"] += 1
        call = ExecuteCall(operation, max(1, int(left_ms)))
        answer = await self.caller.call(primary, call, left_ms + CALL_MARGIN_MS)
        if not isinstance(answer, ExecuteReturn):
            raise NoAnswerError(f"{primary} gave a strange answer")
        return answer.result

    def _no_primary(self, last: str) -> NotPrimaryError:
        if self._view is not None and not self._belongs:
            reason = f"{self.node_id} has been removed from the cluster: ask another node"
        elif self._view is None:
            reason = "consensus has not been reached: is a majority of the nodes up?"
            reason += f" ({self.waits_for})" if self.waits_for else ""
        elif self._engine is not None and self.primary == self.node_id:
            reason = self._engine.why_not_serving()
        else:
            in_sync = ", ".join(self._view.in_sync)
            reason = (
                f"{self.primary}, the primary of epoch {self._view.epoch}, cannot be reached from "
                f"{self.node_id}; only its in-sync set ({in_sync}) may take over, and that needs "
                "a majority of the nodes"
            )
        detail = f"no primary could take it in time: {reason}"
        if last and last != reason:
            detail += f" (last answer: {last})"
        return NotPrimaryError("no_primary", detail, self.primary)

    async def query(self, query: Query, timeout_ms: int) -> QueryResult:
        """Read; linearizable reads are answered here if this node is in touch with the primary."""
        engine = self._engine
        is_scan = engine is not None and engine.is_scan(query)
        if is_scan:
            await self._turns.take()
        if (result := self.read_now(query)) is not None:
            return result
        deadline_ms = clock_ms() + timeout_ms
        last = ""
        while True:
            left_ms = deadline_ms - clock_ms()
            if left_ms <= 0 or self._stopping or self._is_removed:
                raise self._no_primary(last)
            primary = self.primary
            try:
                if engine is not None and primary == self.node_id:
                    result = await self._read_as_primary(engine, query, left_ms, is_scan=is_scan)
                    if result is not None:
                        return result
                elif engine is not None and self._in_sync:
                    return await self._read_here(engine, query, deadline_ms)
                elif primary:
                    return await self._forward_query(primary, query, left_ms)
            except (NotPrimaryError, NotSentError, NoAnswerError) as problem:
                last = str(problem)
            await self._wait_for_change(deadline_ms)

    async def _read_as_primary(
        self, engine: Engine, query: Query, timeout_ms: float, *, is_scan: bool
    ) -> QueryResult | None:
        """Read here, under the leases or confirmed; None: this node does not serve now."""
        confirmed = engine.needs_confirmation(query)
        if confirmed:
            await self._confirm(engine, timeout_ms)
        if is_scan:
            await self._turns.take()
        return engine.read(query) if confirmed else engine.query(query)

    async def _confirm(self, engine: Engine, timeout_ms: float) -> ReadPoint:
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                return await engine.confirm()
        except TimeoutError:
            raise NotPrimaryError("timeout", engine.why_not_serving()) from None

    @property
    def _is_removed(self) -> bool:
        return self._view is not None and not self._belongs

    @property
    def _in_sync(self) -> bool:
        """Whether this node is kept up to date, so that a read need not wait long here.

        A learner may be far behind, or unable to follow (a full disk): the primary answers then.
        """
        return self._view is not None and self.node_id in self._view.in_sync

    async def _forward_query(self, primary: str, query: Query, left_ms: float) -> QueryResult:
        self._counters["forwarded_total"] += 1
        answer = await self.caller.call(primary, QueryCall(query, max(1, int(left_ms))), left_ms)
        if not isinstance(answer, QueryReturn):
            raise NoAnswerError(f"{primary} gave a strange answer")
        return answer.result

    async def _read_here(self, engine: Engine, query: Query, deadline_ms: float) -> QueryResult:
        """Read on a backup, once it holds what the primary had committed when this began."""
        if (
            query.consistency == "stale"
            and query.max_staleness_ms is not None
            and self._leased_reads.age_ms(clock_ms()) <= query.max_staleness_ms
        ):
            return engine.read(query)
        left_ms = max(1.0, min(CATCH_UP_TIMEOUT_MS, deadline_ms - clock_ms()))
        try:
            async with asyncio.timeout(left_ms / 1000):
                asked_ms, index = await self._ask_for_index(
                    engine, confirmed=query.consistency == "confirmed"
                )
                await engine.wait_applied(index)
        except TimeoutError:
            raise NotPrimaryError(
                "timeout", f"{self.node_id} did not catch up with the primary in time"
            ) from None
        self._leased_reads.applied(asked_ms)
        if engine.is_scan(query):
            await self._turns.take()  # many may have waited for the same index
        await self._turns.wait_while_spent()
        before_bytes = engine.read_bytes
        result = engine.read(query)
        self._turns.spend(engine.read_bytes - before_bytes)
        return result

    async def _ask_for_index(self, engine: Engine, *, confirmed: bool) -> tuple[float, int]:
        """Return the primary's commit index, and when it was asked for
        (`datapath.node.read_index`).
        """
        future: asyncio.Future[tuple[float, int]] = asyncio.get_running_loop().create_future()
        reads = self._confirmed_reads if confirmed else self._leased_reads
        reads.join(future)
        if not reads.has_task:
            reads.has_task = True
            self._spawn(self._ask_while_reads_wait(engine, reads))
        return await future

    async def _ask_while_reads_wait(self, engine: Engine, reads: _Questions) -> None:
        """Put one question after the other to the primary, as long as reads wait for one."""
        question = ReadIndexCall(confirmed=reads is self._confirmed_reads)
        try:
            while reads.ask(clock_ms()):
                self._counters["read_index_calls_total"] += 1
                index = 0
                problem: Exception | None = None
                try:
                    call = self.caller.call(self.primary, question, READ_INDEX_TIMEOUT_MS)
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
        finally:
            reads.has_task = False
            for future in reads.leave():
                future.cancel()

    async def handover(self, to: str, timeout_ms: int) -> View:
        """Make `to` (a member of the in-sync set) the primary; no waiting request fails."""
        primary = self.primary
        if to == primary and primary:
            raise RejectedError("handover_failed", f"{to} is the primary already")
        if self._view is not None and self._view.member(to) is None:
            known = ", ".join(member.id for member in self._view.members)
            raise RejectedError("unknown_node", f"there is no node {to!r}; there are: {known}")
        if primary == self.node_id and self._engine is not None:
            view = await self._hand_over(self._engine, to, timeout_ms)
        else:
            view = await self._ask_for_view(primary, HandoverCall(to, timeout_ms), timeout_ms)
        if view.primary != to:
            raise NotAppliedError("handover_failed", f"{view.primary} has become the primary")
        return view

    async def _hand_over(self, engine: Engine, to: str, timeout_ms: int) -> View:
        if self.has_no_vote(to):
            # As the primary it could change nothing, and nobody could take over from it.
            raise NotAppliedError(
                "handover_failed", f"{to} has no vote in consensus yet: see `onecopy status`"
            )
        return await engine.hand_over(to, timeout_ms)

    # -- members

    async def remove_member(
        self, node: str, timeout_ms: int, *, force: bool = False, asked_by: str = ""
    ) -> View:
        """Take a node out of the cluster for good, as the primary judges (rule M1).

        Without a primary nobody knows who holds what: then only force removes.
        """
        primary = self.primary
        if self._view is None or self._is_removed:
            raise self._no_primary("")
        if primary == self.node_id and self._engine is not None:
            return await self._remove(node, timeout_ms, force=force, asked_by=asked_by)
        try:
            call = RemoveCall(node, timeout_ms, force, asked_by)
            return await self._ask_for_view(primary, call, timeout_ms)
        except NotPrimaryError as problem:
            if not force:
                raise NotPrimaryError("no_primary", _unjudged(node, problem)) from problem
        return await self._remove(node, timeout_ms, force=True, asked_by=asked_by)

    async def _remove(self, node: str, timeout_ms: int, *, force: bool, asked_by: str) -> View:
        """Judge a removal by what can be seen now, propose it, and judge anew if the view moves."""
        deadline_ms = clock_ms() + timeout_ms
        proposed = False
        who = asked_by or "another node"
        while (left_ms := deadline_ms - clock_ms()) > 0 and not self._stopping:
            view = self._view
            if view is None:
                break
            if view.member(node) is None:
                return _removed_already(view, node)
            found = await self._against_removal(view, node)
            if self._view is not view:
                continue  # what was seen was seen under another view
            binding = [item for item in found if not (force and item.forcible)]
            if binding:
                log.warning("removal of %s, asked by %s: refused (%s)", node, who, binding[0].code)
                raise RejectedError(binding[0].code, describe(found, node))
            proposed = True
            outcome = await self._agreement.propose(
                RemoveMember(node), view.version, int(min(left_ms, REMOVAL_TIMEOUT_MS))
            )
            if (settled := self._settle(outcome, view)) is not None:
                forced = " by force" if found else ""
                log.warning("%s was removed from the cluster%s, asked by %s", node, forced, who)
                return settled
        if not proposed:
            raise self._no_primary("")
        raise _undecided()

    async def _against_removal(self, view: View, node: str) -> list[Refusal]:
        engine = self._engine
        if engine is None or not self.is_primary:
            reason = _unjudged(node, self._no_primary(""))
            loss = "whatever only that node holds, and the majority, if it is needed for it"
            found = [Refusal(code="no_primary", reason=reason, loss=loss)]
            if node == view.primary:
                reason = (
                    f"{node} is the primary, and no other node can take its place now: bring back "
                    f"a majority of the nodes and a replica in sync ({', '.join(view.in_sync)})"
                )
                found = [Refusal(code="is_primary", reason=reason, forcible=False)]
            return found
        live = await self._live(view)
        voters = self._agreement.voters
        facts = Facts(
            live=live,
            voters=frozenset(member.id for member in view.members) if voters is None else voters,
            min_in_sync=self._min_in_sync,
            suspect=engine.replica.core.suspect or engine.replica.core.damaged,
        )
        return refusals(view, facts, node)

    async def _live(self, view: View) -> frozenset[str]:
        """Return who has just answered, and is linked in consensus: the others count as dead."""
        others = [member.id for member in view.members if member.id != self.node_id]
        answered = await asyncio.gather(*map(self._answers, others))
        live = {node for node, alive in zip(others, answered, strict=True) if alive}
        return frozenset(live & self._agreement.heard) | {self.node_id}

    async def _answers(self, node: str) -> bool:
        try:
            answer = await self.caller.call(node, PingCall(), PING_TIMEOUT_MS)
        except (NotSentError, NoAnswerError, OperationError):
            return False
        return isinstance(answer, PingReturn)

    def has_no_vote(self, node: str) -> bool:
        """Whether consensus is known not to count that node's vote (yet, or any more)."""
        voters = self._agreement.voters
        return voters is not None and node not in voters

    async def move_member(
        self, node: str, addresses: Addresses, timeout_ms: int, *, asked_by: str = ""
    ) -> View:
        """Have the cluster agree on other addresses for a member; "" leaves one as it is."""

        def change(view: View) -> Change | None:
            known = view.member(node)
            if known is None:
                names = ", ".join(member.id for member in view.members)
                raise RejectedError(
                    "unknown_node", f"there is no node {node!r}; there are: {names}"
                )
            moved = msgspec.structs.replace(
                known,
                client=addresses.client or known.client,
                peer=addresses.peer or known.peer,
                raft=addresses.raft or known.raft,
            )
            if moved == known:
                return None
            if (refusal := may_take_addresses(view, moved)) is not None:
                raise RejectedError("refused", refusal.reason)
            return AddMember(moved)

        log.info("a move of %s to %s is asked for by %s", node, addresses, asked_by or "a node")
        return await self._change_members(change, timeout_ms)

    async def add_member(self, member: Member, timeout_ms: int, *, anew: bool = True) -> View:
        """Make a node a member, or register the disk of one that is.

        Without `anew` a node that is no member (any more) does not become one. Raises
        RejectedError if it was removed before: by the view that the change is made for, which may
        be newer than the one that this node knew when it was asked.
        """

        def change(view: View) -> Change | None:
            known = view.member(member.id)
            if known == member or (known is None and not anew):
                return None
            _check_join(view, member)
            return AddMember(member)

        return await self._change_members(change, timeout_ms)

    async def _change_members(
        self, make_change: Callable[[View], Change | None], timeout_ms: int
    ) -> View:
        """Propose until it is committed or refused for another reason than the view's version."""
        deadline_ms = clock_ms() + timeout_ms
        while (left_ms := deadline_ms - clock_ms()) > 0:
            view = self._view
            if view is None:
                await self._wait_for_change(deadline_ms)
                continue
            change = make_change(view)
            if change is None:
                return view
            outcome = await self._agreement.propose(change, view.version, int(left_ms))
            if (settled := self._settle(outcome, view)) is not None:
                return settled
        raise _undecided()

    def _settle(self, outcome: Outcome, proposed_at: View) -> View | None:
        """Return the view that a proposal made; None: propose anew, at the newest view.

        Raises RejectedError if it was refused for another reason than the view's version.
        """
        if isinstance(outcome, Committed):
            self.share_view(outcome.view)
            return outcome.view
        if isinstance(outcome, Refused) and outcome.view is not None:
            self.on_view(outcome.view)
            if outcome.view.version == proposed_at.version:
                raise RejectedError("refused", outcome.reason)
        return None

    async def _ask_for_view(self, primary: str, call: Call, timeout_ms: int) -> View:
        if not primary:
            raise self._no_primary("")
        try:
            answer = await self.caller.call(primary, call, timeout_ms + CALL_MARGIN_MS)
        except NotSentError as problem:
            raise self._no_primary(str(problem)) from problem
        except NoAnswerError as problem:
            raise UnknownOutcomeError("unknown_outcome", str(problem)) from problem
        if not isinstance(answer, ViewReturn):
            raise UnknownOutcomeError("unknown_outcome", f"{primary} gave a strange answer")
        self.on_view(answer.view)
        return answer.view

    async def cluster_status(self) -> ClusterStatus:
        """Return the cluster as the primary sees it; without one, as this node does."""
        if not self.is_primary and self.primary and self.primary != self.node_id:
            try:
                answer = await self.caller.call(self.primary, StatusCall(), STATUS_TIMEOUT_MS)
                if isinstance(answer, StatusReturn):
                    warnings = dict.fromkeys((*answer.status.warnings, *self._warnings()))
                    return msgspec.structs.replace(answer.status, warnings=tuple(warnings))
            except (OperationError, NotSentError, NoAnswerError):
                pass  # the primary cannot be asked: tell what is known here
        return self._own_status()

    def _warnings(self) -> tuple[str, ...]:
        noticed = self._registry.warnings() if self._registry is not None else ()
        if self._view is None and self.waits_for:
            noticed = (f"{self.node_id}: {self.waits_for}", *noticed)
        return (*noticed, *(self._engine.warnings() if self._engine is not None else ()))

    def _own_status(self) -> ClusterStatus:
        status = self._status_without_votes()
        voters = self._agreement.voters
        if voters is None:
            return status
        nodes = {
            node: msgspec.structs.replace(state, votes=node in voters)
            for node, state in status.nodes.items()
        }
        return msgspec.structs.replace(status, nodes=nodes)

    def _status_without_votes(self) -> ClusterStatus:
        if self._engine is not None:
            status = self._engine.status(self._cluster, self.caller.reaches)
            return msgspec.structs.replace(status, warnings=self._warnings())
        view = self._view
        nodes = {}
        for member in view.members if view else ():
            is_here = member.id == self.node_id
            nodes[member.id] = other_state(
                member, reachable=is_here or self.caller.reaches(member.id)
            )
        return ClusterStatus(
            cluster=self._cluster,
            cluster_id=view.cluster_id if view else "",
            epoch=self.epoch,
            version=view.version if view else 0,
            primary=self.primary,
            in_sync=view.in_sync if view else (),
            nodes=nodes,
            warnings=self._warnings(),
        )

    async def digest(self) -> Digest:
        """Scan this node's own store. Raises RejectedError("no_data") on a witness."""
        if self._engine is None:
            raise RejectedError("no_data", f"{self.node_id} is a witness: it holds no data")
        return await self._engine.digest()

    def counters(self) -> Mapping[str, float]:
        """Numbers for metrics."""
        voters = self._agreement.voters or frozenset()
        own = {
            **self._counters,
            "peer_links": len(self.caller.peers),
            "ready": float(self.is_ready),
            "has_vote": float(self.node_id in voters),
            "hears_majority": float(self.hears_majority),
        }
        return {**own, **self._engine.counters()} if self._engine else own

    # -- what other nodes ask; the LinkHandler of incoming links of the kind "request"

    def on_open(self, link: Link) -> None:
        """A node may ask from now on. Both ends tell each other the view.

        A node that has moved learns it so: the others do not know yet where to dial.
        """
        if link.outgoing:
            self.caller.on_open(link)
        if self._view is not None and self._view.member(link.peer) is not None:
            link.send(encode(0, ViewNote(self._view)))

    def on_close(self, link: Link, reason: str) -> None:
        """A node asks no more. What it has asked goes on: its answer has nowhere to go."""
        if link.outgoing:
            self.caller.on_close(link, reason)

    def on_frames(self, link: Link, frames: list[bytes]) -> None:
        """Calls from another node, or answers to ours."""
        if link.outgoing:
            self.caller.on_frames(link, frames)
            return
        for frame in frames:
            envelope = decode(frame)
            body = envelope.body
            match body:
                case ReadIndexCall(confirmed) if not self._must_confirm(confirmed=confirmed):
                    self._answer_read_index(link, envelope.id)
                case ViewNote() | NoticeNote():
                    self._take_note(body)
                case PingCall():
                    link.send(encode(envelope.id, PingReturn()))
                case ExecuteCall():
                    self._execute_for(link, envelope.id, body)
                case StatusCall():
                    link.send(encode(envelope.id, StatusReturn(self._own_status())))
                case _:
                    self._spawn(self._serve(link, envelope.id, body))

    def _take_note(self, note: Call | Return) -> None:
        """Take what needs no answer, from either end of a link."""
        match note:
            case ViewNote(view):
                self.on_view(view)
            case NoticeNote(text) if self._registry is not None:
                self._registry.notice(text[:MAX_NOTICE_LENGTH])
            case _:
                pass

    def _execute_for(self, link: Link, number: int, call: ExecuteCall) -> None:
        """Execute for another node, without a task of its own."""

        def answer(future: asyncio.Future[Result]) -> None:
            if future.cancelled():
                return
            problem = future.exception()
            if problem is None:
                link.send(encode(number, ExecuteReturn(future.result())))
            elif isinstance(problem, OperationError):
                link.send(encode(number, error_return(problem)))
            else:
                raise problem

        try:
            if self._engine is None:
                raise NotPrimaryError("no_primary", f"{self.node_id} is a witness")
            self._engine.submit(call.operation, call.timeout_ms).add_done_callback(answer)
        except OperationError as error:
            link.send(encode(number, error_return(error)))

    def _answer_read_index(self, link: Link, number: int) -> None:
        answer: Return
        try:
            if self._engine is None:
                raise NotPrimaryError("no_primary", f"{self.node_id} is a witness")
            answer = ReadIndexReturn(*self._engine.read_index())
        except OperationError as error:
            answer = error_return(error)
        link.send(encode(number, answer))

    def _must_confirm(self, *, confirmed: bool) -> bool:
        engine = self._engine
        return engine is not None and (confirmed or engine.confirms_reads)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (problem := task.exception()) is not None:
            log.error("answering another node failed", exc_info=problem)

    async def _serve(self, link: Link, number: int, body: Call | Return) -> None:
        answer: Return
        try:
            answer = await self._carry_out(body)
        except OperationError as error:
            answer = error_return(error)
        except Exception as problem:
            log.exception("a call from %s failed", link.peer)
            answer = ErrorReturn("unknown", "internal_error", f"{self.node_id}: {problem!r}")
        link.send(encode(number, answer))

    async def _carry_out(self, body: Call | Return) -> Return:
        engine = self._engine
        match body:
            case ReadIndexCall() if engine is not None:
                point = await self._confirm(engine, READ_INDEX_TIMEOUT_MS)
                return ReadIndexReturn(point.epoch, point.index)
            case QueryCall(query, timeout_ms):
                result = None
                if engine is not None:
                    is_scan = engine.is_scan(query)
                    result = await self._read_as_primary(engine, query, timeout_ms, is_scan=is_scan)
                if result is None:
                    raise NotPrimaryError("no_primary", f"{self.node_id} does not serve")
                return QueryReturn(result)
            case HandoverCall(to, timeout_ms):
                if engine is None:
                    raise NotPrimaryError("no_primary", f"{self.node_id} is a witness")
                return ViewReturn(await self._hand_over(engine, to, timeout_ms))
            case JoinCall(member, timeout_ms):
                return await self._let_join(member, timeout_ms)
            case RemoveCall(node, timeout_ms, force, asked_by):
                view = await self._remove(node, timeout_ms, force=force, asked_by=asked_by)
                return ViewReturn(view)
            case HelloCall(node, data_id, joined):
                return await self._hello(node, data_id, joined=joined)
            case _:
                raise NotAppliedError("unknown_call", f"{type(body).__name__} is not a call")

    async def _let_join(self, member: Member, timeout_ms: int) -> JoinReturn:
        if self._view is not None:
            _check_join(self._view, member)
        if not self._pin(member.id, member.data_id):
            raise RejectedError("lost_disk", _lost_disk(member.id))
        view = await self.add_member(member, timeout_ms)
        log.info("%s is a member of the cluster, by its own request", member.id)
        return JoinReturn(view, self._agreement.founders)

    async def _hello(self, node: str, data_id: str, *, joined: bool) -> HelloReturn:
        """May `node`, with that data directory, take part?"""
        answer = await self._judge_hello(node, data_id, joined=joined)
        return msgspec.structs.replace(answer, cluster_id=self.cluster_id)

    async def _judge_hello(self, node: str, data_id: str, *, joined: bool) -> HelloReturn:
        view = self._view
        member = view.member(node) if view else None
        if member is not None and member.data_id not in ("", data_id):
            return HelloReturn(_lost_disk(node), view)
        if view is not None and member is None:
            if joined:
                return HelloReturn("", view, removed=await self._is_out(node))
            if node in view.removed:
                return HelloReturn(
                    f"node {node} was removed from this cluster, and an id is used only once: "
                    f"give the node a new id in the configuration file (rename [nodes.{node}]), "
                    "and start it under that id with an empty data directory",
                    view,
                )
        if not self._pin(node, data_id):
            return HelloReturn(_lost_disk(node), view)
        return HelloReturn("", view)

    async def _is_out(self, node: str) -> bool:
        """Whether consensus says now that `node` is no member, and its vote is gone too.

        What this node knows may be from before that node came in: so consensus is asked.
        """
        try:
            view = await self._agreement.read_view(CONFIRM_TIMEOUT_MS)
        except AgreementUnavailableError:
            return False
        return view is not None and view.member(node) is None and self.has_no_vote(node)


class _Questions(ReadIndex[asyncio.Future[tuple[float, int]]]):
    """One kind of questions; `has_task`: a task puts them to the primary."""

    def __init__(self) -> None:
        super().__init__()
        self.has_task = False


def _read_index_of(engine: Engine, answer: Return) -> int:
    if not isinstance(answer, ReadIndexReturn):
        raise NoAnswerError("the primary gave a strange answer")
    engine.learn_commit(answer.epoch, answer.index)
    return answer.index


def _post(loop: asyncio.AbstractEventLoop, callback: Callable[[str], None], text: str) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to tell
        loop.call_soon_threadsafe(callback, text)


def _check_join(view: View, member: Member) -> None:
    if (refusal := may_join(view, member)) is not None:
        raise RejectedError(refusal.code, refusal.reason)


def _removed_already(view: View, node: str) -> View:
    """Return the view if that node was removed, by an earlier request: to repeat one is harmless.

    Raises RejectedError if there never was one, as far as is remembered.
    """
    if node in view.removed:
        return view
    known = ", ".join(member.id for member in view.members)
    raise RejectedError("unknown_node", f"there is no node {node!r}; there are: {known}")


def _undecided() -> UnknownOutcomeError:
    return UnknownOutcomeError(
        "timeout",
        "consensus did not answer in time, and may yet agree: see `onecopy status` first",
    )


def _unjudged(node: str, problem: OperationError) -> str:
    return (
        f"without a primary nobody can tell what {node} alone may hold, so it is not removed "
        f"({problem}). Get a primary back first"
    )


def _lost_disk(node: str) -> str:
    return (
        f"node {node} is known with another data directory. If its disk was lost, what it had "
        f"promised is lost too, so it must not come back under the same id: run `onecopy remove "
        f"{node}`, give the node a new id in the configuration file (rename [nodes.{node}]), and "
        "start it under that id. If the directory still exists, start the node with it"
    )
