"""What a simulated node gives to the production interpreter, and what looks on while it works.

The store is in memory: committed entries make it, and a crash throws it back to some applied index.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING, Any

from cluster.services.built_in import built_in_services
from datapath.errors import OperationError, SafetyError
from datapath.keyspaces import KEYSPACES
from datapath.node.interpreter import Interpreter
from datapath.node.recovery import uncommitted
from datapath.operations import Completion, Operation, Query, QueryResult, Result
from datapath.protocol import effects
from datapath.protocol.confirmations import Confirmation, ReadPoint
from datapath.records import Entry, Record
from tests.sim.lease_oracle import moment
from tests.sim.questions import Questions

if TYPE_CHECKING:
    from tests.sim.node import Node

Spaces = list[dict[bytes, bytes]]


class MemoryStore:
    """A replica's state: what `datapath.storage.store.Store` is to the executor and the pipeline.

    It remembers how it came about, from the last snapshot on, to be thrown back by a crash.
    """

    def __init__(self) -> None:
        self._base: Spaces = [{} for _ in range(KEYSPACES)]
        self._base_index = 0
        self._history: list[tuple[int, list[Entry]]] = []
        self.keyspaces: Spaces = [{} for _ in range(KEYSPACES)]
        self.applied_index = 0

    @property
    def durable_index(self) -> int:
        """What a starting replica finds applied: the rest was thrown back."""
        return self.applied_index

    def apply(self, entries: list[Entry], last_index: int, epoch: int) -> None:
        """Apply committed entries."""
        del epoch
        if last_index - self.applied_index != len(entries):
            raise SafetyError(
                f"{len(entries)} entries up to {last_index} do not follow {self.applied_index}"
            )
        self._history.append((last_index, entries))
        self._write(entries, last_index)

    def _write(self, entries: list[Entry], last_index: int) -> None:
        for entry in entries:
            for keyspace, key, value in entry:
                if value is None:
                    self.keyspaces[keyspace].pop(key, None)
                else:
                    self.keyspaces[keyspace][key] = value
        self.applied_index = last_index

    def get(self, keyspace: int, key: bytes) -> bytes | None:
        """Return the committed value under a key."""
        return self.keyspaces[keyspace].get(key)

    def range(
        self, keyspace: int, start: bytes, end: bytes | None, limit: int
    ) -> list[tuple[bytes, bytes]]:
        """Return committed pairs, in key order."""
        held = self.keyspaces[keyspace]
        keys = sorted(key for key in held if start <= key and (end is None or key < end))
        return [(key, held[key]) for key in islice(keys, max(limit, 0))]

    def page(
        self, keyspace: int, start: bytes, end: bytes | None, limit: int, max_size_bytes: int
    ) -> tuple[list[tuple[bytes, bytes]], bytes | None]:
        """Return committed pairs and where to go on; what is simulated is small."""
        del max_size_bytes
        pairs = self.range(keyspace, start, end, limit + 1)
        return pairs[:limit], pairs[limit][0] if len(pairs) > limit else None

    def count(self, keyspace: int) -> int:
        """Return how many keys a keyspace has."""
        return len(self.keyspaces[keyspace])

    def copy(self) -> tuple[int, Spaces]:
        """Return what a snapshot holds."""
        return self.applied_index, [dict(keyspace) for keyspace in self.keyspaces]

    def install(self, index: int, keyspaces: Spaces) -> None:
        """Be what a snapshot holds."""
        self._base, self._base_index, self._history = keyspaces, index, []
        self.throw_back(index)

    def throw_back(self, applied_index: int) -> None:
        """Keep the entries up to that index: the later ones had not been flushed."""
        self.keyspaces = [dict(keyspace) for keyspace in self._base]
        self.applied_index = self._base_index
        kept = [item for item in self._history if item[0] <= applied_index]
        self._history = kept
        for last_index, entries in kept:
            self._write(entries, last_index)


class Storage:
    """A node's disk, as its interpreter is given it: the oracle looks at what is written.

    The state outlives the process: a crash throws it back.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._snapshots: dict[tuple[int, int], Spaces] = {}
        self.store = MemoryStore()

    def recover(self, commit_index: int) -> list[Record]:
        """The process has started: return the records that are not committed."""
        self._snapshots.clear()
        return uncommitted(self._node.disk.durable, commit_index)

    def crash(self, applied_index: int) -> None:
        """The process has ended; the store had flushed what was applied up to that index."""
        self.store.throw_back(max(applied_index, self._node.disk.durable.base_index))

    # -- `datapath.node.interpreter.ReplicaDisk`

    @property
    def writable(self) -> bool:
        """Whether the disk has room (`Troubles.fill_disk`)."""
        return self._node.replica.state.writable

    def stalled_for_ms(self) -> float:
        """For how long the oldest write has been under way."""
        return self._node.disk.stalled_for_ms()

    def reserve(self, size_bytes: int, /) -> bool:
        """Whether the disk has room."""
        del size_bytes
        return self.writable

    def write(self, ticket: int, records: list[Record]) -> None:
        """Append records."""
        node = self._node
        cache = node.disk.cache
        previous = cache.epoch_at(records[0].first_index - 1)
        for record in records:
            node.oracle.on_write(node, record, previous)
            previous = record.epoch
        if cache.last_index + 1 != records[0].first_index:
            node.oracle.fail(f"{node.id} writes beside the end of its log")
        node.disk.submit(ticket, "records", records)

    write_here = write  # a loop that waits for its disk is a node that stands still: `troubles`

    def truncate(self, ticket: int, from_index: int) -> None:
        """Cut the log."""
        node = self._node
        node.clockwork.seen["truncation"] += 1
        if node.clockwork.tracing:
            node.clockwork.note(f"{node.id} cuts its log from {from_index} on")
        if from_index <= node.replica.state.commit_index:
            node.oracle.fail(f"D6: {node.id} cuts entry {from_index}: committed")
        node.disk.submit(ticket, "truncate", from_index)

    def record_accepted(self, ticket: int, epoch: int, primary: str) -> None:
        """E5."""
        self._node.disk.submit(ticket, "accepted", (epoch, primary))

    def mark_incomplete(self, ticket: int) -> None:
        """Entries are missing that may have been acknowledged."""
        self._node.clockwork.seen["told of its loss"] += 1
        self._node.disk.submit(ticket, "mark_incomplete", None)

    def clear_marks(self, ticket: int) -> None:
        """Nothing is missing any more."""
        self._node.clockwork.seen["damage repaired"] += 1
        self._node.disk.submit(ticket, "clear_incomplete", None)

    def wants_flush(self) -> None:
        """What the store has flushed is drawn when its node crashes."""

    # -- snapshots

    def keep_snapshot(self, index: int, epoch: int) -> None:
        """A snapshot leaves: keep what it holds until it arrives."""
        applied_index, keyspaces = self.store.copy()
        if applied_index != index:
            raise SafetyError(f"a snapshot at {index} of a state at {applied_index}")
        self._snapshots[index, epoch] = keyspaces

    def install(self, sender: Storage, index: int, epoch: int) -> None:
        """The snapshot is in place."""
        self._node.disk.install(index, epoch)
        self.store.install(index, sender._snapshots[index, epoch])


class Confirming:
    """Who waits for a confirmation, and what the oracle knows that it must hold (decision 17)."""

    __slots__ = ("_inner", "_node", "acknowledged")

    def __init__(self, node: Node, inner: Confirmation | None) -> None:
        self._node = node
        self._inner = inner
        self.acknowledged = node.oracle.acknowledged

    def done(self) -> bool:
        """Whether nobody waits any more."""
        return self._inner is not None and self._inner.done()

    def set_result(self, point: ReadPoint, /) -> None:
        """It is confirmed."""
        node = self._node
        node.clockwork.seen["confirmed"] += 1
        if node.clock_rate == 0.0 or not node.replica.may_serve(node.clock()):
            node.clockwork.seen["confirmed without a clock or a lease"] += 1
        node.oracle.on_confirmed(node, self.acknowledged, point.index)
        if self._inner is not None:
            self._inner.set_result(point)

    def set_exception(self, exception: OperationError, /) -> None:
        """It is not."""
        if self._inner is not None:
            self._inner.set_exception(exception)


class NodeService(Interpreter):
    """The production interpreter in one life of a node; the oracle looks on.

    `node` is what it is given as its surroundings.
    """

    def __init__(self, node: Node) -> None:
        bounds = node.world.bounds
        uncommitted = node.storage.recover(node.replica.state.commit_index)
        self._node = node
        super().__init__(
            node.replica,
            built_in_services(node.world.timing.stall_threshold_ms, node.clock),
            node.storage,
            uncommitted,
            bounds,
            node,
            node.clock,
            node.world.guard,
        )
        self._questions = {kind: Questions(node, confirmed=kind) for kind in (False, True)}

    def run(self, event: Callable[..., list[effects.Effect]], *args: Any, **kwargs: Any) -> None:
        """Give the replica an event and carry out what follows; then look at the node."""
        super().run(event, *args, **kwargs)
        self._node.after_event()

    def _commit(self, index: int) -> None:
        """Before anybody is told."""
        self._node.on_commit(index)
        super()._commit(index)

    def confirm(self, waiting: Confirmation | None) -> None:
        """Let it wait; nobody at all is judged, too."""
        super().confirm(Confirming(self._node, waiting))

    # -- clients

    def ask(self, operation: Operation, timeout_ms: float, completion: Completion) -> None:
        """Execute; what is refused at once is an answer, too."""
        completion = Judged(self._node, operation, completion)
        try:
            self.pipeline.submit(operation, timeout_ms, completion)
        except OperationError as problem:
            completion.set_exception(problem)

    def answer(self, query: Query) -> QueryResult:
        """Read as the primary. Raises NotPrimaryError if this node does not serve."""
        result = self.query(query)
        if result is None:
            raise self.not_primary()
        return result

    def questions(self, query: Query) -> Questions:
        """Return what a read at this backup has to join."""
        return self._questions[query.consistency == "confirmed"]

    def when_applied(self, index: int, action: Callable[[], None]) -> None:
        """Do something once everything up to an index is applied here."""
        if index <= self.applied_index:
            action()
        else:
            self.wait_applied(index, Reading(self._node, action))


class Judged:
    """The `Completion` of an operation at this node, for the oracle to see what it is told."""

    __slots__ = ("_came", "_inner", "_node", "_operation")

    def __init__(self, node: Node, operation: Operation, inner: Completion) -> None:
        self._came = moment(node)
        self._node = node
        self._operation = operation
        self._inner = inner

    def done(self) -> bool:
        """Whether it has been answered."""
        return self._inner.done()

    def set_result(self, result: Result, /) -> None:
        """Judge what is told of leases, and pass the answer on."""
        if (leases := self._node.oracle.leases) is not None:
            leases.on_result(self._operation, self._came, result)
        self._inner.set_result(result)

    def set_exception(self, exception: OperationError, /) -> None:
        """Judge a refusal, and pass it on."""
        if self._operation.idempotency_key == "" and exception.outcome == "not_applied":
            self._node.clockwork.seen[f"client: without a key: {exception.code}"] += 1
        self._node.oracle.on_refused(self._node, self._operation, exception)
        if (leases := self._node.oracle.leases) is not None:
            leases.on_refusal(self._operation, exception)
        self._inner.set_exception(exception)


class Reading:
    """A read that waits for an entry to be applied; it goes on in a turn of its own."""

    __slots__ = ("_action", "_node")

    def __init__(self, node: Node, action: Callable[[], None]) -> None:
        self._node = node
        self._action = action

    def done(self) -> bool:
        """It waits until its node dies."""
        return False

    def set_result(self, result: None, /) -> None:
        """Go on."""
        self._node.call_soon(self._action)
