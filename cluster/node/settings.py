"""What a configuration means for the parts of a node."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Mapping
from pathlib import Path

from cluster.api.audit import Audit
from cluster.api.groups import KnownGroups
from cluster.api.relay import GroupRelay
from cluster.api.settings import HttpSettings
from cluster.archive.archiver import Archiver
from cluster.archive.object_store import UnusableUrlError, open_store
from cluster.config.model import ClusterConfig, ConfigError, Secret, ServiceConfig
from cluster.etcd.members import MemberUrls
from cluster.groups.group_map import MAX_ENDPOINTS, Group, describe_group
from cluster.node.descriptors import Descriptors
from cluster.services.access_guard import TokenGuard
from cluster.services.hosting import Host, HostLimits
from cluster.services.loading import load_service
from cluster.services.scoped import Rights
from cluster.services.signatures import ServiceError
from datapath.clock import clock_s
from datapath.node.gateway import Gateway
from datapath.node.replica_disk import ReplicaStorage
from datapath.node.retention import SNAPSHOT_LOG_HARD_FACTOR
from datapath.operations import Principal
from datapath.records import MAX_RECORD_SIZE_BYTES
from datapath.settings import Bounds, ClientTableBounds, Timing
from datapath.storage.data_directory import DataDirectory
from election.pysyncobj_adapter import AgreementSettings
from election.registry import PeerRegistry
from election.shared_secret import SharedSecret

LOG_KEPT_FACTOR = 4
"""Times `log_retention_bytes` that may be kept for a replica that is catching up, or by time."""


def agreement_settings(
    config: ClusterConfig,
    node_id: str,
    directory: DataDirectory,
    registry: PeerRegistry,
    secret: SharedSecret,
    members: Mapping[str, str],
    founders: Mapping[str, str] | None,
) -> AgreementSettings:
    """Return the settings of this node's consensus member; `members` with their raft addresses."""
    timing = config.timing
    routes = {
        target: route.raft for target, route in config.routes.get(node_id, {}).items() if route.raft
    }
    return AgreementSettings(
        node_id=node_id,
        bind_address=config.nodes[node_id].listens_on("raft"),
        members=dict(members),
        founders=None if founders is None else dict(founders),
        directory=directory.path / "raft",
        secret=secret or _stand_in(config),
        registry=registry,
        routes=routes,
        heartbeat_interval_ms=timing.raft_heartbeat_ms,
        election_min_ms=timing.raft_election_min_ms,
        election_max_ms=timing.raft_election_max_ms,
        leader_fallback_ms=max(500, timing.raft_election_max_ms + 100),
        connection_timeout_ms=max(1000, 3 * timing.raft_election_max_ms),
    )


def http_settings(config: ClusterConfig, node_id: str, descriptors: Descriptors) -> HttpSettings:
    """Return the bounds of a port for clients; a node that has two shares them out."""
    ports = 2 if config.nodes[node_id].etcd else 1
    return HttpSettings(
        max_value_size_bytes=config.limits.max_value_size_bytes,
        max_buffered_bytes=config.limits.max_buffered_bytes // ports,
        request_timeout_ms=config.timing.request_timeout_ms,
        drain_timeout_ms=config.timing.drain_timeout_ms,
        max_connections=descriptors.max_connections // ports,
        max_watchers=descriptors.max_watchers // ports,
        reserved_connections=descriptors.reserved_connections // ports,
        admin_from=config.api.admin_from,
    )


def etcd_urls(config: ClusterConfig) -> dict[str, MemberUrls]:
    """Return where the nodes are, as etcd's clients are told.

    Clients go to every address that they are told, for everything: not to a witness, which cannot
    be watched.
    """
    scheme = "https" if config.tls.is_on else "http"
    return {
        node: MemberUrls(
            f"http://{item.raft}",
            f"{scheme}://{item.etcd}" if item.etcd and item.role == "replica" else "",
        )
        for node, item in config.nodes.items()
    }


def known_groups(config: ClusterConfig, node: str, settings: HttpSettings) -> KnownGroups | None:
    """Return what this node knows of the groups to begin with; None: there are none."""
    groups = config.groups
    if groups is None:
        return None
    urls = tuple(map(config.url, config.nodes))[:MAX_ENDPOINTS]
    tls = config.tls.for_node(node)
    return KnownGroups(Group(groups.id, groups.slots, urls), GroupRelay(settings, tls.ca), tls)


def guard_of(config: ClusterConfig) -> TokenGuard:
    """Return who judges requests on this node; without [access], nobody is judged."""
    access = config.access
    return TokenGuard(
        is_on=access is not None,
        anonymous=access.anonymous if access else "",
        first=first_admin_of(config),
    )


def first_admin_of(config: ClusterConfig) -> Principal | None:
    """Return whose token the cluster takes as the first administrator's."""
    if config.access is None:
        return None
    token, _, digest = config.access.admin_token_hash.partition(":")
    return Principal(token, bytes.fromhex(digest))


def audit_of(config: ClusterConfig, node_id: str) -> Audit | None:
    """Open this node's audit log. Raises ConfigError."""
    if config.access is None or not config.access.audit_file:
        return None
    path = Path(config.access.audit_file.replace("{node}", node_id))
    try:
        return Audit(path, node_id, clock_s)
    except OSError as error:
        problem = f"{path} cannot be written: {error.strerror}"
        raise ConfigError(config.path, "access.audit_file", problem) from error


def shared_secret(config: ClusterConfig) -> SharedSecret:
    """Return what the node's links are opened with."""
    return SharedSecret(*secrets_of(config))


def group_text(config: ClusterConfig) -> str:
    """Return the group with its slots, as data and links are bound to it; "": no groups."""
    groups = config.groups
    return "" if groups is None else describe_group(groups.id, groups.slots)


def link_name(config: ClusterConfig) -> str:
    """Return what the nodes call their cluster towards each other."""
    return f"{config.name}/{group_text(config)}" if config.groups is not None else config.name


def secrets_of(config: ClusterConfig) -> tuple[bytes, ...]:
    """Return the secrets of this node's links, one empty for none.

    Those of a group are its own: a node with another group's slots has no link, and no vote (G1).
    """
    secrets = tuple(map(bytes, config.secrets or (Secret(b""),)))
    if config.groups is None:
        return secrets
    text = b"onecopy group " + group_text(config).encode()
    return tuple(
        secret and hmac.digest(secret, text, "sha256").hex().encode() for secret in secrets
    )


def _stand_in(config: ClusterConfig) -> SharedSecret:
    # Without a secret every address is loopback (the configuration saw to that), and the
    # consensus group still wants a password.
    text = f"onecopy loopback only: {link_name(config)}"
    return SharedSecret(hashlib.sha256(text.encode()).digest())


def make_storage(
    config: ClusterConfig, directory: DataDirectory, descriptors: Descriptors
) -> ReplicaStorage:
    """Return this node's disk, not started."""
    limits = config.limits
    return ReplicaStorage(
        directory,
        segment_size_bytes=limits.log_segment_size_bytes,
        map_size_bytes=limits.store_map_size_bytes,
        flush_bytes=limits.overlay_flush_bytes,
        min_waste_bytes=limits.store_min_waste_bytes,
        read_ahead_bytes=limits.store_read_ahead_bytes,
        retention_bytes=limits.log_retention_bytes,
        catchup_bytes=LOG_KEPT_FACTOR * limits.log_retention_bytes,
        retention_ms=limits.log_retention_ms,
        archive_log_bytes=(
            0
            if config.archive is None
            else min(
                config.archive.max_log_bytes,
                descriptors.log_segments * limits.log_segment_size_bytes,
            )
        ),
        max_queued_bytes=limits.max_inflight_bytes + 2 * MAX_RECORD_SIZE_BYTES,
        # Each file of the log that is held takes a descriptor.
        snapshot_log_bytes=min(
            limits.snapshot_log_bytes,
            descriptors.log_segments * limits.log_segment_size_bytes // SNAPSHOT_LOG_HARD_FACTOR,
        ),
    )


def make_archiver(
    config: ClusterConfig, gateway: Gateway, report: Callable[[str], None]
) -> Archiver | None:
    """Return what archives the log of this node's replica, if anything does. Raises ConfigError."""
    archive, log = config.archive, gateway.committed_log
    if archive is None or log is None:
        return None
    try:
        store = open_store(archive.url)
    except UnusableUrlError as error:
        raise ConfigError(config.path, "archive.url", str(error)) from error
    archiver = Archiver(
        gateway,
        log,
        store,
        cluster=config.name,
        piece_interval_s=archive.piece_interval_ms / 1000,
        base_interval_s=archive.base_interval_ms / 1000,
        report=report,
    )
    gateway.tell_archive(archiver)
    return archiver


def timing_of(config: ClusterConfig) -> Timing:
    """Return the periods of the data path."""
    timing = config.timing
    return Timing(
        heartbeat_interval_ms=timing.heartbeat_interval_ms,
        suspect_after_ms=timing.suspect_after_ms,
        lease_duration_ms=timing.lease_duration_ms,
        grace_period_ms=timing.grace_period_ms,
        takeover_stagger_ms=timing.takeover_stagger_ms,
        ack_timeout_ms=timing.ack_timeout_ms,
        view_change_timeout_ms=timing.view_change_timeout_ms,
    )


def bounds_of(config: ClusterConfig) -> Bounds:
    """Return the bounds of the data path."""
    limits = config.limits
    return Bounds(
        min_in_sync=limits.min_in_sync,
        confirm_reads=config.reads == "confirmed",
        max_inflight_bytes=limits.max_inflight_bytes,
        max_waiting_operations=limits.max_waiting_requests,
        max_waiting_bytes=limits.max_waiting_bytes,
        client_table=ClientTableBounds(
            retention_ms=limits.client_table_retention_ms,
            max_bytes=limits.client_table_bytes,
        ),
        snapshot_rate_bytes_per_s=limits.snapshot_rate_bytes_per_s,
    )


def load_hosts(config: ClusterConfig, node_id: str) -> dict[str, Host]:
    """Load the services of the configuration; a witness needs none. Raises ConfigError."""
    if config.nodes[node_id].role == "witness":
        return {}
    hosts = {}
    for name, item in config.services.items():
        try:
            service = load_service(item.spec, Path(item.path) if item.path else None)
            rights = Rights(
                reads=frozenset(item.reads),
                writes=frozenset(item.writes),
                slots=config.groups.slots if config.groups is not None else (),
            )
            hosts[name] = Host(name, service, host_limits(item), rights=rights)
        except ServiceError as error:
            raise ConfigError(config.path, f"services.{name}.class", str(error)) from error
    _check_rights(config, hosts)
    return hosts


def _check_rights(config: ClusterConfig, hosts: Mapping[str, Host]) -> None:
    """X1: what an `async` operation sees is not written by others, which go on beside it."""
    for name, item in config.services.items():
        for field, named in (("reads", item.reads), ("writes", item.writes)):
            for other in named:
                awaits = [name] if hosts[name].async_operations else []
                if field == "writes" and other in hosts and hosts[other].async_operations:
                    awaits.append(other)
                if awaits:
                    method = min(hosts[awaits[0]].async_operations).lstrip(":")
                    raise ConfigError(
                        config.path,
                        f"services.{name}.{field}",
                        f"{awaits[0]}.{method} is async, and others write while it awaits: write "
                        f"it with def, or remove {other!r} here",
                    )


def host_limits(item: ServiceConfig) -> HostLimits:
    """Return the bounds of a service."""
    return HostLimits(
        step_timeout_ms=item.step_timeout_ms,
        timeout_ms=item.timeout_ms,
        max_write_bytes=item.max_write_bytes,
    )
