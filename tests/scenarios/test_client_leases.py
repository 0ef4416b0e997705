"""Client leases over a change of primary, and in front of a queue (rules L1, L2)."""

from __future__ import annotations

from cluster.services.leases import LEASES_SERVICE
from datapath.errors import NotPrimaryError
from datapath.operations import Operation
from tests.sim.lease_oracle import LeaseOracle
from tests.sim.script import Cluster

TTL_MS = 60
LONG_TTL_MS = 400


def _cluster() -> Cluster:
    cluster = Cluster(has_service=True)
    oracle = cluster.world.oracle
    oracle.leases = LeaseOracle(oracle.fail, cluster.seen)
    oracle.leases.on_epoch_open(cluster["a"])
    return cluster


def _grant(cluster: Cluster, ttl_ms: int = TTL_MS) -> int:
    result = cluster.told("a", Operation("grant", (ttl_ms,), service=LEASES_SERVICE)).result
    assert result is not None
    return int(result.value)


def _keep_alive(lease: int) -> Operation:
    return Operation("keep_alive", ((lease,),), service=LEASES_SERVICE)


def test_who_has_been_replaced_acknowledges_no_keep_alive() -> None:
    """L1: the next primary counts from when its epoch opened, and knows nothing of it."""
    cluster = _cluster()
    lease = _grant(cluster, 5 * LONG_TTL_MS)
    cluster.cut_consensus("a")
    cluster.isolate("a")
    cluster.until(lambda: cluster["b"].replica.may_serve(cluster["b"].clock()))
    assert cluster["a"].replica.may_execute(), "it does not know that it is replaced"
    said = cluster.told("a", _keep_alive(lease))
    assert isinstance(said.problem, NotPrimaryError)
    cluster.until(lambda: cluster.seen["lease: ended by itself"] == 1)


def test_a_keep_alive_that_waits_before_the_end_is_not_overtaken() -> None:
    """L2: both wait for the same record; the end was asked for when the lease was due."""
    cluster = _cluster()
    lease = _grant(cluster)
    cluster.run(TTL_MS / 2)
    a = cluster["a"]
    a.disk.stall()
    for number in range(cluster.world.bounds.max_inflight_records):
        cluster.ask("a", Operation("put", (b"k%d" % number, b"")))
        cluster.run(1)
    kept = cluster.ask("a", _keep_alive(lease))
    cluster.run(TTL_MS)
    assert a.service.pipeline.waiting_operations() == 2
    a.disk.resume()
    cluster.until(kept.done)
    assert kept.result is not None
    assert kept.result.value == [TTL_MS]
    assert lease in cluster.world.oracle.leases.leases  # type: ignore[union-attr]
    cluster.until(lambda: cluster.seen["lease: ended by itself"] == 1)


def test_time_counts_while_the_end_of_another_lease_waits_for_its_commit() -> None:
    """Only a primary that stood still gives time back."""
    cluster = _cluster()
    _grant(cluster)
    lease = _grant(cluster, LONG_TTL_MS)
    a = cluster["a"]
    a.disk.stall()
    cluster.run(LONG_TTL_MS + 50)
    assert cluster.seen["lease: ended by itself"] == 0
    a.disk.resume()
    cluster.run(50)
    assert lease not in cluster.world.oracle.leases.leases  # type: ignore[union-attr]
