"""MessagePack in parts: a large byte string is neither copied nor encoded, but stands by itself."""

from __future__ import annotations

import msgspec

LARGE_PART_BYTES = 8192
"""From here on a byte string is a part of its own; a smaller one costs less where it is copied."""

_BYTES_HEADS = ((0xC4, 1), (0xC5, 2), (0xC6, 4))  # (code, how many bytes its size takes)
_ARRAY_HEADS = ((0xDC, 2), (0xDD, 4))
_SHORT_ARRAY, _MAX_SHORT_ARRAY = 0x90, 15
_encode = msgspec.msgpack.Encoder().encode


def encode_in_parts(value: object) -> list[bytes]:
    """Return the MessagePack of `value`, arrays nested in arrays, in parts in their order."""
    parts: list[bytes] = []
    small = bytearray()

    def add(item: object) -> None:
        if isinstance(item, bytes) and len(item) >= LARGE_PART_BYTES:
            small.extend(_head(len(item), _BYTES_HEADS))
            parts.extend((bytes(small), item))
            small.clear()
        elif isinstance(item, list | tuple):
            is_short = len(item) <= _MAX_SHORT_ARRAY
            small.extend(
                bytes((_SHORT_ARRAY | len(item),)) if is_short else _head(len(item), _ARRAY_HEADS)
            )
            for each in item:
                add(each)
        else:
            small.extend(_encode(item))

    add(value)
    if small:
        parts.append(bytes(small))
    return parts


def struct_in_parts(message: msgspec.Struct) -> list[bytes]:
    """Return the MessagePack of a struct that is a tagged array, in parts."""
    return encode_in_parts((message.__struct_config__.tag, *msgspec.structs.astuple(message)))


def _head(size: int, heads: tuple[tuple[int, int], ...]) -> bytes:
    for code, length in heads:
        if size < 1 << 8 * length:
            return bytes((code,)) + size.to_bytes(length)
    raise ValueError(f"MessagePack has no size of {size}")
