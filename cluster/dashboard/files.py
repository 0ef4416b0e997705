"""The dashboard: plain HTML, CSS and ES modules, as they stand in `static`. Nothing is built.

They are drawn from the HTTP API alone, and load nothing from elsewhere.
"""

from __future__ import annotations

import functools
import hashlib
from importlib import resources
from typing import NamedTuple

INDEX = "index.html"

_TYPES = {
    "html": b"text/html; charset=utf-8",
    "css": b"text/css; charset=utf-8",
    "js": b"text/javascript; charset=utf-8",
    "svg": b"image/svg+xml",
}


class StaticFile(NamedTuple):
    """One file. `etag` is in its quotes."""

    body: bytes
    content_type: bytes
    etag: bytes


@functools.cache
def load_files() -> dict[str, StaticFile]:
    """Return all files by their names."""
    found = {}
    for item in (resources.files("cluster.dashboard") / "static").iterdir():
        content_type = _TYPES.get(item.name.rpartition(".")[2])
        if content_type is not None:
            body = item.read_bytes()
            etag = b'"%b"' % hashlib.sha256(body).hexdigest()[:32].encode()
            found[item.name] = StaticFile(body, content_type, etag)
    return found
