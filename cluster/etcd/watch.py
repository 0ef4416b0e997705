"""`/v3/watch`: etcd's watches, one on each stream, over this node's own watchers.

An answer never ends: lines of JSON, each a chunk of the body, as etcd's gateway sends them.
"""

from __future__ import annotations

import msgspec
from aiohttp.web import BaseRequest

from cluster.api.access import ApiAccess
from cluster.api.answer import JSON, Answer, transport_of
from cluster.api.events import Form
from cluster.api.problems import ProblemError
from cluster.api.streams import Streams
from cluster.api.watch import take_over
from cluster.etcd.answers import Document, encode, key_value
from cluster.etcd.backend import Backend
from cluster.etcd.errors import compacted, from_problem, invalid
from cluster.etcd.messages import EtcdWatchRequest, WatchCreateRequest
from cluster.etcd.ranges import EtcdKey, key_bounds
from cluster.services.kv import EntryChange, changes
from datapath.errors import CompactedError
from datapath.execution.changes import Event, Span
from datapath.operations import Principal

_ALL_KEYS = b"\0"
_NO_WATCH = -1


def chunk(document: Document) -> bytes:
    """Return a message of a stream, as one chunk of the answer's body."""
    line = encode({"result": document}) + b"\n"
    return b"%x\r\n%b\r\n" % (len(line), line)


LAST_CHUNK = b"0\r\n\r\n"


class WatchCalls:
    """The calls of the service Watch."""

    def __init__(self, backend: Backend, streams: Streams, access: ApiAccess) -> None:
        self._backend = backend
        self._streams = streams
        self._access = access

    async def watch(self, requests: list[EtcdWatchRequest]) -> Answer:
        """Begin the first watch that is asked for; a stream has one."""
        creates = [item.create_request for item in requests if item.create_request is not None]
        if not creates:
            raise invalid("onecopy: the stream must begin with a create_request")
        request = creates[0]
        backend, streams = self._backend, self._streams
        span = _span_of(request)
        known = await backend.now()
        header = backend.header(known.index, known.epoch)
        refused = b"".join(
            chunk(_canceled(header, number, "onecopy: a stream has one watch: open another"))
            for number, _ in enumerate(creates[1:], request.watch_id + 1)
        )
        if span.end is not None and span.start >= span.end:
            return _ended(chunk(_canceled(header, _NO_WATCH, "mvcc: watcher range is empty")))
        if request.start_revision < 0:
            reason = compacted().message
            return _ended(chunk(_canceled(header, _NO_WATCH, reason)))
        caller = await self._access.enter_watch(span)
        streams.check_open()
        after = request.start_revision - 1 if request.start_revision else known.index
        created: Document = {"header": header, **_numbered(request.watch_id), "created": True}
        first = chunk(created) + refused
        try:
            streams.history.check(min(after, streams.history.feed.index))
        except CompactedError as error:
            ended: Document = {
                "header": backend.header(0, known.epoch),
                **_numbered(request.watch_id),
                "canceled": True,
                "compact_revision": str(error.oldest + 1),
            }
            return _ended(first + chunk(ended))
        encoder = EtcdEvents(backend, request)
        return _Watching(streams, span, after, first, caller, encoder)


def _span_of(request: WatchCreateRequest) -> Span:
    key = request.key or _ALL_KEYS  # as etcd takes it
    return Span(*key_bounds(key, request.range_end))


def _numbered(watch_id: int) -> Document:
    return {"watch_id": str(watch_id)} if watch_id else {}


def _canceled(header: msgspec.Raw, watch_id: int, reason: str) -> Document:
    return {
        "header": header,
        **_numbered(watch_id),
        "created": True,
        "canceled": True,
        "cancel_reason": reason,
    }


class EtcdEvents:
    """Makes what one watch of etcd's is sent."""

    def __init__(self, backend: Backend, request: WatchCreateRequest) -> None:
        self._backend = backend
        self._filters = frozenset(request.filters)
        self._tells_progress = request.progress_notify
        self._numbered = _numbered(request.watch_id)

    def encode(self, event: Event, span: Span, form: Form) -> bytes:  # noqa: ARG002 -- one form
        """Return what one revision has changed of what is watched, but for what is filtered out."""
        events = [
            _event(change, event.revision)
            for change in changes(event.entry)
            if span.covers(change.key)
            and ("NODELETE" if change.head is None else "NOPUT") not in self._filters
        ]
        return self._message(event.revision, {"events": events}) if events else b""

    def progress(self, form: Form, revision: int) -> bytes:  # noqa: ARG002 -- one form
        """Return how far the watch is, if that was asked for."""
        return self._message(revision, {}) if self._tells_progress else b""

    def end(self, form: Form, problem: ProblemError) -> bytes:  # noqa: ARG002 -- one form
        """Return why the watch ends."""
        node = self._backend.node
        header = self._backend.header(0, node.epoch)
        if problem.code == "revision_compacted":
            fields: Document = {"compact_revision": str(int(problem.oldest or 0) + 1)}
        else:
            fields = {"cancel_reason": from_problem(problem).message}
        document = {"header": header, **self._numbered, "canceled": True, **fields}
        return chunk(document) + LAST_CHUNK

    def _message(self, revision: int, fields: Document) -> bytes:
        header = self._backend.header(revision, self._backend.node.epoch)
        return chunk({"header": header, **self._numbered, **fields})


def _event(change: EntryChange, revision: int) -> Document:
    if change.head is None:
        return {"type": "DELETE", "kv": {"key": change.key, "mod_revision": str(revision)}}
    return {"kv": key_value(EtcdKey(change.key, change.value, *change.head))}


class ChunkedAnswer(Answer):
    """An answer whose body is chunks: `chunks` are those that are there already."""

    def __init__(self, chunks: bytes, *, closes: bool = False) -> None:
        lines = b"Content-Type: %b\r\nTransfer-Encoding: chunked\r\n" % JSON
        super().__init__(200, None, headers=lines, closes=closes)
        self._chunks = chunks

    def _head(self, end: bytes) -> bytes:
        return super()._head(end) + self._chunks


def _ended(chunks: bytes) -> ChunkedAnswer:
    """Return a stream that is over at once."""
    return ChunkedAnswer(chunks + LAST_CHUNK, closes=True)


class _Watching(ChunkedAnswer):
    """The head of a watch; then the connection is a watcher's."""

    def __init__(
        self,
        streams: Streams,
        span: Span,
        after: int,
        first: bytes,
        caller: Principal | None,
        encoder: EtcdEvents,
    ) -> None:
        super().__init__(b"", closes=True)
        self._first = first
        self._streams = streams
        self._watch = span, after, caller, encoder

    async def send(self, request: BaseRequest, *, closes: bool) -> None:
        """Send the head, and hand the connection over."""
        del closes
        transport_of(request).write(self._head_for(request, closes=True))
        span, after, caller, encoder = self._watch
        transport = take_over(request.protocol)
        self._streams.begin(transport, span, after, "ndjson", self._first, caller, encoder)
