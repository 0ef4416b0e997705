"""`min_in_sync`: nothing commits on fewer replicas, and the cluster gets out of that state."""

from __future__ import annotations

from datapath.errors import SafetyError
from tests.sim.script import Cluster
from tests.sim.world import World


def test_a_new_cluster_that_demands_two_copies_grows_before_its_first_commit() -> None:
    """D1, D7: the first view names one replica, whose opening entry cannot commit alone."""
    world = World(1, 2, min_in_sync=2)
    world.run_for(1000)
    assert world.whole_problem() == ""


def test_writes_wait_while_too_few_are_in_sync_and_reads_go_on() -> None:
    cluster = Cluster(2, min_in_sync=2)
    cluster["b"].crash()
    cluster.until(lambda: cluster.in_sync() == "a")
    assert cluster.serving() == "a"
    assert not cluster.commits()
    assert cluster.serving() == "a"
    cluster["b"].start()
    cluster.until(cluster.is_whole)
    assert cluster.commits()


def test_a_primary_restarted_alone_opens_its_epoch_when_another_has_joined() -> None:
    cluster = Cluster(2, min_in_sync=2)
    cluster["b"].crash()
    cluster.until(lambda: cluster.in_sync() == "a")
    cluster["a"].crash()
    cluster["a"].start()
    cluster.run(2000)
    assert cluster.serving() == ""
    cluster["b"].start()
    cluster.until(cluster.is_whole)


def test_an_operation_executed_outside_an_open_epoch_stops_the_node() -> None:
    cluster = Cluster(2)
    replica = cluster["b"].replica
    try:
        replica.append(cluster["a"].disk.cache.records[-1])
    except SafetyError:
        return
    raise AssertionError("a backup took a record to replicate")
