"""One running node: puts configuration, disk, consensus, data path and HTTP API together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from typing import Any, cast

from cluster.api.groups import GroupNode
from cluster.api.hosts import Hosts
from cluster.api.routes import HttpApi, ServedNode
from cluster.certificates.node_tls import NodeTls
from cluster.config.model import ClusterConfig, ConfigError, split_address
from cluster.etcd.server import EtcdApi
from cluster.installed import installed_version
from cluster.node.client_ports import ClientPorts
from cluster.node.descriptors import Descriptors, TooFewDescriptorsError, raise_limit, share_out
from cluster.node.group_map import MapFollower
from cluster.node.joining import Joining
from cluster.node.own_address import check_own_addresses
from cluster.node.parts import Parts, removed
from cluster.node.renewal import Renewal
from cluster.node.settings import (
    LOG_KEPT_FACTOR,
    agreement_settings,
    audit_of,
    bounds_of,
    etcd_urls,
    first_admin_of,
    group_text,
    guard_of,
    http_settings,
    known_groups,
    link_name,
    load_hosts,
    make_archiver,
    make_storage,
    shared_secret,
    timing_of,
)
from cluster.node.watch import Watch
from cluster.services.built_in import built_in_services
from cluster.services.caretaker import Caretaker
from cluster.services.hosting import Host
from datapath.errors import (
    DataDirectoryError,
    DiskFullError,
    NodeRemovedError,
    NotAdmittedError,
    OperationError,
    StorageError,
    ends_node,
)
from datapath.node.engine import Engine
from datapath.node.gateway import Gateway
from datapath.node.retention import SNAPSHOT_LOG_HARD_FACTOR
from datapath.storage.data_directory import DataDirectory
from datapath.tasks import Tasks
from datapath.transport.link import LinkHandler
from datapath.transport.mesh import REPLICATE, REQUEST, SNAPSHOT, Mesh
from datapath.transport.snapshot_receiver import SnapshotReceiver
from election.agreement import AgreementDamagedError
from election.identity import Addresses
from election.pysyncobj_adapter import AgreementSettings, PySyncObjAgreement
from election.registry import PeerRegistry, known_members
from election.release import own_release
from election.view import View

logger = logging.getLogger(__name__)

EXIT_FAILED = 1
SWITCH_INTERVAL_S = 0.0005
"""A thread that returns from fsync waits for the interpreter at most about so long; the default
of 5 ms would stand in every commit (measured: docs/storage.md)."""
HANDOVER_ON_STOP_MS = 500
STOP_LINGER_S = 0.2
"""How long a primary that is stopped on purpose stays to tell others who the next one is."""


async def run_node(config: ClusterConfig, node_id: str) -> int:
    """Run a node until SIGTERM, SIGINT or a failure; return the process's exit code.

    Raises:
        DataDirectoryError, LogCorruptError, SafetyError: the node must not start as it is.
        ConfigError: nor with this configuration; a service of it cannot be loaded, say.

    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    os.umask(0o077)  # whatever this process makes, its own user alone can read
    async with open_node(config, node_id, load_hosts(config, node_id)) as node:
        return await node.run()


@contextlib.asynccontextmanager
async def open_node(
    config: ClusterConfig, node_id: str, hosts: Mapping[str, Host]
) -> AsyncIterator[NodeRuntime]:
    """Open a node's data directory and make its parts, not started. Raises as `run_node`."""
    limits = config.limits
    try:
        descriptors = share_out(
            raise_limit(),
            nodes=len(config.nodes),
            segments=LOG_KEPT_FACTOR * limits.log_retention_bytes // limits.log_segment_size_bytes,
            held_segments=max(
                SNAPSHOT_LOG_HARD_FACTOR * limits.snapshot_log_bytes,
                config.archive.max_log_bytes if config.archive else 0,
            )
            // limits.log_segment_size_bytes,
            watchers=limits.max_watchers,
        )
    except TooFewDescriptorsError as error:
        raise ConfigError(config.path, "", str(error)) from None
    if descriptors.cut:
        logger.warning("%s", descriptors.cut)
    tls = NodeTls(config, node_id) if config.tls.is_on else None
    hint = await check_own_addresses(config, node_id)
    directory = DataDirectory.open(config.data_dir(node_id), node_id=node_id)
    try:
        directory.bind_group(group_text(config))
        if directory.removed:
            raise removed(config.name, node_id)
        yield NodeRuntime(config, node_id, directory, descriptors, hosts, hint, tls)
    except NotAdmittedError:
        # Under its new id the node may come with the same directory: nothing stays in it.
        with contextlib.suppress(ValueError):  # Or it has voted, in a process that was killed.
            directory.discard()
        raise
    finally:
        directory.close()


class NodeRuntime:
    """The parts of one node, from start to stop."""

    def __init__(
        self,
        config: ClusterConfig,
        node_id: str,
        directory: DataDirectory,
        descriptors: Descriptors,
        hosts: Mapping[str, Host],
        hint: str,
        tls: NodeTls | None,
    ) -> None:
        self._config = config
        self._node_id = node_id
        self._directory = directory
        self._own = config.nodes[node_id]
        self._descriptors = descriptors
        self._hosted = dict(hosts)
        self.started = asyncio.Event()
        self._secret = shared_secret(config)
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
            release=own_release(installed_version()),
            level=directory.level,
        )
        self._agreement = PySyncObjAgreement(
            self._agreement_settings({node: item.raft for node, item in config.nodes.items()})
        )
        self._agreement_started = False
        self._mesh = Mesh(
            node_id,
            split_address(self._own.listens_on("peer"), to_listen=True),
            link_name(config),
            self._secret,
            self._peer_addresses,
            self._registry,
            on_error=lambda _, problem: self._on_error(problem),
            tls=tls,
            max_unauthenticated=descriptors.max_unauthenticated,
        )
        self._guard = guard_of(config)
        self._gateway = Gateway(
            node_id,
            config.name,
            self._agreement,
            directory.pin_peer,
            directory.cluster_id,
            config.limits.min_in_sync,
            self._guard,
        )
        self._gateway.listen(self._on_view)
        self._gateway.share_notices(self._registry)
        settings = http_settings(config, node_id, descriptors)
        self._groups = groups = known_groups(config, node_id, settings)
        self._engine: Engine | None = None
        self._receiver: SnapshotReceiver | None = None
        if self._own.role == "replica":
            self._engine = self._make_engine()
            self._gateway.attach(self._engine)
        self._hosts = Hosts(config.api.hosts, config.api.origins)
        self._hosts.learn(split_address(item.client)[0] for item in config.nodes.values())
        served: ServedNode = self._gateway
        if groups is not None:
            served = cast("ServedNode", GroupNode(self._gateway, groups.guard))
        etcd = None
        if self._own.etcd:
            self._hosts.learn([split_address(self._own.etcd)[0]])
            etcd = EtcdApi(
                served, settings, self._hosts, etcd_urls(config), tls, self._guard,
                groups.guard if groups is not None else None,
            )  # fmt: skip
        self._api = HttpApi(
            served,
            settings,
            self._hosts,
            self._hosted,
            tls,
            self._guard,
            audit_of(config, node_id),
            etcd.numbers if etcd is not None else None,
            groups,
        )
        if etcd is not None:
            etcd.on_refused = self._api.note_refusal
        self._ports = ClientPorts(self._api, etcd, self._own, node_id)
        self._tasks = Tasks(self._end)
        self._parts = parts = Parts(
            config=config,
            node_id=node_id,
            directory=directory,
            registry=self._registry,
            mesh=self._mesh,
            gateway=self._gateway,
            end=self._end,
            spawn=self._tasks.spawn,
        )
        self._archiver = make_archiver(config, self._gateway, self._registry.report)
        self._entry = Joining(parts, self._rejoin, hint)
        self._watch = Watch(parts)
        self._renewal = Renewal(parts, tls, self._ports.close_refused, groups)

    # -- putting it together

    def _agreement_settings(
        self, members: Mapping[str, str], founders: Mapping[str, str] | None = None
    ) -> AgreementSettings:
        return agreement_settings(
            self._config,
            self._node_id,
            self._directory,
            self._registry,
            self._secret,
            members,
            founders,
        )

    def _make_engine(self) -> Engine:
        engine = Engine(
            self._node_id,
            secrets.token_hex(8),
            {
                **built_in_services(
                    timing_of(self._config).stall_threshold_ms,
                    first_admin=first_admin_of(self._config),
                    slot=groups.slots[0][0] if (groups := self._config.groups) else None,
                ),
                **self._hosted,
            },
            make_storage(self._config, self._directory, self._descriptors),
            self._agreement,
            self._mesh,
            timing_of(self._config),
            bounds_of(self._config),
            {node: rank for rank, node in enumerate(self._config.replicas)},
            on_change=self._gateway.note_change,
            on_view=self._gateway.share_view,
            on_fatal=self._end,
            bind_cluster=self._directory.bind_cluster,
            access=self._guard,
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

    async def run(self, *, owns_process: bool = True) -> int:
        """Start everything, wait for the end, stop everything.

        `owns_process`: signals and what nobody else handles on the event loop are its own.
        """
        loop = asyncio.get_running_loop()
        if owns_process:
            loop.set_exception_handler(self._on_loop_error)
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self._on_signal)
            loop.add_signal_handler(signal.SIGHUP, self._renewal.look)
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
            ended = self._ended
            # A node that was removed lets its clients go as one that is stopped does.
            orderly = ended.done() and isinstance(ended.result(), NodeRemovedError | None)
            await self._stop(orderly=orderly)
        if isinstance(problem, DataDirectoryError | AgreementDamagedError):
            raise problem  # to start it again as it is cannot help
        if problem is not None:
            logger.critical("%s", problem)
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
        self._tasks.spawn(self._renewal.run())
        self._watch.check_votes()
        await self._watch.check_alone()
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
        await self._ports.start()
        was_joined = self._directory.joined
        if was_joined:
            self._tasks.spawn(self._watch.membership(self._agreement))
        else:
            await self._entry.enter()
            if self._engine is not None:
                self._engine.admit()
        self._agreement.subscribe(self._gateway.on_view)
        self._agreement.on_failure(self._end)
        await self._agreement.start()
        self._agreement_started = True
        self._directory.mark_joined()
        if not was_joined:
            self._tasks.spawn(self._watch.membership(self._agreement))
        self._tasks.spawn(self._watch.accusations())
        if self._engine is not None and self._hosted:
            self._tasks.spawn(Caretaker(self._gateway, self._hosted, self._registry.report).run())
        is_first = self._directory.first_epoch or self._config.replicas[0] == self._node_id
        if is_first and self._gateway.view is None:
            self._tasks.spawn(self._entry.bootstrap(self._agreement))
        if self._groups is not None and self._config.groups is not None:
            follower = MapFollower(self._config.groups, self._groups, self._gateway)
            self._tasks.spawn(follower.run())
        if self._archiver is not None:
            self._tasks.spawn(self._archiver.note_times())
            self._tasks.spawn(self._archiver.run())
        logger.info("started: %s", self._config.url(self._node_id))
        self.started.set()

    def end(self) -> None:
        """Have `run` stop everything and return."""
        self._end(None)

    def _on_signal(self) -> None:
        """Stop; at the second signal without waiting for clients to go."""
        if self._ended.done():
            self._ports.hurry()
        self._end(None)

    async def _stop(self, *, orderly: bool) -> None:
        """Stop everything. `orderly`: it was asked for, so clients are let go one by one before."""
        if self._engine is not None:
            self._engine.stop_scans()
        draining = asyncio.create_task(self._ports.drain()) if orderly else None
        await self._hand_over()
        if draining is not None:
            await draining
        await self._tasks.stop()
        await self._ports.stop()
        if self._groups is not None:
            await self._groups.close()
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
        for node in sorted(engine.replica.primary.in_sync.required):
            if self._gateway.has_no_vote(node):
                continue
            with contextlib.suppress(OperationError):
                view = await engine.hand_over(node, HANDOVER_ON_STOP_MS)
                logger.info("handed over to %s", view.primary)
                # Others that have not heard it yet still ask here, and are told to ask there; if
                # the links went at once, nobody could know what became of their requests.
                await asyncio.sleep(STOP_LINGER_S)
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

    def _rejoin(self, members: Mapping[str, str], founders: Mapping[str, str]) -> None:
        """Go over to a consensus member that begins with what the cluster has told."""
        self._agreement = PySyncObjAgreement(self._agreement_settings(members, founders))
        self._gateway.use_agreement(self._agreement)
        if self._engine is not None:
            self._engine.use_agreement(self._agreement)

    def _on_view(self, view: View) -> None:
        """Follow the members, and see that this node is one, with this very disk."""
        try:
            self._directory.bind_cluster(view.cluster_id)
            self._parts.check_level(view)
        except StorageError as problem:
            self._end(problem)
            return
        self._registry.learn(view)
        try:
            self._directory.note_members(view.version, known_members(view))
        except DiskFullError as problem:
            logger.warning("the members could not be saved: %s", problem)
        except StorageError as problem:
            self._end(problem)
            return
        self._dial({member.id: member.role for member in view.members})
        self._hosts.learn(split_address(item.client)[0] for item in view.members if item.client)
        member = view.member(self._node_id)
        if member is not None:
            self._entry.check(view, member)
        elif self._directory.joined:  # else it is about to come in, and hears of those before it
            self._watch.leave()
