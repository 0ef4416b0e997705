"""NATS's text protocol, as far as its key-value buckets need it: requests and their replies.

A bucket is a stream `KV_NAME` whose subjects are `$KV.NAME.KEY`. Each request names an inbox for
its reply, which its connection has subscribed to; it is rendered with INBOX, and sent with the
inbox of the connection in its place.
"""

from __future__ import annotations

import json
import secrets
from typing import NamedTuple

BUCKET = "bench"
STREAM = f"KV_{BUCKET}"
INBOX = b"_INBOX.000000000000"
_CONTROL = (b"INFO ", b"PING\r\n", b"PONG\r\n", b"+OK\r\n")
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


class Received(NamedTuple):
    """The message that has come, None while it is incomplete; what is left; whether to PONG."""

    content: bytes | None
    rest: bytes
    pinged: bool


def receive(data: bytes) -> Received:
    """Take one message, and the lines before and behind it that are none.

    Raises ValueError for what is no message, or more than one.
    """
    data, pinged = _without_control(data)
    content, data = _message(data)
    if content is not None:
        data, pinged_behind = _without_control(data)
        pinged |= pinged_behind
        if data.startswith(b"MSG "):
            raise ValueError("superfluous bytes")
    return Received(content, data, pinged)


def _without_control(data: bytes) -> tuple[bytes, bool]:
    pinged = False
    while data.startswith(_CONTROL):
        line, ended, rest = data.partition(b"\r\n")
        if not ended:
            break
        pinged |= line == b"PING"
        data = rest
    return data, pinged


def _message(data: bytes) -> tuple[bytes | None, bytes]:
    line, ended, rest = data.partition(b"\r\n")
    if not ended and any(word.startswith(line[:4]) for word in (b"MSG ", *_CONTROL)):
        return None, data
    if not line.startswith(b"MSG "):
        raise ValueError(data[:80].decode(errors="replace"))
    size = int(line.rpartition(b" ")[2])
    if len(rest) < size + 2:
        return None, data
    return rest[:size], rest[size + 2 :]
