"""The request lines of one API that the fast path serves, and what each asks for by itself.

Clients repeat their lines, so those are kept: what stands in one is read once. What else decides
about a request is asked with each: its fields, its caller and their rights, the key's group.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import msgspec

from cluster.api.kv import KeyRead
from cluster.api.params import PutOptions, WriteOptions

_MAX_LINES = 2048
_MAX_KEPT_LINE_BYTES = 256


class PlainLine(msgspec.Struct, frozen=True, gc=False):
    """A request line that is plain.

    One of a key has one of `read`, `put` and `delete`. `read` is what it asks for if no field
    changes that, and for no caller.
    """

    method: str
    target: str
    key: bytes = b""
    read: KeyRead | None = None
    put: PutOptions | None = None
    delete: WriteOptions | None = None


class PlainLines(dict[bytes, PlainLine | None]):
    """What each line is, without its end; None: it is not plain.

    `pattern` is the form of plain lines; `read` makes one of (method, target), or None.
    """

    def __init__(
        self, pattern: re.Pattern[bytes], read: Callable[[str, str], PlainLine | None]
    ) -> None:
        super().__init__()
        self._pattern = pattern
        self._read = read

    def __missing__(self, line: bytes) -> PlainLine | None:
        """Read a line that is not kept."""
        if self._pattern.fullmatch(line) is None:
            return None
        method, target, _ = line.decode().split(" ")
        known = self._read(method, target)
        if known is not None and len(line) <= _MAX_KEPT_LINE_BYTES:
            if len(self) >= _MAX_LINES:
                self.clear()
            self[line] = known
        return known
