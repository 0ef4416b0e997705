"""Parcels, pieces and liveness, without a socket."""

from __future__ import annotations

from collections import deque

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datapath.transport.framing import (
    LARGE_MESSAGE_BYTES,
    MAX_MESSAGE_BYTES,
    MESSAGE_OVERHEAD_BYTES,
    PARCEL_BYTES,
    FramingError,
    Liveness,
    Unframer,
    take_parcel,
)


@given(st.lists(st.binary(max_size=3000), min_size=1, max_size=200))
def test_parcels_bring_all_messages_in_order_within_their_bound(messages: list[bytes]) -> None:
    outbox, unframer = deque(messages), Unframer()
    counted, found = 0, []
    while outbox:
        frame, size = take_parcel(outbox)
        assert len(frame) < PARCEL_BYTES + LARGE_MESSAGE_BYTES + 100
        counted += size
        found += unframer.binary(frame)
    assert found == messages
    assert counted == sum(len(message) + MESSAGE_OVERHEAD_BYTES for message in messages)


def test_a_parcel_ends_before_a_large_message() -> None:
    outbox = deque([b"a", b"b", bytes(LARGE_MESSAGE_BYTES), b"c"])
    frame, _ = take_parcel(outbox)
    assert msgspec.msgpack.decode(frame) == [b"a", b"b"]
    assert len(outbox[0]) == LARGE_MESSAGE_BYTES


@given(st.binary(min_size=1, max_size=5000), st.integers(1, 900))
def test_pieces_of_any_size_make_the_message(message: bytes, piece: int) -> None:
    unframer = Unframer()
    unframer.text(str(len(message)))
    found = [unframer.binary(message[at : at + piece]) for at in range(0, len(message), piece)]
    assert found == [[]] * (len(found) - 1) + [[message]]
    assert unframer.binary(msgspec.msgpack.encode([b"next"])) == [b"next"]


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "1.5", "x", "\u0663", str(MAX_MESSAGE_BYTES + 1), "9" * 5000]
)
def test_what_announces_no_size_is_refused(text: str) -> None:
    with pytest.raises(FramingError):
        Unframer().text(text)


def test_a_large_message_is_announced_once_and_no_larger_than_said() -> None:
    unframer = Unframer()
    unframer.text("10")
    with pytest.raises(FramingError):
        unframer.text("10")
    with pytest.raises(FramingError):
        unframer.binary(bytes(11))
    unframer = Unframer()
    unframer.text("10")
    with pytest.raises(FramingError):
        unframer.binary(b"")


def test_a_silent_end_is_pinged_three_times_and_then_lost() -> None:
    liveness, pings, now = Liveness(1.5, 100.0), 0, 100.0
    while (step := liveness.tick(now)) != "lost":
        pings += step == "ping"
        assert liveness.due_at > now
        now = liveness.due_at
    assert now == 101.5
    assert pings == 3


def test_whoever_is_heard_is_kept() -> None:
    liveness, now = Liveness(1.5, 0.0), 0.0
    for _ in range(100):
        assert liveness.tick(now) != "lost"
        now = liveness.due_at
        liveness.heard_at = now


def test_after_a_stand_still_the_other_end_gets_one_more_period() -> None:
    liveness = Liveness(1.5, 0.0)
    assert liveness.tick(0.0) == "ping"
    assert liveness.tick(60.0) == "ping", "what came meanwhile is still unread"
    assert liveness.due_at == pytest.approx(60.5)
    assert liveness.tick(60.5) == "lost"
