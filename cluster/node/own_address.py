"""Whether the others can reach this node at the addresses that it listens on.

Debian writes a machine's own name into /etc/hosts as 127.0.1.1. A node that is configured by that
name listens there, where only its own machine comes, while the others dial the real address.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket

from cluster.config.model import ClusterConfig, ConfigError, is_loopback, split_address

RESOLVE_TIMEOUT_S = 2.0
"""A resolver that takes longer tells nothing here; the node starts without the check."""


async def check_own_addresses(config: ClusterConfig, node_id: str) -> str:
    """Look the node's own names up, and return what to warn of while others do not answer, or "".

    Raises:
        ConfigError: a name of this node leads to a loopback address, and others are elsewhere.

    """
    try:
        async with asyncio.timeout(RESOLVE_TIMEOUT_S):
            return await _check(config, node_id)
    except TimeoutError:
        return ""


async def _check(config: ClusterConfig, node_id: str) -> str:
    own = config.nodes[node_id]
    hint = ""
    for channel in ("peer", "raft"):
        address: str = getattr(own, channel)
        if own.listens_on(channel) != address:
            continue
        host = split_address(address)[0]
        found = await _resolve(host)
        if is_loopback(address) or not found or not all(map(_is_loopback, found)):
            continue
        field = f"nodes.{node_id}.{channel}"
        problem = (
            f"{host} resolves to {found[0]} on this machine, and no other machine can "
            f"connect to that. Debian writes such a line into /etc/hosts: replace {found[0]} "
            f"there by the machine's own address, or write that address into {field}"
        )
        for other, item in config.nodes.items():
            theirs: str = getattr(item, channel)
            routed = config.routes.get(other, {}).get(node_id)
            if other == node_id or (routed is not None and getattr(routed, channel)):
                continue
            elsewhere = await _resolve(split_address(theirs)[0])
            if elsewhere and not any(map(_is_loopback, elsewhere)):
                reason = f"{problem}. ({other} is at {elsewhere[0]}.)"
                raise ConfigError(config.path, field, reason)
        hint = hint or f"{field}: {problem}, if {node_id} and the others are on different machines"
    return hint


async def _resolve(host: str) -> list[str]:
    """Return the addresses of a host, [] if it cannot be looked up."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return [str(target[0]) for _, _, _, _, target in found]


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback
