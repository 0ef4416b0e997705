"""Range bounds and the cursors that continue a range.

A cursor is opaque to clients: base64url of a CRC-32, then MessagePack [version, next key, start,
end] with the bounds of the range that it belongs to, so that it works alone or beside the same
parameters, and never continues another range unnoticed. The checksum catches damage, not forgery:
a forged cursor reads what its sender could ask for anyway.
"""

from __future__ import annotations

import base64
import binascii
import zlib

import msgspec

from cluster.api.problems import ProblemError
from datapath.keyspaces import after_prefix

CURSOR_VERSION = 1
_CHECKSUM_SIZE_BYTES = 4


class KeyRange(msgspec.Struct, frozen=True, array_like=True):
    """start <= key < end; `end` None: no upper bound."""

    start: bytes
    end: bytes | None


EVERYTHING = KeyRange(b"", None)


class _Cursor(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    version: int
    next_key: bytes
    start: bytes
    end: bytes | None


_decoder = msgspec.msgpack.Decoder(_Cursor)


def make_bounds(prefix: bytes, start: bytes, end: bytes) -> KeyRange:
    """Return the intersection of a prefix and a range; empty ones do not restrict."""
    low, high = prefix, after_prefix(prefix)
    low = max(low, start)
    if end and (high is None or end < high):
        high = end
    return KeyRange(low, high)


def encode_cursor(next_key: bytes, bounds: KeyRange) -> str:
    """Return the cursor at which `bounds` go on."""
    body = msgspec.msgpack.encode(_Cursor(CURSOR_VERSION, next_key, bounds.start, bounds.end))
    checksum = zlib.crc32(body).to_bytes(_CHECKSUM_SIZE_BYTES)
    return base64.urlsafe_b64encode(checksum + body).rstrip(b"=").decode("ascii")


def decode_cursor(text: str, bounds: KeyRange | None) -> tuple[bytes, KeyRange]:
    """Return the next key and the bounds of the range that the cursor continues.

    `bounds` are what the request says beside the cursor, None if it says nothing. Raises Problem
    "invalid_cursor".
    """
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        checksum, body = data[:_CHECKSUM_SIZE_BYTES], data[_CHECKSUM_SIZE_BYTES:]
        if zlib.crc32(body).to_bytes(_CHECKSUM_SIZE_BYTES) != checksum:
            raise ProblemError("invalid_cursor", "the cursor is damaged: send it back unchanged")
        cursor = _decoder.decode(body)
    except (ValueError, binascii.Error, msgspec.MsgspecError):
        raise ProblemError(
            "invalid_cursor", "this is not a cursor: send back the one from the previous page"
        ) from None
    if cursor.version != CURSOR_VERSION:
        raise ProblemError("invalid_cursor", "the cursor is from another version of onecopy")
    made_for = KeyRange(cursor.start, cursor.end)
    if bounds is not None and bounds != made_for:
        raise ProblemError(
            "invalid_cursor",
            "the cursor belongs to a range with a different prefix, start or end: repeat those "
            "of the first request, or omit all three",
        )
    return cursor.next_key, made_for
