"""A hosted service by itself: its keys and bounds (X1, X2), timers (X3), versions (X4)."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Callable
from typing import Any, cast

import msgspec
import pytest

from cluster.client.errors import NotAppliedError, RefusedError
from cluster.services.decorators import service_operation as operation
from cluster.services.decorators import service_query as query
from cluster.services.hosting import Host, HostLimits
from cluster.services.kv import decode_head
from cluster.services.scoped import MAX_WRITES
from cluster.services.timers import every
from cluster.testing.runner import ServiceRunner
from datapath.errors import NotPrimaryError, RejectedError
from datapath.keyspaces import KV, SERVICES
from datapath.service import ReadTransaction, Service, Transaction

PATIENT = HostLimits(step_timeout_ms=5000, timeout_ms=5000)
"""For a busy machine."""
LIMITS = HostLimits(step_timeout_ms=30, timeout_ms=200, max_write_bytes=10_000)


class Stock(msgspec.Struct):
    item: str
    left: int


class Shop(Service):
    """Keeps a stock, and misbehaves when asked to."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Transaction] = []

    @operation
    def add(self, tx: Transaction, item: str, count: int) -> Stock:
        stock = self._stock(tx, item)
        stock.left += count
        tx.put(item.encode(), msgspec.json.encode(stock))
        return stock

    @operation
    def reserve(self, tx: Transaction, item: str, count: int = 1) -> Stock:
        stock = self._stock(tx, item)
        tx.put(b"touched", b"")
        if stock.left < count:
            raise RejectedError("sold_out", f"only {stock.left} of {item} are left")
        stock.left -= count
        tx.put(item.encode(), msgspec.json.encode(stock))
        return stock

    @query
    def left(self, tx: ReadTransaction, item: str) -> int:
        return self._stock(tx, item).left

    @operation
    async def slowly(self, tx: Transaction, seconds: float) -> str:
        tx.put(b"slowly", b"")
        await asyncio.sleep(seconds)
        return "done"

    @operation
    def misbehave(self, tx: Transaction, how: str) -> Any:
        tx.put(b"mark", b"")
        return getattr(self, f"_{how}")(tx)

    @operation
    async def misbehave_slowly(self, tx: Transaction, how: str) -> Any:
        tx.put(b"mark", b"")
        await asyncio.sleep(0)
        return await cast("Callable[[Transaction], Any]", getattr(self, f"_slowly_{how}"))(tx)

    @query
    def misread(self, tx: ReadTransaction, how: str) -> Any:
        return getattr(self, f"_{how}")(tx)

    @staticmethod
    def _stock(tx: ReadTransaction, item: str) -> Stock:
        held = tx.get(item.encode())
        return Stock(item, 0) if held is None else msgspec.json.decode(held, type=Stock)

    def _raise(self, _: object) -> None:
        raise KeyError("a bug")

    def _exit(self, _: object) -> None:
        sys.exit(3)

    def _return_a_socket(self, _: object) -> object:
        return object()

    def _return_much(self, _: object) -> str:
        return "x" * (1024 * 1024)

    def _return_itself(self, _: object) -> object:
        found: list[object] = []
        found.append(found)
        return found

    def _loop(self, _: object) -> None:
        while True:
            with contextlib.suppress(Exception):
                time.sleep(10)

    def _write_much(self, tx: Transaction) -> None:
        tx.put(b"much", bytes(20_000))

    def _write_much_quietly(self, tx: Transaction) -> str:
        try:
            tx.put(b"much", bytes(20_000))
        except Exception:  # noqa: BLE001
            return "as if nothing had happened"
        return ""

    def _write_often(self, tx: Transaction) -> None:
        for _ in range(MAX_WRITES + 1):
            tx.delete(b"k")

    def _write_text(self, tx: Transaction) -> None:
        tx.put("text", b"")  # type: ignore[arg-type]

    def _escape(self, tx: Transaction) -> None:
        tx.keyspace(KV).put(b"mine", b"")

    def _keep(self, tx: Transaction) -> None:
        self.kept.append(tx)

    def _use_kept(self, tx: Transaction) -> None:
        self.kept[0].put(b"late", b"")

    def _refuse_badly(self, tx: Transaction) -> None:
        raise RejectedError("No Code!", "")

    def _pretend(self, tx: Transaction) -> None:
        raise NotPrimaryError("no_primary", "not me")

    async def _slowly_hold(self, _: object) -> None:
        while True:
            pass

    async def _slowly_raise(self, _: object) -> None:
        raise KeyError("a bug")

    async def _slowly_cancel_itself(self, _: object) -> None:
        raise asyncio.CancelledError

    async def _slowly_go_on(self, tx: Transaction) -> None:
        for _ in range(3):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                tx.put(b"late", b"")


def make(step_timeout_ms: int = 5000) -> ServiceRunner[Shop]:
    limits = msgspec.structs.replace(LIMITS, step_timeout_ms=step_timeout_ms)
    return ServiceRunner(Shop, limits=limits)


def test_arguments_and_results_pass_through_json() -> None:
    runner = make()
    shop = runner.service
    assert shop.add(item="apple", count=3) == Stock("apple", 3)
    assert shop.reserve("apple") == Stock("apple", 2)
    assert shop.left(item="apple") == 2
    assert shop.slowly(seconds=0.001) == "done"


def test_a_refusal_has_the_services_code_and_leaves_nothing_behind() -> None:
    runner = make()
    with pytest.raises(RefusedError) as caught:
        runner.service.reserve(item="apple", count=2)
    assert caught.value.code == "sold_out"
    assert runner.data == {}


@pytest.mark.parametrize(
    ("how", "code", "words"),
    [
        ("raise", "service_failed", "shop.misbehave raised KeyError('a bug')"),
        ("exit", "service_failed", "raised SystemExit(3)"),
        ("return_a_socket", "service_failed", "returned what JSON cannot carry"),
        ("return_itself", "service_failed", "returned what JSON cannot carry"),
        ("return_much", "too_large", "return less, say a page at a time"),
        ("loop", "service_timeout", "held the node for more than 30 ms"),
        ("write_much", "too_large", "shop.misbehave writes too much"),
        ("write_much_quietly", "too_large", "shop.misbehave writes too much"),
        ("write_often", "too_large", "10000 times"),
        ("write_text", "service_failed", "a key must be bytes, not str; use .encode()"),
        ("escape", "service_failed", "a service sees its own keys alone"),
        ("refuse_badly", "service_failed", "refused with the code 'No Code!'"),
        ("pretend", "service_failed", "NotPrimaryError"),
    ],
)
def test_a_method_that_misbehaves_leaves_nothing_behind_and_stops_nobody(
    how: str, code: str, words: str
) -> None:
    runner = make(30 if how == "loop" else 5000)
    with pytest.raises(NotAppliedError) as caught:
        runner.service.misbehave(how)
    assert (caught.value.code, type(caught.value)) == (code, NotAppliedError)
    assert words in caught.value.detail
    assert runner.data == {}
    assert runner.service.add(item="apple", count=1).left == 1


@pytest.mark.parametrize(
    ("how", "code", "words"),
    [
        ("hold", "service_timeout", "held the node for more than 30 ms"),
        ("raise", "service_failed", "raised KeyError('a bug')"),
        ("cancel_itself", "service_failed", "cancelled itself"),
        ("go_on", "service_timeout", "did not end within 200 ms"),
    ],
)
def test_an_async_method_that_misbehaves_leaves_nothing_behind(
    how: str, code: str, words: str
) -> None:
    runner = make(30 if how == "hold" else 5000)
    with pytest.raises(NotAppliedError) as caught:
        runner.service.misbehave_slowly(how)
    assert caught.value.code == code
    assert words in caught.value.detail
    assert runner.data == {}


def test_an_async_method_that_takes_too_long_is_cancelled() -> None:
    runner = make()
    with pytest.raises(NotAppliedError, match="did not end within 200 ms"):
        runner.service.slowly(seconds=60)
    assert runner.data == {}


@pytest.mark.parametrize("how", ["raise", "loop", "return_a_socket"])
def test_a_query_that_misbehaves_is_ended(how: str) -> None:
    with pytest.raises(NotAppliedError):
        make(30 if how == "loop" else 5000).service.misread(how)


def test_a_transaction_cannot_be_used_after_its_operation() -> None:
    runner = make()
    runner.service.misbehave("keep")
    with pytest.raises(NotAppliedError, match="this operation is over"):
        runner.service.misbehave("use_kept")
    assert set(runner.data) == {b"mark"}


@pytest.mark.parametrize("start", [b"", b"\0", b"\xff"])
def test_a_service_sees_its_own_keys_alone(start: bytes) -> None:
    """X1: beside those before, after and around its own in the keyspace that services share."""

    class Lister(Service):
        @operation
        def write(self, tx: Transaction, keys: list[bytes]) -> None:
            for key in keys:
                tx.put(key, b"x")

        @query
        def all(self, tx: ReadTransaction) -> list[bytes]:
            seen = [key for key, _ in tx.range(start, None, 100)]
            assert seen == [key for key, _ in tx.page(start, None, 100, 10_000)[0]]
            return seen

    runner = ServiceRunner(Lister, name="b")
    others = [b"a\0k", b"a\xff", b"b", b"b\1other", b"b-c\0k", b"c\0k"]
    runner._state.apply([(SERVICES, key, b"secret") for key in others])
    runner.service.write(keys=[b"k", b"\xff\xff"])
    assert runner.service.all() == [key for key in (b"k", b"\xff\xff") if key >= start]
    assert set(runner.data) == {b"k", b"\xff\xff"}


class Clerk(Service):
    """Works on keys that are not its own, where it may."""

    @operation
    def copy(self, tx: Transaction, source: str, target: str) -> int:
        pairs = tx.keyspace(source).range(b"", None, 10)
        for key, value in pairs:
            tx.keyspace(target).put(b"of-" + key, value)
        return len(pairs)

    @operation
    def write(self, tx: Transaction, whose: str, key: bytes, value: bytes) -> int:
        tx.keyspace(whose).put(key, value)
        return tx.index

    @operation
    def remove(self, tx: Transaction, whose: str, key: bytes) -> None:
        tx.keyspace(whose).delete(key)

    @query
    def read(self, tx: ReadTransaction, whose: str, key: bytes) -> bytes | None:
        view = tx.keyspace(whose)
        assert view.page(key, key + b"\0", 1, 100)[0] == [(key, view.get(key))]
        return view.get(key)

    @operation
    def write_much(self, tx: Transaction, whose: list[str]) -> None:
        for name in whose:
            with contextlib.suppress(Exception):
                tx.keyspace(name).put(b"much", bytes(6_000))

    @operation
    def keep(self, tx: Transaction, whose: str) -> None:
        self.kept = tx.keyspace(whose)

    @operation
    def use_kept(self, tx: Transaction) -> None:
        self.kept.get(b"k")


STOCK = (SERVICES, b"stock\0apple", b"3")


def clerk(*, reads: tuple[str, ...] = (), writes: tuple[str, ...] = ()) -> ServiceRunner[Clerk]:
    limits = msgspec.structs.replace(LIMITS, step_timeout_ms=5000)
    runner = ServiceRunner(Clerk, limits=limits, reads=reads, writes=writes)
    runner._state.apply([STOCK, (SERVICES, b"stocks\0pear", b"secret")])
    return runner


def test_a_service_works_on_the_keys_that_it_has_rights_to() -> None:
    runner = clerk(reads=("stock", "kv"), writes=("stock", "kv"))
    assert runner.service.copy(source="stock", target="stock") == 1
    assert runner.service.read(whose="stock", key=b"of-apple") == b"3"
    revision = runner.service.write(whose="kv", key=b"k", value=b"1")
    runner.service.write(whose="kv", key=b"k", value=b"22")
    assert runner.service.read(whose="kv", key=b"k") == b"22"
    stored = runner._state.get(KV, b"k")
    assert stored is not None
    assert decode_head(stored) == (revision + 1, revision, 2, 0)  # as a PUT leaves it
    runner.service.remove(whose="kv", key=b"k")
    assert runner._state.get(KV, b"k") is None
    assert runner.data == {}


def test_rights_to_read_and_to_write_are_separate() -> None:
    runner = clerk(reads=("stock",), writes=("kv",))
    assert runner.service.read(whose="stock", key=b"apple") == b"3"
    runner.service.write(whose="kv", key=b"k", value=b"1")
    with pytest.raises(NotAppliedError, match="it may read the keys of 'stock', not write them"):
        runner.service.write(whose="stock", key=b"apple", value=b"4")
    with pytest.raises(NotAppliedError, match="it may read the keys of 'stock', not write them"):
        runner.service.remove(whose="stock", key=b"apple")
    for refused in (
        lambda: runner.service.read(whose="kv", key=b"k"),
        lambda: runner.service.copy(source="kv", target="kv"),
    ):
        with pytest.raises(NotAppliedError, match="it may write the keys of 'kv', not read them"):
            refused()
    assert runner._state.get(*STOCK[:2]) == b"3"


@pytest.mark.parametrize("whose", ["stocks", "clerk", "", "0", "6", "kv"])
def test_what_no_right_names_cannot_be_opened(whose: str) -> None:
    with pytest.raises(NotAppliedError, match="named by `reads` and `writes` in its section"):
        clerk(reads=("stock",), writes=("stock",)).service.read(whose=whose, key=b"k")


def test_the_bounds_are_of_all_that_an_operation_writes_whosever_keys() -> None:
    runner = clerk(writes=("stock", "kv"))
    with pytest.raises(NotAppliedError, match=r"clerk\.write_much writes too much"):
        runner.service.write_much(whose=["stock", "kv"])
    assert runner._state.get(KV, b"much") is None


def test_a_view_of_others_keys_ends_with_its_operation() -> None:
    runner = clerk(reads=("stock",))
    runner.service.keep(whose="stock")
    with pytest.raises(NotAppliedError, match="this operation is over"):
        runner.service.use_kept()


def test_a_key_of_the_store_is_text() -> None:
    with pytest.raises(NotAppliedError, match="a key of the store is UTF-8"):
        clerk(writes=("kv",)).service.write(whose="kv", key=b"\xff", value=b"")


# -- versions


def versioned(number: int, migrations: list[int], *, fails: bool = False) -> type[Service]:
    class Versioned(Service):
        version = number

        def migrate(self, tx: Transaction, from_version: int) -> None:
            migrations.append(from_version)
            tx.put(b"migrated", str(number).encode())
            if fails:
                raise RuntimeError("cannot")

        @operation
        def work(self, tx: Transaction) -> int:
            return number

    return Versioned


def test_what_is_stored_is_migrated_once_before_it_serves() -> None:
    migrations: list[int] = []
    runner = ServiceRunner(versioned(1, migrations), name="v", limits=PATIENT)
    runner.restart(versioned(1, migrations))
    assert migrations == [0]
    runner.restart(versioned(3, migrations))
    runner.restart(versioned(3, migrations))
    assert migrations == [0, 1]
    assert runner.data == {b"migrated": b"3"}


def test_earlier_code_does_not_touch_what_was_migrated() -> None:
    runner = ServiceRunner(versioned(2, []), name="v", limits=PATIENT)
    with pytest.raises(NotAppliedError, match="is at version 2") as caught:
        runner.restart(versioned(1, []))
    assert caught.value.code == "service_outdated"
    with pytest.raises(NotAppliedError, match="is at version 2"):
        cast("Any", runner.service).work()


def test_a_service_that_has_not_started_does_not_serve() -> None:
    runner = ServiceRunner(versioned(1, []), name="v", limits=PATIENT)
    with pytest.raises(NotAppliedError) as caught:
        runner.restart(versioned(2, [], fails=True))
    assert caught.value.code == "service_failed"
    with pytest.raises(NotAppliedError) as caught:
        cast("Any", runner.service).work()
    assert caught.value.code == "service_starting"
    assert runner.data == {b"migrated": b"1"}


def test_other_code_of_the_same_version_is_told() -> None:
    runner = ServiceRunner(Shop)
    host = Host("shop", Shop())
    assert runner.difference(host) == ""
    host._own = b""
    host.signatures = msgspec.structs.replace(host.signatures, code="other")
    assert "this node has other code than the cluster runs" in runner.difference(host)
    host.signatures = msgspec.structs.replace(host.signatures, version=2)
    assert "this node has version 2, and the cluster runs version 1" in runner.difference(host)


# -- timers


class Clock(Service):
    @every(seconds=10)
    def tick(self, tx: Transaction) -> None:
        number = int(tx.get(b"ticks") or b"0") + 1
        if number == 3:
            tx.put(b"ticks", b"half done")
            raise RuntimeError("the third fails")
        tx.put(b"ticks", str(number).encode())

    @query
    def ticks(self, tx: ReadTransaction) -> int:
        return int(tx.get(b"ticks") or b"0")


def test_a_timer_runs_once_in_each_interval_over_failovers_and_clocks_that_differ() -> None:
    runner = ServiceRunner(Clock)
    assert not runner.run_timer("tick", 9_999)  # a new timer waits for its first interval
    assert runner.run_timer("tick", 10_000)
    assert not runner.run_timer("tick", 19_999)
    runner.restart(Clock)
    assert not runner.run_timer("tick", 15_000)
    assert not runner.run_timer("tick", 1_000)  # a clock that is behind
    assert runner.run_timer("tick", 55_000)  # what was missed is left out
    assert runner.service.ticks() == 2


def test_a_timer_that_fails_leaves_nothing_behind_and_is_tried_again() -> None:
    runner = ServiceRunner(Clock)
    for number in (1, 2):
        assert runner.run_timer("tick", 10_000 * number)
    with pytest.raises(NotAppliedError, match="the third fails"):
        runner.run_timer("tick", 30_000)
    assert runner.data == {b"ticks": b"2"}
    with pytest.raises(NotAppliedError, match="the third fails"):
        runner.run_timer("tick", 30_001)
