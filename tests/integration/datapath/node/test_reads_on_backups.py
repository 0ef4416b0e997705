"""Linearizable and bounded-stale reads on a backup: whose answer they rest on."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from cluster.services.kv import KeyValue
from datapath.clock import clock_ms
from datapath.errors import NotPrimaryError, RejectedError
from datapath.node.reads import FOLLOW_TIMEOUT_MS
from datapath.operations import Query, QueryResult
from datapath.settings import Bounds
from datapath.transport.calls import Envelope, ReadIndexReturn
from datapath.transport.link import Link
from election.static import Fault
from tests.support.replicas import QUICK, LocalCluster, running, until

pytestmark = pytest.mark.slow

GET = Query("get", (b"k",))
CONFIRMED = Query("get", (b"k",), consistency="confirmed")


class HeldAnswers:
    """The primary's answers to read index questions are held back until they are released.

    A node's `Gateway` computes them at once: only their way to the asking node takes long.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._held: list[tuple[Link, Envelope]] = []
        self._is_holding = True
        self._send = Link.send

        def send(link: Link, message: Any) -> None:
            is_answer = isinstance(message, Envelope) and isinstance(message.body, ReadIndexReturn)
            if self._is_holding and is_answer:
                self._held.append((link, message))
            else:
                self._send(link, message)

        monkeypatch.setattr(Link, "send", send)

    def any(self) -> bool:
        """Whether an answer is on its way."""
        return bool(self._held)

    def release_one(self) -> None:
        """Let the oldest arrive."""
        self._send(*self._held.pop(0))

    def release_all(self) -> None:
        """Let all arrive, and hold none any more."""
        self._is_holding = False
        while self._held:
            self.release_one()


def asked(cluster: LocalCluster) -> float:
    return cluster["n2"].gateway.counters()["read_index_calls_total"]


async def test_a_read_does_not_use_the_answer_to_an_older_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, KeyValue) as cluster:
        await cluster["n1"].execute("put", b"k", b"old")
        answers = HeldAnswers(monkeypatch)
        first = asyncio.create_task(cluster["n2"].query("get", b"k"))
        await until(answers.any, "the primary has answered")
        await cluster["n1"].execute("put", b"k", b"new")
        second = asyncio.create_task(cluster["n2"].query("get", b"k"))
        reads = cluster["n2"].gateway.reads._leased.index
        await until(lambda: bool(reads.waiting or len(reads._asking) > 1), "the read has begun")
        answers.release_one()
        await first
        # Another question is asked for the second read.
        await until(lambda: answers.any() or second.done(), "the primary is asked again")
        assert not second.done()
        answers.release_all()
        assert (await second).value[0] == b"new"


class Told:
    """A `QueryCompletion` that notes what it is told."""

    def __init__(self) -> None:
        self.is_gone = False
        self.results: list[QueryResult] = []
        self.problems: list[Exception] = []

    def done(self) -> bool:
        """Whether its client has gone, or it has been answered."""
        return self.is_gone or self.is_answered()

    def is_answered(self) -> bool:
        """Whether it has been told something."""
        return bool(self.results or self.problems)

    def set_result(self, result: QueryResult, /) -> None:
        """Take a result."""
        assert not self.done()
        self.results.append(result)

    def set_exception(self, exception: Exception, /) -> None:
        """Take a problem."""
        assert not self.done()
        self.problems.append(exception)


def submitted(cluster: LocalCluster, query: Query, timeout_ms: int = 15_000) -> Told:
    told = Told()
    assert cluster["n2"].gateway.submit_query(query, timeout_ms, told)
    assert not told.is_answered()
    return told


async def test_reads_without_tasks_share_a_question_and_each_has_its_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, KeyValue) as cluster:
        await cluster["n1"].execute("put", b"k", b"v")
        answers = HeldAnswers(monkeypatch)
        before, tasks = asked(cluster), len(asyncio.all_tasks())
        first = submitted(cluster, GET)
        many = [submitted(cluster, GET) for _ in range(200)]
        unknown = submitted(cluster, Query("none", ()))
        gone = submitted(cluster, GET)
        gone.is_gone = True
        assert len(asyncio.all_tasks()) == tasks
        await until(answers.any, "the primary has answered")
        answers.release_all()
        await until(lambda: all(told.is_answered() for told in many), "all are answered")
        assert {told.results[0].value[0] for told in (first, *many)} == {b"v"}
        assert {told.results[0].node for told in many} == {"n2"}
        assert isinstance(unknown.problems[0], RejectedError)
        assert not gone.is_answered()
        assert asked(cluster) == before + 2


async def test_reads_wait_for_a_silent_primary_for_one_second_in_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those for whom no question has been asked yet."""
    async with running(tmp_path, KeyValue) as cluster:
        await cluster["n1"].execute("put", b"k", b"v")
        answers = HeldAnswers(monkeypatch)
        first, brief = submitted(cluster, GET), submitted(cluster, GET, 50)
        confirmed = submitted(cluster, CONFIRMED, 70)
        index = cluster["n2"].gateway.reads._leased.index
        late_ms = clock_ms() + FOLLOW_TIMEOUT_MS
        assert [deadline <= late_ms for reads in index._stages() for deadline, _ in reads] == [
            True,
            True,
        ]
        await until(lambda: brief.is_answered() and confirmed.is_answered(), "their time is up")
        assert not first.is_answered()
        await until(first.is_answered, "its time is up")
        for told in (first, brief, confirmed):
            assert isinstance(told.problems[0], NotPrimaryError)
            assert told.problems[0].code == "timeout"
        caller = cluster["n2"].gateway.caller
        assert not any(peer == "n1" for peer, _ in caller._open.values())
        answers.release_all()
        assert (await cluster["n2"].query("get", b"k")).value[0] == b"v"


async def test_reads_that_wait_are_told_when_the_link_is_lost_or_their_node_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, KeyValue) as cluster:
        answers = HeldAnswers(monkeypatch)
        lost = submitted(cluster, GET)
        await until(answers.any, "the primary has answered")
        for link in cluster["n2"].gateway.caller._links.values():
            link.close("cut by the test")
        await until(lost.is_answered, "it is told")
        assert isinstance(lost.problems[0], NotPrimaryError)
        assert "cut by the test" in lost.problems[0].detail
        waiting = submitted(cluster, GET)
        await cluster.stop("n2")
        assert isinstance(waiting.problems[0], NotPrimaryError)


async def test_what_is_stale_scans_or_belongs_to_the_primary_waits_in_a_task(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, KeyValue) as cluster:
        told = Told()
        stale = Query("get", (b"k",), consistency="stale")
        gateway = cluster["n2"].gateway
        assert not gateway.submit_query(stale, 1000, told)
        for method in KeyValue.scans:
            assert not gateway.submit_query(Query(method, ()), 1000, told)
        assert not cluster["n1"].gateway.submit_query(GET, 1000, told)
        assert not told.is_answered()


async def test_the_staleness_of_a_backup_counts_from_its_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the primary commits while the answer is on its way is not part of it."""
    bound_ms = 300
    async with running(tmp_path, KeyValue) as cluster:
        await cluster["n1"].execute("put", b"k", b"v")
        answers = HeldAnswers(monkeypatch)
        query = Query("get", (b"k",), consistency="stale", max_staleness_ms=bound_ms)
        first = asyncio.create_task(cluster["n2"].gateway.query(query, 15_000))
        await until(answers.any, "the primary has answered")
        began = asyncio.get_running_loop().time()
        await until(
            lambda: asyncio.get_running_loop().time() - began > bound_ms / 1000,
            "the question is older than what the next read takes",
        )
        answers.release_all()
        await first
        before = asked(cluster)
        await cluster["n2"].gateway.query(query, 15_000)
        assert asked(cluster) == before + 1


async def test_a_bounded_stale_read_asks_nobody_within_its_bound(tmp_path: Path) -> None:
    async with running(tmp_path, KeyValue) as cluster:
        await cluster["n1"].execute("put", b"k", b"v")
        query = Query("get", (b"k",), consistency="stale", max_staleness_ms=600_000)
        await cluster["n2"].gateway.query(query, 15_000)
        before = asked(cluster)
        assert (await cluster["n2"].gateway.query(query, 15_000)).node == "n2"
        assert asked(cluster) == before


async def test_a_primary_without_its_leases_gives_no_read_index(tmp_path: Path) -> None:
    """D4: another may have become primary, and committed more."""
    async with running(tmp_path, KeyValue, timing=QUICK, nodes=2) as cluster:
        engine = cluster["n1"].engine
        assert engine.interpreter.read_index() == (1, engine.replica.state.commit_index)
        cluster.group.set_fault("n1", Fault.CUT_OFF)
        await cluster.stop("n2")
        await until(lambda: not cluster["n1"].is_serving, "its lease has run out")
        assert engine.replica.primary is not None
        with pytest.raises(NotPrimaryError):
            engine.interpreter.read_index()


async def test_a_confirmed_read_needs_the_answers_of_all_in_sync(tmp_path: Path) -> None:
    """At the primary and, by its question, at a backup; a leased one does not ask."""
    async with running(tmp_path, KeyValue) as cluster:
        await cluster["n1"].execute("put", b"k", b"v")
        for node in ("n1", "n2"):
            assert (await cluster[node].gateway.query(CONFIRMED, 15_000)).value[0] == b"v"
        primary = cluster["n1"].engine.replica.primary
        assert primary is not None
        before = primary.heartbeats._round
        assert before >= 2
        await cluster["n1"].query("get", b"k")
        await cluster["n2"].query("get", b"k")
        assert primary.heartbeats._round == before


async def test_confirmed_reads_share_rounds(tmp_path: Path) -> None:
    async with running(tmp_path, KeyValue) as cluster:
        await cluster["n1"].execute("put", b"k", b"v")
        primary = cluster["n1"].engine.replica.primary
        assert primary is not None
        before = primary.heartbeats._round
        gateway = cluster["n1"].gateway
        answers = await asyncio.gather(*(gateway.query(CONFIRMED, 15_000) for _ in range(200)))
        assert {answer.value[0] for answer in answers} == {b"v"}
        assert primary.heartbeats._round - before <= 2


async def test_a_read_that_cannot_be_confirmed_ends_with_its_time(tmp_path: Path) -> None:
    async with running(tmp_path, KeyValue, nodes=2) as cluster:
        await cluster["n1"].execute("put", b"k", b"v")
        cluster.group.set_fault("n1", Fault.CUT_OFF)  # so that n2 stays in the in-sync set
        await cluster.stop("n2")
        with pytest.raises(NotPrimaryError):
            await cluster["n1"].gateway.query(CONFIRMED, 200)
        confirmations = cluster["n1"].engine.interpreter.confirmations
        await until(lambda: len(confirmations.waiting) == 0, "the read is forgotten")


async def test_with_reads_confirmed_nothing_rests_on_leases(tmp_path: Path) -> None:
    """Neither a read, at whichever node, nor an answer that wrote nothing."""
    async with running(tmp_path, KeyValue, bounds=Bounds(confirm_reads=True)) as cluster:
        await cluster["n1"].execute("put", b"k", b"v")
        primary = cluster["n1"].engine.replica.primary
        assert primary is not None
        began = primary.heartbeats._round
        await cluster["n1"].query("get", b"k")
        assert primary.heartbeats._round == began + 1
        await cluster["n2"].query("get", b"k")
        assert primary.heartbeats._round == began + 2
        await cluster["n1"].execute("delete", b"none")
        assert primary.heartbeats._round == began + 3
        with pytest.raises(RejectedError):
            await cluster["n1"].execute("put", b"k", b"other", None, True)
