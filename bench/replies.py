"""Replies parsed as little as a check allows: whole, successful, as long as they say.

`check_http` and `check_redis` take what has arrived on a connection with one request under way, and
return None while the reply is incomplete, else "" for a success, or the kind of error.
"""

from __future__ import annotations

from bench.render import Request

MALFORMED = "malformed reply"
WRONG_LENGTH = "wrong length"
NOT_DONE = "answered, but not done"
SUPERFLUOUS = "superfluous bytes"


def check_http(data: bytes, request: Request) -> str | None:
    """Check a reply of HTTP/1.1 with Content-Length or chunks."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return None if len(data) < 65536 else MALFORMED
    if not data.startswith(b"HTTP/1.1 "):
        return MALFORMED
    at = data.find(b"Content-Length: ", 0, end)
    if at < 0:
        return _check_chunked(data, end, request)
    close = data.find(b"\r", at)
    length = int(data[at + 16 : close])
    missing = end + 4 + length - len(data)
    if missing > 0:
        return None
    if missing < 0:
        return SUPERFLUOUS
    status = data[9:12]
    if status not in {b"200", b"201"}:
        return "status " + status.decode(errors="replace")
    if request.body_bytes not in {-1, length}:
        return WRONG_LENGTH
    return "" if request.holds in data else NOT_DONE


def _check_chunked(data: bytes, end: int, request: Request) -> str | None:
    head = data[:end].lower()
    if b"content-length: " in head or b"transfer-encoding: chunked" not in head:
        return MALFORMED
    position, length = end + 4, 0
    while True:
        line = data.find(b"\r\n", position)
        if line < 0:
            return None
        size = int(data[position:line], 16)
        position = line + 4 + size
        if len(data) < position:
            return None
        if size == 0:
            break
        length += size
    if len(data) > position:
        return SUPERFLUOUS
    status = data[9:12]
    if status not in {b"200", b"201"}:
        return "status " + status.decode(errors="replace")
    if request.body_bytes not in {-1, length}:
        return WRONG_LENGTH
    return "" if request.holds in data else NOT_DONE


def etag_of(data: bytes) -> bytes:
    """Return the ETag of a reply, quotes and all; empty if it has none."""
    at = data.find(b"ETag: ")
    return b"" if at < 0 else data[at + 6 : data.find(b"\r", at)]


def check_redis(data: bytes, request: Request, copies: int) -> str | None:
    """Check the reply to SET (and the WAIT sent with it), or to GET."""
    if not data.endswith(b"\r\n"):
        return None
    if data[:1] == b"-":
        return "error " + data[1:12].partition(b" ")[0].decode(errors="replace")
    if request.write:
        if not copies:
            return "" if data == b"+OK\r\n" else MALFORMED
        first, _, second = data.partition(b"\r\n")
        if not second:
            return None
        if first != b"+OK" or second[:1] != b":":
            return MALFORMED
        return "" if int(second[1:-2]) >= copies else "too few copies"
    if data[:1] != b"$":
        return MALFORMED
    line, _, rest = data.partition(b"\r\n")
    size = int(line[1:])
    if size < 0:
        return "no such key"
    if len(rest) < size + 2:
        return None
    return "" if size == request.body_bytes else WRONG_LENGTH


def check_nats(content: bytes, request: Request) -> str:
    """Check what a reply holds: to a write the number in the stream, to a read the value."""
    if b'"error":' in content:
        return "error " + content.partition(b'"description":"')[2][:40].decode(errors="replace")
    return "" if request.holds in content else NOT_DONE
