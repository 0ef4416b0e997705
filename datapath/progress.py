"""What the primary knows of one other replica. After etcd's tracker: probe, replicate, snapshot."""

from __future__ import annotations

from collections import deque
from typing import Literal

PeerState = Literal["down", "probe", "replicate", "snapshot"]

MAX_UNANSWERED_HEARTBEATS = 256


class Progress:
    """One replica's place, as its primary sees it. Times are ms of the boot clock."""

    def __init__(self, node_id: str, now_ms: float) -> None:
        self.node_id = node_id
        self.state: PeerState = "down"
        self.session = 0
        self.incarnation = ""
        self.last_position = (0, 0)  # (epoch, index) of its last entry when it was probed
        self.match_index = 0  # durable there and equal to the primary's log
        self.next_index = 1  # the first entry not sent yet
        self.reading = False  # a log read for it is under way
        self.applied_index = 0
        self.durable_index = 0
        self.writable = True
        self.damaged = False
        self.heard_ms = now_ms
        self.opened_ms = now_ms  # when the session began
        self.advanced_ms = now_ms  # the last time that it had nothing open or acknowledged some
        self.lease_start_ms: float | None = None  # sending time of the newest answered heartbeat
        self.leased_ms = now_ms  # when a promise last came before it had run out
        self.answered_sequence = 0  # the newest heartbeat of this epoch that it has answered
        self.needs_snapshot = False
        self.sending_snapshot = False  # one is on its way, perhaps since an older session
        self._heartbeats: deque[tuple[int, float]] = deque(maxlen=MAX_UNANSWERED_HEARTBEATS)
        self._inflight: deque[tuple[int, int]] = deque()  # (last index, bytes)
        self.inflight_bytes = 0

    def open_session(self, session: int, now_ms: float) -> None:
        """A new stream: nothing said on an older one counts any more, but for the lease."""
        self.session = session
        self.opened_ms = now_ms
        self.state = "probe"
        self.match_index = 0
        self.reading = False
        self._heartbeats.clear()
        self._inflight.clear()
        self.inflight_bytes = 0
        self.advanced_ms = now_ms

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

    def without_lease_ms(self, now_ms: float) -> float:
        """How long no promise has come, or none before it had run out."""
        return now_ms - self.leased_ms

    def sent(self, last_index: int, size_bytes: int, now_ms: float) -> None:
        """Records up to `last_index` left for it."""
        if not self._inflight:
            self.advanced_ms = now_ms
        self._inflight.append((last_index, size_bytes))
        self.inflight_bytes += size_bytes
        self.next_index = last_index + 1

    def rewind(self, next_index: int) -> None:
        """It has said what it holds: what was sent before, and did not get there, is sent again."""
        self.next_index = next_index
        self._inflight.clear()
        self.inflight_bytes = 0

    def acknowledged(self, match_index: int, now_ms: float) -> bool:
        """It holds everything up to `match_index`; return whether that is news."""
        if match_index <= self.match_index:
            return False
        self.match_index = match_index
        self.advanced_ms = now_ms
        while self._inflight and self._inflight[0][0] <= match_index:
            self.inflight_bytes -= self._inflight.popleft()[1]
        return True

    def stalled_for_ms(self, now_ms: float) -> float:
        """How long records have been open without any acknowledgement."""
        return now_ms - self.advanced_ms if self._inflight else 0.0
