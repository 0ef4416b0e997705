"""One running node: puts configuration, disk, consensus, data path and HTTP API together."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import resource
import secrets
import signal
import sys
from collections.abc import Coroutine
from typing import Any

from cluster.config_model import ClusterConfig, split_address
from cluster.http_api import HttpApi
from cluster.http_server import HttpSettings
from cluster.kv import KeyValue
from datapath.datadir import DataDirectory
from datapath.engine import Engine
from datapath.errors import DataDirectoryError, OperationError, StorageError, ends_node
from datapath.gateway import Gateway
from datapath.link import LinkHandler
from datapath.mesh import REPLICATE, REQUEST, SNAPSHOT, Mesh
from datapath.requests import (
    HelloCall,
    HelloReturn,
    JoinCall,
    NoAnswerError,
    NotSentError,
    ViewReturn,
)
from datapath.settings import Bounds, Timing
from datapath.storage import Storage
from datapath.transfer_receive import SnapshotReceiver
from election.agreement import AgreementUnavailableError
from election.pysyncobj_adapter import AgreementSettings, PySyncObjAgreement
from election.view import Bootstrap, Member, View

log = logging.getLogger(__name__)

EXIT_FAILED = 1
SWITCH_INTERVAL_S = 0.0005
"""A thread that returns from fsync waits for the interpreter at most about so long; the default
of 5 ms would stand in every commit (measured: docs/storage.md)."""
MAX_OPEN_FILES = 65_536
HELLO_TIMEOUT_MS = 500
JOIN_TIMEOUT_MS = 5000
RETRY_INTERVAL_S = 0.2
WAITING_LOG_INTERVAL_S = 5.0
HANDOVER_ON_STOP_MS = 500
LINGER_S = 0.2
"""How long a primary that is stopped on purpose stays to tell others who the next one is."""


async def run_node(config: ClusterConfig, node_id: str) -> int:
    """Run a node until SIGTERM, SIGINT or a failure; return the process's exit code.

    Raises:
        DataDirectoryError, LogCorruptError, SafetyError: the node must not start as it is.

    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    _raise_file_limit()
    directory = DataDirectory.open(config.data_dir(node_id), node_id=node_id)
    try:
        node = NodeProcess(config, node_id, directory)
        return await node.run()
    finally:
        directory.close()


def _raise_file_limit() -> None:
    """Allow as many descriptors as the system does: connections, links and files need them."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class NodeProcess:
    """The parts of one node, from start to stop."""

    def __init__(self, config: ClusterConfig, node_id: str, directory: DataDirectory) -> None:
        self._config = config
        self._node_id = node_id
        self._directory = directory
        self._own = config.nodes[node_id]
        self._ended: asyncio.Future[BaseException | None] = (
            asyncio.get_running_loop().create_future()
        )
        self._agreement = PySyncObjAgreement(self._agreement_settings(dict(self._raft_addresses())))
        self._agreement_started = False
        self._mesh = Mesh(
            node_id,
            split_address(self._own.peer),
            config.name,
            bytes(config.secret),
            self._peer_address,
            on_error=lambda _, problem: self._on_error(problem),
        )
        self._gateway = Gateway(
            node_id, config.name, self._agreement, directory.pin_peer, directory.cluster_id
        )
        self._gateway.listen(self._on_view)
        self._engine: Engine | None = None
        self._receiver: SnapshotReceiver | None = None
        if self._own.role == "replica":
            self._engine = self._make_engine()
            self._gateway.attach(self._engine)
        self._api = HttpApi(
            self._gateway,
            HttpSettings(
                max_value_size_bytes=config.limits.max_value_size_bytes,
                max_buffered_bytes=config.limits.max_buffered_bytes,
                request_timeout_ms=config.timing.request_timeout_ms,
            ),
        )
        self._tasks: set[asyncio.Task[None]] = set()

    # -- putting it together

    def _raft_addresses(self) -> dict[str, str]:
        return {node: item.raft for node, item in self._config.nodes.items()}

    def _agreement_settings(self, members: dict[str, str]) -> AgreementSettings:
        config, timing = self._config, self._config.timing
        routes = {
            target: route.raft
            for target, route in config.routes.get(self._node_id, {}).items()
            if route.raft
        }
        # Without a secret every address is loopback (the configuration saw to that), and the
        # consensus group still wants a password.
        stand_in = hashlib.sha256(f"onecopy loopback only: {config.name}".encode()).digest()
        return AgreementSettings(
            node_id=self._node_id,
            bind_address=self._own.raft,
            members=members,
            directory=self._directory.path / "raft",
            secret=bytes(config.secret) or stand_in,
            routes=routes,
            heartbeat_interval_ms=timing.raft_heartbeat_ms,
            election_min_ms=timing.raft_election_min_ms,
            election_max_ms=timing.raft_election_max_ms,
            leader_fallback_ms=max(500, timing.raft_election_max_ms + 100),
            connection_timeout_ms=max(1000, 3 * timing.raft_election_max_ms),
        )

    def _make_engine(self) -> Engine:
        limits, timing = self._config.limits, self._config.timing
        storage = Storage(
            self._directory,
            segment_size_bytes=limits.log_segment_size_bytes,
            map_size_bytes=limits.store_map_size_bytes,
            flush_bytes=limits.overlay_flush_bytes,
            retention_bytes=limits.log_retention_bytes,
            catchup_bytes=4 * limits.log_retention_bytes,
        )
        engine = Engine(
            self._node_id,
            secrets.token_hex(8),
            KeyValue(),
            storage,
            self._agreement,
            self._mesh,
            Timing(
                heartbeat_interval_ms=timing.heartbeat_interval_ms,
                suspect_after_ms=timing.suspect_after_ms,
                lease_duration_ms=timing.lease_duration_ms,
                grace_period_ms=timing.grace_period_ms,
                takeover_stagger_ms=timing.takeover_stagger_ms,
                ack_timeout_ms=timing.ack_timeout_ms,
                view_change_timeout_ms=timing.view_change_timeout_ms,
            ),
            Bounds(
                min_in_sync=limits.min_in_sync,
                max_waiting_operations=limits.max_waiting_requests,
                max_waiting_bytes=limits.max_inflight_bytes,
                client_table_entries=limits.client_table_size,
                snapshot_rate_bytes_per_s=limits.snapshot_rate_bytes_per_s,
            ),
            {node: rank for rank, node in enumerate(self._config.replicas)},
            on_change=self._gateway.note_change,
            on_view=self._gateway.share_view,
            on_fatal=self._end,
            bind_cluster=self._directory.bind_cluster,
        )
        self._receiver = SnapshotReceiver(
            engine.snapshots.make_sink, engine.snapshots.install, on_error=engine.fail_if_fatal
        )
        return engine

    def _peer_address(self, peer: str) -> tuple[str, int] | None:
        """Where this node reaches `peer`: a route, the configuration, or what the view says."""
        if peer in self._config.nodes:
            return split_address(self._config.address(self._node_id, peer, "peer"))
        view = self._gateway.view
        member = view.member(peer) if view else None
        return split_address(member.peer) if member else None

    # -- running

    async def run(self) -> int:
        """Start everything, wait for the end, stop everything."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._on_loop_error)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end, None)
        try:
            starting = asyncio.create_task(self._start())
            waited: set[asyncio.Future[Any]] = {starting, self._ended}
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():
                starting.cancel()
                await asyncio.gather(starting, return_exceptions=True)
            else:
                starting.result()
            problem = await self._ended
        finally:
            await self._stop()
        if isinstance(problem, DataDirectoryError):
            raise problem
        if problem is not None:
            log.critical("%s", problem)
            return EXIT_FAILED
        return 0

    def _on_error(self, problem: BaseException) -> None:
        """A failed disk, or a broken invariant, ends the node wherever it was met (D9)."""
        if not ends_node(problem):
            return
        if self._engine is not None:
            self._engine.fail(problem)
        self._end(problem)

    def _on_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A callback has raised, and nobody took it."""
        loop.default_exception_handler(context)
        if (problem := context.get("exception")) is not None:
            self._on_error(problem)

    def _end(self, problem: BaseException | None) -> None:
        if not self._ended.done():
            self._ended.set_result(problem)

    async def _start(self) -> None:
        self._check_votes()
        if self._engine is not None:
            self._engine.start()  # before anybody can reach it
            if self._directory.joined:
                self._engine.admit()
        handlers: dict[str, LinkHandler] = {REQUEST: self._gateway}
        if self._engine is not None and self._receiver is not None:
            handlers[REPLICATE] = self._engine
            handlers[SNAPSHOT] = self._receiver
        await self._mesh.start(handlers)
        self._dial({node: item.role for node, item in self._config.nodes.items()})
        await self._api.start(*split_address(self._own.client))
        if not self._directory.joined:
            await self._enter()
            if self._engine is not None:
                self._engine.admit()
        self._agreement.subscribe(self._gateway.on_view)
        self._agreement.on_failure(self._end)
        await self._agreement.start()
        self._agreement_started = True
        self._directory.mark_joined()
        self._spawn_bootstrap()
        log.info("started: http://%s", self._own.client)

    def _check_votes(self) -> None:
        """Refuse to vote with a memory of votes that is gone."""
        raft = self._directory.path / "raft"
        if self._directory.joined and not (raft.is_dir() and any(raft.iterdir())):
            raise DataDirectoryError(
                f"{raft} is missing or empty, but this node has voted with it: restore it from a "
                f"backup; or run `onecopy remove {self._node_id}` and give the node a new id and "
                "an empty data directory"
            )

    async def _stop(self) -> None:
        if self._engine is not None:
            self._engine.stop_scans()
        if self._engine is not None and self._engine.replica.primary is not None:
            await self._hand_over()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._api.stop()
        await self._gateway.stop()
        if self._receiver is not None:
            await self._receiver.stop()
        await self._mesh.stop()
        if self._engine is not None:
            await self._engine.stop()
        if self._agreement_started:
            await self._agreement.stop()

    async def _hand_over(self) -> None:
        """A primary that is stopped on purpose passes its role on, if somebody can take it."""
        engine = self._engine
        if engine is None or engine.failed or engine.replica.primary is None:
            return
        for node in sorted(engine.replica.primary.required()):
            with contextlib.suppress(OperationError):
                view = await engine.hand_over(node, HANDOVER_ON_STOP_MS)
                log.info("handed over to %s", view.primary)
                # Others that have not heard it yet still ask here, and are told to ask there; if
                # the links went at once, nobody could know what became of their requests.
                await asyncio.sleep(LINGER_S)
                return

    def _dial(self, roles: dict[str, str]) -> None:
        both = frozenset({REQUEST, REPLICATE})
        replica = self._own.role == "replica"
        self._mesh.set_peers(
            {
                node: both if replica and role == "replica" else frozenset({REQUEST})
                for node, role in roles.items()
                if node != self._node_id
            }
        )

    # -- entering the cluster

    def _member(self) -> Member:
        own = self._own
        return Member(
            id=self._node_id,
            role=own.role,
            client=own.client,
            peer=own.peer,
            raft=own.raft,
            data_id=self._directory.data_id,
        )

    async def _enter(self) -> None:
        """Take part for the first time with this data directory.

        A node that lost its disk has forgotten votes and acknowledgements, so an empty directory
        may take part only if nobody knows this node with another one. Where a cluster exists, it
        is asked to add this node; where none does yet, every other node must have answered, and
        has pinned this directory.
        """
        others = [node for node in self._config.nodes if node != self._node_id]
        clear: set[str] = set()
        last_log = 0.0
        loop = asyncio.get_running_loop()
        while len(clear) < len(others):
            for node in others:
                answer = await self._ask_hello(node)
                if answer is None:
                    continue
                if answer.problem:
                    raise DataDirectoryError(
                        f"{node} refuses this node: {answer.problem} (here: {self._directory.path})"
                    )
                clear.add(node)
                if answer.view is not None and await self._join(node):
                    return
            if len(clear) < len(others):
                if loop.time() - last_log > WAITING_LOG_INTERVAL_S:
                    last_log = loop.time()
                    missing = sorted(set(others) - clear)
                    log.info("first start with an empty directory: waiting for %s", missing)
                await asyncio.sleep(RETRY_INTERVAL_S)

    async def _ask_hello(self, node: str) -> HelloReturn | None:
        call = HelloCall(self._node_id, self._directory.data_id)
        try:
            answer = await self._gateway.caller.call(node, call, HELLO_TIMEOUT_MS)
        except (NotSentError, NoAnswerError, OperationError):
            return None
        return answer if isinstance(answer, HelloReturn) else None

    async def _join(self, node: str) -> bool:
        """Have the cluster that `node` belongs to add this node (or register its disk)."""
        call = JoinCall(self._member(), JOIN_TIMEOUT_MS)
        try:
            answer = await self._gateway.caller.call(node, call, JOIN_TIMEOUT_MS)
        except (NotSentError, NoAnswerError) as problem:
            log.warning("%s could not add this node yet: %s", node, problem)
            return False
        except OperationError as problem:
            if problem.code in ("lost_disk", "refused"):
                raise DataDirectoryError(f"{node} refuses this node: {problem}") from problem
            log.warning("%s could not add this node yet: %s", node, problem)
            return False
        if not isinstance(answer, ViewReturn):
            return False
        view = answer.view
        members = {member.id: member.raft for member in view.members}
        self._agreement = PySyncObjAgreement(self._agreement_settings(members))
        self._gateway.use_agreement(self._agreement)
        if self._engine is not None:
            self._engine.use_agreement(self._agreement)
        self._gateway.on_view(view)
        return True

    def _spawn_bootstrap(self) -> None:
        if self._config.replicas[0] == self._node_id and self._gateway.view is None:
            self._spawn(self._bootstrap())

    async def _bootstrap(self) -> None:
        """Make the first view; the first replica of the configuration does, once."""
        pins = {**self._directory.pins, self._node_id: self._directory.data_id}
        members = tuple(
            Member(
                id=node,
                role=item.role,
                client=item.client,
                peer=item.peer,
                raft=item.raft,
                data_id=pins.get(node, ""),
            )
            for node, item in self._config.nodes.items()
        )
        change = Bootstrap(secrets.token_hex(16), self._node_id, members)
        while self._gateway.view is None:
            try:
                view = await self._agreement.read_view(2000)
            except AgreementUnavailableError:
                log.info("waiting for a majority of the nodes")
                continue
            if view is None:
                await self._agreement.propose(change, 0, 2000)
            else:
                self._gateway.share_view(view)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (problem := task.exception()) is not None:
            self._end(problem)

    def _on_view(self, view: View) -> None:
        """Follow the members, and see that this node is one, with this very disk."""
        try:
            self._directory.bind_cluster(view.cluster_id)
        except StorageError as problem:
            self._end(problem)
            return
        self._dial({member.id: member.role for member in view.members})
        member = view.member(self._node_id)
        own = self._member()
        if member is None:
            self._end(
                DataDirectoryError(
                    f"node {self._node_id} has been removed from cluster {self._config.name}: to "
                    "come back it needs a new id and an empty data directory"
                )
            )
        elif member.data_id not in ("", own.data_id):
            self._end(
                DataDirectoryError(
                    f"node {self._node_id} is known with another data directory than "
                    f"{self._directory.path}: start it with that one, or, if that disk is lost, "
                    f"run `onecopy remove {self._node_id}` and give the node a new id"
                )
            )
        elif member != own and member.raft == own.raft and not self._registering:
            self._registering = True
            self._spawn(self._register())

    _registering = False

    async def _register(self) -> None:
        """Tell the cluster this node's disk and addresses."""
        try:
            await self._gateway.add_member(self._member(), JOIN_TIMEOUT_MS)
        except OperationError as problem:
            log.warning("this node's entry could not be brought up to date: %s", problem)
        finally:
            self._registering = False
