"""A service is ordinary Python that runs once, on the primary; only what it wrote travels."""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from pathlib import Path

import pytest

from datapath.errors import OperationNotAppliedError, RejectedError
from datapath.operations import STORE
from datapath.service import ReadTransaction, Service, Transaction, operation, query
from tests.support.replicas import QUICK, LocalCluster, running, until

pytestmark = pytest.mark.slow


class Lottery(Service):
    """Nothing in it is deterministic."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.calls = 0

    @operation
    def draw(self, tx: Transaction, name: bytes) -> str:
        self.calls += 1
        ticket = f"{uuid.uuid4()} {time.time_ns()} {random.random()}"
        tx.put(name, ticket.encode())
        return ticket

    @operation
    async def draw_abroad(self, tx: Transaction, name: bytes) -> bytes | None:
        before = tx.get(name)
        await self.gate.wait()
        assert tx.get(name) == before, "nothing else executes meanwhile"
        tx.put(name, b"from abroad")
        return before

    @operation
    def draw_two_or_none(self, tx: Transaction, first: bytes, second: bytes) -> int:
        tx.put(first, b"taken")
        if tx.get(second) is not None:
            raise RejectedError("taken", f"{second!r} is taken")
        tx.put(second, b"taken")
        return len(tx.range(b"", None, 10))

    @operation
    def fail(self, tx: Transaction, name: bytes) -> None:
        tx.put(name, b"never")
        raise ZeroDivisionError("a bug in the service")

    @query
    def show(self, tx: ReadTransaction, name: bytes) -> bytes | None:
        return tx.get(name)


def primary_service(cluster: LocalCluster) -> Lottery:
    service = cluster["n1"].engine.interpreter._services[STORE]
    assert isinstance(service, Lottery)
    return service


async def test_a_nondeterministic_operation_runs_once_and_its_result_is_on_every_replica(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, Lottery) as cluster:
        tickets = await asyncio.gather(
            *(cluster[f"n{i % 3 + 1}"].execute("draw", b"t%d" % i) for i in range(30))
        )
        for i, ticket in enumerate(tickets):
            for replica in cluster.replicas.values():
                shown = await replica.query("show", b"t%d" % i)
                assert shown.value == ticket.value.encode()
        assert len(await cluster.digests()) == 1
        assert primary_service(cluster).calls == 30
        assert {ticket.node for ticket in tickets} == {"n1"}


async def test_an_async_operation_may_wait_and_nothing_of_its_service_executes_beside_it(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, Lottery) as cluster:
        slow = asyncio.create_task(cluster["n1"].execute("draw_abroad", b"k"))
        engine = cluster["n1"].engine
        await until(lambda: any(engine.interpreter.pipeline._concurrency), "it executes")
        fast = asyncio.create_task(cluster["n1"].execute("draw", b"k"))
        await until(
            lambda: engine.interpreter.pipeline.waiting_operations() == 1, "the other waits"
        )
        assert (await cluster["n1"].query("show", b"k")).value is None
        primary_service(cluster).gate.set()
        assert (await slow).index < (await fast).index


async def test_a_refused_operation_leaves_nothing_behind(tmp_path: Path) -> None:
    async with running(tmp_path, Lottery) as cluster:
        assert (await cluster["n1"].execute("draw_two_or_none", b"a", b"b")).value == 2
        with pytest.raises(RejectedError) as refusal:
            await cluster["n2"].execute("draw_two_or_none", b"c", b"b")
        assert refusal.value.code == "taken"
        assert (await cluster["n3"].query("show", b"c")).value is None


async def test_a_bug_in_the_service_changes_nothing_and_the_node_goes_on(tmp_path: Path) -> None:
    async with running(tmp_path, Lottery) as cluster:
        with pytest.raises(OperationNotAppliedError) as failure:
            await cluster["n1"].execute("fail", b"x")
        assert failure.value.code == "service_failed"
        assert (await cluster["n1"].query("show", b"x")).value is None
        assert (await cluster["n1"].execute("draw", b"x")).copies == 3


async def test_an_async_operation_cut_short_by_a_failover_is_executed_by_the_next_primary(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, Lottery, timing=QUICK) as cluster:
        slow = asyncio.create_task(cluster["n2"].execute("draw_abroad", b"k"))
        await until(
            lambda: any(cluster["n1"].engine.interpreter.pipeline._concurrency),
            "it executes on n1",
        )
        for replica in cluster.replicas.values():
            service = replica.engine.interpreter._services[STORE]
            assert isinstance(service, Lottery)
            if replica.node_id != "n1":
                service.gate.set()
        await cluster["n1"].gateway.handover("n3", 5000)
        answer = await slow
        assert answer.node == "n3"
        assert (await cluster["n3"].query("show", b"k")).value == b"from abroad"


async def test_an_operation_that_ended_during_a_handover_that_failed_leaves_nothing_behind(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, Lottery) as cluster:
        cluster["n3"].hang_disk()
        stuck = asyncio.create_task(cluster["n1"].execute("draw", b"stuck"))
        pipeline = cluster["n1"].engine.interpreter.pipeline
        tail = cluster["n1"].engine.interpreter.tail
        await until(lambda: len(tail) == 1, "n3 lags")
        abroad = asyncio.create_task(cluster["n1"].execute("draw_abroad", b"k"))
        await until(lambda: any(pipeline._concurrency), "it executes")
        handover = asyncio.create_task(cluster["n1"].gateway.handover("n3", 500))
        await until(lambda: not cluster["n1"].engine.replica.may_execute(), "n1 hands over")
        primary_service(cluster).gate.set()
        with pytest.raises(OperationNotAppliedError):
            await handover
        cluster["n3"].resume_disk()
        await stuck
        assert (await abroad).value is None, "what it wrote in vain was not seen by its second try"
