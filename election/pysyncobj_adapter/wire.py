"""Messages between members. Whatever is not one of these is refused.

PySyncObj's own messages are dictionaries, pickled. Here they are typed structs in MessagePack:
nothing that arrives is ever unpickled, and no message has a field of the wrong type. Its utility
messages (status, add, remove, transfer) and read-only peers have no counterpart.
"""

from __future__ import annotations

from typing import Any

import msgspec

from election.pysyncobj_adapter.journal import RaftEntry
from election.pysyncobj_adapter.peer_marks import PeerMark
from election.pysyncobj_adapter.raft_snapshot import DumpChunk


class AppendEntries(msgspec.Struct, frozen=True, tag=1, array_like=True):
    """The leader's heartbeat, with entries after the entry at `prev_index`."""

    term: int
    commit_index: int
    prev_index: int | None
    prev_term: int | None
    entries: list[RaftEntry]


class Snapshot(msgspec.Struct, frozen=True, tag=2, array_like=True):
    """A chunk of the leader's dump, for a follower whose next entry it no longer has."""

    term: int
    commit_index: int
    chunk: DumpChunk | None


class FollowerReply(msgspec.Struct, frozen=True, tag=3, array_like=True):
    """The answer to the two above. PySyncObj's own carries no term; this one must."""

    term: int
    next_index: int
    reset: bool
    success: bool


class RequestVote(msgspec.Struct, frozen=True, tag=4, array_like=True):
    """A candidate asks for a vote."""

    term: int
    last_log_index: int
    last_log_term: int


class Vote(msgspec.Struct, frozen=True, tag=5, array_like=True):
    """The vote is granted."""

    term: int


class Forward(msgspec.Struct, frozen=True, tag=6, array_like=True):
    """A command for the leader to append."""

    command: bytes


class PreVote(msgspec.Struct, frozen=True, tag=7, array_like=True):
    """Would you vote for me in this term? Nobody's term changes by asking."""

    round: int
    term: int
    last_log_index: int
    last_log_term: int


class PreVoteAnswer(msgspec.Struct, frozen=True, tag=8, array_like=True):
    """The answer; `term` is the answerer's own."""

    round: int
    granted: bool
    term: int


class TimeoutNow(msgspec.Struct, frozen=True, tag=9, array_like=True):
    """The leader hands its place over."""

    term: int


class Ping(msgspec.Struct, frozen=True, tag=10, array_like=True):
    """Keeps an idle connection known to be alive."""


class Remembered(msgspec.Struct, frozen=True, tag=11, array_like=True):
    """The first message of each side: what it remembers of the receiver (decision 18)."""

    mark: PeerMark


class Told(msgspec.Struct, frozen=True, tag=12, array_like=True):
    """How far the sender is: to be remembered."""

    mark: PeerMark


RaftMessage = (
    AppendEntries
    | Snapshot
    | FollowerReply
    | RequestVote
    | Vote
    | Forward
    | PreVote
    | PreVoteAnswer
    | TimeoutNow
    | Ping
    | Remembered
    | Told
)

_decoder: msgspec.msgpack.Decoder[RaftMessage] = msgspec.msgpack.Decoder(RaftMessage)
_encoder = msgspec.msgpack.Encoder()


def encode_raft_message(message: RaftMessage) -> bytes:
    """Return the message's bytes."""
    return _encoder.encode(message)


def decode_raft_message(data: bytes) -> RaftMessage:
    """Return the message.

    Raises:
        codec.UNDECODABLE: one of these; it is none of those above.

    """
    return _decoder.decode(data)


def from_pysyncobj(message: dict[str, Any]) -> RaftMessage:
    """Return the struct for a message that PySyncObj (or the adapter's Raft) made.

    Raises:
        ValueError: this kind is not spoken here.

    """
    match message["type"]:
        case "append_entries" if "serialized" in message:
            return Snapshot(message["term"], message["commit_index"], message["serialized"])
        case "append_entries" if "transmission" not in message:
            return AppendEntries(
                message["term"],
                message["commit_index"],
                message["prevLogIdx"],
                message["prevLogTerm"],
                message["entries"],
            )
        case "request_vote":
            return RequestVote(message["term"], message["last_log_index"], message["last_log_term"])
        case "response_vote":
            return Vote(message["term"])
        case "apply_command":
            return Forward(message["command"])
        case "timeout_now":
            return TimeoutNow(message["term"])
        case kind:
            raise ValueError(f"PySyncObj tried to send a {kind!r} message, which is not supported")


def to_pysyncobj(
    message: AppendEntries | FollowerReply | RequestVote | Vote | Forward | TimeoutNow,
) -> dict[str, Any]:
    """Return the dictionary that PySyncObj's handler expects."""
    match message:
        case AppendEntries():
            return {
                "type": "append_entries",
                "term": message.term,
                "commit_index": message.commit_index,
                "prevLogIdx": message.prev_index,
                "prevLogTerm": message.prev_term,
                "entries": message.entries,
            }
        case FollowerReply():
            return {
                "type": "next_node_idx",
                "next_node_idx": message.next_index,
                "reset": message.reset,
                "success": message.success,
            }
        case RequestVote():
            return {
                "type": "request_vote",
                "term": message.term,
                "last_log_index": message.last_log_index,
                "last_log_term": message.last_log_term,
            }
        case Vote():
            return {"type": "response_vote", "term": message.term}
        case Forward():
            return {"type": "apply_command", "command": message.command}
        case TimeoutNow():
            return {"type": "timeout_now", "term": message.term}
