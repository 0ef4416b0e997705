"""Which slot a key belongs to: fixed for the life of a deployment, and the same in every client.

    head       the key up to and including its first "/"; the whole key without one
    partition  what stands in the head between the first "{" and the next "}", if that is something;
               else the head
    slot       CRC-32 of the partition's bytes (zlib's), modulo SLOTS

So all keys below a prefix have one partition if the prefix contains a "/", or a whole {tag} before
any. Names of locks and elections have slots as keys have.
"""

from __future__ import annotations

import zlib

from datapath.keyspaces import covers

SLOTS = 4096


def partition_of(key: bytes) -> bytes:
    """Return the part of a key that decides its slot."""
    head = key[: key.find(b"/") + 1] or key
    tag_at = head.find(b"{") + 1
    if tag_at:
        tag_end = head.find(b"}", tag_at)
        if tag_end > tag_at:
            return head[tag_at:tag_end]
    return head


def slot_of(key: bytes) -> int:
    """Return the slot of a key, or of a lock's name."""
    return zlib.crc32(partition_of(key)) % SLOTS


def slot_of_range(start: bytes, end: bytes | None) -> int | None:
    """Return the slot of all keys with start <= key < end (None: no bound); None: of several."""
    if end == start + b"\0":
        return slot_of(start)
    fixed = _fixing_prefix(start)
    return slot_of(start) if fixed and covers(fixed, start, end) else None


def _fixing_prefix(start: bytes) -> bytes:
    """Return the shortest prefix of `start` below which all keys have one partition, or b""."""
    head, slash, _ = start.partition(b"/")
    tag_at = head.find(b"{") + 1
    tag_end = head.find(b"}", tag_at) if tag_at else -1
    if tag_end > tag_at:
        return head[: tag_end + 1]
    return head + slash if slash else b""
