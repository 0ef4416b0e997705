"""What clients are told when the primary changes (D2, D4, D8)."""

from __future__ import annotations

import pytest

from datapath.errors import NotPrimaryError, RejectedError
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
