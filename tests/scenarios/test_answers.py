"""What clients are told when the primary changes (D2, D4, D8)."""

from __future__ import annotations

import pytest

from datapath.errors import NotPrimaryError, OperationUnknownError, RejectedError
from datapath.operations import Operation, Query
from tests.sim.script import Cluster

PUT = Operation("put", (b"k", b"first"))
PUT_IF_ABSENT = Operation("put", (b"k", b"other", None, True))
DELETE = Operation("delete", (b"k",))
GET = Query("get", (b"k",))


def _cut_off(cluster: Cluster) -> None:
    """Leave "a" alone: it does not hear that "b" or "c" has taken over."""
    cluster.cut_consensus("a")
    cluster.isolate("a")


def _rejoin(cluster: Cluster) -> None:
    cluster.mend_consensus("a")
    cluster.rejoin()


def _has_been_replaced(cluster: Cluster) -> str:
    cluster.until(lambda: cluster.serving() not in ("", "a"))
    return cluster.serving()


def test_a_primary_that_was_replaced_says_nothing_of_what_it_sees() -> None:
    """D4: neither to a read, nor by refusing a condition."""
    cluster = Cluster(has_service=True)
    assert cluster.told("a", PUT).problem is None
    _cut_off(cluster)
    assert cluster.told(_has_been_replaced(cluster), DELETE).problem is None
    assert cluster["a"].replica.may_execute()  # it would execute, and knows no better
    with pytest.raises(NotPrimaryError):
        cluster.read("a", GET)
    refused = cluster.told("a", PUT_IF_ABSENT)
    assert isinstance(refused.problem, NotPrimaryError)


def test_what_a_lost_epoch_left_uncommitted_is_forgotten_for_good() -> None:
    """D2: the entry was cut off; when its writer is the primary again, the key is absent."""
    cluster = Cluster(has_service=True)
    _cut_off(cluster)
    lost = cluster.ask("a", PUT)
    b = _has_been_replaced(cluster)
    assert cluster.told(b, Operation("put", (b"another", b"value"))).problem is None
    _rejoin(cluster)
    cluster.until(cluster.is_whole)
    assert lost.problem is not None
    assert lost.problem.outcome == "unknown"
    cluster[b].hand_over("a")
    cluster.until(lambda: cluster.serving() == "a")
    done = cluster.told("a", PUT_IF_ABSENT)
    assert done.result is not None
    assert done.result.value is True


def test_a_condition_that_failed_on_something_uncommitted_waits_for_it() -> None:
    """D2: the answer would give away what may never have been."""
    cluster = Cluster(has_service=True)
    _cut_off(cluster)
    cluster.ask("a", PUT)
    refused = cluster.ask("a", PUT_IF_ABSENT)
    b = _has_been_replaced(cluster)
    assert not refused.done()
    assert cluster.told(b, PUT_IF_ABSENT).problem is None
    _rejoin(cluster)
    cluster.until(refused.done)
    assert isinstance(refused.problem, NotPrimaryError)


def test_a_repeat_gets_the_first_answer_from_the_next_primary() -> None:
    """D8: also a refusal, and although the state has changed since."""
    cluster = Cluster(has_service=True)
    put = Operation("put", (b"k", b"first"), "key 1")
    refused = Operation("put", (b"k", b"other", None, True), "key 2")
    first = cluster.told("a", put)
    assert isinstance(cluster.told("a", refused).problem, RejectedError)
    assert cluster.told("a", DELETE).problem is None
    cluster["a"].crash()
    b = _has_been_replaced(cluster)
    again = cluster.told(b, put)
    assert first.result is not None
    assert again.result is not None
    assert again.result.repeated
    assert (again.result.index, again.result.value) == (first.result.index, True)
    assert isinstance(cluster.told(b, refused).problem, RejectedError)
    assert cluster.read(b, GET).value is None


def _left_uncommitted(seed: int) -> tuple[Cluster, Operation]:
    """Have "b" take over with a keyed write in its log that nobody has committed; "c" is away."""
    cluster = Cluster(seed=seed, has_service=True)
    keyed = Operation("put", (b"k", b"first"), "request-1")
    cluster.cut("b", "a")
    cluster.cut("c", "a")
    end = cluster["b"].disk.durable.last_index
    cluster.ask("a", keyed)
    cluster.until(lambda: cluster["b"].disk.durable.last_index > end)
    cluster.isolate("c")
    cluster.cut_consensus("c")
    cluster["a"].crash()
    cluster.until(lambda: cluster["b"].replica.primary is not None)
    assert not cluster["b"].replica.may_execute()
    return cluster, keyed


def test_a_repeat_of_what_an_earlier_epoch_left_uncommitted_is_not_refused_as_not_applied() -> None:
    """D8: the queue of a primary that does not serve yet is full, and the repeat is in its log."""
    cluster, keyed = _left_uncommitted(seed=3)
    waits = [cluster.ask("b", Operation("put", (b"x", b"%d" % n))) for n in range(2)]
    other = cluster.told("b", Operation("put", (b"y", b"other"), "request-2"))
    assert other.problem is not None
    assert other.problem.outcome == "not_applied"
    refused = cluster.told("b", keyed)
    assert refused.problem is not None
    assert (refused.problem.code, refused.problem.outcome) == ("unknown_outcome", "unknown")
    cluster.until(lambda: all(said.done() for said in waits))
    repeated = cluster.told("b", keyed).result
    assert repeated is not None
    assert repeated.repeated


def test_a_repeat_that_waits_for_a_primary_in_vain_is_not_called_not_applied() -> None:
    """D8: what an earlier request under its key has left may commit yet."""
    cluster, keyed = _left_uncommitted(seed=1)
    late = cluster.ask("b", keyed, timeout_ms=20)
    other = cluster.ask("b", Operation("put", (b"y", b"other"), "request-2"), timeout_ms=20)
    cluster.until(lambda: late.done() and other.done())
    assert late.problem is not None
    assert late.problem.outcome == "unknown"
    assert isinstance(other.problem, NotPrimaryError)


def test_a_node_without_a_primary_looks_into_what_it_has_not_committed() -> None:
    """D8: it may commit yet, so a repeat is not told that it never will."""
    cluster, keyed = _left_uncommitted(seed=1)
    known = cluster["c"].service.tail.recall(keyed)
    assert isinstance(known, OperationUnknownError)
    assert cluster["c"].service.tail.recall(Operation("put", (b"y", b""), "request-2")) is None
