"""Replicas in one process: real disks, sockets and threads, with agreement in memory.

For what the data path does once it is told who is in charge; consensus has tests of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from datapath.clock import clock_ms
from datapath.node.engine import Engine
from datapath.node.gateway import Gateway
from datapath.node.replica_disk import ReplicaStorage
from datapath.operations import STORE, Operation, Query, QueryResult, Result
from datapath.service import Service
from datapath.settings import Bounds, Timing
from datapath.storage.data_directory import DataDirectory
from datapath.transport.link import LinkHandler
from datapath.transport.mesh import REPLICATE, REQUEST, SNAPSHOT, Mesh
from datapath.transport.snapshot_receiver import SnapshotReceiver
from election.registry import PeerRegistry
from election.shared_secret import SharedSecret
from election.static import StaticGroup
from election.view import Bootstrap, Member, apply_change
from tests.support.ports import free_port

PATIENT = Timing(
    suspect_after_ms=1200,
    lease_duration_ms=1500,
    grace_period_ms=1800,
    ack_timeout_ms=30_000,
    stall_threshold_ms=1000,
)
"""Nobody is suspected on a slow machine: for tests that are not about failure detection."""
QUICK = Timing(suspect_after_ms=400, lease_duration_ms=700, grace_period_ms=900)
DEADLINE_S = 20.0


async def until(condition: Callable[[], bool], what: str) -> None:
    """Wait until `condition` holds; fail after `DEADLINE_S`."""
    deadline = asyncio.get_running_loop().time() + DEADLINE_S
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, f"timed out waiting until {what}"
        await asyncio.sleep(0.01)


class LocalReplica:
    """One replica of a `LocalCluster`."""

    def __init__(self, cluster: LocalCluster, node_id: str) -> None:
        self.node_id = node_id
        self.cluster = cluster
        self.directory = DataDirectory.open(cluster.path / node_id, node_id=node_id)
        self.agreement = cluster.group.agreement(node_id)
        self.registry = PeerRegistry(node_id, self.directory.data_id, secrets.token_hex(8), {})
        self.mesh = Mesh(
            node_id,
            ("127.0.0.1", cluster.ports[node_id]),
            "test",
            SharedSecret(b""),
            lambda peer: [("127.0.0.1", cluster.ports[peer])],
            self.registry,
            on_error=lambda _, problem: self.engine.fail_if_fatal(problem),
        )
        self.gateway = Gateway(node_id, "test", self.agreement, lambda _node, _data: True)
        self.storage = ReplicaStorage(
            self.directory,
            segment_size_bytes=1 << 20,
            map_size_bytes=1 << 28,
            flush_bytes=1 << 20,
            retention_bytes=1 << 22,
            catchup_bytes=1 << 24,
        )
        self.engine = Engine(
            node_id,
            f"{node_id}-{clock_ms()}",
            {STORE: cluster.make_service()},
            self.storage,
            self.agreement,
            self.mesh,
            cluster.timing,
            cluster.bounds,
            {},
            on_change=self.gateway.note_change,
            on_view=self.gateway.share_view,
            on_fatal=cluster.failures.append,
            bind_cluster=self.directory.bind_cluster,
        )
        self.gateway.attach(self.engine)
        self.receiver = SnapshotReceiver(
            self.engine.snapshots.make_sink,
            self.engine.snapshots.install,
            on_error=self.engine.fail_if_fatal,
        )
        self._hang: threading.Event | None = None

    async def start(self) -> None:
        """Join the others."""
        incoming: dict[str, LinkHandler] = {
            REQUEST: self.gateway.peer_service,
            REPLICATE: self.engine.incoming,
            SNAPSHOT: self.receiver,
        }
        self.engine.start()
        self.engine.admit()
        self.gateway.start()
        outgoing: dict[str, LinkHandler] = {
            REQUEST: self.gateway.caller,
            REPLICATE: self.engine.outgoing,
        }
        await self.mesh.start(incoming=incoming, outgoing=outgoing)
        kinds = frozenset({REQUEST, REPLICATE})
        self.mesh.set_peers({node: kinds for node in self.cluster.ports if node != self.node_id})
        self.agreement.subscribe(self.gateway.on_view)
        await self.agreement.start()

    async def stop(self) -> None:
        """Leave without a word; what is not durable is not lost either (the process lives on)."""
        self.resume_disk()
        await self.agreement.stop()
        await self.gateway.stop()
        await self.receiver.stop()
        await self.mesh.stop()
        await self.engine.stop()
        self.directory.close()

    def hang_disk(self) -> None:
        """Let no write to the log become durable until `resume_disk`."""
        hang = threading.Event()
        self._hang = hang
        self.storage._disk.submit(self.engine.replica.state.ticket(), hang.wait)

    def resume_disk(self) -> None:
        """Let the disk go on."""
        if self._hang is not None:
            self._hang.set()
            self._hang = None

    async def execute(self, method: str, *args: Any, **options: Any) -> Result:
        """Execute an operation, wherever the primary is."""
        return await self.gateway.execute(Operation(method, args, **options), 15_000)

    async def query(self, method: str, *args: Any, **options: Any) -> QueryResult:
        """Ask a query."""
        return await self.gateway.query(Query(method, args, **options), 15_000)

    @property
    def is_serving(self) -> bool:
        """Whether it is the serving primary."""
        return self.gateway.is_primary


class LocalCluster:
    """Some replicas; the first is the first primary."""

    def __init__(
        self,
        path: Path,
        make_service: Callable[[], Service],
        timing: Timing,
        bounds: Bounds,
        nodes: int,
    ) -> None:
        self.path = path
        self.make_service = make_service
        self.timing = timing
        self.bounds = bounds
        self.ports = {f"n{number + 1}": free_port() for number in range(nodes)}
        self.group = StaticGroup(self._first_view())
        self.failures: list[BaseException] = []
        self.replicas: dict[str, LocalReplica] = {}

    def _first_view(self) -> Any:
        members = tuple(
            Member(
                id=node,
                role="replica",
                client=f"client-{node}",
                peer=f"127.0.0.1:{port}",
                raft=f"raft-{node}",
            )
            for node, port in self.ports.items()
        )
        return apply_change(None, Bootstrap("cluster", "n1", members), 0)

    def __getitem__(self, node_id: str) -> LocalReplica:
        """Return a running replica."""
        return self.replicas[node_id]

    async def start(self, node_id: str) -> LocalReplica:
        """Start a replica, for the first time or again."""
        replica = LocalReplica(self, node_id)
        self.replicas[node_id] = replica
        await replica.start()
        return replica

    async def stop(self, node_id: str) -> None:
        """Stop a replica."""
        await self.replicas.pop(node_id).stop()

    async def until_in_sync(self, *nodes: str) -> None:
        """Wait until these, and only these, are in the in-sync set, and the primary serves."""

        def settled() -> bool:
            view = self.group.view
            return (
                view is not None
                and set(view.in_sync) == set(nodes or self.replicas)
                and any(replica.is_serving for replica in self.replicas.values())
            )

        await until(settled, f"{nodes or sorted(self.replicas)} are in sync")

    async def digests(self) -> set[str]:
        """Return the different digests of all replicas, once all have applied the same."""

        def level() -> bool:
            applied = {r.storage.store.applied_index for r in self.replicas.values()}
            return len(applied) == 1

        await until(level, "all replicas have applied the same entries")
        return {(await replica.gateway.digest()).digest for replica in self.replicas.values()}


@contextlib.asynccontextmanager
async def running(
    path: Path,
    make_service: Callable[[], Service],
    *,
    timing: Timing = PATIENT,
    bounds: Bounds | None = None,
    nodes: int = 3,
) -> AsyncIterator[LocalCluster]:
    """Run a cluster until all are in sync, and to the end; then see that no replica failed."""
    cluster = LocalCluster(path, make_service, timing, bounds or Bounds(), nodes)
    try:
        for node_id in cluster.ports:
            await cluster.start(node_id)
        await cluster.until_in_sync()
        yield cluster
        assert not cluster.failures
    finally:
        for node_id in list(cluster.replicas):
            await cluster.stop(node_id)
