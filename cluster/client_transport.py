"""One call, as many tries as it takes: sessions, deadlines, retries, finding the primary.

A write carries one idempotency key through all its tries, so a retry never applies it twice. What
a try proves: a refused connection or an answer with outcome "not_applied" proves that *this* try
changed nothing; anything else proves nothing. Once one try may have been applied, no later "not
applied" clears it (the first may still be on its way, in a paused node, say): the call then ends
with a success, or as unknown.
"""

from __future__ import annotations

import asyncio
import io
import math
import random
from collections.abc import Iterable, Mapping
from typing import NamedTuple, NoReturn

import aiohttp
import msgspec
from yarl import URL

from cluster.client_endpoints import Endpoints
from cluster.client_errors import (
    ClientError,
    InvalidRequestError,
    NotAppliedError,
    PreconditionFailedError,
    StorageFullError,
    UnavailableError,
    UnknownOutcomeError,
)
from cluster.client_types import Problem
from datapath.operations import ClusterStatus

CONNECT_TIMEOUT_S = 1.0
TRY_TIMEOUT_S = 2.0  # a node that accepts and never answers (paused, say) costs this much
ANSWER_MARGIN_S = 0.25  # the server is told to give up so much before the client does
BACKOFF_FIRST_S = 0.02
BACKOFF_MAX_S = 0.4
REFRESH_INTERVAL_S = 0.2  # the cluster's status is asked for no more often than this
BODY_AT_ONCE_BYTES = 1 << 20
RETRIED_STATUSES = frozenset({408, 429, 500, 502, 503, 504})

_decode_problem = msgspec.json.Decoder(Problem).decode
_decode_status = msgspec.json.Decoder(ClusterStatus).decode


class Reply(NamedTuple):
    """A final answer: not necessarily a success."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Call(NamedTuple):
    """A request, whole: `target` is the encoded path and query, `key` the idempotency key.

    `retry_unknown`: may be sent again though an earlier try may have been applied (reads, and
    writes under a key). `waits`: the server may wait for a primary, as long as it is told.
    """

    method: str
    target: str
    headers: Mapping[str, str] = {}
    body: bytes | None = None
    key: str = ""
    writes: bool = False
    retry_unknown: bool = True
    waits: bool = True


class UnreachableError(OSError):
    """No connection could be made, so that nothing was sent."""


STATUS = Call("GET", "/v1/cluster", waits=False)


class Transport:
    """A session of connections to one cluster. Belongs to the event loop that first uses it."""

    def __init__(self, endpoints: Iterable[str], *, timeout_ms: int, max_connections: int) -> None:
        self.endpoints = Endpoints(endpoints)
        self.timeout_ms = timeout_ms
        self.retries = 0  # tries beyond the first, over all calls
        self._max_connections = max_connections
        self._session: aiohttp.ClientSession | None = None
        self._refresh: asyncio.Task[None] | None = None
        self._refreshed_at = -math.inf
        self._closed = False

    async def close(self) -> None:
        """Close the connections. Calls that are under way fail."""
        self._closed = True
        if self._refresh is not None:
            self._refresh.cancel()
            await asyncio.wait([self._refresh])
        if self._session is not None:
            await self._session.close()

    async def call(self, call: Call, timeout_ms: int | None = None) -> Reply:
        """Send until there is a final answer or the deadline has passed.

        Raises UnavailableError or, for a write, UnknownOutcomeError.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (self.timeout_ms if timeout_ms is None else timeout_ms) / 1000
        doubtful: ClientError | None = None  # the last try that may have been applied
        failure: ClientError
        backoff_s = BACKOFF_FIRST_S
        while True:
            url = self.endpoints.pick(loop.time())
            try:
                longest_s = TRY_TIMEOUT_S if call.retry_unknown else math.inf
                reply = await self._try(url, call, deadline - loop.time(), longest_s)
            except UnknownOutcomeError as error:
                doubtful = failure = error
            except UnavailableError as error:
                failure = error
            else:
                self.endpoints.worked(url)
                if call.writes:
                    self.endpoints.prefer_node(reply.headers.get("Onecopy-Node", ""))
                self._refresh_soon()
                _hold_doubt(call, reply, doubtful)
                return reply
            self.endpoints.failed(url, loop.time())
            self._refresh_soon(after_failure=True)
            pause_s = 0.0
            if failure.status or not self.endpoints.has_fresh(loop.time()):
                pause_s = backoff_s * random.uniform(0.5, 1.0)  # noqa: S311 -- jitter
                backoff_s = min(2 * backoff_s, BACKOFF_MAX_S)
            give_up = doubtful is not None and not call.retry_unknown
            if give_up or loop.time() + pause_s >= deadline:
                _give_up(call, failure, doubtful)
            self.retries += 1
            await asyncio.sleep(pause_s)

    async def ask(self, url: str, target: str, timeout_ms: int | None = None) -> Reply:
        """Ask one named node, once. Raises UnavailableError."""
        timeout_s = (self.timeout_ms if timeout_ms is None else timeout_ms) / 1000
        return await self._try(url, Call("GET", target, waits=False), timeout_s, timeout_s)

    async def _try(
        self, url: str, call: Call, remaining_s: float, longest_s: float = TRY_TIMEOUT_S
    ) -> Reply:
        """Send once. Raises UnavailableError (surely not applied) or UnknownOutcomeError."""
        try_s = max(0.05, min(remaining_s, longest_s))
        target = call.target
        if call.waits:
            server_ms = max(50, int((try_s - ANSWER_MARGIN_S) * 1000))
            target += f"{'&' if '?' in target else '?'}timeout_ms={server_ms}"
        try:
            reply = await self._send(url, target, call, try_s)
        except UnreachableError as error:
            raise UnavailableError(f"{url}: {error}", code="unreachable") from error
        except (aiohttp.ClientError, TimeoutError, OSError, EOFError) as error:
            code = "timeout" if isinstance(error, TimeoutError) else "disconnected"
            detail = f"{url}: {str(error) or f'no answer within {try_s:.1f} s'}"
            raise _doubt(call, detail, code=code) from error
        status, body = reply.status, reply.body
        if status in RETRIED_STATUSES:
            problem = decode_problem(status, body)
            detail = f"{url}: {problem.detail or problem.title}"
            if problem.outcome == "not_applied":
                raise UnavailableError(detail, code=problem.code, status=status)
            raise _doubt(call, detail, code=problem.code, status=status)
        return reply

    async def _send(self, url: str, target: str, call: Call, try_s: float) -> Reply:
        """Send once and return whatever comes. Raises UnreachableError if nothing was sent."""
        timeout = aiohttp.ClientTimeout(total=try_s, sock_connect=CONNECT_TIMEOUT_S)
        whole = URL(url + target, encoded=True)
        large = call.body is not None and len(call.body) > BODY_AT_ONCE_BYTES
        body = io.BytesIO(call.body or b"") if large else call.body  # aiohttp sends it in parts
        try:
            async with self._open().request(
                call.method, whole, data=body, headers=call.headers, timeout=timeout
            ) as response:
                return Reply(response.status, response.headers, await response.read())
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise UnreachableError(str(error)) from error

    def _open(self) -> aiohttp.ClientSession:
        if self._closed:
            raise RuntimeError("this client is closed")
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=self._max_connections, keepalive_timeout=30)
            self._session = aiohttp.ClientSession(
                connector=connector,
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                skip_auto_headers=("User-Agent", "Accept-Encoding", "Content-Type"),
            )
            # aiohttp would send a PUT again by itself when a kept connection breaks under it, and
            # report the second try alone: a refused connection, say, though the first was sent.
            self._session._retry_connection = False
        return self._session

    def _refresh_soon(self, *, after_failure: bool = False) -> None:
        """Ask for the cluster's status in the background: at first, and after each failure."""
        now = asyncio.get_running_loop().time()
        wanted = after_failure or self._refreshed_at == -math.inf
        running = self._refresh is not None and not self._refresh.done()
        if not wanted or running or self._closed or now < self._refreshed_at + REFRESH_INTERVAL_S:
            return
        self._refreshed_at = now
        self._refresh = asyncio.create_task(self._refresh_status())

    async def _refresh_status(self) -> None:
        now = asyncio.get_running_loop().time()
        url = self.endpoints.pick(now)
        try:
            reply = await self._try(url, STATUS, TRY_TIMEOUT_S)
            if reply.status == 200:
                self.learn(_decode_status(reply.body))
        except (ClientError, msgspec.DecodeError, ValueError):
            self.endpoints.failed(url, now)

    def learn(self, status: ClusterStatus) -> None:
        """Remember the nodes' addresses and the primary."""
        clients = {node: item.client for node, item in status.nodes.items() if item.client}
        self.endpoints.learn(clients, status.primary)


def decode_problem(status: int, body: bytes) -> Problem:
    """Return the error's body, or the nearest thing where something else answered (a proxy)."""
    try:
        return _decode_problem(body)
    except msgspec.DecodeError:
        text = body[:200].decode("utf-8", "replace").strip()
        return Problem(status=status, code=f"http_{status}", detail=text or f"HTTP {status}")


def raise_for(call: Call, reply: Reply) -> NoReturn:
    """Raise what an answer that is not a success means."""
    problem = decode_problem(reply.status, reply.body)
    detail = problem.detail or problem.title or f"HTTP {reply.status}"
    if call.writes and problem.outcome == "unknown":
        raise _doubt(call, detail, code=problem.code, status=reply.status)
    kinds: dict[int, type[NotAppliedError]] = {
        412: PreconditionFailedError,
        507: StorageFullError,
    }
    kind = kinds.get(reply.status, InvalidRequestError)
    raise kind(detail, code=problem.code, status=reply.status)


def _doubt(call: Call, detail: str, *, code: str, status: int = 0) -> ClientError:
    if not call.writes:
        return UnavailableError(detail, code=code, status=status)
    return UnknownOutcomeError(detail, code=code, status=status, idempotency_key=call.key)


def _hold_doubt(call: Call, reply: Reply, doubtful: ClientError | None) -> None:
    """Refuse to call a write not applied after a try that may yet be.

    A failed If-Match is final all the same: a revision that has passed never comes back. So is a
    request that is wrong in itself.
    """
    passing = reply.status == 507 or (reply.status == 412 and "If-Match" not in call.headers)
    if doubtful is not None and passing:
        _give_up(call, doubtful, doubtful)


def _give_up(call: Call, failure: ClientError, doubtful: ClientError | None) -> NoReturn:
    if doubtful is None:
        raise failure
    detail = (
        f"{doubtful.detail} (this write may or may not have been applied; to learn which, repeat "
        f"it under the idempotency key {call.key})"
        if call.key
        else f"{doubtful.detail} (this may or may not have been done; see the status)"
    )
    raise UnknownOutcomeError(
        detail, code=doubtful.code, status=doubtful.status, idempotency_key=call.key
    ) from doubtful
