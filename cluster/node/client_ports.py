"""The ports that clients connect to: the node's own API and, where configured, etcd's gateway."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from cluster.api.routes import HttpApi
from cluster.config.model import ListeningChannel, NodeConfig, split_address
from cluster.etcd.server import EtcdApi
from datapath.transport.tcp import cannot_listen


class ClientPorts:
    """Starts, drains and stops them together. `etcd` None: there is no such port."""

    def __init__(self, api: HttpApi, etcd: EtcdApi | None, own: NodeConfig, node_id: str) -> None:
        self._api = api
        self._etcd = etcd
        self._own = own
        self._node_id = node_id
        self._listeners = [api.listener] if etcd is None else [api.listener, etcd.listener]

    async def start(self) -> None:
        """Listen. Raises OSError that names the address and what to do."""
        channels: tuple[ListeningChannel, ...] = ("client", "etcd")
        for channel, listener in zip(channels, self._listeners, strict=False):
            address = self._own.listens_on(channel)
            try:
                await listener.start(*split_address(address, to_listen=True))
            except OSError as error:
                text = cannot_listen(address, error, channel, self._node_id)
                raise OSError(text) from error

    def hurry(self) -> None:
        """End `drain` now, or as soon as it begins."""
        for listener in self._listeners:
            listener.hurry()

    async def drain(self) -> None:
        """Let the clients go first."""
        await asyncio.gather(*(listener.drain() for listener in self._listeners))

    async def stop(self) -> None:
        """Take no more requests, and wait a bounded time for those under way."""
        await asyncio.gather(*(listener.stop() for listener in self._listeners))

    def close_refused(self, is_refused: Callable[[bytes], bool]) -> None:
        """Close the connections whose client has shown a certificate (DER) that is refused now."""
        self._api.close_refused(is_refused)
        if self._etcd is not None:
            self._etcd.close_refused(is_refused)
