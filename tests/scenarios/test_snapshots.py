"""Catch-up by snapshot: what may be replaced by one, and how it ends."""

from __future__ import annotations

from datapath.protocol import effects
from tests.sim.script import Cluster


def _behind_the_log(cluster: Cluster) -> None:
    """Let "c" miss so much that the others' logs no longer reach back to it."""
    cluster["c"].crash()
    cluster.until(lambda: cluster.in_sync() == "ab")
    cluster.write(10)
    for name in "ab":
        cluster[name].trim(cluster[name].replica.state.commit_index)
    assert cluster["a"].replica.state.log.base_index > 5


def test_a_replica_behind_the_retained_log_is_brought_up_by_snapshot() -> None:
    cluster = Cluster()
    _behind_the_log(cluster)
    cluster["c"].start()
    cluster.until(cluster.is_whole)
    assert cluster.seen["snapshot installed"] == 1


def test_a_snapshot_that_fails_is_sent_again() -> None:
    cluster = Cluster()
    _behind_the_log(cluster)
    cluster.world.snapshot_failure_rate = 1.0
    cluster["c"].start()
    cluster.until(lambda: cluster.seen["snapshot begun"] > 2)
    assert cluster.serving() == "a"
    cluster.world.snapshot_failure_rate = 0.0
    cluster.until(cluster.is_whole)


def test_a_connection_that_breaks_during_a_snapshot_starts_no_second_one() -> None:
    cluster = Cluster()
    _behind_the_log(cluster)
    cluster.world.snapshot_ms = 6.0
    cluster["c"].start()
    cluster.until(lambda: cluster.seen["snapshot begun"] == 1)
    cluster.world.network.drop("a", "c")
    primary = cluster["a"].replica.primary
    assert primary is not None
    cluster.until(lambda: primary.peers["c"].session > 1)
    cluster.until(cluster.is_whole)
    assert cluster.seen["snapshot begun"] <= 2


def test_a_snapshot_never_replaces_entries_that_were_acknowledged() -> None:
    """An old snapshot comes late: the replica has joined since, and holds more than it says."""
    cluster = Cluster(2)
    state = cluster["b"].replica.state
    index, epoch = state.commit_index, state.log.epoch_at(state.commit_index)
    assert epoch is not None
    cluster.cut("a", "b")  # what follows is durable on "b", which does not know that it committed
    assert cluster["b"].replica.start_install(index, epoch)
    assert cluster["b"].replica.start_install(index - 1, 1)
    assert not state.installing


def test_a_snapshot_never_replaces_a_log_that_holds_its_last_entry() -> None:
    """D1: after a restart the log goes further than what is known to be committed.

    A transfer that began before the replica joined may go on after it: what stands behind the
    snapshot's last entry may have been acknowledged here.
    """
    cluster = Cluster(2)
    cluster.write(10)
    cluster["b"].crash()
    cluster.isolate("b")
    cluster["b"].start()
    state = cluster["b"].replica.state
    assert state.view is None  # so what the view forbids is not known yet
    assert state.commit_index < state.log.last_index
    for index in range(state.commit_index + 1, state.log.last_index + 1):
        epoch = state.log.epoch_at(index)
        assert epoch is not None
        assert cluster["b"].replica.start_install(index, epoch)
    assert not state.installing


def test_while_a_snapshot_is_put_in_place_nothing_is_promised_about_the_log() -> None:
    cluster = Cluster()
    _behind_the_log(cluster)
    cluster["c"].start()
    cluster.until(lambda: cluster["c"].installing)
    replica = cluster["c"].replica
    cluster.world.network.drop("a", "c")
    cluster.until(lambda: replica.backup.session > 1 or not cluster["c"].installing)
    if cluster["c"].installing:
        assert not any(isinstance(effect, effects.Reply) for effect in replica.on_durable(10**6))
    cluster.until(cluster.is_whole)


def test_a_slow_learner_whose_next_entries_were_trimmed_gets_a_snapshot() -> None:
    """Its next records are in the primary's memory still, but not what they follow."""
    cluster = Cluster()
    cluster.cut("c", "a")
    cluster.until(lambda: cluster.in_sync() == "ab")
    primary = cluster["a"].replica.primary
    assert primary is not None
    peer = primary.peers["c"]
    while peer.inflight_bytes < cluster.world.bounds.max_peer_inflight_bytes:
        cluster.write()
    cluster.write(3)
    recent = primary.replication.recent
    assert recent[0].first_index < peer.next_index < cluster["a"].replica.next_index
    cluster["a"].trim(cluster["a"].replica.state.commit_index)
    cluster.rejoin()
    cluster.until(cluster.is_whole)


def test_what_was_sent_before_a_replica_told_anew_what_it_holds_fills_no_window() -> None:
    """Seed 501473: a snapshot of an older primary fails while the new one replays its log."""
    cluster = Cluster()
    cluster["c"].crash()
    cluster.until(lambda: cluster.in_sync() == "ab")
    cluster.write(80)
    cluster["c"].start()
    replica, primary = cluster["c"].replica, cluster["a"].replica.primary
    assert primary is not None
    peer = primary.peers["c"]
    cluster.until(lambda: peer.match_index == replica.state.log.last_index > 5)
    assert replica.start_install(10**6, 1) == ""
    cluster.run(60)
    assert replica.state.log.last_index < 70
    cluster["c"].service.run(replica.on_install_failed)
    cluster.until(cluster.is_whole)
