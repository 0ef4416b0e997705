"""The heads that the fast path serves: those that have one meaning only.

A request line of `PLAIN`'s form (`plain_line`), then fields that are well-formed, stand there once,
and change nothing of how the request is framed. Whatever else comes is the full path's to judge.
"""

from __future__ import annotations

import re

import msgspec
from aiohttp import hdrs
from multidict import CIMultiDict, CIMultiDictProxy, istr

from cluster.api.headers import CLUSTER, IDEMPOTENCY_AFTER, IDEMPOTENCY_KEY, IF_LOCK, Headers

_MAX_FIELDS = 128  # in one head, as on the full path, which refuses more
_MAX_BLOCKS = 512

KEYS = "/v1/kv/"
LEASES_PATH, KEEP_ALIVE = "/v1/leases/", "/keepalive"
PLAIN = re.compile(
    rb"(?:(?:PUT|GET|DELETE) /v1/kv/[-A-Za-z0-9._~%!$&'()*+,;=:@/]+"
    rb"|POST /v1/leases/[0-9]{1,20}/keepalive)"
    rb"(?:\?[-A-Za-z0-9._~%!$&'()*+,;=:@/?]*)? HTTP/1\.1"
)
# No two parts of it can match the same bytes: a stranger's field is read in one pass.
_FIELD = re.compile(rb"([-A-Za-z0-9_]+):([\t\x20-\x7e]*)")
_LENGTH = re.compile(rb"[0-9]{1,6}")

# Framing, hop-by-hop, content codings, what browsers say of pages, groups by their names: the full
# path's business.
_NOT_PLAIN = frozenset(
    b"content-encoding content-range expect keep-alive origin proxy-connection sec-fetch-mode "
    b"sec-fetch-site te trailer transfer-encoding upgrade http2-settings onecopy-group "
    b"onecopy-relayed".split()
)
_CONDITIONS = frozenset(
    name.lower().encode()
    for name in (
        hdrs.IF_MATCH,
        hdrs.IF_NONE_MATCH,
        IDEMPOTENCY_KEY,
        IDEMPOTENCY_AFTER,
        IF_LOCK,
    )
)
_AUTHORIZATION, _CLUSTER = hdrs.AUTHORIZATION.lower().encode(), CLUSTER.lower().encode()
_NO_HEADERS: Headers = CIMultiDictProxy(CIMultiDict())


class HeaderBlock(msgspec.Struct, frozen=True):
    """A head's fields: the body's size, the host, and those fields that change what is done.

    `headers` are the conditions, what makes a repeat known, and a lock. `authorization` and
    `cluster` are the values of those fields, None without them: a client says the same in each.
    """

    body_size_bytes: int
    host: str
    headers: Headers
    authorization: str | None
    cluster: str | None


class HeaderBlocks(dict[bytes, HeaderBlock | None]):
    """What a head's fields say, each ending in CR LF; None: they are not plain.

    A client sends the same ones with each request, its token and the cluster's id among them, but
    for idempotency keys and conditions: those without these are kept.
    """

    def __missing__(self, fields: bytes) -> HeaderBlock | None:
        """Read fields that are not kept."""
        block = _parse_block(fields)
        if block is not None and not block.headers:
            if len(self) >= _MAX_BLOCKS:
                self.clear()
            self[fields] = block
        return block


blocks = HeaderBlocks()


def _parse_block(fields: bytes) -> HeaderBlock | None:
    seen: set[bytes] = set()
    size, host = 0, ""
    authorization = cluster = None
    headers: CIMultiDict[str] | None = None
    lines = fields.split(b"\r\n")[:-1]
    if len(lines) > _MAX_FIELDS:
        return None
    for line in lines:
        field = _FIELD.fullmatch(line)
        if field is None:
            return None
        name, value = field[1].lower(), field[2].strip(b" \t")
        if name in seen or name in _NOT_PLAIN or b"\t" in value:
            return None
        seen.add(name)
        if name == b"connection":
            if value.lower() != b"keep-alive":  # what HTTP/1.1 does anyway, said by many clients
                return None
        elif name == b"content-length":
            if not _LENGTH.fullmatch(value):
                return None
            size = int(value)
        elif name == b"host":
            host = value.decode()
        elif name == _AUTHORIZATION:
            authorization = value.decode()
        elif name == _CLUSTER:
            if not value:
                return None
            cluster = value.decode()
        elif name in _CONDITIONS:
            headers = headers if headers is not None else CIMultiDict()
            headers[istr(name.decode())] = value.decode()
    if not host:
        return None
    kept = _NO_HEADERS if headers is None else CIMultiDictProxy(headers)
    return HeaderBlock(size, host, kept, authorization, cluster)
