"""Clients in simulated time: what they ask, through which troubles, and what they were told.

Each client asks for one thing at a time, of any node. Requests and answers are late or lost; a
write under an idempotency key is asked for again, elsewhere too, until its outcome is known, and
its requests may arrive twice. What comes of it all is a history for Porcupine; what can be said at
once is said at once, by `Claims`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from datapath.errors import (
    NotPrimaryError,
    OperationError,
    OperationNotAppliedError,
    OperationUnknownError,
    RejectedError,
)
from datapath.keyspaces import after_prefix
from datapath.operations import Operation, Query, QueryResult, Result
from datapath.protocol.confirmations import ReadPoint
from datapath.settings import ClientTableBounds
from tests.sim import forwarding, transactions
from tests.sim.claims import Claims
from tests.sim.transactions import KEYS_PER_GROUP, Asked, items_of
from tests.support.history import History
from tests.support.history import Operation as Entry

if TYPE_CHECKING:
    from tests.sim.node import Node
    from tests.sim.world import World

OPERATIONS_PER_GROUP = 60
"""After so many operations the clients go over to new keys: what is checked as one stays small."""
ASK_MS = (0.1, 2.0)
LATE_MS = (20.0, 800.0)
RETRY_PAUSE_MS = (5.0, 60.0)
RANGE_LIMIT = 1000

_KINDS = {
    "put": 30,
    "get": 26,
    "range": 8,
    "delete": 8,
    "put_if_revision": 12,
    "put_if_absent": 10,
    "delete_if_revision": 4,
    "txn": 12,
}
_ETAG = re.compile(r'ETag "(\d+)"')


class Habits(msgspec.Struct, frozen=True):
    """How often what happens to whom, drawn for a schedule."""

    n_clients: int
    beat_ms: float
    lost: float
    late: float
    twice: float
    keyed: float
    patience_ms: float
    give_up_ms: float
    believes: float  # how often a client asks whom it believes to be the primary
    forwards: float  # how often the asked node does what the gateway does, and not only what it can
    picky: float  # how often a write asks for two or three copies
    credulous: float  # how often a refusal is taken as the end
    confirms: float  # how often a read asks to be confirmed


class Clients:
    """All clients of a schedule, and their history."""

    def __init__(self, world: World, name: str, *, trusting: bool = False) -> None:
        self.world = world
        self.clockwork = world.clockwork
        self.history = History(name)
        self.claims = Claims(world.oracle.fail)
        self.running = False
        random = self.clockwork.random
        self.habits = Habits(
            n_clients=random.randint(4, 8),
            beat_ms=random.choice((8.0, 20.0, 60.0)),
            lost=random.choice((0.0, 0.02, 0.1)),
            late=random.choice((0.0, 0.05, 0.2)),
            twice=random.choice((0.0, 0.1, 0.3)),
            keyed=random.choice((0.2, 0.5, 0.9)),
            patience_ms=random.choice((40.0, 150.0, 600.0)),
            give_up_ms=random.choice((500.0, 2000.0)),
            believes=random.choice((0.5, 0.9)),
            forwards=random.choice((0.3, 0.9)),
            picky=random.choice((0.0, 0.3, 0.7)),
            credulous=random.choice((0.0, 0.5, 1.0)),
            confirms=random.choice((0.0, 0.0, 0.4)),
        )
        self.links = forwarding.Troubles(random.choice((0.0, 0.05, 0.2)), random.choice((0.2, 0.7)))
        self.unsettled: list[Asking] = []  # transactions whose outcome is unknown
        if trusting:
            # They ask once, and believe what they are told: all else is up to who forwards.
            self.habits = msgspec.structs.replace(
                self.habits, n_clients=8, beat_ms=8.0, lost=0.0, late=0.0, twice=0.0, keyed=0.9,
                patience_ms=600.0, forwards=1.0, credulous=1.0,
            )  # fmt: skip
            self.links = forwarding.Troubles(broken=0.3, late=0.8)
        self.known_index = 0  # the highest that is known to have committed
        self._begun = 0
        self._clients = [Client(self, number) for number in range(self.habits.n_clients)]

    def start(self) -> None:
        """Begin."""
        self.running = True
        self._beat()

    def stop(self) -> None:
        """Ask for nothing new; what is under way may end."""
        self.running = False

    def _beat(self) -> None:
        """All ask at about the same time, so that their operations overlap."""
        if not self.running:
            return
        clockwork = self.clockwork
        for client in self._clients:
            if client.asking is None and clockwork.chance(0.8):
                clockwork.after(clockwork.between(0, 2), client.begin)
        clockwork.after(self.habits.beat_ms, self._beat)

    def now_ns(self) -> int:
        """True time: a history's clock."""
        return int(self.clockwork.now * 1e6)

    def next_number(self) -> int:
        """Count operations."""
        self._begun += 1
        return self._begun

    def group(self) -> str:
        """Return the prefix of the keys that are in use now."""
        return f"g{self._begun // OPERATIONS_PER_GROUP}/"

    # -- what is between clients and nodes

    def send(
        self, node: Node, request: Callable[[Node], None], refused: Callable[[], None]
    ) -> None:
        """Bring a request to a node: perhaps late or never, or, where nobody listens, refused."""
        self._carry(self._arrive, node, request, refused)

    def _arrive(
        self, node: Node, request: Callable[[Node], None], refused: Callable[[], None]
    ) -> None:
        if node.is_up:
            node.post(node.life, request, node)
        else:
            self._carry(refused)

    def answer(self, action: Callable[..., None], *args: Any) -> None:
        """Bring an answer to a client: perhaps late or never."""
        self._carry(action, *args)

    def _carry(self, action: Callable[..., None], *args: Any) -> None:
        clockwork, habits = self.clockwork, self.habits
        if clockwork.chance(habits.lost):
            clockwork.seen["client: lost on the way"] += 1
            return
        late = clockwork.chance(habits.late)
        clockwork.after(clockwork.between(*(LATE_MS if late else ASK_MS)), action, *args)

    # -- the end

    def read_all(self, node: Node) -> None:
        """The cluster is whole: read all there is at its primary, and see that nothing is gone."""
        self._settle(node)
        client = self.history.new_client()
        for number in range(self._begun // OPERATIONS_PER_GROUP + 1):
            prefix = f"g{number}/"
            entry = self.history.range(client, self.now_ns(), prefix=prefix, note=f"last {node.id}")
            answer = node.service.read(_range_query(prefix))
            entry.listed(self.now_ns(), _items(answer), revision=answer.index)
            self.claims.listed(entry, self.claims.floors())
            self.claims.is_last(entry)

    def _settle(self, node: Node) -> None:
        """Find out what became of transactions: by their keys, where none is forgotten.

        One that is not there stays unknown: a request for it may be on its way yet.
        """
        if self.world.bounds.client_table.max_bytes < ClientTableBounds().max_bytes:
            return
        for asking in self.unsettled:
            assert isinstance(asking.asks, Operation)
            assert asking.asked is not None
            result = node.service.tail.recall(msgspec.structs.replace(asking.asks, min_copies=0))
            if isinstance(result, Result):
                asking.entry.outcome = "open"
                self.clockwork.seen["client: transaction found out"] += 1
                _transacted(asking.entry, asking.asked, result)(self.now_ns())
                self.claims.transacted(asking.entry, asking.asked, result, asking.floors)


class Client:
    """One client."""

    def __init__(self, clients: Clients, number: int) -> None:
        self.clients = clients
        self.number = number
        self.asking: Asking | None = None
        self.believed = ""
        self._revisions: dict[str, int] = {}

    def begin(self) -> None:
        """Ask for something."""
        clients = self.clients
        if self.asking is not None or not clients.running:
            return
        random = clients.clockwork.random
        number, group = clients.next_number(), clients.group()
        (kind,) = random.choices(list(_KINDS), list(_KINDS.values()))
        key = f"{group}k{random.randrange(KEYS_PER_GROUP)}"
        history, now = clients.history, clients.now_ns()
        method, _, condition = kind.partition("_if_")
        revision = clients.claims.revision(key) if condition == "revision" else None
        absent = condition == "absent"
        if method == "txn":
            self._transact(number, group)
            return
        repeat_key = ""
        if method in ("put", "delete") and clients.clockwork.chance(clients.habits.keyed):
            repeat_key = f"{number}"
        if method == "put":
            value = f"v{number}"
            entry = history.put(
                self.number, key, value, now, if_revision=revision, if_absent=absent
            )
            clients.claims.will_put(entry)
            arguments: tuple[Any, ...] = (key.encode(), value.encode(), revision, absent)
        elif method == "delete":
            entry = history.delete(self.number, key, now, if_revision=revision)
            clients.claims.will_delete(entry)
            arguments = (key.encode(), revision)
        elif method == "get":
            entry = history.get(self.number, key, now)
        else:
            entry = history.range(self.number, now, prefix=group)
        asks: Operation | Query
        if method in ("put", "delete"):
            copies = random.choice((2, 3)) if clients.clockwork.chance(clients.habits.picky) else 0
            after = clients.known_index if repeat_key else None
            asks = Operation(method, arguments, repeat_key, "all", copies, after)
        elif method == "get":
            asks = Query("get", (key.encode(),))
        else:
            asks = _range_query(group)
        if isinstance(asks, Query) and clients.clockwork.chance(clients.habits.confirms):
            asks = msgspec.structs.replace(asks, consistency="confirmed")
        self.asking = Asking(self, entry, asks)
        self.asking.attempt()

    def _transact(self, number: int, group: str) -> None:
        """Ask for a transaction: under a key, so that what became of it can be found out."""
        clients, random = self.clients, self.clients.clockwork.random
        keys = [f"{group}k{number}" for number in range(KEYS_PER_GROUP)]
        asked = transactions.draw(random, group, keys, number, clients.claims.revision)
        entry = clients.history.transaction(self.number, clients.now_ns(), prefix=group)
        clients.claims.will_transact(entry, asked)
        copies = random.choice((2, 3)) if clients.clockwork.chance(clients.habits.picky) else 0
        operation = asked.operation(f"{number}", copies, clients.known_index)
        self.asking = Asking(self, entry, operation, asked)
        self.asking.attempt()

    def ended(self) -> None:
        """The operation under way has ended."""
        assert self.asking is not None
        if self.asking.entry.outcome == "unknown":
            if self.asking.asked is not None:
                self.clients.unsettled.append(self.asking)
            self.number = self.clients.history.new_client()
        self.asking = None


class Asking:
    """One operation, over all its attempts."""

    def __init__(
        self, client: Client, entry: Entry, asks: Operation | Query, asked: Asked | None = None
    ) -> None:
        clients = client.clients
        self.asked = asked  # of a transaction
        self.client = client
        self.clients = clients
        self.clockwork = clients.clockwork
        self.entry = entry
        self.asks = asks
        self.unsure = False  # whether an attempt may have been, or may yet be, carried out
        self.attempts = 0
        self.floors = clients.claims.floors()
        self._give_up_at = clients.clockwork.now + clients.habits.give_up_ms

    @property
    def keyed(self) -> bool:
        """Whether it may be repeated although its outcome is unknown."""
        return isinstance(self.asks, Operation) and bool(self.asks.idempotency_key)

    @property
    def ended(self) -> bool:
        """Whether the client has its answer, or has given up."""
        return self.entry.outcome != "open"

    def attempt(self) -> None:
        """Ask a node."""
        if self.ended:
            return
        clients, clockwork, client = self.clients, self.clockwork, self.client
        nodes = clients.world.nodes
        believed = nodes.get(client.believed)
        if believed is None or not clockwork.chance(clients.habits.believes):
            believed = clockwork.random.choice(list(nodes.values()))
        alone = clients.world.left_behind
        if alone is not None and clockwork.chance(0.6):
            believed = alone
        client.believed = believed.id
        self.attempts += 1
        self.entry.note += f" {believed.id}"
        if clockwork.tracing:
            clockwork.note(f"client {client.number} asks {believed.id}: {self._brief()}")
        number = self.attempts

        def request(node: Node) -> None:
            self._execute(node, number)

        def refused() -> None:
            self._refused(number, None)

        clients.send(believed, request, refused)
        if self.keyed and clockwork.chance(clients.habits.twice):
            self.unsure = True
            clockwork.seen["client: asked twice"] += 1
            clients.send(believed, request, refused)
        clockwork.after(clients.habits.patience_ms, self._time_out, number)

    def _brief(self) -> str:
        return f"{self.asks.method} {self.asks.args} {getattr(self.asks, 'idempotency_key', '')}"

    # -- at the node

    def _execute(self, node: Node, number: int) -> None:
        service = node.service
        if isinstance(self.asks, Operation):
            # The node gives up before the client does, or after it.
            clients, clockwork = self.clients, self.clockwork
            timeout_ms = clients.habits.patience_ms * clockwork.random.choice((0.5, 2))
            completion = Answer(self, number)
            if clockwork.chance(clients.habits.forwards):
                forwarding.Forwarding(
                    clients.world, node, self.asks, timeout_ms, completion, clients.links
                )
            else:
                service.ask(self.asks, timeout_ms, completion)
            return
        view = node.replica.view
        try:
            if node.replica.primary is None and view is not None and node.id in view.in_sync:
                self._ask_index(node, number)
                return
            if service.needs_confirmation(self.asks):
                node.confirm(Confirmed(self, node, number))
                return
            answer = service.answer(self.asks)
        except OperationError as problem:
            if node.replica.primary is not None:
                self.clockwork.seen["client: no read without a lease"] += 1
            self.clients.answer(self._refused, number, problem)
        else:
            self.clients.answer(self._read, number, answer)

    def _ask_index(self, node: Node, number: int) -> None:
        """A read at a backup: it asks the primary for its commit index, and waits to apply it."""
        assert isinstance(self.asks, Query)

        def read() -> None:
            assert isinstance(self.asks, Query)
            self.clockwork.seen["client: read at a backup"] += 1
            self.clients.answer(self._read, number, node.service.read(self.asks))

        node.service.questions(self.asks).join(read)

    # -- back at the client

    def _time_out(self, number: int) -> None:
        if self.ended or number != self.attempts:
            return
        self.clockwork.seen["client: timeout"] += 1
        self.unsure = True
        self._go_on()

    def _refused(self, number: int, problem: OperationError | None) -> None:
        """The node did not carry this attempt out, or does not know whether it did."""
        if self.ended or number != self.attempts:
            return
        if isinstance(problem, OperationUnknownError):
            self.clockwork.seen["client: unknown outcome"] += 1
            self.clockwork.seen[f"client: unknown: {problem.code}"] += 1
            self.unsure = True
            if problem.code in ("idempotency_key_expired", "unknown_revision"):
                self.clockwork.seen[f"client: {problem.code}"] += 1
                self._end(self.entry.unknown)
                return
        if isinstance(problem, NotPrimaryError):
            self.client.believed = problem.primary
        elif isinstance(problem, OperationNotAppliedError) and not self.unsure:
            self.clockwork.seen[f"client: refused: {problem.code}"] += 1
            if self.clockwork.chance(self.clients.habits.credulous):
                self._end(self.entry.not_applied)
                return
        self._go_on()

    def _go_on(self) -> None:
        """Try again, or give up."""
        clockwork = self.clockwork
        if isinstance(self.asks, Operation) and self.unsure and not self.keyed:
            self._end(self.entry.unknown)
        elif clockwork.now >= self._give_up_at:
            if isinstance(self.asks, Query):
                self._end(self.entry.failed)
            else:
                self._end(self.entry.unknown if self.unsure else self.entry.not_applied)
        else:
            self.attempts += 1  # what comes of the attempt before does not start another one
            clockwork.after(clockwork.between(*RETRY_PAUSE_MS), self.attempt)

    def _end(self, how: Callable[..., None], **said: Any) -> None:
        how(self.clients.now_ns(), **said)
        if self.entry.outcome == "not_applied" and self.entry.kind == "put":
            self.clients.world.oracle.on_told_not_applied(self.entry.value)
        self.clockwork.seen[f"client: {self.entry.kind} {self.entry.outcome}"] += 1
        if self.clockwork.tracing:
            self.clockwork.note(
                f"client {self.client.number}: {self._brief()}: {self.entry.outcome} {said}"
            )
        self.client.ended()

    def _read(self, number: int, answer: QueryResult) -> None:
        del number  # a late answer of an earlier attempt is as good: it was asked for by this read
        if self.ended:
            return
        entry, claims = self.entry, self.clients.claims
        self.client.believed = answer.node
        self.clients.known_index = max(self.clients.known_index, answer.index)
        if entry.kind == "get":
            found = answer.value
            value, revision = (found[0].decode(), found[1]) if found else (None, 0)
            self._end(entry.got, value=value, revision=revision)
            claims.got(entry, self.floors)
        else:
            self._end(entry.listed, items=_items(answer), revision=answer.index)
            claims.listed(entry, self.floors)

    def _rejected(self, number: int, problem: RejectedError) -> None:
        del number
        if self.ended:
            return
        if problem.code != "precondition_failed":
            self.clients.world.oracle.fail(f"D8: {self._brief()} was answered: {problem}")
        found = _ETAG.search(problem.detail)
        seen = int(found[1]) if found else 0
        self._end(self.entry.condition_failed, seen_revision=seen)
        self.clients.claims.condition_failed(self.entry, self.floors)

    def _acknowledged(self, number: int, result: Result) -> None:
        if self.ended:
            return
        entry, claims = self.entry, self.clients.claims
        del number
        self.clients.known_index = max(self.clients.known_index, result.index)
        if result.repeated:
            self.clockwork.seen["client: first answer again"] += 1
        if self.asked is not None:
            self._end(_transacted(entry, self.asked, result))
            claims.transacted(entry, self.asked, result, self.floors)
        elif entry.kind == "put":
            self._end(entry.done, revision=result.index, created=result.value)
            claims.put(entry, self.floors)
        else:
            self._end(entry.removed, deleted=result.value, revision=result.index)
            claims.deleted(entry, self.floors)


class Confirmed:
    """A read at the primary that waits to be confirmed."""

    __slots__ = ("_asking", "_node", "_number")

    def __init__(self, asking: Asking, node: Node, number: int) -> None:
        self._asking = asking
        self._node = node
        self._number = number

    def done(self) -> bool:
        """Whether the client has an answer, or has given up."""
        return self._asking.ended

    def set_result(self, _: ReadPoint, /) -> None:
        """Read now."""
        asking, service = self._asking, self._node.service
        assert isinstance(asking.asks, Query)
        asking.clockwork.seen["client: confirmed read"] += 1
        asking.clients.answer(asking._read, self._number, service.read(asking.asks))

    def set_exception(self, exception: OperationError, /) -> None:
        """Ask elsewhere."""
        self._asking.clients.answer(self._asking._refused, self._number, exception)


class Answer:
    """The `Completion` of one request."""

    __slots__ = ("_asking", "_done", "_number")

    def __init__(self, asking: Asking, number: int) -> None:
        self._asking = asking
        self._number = number
        self._done = False

    def done(self) -> bool:
        """Whether it has been answered."""
        return self._done

    def set_result(self, result: Result, /) -> None:
        """Take the answer."""
        self._done = True
        asking = self._asking
        asking.clients.answer(asking._acknowledged, self._number, result)

    def set_exception(self, exception: OperationError, /) -> None:
        """Take the reason why there is none."""
        self._done = True
        asking = self._asking
        rejected = isinstance(exception, RejectedError)
        action = asking._rejected if rejected else asking._refused
        asking.clients.answer(action, self._number, exception)


def _transacted(entry: Entry, asked: Asked, result: Result) -> Callable[[int], None]:
    """Return what ends a transaction's entry."""
    if asked.txn is None:
        count, following = result.value
        assert following is None
        return partial(entry.cleared, count=count, revision=result.index if count else 0)
    succeeded, results = result.value
    before = items_of(results[0])
    writes = asked.writes(before) if succeeded else []
    revision = result.index if writes else 0
    return partial(entry.transacted, items=before, writes=writes, revision=revision)


def _range_query(prefix: str) -> Query:
    start = prefix.encode()
    return Query("range", (start, after_prefix(start), RANGE_LIMIT, False))


def _items(answer: QueryResult) -> list[tuple[str, str, int]]:
    return items_of(answer.value)
