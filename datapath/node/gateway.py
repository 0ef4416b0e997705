"""The gateway: any node takes any request. It finds the primary, forwards, waits, and retries
what is known not to have been carried out, and nothing else.

Reads, changes of the members, and what other nodes ask have modules of their own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial

import msgspec

from datapath.clock import clock_ms
from datapath.errors import (
    DataPathError,
    OperationError,
    OperationNotAppliedError,
    RejectedError,
)
from datapath.execution.access_guard import AccessGuard
from datapath.node.committed_log import CommittedLog
from datapath.node.context import CALL_MARGIN_MS, ArchiveProgress, Context
from datapath.node.engine import Engine
from datapath.node.history import History
from datapath.node.members import MemberAdmin
from datapath.node.peer_service import PeerService
from datapath.node.reads import Reads
from datapath.node.remote_changes import RemoteChanges
from datapath.node.router import Attempts, AttemptStep
from datapath.node.status import other_state
from datapath.operations import (
    BackupSource,
    ClusterStatus,
    Completion,
    Consistency,
    Digest,
    Operation,
    Principal,
    Query,
    QueryResult,
    Result,
)
from datapath.transport.caller import Caller
from datapath.transport.calls import (
    ArchivedNote,
    ExecuteCall,
    ExecuteReturn,
    HandoverCall,
    NoAnswerError,
    NotSentError,
    StatusCall,
    StatusReturn,
)
from election.agreement import Agreement
from election.identity import Addresses
from election.registry import PeerRegistry
from election.release import Release
from election.view import Member, View, ViewStep

logger = logging.getLogger(__name__)

STATUS_TIMEOUT_MS = 500


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
        access: AccessGuard | None = None,
    ) -> None:
        self.node_id = node_id
        self._cluster = cluster
        self._context = Context(node_id, agreement, cluster_id)
        self._context.access = access
        self.views = self._context.views
        self._engine: Engine | None = None
        self.reads = Reads(self._context)
        self.read_now, self.query = self.reads.read_now, self.reads.query
        self.submit_query = self.reads.submit_query
        self._remote_changes = RemoteChanges(self._context)
        self.members = MemberAdmin(self._context, pin, min_in_sync)
        self.peer_service = PeerService(
            self._context,
            self.reads,
            self.members,
            status=self._own_status,
            hand_over=self._hand_over,
        )

    def attach(self, engine: Engine) -> None:
        """Give it the replica that runs on this node."""
        self._engine = self._context.engine = engine

    def share_notices(self, registry: PeerRegistry) -> None:
        """Show what `registry` warns of in the status, and tell it to the other nodes."""
        self._context.share_notices(registry)

    def use_agreement(self, agreement: Agreement) -> None:
        """Go over to another consensus member, before it is started: this node has just joined."""
        self._context.agreement = agreement

    def start(self) -> None:
        """From here on who waits for a view is woken by one, after all who listened before."""
        access, engine = self._context.access, self._engine
        if access is not None and engine is not None:
            engine.interpreter.tell_guard()
        if self._engine is not None:
            self.views.listen(self._engine.on_view)
        self.views.listen(lambda _: self.note_change())

    async def stop(self) -> None:
        """Stop answering other nodes."""
        self._context.stopping = True
        self.note_change()
        self.reads.stop()
        await self._remote_changes.stop()
        await self.peer_service.stop()

    # -- the links of the kind "request"

    @property
    def caller(self) -> Caller:
        """The asking side of the links to other nodes."""
        return self._context.caller

    # -- views

    @property
    def view(self) -> View | None:
        """The newest committed view that this node has heard of."""
        return self.views.newest

    def on_view(self, view: View) -> None:
        """Take a committed view, from consensus or from a peer that has it from there."""
        self._context.take_view(view)

    def share_view(self, view: View) -> None:
        """Take a view that this node has just got committed, and tell every peer."""
        self._context.share_view(view)

    def listen(self, listener: Callable[[View], None]) -> None:
        """Call `listener` with each newer view."""
        self.views.listen(listener)

    def note_change(self) -> None:
        """A view, a role or a link has changed: who waits may try again."""
        self._context.note_change()

    @property
    def waits_for(self) -> str:
        """Why this node knows no view yet, for who asks it; or ""."""
        return self._context.waits_for

    @waits_for.setter
    def waits_for(self, reason: str) -> None:
        self._context.waits_for = reason

    @property
    def is_alone(self) -> bool:
        """Whether this node took part before, and nobody who knows a view answers it."""
        return self._context.is_alone

    @is_alone.setter
    def is_alone(self, is_alone: bool) -> None:
        self._context.is_alone = is_alone

    # -- the Node face

    @property
    def commit_index(self) -> int:
        """The highest revision that this node knows to have committed (0: none)."""
        return self._engine.replica.state.commit_index if self._engine else 0

    @property
    def history(self) -> History | None:
        """What has changed on this node's replica, for watchers; None on a witness."""
        return self._engine.history if self._engine else None

    @property
    def committed_log(self) -> CommittedLog | None:
        """The committed log of this node's replica, for an archive; None on a witness."""
        return self._engine.committed_log if self._engine else None

    def tell_archive(self, archive: ArchiveProgress) -> None:
        """Have status and metrics say how far the archive is."""
        self._context.archive = archive

    def share_archived(self, index: int) -> None:
        """The archive holds the log up to there: no replica needs to hold it for that any more."""
        if self._engine is not None:
            self._engine.committed_log.archived(index)
        for peer in self.caller.peers:
            self.caller.note(peer, ArchivedNote(index))

    @property
    def epoch(self) -> int:
        """The newest epoch that this node knows of (0: none)."""
        known = self._engine.replica.state.epoch if self._engine else 0
        newest = self.views.newest
        return max(known, newest.epoch if newest else 0)

    @property
    def primary(self) -> str:
        """The primary of the newest view this node knows, or ""."""
        return self.views.primary

    @property
    def is_primary(self) -> bool:
        """Whether this node is the primary and serves under its leases right now."""
        return self._context.is_primary

    @property
    def belongs(self) -> bool:
        """Whether this node is known to be a member (`datapath.node.views`)."""
        return self.views.belongs

    @property
    def hears_majority(self) -> bool:
        """Whether consensus has links with a majority of those who vote, this node included."""
        agreement = self._context.agreement
        voters = agreement.voters or frozenset()
        return 2 * len(voters & agreement.heard) > len(voters)

    def has_no_vote(self, node: str) -> bool:
        """Whether consensus is known not to count that node's vote (yet, or any more)."""
        return self._context.has_no_vote(node)

    @property
    def is_ready(self) -> bool:
        """Whether this node could answer a linearizable read now (itself or by the primary)."""
        if not self.views.belongs:
            return False
        if self.primary == self.node_id:
            return self.is_primary
        return bool(self.primary) and self.caller.reaches(self.primary)

    def submit(self, operation: Operation, timeout_ms: int, completion: Completion) -> bool:
        """Execute here, if this node is the primary; False: nothing was done."""
        engine = self._engine
        if engine is None or self.views.primary != self.node_id or self._context.stopping:
            return False
        try:
            engine.interpreter.pipeline.submit(operation, timeout_ms, completion)
        except OperationError:
            return False
        return True

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
            stopping = self._context.stopping or self.views.is_removed
            match attempts.next(now_ms, primary=primary, is_here=is_here, stopping=stopping):
                case "answer":
                    return self._answer(operation, attempts)
                case "wait":
                    await self._context.wait_for_change(attempts.deadline_ms)
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
            self._context.no_primary(attempts.last),
            lambda: None if engine is None else engine.interpreter.tail.recall(operation),
        )
        if isinstance(outcome, OperationError):
            raise outcome
        return outcome

    async def _attempt(
        self, step: AttemptStep, primary: str, operation: Operation, left_ms: float
    ) -> Result:
        if step == "here" and self._engine is not None:
            return await self._engine.submit(operation, left_ms)
        return await self._forward(primary, operation, left_ms)

    async def _forward(self, primary: str, operation: Operation, left_ms: float) -> Result:
        self._context.forwarded_total += 1
        call = ExecuteCall(operation, max(1, int(left_ms)))
        answer = await self.caller.call(primary, call, left_ms + CALL_MARGIN_MS)
        if not isinstance(answer, ExecuteReturn):
            raise NoAnswerError(f"{primary} gave an invalid answer")
        return answer.result

    def read_here(self, query: Query) -> QueryResult:
        """Read what is applied here, however old it is. Raises NotPrimaryError on a witness."""
        return self._context.replica_here().interpreter.read(query)

    def observe(
        self, keyspace: int, key: bytes, observer: Callable[[], None]
    ) -> Callable[[], None]:
        """Call `observer` after each committed write of a key, until what is returned is called."""
        if self._engine is None:
            return self._remote_changes.observe(keyspace, key, observer)
        feed = self._engine.interpreter.feed
        return partial(feed.leave, feed.observe(keyspace, key, observer))

    def is_configured_admin(self, caller: Principal) -> bool:
        """Whether this node's file makes a caller an administrator, with nobody to ask (A1)."""
        return self._context.is_configured_admin(caller)

    async def handover(self, to: str, timeout_ms: int, *, caller: Principal | None = None) -> View:
        """Make `to` (a member of the in-sync set) the primary; no waiting request fails."""
        primary, view = self.primary, self.views.newest
        if to == primary and primary:
            raise RejectedError("handover_failed", f"{to} is already the primary")
        if view is not None and view.member(to) is None:
            known = ", ".join(member.id for member in view.members)
            raise RejectedError("unknown_node", f"no node {to!r}; the nodes: {known}")
        if primary == self.node_id and self._engine is not None:
            self._context.check_admin(caller)
            view = await self._hand_over(to, timeout_ms)
        else:
            view = await self._context.ask_for_view(
                primary, HandoverCall(to, timeout_ms, caller), timeout_ms
            )
        if view.primary != to:
            raise OperationNotAppliedError(
                "handover_failed", f"{view.primary} has become the primary"
            )
        return view

    async def _hand_over(self, to: str, timeout_ms: int) -> View:
        """Hand over from here, for whoever asks."""
        engine = self._context.replica_here()
        if self.has_no_vote(to):
            # As the primary it could change nothing, and nobody could take over from it.
            raise OperationNotAppliedError(
                "handover_failed", f"{to} has no vote in consensus yet: see `onecopy status`"
            )
        return await engine.hand_over(to, timeout_ms)

    async def remove_member(
        self,
        node: str,
        timeout_ms: int,
        *,
        force: bool = False,
        asked_by: str = "",
        caller: Principal | None = None,
    ) -> View:
        """Take a node out of the cluster for good, as the primary judges (rules M1, A1)."""
        return await self.members.remove(
            node, timeout_ms, force=force, asked_by=asked_by, caller=caller
        )

    async def move_member(
        self, node: str, addresses: Addresses, timeout_ms: int, *, asked_by: str = ""
    ) -> View:
        """Have the cluster agree on other addresses for a member; "" leaves one as it is."""
        return await self.members.move(node, addresses, timeout_ms, asked_by=asked_by)

    async def finish_upgrade(
        self, timeout_ms: int, *, asked_by: str = "", caller: Principal | None = None
    ) -> View:
        """Raise the cluster's level, as the primary judges (rules U2, A1)."""
        return await self.members.finish_upgrade(timeout_ms, asked_by=asked_by, caller=caller)

    async def add_member(self, member: Member, timeout_ms: int, *, anew: bool = True) -> View:
        """Make a node a member, or register the disk of one that is (`MemberAdmin.add`)."""
        return await self.members.add(member, timeout_ms, anew=anew)

    # -- status

    async def cluster_status(self) -> ClusterStatus:
        """Return the cluster as the primary sees it; without one, as this node does."""
        if not self.is_primary and self.primary and self.primary != self.node_id:
            try:
                answer = await self.caller.call(self.primary, StatusCall(), STATUS_TIMEOUT_MS)
                if isinstance(answer, StatusReturn):
                    warnings = dict.fromkeys((*answer.status.warnings, *self._warnings()))
                    status = self._with_releases(answer.status)
                    return msgspec.structs.replace(status, warnings=tuple(warnings))
            except (OperationError, NotSentError, NoAnswerError):
                pass  # the primary cannot be asked: tell what is known here
        return self._own_status()

    def view_steps(self) -> tuple[ViewStep, ...]:
        """Return the last changes of the view, as consensus on this node remembers them."""
        return self._context.agreement.steps

    def _warnings(self) -> tuple[str, ...]:
        context = self._context
        noticed = context.registry.warnings() if context.registry is not None else ()
        if self.views.newest is None and context.waits_for:
            noticed = (f"{self.node_id}: {context.waits_for}", *noticed)
        return (
            *noticed,
            *(self._engine.interpreter.warnings() if self._engine is not None else ()),
        )

    def _own_status(self) -> ClusterStatus:
        status = self._with_releases(self._status_without_votes())
        voters = self._context.agreement.voters
        if voters is None:
            return status
        nodes = {
            node: msgspec.structs.replace(state, votes=node in voters)
            for node, state in status.nodes.items()
        }
        return msgspec.structs.replace(status, nodes=nodes)

    def _with_releases(self, status: ClusterStatus) -> ClusterStatus:
        """Add what this node knows of what the nodes run: an older primary tells nothing."""
        releases, view = self._context.releases(), self.views.newest
        nodes = {
            node: msgspec.structs.replace(
                state, version=state.version or releases.get(node, Release()).version
            )
            for node, state in status.nodes.items()
        }
        level = status.level or (view.level if view else 0)
        return msgspec.structs.replace(status, nodes=nodes, level=level)

    def _status_without_votes(self) -> ClusterStatus:
        if self._engine is not None:
            status = self._engine.status(self._cluster, self.caller.reaches)
            archive = self._context.archive.state() if self._context.archive else None
            return msgspec.structs.replace(status, warnings=self._warnings(), archive=archive)
        view = self.views.newest
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

    async def backup(self, consistency: Consistency, timeout_ms: int) -> BackupSource:
        """Begin a backup of this node's own store, as `Node.backup` says."""
        if self._engine is None:
            raise RejectedError("no_data", f"{self.node_id} is a witness: it holds no data")
        await self.reads.catch_up(consistency, timeout_ms)
        return await self._engine.backups.open(self._cluster, self.views.cluster_id)

    async def digest(self) -> Digest:
        """Scan this node's own store. Raises RejectedError("no_data") on a witness."""
        if self._engine is None:
            raise RejectedError("no_data", f"{self.node_id} is a witness: it holds no data")
        return await self._engine.digest()

    def counters(self) -> Mapping[str, float]:
        """Numbers for metrics."""
        voters = self._context.agreement.voters or frozenset()
        own = {
            "forwarded_total": float(self._context.forwarded_total),
            "read_index_calls_total": float(self.reads.index_calls_total),
            "peer_links": len(self.caller.peers),
            "ready": float(self.is_ready),
            "has_vote": float(self.node_id in voters),
            "hears_majority": float(self.hears_majority),
            "voters": len(voters),
            "voters_heard": len(voters & self._context.agreement.heard),
            "level": float(self.views.newest.level if self.views.newest else 0),
        }
        archive = self._context.archive.counters() if self._context.archive else {}
        return {**own, **self._engine.counters(), **archive} if self._engine else own
