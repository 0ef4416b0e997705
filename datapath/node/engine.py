"""The engine: one running replica under asyncio: what its interpreter asks for, and its events.

Everything here runs on one event loop; only fsync, store flushes and long reads leave it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any

from datapath.clock import clock_ms
from datapath.errors import (
    DataDirectoryError,
    DataPathError,
    DiskFullError,
    OperationNotAppliedError,
    OperationUnknownError,
    PrimaryFullError,
    StorageError,
    ends_node,
)
from datapath.execution.access_guard import AccessGuard
from datapath.execution.tail import CallSoon
from datapath.node.backups import Backups
from datapath.node.catch_up import Snapshots
from datapath.node.committed_log import CommittedLog
from datapath.node.history import History
from datapath.node.interpreter import Interpreter
from datapath.node.proposer import Proposer
from datapath.node.replica_disk import ReplicaStorage
from datapath.node.shared_scan import SharedScan
from datapath.node.status import cluster_status, replica_counters
from datapath.node.streams import IncomingStreams, OutgoingStreams
from datapath.operations import ClusterStatus, Digest, Operation, Result
from datapath.protocol import effects
from datapath.protocol.confirmations import ReadPoint
from datapath.protocol.replica import Replica
from datapath.service import Service
from datapath.settings import Bounds, Timing
from datapath.tasks import Tasks
from datapath.transport.mesh import REPLICATE, Mesh
from datapath.transport.snapshot_transfer import Throttle
from election.agreement import Agreement
from election.view import View

logger = logging.getLogger(__name__)

TICK_INTERVAL_S = 0.015
HANDOVER_MARGIN_MS = 1000
SLOWED_TURN_S = 0.25
"""A turn of the pipeline waits that long while more log is held for a snapshot than its bound."""


class Engine:
    """One running replica. Make it on the event loop, then `start`.

    Its `interpreter` answers reads, and says what has become of an operation.

    `on_change`: the role or the view has changed. `on_view`: consensus has brought this view.
    `on_fatal`: the node must stop (D9, a broken invariant), with the reason. `bind_cluster` ties
    the data to a cluster id, and raises DataDirectoryError if it belongs to another.
    """

    def __init__(
        self,
        node_id: str,
        incarnation: str,
        services: Mapping[str, Service],
        storage: ReplicaStorage,
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
        access: AccessGuard | None = None,
    ) -> None:
        self.node_id = node_id
        self.failed = False
        self._storage = storage
        self._mesh = mesh
        self._bounds = bounds
        self._on_change = on_change
        self._on_fatal = on_fatal
        self._bind_cluster = bind_cluster
        self._loop = asyncio.get_running_loop()
        self.call_soon: CallSoon = self._loop.call_soon  # for the interpreter
        self._call_slowly: CallSoon = partial(self._loop.call_later, SLOWED_TURN_S)
        recovered = storage.recover()
        self.replica = Replica(
            node_id, incarnation, recovered, timing, bounds, clock_ms(), dict(takeover_order)
        )
        self.interpreter = Interpreter(
            self.replica,
            services,
            storage,
            storage.uncommitted(recovered.commit_index),
            bounds,
            self,
            clock_ms,
            access,
        )
        self._proposer = Proposer(
            self.interpreter, agreement, timing.view_change_timeout_ms, on_view
        )
        self.snapshots = Snapshots(
            node_id,
            self.replica,
            storage,
            mesh,
            bounds.snapshot_rate_bytes_per_s,
            requests=lambda: (
                self.interpreter.pipeline.operations_total + self.interpreter.queries_total
            ),
            on_sent=lambda peer, session, done: self.interpreter.run(
                self.replica.on_snapshot_sent, peer, session, done=done
            ),
            on_installed=self.interpreter.on_snapshot_installed,
            on_install_failed=lambda: self.interpreter.run(self.replica.on_install_failed),
            on_fatal=self.fail,
        )
        self._digests = SharedScan(storage.digest)
        self.backups = Backups(
            node_id,
            storage,
            Throttle(
                bounds.snapshot_rate_bytes_per_s,
                lambda: self.interpreter.pipeline.operations_total + self.interpreter.queries_total,
            ),
            self.fail_if_fatal,
        )
        self.history = History(
            self.interpreter.feed, storage.read_log, lambda: storage.log.first_index
        )
        self.committed_log = CommittedLog(self.replica, storage, self.backups, self._on_flushed)
        self.outgoing = OutgoingStreams(
            on_link=lambda peer: self.interpreter.run(self.replica.on_link, peer),
            on_link_lost=lambda peer: self.interpreter.run(self.replica.on_link_lost, peer),
            on_message=self.interpreter.on_message,
        )
        self.incoming = IncomingStreams(
            node_id,
            is_ours=self._is_ours,
            room=storage,
            on_message=self.interpreter.on_message,
        )
        self.stream_to, self.stream_from = self.outgoing.links.get, self.incoming.links.get
        self._handover: asyncio.Future[View] | None = None
        self._tasks = Tasks(self.fail)
        self._tick_handle: asyncio.TimerHandle | None = None
        self._listen_to(agreement)

    # -- lifetime

    def use_agreement(self, agreement: Agreement) -> None:
        """Go over to another consensus member, before it is started: this node has just joined."""
        self._proposer.agreement = agreement
        self._listen_to(agreement)

    def _listen_to(self, agreement: Agreement) -> None:
        """Hear of consensus itself; the views come by whoever shares them with other nodes."""
        self._noted_index = -1  # the commit index that it knows of; -1: none
        agreement.on_reminder(self.on_reminder)
        agreement.subscribe(lambda _: self.replica.on_consensus_heard())

    def start(self) -> None:
        """Begin: from here on links may be opened and views given."""
        self._storage.start(
            on_durable=self.interpreter.on_durable, on_flushed=self._on_flushed, on_error=self.fail
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
        self.stop_scans()
        if self._tick_handle is not None:
            self._tick_handle.cancel()
        self.interpreter.stop(f"{self.node_id} is stopping")
        await self._tasks.stop()
        await self._storage.stop()

    def fail(self, problem: BaseException) -> None:
        """Stop serving at once; the process must end (D9, broken invariants)."""
        if self.failed:
            return
        self.failed = True
        unforeseen = None if isinstance(problem, DataPathError) else problem
        logger.critical("this node stops: %s", problem, exc_info=unforeseen)
        self.interpreter.stop(f"{self.node_id} has failed: {problem}")
        self._on_fatal(problem)

    def fail_if_fatal(self, problem: BaseException) -> None:
        """Something has failed beside the replica's effects: end the node if it must (D9)."""
        if ends_node(problem):
            self.fail(problem)

    def _tick(self) -> None:
        if self.interpreter.stopped:
            return
        self._tick_handle = self._loop.call_later(TICK_INTERVAL_S, self._tick)
        state = self.replica.state
        try:
            if state.commit_index != self._noted_index:
                self._noted_index = state.commit_index
                self._proposer.agreement.note_committed(*state.committed_position)
            self.interpreter.on_tick()
        except Exception as problem:  # noqa: BLE001  whatever it was, as in `Interpreter.run`
            self.fail(problem)

    # -- what the interpreter asks for (`datapath.node.interpreter.Surroundings`)

    def redial(self, peer: str, reason: str) -> None:
        """Close the stream to `peer`, and open a new one."""
        self._mesh.redial(peer, REPLICATE, reason)

    def propose(self, effect: effects.Propose) -> None:
        """Propose a change of the view."""
        self.spawn(self._proposer.propose(effect))

    def read_log(self, effect: effects.ReadLog) -> None:
        """Read records of the log."""
        self.spawn(self._read_log(effect))

    def send_snapshot(self, effect: effects.SendSnapshot) -> None:
        """Bring a peer up by a snapshot."""
        self.spawn(self.snapshots.send(effect.peer, effect.session))

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a task; if it fails the node ends."""
        return self._tasks.spawn(coroutine)

    def on_epoch_started(self, epoch: int) -> None:
        """This node is the primary of `epoch`, and does not serve yet."""
        logger.info("primary of epoch %d", epoch)

    def on_epoch_open(self, epoch: int) -> None:
        """This node serves."""
        logger.info("epoch %d is open: serving", epoch)
        self._on_change()

    def on_step_down(self, epoch: int) -> None:
        """The epoch is over."""
        logger.warning("no longer the primary of epoch %d", epoch)
        self._on_change()

    def on_handover_ended(self, reason: str) -> None:
        """A handover was refused or given up."""
        future, self._handover = self._handover, None
        if future is not None and not future.done():
            future.set_exception(OperationNotAppliedError("handover_failed", reason))

    # -- views

    def on_view(self, view: View) -> None:
        """Take a committed view."""
        known = self.replica.view
        if known is not None and view.version <= known.version:
            return
        if not self._is_ours(view.cluster_id):
            return  # before anything of it is on the disk: its primary is accepted at once
        logger.info(
            "view: epoch %d, version %d, primary %s, in sync %s",
            view.epoch,
            view.version,
            view.primary,
            ", ".join(view.in_sync),
        )
        if self._ends_alone(view):
            return
        self.interpreter.on_view(view)
        handover = self._handover
        if handover is not None and view.primary != self.node_id and not handover.done():
            handover.set_result(view)
            self._handover = None
        self._on_change()

    def _ends_alone(self, view: View | None) -> bool:
        """End a replica that has lost entries and could get them from no other one in sync."""
        if view is None or view.in_sync != (self.node_id,) or not self.replica.state.incomplete:
            return False
        self.fail(
            DataDirectoryError(
                f"the log of {self.node_id} has lost entries that may have been acknowledged "
                "(earlier log lines say how that was noticed), and no other replica in sync can "
                "supply them. The data directory is left unchanged. Bring back the newest files, "
                "or a replica that was in sync; an older copy lacks acknowledged writes"
            )
        )
        return True

    def on_reminder(self, epoch: int, index: int) -> None:
        """Another node remembers that this replica had (epoch, index) committed (decision 18)."""
        state = self.replica.state
        was_incomplete, last_index = state.incomplete, state.log.last_index
        self.interpreter.run(self.replica.on_reminder, epoch, index)
        if state.incomplete and not was_incomplete:
            self._mesh.registry.report(
                f"{self.node_id} had committed entry {index} of epoch {epoch}, as another node "
                f"remembers, but its log ends at entry {last_index}: its data directory is an "
                "older copy, or its disk has lost entries. It will not take over until a primary "
                "has caught it up: bring back a replica that was in sync with it"
            )
        self._ends_alone(self.replica.view)

    # -- the replication streams

    def _is_ours(self, cluster_id: str) -> bool:
        try:
            self._bind_cluster(cluster_id)
        except StorageError as problem:  # of another cluster, or it could not be noted
            self.fail(problem)
            return False
        return True

    # -- the disk

    def _on_flushed(self) -> None:
        """The store has caught up with its overlay: the log may be trimmed."""
        self.snapshots.settle()
        slowed = self.snapshots.slows_writes
        self.interpreter.pipeline.call_soon = self._call_slowly if slowed else self.call_soon
        self._storage.trim(self.replica.oldest_needed(), self._on_trimmed)

    def _on_trimmed(self, first_index: int) -> None:
        self.interpreter.run(self.replica.on_log_trimmed, first_index)

    async def _read_log(self, effect: effects.ReadLog) -> None:
        records = await self._storage.read_log(effect.from_index, self._bounds.max_append_bytes)
        self.interpreter.run(self.replica.on_log_read, effect.peer, effect.session, records)

    # -- operations and queries

    def submit(self, operation: Operation, timeout_ms: float) -> asyncio.Future[Result]:
        """Execute here. The answer is a NotPrimaryError if this node cannot when its turn comes.

        Raises NotPrimaryError or OverloadedError if it cannot take it at all.
        """
        future: asyncio.Future[Result] = self._loop.create_future()
        self.interpreter.pipeline.submit(operation, timeout_ms, future)
        return future

    async def confirm(self) -> ReadPoint:
        """Wait until the replicas have confirmed that this node is the primary still.

        What is applied here then holds all that was acknowledged before. Raises NotPrimaryError.
        It may take for ever: give it a deadline.
        """
        future: asyncio.Future[ReadPoint] = self._loop.create_future()
        self.interpreter.confirm(future)
        return await future

    # -- handover, status, digest

    async def hand_over(self, to: str, timeout_ms: int) -> View:
        """Hand over to an in-sync backup. Raises NotAppliedError if it cannot be, or fails."""
        if self.replica.primary is None:
            raise self.interpreter.not_primary()
        if self._handover is not None:
            raise OperationNotAppliedError("handover_failed", "another handover is in progress")
        future: asyncio.Future[View] = self._loop.create_future()
        self._handover = future
        try:
            problem, emitted = self.replica.start_handover(to, timeout_ms)
            self.interpreter.run(lambda: emitted)
            if problem:
                raise OperationNotAppliedError("handover_failed", problem)
            async with asyncio.timeout((timeout_ms + HANDOVER_MARGIN_MS) / 1000):
                return await future
        except TimeoutError:
            raise OperationUnknownError("timeout", "the handover has not finished yet") from None
        finally:
            if self._handover is future:
                self._handover = None

    def status(self, cluster: str, reachable: Callable[[str], bool]) -> ClusterStatus:
        """Return the cluster as this node sees it."""
        return cluster_status(self.node_id, cluster, self.replica, reachable)

    async def digest(self) -> Digest:
        """Scan this node's store: one scan at a time, for all who ask."""
        try:
            index, digest = await self._digests.result()
        except DiskFullError as problem:
            raise PrimaryFullError("storage_full", str(problem)) from problem
        return Digest(node=self.node_id, applied_index=index, digest=digest)

    def stop_scans(self) -> None:
        """End the digest and the backup that run: who waits for one is told."""
        self._digests.stop(f"{self.node_id} is stopping")
        self.backups.stop(f"{self.node_id} is stopping")

    def counters(self) -> dict[str, float]:
        """Numbers for metrics."""
        pipeline = self.interpreter.pipeline
        return {
            **replica_counters(self.replica),
            "operations_total": pipeline.operations_total,
            "refused_for_room_total": pipeline.refused_for_room_total,
            "records_total": pipeline.records_total,
            "view_changes_total": self._proposer.view_changes_total,
            "digest_scans_total": self._digests.scans_total,
            "backups_written_total": self.backups.written_total,
            "snapshots_sent_total": self.snapshots.sent_total,
            "snapshots_received_total": self.snapshots.received_total,
            "writes_slowed": float(self.snapshots.slows_writes),
            "seconds_since_commit": round((clock_ms() - self.replica.state.committed_ms) / 1000, 3),
            "history_oldest_revision": self.history.oldest,
            "history_log_reads_total": self.history.log_reads_total,
            "waiting_operations": pipeline.waiting_operations(),
            "uncommitted_records": len(self.interpreter.tail),
            **self._storage.counters(),
            **self.interpreter.service_counters(),
        }
