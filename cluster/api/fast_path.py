"""The fast path: plain requests on keys, and keep-alives, without aiohttp's request machinery.

A connection starts here. As long as what comes are whole requests with a plain head (`plain_line`,
`plain_head`), each is recognised, executed and answered in one step, with no task and no request
object: that is a third of the work. An answer that has to wait comes by a call (`Pending`), or from
a task where another node gives it. At the first request that is not so plain (another path, a
malformed condition, a chunked body, a head in two parts, …) the connection, with all that has come
on it, is given to aiohttp, and stays there. So nothing is parsed here but what has one meaning
only, and every refusal is made in one place: the fast path either serves a request just as the full
path would, or has done nothing with it. Each API has its own: `fast_keys`,
`cluster.etcd.fast_keys`.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from time import perf_counter
from typing import Any, Protocol, cast

from cluster.api.answer import TOO_MUCH_HELD, Answer, Outgoing
from cluster.api.fast_path_api import FastPathApi
from cluster.api.hosts import Hosts
from cluster.api.kv import KeyCall, KeyRead, KeyWrite
from cluster.api.memory import Memory, Share
from cluster.api.outbox import Outbox
from cluster.api.plain_head import HeaderBlock, blocks
from cluster.api.plain_line import PlainLine, PlainLines
from cluster.services.rights import Need
from datapath.errors import NotPrimaryError, OperationError, OverloadedError
from datapath.node.router import may_repeat
from datapath.operations import QueryResult, Result
from datapath.transport.tls import begins_tls
from datapath.transport.tls_transport import TlsTransport
from datapath.turns import Turns

MAX_REQUEST_SIZE_BYTES = 64 * 1024
"""A larger request goes the full path: its body is read piece by piece there."""
MAX_BACKLOG_BYTES = 256 * 1024
"""What a client may send ahead of its answer before no more is read."""
BODY_PATIENCE_S = 0.5
"""How long a body that has begun is awaited here; the full path has the real time-out."""
UNCOUNTED_BACKLOG_BYTES = 4096
"""What a client may send ahead without its being counted."""
REQUEST_COST_BYTES = 16 * 1024
"""What a request counts beside the bytes of its answer: it takes as long as copying so many."""
_MAX_HEAD_SIZE_BYTES = 4096


class FastPathServer(Protocol):
    """The server that a fast connection belongs to."""

    api: FastPathApi
    idle_timeout_s: float
    max_body_bytes: int
    hosts: Hosts
    has_fast_path: bool
    draining: bool
    """Whether the node is about to stop: each connection ends with its next answer."""
    memory: Memory
    outbox: Outbox
    turns: Turns
    now: Callable[[], float]
    """The loop's clock, in seconds."""

    def full_path(self) -> asyncio.Protocol:
        """Make aiohttp's protocol for a connection."""

    def serve_later(self, connection: FastConnection) -> None:
        """Call the connection's `resume` in the next turn of the loop that has something left."""

    def left(self, connection: FastConnection) -> None:
        """A connection is gone, or on the full path."""


class Pending:
    """A request under way; its answer comes here, as to a future, where no task waits for it."""

    __slots__ = ("_connection", "is_done", "line", "request", "started")

    def __init__(self, connection: FastConnection, line: PlainLine, request: KeyCall) -> None:
        self._connection = connection
        self.is_done = False
        self.line = line
        self.request = request
        self.started = perf_counter()

    def done(self) -> bool:
        """Whether it has been answered, or its client has gone."""
        return self.is_done

    def set_result(self, result: Result | QueryResult) -> None:
        """Answer with what was acknowledged, or read."""
        self.is_done = True
        self._connection.succeeded(self, result)

    def set_exception(self, error: BaseException) -> None:
        """Answer with a failure, or try on where that is known to be right."""
        self.is_done = True
        self._connection.failed(self, error)


class FastConnection(asyncio.Protocol, ABC):
    """One connection on the fast path. One request at a time, in the order they came."""

    __slots__ = (
        "_at_once", "_backlog", "_closing", "_ended", "_gone", "_held", "_host", "_input",
        "_lines", "_more", "_now", "_outgoing", "_partial", "_paused_at", "_pending", "_quiet",
        "_server", "_since", "_task", "_transport", "is_due",
    )  # fmt: skip

    def __init__(self, server: FastPathServer, lines: PlainLines) -> None:
        self._server = server
        self._lines = lines
        self._now = server.now
        self._host = ""  # whom its last request was for: a host once served is served for good
        self._transport: asyncio.Transport | None = None
        self._backlog = b""
        self._pending: Pending | None = None
        self._task: asyncio.Task[None] | None = None
        self._gone: asyncio.Future[None] | None = None
        self._closing = False
        self._ended = False  # the client has sent its last byte, and may still read
        self._quiet = False  # reading is paused: the client sends far ahead
        self._more = False  # what came with the request that is being served goes on behind it
        self._partial = False  # the first request in the backlog is not whole
        self._held: Share | None = None  # answers that the client does not take
        self._outgoing: Outgoing | None = None
        self._input: Share | None = None  # requests that wait
        self.is_due = False  # to be served in the next turn of the event loop, or a later one
        self._at_once = False  # what comes has waited for its turn already
        self._paused_at = 0.0  # since when the client takes none of its answers; 0: it does
        self._since = 0.0  # the last time that it became idle, or a body began

    @property
    def gone(self) -> asyncio.Future[None]:
        """Done when the connection is lost."""
        if self._gone is None:
            self._gone = asyncio.get_running_loop().create_future()
        return self._gone

    # -- asyncio's protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Serve the connection."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by its class
        self._at_once = isinstance(transport, TlsTransport)  # its records of a turn come together
        self._since = self._now()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 -- asyncio's signature
        """Forget the connection; a write under way goes on, its answer has nowhere to go."""
        self._transport = None
        self._backlog = b""
        self._give_back()
        if self._pending is not None and isinstance(self._pending.request, KeyRead):
            self._pending.is_done = True
            if self._task is not None:
                self._task.cancel()
        self._server.left(self)
        if self._gone is not None and not self._gone.done():
            self._gone.set_result(None)

    def data_received(self, data: bytes) -> None:
        """Take what has come; while a request is under way, it waits."""
        self._backlog = self._backlog + data if self._backlog else data
        if self._pending is None and not self._paused_at:
            if self._at_once:
                self._advance()
            else:
                self._server.serve_later(self)
        elif len(self._backlog) > MAX_BACKLOG_BYTES:
            self._stop_reading()
        if self._input is not None or len(self._backlog) > UNCOUNTED_BACKLOG_BYTES:
            self._count_input()

    def _count_input(self) -> None:
        """Count what waits here; where all clients together have sent too much, keep none of it.

        What has not been begun is not applied: the answer under way says that it is the last.
        """
        size_bytes = len(self._backlog)
        if self._input is not None:
            self._input.resize(size_bytes)
            if not size_bytes:
                self._input = None
        else:
            self._input = self._server.memory.hold(size_bytes)
        if self._input is None or self._server.memory.make_room():
            return
        if self._pending is not None:
            self._backlog = b""
            self._input.resize(0)
            self._input = None
            self._stop_reading()
            self.close()
        elif self._partial:
            self._leave()  # its body is refused there
        else:
            self._stop_reading()

    def _stop_reading(self) -> None:
        if self._transport is not None and not self._quiet:
            self._quiet = True
            self._transport.pause_reading()

    def _give_back(self) -> None:
        """Hold nothing any more."""
        for share in (self._held, self._input):
            if share is not None:
                share.resize(0)
        self._held = self._input = self._outgoing = None

    def eof_received(self) -> bool:
        """The client sends no more; what it has sent whole is answered before the end."""
        self._ended = True
        self._server.outbox.flush()  # the end may be at once
        if self._backlog and self._pending is None and not self._paused_at:
            self._server.serve_later(self)
        return self._transport is None or self._pending is not None or bool(self._backlog)

    @property
    def busy(self) -> bool:
        """Whether a request is under way, or has begun to arrive."""
        return self._pending is not None or bool(self._backlog)

    def pause_writing(self) -> None:
        """The client does not take its answers as fast as it asks: serve it no more for now."""
        self._paused_at = self._now()
        transport = self._transport
        if transport is not None:
            self._outgoing = Outgoing(transport, self._paused_at)
            self._held = self._server.memory.hold(
                transport.get_write_buffer_size(), transport.abort
            )

    def resume_writing(self) -> None:
        """It has caught up."""
        self._paused_at = 0.0
        if self._held is not None:
            self._held.resize(0)
            self._held = self._outgoing = None
        if self._pending is None:
            self._server.serve_later(self)

    # -- requests

    def _advance(self) -> None:
        """Serve what waits, until one is under way, more has to come, or others are due."""
        data, at = self._backlog, 0
        end = len(data)
        size: int | None = 1
        while size and at < end and self._may_serve():
            size = self._serve_one(data, at)
            at += size or 0
        self._backlog = data[at:] if at else data
        if size == 0:
            self._leave()
        elif size is None and self._ended and self._transport is not None:
            self._end(self._transport)  # the body will never be complete

    def _may_serve(self) -> bool:
        """Whether the next request may be served in this turn of the loop."""
        if self._pending is not None or self._paused_at or self._closing:
            return False
        transport = self._transport
        if transport is None or transport.is_closing():
            return False
        if self._server.turns.is_spent:
            self._server.serve_later(self)
            return False
        return True

    def _serve_one(self, data: bytes, at: int) -> int | None:
        """Serve the request at `at`, and return its size; 0: not plain; None: it is not whole."""
        line_end = data.find(b"\r\n", at, at + _MAX_HEAD_SIZE_BYTES)
        end = data.find(b"\r\n\r\n", line_end, at + _MAX_HEAD_SIZE_BYTES)
        if end < 0 or not self._server.has_fast_path:
            return 0
        line = self._lines[data[at:line_end]]
        if line is None:
            return 0
        block = blocks[data[line_end + 2 : end + 2]]
        if block is None or block.body_size_bytes > self._server.max_body_bytes:
            return 0
        if block.host != self._host:
            if not self._server.hosts.allows(block.host):
                return 0
            self._host = block.host
        if block.cluster is not None and block.cluster != self._server.api.node.views.cluster_id:
            return 0
        stop = end + 4 + block.body_size_bytes
        if len(data) < stop:
            if not self._partial:
                self._partial, self._since = True, self._now()
            return None
        self._partial = False
        self._more = stop < len(data)
        request = self._parse(line, block, data[end + 4 : stop])
        if isinstance(request, KeyRead):
            self._serve_read(line, request)
        elif request is not None:
            self._serve_write(line, request)
        return 0 if request is None else stop - at

    @abstractmethod
    def _parse(self, line: PlainLine, block: HeaderBlock, body: bytes) -> KeyCall | None:
        """Return what a request asks for; None: the full path has to judge it."""

    def _serve_read(self, line: PlainLine, read: KeyRead) -> None:
        server, query, started = self._server, read.query, perf_counter()
        node = server.api.node
        try:
            result = node.read_now(query)
        except OperationError:
            result = None
        if result is None:  # it has to wait: for the primary, say
            self._pending = pending = Pending(self, line, read)
            if not node.submit_query(query, read.timeout_ms, pending):
                self._start(self._read(pending, read, None))
            return
        try:
            answer = read.answer(result)
        except Exception as error:  # noqa: BLE001 -- whatever it is, the client gets an answer
            answer = server.api.refuse(error, line.method, line.target)
        if answer.is_large:
            self._pending = pending = Pending(self, line, read)
            self._start(self._send_in_turn(pending, answer))
        else:
            self._send(answer, line, read, started)
            server.turns.spend(answer.size_bytes + REQUEST_COST_BYTES)

    def _serve_write(self, line: PlainLine, write: KeyWrite) -> None:
        self._pending = pending = Pending(self, line, write)
        if not self._server.api.node.submit(write.operation, write.timeout_ms, pending):
            self._start(self._go_on(pending, write, None))  # it goes elsewhere, or waits

    def _start(self, answering: Coroutine[Any, Any, None]) -> None:
        self._task = asyncio.get_running_loop().create_task(answering)

    async def _read(self, pending: Pending, read: KeyRead, after: NotPrimaryError | None) -> None:
        left_ms = read.timeout_ms - int((perf_counter() - pending.started) * 1000)
        try:
            result = await self._server.api.node.query(read.query, left_ms, after)
        except Exception as error:  # noqa: BLE001 -- whatever it is, the client gets an answer
            self._refuse(pending, error)
        else:
            self.succeeded(pending, result)

    async def _send_in_turn(self, pending: Pending, answer: Answer) -> None:
        """Give an answer whose copying takes a millisecond or so: one of all in a turn."""
        await self._server.turns.take()
        self.answer(pending, answer)

    def answer(self, pending: Pending, answer: Answer) -> None:
        """Answer the request under way, and go on with what has come meanwhile."""
        try:
            self._send(answer, pending.line, pending.request, pending.started)
        finally:
            self._pending = None
        if self._backlog:  # not here: this is called from within the pipeline, amid others' answers
            self._server.serve_later(self)

    def resume(self) -> None:
        """It is this connection's turn: serve what waits, and read on."""
        self.is_due = False
        if self._pending is not None or self._paused_at:
            return
        self._advance()
        if self._quiet and len(self._backlog) <= MAX_BACKLOG_BYTES and self._transport is not None:
            self._quiet = False
            self._transport.resume_reading()
        if self._input is not None:
            self._count_input()

    def succeeded(self, pending: Pending, result: Result | QueryResult) -> None:
        """Answer with what was acknowledged, or read."""
        make_answer: Callable[[Any], Answer] = pending.request.answer
        try:
            answer = make_answer(result)
        except Exception as error:  # noqa: BLE001 -- the others must be answered, whatever it is
            answer = self._server.api.refuse(error, pending.line.method, pending.line.target)
        if answer.is_large:
            self._start(self._send_in_turn(pending, answer))
        else:
            self.answer(pending, answer)

    def failed(self, pending: Pending, error: BaseException) -> None:
        """Go on elsewhere after what is known not to be applied, or safe to repeat; else say so."""
        match pending.request, error:
            case KeyRead() as read, NotPrimaryError():
                self._start(self._read(pending, read, error))
            case KeyWrite() as write, OperationError() if may_repeat(write.operation, error):
                self._start(self._go_on(pending, write, error))
            case _, Exception():
                self._refuse(pending, error)

    def _refuse(self, pending: Pending, error: Exception) -> None:
        line = pending.line
        self.answer(pending, self._server.api.refuse(error, line.method, line.target))

    async def _go_on(self, pending: Pending, write: KeyWrite, after: OperationError | None) -> None:
        api = self._server.api
        left_ms = write.timeout_ms - int((perf_counter() - pending.started) * 1000)
        caller = write.caller
        try:
            if caller is not None and after is None:
                # A1: here too. After an attempt what this node says would be no answer to that.
                await api.access.admit(caller, Need(write.right))
            result = await api.node.execute(write.operation, max(1, left_ms), after)
        except Exception as error:  # noqa: BLE001 -- whatever it is, the client gets an answer
            self._refuse(pending, error)
        else:
            self.succeeded(pending, result)

    def _send(self, answer: Answer, line: PlainLine, request: KeyCall, started: float) -> None:
        server, transport = self._server, self._transport
        if answer.refuses_caller:
            server.api.note_refusal(answer, line.method, line.target, request.caller, transport)
        if answer.is_large and not server.memory.make_room(answer.size_bytes):
            crowded = OverloadedError("overloaded", TOO_MUCH_HELD)
            answer = server.api.refuse(crowded, line.method, line.target)
        if transport is not None:
            closes = self._closing or answer.closes
            if self._ended or server.draining:
                closes = closes or not (self._more if self._pending is None else self._backlog)
            data = answer.as_bytes(closes=closes)
            if not self._at_once:
                server.outbox.send(transport, data)
            elif not transport.is_closing():
                transport.write(data)
            if closes:
                self._end(transport)
        self._since = self._now()
        server.api.observe(line.method, line.target, answer, perf_counter() - started)

    # -- lifetime

    def _leave(self) -> None:
        """Give the connection to aiohttp, with all that has come on it."""
        transport, backlog = self._transport, self._backlog
        if transport is None:
            return
        if begins_tls(backlog):
            text = "a client speaks TLS to this port, which has none: it needs an http:// URL"
            self._server.api.complaints.log("TLS", text, self._now(), level=logging.WARNING)
        self._transport, self._backlog = None, b""
        self._give_back()
        self._server.left(self)
        if self._quiet:
            transport.resume_reading()
        protocol = self._server.full_path()
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        protocol.data_received(backlog)
        if self._ended and not protocol.eof_received():
            self._end(transport)

    def check(self, now: float) -> None:
        """Close it if it is idle too long; called again and again."""
        transport = self._transport
        if transport is None:
            return
        if self._outgoing is not None:
            if self._outgoing.look(now) and self._held is not None:
                self._held.moved()
            elif self._outgoing.has_stopped(now):
                # A client that asks and never reads would hold its answers' memory for ever.
                transport.abort()
        elif self._backlog:
            if self._partial and now - self._since > BODY_PATIENCE_S:
                self._leave()
        elif self._pending is None and now - self._since > self._server.idle_timeout_s:
            transport.close()

    def close(self) -> None:
        """Serve no further request; close when the one under way is answered."""
        self._closing = True
        if self._pending is None and self._transport is not None:
            self._end(self._transport)

    def _end(self, transport: asyncio.Transport) -> None:
        """Close, after what has been answered."""
        self._server.outbox.flush()
        transport.close()

    def abort(self) -> None:
        """Close at once."""
        if self._task is not None:
            self._task.cancel()
        if self._transport is not None:
            self._transport.abort()
