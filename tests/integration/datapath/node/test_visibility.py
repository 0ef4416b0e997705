"""D1, D2, D8, D9: what is acknowledged, what is seen, and what a repeat gets."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from cluster.services.kv import KeyValue
from datapath.errors import NotPrimaryError, OperationError, OperationNotAppliedError, RejectedError
from datapath.operations import Operation
from datapath.settings import Bounds
from tests.support.replicas import QUICK, LocalCluster, running, until

pytestmark = pytest.mark.slow


async def wait_until_written(cluster: LocalCluster, node: str = "n1") -> None:
    """Wait until the primary has something uncommitted that is durable on its own disk."""
    state = cluster[node].engine.replica.state
    await until(
        lambda: state.durable_index == state.log.last_index > state.commit_index,
        "an uncommitted entry is durable on the primary",
    )


async def test_d1_nothing_is_acknowledged_before_every_in_sync_disk_has_it(tmp_path: Path) -> None:
    async with running(tmp_path, KeyValue) as cluster:
        cluster["n3"].hang_disk()
        writing = asyncio.create_task(cluster["n1"].execute("put", b"k", b"v"))
        await wait_until_written(cluster)
        primary = cluster["n1"].engine.replica.primary
        assert primary is not None
        await until(
            lambda: primary.peers["n2"].match_index == primary._state.log.last_index,
            "the healthy backup has it",
        )
        assert not writing.done()
        cluster["n3"].resume_disk()
        assert (await writing).copies == 3


async def test_d2_an_uncommitted_value_is_seen_by_no_read_on_any_replica(tmp_path: Path) -> None:
    async with running(tmp_path, KeyValue) as cluster:
        await cluster["n1"].execute("put", b"k", b"old")
        cluster["n3"].hang_disk()
        writing = asyncio.create_task(cluster["n1"].execute("put", b"k", b"new"))
        await wait_until_written(cluster)
        for replica in cluster.replicas.values():
            for consistency in ("linearizable", "stale"):
                shown = await replica.query("get", b"k", consistency=consistency)
                assert shown.value[0] == b"old"
        cluster["n3"].resume_disk()
        await writing
        assert (await cluster["n2"].query("get", b"k")).value[0] == b"new"


async def test_d2_a_condition_that_failed_on_an_uncommitted_value_waits_for_it(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, KeyValue) as cluster:
        cluster["n3"].hang_disk()
        writing = asyncio.create_task(cluster["n1"].execute("put", b"k", b"new"))
        await wait_until_written(cluster)
        put = cluster["n1"].execute("put", b"k", b"other", None, True)  # only if absent
        failing = asyncio.create_task(put)
        await until(
            lambda: cluster["n1"].engine.interpreter.pipeline.operations_total >= 2,
            "both are executed",
        )
        assert not failing.done()
        cluster["n3"].resume_disk()
        await writing
        with pytest.raises(RejectedError) as refusal:
            await failing
        assert refusal.value.code == "precondition_failed"


async def test_d2_an_early_answer_waits_for_what_shines_through_it(tmp_path: Path) -> None:
    """`created` or `replaced` tells whether an uncommitted value is there."""
    async with running(tmp_path, KeyValue) as cluster:
        cluster["n3"].hang_disk()
        first = await cluster["n1"].execute("put", b"a", b"1", ack="local")
        assert first.copies == 1
        assert (await cluster["n1"].query("get", b"a")).value is None
        pipeline = cluster["n1"].engine.interpreter.pipeline
        second = asyncio.create_task(cluster["n1"].execute("put", b"a", b"2", ack="local"))
        await until(lambda: pipeline.operations_total == 2, "the second is executed")
        third = await cluster["n1"].execute("put", b"b", b"3", ack="local")
        assert third.index > first.index + 1
        assert not second.done()
        cluster["n3"].resume_disk()
        assert (await second).value is False  # replaced, as it turned out


async def test_d2_a_linearizable_read_sees_a_local_write_once_a_later_write_is_acknowledged(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, KeyValue) as cluster:
        await cluster["n1"].execute("put", b"k", b"old")
        cluster["n3"].hang_disk()
        local = await cluster["n1"].execute("put", b"k", b"new", ack="local")
        for replica in cluster.replicas.values():
            assert (await replica.query("get", b"k")).value[0] == b"old"
        after = cluster["n2"].execute("put", b"other", b"x")  # ack=all, of another key
        conditional = cluster["n1"].execute("put", b"k", b"newer", local.index, ack="local")
        later = asyncio.gather(asyncio.create_task(after), asyncio.create_task(conditional))
        cluster["n3"].resume_disk()
        await later  # a write does see it: its condition on the revision held
        for replica in cluster.replicas.values():
            value, revision, *_ = (await replica.query("get", b"k")).value
            assert revision >= local.index
            assert value in (b"new", b"newer")


async def test_d8_a_repeat_gets_the_first_answer_also_from_the_next_primary(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, KeyValue, timing=QUICK) as cluster:
        first = await cluster["n1"].execute("put", b"k", b"v", idempotency_key="key-1")
        with pytest.raises(RejectedError):
            await cluster["n2"].execute("put", b"k", b"x", None, True, idempotency_key="key-2")
        again = await cluster["n2"].execute("put", b"k", b"v", idempotency_key="key-1")
        assert (again.index, again.value, again.repeated) == (first.index, first.value, True)
        await cluster.stop("n1")
        await until(
            lambda: any(replica.is_serving for replica in cluster.replicas.values()),
            "another one serves",
        )
        last = await cluster["n3"].execute("put", b"k", b"v", idempotency_key="key-1")
        assert (last.index, last.repeated) == (first.index, True)
        assert last.node != "n1"
        with pytest.raises(RejectedError) as refusal:
            await cluster["n2"].execute("put", b"k", b"x", None, True, idempotency_key="key-2")
        assert refusal.value.code == "precondition_failed"
        with pytest.raises(RejectedError) as reuse:
            await cluster["n2"].execute("put", b"k", b"other", idempotency_key="key-1")
        assert reuse.value.code == "idempotency_key_reused"


async def test_d8_a_repeat_while_the_first_is_under_way_is_not_executed_twice(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, KeyValue) as cluster:
        cluster["n3"].hang_disk()
        tries = [
            asyncio.create_task(cluster[node].execute("put", b"k", b"v", idempotency_key="same"))
            for node in ("n1", "n2", "n3", "n1")
        ]
        await until(
            lambda: cluster["n1"].engine.interpreter.pipeline.operations_total >= 4, "all executed"
        )
        assert not any(one.done() for one in tries)
        cluster["n3"].resume_disk()
        answers = await asyncio.gather(*tries)
        assert len({answer.index for answer in answers}) == 1
        assert sorted(answer.repeated for answer in answers) == [False, True, True, True]


async def test_an_acknowledgement_on_too_few_copies_is_refused_before_anything_happens(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, KeyValue, timing=QUICK) as cluster:
        assert (await cluster["n1"].execute("put", b"k", b"1", min_copies=3)).copies == 3
        with pytest.raises(OperationNotAppliedError) as refusal:
            await cluster["n1"].execute("put", b"k", b"2", min_copies=4)
        assert refusal.value.code == "not_enough_copies"
        await cluster.stop("n3")
        await cluster.until_in_sync("n1", "n2")
        with pytest.raises(OperationNotAppliedError):
            await cluster["n2"].execute("put", b"k", b"2", min_copies=3)
        assert (await cluster["n2"].query("get", b"k")).value[0] == b"1"


async def test_min_in_sync_stops_writes_and_not_reads(tmp_path: Path) -> None:
    bounds = Bounds(min_in_sync=2)
    async with running(tmp_path, KeyValue, timing=QUICK, bounds=bounds, nodes=2) as cluster:
        await cluster["n1"].execute("put", b"k", b"1")
        await cluster.stop("n2")
        await cluster.until_in_sync("n1")
        with pytest.raises(OperationNotAppliedError) as refusal:
            await cluster["n1"].execute("put", b"k", b"2")
        assert refusal.value.code == "not_enough_copies"
        assert (await cluster["n1"].query("get", b"k")).value[0] == b"1"
        await cluster.start("n2")
        await cluster.until_in_sync("n1", "n2")
        assert (await cluster["n1"].execute("put", b"k", b"3")).copies == 2


async def test_a_time_out_says_unknown_of_what_was_executed_and_not_applied_of_what_was_not(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, KeyValue, bounds=Bounds(max_inflight_records=1)) as cluster:
        cluster["n3"].hang_disk()
        engine = cluster["n1"].engine
        executed = asyncio.ensure_future(engine.submit(Operation("put", (b"a", b"1")), 300))
        await wait_until_written(cluster)
        waiting = asyncio.ensure_future(engine.submit(Operation("put", (b"b", b"1")), 300))
        with pytest.raises(OperationError) as unknown:
            await executed
        with pytest.raises(NotPrimaryError) as not_applied:
            await waiting
        assert (unknown.value.outcome, not_applied.value.outcome) == ("unknown", "not_applied")
        cluster["n3"].resume_disk()
        await until(lambda: engine.replica.state.commit_index >= 2, "it commits after all")
        assert (await cluster["n1"].query("get", b"a")).value[0] == b"1"
        assert (await cluster["n1"].query("get", b"b")).value is None


async def test_many_reads_on_a_backup_share_one_question_to_the_primary(tmp_path: Path) -> None:
    async with running(tmp_path, KeyValue) as cluster:
        await cluster["n1"].execute("put", b"k", b"v")
        before = cluster["n2"].gateway.counters()["read_index_calls_total"]
        answers = await asyncio.gather(*(cluster["n2"].query("get", b"k") for _ in range(100)))
        asked = cluster["n2"].gateway.counters()["read_index_calls_total"] - before
        assert {answer.node for answer in answers} == {"n2"}
        assert all(answer.value[0] == b"v" for answer in answers)
        assert asked <= 3


async def test_a_replica_that_restarts_has_everything(tmp_path: Path) -> None:
    async with running(tmp_path, KeyValue, timing=QUICK) as cluster:
        for number in range(50):
            await cluster["n1"].execute("put", b"k%d" % number, b"v" * 1000)
        await cluster.stop("n2")
        for number in range(50, 80):
            await cluster["n1"].execute("put", b"k%d" % number, b"v" * 1000)
        await cluster.start("n2")
        await cluster.until_in_sync()
        assert len(await cluster.digests()) == 1
