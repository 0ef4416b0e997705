"""How hard a shared secret is to guess, roughly and from below.

Whoever records a handshake can try secrets against it at leisure, so one that nodes use over a
network has to come from a random generator. This tells such secrets from typed ones: it counts what
each character adds that those before it did not announce. Random text passes from about 16
characters on; words, keyboard rows, runs and repetitions do not add up.
"""

from __future__ import annotations

import re
from math import log2

MIN_SECRET_BITS = 56
_WORD_BITS = 1.5  # a character of a phrase with a word that everybody tries first
_PHRASE_BITS = 2.0  # a character of text in letters of one case
_COMMON = re.compile(
    r"p[a4@][s5$]{2}w[o0]rd|s[e3]cr[e3]t|change|onecopy|cluster|letmein|welcome|example|default"
    r"|master|qwerty|monkey|dragon|please|\b(?:admin|root|test|token|demo|hello)\b"
)
_CLASSES = (("[0-9]", 10), ("[a-z]", 26), ("[A-Z]", 26), ("[^0-9A-Za-z]", 32))
_ROWS = ("qwertyuiopasdfghjklzxcvbnm", "abcdefghijklmnopqrstuvwxyz", "01234567890abcdef")


def estimated_bits(secret: bytes) -> float:
    """Return a cautious estimate of the secret's entropy."""
    text = _once(secret.decode("latin-1"))
    per_character = _bits_per_character(text)
    seen: set[str] = set()
    bits = 0.0
    lower = text.lower()
    for previous, character in zip(" " + lower, lower, strict=False):
        pair = previous + character
        if pair not in seen and not _follows(previous, character):
            bits += per_character
        seen.add(pair)
    return bits


def _once(text: str) -> str:
    """Return the part of a repetition that is repeated."""
    for size in range(1, len(text) // 2 + 1):
        if (text[:size] * (len(text) // size + 1))[: len(text)] == text:
            return text[:size]
    return text


def _bits_per_character(text: str) -> float:
    if _COMMON.search(text.lower()):
        return _WORD_BITS
    if re.fullmatch(r"[^0-9A-Z]*|[^0-9a-z]*", text) and not re.search(r"[^\x20-\x7e]", text):
        return _PHRASE_BITS
    if re.fullmatch(r"[0-9A-Fa-f]+", text):
        return 4.0 if re.search(r"[A-Fa-f]", text) else log2(10)
    if not re.search(r"[A-Za-z\x80-\xff]", text):
        return log2(10)  # a date, a telephone number
    return log2(sum(size for pattern, size in _CLASSES if re.search(pattern, text)))


def _follows(previous: str, character: str) -> bool:
    """Whether a character repeats the one before, or is its neighbour in a well-known row."""
    pair = previous + character
    return previous == character or any(pair in row or pair in row[::-1] for row in _ROWS)
