"""A primary that cannot get a view change agreed gives way, so that another may take over."""

from __future__ import annotations

from election.view import AddToInSync, Handover
from tests.sim.script import Cluster


def test_a_primary_cut_from_consensus_lets_go_when_a_backup_dies() -> None:
    cluster = Cluster()
    cluster.cut_consensus("a")
    cluster["c"].crash()
    cluster.until(lambda: cluster.serving() == "b", within_ms=4000)
    assert cluster.commits()


def test_a_primary_cut_from_consensus_lets_go_when_the_replica_it_adds_dies() -> None:
    cluster = Cluster()
    cluster["c"].crash()
    cluster.until(lambda: cluster.in_sync() == "ab")
    cluster.hold_proposals()
    cluster["c"].start()
    cluster.until(lambda: cluster.held(AddToInSync))
    cluster.cut_consensus("a")
    cluster.let_proposals_through()
    cluster.report_unknown("a")
    cluster["c"].crash()
    cluster.until(lambda: cluster.serving() == "b", within_ms=4000)
    assert cluster.commits()


def test_a_primary_cut_from_consensus_in_a_handover_lets_go() -> None:
    cluster = Cluster()
    cluster.hold_proposals()
    cluster["a"].hand_over("b")
    cluster.until(lambda: cluster.held(Handover))
    cluster.cut_consensus("a")
    cluster.let_proposals_through()
    cluster.report_unknown("a")
    cluster.until(lambda: cluster.serving() in ("b", "c"), within_ms=4000)


def test_a_primary_does_not_let_go_once_the_change_is_no_longer_needed() -> None:
    cluster = Cluster(2)
    cluster.cut_consensus("a")
    cluster.cut_consensus("b")
    cluster.cut("a", "b")
    cluster.run(250)
    cluster.rejoin()
    cluster.run(3000)
    assert cluster.serving() == "a"
    assert cluster.commits()
