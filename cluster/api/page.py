"""The JSON of a range's page, made a piece at a time: the whole would hold up the event loop."""

from __future__ import annotations

import binascii
from collections.abc import Iterator

import msgspec

from cluster.services.kv import ScanItem

PIECE_SIZE_BYTES = 192 * 1024
"""Of values, before their coding: a multiple of three, which base64 codes by themselves."""


class PageBody:
    """`{"items": [...], "revision": ..., "cursor": ...}`; `length` is its size in bytes."""

    def __init__(self, items: list[ScanItem], revision: int, cursor: str | None) -> None:
        self._heads = [_head(item[0], first=not at) for at, item in enumerate(items)]
        self._tails = [fields_of(*item[2:]) for item in items]
        self._values = [item[1] for item in items]
        self._end = b'],"revision":%d,"cursor":%b}' % (revision, msgspec.json.encode(cursor))
        self.length = len(_START) + len(self._end) + sum(map(len, self._heads + self._tails))
        self.length += sum(_coded_size(value) for value in self._values)

    def pieces(self) -> Iterator[bytes]:
        """Yield the document, once; a piece has less than 2 * PIECE_SIZE_BYTES of values."""
        parts = [_START]
        size_bytes = 0
        for at, (head, tail) in enumerate(zip(self._heads, self._tails, strict=True)):
            value, self._values[at] = self._values[at], None  # what has been sent is not held
            parts.append(head)
            if value is not None:
                parts.append(_VALUE)
                for start in range(0, len(value), PIECE_SIZE_BYTES):
                    part = value[start : start + PIECE_SIZE_BYTES]
                    parts.append(binascii.b2a_base64(part, newline=False))
                    size_bytes += len(part)
                    if size_bytes >= PIECE_SIZE_BYTES:
                        yield b"".join(parts)
                        parts, size_bytes = [], 0
                parts.append(_VALUE_END)
            parts.append(tail)
        parts.append(self._end)
        yield b"".join(parts)


_START = b'{"items":['
_TAIL = b'"revision":%d,"create_revision":%d,"version":%d'
_VALUE, _VALUE_END = b'"value":"', b'",'


def _head(key: bytes, *, first: bool) -> bytes:
    # A key that came in by another way than this API need not be UTF-8.
    name = msgspec.json.encode(key.decode("utf-8", "replace"))
    return (b'{"key":%b,' if first else b',{"key":%b,') % name


def fields_of(revision: int, create_revision: int, version: int, lease: int) -> bytes:
    """Return a key's head as the last members of a JSON object, and its end."""
    tail = _TAIL % (revision, create_revision, version)
    return b'%b,"lease":"%d"}' % (tail, lease) if lease else tail + b"}"


def _coded_size(value: bytes | None) -> int:
    return 0 if value is None else len(_VALUE) + (len(value) + 2) // 3 * 4 + len(_VALUE_END)
