"""The engine: carries out a replica's effects under asyncio, and executes operations in bursts.

Everything here runs on one event loop; only fsync, store flushes and long reads leave it. No task
is made and no thread is asked per operation: operations that wait are executed together, become
one record, and are answered together when it commits.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from datapath import effects as fx
from datapath import messages
from datapath.errors import (
    DataPathError,
    DiskFullError,
    NotAppliedError,
    NotPrimaryError,
    OperationError,
    OverloadedError,
    RejectedError,
    SafetyError,
    StorageFullError,
    UnknownOutcomeError,
)
from datapath.executor import Executed, Executor, ReadView
from datapath.links import Link
from datapath.mesh import REPLICATE, SNAPSHOT, Mesh
from datapath.operations import (
    ClusterStatus,
    Digest,
    NodeState,
    Operation,
    Query,
    QueryResult,
    Result,
)
from datapath.records import Entry, Record, make_record
from datapath.replica import Replica
from datapath.service import Service
from datapath.settings import Bounds, Timing
from datapath.storage import IncomingSnapshot, Storage
from datapath.transfer import Offer, SnapshotSender, SnapshotSink, Throttle, TransferError
from election.agreement import Agreement, AgreementUnavailableError, Committed, Unknown
from election.view import View

log = logging.getLogger(__name__)

TICK_INTERVAL_S = 0.015
SNAPSHOT_RETRY_S = 0.5
_OPERATION_OVERHEAD_BYTES = 200


def clock_ms() -> float:
    """Milliseconds of a clock that never goes back and counts through suspend (D4)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) * 1000.0


class _Waiting(msgspec.Struct, gc=False):
    """An operation that waits to be executed."""

    operation: Operation
    future: asyncio.Future[Result]
    deadline_ms: float
    size_bytes: int


class _Answer(msgspec.Struct, gc=False):
    """An executed operation that waits for its commit."""

    waiting: _Waiting
    executed: Executed


class _TailItem(msgspec.Struct, gc=False):
    """A record that has not committed; `entries` and `answers` where it was executed here."""

    record: Record
    entries: list[Entry] | None
    answers: list[_Answer]


class Engine:
    """One running replica. Make it, then `start`; `on_fatal` is called if it must stop."""

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
    ) -> None:
        self.node_id = node_id
        self._service = service
        self._storage = storage
        self._agreement = agreement
        self._mesh = mesh
        self._timing = timing
        self._bounds = bounds
        self._on_change = on_change
        self._on_view = on_view
        self._on_fatal = on_fatal
        self._loop = asyncio.get_running_loop()
        recovered = storage.recover()
        self.replica = Replica(
            node_id, incarnation, recovered, timing, bounds, clock_ms(), dict(takeover_order)
        )
        self._executor = Executor(service, storage.store, bounds.client_table_entries)
        self._async_operations = {
            name
            for name, method in service.operations.items()
            if inspect.iscoroutinefunction(method)
        }
        self._read_view = ReadView(storage.store)
        self._tail: deque[_TailItem] = deque(
            _TailItem(record, None, []) for record in storage.uncommitted(recovered.commit_index)
        )
        self._own_inflight = 0
        self._ready_index = 0
        self._local_acks: deque[_Answer] = deque()
        self._waiting: deque[_Waiting] = deque()
        self._waiting_bytes = 0
        self._next_deadline_ms = float("inf")
        self._burst_due = False
        self._executing: asyncio.Task[None] | None = None
        self._incoming: dict[str, Link] = {}
        self._outgoing: dict[str, Link] = {}
        self._sending: dict[str, int] = {}  # peer -> newest session that waits for a snapshot
        self._installing = False
        self._applied_waiters: list[tuple[int, asyncio.Future[None]]] = []
        self._handover: asyncio.Future[View] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._tick_handle: asyncio.TimerHandle | None = None
        self._stopped = False
        self.failed = False
        self._counters = {
            "operations_total": 0.0,
            "records_total": 0.0,
            "commits_total": 0.0,
            "view_changes_total": 0.0,
            "take_overs_total": 0.0,
            "snapshots_sent_total": 0.0,
            "snapshots_received_total": 0.0,
        }

    # -- lifetime

    def use_agreement(self, agreement: Agreement) -> None:
        """Go over to another consensus member, before it is started: this node has just joined."""
        self._agreement = agreement

    def start(self) -> None:
        """Begin: from here on links may be opened and views given."""
        self._storage.start(
            on_durable=self._on_durable,
            on_flushed=self._on_flushed,
            on_error=self.fail,
        )
        self._tick()

    async def stop(self) -> None:
        """Stop: who waits is told, what is written stays."""
        self._stopped = True
        if self._tick_handle is not None:
            self._tick_handle.cancel()
        if self.replica.primary is not None:
            self._fail_unanswered("this node is stopping")
        self._release_waiting()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._storage.stop()

    def fail(self, problem: BaseException) -> None:
        """Stop serving at once; the process must end (D9, broken invariants)."""
        if self.failed:
            return
        self.failed = True
        self._stopped = True
        log.critical("this node stops: %s", problem)
        self._fail_unanswered(f"the node failed: {problem}")
        self._release_waiting()
        self._on_fatal(problem)

    def _spawn(self, coroutine: Any) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)

    def _on_task_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (problem := task.exception()) is not None:
            self.fail(problem)

    def _tick(self) -> None:
        if self._stopped:
            return
        self._tick_handle = self._loop.call_later(TICK_INTERVAL_S, self._tick)
        now = clock_ms()
        storage = self._storage
        self.replica.core.writable = storage.writable
        stalled = storage.stalled_for_ms() >= self._timing.ack_timeout_ms
        self._run(self.replica.on_tick, now, disk_stalled=stalled)
        if now >= self._next_deadline_ms:
            self._expire(now)
        if self._waiting:
            self._schedule_burst()

    # -- effects

    def _run(self, event: Callable[..., list[fx.Effect]], *args: Any, **kwargs: Any) -> None:
        """Give the replica an event and carry out what follows; a broken invariant ends the node."""
        if self._stopped:
            return
        try:
            for effect in event(*args, **kwargs):
                self._carry_out(effect)
        except DataPathError as problem:
            self.fail(problem)

    def _carry_out(self, effect: fx.Effect) -> None:
        match effect:
            case fx.Send(peer, message):
                self._send(self._outgoing.get(peer), message)
            case fx.Reply(peer, message):
                self._send(self._incoming.get(peer), message)
            case fx.WriteRecords(ticket, records):
                self._write_records(ticket, records)
            case fx.Commit(index):
                self._commit(index)
            case fx.RecordAccepted(ticket, epoch, primary):
                self._storage.record_accepted(ticket, epoch, primary)
            case fx.TruncateLog(ticket, from_index):
                self._truncate(ticket, from_index)
            case fx.ClearDamaged(ticket):
                self._storage.clear_damaged(ticket)
            case fx.Propose():
                self._spawn(self._propose(effect))
            case fx.ReadLog(peer, session, from_index):
                self._spawn(self._read_log(peer, session, from_index))
            case fx.SendSnapshot(peer, session):
                self._spawn(self._send_snapshot(peer, session))
            case fx.Redial(peer, reason):
                self._mesh.redial(peer, REPLICATE, reason)
            case fx.StartEpoch(epoch, ready_index):
                log.info("primary of epoch %d", epoch)
                self._ready_index = ready_index
            case fx.StepDown(epoch):
                self._step_down(epoch)
            case fx.HandoverEnded(reason):
                self._end_handover(NotAppliedError("handover_failed", reason))

    @staticmethod
    def _send(link: Link | None, message: messages.Message) -> None:
        if link is not None:
            link.send(messages.encode(message))

    def _write_records(self, ticket: int, records: list[Record]) -> None:
        if self.replica.primary is None:
            self._tail.extend(_TailItem(record, None, []) for record in records)
        elif not self._tail or self._tail[-1].record is not records[-1]:
            # The epoch's opening entry: executed records are in the tail before they are appended.
            self._tail.extend(_TailItem(record, None, []) for record in records)
        self._storage.write(ticket, records)

    def _truncate(self, ticket: int, from_index: int) -> None:
        while self._tail and self._tail[-1].record.first_index >= from_index:
            self._tail.pop()
        self._storage.truncate(ticket, from_index)

    async def _propose(self, proposal: fx.Propose) -> None:
        """Propose, and give the replica whatever view that brought. Unknown is read back (E3)."""
        timeout_ms = self._timing.view_change_timeout_ms
        outcome = await self._agreement.propose(
            proposal.change, proposal.expected_version, timeout_ms
        )
        log.info(
            "proposed %s at version %d: %s",
            proposal.change,
            proposal.expected_version,
            type(outcome).__name__,
        )
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
        if view is not None:
            self._on_view(view)
            if isinstance(outcome, Committed):
                self._counters["view_changes_total"] += 1
        self._run(self.replica.on_proposal_done, answered=answered)

    def on_view(self, view: View) -> None:
        """Take a committed view."""
        known = self.replica.view
        if known is not None and view.version <= known.version:
            return
        if known is None or view.epoch > known.epoch:
            log.info("epoch %d: primary %s, in sync %s", view.epoch, view.primary, view.in_sync)
        else:
            log.info("version %d: in sync %s", view.version, view.in_sync)
        handover = self._handover
        self._run(self.replica.on_view, view)
        if handover is not None and view.primary != self.node_id and not handover.done():
            handover.set_result(view)
            self._handover = None
        self._schedule_burst()
        self._on_change()

    # -- links of kind "replicate", both directions

    def on_open(self, link: Link) -> None:
        """A replication stream is open."""
        if link.outgoing:
            self._outgoing[link.peer] = link
            self._run(self.replica.on_link, link.peer)
        else:
            self._incoming[link.peer] = link

    def on_frames(self, link: Link, frames: list[bytes]) -> None:
        """Messages of a replication stream."""
        current = self._outgoing if link.outgoing else self._incoming
        if current.get(link.peer) is not link:
            return
        if self._installing:
            return
        now = clock_ms()
        for frame in frames:
            message = messages.decode(frame)
            if isinstance(message, messages.Append) and not self._has_room(message):
                # Not acknowledged, and the stream is broken off: the primary goes on without.
                link.close(f"{self.node_id} has no room on its disk, or its disk is too slow")
                return
            self._run(self.replica.on_message, link.peer, message, now)

    def _has_room(self, message: messages.Append) -> bool:
        size = sum(map(len, message.records))
        return not size or self._storage.reserve(size)

    def on_close(self, link: Link, reason: str) -> None:
        """A replication stream is gone."""
        del reason
        if link.outgoing and self._outgoing.get(link.peer) is link:
            del self._outgoing[link.peer]
            self._run(self.replica.on_link_lost, link.peer)
        elif not link.outgoing and self._incoming.get(link.peer) is link:
            del self._incoming[link.peer]

    # -- the disk

    def _on_durable(self, ticket: int) -> None:
        self._run(self.replica.on_durable, ticket)
        if self._local_acks:
            self._answer_local()

    def _on_flushed(self) -> None:
        """The store has caught up with its overlay: the log may be trimmed."""
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

    async def _send_snapshot(self, peer: str, session: int) -> None:
        """Send one snapshot at a time to a peer; a newer session waits for the same one."""
        running = peer in self._sending
        self._sending[peer] = session
        if running:
            return
        log.info("%s is too far behind for log replay: sending a snapshot", peer)
        sender = SnapshotSender(throttle=Throttle(self._bounds.snapshot_rate_bytes_per_s))
        dialer = self._mesh.dialer(peer, SNAPSHOT, sender)
        done = False
        try:
            reader = await self._storage.snapshot_reader()
            self._storage.snapshot_floors[peer] = reader.index
            dialer.start()
            index, _ = await sender.send_snapshot(reader, self.replica.epoch)
            log.info("%s has installed a snapshot at %d", peer, index)
            self._counters["snapshots_sent_total"] += 1
            done = True
        except (TransferError, DiskFullError) as problem:
            log.warning("the snapshot for %s failed: %s", peer, problem)
            await asyncio.sleep(SNAPSHOT_RETRY_S)
        finally:
            self._storage.snapshot_floors.pop(peer, None)
            session = self._sending.pop(peer)
            await dialer.stop()
        self._run(self.replica.on_snapshot_sent, peer, session, done=done)

    def make_sink(self, peer: str, offer: Offer) -> SnapshotSink | str:
        """Answer a snapshot's offer: with a place for it, or why it is refused."""
        problem = self._may_take_snapshot(peer, offer)
        if problem:
            return problem
        log.info("receiving a snapshot at %d from %s", offer.index, peer)
        return self._storage.snapshot_writer(offer.index, offer.epoch)

    def _may_take_snapshot(self, peer: str, offer: Offer) -> str:
        core, view = self.replica.core, self.replica.view
        if self.replica.primary is not None:
            return "this node is a primary"
        if offer.sender_epoch < self.replica.epoch or peer != core.accepted_primary:  # D3
            return f"the primary here is {core.accepted_primary!r} of epoch {core.accepted_epoch}"
        if view is not None and self.node_id in view.in_sync:
            return "this node is in the in-sync set, or has not heard that it left"
        if offer.index <= core.commit_index:
            return f"this node has entries up to {core.commit_index} already"
        return ""

    async def install_snapshot(self, offer: Offer, sink: SnapshotSink) -> None:
        """Put a received snapshot in place of log and store."""
        problem = self._may_take_snapshot(self.replica.core.accepted_primary, offer)
        if problem or not isinstance(sink, IncomingSnapshot):
            raise TransferError(problem or "this is no snapshot of ours")
        # Nothing may be appended or acknowledged while log and store are replaced.
        self._installing = True
        try:
            self._tail.clear()
            await self._storage.install_snapshot(sink, offer.index, offer.epoch)
            self._run(self.replica.on_snapshot_installed, offer.index, offer.epoch)
        finally:
            self._installing = False
        log.info("installed a snapshot at %d", offer.index)
        self._counters["snapshots_received_total"] += 1
        self._wake_applied()

    # -- commit

    def _commit(self, index: int) -> None:
        store, executor, tail = self._storage.store, self._executor, self._tail
        while tail and tail[0].record.last_index <= index:
            item = tail.popleft()
            record = item.record
            entries = item.entries
            if entries is None:
                store.apply(record.entries(), record.last_index, record.epoch)
            else:
                store.apply(entries, record.last_index, record.epoch)
                executor.committed(record.first_index, entries)
                self._own_inflight -= 1
                self._answer_all(item.answers)
        if store.applied_index != index:
            raise SafetyError(
                f"entry {index} committed, but entries up to {store.applied_index} could be applied"
            )
        self._counters["commits_total"] = index
        self._storage.wants_flush()
        if self._ready_index and index >= self._ready_index:
            self._ready_index = 0
            executor.start_epoch()
            log.info("epoch %d is open: serving", self.replica.epoch)
            self._on_change()
        if self._applied_waiters:
            self._wake_applied()
        if self._local_acks:
            self._answer_local()
        if self._waiting:
            self._schedule_burst()

    def _answer_all(self, answers: list[_Answer]) -> None:
        copies = self.replica.copies()
        serving: bool | None = None
        epoch = self.replica.epoch
        for answer in answers:
            waiting, executed = answer.waiting, answer.executed
            if waiting.future.done():
                continue
            if executed.index == 0 and not executed.repeated:
                # It wrote nothing: what it saw must be true of the one primary there is (D4).
                if serving is None:
                    serving = self.replica.may_serve(clock_ms())
                if not serving:
                    waiting.future.set_exception(self._not_primary())
                    continue
            if executed.error is not None:
                waiting.future.set_exception(executed.error)
            elif waiting.operation.min_copies > copies:
                waiting.future.set_exception(
                    UnknownOutcomeError(
                        "not_enough_copies",
                        f"committed on {copies} copies while {waiting.operation.min_copies} were "
                        "asked for: it stands, on fewer copies",
                    )
                )
            else:
                waiting.future.set_result(self._result(executed, copies, epoch))

    def _result(self, executed: Executed, copies: int, epoch: int) -> Result:
        index = executed.index or (
            executed.seen_index if executed.repeated else self.replica.core.commit_index
        )
        return Result(executed.value, index, epoch, copies, self.node_id, executed.repeated)

    def _answer_local(self) -> None:
        """Early answers: durable here, and nothing uncommitted of others shines through (D2)."""
        core, kept = self.replica.core, deque[_Answer]()
        for answer in self._local_acks:
            executed = answer.executed
            if answer.waiting.future.done():
                continue
            if executed.index <= core.durable_index and executed.seen_index <= core.commit_index:
                if executed.error is not None:
                    answer.waiting.future.set_exception(executed.error)
                else:
                    answer.waiting.future.set_result(self._result(executed, 1, self.replica.epoch))
            else:
                kept.append(answer)
        self._local_acks = kept

    def _wake_applied(self) -> None:
        applied = self._storage.store.applied_index
        kept = []
        for index, future in self._applied_waiters:
            if index > applied:
                kept.append((index, future))
            elif not future.done():
                future.set_result(None)
        self._applied_waiters = kept

    async def wait_applied(self, index: int) -> None:
        """Wait until everything up to `index` is applied here."""
        if self._storage.store.applied_index >= index:
            return
        future: asyncio.Future[None] = self._loop.create_future()
        self._applied_waiters.append((index, future))
        await future

    # -- operations

    async def execute(self, operation: Operation, timeout_ms: float) -> Result:
        """Execute here. Raises NotPrimaryError if this node cannot, now or when its turn comes."""
        if self.replica.primary is None or self._stopped:
            raise self._not_primary()
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
        deadline_ms = clock_ms() + timeout_ms
        future: asyncio.Future[Result] = self._loop.create_future()
        self._waiting.append(_Waiting(operation, future, deadline_ms, size))
        self._waiting_bytes += size
        self._next_deadline_ms = min(self._next_deadline_ms, deadline_ms)
        if not self._burst_due:
            self._schedule_burst()
        return await future

    def _not_primary(self) -> NotPrimaryError:
        view = self.replica.view
        primary = view.primary if view else ""
        return NotPrimaryError("no_primary", self.why_not_serving(), primary)

    def why_not_serving(self) -> str:
        """A sentence about why this node does not serve as the primary now."""
        replica, view = self.replica, self.replica.view
        if view is None:
            return f"{self.node_id} has not reached consensus yet: is a majority of nodes up?"
        if replica.primary is None:
            if view.primary == self.node_id:
                return f"{self.node_id} is about to become the primary again"
            return f"{self.node_id} is not the primary; {view.primary} is, of epoch {view.epoch}"
        if not replica.primary.is_open:
            return (
                f"{self.node_id} is becoming the primary: not all of {list(view.in_sync)} are here"
            )
        if not replica.may_serve(clock_ms()):
            silent = sorted(replica.primary.required())
            return (
                f"{self.node_id} is the primary, but some of {silent} are silent, and consensus "
                "has not let them go: is a majority of nodes up?"
            )
        return f"{self.node_id} is handing over"

    def _schedule_burst(self) -> None:
        if (
            self._waiting
            and not self._burst_due
            and self._executing is None
            and self._own_inflight < self._bounds.max_inflight_records
            and self.replica.may_execute()
        ):
            self._burst_due = True
            self._loop.call_soon(self._run_burst)

    def _run_burst(self) -> None:
        """Execute what waits, as one record."""
        self._burst_due = False
        if (
            self._stopped
            or self._executing is not None
            or not self.replica.may_execute()
            or self._own_inflight >= self._bounds.max_inflight_records
        ):
            return
        entries: list[Entry] = []
        answers: list[_Answer] = []
        size, next_index = 0, self.replica.next_index
        bounds = self._bounds
        while self._waiting and size < bounds.max_record_bytes:
            waiting = self._waiting[0]
            if waiting.operation.method in self._async_operations:
                if not entries and not answers:
                    self._take_waiting()
                    self._execute_async(waiting)
                break
            self._take_waiting()
            if waiting.future.done() or not self._may_start(waiting):
                continue
            executed, entry = self._executor.execute(waiting.operation, next_index)
            answers.append(_Answer(waiting, executed))
            if entry is not None:
                entries.append(entry)
                next_index += 1
                size += waiting.size_bytes
                if len(entries) >= bounds.max_record_entries:
                    break
        self._record(entries, answers)
        if self._waiting:
            self._schedule_burst()

    def _take_waiting(self) -> None:
        self._waiting_bytes -= self._waiting.popleft().size_bytes

    def _may_start(self, waiting: _Waiting) -> bool:
        """Refuse what could not be acknowledged as asked, before it is executed."""
        view = self.replica.view
        in_sync = len(view.in_sync) if view else 0
        if in_sync < self._bounds.min_in_sync:
            problem = f"{in_sync} replicas are in sync, min_in_sync is {self._bounds.min_in_sync}"
        elif self.replica.copies() < waiting.operation.min_copies:
            problem = (
                f"{self.replica.copies()} replicas are in sync, {waiting.operation.min_copies} "
                "copies are asked for"
            )
        else:
            return True
        detail = problem + ": bring a replica back, or ask for fewer"
        waiting.future.set_exception(NotAppliedError("not_enough_copies", detail))
        return False

    def _record(self, entries: list[Entry], answers: list[_Answer]) -> None:
        """Make a record of a burst's deltas and replicate it."""
        if not entries:
            self._answer_without_record(answers)
            return
        replica, storage = self.replica, self._storage
        try:
            record = make_record(
                replica.next_index, replica.epoch, replica.core.commit_index, entries
            )
        except ValueError as problem:
            self._executor.drop_burst()
            self._refuse(answers, RejectedError("too_large", f"the delta is too large: {problem}"))
            return
        if not storage.reserve(len(record.data)):
            self._executor.drop_burst()
            detail = f"no room on the disk of {self.node_id}: free some; reads go on meanwhile"
            self._refuse(answers, StorageFullError("storage_full", detail))
            return
        self._executor.keep_burst()
        self._tail.append(_TailItem(record, entries, answers))
        self._own_inflight += 1
        self._counters["operations_total"] += len(answers)
        self._counters["records_total"] += 1
        for answer in answers:
            if answer.waiting.operation.ack == "local" and answer.executed.index:
                self._local_acks.append(answer)
        self._run(replica.append, record)

    def _answer_without_record(self, answers: list[_Answer]) -> None:
        """Nothing was written: answer when all that could have been seen has committed (D2)."""
        if not answers:
            return
        self._counters["operations_total"] += len(answers)
        if self._tail:
            self._tail[-1].answers.extend(answers)
        else:
            self._answer_all(answers)

    @staticmethod
    def _refuse(answers: list[_Answer], error: OperationError) -> None:
        for answer in answers:
            if not answer.waiting.future.done():
                answer.waiting.future.set_exception(error)

    def _execute_async(self, waiting: _Waiting) -> None:
        if waiting.future.done() or not self._may_start(waiting):
            return
        self._executing = self._loop.create_task(self._run_async(waiting))
        self._tasks.add(self._executing)
        self._executing.add_done_callback(self._on_task_done)

    async def _run_async(self, waiting: _Waiting) -> None:
        epoch = self.replica.epoch
        try:
            executed, entry = await self._executor.execute_async(
                waiting.operation, self.replica.next_index
            )
            if self.replica.epoch != epoch or not self.replica.may_execute():
                self._executor.drop_burst()
                if not waiting.future.done():
                    waiting.future.set_exception(self._not_primary())
                return
            self._record([entry] if entry is not None else [], [_Answer(waiting, executed)])
        finally:
            self._executing = None
            if not waiting.future.done() and self._stopped:
                waiting.future.set_exception(self._not_primary())
            self._schedule_burst()

    # -- when answers cannot be given

    def _step_down(self, epoch: int) -> None:
        log.warning("no longer the primary of epoch %d", epoch)
        self._ready_index = 0
        if self._executing is not None:
            self._executing.cancel()
        self._executor.start_epoch()
        self._fail_unanswered(f"{self.node_id} lost its role before this was committed")
        self._release_waiting()
        self._end_handover(None)
        self._on_change()

    def _fail_unanswered(self, reason: str) -> None:
        """What is in the log but not committed may yet commit, by the next primary: unknown."""
        for item in self._tail:
            for answer in item.answers:
                future = answer.waiting.future
                if future.done():
                    continue
                if answer.executed.index == 0 and not answer.executed.repeated:
                    future.set_exception(self._not_primary())
                else:
                    future.set_exception(
                        UnknownOutcomeError(
                            "unknown_outcome",
                            f"{reason}: it may or may not be applied. Repeat it under the same "
                            "Idempotency-Key, or read before you repeat it",
                        )
                    )
            item.answers, item.entries = [], None
        self._own_inflight = 0
        self._local_acks.clear()

    def _release_waiting(self) -> None:
        """What was not executed can be tried elsewhere."""
        waiting, self._waiting = self._waiting, deque()
        self._waiting_bytes = 0
        for item in waiting:
            if not item.future.done():
                item.future.set_exception(self._not_primary())

    def _expire(self, now: float) -> None:
        """Answer those whose time is up."""
        nearest = float("inf")
        for item in self._waiting:
            if item.future.done():
                continue
            if item.deadline_ms <= now:
                item.future.set_exception(
                    NotPrimaryError("timeout", f"not executed in time: {self.why_not_serving()}")
                )
            else:
                nearest = min(nearest, item.deadline_ms)
        for tail in self._tail:
            for answer in tail.answers:
                waiting = answer.waiting
                if waiting.future.done():
                    continue
                if waiting.deadline_ms <= now:
                    waiting.future.set_exception(
                        UnknownOutcomeError(
                            "timeout",
                            "not committed in time, and may commit yet. Repeat it under the same "
                            f"Idempotency-Key. Now: {self.why_not_serving()}",
                        )
                    )
                else:
                    nearest = min(nearest, waiting.deadline_ms)
        self._next_deadline_ms = nearest

    # -- queries

    def query(self, query: Query) -> QueryResult | None:
        """Answer from here if this node is serving, or the query may be stale; else None."""
        if query.consistency == "stale":
            if query.max_staleness_ms is not None:
                return None
            return self.read(query)
        result = self.read(query)
        # The lease is checked after the read and before the answer leaves (D4).
        return result if self.replica.may_serve(clock_ms()) else None

    def read(self, query: Query) -> QueryResult:
        """Run a query on what is applied here, whatever that is."""
        method = self._service.queries.get(query.method)
        if method is None:
            known = ", ".join(sorted(self._service.queries))
            raise RejectedError("unknown_query", f"no query {query.method!r}; there are: {known}")
        value = method(self._read_view, *query.args)
        index = self._storage.store.applied_index
        return QueryResult(value, index, self.replica.epoch, self.node_id)

    def read_index(self) -> tuple[int, int]:
        """Return (epoch, commit index) if this node serves. Raises NotPrimaryError."""
        replica = self.replica
        epoch, index = replica.epoch, replica.core.commit_index
        if not replica.may_serve(clock_ms()):
            raise self._not_primary()
        return epoch, index

    def learn_commit(self, epoch: int, index: int) -> None:
        """The primary of `epoch` has said that `index` is committed."""
        self._run(self.replica.learn_commit, epoch, index)

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
            async with asyncio.timeout(timeout_ms / 1000 + 1):
                return await future
        except TimeoutError:
            raise UnknownOutcomeError("timeout", "the handover has not ended yet") from None
        finally:
            if self._handover is future:
                self._handover = None

    def _end_handover(self, error: OperationError | None) -> None:
        """A handover has ended without one; or the epoch has, and `on_view` tells the new one."""
        future = self._handover
        if error is not None and future is not None and not future.done():
            self._handover = None
            future.set_exception(error)
        self._schedule_burst()

    def node_state(self) -> NodeState:
        """Say how this node sees itself."""
        core, view = self.replica.core, self.replica.view
        if self.replica.primary is not None:
            state = "primary"
        elif view is not None and self.node_id in view.in_sync:
            state = "backup"
        else:
            state = "learner"
        member = view.member(self.node_id) if view else None
        return NodeState(
            role="replica",
            client=member.client if member else "",
            state=state,
            applied_index=core.commit_index,
            durable_index=core.durable_index,
            lag=0 if self.replica.primary else None,
        )

    def status(self, cluster: str, reachable: Callable[[str], bool]) -> ClusterStatus:
        """Return the cluster as this node sees it; only a primary knows of the others."""
        view, primary = self.replica.view, self.replica.primary
        nodes: dict[str, NodeState] = {}
        for member in view.members if view else ():
            if member.id == self.node_id:
                nodes[member.id] = self.node_state()
            elif member.role == "witness":
                state = "witness" if reachable(member.id) else "unreachable"
                nodes[member.id] = NodeState(role="witness", client=member.client, state=state)
            elif primary is not None and member.id in primary.peers:
                peer = primary.peers[member.id]
                state = {"down": "unreachable", "probe": "unreachable"}.get(peer.state, peer.state)
                if state == "replicate":
                    in_sync = view is not None and member.id in view.in_sync
                    state = "backup" if in_sync else "learner"
                seen = peer.state == "replicate"
                lag = max(0, self.replica.core.commit_index - peer.match_index) if seen else None
                nodes[member.id] = NodeState(
                    role="replica",
                    client=member.client,
                    state=state,
                    applied_index=peer.applied_index,
                    durable_index=max(peer.durable_index, peer.match_index),
                    lag=lag,
                )
            else:
                state = "unknown" if reachable(member.id) else "unreachable"
                nodes[member.id] = NodeState(role="replica", client=member.client, state=state)
        return ClusterStatus(
            cluster=cluster,
            epoch=self.replica.epoch,
            version=view.version if view else 0,
            primary=view.primary if view else "",
            in_sync=view.in_sync if view else (),
            nodes=nodes,
        )

    async def digest(self) -> Digest:
        """Scan this node's store."""
        index, digest = await self._storage.digest()
        return Digest(node=self.node_id, applied_index=index, digest=digest)

    def counters(self) -> dict[str, float]:
        """Numbers for metrics."""
        core, primary = self.replica.core, self.replica.primary
        return {
            **self._counters,
            "epoch": self.replica.epoch,
            "view_version": self.replica.view.version if self.replica.view else 0,
            "is_primary": float(self.replica.may_serve(clock_ms())),
            "in_sync_replicas": len(self.replica.view.in_sync) if self.replica.view else 0,
            "last_index": core.log.last_index,
            "durable_index": core.durable_index,
            "commit_index": core.commit_index,
            "log_first_index": core.log.base_index + 1,
            "waiting_operations": len(self._waiting),
            "uncommitted_records": len(self._tail),
            "max_peer_lag": max(
                (core.log.last_index - peer.match_index for peer in primary.peers.values()),
                default=0,
            )
            if primary
            else 0,
            **self._storage.counters(),
        }
