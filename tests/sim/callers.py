"""Callers whose right comes and goes, through all troubles: rule A1, judged by what has committed.

An administrator gives a role a right and takes it, again and again. Callers with a token of that
role, or with a certificate whose name has it, write, read and repeat at any node; a stranger tries
with what nobody knows. What they get is held against the order of the log, and against true time.
They draw from random numbers of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any

import msgspec

from cluster.services.access import ACCESS_SERVICE
from cluster.services.access_guard import ROLE, TokenGuard, principal_of_certificate
from cluster.services.rights import Role, decode_role, encode_role
from datapath.errors import OperationError
from datapath.execution.access_guard import with_fresh_rights
from datapath.keyspaces import ROLES
from datapath.operations import Operation, Principal, Query, QueryResult, Result
from tests.sim import forwarding
from tests.sim.watchers import Truth

if TYPE_CHECKING:
    from tests.sim.node import Node
    from tests.sim.world import World

MAX_AGE_MS = 100.0
"""How old a node's knowledge of rights may be here: schedules are short."""
PREFIX = "callers/"
KEY = b"callers/k"
USER = Principal("user", b"\1" * 32)
BY_CERTIFICATE = principal_of_certificate("user")
STRANGERS = (
    Principal("user", b"\2" * 32),
    Principal("nobody", b"\1" * 32),
    Principal(),
    principal_of_certificate("stranger"),
    Principal(BY_CERTIFICATE.token, USER.digest),
)
ALLOWED = encode_role(Role(read=(PREFIX,), write=(PREFIX,)))
FORBIDDEN = encode_role(Role(read=("other/",)))
TIMEOUT_MS = 200.0
CALL_PAUSE_MS = (1.0, 30.0)
CHANGE_PAUSE_MS = (10.0, 250.0)
RETRY_PAUSE_MS = (5.0, 40.0)
N_CALLERS = 3
READ_MARGIN_MS = 20.0
"""Between the decision of a node and the moment at which the caller has the answer."""


def make_guard() -> TokenGuard:
    """Return what judges callers on all nodes."""
    return TokenGuard(max_age_ms=MAX_AGE_MS)


class Callers:
    """The administrator and the callers of a schedule. `running`: whether they go on.

    `revoked_at`: since when (true time) the right is known to be gone, None while it may be there:
    from the moment at which it was asked for.
    """

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.clockwork = world.clockwork
        self.random = Random(f"{seed} callers")
        self.running = True
        self.revoked_at: float | None = None
        self.revocation = 0  # counts them
        self.revoked_index = 0
        self.truth = Truth(world)
        self.links = forwarding.Troubles(self.random.choice((0.0, 0.2)), 0.5)
        self.known_index = 0  # the highest that is known to have committed
        self._number = 0
        self._changes: list[tuple[int, bool]] = [(0, False)]  # revision, and whether it allows
        self._looked_to = 0
        self._prepare([
            ("seed", ("admin", b"\3" * 32)),
            ("set_role", ("user", FORBIDDEN)),
            ("create_token", (USER.token, USER.digest, "user", "")),
            ("create_token", (BY_CERTIFICATE.token, BY_CERTIFICATE.digest, "user", "")),
        ])  # fmt: skip

    def later(self, delay_ms: tuple[float, float], action: Callable[..., None], *args: Any) -> None:
        """Do something after a while."""
        self.clockwork.after(self.random.uniform(*delay_ms), action, *args)

    def node(self) -> Node:
        """Return any node."""
        return self.random.choice(list(self.world.nodes.values()))

    def next_key(self) -> str:
        """Return an idempotency key that nobody has used."""
        self._number += 1
        return f"caller {self._number}"

    # -- the administrator

    def _prepare(self, changes: list[tuple[str, tuple[Any, ...]]]) -> None:
        if changes:
            self._change(changes[0], lambda _: self._prepare(changes[1:]))
        else:
            self._begin()

    def _begin(self) -> None:
        for _ in range(N_CALLERS):
            Caller(self)
        self.later(CHANGE_PAUSE_MS, self._toggle, True)

    def _toggle(self, allows: bool) -> None:
        if not self.running:
            return
        if allows:
            self.revoked_at = None
        role = ALLOWED if allows else FORBIDDEN

        def done(index: int) -> None:
            if not allows:
                self.revoked_at = self.clockwork.now
                self.revoked_index = index
                self.revocation += 1
                self.clockwork.seen["caller: a right was revoked"] += 1
            self.later(CHANGE_PAUSE_MS, self._toggle, not allows)

        self._change(("set_role", ("user", role)), done)

    def _change(self, call: tuple[str, tuple[Any, ...]], done: Callable[[int], None]) -> None:
        """Ask for a change until it is acknowledged, at an index."""
        method, args = call
        operation = Operation(method, args, self.next_key(), service=ACCESS_SERVICE)

        def attempt() -> None:
            node = self.node()
            if not self.running:
                return
            if not node.is_up:
                self.later(RETRY_PAUSE_MS, attempt)
                return
            told = _Once(ended)
            node.post(node.life, self.forward, node, operation, told)
            self.clockwork.after(2 * TIMEOUT_MS, told.give_up)

        def ended(outcome: Result | OperationError | None) -> None:
            if isinstance(outcome, Result):
                done(outcome.index)
            else:
                self.later(RETRY_PAUSE_MS, attempt)

        attempt()

    def forward(self, node: Node, operation: Operation, told: _Once) -> None:
        """Do what a gateway does."""
        forwarding.Forwarding(self.world, node, operation, TIMEOUT_MS, told, self.links)

    # -- the judge

    def allows(self, index: int) -> bool:
        """Whether the state at `index` gives the right, as has really committed."""
        while self._looked_to < min(index, self.truth.last):
            self._looked_to += 1
            for keyspace, key, value in self.truth.entry(self._looked_to):
                if (keyspace, key) == (ROLES, ROLE + b"user") and value is not None:
                    self._changes.append((self._looked_to, bool(decode_role(value).write)))
        return next(allows for at, allows in reversed(self._changes) if at <= index)

    def was_given_again(self, until_index: int) -> bool:
        """Whether a late repeat of a change has given back what was revoked.

        It is executed again where the client table has forgotten the first one (D8).
        """
        self.allows(until_index)
        return any(allows for at, allows in self._changes if self.revoked_index < at <= until_index)


class Caller:
    """One that calls, one thing at a time."""

    def __init__(self, callers: Callers) -> None:
        self._callers = callers
        self._clockwork = callers.clockwork
        self._acknowledged: list[Operation] = []
        callers.later(CALL_PAUSE_MS, self._call)

    def _call(self) -> None:
        callers, random = self._callers, self._callers.random
        if not callers.running:
            return
        node = callers.node()
        if not node.is_up or node.paused:
            callers.later(CALL_PAUSE_MS, self._call)
            return
        began = _Began(callers)
        is_stranger = random.random() < 0.2
        caller = random.choice(STRANGERS if is_stranger else (USER, BY_CERTIFICATE))
        kind = random.choice(("write", "write", "read", "stale", "repeat"))
        told = _Once(lambda outcome: self._ended(kind, began, outcome, is_stranger=is_stranger))
        if kind == "repeat" and self._acknowledged:
            # By whom the first attempt was made counts for nothing.
            known = random.choice(self._acknowledged)
            operation = msgspec.structs.replace(known, caller=caller)
            node.post(node.life, callers.forward, node, operation, told)
        elif kind in {"write", "repeat"}:
            value = b"c%d" % callers._number  # the oracle tells writes by it: no other client's
            key, after = callers.next_key(), callers.known_index
            operation = Operation("put", (KEY, value), key, first_after=after, caller=caller)
            began.operation = operation
            node.post(node.life, callers.forward, node, operation, told)
        else:
            consistency = "stale" if kind == "stale" else "linearizable"
            query = Query("get", (KEY,), consistency, caller=caller)  # type: ignore[arg-type]
            node.post(node.life, self._read, node, query, told)
        self._clockwork.after(2 * TIMEOUT_MS, told.give_up)

    def _read(self, node: Node, query: Query, told: _Once) -> None:
        """Do what `datapath.node.reads` does."""
        query = with_fresh_rights(node.world.guard, query)
        service, view = node.service, node.replica.view
        try:
            result = service.query(query)
            if result is not None:
                told.set_result(result)
                return
            if node.replica.primary is not None or view is None or node.id not in view.in_sync:
                return
            questions = service.questions(Query("get"))
            age_ms = query.max_staleness_ms
            if query.consistency == "stale" and age_ms is not None and questions.age_ms() <= age_ms:
                self._clockwork.seen["caller: read by rights of some age"] += 1
                told.set_result(service.read(query))
                return
        except OperationError as problem:
            told.set_exception(problem)
            return

        def read() -> None:
            try:
                told.set_result(node.service.read(query))
            except OperationError as problem:
                told.set_exception(problem)

        questions.join(read)

    def _ended(
        self,
        kind: str,
        began: _Began,
        outcome: Result | QueryResult | OperationError | None,
        *,
        is_stranger: bool,
    ) -> None:
        callers, fail, seen = self._callers, self._callers.world.oracle.fail, self._clockwork.seen
        callers.later(CALL_PAUSE_MS, self._call)
        if isinstance(outcome, OperationError):
            if outcome.code in {"forbidden", "unauthenticated"}:
                seen[f"caller: {kind} {outcome.code}"] += 1
            return
        if outcome is None:
            return
        seen[f"caller: {kind} done"] += 1
        if is_stranger:
            fail(f"A1: a {kind} of one who is not known was done at {outcome.node}")
        is_write = isinstance(outcome, Result)
        callers.known_index = max(callers.known_index, outcome.index)
        if not callers.allows(outcome.index - is_write):
            fail(f"A1: a {kind} at {outcome.index} was done without a right in the log's order")
        longer_ms = MAX_AGE_MS + READ_MARGIN_MS if kind == "stale" else 0.0
        if began.was_revoked_for(longer_ms) and not callers.was_given_again(outcome.index):
            fail(f"A1: a {kind} at {outcome.node} was begun and done while the right was gone")
        if isinstance(outcome, Result) and began.operation is not None:
            self._acknowledged.append(began.operation)


class _Began:
    """When a call began: with the right revoked, or not."""

    operation: Operation | None = None

    def __init__(self, callers: Callers) -> None:
        self._callers = callers
        self._at = callers.clockwork.now
        self._revocation = callers.revocation
        self._revoked_at = callers.revoked_at

    def was_revoked_for(self, longer_ms: float) -> bool:
        """Whether the right was gone for so long when it began, and all the time since then."""
        callers = self._callers
        return (
            self._revoked_at is not None
            and callers.revoked_at == self._revoked_at
            and callers.revocation == self._revocation
            and self._at > self._revoked_at + longer_ms
        )


class _Once:
    """A completion that calls `ended` once: with what comes first, or None when given up."""

    def __init__(self, ended: Callable[[Any], None]) -> None:
        self._ended = ended
        self._done = False

    def done(self) -> bool:
        """Whether it has ended."""
        return self._done

    def give_up(self) -> None:
        """Nobody waits any more."""
        self._end(None)

    def set_result(self, result: Any, /) -> None:
        """Take an answer."""
        self._end(result)

    def set_exception(self, exception: OperationError, /) -> None:
        """Take a refusal."""
        self._end(exception)

    def _end(self, outcome: Any) -> None:
        if not self._done:
            self._done = True
            self._ended(outcome)
