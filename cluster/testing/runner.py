"""A service in one process, without disk or network, for unit tests.

    runner = ServiceRunner(Shop)
    shop = runner.service
    assert shop.reserve(item="x", count=2).left == 8

It is executed by what executes it in a node, bounds included; arguments and results pass through
JSON as they do over the network. Only durability and other machines are missing.
"""

from __future__ import annotations

import asyncio
import bisect
from collections.abc import Iterable
from typing import Any, Generic, TypeVar, cast

import msgspec

from cluster.client.errors import ClientError, NotAppliedError, RefusedError
from cluster.client.services import MethodCall, ServiceName, ServiceProxy
from cluster.services.hosting import DIFFERENCE, START, Host, HostLimits
from cluster.services.scoped import Rights, data_prefix
from datapath.errors import OperationError, RejectedError
from datapath.execution.executor import Executor
from datapath.execution.read_view import ReadView
from datapath.keyspaces import SERVICES
from datapath.operations import Operation
from datapath.service import Service
from datapath.settings import ClientTableBounds

_ServiceT = TypeVar("_ServiceT", bound=Service)


class ServiceRunner(Generic[_ServiceT]):
    """Runs a service, made by `make` (its class, say), as the primary of a cluster would.

    `reads` and `writes` are its rights, as in the configuration; what they name is empty at first.
    `now_ms` is the time of day that timers go by, set by `run_timer`. Raises what a start raises:
    ServiceError for a class that cannot be hosted, NotAppliedError where `migrate` fails.
    """

    def __init__(
        self,
        make: type[_ServiceT],
        *,
        name: str = "",
        limits: HostLimits | None = None,
        reads: Iterable[str] = (),
        writes: Iterable[str] = (),
    ) -> None:
        self._name = name or make.service_name()
        self._limits = limits
        self._rights = Rights(reads=frozenset(reads), writes=frozenset(writes))
        self._state = _Memory()
        self.now_ms = 0.0
        self.index = 0
        self.restart(make)

    def restart(self, make: type[_ServiceT]) -> None:
        """Go on with a new instance on the same state, as after a failover or an upgrade."""
        self._make = make
        self._host = Host(
            self._name,
            make(),
            self._limits,
            rights=self._rights,
            wall_clock_ms=lambda: self.now_ms,
        )
        self._executor = Executor(
            {self._name: self._host}, self._state, ClientTableBounds(), lambda: self.now_ms
        )
        self._execute(START)
        for timer in self._host.signatures.named("timer"):
            self._execute(f":{timer}")

    @property
    def service(self) -> _ServiceT:
        """The service as `Client.service` gives it. Its refusals are RefusedError."""
        return cast("_ServiceT", ServiceProxy(self._call, ServiceName(self._name, self._make)))

    @property
    def data(self) -> dict[bytes, bytes]:
        """All that the service has stored."""
        prefix = data_prefix(self._name)
        found = self._state.range(SERVICES, prefix, prefix[:-1] + b"\1", len(self._state.keys))
        return {key[len(prefix) :]: value for key, value in found}

    def run_timer(self, name: str, now_ms: float) -> bool:
        """Let a timer look at the clock, which says `now_ms`; return whether it has run."""
        self.now_ms = now_ms
        return self._execute(f":{name}") == b"true"

    def difference(self, host: Host) -> str:
        """Return how a host's code differs from what this state was started with, or ""."""
        found: str = host.queries[DIFFERENCE](ReadView(self._state, SERVICES))
        return found

    def _call(self, call: MethodCall) -> Any:
        method = call.target.rpartition("/")[2]
        if call.reads:
            result = self._answer(self._host.queries[method], call.arguments)
        else:
            result = self._execute(method, call.arguments)
        return msgspec.json.decode(result, type=call.result)

    def _answer(self, query: Any, arguments: bytes) -> bytes:
        try:
            result: bytes = query(ReadView(self._state, SERVICES), arguments)
        except OperationError as error:
            raise _as_client_sees(error) from None
        return result

    def _execute(self, method: str, *args: bytes) -> bytes:
        operation = Operation(method, args, service=self._name)
        executor = self._executor
        if method in self._host.async_operations:
            executed, entry = asyncio.run(executor.begin_async(operation))(self.index + 1)
        else:
            executed, entry = executor.execute(operation, self.index + 1)
        if executed.error is not None:
            raise _as_client_sees(executed.error)
        if entry is not None:
            self.index += 1
            self._state.apply(entry)
        result: bytes = executed.value
        return result


def _as_client_sees(error: OperationError) -> ClientError:
    kind = RefusedError if isinstance(error, RejectedError) else NotAppliedError
    return kind(error.detail, code=error.code)


class _Memory:
    """The committed state: sorted keys, and their values."""

    def __init__(self) -> None:
        self.keys: list[tuple[int, bytes]] = []
        self._values: dict[tuple[int, bytes], bytes] = {}

    def get(self, keyspace: int, key: bytes) -> bytes | None:
        return self._values.get((keyspace, key))

    def range(
        self, keyspace: int, start: bytes, end: bytes | None, limit: int
    ) -> list[tuple[bytes, bytes]]:
        found: list[tuple[bytes, bytes]] = []
        first = bisect.bisect_left(self.keys, (keyspace, start))
        for place in self.keys[first:]:
            if len(found) >= limit or place[0] != keyspace or (end is not None and place[1] >= end):
                break
            found.append((place[1], self._values[place]))
        return found

    def page(
        self, keyspace: int, start: bytes, end: bytes | None, limit: int, max_size_bytes: int
    ) -> tuple[list[tuple[bytes, bytes]], bytes | None]:
        found: list[tuple[bytes, bytes]] = []
        size_bytes = 0
        for key, value in self.range(keyspace, start, end, len(self.keys)):
            if len(found) >= limit or size_bytes >= max_size_bytes:
                return found, key
            found.append((key, value))
            size_bytes += len(key) + len(value)
        return found, None

    def apply(self, entry: list[tuple[int, bytes, bytes | None]]) -> None:
        for keyspace, key, value in entry:
            place = (keyspace, key)
            if value is None:
                if self._values.pop(place, None) is not None:
                    self.keys.remove(place)
                continue
            if place not in self._values:
                bisect.insort(self.keys, place)
            self._values[place] = value
