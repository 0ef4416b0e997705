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
    head = _head_of(key)
    begin, end = _tag_in(head)
    return head[begin:end] or head


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
    head = _head_of(start)
    begin, end = _tag_in(head)
    if begin < end:
        return head[: end + 1]
    return head if head.endswith(b"/") else b""


def _head_of(key: bytes) -> bytes:
    return key[: key.find(b"/") + 1] or key


def _tag_in(head: bytes) -> tuple[int, int]:
    """Return where the text of a head's tag begins, and where it ends; (0, 0) without one."""
    begin = head.find(b"{") + 1
    end = head.find(b"}", begin) if begin else 0
    return (begin, end) if begin < end else (0, 0)
