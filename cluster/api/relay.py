"""Passes a request on to the group that owns its keys, and its answer back (G4 to G7).

What is passed on, and what an answer proves, `cluster.groups.relay` decides. A relayed request
bears its client's token, no certificate, and a mark; the mark takes rights away and gives none.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Mapping, Sequence
from urllib.parse import quote

import aiohttp
import msgspec
from aiohttp import hdrs
from aiohttp.web import BaseRequest
from yarl import URL

from cluster.api.answer import LARGE_ANSWER_SIZE_BYTES, TOO_MUCH_HELD, Answer, server_of
from cluster.api.body import read_body
from cluster.api.certificate_name import certificate_name
from cluster.api.cursor import EVERYTHING, decode_cursor, make_bounds
from cluster.api.headers import (
    CLUSTER,
    GROUP,
    IDEMPOTENCY_AFTER,
    IDEMPOTENCY_KEY,
    IF_LOCK,
    RELAYED,
    REVISION,
    Headers,
    check_put_headers,
)
from cluster.api.hosts import split_target
from cluster.api.params import (
    AFTER_TOKEN_PARAMS,
    DEFAULT_WAIT_MS,
    MAX_WAIT_MS,
    RANGE_PARAMS,
    decode_key,
    decode_name,
    split_query,
    waits_for_change,
)
from cluster.api.problems import ProblemError
from cluster.api.settings import HttpSettings
from cluster.client.sessions import explain_tls, make_session, make_tls
from cluster.groups.relay import (
    Asking,
    Came,
    as_reached,
    conclude,
    in_order,
    refusal_to_relay,
)
from cluster.services.leases import LEASES_SERVICE
from datapath.operations import Operation, Query

MAX_RELAYED = 512
"""Requests that a node passes on at once."""
RELAY_CONNECT_TIMEOUT_S = 1.0
READ_TRY_TIMEOUT_S = 2.0
"""A node that takes a read and does not answer costs so much; a change is asked of no other."""
RELAY_MARGIN_S = 0.2
"""So much later than the group would say so, a request that has no answer is given up."""

_READS = frozenset({hdrs.METH_GET, hdrs.METH_HEAD})
_ASKED = (
    hdrs.ACCEPT, hdrs.AUTHORIZATION, hdrs.CONTENT_TYPE, hdrs.IF_MATCH, hdrs.IF_NONE_MATCH,
    IF_LOCK, IDEMPOTENCY_KEY, IDEMPOTENCY_AFTER, GROUP,
)  # fmt: skip
_TOLD = (
    "Allow", "Accept", "Accept-Encoding", hdrs.CACHE_CONTROL, hdrs.ETAG, hdrs.LOCATION,
    hdrs.RETRY_AFTER, hdrs.WWW_AUTHENTICATE, "Idempotent-Replayed", "Onecopy-Create-Revision",
    "Onecopy-Epoch", "Onecopy-Key-Version", "Onecopy-Lease", "Onecopy-Node", REVISION,
)  # fmt: skip
_PRINTABLE = "".join(map(chr, range(0x21, 0x7F)))


class _Waits(msgspec.Struct, frozen=True):
    """What a body may say of how long its answer may take."""

    wait_ms: int = 0


class _Told(msgspec.Struct, frozen=True):
    """What a problem says of a change."""

    outcome: str = ""


class _Request(msgspec.Struct, frozen=True):
    """What is sent to the group, to whichever endpoint.

    `is_asked_once`: the first endpoint that takes it has all the time.
    """

    method: str
    target: str
    headers: Sequence[tuple[str, str]]
    body: bytes
    changes: bool
    is_asked_once: bool
    until_s: float


def asked_in_head(template: str, name: str, query: str) -> Operation | Query | None:
    """Return what names the keys, the lock or the lease that a request's head does; None: none.

    A transaction's stand in its body. Raises Problem.
    """
    match template:
        case "/v1/kv/{key}":
            key = decode_key(name)
        case "/v1/locks/{name}" | "/v1/elections/{name}":
            key = decode_name(name)
        case "/v1/kv":
            values, _ = split_query(query, RANGE_PARAMS)
            given = tuple(values.get(field, b"") for field in ("prefix", "start", "end"))
            bounds = make_bounds(*given) if any(given) else EVERYTHING
            if "cursor" in values and not any(given):
                bounds = decode_cursor(values["cursor"], None)[1]
            return Query("range", (bounds.start, bounds.end))
        case "/v1/leases/{id}" | "/v1/leases/{id}/keepalive" if name.isdecimal():
            return Operation("look_up", (int(name),), service=LEASES_SERVICE)
        case _:
            return None
    return Query("range", (key, key + b"\0"))


class GroupRelay:
    """One node's. `cacert`: the file of the authority of all groups' nodes; "": it has no TLS."""

    def __init__(self, settings: HttpSettings, cacert: str = "") -> None:
        self._settings = settings
        self._cacert = cacert
        self._trusted: ssl.SSLContext | bool | None = None  # of `_cacert`; None: not read yet
        self._session: aiohttp.ClientSession | None = None
        self._worked: dict[str, str] = {}  # by the group
        self.under_way = 0
        self.relayed_total = 0

    def renew(self, cacert: str) -> None:
        """Trust what the file of the authority holds now, on new connections."""
        self._cacert, self._trusted = cacert, None

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def relay(
        self,
        request: BaseRequest,
        template: str,
        query: str,
        refused: ProblemError,
        identity: bytes,
        *,
        body: bytes | None = None,
        access_on: bool,
    ) -> Answer:
        """Return the answer of the group that `refused` names.

        `body`: the request's, if it was read. Raises Problem: `refused`, or another.
        """
        headers, changes = request.headers, request.method not in _READS
        asking = Asking(
            template,
            changes,
            RELAYED in headers,
            access_on
            and hdrs.AUTHORIZATION not in headers
            and bool(certificate_name(request.transport)),
            headers.get(GROUP, ""),
            IDEMPOTENCY_AFTER in headers,
        )
        why = refusal_to_relay(asking)
        if not refused.endpoints or why == "":
            raise refused
        if self.under_way >= MAX_RELAYED:
            detail = f"{MAX_RELAYED} requests for other groups are under way at this node"
            raise ProblemError("overloaded", detail)
        self.under_way += 1
        try:
            if why is not None:
                refused.detail = why
                refused.revision = await self._revision_of(refused)
                raise refused
            asked = await self._read(request, query, refused.group, body, changes=changes)
            self.relayed_total += 1
            return await self._ask(request, refused, asked, identity)
        finally:
            self.under_way -= 1

    async def _read(
        self, request: BaseRequest, query: str, group: str, body: bytes | None, *, changes: bool
    ) -> _Request:
        """Read the whole request, as it is sent on. Raises Problem."""
        settings, headers = self._settings, request.headers
        target, _ = split_target(request.raw_path)
        if body is None:
            check_put_headers(headers)
            limit_bytes = max(4 * 1024 * 1024, 2 * settings.max_value_size_bytes)
            body = await read_body(request, limit_bytes, settings.body_timeout_ms)
        values, _ = split_query(query, AFTER_TOKEN_PARAMS)
        waits = waits_for_change(query)
        timeout_ms = values.get("timeout_ms", settings.request_timeout_ms)
        timeout_ms += values.get("wait_ms", DEFAULT_WAIT_MS if waits else _wait_in(body))
        sent = [(name, value) for name in _ASKED for value in headers.getall(name, ())]
        sent += [(RELAYED, group), (hdrs.VIA, "1.1 onecopy")]
        return _Request(
            hdrs.METH_GET if request.method == hdrs.METH_HEAD else request.method,
            quote(target.encode("utf-8", "surrogateescape"), safe=_PRINTABLE),
            sent,
            body,
            changes,
            changes or waits,
            _now() + timeout_ms / 1000 + RELAY_MARGIN_S,
        )

    async def _ask(
        self, request: BaseRequest, refused: ProblemError, asked: _Request, identity: bytes
    ) -> Answer:
        """Ask one endpoint after the other. Raises Problem."""
        group, problem = refused.group, "no time was left"
        urls = self._urls(refused)
        for url in urls:
            is_last = url == urls[-1] or _now() >= asked.until_s
            try:
                answer, came = await self._try(request, url, group, asked, identity)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                answer = None
                kept = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)
                came = Came(sent=not isinstance(error, kept))
                problem = f"{url}: {explain_tls(error) or 'no answer in time'}"
            if (end := conclude(asked.changes, came, is_last=is_last)) == "next":
                continue
            if end == "answer":
                assert answer is not None
                self._worked[group] = url
                return answer
            break
        detail = f"group {group!r}, which owns what is asked for: {problem}"
        if end == "unknown":
            raise ProblemError("unknown_outcome", detail, outcome="unknown")
        raise ProblemError("no_primary", detail)

    async def _try(
        self, request: BaseRequest, url: str, group: str, asked: _Request, identity: bytes
    ) -> tuple[Answer, Came]:
        """Ask one endpoint. Raises what aiohttp does, and TimeoutError."""
        left_s = max(0.0, asked.until_s - _now())
        timeout = aiohttp.ClientTimeout(
            total=left_s if asked.is_asked_once else min(left_s, READ_TRY_TIMEOUT_S),
            sock_connect=min(RELAY_CONNECT_TIMEOUT_S, left_s),
        )
        async with self._open().request(
            asked.method,
            URL(url + asked.target, encoded=True),
            ssl=self._trust(),
            data=asked.body or None,
            headers=asked.headers,
            timeout=timeout,
            allow_redirects=False,
        ) as response:
            size_bytes, share = response.content_length or 0, None
            if size_bytes > LARGE_ANSWER_SIZE_BYTES:
                share = server_of(request).memory.take(size_bytes, response.close)
                if share is None:
                    raise ProblemError("overloaded", TOO_MUCH_HELD, outcome="unknown")
            try:
                body = await response.read()
            finally:
                if share is not None:
                    share.resize(0)
        if not response.headers.get(CLUSTER) and response.status < 400:
            raise aiohttp.ClientPayloadError("the answer does not name its cluster")
        outcome = ""
        if response.status >= 400:
            with contextlib.suppress(msgspec.MsgspecError):
                outcome = msgspec.json.decode(body, type=_Told).outcome
        lines = _told(response.headers) + b"Onecopy-Group: %b\r\n" % group.encode() + identity
        content_type = response.headers.get(hdrs.CONTENT_TYPE, "").encode("ascii", "replace")
        whole = None if response.status == 304 else body
        answer = Answer(response.status, whole, content_type, lines)
        return answer, Came(sent=True, status=response.status, outcome=outcome)

    async def _revision_of(self, refused: ProblemError) -> int:
        """Return a revision that a group has committed by now. Raises Problem."""
        timeout = aiohttp.ClientTimeout(
            total=READ_TRY_TIMEOUT_S, sock_connect=RELAY_CONNECT_TIMEOUT_S
        )
        for url in self._urls(refused):
            headers = {RELAYED: refused.group}
            try:
                async with self._open().get(
                    f"{url}/livez", headers=headers, timeout=timeout, ssl=self._trust()
                ) as response:
                    revision = response.headers.get(REVISION, "")
            except (aiohttp.ClientError, TimeoutError, OSError):
                continue
            if response.status == 200 and revision.isdecimal():
                self._worked[refused.group] = url
                return int(revision)
        detail = f"no node of group {refused.group!r} says which revision it has"
        raise ProblemError("no_primary", detail)

    def _urls(self, refused: ProblemError) -> list[str]:
        reached = as_reached(refused.endpoints, by_tls=bool(self._cacert))
        return in_order(reached, self._worked.get(refused.group))

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = make_session(MAX_RELAYED)
        return self._session

    def _trust(self) -> ssl.SSLContext | bool:
        """Return whom a connection is opened to; those under another one are used no more."""
        if self._trusted is None:
            # Without a certificate: whoever calls would have this node's rights (G5).
            self._trusted = make_tls(self._cacert, "", "") or True
        return self._trusted


def _told(headers: Mapping[str, str]) -> bytes:
    """Return those of an answer's header lines that are passed back."""
    told = ((name, headers.get(name)) for name in _TOLD)
    return b"".join(
        f"{name}: {value}\r\n".encode("ascii")
        for name, value in told
        if value is not None and value.isascii() and value.isprintable()
    )


def _wait_in(body: bytes) -> int:
    """Return how long a body says that it may be waited (for a lock), in milliseconds."""
    if len(body) > LARGE_ANSWER_SIZE_BYTES or b'"wait_ms"' not in body:
        return 0
    try:
        return max(0, min(msgspec.json.decode(body, type=_Waits).wait_ms, MAX_WAIT_MS))
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return 0  # the group says what is wrong with it


def _now() -> float:
    return asyncio.get_running_loop().time()


def refuse_elsewhere(headers: Headers, own: str) -> None:
    """Raise Problem for a request that was relayed to another group than this node's."""
    for group in headers.getall(RELAYED, ()):
        if group != own:
            raise ProblemError(
                "wrong_group",
                f"the request was relayed to group {group[:100]!r}, and this node's is {own!r}: "
                "the map names it there; publish a new one with: onecopy groups publish",
                group=own,
            )
