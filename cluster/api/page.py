"""A range's page, made a piece at a time: the whole would hold up the event loop.

Its document is `cluster.api.documents.Range`, as JSON or, for who accepts that, as MessagePack:
there a value is its own bytes, in JSON it is base64.
"""

from __future__ import annotations

import binascii
from collections.abc import Callable, Iterator

import msgspec
from msgspec import UNSET

from cluster.api.answer import JSON, MSGPACK
from cluster.api.documents import RangeItem
from cluster.services.kv import ScanItem

PIECE_SIZE_BYTES = 192 * 1024
"""Of values, before their coding: a multiple of three, which base64 codes by themselves."""

_Row = tuple[bytes, bytes | None, bytes]
"""A key's item: what comes before its value, the value, and what comes behind it."""


class PageBody:
    """A page's document in its form; `length` is its size in bytes."""

    def __init__(
        self, items: list[ScanItem], revision: int, cursor: str | None, *, binary: bool = False
    ) -> None:
        self.content_type = MSGPACK if binary else JSON
        self._code: Callable[[bytes], bytes] = bytes if binary else _base64
        form = _msgpack if binary else _json
        self._start, self._rows, self._end = form(items, revision, cursor)
        self.length = len(self._start) + len(self._end)
        for head, value, tail in self._rows:
            size_bytes = len(value or b"")
            self.length += len(head) + len(tail)
            self.length += size_bytes if binary else (size_bytes + 2) // 3 * 4

    def pieces(self) -> Iterator[bytes]:
        """Yield the document, once; a piece has less than 2 * PIECE_SIZE_BYTES of values."""
        parts = [self._start]
        size_bytes = 0
        for at, (head, value, tail) in enumerate(self._rows):
            self._rows[at] = _SENT  # what has been sent is not held
            parts.append(head)
            if value is not None:
                for start in range(0, len(value), PIECE_SIZE_BYTES):
                    part = value[start : start + PIECE_SIZE_BYTES]
                    parts.append(self._code(part))
                    size_bytes += len(part)
                    if size_bytes >= PIECE_SIZE_BYTES:
                        yield b"".join(parts)
                        parts, size_bytes = [], 0
            parts.append(tail)
        parts.append(self._end)
        yield b"".join(parts)


_SENT: _Row = (b"", None, b"")


# --- JSON ---

_TAIL = b'"revision":%d,"create_revision":%d,"version":%d'


def _json(
    items: list[ScanItem], revision: int, cursor: str | None
) -> tuple[bytes, list[_Row], bytes]:
    """Return a page's start, its items and its end."""
    rows: list[_Row] = []
    for key, value, *numbers in items:
        comma = b"," if rows else b""
        head = b'%b{"key":%b,' % (comma, msgspec.json.encode(text_of(key)))
        tail = fields_of(*numbers)
        if value is None:
            rows.append((head, None, tail))
        else:
            rows.append((head + b'"value":"', value, b'",' + tail))
    end = b'],"revision":%d,"cursor":%b}' % (revision, msgspec.json.encode(cursor))
    return b'{"items":[', rows, end


def fields_of(revision: int, create_revision: int, version: int, lease: int) -> bytes:
    """Return a key's head as the last members of a JSON object, and its end."""
    tail = _TAIL % (revision, create_revision, version)
    return b'%b,"lease":"%d"}' % (tail, lease) if lease else tail + b"}"


def _base64(value: bytes) -> bytes:
    return binascii.b2a_base64(value, newline=False)


def text_of(key: bytes) -> str:
    """Return a key as text: one that came in by another way than this API need not be UTF-8."""
    return key.decode("utf-8", "replace")


# --- MessagePack ---

_encode = msgspec.msgpack.Encoder().encode
_FIXMAP, _ARRAY_32 = 0x80, b"\xdd"
_BYTES_8, _BYTES_16, _BYTES_32 = b"\xc4", b"\xc5", b"\xc6"


def _msgpack(
    items: list[ScanItem], revision: int, cursor: str | None
) -> tuple[bytes, list[_Row], bytes]:
    """Return a page's start, its items, whose values come last, and its end."""
    value_name = _encode("value")
    rows: list[_Row] = []
    for key, value, item_revision, create_revision, version, lease in items:
        head = _encode(
            RangeItem(
                key=text_of(key),
                revision=item_revision,
                create_revision=create_revision,
                version=version,
                lease=str(lease) if lease else UNSET,
            )
        )
        if value is not None:  # one field more
            head = b"%c%b%b%b" % (head[0] + 1, head[1:], value_name, _bytes_head(len(value)))
        rows.append((head, value, b""))
    start = b"%c%b%b%b" % (_FIXMAP + 3, _encode("items"), _ARRAY_32, len(rows).to_bytes(4))
    end = b"".join(_encode(part) for part in ("revision", revision, "cursor", cursor))
    return start, rows, end


def _bytes_head(size_bytes: int) -> bytes:
    """Return MessagePack's head of so many bytes."""
    if size_bytes < 2**8:
        return _BYTES_8 + size_bytes.to_bytes(1)
    if size_bytes < 2**16:
        return _BYTES_16 + size_bytes.to_bytes(2)
    return _BYTES_32 + size_bytes.to_bytes(4)
