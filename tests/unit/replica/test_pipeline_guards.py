"""What the pipeline tells whom, and when: its conditions, one by one (`sim/guards.py`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from cluster.kv import KeyValue
from datapath import effects as fx
from datapath.errors import OperationError
from datapath.executor import Executor
from datapath.messages import AppendReply
from datapath.operations import Operation, Result
from datapath.pipeline import Pipeline
from datapath.records import Record
from datapath.service import Service
from datapath.settings import Bounds
from tests.sim.service import MemoryStore
from tests.unit.replica.test_primary_guards import Lead

FAR_MS = 1e9


class Told:
    """Who has asked, and what was answered: "" is nothing yet."""

    def __init__(self) -> None:
        self.result: Result | None = None
        self.error: OperationError | None = None
        self.gone = False

    def done(self) -> bool:
        return self.gone or self.result is not None or self.error is not None

    def set_result(self, result: Result, /) -> None:
        assert not self.done(), "it was answered before"
        self.result = result

    def set_exception(self, exception: OperationError, /) -> None:
        assert not self.done(), "it was answered before"
        self.error = exception

    @property
    def said(self) -> str:
        """What was told, in short."""
        if self.result is not None:
            return "repeated" if self.result.repeated else "done"
        return f"{self.error.outcome} {self.error.code}" if self.error is not None else ""


class Desk:
    """The primary "b" with its pipeline, a backup "a" in sync that acknowledges when it is told to.

    The replica, the executor and the service are the real ones; the store is in memory, the disk
    has room as long as `has_room` says so, and the event loop's turns are `turn`.
    """

    def __init__(
        self,
        service: Service | None = None,
        bounds: Bounds | None = None,
        confirm: Callable[[Any], None] | None = None,
    ) -> None:
        self.lead = Lead(in_sync="ab")
        self.store = MemoryStore()
        self.has_room: Callable[[int], bool] = lambda _: True
        self.turns: list[Callable[[], object]] = []
        self.unwritten: list[fx.Effect] = []
        self.pipeline = Pipeline(
            "b",
            self.lead.replica,
            Executor(
                service or KeyValue(), self.store, Bounds().client_table, lambda: self.lead.now_ms
            ),
            self,
            bounds or Bounds(),
            list(self.lead.primary.recent),
            async_operations=frozenset(),
            append=self._append,
            why_not_serving=lambda: "it does not serve",
            spawn=lambda _: NotImplemented,
            confirm=confirm,
            clock=lambda: self.lead.now_ms,
            call_soon=self.turns.append,
        )
        self.lead.probed("a")
        self.lead.promise("a")
        self.acknowledge()
        self.pipeline.open_epoch()

    def reserve(self, size_bytes: int, /) -> bool:
        return self.has_room(size_bytes)

    def _append(self, record: Record) -> None:
        self._carry_out(self.lead.replica.append(record))

    def _carry_out(self, effects: list[fx.Effect]) -> None:
        for effect in effects:
            if isinstance(effect, fx.WriteRecords):
                self.pipeline.on_written(effect.records)
                self.unwritten.append(effect)
            elif isinstance(effect, fx.Commit):
                self.pipeline.commit(effect.index)
            elif isinstance(effect, fx.StepDown):
                self.pipeline.step_down()

    def write(self) -> None:
        """What was appended is durable here."""
        unwritten, self.unwritten = self.unwritten, []
        self._carry_out([e for e in self.lead.write(unwritten) if e not in unwritten])
        self.pipeline.answer_local()

    def acknowledge(self) -> None:
        """The backup holds everything; what is durable here too commits."""
        reply = AppendReply(self.lead.sessions["a"], 1, self.lead.last_index)
        self._carry_out(self.lead.hear("a", reply))

    def commit(self) -> None:
        self.turn()
        self.write()
        self.acknowledge()
        self.turn()

    def turn(self) -> None:
        """The event loop's turns, until nothing is left to do."""
        while self.turns:
            self.turns.pop(0)()

    def ask(self, method: str, *args: object, timeout_ms: float = FAR_MS, **options: Any) -> Told:
        """Submit; what it raises was told as well."""
        told = Told()
        try:
            self.pipeline.submit(Operation(method, args, **options), timeout_ms, told)
        except OperationError as problem:
            told.error = problem
        return told

    def put(self, key: str, idempotency_key: str = "", **options: Any) -> Told:
        options = {"idempotency_key": idempotency_key, **options}
        return self.ask("put", key.encode(), b"value", **options)

    def depose(self) -> None:
        """A higher epoch is known."""
        view = self.lead.replica.view
        assert view is not None
        other = msgspec.structs.replace(
            view, epoch=2, version=view.version + 1, primary="a", in_sync=("a",)
        )
        self._carry_out(self.lead.replica.on_view(other))


def test_a_write_is_answered_when_it_has_committed() -> None:
    desk = Desk()
    told = desk.put("k")
    desk.turn()
    desk.write()
    assert told.said == ""
    desk.acknowledge()
    assert told.said == "done"
