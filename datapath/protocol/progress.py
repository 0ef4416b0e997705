"""What the primary knows of one other replica. After etcd's tracker: probe, replicate, snapshot."""

from __future__ import annotations

from collections import deque
from typing import Literal

PeerState = Literal["down", "probe", "replicate", "snapshot"]

MAX_UNANSWERED_HEARTBEATS = 256


class Progress:
    """One replica's place, as its primary sees it. Times are ms of the boot clock.

    | state | meaning | left by |
    |---|---|---|
    | down | no stream to it, or one of no use | `become_probe` |
    | probe | a stream is open, and it was asked what it holds | its answer |
    | replicate | records go from `next_index` on | a lost stream; the log retains too little |
    | snapshot | it needs one, or one is on its way | the snapshot's end; a newer stream |
    """

    def __init__(self, node_id: str, now_ms: float) -> None:
        self.node_id = node_id
        self.state: PeerState = "down"
        self.session = 0  # of the stream that counts; 0 exactly while it is down
        self.incarnation = ""  # of the process that answered last
        self.last_position = (0, 0)  # (epoch, index) of its last entry when it was probed
        # Durable there and equal to the primary's log; 0 before it has said so on this session.
        self.match_index = 0
        self.next_index = 1  # the first entry not sent yet; above match_index while it replicates
        self.reading = False  # a log read for it is under way; means nothing but in "replicate"
        self.applied_index = 0  # as it last said; may be of an older session
        self.durable_index = 0  # the same
        self.writable = True  # its disk has room, as it last said
        self.incomplete = False  # it may lack what was acknowledged, as it last said
        self.heard_ms = now_ms
        self.opened_ms = now_ms  # when the session began
        self.advanced_ms = now_ms  # the last time that it had nothing open or acknowledged some
        self.lease_start_ms: float | None = None  # sending time of the newest answered heartbeat
        self.leased_ms = now_ms  # when a promise last came before it had run out
        self.answered_sequence = 0  # the newest heartbeat of this epoch that it has answered
        # As last seen, also over a lost stream; with none on its way for it.
        self.needs_snapshot = False
        self.sending_snapshot = False  # one is on its way, perhaps since an older session
        self._heartbeats: deque[tuple[int, float]] = deque(maxlen=MAX_UNANSWERED_HEARTBEATS)
        self._inflight: deque[tuple[int, int]] = deque()  # (last index, bytes), unacknowledged
        self.inflight_bytes = 0  # their sum

    # -- states

    def become_probe(self, session: int, now_ms: float) -> None:
        """A new stream: nothing said on an older one counts any more, but for the lease."""
        self.session = session
        self.opened_ms = now_ms
        self.state = "probe"
        self.match_index = 0
        self.advanced_ms = now_ms
        self._heartbeats.clear()
        self._send_from(self.next_index)

    def become_replicate(self, next_index: int) -> None:
        """It has said what it holds: records go from `next_index` on."""
        self.state = "replicate"
        self.needs_snapshot = False
        self._send_from(next_index)

    def become_snapshot(self) -> None:
        """The log does not retain what it lacks."""
        self.state, self.needs_snapshot = "snapshot", True

    def become_down(self) -> None:
        """The stream is gone, or of no use."""
        self.state = "down"
        self.session = 0

    def _send_from(self, next_index: int) -> None:
        """What was sent before, and did not get there, is sent again."""
        self.next_index = next_index
        self.reading = False
        self._inflight.clear()
        self.inflight_bytes = 0

    def sent_heartbeat(self, sequence: int, now_ms: float) -> None:
        """Remember when a heartbeat left (D4: the lease counts from its sending)."""
        self._heartbeats.append((sequence, now_ms))

    def answered_heartbeat(self, sequence: int, now_ms: float, lease_duration_ms: float) -> None:
        """A heartbeat was answered: the lease starts at its sending."""
        self.answered_sequence = max(self.answered_sequence, sequence)
        while self._heartbeats and self._heartbeats[0][0] <= sequence:
            number, sent_ms = self._heartbeats.popleft()
            if number == sequence:
                self.lease_start_ms = max(sent_ms, self.lease_start_ms or sent_ms)
                if now_ms - sent_ms < lease_duration_ms:
                    self.leased_ms = now_ms

    def sent(self, last_index: int, size_bytes: int, now_ms: float) -> None:
        """Records up to `last_index` left for it."""
        if not self._inflight:
            self.advanced_ms = now_ms
        self._inflight.append((last_index, size_bytes))
        self.inflight_bytes += size_bytes
        self.next_index = last_index + 1

    def acknowledged(self, match_index: int, now_ms: float) -> bool:
        """It holds everything up to `match_index`; return whether that is news."""
        if match_index <= self.match_index:
            return False
        self.match_index = match_index
        self.advanced_ms = now_ms
        while self._inflight and self._inflight[0][0] <= match_index:
            self.inflight_bytes -= self._inflight.popleft()[1]
        return True
