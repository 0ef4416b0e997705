"""Bringing replicas up by snapshot: one to a peer at a time, and one at a time received."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from datapath.clock import clock_ms
from datapath.complaints import Complaints
from datapath.errors import DiskFullError, TransferError
from datapath.node.replica_disk import ReplicaStorage
from datapath.protocol.replica import Replica
from datapath.storage.snapshot import SnapshotWriter
from datapath.transport.mesh import SNAPSHOT, Mesh
from datapath.transport.snapshot_sender import SnapshotSender
from datapath.transport.snapshot_transfer import Offer, SnapshotSink, Throttle, in_thread

logger = logging.getLogger(__name__)

SNAPSHOT_RETRY_INTERVAL_S = 0.5


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
        storage: ReplicaStorage,
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
        self._throttles: dict[str, Throttle] = {}
        self._hurries = False
        self._complaints = Complaints(logger)  # a peer whose disk is full is tried again and again
        self.sent_total = 0
        self.received_total = 0

    async def send(self, peer: str, session: int) -> None:
        """Send one to a peer. While one is on its way, a newer session waits for the same."""
        running = peer in self._sending
        self._sending[peer] = session
        if running:
            return
        self._tell(
            f"snapshot for {peer}", f"{peer} is too far behind for log replay: sending a snapshot"
        )
        throttle = Throttle(0 if self._hurries else self._rate_bytes_per_s, self._requests)
        self._throttles[peer] = throttle
        sender = SnapshotSender(throttle=throttle)
        dialer = self._mesh.dialer(peer, SNAPSHOT, sender)
        done = False
        try:
            source = await self._storage.snapshot_reader()
            self._storage.retention.begin_snapshot(peer, source.index)
            dialer.start()
            index, _ = await sender.send_snapshot(source, self._replica.state.epoch)
            logger.info("%s has installed a snapshot at %d", peer, index)
            self.sent_total += 1
            done = True
        except (TransferError, DiskFullError) as problem:
            text = f"the snapshot for {peer} failed: {problem}"
            self._tell(f"failed snapshot for {peer}", text, logging.WARNING)
            await asyncio.sleep(SNAPSHOT_RETRY_INTERVAL_S)
        finally:
            self._storage.retention.end_snapshot(peer, clock_ms(), installed=done)
            del self._throttles[peer]
            session = self._sending.pop(peer)
            await dialer.stop()
        self._on_sent(peer, session, done)

    def _tell(self, kind: str, text: str, level: int = logging.INFO) -> None:
        self._complaints.log(kind, text, clock_ms() / 1000, level=level)

    def settle(self) -> None:
        """Hold no more of the log than is needed; and hurry, if much of it is held."""
        self._complaints.tick(clock_ms() / 1000)
        retention, segments = self._storage.retention, self._storage.log.segment_bounds()
        retention.settle(self._replica.primary, clock_ms())
        hurries = retention.hurries(segments)
        if hurries and not self._hurries:
            logger.warning(
                "%d MiB of log are kept for a snapshot in progress (limits.snapshot_log_bytes is "
                "%d MiB): it is no longer throttled; above the limit, writes are slowed down",
                retention.held_bytes(segments) >> 20,
                retention.snapshot_log_bytes >> 20,
            )
        self._hurries = hurries
        for throttle in self._throttles.values():
            throttle.bytes_per_s = 0 if hurries else self._rate_bytes_per_s

    @property
    def slows_writes(self) -> bool:
        """Whether more of the log is held for a snapshot than its bound."""
        return self._storage.retention.slows_writes(self._storage.log.segment_bounds())

    def make_sink(self, peer: str, offer: Offer) -> SnapshotSink | str:
        """Answer a snapshot's offer: with a place for it, or why it is refused."""
        problem = self._replica.snapshot_refusal(peer, offer.index, offer.sender_epoch)
        if problem:
            return problem
        self._tell("snapshot received", f"receiving a snapshot at {offer.index} from {peer}")
        try:
            return self._storage.snapshot_writer(offer.index, offer.epoch)
        except DiskFullError as error:
            return f"the disk of {self._node_id} is too full for it: {error}"

    async def install(self, offer: Offer, sink: SnapshotSink) -> None:
        """Put a received snapshot in place of log and store."""
        primary = self._replica.state.accepted_primary
        problem = self._replica.snapshot_refusal(primary, offer.index, offer.sender_epoch)
        if not isinstance(sink, SnapshotWriter):
            problem = "this is not a snapshot of a store"
        # From here on nothing is written, committed or acknowledged, until it has ended.
        problem = problem or self._replica.start_install(offer.index, offer.epoch)
        if problem or not isinstance(sink, SnapshotWriter):
            await in_thread(sink.abort)
            raise TransferError(problem)
        installed = False
        try:
            next_ticket = self._replica.state.ticket
            await self._storage.install_snapshot(sink, offer.index, offer.epoch, next_ticket)
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
        logger.info("installed a snapshot at %d", offer.index)
        self.received_total += 1
