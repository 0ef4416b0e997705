"""Messages survive the way there and back, and nothing else is taken for one."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from election.pysyncobj_adapter import wire
from election.pysyncobj_adapter.codec import UNDECODABLE
from election.pysyncobj_adapter.peer_marks import PeerMark

messages: list[wire.RaftMessage] = [
    wire.AppendEntries(3, 7, 6, 2, [(b"command", 7, 3), (b"", 8, 3)]),
    wire.AppendEntries(3, 7, None, None, []),
    wire.Snapshot(3, 7, (b"chunk", True, False)),
    wire.Snapshot(3, 7, None),
    wire.FollowerReply(3, 9, reset=True, success=False),
    wire.RequestVote(4, 9, 3),
    wire.Vote(4),
    wire.Forward(b"command"),
    wire.PreVote(1, 4, 9, 3),
    wire.PreVoteAnswer(1, granted=True, term=3),
    wire.TimeoutNow(4),
    wire.Ping(),
    wire.Remembered(PeerMark(3, 9, 2, 7)),
    wire.Told(PeerMark()),
]


@pytest.mark.parametrize("message", messages, ids=lambda message: type(message).__name__)
def test_there_and_back(message: wire.RaftMessage) -> None:
    assert wire.decode_raft_message(wire.encode_raft_message(message)) == message


@given(st.binary(max_size=100))
def test_bytes_that_are_no_message_raise_only_what_is_expected(data: bytes) -> None:
    with contextlib.suppress(*UNDECODABLE):
        wire.decode_raft_message(data)


def test_pysyncobjs_own_dictionaries_become_messages_and_back() -> None:
    vote = {"type": "request_vote", "term": 4, "last_log_index": 9, "last_log_term": 3}
    message = wire.from_pysyncobj(vote)
    assert isinstance(message, wire.RequestVote)
    assert wire.to_pysyncobj(message) == vote


@pytest.mark.parametrize("kind", ["apply_command_response", "next_node_idx", "status"])
def test_a_message_that_is_not_spoken_is_refused(kind: str) -> None:
    with pytest.raises(ValueError, match=kind):
        wire.from_pysyncobj({"type": kind})
