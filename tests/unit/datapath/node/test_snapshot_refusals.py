"""Which snapshots a replica takes: its primary's, as a learner, and only what is new to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from datapath.errors import TransferError
from datapath.node.catch_up import Snapshots
from datapath.protocol import effects
from datapath.protocol.log_index import LogIndex
from datapath.protocol.messages import Probe
from datapath.protocol.replica import Replica
from datapath.protocol.state import RecoveredState
from datapath.settings import Bounds, Timing
from datapath.storage.snapshot import SnapshotWriter
from datapath.storage.store import Store
from datapath.transport.snapshot_transfer import Offer
from election.view import View
from tests.sim.members import make_member

MAP_SIZE_BYTES = 1 << 24


class Learner:
    """Replica "b", which follows "a" in epoch 3 and has committed 5 entries; with a real store."""

    def __init__(self, path: Path) -> None:
        log = LogIndex.from_runs(0, 0, 9, [(2, 1)])
        self.replica = Replica(
            "b", "b.1", RecoveredState(
                log=log, commit_index=5, accepted_epoch=2, accepted_primary="a"
            ), Timing(), Bounds(), 0.0,
        )  # fmt: skip
        self.replica.on_consensus_heard()
        for effect in self.replica.on_message("a", Probe(1, 3, "a", 5), 1.0):
            if isinstance(effect, effects.RecordAccepted):
                self.replica.on_durable(effect.ticket)
        self.store = Store.open(path, map_size_bytes=MAP_SIZE_BYTES)
        self.installed: list[int] = []
        self.broken_off = 0
        self.breaks_off = False
        self.failed: list[BaseException] = []
        mesh: Any = None
        self.snapshots = Snapshots(
            "b",
            self.replica,
            self,  # type: ignore[arg-type]  # of its storage only these two are used
            mesh,
            0,
            requests=lambda: 0,
            on_sent=lambda _peer, _session, _done: None,
            on_installed=lambda index, _epoch: self.installed.append(index),
            on_install_failed=self.note_broken_off,
            on_fatal=self.failed.append,
        )

    def snapshot_writer(self, index: int, epoch: int) -> SnapshotWriter:
        return SnapshotWriter(self.store.directory, index, epoch, map_size_bytes=MAP_SIZE_BYTES)

    async def install_snapshot(self, *_: object) -> None:
        """What is put in place is not the question here."""
        if self.breaks_off:
            raise OSError("the disk has failed")

    def note_broken_off(self) -> None:
        self.broken_off += 1

    def view(self, epoch: int, primary: str, in_sync: str) -> None:
        self.replica.on_view(
            View(
                cluster_id="test",
                epoch=epoch,
                version=epoch,
                primary=primary,
                in_sync=tuple(in_sync),
                members=tuple(make_member(name) for name in "abc"),
            )
        )

    def answer(
        self, *, peer: str = "a", index: int = 20, epoch: int = 3, sender_epoch: int = 3
    ) -> str:
        """Return why a snapshot is refused when it is offered; "" if it is taken."""
        sink = self.snapshots.make_sink(peer, Offer("id", index, epoch, sender_epoch))
        if isinstance(sink, str):
            assert sink, "a refusal has a reason"
            return sink
        sink.abort()
        return ""

    async def end(self, *, index: int = 20, epoch: int = 3, sender_epoch: int = 3) -> None:
        """Let it be complete, whatever was said when it was offered."""
        writer = self.snapshot_writer(index, epoch)
        await self.snapshots.install(Offer("id", index, epoch, sender_epoch), writer)


@pytest.fixture
def learner(tmp_path: Path) -> Any:
    made = Learner(tmp_path)
    yield made
    made.store.close()
    assert not made.failed


async def test_a_learner_takes_what_its_primary_offers(learner: Learner) -> None:
    learner.view(3, "a", "ac")
    assert learner.answer() == ""
    await learner.end()
    assert learner.installed == [20]


async def test_a_learner_that_knows_no_view_yet_takes_what_its_primary_offers(
    learner: Learner,
) -> None:
    """After a restart the primary may be heard before consensus."""
    assert learner.answer() == ""
    await learner.end()
    assert learner.installed == [20]


async def test_a_primary_of_an_older_epoch_is_refused(learner: Learner) -> None:
    """D3."""
    assert "epoch 3" in learner.answer(sender_epoch=2)
    with pytest.raises(TransferError, match="epoch 3"):
        await learner.end(sender_epoch=2)


def test_who_is_not_the_primary_here_is_refused(learner: Learner) -> None:
    """E5: of two that claim one epoch, the one that was accepted counts."""
    assert "primary here is 'a'" in learner.answer(peer="c")


async def test_an_epoch_below_the_view_is_refused(learner: Learner) -> None:
    """D3: the view is known, and its primary has not been heard yet."""
    learner.view(4, "c", "c")
    assert learner.answer(sender_epoch=3)
    with pytest.raises(TransferError):
        await learner.end(sender_epoch=3)


async def test_a_replica_in_sync_takes_none(learner: Learner) -> None:
    """E1, D1: what it holds counts as a copy, and may take over at any moment."""
    learner.view(3, "a", "ab")
    assert "in-sync set" in learner.answer()
    with pytest.raises(TransferError, match="in-sync set"):
        await learner.end()
    assert learner.installed == []


async def test_what_is_committed_here_is_not_replaced_by_what_is_older(learner: Learner) -> None:
    learner.view(3, "a", "ac")
    assert "up to 5" in learner.answer(index=5)
    with pytest.raises(TransferError, match="up to 5"):
        await learner.end(index=5)


async def test_what_the_log_holds_is_not_replaced(learner: Learner) -> None:
    """D1: what follows it in the log may have been acknowledged."""
    learner.view(3, "a", "ac")
    with pytest.raises(TransferError, match="entry 7 of epoch 2"):
        await learner.end(index=7, epoch=2)
    assert learner.installed == []
    await learner.end(index=7, epoch=3)  # another history: this log's entries were nobody's
    assert learner.installed == [7]


async def test_a_primary_takes_none(learner: Learner) -> None:
    learner.view(4, "b", "bc")
    assert learner.replica.primary is not None
    assert "a primary" in learner.answer(sender_epoch=4)
    with pytest.raises(TransferError, match="a primary"):
        await learner.end(sender_epoch=4)


async def test_an_installation_that_breaks_off_is_fatal_and_not_taken_for_done(
    learner: Learner,
) -> None:
    """D9: store and log may be of different states now."""
    learner.view(3, "a", "ac")
    learner.breaks_off = True
    with pytest.raises(OSError, match="has failed"):
        await learner.end()
    assert (learner.installed, learner.broken_off) == ([], 1)
    assert [str(error) for error in learner.failed] == ["the disk has failed"]
    learner.failed.clear()


async def test_what_is_no_snapshot_of_a_store_is_not_installed(learner: Learner) -> None:
    class Completion:
        aborted = False

        def abort(self) -> None:
            self.aborted = True

    learner.view(3, "a", "ac")
    sink: Any = Completion()
    with pytest.raises(TransferError, match="not a snapshot of a store"):
        await learner.snapshots.install(Offer("id", 20, 3, 3), sink)
    assert sink.aborted
    assert learner.installed == []
    assert not learner.replica.state.installing
