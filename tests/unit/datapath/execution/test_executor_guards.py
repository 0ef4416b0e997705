"""What an operation sees, and what is remembered of it: the executor's conditions, one by one."""

from __future__ import annotations

import random
from typing import Any

import pytest

from datapath.errors import RejectedError
from datapath.execution import executor as executor_module
from datapath.execution.executor import MAX_SERVICE_KEY_SIZE_BYTES, Executed, Executor
from datapath.execution.read_view import ReadView
from datapath.keyspaces import KV, LEASES, LOCKS, SERVICES
from datapath.operations import STORE, Operation
from datapath.records import Entry
from datapath.service import Service, Transaction, operation
from datapath.settings import ClientTableBounds
from tests.sim.service import MemoryStore

MANY_KEYS = 600
"""More than a page of the store has."""


class Ledger(Service):
    """Puts, deletes, reads and refuses."""

    @operation
    def put(self, tx: Transaction, key: bytes, value: bytes) -> None:
        tx.put(key, value)

    @operation
    def delete(self, tx: Transaction, key: bytes) -> None:
        tx.delete(key)

    @operation
    def get(self, tx: Transaction, key: bytes) -> bytes | None:
        return tx.get(key)

    @operation
    def scan(
        self, tx: Transaction, start: bytes, end: bytes | None, limit: int, own: dict[bytes, Any]
    ) -> list[tuple[bytes, bytes]]:
        for key, value in own.items():
            if value is None:
                tx.delete(key)
            else:
                tx.put(key, value)
        return tx.range(start, end, limit)

    @operation
    def own(self, tx: Transaction, key: bytes) -> list[bytes | None]:
        tx.put(key, b"own")
        first = tx.get(key)
        tx.delete(key)
        return [first, tx.get(key)]

    @operation
    def refuse(self, tx: Transaction, key: bytes, for_good: bool) -> None:
        tx.put(key, b"")
        raise RejectedError("not_wanted", "it is not wanted", for_good=for_good)

    @operation
    def fail(self, tx: Transaction, key: bytes) -> None:
        tx.put(key, b"")
        raise KeyError(key)


class Bench:
    """An executor over a store in memory: what is executed joins the batch, then a record."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.executor = Executor({STORE: Ledger()}, self.store, ClientTableBounds(), lambda: 0.0)
        self.next_index = 1
        self.batch: list[Entry] = []
        self.records: list[tuple[int, list[Entry]]] = []

    def run(self, method: str, *args: object, key: str = "") -> Executed:
        executed, entry = self.executor.execute(Operation(method, args, key), self.next_index)
        if entry is not None:
            self.executor.take(entry)
            self.batch.append(entry)
            self.next_index += 1
        return executed

    def record(self) -> None:
        """What was executed becomes a record, which has not committed."""
        if self.batch:
            self.executor.complete(self.batch)
            self.records.append((self.next_index - len(self.batch), self.batch))
            self.batch = []

    def commit(self) -> None:
        """The oldest record commits."""
        first_index, entries = self.records.pop(0)
        self.store.apply(entries, first_index + len(entries) - 1, 1)
        self.executor.committed(first_index, entries)

    def repeat(self, method: str, *args: object, key: str) -> Executed | None:
        return self.executor.repeat_of(Operation(method, args, key), self.next_index)


def test_an_operation_sees_its_own_writes_and_those_of_all_before_it() -> None:
    draw = random.Random(1)
    bench, model = Bench(), dict[bytes, bytes]()
    for number in range(MANY_KEYS):
        model[b"%04d" % number] = b"0"
        bench.run("put", b"%04d" % number, b"0")
    bench.record()
    bench.commit()
    for step in range(400):
        key = b"%04d" % draw.randrange(MANY_KEYS + 50)
        if draw.random() < 0.6:
            bench.run("put", key, b"%d" % step)
            model[key] = b"%d" % step
        else:
            bench.run("delete", key)
            model.pop(key, None)
        if draw.random() < 0.2:
            bench.record()
        if bench.records and draw.random() < 0.15:
            bench.commit()
        start, end = sorted(b"%04d" % draw.randrange(MANY_KEYS + 50) for _ in range(2))
        limit = draw.choice((1, 10, 1000))
        own = {b"%04d" % draw.randrange(MANY_KEYS): draw.choice((None, b"own")) for _ in range(3)}
        args = (start, draw.choice((end, None)), limit, own)
        value = bench.executor.execute(Operation("scan", args), bench.next_index)[0].value
        seen = {k: v for k, v in {**model, **own}.items() if v is not None}
        within = sorted(k for k in seen if start <= k and (args[1] is None or k < args[1]))
        assert value == [(k, seen[k]) for k in within[:limit]]
        found = bench.executor.execute(Operation("get", (key,)), bench.next_index)[0]
        assert found.value == model.get(key)
    assert bench.run("own", b"k").value == [b"own", None]


def test_what_an_answer_may_depend_on_is_the_newest_uncommitted_entry_that_it_has_seen() -> None:
    """D2."""
    bench = Bench()
    bench.run("put", b"a", b"")
    bench.record()
    bench.commit()
    bench.run("put", b"b", b"")
    bench.record()
    bench.run("put", b"c", b"")
    for key, index in ((b"a", 0), (b"b", 2), (b"c", 3), (b"d", 0)):
        assert bench.run("get", key).seen_index == index
    for start, end, index in ((b"a", b"b", 0), (b"a", b"c", 2), (b"a", None, 3), (b"d", None, 0)):
        assert bench.run("scan", start, end, 9, {}).seen_index == index
    bench.record()
    bench.commit()
    assert bench.run("get", b"b").seen_index == 0
    assert bench.run("get", b"c").seen_index == 3


def test_what_a_later_record_has_overwritten_stays_seen_when_the_earlier_one_commits() -> None:
    bench = Bench()
    for value in (b"1", b"2"):
        bench.run("put", b"k", value)
        bench.record()
    bench.commit()
    found = bench.run("get", b"k")
    assert (found.value, found.seen_index) == (b"2", 2)


def test_what_is_not_taken_was_never_there() -> None:
    bench = Bench()
    bench.executor.execute(Operation("put", (b"k", b"v"), "K"), bench.next_index)
    assert bench.run("get", b"k").value is None
    assert bench.repeat("put", b"k", b"v", key="K") is None
    bench.run("put", b"k", b"1", key="L")
    bench.executor.start_epoch()
    assert bench.run("get", b"k").value is None
    assert bench.repeat("put", b"k", b"1", key="L") is None


@pytest.mark.parametrize("size_bytes", [0, MAX_SERVICE_KEY_SIZE_BYTES + 1])
def test_a_key_of_a_wrong_length_fails_the_operation(size_bytes: int) -> None:
    executed = Bench().run("put", bytes(size_bytes), b"")
    assert executed.error is not None
    assert executed.error.code == "service_failed"
    assert Bench().run("put", bytes(MAX_SERVICE_KEY_SIZE_BYTES), b"").error is None


def test_an_operation_that_does_not_exist_is_refused_and_those_that_do_are_named() -> None:
    executed = Bench().run("nothing")
    assert executed.error is not None
    assert executed.error.code == "unknown_operation"
    assert "delete, fail, get" in executed.error.detail


def test_what_is_remembered_is_what_a_repeat_would_do_otherwise() -> None:
    """D8: an answer, and a refusal that might not be one the next time."""
    for method, args, index, known in (
        ("put", (b"k", b"v"), 1, ""),
        ("get", (b"k",), 1, ""),
        ("refuse", (b"k", False), 1, "not_wanted"),
        ("refuse", (b"k", True), 0, None),
        ("fail", (b"k",), 0, None),
    ):
        bench = Bench()
        executed = bench.run(method, *args, key="K")
        assert executed.index == index
        again = bench.repeat(method, *args, key="K")
        assert (None if again is None else again.error.code if again.error else "") == known
        if again is not None:
            assert again.repeated
            assert again.seen_index == 1
        assert bench.run("get", b"k").value == (b"v" if method == "put" else None)
        assert Bench().run(method, *args).index == (method == "put")


def test_a_key_belongs_to_one_request_and_is_recalled_once_it_is_applied() -> None:
    bench = Bench()
    put = Operation("put", (b"k", b"v"), "K")
    bench.run("put", b"k", b"v", key="K")
    reused = bench.repeat("put", b"k", b"w", key="K")
    assert reused is not None
    assert reused.error is not None
    assert reused.error.code == "idempotency_key_reused"
    assert bench.repeat("put", b"k", b"v", key="") is None
    assert bench.executor.recall(put) is None
    bench.record()
    bench.commit()
    known = bench.executor.recall(put)
    assert known is not None
    assert (known.seen_index, known.error) == (1, None)
    again = bench.repeat("put", b"k", b"v", key="K")
    assert again is not None
    assert again.seen_index == 1


def test_the_bytes_that_a_query_has_read_are_counted() -> None:
    bench = Bench()
    bench.run("put", b"k", b"12345")
    bench.record()
    bench.commit()
    view = ReadView(bench.store, SERVICES)
    assert (view.get(b"none"), view.meter.read_bytes) == (None, 0)
    assert (view.get(b"k"), view.meter.read_bytes) == (b"12345", 5)
    assert (view.keyspace(KV).get(b"k"), view.meter.read_bytes) == (None, 5)


def test_a_scan_shows_nothing_of_the_client_table() -> None:
    bench = Bench()
    bench.run("put", b"k", b"v", key="K")
    assert bench.run("scan", b"", None, 9, {}).value == [(b"k", b"v")]


def test_without_a_key_nothing_is_a_repeat_whenever_it_was_first_sent() -> None:
    unkeyed = Operation("get", (b"k",), first_after=1_000_000)
    assert Bench().executor.repeat_of(unkeyed, 1) is None


def test_what_may_be_a_forgotten_repeat_is_told_its_refusal() -> None:
    told = Bench().executor.repeat_of(Operation("get", (b"k",), "K", first_after=100), 1)
    assert told is not None
    assert told.error is not None
    assert told.error.code == "unknown_revision"


class Two(Service):
    """Writes in two keyspaces at once, and lists both."""

    keyspace = LOCKS

    @operation
    def put(self, tx: Transaction, key: bytes, value: bytes) -> list[bytes | None]:
        tx.put(key, value)
        tx.keyspace(LEASES).put(key, value + b"'")
        return [tx.get(key), tx.keyspace(LEASES).get(key), tx.keyspace(KV).get(key)]

    @operation
    def pages(self, tx: Transaction, limit: int, size_bytes: int, own: list[bytes]) -> list[Any]:
        for key in own:
            tx.delete(key)
        first, following = tx.page(b"", None, limit, size_bytes)
        return [first, following, tx.keyspace(LEASES).range(b"", None, 9)]

    @operation
    def open(self, tx: Transaction, number: int) -> None:
        tx.keyspace(number)


class Pair(Bench):
    """Two services side by side."""

    def __init__(self) -> None:
        super().__init__()
        services = {STORE: Ledger(), "two": Two()}
        self.executor = Executor(services, self.store, ClientTableBounds(), lambda: 0.0)

    def run(self, method: str, *args: object, key: str = "") -> Executed:
        service, _, name = method.rpartition(".")
        operation = Operation(name, args, key, service=service)
        executed, entry = self.executor.execute(operation, self.next_index)
        if entry is not None:
            self.executor.take(entry)
            self.batch.append(entry)
            self.next_index += 1
        return executed


@pytest.mark.parametrize("stage", ["batch", "pending", "committed"])
def test_services_have_keyspaces_of_their_own_and_one_delta_may_span_several(stage: str) -> None:
    bench = Pair()
    bench.run("put", b"k", b"store")
    assert bench.run("two.put", b"k", b"v").value == [b"v", b"v'", None]
    if stage != "batch":
        bench.record()
    if stage == "committed":
        bench.commit()
    assert bench.run("get", b"k").value == b"store"
    pages = bench.run("two.pages", 9, 99, [])
    assert pages.value == [[(b"k", b"v")], None, [(b"k", b"v'")]]
    assert pages.seen_index == (0 if stage == "committed" else 2)
    bench.record()
    if stage == "committed":
        held = [dict(keyspace) for keyspace in bench.store.keyspaces]
        assert held[SERVICES] == {b"k": b"store"}
        assert held[LOCKS] == {b"k": b"v"}
        assert held[LEASES] == {b"k": b"v'"}


def test_a_page_is_bounded_and_shows_the_operations_own_writes() -> None:
    bench = Pair()
    for number in range(6):
        bench.run("two.put", b"%d" % number, b"12")
        if number == 2:
            bench.record()
            bench.commit()
    (first, following, _) = bench.run("two.pages", 2, 99, [b"1", b"4"]).value
    assert (first, following) == ([(b"0", b"12"), (b"2", b"12")], b"3")
    (first, following, _) = bench.run("two.pages", 9, 4, [b"0"]).value
    assert (first, following) == ([(b"2", b"12"), (b"3", b"12")], b"4")


def test_a_page_looks_at_a_bounded_number_of_removed_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor_module, "MAX_SCRATCH_PAGE_STEPS", 3)
    bench = Pair()
    for number in range(6):
        bench.run("two.put", b"%d" % number, b"12")
    (first, following, _) = bench.run("two.pages", 9, 99, [b"0", b"1", b"2", b"3"]).value
    assert (first, following) == ([], b"3")


@pytest.mark.parametrize("number", [1, 2, 3, 8, -1])
def test_the_client_table_is_closed_to_services(number: int) -> None:
    told = Pair().run("two.open", number)
    assert told.error is not None
    assert f"keyspace {number} is not open to services" in told.error.detail


def test_a_service_that_is_not_there_is_refused_by_name() -> None:
    told = Pair().run("three.put", b"k", b"v")
    assert told.error is not None
    assert (told.error.code, told.error.outcome) == ("unknown_service", "not_applied")
    assert told.error.detail == "this node has no service 'three'; its services: two"


def test_a_key_belongs_to_one_service() -> None:
    bench = Pair()
    bench.run("put", b"k", b"v", key="K")
    again = bench.executor.repeat_of(Operation("put", (b"k", b"v"), "K", service="two"), 2)
    assert again is not None
    assert again.error is not None
    assert again.error.code == "idempotency_key_reused"
