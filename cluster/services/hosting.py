"""Hosting a user's service: its keyspace, its bounds, its timers, its versions.

- X1: it sees and writes only its own keys, and those that the configuration names (`Rights`).
- X2: what raises, takes too long, writes too much or returns what cannot be encoded leaves nothing
  behind, and stops nobody else.
- X3: a timer runs at most once an interval, in the order of the log.
- X4: the state has the version of the code that started it; other code does not serve.

All of it is decided inside the operation, on the primary, in the order of the log. Arguments come
as JSON (an object of named arguments) and results go as JSON, so that nodes that only forward need
not know the types.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import msgspec

from cluster.services.scoped import (
    OWN_KEYS_ALONE,
    Rights,
    Scoped,
    ScopedReader,
    WriteBounds,
    data_prefix,
)
from cluster.services.signatures import (
    ArgumentError,
    ServiceMethod,
    check_instance,
    read_signatures,
)
from cluster.services.time_limit import Stepped, TimeLimit, TimeUpError
from cluster.services.timers import may_fire
from datapath.errors import OperationError, OperationNotAppliedError, RejectedError
from datapath.keyspaces import SERVICES
from datapath.service import ReadTransaction, Service, Transaction

logger = logging.getLogger(__name__)

START = ":start"
"""The operation that makes the state the present code's (X4)."""
DIFFERENCE = ":difference"
"""The query that says how a node's code differs from what the state was started with."""
MAX_RESULT_BYTES = 1024 * 1024
MAX_TOLD = 500
"""How many characters of an exception a client is told."""
CANCEL_PATIENCE_S = 0.1
"""How long an operation that was cancelled is waited for. It goes on without its transaction."""
MAX_ABANDONED = 8
"""How many such may still run; beyond it the service takes no `async` operation."""
_CODE = re.compile("[a-z][a-z0-9_]{0,63}")

OUTCOMES = ("ok", "refused", "invalid", "failed", "timeout")


class HostLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of one service (X2).

    `step_timeout_ms`: how long its code may hold the event loop at a time; `timeout_ms`: how long
    an `async` operation may take in all; `max_write_bytes`: keys and values of one operation.
    """

    step_timeout_ms: int = 100
    timeout_ms: int = 2000
    max_write_bytes: int = 1024 * 1024


class Started(msgspec.Struct, frozen=True, array_like=True):
    """What the state is of: the version and the code that last started on it."""

    version: int
    code: str


class Tally(msgspec.Struct):
    """What the calls of one method on this node have come to."""

    counts: dict[str, int] = msgspec.field(default_factory=lambda: dict.fromkeys(OUTCOMES, 0))
    seconds: float = 0.0


class _Running(NamedTuple):
    """One call under way."""

    view: Scoped
    meta: Scoped


class Host(Service):
    """Serves a user's service under a name; what the data path executes.

    `rights` says whose keys it sees besides its own; those of one with `async` operations must be
    OWN_KEYS_ALONE. `wall_clock_ms` is the time of day, for timers. Raises
    `signatures.ServiceError` for a class that cannot be hosted.
    """

    keyspace = SERVICES

    def __init__(
        self,
        name: str,
        service: Service,
        limits: HostLimits | None = None,
        *,
        rights: Rights = OWN_KEYS_ALONE,
        wall_clock_ms: Callable[[], float] = lambda: time.time() * 1000,
    ) -> None:
        self.name = name
        self.signatures = read_signatures(name, type(service))
        check_instance(self.signatures, service)
        self._rights = rights
        self.limits = limits or HostLimits()
        self.difference = ""
        """How this node's code differs from the cluster's, as last compared."""
        self._service = service
        self._wall_clock_ms = wall_clock_ms
        self._data = data_prefix(name)
        self._meta = name.encode() + b"\1"
        self._step = TimeLimit(self.limits.step_timeout_ms / 1000)
        self._abandoned: set[asyncio.Task[Any]] = set()
        self._own = msgspec.msgpack.encode(Started(self.signatures.version, self.signatures.code))
        self.tallies = {method: Tally() for method in self.signatures.methods}
        self.operations = {START: self._start}
        self.queries = {DIFFERENCE: self._difference}
        self.scans = frozenset(service.scans & set(self.signatures.named("query")))
        for method in self.signatures.methods.values():
            function = getattr(service, method.name)
            place = f":{method.name}" if method.kind == "timer" else method.name
            make = self._async_operation if method.is_async else self._operation
            self.operations[place] = make(method, function)
            if method.kind == "query":
                self.queries[method.name] = self._query(method, function)
        self.async_operations = frozenset(
            f":{item.name}" if item.kind == "timer" else item.name
            for item in self.signatures.methods.values()
            if item.is_async
        )

    # -- what the data path calls

    def _operation(self, method: ServiceMethod, function: Callable[..., Any]) -> Callable[..., Any]:
        def execute(tx: Transaction, body: bytes = b"{}", from_text: bool = False) -> bytes:
            with self._call(method, tx) as (view, meta):
                if not self._is_due(method, meta):
                    return b"false"
                arguments = _decode(method, body, from_text=from_text)
                with self._step:
                    value = function(view, **arguments)
                return self._result(method, value, view)

        return execute

    def _async_operation(
        self, method: ServiceMethod, function: Callable[..., Any]
    ) -> Callable[..., Any]:
        async def execute(tx: Transaction, body: bytes = b"{}", from_text: bool = False) -> bytes:
            with self._call(method, tx) as (view, meta):
                if not self._is_due(method, meta):
                    return b"false"
                arguments = _decode(method, body, from_text=from_text)
                value = await self._await(method, function(view, **arguments))
                return self._result(method, value, view)

        return execute

    async def _await(self, method: ServiceMethod, coroutine: Any) -> Any:
        """Run an `async` method within its time (X2); it is cancelled where it takes longer."""
        if len(self._abandoned) >= MAX_ABANDONED:
            coroutine.close()
            raise OperationNotAppliedError(
                "service_failed",
                f"{len(self._abandoned)} operations of {self.name} were cancelled and have not "
                "ended: it catches CancelledError and goes on; mend it, and restart the node",
            )
        task = asyncio.ensure_future(_run(Stepped(coroutine, self._step)))
        try:
            done, _ = await asyncio.wait({task}, timeout=self.limits.timeout_ms / 1000)
        finally:
            if not task.done():
                task.cancel()
                self._abandoned.add(task)
                task.add_done_callback(self._forget)
        if not done:
            await asyncio.wait({task}, timeout=CANCEL_PATIENCE_S)
            raise self._too_slow(method, f"did not end within {self.limits.timeout_ms} ms")
        if task.cancelled():
            raise OperationNotAppliedError(
                "service_failed", f"{self.name}.{method.name} cancelled itself"
            )
        return task.result()

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._abandoned.discard(task)
        if not task.cancelled():
            task.exception()  # seen: nobody waits for it any more

    def _query(self, method: ServiceMethod, function: Callable[..., Any]) -> Callable[..., Any]:
        def read(tx: ReadTransaction, body: bytes = b"{}", from_text: bool = False) -> bytes:
            view = ScopedReader(tx, self._data, self._step, self._rights)
            with self._tallied(method), self._judged(method):
                try:
                    self._check_started(ScopedReader(tx, self._meta, self._step))
                    arguments = _decode(method, body, from_text=from_text)
                    with self._step:
                        value = function(view, **arguments)
                    return _encode(f"{self.name}.{method.name}", value)
                finally:
                    view.close()

        return read

    @contextmanager
    def _call(self, method: ServiceMethod, tx: Transaction) -> Iterator[_Running]:
        """Open one call's transaction, judge how it ends, count it. Raises OperationError."""
        running = self._open(tx, method.name)
        with self._tallied(method), self._judged(method):
            try:
                self._check_started(running.meta)
                yield running
            finally:
                running.view.close()
                running.meta.close()

    def _open(self, tx: Transaction, method: str) -> _Running:
        what, max_bytes = f"{self.name}.{method}", self.limits.max_write_bytes
        return _Running(
            Scoped(tx, self._data, self._step, self._rights, WriteBounds(max_bytes, what)),
            Scoped(tx, self._meta, self._step, OWN_KEYS_ALONE, WriteBounds(max_bytes, what)),
        )

    def _result(self, method: ServiceMethod, value: Any, view: Scoped) -> bytes:
        if view.bounds.failure is not None:
            raise view.bounds.failure
        return b"true" if method.kind == "timer" else _encode(f"{self.name}.{method.name}", value)

    # -- X2: how a call ends

    @contextmanager
    def _judged(self, method: ServiceMethod) -> Iterator[None]:
        """Turn whatever a user's code raises into an answer that says what happened."""
        what = f"{self.name}.{method.name}"
        try:
            yield
        except TimeUpError:
            limit = f"held the node for more than {self.limits.step_timeout_ms} ms at a time"
            raise self._too_slow(method, limit) from None
        except RejectedError as error:
            if not _CODE.fullmatch(error.code):
                text = f"{what} refused with the code {error.code!r}, which is none: use a-z and _"
                raise OperationNotAppliedError("service_failed", text) from None
            raise
        except OperationError as error:
            if type(error) is not OperationNotAppliedError:  # it is for the host to say
                raise self._failed(what, error) from None
            raise
        except (Exception, SystemExit) as error:  # noqa: BLE001 -- a user's code may raise anything
            raise self._failed(what, error) from None

    @staticmethod
    def _failed(what: str, error: BaseException) -> OperationNotAppliedError:
        logger.error("%s failed", what, exc_info=error)
        return OperationNotAppliedError("service_failed", f"{what} raised {repr(error)[:MAX_TOLD]}")

    def _too_slow(self, method: ServiceMethod, problem: str) -> OperationNotAppliedError:
        return OperationNotAppliedError(
            "service_timeout",
            f"{self.name}.{method.name} {problem} and was stopped; nothing of it was written. "
            "Make it do less in one call",
        )

    @contextmanager
    def _tallied(self, method: ServiceMethod) -> Iterator[None]:
        started, outcome = time.perf_counter(), "failed"
        try:
            yield
            outcome = "ok"
        except RejectedError:
            outcome = "refused"
            raise
        except OperationNotAppliedError as error:
            words = {"invalid_argument": "invalid", "service_timeout": "timeout"}
            outcome = words.get(error.code, "failed")
            raise
        finally:
            tally = self.tallies[method.name]
            tally.counts[outcome] += 1
            tally.seconds += time.perf_counter() - started

    # -- X3: timers

    def _is_due(self, method: ServiceMethod, meta: Scoped) -> bool:
        """Whether a timer may run now, which then counts as done; other methods always may."""
        if method.timer is None:
            return True
        key = b"timer:" + method.name.encode()
        held = meta.get(key)
        last = None if held is None else int.from_bytes(held, signed=True)
        interval = method.timer.interval_at(self._wall_clock_ms())
        fires = may_fire(interval, last)
        if fires or last is None:
            meta.put(key, interval.to_bytes(8, signed=True))
        return fires

    # -- X4: versions

    def _start(self, tx: Transaction) -> bytes:
        """Make the state this code's: migrate it, if it is of an earlier version."""
        running = self._open(tx, "migrate")
        started = self.read_started(running.meta)
        version = self.signatures.version
        stored = started.version if started is not None else 0
        if is_outdated(stored, version):
            raise self._outdated(stored)
        if must_migrate(stored, version):
            migrate = ServiceMethod("migrate", "operation", msgspec.Struct, Any, False, "")
            with self._judged(migrate), self._step:
                self._service.migrate(running.view, stored)
            if running.view.bounds.failure is not None:
                raise running.view.bounds.failure
            logger.info("service %s is at version %d now, from %d", self.name, version, stored)
        if started != Started(version, self.signatures.code):
            running.meta.put(b"started", self._own)
        running.view.close()
        return b"true"

    def _check_started(self, meta: ScopedReader) -> None:
        """Refuse to serve a state that is not of this version (X4). Raises NotAppliedError."""
        held = meta.get(b"started")
        if held == self._own:
            return
        stored = 0 if held is None else _decode_started(held).version
        if may_serve(stored, self.signatures.version):
            return
        if is_outdated(stored, self.signatures.version):
            raise self._outdated(stored)
        raise OperationNotAppliedError(
            "service_starting",
            f"service {self.name} has not started yet at version {self.signatures.version}: "
            "try again in a moment",
        )

    def _outdated(self, stored: int) -> OperationNotAppliedError:
        return OperationNotAppliedError(
            "service_outdated",
            f"service {self.name} is at version {stored}, and this node has the code of version "
            f"{self.signatures.version}: install the newer code here, and restart the node",
        )

    @staticmethod
    def read_started(meta: ScopedReader) -> Started | None:
        """Return what the state is of; None: no code has started on it."""
        held = meta.get(b"started")
        return None if held is None else _decode_started(held)

    def _difference(self, tx: ReadTransaction) -> str:
        """Return a sentence if this node's code is not what the state was started with, or ""."""
        started = self.read_started(ScopedReader(tx, self._meta, self._step))
        own = self.signatures
        if started is None or started == Started(own.version, own.code):
            return ""
        if started.version != own.version:
            return (
                f"service {self.name}: this node has version {own.version}, and the cluster runs "
                f"version {started.version}"
            )
        return (
            f"service {self.name}: this node has other code than the cluster runs, both of version "
            f"{own.version}"
        )


def may_serve(stored: int, version: int) -> bool:
    """Whether code of `version` may serve a state of version `stored` (X4; 0: there is none)."""
    return stored == version


def must_migrate(stored: int, version: int) -> bool:
    """Whether a state has to be migrated before code of `version` serves it (X4)."""
    return stored < version


def is_outdated(stored: int, version: int) -> bool:
    """Whether code of `version` may not touch a state, which later code has migrated (X4)."""
    return stored > version


def _decode(method: ServiceMethod, body: bytes, *, from_text: bool) -> dict[str, Any]:
    try:
        return method.decode(body, from_text=from_text)
    except ArgumentError as error:
        raise OperationNotAppliedError("invalid_argument", str(error)) from None


def _encode(what: str, value: Any) -> bytes:
    """Return a result as JSON. Raises NotAppliedError for what has none, or is too large."""
    try:
        encoded = msgspec.json.encode(value)
    except (TypeError, ValueError, RecursionError, msgspec.MsgspecError) as error:
        raise OperationNotAppliedError(
            "service_failed", f"{what} returned what JSON cannot carry: {str(error)[:MAX_TOLD]}"
        ) from None
    if len(encoded) > MAX_RESULT_BYTES:
        raise OperationNotAppliedError(
            "too_large",
            f"{what} returned {len(encoded)} bytes of JSON, over {MAX_RESULT_BYTES}; return less, "
            "say a page at a time",
        )
    return encoded


_decode_started = msgspec.msgpack.Decoder(Started).decode


async def _run(steps: Stepped) -> Any:
    return await steps
