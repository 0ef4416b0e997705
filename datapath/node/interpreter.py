"""Carries out the effects of a replica on this node, without I/O of its own.

It owns the replica's pipeline and tail, and those who wait for a confirmation or for an entry to be
applied, and decides in which order they hear of an effect, and when a read may be answered. The
engine gives it a disk, links and an event loop, and so does the simulator.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any, Protocol

from datapath.errors import NotPrimaryError, OperationError, RejectedError
from datapath.execution.access_guard import AccessGuard, refusal
from datapath.execution.changes import Feed
from datapath.execution.concurrency import Running
from datapath.execution.executor import Executor, unknown_service
from datapath.execution.pipeline import Pipeline
from datapath.execution.read_view import CommittedState, ReadMeter, ReadView
from datapath.execution.tail import AppliedState, Tail
from datapath.node.own_operations import OwnOperations
from datapath.operations import Principal, Query, QueryResult
from datapath.protocol import effects
from datapath.protocol.confirmations import Confirmation, Confirmations
from datapath.protocol.messages import Message
from datapath.protocol.replica import Replica
from datapath.records import Record
from datapath.service import Service
from datapath.settings import Bounds
from election.view import View


class ServedState(CommittedState, AppliedState, Protocol):
    """A replica's state: committed entries are applied to it, and reads see it."""


class ReplicaDisk(Protocol):
    """A replica's disk; see `datapath.node.replica_disk.ReplicaStorage`.

    What has a `ticket` is done in order; `Interpreter.on_durable` is called when it is durable.
    """

    @property
    def store(self) -> ServedState:
        """The state; the same object as long as the node runs."""

    @property
    def writable(self) -> bool:
        """Whether there is room for a record at all."""

    def stalled_for_ms(self) -> float:
        """For how long the oldest write has been under way; 0: there is none."""

    def reserve(self, size_bytes: int, /) -> bool:
        """Whether there is room for so much more of the log."""

    def write(self, ticket: int, records: list[Record], /) -> None:
        """Append records to the log."""

    def write_here(self, ticket: int, records: list[Record], /) -> None:
        """Append records to the log; the event loop may wait for that, after this call."""

    def truncate(self, ticket: int, from_index: int) -> None:
        """Remove the log's entries from `from_index` on."""

    def record_accepted(self, ticket: int, epoch: int, primary: str) -> None:
        """Note the primary of an epoch (E5)."""

    def mark_incomplete(self, ticket: int) -> None:
        """Note that entries are missing that may have been acknowledged."""

    def clear_marks(self, ticket: int) -> None:
        """Note that nothing is missing any more."""

    def wants_flush(self) -> None:
        """Entries were applied to the store."""


class PeerStream(Protocol):
    """One end of a replication stream."""

    def send(self, message: Message, /) -> None:
        """Send; never blocks."""


class Surroundings(Protocol):
    """What else an interpreter needs of its node: links, consensus, snapshots, the event loop."""

    def stream_to(self, peer: str, /) -> PeerStream | None:
        """Return the one that this node has opened; without it what would be sent is dropped."""

    def stream_from(self, peer: str, /) -> PeerStream | None:
        """Return the one that `peer` has opened to this node."""

    def redial(self, peer: str, reason: str, /) -> None:
        """Close the stream to `peer`, and open a new one."""

    def propose(self, effect: effects.Propose, /) -> None:
        """Propose a change of the view; then `Replica.on_proposal_done`."""

    def read_log(self, effect: effects.ReadLog, /) -> None:
        """Read records; then `Replica.on_log_read`."""

    def send_snapshot(self, effect: effects.SendSnapshot, /) -> None:
        """Bring a peer up by a snapshot; then `Replica.on_snapshot_sent`."""

    def call_soon(self, callback: Callable[[], None], /) -> object:
        """Make a turn of the event loop, not within this call."""

    def spawn(self, coroutine: Coroutine[Any, Any, None], /) -> Running:
        """Run an `async` operation."""

    def on_epoch_started(self, epoch: int, /) -> None:
        """This node is the primary of `epoch`, and does not serve yet."""

    def on_epoch_open(self, epoch: int, /) -> None:
        """All of earlier epochs is applied: this node serves."""

    def on_step_down(self, epoch: int, /) -> None:
        """The epoch is over, and all who waited have been answered."""

    def on_handover_ended(self, reason: str, /) -> None:
        """A handover was refused or given up; execution may go on."""

    def fail(self, problem: Exception, /) -> None:
        """An effect could not be carried out: the node must end (D9, a broken invariant)."""


class AppliedWaiter(Protocol):
    """Who waits until an entry is applied: a future, or what looks like one."""

    def done(self) -> bool:
        """Whether nobody waits any more."""

    def set_result(self, result: None, /) -> None:
        """It is applied."""


class Interpreter:
    """One replica and all who wait on it. `uncommitted`: the records after its commit index.

    `services`: by their names; STORE is the store's.

    Operations are given to the `pipeline`; the `tail` knows what has become of a repeat. `clock`
    (ms) is the replica's.
    """

    def __init__(
        self,
        replica: Replica,
        services: Mapping[str, Service],
        disk: ReplicaDisk,
        uncommitted: list[Record],
        bounds: Bounds,
        surroundings: Surroundings,
        clock: Callable[[], float],
        access: AccessGuard | None = None,
    ) -> None:
        node_id = replica.state.node_id
        executor = Executor(services, disk.store, bounds.client_table, clock, access)
        self.node_id = node_id
        self.access = access
        self.replica = replica
        self.confirms_reads = bounds.confirm_reads
        """Whether no linearizable read here may rest on the leases."""
        self.stopped = False
        self.queries_total = 0
        self._services = services
        self._disk = disk
        self._surroundings = surroundings
        self._clock = clock
        self._store = disk.store
        self.scans = frozenset(
            (name, method) for name, service in services.items() for method in service.scans
        )
        """(service, method) of the queries that may take a millisecond or more."""
        self.meter = ReadMeter()
        self._read_views = {
            name: ReadView(disk.store, service.keyspace, self.meter)
            for name, service in services.items()
        }
        self._room_due_ms = float("-inf")  # when the disk is next asked for room
        self._ready_index = 0  # the epoch is open when this has committed; 0: nothing to wait for
        self._applied_waiters: list[tuple[int, AppliedWaiter]] = []
        self.feed = Feed(disk.store.applied_index, bounds.recent_changes_bytes)
        self.confirmations = Confirmations(replica, self.not_primary)
        self.tail = Tail(
            node_id,
            replica,
            executor,
            disk.store,
            self.feed,
            uncommitted,
            not_primary=self.not_primary,
            call_soon=surroundings.call_soon,
            confirm=self.confirm if bounds.confirm_reads else None,
            clock=clock,
        )
        self.pipeline = Pipeline(
            node_id,
            replica,
            executor,
            self.tail,
            disk,
            bounds,
            async_operations={name: service.async_operations for name, service in services.items()},
            append=partial(self.run, replica.append),
            not_primary=self.not_primary,
            why_not_serving=self.why_not_serving,
            spawn=surroundings.spawn,
            call_soon=surroundings.call_soon,
            on_error=surroundings.fail,
            clock=clock,
        )
        self._own_operations = OwnOperations(services, self._read_views, self.pipeline)

    def stop(self, reason: str) -> None:
        """Carry out nothing more, and answer who waits. `reason` is for them."""
        self.stopped = True
        self.confirmations.step_down()
        self.pipeline.stop(reason)

    # -- events, and the effects that follow

    def run(self, event: Callable[..., list[effects.Effect]], *args: Any, **kwargs: Any) -> None:
        """Give the replica an event and carry out what follows.

        A broken invariant or a failed disk ends the node; so does anything else that goes wrong
        here, for what was not carried out the replica would wait for in vain.
        """
        if self.stopped:
            return
        try:
            for effect in event(*args, **kwargs):
                self._carry_out(effect)
        except Exception as problem:  # noqa: BLE001  whatever it was
            self._surroundings.fail(problem)

    def on_tick(self) -> None:
        """Time has passed."""
        now_ms, state, stalled = self._clock(), self.replica.state, False
        if self.replica.primary is None:
            if now_ms >= self._room_due_ms:  # it is told with each answer to a heartbeat
                self._room_due_ms = now_ms + state.timing.heartbeat_interval_ms
                state.writable = self._disk.writable
        else:
            stalled = self._disk.stalled_for_ms() >= state.timing.ack_timeout_ms
        self.run(self.replica.on_tick, now_ms, disk_stalled=stalled)
        if self.pipeline.waiting or now_ms >= self.tail.deadlines.next_ms:
            self.pipeline.on_tick(now_ms)
        if self.confirmations.waiting:
            self.confirmations.expire()
        primary = self.replica.primary
        if primary is not None and ((may := primary.may_execute()) or primary.is_open):
            self._own_operations.on_tick(now_ms, may_execute=may)

    def on_message(self, peer: str, message: Message) -> None:
        """A message from `peer`, on either stream between it and this node."""
        self.run(self.replica.on_message, peer, message, self._clock())

    def on_view(self, view: View) -> None:
        """A view is known."""
        self.run(self.replica.on_view, view)
        self.pipeline.schedule()

    def on_durable(self, ticket: int) -> None:
        """What has this ticket, and all before it, is durable."""
        self.run(self.replica.on_durable, ticket)
        if self.tail.local_acks:
            self.tail.answer_local()

    def on_snapshot_installed(self, index: int, epoch: int) -> None:
        """A snapshot at (`index`, `epoch`) has replaced the state and the log."""
        self.tail.on_snapshot()
        self.run(self.replica.on_snapshot_installed, index, epoch)
        self._wake_applied()

    def _carry_out(self, effect: effects.Effect) -> None:
        match effect:
            case effects.Send(peer, message):
                if (stream := self._surroundings.stream_to(peer)) is not None:
                    stream.send(message)
            case effects.Reply(peer, message):
                if (stream := self._surroundings.stream_from(peer)) is not None:
                    stream.send(message)
            case effects.WriteRecords(ticket, records):
                self.tail.on_written(records)
                if self.replica.primary is None:  # nothing can be done here before it is durable
                    self._disk.write_here(ticket, records)
                else:
                    self._disk.write(ticket, records)
            case effects.Commit(index):
                self._commit(index)
            case effects.Confirmed(number):
                self.confirmations.confirmed(number)
            case effects.RecordAccepted(ticket, epoch, primary):
                self._disk.record_accepted(ticket, epoch, primary)
            case effects.TruncateLog(ticket, from_index):
                self.tail.on_truncated(from_index)
                self._disk.truncate(ticket, from_index)
            case effects.MarkIncomplete(ticket):
                self._disk.mark_incomplete(ticket)
            case effects.ClearMarks(ticket):
                self._disk.clear_marks(ticket)
            case effects.Propose():
                self._surroundings.propose(effect)
            case effects.ReadLog():
                self._surroundings.read_log(effect)
            case effects.SendSnapshot():
                self._surroundings.send_snapshot(effect)
            case effects.CloseLink(peer, reason):
                self._surroundings.redial(peer, reason)
            case effects.StartEpoch(epoch, ready_index):
                self._ready_index = ready_index
                self._surroundings.on_epoch_started(epoch)
            case effects.StepDown(epoch):
                self._ready_index = 0
                self.confirmations.step_down()
                self.pipeline.step_down()
                self._surroundings.on_step_down(epoch)
            case effects.HandoverEnded(reason):
                self._surroundings.on_handover_ended(reason)
                self.pipeline.schedule()

    def _commit(self, index: int) -> None:
        self.tail.commit(index)
        if self.pipeline.waiting:
            self.pipeline.schedule()
        self._disk.wants_flush()
        if self._ready_index and index >= self._ready_index:
            self._ready_index = 0
            self.pipeline.open_epoch()
            self._own_operations.on_epoch_open(self._clock())
            self._surroundings.on_epoch_open(self.replica.state.epoch)
        if self._applied_waiters:
            self._wake_applied()

    # -- reads

    def query(self, query: Query) -> QueryResult | None:
        """Answer from here if this node is serving, or the query may be stale; else None.

        What needs a confirmation is not answered here: `confirm`, then `read` it.
        """
        if query.consistency == "stale" and query.max_staleness_ms is None:
            return self.read(query)
        if self.replica.primary is None or self.needs_confirmation(query):
            return None
        result = self.read(query)
        # The lease is checked after the read and before the answer leaves (D4).
        return result if self.replica.may_serve(self._clock()) else None

    def needs_confirmation(self, query: Query) -> bool:
        """Whether a read may not rest on the leases, as asked for or as configured."""
        if query.consistency == "confirmed":
            return True
        is_old = query.consistency == "stale" and query.max_staleness_ms is None
        return self.confirms_reads and not is_old

    def confirm(self, waiting: Confirmation) -> None:
        """Let `waiting` wait until the replicas have confirmed that this node is the primary still.

        What is applied here then holds all that was acknowledged before.
        """
        if self.stopped:
            waiting.set_exception(self.not_primary())
        else:
            self.run(self.confirmations.ask, waiting)

    def read(self, query: Query) -> QueryResult:
        """Run a query on what is applied here, whatever that is, if its caller may (A1)."""
        self.queries_total += 1
        store = self._store
        if query.caller is not None and isinstance(
            refused := refusal(self.access, query, store.get), OperationError
        ):
            raise refused
        service = self._services.get(query.service)
        if service is None:
            raise unknown_service(query.service, self._services)
        method = service.queries.get(query.method)
        if method is None:
            known = ", ".join(sorted(service.queries))
            raise RejectedError("unknown_query", f"no query {query.method!r}; the queries: {known}")
        value = method(self._read_views[query.service], *query.args)
        return QueryResult(value, store.applied_index, self.replica.state.epoch, self.node_id)

    def check_admin(self, caller: Principal) -> None:
        """Raise OperationError unless `caller` may change the cluster, by what is applied here."""
        if self.access is not None:
            judged = self.access.judge_admin(caller, self._store.get)
            if isinstance(judged, OperationError):
                raise judged

    def tell_guard(self) -> None:
        """Let the guard notice, now and with each change, that this cluster has access control."""
        access, store = self.access, self._store
        if access is not None and not access.is_on:
            place = access.mark
            self.feed.observe(*place, lambda: access.notice(store.get(*place)))
            access.notice(store.get(*place))

    def stored(self, keyspace: int, key: bytes) -> bytes | None:
        """Return what is stored under a key, of what is applied here."""
        return self._store.get(keyspace, key)

    def service_counters(self) -> dict[str, float]:
        """Numbers of the services, for metrics."""
        counters: dict[str, float] = {}
        for service in self._services.values():
            counters |= service.counters()
        return counters

    def read_index(self) -> tuple[int, int]:
        """Return (epoch, commit index) if this node serves. Raises NotPrimaryError.

        Where reads are confirmed it does not do: `confirm` says the same.
        """
        replica = self.replica
        epoch, index = replica.state.epoch, replica.state.commit_index
        if not replica.may_serve(self._clock()):
            raise self.not_primary()
        return epoch, index

    def advance_commit(self, epoch: int, index: int) -> int:
        """The primary of `epoch` has said that `index` is committed. Return what is applied."""
        if index > self.replica.state.commit_index:
            self.run(self.replica.advance_commit, epoch, index)
        return self._store.applied_index

    @property
    def applied_index(self) -> int:
        """Everything up to there is applied here."""
        return self._store.applied_index

    def wait_applied(self, index: int, waiting: AppliedWaiter) -> None:
        """Tell `waiting` once everything up to `index` is applied here; it is not yet."""
        self._applied_waiters.append((index, waiting))

    def _wake_applied(self) -> None:
        kept = []
        for index, waiting in self._applied_waiters:
            if waiting.done():
                continue
            if index <= self.applied_index:
                waiting.set_result(None)
            else:
                kept.append((index, waiting))
        self._applied_waiters = kept

    # -- why not

    def not_primary(self) -> NotPrimaryError:
        """Make the error for who asks a node that does not serve."""
        view = self.replica.view
        return NotPrimaryError("no_primary", self.why_not_serving(), view.primary if view else "")

    def warnings(self) -> tuple[str, ...]:
        """Sentences about this replica for `status`."""
        if not self.replica.state.incomplete:
            return ()
        return (
            (
                f"{self.node_id} may lack acknowledged entries: it will not take over until a "
                "primary has caught it up. If there is no primary, bring back a replica that was "
                "in sync"
            ),
        )

    def why_not_serving(self) -> str:
        """A sentence about why this node does not serve as the primary now."""
        replica, view = self.replica, self.replica.view
        if view is None:
            return (
                f"{self.node_id} has not reached consensus yet: check that a majority of the "
                "nodes is running"
            )
        if replica.primary is None:
            if view.primary == self.node_id:
                if replica.state.incomplete:
                    return self.warnings()[0]
                return f"{self.node_id} is about to become the primary again"
            return (
                f"{self.node_id} is not the primary; the primary of epoch {view.epoch} is "
                f"{view.primary}"
            )
        if not replica.primary.is_open:
            return (
                f"{self.node_id} is becoming the primary: it is waiting for "
                f"{', '.join(view.in_sync)}"
            )
        if not replica.may_execute():
            return f"{self.node_id} is handing over"
        silent = ", ".join(sorted(replica.primary.in_sync.required))
        return (
            f"{self.node_id} is the primary, but some of {silent} do not answer, and their "
            "removal from the in-sync set has not been agreed: check that a majority of the "
            "nodes is running"
        )
