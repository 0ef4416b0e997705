"""What a client is told: repeats are recognised before anything refuses them, and nobody is refused
for what another one asked.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from cluster.services.kv import KeyValue
from datapath.errors import (
    OperationError,
    OperationNotAppliedError,
    OperationUnknownError,
    OverloadedError,
    PrimaryFullError,
    RejectedError,
)
from datapath.operations import Operation, Result
from datapath.service import ReadTransaction, Service, Transaction, operation, query
from datapath.settings import Bounds, ClientTableBounds
from tests.support.replicas import QUICK, LocalCluster, LocalReplica, running, until

pytestmark = pytest.mark.slow

Ended = Result | BaseException


class Bulk(Service):
    """Puts small and large deltas."""

    @operation
    def put(self, tx: Transaction, key: bytes, value: bytes) -> int:
        tx.put(key, value)
        return tx.index

    @operation
    def fill(self, tx: Transaction, name: bytes, mebibytes: int) -> int:
        for number in range(mebibytes):
            tx.put(b"%b%d" % (name, number), bytes(1 << 20))
        return mebibytes

    @operation
    async def put_slowly(self, tx: Transaction, key: bytes, value: bytes) -> int:
        await asyncio.sleep(0)
        return self.put(tx, key, value)

    @operation
    def fail_if_there(self, tx: Transaction, key: bytes) -> None:
        if tx.get(key) is not None:
            raise RejectedError("is_there", "it is there")

    @query
    def get(self, tx: ReadTransaction, key: bytes) -> bytes | None:
        return tx.get(key)


async def all_of(
    replica: LocalReplica, *operations: Operation, timeout_ms: int = 8000
) -> list[Ended]:
    """Submit operations at once, as one batch, and return what each was told."""
    answers: list[asyncio.Future[Result]] = []
    for one in operations:
        try:
            answers.append(replica.engine.submit(one, timeout_ms))
        except OperationError as problem:
            answers.append(asyncio.get_running_loop().create_future())
            answers[-1].set_exception(problem)
    return await asyncio.gather(*answers, return_exceptions=True)


def said(ended: Ended) -> str:
    """Return what was told, in short."""
    if isinstance(ended, Result):
        return "repeated" if ended.repeated else "done"
    assert isinstance(ended, OperationError)
    return f"{ended.outcome} {ended.code}"


def no_room(_size: int) -> bool:
    return False


# -- a repeat is recognised before anything may refuse it


async def test_a_repeat_is_recognised_before_too_few_copies_refuse_it(tmp_path: Path) -> None:
    async with running(tmp_path, KeyValue, timing=QUICK) as cluster:
        first = await cluster["n1"].execute("put", b"k", b"1", idempotency_key="K", min_copies=3)
        await cluster.stop("n3")
        await cluster.until_in_sync("n1", "n2")
        with pytest.raises(OperationUnknownError) as refusal:
            await cluster["n2"].execute("put", b"k", b"1", idempotency_key="K", min_copies=3)
        assert refusal.value.code == "not_enough_copies"
        again = await cluster["n2"].execute("put", b"k", b"1", idempotency_key="K", min_copies=2)
        assert (again.index, again.repeated) == (first.index, True)


async def test_a_repeat_is_recognised_below_min_in_sync(tmp_path: Path) -> None:
    bounds = Bounds(min_in_sync=2)
    async with running(tmp_path, KeyValue, timing=QUICK, bounds=bounds, nodes=2) as cluster:
        first = await cluster["n1"].execute("put", b"k", b"1", idempotency_key="K")
        await cluster.stop("n2")
        await cluster.until_in_sync("n1")
        again = await cluster["n1"].execute("put", b"k", b"1", idempotency_key="K")
        assert (again.index, again.repeated) == (first.index, True)


async def test_a_repeat_of_what_is_not_committed_waits_for_it_whatever_it_asks(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, KeyValue) as cluster:
        cluster["n3"].hang_disk()
        put = Operation("put", (b"k", b"1"), "K")
        first = asyncio.ensure_future(cluster["n1"].engine.submit(put, 8000))
        state = cluster["n1"].engine.replica.state
        await until(lambda: state.log.last_index > state.commit_index, "it is recorded")
        many = Operation("put", (b"k", b"1"), "K", "all", 4)
        again = asyncio.ensure_future(cluster["n1"].engine.submit(many, 8000))
        await until(
            lambda: cluster["n1"].engine.interpreter.pipeline.operations_total == 2,
            "both are taken",
        )
        assert not again.done()
        cluster["n3"].resume_disk()
        await first
        assert said((await asyncio.gather(again, return_exceptions=True))[0]) == (
            "unknown not_enough_copies"
        )


async def test_on_a_full_disk_repeats_and_refusals_are_told_and_only_writes_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, Bulk, nodes=1) as cluster:
        replica = cluster["n1"]
        await replica.execute("put", b"k", b"1", idempotency_key="K")
        with monkeypatch.context() as patched:
            patched.setattr(replica.storage, "reserve", no_room)
            ended = await all_of(
                replica,
                Operation("put", (b"a", b"1")),
                Operation("put", (b"k", b"1"), "K"),
                Operation("fail_if_there", (b"a",)),  # it is not: the write before was refused
                Operation("fail_if_there", (b"k",)),
                Operation("put", (b"b", b"1"), "L"),
                Operation("put", (b"k", b"1"), "K"),
            )
        assert [said(one) for one in ended] == [
            "not_applied storage_full",
            "repeated",
            "done",
            "not_applied is_there",
            "not_applied storage_full",
            "repeated",
        ]
        assert (await replica.query("get", b"a")).value is None
        again = await replica.execute("put", b"b", b"1", idempotency_key="L")
        assert not again.repeated


async def test_only_as_much_as_there_is_room_for_is_taken_of_a_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, Bulk, nodes=1) as cluster:
        replica = cluster["n1"]
        monkeypatch.setattr(replica.storage, "reserve", lambda size: size < 3000)
        ended = await all_of(
            replica,
            Operation("put", (b"a", bytes(2000))),
            Operation("put", (b"b", bytes(2000))),
            Operation("put", (b"c", bytes(100))),
        )
        assert [said(one) for one in ended] == ["done", "not_applied storage_full", "done"]


async def test_a_repeat_is_recognised_where_too_many_wait(tmp_path: Path) -> None:
    bounds = Bounds(max_waiting_operations=2, max_inflight_records=1)
    async with running(tmp_path, KeyValue, bounds=bounds) as cluster:
        replica = cluster["n1"]
        committed = await replica.execute("put", b"k", b"1", idempotency_key="committed")
        cluster["n3"].hang_disk()
        recorded = asyncio.ensure_future(
            replica.engine.submit(Operation("put", (b"r", b"1"), "recorded"), 8000)
        )
        state = replica.engine.replica.state
        await until(lambda: state.log.last_index > state.commit_index, "it is recorded")
        waiting = [
            asyncio.ensure_future(
                replica.engine.submit(Operation("put", (b"w", b"1"), f"waiting {number}"), 8000)
            )
            for number in range(2)
        ]
        with pytest.raises(OverloadedError):
            replica.engine.submit(Operation("put", (b"n", b"1"), "new"), 8000)
        again = await replica.engine.submit(Operation("put", (b"k", b"1"), "committed"), 8000)
        assert (again.index, again.repeated) == (committed.index, True)
        with pytest.raises(OperationUnknownError):
            await replica.engine.submit(Operation("put", (b"w", b"1"), "waiting 1"), 8000)
        later = replica.engine.submit(Operation("put", (b"r", b"1"), "recorded"), 8000)
        cluster["n3"].resume_disk()
        assert (await later).index == (await recorded).index
        await asyncio.gather(*waiting)


async def test_a_time_out_in_the_queue_says_unknown_while_an_earlier_request_is_open(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, KeyValue, bounds=Bounds(max_inflight_records=1)) as cluster:
        replica = cluster["n1"]
        cluster["n3"].hang_disk()

        def put(key: bytes, timeout_ms: int) -> asyncio.Future[Result]:
            return replica.engine.submit(Operation("put", (key, b"1"), key.decode()), timeout_ms)

        recorded = put(b"recorded", 8000)
        state = replica.engine.replica.state
        await until(lambda: state.log.last_index > state.commit_index, "it is recorded")
        waiting = put(b"waiting", 8000)
        ended = await asyncio.gather(
            put(b"recorded", 100), put(b"waiting", 100), put(b"new", 100), return_exceptions=True
        )
        assert [one.outcome for one in ended if isinstance(one, OperationError)] == [
            "unknown", "unknown", "not_applied",
        ]  # fmt: skip
        cluster["n3"].resume_disk()
        await asyncio.gather(recorded, waiting)


async def test_a_replica_that_lost_touch_gives_the_first_answer_of_what_it_has_applied(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, KeyValue, nodes=2) as cluster:
        first = await cluster["n1"].execute("put", b"k", b"1", idempotency_key="K")
        await until(
            lambda: cluster["n2"].storage.store.applied_index >= first.index, "n2 has applied it"
        )
        await cluster.stop("n1")

        async def repeat(key: str, min_copies: int = 0) -> Ended:
            put = Operation("put", (b"k", b"1"), key, "all", min_copies)
            ended = await asyncio.gather(
                cluster["n2"].gateway.execute(put, 200), return_exceptions=True
            )
            return ended[0]

        again = await repeat("K")
        assert isinstance(again, Result)
        assert (again.index, again.copies, again.repeated) == (first.index, 1, True)
        assert said(await repeat("K", 2)) == "unknown not_enough_copies"
        assert said(await repeat("other")) == "not_applied no_primary"


# -- one that is refused refuses nobody else


@pytest.mark.parametrize("ack", ["all", "local"])
async def test_a_delta_that_is_too_large_is_refused_alone(tmp_path: Path, ack: str) -> None:
    async with running(tmp_path, Bulk, nodes=1) as cluster:
        replica = cluster["n1"]
        await replica.execute("put", b"k", b"1", idempotency_key="K")
        ended = await all_of(
            replica,
            Operation("put", (b"a", b"1"), "", ack),  # type: ignore[arg-type]
            Operation("fill", (b"big", 70), "", ack),  # type: ignore[arg-type]
            Operation("fill", (b"huge", 80), "H"),
            Operation("fail_if_there", (b"big0",)),
            Operation("fail_if_there", (b"a",)),
            Operation("put", (b"k", b"1"), "K"),
            Operation("put", (b"b", b"1"), "L"),
        )
        assert [said(one) for one in ended] == [
            "done", "not_applied too_large", "not_applied too_large", "done",
            "not_applied is_there", "repeated", "done",
        ]  # fmt: skip
        assert (await replica.query("get", b"b")).value == b"1"
        assert (await replica.query("get", b"huge0")).value is None


async def test_deltas_that_are_too_large_together_become_records_of_their_own(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, Bulk, nodes=1) as cluster:
        replica = cluster["n1"]
        ended = await all_of(
            replica,
            Operation("put", (b"a", b"1")),
            Operation("fill", (b"one", 33)),
            Operation("put", (b"b", b"1")),
            Operation("fill", (b"two", 33), "K"),
            Operation("fail_if_there", (b"one0",)),
            Operation("put_slowly", (b"c", b"1")),
        )
        assert [said(one) for one in ended] == [
            "done", "done", "done", "done", "not_applied is_there", "done",
        ]  # fmt: skip
        indices = [one.index for one in ended if isinstance(one, Result)]
        assert indices == sorted(set(indices))


# -- what is executed and not committed is bounded, and the rest waits


async def test_beyond_the_bound_of_bytes_in_flight_operations_wait(tmp_path: Path) -> None:
    bounds = Bounds(max_inflight_bytes=256 * 1024)
    async with running(tmp_path, KeyValue, bounds=bounds) as cluster:
        replica = cluster["n1"]
        cluster["n3"].hang_disk()
        puts = [
            replica.engine.submit(Operation("put", (b"k%d" % number, bytes(60_000))), 15_000)
            for number in range(64)
        ]
        pipeline, tail = replica.engine.interpreter.pipeline, replica.engine.interpreter.tail
        await until(lambda: len(tail) > 0, "some are executed")
        largest = 0
        for _ in range(20):
            await asyncio.sleep(0)
            largest = max(largest, sum(len(item.record.data) for item in tail._items))
        assert largest < 256 * 1024 + 61_000
        assert len(pipeline.waiting) >= 58
        cluster["n3"].resume_disk()
        assert len({(await put).index for put in puts}) == 64


# -- refusals for good


async def test_a_condition_on_a_revision_that_has_passed_costs_no_entry(tmp_path: Path) -> None:
    async with running(tmp_path, KeyValue, nodes=1) as cluster:
        replica = cluster["n1"]
        first = await replica.execute("put", b"k", b"1")
        second = await replica.execute("put", b"k", b"2")
        state = replica.engine.replica.state
        for _ in range(2):
            with pytest.raises(RejectedError):
                await replica.execute("put", b"k", b"3", first.index, idempotency_key="K")
            with pytest.raises(RejectedError):
                await replica.execute("delete", b"gone", first.index, idempotency_key="L")
        assert state.log.last_index == second.index
        # What may come true later is remembered: its repeat is refused, too.
        with pytest.raises(RejectedError):
            await replica.execute("put", b"k", b"3", second.index + 2, idempotency_key="M")
        await replica.execute("put", b"k", b"4")
        with pytest.raises(RejectedError):
            await replica.execute("put", b"k", b"3", second.index + 2, idempotency_key="M")
        assert (await replica.query("get", b"k")).value[:2] == (b"4", second.index + 2)


# -- what is forgotten


async def write(cluster: LocalCluster, key: str, first_after: int | None = None) -> Result:
    put = Operation("put", (b"k", key.encode()), key, "all", 0, first_after)
    return await cluster["n1"].gateway.execute(put, 15_000)


async def test_the_oldest_answers_are_forgotten_beyond_the_bytes_and_then_refused(
    tmp_path: Path,
) -> None:
    bounds = Bounds(client_table=ClientTableBounds(max_bytes=3 * 170))
    async with running(tmp_path, KeyValue, bounds=bounds, timing=QUICK) as cluster:
        before = (await cluster["n1"].execute("put", b"k", b"x")).index
        done = [await write(cluster, f"k{number}", before) for number in range(3)]
        assert (await write(cluster, "k0", before)).index == done[0].index
        done += [await write(cluster, f"k{number}", done[-1].index) for number in range(3, 6)]
        assert (await write(cluster, "k5", done[2].index)).repeated
        with pytest.raises(OperationUnknownError) as forgotten:
            await write(cluster, "k0", before)
        assert forgotten.value.code == "idempotency_key_expired"
        # One that was first sent after all that is forgotten cannot have been executed.
        assert not (await write(cluster, "new", done[2].index)).repeated
        with pytest.raises(OperationUnknownError) as ahead:
            await write(cluster, "new 2", done[-1].index + 10)
        assert ahead.value.code == "unknown_revision"
        assert not (await write(cluster, "k0")).repeated  # without it: executed again
        assert len(await cluster.digests()) == 1
        for replica in cluster.replicas.values():
            assert len(replica.storage.store.range(2, b"", None, 100)) == 3
            assert len(replica.storage.store.range(1, b"", None, 100)) == 3
        await cluster.stop("n1")
        await until(
            lambda: any(replica.is_serving for replica in cluster.replicas.values()), "one serves"
        )
        put = Operation("put", (b"k", b"k1"), "k1", "all", 0, before)
        with pytest.raises(OperationUnknownError) as known_elsewhere:
            await cluster["n2"].gateway.execute(put, 15_000)
        assert known_elsewhere.value.code == "idempotency_key_expired"


async def test_an_answer_that_is_as_large_as_the_table_is_remembered(tmp_path: Path) -> None:
    bounds = Bounds(client_table=ClientTableBounds(max_bytes=10))
    async with running(tmp_path, KeyValue, bounds=bounds, nodes=1) as cluster:
        for number in range(3):
            first = await write(cluster, f"k{number}")
            again = await write(cluster, f"k{number}")
            assert (again.index, again.repeated) == (first.index, True)


async def test_service_failures_are_no_answers(tmp_path: Path) -> None:
    async with running(tmp_path, KeyValue, nodes=1) as cluster:
        with pytest.raises(OperationNotAppliedError) as refusal:
            await cluster["n1"].execute("put", b"", b"1", idempotency_key="K")
        assert refusal.value.code == "service_failed"
        assert not isinstance(refusal.value, RejectedError | PrimaryFullError)
