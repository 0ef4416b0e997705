"""Disks that lose entries: a log whose tail was cut (tail_cut), an incomplete log (rule e)."""

from __future__ import annotations

import pytest

from datapath.errors import SafetyError
from datapath.protocol.state import CUT_TAIL_PATIENCE_GRACES
from datapath.settings import Timing
from election.view import Handover
from tests.sim.script import Cluster

PATIENCE_MS = CUT_TAIL_PATIENCE_GRACES * Timing().grace_period_ms
"""A replica that lost its tail waits so long anyway: what it never does is seen only after that."""


def _lose_tail(cluster: Cluster, name: str, n_records: int = 3, *, damage: bool = False) -> None:
    """Crash a node, and let its disk lose the last records, which were durable."""
    records = cluster[name].disk.durable.records
    cluster[name].crash(records[-n_records].first_index, damage=damage)


def _tail_lost_and_no_way_to_take_over() -> Cluster:
    """Two replicas: the primary, a, is back without its tail; b has it, and no consensus."""
    cluster = Cluster(2)
    cluster.write(10)
    cluster.cut_consensus("b")
    _lose_tail(cluster, "a")
    cluster["a"].start()
    return cluster


def test_a_primary_that_lost_its_tail_lets_a_backup_take_over() -> None:
    cluster = Cluster()
    cluster.write(10)
    acknowledged = cluster.world.oracle.acknowledged
    _lose_tail(cluster, "a")
    cluster["a"].start()
    cluster.until(lambda: cluster.serving() in ("b", "c"))
    assert cluster.world.oracle.acknowledged >= acknowledged
    cluster.until(cluster.is_whole)


def test_a_primary_that_lost_its_tail_hands_over_to_a_backup_that_has_more() -> None:
    """The others cannot take over themselves, so it becomes the primary of a new epoch, closed."""
    cluster = _tail_lost_and_no_way_to_take_over()
    cluster.until(lambda: cluster.view.primary == "b")
    cluster.mend_consensus("b")
    assert cluster.seen["cut tail yields"] == 1
    cluster.until(cluster.is_whole)


def test_a_primary_that_lost_its_tail_waits_for_a_backup_that_is_down() -> None:
    cluster = Cluster(2)
    cluster.write(10)
    cluster["b"].crash()
    _lose_tail(cluster, "a")
    cluster["a"].start()
    cluster.run(4000)
    assert cluster.serving() == ""
    cluster["b"].start()
    cluster.until(cluster.is_whole)
    assert cluster.seen["cut tail yields"] == 1


def test_a_backup_that_lost_its_tail_and_was_told_so_takes_over_from_nobody() -> None:
    """Seed 20968: the primary cannot remove it, gives way, and alone has what was lost."""
    cluster = Cluster(2)
    cluster.write(10)
    cluster.cut_consensus("a")
    _lose_tail(cluster, "b")
    cluster["b"].start()
    cluster.until(lambda: cluster["b"].replica.backup.session > 0)
    cluster["a"].crash()
    cluster.run(2 * PATIENCE_MS)
    assert cluster.view.primary == "a"
    cluster["a"].start()
    cluster.mend_consensus("a")
    cluster.until(cluster.is_whole)


def test_a_backup_that_lost_its_tail_waits_long_before_it_takes_over() -> None:
    """Seed 809309: the primary has not been heard yet, and may hold what was lost here."""
    cluster = Cluster(2)
    cluster.write(10)
    cluster.cut_consensus("a")
    cluster.isolate("b")
    _lose_tail(cluster, "b")
    cluster["b"].start()
    cluster.run(PATIENCE_MS - 1000)
    assert cluster.view.primary == "a"
    cluster.rejoin()
    cluster.mend_consensus("a")
    cluster.until(cluster.is_whole)


def test_a_primary_that_has_yielded_does_not_take_over_again() -> None:
    """Seed 302317: the one it yields to learns of it late, and holds what is lost here."""
    cluster = _tail_lost_and_no_way_to_take_over()
    cluster.until(lambda: cluster.view.primary == "b")
    cluster.run(2 * PATIENCE_MS)
    assert cluster.view.primary == "b"
    cluster.mend_consensus("b")
    cluster.until(cluster.is_whole)


def test_a_primary_that_has_seen_a_longer_log_waits_for_it_however_long() -> None:
    cluster = _tail_lost_and_no_way_to_take_over()
    cluster.until(lambda: cluster.view.epoch == 2)
    cluster.hold_proposals()
    cluster.until(lambda: cluster.held(Handover))
    cluster.let_proposals_through()
    cluster.report_unknown("a")
    cluster["b"].crash()
    cluster.run(15_000)
    assert cluster.serving() == ""
    cluster["b"].start()
    cluster.mend_consensus("b")
    cluster.until(cluster.is_whole)


def test_a_yielding_primary_does_not_open_while_its_handover_may_commit_yet() -> None:
    """The backup's longer log was not durable, and is gone: both would serve."""
    cluster = _tail_lost_and_no_way_to_take_over()
    cluster.until(lambda: cluster.view.epoch == 2)
    cluster.hold_proposals()
    cluster.until(lambda: cluster.held(Handover))
    primary = cluster["a"].replica.primary
    assert primary is not None
    for _ in range(50):
        peer = primary.peers["b"]
        peer.last_position = (0, 0)
        cluster.run(20)
        assert primary.stage == "matching"


TOO_LONG_MS = 9000
"""Longer than a replica whose tail was cut waits before it takes over or removes others."""


def test_a_replica_that_was_told_of_its_loss_remembers_it_over_a_restart() -> None:
    """The primary is away for longer than a replica waits whose tail was cut."""
    cluster = Cluster(2)
    cluster.write(10)
    cluster.cut_consensus("a")
    _lose_tail(cluster, "b")
    cluster["b"].disk.latency_ms = (20.0, 20.0)
    cluster["b"].start()
    cluster.until(lambda: cluster["b"].disk.incomplete)
    cluster["a"].crash()
    cluster["b"].crash()
    cluster["b"].start()
    cluster.run(TOO_LONG_MS)
    assert cluster.view.primary == "a"
    cluster["a"].start()
    cluster.mend_consensus("a")
    cluster.until(cluster.is_whole)
    assert not cluster["b"].disk.incomplete


def test_a_replica_whose_directory_is_an_old_copy_is_told_and_takes_over_from_nobody() -> None:
    """Its tail was not cut: nothing on its disk tells of the loss."""
    cluster = Cluster(2)
    cluster.write(10)
    cluster.cut_consensus("a")
    _lose_tail(cluster, "b")
    cluster["b"].hide_loss()
    cluster["b"].disk.latency_ms = (20.0, 20.0)
    cluster["b"].start()
    cluster.until(lambda: cluster["b"].disk.incomplete)
    cluster["a"].crash()
    for _ in range(2):
        cluster.run(TOO_LONG_MS / 2)
        cluster["b"].crash()
        cluster["b"].start()
    assert cluster.view.primary == "a"
    cluster["a"].start()
    cluster.mend_consensus("a")
    cluster.until(cluster.is_whole)


def test_a_primary_that_was_told_of_its_loss_remembers_it_over_a_restart() -> None:
    """It yields only when it is noted: whatever becomes of the handover, it does not open."""
    cluster = _tail_lost_and_no_way_to_take_over()
    cluster.until(lambda: cluster.view.epoch == 2)
    cluster.hold_proposals()
    while not cluster["a"].disk.incomplete:
        assert not cluster.held(Handover)
        cluster.run(0.1)
    cluster.until(lambda: cluster.held(Handover))
    cluster["b"].crash()
    cluster["a"].crash()
    cluster.let_proposals_through()
    cluster["a"].start()
    cluster.run(TOO_LONG_MS)
    assert cluster.serving() == ""
    assert cluster.in_sync() == "ab"
    cluster["b"].start()
    cluster.mend_consensus("b")
    cluster.until(cluster.is_whole)


def test_a_primary_that_lost_its_tail_waits_if_a_learner_knows_of_what_it_lost() -> None:
    """Seed 192: the learner was heard first, and has committed entries that are missing here."""
    cluster = Cluster(3)
    cluster.cut("c", "a")
    cluster.until(lambda: cluster.in_sync() == "ab")
    cluster.write(10)
    cluster.cut_consensus("b")
    cluster.isolate("b")
    _lose_tail(cluster, "a", 4)
    cluster.world.network.heal("c", "a")
    cluster["a"].start()
    cluster.until(lambda: cluster.view.epoch == 2)
    cluster.run(1000)
    assert cluster.serving() == ""
    primary = cluster["a"].replica.primary
    assert primary is not None
    assert primary.stage == "matching"
    cluster.rejoin()
    cluster.mend_consensus("b")
    cluster.until(lambda: cluster.view.primary == "b")
    cluster.until(cluster.is_whole)


def test_a_primary_that_lost_its_tail_stops_if_nobody_in_sync_has_what_it_lost() -> None:
    cluster = Cluster(3)
    cluster.cut("c", "a")
    cluster.until(lambda: cluster.in_sync() == "ab")
    cluster.write(10)
    cluster["b"].crash()
    _lose_tail(cluster, "a", 4)
    cluster.world.network.heal("c", "a")
    cluster["a"].start()
    with pytest.raises(SafetyError, match="committed"):
        cluster.run(10_000)


def test_a_damaged_backup_takes_over_from_nobody_until_it_is_whole_again() -> None:
    cluster = Cluster(2)
    cluster.write(10)
    _lose_tail(cluster, "b", 8, damage=True)
    cluster.isolate("b")
    cluster["b"].start()
    cluster.until(lambda: cluster["b"].replica.view is not None)
    cluster["a"].crash()
    cluster.run(5000)
    assert cluster.view.primary == "a"
    assert cluster.serving() == ""
    cluster.rejoin()
    cluster["a"].start()
    cluster.until(cluster.is_whole)
    assert cluster.seen["damage repaired"] == 1
    assert not cluster["b"].disk.incomplete


def test_a_damaged_primary_leaves_the_epoch_to_its_backup() -> None:
    cluster = Cluster(2)
    cluster.write(10)
    _lose_tail(cluster, "a", 8, damage=True)
    cluster["a"].start()
    cluster.until(lambda: cluster.serving() == "b")
    cluster.until(cluster.is_whole)


def test_a_learner_whose_log_went_further_follows_after_the_suspect_primary_opened() -> None:
    """What it had was never acknowledged; nothing more is written, and it joins all the same."""
    cluster = Cluster(2)
    cluster.write(5)
    cluster.cut("b", "a")
    primary = cluster.world.primary()
    assert primary is not None
    primary.append(3)  # reaches "b" only
    primary.disk.stall()
    cluster.run(10)
    cluster["a"].crash()
    cluster["b"].crash()
    cluster["a"]._torn = True
    cluster.rejoin()
    cluster["b"].start()
    cluster["a"].start()
    cluster.until(cluster.is_whole)
