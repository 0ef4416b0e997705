"""The engine: one running replica. It carries out the replica's effects under asyncio.

Everything here runs on one event loop; only fsync, store flushes and long reads leave it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from datapath.clock import clock_ms
from datapath.errors import (
    DataDirectoryError,
    DataPathError,
    DiskFullError,
    NotAppliedError,
    NotPrimaryError,
    OperationError,
    RejectedError,
    StorageError,
    StorageFullError,
    UnknownOutcomeError,
    ends_node,
)
from datapath.execution.executor import Executor, ReadView
from datapath.execution.pipeline import Pipeline, async_operations
from datapath.execution.tail import Tail
from datapath.node.catch_up import Snapshots
from datapath.node.replica_disk import Storage
from datapath.node.shared_scan import SharedScan
from datapath.node.status import cluster_status
from datapath.node.streams import IncomingStreams, OutgoingStreams
from datapath.operations import ClusterStatus, Digest, Operation, Query, QueryResult, Result, Sink
from datapath.protocol import effects as fx
from datapath.protocol import messages
from datapath.protocol.confirmations import Confirmation, Confirmations, ReadPoint
from datapath.protocol.replica import Replica
from datapath.service import Service
from datapath.settings import Bounds, Timing
from datapath.transport.mesh import REPLICATE, Mesh
from election.agreement import Agreement, AgreementUnavailableError, Committed, Unknown
from election.view import RemoveFromInSync, TakeOver, View

log = logging.getLogger(__name__)

TICK_INTERVAL_S = 0.015
HANDOVER_MARGIN_MS = 1000
SLOWED_TURN_S = 0.25
"""A turn of the pipeline waits that long while more log is held for a snapshot than its bound."""
EXCLUDING = (RemoveFromInSync, TakeOver)
"""Changes that leave replicas out of the in-sync set: from then on they cannot take over."""


class Engine:
    """One running replica. Make it on the event loop, then `start`.

    `on_change`: the role or the view has changed. `on_view`: consensus has brought this view.
    `on_fatal`: the node must stop (D9, a broken invariant), with the reason. `bind_cluster` ties
    the data to a cluster id, and raises DataDirectoryError if it belongs to another.
    """

    def __init__(
        self,
        node_id: str,
        incarnation: str,
        service: Service,
        storage: Storage,
        agreement: Agreement,
        mesh: Mesh,
        timing: Timing,
        bounds: Bounds,
        takeover_order: Mapping[str, int],
        *,
        on_change: Callable[[], None],
        on_view: Callable[[View], None],
        on_fatal: Callable[[BaseException], None],
        bind_cluster: Callable[[str], None],
    ) -> None:
        self.node_id = node_id
        self.failed = False
        self._service = service
        self._storage = storage
        self._agreement = agreement
        self._mesh = mesh
        self._timing = timing
        self._bounds = bounds
        self._on_change = on_change
        self._on_view = on_view
        self._on_fatal = on_fatal
        self._bind_cluster = bind_cluster
        self._slowed = False
        self._loop = asyncio.get_running_loop()
        recovered = storage.recover()
        self.replica = Replica(
            node_id, incarnation, recovered, timing, bounds, clock_ms(), dict(takeover_order)
        )
        self._read_view = ReadView(storage.store)
        executor = Executor(service, storage.store, bounds.client_table)
        self._tail = Tail(
            node_id,
            self.replica,
            executor,
            storage.store,
            storage.uncommitted(recovered.commit_index),
            not_primary=self._not_primary,
            call_soon=self._call_soon,
            confirm=self._confirm if bounds.confirm_reads else None,
            clock=clock_ms,
        )
        self._pipeline = Pipeline(
            node_id,
            self.replica,
            executor,
            self._tail,
            storage,
            bounds,
            async_operations=async_operations(service.operations),
            append=lambda record: self._run(self.replica.append, record),
            not_primary=self._not_primary,
            why_not_serving=self.why_not_serving,
            spawn=self._spawn,
            call_soon=self._call_soon,
            clock=clock_ms,
        )
        self._confirmations = Confirmations(self.replica, self._not_primary)
        self.snapshots = Snapshots(
            node_id,
            self.replica,
            storage,
            mesh,
            bounds.snapshot_rate_bytes_per_s,
            requests=lambda: self._pipeline.operations_total + self._queries_total,
            on_sent=lambda peer, session, done: self._run(
                self.replica.on_snapshot_sent, peer, session, done=done
            ),
            on_installed=self._on_snapshot_installed,
            on_install_failed=lambda: self._run(self.replica.on_install_failed),
            on_fatal=self.fail,
        )
        self._ready_index = 0  # the epoch is open when this has committed; 0: nothing to wait for
        self._digests = SharedScan(storage.digest)
        self.outgoing = OutgoingStreams(
            on_link=lambda peer: self._run(self.replica.on_link, peer),
            on_link_lost=lambda peer: self._run(self.replica.on_link_lost, peer),
            on_message=self._on_message,
        )
        self.incoming = IncomingStreams(
            node_id,
            is_ours=self._is_ours,
            has_room=storage.reserve,
            on_message=self._on_message,
        )
        self._applied_waiters: list[tuple[int, asyncio.Future[None]]] = []
        self._handover: asyncio.Future[View] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._tick_handle: asyncio.TimerHandle | None = None
        self._listen_to(agreement)
        self._stopped = False
        self._view_changes_total = 0
        self._committed_ms = clock_ms()  # when the commit index last rose
        self._queries_total = 0

    # -- lifetime

    def use_agreement(self, agreement: Agreement) -> None:
        """Go over to another consensus member, before it is started: this node has just joined."""
        self._agreement = agreement
        self._listen_to(agreement)

    def _listen_to(self, agreement: Agreement) -> None:
        """Hear of consensus itself; the views come by whoever shares them with other nodes."""
        agreement.on_reminder(self.on_reminder)
        agreement.subscribe(lambda _: self.replica.on_consensus_heard())

    def start(self) -> None:
        """Begin: from here on links may be opened and views given."""
        self._storage.start(
            on_durable=self._on_durable, on_flushed=self._on_flushed, on_error=self.fail
        )
        self._tick()

    def admit(self) -> None:
        """This node may take part with its data directory: streams from others are taken.

        Raises RuntimeError before `start`: what a stream asks for could not be written.
        """
        if self._tick_handle is None:
            raise RuntimeError("an engine is started before it is admitted")
        self.incoming.admitted = True

    async def stop(self) -> None:
        """Stop: who waits is told, what is written stays."""
        self._stopped = True
        self.stop_scans()
        if self._tick_handle is not None:
            self._tick_handle.cancel()
        self._confirmations.step_down()
        self._pipeline.stop(f"{self.node_id} is stopping")
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._storage.stop()

    def fail(self, problem: BaseException) -> None:
        """Stop serving at once; the process must end (D9, broken invariants)."""
        if self.failed:
            return
        self.failed = self._stopped = True
        log.critical("this node stops: %s", problem)
        self._confirmations.step_down()
        self._pipeline.stop(f"{self.node_id} has failed: {problem}")
        self._on_fatal(problem)

    def fail_if_fatal(self, problem: BaseException) -> None:
        """Something has failed beside the replica's effects: end the node if it must (D9)."""
        if ends_node(problem):
            self.fail(problem)

    def _guard(self, callback: Callable[[], None]) -> None:
        """Call it; whatever goes wrong ends the node, as in `_run`."""
        if self._stopped:
            return
        try:
            callback()
        except DataPathError as problem:
            self.fail(problem)
        except Exception as problem:
            log.exception("a turn of the event loop failed")
            self.fail(problem)

    def _call_soon(self, callback: Callable[[], None]) -> object:
        """The pipeline's next turn: at once, but for what is held for a snapshot under way."""
        if self._slowed:
            return self._loop.call_later(SLOWED_TURN_S, self._guard, callback)
        return self._loop.call_soon(self._guard, callback)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)
        return task

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (problem := task.exception()) is not None:
            self.fail(problem)

    def _tick(self) -> None:
        if self._stopped:
            return
        self._tick_handle = self._loop.call_later(TICK_INTERVAL_S, self._tick)
        self._guard(self._tick_now)

    def _tick_now(self) -> None:
        now = clock_ms()
        storage = self._storage
        self.replica.core.writable = storage.writable
        self._agreement.note_committed(*self.replica.core.committed_position)
        stalled = storage.stalled_for_ms() >= self._timing.ack_timeout_ms
        self._run(self.replica.on_tick, now, disk_stalled=stalled)
        self._pipeline.expire(now)
        self._pipeline.schedule()
        self._confirmations.expire()

    # -- effects

    def _run(self, event: Callable[..., list[fx.Effect]], *args: Any, **kwargs: Any) -> None:
        """Give the replica an event and carry out what follows.

        A broken invariant or a failed disk ends the node; so does anything else that goes wrong
        here, for what was not carried out the replica would wait for in vain.
        """
        if self._stopped:
            return
        try:
            for effect in event(*args, **kwargs):
                self._carry_out(effect)
        except DataPathError as problem:
            self.fail(problem)
        except Exception as problem:
            log.exception("an effect could not be carried out")
            self.fail(problem)

    def _carry_out(self, effect: fx.Effect) -> None:
        match effect:
            case fx.Send(peer, message):
                self.outgoing.send(peer, message)
            case fx.Reply(peer, message):
                self.incoming.send(peer, message)
            case fx.WriteRecords(ticket, records):
                self._tail.on_written(records)
                self._storage.write(ticket, records)
            case fx.Commit(index):
                self._commit(index)
            case fx.Confirmed(number):
                self._confirmations.confirmed(number)
            case fx.RecordAccepted(ticket, epoch, primary):
                self._storage.record_accepted(ticket, epoch, primary)
            case fx.TruncateLog(ticket, from_index):
                self._tail.on_truncated(from_index)
                self._storage.truncate(ticket, from_index)
            case fx.MarkDamaged(ticket):
                log.error(
                    "entries are missing here that may have been acknowledged: %s takes no part in "
                    "decisions until a primary has caught it up",
                    self.node_id,
                )
                self._storage.mark_damaged(ticket)
            case fx.ClearMarks(ticket):
                self._storage.clear_marks(ticket)
            case fx.Propose():
                self._spawn(self._propose(effect))
            case fx.ReadLog(peer, session, from_index):
                self._spawn(self._read_log(peer, session, from_index))
            case fx.SendSnapshot(peer, session):
                self._spawn(self.snapshots.send(peer, session))
            case fx.Redial(peer, reason):
                self._mesh.redial(peer, REPLICATE, reason)
            case fx.StartEpoch(epoch, ready_index):
                log.info("primary of epoch %d", epoch)
                self._ready_index = ready_index
            case fx.StepDown(epoch):
                log.warning("no longer the primary of epoch %d", epoch)
                self._ready_index = 0
                self._confirmations.step_down()
                self._pipeline.step_down()
                self._on_change()
            case fx.HandoverEnded(reason):
                self._end_handover(NotAppliedError("handover_failed", reason))

    def _commit(self, index: int) -> None:
        self._committed_ms = clock_ms()
        self._tail.commit(index)
        self._pipeline.schedule()
        self._storage.wants_flush()
        if self._ready_index and index >= self._ready_index:
            self._ready_index = 0
            self._pipeline.open_epoch()
            log.info("epoch %d is open: serving", self.replica.epoch)
            self._on_change()
        if self._applied_waiters:
            self._wake_applied()

    async def _propose(self, proposal: fx.Propose) -> None:
        """Propose, and give the replica whatever view that brought. Unknown is read back (E3)."""
        timeout_ms = self._timing.view_change_timeout_ms
        version = proposal.expected_version
        if isinstance(proposal.change, EXCLUDING):
            heard = await self._hears_consensus(timeout_ms)
            if not heard or not self.replica.may_propose(proposal, clock_ms()):
                self._run(self.replica.on_proposal_done, answered=heard)
                return
        outcome = await self._agreement.propose(proposal.change, version, timeout_ms)
        result = type(outcome).__name__
        log.info("proposed %s at version %d: %s", proposal.change, version, result)
        view: View | None = None
        answered = True
        if isinstance(outcome, Unknown):
            try:
                view = await self._agreement.read_view(timeout_ms)
            except AgreementUnavailableError as problem:
                log.warning("consensus cannot be reached: %s", problem)
                answered = False
        else:
            view = outcome.view
            self._view_changes_total += isinstance(outcome, Committed)
        if view is not None:
            self._on_view(view)
        self._run(self.replica.on_proposal_done, answered=answered)

    async def _hears_consensus(self, timeout_ms: int) -> bool:
        """Whether consensus answers; what it says is taken.

        A node that sends and does not hear would have everyone else removed, and never learn that
        it is left to serve alone (docs/decisions/0006-hear-before-you-exclude.md).
        """
        try:
            view = await self._agreement.read_view(timeout_ms)
        except AgreementUnavailableError as problem:
            log.warning("nothing proposed, for consensus cannot be heard: %s", problem)
            return False
        if view is not None:
            self._on_view(view)
        return True

    def on_view(self, view: View) -> None:
        """Take a committed view."""
        known = self.replica.view
        if known is not None and view.version <= known.version:
            return
        if not self._is_ours(view.cluster_id):
            return  # before anything of it is on the disk: its primary is accepted at once
        log.info(
            "view: epoch %d, version %d, primary %s, in sync %s",
            view.epoch,
            view.version,
            view.primary,
            ", ".join(view.in_sync),
        )
        if self._ends_alone(view):
            return
        self._run(self.replica.on_view, view)
        handover = self._handover
        if handover is not None and view.primary != self.node_id and not handover.done():
            handover.set_result(view)
            self._handover = None
        self._pipeline.schedule()
        self._on_change()

    def _ends_alone(self, view: View | None) -> bool:
        """End a replica that has lost entries and could get them from no other one in sync."""
        if view is None or view.in_sync != (self.node_id,) or not self.replica.core.damaged:
            return False
        self.fail(
            DataDirectoryError(
                f"the log of {self.node_id} has lost entries that may have been acknowledged "
                "(the node's messages say how that was noticed), and no other replica is in sync "
                "that could make up for them. It is kept as it is. Bring the newest files back, or "
                "a replica that was in sync; an older copy lacks what was acknowledged since"
            )
        )
        return True

    def on_reminder(self, epoch: int, index: int) -> None:
        """Another node remembers that this replica had (epoch, index) committed (decision 18)."""
        core = self.replica.core
        was_damaged, last_index = core.damaged, core.log.last_index
        self._run(self.replica.on_reminder, epoch, index)
        if core.damaged and not was_damaged:
            self._mesh.registry.report(
                f"{self.node_id} had entry {index} of epoch {epoch} committed, as another node "
                f"remembers, and its log ends at entry {last_index}: its data directory is an "
                "older copy, or its disk has lost entries. It takes over from nobody until a "
                "primary has caught it up: bring a replica back that was in sync with it"
            )
        self._ends_alone(self.replica.view)

    # -- the replication streams

    def _on_message(self, peer: str, message: messages.Message) -> None:
        self._run(self.replica.on_message, peer, message, clock_ms())

    def _is_ours(self, cluster_id: str) -> bool:
        try:
            self._bind_cluster(cluster_id)
        except StorageError as problem:  # of another cluster, or it could not be noted
            self.fail(problem)
            return False
        return True

    # -- the disk

    def _on_durable(self, ticket: int) -> None:
        self._run(self.replica.on_durable, ticket)
        self._tail.answer_local()

    def _on_flushed(self) -> None:
        """The store has caught up with its overlay: the log may be trimmed."""
        self.snapshots.settle()
        self._slowed = self.snapshots.slows_writes
        self._storage.trim(self._oldest_needed(), self._on_trimmed)

    def _on_trimmed(self, first_index: int) -> None:
        self._run(self.replica.on_log_trimmed, first_index)

    def _oldest_needed(self) -> int:
        """The first entry that some replica may need by log replay."""
        needed = self.replica.next_index
        if self.replica.primary is not None:
            for peer in self.replica.primary.peers.values():
                if peer.match_index:
                    needed = min(needed, peer.match_index + 1)
        return needed

    async def _read_log(self, peer: str, session: int, from_index: int) -> None:
        records = await self._storage.read_log(from_index, self._bounds.max_append_bytes)
        self._run(self.replica.on_log_read, peer, session, records)

    def _on_snapshot_installed(self, index: int, epoch: int) -> None:
        self._tail.on_snapshot()
        self._run(self.replica.on_snapshot_installed, index, epoch)
        self._wake_applied()

    # -- operations and queries

    def submit(self, operation: Operation, timeout_ms: float) -> asyncio.Future[Result]:
        """Execute here. The answer is a NotPrimaryError if this node cannot when its turn comes.

        Raises NotPrimaryError or OverloadedError if it cannot take it at all.
        """
        future: asyncio.Future[Result] = self._loop.create_future()
        self.submit_to(operation, timeout_ms, future)
        return future

    def submit_to(self, operation: Operation, timeout_ms: float, sink: Sink) -> None:
        """Execute here, and answer `sink`. As `submit` otherwise."""
        self._pipeline.submit(operation, timeout_ms, sink)

    def recall(self, operation: Operation) -> Result | OperationError | None:
        """Return the answer to a repeat of what is applied on this replica, primary or not."""
        return self._tail.recall(operation)

    def warnings(self) -> tuple[str, ...]:
        """Sentences about this replica for `status`."""
        if not self.replica.core.damaged:
            return ()
        return (
            (
                f"{self.node_id} may lack entries that were acknowledged: it takes over from "
                "nobody until a primary has caught it up. Where none serves, bring back a replica "
                "that was in sync"
            ),
        )

    def why_not_serving(self) -> str:
        """A sentence about why this node does not serve as the primary now."""
        replica, view = self.replica, self.replica.view
        if view is None:
            return f"{self.node_id} has not reached consensus yet: is a majority of nodes up?"
        if replica.primary is None:
            if view.primary == self.node_id:
                if replica.core.damaged:
                    return self.warnings()[0]
                return f"{self.node_id} is about to become the primary again"
            return f"{self.node_id} is not the primary; {view.primary} is, of epoch {view.epoch}"
        if not replica.primary.is_open:
            return f"{self.node_id} is becoming the primary: it waits for {', '.join(view.in_sync)}"
        if not replica.may_execute():
            return f"{self.node_id} is handing over"
        silent = ", ".join(sorted(replica.primary.required()))
        return (
            f"{self.node_id} is the primary, but some of {silent} are silent, and consensus has "
            "not let them go: is a majority of nodes up?"
        )

    def _not_primary(self) -> NotPrimaryError:
        view = self.replica.view
        return NotPrimaryError("no_primary", self.why_not_serving(), view.primary if view else "")

    def query(self, query: Query) -> QueryResult | None:
        """Answer from here if this node is serving, or the query may be stale; else None.

        What needs a confirmation is not answered here: `await confirm()`, then `read` it.
        """
        if query.consistency == "stale" and query.max_staleness_ms is None:
            return self.read(query)
        if self.replica.primary is None or self.needs_confirmation(query):
            return None
        result = self.read(query)
        # The lease is checked after the read and before the answer leaves (D4).
        return result if self.replica.may_serve(clock_ms()) else None

    @property
    def confirms_reads(self) -> bool:
        """Whether no linearizable read here may rest on the leases."""
        return self._bounds.confirm_reads

    def needs_confirmation(self, query: Query) -> bool:
        """Whether a read may not rest on the leases, as asked for or as configured."""
        if query.consistency == "confirmed":
            return True
        is_old = query.consistency == "stale" and query.max_staleness_ms is None
        return self._bounds.confirm_reads and not is_old

    async def confirm(self) -> ReadPoint:
        """Wait until the replicas have confirmed that this node is the primary still.

        What is applied here then holds all that was acknowledged before. Raises NotPrimaryError.
        It may take for ever: give it a deadline.
        """
        future: asyncio.Future[ReadPoint] = self._loop.create_future()
        self._confirm(future)
        return await future

    def _confirm(self, waiting: Confirmation) -> None:
        if self._stopped:
            waiting.set_exception(self._not_primary())
        else:
            self._run(self._confirmations.ask, waiting)

    @property
    def read_bytes(self) -> int:
        """How much queries have read by keys so far."""
        return self._read_view.read_bytes

    def is_scan(self, query: Query) -> bool:
        """Whether a query may take a millisecond or more, and so takes turns."""
        return query.method in self._service.scans

    def read(self, query: Query) -> QueryResult:
        """Run a query on what is applied here, whatever that is."""
        self._queries_total += 1
        method = self._service.queries.get(query.method)
        if method is None:
            known = ", ".join(sorted(self._service.queries))
            raise RejectedError("unknown_query", f"no query {query.method!r}; there are: {known}")
        value = method(self._read_view, *query.args)
        index = self._storage.store.applied_index
        return QueryResult(value, index, self.replica.epoch, self.node_id)

    def read_index(self) -> tuple[int, int]:
        """Return (epoch, commit index) if this node serves. Raises NotPrimaryError.

        Where reads are confirmed it does not do: `await confirm()` says the same.
        """
        replica = self.replica
        epoch, index = replica.epoch, replica.core.commit_index
        if not replica.may_serve(clock_ms()):
            raise self._not_primary()
        return epoch, index

    def learn_commit(self, epoch: int, index: int) -> None:
        """The primary of `epoch` has said that `index` is committed."""
        self._run(self.replica.learn_commit, epoch, index)

    async def wait_applied(self, index: int) -> None:
        """Wait until everything up to `index` is applied here."""
        if self._storage.store.applied_index >= index:
            return
        future: asyncio.Future[None] = self._loop.create_future()
        self._applied_waiters.append((index, future))
        await future

    def _wake_applied(self) -> None:
        applied = self._storage.store.applied_index
        kept = []
        for index, future in self._applied_waiters:
            if future.done():
                continue
            if index > applied:
                kept.append((index, future))
            else:
                future.set_result(None)
        self._applied_waiters = kept

    # -- handover, status, digest

    async def hand_over(self, to: str, timeout_ms: int) -> View:
        """Hand over to an in-sync backup. Raises NotAppliedError if it cannot be, or fails."""
        if self.replica.primary is None:
            raise self._not_primary()
        if self._handover is not None:
            raise NotAppliedError("handover_failed", "a handover is under way already")
        future: asyncio.Future[View] = self._loop.create_future()
        self._handover = future
        try:
            problem, effects = self.replica.start_handover(to, timeout_ms)
            self._run(lambda: effects)
            if problem:
                raise NotAppliedError("handover_failed", problem)
            async with asyncio.timeout((timeout_ms + HANDOVER_MARGIN_MS) / 1000):
                return await future
        except TimeoutError:
            raise UnknownOutcomeError("timeout", "the handover has not ended yet") from None
        finally:
            if self._handover is future:
                self._handover = None

    def _end_handover(self, error: OperationError) -> None:
        future, self._handover = self._handover, None
        if future is not None and not future.done():
            future.set_exception(error)
        self._pipeline.schedule()

    def status(self, cluster: str, reachable: Callable[[str], bool]) -> ClusterStatus:
        """Return the cluster as this node sees it."""
        return cluster_status(self.node_id, cluster, self.replica, reachable)

    async def digest(self) -> Digest:
        """Scan this node's store: one scan at a time, for all who ask."""
        try:
            index, digest = await self._digests.result()
        except DiskFullError as problem:
            raise StorageFullError("storage_full", str(problem)) from problem
        return Digest(node=self.node_id, applied_index=index, digest=digest)

    def stop_scans(self) -> None:
        """End the digest that runs: who waits for one is told."""
        self._digests.stop(f"{self.node_id} is stopping")

    def counters(self) -> dict[str, float]:
        """Numbers for metrics."""
        replica, core = self.replica, self.replica.core
        matches = (
            [peer.match_index for peer in replica.primary.peers.values()]
            if (replica.primary)
            else []
        )
        return {
            "operations_total": self._pipeline.operations_total,
            "records_total": self._pipeline.records_total,
            "view_changes_total": self._view_changes_total,
            "digest_scans_total": self._digests.scans_total,
            "snapshots_sent_total": self.snapshots.sent_total,
            "snapshots_received_total": self.snapshots.received_total,
            "writes_slowed": float(self._slowed),
            "epoch": replica.epoch,
            "view_version": replica.view.version if replica.view else 0,
            "is_primary": float(replica.may_serve(clock_ms())),
            "in_sync_replicas": len(replica.view.in_sync) if replica.view else 0,
            "last_index": core.log.last_index,
            "durable_index": core.durable_index,
            "commit_index": core.commit_index,
            "seconds_since_commit": round((clock_ms() - self._committed_ms) / 1000, 3),
            "log_first_index": core.log.base_index + 1,
            "waiting_operations": self._pipeline.waiting_operations,
            "uncommitted_records": len(self._tail),
            "max_peer_lag": max((core.log.last_index - match for match in matches), default=0),
            **self._storage.counters(),
        }
