"""A cluster whose nodes reach each other only through proxies, and words to cut and mangle links.

    net = Network(cluster, server)           # writes the routes; before the cluster starts
    await net.cut("n1", "n2")                # both ways, data path and consensus: a black hole
    await net.cut("n1", "n2", kinds=PEER, one_way=True)      # what n1 sends does not arrive at n2
    await net.isolate("n1", how="refuse")
    await net.toxic("n1", "n2", "latency", {"latency": 100, "jitter": 30})
    await net.heal()

Each ordered pair of nodes has a proxy of its own for `peer` and one for `raft`. A direction is not
a proxy: bytes from n1 to n2 flow upstream on the connections that n1 dials, and downstream on those
that n2 dials. (On the data path each dials the other; for consensus the larger id dials.) So every
word here acts on both proxies of the pair, each on the right stream, whoever dials.

Ways to cut:

- `drop`: what is sent vanishes; connections stay open, new ones are accepted and get no answer.
  Healing closes the connections that have lost bytes.
- `refuse`: connections break at once, new ones are refused. Always both ways.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable
from typing import Literal

from tests.support.cluster import Cluster
from tests.support.toxiproxy import Attributes, Proxy, Stream, ToxiproxyServer

Kind = Literal["peer", "raft"]
How = Literal["drop", "refuse"]

PEER: tuple[Kind, ...] = ("peer",)
RAFT: tuple[Kind, ...] = ("raft",)
BOTH: tuple[Kind, ...] = ("raft", "peer")
"""Consensus first: nobody is to have the time between two cuts to agree on what the first means."""

_HOLDING = frozenset({"bandwidth", "latency", "slicer", "slow_close"})


class Network:
    """The links of one cluster. Directions are (from, to) in the order of the arguments."""

    def __init__(self, cluster: Cluster, server: ToxiproxyServer) -> None:
        self.cluster = cluster
        self.server = server
        self._links: dict[tuple[str, str, Kind], Proxy] = {}
        self._clients: dict[str, Proxy] = {}
        self._names = itertools.count()
        self._holding: set[Proxy] = set()
        """Those with toxics that hold bytes back."""
        for source, target in itertools.permutations(cluster.specs, 2):
            spec = cluster.specs[target]
            for kind, upstream in (("peer", spec.peer), ("raft", spec.raft)):
                proxy = server.add(f"{kind} {source} to {target}", upstream)
                self._links[source, target, kind] = proxy  # type: ignore[index]
                cluster.routes.setdefault((source, target), {})[kind] = proxy.listen
        cluster.write_config()

    @property
    def nodes(self) -> list[str]:
        return list(self.cluster.specs)

    def clients(self) -> dict[str, str]:
        """Put a proxy before each node's HTTP API; return the URLs."""
        for node, spec in self.cluster.specs.items():
            self._clients[node] = self.server.add(f"clients of {node}", spec.client)
        return self.client_urls

    @property
    def client_urls(self) -> dict[str, str]:
        """Each node's HTTP API behind its proxy."""
        return {node: f"http://{proxy.listen}" for node, proxy in self._clients.items()}

    # -- what can be done to links

    async def toxic(
        self,
        source: str,
        target: str,
        kind: str,
        attributes: Attributes,
        *,
        kinds: Iterable[Kind] = BOTH,
        one_way: bool = False,
    ) -> None:
        """Add a toxic of toxiproxy's to what flows from `source` to `target`, and back."""
        for link in kinds:
            await self._add(source, target, link, kind, attributes)
            if not one_way:
                await self._add(target, source, link, kind, attributes)

    async def toxic_everywhere(
        self, kind: str, attributes: Attributes, *, kinds: Iterable[Kind] = BOTH
    ) -> None:
        """Add a toxic to every link, both ways."""
        for link in kinds:
            for a, b in itertools.combinations(self.nodes, 2):
                await self.toxic(a, b, kind, attributes, kinds=(link,))

    async def toxic_around(self, node: str, kind: str, attributes: Attributes) -> None:
        """Add a toxic to every link of one node, both ways; to consensus first."""
        for link in BOTH:
            for other in self.nodes:
                if other != node:
                    await self.toxic(node, other, kind, attributes, kinds=(link,))

    async def cut(
        self,
        source: str,
        target: str,
        *,
        kinds: Iterable[Kind] = BOTH,
        how: How = "drop",
        one_way: bool = False,
    ) -> None:
        """Let nothing pass from `source` to `target` any more, and, unless `one_way`, back."""
        kinds = tuple(kinds)
        if how == "refuse":
            assert not one_way, "a refused connection is refused both ways"
            for kind in kinds:
                for pair in ((source, target), (target, source)):
                    await asyncio.to_thread(self._links[(*pair, kind)].disable)
            return
        await self.toxic(source, target, "timeout", {"timeout": 0}, kinds=kinds, one_way=one_way)

    async def isolate(
        self,
        node: str,
        *,
        kinds: Iterable[Kind] = BOTH,
        how: How = "drop",
        direction: Literal["both", "out", "in"] = "both",
    ) -> None:
        """Cut a node off from all others; only what it sends ("out"), only what it hears ("in")."""
        for kind in kinds:
            for other in self.nodes:
                if other == node:
                    continue
                pair = (other, node) if direction == "in" else (node, other)
                await self.cut(*pair, kinds=(kind,), how=how, one_way=direction != "both")

    async def break_connections(self, node: str) -> None:
        """End what connections a node has with others. New ones meet the same toxics."""
        for (source, target, _), proxy in self._links.items():
            if node in {source, target}:
                await asyncio.to_thread(proxy.disable)
                await asyncio.to_thread(proxy.enable)

    async def client_toxic(self, kind: str, stream: Stream, attributes: Attributes) -> None:
        """Add a toxic between the clients and every node."""
        for proxy in self._clients.values():
            await self._add_to(proxy, kind, stream, attributes)

    async def heal(self) -> None:
        """Undo everything. What is held back is lost, and so are the connections it was sent on."""
        holding, self._holding = self._holding, set()
        for proxy in holding:
            await asyncio.to_thread(self.server.renew, proxy)
        await asyncio.to_thread(self.server.reset)

    async def _add(
        self, source: str, target: str, link: Kind, kind: str, attributes: Attributes
    ) -> None:
        await self._add_to(self._links[source, target, link], kind, "upstream", attributes)
        await self._add_to(self._links[target, source, link], kind, "downstream", attributes)

    async def _add_to(
        self, proxy: Proxy, kind: str, stream: Stream, attributes: Attributes
    ) -> None:
        if kind in _HOLDING:
            self._holding.add(proxy)
        name = f"{kind}-{stream}-{next(self._names)}"
        await asyncio.to_thread(proxy.add_toxic, name, kind, stream, attributes)
