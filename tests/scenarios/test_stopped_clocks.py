"""A clock that stands still through a pause, as no CLOCK_BOOTTIME does: beyond D4's margin.

Leases rest on clocks, so a primary that wakes believing that no time has passed may answer reads
that are old. Everything else rests on epochs and acknowledgements (D1, D3, D6), and must hold.
"""

from __future__ import annotations

import pytest

from tests.sim.oracle import Oracle
from tests.sim.script import Cluster


def _sleep(cluster: Cluster, name: str) -> None:
    cluster[name].pause()
    cluster[name].set_clock_rate(0.0)


def _wake(cluster: Cluster, name: str) -> None:
    cluster[name].set_clock_rate(1.0)
    cluster[name].resume()


def test_a_primary_whose_clock_stood_still_acknowledges_nothing_and_loses_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Two who would answer reads at once: this is what is not promised here.
    monkeypatch.setattr(Oracle, "check_serving", lambda _oracle, _node: None)
    cluster = Cluster()
    cluster.write(3)
    cluster.cut_consensus("a")
    cluster.isolate("a")
    _sleep(cluster, "a")
    cluster.until(lambda: cluster["b"].replica.may_serve(cluster["b"].clock()))
    cluster["b"].append(1)
    cluster.run(50)
    _wake(cluster, "a")
    a = cluster["a"].replica
    assert a.may_serve(cluster["a"].clock()), "it believes that its lease goes on"
    assert cluster["a"].append(1)
    executed, committed = a.state.log.last_index, a.state.commit_index
    assert executed > committed
    cluster.rejoin()
    cluster.until(lambda: a.primary is None)
    assert a.state.commit_index == committed, "the others refuse its epoch (D3): nothing commits"
    cluster.mend_consensus("a")
    cluster.until(cluster.is_whole)  # the oracle: nothing that was acknowledged has changed
    assert cluster.seen["truncation"] == 1
    assert cluster.view.primary == "b"


def test_a_backup_whose_clock_stood_still_only_waits_longer() -> None:
    """It keeps its promise for longer than it gave it."""
    cluster = Cluster()
    _sleep(cluster, "b")
    cluster.run(2000)
    assert cluster.in_sync() == "ac"
    _wake(cluster, "b")
    cluster.until(cluster.is_whole)
    assert cluster.view.epoch == 1
