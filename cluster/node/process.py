"""One running node: puts configuration, disk, consensus, data path and HTTP API together."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import secrets
import signal
import sys
from collections.abc import Coroutine
from typing import Any

from cluster.api.hosts import Hosts
from cluster.api.routes import HttpApi
from cluster.api.server import HttpSettings
from cluster.config.model import ClusterConfig, ConfigError, split_address
from cluster.node.addresses import edit_or_move, next_step
from cluster.node.descriptors import Descriptors, TooFewDescriptorsError, raise_limit, share_out
from cluster.node.own_address import check_own_addresses
from cluster.services.kv import KeyValue
from datapath.errors import (
    DataDirectoryError,
    DiskFullError,
    NotAdmittedError,
    OperationError,
    StorageError,
    ends_node,
)
from datapath.node.engine import Engine
from datapath.node.gateway import Gateway
from datapath.node.replica_disk import SNAPSHOT_LOG_HARD_FACTOR, Storage
from datapath.records import MAX_RECORD_SIZE_BYTES
from datapath.settings import Bounds, ClientTableBounds, Timing
from datapath.storage.data_directory import DataDirectory
from datapath.transport.calls import (
    HelloCall,
    HelloReturn,
    JoinCall,
    JoinReturn,
    NoAnswerError,
    NotSentError,
)
from datapath.transport.dialer import find_second_holder
from datapath.transport.link import LinkHandler
from datapath.transport.mesh import REPLICATE, REQUEST, SNAPSHOT, Mesh
from datapath.transport.snapshot_receiver import SnapshotReceiver
from datapath.transport.tcp import cannot_listen
from election.agreement import AgreementDamagedError, AgreementUnavailableError
from election.identity import Addresses
from election.pysyncobj_adapter import AgreementSettings, PySyncObjAgreement
from election.registry import PeerRegistry, addresses_of, known_members
from election.view import Bootstrap, Member, View

log = logging.getLogger(__name__)

EXIT_FAILED = 1
SWITCH_INTERVAL_S = 0.0005
"""A thread that returns from fsync waits for the interpreter at most about so long; the default
of 5 ms would stand in every commit (measured: docs/storage.md)."""
LOG_KEPT_FACTOR = 4
"""So many times `log_retention_bytes` may be kept for a replica that is catching up."""
HELLO_TIMEOUT_MS = 500
JOIN_TIMEOUT_MS = 5000
RETRY_INTERVAL_S = 0.2
WAITING_LOG_INTERVAL_S = 5.0
MOVE_SILENCE_S = 3.0
"""A node whose addresses have changed starts only if its old one has been silent for so long."""
ACCUSATION_CHECK_S = 1.0
REGISTER_INTERVAL_S = 0.5
REMOVED_CHECK_INTERVAL_S = 0.5
"""How often a node that consensus does not reach asks the others whether it was removed."""
ALONE_AFTER_S = 3.0
"""A node that could ask nobody for so long whether it was removed answers stale reads."""
HANDOVER_ON_STOP_MS = 500
LINGER_S = 0.2
"""How long a primary that is stopped on purpose stays to tell others who the next one is."""


async def run_node(config: ClusterConfig, node_id: str) -> int:
    """Run a node until SIGTERM, SIGINT or a failure; return the process's exit code.

    Raises:
        DataDirectoryError, LogCorruptError, SafetyError: the node must not start as it is.

    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    os.umask(0o077)  # whatever this process makes, its own user alone can read
    limits = config.limits
    try:
        descriptors = share_out(
            raise_limit(),
            nodes=len(config.nodes),
            segments=LOG_KEPT_FACTOR * limits.log_retention_bytes // limits.log_segment_size_bytes,
            snapshot_segments=SNAPSHOT_LOG_HARD_FACTOR
            * limits.snapshot_log_bytes
            // limits.log_segment_size_bytes,
        )
    except TooFewDescriptorsError as error:
        raise ConfigError(config.path, "", str(error)) from None
    if descriptors.cut:
        log.warning("%s", descriptors.cut)
    hint = await check_own_addresses(config, node_id)
    directory = DataDirectory.open(config.data_dir(node_id), node_id=node_id)
    try:
        if directory.removed:
            raise _removed(config.name, node_id)
        node = NodeProcess(config, node_id, directory, descriptors, hint)
        return await node.run()
    except NotAdmittedError:
        # Under its new id the node may come with the same directory: nothing stays in it.
        with contextlib.suppress(ValueError):  # Or it has voted, in a process that was killed.
            directory.discard()
        raise
    finally:
        directory.close()


def _removed(cluster: str, node_id: str) -> DataDirectoryError:
    return DataDirectoryError(
        f"node {node_id} has been removed from cluster {cluster}: to come back it needs a new id "
        f"in the configuration file (rename [nodes.{node_id}]) and an empty data directory"
    )


class NodeProcess:
    """The parts of one node, from start to stop."""

    def __init__(
        self,
        config: ClusterConfig,
        node_id: str,
        directory: DataDirectory,
        descriptors: Descriptors,
        hint: str = "",
    ) -> None:
        self._config = config
        self._hint = hint  # why others may not reach this node, for who waits for them
        self._node_id = node_id
        self._directory = directory
        self._own = config.nodes[node_id]
        self._descriptors = descriptors
        self._ended: asyncio.Future[BaseException | None] = (
            asyncio.get_running_loop().create_future()
        )
        self._registry = PeerRegistry(
            node_id,
            directory.data_id,
            secrets.token_hex(8),
            {
                node: Addresses(item.client, item.peer, item.raft)
                for node, item in config.nodes.items()
            },
            cluster_id=directory.cluster_id,
            members=directory.members,
            pins=lambda: directory.pins,
        )
        self._view_seen = False
        self._agreement = PySyncObjAgreement(self._agreement_settings(dict(self._raft_addresses())))
        self._agreement_started = False
        self._mesh = Mesh(
            node_id,
            split_address(self._own.peer),
            config.name,
            bytes(config.secret),
            self._peer_addresses,
            self._registry,
            on_error=lambda _, problem: self._on_error(problem),
            max_unauthenticated=descriptors.max_unauthenticated,
        )
        self._gateway = Gateway(
            node_id,
            config.name,
            self._agreement,
            directory.pin_peer,
            directory.cluster_id,
            config.limits.min_in_sync,
        )
        self._gateway.listen(self._on_view)
        self._gateway.share_notices(self._registry)
        self._engine: Engine | None = None
        self._receiver: SnapshotReceiver | None = None
        if self._own.role == "replica":
            self._engine = self._make_engine()
            self._gateway.attach(self._engine)
        self._hosts = Hosts(config.api.hosts, config.api.origins)
        self._hosts.learn(split_address(item.client)[0] for item in config.nodes.values())
        self._api = HttpApi(
            self._gateway,
            HttpSettings(
                max_value_size_bytes=config.limits.max_value_size_bytes,
                max_buffered_bytes=config.limits.max_buffered_bytes,
                request_timeout_ms=config.timing.request_timeout_ms,
                drain_timeout_ms=config.timing.drain_timeout_ms,
                max_connections=descriptors.max_connections,
                reserved_connections=descriptors.reserved_connections,
                admin_from=config.api.admin_from,
            ),
            self._hosts,
        )
        self._tasks: set[asyncio.Task[None]] = set()

    # -- putting it together

    def _raft_addresses(self) -> dict[str, str]:
        return {node: item.raft for node, item in self._config.nodes.items()}

    def _agreement_settings(
        self, members: dict[str, str], founders: dict[str, str] | None = None
    ) -> AgreementSettings:
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
            founders=founders,
            directory=self._directory.path / "raft",
            secret=bytes(config.secret) or stand_in,
            registry=self._registry,
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
            catchup_bytes=LOG_KEPT_FACTOR * limits.log_retention_bytes,
            max_queued_bytes=limits.max_inflight_bytes + 2 * MAX_RECORD_SIZE_BYTES,
            # Each file of the log that is held takes a descriptor.
            snapshot_log_bytes=min(
                limits.snapshot_log_bytes,
                self._descriptors.log_segments
                * limits.log_segment_size_bytes
                // SNAPSHOT_LOG_HARD_FACTOR,
            ),
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
                confirm_reads=self._config.reads == "confirmed",
                max_inflight_bytes=limits.max_inflight_bytes,
                max_waiting_operations=limits.max_waiting_requests,
                max_waiting_bytes=limits.max_waiting_bytes,
                client_table=ClientTableBounds(
                    retention_ms=limits.client_table_retention_ms,
                    max_bytes=limits.client_table_bytes,
                ),
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

    def _peer_addresses(self, peer: str) -> list[tuple[str, int]]:
        """Where this node may reach `peer`: by a route, else as agreed, else as configured."""
        route = self._config.routes.get(self._node_id, {}).get(peer)
        if route is not None and route.peer:
            return [split_address(route.peer)]
        return [split_address(address) for address in self._registry.dial_addresses(peer, "peer")]

    # -- running

    async def run(self) -> int:
        """Start everything, wait for the end, stop everything."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._on_loop_error)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
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
            await self._stop(orderly=self._ended.done() and self._ended.result() is None)
        if isinstance(problem, DataDirectoryError | AgreementDamagedError):
            raise problem  # to start it again as it is cannot help
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
        await self._check_alone()
        if self._engine is not None:
            self._engine.start()  # before anybody can reach it
            if self._directory.joined:
                self._engine.admit()
        incoming: dict[str, LinkHandler] = {REQUEST: self._gateway.peer_service}
        outgoing: dict[str, LinkHandler] = {REQUEST: self._gateway.caller}
        if self._engine is not None and self._receiver is not None:
            incoming |= {REPLICATE: self._engine.incoming, SNAPSHOT: self._receiver}
            outgoing[REPLICATE] = self._engine.outgoing
        self._gateway.start()
        await self._mesh.start(incoming=incoming, outgoing=outgoing)
        self._dial({node: item.role for node, item in self._config.nodes.items()})
        await self._listen_to_clients()
        was_joined = self._directory.joined
        if was_joined:
            self._spawn(self._watch_membership())
        else:
            await self._enter()
            if self._engine is not None:
                self._engine.admit()
        self._agreement.subscribe(self._gateway.on_view)
        self._agreement.on_failure(self._end)
        await self._agreement.start()
        self._agreement_started = True
        self._directory.mark_joined()
        if not was_joined:
            self._spawn(self._watch_membership())
        self._spawn(self._watch_accusations())
        self._spawn_bootstrap()
        log.info("started: http://%s", self._own.client)

    async def _listen_to_clients(self) -> None:
        """Start the API. Raises OSError that names the address and what to do."""
        try:
            await self._api.start(*split_address(self._own.client))
        except OSError as error:
            text = cannot_listen(self._own.client, error, "client", self._node_id)
            raise OSError(text) from error

    def _check_votes(self) -> None:
        """Refuse to vote with a memory of votes that is gone."""
        raft = self._directory.path / "raft"
        if self._directory.joined and not (raft.is_dir() and any(raft.iterdir())):
            raise DataDirectoryError(
                f"{raft} is missing or empty, but this node has voted with it. Do not restore an "
                f"older copy; run `onecopy remove {self._node_id}` and give the node a new id and "
                "an empty data directory"
            )

    async def _check_alone(self) -> None:
        """Refuse to start beside another process with the same identity.

        It would answer at the address that the cluster has agreed on. Where that is this node's own
        address still, a moment is enough; where it has changed, the other may be restarting.
        """
        known = self._directory.members.get(self._node_id)
        if known is None or not known.addresses.peer:
            return
        loop = asyncio.get_running_loop()
        moved = known.addresses != self._registry.claim.addresses
        until = loop.time() + (MOVE_SILENCE_S if moved else 0.0)
        if moved:
            log.info(
                "the addresses have changed: looking for another process at %s for %g s",
                known.addresses.peer,
                MOVE_SILENCE_S,
            )
        while True:
            problem = await find_second_holder(
                split_address(known.addresses.peer),
                self._config.name,
                bytes(self._config.secret),
                self._registry,
            )
            if problem:
                raise self._second_holder(problem)
            if loop.time() >= until:
                return
            await asyncio.sleep(RETRY_INTERVAL_S)

    async def _watch_accusations(self) -> None:
        """End this process if peers go on refusing it for what it is."""
        while not (verdict := self._registry.accusation()).code:  # noqa: ASYNC110 -- time tells
            await asyncio.sleep(ACCUSATION_CHECK_S)
        if verdict.code == "second":
            self._end(self._second_holder(verdict.reason))
            return
        self._end(
            DataDirectoryError(
                f"{verdict.reason}. Data directory {self._directory.path} belongs to cluster "
                f"{self._directory.cluster_id}: start the node with the directory that it used in "
                "the cluster at these addresses, or correct the addresses in the configuration"
            )
        )

    def _second_holder(self, problem: str) -> DataDirectoryError:
        return DataDirectoryError(
            f"{problem}. If {self._directory.path} is the copy: to make a new cluster of the data, "
            "write it to a file with `onecopy dump` from the running cluster, start a cluster with "
            "another cluster.name and empty data directories, and run `onecopy load`; to move node "
            f"{self._node_id} here, stop the other process for good first"
        )

    def _on_signal(self) -> None:
        """Stop; at the second signal without waiting for clients to go."""
        if self._ended.done():
            self._api.hurry()
        self._end(None)

    async def _stop(self, *, orderly: bool) -> None:
        """Stop everything. `orderly`: it was asked for, so clients are let go one by one before."""
        if self._engine is not None:
            self._engine.stop_scans()
        draining = asyncio.create_task(self._api.drain()) if orderly else None
        if self._engine is not None and self._engine.replica.primary is not None:
            await self._hand_over()
        if draining is not None:
            await draining
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
            if self._gateway.has_no_vote(node):
                continue
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
        has pinned this directory. A node of a cluster that knows no view yet (it has just started,
        or misses its majority) is asked again: to begin beside it would be to begin another one.
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
                    problem = f"{node} refuses this node: {answer.problem}"
                    # Where no cluster exists yet, the others have taken note of this directory.
                    kind = NotAdmittedError if answer.cluster_id else DataDirectoryError
                    raise kind(f"{problem} (here: {self._directory.path})")
                if not answer.cluster_id:
                    clear.add(node)
                elif answer.view is not None and await self._join(node):
                    return
            if len(clear) < len(others):
                missing = sorted(set(others) - clear)
                said = f"first start with an empty directory: waiting for {missing}"
                self._gateway.waits_for = said + self._why_no_link(missing)
                if loop.time() - last_log > WAITING_LOG_INTERVAL_S:
                    last_log = loop.time()
                    log.info("%s", said)
                    if self._hint:
                        log.warning("%s", self._hint)
                await asyncio.sleep(RETRY_INTERVAL_S)

    async def _ask_hello(self, node: str) -> HelloReturn | None:
        call = HelloCall(self._node_id, self._directory.data_id, self._directory.joined)
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
            if problem.code in ("lost_disk", "refused", "removed"):
                raise NotAdmittedError(f"{node} refuses this node: {problem}") from problem
            log.warning("%s could not add this node yet: %s", node, problem)
            return False
        if not isinstance(answer, JoinReturn):
            return False
        view = answer.view
        members = {member.id: member.raft for member in view.members}
        settings = self._agreement_settings(members, answer.founders)
        self._agreement = PySyncObjAgreement(settings)
        self._gateway.use_agreement(self._agreement)
        if self._engine is not None:
            self._engine.use_agreement(self._agreement)
        self._gateway.on_view(view)
        return True

    # -- leaving it

    def _leave(self) -> None:
        """This node was removed: it serves nothing any more, and stays only as long as it votes.

        The others may need its vote to take that vote away (decision 12).
        """
        if not self._leaving:
            self._leaving = True
            log.warning("this node has been removed from cluster %s", self._config.name)

    _leaving = False

    async def _watch_membership(self) -> None:
        """End this node once it was removed for good. It asks the others while it cannot know.

        Who is removed while it is away, or faster than it hears of it, hears nothing more from
        consensus: its links are refused. So whoever hears no majority asks.
        """
        last_log = last_told = asyncio.get_running_loop().time()
        while True:
            if self._gateway.belongs and self._gateway.hears_majority:
                self._leaving = False
                await asyncio.sleep(REMOVED_CHECK_INTERVAL_S)
                continue
            if self._leaving and self._gateway.has_no_vote(self._node_id):
                self._end_removed()
                return
            others = [node for node in self._gateway.caller.peers if node != self._node_id]
            answers = await asyncio.gather(*map(self._ask_hello, others))
            if any(answer is not None and answer.removed for answer in answers):
                self._end_removed()
                return
            now = asyncio.get_running_loop().time()
            if any(answer is not None and answer.view is not None for answer in answers):
                last_told = now
            self._gateway.is_alone = now - last_told > ALONE_AFTER_S
            if self._gateway.view is None:
                self._gateway.waits_for = self._what_is_missing()
                if now - last_log > WAITING_LOG_INTERVAL_S:
                    last_log = now
                    log.info("%s", self._gateway.waits_for)
            if self._leaving and now - last_log > WAITING_LOG_INTERVAL_S:
                last_log = now
                log.warning(
                    "this node was removed, but its vote still counts: it stays until the others "
                    "have taken it away. Is a majority of the nodes up?"
                )
            await asyncio.sleep(REMOVED_CHECK_INTERVAL_S)

    def _what_is_missing(self) -> str:
        """Return why there is no view yet, though this node takes part in consensus."""
        known = {*self._config.nodes, *self._directory.members, self._node_id}
        heard = self._agreement.heard & known
        return (
            f"waiting for a majority of the nodes: consensus hears {', '.join(sorted(heard))} of "
            f"{', '.join(sorted(known))}{self._why_no_link(sorted(known - heard))}"
        )

    def _why_no_link(self, nodes: list[str]) -> str:
        problems = ((node, self._mesh.problem(node, REQUEST)) for node in nodes)
        return "".join(f"; {node}: {problem}" for node, problem in problems if problem)

    def _end_removed(self) -> None:
        self._directory.mark_removed()
        self._end(_removed(self._config.name, self._node_id))

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
                continue  # `_watch_membership` says so
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
        self._registry.learn(view)
        try:
            self._directory.note_members(view.version, known_members(view))
        except DiskFullError as problem:
            log.warning("the members cannot be noted: %s", problem)
        except StorageError as problem:
            self._end(problem)
            return
        self._dial({member.id: member.role for member in view.members})
        self._hosts.learn(split_address(item.client)[0] for item in view.members if item.client)
        member = view.member(self._node_id)
        own = self._member()
        if member is None:
            if self._directory.joined:  # else it is about to come in, and hears of those before it
                self._leave()
        elif member.data_id not in ("", own.data_id):
            # A first start is refused with nothing left behind.
            kind = DataDirectoryError if self._directory.joined else NotAdmittedError
            self._end(
                kind(
                    f"node {self._node_id} is known with another data directory than "
                    f"{self._directory.path}: start it with that one, or, if that disk is lost, "
                    f"run `onecopy remove {self._node_id}` and give the node a new id"
                )
            )
        elif member.role != own.role:
            self._end(
                DataDirectoryError(
                    f"{self._config.path}: nodes.{self._node_id}.role: the node is a {member.role} "
                    f"of the cluster, not a {own.role}: write that, or remove the node and give it "
                    "a new id and an empty data directory"
                )
            )
        else:
            self._compare_addresses(view, member)

    def _compare_addresses(self, view: View, member: Member) -> None:
        """Have the view follow the configuration, or the operator the view: the newer counts."""
        configured, agreed = self._registry.claim.addresses, addresses_of(member)
        known = self._directory.members_version
        is_first = not self._view_seen and view.version >= known
        self._view_seen = self._view_seen or is_first
        step = next_step(configured, agreed, self._directory.addresses, is_first=is_first)
        if step == "refuse":
            text = edit_or_move(self._node_id, self._config.path, configured, agreed)
            self._end(DataDirectoryError(text))
        elif step == "warn":
            text = edit_or_move(self._node_id, self._config.path, configured, agreed)
            log.warning("%s", text)
        elif step == "none":
            with contextlib.suppress(DiskFullError):
                self._directory.note_addresses(configured)
        if (step == "register" or not member.data_id) and not self._registering:
            self._registering = True
            self._spawn(self._register())

    _registering = False

    async def _register(self) -> None:
        """Have the cluster agree on this node's disk and addresses, however long it takes."""
        last = ""
        try:
            while (problem := await self._register_once()) is not None:
                if problem != last:
                    log.warning(
                        "this node's entry could not be brought up to date: %s. That takes a "
                        "majority of nodes that know its addresses, as agreed or from their files",
                        problem,
                    )
                last = problem
                await asyncio.sleep(REGISTER_INTERVAL_S)
            log.info("the cluster has agreed on this node's addresses")
        finally:
            self._registering = False

    async def _register_once(self) -> str | None:
        """Ask the other nodes in turn, and then the own consensus member; None: it is done.

        A node that has moved may have no consensus link: the others do not know yet where to dial.
        """
        mine = self._member()
        problem = ""
        for peer in self._gateway.caller.peers:
            try:
                call = JoinCall(mine, JOIN_TIMEOUT_MS)
                answer = await self._gateway.caller.call(peer, call, JOIN_TIMEOUT_MS)
                if isinstance(answer, JoinReturn):
                    self._gateway.on_view(answer.view)
                    return None
            except (NotSentError, NoAnswerError, OperationError) as error:
                problem = f"{peer}: {error}"
        try:
            await self._gateway.add_member(mine, JOIN_TIMEOUT_MS, anew=False)
        except OperationError as error:
            return problem or str(error)
        return None
