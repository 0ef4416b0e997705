"""Under which host names and addresses clients and nodes reach a node."""

from __future__ import annotations

from cluster.config.model import ClusterConfig, is_loopback, split_address

LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")


def hosts_of(config: ClusterConfig, node: str) -> tuple[str, ...]:
    """Return the hosts that a node's certificate must be for, besides its id."""
    own = config.nodes[node]
    hosts = [split_address(own.client)[0]]
    if is_loopback(own.client):
        hosts += LOOPBACK_HOSTS
    return tuple(dict.fromkeys(hosts))
