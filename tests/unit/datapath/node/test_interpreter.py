"""Who hears of an effect in which order, and when a read is answered: condition by condition."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import cached_property, partial
from typing import Any

import msgspec
import pytest

from cluster.services.kv import KeyValue
from datapath.errors import NotPrimaryError, OperationError, RejectedError, SafetyError
from datapath.execution.concurrency import Running
from datapath.node.interpreter import Interpreter
from datapath.operations import STORE, Operation, Query, Result
from datapath.protocol import effects
from datapath.protocol.confirmations import ReadPoint
from datapath.protocol.messages import AppendReply, Message, StaleEpoch
from datapath.records import Record
from datapath.settings import Bounds
from tests.sim.node import PeerStream
from tests.sim.service import MemoryStore
from tests.unit.datapath.protocol.test_primary_guards import Lead

GET = Query("get", (b"k",))
STALE = Query("get", (b"k",), "stale")
NOT_TOO_STALE = msgspec.structs.replace(STALE, max_staleness_ms=100)
CONFIRMED = Query("get", (b"k",), "confirmed")
FAR_MS = 1e9


class Waiting:
    """Who waits for something."""

    def __init__(self) -> None:
        self.result: object = None
        self.error: OperationError | None = None
        self.gone = False
        self.called = False

    def done(self) -> bool:
        return self.gone or self.called

    def set_result(self, result: Result | ReadPoint | None, /) -> None:
        assert not self.done(), "nobody waits"
        self.result, self.called = result, True

    def set_exception(self, exception: OperationError, /) -> None:
        assert not self.done(), "nobody waits"
        self.error, self.called = exception, True


class Around:
    """The disk and the surroundings of a replica. `happened` is what it asked for, in order."""

    def __init__(self) -> None:
        self.happened: list[str] = []
        self.before_write: Callable[[], None] = lambda: None
        self.turns: list[Callable[[], None]] = []
        self.tickets: list[int] = []
        self.failed: list[Exception] = []
        self.before_down: Callable[[], None] = lambda: None
        self.on_failure: Callable[[], None] = lambda: None
        self.store = MemoryStore()
        self.writable = True
        self.stalled_ms = 0.0

    # -- a disk

    def stalled_for_ms(self) -> float:
        return self.stalled_ms

    def reserve(self, size_bytes: int, /) -> bool:
        del size_bytes
        return True

    def _submitted(self, what: str, ticket: int) -> None:
        self.happened.append(what)
        self.tickets.append(ticket)

    def write(self, ticket: int, records: list[Record]) -> None:
        self.before_write()
        self._submitted(f"write {records[-1].last_index}", ticket)

    def write_here(self, ticket: int, records: list[Record]) -> None:
        self.before_write()
        self._submitted(f"write {records[-1].last_index} here", ticket)

    def truncate(self, ticket: int, from_index: int) -> None:
        self._submitted(f"truncate {from_index}", ticket)

    def record_accepted(self, ticket: int, epoch: int, primary: str) -> None:
        self._submitted(f"accept {epoch} {primary}", ticket)

    def mark_incomplete(self, ticket: int) -> None:
        self._submitted("mark", ticket)

    def clear_marks(self, ticket: int) -> None:
        self._submitted("clear", ticket)

    def wants_flush(self) -> None:
        self.happened.append(f"flush {self.store.applied_index}")

    # -- surroundings

    def stream_to(self, peer: str, /) -> PeerStream:
        return PeerStream(partial(self._sent, "send"), peer)

    def stream_from(self, peer: str, /) -> PeerStream:
        return PeerStream(partial(self._sent, "reply"), peer)

    def _sent(self, what: str, peer: str, message: Message) -> None:
        self.happened.append(f"{what} {peer} {type(message).__name__}")

    def redial(self, peer: str, reason: str, /) -> None:
        del reason
        self.happened.append(f"redial {peer}")

    def propose(self, effect: effects.Propose, /) -> None:
        self.happened.append(f"propose {type(effect.change).__name__}")

    def read_log(self, effect: effects.ReadLog, /) -> None:
        self.happened.append(f"read_log {effect.from_index}")

    def send_snapshot(self, effect: effects.SendSnapshot, /) -> None:
        self.happened.append(f"snapshot {effect.peer}")

    def call_soon(self, callback: Callable[[], None], /) -> None:
        self.turns.append(callback)

    def spawn(self, coroutine: Coroutine[Any, Any, None], /) -> Running:
        raise NotImplementedError

    def on_epoch_started(self, epoch: int, /) -> None:
        self.happened.append(f"started {epoch}")

    def on_epoch_open(self, epoch: int, /) -> None:
        self.happened.append(f"open {epoch}")

    def on_step_down(self, epoch: int, /) -> None:
        self.before_down()
        self.happened.append(f"down {epoch}")

    def on_handover_ended(self, reason: str, /) -> None:
        self.happened.append(f"handover: {reason}")

    def fail(self, problem: Exception, /) -> None:
        self.failed.append(problem)
        self.on_failure()


class Local(Lead):
    """The primary "b" with its interpreter, and a backup "a" in sync; "c" is not."""

    def __init__(self, in_sync: str = "ab", *, bounds: Bounds | None = None) -> None:
        self._bounds = bounds or Bounds()
        self.around = Around()
        self.known: list[int] = []  # how many records were in the tail at each write
        self.around.before_write = lambda: self.known.append(len(self.interpreter.tail))
        super().__init__(in_sync)

    @cached_property
    def interpreter(self) -> Interpreter:
        return Interpreter(
            self.replica,
            {STORE: KeyValue()},
            self.around,
            [],
            self._bounds,
            self.around,
            lambda: self.now_ms,
        )

    def write(self, emitted: list[effects.Effect]) -> list[effects.Effect]:
        """Carry out effects, and make all that was written durable."""
        self.interpreter.run(lambda: emitted)
        while self.around.tickets:
            ticket, self.around.tickets = self.around.tickets[-1], []
            self.interpreter.on_durable(ticket)
        return emitted

    def hear(self, peer: str, message: object) -> list[effects.Effect]:
        return self.write(super().hear(peer, message))

    def open(self) -> None:
        """The backup answers and acknowledges all there is."""
        self.match("a")
        self.acknowledge()

    def acknowledge(self) -> None:
        self.hear("a", AppendReply(self.sessions["a"], 1, self.last_index))

    def put(self, **options: Any) -> Waiting:
        """Write, as far as it goes without the backup."""
        waiting = Waiting()
        operation = Operation("put", (b"k", b"v"), **options)
        self.interpreter.pipeline.submit(operation, FAR_MS, waiting)
        while self.around.turns:
            self.around.turns.pop(0)()
        self.write([])
        return waiting

    def depose(self) -> None:
        """A higher epoch is known."""
        view = self.replica.view
        assert view is not None
        self.interpreter.on_view(
            msgspec.structs.replace(view, epoch=2, version=9, primary="a", in_sync=("a",))
        )


def _opened(**options: Any) -> Local:
    local = Local(**options)
    local.open()
    return local


# in which order


def test_the_tail_knows_a_record_before_the_disk_has_it() -> None:
    local = Local()
    assert local.known == [1], "the record that opens the epoch was executed by nobody"
    local.open()
    local.put()
    local.put()
    assert local.known == [1, 1, 2]


def test_an_epoch_opens_when_what_opened_it_is_applied_and_once() -> None:
    local = Local()
    local.probed("a")
    local.promise("a")
    assert "open 1" not in local.around.happened
    early = local.put()
    local.acknowledge()
    happened = local.around.happened
    place = happened.index("open 1")
    assert happened[place - 1 : place + 1] == ["flush 1", "open 1"]
    assert happened.index("started 1") < place
    local.put()
    local.acknowledge()
    assert early.called
    assert happened.count("open 1") == 1


def test_who_waits_is_answered_before_the_node_hears_that_its_role_is_over() -> None:
    local = _opened()
    write, read = local.put(), Waiting()
    local.interpreter.confirm(read)
    told: list[bool] = []
    local.around.before_down = lambda: told.extend([write.called, read.called])
    local.depose()
    assert told == [True, True]
    assert isinstance(read.error, NotPrimaryError)


def test_an_epoch_that_is_over_does_not_open() -> None:
    local = Local()
    local.depose()
    assert "down 1" in local.around.happened
    local.interpreter.run(lambda: [effects.Commit(1)])
    assert "open 1" not in local.around.happened


def test_an_early_answer_is_given_when_it_is_durable_here() -> None:
    assert _opened().put(ack="local").called
    assert not _opened().put().called


def test_what_waits_is_executed_when_a_handover_has_failed() -> None:
    local = _opened()
    local.append()
    problem, emitted = local.replica.start_handover("a", 50)
    assert problem == ""
    local.write(emitted)
    waiting, last_index = local.put(), local.last_index
    assert not local.replica.may_execute()
    local.tick(100)
    while local.around.turns:
        local.around.turns.pop(0)()
    assert any(what.startswith("handover: ") for what in local.around.happened)
    assert local.last_index == last_index + 1
    del waiting


def test_who_waits_for_an_entry_is_woken_when_it_is_applied_and_nobody_else() -> None:
    local = _opened()
    waiting = [Waiting() for _ in range(3)]
    assert local.interpreter.applied_index == 1
    for index, one in zip((2, 2, 3), waiting, strict=True):
        local.interpreter.wait_applied(index, one)
    waiting[1].gone = True
    local.put()
    local.acknowledge()
    assert [one.called for one in waiting] == [True, False, False]
    local.put()
    local.acknowledge()
    assert waiting[2].called


def test_a_snapshot_wakes_them_too_and_ends_the_tail() -> None:
    local = Local()
    local.depose()
    assert local.replica.start_install(5, 2) == ""
    waiting = Waiting()
    local.interpreter.wait_applied(5, waiting)
    local.around.store.install(5, MemoryStore().keyspaces)
    local.interpreter.on_snapshot_installed(5, 2)
    assert waiting.called
    assert len(local.interpreter.tail) == 0
    assert local.commit_index == 5


def test_a_backup_notes_whether_its_disk_has_room() -> None:
    local = _opened()
    local.hear("a", StaleEpoch(1, 2, "a"))
    assert local.replica.role == "backup"
    for writable in (False, True):
        local.around.writable = writable
        local.now_ms += local.replica.state.timing.heartbeat_interval_ms
        local.interpreter.on_tick()
        assert local.replica.state.writable == writable


def test_a_primary_notes_whether_its_disk_hangs() -> None:
    local = _opened()
    stalled: list[bool] = []
    on_tick = local.replica.on_tick

    def noted(now_ms: float, *, disk_stalled: bool = False) -> list[effects.Effect]:
        stalled.append(disk_stalled)
        return on_tick(now_ms, disk_stalled=disk_stalled)

    local.replica.on_tick = noted  # type: ignore[method-assign]
    timeout_ms = local.replica.state.timing.ack_timeout_ms
    for local.around.stalled_ms in (timeout_ms - 1.0, float(timeout_ms)):
        local.interpreter.on_tick()
    assert stalled == [False, True]


def test_what_goes_wrong_ends_the_node_and_nothing_is_carried_out_any_more() -> None:
    local = _opened()
    waiting = local.put()
    local.around.on_failure = lambda: local.interpreter.stop("it has failed")
    local.interpreter.run(lambda: [effects.Commit(99)])
    assert [type(problem) for problem in local.around.failed] == [SafetyError]
    assert waiting.called
    happened = len(local.around.happened)
    local.interpreter.run(lambda: [effects.CloseLink("a", "a test")])
    assert len(local.around.happened) == happened
    read = Waiting()
    local.interpreter.confirm(read)
    assert isinstance(read.error, NotPrimaryError)


def test_the_log_is_needed_from_where_the_last_known_replica_is() -> None:
    local = _opened()
    local.put()
    assert local.interpreter.replica.oldest_needed() == 2
    local.acknowledge()
    assert local.interpreter.replica.oldest_needed() == 3, "c has not been heard"
    local.depose()
    assert local.interpreter.replica.oldest_needed() == 3


# when a read is answered


def test_a_primary_reads_under_its_leases_and_others_what_may_be_arbitrarily_old() -> None:
    local = _opened()
    for query, is_answered in ((GET, True), (NOT_TOO_STALE, True), (STALE, True)):
        assert (local.interpreter.query(query) is not None) == is_answered
    assert local.interpreter.query(CONFIRMED) is None
    assert local.interpreter.read_index() == (1, 1)
    local.now_ms += 10_000
    for query, is_answered in ((GET, False), (NOT_TOO_STALE, False), (STALE, True)):
        assert (local.interpreter.query(query) is not None) == is_answered
    with pytest.raises(NotPrimaryError):
        local.interpreter.read_index()
    local.depose()
    local.now_ms = 0.0
    for query, is_answered in ((GET, False), (NOT_TOO_STALE, False), (STALE, True)):
        assert (local.interpreter.query(query) is not None) == is_answered


def test_where_reads_are_confirmed_only_what_may_be_arbitrarily_old_is_not() -> None:
    for local, expected in (
        (_opened(), [False, False, False, True]),
        (_opened(bounds=Bounds(confirm_reads=True)), [False, True, True, True]),
    ):
        needs = local.interpreter.needs_confirmation
        assert [needs(query) for query in (STALE, NOT_TOO_STALE, GET, CONFIRMED)] == expected
        assert (local.interpreter.query(GET) is None) == expected[2]


def test_an_unknown_query_is_refused() -> None:
    with pytest.raises(RejectedError):
        _opened().interpreter.read(Query("nothing"))


# why not


def test_why_a_node_does_not_serve() -> None:
    local = Local()
    why = local.interpreter.why_not_serving
    assert "it is waiting for a, b" in why()
    local.open()
    assert "some of a do not answer" in why()
    local.append()
    local.write(local.replica.start_handover("a", 500)[1])
    assert "is handing over" in why()
    local.depose()
    assert "is not the primary; the primary of epoch 2 is a" in why()
    error = local.interpreter.not_primary()
    assert (error.code, error.primary) == ("no_primary", "a")


def test_a_node_that_lacks_entries_says_so() -> None:
    local = Local()
    local.depose()
    assert local.interpreter.warnings() == ()
    local.replica.state.incomplete = True
    assert local.interpreter.warnings() != ()
    state, view = local.replica.state, local.replica.view
    assert view is not None
    for damaged, said in (
        (True, "may lack acknowledged entries"),
        (False, "about to become the primary"),
    ):
        state.incomplete = damaged
        state.view = msgspec.structs.replace(view, primary="b")
        assert said in local.interpreter.why_not_serving()
    state.view = None
    assert "has not reached consensus" in local.interpreter.why_not_serving()
    assert local.interpreter.not_primary().primary == ""
