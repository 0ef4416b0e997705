"""A replica joins the in-sync set: from the proposal on it counts, whatever becomes of that."""

from __future__ import annotations

from election.view import AddToInSync
from tests.sim.script import Cluster


def test_a_joining_whose_outcome_is_unknown_counts_until_it_is_settled() -> None:
    """E3, D1: the proposal commits late, and the replica must not lack what committed meanwhile."""
    cluster = Cluster()
    cluster["c"].crash()
    cluster.until(lambda: cluster.in_sync() == "ab")
    cluster.hold_proposals()
    cluster["c"].start()
    cluster.until(lambda: cluster.held(AddToInSync))
    cluster.cut("a", "c")
    cluster.report_unknown("a")
    primary = cluster["a"]
    assert primary.append(1)
    index = primary.replica.core.log.last_index
    cluster.run(60)
    assert primary.replica.core.commit_index < index
    cluster.let_proposals_through(held=True)
    assert cluster.in_sync() == "abc"
    cluster.rejoin()
    cluster.until(cluster.is_whole)
    assert primary.replica.core.commit_index >= index
