"""Events as watchers get them: encoded once, shared by all who are sent the same.

An event is all that one revision has changed of what is watched:

    {"revision": 43, "changes": [
        {"key": "a", "text": "1", "revision": 43, "create_revision": 40, "version": 2},
        {"key": "b", "deleted": true, "reason": "deleted", "revision": 43}]}

A value is `text` if it is UTF-8, or else `value`, in base64. One without changes only says how far
the watcher is: *progress*. As server-sent events the revision is the `id`, too.

An event of an election is who leads from one revision on; progress has no `leader`:

    {"revision": 43, "election": "jobs", "leader": {"token": 43, "lease": "7", "value": "host 1"}}
    {"revision": 52, "election": "jobs", "leader": null}
"""

from __future__ import annotations

import binascii
from typing import Literal, Protocol

import msgspec

from cluster.api.page import fields_of
from cluster.api.problems import ProblemError
from cluster.services.kv import EntryChange, changes
from cluster.services.lock_state import Holder, decode_holder
from datapath.execution.changes import Event, Span
from datapath.keyspaces import LOCKS

Form = Literal["sse", "ndjson"]
CONTENT_TYPES: dict[Form, bytes] = {
    "sse": b"text/event-stream",
    "ndjson": b"application/x-ndjson",
}
ENCODED_SIZE_BYTES = 4 * 1024 * 1024
"""What is kept of encoded events, for the next watcher that is sent them."""

_encode = msgspec.json.Encoder().encode


class EventEncoder(Protocol):
    """Makes what the watchers of one keyspace are sent."""

    def encode(self, event: Event, span: Span, form: Form) -> bytes:
        """Return an event of a stream."""

    def progress(self, form: Form, revision: int) -> bytes:
        """Return the event that says: nothing else up to this revision."""

    def end(self, form: Form, problem: ProblemError) -> bytes:
        """Return the last event of a stream: why the node ends it. It moves no resume point."""


class _Encoded:
    """One revision's changes, and what has been made of them."""

    __slots__ = ("_documents", "_parts", "changes", "revision", "size_bytes")

    def __init__(self, event: Event) -> None:
        self.revision = event.revision
        self.changes = changes(event.entry)
        self._parts: list[bytes | None] = [None] * len(self.changes)
        self._documents: dict[tuple[Form | None, tuple[int, ...]], bytes] = {}
        self.size_bytes = sum(len(change.key) + len(change.value) for change in self.changes)

    def document(self, form: Form | None, wanted: tuple[int, ...]) -> bytes:
        """Return the event with these of its changes; `form` None: the JSON alone."""
        found = self._documents.get((form, wanted))
        if found is None:
            if form is None:
                parts = b",".join(self._part(at) for at in wanted)
                found = b'{"revision":%d,"changes":[%b]}' % (self.revision, parts)
            else:
                found = framed(form, self.revision, self.document(None, wanted))
            self._documents[form, wanted] = found
            self.size_bytes += len(found)
        return found

    def _part(self, at: int) -> bytes:
        part = self._parts[at]
        if part is None:
            part = self._parts[at] = _change(self.changes[at], self.revision)
            self.size_bytes += len(part)
        return part


class Encoder:
    """Encodes events of keys, and keeps the newest of them in a bounded memory."""

    def __init__(self) -> None:
        self._events: dict[int, _Encoded] = {}
        self._size_bytes = 0

    def encode(self, event: Event, span: Span, form: Form | None) -> bytes:
        """Return what a watcher of `span` is sent; `form` None: the JSON document alone."""
        found = self._events.get(event.revision)
        if found is None:
            found = self._events[event.revision] = _Encoded(event)
            self._size_bytes += found.size_bytes
        before_bytes = found.size_bytes
        wanted = tuple(at for at, change in enumerate(found.changes) if span.covers(change.key))
        document = found.document(form, wanted)
        self._size_bytes += found.size_bytes - before_bytes
        while self._size_bytes > ENCODED_SIZE_BYTES:
            oldest = self._events.pop(next(iter(self._events)))
            self._size_bytes -= oldest.size_bytes
        return document

    def progress(self, form: Form, revision: int) -> bytes:
        """Return the event that says: nothing else up to this revision."""
        return _progress_event(form, revision, progress_document(revision))

    def end(self, form: Form, problem: ProblemError) -> bytes:
        """Return the last event of a stream."""
        return end_event(form, problem)


class LeaderEncoder:
    """Encodes events of elections, and keeps the newest: those who observe one get the same."""

    def __init__(self) -> None:
        self._newest: tuple[int, bytes, Form] | None = None
        self._data = b""

    def encode(self, event: Event, span: Span, form: Form) -> bytes:
        """Return who leads from this revision on; `span` is the election's name."""
        name = span.start
        if self._newest != (event.revision, name, form):
            [*_, stored] = [
                value for keyspace, key, value in event.entry if (keyspace, key) == (LOCKS, name)
            ]
            holder = None if stored is None else decode_holder(stored)
            self._newest = event.revision, name, form
            self._data = leader_event(form, event.revision, name, holder)
        return self._data

    def progress(self, form: Form, revision: int) -> bytes:
        """Return the event that says: nobody else up to this revision."""
        return _progress_event(form, revision, b'{"revision":%d}' % revision)

    def end(self, form: Form, problem: ProblemError) -> bytes:
        """Return the last event of a stream."""
        return end_event(form, problem)


def leader_event(form: Form, revision: int, name: bytes, holder: Holder | None) -> bytes:
    """Return the event of an election: who leads at this revision, None for nobody."""
    leader = None
    if holder is not None:
        value = holder.note.decode("utf-8", "replace")
        leader = {"token": holder.token, "lease": str(holder.lease), "value": value}
    election = name.decode("utf-8", "replace")
    document = {"revision": revision, "election": election, "leader": leader}
    return framed(form, revision, _encode(document))


def framed(form: Form, revision: int, document: bytes) -> bytes:
    """Return a document as one event of a stream."""
    if form == "ndjson":
        return document + b"\n"
    return b"id: %d\ndata: %b\n\n" % (revision, document)


def progress_document(revision: int) -> bytes:
    """Return the event that says: nothing else up to this revision."""
    return b'{"revision":%d,"changes":[]}' % revision


def _progress_event(form: Form, revision: int, document: bytes) -> bytes:
    """Frame progress; as a server-sent event it is of the type `progress`."""
    name = b"event: progress\n" if form == "sse" else b""
    return name + framed(form, revision, document)


def end_event(form: Form, problem: ProblemError) -> bytes:
    """Return the last event of a stream: why the node ends it. It moves no resume point."""
    body = problem.body(write=False)
    return b'{"end":%b}\n' % body if form == "ndjson" else b"event: end\ndata: %b\n\n" % body


def _change(change: EntryChange, revision: int) -> bytes:
    # A key that came in by another way than this API need not be UTF-8.
    name = _encode(change.key.decode("utf-8", "replace"))
    if change.head is None:
        reason = _encode(change.reason)
        return b'{"key":%b,"deleted":true,"reason":%b,"revision":%d}' % (name, reason, revision)
    try:
        held = b'"text":%b' % _encode(change.value.decode())
    except UnicodeDecodeError:
        held = b'"value":"%b"' % binascii.b2a_base64(change.value, newline=False)
    return b'{"key":%b,%b,%b' % (name, held, fields_of(*change.head))
