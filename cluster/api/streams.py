"""The connections of watchers: a plain protocol each, with no task and no request object.

A watch begins as any request does, and its answer never ends: the connection leaves aiohttp's
hands, and whatever a watcher is sent is written to it here. Who reads slowly is written nothing
until he has caught up, and then reads on from the log (W4).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol

from cluster.api.answer import Outgoing
from cluster.api.events import Encoder, EventEncoder, Form, LeaderEncoder
from cluster.api.memory import Memory, Share
from cluster.api.next_change import NextChange
from cluster.api.problems import ProblemError, from_operation_error
from datapath.complaints import Complaints
from datapath.errors import CompactedError
from datapath.execution.changes import Event, Span, Watcher
from datapath.keyspaces import KV, LOCKS
from datapath.node.history import History
from datapath.operations import Principal
from datapath.tasks import Tasks
from datapath.turns import Turns

PROGRESS_INTERVAL_S = 10.0
"""A watcher that was sent nothing for so long is told how far it is."""
MAX_PROGRESS_PER_CHECK = 1000
"""How many watchers are told so at once, each CHECK_INTERVAL_S of the server."""
WATCH_BUFFER_SIZE_BYTES = 64 * 1024
"""What a watcher may leave untaken before it is written no more."""
STOPPED_WATCHER_TIMEOUT_S = 600.0
"""A watcher that takes nothing for so long is cut off: it can resume."""
WRITE_COST_BYTES = 16 * 1024
"""What an event to a watcher counts beside its bytes: it takes as long as copying so many."""
END_LINGER_S = 2.0
"""How long a watcher may take to read that its watch has ended."""
OUT_OF_TOUCH_S = 5.0
"""A node that was in touch with no primary for so long sends its watchers to another."""


class WatchedNode(Protocol):
    """What streams need of the node."""

    node_id: str

    @property
    def is_ready(self) -> bool:
        """Whether this node is in touch with a serving primary."""

    @property
    def history(self) -> History | None:
        """What has changed on this node's replica; None on a witness."""


class StreamServer(Protocol):
    """What streams need of the server."""

    memory: Memory
    turns: Turns
    now: Callable[[], float]


class Streams:
    """All watchers of one node, no more than `max_watchers`."""

    def __init__(
        self, node: WatchedNode, server: StreamServer, max_watchers: int, complaints: Complaints
    ) -> None:
        self._node = node
        self.encoder = Encoder()
        self.encoders: dict[int, EventEncoder] = {KV: self.encoder, LOCKS: LeaderEncoder()}
        """By the keyspace that is watched."""
        self.memory = server.memory
        self.max_watchers = max_watchers
        self.ended: ProblemError | None = None
        """Why there are no watchers any more on this node, or not now."""
        self.events_total = 0
        self._server = server
        self._complaints = complaints
        self._tasks = Tasks(self._complain)
        self._due: deque[WatchConnection] = deque()
        self._scheduled = False
        self._open: dict[WatchConnection, None] = {}  # the one that was sent something last, last
        self._paused: set[WatchConnection] = set()
        self._waiting: set[NextChange] = set()
        self._judged = asyncio.Event()  # not set: it is looked at who may still watch
        self._judged.set()
        self.on_watcher: Callable[[], None] = lambda: None
        """Called when there is one more."""
        self._in_touch_at = server.now()

    @property
    def history(self) -> History:
        """What has changed here. Raises Problem on a witness."""
        history = self._node.history
        if history is None:
            raise ProblemError("no_data", f"{self._node.node_id} is a witness: it holds no data")
        return history

    @property
    def count(self) -> int:
        """How many watchers there are."""
        return len(self._open) + len(self._waiting)

    def check_open(self) -> None:
        """Raise the Problem that a new watcher is refused with, if it is."""
        if self.ended is not None:
            raise self.ended.with_traceback(None)
        if self.count >= self.max_watchers:
            raise ProblemError(
                "too_many_watchers",
                f"this node has {self.max_watchers} watchers already (limits.max_watchers): ask "
                "another, or watch several keys by one prefix",
            )

    def numbers(self) -> dict[str, float]:
        """Return numbers for metrics."""
        return {
            "watchers": self.count,
            "watchers_paused": len(self._paused),
            "watch_events_total": self.events_total,
        }

    # -- streams

    def begin(
        self,
        transport: asyncio.Transport,
        span: Span,
        after: int,
        form: Form,
        first: bytes | None = None,
        caller: Principal | None = None,
        encoder: EventEncoder | None = None,
    ) -> None:
        """Take over a connection, whose head has been written.

        `first` is the event of `after` itself; None: where the watch begins is progress. `caller`:
        for whom it is; None: nobody is judged. `encoder`: this watch's own.
        """
        encoder = encoder or self.encoders[span.keyspace]
        first = encoder.progress(form, after) if first is None else first
        WatchConnection(self, transport, Watched(span, after, form, encoder, first, caller))

    def transports(self) -> list[asyncio.Transport | None]:
        """Return the connections of all watchers."""
        return [connection._transport for connection in self._open]

    def joined(self, connection: WatchConnection) -> None:
        """A watcher is there."""
        self._open[connection] = None
        self.on_watcher()

    def left(self, connection: WatchConnection) -> None:
        """A watcher has gone."""
        self._open.pop(connection, None)
        self._paused.discard(connection)

    def sent(self, connection: WatchConnection) -> float:
        """A watcher is sent something: return the time, in seconds."""
        if connection in self._open:
            del self._open[connection]
            self._open[connection] = None
        return self._server.now()

    def paused(self, connection: WatchConnection, *, is_paused: bool) -> None:
        """A watcher takes no more, or takes again."""
        (self._paused.add if is_paused else self._paused.discard)(connection)

    def go_on_soon(self, connection: WatchConnection) -> None:
        """Let a watcher go on in a turn of the loop to come, after those that are due before."""
        self._due.append(connection)
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        self._scheduled = False
        turns = self._server.turns
        while self._due and not turns.is_spent and self._judged.is_set():
            connection = self._due.popleft()
            try:
                turns.spend(connection.resume())
            except Exception as error:  # noqa: BLE001 -- one watcher's trouble is no other's
                self._complain(error)
                connection.abort()
        if self._due and self._judged.is_set():
            self._schedule()

    def hold(self) -> None:
        """Send nothing more until `release`: the rights of those who watch have changed (A1)."""
        self._judged.clear()

    def release(self) -> None:
        """Go on: who may watch no more was refused."""
        self._judged.set()
        self._schedule()

    def read_log(self, connection: WatchConnection) -> None:
        """Let a watcher that is behind read on from the log."""
        self._tasks.spawn(connection.read_log())

    def spend(self, cost_bytes: int) -> None:
        """Something was done for a watcher outside of `resume`."""
        self._server.turns.spend(cost_bytes)

    def _complain(self, error: BaseException) -> None:
        text = "a watcher could not be served"
        self._complaints.log(f"watch {type(error).__name__}", text, self._server.now(), error=error)

    # -- those who wait for one change

    async def next_event(
        self, span: Span, after: int, timeout_s: float, caller: Principal | None = None
    ) -> Event | int:
        """Wait for the next change; without one, return up to which revision there was none.

        Raises CompactedError, and Problem if there are too many watchers, or the right has gone.
        """
        self.check_open()
        feed, changed = self.history.feed, asyncio.Event()
        watcher = Watcher(span, after, changed.set)
        waiting = NextChange(caller, span, changed)
        self._waiting.add(waiting)
        self.on_watcher()
        try:
            async with asyncio.timeout(timeout_s):
                while self.ended is None and not waiting.is_refused():
                    changed.clear()
                    progress, found = feed.take(watcher)
                    if progress == "log":
                        await self.history.read(watcher, found.extend)
                    if found:
                        await self._judged.wait()
                        if waiting.is_refused():
                            break
                        return found[0]
                    if progress == "parked":
                        await changed.wait()
                    else:
                        await self._server.turns.take()
        except TimeoutError:
            pass
        finally:
            self._waiting.discard(waiting)
            reached = feed.progress(watcher)
            feed.leave(watcher)
        if waiting.refused is not None:
            raise waiting.refused
        return reached

    def any_caller(self) -> Principal | None:
        """Return the caller of some watcher that has one, or None."""
        return next((item.caller for item in self.watched() if item.caller is not None), None)

    def watched(self) -> list[WatchConnection | NextChange]:
        """Return all who watch; each can be refused to go on."""
        return [*self._open, *self._waiting]

    def end_for_now(self, reason: str) -> None:
        """End all watches until this node is in touch with a primary again."""
        if self.ended is None:
            self.end(ProblemError("not_ready", f"{reason}: watch another node"))

    # -- time, and the end

    def check(self) -> None:
        """Look at all: who was sent nothing for long, who takes nothing; again and again."""
        now = self._server.now()
        if self._node.is_ready:
            self._in_touch_at = now
            if self.ended is not None and self.ended.code == "not_ready":
                self.ended = None
        elif now - self._in_touch_at > OUT_OF_TOUCH_S and self.ended is None:
            self.end(
                ProblemError("not_ready", "this node is in touch with no primary: watch another")
            )
        for connection in list(self._paused):
            connection.check(now)
        for connection, _ in zip(list(self._open), range(MAX_PROGRESS_PER_CHECK), strict=False):
            if now - connection.sent_at < PROGRESS_INTERVAL_S:
                break
            connection.send_progress()

    def end(self, problem: ProblemError) -> None:
        """End all watches, some in a turn, and take no more: clients resume at another node."""
        self.ended = problem
        for connection in self._open:
            connection.wake()
        for waiting in list(self._waiting):
            waiting.changed.set()

    async def stop(self) -> None:
        """Leave nothing behind."""
        await self._tasks.stop()
        for connection in list(self._open):
            if self.ended is not None:
                connection.end(self.ended)
            connection.abort()


class Watched(NamedTuple):
    """What one connection watches, after which revision, what it is sent at once, and for whom."""

    span: Span
    after: int
    form: Form
    encoder: EventEncoder
    first: bytes
    caller: Principal | None


class WatchConnection(asyncio.Protocol):
    """One watcher's connection. What its client still sends is dropped."""

    __slots__ = (
        "_after", "_encoder", "_form", "_has_caught_up", "_is_due", "_is_paused", "_is_reading",
        "_outgoing", "_refused", "_share", "_streams", "_transport", "_watcher", "caller",
        "sent_at",
    )  # fmt: skip

    def __init__(self, streams: Streams, transport: asyncio.Transport, watched: Watched) -> None:
        self.caller = watched.caller
        self._refused: ProblemError | None = None
        self._streams = streams
        self._transport: asyncio.Transport | None = transport
        self._form: Form = watched.form
        self._encoder = watched.encoder
        self._watcher = Watcher(watched.span, watched.after, self.wake)
        self._after = watched.after
        self._has_caught_up = False
        self._is_due = False
        self._is_paused = False
        self._is_reading = False  # a task reads the log for it
        self._share: Share | None = None
        self._outgoing: Outgoing | None = None
        self.sent_at = 0.0
        streams.joined(self)
        transport.set_protocol(self)
        transport.resume_reading()  # else nobody would notice that the client has gone
        transport.set_write_buffer_limits(high=WATCH_BUFFER_SIZE_BYTES)
        # Where the watch begins: a client that loses the connection before anything has changed
        # can resume, too.
        self._write(watched.first)
        self.wake()

    # -- asyncio's protocol

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 -- asyncio's signature
        """The watcher has gone."""
        self._transport = None
        self._streams.history.feed.leave(self._watcher)
        self._streams.left(self)
        self._give_back()

    def data_received(self, data: bytes) -> None:
        """Drop it: the answer to the watch never ends."""

    def eof_received(self) -> bool:
        """The client sends no more: it is taken for gone."""
        return False

    def pause_writing(self) -> None:
        """The watcher takes no more for now: it is written nothing until it does."""
        transport = self._transport
        self._is_paused = True
        if transport is None:
            return
        self._outgoing = Outgoing(transport, self._streams.memory.now())
        # Where clients leave too much untaken, it is cut off among the first: it can resume.
        memory = self._streams.memory
        self._share = memory.hold(transport.get_write_buffer_size(), transport.abort)
        memory.make_room()
        self._streams.paused(self, is_paused=True)

    def resume_writing(self) -> None:
        """It has caught up with what was written."""
        self._is_paused = False
        self._give_back()
        self._streams.paused(self, is_paused=False)
        self.wake()

    def _give_back(self) -> None:
        if self._share is not None:
            self._share.resize(0)
        self._share = self._outgoing = None

    # -- what it is sent

    def wake(self) -> None:
        """Let it go on in a turn to come: there may be something to send."""
        if not self._is_due and not self._is_reading:
            self._is_due = True
            self._streams.go_on_soon(self)

    @property
    def span(self) -> Span:
        """The keys that are watched."""
        return self._watcher.span

    def refuse(self, problem: ProblemError) -> None:
        """End it, and send nothing of what it has not been sent: its caller's right has gone."""
        self._refused = problem
        self.wake()

    def resume(self) -> int:
        """Send what comes next, and return what it has cost, in bytes."""
        self._is_due = False
        if (problem := self._refused or self._streams.ended) is not None:
            self.end(problem)
            return WRITE_COST_BYTES
        if self._transport is None or self._is_paused or self._is_reading:
            return 0
        progress, events = self._streams.history.feed.take(self._watcher)
        if progress == "log":
            self._is_reading = True
            self._streams.read_log(self)
        elif progress == "more":
            self.wake()
        elif not self._has_caught_up:
            self._has_caught_up = True
            if self._streams.history.feed.progress(self._watcher) > self._after:
                self.send_progress()  # a client that copies what it watches waits for that
        return self._send(events)

    async def read_log(self) -> None:
        """Read on from the log, once, and send what is found there."""
        try:
            await self._streams.history.read(
                self._watcher, lambda events: self._streams.spend(self._send(events))
            )
        except CompactedError as error:
            self.end(from_operation_error(error))
        except Exception:
            self.abort()
            raise
        self._is_reading = False
        self.wake()

    def _send(self, events: list[Event]) -> int:
        """Send events, and return what it costs to, in bytes."""
        cost_bytes = WRITE_COST_BYTES
        if events and self._refused is None:
            encode, span = self._encoder.encode, self._watcher.span
            data = b"".join([encode(event, span, self._form) for event in events])
            self._streams.events_total += len(events)
            cost_bytes += len(data)
            self._write(data)
        return cost_bytes

    def _write(self, data: bytes) -> None:
        self.sent_at = self._streams.sent(self)
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def send_progress(self) -> None:
        """Say how far it is, if it is not about to be sent something anyway."""
        if self._watcher.is_parked and not self._is_paused:
            revision = self._streams.history.feed.progress(self._watcher)
            self._write(self._encoder.progress(self._form, revision))
        else:
            self.sent_at = self._streams.sent(self)

    def check(self, now: float) -> None:
        """Cut it off if it takes nothing too long; called again and again while it is paused."""
        if self._outgoing is None or self._transport is None:
            return
        if self._outgoing.look(now):
            if self._share is not None:
                self._share.moved()
        elif now - self._outgoing.moved_at > STOPPED_WATCHER_TIMEOUT_S:
            self._transport.abort()

    # -- the end

    def end(self, problem: ProblemError) -> None:
        """Send why it ends, and close; one that takes nothing is just cut off."""
        transport = self._transport
        if transport is None:
            return
        self._streams.history.feed.leave(self._watcher)
        if self._is_paused:
            transport.abort()
            return
        self._write(self._encoder.end(self._form, problem))
        self._transport = None
        transport.close()
        asyncio.get_running_loop().call_later(END_LINGER_S, transport.abort)

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()
