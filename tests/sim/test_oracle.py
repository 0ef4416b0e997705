"""The oracle notices what it is there for: simulated machines that break their word."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from datapath.node.recovery import recover_replica
from datapath.protocol.state import RecoveredState
from tests.sim.clockwork import ViolationError
from tests.sim.node import Node
from tests.sim.script import Cluster


def test_a_node_that_goes_on_after_a_failed_fsync_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def go_on(node: Node) -> None:
        node.on_durable(node.disk.pending[-1][0])

    monkeypatch.setattr(Node, "_on_disk_failed", go_on)
    cluster = Cluster()
    cluster["b"].disk.fails_next = True
    with pytest.raises(ViolationError, match=r"D9|D1"):
        cluster.write()


def test_a_node_that_stops_after_a_failed_fsync_comes_back_whole() -> None:
    cluster = Cluster()
    cluster["b"].disk.fails_next = True
    cluster.write()
    cluster.until(lambda: not cluster["b"].is_up)
    cluster["b"].start()
    cluster.until(cluster.is_whole)


def test_an_acknowledged_entry_that_vanishes_from_an_in_sync_disk_is_noticed() -> None:
    cluster = Cluster()
    cluster.write(3)
    disk = cluster["c"].disk
    disk.durable.truncate(disk.durable.last_index)
    with pytest.raises(ViolationError, match="is in sync, its disk ends at"):
        cluster["c"].crash()


def test_a_store_that_goes_back_over_a_restart_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def forget(*found: Any) -> RecoveredState:
        return msgspec.structs.replace(recover_replica(*found), commit_index=0)

    monkeypatch.setattr("tests.sim.node.recover_replica", forget)
    cluster = Cluster()
    cluster.write(30)
    cluster["b"].crash()
    with pytest.raises(ViolationError, match="had applied entry"):
        cluster["b"].start()


def test_without_a_majority_nothing_is_decided_and_with_a_witness_back_it_is() -> None:
    cluster = Cluster(2)
    agreement = cluster.world.agreement
    agreement.counts_votes = True
    assert agreement.stop_witness()
    cluster["a"].crash()
    cluster.run(3000)
    assert cluster.serving() == ""
    agreement.start_witness()
    cluster.until(lambda: cluster.serving() == "b")


def test_a_clock_that_is_slewed_goes_on_from_where_it_is() -> None:
    node = Cluster(1)["a"]
    before = node.clock()
    node.set_clock_rate(1.08)
    assert node.clock() == pytest.approx(before)
