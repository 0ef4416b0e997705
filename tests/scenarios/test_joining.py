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
    index = primary.replica.state.log.last_index
    cluster.run(60)
    assert primary.replica.state.commit_index < index
    cluster.let_proposals_through(held=True)
    assert cluster.in_sync() == "abc"
    cluster.rejoin()
    cluster.until(cluster.is_whole)
    assert primary.replica.state.commit_index >= index


def test_a_learner_joins_no_sooner_than_it_holds_the_opening_entry() -> None:
    """D7: what earlier epochs acknowledged may lie above the new primary's commit index.

    "b" holds an acknowledged entry, does not know that it is committed, and becomes the primary.
    """
    cluster = Cluster(3, min_in_sync=2)
    cluster.write(3)
    cluster.cut("a", "c")
    cluster.cut("c", "a")
    cluster.until(lambda: cluster.in_sync() == "ab")
    cluster.run(100)
    primary, backup = cluster["a"].replica.state, cluster["b"].replica.state
    assert cluster["a"].append(1)
    cluster.until(lambda: primary.commit_index == primary.log.last_index)
    assert backup.commit_index < backup.log.last_index == primary.log.last_index
    cluster.cut("a", "b")
    cluster["a"].crash()
    cluster["c"].disk.latency_ms = (60.0, 60.0)  # it follows, late
    cluster.until(lambda: cluster.in_sync() == "bc")  # the oracle looks at what it holds
    cluster.until(lambda: cluster.serving() == "b")
    assert cluster["c"].disk.durable.last_index >= primary.log.last_index
    cluster["a"].start()
    cluster.rejoin()
    cluster.until(cluster.is_whole)
