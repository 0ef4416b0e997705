"""One call, as many tries as it takes: sessions, deadlines, retries, finding the primary.

A write carries one idempotency key through all its tries, so a retry never applies it twice. What
a try proves: a refused connection or an answer with outcome "not_applied" proves that *this* try
changed nothing; anything else proves nothing. Once one try may have been applied, no later "not
applied" clears it (the first may still be on its way, in a paused node, say): the call then ends
with a success, or as unknown.

Every answer names its cluster. The first that does settles which cluster this client talks to, for
good: all that is sent from then on says so, and is refused elsewhere before anything is done.
Before the first write the endpoint is asked for the name alone, so that no write goes without it.

Answers also name a committed revision. The highest that was seen before a write's first try goes
with each of its tries (Idempotency-After): nodes that may have forgotten its key then refuse it,
and do not execute it again (docs/decisions/0009).
"""

from __future__ import annotations

import asyncio
import io
import math
import random
import ssl
from collections.abc import Iterable, Mapping

import aiohttp
import msgspec
from yarl import URL

from cluster.client.endpoints import Endpoints, Scheme
from cluster.client.errors import (
    ClientError,
    UnavailableError,
    UnknownOutcomeError,
    WrongClusterError,
)
from cluster.client.exchange import (
    FinalResponse,
    Request,
    decode_problem,
    hold_doubt,
    in_doubt,
    raise_failure,
    raise_wrong_cluster,
)
from cluster.client.sessions import NO_TLS, explain_tls, is_tls_failure, make_session
from datapath.operations import ClusterStatus

CONNECT_TIMEOUT_S = 1.0
TRY_TIMEOUT_S = 2.0  # a node that accepts and never answers (paused, say) costs this much
ANSWER_MARGIN_S = 0.25  # the server is told to give up so much before the client does
TRY_MIN_S = 2 * ANSWER_MARGIN_S  # with less than this left, a try would only bring doubt
BACKOFF_FIRST_S = 0.02
BACKOFF_MAX_S = 0.4
REFRESH_INTERVAL_S = 0.2  # the cluster's status is asked for no more often than this
REFRESH_IDLE_S = 10.0  # … and, while there are calls, this often: nodes come and go
REFRESH_AGAIN_S = 1.0  # … or this often, where the last answer named no nodes
BODY_AT_ONCE_BYTES = 1 << 20
SERVER_TIMEOUT_MAX_MS = 600_000  # what the API takes
REVISION_AGE_MAX_S = 1.0
"""A revision that was seen longer ago is asked for anew before a write's first try: a client that
was idle would else name one so old that a new write is refused, as one that may be forgotten. The
smallest table (4 MiB, 26,000 keys) forgets that fast at full rate."""
SENT_AFTER_MAX_KEYS = 10_000  # keys whose first try is remembered; the oldest go
CLUSTER_HEADER = "Onecopy-Cluster"
REVISION_HEADER = "Onecopy-Revision"
AFTER_HEADER = "Idempotency-After"
GROUP_HEADER = "Onecopy-Group"
GROUPS_HEADER = "Onecopy-Groups"
RETRIED_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
FINAL_CODES = frozenset({"service_failed", "service_timeout"})
"""Codes of those statuses that are the answer all the same: it was carried out, and failed."""

_decode_status = msgspec.json.Decoder(ClusterStatus).decode


class UnreachableError(OSError):
    """No connection could be made, so that nothing was sent."""


STATUS = Request("GET", "/v1/cluster", waits=False)
MEET = Request("GET", "/livez", waits=False)  # answered at once, by the asked node alone


class Transport:
    """A session of connections to one cluster. Belongs to the event loop that first uses it."""

    def __init__(
        self,
        endpoints: Iterable[str],
        *,
        timeout_ms: int,
        max_connections: int,
        discover: bool = True,
        cluster_id: str = "",
        token: str = "",
        tls: ssl.SSLContext | None = None,
        group: str = "",
        sent_after: dict[str, tuple[str, int | None]] | None = None,
    ) -> None:
        """`cluster_id`: the cluster to talk to, "" for the first that answers.

        `tls`: what https connections are made with; None: as the system does. `token`: "" for none.
        `group`: of several, it talks to this one; `sent_after` is then what all of them have sent.
        """
        self._authorization = f"Bearer {token}" if token else ""
        scheme: Scheme = "http" if tls is None else "https"
        self.endpoints = Endpoints(endpoints, discover=discover, scheme=scheme)
        self.tls = tls
        self.cluster_id = cluster_id
        self.timeout_ms = timeout_ms
        self.retries = 0  # tries beyond the first, over all calls
        self.revision: int | None = None  # the highest that an answer has named
        self._revision_at = -math.inf  # when an answer last named it, or none could be had
        self.groups_version = 0
        """The newest version of a map of groups that an answer has named; 0: none."""
        self.group = group
        # By the idempotency key, with the group whose revision it is.
        self.sent_after = {} if sent_after is None else sent_after
        self._max_connections = max_connections
        self._loop: asyncio.AbstractEventLoop | None = None
        self._session: aiohttp.ClientSession | None = None
        self._streams: aiohttp.ClientSession | None = None  # theirs are no connections of calls
        self._refresh: asyncio.Task[None] | None = None
        self._refreshed_at = self._refresh_due_at = -math.inf
        self._closed = False

    async def close(self) -> None:
        """Close the connections. Calls that are under way fail.

        Raises RuntimeError on another event loop than the one that the connections belong to.
        """
        if self._closed:
            return
        self._closed = True
        if self._loop is not None:
            self._check_loop()
        if self._refresh is not None:
            self._refresh.cancel()
            await asyncio.wait([self._refresh])
        for session in (self._session, self._streams):
            if session is not None:
                await session.close()

    async def call(self, call: Request, timeout_ms: int | None = None) -> FinalResponse:
        """Send until there is a final answer or the deadline has passed.

        Raises UnavailableError or, for a write, UnknownOutcomeError.
        """
        loop, limit_s = self._check_loop(), (timeout_ms or self.timeout_ms) / 1000
        deadline, spare_s = loop.time() + limit_s, min(TRY_MIN_S, limit_s / 10)
        doubtful: ClientError | None = None  # the last try that may have been applied
        failure: ClientError
        answered: ClientError | None = None  # the last failure that a node has told
        backoff_s = BACKOFF_FIRST_S
        prepared, is_given = not call.writes, call.after is not None
        while True:
            url = self.endpoints.pick(loop.time())
            try:
                if not prepared:
                    call, prepared = await self._prepare(url, call, deadline), True
                longest_s = TRY_TIMEOUT_S if call.retry_unknown else math.inf
                reply = await self._try(url, call, deadline - loop.time(), longest_s)
            except UnknownOutcomeError as error:
                if error.code == "wrong_cluster":
                    raise
                doubtful = failure = error
            except WrongClusterError as error:
                if self.endpoints.is_given(url):
                    raise_wrong_cluster(call, error, doubtful)
                self.endpoints.disown(url)
                failure = error
            except UnavailableError as error:
                failure = error
            else:
                if (moved := self._elsewhere(call, reply, is_given=is_given)) is not None:
                    call = moved
                    continue
                self._note(url, call, reply)
                hold_doubt(call, reply, doubtful)
                if call.drawn and reply.status < 400:
                    self.sent_after.pop(call.key, None)
                return reply if call.after is None else reply._replace(after=call.after)
            answered = failure if failure.status else answered
            self.endpoints.failed(url, loop.time(), no_tls=failure.code == NO_TLS)
            self.refresh_soon(after_failure=True)
            rests = bool(failure.status) or not self.endpoints.has_fresh(loop.time())
            pause_s = backoff_s * random.uniform(0.5, 1.0) if rests else 0.0  # noqa: S311 -- jitter
            backoff_s = min(2 * backoff_s, BACKOFF_MAX_S) if rests else backoff_s
            is_last = (doubtful is not None and not call.retry_unknown) or self.endpoints.no_tls
            if is_last or self._closed or loop.time() + pause_s >= deadline - spare_s:
                raise_failure(call, answered or failure, doubtful)
            self.retries += 1
            await asyncio.sleep(pause_s)
            if self._closed:
                raise_failure(call, failure, doubtful)

    def _note(self, url: str, call: Request, reply: FinalResponse) -> None:
        """Learn what an answer says of the nodes."""
        self.endpoints.worked(url)
        if call.writes and GROUP_HEADER not in reply.headers:
            self.endpoints.prefer_node(reply.headers.get("Onecopy-Node", ""))
        if call is STATUS and reply.status == 200:
            self._learn(reply.body, url)
        self.refresh_soon()

    async def _prepare(self, url: str, call: Request, deadline: float) -> Request:
        """Meet the cluster before a first write; settle what this one was first sent after.

        A key that this client has sent before keeps what it was first sent after. Raises as `_try`.
        """
        now = asyncio.get_running_loop().time()
        sent = self.sent_after.get(call.key)
        if sent is not None and self.group not in ("", sent[0]) and sent[1] is not None:
            sent = None  # with a revision of another group it was not passed on to this one (G7)
        settled = not call.key or call.after is not None or sent is not None
        if not self.cluster_id or (not settled and now > self._revision_at + REVISION_AGE_MAX_S):
            await self._try(url, MEET, deadline - now)
            self._revision_at = now
        if not call.key or call.after is not None:
            return call
        group, after = self.sent_after[call.key] = sent or (self.group, self.revision)
        if len(self.sent_after) > SENT_AFTER_MAX_KEYS:
            del self.sent_after[next(iter(self.sent_after))]
        return call._replace(after=after, group="" if group == self.group else group)

    def _elsewhere(self, call: Request, reply: FinalResponse, *, is_given: bool) -> Request | None:
        """Return the call as another group takes it, where a node would pass it on to that group.

        It was not sent there yet (G7): the revision that the node names was known before.
        `is_given`: who calls has said after which revision of its group it was first sent.
        """
        if reply.status != 421 or call.group or call.after is None or call.stays:
            return None
        problem = reply.problem()
        if not problem.group or problem.revision is None:
            return None
        group, after = self.sent_after.get(call.key, ("", None))
        if group != problem.group:  # else this key was sent there before
            group, after = problem.group, call.after if is_given else problem.revision
            self.sent_after[call.key] = group, after
        return call._replace(group=group, after=after)

    def saw(self, revision: int) -> None:
        """Take note of a revision that has committed in this client's cluster."""
        if self.revision is None or revision >= self.revision:
            self.revision = revision
            self._revision_at = asyncio.get_running_loop().time()

    async def ask(self, url: str, target: str, timeout_ms: int | None = None) -> FinalResponse:
        """Ask one named node, once. Raises UnavailableError, WrongClusterError."""
        self._check_loop()
        timeout_s = (self.timeout_ms if timeout_ms is None else timeout_ms) / 1000
        return await self._try(url, Request("GET", target, waits=False), timeout_s, timeout_s)

    async def _try(
        self, url: str, call: Request, remaining_s: float, longest_s: float = TRY_TIMEOUT_S
    ) -> FinalResponse:
        """Send once.

        Raises UnavailableError or WrongClusterError (surely not applied), or UnknownOutcomeError.
        """
        try_s = max(0.05, min(remaining_s, longest_s))
        target = call.target
        if call.waits:
            server_ms = int((min(try_s, SERVER_TIMEOUT_MAX_MS) - ANSWER_MARGIN_S) * 1000)
            server_ms = max(50, min(server_ms, SERVER_TIMEOUT_MAX_MS))
            target += f"{'&' if '?' in target else '?'}timeout_ms={server_ms}"
        try:
            reply = await self._send(url, target, call, try_s)
        except UnreachableError as error:
            code = NO_TLS if is_tls_failure(error.__cause__) else "unreachable"
            raise UnavailableError(f"{url}: {error}", code=code) from error
        except (aiohttp.ClientError, TimeoutError, OSError, EOFError) as error:
            code = "timeout" if isinstance(error, TimeoutError) else "disconnected"
            detail = f"{url}: {explain_tls(error) or f'no answer within {try_s:.1f} s'}"
            raise in_doubt(call, detail, code=code) from error
        self._check_cluster(url, call, reply)
        self._check_retried(url, call, reply)
        return reply

    @staticmethod
    def _check_retried(url: str, call: Request, reply: FinalResponse) -> None:
        """Raise what an answer means after which the request may go elsewhere."""
        status = reply.status
        if status in RETRIED_STATUSES:
            problem = reply.problem()
            if problem.code in FINAL_CODES:
                return
            detail = f"{url}: {problem.detail or problem.title}"
            if problem.outcome == "not_applied":
                raise UnavailableError(detail, code=problem.code, status=status)
            raise in_doubt(call, detail, code=problem.code, status=status)

    async def _send(self, url: str, target: str, call: Request, try_s: float) -> FinalResponse:
        """Send once and return whatever comes. Raises UnreachableError if nothing was sent."""
        timeout = aiohttp.ClientTimeout(total=try_s, sock_connect=CONNECT_TIMEOUT_S)
        whole = URL(url + target, encoded=True)
        large = call.body is not None and len(call.body) > BODY_AT_ONCE_BYTES
        body = io.BytesIO(call.body or b"") if large else call.body  # aiohttp sends it in parts
        try:
            async with self._open().request(
                call.method, whole, data=body, headers=self._headers(call), timeout=timeout
            ) as response:
                return FinalResponse(response.status, response.headers, await response.read())
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise UnreachableError(explain_tls(error)) from error

    async def open_stream(
        self, url: str, call: Request, *, begin_timeout_s: float, silence_s: float
    ) -> tuple[FinalResponse, aiohttp.ClientResponse | None]:
        """Ask one node for an answer that does not end: return it, or the reply that refuses it.

        It ends if nothing comes for `silence_s`. Raises UnavailableError, WrongClusterError.
        """
        self._check_loop()
        self._open()  # as all calls need it
        session = self._streams = self._streams or make_session(0, self.tls)
        timeout = aiohttp.ClientTimeout(sock_connect=CONNECT_TIMEOUT_S, sock_read=silence_s)
        whole, headers = URL(url + call.target, encoded=True), self._headers(call)
        try:
            async with asyncio.timeout(begin_timeout_s):
                response = await session.get(whole, headers=headers, timeout=timeout)
                body = b"" if (taken := response.status == 200) else await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise UnavailableError(f"{url}: {error or 'no answer'}", code="disconnected") from error
        reply = FinalResponse(response.status, response.headers, body)
        try:
            self._check_cluster(url, call, reply)
            self._check_retried(url, call, reply)
        except ClientError:
            response.close()
            raise
        return reply, response if taken else None

    def _headers(self, call: Request) -> Mapping[str, str]:
        headers = dict(call.headers)
        if self._authorization:
            headers["Authorization"] = self._authorization
        if self.cluster_id:
            headers[CLUSTER_HEADER] = self.cluster_id
        if call.group:
            headers[GROUP_HEADER] = call.group
        if call.after is not None:
            headers[AFTER_HEADER] = str(call.after)
        return headers

    def _check_cluster(self, url: str, call: Request, reply: FinalResponse) -> None:
        """Take the cluster's id from the first answer that names it; refuse every other's.

        Raises WrongClusterError, and UnknownOutcomeError for a write that may have been applied
        there; for an answer that should name its cluster and does not, what proves nothing.
        """
        named = reply.headers.get(CLUSTER_HEADER, "")
        if not self.cluster_id:
            self.cluster_id = named
        if named == self.cluster_id:
            self._note_groups(reply)
            revision = reply.headers.get(REVISION_HEADER, "")
            if GROUP_HEADER in reply.headers:  # it is another group's revision
                return
            if named and revision.isascii() and revision.isdecimal() and len(revision) <= 18:
                self.saw(int(revision))
            return
        if not named:
            if reply.status < 400 or reply.status in {404, 412}:
                detail = f"{url}: the answer (HTTP {reply.status}) does not name its cluster"
                raise in_doubt(call, detail, code="bad_answer", status=reply.status)
            return  # a proxy's error, say
        error = WrongClusterError(url, expected=self.cluster_id, found=named)
        refused = reply.status == 421 or (
            reply.status >= 400
            and decode_problem(reply.status, reply.body).outcome == "not_applied"
        )
        if call.writes and not refused:
            raise in_doubt(call, error.detail, code=error.code, status=reply.status)
        raise error

    def _note_groups(self, reply: FinalResponse) -> None:
        if version := reply.headers.get(GROUPS_HEADER):
            known = int(version) if version.isascii() and version.isdecimal() else 0
            self.groups_version = max(self.groups_version, known)

    def _check_loop(self) -> asyncio.AbstractEventLoop:
        """Return the running event loop. Raises RuntimeError if the client belongs to another."""
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        if self._loop is not loop:
            closed = ", which is now closed" if self._loop.is_closed() else ""
            raise RuntimeError(
                f"this AsyncClient belongs to the event loop that first used it{closed}, and was "
                "called from another one: create an AsyncClient in each event loop (in pytest: "
                "give the fixture that creates it and the tests that use it the same loop "
                "scope), or use Client, which any thread may call"
            )
        return loop

    def _open(self) -> aiohttp.ClientSession:
        if self._closed:
            raise RuntimeError("this client is closed")
        if self._session is None:
            self._session = make_session(self._max_connections, self.tls)
        return self._session

    async def discover(self) -> None:
        """Learn now which nodes there are, as far as any can be asked."""
        self.refresh_soon(after_failure=True)
        if self._refresh is not None:
            await asyncio.wait([self._refresh])

    def refresh_soon(self, *, after_failure: bool = False) -> None:
        """Ask for the cluster's status in the background: now and then, and after each failure."""
        now = asyncio.get_running_loop().time()
        wanted = after_failure or now >= self._refresh_due_at
        running = self._refresh is not None and not self._refresh.done()
        if (
            not self.endpoints.learns
            or not wanted
            or running
            or self._closed
            or now < self._refreshed_at + REFRESH_INTERVAL_S
        ):
            return
        self._refreshed_at = now
        self._refresh_due_at = now + REFRESH_AGAIN_S
        self._refresh = asyncio.create_task(self._refresh_status())

    async def _refresh_status(self) -> None:
        now = asyncio.get_running_loop().time()
        url = self.endpoints.pick(now)
        try:
            reply = await self._try(url, STATUS, TRY_TIMEOUT_S)
            if reply.status == 200:
                self._learn(reply.body, url)
        except WrongClusterError:
            self.endpoints.disown(url)  # a given one stays, and the next call says so
        except ClientError:
            self.endpoints.failed(url, now)
        await asyncio.gather(*map(self._prove, self.endpoints.unproved))

    def _learn(self, body: bytes, source: str) -> None:
        """Remember the nodes' addresses and the primary."""
        try:
            status = _decode_status(body)
        except msgspec.DecodeError:
            return  # who asked for it says so
        if status.nodes:
            self._refresh_due_at = asyncio.get_running_loop().time() + REFRESH_IDLE_S
        clients = {node: item.client for node, item in status.nodes.items() if item.client}
        self.endpoints.learn(clients, status.primary, source)

    async def _prove(self, url: str) -> None:
        """Ask a learned address which cluster it belongs to, and use it if it is this one."""
        if not self.cluster_id:
            return
        try:
            reply = await self._try(url, MEET, TRY_TIMEOUT_S)
        except ClientError:
            return  # not there, or another cluster's
        if reply.status == 200:  # and it named this cluster, as _try has made sure
            self.endpoints.proved(url)
