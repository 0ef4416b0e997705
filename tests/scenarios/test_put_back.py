"""A whole directory that is put back, while nodes without the data remember it (decision 18)."""

from __future__ import annotations

from datapath.protocol.state import CUT_TAIL_PATIENCE_GRACES
from datapath.settings import Timing
from tests.sim.agreement import TELL_GAP_MS
from tests.sim.script import Cluster

PATIENCE_MS = CUT_TAIL_PATIENCE_GRACES * Timing().grace_period_ms
"""The longest that any replica waits before it takes over."""


def _write_and_tell(cluster: Cluster) -> None:
    cluster.write(10)
    cluster.run(3 * TELL_GAP_MS)


def _put_back(cluster: Cluster, name: str, n_records: int = 3) -> None:
    """Crash a node, and put its directory back to what it was some records ago."""
    records = cluster[name].disk.durable.records
    cluster[name].crash(records[-n_records].first_index)
    cluster[name].hide_loss(remembered=True)


def test_a_backup_put_back_while_the_primary_is_away_takes_over_from_nobody() -> None:
    cluster = Cluster(2, remembers=True)
    _write_and_tell(cluster)
    _put_back(cluster, "b")
    cluster["a"].crash()
    cluster["b"].start()
    cluster.until(lambda: cluster["b"].disk.incomplete)
    for _ in range(2):
        cluster.run(1.5 * PATIENCE_MS)
        assert cluster.view.primary == "a"
        cluster["b"].crash()
        cluster["b"].start()
    cluster["a"].start()
    cluster.until(cluster.is_whole)
    assert not cluster["b"].disk.incomplete


def test_what_it_was_reminded_of_outlives_those_who_remember() -> None:
    cluster = Cluster(2, remembers=True)
    _write_and_tell(cluster)
    _put_back(cluster, "b")
    cluster["a"].crash()
    cluster["b"].start()
    cluster.until(lambda: cluster["b"].disk.incomplete)
    cluster["b"].crash()
    cluster.world.agreement.marks.clear()
    cluster["b"].start()
    cluster.run(1.5 * PATIENCE_MS)
    assert cluster.view.primary == "a"
    cluster["a"].start()
    cluster.until(cluster.is_whole)


def test_a_primary_put_back_leaves_the_epoch_to_its_backup() -> None:
    cluster = Cluster(2, remembers=True)
    _write_and_tell(cluster)
    _put_back(cluster, "a")
    cluster["b"].crash()
    cluster["a"].start()
    cluster.run(1.5 * PATIENCE_MS)
    assert cluster.serving() == ""
    cluster["b"].start()
    cluster.until(lambda: cluster.serving() == "b")
    cluster.until(cluster.is_whole)


def test_a_third_replica_in_sync_takes_over_instead() -> None:
    cluster = Cluster(3, remembers=True)
    _write_and_tell(cluster)
    cluster.world.takeover_order.update(b=0, c=1)
    _put_back(cluster, "b")
    cluster["a"].crash()
    cluster["b"].start()
    cluster.until(lambda: cluster.serving() == "c")
    cluster["a"].start()
    cluster.until(cluster.is_whole)


def test_a_primary_put_back_to_before_its_epoch_does_not_open_it_again() -> None:
    """Another node tells it the view at once, and consensus only later."""
    cluster = Cluster(2, remembers=True)
    copy = list(cluster["b"].disk.durable.records), cluster["b"].disk.accepted
    cluster["a"].crash()
    cluster.until(lambda: cluster.serving() == "b")
    cluster.until(lambda: cluster.in_sync() == "b")
    _write_and_tell(cluster)
    view, acknowledged = cluster.view, cluster.world.oracle.acknowledged
    cluster["b"].crash(copy[0][-1].last_index + 1)
    cluster["b"].hide_loss(remembered=True)
    cluster["b"].disk.accepted = copy[1]
    cluster.cut_consensus("b")
    cluster["b"].start()
    cluster["b"].on_view(view)
    cluster.run(1.5 * PATIENCE_MS)
    assert cluster["b"].replica.primary is None
    cluster.mend_consensus("b")
    cluster.until(lambda: cluster["b"].disk.incomplete)
    assert cluster.world.oracle.acknowledged == acknowledged
    assert cluster.serving() == ""


def test_a_take_over_that_is_about_to_leave_is_held_back() -> None:
    """The reminder comes with the answer of consensus that the proposal waits for, and before it.

    The node did not reach consensus until then, and had learnt the view from its primary's stream.
    """
    cluster = Cluster(2, remembers=True)
    _write_and_tell(cluster)
    _put_back(cluster, "b")
    view = cluster.view
    cluster.cut_consensus("b")
    cluster["a"].crash()
    cluster["b"].start()
    cluster["b"].on_view(view)
    cluster.until(lambda: cluster["b"].replica.state.proposal is not None)
    assert not cluster["b"].replica.state.incomplete
    cluster.mend_consensus("b")
    cluster.run(1.5 * PATIENCE_MS)
    assert cluster.view.primary == "a"
    assert cluster["b"].disk.incomplete


def test_nobody_is_reminded_of_a_loss_who_has_lost_nothing() -> None:
    """Restarts, tails that never were durable, cuts by a new primary, snapshots, new members.

    The node says at once if it is told of a loss and its disk has lost nothing.
    """
    cluster = Cluster(3, remembers=True)
    for name in "abcabc":
        _write_and_tell(cluster)
        primary = cluster.world.primary()
        assert primary is not None
        for other in cluster.world.nodes:
            cluster.cut(primary.id, other)
        primary.append(3)  # reaches nobody, and is cut off again
        cluster[name].disk.latency_ms = (30.0, 30.0)
        cluster.run(10)
        cluster[name].crash()
        cluster.rejoin()
        cluster.run(1000)
        for node in cluster.world.live_members():
            node.trim(node.replica.state.commit_index)
        cluster[name].disk.latency_ms = (0.1, 1.5)
        cluster[name].start()
        cluster.until(cluster.is_whole)
    assert not cluster.seen["reminded of its loss"]
