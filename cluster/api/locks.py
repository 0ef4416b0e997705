"""`/v1/locks` and `/v1/elections`: an election is a lock whose note is the leader's value.

Who waits has a place in the lock's queue, in the replicated state. The request waits here until
that place is written, as it is when its lease has become the holder, and then asks the primary by
its lease: so it survives a failover, and keeps its place. It also asks now and then, for the case
that this node is cut off.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import msgspec
from aiohttp.web import BaseRequest

from cluster.api.answer import JSON, Answer
from cluster.api.body import ClientGoneError, read_json
from cluster.api.headers import (
    idempotency_after,
    idempotency_key,
    state_lines,
    written_lines,
)
from cluster.api.lease_documents import (
    CandidateRequest,
    Elected,
    LeaderDocument,
    LockDocument,
    LockItem,
    LockList,
    LockReleased,
    LockRequest,
    LockTaken,
    LockWaiterItem,
)
from cluster.api.leases import MAX_BODY_SIZE_BYTES, decode_body, lease_id
from cluster.api.params import (
    AFTER_TOKEN_PARAMS,
    DEFAULT_RANGE_LIMIT,
    DEFAULT_WAIT_MS,
    LOCK_LIST_PARAMS,
    TIMEOUT,
    TOKEN_PARAMS,
    decode_name,
    parse_query,
)
from cluster.api.problems import ProblemError
from cluster.api.server import FullConnection
from cluster.api.settings import HttpSettings
from cluster.services.access_guard import VERSION_KEY
from cluster.services.lease_state import claim_key
from cluster.services.leases import LEASES_SERVICE
from cluster.services.lock_state import MAX_NOTE_SIZE_BYTES
from cluster.services.locks import LOCKS_SERVICE, Acquired
from datapath.clock import clock_s
from datapath.errors import OperationError
from datapath.keyspaces import LEASES, LOCKS, ROLES
from datapath.operations import Node, Operation, Query, QueryResult, Result

ASK_AGAIN_S = 5.0
"""After how long one that waits asks the primary without having seen a write."""
LOOK_S = 0.5
"""How often it is looked at whether the client has gone, or this node stops."""


class LockHandlers:
    """The handlers of locks, or (`is_election`) of elections."""

    def __init__(
        self,
        node: Node,
        settings: HttpSettings,
        is_stopping: Callable[[], bool],
        *,
        is_election: bool,
    ) -> None:
        self._node = node
        self._is_election = is_election
        self._body_timeout_ms = settings.body_timeout_ms
        self._timeout_ms = settings.request_timeout_ms
        self._is_stopping = is_stopping
        self.waiting = 0

    async def acquire(self, request: BaseRequest, raw_name: str, query: str) -> Answer:
        """POST of a lock or an election."""
        timeout_ms = parse_query(query, TIMEOUT).get("timeout_ms") or self._timeout_ms
        name = decode_name(raw_name)
        asked = await self._read(request)
        args = self._args(name, asked)
        headers = request.headers
        key, after = idempotency_key(headers), idempotency_after(headers)
        operation = Operation("acquire", args, key, first_after=after, service=LOCKS_SERVICE)
        wish = _Wish(self._node, name, timeout_ms, asked)
        self.waiting += 1
        try:
            result = await self._node.execute(operation, timeout_ms)
            acquired = Acquired(*result.value)
            if not acquired.token:
                wish.acquired = acquired
                result = await self._wait(request, wish)
                acquired = Acquired(*result.value)
        finally:
            self.waiting -= 1
        return self._taken(name, acquired, result)

    async def _read(self, request: BaseRequest) -> LockRequest:
        body = await read_json(request, MAX_BODY_SIZE_BYTES, self._body_timeout_ms)
        if not self._is_election:
            return decode_body(body, LockRequest)
        wish = decode_body(body, CandidateRequest)
        return LockRequest(wish.lease, wish.ttl_ms, wish.wait_ms, wish.keep_place, wish.value)

    def _args(self, name: bytes, wish: LockRequest) -> tuple[Any, ...]:
        if (wish.lease is None) == (wish.ttl_ms is None):
            raise ProblemError("invalid_body", "give either `lease` or `ttl_ms` - at `$`")
        if wish.keep_place and wish.lease is None:
            raise ProblemError("invalid_body", "`keep_place` needs a `lease` - at `$.keep_place`")
        field = "value" if self._is_election else "note"
        try:
            note = wish.note.encode()
        except UnicodeEncodeError as error:
            raise ProblemError("invalid_body", f"{error} - at `$.{field}`") from None
        if len(note) > MAX_NOTE_SIZE_BYTES:
            raise ProblemError(
                "invalid_body", f"at most {MAX_NOTE_SIZE_BYTES} bytes of UTF-8 - at `$.{field}`"
            )
        lease = lease_id(wish.lease) if wish.lease is not None else 0
        return name, lease, wish.ttl_ms or 0, note, wish.wait_ms > 0 or wish.keep_place

    async def _wait(self, request: BaseRequest, wish: _Wish) -> Result:
        """Wait until the lease has become the holder. Raises Problem "lock_held"."""
        until_s = clock_s() + wish.wait_s
        # What is at its place is written when it has become the holder, and when it has no place.
        watch = _PlaceWatch(self._node, LEASES, claim_key(wish.acquired.lease, wish.name))
        if wish.owns_lease:
            watch.ask_again_s = min(watch.ask_again_s, wish.ttl_s / 3)
        try:
            while True:
                is_gone = _is_gone(request)
                if is_gone or self._is_stopping() or clock_s() >= until_s:
                    result = await self._end_wait(wish, is_gone=is_gone)
                    if result is not None:
                        return result
                    raise ProblemError("lock_held", _held_still(wish.acquired))
                if watch.is_due():
                    result = await wish.ask()
                    if result.value[0]:
                        return result
                await watch.wait(until_s)
        finally:
            watch.end()

    async def _end_wait(self, wish: _Wish, *, is_gone: bool) -> Result | None:
        """Its time is up, the client has gone, or this node stops: return as `give_up`.

        A client with a lease of its own that was interrupted asks again, elsewhere: it keeps its
        place. A client that has gone is not given the lock: nobody would release it.
        """
        is_stopping = self._is_stopping()
        if is_gone:
            if wish.owns_lease:
                await wish.abandon()
            raise ClientGoneError
        if wish.keeps_place or (is_stopping and not wish.owns_lease):
            result = None
        else:
            result = await wish.give_up()
        if result is None and is_stopping:
            raise ProblemError("stopping", "this node is stopping: ask another")
        return result

    async def get(self, _request: BaseRequest, raw_name: str, query: str) -> Answer:
        """GET of a lock or an election; with `after` it waits for a change."""
        values = parse_query(query, AFTER_TOKEN_PARAMS)
        timeout_ms = values.get("timeout_ms") or self._timeout_ms
        name = decode_name(raw_name)
        after = values.get("after")
        wanted = Query("get", (name,), service=LOCKS_SERVICE)
        if after is None:
            return self._state(name, await self._node.query(wanted, timeout_ms))
        until_s = clock_s() + values.get("wait_ms", DEFAULT_WAIT_MS) / 1000
        watch = _PlaceWatch(self._node, LOCKS, name)
        result: QueryResult | None = None
        try:
            while True:
                if watch.is_due() or result is None:
                    result = await self._node.query(wanted, timeout_ms)
                token = result.value[0] if result.value is not None else 0
                if token != after or clock_s() >= until_s or self._is_stopping():
                    return self._state(name, result)
                await watch.wait(until_s)
        finally:
            watch.end()

    async def release(self, request: BaseRequest, raw_name: str, query: str) -> Answer:
        """DELETE of a lock or an election: the next one has it."""
        values = parse_query(query, TOKEN_PARAMS)
        name = decode_name(raw_name)
        token, lease = values.get("token"), values.get("lease")
        if (token is None) == (lease is None):
            raise ProblemError(
                "invalid_parameter",
                "either query parameter 'token' is needed, under which it is held, or 'lease', "
                "which holds it or waits for it",
            )
        timeout_ms = values.get("timeout_ms") or self._timeout_ms
        if token is None:
            withdraw = Operation("withdraw", (name, lease), service=LOCKS_SERVICE)
            result = await self._node.execute(withdraw, timeout_ms)
            token = result.value
            if not token:
                return self._written(LockReleased(0, *_committed(result)), result)
        headers = request.headers
        operation = Operation(
            "release",
            (name, token),
            idempotency_key(headers),
            first_after=idempotency_after(headers),
            service=LOCKS_SERVICE,
        )
        result = await self._node.execute(operation, timeout_ms)
        return self._written(LockReleased(token, *_committed(result)), result)

    async def list(self, _request: BaseRequest, query: str) -> Answer:
        """GET /v1/locks: elections are among them."""
        values = parse_query(query, LOCK_LIST_PARAMS)
        limit = values.get("limit", DEFAULT_RANGE_LIMIT)
        asked = Query("list", (values.get("after", b""), limit), service=LOCKS_SERVICE)
        result = await self._node.query(asked, values.get("timeout_ms") or self._timeout_ms)
        items, following = result.value
        locks = [
            LockItem(_text(name), token, str(lease), _text(note))
            for name, token, lease, note in items
        ]
        after = None if following is None else _text(following)
        return self._read_answer(LockList(locks, result.index, after), result)

    def _state(self, name: bytes, result: QueryResult) -> Answer:
        if result.value is None:
            raise ProblemError(
                "not_held",
                "there is no leader" if self._is_election else "nobody holds this lock",
                headers=state_lines(result, self._node.views.cluster_id),
            )
        token, lease, note, waiting, first = result.value
        held = _text(name), token, str(lease), _text(note), waiting
        if self._is_election:
            return self._read_answer(LeaderDocument(*held, result.index), result)
        queue = [LockWaiterItem(str(lease), _text(note)) for lease, note in first]
        return self._read_answer(LockDocument(*held, queue, result.index), result)

    def _taken(self, name: bytes, acquired: Acquired, result: Result) -> Answer:
        kind = Elected if self._is_election else LockTaken
        document = kind(
            _text(name), acquired.token, str(acquired.lease), result.epoch, result.copies
        )
        return self._written(document, result)

    def _written(self, document: msgspec.Struct, result: Result) -> Answer:
        lines = written_lines(result, self._node.views.cluster_id)
        return Answer(200, msgspec.json.encode(document), JSON, lines)

    def _read_answer(self, document: msgspec.Struct, result: QueryResult) -> Answer:
        lines = state_lines(result, self._node.views.cluster_id)
        return Answer(200, msgspec.json.encode(document), JSON, lines)


class _PlaceWatch:
    """Sees the committed writes of a key on this node, and says when to ask the primary.

    That is at first, after each write, and every `ask_again_s`; and when a token or a role has
    changed (A1). End it by `end`.
    """

    def __init__(self, node: Node, keyspace: int, key: bytes) -> None:
        self._written = asyncio.Event()
        self._leave = node.observe(keyspace, key, self._written.set)
        self._leave_rights = node.observe(ROLES, VERSION_KEY, self._written.set)
        self.ask_again_s = ASK_AGAIN_S
        self._asks_at_s = 0.0

    def is_due(self) -> bool:
        """Whether to ask now: whoever is told so does."""
        now_s = clock_s()
        if not self._written.is_set() and now_s < self._asks_at_s:
            return False
        self._written.clear()  # before it is asked: a write after that is seen
        self._asks_at_s = now_s + self.ask_again_s
        return True

    async def wait(self, until_s: float) -> None:
        """Wait until it may be due, or until a time, but no longer than LOOK_S."""
        left_s = min(until_s, self._asks_at_s) - clock_s()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, min(LOOK_S, left_s))):
                await self._written.wait()

    def end(self) -> None:
        """See nothing more."""
        self._leave()
        self._leave_rights()


class _Wish:
    """One that waits for a lock. `owns_lease`: the request grants it, and keeps it alive."""

    def __init__(self, node: Node, name: bytes, timeout_ms: int, asked: LockRequest) -> None:
        self._node = node
        self.name = name
        self._timeout_ms = timeout_ms
        self.owns_lease = asked.ttl_ms is not None
        self.ttl_s = (asked.ttl_ms or 0) / 1000
        self.wait_s = asked.wait_ms / 1000
        self.keeps_place = asked.keep_place
        self.acquired = Acquired(0, 0, b"")

    async def ask(self) -> Result:
        """Ask again, by the lease: the place is kept."""
        if self.owns_lease:
            await self._execute(LEASES_SERVICE, "keep_alive", (self.acquired.lease,))
        result = await self._execute(
            LOCKS_SERVICE, "acquire", self.name, self.acquired.lease, 0, b"", True
        )
        self.acquired = Acquired(*result.value)
        return result

    async def give_up(self) -> Result | None:
        """Wait no longer. Returns what `ask` does if the lease has become the holder meanwhile."""
        lease = self.acquired.lease
        try:
            result = await self._execute(LOCKS_SERVICE, "withdraw", self.name, lease)
            if result.value:
                return await self.ask()
        except OperationError:
            return None  # the lease ends, and the place goes with it
        if self.owns_lease:
            await self.abandon()
        return None

    async def abandon(self) -> None:
        """Revoke the lease, and with it the place, or the lock if it has that by now."""
        with contextlib.suppress(OperationError):  # else it ends by itself
            await self._execute(LEASES_SERVICE, "revoke", self.acquired.lease)

    async def _execute(self, service: str, method: str, *args: Any) -> Result:
        operation = Operation(method, args, service=service)
        return await self._node.execute(operation, self._timeout_ms)


def _is_gone(request: BaseRequest) -> bool:
    """Whether nobody would take the lock: who sends no more while it waits has ended."""
    connection, transport = request.protocol, request.transport
    assert isinstance(connection, FullConnection)
    return transport is None or transport.is_closing() or connection.has_ended


def _committed(result: Result) -> tuple[int, int, int]:
    return result.index, result.epoch, result.copies


def _held_still(acquired: Acquired) -> str:
    said = f"; its holder's note: {_text(acquired.note)}" if acquired.note else ""
    return f"the lock was not free within `wait_ms`{said}"


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")
