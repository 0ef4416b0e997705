"""What a configuration file holds: its sections and fields, as frozen structs.

The fields' descriptions are what docs/configuration.md shows; a test holds the two together.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from cluster.config.access_section import AccessSection
from cluster.config.api_section import ApiSection
from cluster.config.archive_section import ArchiveSection
from cluster.config.groups_section import GroupsSection
from cluster.config.tls_section import TlsSection
from election.identity import Channel
from election.view import MemberRole


class ConfigError(ValueError):
    """The configuration cannot be used. `str(error)` names the file, the field and the fix."""

    def __init__(self, path: Path | str, field: str, problem: str) -> None:
        super().__init__(f"{path}: {field}: {problem}" if field else f"{path}: {problem}")
        self.path = str(path)
        self.field = field
        self.problem = problem


class Secret(bytes):
    """The cluster secret; never shown by a log line or a repr."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<secret of {len(self)} bytes>"

    __str__ = __repr__


def _ms(description: str, *, ge: int = 1) -> Meta:
    return Meta(ge=ge, le=3_600_000, description=description)


def _count(description: str, *, ge: int = 1, le: int = 2**46) -> Meta:
    return Meta(ge=ge, le=le, description=description)


ReadMode = Literal["leased", "confirmed"]


class ClusterSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[cluster]`: what all nodes share."""

    name: Annotated[
        str, Meta(description="Name of the cluster: letters, digits, `.`, `_`, `-`; up to 64.")
    ]
    secret: Annotated[
        str,
        Meta(
            description="Shared secret of at least 16 bytes, by which nodes authenticate to each "
            "other. Without one, every peer and raft address must be loopback; one that is easy to "
            "guess is refused unless all addresses are. While it is being changed, two, one a "
            "line: nodes use the first and accept both."
        ),
    ] = ""
    secret_file: Annotated[
        str,
        Meta(
            description="File that holds the secret, in place of `secret`; relative to the "
            "configuration file. White space around each line is ignored."
        ),
    ] = ""
    reads: Annotated[
        ReadMode,
        Meta(
            description='What linearizable reads depend on: `"leased"` on clocks that run at about '
            'the same rate; `"confirmed"` on no clock, for one more round trip between nodes.'
        ),
    ] = "leased"


EVERY_INTERFACE = frozenset({"0.0.0.0", "::"})  # noqa: S104 -- names for it, not bound here
ListeningChannel = Literal["client", "peer", "raft", "etcd"]


def _bind(channel: str) -> Meta:
    return Meta(
        description=f"`host:port` on which the node listens, if others reach it by `{channel}` "
        "through NAT, a container's port or a proxy. `0.0.0.0` or `[::]`: on every interface."
    )


class NodeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[nodes.ID]`: one node. ID is 1 to 31 of `a-z 0-9 -`, not beginning with `-`."""

    role: Annotated[
        MemberRole, Meta(description='`"replica"` holds data; `"witness"` only votes.')
    ] = "replica"
    client: Annotated[
        str, Meta(description="`host:port` of the HTTP API and the metrics, for clients.")
    ]
    peer: Annotated[str, Meta(description="`host:port` of the data path, for nodes only.")]
    raft: Annotated[str, Meta(description="`host:port` of the consensus group, for nodes only.")]
    etcd: Annotated[
        str,
        Meta(description="`host:port` for clients of etcd's HTTP/JSON gateway; empty: not served."),
    ] = ""
    data: Annotated[
        str,
        Meta(
            description="Data directory, relative to the configuration file (absolute once loaded)."
            " A witness needs one too, for its votes."
        ),
    ]
    priority: Annotated[
        int | None,
        Meta(
            description="Order of take-over among replicas: the lowest proposes itself first. "
            "Replicas without one come after those with one, in the order of the file."
        ),
    ] = None
    client_bind: Annotated[str, _bind("client")] = ""
    peer_bind: Annotated[str, _bind("peer")] = ""
    raft_bind: Annotated[str, _bind("raft")] = ""
    etcd_bind: Annotated[str, _bind("etcd")] = ""

    def listens_on(self, channel: ListeningChannel) -> str:
        """Return the "host:port" on which the node listens, and others perhaps by another one."""
        bound: str = getattr(self, f"{channel}_bind")
        own: str = getattr(self, channel)
        return bound or own


class Route(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[routes.A.B]`: how A reaches B where that is not B's own address (NAT, a proxy)."""

    peer: Annotated[str, Meta(description="`host:port` that A uses for B's `peer`.")] = ""
    raft: Annotated[str, Meta(description="`host:port` that A uses for B's `raft`.")] = ""


class TimingSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[timing]`: every period of the system, in milliseconds."""

    heartbeat_interval_ms: Annotated[
        int, _ms("How often the primary sends each backup a heartbeat, which asks for the lease.")
    ] = 50
    suspect_after_ms: Annotated[
        int,
        _ms(
            "Silence after which the primary has a backup removed from the in-sync set. At least "
            "two heartbeat intervals, and at least one less than the lease."
        ),
    ] = 150
    lease_duration_ms: Annotated[
        int,
        _ms(
            "How long a backup's acknowledged heartbeat permits the primary to serve, counted from "
            "its sending."
        ),
    ] = 250
    grace_period_ms: Annotated[
        int,
        _ms(
            "Silence after which a backup may propose itself, counted from the last receipt. At "
            "least the lease plus 10 % plus 20 ms."
        ),
    ] = 300
    takeover_stagger_ms: Annotated[
        int, _ms("Additional wait of each further replica in the order of take-over.", ge=0)
    ] = 50
    ack_timeout_ms: Annotated[
        int,
        _ms(
            "Time after which a backup that answers heartbeats but makes no entry durable is "
            "removed from the in-sync set. At least `suspect_after_ms`."
        ),
    ] = 1000
    view_change_timeout_ms: Annotated[
        int,
        _ms(
            "Time after which a primary that needs a view change and cannot get it agreed steps "
            "down. More than `raft_election_max_ms`."
        ),
    ] = 1000
    request_timeout_ms: Annotated[
        int, _ms("How long a request without its own `timeout_ms` waits for a primary.")
    ] = 5000
    drain_timeout_ms: Annotated[
        int,
        _ms(
            "Longest time for which a stopping node still serves requests; it exits sooner once "
            "none has arrived for half a second.",
            ge=0,
        ),
    ] = 5000
    raft_heartbeat_ms: Annotated[
        int, _ms("How often the consensus group's leader sends its heartbeat.")
    ] = 40
    raft_election_min_ms: Annotated[
        int,
        _ms(
            "Shortest silence after which a consensus election begins. At least three times "
            "`raft_heartbeat_ms`."
        ),
    ] = 150
    raft_election_max_ms: Annotated[
        int, _ms("Longest such silence; each node draws its own between the two.")
    ] = 300


class LimitsSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[limits]`: bounds of sizes, queues and rates."""

    max_value_size_bytes: Annotated[
        int, _count("Largest value of a key; larger ones get 413.", le=1 << 28)
    ] = 1_048_576
    min_in_sync: Annotated[
        int,
        _count(
            "Replicas that must hold a write durably before it is acknowledged. At most the number "
            "of replicas; with 1, the last replica in sync serves alone.",
            le=64,
        ),
    ] = 1
    max_inflight_bytes: Annotated[
        int,
        _count(
            "Bytes of changes that are executed but not committed; above it, requests wait to be "
            "executed. At least twice the largest value."
        ),
    ] = 67_108_864
    max_waiting_requests: Annotated[
        int,
        _count(
            "Maximum number of writes waiting at the primary; more get 503 `overloaded`.",
            le=10_000_000,
        ),
    ] = 10_000
    max_waiting_bytes: Annotated[
        int,
        _count(
            "Maximum bytes of such writes, held in memory; more get 503 `overloaded`. At least "
            "twice the largest value."
        ),
    ] = 268_435_456
    max_watchers: Annotated[
        int,
        _count(
            "Maximum number of watchers of a node; more get 503 `too_many_watchers`. They are not "
            "counted among its other connections.",
            ge=0,
            le=1_000_000,
        ),
    ] = 10_000
    max_buffered_bytes: Annotated[
        int,
        _count(
            "Maximum bytes, over all connections of a node, of answers that clients have not read "
            "and of bodies that they have not completed. Above it, clients that make no progress "
            "are disconnected, and large requests get 503. At least one page and two of the "
            "largest values."
        ),
    ] = 67_108_864
    client_table_retention_ms: Annotated[
        int,
        _count(
            "How long the answer under an idempotency key is kept, by the primary's clock. A later "
            "repeat is executed again, unless `Idempotency-After` names the revision before the "
            "first attempt: then it is refused.",
            ge=10_000,
            le=604_800_000,
        ),
    ] = 600_000
    client_table_bytes: Annotated[
        int,
        _count(
            "Maximum bytes of such answers on each disk (about 160 for each write); above it, the "
            "oldest are dropped early.",
            ge=4_194_304,
        ),
    ] = 67_108_864
    log_segment_size_bytes: Annotated[
        int, _count("Size at which a log file is closed and the next is started.", ge=65536)
    ] = 67_108_864
    log_retention_bytes: Annotated[
        int,
        _count(
            "Bytes of log that are always kept, as history for watchers too; four times as much "
            "for a replica that is behind. One further behind gets a snapshot. At least one "
            "segment.",
            ge=65536,
        ),
    ] = 268_435_456
    log_retention_ms: Annotated[
        int,
        _count(
            "How long the log is kept as history for watchers, up to four times "
            "`log_retention_bytes`, by the date of each node's machine. 0: `log_retention_bytes` "
            "alone decides.",
            ge=0,
            le=2_592_000_000,
        ),
    ] = 0
    store_map_size_bytes: Annotated[
        int,
        _count(
            "Largest size of the store on disk (an LMDB map: address space, not memory); above it, "
            "writes get 507.",
            ge=1 << 20,
        ),
    ] = 68_719_476_736
    overlay_flush_bytes: Annotated[
        int,
        _count("Bytes of changes kept in memory, 5 s at most, before the store is written."),
    ] = 16_777_216
    store_min_waste_bytes: Annotated[
        int,
        _count(
            "When at least so many bytes of the store's file, and half of it, are unused, it is "
            "copied without them, and the space goes back to the disk. 0: never.",
            ge=0,
        ),
    ] = 67_108_864
    store_read_ahead_bytes: Annotated[
        int, _count("How much of the store is read into memory at the start. 0: nothing.", ge=0)
    ] = 4_294_967_296
    snapshot_log_bytes: Annotated[
        int,
        _count(
            "Bytes of log kept for a replica that receives a snapshot, until it is in sync. From "
            "half of it, the snapshot is no longer throttled; above it, writes are slowed down.",
            ge=65536,
        ),
    ] = 4_294_967_296
    snapshot_rate_bytes_per_s: Annotated[
        int,
        _count(
            "Maximum rate of a snapshot to a learner; 0 for no limit. See `snapshot_log_bytes`.",
            ge=0,
        ),
    ] = 0


class ServiceConfig(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename={"spec": "class"}
):
    """`[services.NAME]`: a user's service; NAME is 1 to 31 of `a-z 0-9 _ -`."""

    spec: Annotated[
        str, Meta(description='Its class, as `"module:Class"`; every replica needs it.')
    ]
    path: Annotated[
        str,
        Meta(
            description="Directory that is searched for the module first, relative to the "
            "configuration file. Empty: only what is installed."
        ),
    ] = ""
    step_timeout_ms: Annotated[
        int,
        _ms(
            "How long its code may hold the node at a time. What takes longer is interrupted, and "
            "has no effect. Below half of `grace_period_ms`, or the node would lose its role.",
        ),
    ] = 100
    timeout_ms: Annotated[
        int,
        _ms("How long an `async` operation may take in all; other services go on meanwhile."),
    ] = 2000
    max_write_bytes: Annotated[
        int,
        _count("Bytes of keys and values that one operation may write.", le=3 * 1024 * 1024),
    ] = 1_048_576
    reads: Annotated[
        tuple[str, ...],
        Meta(
            description="Whose keys it may read besides its own: names of other services, or "
            '`"kv"`, the store.'
        ),
    ] = ()
    writes: Annotated[
        tuple[str, ...],
        Meta(
            description="Whose keys it may write; the right to read them is separate. A service "
            "with `async` operations can neither have such rights nor be named here."
        ),
    ] = ()


class ClusterConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The whole file, checked: paths absolute, the secret read.

    `nodes` keeps the order of the file. `secrets` are one or two, the one in use first, or none;
    `secret_source` is the file that holds them. `warnings` are sentences for the operator.
    """

    path: Path
    name: str
    secrets: tuple[Secret, ...]
    secret_source: Path
    nodes: dict[str, NodeConfig]
    routes: dict[str, dict[str, Route]]
    timing: TimingSection
    limits: LimitsSection
    api: ApiSection = ApiSection()
    access: AccessSection | None = None
    archive: ArchiveSection | None = None
    groups: GroupsSection | None = None
    tls: TlsSection = TlsSection()
    services: dict[str, ServiceConfig] = {}
    reads: ReadMode = "leased"
    secret_field: str = "cluster.secret"  # noqa: S105 -- the field's name
    warnings: tuple[str, ...] = ()

    @property
    def secret(self) -> Secret:
        """The secret that this node proves itself by, b"" for none."""
        return self.secrets[0] if self.secrets else Secret(b"")

    @property
    def replicas(self) -> tuple[str, ...]:
        """The replicas in their order of take-over: by priority, then by place in the file."""
        replicas = [node for node, item in self.nodes.items() if item.role == "replica"]
        return tuple(sorted(replicas, key=self._takeover_rank))

    def _takeover_rank(self, node: str) -> tuple[bool, int]:
        priority = self.nodes[node].priority
        return (priority is None, priority or 0)  # sorted() is stable: the file's order remains

    @property
    def witnesses(self) -> tuple[str, ...]:
        """The witnesses, in the order of the file."""
        return tuple(node for node, item in self.nodes.items() if item.role == "witness")

    def data_dir(self, node: str) -> Path:
        """Return the node's data directory, absolute."""
        return Path(self.nodes[node].data)

    def url(self, node: str) -> str:
        """Return the base URL of a node's API."""
        return f"http{'s' if self.tls.is_on else ''}://{self.nodes[node].client}"

    def address(self, source: str, target: str, channel: Channel) -> str:
        """Return the "host:port" at which `source` reaches `target`, by its route if it has one."""
        route = self.routes.get(source, {}).get(target)
        routed: str = getattr(route, channel) if route is not None else ""
        own: str = getattr(self.nodes[target], channel)
        return routed or own


def split_address(address: str, *, to_listen: bool = False) -> tuple[str, int]:
    """Split "host:port" or "[IPv6]:port"; the host comes without brackets.

    `to_listen`: it may stand for every interface.

    Raises ValueError with a sentence that says what is wrong and how to write it.
    """
    example = 'write it like "10.0.0.1:8101", "node1.example:8101" or "[fd00::1]:8101"'
    host, colon, port_text = address.rpartition(":")
    if not colon or not host or "://" in host:
        raise ValueError(f"{address!r} is not host:port; {example}")
    if not re.fullmatch("[0-9]{1,5}", port_text) or not 1 <= int(port_text) <= 65535:
        raise ValueError(f"{address!r}: the port must be a number from 1 to 65535; {example}")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise ValueError(f"{address!r}: {host!r} is not an IPv6 address; {example}") from None
    elif ":" in host:
        raise ValueError(f"{address!r}: write an IPv6 address in brackets; {example}")
    elif not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}", host):
        raise ValueError(f"{address!r}: {host!r} is not a host name or address; {example}")
    elif re.fullmatch(r"[0-9.]+", host):
        try:
            ipaddress.IPv4Address(host)
        except ValueError:
            raise ValueError(f"{address!r}: {host!r} is not an IPv4 address; {example}") from None
    if host in EVERY_INTERFACE and not to_listen:
        raise ValueError(
            f"{address!r} cannot be reached by other machines; use an address that can, and "
            "listen on every interface by client_bind, peer_bind and raft_bind"
        )
    return host, int(port_text)


def is_loopback(address: str) -> bool:
    """Whether "host:port" stays on this machine for certain (a name other than localhost: no)."""
    host = split_address(address, to_listen=True)[0]
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
