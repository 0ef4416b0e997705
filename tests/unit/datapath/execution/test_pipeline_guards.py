"""What the pipeline tells whom, and when: its conditions, one by one (`sim/guards.py`)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import msgspec
import pytest

from cluster.services.access import ACCESS_SERVICE, Access
from cluster.services.access_guard import TokenGuard
from cluster.services.kv import KeyValue
from cluster.services.rights import Role, encode_role
from datapath.errors import NotPrimaryError, OperationError, RejectedError, SafetyError
from datapath.execution import pipeline as module
from datapath.execution.access_guard import AccessGuard
from datapath.execution.changes import Feed
from datapath.execution.executor import Executor
from datapath.execution.pipeline import Pipeline
from datapath.execution.tail import Tail
from datapath.operations import ANONYMOUS, STORE, Operation, Result
from datapath.protocol import effects
from datapath.protocol.messages import AppendReply
from datapath.protocol.primary import Primary
from datapath.records import Record
from datapath.service import Service, Transaction, operation
from datapath.settings import Bounds
from tests.sim.service import MemoryStore
from tests.unit.datapath.protocol.test_primary_guards import Lead
from tests.unit.datapath.protocol.test_replica_guards import _record

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
        others: Mapping[str, Service] | None = None,
        access: AccessGuard | None = None,
    ) -> None:
        services = {STORE: service or KeyValue(), **(others or {})}
        self.tasks: list[asyncio.Task[None]] = []
        self.lead = Lead(in_sync="ab")
        self.store = MemoryStore()
        self.has_room: Callable[[int], bool] = lambda _: True
        self.turns: list[Callable[[], object]] = []
        self.unwritten: list[effects.Effect] = []
        executor = Executor(
            services, self.store, Bounds().client_table, lambda: self.lead.now_ms, access
        )
        self.tail = Tail(
            "b",
            self.lead.replica,
            executor,
            self.store,
            Feed(self.store.applied_index, 0),
            list(self.lead.primary.replication.recent),
            not_primary=self.not_primary,
            call_soon=self.turns.append,
            confirm=confirm,
            clock=lambda: self.lead.now_ms,
        )
        self.pipeline = Pipeline(
            "b",
            self.lead.replica,
            executor,
            self.tail,
            self,
            bounds or Bounds(),
            async_operations={name: item.async_operations for name, item in services.items()},
            append=self._append,
            not_primary=self.not_primary,
            why_not_serving=lambda: "it does not serve",
            spawn=self._spawn,
            call_soon=self.turns.append,
            on_error=self._fail,
            clock=lambda: self.lead.now_ms,
        )
        self.lead.probed("a")
        self.lead.promise("a")
        self.acknowledge()
        self.pipeline.open_epoch()

    def not_primary(self) -> NotPrimaryError:
        view = self.lead.replica.view
        return NotPrimaryError("no_primary", "it does not serve", view.primary if view else "")

    @staticmethod
    def _fail(problem: Exception) -> None:
        raise problem

    def reserve(self, size_bytes: int, /) -> bool:
        return self.has_room(size_bytes)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        self.tasks.append(asyncio.get_running_loop().create_task(coroutine))
        return self.tasks[-1]

    def _append(self, record: Record) -> None:
        self._carry_out(self.lead.replica.append(record))

    def _carry_out(self, emitted: list[effects.Effect]) -> None:
        for effect in emitted:
            if isinstance(effect, effects.WriteRecords):
                self.tail.on_written(effect.records)
                self.unwritten.append(effect)
            elif isinstance(effect, effects.Commit):
                self.tail.commit(effect.index)
                self.pipeline.schedule()
            elif isinstance(effect, effects.StepDown):
                self.pipeline.step_down()

    def write(self) -> None:
        """What was appended is durable here."""
        unwritten, self.unwritten = self.unwritten, []
        self._carry_out([e for e in self.lead.write(unwritten) if e not in unwritten])
        self.tail.answer_local()

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


# who is refused before anything is executed


def test_a_backup_takes_nothing() -> None:
    desk = Desk()
    desk.depose()
    assert desk.put("k").said == "not_applied no_primary"
    assert desk.put("k", "K").said == "not_applied no_primary"
    error = desk.put("k").error
    assert isinstance(error, NotPrimaryError)
    assert error.primary == "a", "where to go instead"


def test_a_pipeline_that_has_stopped_takes_nothing() -> None:
    desk = Desk()
    waiting = desk.put("k")
    desk.pipeline.stop("it stops")
    assert waiting.said == "not_applied no_primary"
    assert desk.put("k").said == "not_applied no_primary"


def test_more_operations_or_bytes_than_may_wait_are_refused() -> None:
    size_bytes = 10_000
    for bounds in (
        Bounds(max_waiting_operations=2),
        Bounds(max_waiting_bytes=2 * size_bytes + 1000),
    ):
        desk = Desk(bounds=bounds)
        taken = [desk.ask("put", b"k", bytes(size_bytes)) for _ in range(2)]
        assert desk.ask("put", b"k", bytes(size_bytes)).said == "not_applied overloaded"
        desk.commit()
        assert [told.said for told in taken] == ["done", "done"]
        assert desk.ask("put", b"k", bytes(size_bytes)).said == ""


def test_only_what_is_async_is_executed_alone() -> None:
    class Both(Service):
        @operation
        def plain(self) -> None: ...

        @operation
        async def slow(self) -> None: ...

    assert Both().async_operations == {"slow"}


def test_too_few_in_sync_or_copies_refuse_what_is_new_and_not_what_is_known() -> None:
    desk = Desk()
    first = desk.put("k", "K", min_copies=2)
    desk.commit()
    assert first.said == "done"
    refused = [desk.put("k", min_copies=3), desk.put("k", "L", min_copies=3)]
    again = desk.put("k", "K", min_copies=3)
    desk.turn()
    assert [told.said for told in refused] == ["not_applied not_enough_copies"] * 2
    assert again.said == "unknown not_enough_copies"
    few = Desk(bounds=Bounds(min_in_sync=3))
    told = few.put("k")
    few.turn()
    assert told.said == "not_applied not_enough_copies"


def test_where_too_many_wait_only_what_is_known_is_taken() -> None:
    desk = Desk(bounds=Bounds(max_waiting_operations=1))
    first, again = desk.put("k", "K"), desk.put("k", "K")
    assert desk.put("k", "L").said == "not_applied overloaded"
    assert again.said == ""
    third = desk.put("k", "K")
    desk.turn()
    assert (first.said, again.said, third.said) == ("", "", "")
    desk.commit()
    assert (first.said, again.said, third.said) == ("done", "repeated", "repeated")
    last = desk.put("other", "M")
    late = desk.put("k", "K")
    desk.turn()
    assert (last.said, late.said) == ("", "repeated")


def test_what_is_known_where_too_many_wait_is_answered_before_the_role_ends() -> None:
    desk = Desk(bounds=Bounds(max_waiting_operations=1))
    first, again = desk.put("k", "K"), desk.put("k", "K")
    desk.depose()
    assert first.said == "not_applied no_primary"
    assert again.said == "unknown unknown_outcome"
    desk.turn()


def test_a_refusal_says_unknown_while_an_earlier_request_under_its_key_waits() -> None:
    desk = Desk()
    first = desk.put("k", "K")
    again, other = desk.put("k", "K", timeout_ms=10), desk.put("k", timeout_ms=10)
    desk.lead.now_ms += 10
    desk.pipeline.expire(desk.lead.now_ms)
    assert again.said == "unknown unknown_outcome"
    assert other.said == "not_applied timeout"
    desk.commit()
    assert first.said == "done"
    late = desk.put("other", "K2", timeout_ms=10)
    desk.lead.now_ms += 10
    desk.pipeline.expire(desk.lead.now_ms)
    assert late.said == "not_applied timeout", "none waits any more"


def test_after_a_request_was_executed_its_key_does_not_count_as_waiting() -> None:
    desk = Desk(bounds=Bounds(min_in_sync=3))
    first, again = desk.put("k", "K"), desk.put("k", "K")
    desk.turn()
    assert first.said == "unknown unknown_outcome", "the second one still waited"
    assert again.said == "not_applied not_enough_copies"


# when time runs out


def test_time_runs_out_for_those_whose_deadline_it_is_and_for_nobody_twice() -> None:
    desk = Desk()
    soon, later = desk.put("a", timeout_ms=10), desk.put("b", timeout_ms=20)
    desk.turn()
    desk.pipeline.expire(desk.lead.now_ms + 9)
    assert (soon.said, later.said) == ("", "")
    desk.pipeline.expire(desk.lead.now_ms + 10)
    assert (soon.said, later.said) == ("unknown timeout", "")
    desk.pipeline.expire(desk.lead.now_ms + 20)
    assert later.said == "unknown timeout"
    desk.commit()
    assert (soon.said, later.said) == ("unknown timeout", "unknown timeout")


def test_a_repeat_of_what_has_not_committed_is_unknown_when_its_time_runs_out() -> None:
    desk = Desk(bounds=Bounds(max_inflight_records=1))
    first = desk.put("k", "K")
    desk.turn()
    again = desk.put("k", "K", timeout_ms=10)
    desk.turn()
    desk.pipeline.expire(desk.lead.now_ms + 10)
    assert (first.said, again.said) == ("", "unknown timeout")


def test_who_is_gone_is_not_executed_for() -> None:
    desk = Desk()
    last_index = desk.lead.last_index
    gone = desk.put("k")
    gone.gone = True
    desk.turn()
    assert desk.lead.last_index == last_index


# what is under way is bounded


def test_what_is_executed_and_not_committed_is_bounded_by_records_and_by_bytes() -> None:
    for bounds in (Bounds(max_inflight_records=1), Bounds(max_inflight_bytes=40)):
        desk = Desk(bounds=bounds)
        first = desk.put("a")
        desk.turn()
        second = desk.put("b")
        desk.turn()
        assert len(desk.pipeline.waiting) == 1
        desk.write()
        desk.acknowledge()
        assert first.said == "done"
        desk.commit()
        assert second.said == "done"


def test_what_waits_when_a_handover_begins_is_not_executed() -> None:
    desk = Desk()
    desk.lead.append()  # not acknowledged yet, so the handover waits
    told, last_index = desk.put("k"), desk.lead.last_index
    assert desk.lead.replica.start_handover("a", 500)[0] == ""
    desk.turn()
    assert told.said == ""
    assert desk.lead.last_index == last_index


def test_a_record_is_bounded_by_entries_and_by_bytes() -> None:
    for bounds in (Bounds(max_record_entries=2), Bounds(max_record_bytes=80)):
        desk = Desk(bounds=bounds)
        told = [desk.put(name) for name in "abcd"]
        desk.turn()
        assert desk.pipeline.records_total == 2
        desk.commit()
        assert [one.said for one in told] == ["done"] * 4


def test_a_disk_without_room_refuses_writes_alone() -> None:
    desk = Desk()
    desk.put("k", "K")
    desk.commit()
    desk.has_room = lambda _: False
    write, again, nothing = desk.put("x"), desk.put("k", "K"), desk.ask("delete", b"none")
    desk.turn()
    assert (write.said, again.said) == ("not_applied storage_full", "repeated")
    assert nothing.said == "done"
    desk.has_room = lambda size_bytes: size_bytes < 1000
    told = [desk.ask("put", b"k", bytes(600)) for _ in range(2)]
    desk.commit()
    assert [one.said for one in told] == ["done", "not_applied storage_full"]
    desk.has_room = lambda size_bytes: size_bytes < 80_000
    large = desk.ask("put", b"k", bytes(100_000))
    desk.turn()
    assert large.said == "not_applied storage_full"


# what is seen of what has not committed (D2, D4)


def test_what_wrote_nothing_is_answered_when_what_it_may_have_seen_has_committed() -> None:
    desk = Desk()
    write = desk.put("k")
    nothing = desk.ask("put", b"k", b"v", None, True)  # if absent
    desk.turn()
    assert (write.said, nothing.said) == ("", "")
    alone = desk.ask("delete", b"none")
    desk.turn()
    assert alone.said == "", "it may have seen that the key is not there yet"
    desk.commit()
    assert (write.said, nothing.said, alone.said) == (
        "done",
        "not_applied precondition_failed",
        "done",
    )


def test_what_wrote_nothing_is_answered_only_under_a_lease_that_lasts() -> None:
    desk = Desk()
    desk.lead.now_ms += 10_000
    told = [desk.ask("delete", b"none") for _ in range(2)]
    desk.turn()
    assert [one.said for one in told] == ["not_applied no_primary"] * 2


def test_an_early_answer_waits_for_the_disk_and_for_what_shines_through() -> None:
    desk = Desk()
    early = desk.put("a", ack="local")
    desk.turn()
    desk.tail.answer_local()
    assert early.said == "", "it is not durable"
    desk.write()
    assert early.said == "done"
    over_it = desk.put("a", ack="local")
    desk.turn()
    desk.write()
    assert over_it.said == "", "it has seen a write that may be lost"
    desk.acknowledge()
    assert over_it.said == "done"


def test_what_wrote_nothing_gets_no_early_answer() -> None:
    """It is a read's answer: it waits for the commit, and then for the lease (D4)."""
    desk = Desk()
    write, nothing = desk.put("k"), desk.ask("delete", b"none", ack="local")
    desk.turn()
    desk.write()
    assert (write.said, nothing.said) == ("", "")
    desk.lead.now_ms += 10_000
    desk.acknowledge()
    assert (write.said, nothing.said) == ("done", "not_applied no_primary")


# when the role ends


def test_what_was_executed_is_unknown_when_the_role_ends_and_what_was_not_is_not_applied() -> None:
    desk = Desk(bounds=Bounds(max_inflight_records=1))
    written, nothing = desk.put("a"), desk.ask("delete", b"none")
    early = desk.put("b", ack="local")
    desk.turn()
    waiting = desk.put("c")
    desk.turn()
    desk.depose()
    assert written.said == "unknown unknown_outcome"
    assert early.said == "unknown unknown_outcome"
    assert nothing.said == "not_applied no_primary"
    assert waiting.said == "not_applied no_primary"
    assert len(desk.pipeline.waiting) == 0
    desk.turn()


def test_a_repeat_shares_the_fate_of_what_it_repeats_when_the_role_ends() -> None:
    desk = Desk()
    told = [desk.put("k", "K") for _ in range(2)]
    desk.turn()
    desk.depose()
    assert [one.said for one in told] == ["unknown unknown_outcome"] * 2


def test_an_early_answer_stands_when_the_role_ends() -> None:
    desk = Desk()
    early = desk.put("k", ack="local")
    desk.turn()
    desk.write()
    desk.depose()
    assert early.said == "done"


def test_an_early_answer_tells_a_refusal_as_one() -> None:
    desk = Desk()
    desk.put("k")
    desk.commit()
    told = desk.ask("put", b"k", b"v", None, True, idempotency_key="K", ack="local")
    desk.turn()
    desk.write()
    assert told.said == "not_applied precondition_failed"


def test_what_wrote_nothing_names_the_revision_that_it_has_seen() -> None:
    desk = Desk()
    desk.put("k")
    desk.commit()
    told = desk.ask("delete", b"none")
    desk.turn()
    assert told.result is not None
    assert told.result.index == desk.lead.commit_index == 2


def test_a_repeat_needs_no_lease() -> None:
    desk = Desk()
    desk.put("k", "K")
    desk.commit()
    desk.lead.now_ms += 10_000
    again = desk.put("k", "K")
    desk.turn()
    assert again.said == "repeated"


def test_a_stop_says_the_same() -> None:
    desk = Desk()
    written = desk.put("a")
    desk.turn()
    waiting = desk.put("c")
    desk.pipeline.stop("it stops")
    assert (written.said, waiting.said) == ("unknown unknown_outcome", "not_applied no_primary")


# the tail of the log


def test_a_commit_beyond_what_can_be_applied_stops_the_node() -> None:
    desk = Desk()
    with pytest.raises(SafetyError, match="could be applied"):
        desk.tail.commit(desk.lead.last_index + 1)


def test_what_was_cut_from_the_log_is_not_applied() -> None:
    desk = Desk()
    desk.depose()
    records = [_record(index, 2) for index in (2, 3, 4)]
    desk.tail.on_written(records)
    assert len(desk.tail) == 3
    desk.tail.on_truncated(3)
    assert len(desk.tail) == 1
    desk.tail.on_written([_record(3, 3)])
    desk.tail.commit(3)
    assert desk.store.applied_index == 3
    desk.tail.on_written([_record(4, 3)])
    desk.tail.on_snapshot()
    assert len(desk.tail) == 0


# answers that are confirmed (decision 17)


def test_what_wrote_nothing_waits_for_a_confirmation_where_one_is_asked_for() -> None:
    asked: list[Any] = []
    desk = Desk(confirm=asked.append)
    told = [desk.ask("delete", b"none") for _ in range(2)]
    write = desk.put("k")
    desk.commit()
    assert write.said == "done"
    assert [one.said for one in told] == ["", ""]
    [waiting] = asked
    assert not waiting.done()
    told[0].gone = True
    assert not waiting.done()
    waiting.set_result(None)
    assert [one.said for one in told] == ["", "done"]
    assert waiting.done()
    waiting.set_exception(desk.not_primary())
    waiting.set_result(None)


def test_a_confirmation_that_does_not_come_in_time_is_no_answer() -> None:
    asked: list[Any] = []
    desk = Desk(confirm=asked.append)
    told = [desk.ask("delete", b"none", timeout_ms=ms) for ms in (10, 20, FAR_MS)]
    desk.turn()
    desk.pipeline.expire(desk.lead.now_ms + 10)
    assert [one.said for one in told] == ["not_applied timeout", "", ""]
    asked[0].set_exception(desk.not_primary())
    assert [one.said for one in told[1:]] == ["not_applied no_primary"] * 2


def test_answers_that_were_confirmed_are_not_kept() -> None:
    desk = Desk(confirm=lambda waiting: waiting.set_result(None))
    for _ in range(5):
        told = desk.ask("delete", b"none")
        desk.turn()
        assert told.said == "done"
        assert len(desk.tail._unconfirmed) <= 1


def test_a_first_answer_is_recalled_once_it_is_applied_here() -> None:
    desk = Desk()
    put = Operation("put", (b"k", b"value"), "K")
    desk.put("k", "K")
    desk.turn()
    assert desk.tail.recall(put) is None
    desk.commit()
    known = desk.tail.recall(put)
    assert isinstance(known, Result)
    assert known.repeated


def test_who_waits_for_a_confirmation_is_told_when_the_role_ends() -> None:
    asked: list[Any] = []
    desk = Desk(confirm=asked.append)
    told = desk.ask("delete", b"none")
    desk.turn()
    later = desk.ask("delete", b"none")
    desk.pipeline._take_turn()
    desk.depose()
    assert (told.said, later.said) == ("not_applied no_primary",) * 2
    desk.turn()
    assert len(asked) <= 2


# operations that wait, and deltas that are too large


class Slow(Service):
    """Puts at once, or when it is let go on."""

    def __init__(self) -> None:
        super().__init__()
        self.order: list[bytes] = []
        self.go_on = asyncio.Event()

    @operation
    def put(self, tx: Transaction, key: bytes, value: bytes) -> int:
        self.order.append(key)
        tx.put(key, value)
        return tx.index

    @operation
    async def put_slowly(self, tx: Transaction, key: bytes, value: bytes) -> int:
        self.order.append(b"begin " + key)
        await self.go_on.wait()
        return self.put(tx, key, value)

    @operation
    async def put_never(self, tx: Transaction, key: bytes) -> None:
        await self.go_on.wait()
        tx.put(key, b"")
        raise RejectedError("not_wanted", "it is not wanted")


async def test_beside_an_operation_that_waits_nothing_is_executed() -> None:
    service = Slow()
    desk = Desk(service)
    before, slow, after = desk.put("a"), desk.ask("put_slowly", b"b", b""), desk.put("c")
    desk.commit()
    await asyncio.sleep(0)
    assert before.said == "done"
    more = desk.put("d")
    desk.commit()
    assert service.order == [b"a", b"begin b"]
    service.go_on.set()
    await desk.tasks[0]
    desk.commit()
    assert (slow.said, after.said, more.said) == ("done", "done", "done")
    assert service.order == [b"a", b"begin b", b"b", b"c", b"d"]
    assert slow.result is not None
    assert (slow.result.index, slow.result.value) == (3, 0)  # others might have gone before it
    assert desk.pipeline.records_total == 3


async def test_a_refusal_of_an_operation_that_waited_is_told_and_nothing_recorded() -> None:
    service = Slow()
    service.go_on.set()
    desk = Desk(service)
    told, last_index = desk.ask("put_never", b"k"), desk.lead.last_index
    desk.turn()
    await desk.tasks[0]
    assert told.said == "not_applied not_wanted"
    assert desk.lead.last_index == last_index
    after = desk.put("k")
    desk.commit()
    assert after.said == "done"


@pytest.mark.parametrize("ends", [False, True])
async def test_an_operation_whose_epoch_ends_while_it_waits_is_not_applied(*, ends: bool) -> None:
    service = Slow()
    desk = Desk(service)
    told = desk.ask("put_slowly", b"k", b"")
    desk.turn()
    await asyncio.sleep(0)
    if ends:
        service.go_on.set()  # it has ended, and its task has not gone on yet
    desk.depose()
    service.go_on.set()
    await asyncio.wait(desk.tasks)
    assert told.said == "not_applied no_primary"
    assert desk.lead.last_index == 1


@pytest.mark.parametrize("epoch_ends", [False, True])
async def test_an_operation_that_may_not_be_recorded_any_more_is_not_applied(
    *, epoch_ends: bool
) -> None:
    """D2: during a handover, or in another epoch, though its task was not cancelled."""
    service = Slow()
    desk = Desk(service)
    desk.lead.append()  # not acknowledged yet, so the handover waits
    told, last_index = desk.ask("put_slowly", b"k", b""), desk.lead.last_index
    desk.turn()
    await asyncio.sleep(0)
    if epoch_ends:
        desk.lead.replica.state.epoch += 1
    else:
        assert desk.lead.replica.start_handover("a", 500)[0] == ""
    service.go_on.set()
    await desk.tasks[0]
    assert told.said == "not_applied no_primary"
    assert desk.lead.last_index == last_index


async def test_an_operation_that_waits_for_ever_ends_with_the_epoch() -> None:
    desk = Desk(Slow())
    told = desk.ask("put_slowly", b"k", b"")
    desk.turn()
    await asyncio.sleep(0)
    desk.depose()
    for _ in range(3):
        await asyncio.sleep(0)
    assert told.said == "not_applied no_primary"


async def test_an_operation_that_waits_while_the_pipeline_stops_is_not_applied() -> None:
    service = Slow()
    desk = Desk(service)
    told, last_index = desk.ask("put_slowly", b"k", b""), desk.lead.last_index
    desk.turn()
    await asyncio.sleep(0)
    desk.pipeline.stop("it stops")
    service.go_on.set()
    await desk.tasks[0]
    assert told.said == "not_applied no_primary"
    assert desk.lead.last_index == last_index


def test_deltas_too_large_together_are_recorded_apart_and_one_too_large_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_ENTRIES_SIZE_BYTES", 240)
    desk = Desk()
    told = [desk.ask("put", b"k", bytes(size)) for size in (100, 100, 10, 300)]
    desk.commit()
    assert [one.said for one in told] == ["done"] * 3 + ["not_applied too_large"]
    assert desk.pipeline.records_total == 2


def test_what_was_executed_before_a_record_that_could_not_be_made_is_not_applied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_ENTRIES_SIZE_BYTES", 240)
    desk = Desk()

    def fail(_: Record) -> None:
        desk.pipeline.stop("the disk has failed")

    monkeypatch.setattr(desk.pipeline, "_append", fail)
    first, second = (desk.ask("put", b"k", bytes(100)) for _ in range(2))
    desk.turn()
    assert first.said == "unknown unknown_outcome"
    assert second.said == "not_applied no_primary"


def test_a_repeat_of_what_has_committed_does_not_wait_for_what_has_not() -> None:
    desk = Desk()
    desk.put("k", "K")
    desk.commit()
    write, again = desk.put("other"), desk.put("k", "K")
    desk.turn()
    assert (write.said, again.said) == ("", "repeated")


def test_what_a_backup_recalls_is_known_on_its_own_copy() -> None:
    desk = Desk()
    desk.put("k", "K")
    desk.commit()
    desk.depose()
    known = desk.tail.recall(Operation("put", (b"k", b"value"), "K"))
    assert isinstance(known, Result)
    assert known.copies == 1


# whose repeat it is (A1)


class GuardedDesk(Desk):
    """With access control: whoever has no token may write, until `revoke`. "K" has committed."""

    def __init__(self, **options: Any) -> None:
        guard = TokenGuard(anonymous="guest")
        super().__init__(others={ACCESS_SERVICE: Access()}, access=guard, **options)
        self.ask("seed", "admin", bytes(32), service=ACCESS_SERVICE)
        self.set_role(Role(write=("",)))
        assert self.repeat(turns=0).said == ""
        self.commit()

    def set_role(self, role: Role) -> Told:
        args = ("guest", encode_role(role))
        return self.ask("set_role", *args, service=ACCESS_SERVICE)

    def repeat(self, turns: int = 1, **options: Any) -> Told:
        told = self.put("k", "K", caller=ANONYMOUS, **options)
        if turns:
            self.turn()
        return told


def test_a_first_answer_is_given_to_who_has_the_right() -> None:
    desk = GuardedDesk()
    assert desk.repeat().said == "repeated"
    desk.set_role(Role())
    refused = desk.repeat()
    desk.commit()
    assert refused.said == "not_applied forbidden"


def test_a_first_answer_that_rests_on_rights_needs_a_lease_that_lasts() -> None:
    desk = GuardedDesk()
    desk.lead.now_ms += 10_000
    assert desk.repeat().said == "unknown unknown_outcome", "not that it was not applied (D8)"
    assert desk.put("k", "K").said == ""
    desk.turn()
    assert desk.put("k", "other").said == "", "of the node itself nothing is asked"


def test_a_first_answer_waits_for_the_commit_of_what_gives_the_right() -> None:
    desk = GuardedDesk()
    desk.set_role(Role())
    desk.commit()
    desk.set_role(Role(write=("",)))
    again = desk.repeat()
    assert again.said == "", "the grant may be lost"
    desk.commit()
    assert again.said == "repeated"


def test_a_first_answer_waits_for_a_confirmation_where_one_is_asked_for() -> None:
    asked: list[Any] = []
    desk = GuardedDesk(confirm=asked.append)
    again = desk.repeat()
    assert again.said == ""
    asked.pop().set_exception(desk.not_primary())
    assert again.said == "unknown unknown_outcome"


def test_nobody_is_judged_once_the_epoch_is_over() -> None:
    desk = GuardedDesk()
    again, other = desk.repeat(turns=0), desk.put("k", "another", caller=ANONYMOUS)
    desk.depose()
    assert (again.said, other.said) == ("unknown unknown_outcome", "not_applied no_primary")


def test_nobody_is_judged_before_the_epoch_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """A revocation of an earlier epoch may be in the log, and not applied yet."""
    desk = GuardedDesk(bounds=Bounds(max_waiting_operations=3))
    desk.put("in the log")
    desk.turn()
    monkeypatch.setattr(Primary, "is_open", property(lambda _: False))
    for number in range(3):
        desk.put(f"in the way {number}")
    overloaded = desk.repeat()
    assert overloaded.said == "unknown unknown_outcome", "it must not wait for what is in the log"
