"""Nodes for the client's tests: the real HTTP API on real sockets, over one store in memory.

`FakeCluster` shows several nodes that share one `LocalNode`. What can go wrong is switched on:
`faults` say what happens to the next writes, at whichever node; a server's `cuts` say what happens
to the next requests on their way; `silence` makes it accept and never answer; `kill` and `restart`
are what they say.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Literal

import msgspec

from cluster.api.routes import HttpApi
from cluster.api.settings import HttpSettings
from cluster.services.kv import HEAD_SIZE_BYTES
from datapath.errors import NotPrimaryError, OperationError, OperationUnknownError, PrimaryFullError
from datapath.node.history import History
from datapath.operations import (
    BackupSource,
    ClusterStatus,
    Completion,
    Consistency,
    Digest,
    Operation,
    Principal,
    Query,
    QueryCompletion,
    QueryResult,
    Result,
)
from datapath.records import Record
from election.identity import Addresses
from election.view import Member, View, ViewStep
from tests.support.local_node import LocalNode, local_node
from tests.support.tracking import track

Fault = Literal["not_applied", "unknown_before", "unknown_after", "full", "slow"]
Cut = Literal["before", "after"]


class FakeNode:
    """One node's face of the shared store."""

    def __init__(self, core: LocalNode, node_id: str, faults: deque[Fault]) -> None:
        self.node_id = node_id
        self.core = core
        self.faults = faults
        self.delay_s = 0.05
        self.pace_s = 0.0  # every write takes so much longer
        self.requests = 0
        self.timeouts_ms: list[int] = []
        self.first_index = 1  # of the history that this node keeps
        self.history = History(core.feed, self._read_log, lambda: self.first_index)

    async def _read_log(self, from_index: int, max_bytes: int) -> list[Record] | None:
        if from_index < self.first_index:
            return None
        return await self.core.read_log(from_index, max_bytes)

    @property
    def views(self) -> View:
        return self.core.view

    @property
    def epoch(self) -> int:
        return self.core.epoch

    @property
    def commit_index(self) -> int:
        return self.core.commit_index

    @property
    def primary(self) -> str:
        return self.core.primary

    @property
    def is_primary(self) -> bool:
        return self.core.primary == self.node_id

    @property
    def is_ready(self) -> bool:
        return True

    def submit(self, operation: Operation, timeout_ms: int, completion: Completion) -> bool:
        return False

    def submit_query(self, query: Query, timeout_ms: int, completion: QueryCompletion) -> bool:
        return False

    def read_now(self, query: Query) -> QueryResult | None:
        return None

    async def execute(
        self, operation: Operation, timeout_ms: int, after: OperationError | None = None
    ) -> Result:
        self.requests += 1
        self.timeouts_ms.append(timeout_ms)
        fault = self.faults.popleft() if self.faults else ""
        match fault:
            case "not_applied":
                raise NotPrimaryError("no_primary", "switched on by the test")
            case "full":
                raise PrimaryFullError("storage_full", "switched on by the test")
            case "unknown_before":
                raise OperationUnknownError("outcome_unknown", "switched on by the test")
            case "slow":
                await asyncio.sleep(self.delay_s)
            case _ if self.pace_s:
                await asyncio.sleep(self.pace_s)
        result = await self.core.execute(operation, timeout_ms)
        if fault == "unknown_after":
            raise OperationUnknownError("outcome_unknown", "switched on by the test")
        return result

    async def query(
        self, query: Query, timeout_ms: int, after: NotPrimaryError | None = None
    ) -> QueryResult:
        self.requests += 1
        result = await self.core.query(query, timeout_ms)
        return msgspec.structs.replace(result, node=self.node_id)

    def observe(
        self, keyspace: int, key: bytes, observer: Callable[[], None]
    ) -> Callable[[], None]:
        return self.core.observe(keyspace, key, observer)

    def read_here(self, query: Query) -> QueryResult:
        return self.core.read_here(query)

    def is_configured_admin(self, caller: Principal) -> bool:
        return self.core.is_configured_admin(caller)

    async def handover(self, to: str, timeout_ms: int, *, caller: Principal | None = None) -> View:
        del caller
        view = await self.core.handover(to, timeout_ms)
        if self.faults and self.faults.popleft() == "unknown_after":
            raise OperationUnknownError("outcome_unknown", "switched on by the test")
        return view

    async def finish_upgrade(
        self, timeout_ms: int, *, asked_by: str = "", caller: Principal | None = None
    ) -> View:
        return await self.core.finish_upgrade(timeout_ms, asked_by=asked_by, caller=caller)

    async def remove_member(
        self,
        node: str,
        timeout_ms: int,
        *,
        force: bool = False,
        asked_by: str = "",
        caller: Principal | None = None,
    ) -> View:
        del caller
        return await self.core.remove_member(node, timeout_ms, force=force, asked_by=asked_by)

    async def move_member(
        self, node: str, addresses: Addresses, timeout_ms: int, *, asked_by: str = ""
    ) -> View:
        return await self.core.move_member(node, addresses, timeout_ms, asked_by=asked_by)

    async def cluster_status(self) -> ClusterStatus:
        return await self.core.cluster_status()

    async def backup(self, consistency: Consistency, timeout_ms: int) -> BackupSource:
        return await self.core.backup(consistency, timeout_ms)

    def view_steps(self) -> tuple[ViewStep, ...]:
        return self.core.view_steps()

    async def digest(self) -> Digest:
        return msgspec.structs.replace(await self.core.digest(), node=self.node_id)

    def counters(self) -> Mapping[str, float]:
        return self.core.counters()


class FakeServer:
    """A node's HTTP API behind a relay that can cut, be silent, or be gone."""

    def __init__(self, core: LocalNode, node_id: str, faults: deque[Fault]) -> None:
        self.node = FakeNode(core, node_id, faults)
        self.cuts: deque[Cut] = deque()
        self.port = 0
        self.accepted = 0
        self._api = HttpApi(self.node, HttpSettings(shutdown_grace_ms=100), services=core.hosts)
        self._relay: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._passing = asyncio.Event()
        self._passing.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        await self._api.listener.start("127.0.0.1", 0)
        await self.restart()

    async def restart(self) -> None:
        """Be there (again), on the same port."""
        self._relay = await asyncio.start_server(
            self._accept, "127.0.0.1", self.port, reuse_address=True
        )
        self.port = self._relay.sockets[0].getsockname()[1]

    async def kill(self) -> None:
        """Refuse connections, and break those there are."""
        if self._relay is not None:
            self._relay.close()
            self._relay = None
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def stop(self) -> None:
        await self.kill()
        await self._api.listener.stop()

    def silence(self, silent: bool = True) -> None:
        """Accept, take requests, and pass nothing on."""
        if silent:
            self._passing.clear()
        else:
            self._passing.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        track(self._tasks)
        try:
            await self._serve(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Relay bytes; a cut is taken at the first bytes of a request."""
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._api.listener.port)
        back = asyncio.ensure_future(self._back(up_reader, writer))
        try:
            while data := await reader.read(65536):
                cut = self.cuts.popleft() if self.cuts else ""
                if cut == "before":
                    return
                if cut == "after":
                    back.cancel()
                    await asyncio.wait([back])
                    up_writer.write(data)
                    await up_reader.read(1)  # it has been applied, and nobody learns of it
                    return
                await self._passing.wait()
                up_writer.write(data)
        finally:
            back.cancel()
            up_writer.transport.abort()

    async def _back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()


class FakeCluster:
    """Nodes n1, n2, …; n1 is the primary at first."""

    def __init__(self, count: int) -> None:
        self.core = local_node()
        self.faults: deque[Fault] = deque()
        self.servers = {
            f"n{number}": FakeServer(self.core, f"n{number}", self.faults)
            for number in range(1, count + 1)
        }

    @property
    def endpoints(self) -> list[str]:
        return [server.url for server in self.servers.values()]

    def __getitem__(self, node: str) -> FakeServer:
        return self.servers[node]

    def value(self, key: str) -> bytes | None:
        """What is stored, without the head in front."""
        stored = self.core.store.values.get(key.encode())
        return None if stored is None else stored[HEAD_SIZE_BYTES:]

    def set_primary(self, node: str) -> None:
        view = self.core.view
        self.core.view = msgspec.structs.replace(
            view, primary=node, epoch=view.epoch + 1, version=view.version + 1
        )


@asynccontextmanager
async def fake_cluster(count: int = 3) -> AsyncIterator[FakeCluster]:
    cluster = FakeCluster(count)
    try:
        for server in cluster.servers.values():
            await server.start()
        members = tuple(
            Member(
                id=node,
                role="replica",
                client=f"127.0.0.1:{server.port}",
                peer=f"{node}:1",
                raft=f"{node}:2",
            )
            for node, server in cluster.servers.items()
        )
        cluster.core.view = View(
            cluster_id="fake",
            epoch=1,
            version=1,
            primary="n1",
            in_sync=tuple(cluster.servers),
            members=members,
        )
        yield cluster
    finally:
        for server in cluster.servers.values():
            await server.stop()
