"""Planned change of primary: nothing is lost, nobody waits, and it ends whatever happens."""

from __future__ import annotations

from election.view import Handover
from tests.sim.script import Cluster


def test_a_handover_keeps_the_in_sync_set_whole_and_all_that_was_written() -> None:
    cluster = Cluster()
    cluster.write(5)
    acknowledged = cluster.world.oracle.acknowledged
    cluster["a"].hand_over("c")
    cluster.until(lambda: cluster.serving() == "c", within_ms=100)
    assert cluster.in_sync() == "abc"
    assert cluster["c"].replica.state.commit_index > acknowledged
    assert cluster.commits()


def test_a_handover_waits_for_what_is_not_committed_yet() -> None:
    cluster = Cluster()
    cluster.cut("c", "a")
    assert cluster["a"].append(3)
    cluster["a"].hand_over("b")
    cluster.run(30)
    assert cluster.view.primary == "a"
    cluster.rejoin()
    cluster.until(lambda: cluster.serving() == "b")
    cluster.until(cluster.is_whole)


def test_a_handover_to_a_replica_that_is_not_in_sync_is_refused() -> None:
    cluster = Cluster()
    cluster["c"].crash()
    cluster.until(lambda: cluster.in_sync() == "ab")
    cluster.run(30)
    problem, effects = cluster["a"].replica.start_handover("c", 500)
    assert "'c'" in problem
    assert effects == []
    assert cluster.commits()


def test_a_handover_whose_backup_dies_is_given_up_and_writes_go_on() -> None:
    cluster = Cluster()
    cluster.cut("b", "a")
    cluster["a"].append(1)
    cluster["a"].hand_over("b")
    cluster["b"].crash()
    cluster.until(lambda: cluster.seen["handover given up"] == 1)
    cluster.until(cluster.commits)
    assert cluster.view.primary == "a"


def test_a_handover_whose_outcome_is_unknown_is_settled_before_anyone_serves() -> None:
    """E3: it never took effect; the primary proves that by a change at the same version."""
    cluster = Cluster()
    cluster.hold_proposals()
    cluster["a"].hand_over("b")
    cluster.until(lambda: cluster.held(Handover))
    cluster.let_proposals_through()
    assert cluster.serving() == ""
    cluster.report_unknown("a")
    cluster.until(lambda: cluster.serving() == "a")
    assert cluster.view.epoch == 1
    assert cluster.seen["confirm"] == 1
    assert cluster.commits()


def test_a_handover_that_commits_after_its_proposer_died_stands() -> None:
    cluster = Cluster()
    cluster.hold_proposals()
    cluster["a"].hand_over("b")
    cluster.until(lambda: cluster.held(Handover))
    cluster["a"].crash()
    cluster.let_proposals_through(held=True)
    assert cluster.view.primary == "b"
    cluster.until(lambda: cluster.serving() == "b")
    cluster["a"].start()
    cluster.until(cluster.is_whole)
