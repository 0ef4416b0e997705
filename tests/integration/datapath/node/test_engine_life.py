"""The engine's beginning and its end."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.services.kv import KeyValue
from datapath.settings import Bounds
from datapath.storage.accepted import Accepted
from tests.support.replicas import PATIENT, LocalCluster, LocalReplica, running, until

pytestmark = pytest.mark.slow


async def test_nobody_is_let_in_before_the_storage_has_been_started(tmp_path: Path) -> None:
    """Else the first message of a stream asks for a write that is never carried out."""
    cluster = LocalCluster(tmp_path, KeyValue, PATIENT, Bounds(), 1)
    replica = LocalReplica(cluster, "n1")
    with pytest.raises(RuntimeError, match="started before it is admitted"):
        replica.engine.admit()
    await replica.start()
    await replica.stop()


async def test_a_view_of_another_cluster_leaves_nothing_on_the_disk(tmp_path: Path) -> None:
    """Its primary is not accepted: at home the lower epochs would be refused for ever (E5)."""
    cluster = LocalCluster(tmp_path, KeyValue, PATIENT, Bounds(), 2)
    replica = LocalReplica(cluster, "n2")
    replica.directory.bind_cluster("home")
    await replica.start()
    await until(lambda: bool(cluster.failures), "n2 has given up")
    assert "belongs to cluster home, not cluster" in str(cluster.failures.pop())
    await replica.stop()
    accepted = Accepted(replica.directory.path / "accepted")
    assert (accepted.epoch, accepted.primary) == (0, "")
    accepted.close()


async def test_an_effect_that_cannot_be_carried_out_ends_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The replica would wait for it in vain, and its primary for the replica."""
    async with running(tmp_path, KeyValue) as cluster:
        await cluster["n1"].execute("put", b"k", b"1")

        def fail(ticket: int, records: object) -> None:
            del records
            raise RuntimeError(f"a bug at ticket {ticket}")

        monkeypatch.setattr(cluster["n2"].storage, "write_here", fail)
        await cluster["n1"].execute("put", b"k", b"2")  # without n2, in the end
        await until(lambda: bool(cluster.failures), "n2 has given up")
        assert cluster["n2"].engine.failed
        assert "a bug" in str(cluster.failures.pop())
