"""What a primary notes of one other replica: leases, what is under way, who is stuck."""

from __future__ import annotations

from datapath.protocol.progress import Progress


def test_a_lease_starts_when_the_newest_answered_heartbeat_was_sent() -> None:
    """D4."""
    peer = Progress("b", 0.0)
    peer.sent_heartbeat(1, 100.0)
    peer.sent_heartbeat(2, 150.0)
    peer.sent_heartbeat(3, 200.0)
    peer.answered_heartbeat(2, 220.0, 250.0)
    assert peer.lease_start_ms == 150.0
    peer.answered_heartbeat(2, 230.0, 250.0)  # repeated
    peer.answered_heartbeat(1, 240.0, 250.0)  # late
    assert peer.lease_start_ms == 150.0


def test_a_promise_that_comes_after_it_has_run_out_gives_no_lease_period() -> None:
    """D5: such a replica is due for removal, for no read can be served with it."""
    peer = Progress("b", 0.0)
    peer.sent_heartbeat(1, 100.0)
    peer.answered_heartbeat(1, 349.0, 250.0)
    assert peer.leased_ms == 349.0
    peer.sent_heartbeat(2, 400.0)
    peer.answered_heartbeat(2, 650.0, 250.0)
    assert peer.leased_ms == 349.0


def test_a_replica_is_stuck_from_the_first_record_on_that_it_does_not_acknowledge() -> None:
    """D5: whatever is sent to it meanwhile."""
    peer = Progress("b", 0.0)
    assert peer.inflight_bytes == 0
    peer.sent(1, 10, 5000.0)
    assert peer.advanced_ms == 5000.0  # it had nothing to acknowledge until now
    peer.sent(2, 10, 5600.0)
    assert peer.advanced_ms == 5000.0
    assert peer.acknowledged(1, 6000.0)
    assert (peer.advanced_ms, peer.inflight_bytes) == (6000.0, 10)
    assert peer.acknowledged(2, 6100.0)
    assert peer.inflight_bytes == 0


def test_what_is_acknowledged_again_is_no_news() -> None:
    peer = Progress("b", 0.0)
    peer.sent(3, 30, 10.0)
    assert peer.acknowledged(2, 20.0)
    assert not peer.acknowledged(2, 1000.0)
    assert not peer.acknowledged(1, 1000.0)
    assert peer.match_index == 2
    assert (peer.advanced_ms, peer.inflight_bytes) == (20.0, 30)


def test_the_window_holds_what_is_not_acknowledged() -> None:
    peer = Progress("b", 0.0)
    peer.sent(1, 10, 1.0)
    peer.sent(3, 20, 2.0)
    peer.sent(4, 40, 3.0)
    peer.acknowledged(3, 4.0)
    assert peer.inflight_bytes == 40
    peer.become_replicate(2)
    assert (peer.inflight_bytes, peer.next_index) == (0, 2)


def test_a_new_session_keeps_the_lease_and_nothing_else() -> None:
    """D1: what was acknowledged on the old stream is asked for again."""
    peer = Progress("b", 0.0)
    peer.become_probe(1, 1.0)
    peer.sent(1, 10, 1.0)
    peer.sent_heartbeat(1, 1.0)
    peer.sent_heartbeat(2, 2.0)
    peer.acknowledged(1, 3.0)
    peer.answered_heartbeat(1, 3.0, 250.0)
    peer.become_probe(2, 4.0)
    peer.answered_heartbeat(2, 5.0, 250.0)
    assert (peer.match_index, peer.inflight_bytes, peer.lease_start_ms) == (0, 0, 1.0)
