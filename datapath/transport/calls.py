"""What nodes ask of each other beside replication: calls with an id. Pure; see
`datapath.transport.caller`.

A call that got no answer proves nothing about whether it was carried out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

import msgspec

from datapath.errors import (
    DataPathError,
    NotPrimaryError,
    OperationError,
    OperationNotAppliedError,
    OperationUnknownError,
    OverloadedError,
    PrimaryFullError,
    RejectedError,
)
from datapath.operations import ClusterStatus, Operation, Principal, Query, QueryResult, Result
from election.release import FIRST_LEVEL, Release
from election.view import Member, View


class _Body(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """`since`: the level that brought it; no node of an older release is sent it (U3)."""

    since: ClassVar[int] = FIRST_LEVEL


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
    """Hand over to `to`. `caller` asks for it; None: a node does by itself."""

    to: str
    timeout_ms: int
    caller: Principal | None = None


class HelloCall(_Body, frozen=True, tag=7):
    """I am `node` with data directory `data_id`: may I take part, and is there a view already?

    `joined`: I have taken part with this directory; am I still a member? `release`: what I run.
    """

    node: str
    data_id: str
    joined: bool = False
    release: Release = Release()


class JoinCall(_Body, frozen=True, tag=8):
    """Make me a member (or register my disk). `release`: what I run."""

    member: Member
    timeout_ms: int
    release: Release = Release()


class ViewNote(_Body, frozen=True, tag=9):
    """A committed view, for who hasn't heard of it yet. Needs no answer."""

    view: View


class NoticeNote(_Body, frozen=True, tag=10):
    """What an operator should know of, for everybody's status. Needs no answer."""

    text: str


class ArchivedNote(_Body, frozen=True, tag=11):
    """The archive holds the log up to entry `index`. Needs no answer."""

    since: ClassVar[int] = 2
    index: int


class PingCall(_Body, frozen=True, tag=20):
    """Are you there?"""


class RemoveCall(_Body, frozen=True, tag=21):
    """Remove `node`; `force`, `asked_by` and `caller` as in `Node.remove_member`."""

    node: str
    timeout_ms: int
    force: bool
    asked_by: str
    caller: Principal | None = None


class FinishUpgradeCall(_Body, frozen=True, tag=22):
    """Raise the cluster's level to your own release's, as in `Node.finish_upgrade`."""

    since: ClassVar[int] = 2
    timeout_ms: int
    asked_by: str
    caller: Principal | None = None


class ObserveCall(_Body, frozen=True, tag=23):
    """What is the mark of a key, as soon as it is not `seen`? At the latest after `timeout_ms`.

    Any replica answers, from what has committed there. Marks are compared and not read.
    """

    since: ClassVar[int] = 2
    keyspace: int
    key: bytes
    seen: bytes
    timeout_ms: int


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
    | ArchivedNote
    | PingCall
    | RemoveCall
    | FinishUpgradeCall
    | ObserveCall
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
    `release`: what the answering node runs. `unfit`: the problem is what the asking node runs.
    """

    problem: str
    view: View | None
    removed: bool = False
    cluster_id: str = ""
    release: Release = Release()
    unfit: bool = False


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


class ObserveReturn(_Body, frozen=True, tag=122):
    """The mark of the key."""

    mark: bytes


Return = (
    ExecuteReturn
    | QueryReturn
    | ReadIndexReturn
    | StatusReturn
    | ViewReturn
    | HelloReturn
    | PingReturn
    | JoinReturn
    | ObserveReturn
    | ErrorReturn
)

_KINDS: list[tuple[ErrorKind, type[OperationError]]] = [
    ("rejected", RejectedError),
    ("not_primary", NotPrimaryError),
    ("full", PrimaryFullError),
    ("overloaded", OverloadedError),
    ("not_applied", OperationNotAppliedError),
    ("unknown", OperationUnknownError),
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


encode_call: Callable[[Envelope], bytes] = msgspec.msgpack.Encoder().encode
decode_call: Callable[[bytes | memoryview], Envelope] = msgspec.msgpack.Decoder(Envelope).decode
"""Decode one; what is none closes its link."""


class NotSentError(DataPathError):
    """There was no link to the node: the call has certainly not been carried out."""


class NoAnswerError(DataPathError):
    """The link was lost or the time ran out: the call may or may not have been carried out."""
