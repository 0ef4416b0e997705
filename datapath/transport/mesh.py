"""The links of one node: its peer port, and one link of each kind to every other node."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

from datapath.transport.dialer import Dialer
from datapath.transport.link import ErrorCallback, LinkHandler
from datapath.transport.listener import MAX_UNAUTHENTICATED, PeerListener
from datapath.transport.tls import LinkTls
from election.registry import AddressRotation, PeerRegistry
from election.shared_secret import SharedSecret

Address = tuple[str, int]
REQUEST = "request"
REPLICATE = "replicate"
SNAPSHOT = "snapshot"


class Mesh:
    """Keeps links up to the nodes named by `set_peers`.

    `addresses` says where a peer's port may be reached from here, the likeliest first: they are
    tried in turn until one answers as that peer (`registry` judges it). Each kind and direction has
    a handler; links of kind "request" are dialled to everyone, "replicate" between replicas.
    `on_error` gets what a handler has raised: a failed disk must not end with the link (D9).
    """

    def __init__(
        self,
        node_id: str,
        listen: Address,
        cluster: str,
        secret: SharedSecret,
        addresses: Callable[[str], Sequence[Address]],
        registry: PeerRegistry,
        *,
        on_error: ErrorCallback,
        tls: LinkTls | None = None,
        max_unauthenticated: int = MAX_UNAUTHENTICATED,
    ) -> None:
        self.node_id = node_id
        self.cluster = cluster
        self.secret = secret
        self.addresses = addresses
        self.registry = registry
        self.tls = tls
        self._listen = listen
        self._on_error = on_error
        self._max_unauthenticated = max_unauthenticated
        self._outgoing: Mapping[str, LinkHandler] = {}
        self._listener: PeerListener | None = None
        self._dialers: dict[tuple[str, str], Dialer] = {}
        self._stopping: set[asyncio.Task[None]] = set()

    async def start(
        self, *, incoming: Mapping[str, LinkHandler], outgoing: Mapping[str, LinkHandler]
    ) -> None:
        """Listen, for links of the kinds of `incoming`. Raises LinkError if that cannot be."""
        self._outgoing = outgoing
        listener = PeerListener(
            *self._listen,
            self.node_id,
            self.cluster,
            self.secret,
            incoming,
            registry=self.registry,
            tls=self.tls,
            max_unauthenticated=self._max_unauthenticated,
            on_error=self._on_error,
        )
        await listener.start()
        self._listener = listener

    async def stop(self) -> None:
        """Close every link and the port."""
        dialers, self._dialers = self._dialers, {}
        await asyncio.gather(*(dialer.stop() for dialer in dialers.values()), *self._stopping)
        if self._listener is not None:
            await self._listener.stop()

    def set_peers(self, wanted: Mapping[str, frozenset[str]]) -> None:
        """Dial each peer of `wanted` for its kinds, and nobody else."""
        pairs = {(peer, kind) for peer, kinds in wanted.items() for kind in kinds}
        for pair in set(self._dialers) - pairs:
            task = asyncio.create_task(self._dialers.pop(pair).stop())
            self._stopping.add(task)
            task.add_done_callback(self._stopping.discard)
        for peer, kind in sorted(pairs - set(self._dialers)):
            dialer = self.dialer(peer, kind, self._outgoing[kind])
            self._dialers[(peer, kind)] = dialer
            dialer.start()

    def dialer(self, peer: str, kind: str, handler: LinkHandler) -> Dialer:
        """Make a dialer for one link; the caller starts and stops it."""
        rotation = AddressRotation()

        def address() -> Address | None:
            return rotation.pick(self.addresses(peer), failed=bool(dialer.problem))

        dialer = Dialer(
            address,
            peer,
            kind,
            self.node_id,
            self.cluster,
            self.secret,
            handler,
            registry=self.registry,
            tls=self.tls,
            on_error=self._on_error,
        )
        return dialer

    def redial(self, peer: str, kind: str, reason: str) -> None:
        """Close the link to `peer`; its dialer opens a new one."""
        dialer = self._dialers.get((peer, kind))
        if dialer is not None and dialer.link is not None:
            dialer.link.close(reason)

    def close_links(self, is_refused: Callable[[bytes], bool], reason: str) -> None:
        """Close the links whose other end has shown a certificate (DER) that is refused now."""
        dialled = [dialer.link for dialer in self._dialers.values()]
        accepted = list(self._listener.links.values()) if self._listener is not None else []
        for link in (*dialled, *accepted):
            if link is not None and (shown := link.certificate) and is_refused(shown):
                link.close(reason)

    def problem(self, peer: str, kind: str) -> str:
        """Why there is no link, or ""."""
        dialer = self._dialers.get((peer, kind))
        return dialer.problem if dialer is not None else ""
