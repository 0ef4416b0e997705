"""Services executed by the production executor over a state in memory: one primary, alone."""

from __future__ import annotations

from typing import Any

from cluster.services.access_guard import TokenGuard
from cluster.services.built_in import built_in_services
from cluster.services.leases import LEASES_SERVICE, Leases
from datapath.errors import OperationError
from datapath.execution.executor import Executor
from datapath.execution.read_view import ReadView
from datapath.operations import STORE, Operation
from datapath.records import Entry
from datapath.settings import ClientTableBounds
from tests.sim.service import MemoryStore

STALL_MS = 100.0


class Primary:
    """Executes operations one by one, and each commits at once. `now_ms` is its clock."""

    def __init__(
        self,
        state: MemoryStore | None = None,
        now_ms: float = 0.0,
        guard: TokenGuard | None = None,
        slot: int | None = None,
    ) -> None:
        self.now_ms = now_ms
        self.state = state or MemoryStore()
        self.services = built_in_services(STALL_MS, lambda: self.now_ms, slot=slot)
        self.executor = Executor(self.services, self.state, ClientTableBounds(), access=guard)
        leases = self.services[LEASES_SERVICE]
        assert isinstance(leases, Leases)
        self.leases = leases
        self.entries: list[Entry] = []
        for service in self.services.values():
            service.on_epoch_open(now_ms)

    @property
    def index(self) -> int:
        return self.state.applied_index

    def call(self, service: str, method: str, *args: Any, **options: Any) -> Any:
        """Execute, commit, and return the value; raise what it was refused with."""
        operation = Operation(method, args, service=service, **options)
        executed, entry = self.executor.execute(operation, self.index + 1)
        if entry is not None:
            self.executor.take(entry)
            self.executor.complete([entry])
            self.state.apply([entry], self.index + 1, 1)
            self.executor.committed(self.index, [entry])
            self.entries.append(entry)
        if executed.error is not None:
            raise executed.error
        return executed.value

    def store(self, method: str, *args: Any, **options: Any) -> Any:
        return self.call(STORE, method, *args, **options)

    def query(self, service: str, method: str, *args: Any) -> Any:
        found = self.services[service]
        return found.queries[method](ReadView(self.state, found.keyspace), *args)

    def sleep(self, ms: float, *, step_ms: float = 20.0) -> None:
        """Let time pass, tick by tick; what is due is ended."""
        until_ms = self.now_ms + ms
        while self.now_ms < until_ms:
            self.now_ms = min(until_ms, self.now_ms + step_ms)
            self.tick()

    def stall(self, ms: float) -> None:
        """Stand still: no tick, no operation."""
        self.now_ms += ms

    def tick(self) -> int:
        """Do what a tick does; return how many leases have ended."""
        view = ReadView(self.state, self.leases.keyspace)
        self.leases.on_tick(self.now_ms)
        wanted = self.leases.due(view, self.now_ms)
        if wanted is None:
            return 0
        method, args = wanted
        try:
            gone = self.call(LEASES_SERVICE, method, *args)
        except OperationError:
            return 0
        self.leases.on_done(gone)
        return len(gone)
