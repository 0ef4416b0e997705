"""Changes of keys as a node without data learns of them: by calls to the primary."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from cluster.services.kv import KeyValue
from datapath.keyspaces import KV
from datapath.node import remote_changes
from datapath.node.remote_changes import RemoteChanges
from election.release import LEVEL, Release
from tests.support.replicas import QUICK, LocalCluster, running, until

pytestmark = pytest.mark.slow


class Observed:
    """What n3 is told of one key by the others, as a witness would be."""

    def __init__(self, cluster: LocalCluster, key: bytes) -> None:
        gateway = cluster["n3"].gateway
        gateway.caller._releases = lambda: {node: Release("", LEVEL) for node in cluster.ports}
        self.changes = RemoteChanges(gateway._context)
        self.times = 0
        self.leave = self.changes.observe(KV, key, self._on_change)

    def _on_change(self) -> None:
        self.times += 1

    def has_been_told(self, times: int) -> bool:
        return self.times == times

    async def begun(self) -> None:
        await until(lambda: self.times == 1, "it is told that it is in touch")


@pytest.fixture(autouse=True)
def _never_blind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_changes, "BLIND_INTERVAL_S", 0.01)


async def test_observers_are_called_for_changes_of_their_key_and_no_other(tmp_path: Path) -> None:
    async with running(tmp_path, KeyValue) as cluster:
        await cluster["n1"].execute("put", b"k", b"1")
        observed = Observed(cluster, b"k")
        await observed.begun()
        for count, (method, *args) in enumerate((["put", b"k", b"2"], ["delete", b"k"]), 2):
            await cluster["n1"].execute("put", b"other", b"x")
            assert observed.times == count - 1
            await cluster["n1"].execute(str(method), *args)
            await until(partial(observed.has_been_told, count), "the change is told")
        observed.leave()
        await cluster["n1"].execute("put", b"k", b"4")
        assert observed.times == 3
        assert not observed.changes._observed
        await observed.changes.stop()


async def test_calls_that_see_no_change_wake_nobody_and_follow_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change between two of them is told by the second."""
    monkeypatch.setattr(remote_changes, "OBSERVE_MS", 20)
    async with running(tmp_path, KeyValue) as cluster:
        observed = Observed(cluster, b"k")
        await observed.begun()
        calls = cluster["n3"].gateway.caller._next_id
        await until(lambda: cluster["n3"].gateway.caller._next_id > calls + 5, "calls are made")
        assert observed.times == 1
        await cluster["n1"].execute("put", b"k", b"1")
        await until(lambda: observed.times == 2, "the change is told")
        await observed.changes.stop()


async def test_a_change_is_told_across_a_change_of_primary(tmp_path: Path) -> None:
    async with running(tmp_path, KeyValue, timing=QUICK) as cluster:
        observed = Observed(cluster, b"k")
        await observed.begun()
        await cluster.stop("n1")
        await until(lambda: cluster["n2"].is_serving, "n2 is the primary")
        before = observed.times
        await cluster["n2"].execute("put", b"k", b"1")
        await until(lambda: observed.times > before, "the change is told")
        await observed.changes.stop()
