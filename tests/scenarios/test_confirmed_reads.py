"""D10: a confirmed read rests on no clock: all who might be the primary deny it."""

from __future__ import annotations

import pytest

from datapath.errors import NotPrimaryError, OperationError, RejectedError
from datapath.operations import Operation
from datapath.protocol.confirmations import ReadPoint
from election.view import AddToInSync
from tests.sim.node import Node
from tests.sim.oracle import Oracle
from tests.sim.script import Cluster


class Read:
    """A read that waits to be confirmed."""

    def __init__(self, node: Node) -> None:
        self.point: ReadPoint | None = None
        self.problem: OperationError | None = None
        node.confirm(self)

    def done(self) -> bool:
        """Whether there is an answer."""
        return self.point is not None or self.problem is not None

    def set_result(self, point: ReadPoint, /) -> None:
        """Take the answer; the oracle has looked at it."""
        self.point = point

    def set_exception(self, exception: OperationError, /) -> None:
        """Take the reason why there is none."""
        self.problem = exception


def _sleep(cluster: Cluster, name: str) -> None:
    cluster[name].pause()
    cluster[name].set_clock_rate(0.0)


def _wake(cluster: Cluster, name: str) -> None:
    cluster[name].set_clock_rate(1.0)
    cluster[name].resume()


def test_nor_does_it_refuse_a_condition() -> None:
    """A refusal is a read's answer: what it saw must be true."""
    cluster = Cluster(has_service=True, clocks_stop=True)
    put = Operation("put", (b"k", b"first"))
    assert cluster.told("a", put).problem is None
    cluster.cut_consensus("a")
    cluster.isolate("a")
    _sleep(cluster, "a")
    cluster.until(lambda: cluster["b"].replica.may_serve(cluster["b"].clock()))
    assert cluster.told("b", Operation("delete", (b"k",))).problem is None
    _wake(cluster, "a")
    assert cluster["a"].replica.may_serve(cluster["a"].clock()), "by its lease it may"
    said = cluster.ask("a", Operation("put", (b"k", b"other", None, True)))
    cluster.run(100)
    assert not said.done()
    cluster.rejoin()
    cluster.until(said.done)
    assert isinstance(said.problem, NotPrimaryError)


def test_what_wrote_nothing_is_answered_once_it_is_confirmed_or_its_time_is_up() -> None:
    cluster = Cluster(has_service=True, clocks_stop=True)
    assert cluster.told("a", Operation("put", (b"k", b"first"))).problem is None
    refused = cluster.told("a", Operation("put", (b"k", b"other", None, True)))
    assert isinstance(refused.problem, RejectedError)
    deleted = cluster.told("a", Operation("delete", (b"none",)))
    assert deleted.result is not None
    assert deleted.result.value is False
    cluster.isolate("a")
    late = cluster.ask("a", Operation("put", (b"k", b"other", None, True)), timeout_ms=80)
    cluster.run(60)
    assert not late.done()
    cluster.run(60)
    assert isinstance(late.problem, NotPrimaryError)


@pytest.mark.parametrize("when", ["before it slept", "after it woke"])
def test_a_primary_whose_clock_stood_still_confirms_nothing(
    monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    # Its lease says that it may answer: this is what the lease cannot know.
    monkeypatch.setattr(Oracle, "check_serving", lambda _oracle, _node: None)
    cluster = Cluster()
    cluster.write(3)
    cluster.cut_consensus("a")
    cluster.isolate("a")
    asked_before = Read(cluster["a"]) if when == "before it slept" else None
    _sleep(cluster, "a")
    cluster.until(lambda: cluster["b"].replica.may_serve(cluster["b"].clock()))
    assert cluster["b"].append(1)
    cluster.run(50)
    _wake(cluster, "a")
    a = cluster["a"].replica
    assert a.may_serve(cluster["a"].clock()), "by its lease it may"
    read = asked_before or Read(cluster["a"])
    cluster.run(100)
    assert not read.done()
    cluster.rejoin()
    cluster.until(read.done)
    assert read.point is None, "whoever follows a later epoch confirms nothing of this one"
    assert read.problem is not None
    cluster.mend_consensus("a")
    cluster.until(cluster.is_whole)


def test_a_read_is_confirmed_where_the_lease_has_run_out() -> None:
    cluster = Cluster()
    for node in ("b", "c"):
        cluster.move_away(node, 150)
    primary = cluster["a"]
    cluster.until(lambda: not primary.replica.may_serve(primary.clock()), within_ms=1000)
    read = Read(primary)
    assert not read.done()
    cluster.until(read.done)
    assert read.point is not None
    assert read.point.epoch == cluster.view.epoch


def test_who_is_being_added_confirms_too() -> None:
    """E3: the proposal that adds "c" has committed, and "a" does not know; "c" may take over."""
    cluster = Cluster()
    cluster["c"].crash()
    cluster.until(lambda: cluster.in_sync() == "ab")
    cluster.hold_proposals()
    cluster["c"].start()
    cluster.until(lambda: cluster.held(AddToInSync))
    cluster.isolate("c")
    for node in ("a", "b"):
        cluster.cut_consensus(node)
    cluster.report_unknown("a")
    cluster.let_proposals_through(held=True)
    assert cluster.in_sync() == "abc"
    # "b" hears "a" alone, and confirms: "c" takes over, removes "b" and is alone.
    cluster.until(lambda: cluster["c"].replica.may_serve(cluster["c"].clock()))
    assert cluster["c"].append(1)
    cluster.run(10)
    assert cluster.in_sync() == "c"
    read = Read(cluster["a"])
    cluster.run(100)  # the oracle fails if it is confirmed
    assert not read.done()
    for node in ("a", "b"):
        cluster.mend_consensus(node)
    cluster.rejoin()
    cluster.until(cluster.is_whole)
    assert read.point is None


def test_no_read_is_confirmed_before_all_of_earlier_epochs_is_committed() -> None:
    """D6: a new primary holds what was acknowledged, and may not know yet that it was."""
    cluster = Cluster()
    cluster.write(3)
    cluster["a"].crash()
    cluster.until(lambda: cluster["b"].replica.primary is not None)
    read = Read(cluster["b"])
    cluster.until(read.done)
    primary = cluster["b"].replica.primary
    assert primary is not None
    assert primary.is_open
    assert read.point is not None
    assert read.point.index >= primary.opening_index
