"""Leases and promises (D4, rules a and b): never two who serve, whatever comes late."""

from __future__ import annotations

from election.view import AddToInSync, TakeOver
from tests.sim.script import Cluster


def _propose_from(cluster: Cluster, name: str) -> None:
    """Let a backup propose itself while it hears nothing; what becomes of it is not decided.

    The primary cannot have it removed first: it does not reach consensus.
    """
    cluster.cut_consensus("a")
    cluster.hold_proposals(name)
    cluster.isolate(name)
    cluster.until(lambda: cluster.held(TakeOver))


def test_a_backup_promises_nothing_while_its_own_take_over_may_commit() -> None:
    """Rule b."""
    cluster = Cluster(2)
    _propose_from(cluster, "b")
    cluster.rejoin()
    for _ in range(80):
        cluster.run(5)  # the oracle judges each reply
    assert cluster.seen["promise withheld"] > 3
    assert cluster.serving() == ""


def test_a_take_over_that_commits_late_leaves_no_two_who_serve() -> None:
    """Rule b: the proposer has reached the primary again, which would have its lease."""
    cluster = Cluster(2)
    _propose_from(cluster, "b")
    cluster.rejoin()
    cluster.run(300)
    cluster.let_proposals_through(held=True)
    assert cluster.view.primary == "b"
    cluster.until(lambda: cluster.serving() == "b")


def test_a_take_over_of_an_earlier_lifetime_waits_for_the_promises_of_this_one() -> None:
    """Rule a: the node has forgotten its proposal, and has promised; then the proposal commits."""
    cluster = Cluster(2)
    _propose_from(cluster, "b")
    cluster.rejoin()
    cluster["b"].crash()
    cluster["b"].start()
    cluster.until(lambda: cluster.serving() == "a")
    cluster.let_proposals_through(held=True)
    assert cluster.view.primary == "b"
    cluster.isolate("a")
    cluster.until(lambda: cluster.serving() == "b", within_ms=2000)
    assert cluster.seen["waited for own promise"] > 0


def test_a_primary_that_lost_its_tail_yields_only_when_its_own_promises_have_run_out() -> None:
    """Rule a: who gets a handover serves at once, and the one it was promised to may serve yet.

    "b" proposes itself in its first life, promises to "a" in its second, and has lost entries in
    its third. Then the proposal commits, and "c" has what "b" has lost.
    """
    cluster = Cluster()
    cluster.write(3)
    cluster.cut_consensus("a")
    cluster.hold_proposals("b", "c")
    cluster.cut("a", "b")
    cluster.cut("b", "a")
    cluster.until(lambda: cluster.held(TakeOver))
    cluster.rejoin()
    cluster["b"].crash()
    cluster["b"].start()
    cluster.until(lambda: cluster.serving() == "a")
    cluster.write(3)
    cluster["b"].crash(cluster["b"].disk.durable.records[-2].first_index)
    cluster["b"].start()
    assert cluster["b"].replica.state.tail_cut
    cluster.isolate("a")
    cluster.let_proposals_through(held=True)
    assert cluster.view.primary == "b"
    assert cluster.serving() == "a"
    cluster.until(lambda: cluster.serving() == "c")  # the oracle looks after each event
    assert cluster.seen["cut tail yields"] == 1
    assert cluster.seen["waited for own promise"] > 0


def test_a_lease_needs_the_promise_of_a_replica_being_added() -> None:
    """D4: it is in sync as soon as that commits, and may take over before the primary hears."""
    cluster = Cluster(2)
    cluster["b"].crash()
    cluster.until(lambda: cluster.in_sync() == "a")
    cluster.write(2)
    cluster.hold_proposals("a")
    cluster["b"].start()
    cluster.until(lambda: cluster.held(AddToInSync))
    cluster.run(200)
    cluster.cut_consensus("a")
    cluster.let_proposals_through(held=True)
    assert cluster.in_sync() == "ab"
    cluster.isolate("a")
    cluster.until(lambda: cluster.serving() == "b")  # the oracle looks after each event
    assert cluster.seen["lease expired"] > 0


def test_after_a_handover_nobody_waits() -> None:
    """Rule a: the old primary has stopped serving before it proposed the change."""
    cluster = Cluster()
    cluster.write(3)
    began = cluster.world.clockwork.now
    cluster["a"].hand_over("b")
    cluster.until(lambda: cluster.serving() == "b", within_ms=100)
    assert cluster.world.clockwork.now - began < 100
    assert cluster.in_sync() == "abc"
    cluster.until(cluster.is_whole)


def test_in_the_first_epoch_of_a_cluster_nobody_waits() -> None:
    """Rule a: nobody was the primary before, so nobody was promised anything."""
    cluster = Cluster(2)
    assert cluster.seen["waited for own promise"] == 0


def test_a_restart_in_the_first_epoch_opens_the_second_and_waits() -> None:
    """Rules a and d: what this disk has accepted was an epoch, and nothing says which ended how."""
    cluster = Cluster(1)
    cluster["a"].crash()
    cluster["a"].start()
    cluster.until(lambda: cluster.serving() == "a")
    assert cluster.view.epoch == 2
    assert cluster.seen["waited for own promise"] > 0


def test_a_paused_primary_serves_no_more_when_it_wakes() -> None:
    cluster = Cluster()
    cluster.write(3)
    cluster["a"].pause()
    cluster.until(lambda: cluster.serving() == "b")
    cluster.write(3)
    cluster["a"].resume()
    for _ in range(200):
        cluster.run(1)
    cluster.until(cluster.is_whole)
    assert cluster.view.primary == "b"


def test_a_backup_that_was_paused_accuses_nobody() -> None:
    cluster = Cluster()
    cluster["b"].pause()
    cluster.run(120)
    cluster["b"].resume()
    cluster.run(1000)
    assert cluster.view.primary == "a"
    assert cluster.view.epoch == 1


def test_reads_do_not_stop_when_a_backup_dies() -> None:
    """D5: it is removed before its lease runs out."""
    cluster = Cluster()
    cluster["c"].crash()
    for _ in range(1000):
        cluster.run(1)
        assert cluster.serving() == "a"
    assert cluster.in_sync() == "ab"


def test_a_primary_without_its_leases_does_not_serve() -> None:
    cluster = Cluster(2)
    cluster.isolate("a")
    cluster.cut_consensus("a")
    cluster.run(cluster.timing.lease_duration_ms + 20)
    assert cluster["a"].replica.primary is not None
    assert not cluster["a"].replica.may_serve(cluster["a"].clock())
    cluster.until(lambda: cluster.serving() == "b")


def test_a_primary_whose_disk_hangs_accuses_nobody_and_lets_a_backup_take_over() -> None:
    """It sends no heartbeats, so their silence proves nothing: it must not remove them first."""
    cluster = Cluster()
    cluster["a"].disk.stall()
    cluster["a"].append(1)
    cluster.until(lambda: cluster.serving() in ("b", "c"), within_ms=3000)
    assert cluster.commits()


def test_a_restarted_primary_opens_a_new_epoch() -> None:
    """Rule d."""
    cluster = Cluster(1)
    cluster.write(3)
    cluster["a"].crash()
    cluster["a"].start()
    cluster.until(lambda: cluster.serving() == "a")
    assert cluster.view.epoch == 2
    assert cluster["a"].disk.accepted == (2, "a")


def test_a_lease_counts_from_the_sending_of_the_heartbeat() -> None:
    """D4: an answer that was held up for long gives no lease when it comes at last."""
    cluster = Cluster(2)
    cluster.cut_consensus("a")
    cluster.cut("b", "a")  # answers are on the way from here on
    cluster.run(70)
    cluster.cut("a", "b")
    cluster.until(lambda: cluster.serving() == "b", within_ms=500)
    network = cluster.world.network
    for held in network.outgoing["b", "a"].held:
        held.clear()  # the probe of the new epoch comes later still
    network.heal("b", "a")  # the oracle looks after each message
    cluster.run(100)


def test_a_deposed_primary_is_refused_and_told_of_the_higher_epoch() -> None:
    """D3: its link to consensus is cut, so it hears of it from the other replicas only."""
    cluster = Cluster()
    cluster.cut_consensus("a")
    cluster.isolate("a")
    cluster.until(lambda: cluster.serving() == "b")
    cluster.write(3)
    cluster.rejoin()
    cluster.until(lambda: cluster["a"].replica.primary is None)
    cluster.until(lambda: cluster.seen["refused as fenced"] > 0)
    assert cluster["a"].replica.state.epoch == 2


def test_reads_go_on_after_a_pause_of_the_primary_without_a_majority() -> None:
    """The backup would have taken over, but its proposal never left: nothing is unknown."""
    for pause_ms in (350, 600, 1500, 3000):
        _pause_the_primary(Cluster(2), pause_ms)


def _pause_the_primary(cluster: Cluster, pause_ms: float) -> None:
    cluster.write(3)
    for name in "ab":
        cluster.cut_consensus(name)
    cluster.run(100)
    cluster["a"].pause()
    cluster.run(pause_ms)
    cluster["a"].resume()
    cluster.until(lambda: cluster.serving() == "a", within_ms=200)
    for _ in range(3000):
        cluster.run(1)
        assert cluster.serving() == "a"
    assert cluster.commits()


def test_reads_come_back_after_a_pause_of_a_backup_without_a_majority() -> None:
    """The primary has given way, and nobody else could take it: it takes it up again."""
    for pause_ms in (600, 3000):
        for n_nodes in (2, 3):  # of three, one is well all the time, and is not asked meanwhile
            _pause_a_backup(Cluster(n_nodes), pause_ms)


def _pause_a_backup(cluster: Cluster, pause_ms: float) -> None:
    cluster.write(3)
    for name in cluster.world.nodes:
        cluster.cut_consensus(name)
    cluster["b"].pause()
    cluster.run(pause_ms)
    cluster["b"].resume()
    cluster.until(lambda: cluster.serving() == "a", within_ms=3000)
    cluster.run(3000)
    assert cluster.serving() == "a"
    assert cluster.commits()


def test_a_primary_lets_go_for_a_dead_backup_although_the_other_one_lives() -> None:
    """It alone does not reach consensus: the other backup, which does, takes over."""
    cluster = Cluster(3)
    cluster.write(3)
    cluster.cut_consensus("a")
    cluster["c"].crash()
    cluster.until(lambda: cluster.serving() == "b", within_ms=4000)


def test_what_was_not_proposed_is_not_unknown_and_what_was_stays_so() -> None:
    cluster = Cluster(2)
    _propose_from(cluster, "b")  # this one is on its way
    assert cluster["b"].replica.backup._takeover_version
    cluster.cut_consensus("b")
    cluster.report_unknown("b")
    cluster.let_proposals_through()
    cluster.run(3000)  # the ones that would settle it are not heard
    assert cluster["b"].replica.backup._takeover_version
