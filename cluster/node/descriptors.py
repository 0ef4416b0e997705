"""Open files: how many this process may have, and how they are shared out before it starts.

The disk and the links to other nodes come first: without a descriptor for its next log file a node
ends. Clients get what is left, up to their usual number, and are refused beyond that.
"""

from __future__ import annotations

import resource

import msgspec

from cluster.api.settings import RESERVED_CONNECTIONS, HttpSettings
from datapath.transport.listener import MAX_UNAUTHENTICATED

MAX_OPEN_FILES = 65_536
MIN_CLIENT_CONNECTIONS = 16
_PROCESS = 64
"""The interpreter, its event loop, store, locks and log; a snapshot's process; a file replaced."""
_PER_PEER = 10
"""Links of each kind in both directions, old ones beside new ones, and the raft link."""
_RAFT_STRANGERS = 32
_SPARE_SEGMENTS = 4


class Descriptors(msgspec.Struct, frozen=True):
    """What a limit of open files is spent on."""

    limit: int
    max_connections: int
    max_watchers: int
    wanted_watchers: int
    reserved_connections: int
    max_unauthenticated: int
    log_segments: int
    """Log files that may be open at once."""

    @property
    def cut(self) -> str:
        """What was cut, as a sentence for the operator; "" if nothing was."""
        usual = HttpSettings().max_connections
        if self.max_connections >= usual and self.max_watchers >= self.wanted_watchers:
            return ""
        return (
            f"the limit of open files is {self.limit}: this node accepts at most "
            f"{self.max_connections} client connections and {self.max_watchers} watchers instead "
            f"of {usual} and {self.wanted_watchers}; raise the limit (ulimit -n, LimitNOFILE) for "
            "more"
        )


class TooFewDescriptorsError(ValueError):
    """The limit of open files is too low for a node; the text says how high it must be."""


def share_out(
    limit: int, *, nodes: int, segments: int, held_segments: int = 0, watchers: int = 0
) -> Descriptors:
    """Share `limit` descriptors out.

    `segments` is how many log files may be open at most; `held_segments`: how many while a snapshot
    is sent or the archive is behind, which get no more than half of what clients would have: the
    log that is held for these can be bounded lower. `watchers` is how many are wanted: they get
    what other clients leave, and a quarter at least. Raises TooFewDescriptorsError.
    """
    strangers = min(MAX_UNAUTHENTICATED, limit // 8)
    reserve = min(RESERVED_CONNECTIONS, limit // 16)
    kept = _PROCESS + _PER_PEER * (nodes + 3) + _RAFT_STRANGERS + segments + _SPARE_SEGMENTS
    left = limit - kept - strangers - reserve
    if left < MIN_CLIENT_CONNECTIONS:
        needed = -(-(kept + MIN_CLIENT_CONNECTIONS) * 16 // 13)
        raise TooFewDescriptorsError(
            f"the limit of open files is {limit}, and this node needs about {needed} ({segments} "
            "of them for log files): raise the limit (ulimit -n, LimitNOFILE), or increase "
            "limits.log_segment_size_bytes"
        )
    more = min(max(0, held_segments - segments), (left - MIN_CLIENT_CONNECTIONS) // 2)
    room, usual = left - more, HttpSettings().max_connections
    watching = min(watchers, max(room - usual, (room - MIN_CLIENT_CONNECTIONS) // 4))
    clients = min(usual, room - watching)
    return Descriptors(limit, clients, watching, watchers, reserve, strangers, segments + more)


def raise_limit() -> int:
    """Allow as many descriptors as the system does, and return how many those are."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted
