"""NATS's text protocol, as far as its key-value buckets need it: requests and their replies.

A bucket is a stream `KV_NAME` whose subjects are `$KV.NAME.KEY`. Each request names an inbox for
its reply, which its connection has subscribed to; it is rendered with INBOX, and sent with the
inbox of the connection in its place.
"""

from __future__ import annotations

import json
import secrets

BUCKET = "bench"
STREAM = f"KV_{BUCKET}"
INBOX = b"_INBOX.000000000000"
READ_SUBJECT = f"$JS.API.STREAM.MSG.GET.{STREAM}"
"""Answered by the stream's leader. (`$JS.API.DIRECT.GET` is answered by any replica.)"""


def new_inbox() -> bytes:
    """Return an inbox of a connection, as long as INBOX."""
    return b"_INBOX." + secrets.token_hex(6).encode()


def greeting(inbox: bytes) -> bytes:
    """Return what a client sends first."""
    options = json.dumps({"verbose": False, "pedantic": False, "headers": True}).encode()
    return b"CONNECT %b\r\nSUB %b 1\r\n" % (options, inbox)


def publish(subject: str, content: bytes, inbox: bytes = INBOX) -> bytes:
    """Return a request: a message whose reply goes to the inbox."""
    return b"PUB %b %b %d\r\n%b\r\n" % (subject.encode(), inbox, len(content), content)


def put(key: str, content: bytes) -> bytes:
    """Return the request that stores a key."""
    return publish(f"$KV.{BUCKET}.{key}", content)


def get(key: str) -> bytes:
    """Return the request that reads a key at the stream's leader."""
    return publish(READ_SUBJECT, json.dumps({"last_by_subj": f"$KV.{BUCKET}.{key}"}).encode())


def without_control(data: bytes) -> tuple[bytes, bool]:
    """Return what follows the leading lines that are no messages, and whether one was a PING."""
    pinged = False
    while data.startswith((b"INFO ", b"PING\r\n", b"PONG\r\n", b"+OK\r\n")):
        line, ended, rest = data.partition(b"\r\n")
        if not ended:
            break
        pinged |= line == b"PING"
        data = rest
    return data, pinged


def message(data: bytes) -> bytes | None:
    """Return the content of the message that data is, None while it is incomplete.

    Raises ValueError for what is no message, or more than one.
    """
    line, ended, rest = data.partition(b"\r\n")
    if not ended and b"MSG ".startswith(line[:4]):
        return None
    if not line.startswith(b"MSG "):
        raise ValueError(data[:80].decode(errors="replace"))
    size = int(line.rpartition(b" ")[2])
    if len(rest) < size + 2:
        return None
    if len(rest) > size + 2:
        raise ValueError("superfluous bytes")
    return rest[:size]
