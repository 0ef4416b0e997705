"""The production service on a simulated node: executor, pipeline and key-value store.

What `datapath.node.engine` does between the replica and the pipeline is done here on simulated
time. The store is in memory: committed entries make it, and a crash throws it back to some applied
index.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING, Any

from cluster.services.kv import KeyValue
from datapath.errors import OperationError, SafetyError
from datapath.execution.executor import Executor, ReadView
from datapath.execution.pipeline import Pipeline
from datapath.execution.tail import Tail
from datapath.operations import Operation, Query, QueryResult, Sink
from datapath.protocol import effects as fx
from datapath.records import Entry, Record
from datapath.storage.environment import SPACES
from tests.sim.questions import Questions

if TYPE_CHECKING:
    from tests.sim.node import Node

TURN_MS = (0.01, 0.1)
"""How long a turn of the event loop lasts."""

Spaces = list[dict[bytes, bytes]]


class MemoryStore:
    """A replica's state: what `datapath.storage.store.Store` is to the executor and the pipeline.

    It remembers how it came about, from the last snapshot on, to be thrown back by a crash.
    """

    def __init__(self) -> None:
        self._base: Spaces = [{} for _ in range(SPACES)]
        self._base_index = 0
        self._history: list[tuple[int, list[Entry]]] = []
        self.spaces: Spaces = [{} for _ in range(SPACES)]
        self.applied_index = 0

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
            for space, key, value in entry:
                if value is None:
                    self.spaces[space].pop(key, None)
                else:
                    self.spaces[space][key] = value
        self.applied_index = last_index

    def get(self, space: int, key: bytes) -> bytes | None:
        """Return the committed value under a key."""
        return self.spaces[space].get(key)

    def range(
        self, space: int, start: bytes, end: bytes | None, limit: int
    ) -> list[tuple[bytes, bytes]]:
        """Return committed pairs, in key order."""
        held = self.spaces[space]
        keys = sorted(key for key in held if start <= key and (end is None or key < end))
        return [(key, held[key]) for key in islice(keys, max(limit, 0))]

    def page(
        self, space: int, start: bytes, end: bytes | None, limit: int, max_size_bytes: int
    ) -> tuple[list[tuple[bytes, bytes]], bytes | None]:
        """Return committed pairs and where to go on; what is simulated is small."""
        del max_size_bytes
        pairs = self.range(space, start, end, limit + 1)
        return pairs[:limit], pairs[limit][0] if len(pairs) > limit else None

    def count(self, space: int) -> int:
        """Return how many keys a space has."""
        return len(self.spaces[space])

    def copy(self) -> tuple[int, Spaces]:
        """Return what a snapshot holds."""
        return self.applied_index, [dict(space) for space in self.spaces]

    def install(self, index: int, spaces: Spaces) -> None:
        """Be what a snapshot holds."""
        self._base, self._base_index, self._history = spaces, index, []
        self.throw_back(index)

    def throw_back(self, applied_index: int) -> None:
        """Keep the entries up to that index: the later ones had not been flushed."""
        self.spaces = [dict(space) for space in self._base]
        self.applied_index = self._base_index
        kept = [item for item in self._history if item[0] <= applied_index]
        self._history = kept
        for last_index, entries in kept:
            self._write(entries, last_index)


class NodeService:
    """What serves clients on a node; it is given what the engine would be given."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._ready_index = 0
        self._snapshots: dict[tuple[int, int], Spaces] = {}
        self._applied_waiters: list[tuple[int, Callable[[], None]]] = []
        self.kv = KeyValue()
        self.store = MemoryStore()
        self.tail: Tail
        self.pipeline: Pipeline
        self.executor: Executor
        self.read_view: ReadView
        self._questions: dict[bool, Questions] = {}
        # Each effect does first what it does on a node without a service.
        self._also(fx.WriteRecords, lambda effect: self.tail.on_written(effect.records))
        self._also(fx.TruncateLog, lambda effect: self.tail.on_truncated(effect.from_index))
        self._also(fx.Commit, self._commit)
        self._also(fx.StartEpoch, self._start_epoch)
        self._also(fx.StepDown, self._step_down)
        self._also(fx.HandoverEnded, lambda _: self.pipeline.schedule())

    def _also(self, effect: type, action: Callable[[Any], None]) -> None:
        handlers = self._node._handlers
        first = handlers[effect]

        def both(effect: Any) -> None:
            first(effect)
            action(effect)

        handlers[effect] = both

    # -- lifetime

    def start(self) -> None:
        """The process has started: replay the log, as far as it is known to be committed."""
        node = self._node
        core, disk = node.replica.core, node.disk
        records = list(disk.durable.records)
        for record in records:
            if self.store.applied_index < record.last_index <= core.commit_index:
                self.store.apply(record.entries(), record.last_index, record.epoch)
        if self.store.applied_index != core.commit_index:
            raise SafetyError(
                f"{node.id} starts with state {self.store.applied_index}, commit index "
                f"{core.commit_index}"
            )
        self._ready_index = 0
        self._applied_waiters.clear()
        self._snapshots.clear()
        self.executor = Executor(self.kv, self.store, node.world.bounds.client_table, node.clock)
        self.read_view = ReadView(self.store)
        self._questions = {kind: Questions(node, confirmed=kind) for kind in (False, True)}
        life = node.life
        self.tail = Tail(
            node.id,
            node.replica,
            self.executor,
            self.store,
            [record for record in records if record.first_index > core.commit_index],
            not_primary=node._not_primary,
            call_soon=lambda action: self._soon(life, action),
            confirm=node.confirm if node.world.bounds.confirm_reads else None,
            clock=node.clock,
        )
        self.pipeline = Pipeline(
            node.id,
            node.replica,
            self.executor,
            self.tail,
            self,
            node.world.bounds,
            async_operations=frozenset(),
            append=self._append,
            not_primary=node._not_primary,
            why_not_serving=lambda: f"{node.id} does not serve",
            spawn=_no_tasks,
            call_soon=lambda action: self._soon(life, action),
            clock=node.clock,
        )

    def crash(self, applied_index: int) -> None:
        """The process has ended; the store had flushed what was applied up to that index."""
        self.store.throw_back(max(applied_index, self._node.disk.durable.base_index))

    def _soon(self, life: int, action: Callable[[], None]) -> None:
        clockwork = self._node.clockwork
        clockwork.after(clockwork.between(*TURN_MS), self._node.post, life, action)

    def _append(self, record: Record) -> None:
        self._node._carry_out(self._node.replica.append(record))

    def reserve(self, size_bytes: int, /) -> bool:
        """Whether the disk has room."""
        del size_bytes
        return self._node.replica.core.writable

    # -- events and effects

    def on_tick(self) -> None:
        """Time has passed."""
        self.pipeline.expire(self._node.clock())
        self.pipeline.schedule()

    def on_view(self) -> None:
        """A view is known."""
        self.pipeline.schedule()

    def _commit(self, effect: fx.Commit) -> None:
        self.tail.commit(effect.index)
        self.pipeline.schedule()
        if self._ready_index and effect.index >= self._ready_index:
            self._ready_index = 0
            self.pipeline.open_epoch()
        self._wake_applied()

    def _start_epoch(self, effect: fx.StartEpoch) -> None:
        self._ready_index = effect.ready_index

    def _step_down(self, _: fx.StepDown) -> None:
        self._ready_index = 0
        self.pipeline.step_down()

    # -- snapshots

    def keep_snapshot(self, index: int, epoch: int) -> None:
        """A snapshot leaves: keep what it holds until it arrives."""
        applied_index, spaces = self.store.copy()
        if applied_index != index:
            raise SafetyError(f"a snapshot at {index} of a state at {applied_index}")
        self._snapshots[index, epoch] = spaces

    def install(self, sender: NodeService, index: int, epoch: int) -> None:
        """The snapshot is in place."""
        self.store.install(index, sender._snapshots[index, epoch])
        self.tail.on_snapshot()
        self._wake_applied()

    # -- clients

    def submit(self, operation: Operation, timeout_ms: float, sink: Sink) -> None:
        """Execute, if this node is the primary."""
        try:
            self.pipeline.submit(operation, timeout_ms, sink)
        except OperationError as problem:
            sink.set_exception(problem)

    def needs_confirmation(self, query: Query) -> bool:
        """Whether a read may not rest on the leases, as asked for or as configured."""
        return query.consistency == "confirmed" or self._node.world.bounds.confirm_reads

    def query(self, query: Query) -> QueryResult:
        """Read as the engine does. Raises NotPrimaryError if this node does not serve."""
        replica = self._node.replica
        if replica.primary is None:
            raise self._node._not_primary()
        result = self.read(query)
        # The lease is checked after the read and before the answer leaves (D4).
        if not replica.may_serve(self._node.clock()):
            raise self._node._not_primary()
        return result

    def read(self, query: Query) -> QueryResult:
        """Run a query on what is applied here."""
        value = self.kv.queries[query.method](self.read_view, *query.args)
        return QueryResult(value, self.store.applied_index, self._node.replica.epoch, self._node.id)

    def questions(self, query: Query) -> Questions:
        """Return what a read at this backup has to join."""
        return self._questions[query.consistency == "confirmed"]

    def read_index(self) -> tuple[int, int]:
        """Return (epoch, commit index) if this node serves. Raises NotPrimaryError."""
        replica = self._node.replica
        if not replica.may_serve(self._node.clock()):
            raise self._node._not_primary()
        return replica.epoch, replica.core.commit_index

    def learn_commit(self, epoch: int, index: int) -> None:
        """The primary has answered a read index request."""
        self._node._carry_out(self._node.replica.learn_commit(epoch, index))

    def when_applied(self, index: int, action: Callable[[], None]) -> None:
        """Do something once everything up to an index is applied here."""
        if self.store.applied_index >= index:
            action()
        else:
            self._applied_waiters.append((index, action))

    def _wake_applied(self) -> None:
        applied = self.store.applied_index
        ready = [action for index, action in self._applied_waiters if index <= applied]
        self._applied_waiters = [item for item in self._applied_waiters if item[0] > applied]
        for action in ready:
            self._soon(self._node.life, action)


def _no_tasks(_: object) -> asyncio.Task[None]:
    raise NotImplementedError("the key-value service has no async operations")
