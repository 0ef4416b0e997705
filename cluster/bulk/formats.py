"""Records in files: NDJSON and TSV in, NDJSON out."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from typing import Literal, NamedTuple

import msgspec

from cluster.client.arguments import KEY_MAX_BYTES

Format = Literal["ndjson", "tsv"]
FORMATS: tuple[Format, ...] = ("ndjson", "tsv")


class DumpRecord(NamedTuple):
    """A key and its value."""

    key: str
    value: bytes


BOM = b"\xef\xbb\xbf"
"""What some programs put before the text of a file in UTF-8. It is no part of the first key."""
_OTHER_ENCODINGS = (b"\xff\xfe", b"\xfe\xff")  # UTF-16's marks, and the first half of UTF-32's


def without_mark(line: bytes, number: int) -> bytes:
    """Return a line without the byte order mark, which the first may begin with.

    Raises RecordError for one elsewhere (files that were joined), and for other encodings' marks.
    """
    if not line.startswith((BOM, *_OTHER_ENCODINGS)):
        return line
    if not line.startswith(BOM):
        if number > 1:
            return line  # whoever parses it says that it is not UTF-8
        raise RecordError(
            "the file is UTF-16 or UTF-32, not UTF-8: convert it first, with iconv -f UTF-16 -t "
            "UTF-8"
        )
    if number > 1:
        raise RecordError(
            "the line begins with a byte order mark, perhaps because files were joined: remove "
            "the three bytes EF BB BF"
        )
    return line.removeprefix(BOM)


class RecordError(ValueError):
    """A line that is no record. `str(error)` says why, without the line number."""


class _Line(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One line of NDJSON. `revision` is what dump writes; load does not use it."""

    key: str
    value: str | None = None
    value_base64: str | None = None
    revision: int | None = None


_decode_line = msgspec.json.Decoder(_Line).decode
_encode_line = msgspec.json.Encoder().encode


def parse_ndjson(line: bytes) -> DumpRecord:
    """Read `{"key": …, "value": …}` or `{"key": …, "value_base64": …}`. Raises RecordError."""
    try:
        found = _decode_line(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RecordError(str(error)) from None
    if (found.value is None) == (found.value_base64 is None):
        raise RecordError('give "value" or "value_base64"')
    if found.value is not None:
        return _checked(found.key, found.value.encode())
    try:
        return _checked(found.key, base64.b64decode(found.value_base64 or "", validate=True))
    except binascii.Error as error:
        raise RecordError(f"value_base64: {error}") from None


def parse_tsv(line: bytes) -> DumpRecord:
    """Read key, tab, value (the rest of the line, tabs and all). Raises RecordError."""
    key, tab, value = line.partition(b"\t")
    if not tab:
        raise RecordError("no tab between key and value")
    try:
        return _checked(key.decode(), value)
    except UnicodeDecodeError:
        raise RecordError("the key is not UTF-8") from None


def _checked(key: str, value: bytes) -> DumpRecord:
    size = len(key) if key.isascii() else len(key.encode())
    if not 1 <= size <= KEY_MAX_BYTES:
        raise RecordError(f"a key must have 1 to {KEY_MAX_BYTES} bytes; this one has {size}")
    return DumpRecord(key, value)


PARSERS: dict[Format, Callable[[bytes], DumpRecord]] = {"ndjson": parse_ndjson, "tsv": parse_tsv}


def detect_format(name: str, first_line: bytes) -> Format:
    """Tell the format by the file's name, else by its first line."""
    if name.endswith((".tsv", ".tab")):
        return "tsv"
    if name.endswith((".ndjson", ".jsonl", ".json")):
        return "ndjson"
    return "ndjson" if first_line.removeprefix(BOM).lstrip().startswith(b"{") else "tsv"


def format_line(key: str, value: bytes, revision: int) -> bytes:
    """Return the line of NDJSON, its line break included."""
    try:
        line = _Line(key=key, value=value.decode(), revision=revision)
    except UnicodeDecodeError:
        text = base64.b64encode(value).decode()
        line = _Line(key=key, value_base64=text, revision=revision)
    return _encode_line(line) + b"\n"
