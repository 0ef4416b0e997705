"""What the log says of client leases and locks, and what clients were told of them (L1 to K3).

Every committed entry is carried out on paper: which leases there are, what hangs on them, who holds
a lock and who waits for it. An entry remembers when it was executed, by its primary's clock and in
true time; a fenced write says in its value under which token it was asked for.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from cluster.services.kv import HEAD_SIZE_BYTES, decode_head
from cluster.services.lease_state import CLAIM, KEY, LEASE, LeaseState, decode_lease
from cluster.services.lock_state import Holder, decode_holder
from datapath.errors import OperationError
from datapath.keyspaces import KV, LEASES, LOCKS
from datapath.operations import Operation, QueryResult, Result
from datapath.records import Entry

if TYPE_CHECKING:
    from tests.sim.node import Node

FENCED = b"fenced "
FASTEST_CLOCK = 1.08
SLOWEST_CLOCK = 0.92
OVERDUE_MS = 1200.0
"""A lease that is there so long after it could have ended, with all nodes well, never ends: an end
that is refused is asked for again after 500 ms."""
_SLACK_MS = 1e-3
_RELEVANT = (LEASES, LOCKS)


def fenced(name: bytes, token: int, number: int) -> bytes:
    """Return a value that says under which token of which lock it is written."""
    return b"%s%s %d %d" % (FENCED, name, token, number)


class Moment(NamedTuple):
    """When a primary did something. `awake_ms`: by its clock, the time it stood still left out."""

    epoch: int
    awake_ms: float
    true_ms: float


class Executed(NamedTuple):
    """An entry, and when it was executed."""

    entry: Entry
    at: Moment


class Ended(NamedTuple):
    """A lease that has ended by itself."""

    ttl_ms: int
    at: Moment


def moment(node: Node) -> Moment:
    """Return the present one of a node."""
    awake_ms = node.clock() - node.stalled_ms
    return Moment(node.replica.state.epoch, awake_ms, node.clockwork.now)


class LeaseOracle:
    """Global truth of leases and locks."""

    def __init__(self, fail: Callable[[str], None], seen: dict[str, int]) -> None:
        self._fail = fail
        self._seen = seen
        self.revoked: set[int] = set()  # leases that a client has asked to end
        self._executed: dict[tuple[int, int], Executed] = {}
        self._opened: dict[int, Moment] = {}
        self._kept: dict[int, dict[int, Moment]] = {}  # lease -> epoch -> the last that is kept
        self._begun: dict[int, Moment] = {}
        self._ended: dict[int, Ended | None] = {}  # None: because a client has asked for it
        self.leases: dict[int, LeaseState] = {}
        self._keys: dict[int, set[bytes]] = {}
        self._claims: dict[int, dict[bytes, int]] = {}
        self._hangs_on: dict[bytes, int] = {}
        self.locks: dict[bytes, Holder] = {}
        self._queues: dict[bytes, dict[int, int]] = {}  # name -> ticket -> lease
        self._tokens: dict[bytes, int] = {}
        self._past: dict[bytes, list[tuple[int, tuple[int, int, bytes, int] | None]]] = {}

    # -- what is executed and committed

    def on_epoch_open(self, node: Node) -> None:
        """A primary executes from now on."""
        now = moment(node)
        self._opened[now.epoch] = now

    def on_write(self, node: Node, first_index: int, epoch: int, entries: list[Entry]) -> None:
        """A record is written for the first time: where it was executed."""
        for index, entry in enumerate(entries, first_index):
            if any(
                space in _RELEVANT
                or (space == KV and value and value[HEAD_SIZE_BYTES:].startswith(FENCED))
                for space, _, value in entry
            ):
                self._executed[index, epoch] = Executed(entry, moment(node))

    def on_commit(self, index: int, epoch: int) -> None:
        """An entry has committed, the next one."""
        executed = self._executed.get((index, epoch))
        if executed is not None:
            self._commit(index, executed)

    def _commit(self, index: int, executed: Executed) -> None:
        entry = executed.entry
        self._check_fences(index, entry)
        leases: set[int] = set()
        names: dict[bytes, tuple[Holder | None, dict[int, int]]] = {}
        for space, key, value in entry:
            if space == LEASES:
                lease = int.from_bytes(key[1:9])
                leases.add(lease)
                self._change_lease(lease, key, value, executed)
            elif space == LOCKS:
                ticket = int.from_bytes(key[-8:]) if key[:1] == b"\0" else 0
                name = key[1:-9] if ticket else key
                names.setdefault(name, (self.locks.get(name), dict(self._queues.get(name, {}))))
                self._change_lock(name, ticket, value)
            elif space == KV and (value is None or decode_head(value).lease):
                self._hang(key, 0 if value is None else decode_head(value).lease)
            elif space == KV:
                self._hang(key, 0)
        for lease in leases:
            self._check_lease(index, lease)
        for name, (holder, queue) in names.items():
            self._check_lock(index, name, holder, queue)

    def _change_lease(self, lease: int, key: bytes, value: bytes | None, by: Executed) -> None:
        kind, rest = key[:1], key[9:]
        if kind == LEASE and value is not None:
            if lease not in self.leases:
                self._begun[lease] = by.at
            self.leases[lease] = decode_lease(value)
        elif kind == LEASE:
            state = self.leases.pop(lease)
            self._ended[lease] = None
            if lease not in self.revoked:
                self._seen["lease: ended by itself"] += 1
                ended = self._ended[lease] = Ended(state.ttl_ms, by.at)
                self._check_end(lease, ended)
        elif kind == KEY:
            keys = self._keys.setdefault(lease, set())
            (keys.discard if value is None else keys.add)(rest)
        elif kind == CLAIM and value is None:
            self._claims.get(lease, {}).pop(rest, None)
        elif kind == CLAIM and value is not None:
            self._claims.setdefault(lease, {})[rest] = int.from_bytes(value)

    def _change_lock(self, name: bytes, ticket: int, value: bytes | None) -> None:
        queue = self._queues.setdefault(name, {})
        if ticket and value is None:
            queue.pop(ticket, None)
        elif ticket and value is not None:
            queue[ticket] = int.from_bytes(value[:8])
        elif value is None:
            self.locks.pop(name, None)
        else:
            self.locks[name] = decode_holder(value)

    def _hang(self, key: bytes, lease: int) -> None:
        if lease:
            self._hangs_on[key] = lease
        else:
            self._hangs_on.pop(key, None)

    # -- L1, L2

    def _check_end(self, lease: int, ended: Ended) -> None:
        at, ttl_ms = ended.at, ended.ttl_ms
        opened, begun = self._opened[at.epoch], self._begun[lease]
        self._check_after(lease, ended, opened, "its epoch opened")
        if begun.epoch != at.epoch:
            self._seen["lease: ended in another epoch than it began"] += 1
        self._check_after(lease, ended, begun, "it began")
        for kept in self._kept.get(lease, {}).values():
            self._check_after(lease, ended, kept, "a keep-alive came that was acknowledged")
        if (
            at.true_ms - ttl_ms
            > max(
                (kept.true_ms for kept in self._kept.get(lease, {}).values()), default=begun.true_ms
            )
            + 100
        ):
            self._seen["lease: ended late"] += 1

    def _check_after(self, lease: int, ended: Ended, since: Moment, what: str) -> None:
        """L1: by the clock of its primary, or, of an earlier one, in true time."""
        at, ttl_ms = ended.at, ended.ttl_ms
        if since.epoch == at.epoch:
            lasted_ms, least_ms = at.awake_ms - since.awake_ms, float(ttl_ms)
        else:
            lasted_ms, least_ms = at.true_ms - since.true_ms, ttl_ms / FASTEST_CLOCK
        if lasted_ms < least_ms - _SLACK_MS:
            self._fail(
                f"L1: lease {lease} of {ttl_ms} ms ends {lasted_ms:.1f} ms after {what} "
                f"(epoch {since.epoch}), in epoch {at.epoch}"
            )

    def on_kept(self, lease: int, came: Moment) -> None:
        """A primary acknowledges a keep-alive."""
        kept = self._kept.setdefault(lease, {})
        known = kept.get(came.epoch)
        if known is None or came.awake_ms > known.awake_ms:
            kept[came.epoch] = came
        ended = self._ended.get(lease)
        if ended is not None:
            self._seen["lease: kept, and ended before that was told"] += 1
            self._check_after(lease, ended, came, "a keep-alive came that was acknowledged")

    def on_gone(self, lease: int) -> None:
        """A client is told that its lease has ended."""
        if lease not in self._ended:
            self._fail(f"L2: lease {lease} is said to have ended, and is there")

    def overdue(self, now_ms: float, well_since_ms: float) -> str:
        """Which lease should have ended: ""; all nodes are well since then."""
        newest = max(self._opened.values(), key=lambda opened: opened.epoch, default=None)
        if newest is None:
            return ""
        for lease, state in self.leases.items():
            kept = [at.true_ms for at in self._kept.get(lease, {}).values()]
            since_ms = max(newest.true_ms, self._begun[lease].true_ms, well_since_ms, *kept, 0.0)
            if now_ms - since_ms > state.ttl_ms / SLOWEST_CLOCK + OVERDUE_MS:
                return f"lease {lease} of {state.ttl_ms} ms is there since {since_ms:.0f}"
        return ""

    def _check_lease(self, index: int, lease: int) -> None:
        """What hangs on a lease is noted with it, and goes with it."""
        state = self.leases.get(lease, LeaseState(0, 0, 0))
        keys, claims = self._keys.get(lease, set()), self._claims.get(lease, {})
        hanging = {key for key, on in self._hangs_on.items() if on == lease}
        if keys != hanging or len(keys) != state.keys or len(claims) != state.claims:
            self._fail(
                f"lease {lease} at {index}: {state}, keys {sorted(keys)}, of which there are "
                f"{sorted(hanging)}, claims {claims}"
            )

    # -- K1, K2, K3

    def _check_lock(
        self, index: int, name: bytes, before: Holder | None, queue: dict[int, int]
    ) -> None:
        holder, waiting = self.locks.get(name), self._queues[name]
        said = None if holder is None else (*holder, len(waiting))
        self._past.setdefault(name, [(0, None)]).append((index, said))
        for ticket, lease in waiting.items():
            if self._claims.get(lease, {}).get(name) != ticket:
                self._fail(f"K2: lease {lease} waits for {name!r} at {index} without a claim")
        if holder is None:
            if waiting:
                self._fail(f"K2: nobody holds {name!r} at {index}, and {waiting} wait")
            return
        if name not in self._claims.get(holder.lease, {}):
            self._fail(f"K2: lease {holder.lease} holds {name!r} at {index} without a claim")
        if before is not None and before.token == holder.token:
            return
        if holder.token <= self._tokens.get(name, 0) or holder.token > index:
            self._fail(
                f"K1: the token of {name!r} is {holder.token} at {index}, and was "
                f"{self._tokens.get(name, 0)}"
            )
        self._tokens[name] = holder.token
        if before is None:
            return
        self._seen["lock: passed on to one that waited"] += 1
        if before.lease != holder.lease and name in self._claims.get(before.lease, {}):
            self._fail(f"K2: lease {holder.lease} holds {name!r} at {index} besides {before.lease}")
        waited = [queue[ticket] for ticket in sorted(queue)]
        first = [lease for lease in waited if name in self._claims.get(lease, {})][:1]
        if first != [holder.lease]:
            self._fail(f"K2: {name!r} goes to lease {holder.lease} at {index}, not to {first}")

    def _check_fences(self, index: int, entry: Entry) -> None:
        """K3: what is written under a token is written where the lock is held under it."""
        for space, _, stored in entry:
            value = b"" if space != KV or stored is None else stored[HEAD_SIZE_BYTES:]
            if not value.startswith(FENCED):
                continue
            name, token, _ = value.removeprefix(FENCED).rsplit(b" ", 2)
            self._seen["lock: fenced write"] += 1
            holder = self.locks.get(name)
            if holder is None or holder.token != int(token):
                self._fail(f"K3: {value!r} is written at {index}; {name!r} has {holder}")

    def on_lost(self, name: bytes, token: int) -> None:
        """A client is told that it has lost its lock, or does not hold it."""
        holder = self.locks.get(name)
        if holder is not None and holder.token == token:
            self._fail(f"K3: {name!r} is said to be lost, and is held under {token}")

    def on_read(self, name: bytes, answer: QueryResult, acknowledged: int) -> None:
        """A client is told who holds a lock."""
        if answer.index < acknowledged:
            self._fail(f"{name!r} was read at {answer.index}, and {acknowledged} was acknowledged")
        past = self._past.get(name, [(0, None)])
        at = bisect_right(past, answer.index, key=lambda change: change[0])
        # Behind the holder stands how many wait, and last who the first of them are.
        said = None if answer.value is None else tuple(answer.value)[:4]
        if said != past[at - 1][1]:
            self._fail(f"{name!r} at {answer.index} is {past[at - 1][1]}, and {said} was told")

    # -- what a primary tells

    def on_result(self, operation: Operation, came: Moment, result: Result) -> None:
        """A primary answers."""
        if operation.method == "keep_alive":
            for lease, ttl_ms in zip(operation.args[0], result.value, strict=True):
                if ttl_ms:
                    self.on_kept(lease, came)
                else:
                    self.on_gone(lease)

    def on_refusal(self, operation: Operation, problem: OperationError) -> None:
        """A primary refuses."""
        if problem.code == "lock_lost":
            name, token = operation.if_lock or operation.args[:2]
            self.on_lost(name, token)
