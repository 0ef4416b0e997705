"""What nodes ask of each other beside replication, and the asking side: calls with an id.

A call that got no answer proves nothing about whether it was carried out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Literal

import msgspec

from datapath.errors import (
    DataPathError,
    NotAppliedError,
    NotPrimaryError,
    OperationError,
    OverloadedError,
    RejectedError,
    StorageFullError,
    UnknownOutcomeError,
)
from datapath.link import Link
from datapath.operations import ClusterStatus, Operation, Query, QueryResult, Result
from election.view import Member, View

MAX_OPEN_CALLS = 50_000


class _Body(msgspec.Struct, frozen=True, array_like=True, gc=False):
    pass


class ExecuteCall(_Body, frozen=True, tag=1):
    """Execute on you, the primary; do not forward."""

    operation: Operation
    timeout_ms: int


class QueryCall(_Body, frozen=True, tag=2):
    """Answer from you, the primary, or from your own state if it may be stale."""

    query: Query
    timeout_ms: int


class ReadIndexCall(_Body, frozen=True, tag=3):
    """Which index must a replica have applied to answer a linearizable read that starts now?

    `confirmed`: the answer may not rest on leases (decision 17).
    """

    confirmed: bool = False


class StatusCall(_Body, frozen=True, tag=4):
    """How does the cluster look to you?"""


class HandoverCall(_Body, frozen=True, tag=5):
    """Hand over to `to`."""

    to: str
    timeout_ms: int


class HelloCall(_Body, frozen=True, tag=7):
    """I am `node` with data directory `data_id`: may I take part, and is there a view already?

    `joined`: I have taken part with this directory; am I still a member?
    """

    node: str
    data_id: str
    joined: bool = False


class JoinCall(_Body, frozen=True, tag=8):
    """Make me a member (or register my disk)."""

    member: Member
    timeout_ms: int


class ViewNote(_Body, frozen=True, tag=9):
    """A committed view, for who hasn't heard of it yet. Needs no answer."""

    view: View


class NoticeNote(_Body, frozen=True, tag=10):
    """What an operator should know of, for everybody's status. Needs no answer."""

    text: str


class PingCall(_Body, frozen=True, tag=20):
    """Are you there?"""


class RemoveCall(_Body, frozen=True, tag=21):
    """Remove `node`; `force` as in `Node.remove_member`. `asked_by` is for the log."""

    node: str
    timeout_ms: int
    force: bool
    asked_by: str


Call = (
    ExecuteCall
    | QueryCall
    | ReadIndexCall
    | StatusCall
    | HandoverCall
    | HelloCall
    | JoinCall
    | ViewNote
    | NoticeNote
    | PingCall
    | RemoveCall
)


class ExecuteReturn(_Body, frozen=True, tag=101):
    """The operation was acknowledged."""

    result: Result


class QueryReturn(_Body, frozen=True, tag=102):
    """The query's answer."""

    result: QueryResult


class ReadIndexReturn(_Body, frozen=True, tag=103):
    """The commit index of the primary of `epoch` while it held its leases, or was confirmed."""

    epoch: int
    index: int


class StatusReturn(_Body, frozen=True, tag=104):
    """The cluster as the asked node sees it."""

    status: ClusterStatus


class ViewReturn(_Body, frozen=True, tag=105):
    """The new view."""

    view: View


class HelloReturn(_Body, frozen=True, tag=106):
    """`problem` "": the node may take part. `view` is the newest committed one, if there is any.

    `removed`: consensus has confirmed just now that the node is no member and has no vote.
    `cluster_id`: the cluster that the answering node belongs to, also while it knows no view.
    """

    problem: str
    view: View | None
    removed: bool = False
    cluster_id: str = ""


ErrorKind = Literal["rejected", "not_primary", "full", "overloaded", "not_applied", "unknown"]


class ErrorReturn(_Body, frozen=True, tag=107):
    """The call failed; `kind` says what may be concluded."""

    kind: ErrorKind
    code: str
    detail: str


class PingReturn(_Body, frozen=True, tag=120):
    """I am."""


class JoinReturn(_Body, frozen=True, tag=121):
    """You are a member of `view`. `founders`: whom consensus began with (`Agreement.founders`)."""

    view: View
    founders: dict[str, str]


Return = (
    ExecuteReturn
    | QueryReturn
    | ReadIndexReturn
    | StatusReturn
    | ViewReturn
    | HelloReturn
    | PingReturn
    | JoinReturn
    | ErrorReturn
)

_KINDS: list[tuple[ErrorKind, type[OperationError]]] = [
    ("rejected", RejectedError),
    ("not_primary", NotPrimaryError),
    ("full", StorageFullError),
    ("overloaded", OverloadedError),
    ("not_applied", NotAppliedError),
    ("unknown", UnknownOutcomeError),
]


def error_return(error: OperationError) -> ErrorReturn:
    """Put an error into words that travel."""
    kind: ErrorKind = next((kind for kind, cls in _KINDS if isinstance(error, cls)), "unknown")
    return ErrorReturn(kind, error.code, error.detail)


def make_error(answer: ErrorReturn) -> OperationError:
    """Make the error again that `error_return` was given."""
    return dict(_KINDS)[answer.kind](answer.code, answer.detail)


class Envelope(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A call or its answer; `id` 0 needs no answer."""

    id: int
    body: Call | Return


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Envelope)


def encode(call_id: int, body: Call | Return) -> bytes:
    """Encode a call or an answer."""
    return _encoder.encode(Envelope(call_id, body))


def decode(data: bytes) -> Envelope:
    """Decode one; raises msgspec.MsgspecError on anything else."""
    envelope: Envelope = _decoder.decode(data)
    return envelope


class NotSentError(DataPathError):
    """There was no link to the node: the call has certainly not been carried out."""


class NoAnswerError(DataPathError):
    """The link was lost or the time ran out: the call may or may not have been carried out."""


class Caller:
    """The asking side of the request links: one link per peer, many calls on it at once."""

    def __init__(
        self, on_change: Callable[[], None], on_note: Callable[[Call | Return], None]
    ) -> None:
        self._links: dict[str, Link] = {}
        self._open: dict[int, tuple[str, asyncio.Future[Any]]] = {}
        self._next_id = 1
        self._on_change = on_change
        self._on_note = on_note

    # The LinkHandler of outgoing links of the kind "request".

    def on_open(self, link: Link) -> None:
        """A link is up: who waits for one may try."""
        self._links[link.peer] = link
        self._on_change()

    def on_frames(self, link: Link, frames: list[bytes]) -> None:
        """Answers, and notes, which answer nothing."""
        del link
        for frame in frames:
            envelope = decode(frame)
            if envelope.id == 0:
                self._on_note(envelope.body)
                continue
            _, future = self._open.pop(envelope.id, ("", None))
            if future is not None and not future.done():
                future.set_result(envelope.body)

    def on_close(self, link: Link, reason: str) -> None:
        """Calls on it that have no answer will get none."""
        if self._links.get(link.peer) is link:
            del self._links[link.peer]
        lost = [number for number, (peer, _) in self._open.items() if peer == link.peer]
        for number in lost:
            future = self._open.pop(number)[1]
            if not future.done():
                future.set_exception(NoAnswerError(f"the link to {link.peer} was lost: {reason}"))
        self._on_change()

    def reaches(self, peer: str) -> bool:
        """Whether there is a link to `peer`."""
        return peer in self._links

    @property
    def peers(self) -> list[str]:
        """The nodes with a link."""
        return sorted(self._links)

    def note(self, peer: str, body: Call) -> None:
        """Send what needs no answer, if there is a link."""
        link = self._links.get(peer)
        if link is not None:
            link.send(encode(0, body))

    async def call(self, peer: str, body: Call, timeout_ms: float) -> Return:
        """Ask `peer` and return its answer; an ErrorReturn is raised as its error.

        Raises:
            NotSentError: no link; certainly not carried out.
            NoAnswerError: link lost or `timeout_ms` passed; perhaps carried out.
            OperationError: the answer was an error.

        """
        link = self._links.get(peer)
        if link is None:
            raise NotSentError(f"there is no link to {peer}")
        if len(self._open) >= MAX_OPEN_CALLS:
            raise OverloadedError("overloaded", "too many calls to other nodes are open: try later")
        number = self._next_id
        self._next_id += 1
        future: asyncio.Future[Return] = asyncio.get_running_loop().create_future()
        self._open[number] = (peer, future)
        link.send(encode(number, body))
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                answer = await future
        except TimeoutError:
            raise NoAnswerError(f"{peer} did not answer within {timeout_ms:.0f} ms") from None
        finally:
            self._open.pop(number, None)
        if isinstance(answer, ErrorReturn):
            raise make_error(answer)
        return answer
