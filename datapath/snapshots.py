"""Bringing replicas up by snapshot: one to a peer at a time, and one at a time received."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from datapath.errors import DiskFullError
from datapath.mesh import SNAPSHOT, Mesh
from datapath.replica import Replica
from datapath.snapshot import SnapshotWriter
from datapath.storage import Storage
from datapath.transfer import Offer, SnapshotSink, Throttle, TransferError, in_thread
from datapath.transfer_send import SnapshotSender

log = logging.getLogger(__name__)

RETRY_INTERVAL_S = 0.5
FLOOR_KEPT_S = 15.0
"""How long the log after a snapshot is kept for the replica that has installed it, within the bound
of catch-up: else, under load, it would need another snapshot."""


class Snapshots:
    """Sends and takes the snapshots of one replica.

    `requests()`: how many this node has served, which sending gives way to.
    `on_sent(peer, session, done)`, `on_installed(index, epoch)` and `on_install_failed()` tell the
    replica. `on_fatal(error)`: an installation broke off between the store and the log.
    """

    def __init__(
        self,
        node_id: str,
        replica: Replica,
        storage: Storage,
        mesh: Mesh,
        rate_bytes_per_s: int,
        *,
        requests: Callable[[], int],
        on_sent: Callable[[str, int, bool], None],
        on_installed: Callable[[int, int], None],
        on_install_failed: Callable[[], None],
        on_fatal: Callable[[BaseException], None],
    ) -> None:
        self._node_id = node_id
        self._replica = replica
        self._storage = storage
        self._mesh = mesh
        self._rate_bytes_per_s = rate_bytes_per_s
        self._requests = requests
        self._on_sent = on_sent
        self._on_installed = on_installed
        self._on_install_failed = on_install_failed
        self._on_fatal = on_fatal
        self._sending: dict[str, int] = {}  # peer -> the newest session that waits for it
        self.sent_total = 0
        self.received_total = 0

    async def send(self, peer: str, session: int) -> None:
        """Send one to a peer. While one is on its way, a newer session waits for the same."""
        running = peer in self._sending
        self._sending[peer] = session
        if running:
            return
        log.info("%s is too far behind for log replay: sending a snapshot", peer)
        sender = SnapshotSender(throttle=Throttle(self._rate_bytes_per_s, self._requests))
        dialer = self._mesh.dialer(peer, SNAPSHOT, sender)
        done = False
        try:
            source = await self._storage.snapshot_reader()
            self._storage.snapshot_floors[peer] = source.index
            dialer.start()
            index, _ = await sender.send_snapshot(source, self._replica.epoch)
            log.info("%s has installed a snapshot at %d", peer, index)
            self.sent_total += 1
            done = True
        except (TransferError, DiskFullError) as problem:
            log.warning("the snapshot for %s failed: %s", peer, problem)
            await asyncio.sleep(RETRY_INTERVAL_S)
        finally:
            if done:
                # The log from there on is what the peer asks for next, when it has come back.
                loop = asyncio.get_running_loop()
                loop.call_later(FLOOR_KEPT_S, self._release_floor, peer, source.index)
            else:
                self._storage.snapshot_floors.pop(peer, None)
            session = self._sending.pop(peer)
            await dialer.stop()
        self._on_sent(peer, session, done)

    def _release_floor(self, peer: str, index: int) -> None:
        if self._storage.snapshot_floors.get(peer) == index and peer not in self._sending:
            del self._storage.snapshot_floors[peer]

    def make_sink(self, peer: str, offer: Offer) -> SnapshotSink | str:
        """Answer a snapshot's offer: with a place for it, or why it is refused."""
        problem = self._refusal(peer, offer)
        if problem:
            return problem
        log.info("receiving a snapshot at %d from %s", offer.index, peer)
        try:
            return self._storage.snapshot_writer(offer.index, offer.epoch)
        except DiskFullError as error:
            return f"{self._node_id} has no room for it: {error}"

    def _refusal(self, peer: str, offer: Offer) -> str:
        core, view = self._replica.core, self._replica.view
        if self._replica.primary is not None:
            return "this node is a primary"
        if offer.sender_epoch < self._replica.epoch or peer != core.accepted_primary:  # D3
            return f"the primary here is {core.accepted_primary!r} of epoch {core.accepted_epoch}"
        if view is not None and self._node_id in view.in_sync:
            return "this node is in the in-sync set, or has not heard that it left"
        if offer.index <= core.commit_index:
            return f"this node has entries up to {core.commit_index} already"
        return ""

    async def install(self, offer: Offer, sink: SnapshotSink) -> None:
        """Put a received snapshot in place of log and store."""
        problem = self._refusal(self._replica.core.accepted_primary, offer)
        if not isinstance(sink, SnapshotWriter):
            problem = "this is no snapshot of a store"
        # From here on nothing is written, committed or acknowledged, until it has ended.
        problem = problem or self._replica.start_install(offer.index, offer.epoch)
        if problem or not isinstance(sink, SnapshotWriter):
            await in_thread(sink.abort)
            raise TransferError(problem)
        installed = False
        try:
            await self._storage.install_snapshot(sink, offer.index, offer.epoch)
            installed = True
        except Exception as error:
            # D9: store and log may be of different states now, or their disk has failed. The next
            # start finds the old store or the new one, whole, and empties the log if it must.
            self._on_fatal(error)
            raise
        finally:
            if installed:
                self._on_installed(offer.index, offer.epoch)
            else:
                self._on_install_failed()
        log.info("installed a snapshot at %d", offer.index)
        self.received_total += 1
