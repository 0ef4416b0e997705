"""Clients of leases, locks and elections: they hold, wait, write under tokens, and die.

Each holder follows a script, again and again: it has a lease granted, or takes a lock with one of
its own, hangs keys on it, writes under its token, stands still past its TTL, and gives up what it
has, or nothing. A second script keeps the lease alive, more or less often. A third client reads who
holds a lock. All of it is judged by `lease_oracle`, and is a history for Porcupine.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from cluster.services.leases import LEASES_SERVICE
from cluster.services.locks import LOCKS_SERVICE, Acquired
from cluster.services.txn import LockComparison, PutStep, Txn, encode_txn
from datapath.errors import OperationError, RejectedError
from datapath.operations import STORE, Operation, Query, QueryResult, Result
from datapath.settings import Bounds, ClientTableBounds
from tests.sim.clients import Asking, Client, Clients
from tests.sim.lease_oracle import LeaseOracle, fenced
from tests.support.history import LeaseKind
from tests.support.history import Operation as Entry

if TYPE_CHECKING:
    from tests.sim.node import Node

TTLS_MS = (60, 150, 400, 900)
LIVES_PER_GROUP = 8
"""After so many lives the holders go over to new locks: what is checked as one stays small."""
PAUSE_MS = (1.0, 30.0)
POLL_MS = (5.0, 60.0)
OUTPACED = 1.3
"""A holder that stands still does so for so many TTLs."""
KEEP_ALIVE_SHARES = (0.3, 0.6, 0.95, 0.99)

Told = Result | QueryResult | OperationError | None
"""None: nobody knows, or the client has given up."""
Script = Generator["Step", Told, Any]


class Call(msgspec.Struct, frozen=True):
    """What a script asks for; its entry of the history, if it has one."""

    asks: Operation | Query
    entry: Entry


Step = Call | float
"""A script asks for something, or lets some ms pass."""


class Scripted(Client):
    """A client that follows a script."""

    def __init__(self, holders: Holders, script: Callable[[Scripted], Script]) -> None:
        super().__init__(holders.clients, holders.clients.history.new_client())
        self.holders = holders
        holders.scripts.append(self)
        self._script = script(self)
        self.clients.clockwork.after(0, self._go_on, None)

    def _go_on(self, told: Told) -> None:
        try:
            step = self._script.send(told)
        except StopIteration:
            self.holders.scripts.remove(self)
            return
        if not self.clients.running:
            self._script.close()
        elif isinstance(step, Call):
            self.asking = LeaseAsking(self, step)
            self.asking.attempt()
        else:
            self.clients.clockwork.after(step, self._go_on, None)

    def ended(self) -> None:
        """What was asked for has ended."""
        asking, self.asking = self.asking, None
        assert isinstance(asking, LeaseAsking)
        if asking.entry.outcome == "unknown":
            self.number = self.clients.history.new_client()
            self.holders.unsettled.append(asking)
        self._go_on(asking.told)


class LeaseAsking(Asking):
    """One call of a lease or a lock, over all its attempts; `told`: what came of it."""

    def __init__(self, client: Scripted, call: Call) -> None:
        super().__init__(client, call.entry, call.asks)
        self.told: Told = None
        self._acknowledged_before = client.clients.world.oracle.acknowledged

    def _read(self, number: int, answer: QueryResult) -> None:
        del number
        if self.ended:
            return
        assert isinstance(self.asks, Query)
        self.client.believed = answer.node
        oracle = self.clients.world.oracle.leases
        assert oracle is not None
        oracle.on_read(self.asks.args[0], answer, self._acknowledged_before)
        self.told = answer
        token, lease = (0, 0) if answer.value is None else answer.value[:2]
        self._end(self.entry.granted, token=token, lease=lease)

    def _rejected(self, number: int, problem: RejectedError) -> None:
        del number
        if self.ended:
            return
        self.clockwork.seen[f"client: {self.entry.kind}: {problem.code}"] += 1
        self.told = problem
        self._end(self.entry.refused, code=problem.code)

    def _acknowledged(self, number: int, result: Result) -> None:
        del number
        if self.ended:
            return
        self.clients.known_index = max(self.clients.known_index, result.index)
        self.told = result
        self._end(_how(self.entry, self.asks, result))


def _how(entry: Entry, asks: Operation | Query, result: Result) -> Callable[..., None]:
    """Return what ends the entry of a call that was acknowledged."""
    match asks.method:
        case "grant":
            return partial(entry.granted, lease=result.value, revision=result.index)
        case "acquire":
            acquired = Acquired(*result.value)
            return partial(
                entry.granted, lease=acquired.lease, token=acquired.token, revision=result.index
            )
        case "withdraw":
            return partial(entry.granted, token=result.value, revision=result.index)
        case "keep_alive" if not result.value[0]:
            return partial(entry.refused, code="lease_not_found")
        case "txn" if not result.value[0]:
            return partial(entry.refused, code="lock_lost")
    return partial(entry.granted, revision=result.index)


class Tenancy:
    """One life of a holder: its lease and its lock."""

    def __init__(self, holders: Holders, key: str, *, has_lock: bool) -> None:
        clients = holders.clients
        self._holders = holders
        self._clients = clients
        self._clockwork = clients.clockwork
        self._random = clients.clockwork.random
        self._key = key
        self._name = key.encode()
        self._has_lock = has_lock
        self._ttl_ms = self._random.choice(TTLS_MS)
        self._lease = self._token = 0
        self._keeps_alive = False

    # -- calls

    def _call(
        self, client: Scripted, kind: LeaseKind, method: str, args: tuple[Any, ...],
        service: str = LEASES_SERVICE, *, keyed: bool = True, fence: bool = False,
        token: int = 0,
    ) -> Generator[Step, Told, Result | RejectedError | None]:  # fmt: skip
        """Ask for something; return None where nobody knows what became of it."""
        clients = self._clients
        entry = clients.history.lease_call(
            client.number, kind, clients.now_ns(), key=self._key, lease=self._lease, token=token,
            ttl_ms=self._ttl_ms,
        )  # fmt: skip
        repeat_key = f"h{self._holders.next_number()}" if keyed else ""
        after = clients.known_index if keyed else None
        operation = Operation(
            method, args, repeat_key, first_after=after, service=service,
            if_lock=(self._name, token) if fence else None,
        )  # fmt: skip
        told = yield Call(operation, entry)
        assert not isinstance(told, QueryResult)
        return told if isinstance(told, Result | RejectedError) else None

    # -- the script

    def script(self, client: Scripted) -> Script:
        """Live once."""
        if not (yield from self._begin(client)):
            return
        for _ in range(self._random.randint(0, 6)):
            if not (yield from self._do_something(client)):
                break
        yield from self._give_up(client)
        self._keeps_alive = False

    def _begin(self, client: Scripted) -> Generator[Step, Told, bool]:
        """Get a lease, and a lock."""
        if not self._has_lock or self._clockwork.chance(0.5):
            told = yield from self._call(client, "grant", "grant", (self._ttl_ms,))
            if not isinstance(told, Result):
                return False
            self._start(told.value)
        return not self._has_lock or (yield from self._acquire(client))

    def _start(self, lease: int) -> None:
        self._lease = lease
        self._keeps_alive = True
        Scripted(self._holders, self._keep_alive)

    def _acquire(self, client: Scripted) -> Generator[Step, Told, bool]:
        waits = self._clockwork.chance(0.8)
        until_ms = self._clockwork.now + self._random.choice((50.0, 300.0, 1500.0))
        while True:
            is_last = self._clockwork.now >= until_ms
            if is_last and self._lease:
                told = yield from self._call(
                    client, "withdraw", "withdraw", (self._name, self._lease), LOCKS_SERVICE
                )
                if not isinstance(told, Result) or not told.value:
                    return False
                self._clockwork.seen["lock: held after all, when given up"] += 1
                self._token = told.value
                return True
            note = f"h{client.number}".encode()
            args = (self._name, self._lease, 0 if self._lease else self._ttl_ms, note, waits)
            told = yield from self._call(client, "acquire", "acquire", args, LOCKS_SERVICE)
            if not isinstance(told, Result):
                return False
            acquired = Acquired(*told.value)
            if not self._lease:
                self._start(acquired.lease)
            if acquired.token:
                self._token = acquired.token
                return True
            self._clockwork.seen["lock: waited for"] += 1
            yield self._clockwork.between(*POLL_MS)

    def _do_something(self, client: Scripted) -> Generator[Step, Told, bool]:
        """Write, or stand still; return whether the lease and the lock are there, as told."""
        kind = self._random.random()
        if kind < 0.2:
            self._keeps_alive = False  # it stands still, and knows nothing when it goes on
            yield OUTPACED * self._ttl_ms
            return True
        yield self._clockwork.between(*PAUSE_MS)
        number = self._holders.next_number()
        if not self._has_lock:
            key = f"h/{self._lease}/{self._random.randrange(3)}".encode()
            entry_args = (key, b"%d" % number, None, False, self._lease)
            told = yield from self._call(client, "fenced", "put", entry_args, STORE)
            return not isinstance(told, RejectedError)
        key, value = f"h/{self._key}".encode(), fenced(self._name, self._token, number)
        if kind < 0.7:
            hangs_on = self._random.choice((0, self._lease))
            told = yield from self._call(
                client, "fenced", "put", (key, value, None, False, hangs_on), STORE,
                fence=True, token=self._token,
            )  # fmt: skip
            return not isinstance(told, RejectedError)
        txn = Txn((LockComparison(self._name, self._token),), (PutStep(key, value),))
        told = yield from self._call(
            client, "fenced", "txn", (encode_txn(txn),), STORE, token=self._token
        )
        if isinstance(told, Result) and not told.value[0]:
            self._holders.oracle.on_lost(self._name, self._token)
            return False
        return not isinstance(told, RejectedError)

    def _give_up(self, client: Scripted) -> Script:
        """Release, revoke, or die."""
        kind = self._random.random()
        if kind < 0.4 and self._token:
            yield from self._call(
                client, "release", "release", (self._name, self._token), LOCKS_SERVICE,
                token=self._token,
            )  # fmt: skip
        if 0.2 < kind < 0.6:
            self._holders.oracle.revoked.add(self._lease)
            yield from self._call(client, "revoke", "revoke", (self._lease,))

    def _keep_alive(self, client: Scripted) -> Script:
        """The second script of a holder."""
        pause_ms = self._ttl_ms * self._random.choice(KEEP_ALIVE_SHARES)
        while True:
            yield pause_ms
            if not self._keeps_alive:
                return
            told = yield from self._call(
                client, "keepalive", "keep_alive", ((self._lease,),), keyed=False
            )
            if isinstance(told, Result) and not told.value[0]:
                return


class Holders:
    """All holders of a schedule, and who looks at their locks."""

    def __init__(self, clients: Clients) -> None:
        world = clients.world
        self.clients = clients
        self.oracle = world.oracle.leases = LeaseOracle(world.oracle.fail, world.clockwork.seen)
        self.unsettled: list[LeaseAsking] = []  # those whose outcome is unknown
        self.scripts: list[Scripted] = []
        self._lives = self._begun = 0
        self._n_holders = world.clockwork.random.randint(3, 5)

    def start(self) -> None:
        """Begin; they end with the other clients."""
        for _ in range(self._n_holders):
            Scripted(self, self._holder)
        Scripted(self, self._observer)

    def next_number(self) -> int:
        """Count calls."""
        self._begun += 1
        return self._begun

    def _locks(self) -> tuple[str, str]:
        group = self._lives // LIVES_PER_GROUP
        return f"lock{group}", f"election{group}"

    def _holder(self, client: Scripted) -> Script:
        clockwork = self.clients.clockwork
        while True:
            yield clockwork.between(*PAUSE_MS)
            self._lives += 1
            has_lock = clockwork.chance(0.8)
            key = self._locks()[clockwork.chance(0.3)] if has_lock else f"lease{self._lives}"
            yield from Tenancy(self, key, has_lock=has_lock).script(client)

    def _observer(self, client: Scripted) -> Script:
        clockwork = self.clients.clockwork
        while True:
            yield clockwork.between(*POLL_MS)
            name = clockwork.random.choice(self._locks())
            entry = self.clients.history.lease_call(
                client.number, "look", self.clients.now_ns(), key=name
            )
            yield Call(Query("get", (name.encode(),), service=LOCKS_SERVICE), entry)

    def settle(self, node: Node, well_since_ms: float) -> None:
        """The cluster is whole: find out what is unknown, and that no lease stays for ever.

        The histories end here: what is not found has not happened, although it may yet.
        """
        world = self.clients.world
        overdue = self.oracle.overdue(world.clockwork.now, well_since_ms)
        # Where two operations fill the queue, the end of a lease may be refused each time.
        if overdue and world.bounds.max_waiting_operations >= Bounds().max_waiting_operations:
            world.oracle.fail(f"leases end at last: {overdue}")
        remembers = world.bounds.client_table.max_bytes >= ClientTableBounds().max_bytes
        under_way = [script.asking for script in self.scripts if script.asking is not None]
        for asking in (*self.unsettled, *under_way):
            self._settle(asking.entry, asking.asks, node if remembers else None)

    def _settle(self, entry: Entry, asks: Operation | Query, node: Node | None) -> None:
        """End an entry by what a node knows of it, if it does."""
        now_ns = self.clients.now_ns()
        entry.outcome = "open"
        if isinstance(asks, Query):
            entry.failed(now_ns)
            return
        if node is None or not asks.idempotency_key:
            entry.unknown(now_ns)
            return
        told = node.service.tail.recall(asks)
        if told is None:
            entry.not_applied(now_ns)
        elif isinstance(told, Result):
            self.clients.clockwork.seen["client: call of a lease found out"] += 1
            _how(entry, asks, told)(now_ns)
        elif isinstance(told, RejectedError):
            entry.refused(now_ns, told.code)
        else:
            entry.unknown(now_ns)
