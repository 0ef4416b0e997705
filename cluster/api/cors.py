"""Answers that web pages of other origins may read (CORS): those that the configuration names.

Whether such a page may send a request at all is for `cluster.api.hosts` to say. No cookie and no
other credential of the browser's own is ever asked for: a page sends its token itself.
"""

from __future__ import annotations

from aiohttp import hdrs

from cluster.api.answer import Answer
from cluster.api.headers import Headers
from cluster.api.hosts import Hosts

MAX_AGE_S = 600
"""How long a browser may keep what a preflight was answered."""

_PREFLIGHT = (
    b"Access-Control-Allow-Methods: GET, HEAD, PUT, POST, PATCH, DELETE\r\n"
    b"Access-Control-Allow-Headers: Authorization, Content-Type, If-Match, If-None-Match, If-Lock, "
    b"Idempotency-Key, Idempotency-After, Last-Event-ID, Onecopy-Cluster\r\n"
    b"Access-Control-Max-Age: %d\r\n" % MAX_AGE_S
)
_EXPOSED = (
    b"Access-Control-Expose-Headers: ETag, Idempotent-Replayed, Onecopy-Cluster, "
    b"Onecopy-Create-Revision, Onecopy-Epoch, Onecopy-Key-Version, Onecopy-Lease, Onecopy-Node, "
    b"Onecopy-Revision, Retry-After\r\n"
)


def preflight(method: str, headers: Headers, hosts: Hosts) -> Answer | None:
    """Return the answer to a browser that asks before it sends; None: it is no such request."""
    asks = method == "OPTIONS" and hdrs.ACCESS_CONTROL_REQUEST_METHOD in headers
    if not asks or not hosts.allows_origin(headers.get(hdrs.ORIGIN)):
        return None
    return Answer(204, None, headers=_PREFLIGHT)


def let_read(answer: Answer, headers: Headers, hosts: Hosts) -> None:
    """Let the page that sent a request read its answer, if its origin is named."""
    origin = headers.get(hdrs.ORIGIN)
    if origin is not None and hosts.allows_origin(origin):
        lines = b"Access-Control-Allow-Origin: %b\r\nVary: Origin\r\n" % origin.encode("ascii")
        answer.add_headers(lines + _EXPOSED)
