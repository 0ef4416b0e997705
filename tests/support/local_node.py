"""A `Node` in one process and in memory: it really executes a service, and replicates nothing.

For tests of what stands on a node's face (the HTTP API, the client) without a cluster. Operations
are transactions: a refused one leaves nothing behind. Answers under an idempotency key are kept
(D8). What can go wrong on a real node is switched on by tests: `fail_with`, `hold`, `ready`, ….
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
from bisect import bisect_left, insort
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import islice

import msgspec

from cluster.api.audit import Audit
from cluster.api.groups import KnownGroups
from cluster.services.access_guard import TokenGuard
from cluster.services.built_in import built_in_services
from cluster.services.hosting import START, Host
from datapath.clock import clock_ms
from datapath.errors import (
    NotPrimaryError,
    OperationError,
    OperationNotAppliedError,
    OperationUnknownError,
    RejectedError,
)
from datapath.execution.access_guard import refusal
from datapath.execution.changes import Feed
from datapath.execution.lock_guard import holds_lock, lock_lost
from datapath.keyspaces import KV, LOCKS, SERVICES
from datapath.node.history import History
from datapath.operations import (
    STORE,
    BackupSource,
    ClusterStatus,
    Completion,
    Consistency,
    Digest,
    KnownViews,
    NodeState,
    Operation,
    Principal,
    Query,
    QueryCompletion,
    QueryResult,
    Result,
)
from datapath.records import Entry, Record, make_record
from datapath.service import Service
from datapath.storage.backup_format import BackupEnd, BackupHeader, BackupWriter
from datapath.storage.environment import ContentHash
from election.identity import Addresses
from election.release import LEVEL
from election.view import (
    AddMember,
    Confirm,
    Handover,
    Member,
    RemoveMember,
    View,
    ViewChange,
    ViewRefusal,
    ViewStep,
    apply_change,
    step_of,
)
from tests.support.doc_shop import Shop

NODES = ("n1", "n2", "n3")


class Store:
    """Ordered byte keys, in keyspaces: the others hang on the first."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self.keys: list[bytes] = []
        self.others: dict[int, Store] = {}

    def keyspace(self, which: int | str) -> Store:
        assert isinstance(which, int)
        return self if which == KV else self.others.setdefault(which, Store())

    def put(self, key: bytes, value: bytes) -> None:
        if key not in self.values:
            insort(self.keys, key)
        self.values[key] = value

    def delete(self, key: bytes) -> None:
        if self.values.pop(key, None) is not None:
            del self.keys[bisect_left(self.keys, key)]


class LocalTransaction:
    """One operation's view; its writes are applied by `commit`."""

    def __init__(self, store: Store, index: int) -> None:
        self._store = store
        self._index = index
        self._first = self  # of keyspace KV
        self._others: dict[int, LocalTransaction] = {}
        self.writes: dict[bytes, bytes | None] = {}

    @property
    def index(self) -> int:
        return self._index

    @property
    def role(self) -> str:
        return ""

    def keyspace(self, which: int | str) -> LocalTransaction:
        assert isinstance(which, int)
        if which == KV:
            return self._first
        if which not in self._others:
            other = LocalTransaction(self._first._store.keyspace(which), self._index)
            other._first, other._others = self._first, self._others
            self._others[which] = other
        return self._others[which]

    @property
    def wrote(self) -> bool:
        return any(tx.writes for tx in (self, *self._others.values()))

    def get(self, key: bytes) -> bytes | None:
        if key in self.writes:
            return self.writes[key]
        return self._store.values.get(key)

    def range(self, start: bytes, end: bytes | None, limit: int) -> list[tuple[bytes, bytes]]:
        found: list[tuple[bytes, bytes]] = []
        for key, value in self._seen(start, end):
            if len(found) >= limit:
                break
            found.append((key, value))
        return found

    def _seen(self, start: bytes, end: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        keys, values = self._store.keys, self._store.values
        stop = len(keys) if end is None else bisect_left(keys, end)
        held: Iterable[bytes] = islice(keys, bisect_left(keys, start), stop)
        if self.writes:
            own = (key for key in self.writes if start <= key and (end is None or key < end))
            held = sorted({*held, *own})
        for key in held:
            value = self.writes.get(key, values.get(key))
            if value is not None:
                yield key, value

    def page(
        self, start: bytes, end: bytes | None, limit: int, max_size_bytes: int
    ) -> tuple[list[tuple[bytes, bytes]], bytes | None]:
        items: list[tuple[bytes, bytes]] = []
        size_bytes = 0
        for key, value in self._seen(start, end):
            if len(items) >= limit or size_bytes >= max_size_bytes:
                return items, key
            items.append((key, value))
            size_bytes += len(key) + len(value)
        return items, None

    def put(self, key: bytes, value: bytes) -> None:
        self.writes[key] = value

    def delete(self, key: bytes) -> None:
        self.writes[key] = None

    def entry(self) -> Entry:
        writes = [(KV, *write) for write in self.writes.items()]
        for number, other in self._others.items():
            writes += [(number, *write) for write in other.writes.items()]
        return writes

    def commit(self) -> None:
        for key, value in self.writes.items():
            if value is None:
                self._store.delete(key)
            else:
                self._store.put(key, value)
        for other in self._others.values():
            other._others = {}
            other.commit()


class EmptyBackup:
    """A whole backup of a state without items."""

    def __init__(self, node: LocalNode) -> None:
        self.revision, self.epoch = node.index, node.epoch
        self._header = BackupHeader(
            revision=node.index,
            epoch=node.epoch,
            cluster="local",
            cluster_id=node.views.cluster_id,
            node=node.node_id,
            created_s=0,
        )

    async def pieces(self) -> AsyncIterator[bytes]:
        writer = BackupWriter()
        yield writer.begin(self._header)
        yield writer.end(BackupEnd(items=0, digest=ContentHash().hex()))

    async def close(self) -> None:
        return


class LocalNode:
    """Implements `datapath.operations.Node`."""

    def __init__(
        self,
        service: Service,
        node_id: str = "n1",
        *,
        can_submit: bool = True,
        others: Mapping[str, Service] | None = None,
        hosts: Mapping[str, Host] | None = None,
    ) -> None:
        self.can_submit = can_submit
        self.node_id = node_id
        self.service = service
        self.hosts = hosts or {}
        self.services = {STORE: service, **(others or {}), **self.hosts}
        self.guard = TokenGuard(is_on=False)
        self.audit: Audit | None = None
        self.groups: KnownGroups | None = None
        self.store = Store()
        self.index = 0
        self.records: list[Record] = []
        self.first_index = 1  # of the history that is kept
        self.feed = Feed(0, recent_bytes=64 * 1024)
        self.history = History(self.feed, self.read_log, lambda: self.first_index)
        self.executed = 0
        self.ready = True
        self.tasks: set[asyncio.Task[None]] = set()
        self.fail_with: Exception | None = None
        self.fail_next: Exception | None = None
        self.timeouts_ms: list[int] = []
        self.hold: asyncio.Event | None = None
        self.waiting = 0
        self.removals: list[tuple[str, bool, str]] = []
        self.answers: dict[str, tuple[bytes, Result | RejectedError]] = {}
        self.sent_after: list[tuple[str, int | None]] = []  # of each try under a key
        self.forgotten_index = 0
        members = tuple(
            Member(
                id=node,
                role="replica",
                client=f"127.0.0.1:81{number:02}",
                peer=f"127.0.0.1:82{number:02}",
                raft=f"127.0.0.1:83{number:02}",
            )
            for number, node in enumerate(NODES, 1)
        )
        self.steps: list[ViewStep] = []
        self.view = View(
            cluster_id="local", epoch=1, version=1, primary="n1", in_sync=NODES, members=members
        )
        for host in self.hosts.values():
            tx = LocalTransaction(self.store, 1).keyspace(SERVICES)
            host.operations[START](tx)
            tx.commit()

    @property
    def views(self) -> KnownViews:
        return self

    @property
    def cluster_id(self) -> str:
        return self.view.cluster_id

    @property
    def epoch(self) -> int:
        return self.view.epoch

    @property
    def commit_index(self) -> int:
        return self.index

    @property
    def primary(self) -> str:
        return self.view.primary

    @property
    def is_primary(self) -> bool:
        return self.ready and self.view.primary == self.node_id

    @property
    def is_ready(self) -> bool:
        return self.ready

    def submit(self, operation: Operation, timeout_ms: int, completion: Completion) -> bool:
        """As the real node does: answer later; what it does here is what `execute` does."""

        async def run() -> None:
            try:
                result = await self.execute(operation, timeout_ms)
            except Exception as error:  # noqa: BLE001 -- a defect that a test has switched on
                completion.set_exception(error)  # type: ignore[arg-type]
            else:
                completion.set_result(result)

        if not self.can_submit or not self.is_primary:
            return False
        task = asyncio.get_running_loop().create_task(run())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return True

    def submit_query(self, query: Query, timeout_ms: int, completion: QueryCompletion) -> bool:
        return False

    def read_now(self, query: Query) -> QueryResult | None:
        if not self.can_submit or not self.is_primary or self.hold or self.fail_with is not None:
            return None
        return self._query(query)

    async def execute(
        self, operation: Operation, timeout_ms: int, after: OperationError | None = None
    ) -> Result:
        self.timeouts_ms.append(timeout_ms)
        await self._gate()
        self._admit(operation)
        key = operation.idempotency_key
        fingerprint = b""
        if key:
            self.sent_after.append((key, operation.first_after))
            call = msgspec.msgpack.encode((operation.service, operation.method, operation.args))
            fingerprint = hashlib.blake2b(call).digest()
            if key in self.answers:
                return self._repeat(key, fingerprint)
            first_after = operation.first_after
            if first_after is not None and first_after < self.forgotten_index:
                raise OperationUnknownError("idempotency_key_expired", "switched on by the test")
        in_sync = len(self.view.in_sync)
        if operation.min_copies > in_sync:
            raise OperationNotAppliedError(
                "not_enough_copies", f"{in_sync} replicas are in sync, not {operation.min_copies}"
            )
        try:
            result = await self._call(operation, 1 if operation.ack == "local" else in_sync)
        except RejectedError as refusal:
            if key:
                self.answers[key] = (fingerprint, refusal)
            raise
        if key:
            self.answers[key] = (fingerprint, result)
        return result

    def _log(self, entry: Entry) -> None:
        self.index += 1
        record = make_record(self.index, self.epoch, self.index - 1, [entry])
        self.records.append(record)
        self.feed.on_committed(record, [entry])

    async def read_log(self, from_index: int, max_bytes: int) -> list[Record] | None:
        if from_index < self.first_index:
            return None
        found: list[Record] = []
        for record in self.records[from_index - 1 :]:
            found.append(record)
            max_bytes -= len(record.data)
            if max_bytes <= 0:
                break
        return found

    def forget(self) -> None:
        """Forget all answers, as a table does that is full or a long time later."""
        self.answers.clear()
        self.forgotten_index = self.index

    def _repeat(self, key: str, fingerprint: bytes) -> Result:
        known, result = self.answers[key]
        if known != fingerprint:
            raise RejectedError(
                "idempotency_key_reused", f"the key {key!r} belongs to another request"
            )
        if isinstance(result, RejectedError):
            raise RejectedError(result.code, result.detail)
        return msgspec.structs.replace(result, repeated=True)

    async def _call(self, operation: Operation, copies: int) -> Result:
        service = self._find(operation.service)
        if operation.method not in service.operations:
            raise OperationNotAppliedError(
                "unknown_operation", f"no operation {operation.method!r}"
            )
        root = LocalTransaction(self.store, self.index + 1)
        if operation.if_lock is not None:
            name, token = operation.if_lock
            if not holds_lock(root.keyspace(LOCKS).get(name), token):
                raise lock_lost(name, token, root.index)
        value = service.operations[operation.method](
            root.keyspace(service.keyspace), *operation.args
        )
        if inspect.iscoroutine(value):
            value = await value
        if root.wrote:
            entry = root.entry()
            root.commit()
            self._log(entry)
        self.executed += 1
        return Result(value, self.index, self.epoch, copies, self.primary)

    async def query(
        self, query: Query, timeout_ms: int, after: NotPrimaryError | None = None
    ) -> QueryResult:
        await self._gate()
        return self._query(query)

    def _stored(self, keyspace: int, key: bytes) -> bytes | None:
        return self.store.keyspace(keyspace).values.get(key)

    def _admit(self, asked: Operation | Query) -> None:
        refused = refusal(self.guard, asked, self._stored)
        if isinstance(refused, OperationError):
            raise refused

    def _query(self, query: Query) -> QueryResult:
        self._admit(query)
        service = self._find(query.service)
        if query.method not in service.queries:
            raise RejectedError("unknown_query", f"no query {query.method!r}")
        tx = LocalTransaction(self.store, self.index).keyspace(service.keyspace)
        value = service.queries[query.method](tx, *query.args)
        return QueryResult(value, self.index, self.epoch, self.node_id)

    def _find(self, name: str) -> Service:
        if name not in self.services:
            raise OperationNotAppliedError("unknown_service", f"there is no service {name!r}")
        return self.services[name]

    def observe(
        self, keyspace: int, key: bytes, observer: Callable[[], None]
    ) -> Callable[[], None]:
        return partial(self.feed.leave, self.feed.observe(keyspace, key, observer))

    async def revoke(self, lease: int) -> None:
        """End a client lease, as if its time were up."""
        await self._call(Operation("revoke", (lease,), service=":leases"), len(NODES))

    async def tick(self) -> None:
        """Execute what the services want executed by themselves."""
        for name, service in self.services.items():
            tx = LocalTransaction(self.store, self.index).keyspace(service.keyspace)
            service.on_tick(now_ms := clock_ms())
            if (wanted := service.due(tx, now_ms)) is not None:
                result = await self._call(Operation(*wanted, service=name), len(NODES))
                service.on_done(result.value)

    async def _gate(self) -> None:
        if self.hold is not None:
            self.waiting += 1
            await self.hold.wait()
        problem, self.fail_next = self.fail_next or self.fail_with, None
        if problem is not None:
            raise problem
        if not self.view.primary:
            raise NotPrimaryError("no_primary", "no primary within the time given")

    def read_here(self, query: Query) -> QueryResult:
        return self._query(query)

    def is_configured_admin(self, caller: Principal) -> bool:
        return self.guard.is_configured_admin(caller, self._stored)

    async def handover(self, to: str, timeout_ms: int, *, caller: Principal | None = None) -> View:
        await self._gate()
        self._check_known(to)
        return self._change(Handover(to), "handover_failed")

    async def finish_upgrade(
        self, timeout_ms: int, *, asked_by: str = "", caller: Principal | None = None
    ) -> View:
        await self._gate()
        return self._change(Confirm(LEVEL), "upgrade_pending")

    async def remove_member(
        self,
        node: str,
        timeout_ms: int,
        *,
        force: bool = False,
        asked_by: str = "",
        caller: Principal | None = None,
    ) -> View:
        await self._gate()
        self.removals.append((node, force, asked_by))
        if node in self.view.removed:
            return self.view
        self._check_known(node)
        return self._change(RemoveMember(node), "is_primary")

    async def move_member(
        self, node: str, addresses: Addresses, timeout_ms: int, *, asked_by: str = ""
    ) -> View:
        await self._gate()
        self._check_known(node)
        known = self.view.member(node)
        assert known is not None
        moved = msgspec.structs.replace(
            known,
            client=addresses.client or known.client,
            peer=addresses.peer or known.peer,
            raft=addresses.raft or known.raft,
        )
        return self.view if moved == known else self._change(AddMember(moved), "refused")

    def _check_known(self, node: str) -> None:
        if self.view.member(node) is None:
            raise RejectedError("unknown_node", f"no node {node!r}")

    def view_steps(self) -> tuple[ViewStep, ...]:
        if self.fail_with is not None:
            raise self.fail_with
        return tuple(self.steps)

    def _change(self, change: ViewChange, code: str) -> View:
        outcome = apply_change(self.view, change, self.view.version)
        if isinstance(outcome, ViewRefusal):
            raise RejectedError(code, outcome.reason)
        step = step_of(self.view, change, outcome, 1_700_000_000_000)
        self.steps += [step] if step is not None else []
        self.view = outcome
        return outcome

    async def cluster_status(self) -> ClusterStatus:
        if self.fail_with is not None:
            raise self.fail_with
        return ClusterStatus(
            cluster="local",
            cluster_id=self.view.cluster_id,
            epoch=self.view.epoch,
            version=self.view.version,
            primary=self.view.primary,
            in_sync=self.view.in_sync,
            nodes={member.id: self._state(member) for member in self.view.members},
        )

    def _state(self, member: Member) -> NodeState:
        return NodeState(
            role=member.role,
            client=member.client,
            state="primary" if member.id == self.view.primary else "backup",
            applied_index=self.index,
            durable_index=self.index,
            lag=0,
            votes=True,
        )

    async def backup(self, consistency: Consistency, timeout_ms: int) -> BackupSource:
        del consistency, timeout_ms
        if self.fail_with is not None:
            raise self.fail_with
        return EmptyBackup(self)

    async def digest(self) -> Digest:
        if self.fail_with is not None:
            raise self.fail_with
        digest = hashlib.sha256()
        for key in self.store.keys:
            digest.update(msgspec.msgpack.encode((key, self.store.values[key])))
        return Digest(node=self.node_id, applied_index=self.index, digest=digest.hexdigest())

    def counters(self) -> Mapping[str, float]:
        return {
            "applied_index": self.index,
            "epoch": self.epoch,
            "operations_total": self.executed,
        }


def local_node(*, can_submit: bool = True) -> LocalNode:
    """Make one with the services that every node has."""
    services = built_in_services()
    hosts = {"shop": Host("shop", Shop())}
    return LocalNode(services.pop(STORE), can_submit=can_submit, others=services, hosts=hosts)
