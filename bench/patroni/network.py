"""The links between three machines, each a proxy of toxiproxy's, to be cut and healed.

A machine has a node of the store; the first two have a PostgreSQL with its Patroni as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from tests.support.toxiproxy import Proxy, ToxiproxyServer

Plane = Literal["raft", "peer", "gateway", "postgres", "patroni"]
"""Between the store's nodes: `raft` (consensus), `peer` (data). `gateway`: from Patroni to the
store, its own machine's too. `postgres`, `patroni`: to the other machine's."""
How = Literal["drop", "refuse"]
"""`drop`: connections stay open, and what is sent vanishes; `refuse`: they break at once."""


class Link(NamedTuple):
    """Connections that `source` opens to `target`, two machines."""

    source: str
    target: str
    plane: Plane


class Network:
    """The proxies of one cluster."""

    def __init__(self, server: ToxiproxyServer) -> None:
        self._server = server
        self._links: dict[Link, Proxy] = {}

    def connect(self, link: Link, address: str) -> str:
        """Put a proxy before an address; return the proxy's."""
        proxy = self._links[link] = self._server.add("-".join(link), address)
        return proxy.listen

    def cut(self, chosen: Callable[[Link], bool], how: How) -> None:
        """Let nothing pass over these links, in neither direction, until `heal`."""
        for link, proxy in self._links.items():
            if not chosen(link):
                continue
            if how == "refuse":
                proxy.disable()
                continue
            proxy.add_toxic("cut-up", "timeout", "upstream", {"timeout": 0})
            proxy.add_toxic("cut-down", "timeout", "downstream", {"timeout": 0})

    def cut_off(self, machine: str, how: How) -> None:
        """Cut every link of a machine to others."""
        self.cut(lambda link: link.source != link.target and machine in link[:2], how)

    def heal(self) -> None:
        """Let everything pass again."""
        self._server.reset()
