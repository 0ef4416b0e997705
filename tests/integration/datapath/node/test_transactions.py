"""T1 on real replicas: a transaction is whole everywhere, and tells nothing that is uncommitted."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from cluster.services.kv import KeyValue
from cluster.services.txn import (
    Comparison,
    DeleteRangeStep,
    GetStep,
    ListStep,
    PutStep,
    Txn,
    encode_txn,
)
from datapath.settings import Bounds
from tests.support.replicas import LocalCluster, running, until

pytestmark = pytest.mark.slow

ABSENT = Comparison(b"k", "exists", "eq", 0)


async def hold_a_put_back(cluster: LocalCluster) -> asyncio.Task[object]:
    """Let a put of k be executed and not commit, until n3's disk goes on."""
    cluster["n3"].hang_disk()
    put = asyncio.create_task(cluster["n1"].execute("put", b"k", b"v"))
    state = cluster["n1"].engine.replica.state
    await until(
        lambda: state.durable_index == state.log.last_index > state.commit_index,
        "an uncommitted entry is durable on the primary",
    )
    return put


async def test_it_is_carried_out_from_any_node_and_is_whole_on_all(tmp_path: Path) -> None:
    async with running(tmp_path, KeyValue) as cluster:
        for node in cluster.replicas:
            key = node.encode()
            steps = (
                PutStep(b"a/" + key, key),
                PutStep(b"b/" + key, key),
                ListStep(b"a/" + key, b"a/" + key + b"\0"),
                DeleteRangeStep(b"c/", b"d"),
            )
            done = await cluster[node].execute("txn", encode_txn(Txn((), steps)))
            succeeded, results = done.value
            assert (succeeded, results[:2], results[3]) == (True, [True, True], 0)
            ((listed,), _) = results[2]
            assert tuple(listed) == (b"a/" + key, key, done.index, done.index, 1, 0)
            for replica in cluster.replicas.values():
                for prefix in (b"a/", b"b/"):
                    found = (await replica.query("get", prefix + key)).value
                    assert tuple(found) == (key, done.index, done.index, 1, 0)


@pytest.mark.parametrize("step", [GetStep(b"k"), ListStep(b"", None)], ids=["get", "list"])
async def test_d2_what_an_uncommitted_value_made_it_see_is_told_when_that_has_committed(
    tmp_path: Path, step: GetStep | ListStep
) -> None:
    async with running(tmp_path, KeyValue) as cluster:
        put = await hold_a_put_back(cluster)
        failed = encode_txn(Txn((ABSENT,), (), (step,)))
        ranged = encode_txn(Txn((), (ListStep(b"", None),)))
        waiting = [
            asyncio.create_task(cluster["n1"].execute("txn", request))
            for request in (failed, ranged)
        ]
        pipeline = cluster["n1"].engine.interpreter.pipeline
        before = pipeline.operations_total
        await until(lambda: pipeline.operations_total >= before + 2, "both were executed")
        assert not any(task.done() for task in (put, *waiting))
        cluster["n3"].resume_disk()
        (succeeded, results), (_, (listed,)) = [(await task).value for task in waiting]
        assert succeeded is False
        seen = results[0] if isinstance(step, GetStep) else results[0][0][0][1:]
        assert seen[0] == b"v"
        assert [key for key, *_ in listed[0]] == [b"k"]
        await put


async def test_d2_an_early_answer_waits_for_all_that_its_ranges_have_seen(tmp_path: Path) -> None:
    async with running(tmp_path, KeyValue, bounds=Bounds(max_inflight_records=9)) as cluster:
        put = await hold_a_put_back(cluster)
        steps = (PutStep(b"other", b"x"), ListStep(b"", b"l"))
        seeing = asyncio.create_task(
            cluster["n1"].execute("txn", encode_txn(Txn((), steps)), ack="local")
        )
        for key in (b"x", b"y"):  # by the second answer, what was answered with the first is known
            blind = encode_txn(Txn((), (PutStep(key, b""), ListStep(b"l", b"m"))))
            assert (await cluster["n1"].execute("txn", blind, ack="local")).copies == 1
        assert not seeing.done()
        cluster["n3"].resume_disk()
        await asyncio.gather(put, seeing)
