"""Operations and queries, their answers, and the face that a node shows to its API.

`Node` is what the HTTP API, the command line's server and the tests talk to. A replica's engine
and a witness's gateway both implement it; whichever node is asked forwards to the primary.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Annotated, Any, Literal, Protocol, get_args

import msgspec
from msgspec import Meta

from datapath.errors import NotPrimaryError, OperationError
from election.identity import Addresses
from election.view import MemberRole, View, ViewStep

Ack = Literal["all", "local"]
Consistency = Literal["linearizable", "confirmed", "stale"]
"""Of a read. "confirmed" is linearizable whatever the clocks do, for a round trip more."""
Count = Annotated[int, Meta(ge=0)]
STORE = ""
"""The name of the key-value store's service: where `service` names none."""
NodeStateWord = Literal[
    "primary", "backup", "learner", "snapshot", "witness", "unreachable", "unknown"
]
NODE_STATES: tuple[NodeStateWord, ...] = get_args(NodeStateWord)
"""What `NodeState.state` may say; see there."""


class Principal(msgspec.Struct, frozen=True, array_like=True):
    """Who asks: the id of a token, and the SHA-256 of the whole token, which alone proves it.

    Both are "" of a caller without a token. A certificate's name is an id without a digest: the
    node that answers the client has verified it. It is judged wherever it gets to (A1): a node
    that forwards a request claims nothing about its caller's rights.
    """

    token: str = ""
    digest: bytes = b""


ANONYMOUS = Principal()


class Operation(msgspec.Struct, frozen=True, array_like=True):
    """One call of a service's operation. `service` is its name, STORE that of the store.

    `idempotency_key` ("" for none) makes a repeat get the first answer (D8). `ack` "local" answers
    once the primary has it durable; `min_copies` is the minimum number of durable copies.
    `first_after`: an index that had committed before the first attempt, or None. With it, a repeat
    whose answer may have been dropped is refused instead of executed again.
    `if_lock`: a lock's name and token: unless the lock is held under it, the operation is refused
    with "lock_lost" and changes nothing (K3).
    `caller`: for whom; None: for the node itself, which nobody judges.
    """

    method: str
    args: tuple[Any, ...] = ()
    idempotency_key: str = ""
    ack: Ack = "all"
    min_copies: int = 0
    first_after: int | None = None
    service: str = STORE
    if_lock: tuple[bytes, int] | None = None
    caller: Principal | None = None


class Result(msgspec.Struct, frozen=True, array_like=True):
    """The answer to an acknowledged operation.

    `value` is the service's result; `index` the log index of its delta (the revision), or
    the index it was executed at when it wrote nothing; `copies` how many replicas hold it durably;
    `node` the primary that executed it; `repeated`: this is a first answer given again.
    """

    value: Any
    index: int
    epoch: int
    copies: int
    node: str
    repeated: bool = False


class Query(msgspec.Struct, frozen=True, array_like=True):
    """One call of a service's query. `max_staleness_ms` bounds "stale" reads; None: no bound.

    `service` is its name, STORE that of the store. `caller`: as of an `Operation`.
    """

    method: str
    args: tuple[Any, ...] = ()
    consistency: Consistency = "linearizable"
    max_staleness_ms: int | None = None
    service: str = STORE
    caller: Principal | None = None


class QueryResult(msgspec.Struct, frozen=True, array_like=True):
    """The answer to a query, from the state at `index` on `node`, which knows of `epoch`."""

    value: Any
    index: int
    epoch: int
    node: str


class NodeState(msgspec.Struct, frozen=True, kw_only=True):
    """One node, as its primary (or itself) sees it.

    `state` is one of `NODE_STATES`. "unknown" is a replica that can be reached while the primary,
    the only node that knows its position, cannot. The indices are None where they are not known:
    of witnesses, of "unknown" and of "unreachable" nodes. `lag` is how many log entries it is
    behind the primary's commit index.
    `votes`: whether its vote counts in consensus, None if unknown; a node that was just added
    has none yet, and cannot become primary. `version`: of its program, "" if unknown.
    """

    role: MemberRole
    client: str
    state: Annotated[
        NodeStateWord,
        Meta(
            description="`unknown`: reachable, but only the primary knows its position; "
            "`unreachable`: its position is unknown."
        ),
    ]
    applied_index: Count | None = None
    durable_index: Count | None = None
    lag: Annotated[Count | None, Meta(description="Entries behind the primary; null: unknown.")] = (
        None
    )
    votes: Annotated[
        bool | None,
        Meta(
            description="Whether its vote counts in consensus; null: unknown. A node without a "
            "vote cannot become primary."
        ),
    ] = None
    version: Annotated[str, Meta(description="Of onecopy on the node; empty: unknown.")] = ""


class ArchiveState(msgspec.Struct, frozen=True, kw_only=True):
    """How far the archive is, as the primary knows."""

    revision: Annotated[
        Count | None, Meta(description="Archived up to there; null: not known yet.")
    ]
    lag_ms: Annotated[
        Count,
        Meta(description="How long ago the oldest write that is not archived committed; 0: none."),
    ]
    problem: Annotated[str, Meta(description="Why the archive cannot be written; else empty.")]


class ClusterStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The body of GET /v1/cluster. `primary` is "" if none is known.

    `cluster` is the configured name; `cluster_id` was drawn when the cluster was made, "" before.
    `warnings` are problems for the operator: a second process under a node's identity, which was
    refused, or a node at another address than the agreed one.
    """

    cluster: str
    cluster_id: Annotated[str, Meta(description="Drawn once; empty before the first view.")]
    epoch: Count
    version: Count
    primary: Annotated[str, Meta(description="Empty while none is known.")]
    in_sync: tuple[str, ...]
    nodes: dict[str, NodeState]
    warnings: Annotated[
        tuple[str, ...],
        Meta(
            description="Problems for the operator: a second process under a node's identity, a "
            "node at another address than the agreed one."
        ),
    ] = ()
    level: Annotated[
        Count, Meta(description="The formats and features that all nodes use; 0: unknown.")
    ] = 0
    archive: Annotated[
        ArchiveState | None,
        Meta(description="null: nothing is archived, or the primary cannot be asked."),
    ] = None


class Digest(msgspec.Struct, frozen=True, kw_only=True):
    """The body of GET /v1/digest: equal on all replicas at the same applied index."""

    node: str
    applied_index: Count
    digest: str


class BackupSource(Protocol):
    """A backup that a node writes, of the state at (`revision`, `epoch`). It is read once."""

    revision: int
    epoch: int

    def pieces(self) -> AsyncIterator[bytes]:
        """Yield it piece by piece; what ends early says why (`datapath.storage.backup_format`)."""

    async def close(self) -> None:
        """Let go of the state. It lets go of it by itself if nobody begins to read."""


class Completion(Protocol):
    """Receives an operation's answer, once: a future, or an object with its methods."""

    def done(self) -> bool:
        """Whether it has been answered or cancelled."""

    def set_result(self, result: Result, /) -> None:
        """Receive the answer."""

    def set_exception(self, exception: OperationError, /) -> None:
        """Receive the error."""


class QueryCompletion(Protocol):
    """Receives a query's answer, as a `Completion` does an operation's."""

    def done(self) -> bool:
        """Whether it has been answered, or nobody waits for it any more."""

    def set_result(self, result: QueryResult, /) -> None:
        """Receive the answer."""

    def set_exception(self, exception: Exception, /) -> None:
        """Receive the error."""


class KnownViews(Protocol):
    """What a node knows of its cluster; see `datapath.node.views`."""

    @property
    def cluster_id(self) -> str:
        """The id of the cluster, "" until this node knows it."""


class Node(Protocol):
    """What a running node offers. All methods belong to its event loop.

    Errors are `datapath.errors.OperationError`s: each has `code`, `detail` and `outcome`.
    """

    node_id: str

    @property
    def views(self) -> KnownViews:
        """What this node knows of its cluster; the same object as long as it runs."""

    @property
    def epoch(self) -> int:
        """The newest epoch that this node knows (0: none)."""

    @property
    def commit_index(self) -> int:
        """The highest revision that this node knows to have committed (0: none)."""

    @property
    def primary(self) -> str:
        """The primary of the newest view this node knows, or ""."""

    @property
    def is_primary(self) -> bool:
        """Whether this node is the primary and serves under its leases right now."""

    @property
    def is_ready(self) -> bool:
        """Whether this node can answer a linearizable read now (itself or by the primary)."""

    def submit(self, operation: Operation, timeout_ms: int, completion: Completion) -> bool:
        """Execute here, if this node is the primary; False: nothing was done, use `execute`.

        `completion` is answered later, never before this returns. What
        `datapath.node.router.may_repeat` allows to be attempted again may be given to `execute`.
        """

    def read_now(self, query: Query) -> QueryResult | None:
        """Read at once, if this node can answer so from here; None: use `query`."""

    def submit_query(self, query: Query, timeout_ms: int, completion: QueryCompletion) -> bool:
        """Read here once this node has caught up with the primary; False: use `query`.

        `completion` is answered later, never before this returns. After a NotPrimaryError `query`
        may be tried.
        """

    def read_here(self, query: Query) -> QueryResult:
        """Read what is applied here, however old it is. Raises NotPrimaryError on a witness."""

    async def execute(
        self, operation: Operation, timeout_ms: int, after: OperationError | None = None
    ) -> Result:
        """Execute on the primary, wherever it is; wait for one up to `timeout_ms`.

        `after`: an attempt by `submit` has ended with that.
        """

    async def query(
        self, query: Query, timeout_ms: int, after: NotPrimaryError | None = None
    ) -> QueryResult:
        """Read; linearizable reads are answered here if this node is in touch with the primary.

        `after`: an attempt by `submit_query` has ended with that.
        """

    def observe(
        self, keyspace: int, key: bytes, observer: Callable[[], None]
    ) -> Callable[[], None]:
        """Call `observer` after each committed write of a key, as this node applies them.

        It takes note only. Call what is returned to end it. A node that has no data is told by the
        primary, and calls `observer` at other times, too.
        """

    def is_configured_admin(self, caller: Principal) -> bool:
        """Whether this node's own file makes a caller an administrator, with nobody to ask (A1)."""

    async def handover(self, to: str, timeout_ms: int, *, caller: Principal | None = None) -> View:
        """Make `to`, an in-sync replica, the primary; no pending request fails."""

    async def remove_member(
        self,
        node: str,
        timeout_ms: int,
        *,
        force: bool = False,
        asked_by: str = "",
        caller: Principal | None = None,
    ) -> View:
        """Remove a node from the cluster for good; harmless if it is already removed.

        Refused if that could lose acknowledged writes or the majority (rule M1), unless `force`.
        `asked_by` names the requester in the log.
        """

    async def move_member(
        self, node: str, addresses: Addresses, timeout_ms: int, *, asked_by: str = ""
    ) -> View:
        """Change the addresses of a member; "" keeps one.

        `asked_by` names the requester in the log.
        """

    async def finish_upgrade(
        self, timeout_ms: int, *, asked_by: str = "", caller: Principal | None = None
    ) -> View:
        """Let the cluster use what the primary's release supports, for good (rule U2).

        Raises RejectedError("upgrade_pending") unless every node is known to support it.
        `asked_by` names the requester in the log.
        """

    async def cluster_status(self) -> ClusterStatus:
        """Return the cluster as the primary sees it; without one, as this node does."""

    async def backup(self, consistency: Consistency, timeout_ms: int) -> BackupSource:
        """Begin a backup of the state of this node's own store.

        But for "stale" it holds everything that was acknowledged before. Raises OperationError:
        "no_data" on a witness, "backup_running" while there is one, "no_primary".
        """

    def view_steps(self) -> tuple[ViewStep, ...]:
        """Return the last changes of the view that this node knows of, oldest first."""

    async def digest(self) -> Digest:
        """Scan this node's own store. Raises RejectedError("no_data") on a witness."""

    def counters(self) -> Mapping[str, float]:
        """Numbers for metrics: name without prefix -> value; names that end in _total only rise."""
