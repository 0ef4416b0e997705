"""Who may ask for what changes the cluster itself: its members, its primary.

Until there are roles, it is whoever runs programs on a node's own machine (`[api] admin_from`). The
addresses of the connection's two ends decide, and never what a header says of them. A request that
has come through a proxy is not from this machine, whatever its connection's address: such headers
only ever take the permission away.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Container

from aiohttp.web import BaseRequest

from cluster.api.access import ApiAccess
from cluster.api.problems import ProblemError
from cluster.config.api_section import AdminFrom
from datapath.operations import Node

PROXY_HEADERS = ("Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Real-IP", "Via")


def check_admin(
    admin_from: AdminFrom, remote: str | None, local: str | None, headers: Container[str]
) -> None:
    """Raise Problem if a request may not change the cluster.

    `remote` and `local` are the IP addresses of the connection's two ends.
    """
    if admin_from == "any":
        return
    named = [name for name in PROXY_HEADERS if name in headers]
    if is_same_machine(remote, local) and not named:
        return
    origin = f"through a proxy ({named[0]})" if named else f"from {remote or 'an unknown address'}"
    raise ProblemError(
        "admin_forbidden",
        f"this request came {origin}, and removals, handovers and backups are accepted only "
        "from the node's own machine: run the command there, with that node as the only endpoint; "
        'or set admin_from = "any" in [api] of the configuration file to accept them from everyone '
        "who can reach this port",
    )


def check_admin_of(
    request: BaseRequest, node: Node, access: ApiAccess, admin_from: AdminFrom
) -> str:
    """Return who asks, for the log. Raises Problem as `check_admin`.

    Where there is access control, that they have the right `admin` was checked before.
    """
    connection = request.transport
    sockets = ("peername", "sockname")
    remote, local = (connection and connection.get_extra_info(name) for name in sockets)
    if not access.is_on:
        check_admin(
            admin_from,
            remote[0] if remote else None,
            local[0] if local else None,
            request.headers,
        )
    return f"{remote[0]} port {remote[1]} at {node.node_id}" if remote else "an unknown"


def is_same_machine(remote: str | None, local: str | None) -> bool:
    """Whether a connection never left this machine: loopback, or one address at both ends.

    A packet from outside that bears this machine's own address is dropped by its kernel.
    """
    try:
        ends = [ipaddress.ip_address((end or "").partition("%")[0]) for end in (remote, local)]
    except ValueError:
        return False
    theirs, ours = (getattr(end, "ipv4_mapped", None) or end for end in ends)
    return bool(theirs.is_loopback or theirs == ours)
