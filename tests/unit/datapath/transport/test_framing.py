"""Parcels, pieces and liveness, without a socket."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datapath.transport.framing import (
    BINARY,
    CLOSE,
    LARGE_MESSAGE_BYTES,
    MAX_FRAME_BYTES,
    MAX_MESSAGE_BYTES,
    MESSAGE_OVERHEAD_BYTES,
    PARCEL_BYTES,
    PIECE_BYTES,
    PING,
    PONG,
    TEXT,
    FrameReader,
    FramingError,
    Liveness,
    Payload,
    frame,
    frame_head,
    pieces,
    take_parcel,
)


def read(reader: FrameReader, data: bytes, step: int = 1 << 20) -> list[Payload]:
    """Let a reader read, at most `step` bytes at once; return the messages that are complete."""
    found: list[Payload] = []
    rest = memoryview(data)
    while rest:
        buffer = reader.buffer
        size = min(len(buffer), len(rest), step)
        buffer[:size], rest = rest[:size], rest[size:]
        found += reader.received(size)[0]
    return found


def parcel(*messages: bytes, is_masked: bool = False) -> bytes:
    return frame(BINARY, msgspec.msgpack.encode(messages), is_masked=is_masked)


def announced(size: int | str) -> bytes:
    return frame(TEXT, str(size).encode(), is_masked=False)


@given(st.lists(st.binary(max_size=3000), min_size=1, max_size=200))
def test_parcels_bring_all_messages_in_order_within_their_bound(messages: list[bytes]) -> None:
    outbox: deque[bytes | Sequence[bytes]] = deque(messages)
    reader = FrameReader(is_masked=False)
    counted = 0
    found: list[Payload] = []
    while outbox:
        sent, size = take_parcel(outbox)
        assert len(sent) < PARCEL_BYTES + LARGE_MESSAGE_BYTES + 100
        counted += size
        found += read(reader, frame(BINARY, sent, is_masked=False))
    assert found == messages
    assert counted == sum(len(message) + MESSAGE_OVERHEAD_BYTES for message in messages)


def test_a_parcel_ends_before_a_large_message() -> None:
    outbox: deque[bytes | Sequence[bytes]] = deque([b"a", b"b", (b"large",), b"c"])
    taken, _ = take_parcel(outbox)
    assert msgspec.msgpack.decode(taken) == [b"a", b"b"]
    assert outbox[0] == (b"large",)


@given(
    parts=st.lists(st.binary(max_size=200), min_size=1, max_size=5).filter(any),
    repeats=st.integers(1, 3000),
    step=st.integers(1, 100_000),
    is_masked=st.booleans(),
)
def test_a_message_in_parts_arrives_whole_however_it_is_read(
    parts: list[bytes], repeats: int, step: int, is_masked: bool
) -> None:
    parts = [part * repeats for part in parts]
    step = max(step, sum(map(len, parts)) // 500)
    reader = FrameReader(is_masked=is_masked)
    sent = b"".join(b"".join(buffers) for buffers in pieces(parts, is_masked=is_masked))
    between = parcel(b"next", is_masked=is_masked)
    assert read(reader, sent + between + sent, step) == [b"".join(parts), b"next", b"".join(parts)]


def test_a_large_message_is_sent_from_where_it_stands() -> None:
    part = bytes(3 * PIECE_BYTES)
    frames = list(pieces([b"head", part], is_masked=True))
    assert all(sum(map(len, buffers)) <= PIECE_BYTES + 40 for buffers in frames)
    views = [each for buffers in frames for each in buffers if isinstance(each, memoryview)]
    assert {id(view.obj) for view in views if len(view) > 4} == {id(part)}


@pytest.mark.parametrize("size", [1, 125, 126, 65535, 65536])
def test_masked_frames_of_others_are_unmasked(size: int) -> None:
    """As aiohttp's client sends them, and so a node of the release before."""
    mask, plain = b"\x01\xfe\x80\x7f", bytes(n % 251 for n in range(size))
    masked = bytes(byte ^ mask[at % 4] for at, byte in enumerate(plain))
    head = frame_head(BINARY, size, is_masked=True)[:-4] + mask
    text = frame(TEXT, str(size).encode(), is_masked=True)
    for step in (1 << 20, 7 if size < 1000 else 1000):
        assert read(FrameReader(is_masked=True), text + head + masked, step) == [plain]


def resident_bytes() -> int:
    with Path("/proc/self/statm").open() as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
def test_a_message_that_is_announced_and_does_not_come_takes_no_memory() -> None:
    reader, before = FrameReader(is_masked=False), resident_bytes()
    assert read(reader, announced(MAX_MESSAGE_BYTES)) == []
    assert resident_bytes() - before < MAX_MESSAGE_BYTES // 4


def test_the_largest_message_arrives_whole() -> None:
    message = b"a" + bytes(MAX_MESSAGE_BYTES - 2) + b"z"
    sent = b"".join(b"".join(each) for each in pieces([message], is_masked=False))
    (found,) = read(FrameReader(is_masked=False), sent)
    assert found == message


def test_pings_pongs_and_a_close_are_read_between_pieces() -> None:
    reader = FrameReader(is_masked=False)
    ping, pong = (frame(kind, b"1", is_masked=False) for kind in (PING, PONG))
    piece = frame(BINARY, b"12345", is_masked=False)
    assert read(reader, announced(10) + ping + piece + pong + piece) == [b"1234512345"]
    reader = FrameReader(is_masked=False)
    pings: list[bytes] = []
    for byte in ping * 3:
        buffer = reader.buffer
        buffer[0] = byte
        messages, more = reader.received(1)
        assert not messages
        pings += more
    assert pings == [b"1"] * 3
    read(reader, frame(CLOSE, b"\x03\xe9enough", is_masked=False))
    assert reader.close_reason == b"enough"


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "1.5", "x", "\u0663", str(MAX_MESSAGE_BYTES + 1), "9" * 100]
)
def test_what_announces_no_size_is_refused(text: str) -> None:
    with pytest.raises(FramingError):
        read(FrameReader(is_masked=False), announced(text))


@pytest.mark.parametrize(
    "data",
    [
        announced(10) + announced(10),
        announced(10) + frame(BINARY, bytes(11), is_masked=False),
        announced(10) + frame(BINARY, b"", is_masked=False),
        frame(TEXT, bytes(126), is_masked=False),
        frame(PING, bytes(126), is_masked=False),
        frame_head(BINARY, MAX_FRAME_BYTES + 1, is_masked=False),
        frame(BINARY, b"\x90", is_masked=True),
        frame(3, b"", is_masked=False),
        b"\x02\x01\x90",  # in parts
        b"\xc2\x01\x90",  # extended
    ],
)
def test_what_is_no_frame_of_ours_is_refused(data: bytes) -> None:
    with pytest.raises(FramingError):
        read(FrameReader(is_masked=False), data)


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
