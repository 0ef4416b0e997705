"""What the API of a node is bounded by, and what counts where a request says nothing."""

from __future__ import annotations

import msgspec

from cluster.config.api_section import AdminFrom

RESERVED_CONNECTIONS = 64
"""Connections over `max_connections` that are taken for health and the cluster's resources."""


class HttpSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds and defaults of the API.

    `idle_timeout_ms` bounds both a connection's idleness and the arrival of a request's head;
    `body_timeout_ms` the arrival of its body. Connections over `max_connections` get 503, except
    for health and the cluster's resources, in `reserved_connections` more; a watch is none of them,
    but one of `max_watchers`. `drain_timeout_ms`: how long `drain` waits for clients to go
    elsewhere; `shutdown_grace_ms`: how long `stop` waits for requests under way. `admin_from`: see
    `cluster.api.admin`. `fast_path`: whether there is one (tests compare). `max_buffered_bytes`
    bounds what all clients together make the node hold, in answers not taken and bodies not
    complete.
    """

    max_value_size_bytes: int = 1024 * 1024
    request_timeout_ms: int = 5000
    idle_timeout_ms: int = 60_000
    body_timeout_ms: int = 30_000
    max_connections: int = 4096
    max_watchers: int = 10_000
    max_buffered_bytes: int = 64 * 1024 * 1024
    reserved_connections: int = RESERVED_CONNECTIONS
    drain_timeout_ms: int = 5000
    shutdown_grace_ms: int = 5000
    access_log: bool = False
    fast_path: bool = True
    admin_from: AdminFrom = "loopback"
