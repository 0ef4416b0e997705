"""What replicas say to each other on a replication stream. Pure data, MessagePack on the wire.

`session` numbers a stream: every new stream of a primary has a higher one, so that a late message
of an old stream is told apart. `epoch` fences (D3). All indices are log indices; all are of the
sender. Large records travel as they are, without a copy.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from datapath.parts import LARGE_PART_BYTES, struct_in_parts


class _Message(msgspec.Struct, frozen=True, array_like=True, gc=False):
    pass


class Probe(_Message, frozen=True, tag=1):
    """Primary to replica, first on each stream: I am this epoch's primary; what do you hold?

    `cluster_id` keeps apart what only looks alike: another cluster's log may match by accident.
    `required`: commits need this replica, so it has acknowledged all up to (`commit_index`,
    `commit_epoch`), and must hold it.
    """

    session: int
    epoch: int
    primary: str
    commit_index: int
    cluster_id: str = ""
    commit_epoch: int = 0
    required: bool = False


class ProbeReply(_Message, frozen=True, tag=2):
    """What the replica's log holds: `epochs` is [(epoch, first index), …] after its commit index.

    `incarnation` names the process's lifetime. `tail_cut`: its log's tail was cut when it opened;
    `incomplete`: it may lack entries that it has acknowledged, until a primary has caught it up.
    """

    session: int
    epoch: int
    incarnation: str
    first_index: int
    last_index: int
    last_epoch: int
    commit_index: int
    epochs: list[tuple[int, int]]
    tail_cut: bool
    incomplete: bool


class Append(_Message, frozen=True, tag=3):
    """Records that follow the entry (`prev_index`, `prev_epoch`); none: only the commit index."""

    session: int
    epoch: int
    prev_index: int
    prev_epoch: int
    commit_index: int
    records: list[bytes]


class AppendReply(_Message, frozen=True, tag=4):
    """All up to `match_index` equals the primary's log and is durable here (D9)."""

    session: int
    epoch: int
    match_index: int


class Heartbeat(_Message, frozen=True, tag=5):
    """I am here. `sequence` lets the primary count the lease from its own sending (D4)."""

    session: int
    epoch: int
    sequence: int
    commit_index: int


class HeartbeatReply(_Message, frozen=True, tag=6):
    """The promise: I propose nobody until my grace period, counted from the receipt, has run out.

    `writable` is false while the replica's disk has no room.
    """

    session: int
    epoch: int
    sequence: int
    applied_index: int
    durable_index: int
    writable: bool


class StaleEpoch(_Message, frozen=True, tag=7):
    """The message's epoch is below `epoch`, which the sender has accepted (D3)."""

    session: int
    epoch: int
    primary: str


Message = Probe | ProbeReply | Append | AppendReply | Heartbeat | HeartbeatReply | StaleEpoch

_encode: Callable[[Message], bytes] = msgspec.msgpack.Encoder().encode


def encode_message(message: Message) -> bytes | list[bytes]:
    """Encode a message, a large one in parts that follow each other."""
    if isinstance(message, Append) and sum(map(len, message.records)) >= LARGE_PART_BYTES:
        return struct_in_parts(message)
    return _encode(message)


decode_message: Callable[[bytes | memoryview], Message] = msgspec.msgpack.Decoder(Message).decode
"""What is no message closes its link."""
