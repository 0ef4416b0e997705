"""What a primary sends the other replicas: probes, records, snapshots. Part of `Primary`."""

from __future__ import annotations

from collections import deque

from datapath.errors import SafetyError
from datapath.protocol import effects
from datapath.protocol.in_sync import InSync
from datapath.protocol.messages import Append, Probe
from datapath.protocol.progress import Progress
from datapath.protocol.state import ReplicaState
from datapath.records import Record


class Replication:
    """One epoch's streams to the other replicas: those of `in_sync.peers`, in sync or not.

    `recent`: the newest records, without a gap up to the log's end (empty before the first of this
    epoch), up to `recent_records_bytes` and at least one: what is older is read from the log.
    """

    def __init__(self, state: ReplicaState, epoch: int, in_sync: InSync) -> None:
        self._state = state
        self._epoch = epoch
        self._in_sync = in_sync
        self._peers = in_sync.peers
        self.recent: deque[Record] = deque()
        self._recent_bytes = 0  # of `recent`
        self._first_index = 0  # of the epoch; 0: it has no entry yet

    def append(self, record: Record) -> None:
        """Write a record here, and send it to all who follow. It is the log's next."""
        state = self._state
        state.write([record])
        self._first_index = self._first_index or record.first_index
        self.recent.append(record)
        self._recent_bytes += len(record.data)
        while self._recent_bytes > state.bounds.recent_records_bytes and len(self.recent) > 1:
            self._recent_bytes -= len(self.recent.popleft().data)
        for peer in self._peers.values():
            self.send(peer)

    def probe(self, peer: Progress, session: int) -> None:
        """A stream is open: ask what the replica holds."""
        state = self._state
        peer.become_probe(session, state.now_ms)
        probe = Probe(
            session,
            self._epoch,
            state.node_id,
            state.commit_index,
            self._in_sync.view.cluster_id,
            commit_epoch=state.log.epoch_at(state.commit_index) or 0,
            required=peer.node_id in self._in_sync.required,
        )
        state.emit(effects.Send(peer.node_id, probe))

    # -- records

    def send(self, peer: Progress) -> None:
        """Send what the replica lacks, from memory if it is there, within its window."""
        state = self._state
        last = state.log.last_index
        while (
            peer.state == "replicate"
            and not peer.reading
            and peer.next_index <= last
            and peer.inflight_bytes < state.bounds.max_peer_inflight_bytes
        ):
            if not self.recent or peer.next_index < self.recent[0].first_index:
                peer.reading = True
                state.emit(effects.ReadLog(peer.node_id, peer.session, peer.next_index))
                return
            records = self._recent_from(peer.next_index)
            if not records or records[0].first_index != peer.next_index:
                raise SafetyError(f"entry {peer.next_index} is not the first of its record")
            self.send_records(peer, records)

    def _recent_from(self, index: int) -> list[Record]:
        """Return the recent records from `index` on, up to one message's worth of bytes."""
        limit = self._state.bounds.max_append_bytes
        found: list[Record] = []
        for record in reversed(self.recent):
            if record.first_index < index:
                break
            found.append(record)
        found.reverse()
        size = 0
        for number, record in enumerate(found):
            size += len(record.data)
            if size > limit and number:
                return found[:number]
        return found

    def send_records(self, peer: Progress, records: list[Record]) -> None:
        """Send these, which follow what has been sent; none: to learn whether that matches."""
        state = self._state
        prev_index = peer.next_index - 1
        is_own = 0 < self._first_index <= prev_index
        prev_epoch = self._epoch if is_own else state.log.epoch_at(prev_index)
        if prev_epoch is None:
            self.need_snapshot(peer)
            return
        data = [record.data for record in records]
        message = Append(
            peer.session, self._epoch, prev_index, prev_epoch, state.commit_index, data
        )
        state.emit(effects.Send(peer.node_id, message))
        if records:
            peer.sent(records[-1].last_index, sum(map(len, data)), state.now_ms)

    def on_log_read(self, node: str, session: int, records: list[Record] | None) -> None:
        """Records from the log for a replica that is behind; None: no longer retained."""
        peer = self._peers.get(node)
        if peer is None or peer.session != session or peer.state != "replicate":
            return
        peer.reading = False
        if records is None:
            self.need_snapshot(peer)
        elif records and records[0].first_index == peer.next_index:
            self.send_records(peer, records)
            self.send(peer)
        else:
            self._state.emit(effects.CloseLink(node, "the log has changed under a read"))

    # -- snapshots

    def need_snapshot(self, peer: Progress) -> None:
        """The log does not retain what the replica lacks."""
        peer.become_snapshot()
        self.send_due_snapshot(peer)

    def send_due_snapshot(self, peer: Progress) -> None:
        """Begin to send one, where one is needed and may be sent."""
        if self.may_send_snapshot(peer):
            peer.needs_snapshot, peer.sending_snapshot = False, True
            self._state.emit(effects.SendSnapshot(peer.node_id, peer.session))

    def may_send_snapshot(self, peer: Progress) -> bool:
        """Only a learner is brought up by snapshot: an in-sync one is removed first (E1)."""
        return (
            peer.needs_snapshot
            and not peer.sending_snapshot
            and peer.node_id not in self._in_sync.required
        )

    def on_snapshot_sent(self, node: str, session: int, *, done: bool) -> None:
        """The snapshot has arrived, or failed: start over on a new session."""
        peer = self._peers.get(node)
        if peer is None:
            return
        peer.sending_snapshot = False
        if peer.state != "snapshot":
            return  # the replica has said itself what it holds now
        if peer.session != session and not done:
            self.send_due_snapshot(peer)
            return
        peer.heard_ms = self._state.now_ms if done else peer.heard_ms
        peer.become_down()
        self._state.emit(
            effects.CloseLink(node, "a snapshot was installed" if done else "snapshot failed")
        )
