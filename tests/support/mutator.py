"""Bytes as a fuzzer sends them: what was recorded, changed in a few places by a seeded chance."""

from __future__ import annotations

from random import Random

WORDS = (
    b"", b"\0", b"\xff" * 4, b"\xff\xff\xff\x7f", b"\x80", b"%00", b"%ff", b"../",
    b"\r\n", b"\r\n\r\n", b"{", b"[" * 200, b'"', b"9" * 400, b"-1", b"\xc1",
    b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xed\xa0\x80",
    b"Transfer-Encoding: chunked\r\n", b"Content-Length: 18446744073709551616\r\n",
)  # fmt: skip
MAX_SIZE_BYTES = 256 * 1024


def mutated(data: bytes, random: Random) -> bytes:
    """Return `data` with one to four changes: flipped, cut, doubled, moved or strange bytes."""
    changed = bytearray(data)
    for _ in range(random.randint(1, 4)):
        at = random.randrange(len(changed) + 1)
        end = min(len(changed), at + random.choice((1, 2, 4, 16, 200)))
        match random.choice(("flip", "word", "cut", "double", "end", "move")):
            case "flip" if at < len(changed):
                changed[at] ^= 1 << random.randrange(8)
            case "cut":
                del changed[at:end]
            case "double":
                changed[at:at] = changed[at:end] * random.choice((1, 2, 50))
            case "end":
                del changed[at:]
            case "move":
                piece = changed[at:end]
                del changed[at:end]
                to = random.randrange(len(changed) + 1)
                changed[to:to] = piece
            case _:
                changed[at:at] = random.choice(WORDS)
    return bytes(changed[:MAX_SIZE_BYTES])
