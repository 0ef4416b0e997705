"""What must hold between the fields of a configuration; each refusal says why the bound exists."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from pathlib import Path

from cluster.config.model import (
    EVERY_INTERFACE,
    ClusterConfig,
    ConfigError,
    ListeningChannel,
    ServiceConfig,
    TimingSection,
    is_loopback,
    split_address,
)
from cluster.config.secret_strength import MIN_SECRET_BITS, estimated_bits
from cluster.groups.group_map import (
    GroupMapError,
    check_group_id,
    check_slots,
    check_urls,
)
from datapath.service import STORE_NAME
from datapath.settings import MAX_RANGE_SIZE_BYTES

ID_PATTERN = "[a-z0-9][a-z0-9-]{0,30}"
LEASE_RATE_MARGIN_PERCENT = 10  # clocks of two machines may differ by so much in rate (D4) …
LEASE_TIMER_MARGIN_MS = 20  # … and a timer may be late by so much
RECORD_OVERHEAD_BYTES = 65536  # key, framing and client-table reply beside a value, generously


def check_config(config: ClusterConfig) -> list[str]:
    """Raise ConfigError for what cannot work; return warnings about what is merely doubtful."""
    warnings = _check_nodes(config)
    _check_routes(config)
    _check_exposure(config)
    _check_tls(config)
    _check_timing(config.path, config.timing)
    _check_limits(config)
    _check_archive(config)
    _check_groups(config)
    for name, service in config.services.items():
        _check_service(config, f"services.{name}", service)
    return warnings


def _check_groups(config: ClusterConfig) -> None:
    groups = config.groups
    if groups is None:
        return
    try:
        check_group_id("id", groups.id)
        check_slots("slots", groups.slots)
        check_urls("first", groups.first)
    except GroupMapError as error:
        field, _, problem = str(error).partition(": ")
        raise ConfigError(config.path, f"groups.{field}", problem) from None


def _check_archive(config: ClusterConfig) -> None:
    archive, kept = config.archive, config.limits.log_retention_bytes
    if archive is not None and archive.max_log_bytes < kept:
        problem = f"{archive.max_log_bytes} is below limits.log_retention_bytes, {kept}"
        raise ConfigError(config.path, "archive.max_log_bytes", problem)


def _check_service(config: ClusterConfig, section: str, service: ServiceConfig) -> None:
    bound_ms = config.timing.grace_period_ms // 2
    if service.step_timeout_ms >= bound_ms:
        problem = (
            f"{service.step_timeout_ms} is not below {bound_ms}, half of grace_period_ms: the "
            "backups would take over from a node that is held so long"
        )
        raise ConfigError(config.path, f"{section}.step_timeout_ms", problem)
    if service.timeout_ms < service.step_timeout_ms:
        problem = f"{service.timeout_ms} is below step_timeout_ms, {service.step_timeout_ms}"
        raise ConfigError(config.path, f"{section}.timeout_ms", problem)
    known = {STORE_NAME, *config.services} - {section.removeprefix("services.")}
    for field, named in (("reads", service.reads), ("writes", service.writes)):
        for name in named:
            if name not in known:
                problem = (
                    f"{name!r} is not another service of this file, nor {STORE_NAME!r}; there are: "
                    f"{', '.join(sorted(known))}"
                )
                raise ConfigError(config.path, f"{section}.{field}", problem)


LISTENING_CHANNELS: tuple[ListeningChannel, ...] = ("client", "peer", "raft", "etcd")


def _node_addresses(config: ClusterConfig) -> Iterator[tuple[str, str]]:
    """Yield (field, address) of every node's own addresses."""
    for node, item in config.nodes.items():
        for channel in LISTENING_CHANNELS:
            if address := getattr(item, channel):
                yield f"nodes.{node}.{channel}", address


def _bound_addresses(config: ClusterConfig) -> Iterator[tuple[str, str]]:
    """Yield (field, address) of every address that a node listens on besides its own."""
    for node, item in config.nodes.items():
        for channel in LISTENING_CHANNELS:
            if address := getattr(item, f"{channel}_bind"):
                yield f"nodes.{node}.{channel}_bind", address


def _exposed_addresses(config: ClusterConfig) -> Iterator[tuple[str, str]]:
    """Yield (field, address) of all at which somebody may reach a node."""
    yield from _node_addresses(config)
    yield from _bound_addresses(config)
    yield from _route_addresses(config)


def _route_addresses(config: ClusterConfig) -> Iterator[tuple[str, str]]:
    """Yield (field, address) of every address that a route names."""
    for source, targets in config.routes.items():
        for target, route in targets.items():
            for channel in ("peer", "raft"):
                if address := getattr(route, channel):
                    yield f"routes.{source}.{target}.{channel}", address


def _check_address(
    path: Path, field: str, address: str, *, to_listen: bool = False
) -> tuple[str, int]:
    try:
        return split_address(address, to_listen=to_listen)
    except ValueError as error:
        raise ConfigError(path, field, str(error)) from None


def _check_nodes(config: ClusterConfig) -> list[str]:
    path = config.path
    for node in config.nodes:
        if not re.fullmatch(ID_PATTERN, node):
            problem = "an id is 1 to 31 of a-z, 0-9 and '-', not beginning with '-'"
            raise ConfigError(path, f"nodes.{node}", problem)
    if not config.replicas:
        raise ConfigError(path, "nodes", 'at least one node must have role = "replica"')
    seen: dict[tuple[str, int], str] = {}
    for field, address in _node_addresses(config):
        key = _check_address(path, field, address)
        if key in seen:
            problem = f"{address} is also {seen[key]}; give each its own port"
            raise ConfigError(path, field, problem)
        seen[key] = field
    for node in config.nodes:
        _check_bound(config, node)
    # Nodes on different hosts may well use the same path: only a shared disk would be wrong.
    owners: dict[tuple[str, Path], str] = {}
    for node, item in config.nodes.items():
        directory, host = config.data_dir(node), split_address(item.peer)[0]
        for (other_host, other), owner in owners.items():
            if host == other_host and (
                directory.is_relative_to(other) or other.is_relative_to(directory)
            ):
                problem = f"{directory} overlaps nodes.{owner}.data; give each node its own"
                raise ConfigError(path, f"nodes.{node}.data", problem)
        owners[host, directory] = node
    if len(config.nodes) % 2 == 0:
        sentence = (
            f"{len(config.nodes)} nodes vote: an even number tolerates no more failures than one "
            "node fewer; add a witness"
        )
        return [sentence]
    return []


def _check_bound(config: ClusterConfig, node: str) -> None:
    """Refuse two ports of a node that would be one. (Other nodes are on other machines, maybe.)"""
    item = config.nodes[node]
    if item.etcd_bind and not item.etcd:
        problem = "is missing, and etcd_bind is where it is listened on; give both, or neither"
        raise ConfigError(config.path, f"nodes.{node}.etcd", problem)
    if not any(getattr(item, f"{channel}_bind") for channel in LISTENING_CHANNELS):
        return
    seen: list[tuple[str, int, str]] = []
    for channel in LISTENING_CHANNELS:
        field = f"nodes.{node}.{channel}" + ("_bind" if getattr(item, f"{channel}_bind") else "")
        address = item.listens_on(channel)
        if not address:
            continue
        host, port = _check_address(config.path, field, address, to_listen=True)
        for other_host, other_port, other in seen:
            if port == other_port and (host == other_host or {host, other_host} & EVERY_INTERFACE):
                problem = f"{address} has the port of {other}; give each its own port"
                raise ConfigError(config.path, field, problem)
        seen.append((host, port, field))


def _check_routes(config: ClusterConfig) -> None:
    for source, targets in config.routes.items():
        for target, route in targets.items():
            field = f"routes.{source}.{target}"
            for node in (source, target):
                if node not in config.nodes:
                    close = difflib.get_close_matches(node, config.nodes, n=1)
                    hint = f"; did you mean {close[0]!r}?" if close else ""
                    raise ConfigError(config.path, field, f"there is no node {node!r}{hint}")
            if source == target:
                raise ConfigError(config.path, field, "a node needs no route to itself")
            if not route.peer and not route.raft:
                raise ConfigError(config.path, field, "give peer, raft, or both")
    for field, address in _route_addresses(config):
        _check_address(config.path, field, address)


def _check_exposure(config: ClusterConfig) -> None:
    if config.secret:
        _check_secret(config)
        return
    for field, address in _exposed_addresses(config):
        is_for_clients = field.endswith((".client", ".client_bind", ".etcd", ".etcd_bind"))
        if not is_for_clients and not is_loopback(address):
            problem = (
                f"{address} can be reached from other machines, and there is no cluster.secret; "
                "set one (openssl rand -hex 32) or use a 127.0.0.1 address"
            )
            raise ConfigError(config.path, field, problem)


def _check_tls(config: ClusterConfig) -> None:
    """Refuse a half of TLS, and plain text where strangers could read it."""
    tls = config.tls
    if tls.is_on:
        for field in ("certificate", "key"):
            if not getattr(tls, field):
                problem = f'is missing; add {field} = "certs/{{node}}.{field[:3]}"'
                raise ConfigError(config.path, f"tls.{field}", problem.replace(".cer", ".crt"))
        return
    for field in ("certificate", "key", "client_ca", "crl"):
        if getattr(tls, field):
            problem = 'is missing, and without it there is no TLS; add ca = "certs/ca.crt"'
            raise ConfigError(config.path, "tls.ca", problem)
    for field, address in _exposed_addresses(config):
        if not is_loopback(address) and not tls.insecure:
            problem = (
                f"{address} can be reached from other machines, and there is no TLS: make "
                "certificates with `onecopy certs` and name them in [tls]; or write "
                "insecure = true in [tls] if everybody on that network may read and change the data"
            )
            raise ConfigError(config.path, field, problem)


def _check_secret(config: ClusterConfig) -> None:
    """Refuse a secret that can be guessed where strangers could try."""
    exposed = [address for _, address in _exposed_addresses(config) if not is_loopback(address)]
    if exposed and min(map(estimated_bits, config.secrets)) < MIN_SECRET_BITS:
        problem = (
            "the secret is easy to guess (too short, repetitive or made of words), and "
            f"{exposed[0]} "
            "can be reached from other machines; make one with: openssl rand -hex 32"
        )
        raise ConfigError(config.path, config.secret_field, problem)


def _check_timing(path: Path, timing: TimingSection) -> None:
    rate_margin_ms = -(-timing.lease_duration_ms * LEASE_RATE_MARGIN_PERCENT // 100)
    _at_least(
        path,
        "timing.suspect_after_ms",
        timing.suspect_after_ms,
        2 * timing.heartbeat_interval_ms,
        "two heartbeat intervals: one lost heartbeat is no failure",
    )
    _at_least(
        path,
        "timing.lease_duration_ms",
        timing.lease_duration_ms,
        timing.suspect_after_ms + timing.heartbeat_interval_ms,
        "suspect_after_ms + heartbeat_interval_ms: a silent backup must be removed before its "
        "lease runs out, or reads stop",
    )
    _at_least(
        path,
        "timing.grace_period_ms",
        timing.grace_period_ms,
        timing.lease_duration_ms + rate_margin_ms + LEASE_TIMER_MARGIN_MS,
        f"lease_duration_ms + {LEASE_RATE_MARGIN_PERCENT} % + {LEASE_TIMER_MARGIN_MS} ms: no "
        "backup may take over while the old primary may still hold a lease by its own clock",
    )
    _at_least(
        path,
        "timing.ack_timeout_ms",
        timing.ack_timeout_ms,
        timing.suspect_after_ms,
        "suspect_after_ms: a slow disk must get at least as much time as a silent link",
    )
    _at_least(
        path,
        "timing.raft_election_min_ms",
        timing.raft_election_min_ms,
        3 * timing.raft_heartbeat_ms,
        "three times raft_heartbeat_ms: two lost heartbeats must not start an election",
    )
    _at_least(
        path,
        "timing.raft_election_max_ms",
        timing.raft_election_max_ms,
        timing.raft_election_min_ms + timing.raft_heartbeat_ms,
        "raft_election_min_ms + raft_heartbeat_ms: nodes that draw the same wait split the vote",
    )
    _at_least(
        path,
        "timing.view_change_timeout_ms",
        timing.view_change_timeout_ms,
        timing.raft_election_max_ms + 1,
        "raft_election_max_ms + 1: a view change must be able to outlast an election",
    )


def _check_limits(config: ClusterConfig) -> None:
    limits, replicas = config.limits, len(config.replicas)
    if limits.min_in_sync > replicas:
        problem = f"{limits.min_in_sync} is more than the {replicas} replicas: nothing could commit"
        raise ConfigError(config.path, "limits.min_in_sync", problem)
    record_max = limits.max_value_size_bytes + RECORD_OVERHEAD_BYTES
    rows = (
        ("max_inflight_bytes", 2 * record_max, "two of the largest records (max_value_size_bytes)"),
        (
            "max_buffered_bytes",
            MAX_RANGE_SIZE_BYTES + 2 * record_max,
            "a page and two of the largest values (max_value_size_bytes)",
        ),
        ("max_waiting_bytes", 2 * record_max, "two of the largest records (max_value_size_bytes)"),
        ("log_segment_size_bytes", record_max, "the largest record (max_value_size_bytes)"),
        ("log_retention_bytes", limits.log_segment_size_bytes, "one log_segment_size_bytes"),
        ("snapshot_log_bytes", limits.log_retention_bytes, "log_retention_bytes"),
        ("store_map_size_bytes", 4 * limits.overlay_flush_bytes, "four overlay_flush_bytes"),
    )
    for field, minimum, reason in rows:
        value: int = getattr(limits, field)
        _at_least(config.path, f"limits.{field}", value, minimum, f"room for {reason}")


def _at_least(path: Path, field: str, value: int, minimum: int, reason: str) -> None:
    if value < minimum:
        raise ConfigError(path, field, f"{value} is below {minimum}, which is {reason}")
